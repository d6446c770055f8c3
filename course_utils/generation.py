"""Decoding: from scores of the next token to text.

One step takes the scores (logits) of the next token through small functions, each a filter or a stretch, always in this
order, which is that of ``transformers``: :func:`repetition_penalty`, :func:`temperature`, :func:`top_k`, :func:`top_p`,
:func:`min_p`; then :func:`choose` takes a token. The order matters: temperature before top-p changes which tokens hold
the share p, whereas top-k before or after temperature keeps the same tokens.

:func:`complete` and :func:`stream` go from text to text, :func:`generate` from token ids to token ids.
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, Protocol, cast, overload, runtime_checkable
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from course_utils import reporting
from course_utils.families import config_from_huggingface, from_huggingface
from course_utils.models import Loaded
from course_utils.positions import alibi_bias
from course_utils.transformer import Block, LayerCache, RMSNorm, Transformer

Scores = Float[Tensor, "batch vocabulary"]
Mask = Num[Tensor, "batch tokens"] | Bool[Tensor, "batch tokens"]
"""1 or True for real tokens, 0 or False for padding."""

# --- steps on logits


def repetition_penalty(logits: Scores, seen_ids: Int[Tensor, "batch tokens"], penalty: float) -> Scores:
    """Make tokens that have been seen less likely (Keskar et al. 2019, section 4.1).

    A positive score is divided by the penalty, a negative one multiplied, once however often the token was seen.

    Args:
        logits: scores of the next token.
        seen_ids: tokens that the row holds so far.
        penalty: above 1 discourages repetition, 1 changes nothing, below 1 invites it.

    Raises:
        ValueError: the penalty is not above 0.
    """
    _positive("penalty", penalty)
    score = logits.gather(-1, seen_ids)
    return logits.scatter(-1, seen_ids, torch.where(score < 0, score * penalty, score / penalty))


def temperature(logits: Scores, t: float) -> Scores:
    """Divide the scores by a temperature: below 1 the likely become likelier, above 1 all become more alike.

    Args:
        logits: scores of the next token.
        t: the temperature. At 0, the limit, only the highest score is left (and what equals it).

    Raises:
        ValueError: the temperature is below 0, or not finite.
    """
    _check_temperature("t", t)
    return logits / t if t else _without(logits, logits < logits.amax(-1, keepdim=True))


def top_k(logits: Scores, k: int) -> Scores:
    """Keep the k highest scores, and what equals the lowest of them (Fan et al. 2018, section 5.4).

    Args:
        logits: scores of the next token.
        k: how many to keep; more than there are keeps all.

    Returns:
        The scores, minus infinity for the tokens that are out.

    Raises:
        ValueError: k is no whole number of 1 or more.
    """
    _whole("k", k, 1)
    lowest = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return _without(logits, logits < lowest)


def top_p(logits: Scores, p: float) -> Scores:
    """Keep the smallest set of tokens that together hold the probability p (Holtzman et al. 2020, section 3.1).

    Args:
        logits: scores of the next token.
        p: share of the probability, above 0; 1 keeps all.

    Returns:
        The scores, minus infinity for the tokens that are out.

    Raises:
        ValueError: p is not above 0 and at most 1.
    """
    _share("p", p)
    if p == 1:
        return logits
    probabilities = logits.double().softmax(-1)
    for size in (64, 512, logits.shape[-1]):  # the likeliest few mostly do, and to sort a whole vocabulary is slow
        likeliest, ids = probabilities.topk(min(size, logits.shape[-1]))
        before = likeliest.cumsum(-1) - likeliest  # held by the tokens that are likelier still
        if bool((likeliest.sum(-1) >= p).all()):
            break
    return _without(logits, torch.ones_like(logits, dtype=torch.bool).scatter(-1, ids, before >= p))


def min_p(logits: Scores, p: float) -> Scores:
    """Keep the tokens that are at least p times as probable as the likeliest one (Nguyen et al. 2024, section 3).

    Args:
        logits: scores of the next token.
        p: the share of the highest probability, above 0; 1 keeps the likeliest alone.

    Returns:
        The scores, minus infinity for the tokens that are out.

    Raises:
        ValueError: p is not above 0 and at most 1.
    """
    _share("p", p)
    return _without(logits, logits < logits.amax(-1, keepdim=True) + math.log(p))


def choose(logits: Scores, uniform: Float[Tensor, "batch vocabulary"] | None = None) -> Int[Tensor, "batch"]:
    """Take the token with the highest score, or draw one by its probability.

    The draw is the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014, section 2): to each score add
    ``-log(-log(u))`` with its own uniform number u, and take the highest. A token then wins with exactly its softmax
    probability. Unlike a search in cumulated probabilities, a tiny change of the scores (another processor) hardly ever
    changes the token, and a token that a filter leaves in keeps its luck.

    Args:
        logits: scores of the next token.
        uniform: numbers from 0 to below 1, one for each token; None takes the highest score.

    Raises:
        ValueError: a row's scores are not numbers, or all minus infinity.
    """
    luck = logits if uniform is None else logits - (-uniform.log()).log()
    if (
        luck.device.type == "cpu" and luck.dtype != torch.bfloat16
    ):  # NumPy finds the highest of a long row eight times faster
        token = torch.from_numpy(luck.detach().numpy().argmax(-1))
        best = luck.gather(-1, token[:, None])
    else:
        best, token = luck.max(-1)
    if not bool(best.isfinite().all()):
        raise _no_numbers()
    return token


# --- settings


@dataclass(frozen=True)
class Decoding:
    """How to decode. ``dataclasses.replace(settings, temperature=0.7)`` changes one setting.

    Attributes:
        max_new_tokens: largest number of tokens to write.
        temperature: see :func:`temperature`; 0 takes the most probable token at each step (greedy).
        top_k: see :func:`top_k`; None keeps all.
        top_p: see :func:`top_p`; None keeps all.
        min_p: see :func:`min_p`; None keeps all.
        repetition_penalty: see :func:`repetition_penalty`; 1 changes nothing. Seen are the prompt's tokens and the
            written ones; in an encoder-decoder the target's alone.
        beams: hypotheses followed at a time; 1 follows one. Beam search does not sample.
        length_penalty: with beams, a hypothesis is ranked by its log-probability divided by its number of new tokens
            to this power; above 0 favours long ones.
        stop: strings that end a text; they do not belong to it.
        seed: of the draws. The same seed, prompt and settings give the same text.

    Raises:
        ValueError: a value is out of range, or two of them contradict each other; the message says which and why.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        _whole("max_new_tokens", self.max_new_tokens, 0)
        _check_temperature("temperature", self.temperature)
        if self.top_k is not None:
            _whole("top_k", self.top_k, 1)
        for name in ("top_p", "min_p"):
            if getattr(self, name) is not None:
                _share(name, getattr(self, name))
        _positive("repetition_penalty", self.repetition_penalty)
        _whole("beams", self.beams, 1)
        _whole("seed", self.seed, 0)
        if not _number(self.length_penalty):
            raise ValueError(f"length_penalty={self.length_penalty!r}: expected a number")
        if isinstance(self.stop, str) or not all(isinstance(one, str) and one for one in self.stop):
            raise ValueError(f'stop={self.stop!r}: expected a tuple of strings that are not empty, such as ("\\n",)')
        if self.beams == 1 and self.length_penalty != 1:
            raise ValueError(f"length_penalty={self.length_penalty} with beams=1: only beam search ranks by length")
        for name in ("temperature", "top_k", "top_p", "min_p"):
            if self.beams > 1 and getattr(self, name):
                raise ValueError(
                    f"beams={self.beams} with {name}={getattr(self, name)}: beam search follows the most probable "
                    "hypotheses and draws nothing; choose one of the two"
                )

    def filters(self, seen_ids: Int[Tensor, "batch tokens"]) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
        """Return the steps that these settings ask for, in their order, as (name, logits to logits).

        Args:
            seen_ids: tokens that each row holds so far, for the repetition penalty.
        """
        found: list[tuple[str, Callable[[Tensor], Tensor]]] = []
        if self.repetition_penalty != 1:
            name = f"repetition penalty {self.repetition_penalty:g}"
            found.append((name, lambda logits: repetition_penalty(logits, seen_ids, self.repetition_penalty)))
        if self.temperature != 1:
            found.append((f"temperature {self.temperature:g}", lambda logits: temperature(logits, self.temperature)))
        for name, step, value in (
            ("top-k", top_k, self.top_k),
            ("top-p", top_p, self.top_p),
            ("min-p", min_p, self.min_p),
        ):
            if value is not None:
                found.append((f"{name} {value:g}", lambda logits, step=step, value=value: step(logits, value)))  # type: ignore[misc]
        return found


# --- ids to ids


def greedy(
    model: nn.Module,
    input_ids: Int[Tensor, "batch tokens"],
    max_new_tokens: int,
    *,
    end_id: int | Sequence[int] | None = None,
    start_id: int | None = None,
    attention_mask: Mask | None = None,
) -> Int[Tensor, "batch new"]:
    """Let a model write, always the most probable token: :func:`generate` with nothing set but the length.

    Args:
        model: see :func:`generate`, as for the others.
        input_ids: the prompts.
        max_new_tokens: largest number of tokens to write.
        end_id: the token that ends a text.
        start_id: the token that begins a target.
        attention_mask: 1 for real tokens, 0 for padding.

    Returns:
        The new tokens.

    Raises:
        ValueError: see :func:`generate`.
    """
    settings = Decoding(max_new_tokens=max_new_tokens)
    return generate(model, input_ids, settings, end_id=end_id, start_id=start_id, attention_mask=attention_mask)


def generate(
    model: nn.Module,
    input_ids: Int[Tensor, "batch tokens"],
    settings: Decoding,
    *,
    end_id: int | Sequence[int] | None = None,
    start_id: int | None = None,
    attention_mask: Mask | None = None,
) -> Int[Tensor, "batch new"]:
    """Let a model write: choose a token, read it back in, choose the next.

    Keys and values of earlier tokens are cached, so a step computes one token. The model runs in evaluation mode, and
    gets its mode back. Draws depend on the seed, the row's real tokens and the number of equal rows above it, not on
    the other rows.

    A small ``transformers`` model on the CPU, of a family that :func:`course_utils.families.from_huggingface` knows and
    without hooks, is copied into our Transformer, which computes the same several times as fast; others run as they
    are.

    Args:
        model: a decoder (continues ``input_ids``) or an encoder-decoder (reads them as the source): our
            :class:`course_utils.transformer.Transformer`, or a model of ``transformers``.
        input_ids: the prompts, padded on the left, or the sources, padded on either side.
        settings: how to decode, without ``stop`` (which needs text: :func:`complete`).
        end_id: the token that ends a text, or several; what follows it in its row is filled up with (the first of)
            them. By default no text ends early.
        start_id: the token that begins a target; needed by an encoder-decoder, unless a ``transformers`` model's
            configuration says it.
        attention_mask: 1 for real tokens, 0 for padding; by default all are real.

    Returns:
        The new tokens, at most ``max_new_tokens`` of each row, without the prompt or the start token.

    Raises:
        ValueError: the model cannot write, the prompt and the new tokens exceed the context window, a prompt is empty
            or (in a decoder) padded on the right, ``start_id`` is missing or needless, an id is not in the
            vocabulary, or the model's scores are not numbers.
    """
    if settings.stop:
        raise ValueError(f"stop={settings.stop}: generate() sees tokens only; use complete() for strings that stop")
    ends = () if end_id is None else (end_id,) if isinstance(end_id, int) else tuple(end_id)
    found = list(_steps(_quick(model), input_ids, attention_mask, settings, ends, _start(model, start_id)))
    written = torch.cat(found, dim=1) if found else input_ids[:, :0]
    return written.masked_fill(written < 0, ends[0] if ends else 0)


Stopped = Callable[[int, list[int]], bool]
"""Row and its new tokens to whether a stop string ends it."""


@torch.no_grad()
def _steps(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    settings: Decoding,
    ends: tuple[int, ...],
    start_id: int | None,
    stopped: Stopped | None = None,
    streams: Sequence[torch.Generator] | None = None,
) -> Iterator[Tensor]:
    """Yield the tokens as they are written, (batch, new), -1 behind the end of a row; beam search yields once."""
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask != 0
    _check(model, input_ids, attention_mask, settings.max_new_tokens, start_id)
    if not settings.max_new_tokens or not len(input_ids):
        return
    run = _run(model, input_ids, None if bool(real.all()) else real, start_id, settings.max_new_tokens)
    seen = torch.where(real, input_ids, input_ids[:, -1:]) if start_id is None else input_ids[:, :1] * 0 + start_id
    over = torch.tensor(ends, dtype=torch.long, device=input_ids.device)
    training = model.training
    model.eval()
    try:
        if settings.beams > 1:
            yield _beam_search(run, settings, seen, over, stopped)
        else:
            if streams is None and settings.temperature:
                rows = [row[keep].tolist() for row, keep in zip(input_ids, real, strict=True)]
                streams = _streams(settings.seed, rows)
            yield from _one_by_one(run, settings, seen, over, list(streams or []), stopped)
    finally:
        model.train(training)


def _streams(seed: int, rows: Sequence[Sequence[int]]) -> list[torch.Generator]:
    """Return one generator of random numbers for each row, from the seed and what the row holds.

    Equal rows are told apart by their number among the equal ones, so that a prompt may be drawn from many times.
    """
    counted: dict[tuple[int, ...], int] = {}
    found = []
    for row in map(tuple, rows):
        counted[row] = counted.get(row, 0) + 1
        digest = hashlib.sha256(repr((seed, counted[row], row)).encode()).digest()
        found.append(torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1))
    return found


def _drawn(streams: Sequence[torch.Generator], logits: Tensor) -> Tensor:
    """Return uniform numbers, (batch, vocabulary), each row from its own stream."""
    rows = [torch.rand(logits.shape[-1], generator=one, dtype=torch.float64) for one in streams]
    return torch.stack(rows).to(logits.device)


def _one_by_one(
    run: "_Run",
    settings: Decoding,
    seen: Tensor,
    ends: Tensor,
    streams: list[torch.Generator],
    stopped: Stopped | None,
) -> Iterator[Tensor]:
    """Choose a token for each row at each step. Rows that are over leave the batch, a quarter of it at a time."""
    batch = len(seen)
    rows, alive = torch.arange(batch), torch.ones(batch, dtype=torch.bool)  # rows still computed; those not over
    texts: list[list[int]] = [[] for _ in range(batch)]
    logits = run.first()
    for count in range(1, settings.max_new_tokens + 1):
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        uniform = None
        if settings.temperature:
            for _, step in settings.filters(seen):
                logits = step(logits)
            uniform = _drawn(streams, logits)
        elif settings.repetition_penalty != 1:
            logits = repetition_penalty(logits, seen, settings.repetition_penalty)
        tokens = choose(logits, uniform)
        if settings.repetition_penalty != 1:
            seen = torch.cat([seen, tokens[:, None]], dim=1)
        if not len(ends) and stopped is None:
            yield tokens[:, None]
        else:
            shown, going = torch.full((batch,), -1, dtype=torch.long), alive.clone()
            shown[rows[alive]] = tokens.cpu()[alive]
            yield shown[:, None].to(tokens.device)
            going &= ~torch.isin(tokens, ends).cpu()
            if stopped is not None:
                for place, (row, token) in enumerate(zip(rows.tolist(), tokens.tolist(), strict=True)):
                    texts[row].append(token)
                    going[place] &= not (going[place] and stopped(row, texts[row]))
            alive = going
            left = int(alive.sum())
            if not left:
                return
            if count < settings.max_new_tokens and 4 * left <= 3 * len(rows):
                kept = alive.nonzero()[:, 0]
                rows, alive, streams = rows[kept], alive[kept], [streams[place] for place in kept if streams]
                kept = kept.to(tokens.device)
                tokens, seen = tokens[kept], seen[kept]
                run.reorder(kept)
        if count < settings.max_new_tokens:
            logits = run.step(tokens)


UNLIKELY = -1e9
"""Stands for minus infinity in the scores of hypotheses, as in ``transformers``."""


def _beam_search(run: "_Run", settings: Decoding, seen: Tensor, ends: Tensor, stopped: Stopped | None) -> Tensor:
    """Follow the most probable hypotheses; return the best one that is over, (batch, new), -1 behind its end.

    At each step every hypothesis is continued by every token, and the best of all are looked at: so many that enough
    are left to go on when those that end are taken out. An ended one counts only if it is among the best ``beams``;
    its score is its log-probability divided by its length to the power of the length penalty. A row is done when its
    best running hypothesis, were it over now, could not replace the worst ended one.
    """
    batch, beams, longest, device = len(seen), settings.beams, settings.max_new_tokens, seen.device
    kept = max(2, 1 + len(ends)) * beams
    running = torch.full((batch, beams, longest), -1, dtype=torch.long, device=device)
    scores = torch.full((batch, beams), UNLIKELY, device=device)
    ended, ended_scores = running.clone(), scores.clone()
    is_ended = torch.zeros(batch, beams, dtype=torch.bool, device=device)
    open_rows = torch.ones(batch, 1, dtype=torch.bool, device=device)  # ended hypotheses can still be beaten
    scores[:, 0] = 0  # all begin alike, so that one of them has to do
    first = torch.arange(batch, device=device).repeat_interleave(beams)
    logits, seen = run.first()[first], seen[first]
    run.reorder(first)
    for count in range(1, longest + 1):
        log_probabilities = logits.float().log_softmax(-1)
        if settings.repetition_penalty != 1:
            history = torch.cat([seen, running[..., : count - 1].flatten(0, 1)], dim=1)
            log_probabilities = repetition_penalty(log_probabilities, history, settings.repetition_penalty)
        vocabulary = log_probabilities.shape[-1]
        totals = (log_probabilities.view(batch, beams, vocabulary) + scores[..., None]).flatten(1)
        best, places = totals.topk(kept)
        if not bool(best.isfinite().all()):
            raise _no_numbers()
        parents, tokens = places // vocabulary, places % vocabulary
        found = running.take_along_dim(parents[..., None], dim=1)
        found[..., count - 1] = tokens
        over = torch.isin(tokens, ends) | (count == longest)
        if stopped is not None:
            texts = found[..., :count].tolist()
            hits = [[stopped(row, text) for text in texts[row]] for row in range(batch)]
            over |= torch.tensor(hits, device=device)

        scores, chosen = (best + over * UNLIKELY).topk(beams)
        running = found.take_along_dim(chosen[..., None], dim=1)

        counts = over & (torch.arange(kept, device=device) < beams)
        final = best / count**settings.length_penalty + ~open_rows * UNLIKELY + ~counts * UNLIKELY
        ended_scores, places = torch.cat([ended_scores, final], dim=1).topk(beams)
        ended = torch.cat([ended, found], dim=1).take_along_dim(places[..., None], dim=1)
        is_ended = torch.cat([is_ended, counts], dim=1).take_along_dim(places, dim=1)

        worst = torch.where(is_ended, ended_scores.amin(1, keepdim=True), UNLIKELY)
        open_rows &= (scores[:, :1] / count**settings.length_penalty > worst).any(1, keepdim=True)
        if not bool(open_rows.any()) or bool(over.all()):
            break
        rows = parents.take_along_dim(chosen, dim=1) + torch.arange(batch, device=device)[:, None] * beams
        run.reorder(rows.flatten())
        logits = run.step(running[..., count - 1].flatten())
    return ended[:, 0, : int((ended[:, 0] >= 0).sum(-1).max())]


# --- text to text


@dataclass(frozen=True)
class Completion:
    """What a model wrote.

    Attributes:
        text: the new text, without special tokens, and without the stop string and what follows it.
        ids: the new tokens, without the one that ends a text.
        reason: why it ends: ``end`` (the model ended it), ``stop`` (a stop string) or ``length`` (``max_new_tokens``).
        tokens_in: number of tokens of the prompt.
    """

    text: str
    ids: tuple[int, ...]
    reason: str
    tokens_in: int


@overload
def complete(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too
    loaded: Loaded, prompts: str, settings: Decoding, rows: int = ..., progress: bool = ...
) -> Completion: ...


@overload
def complete(
    loaded: Loaded, prompts: Sequence[str], settings: Decoding, rows: int = ..., progress: bool = ...
) -> list[Completion]: ...


def complete(
    loaded: Loaded,
    prompts: str | Sequence[str],
    settings: Decoding,
    rows: int = 16,
    progress: bool = False,
) -> Completion | list[Completion]:
    """Let a model continue prompts (a decoder) or answer them (an encoder-decoder).

    A text depends on the model, its prompt, the settings and, where it is drawn, on how many equal prompts stand
    before it; not on the other prompts.

    Args:
        loaded: the model, from :func:`course_utils.models.load`.
        prompts: one prompt or several.
        settings: how to decode.
        rows: prompts at a time.
        progress: show a bar.

    Returns:
        What was written: for one prompt its completion, for several a list in their order.

    Raises:
        ValueError: a prompt is empty, or does not fit into the context window with the new tokens (nothing is ever
            cut); or as :func:`generate`.
    """
    _whole("rows", rows, 1)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    encoded = _encoded(loaded, texts, settings)
    streams = _streams(settings.seed, encoded) if settings.temperature else []
    order = sorted(range(len(texts)), key=lambda place: len(encoded[place]))
    found: list[Completion | None] = [None] * len(texts)
    model = _quick(cast(nn.Module, loaded.model))
    with reporting.progress_bar(len(texts), "completions", progress) as bar:
        for begin in range(0, len(order), rows):
            places = order[begin : begin + rows]
            read = [encoded[place] for place in places]
            chosen = [streams[place] for place in places] if streams else None
            written = list(_steps_of(loaded, model, read, settings, chosen))
            table = torch.cat(written, dim=1).tolist() if written else [[]] * len(places)
            for place, row in zip(places, table, strict=True):
                found[place] = _completion(loaded, encoded[place], [token for token in row if token >= 0], settings)
            bar.update(len(places))
    done = cast(list[Completion], found)
    return done[0] if isinstance(prompts, str) else done


def stream(loaded: Loaded, prompt: str, settings: Decoding) -> Iterator[str]:
    """Yield a completion piece by piece, as it is written; the pieces joined are the text of :func:`complete`.

    What may still change is held back: half of a character, or what may become a stop string. Beam search knows its
    text only at the end, and yields it whole.

    Args:
        loaded: the model, from :func:`course_utils.models.load`.
        prompt: the prompt.
        settings: how to decode.

    Raises:
        ValueError: as :func:`complete`.
    """
    (read,) = _encoded(loaded, [prompt], settings)
    ids: list[int] = []
    shown = ""
    for tokens in _steps_of(loaded, _quick(cast(nn.Module, loaded.model)), [read], settings, None):
        ids += [token for token in tokens[0].tolist() if token >= 0]
        text = _completion(loaded, read, ids, settings).text
        sure = len(text.rstrip("\ufffd"))
        for one in settings.stop:
            for length in range(1, len(one)):
                if text.endswith(one[:length]):
                    sure = min(sure, len(text) - length)
        if sure > len(shown) and text.startswith(shown):
            yield text[len(shown) : sure]
            shown = text[:sure]
    rest = _completion(loaded, read, ids, settings).text[len(shown) :]
    if rest:
        yield rest


@dataclass(frozen=True)
class Step:
    """One step of decoding, laid open.

    Attributes:
        tokens: the candidates as text, the likeliest first.
        ids: their numbers in the vocabulary.
        stages: for each stage its name and the candidates' probabilities behind it: the model's own, then one for each
            filter that the settings ask for, in their order. A token that is out has 0.
        kept: for each stage the number of tokens of the whole vocabulary that are left.
        chosen: the token that :func:`complete` writes first with these settings.
    """

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    stages: tuple[tuple[str, tuple[float, ...]], ...]
    kept: tuple[int, ...]
    chosen: str

    def table(self) -> None:
        """Display the candidates and their probabilities behind each stage; a dash for what is out."""
        rows: list[list[str]] = []
        for place, token in enumerate(self.tokens):
            shares = [values[place] for _, values in self.stages]
            rows.append([repr(token), *(f"{share:.3f}" if share else "-" for share in shares)])
        rows.append(["tokens left", *map(str, self.kept)])
        reporting.table(rows, ["token", *(name for name, _ in self.stages)])


@torch.no_grad()
def explain_step(loaded: Loaded, prompt: str, settings: Decoding, top: int = 10) -> Step:
    """Show what each filter does to the first new token's candidates.

    Args:
        loaded: the model, from :func:`course_utils.models.load`.
        prompt: the prompt.
        settings: how to decode, without beams.
        top: how many candidates, by the model's own probability.

    Raises:
        ValueError: the settings ask for beams, ``top`` is below 1, or as :func:`complete`.
    """
    _whole("top", top, 1)
    if settings.beams > 1:
        raise ValueError(f"beams={settings.beams}: beam search chooses no single token; explain_step() shows one step")
    settings = dataclasses.replace(settings, max_new_tokens=max(settings.max_new_tokens, 1), stop=())
    (read,) = _encoded(loaded, [prompt], settings)
    model = _quick(cast(nn.Module, loaded.model))
    ids = torch.tensor([read], device=loaded.model.device)
    start = _start(cast(nn.Module, loaded.model), None)
    training = model.training
    model.eval()
    try:
        logits = _run(model, ids, None, start, 1).first().float()
    finally:
        model.train(training)
    if not bool(logits.amax().isfinite()):
        raise _no_numbers()
    shares = logits.double().softmax(-1)[0]
    likeliest = shares.topk(min(top, len(shares))).indices
    stages, kept = [("model", tuple(shares[likeliest].tolist()))], [int((shares > 0).sum())]
    for name, step in settings.filters(ids if start is None else torch.full_like(ids[:, :1], start)):
        logits = step(logits)
        shares = logits.double().softmax(-1)[0]
        stages.append((name, tuple(shares[likeliest].tolist())))
        kept.append(int((logits > -math.inf).sum()))
    uniform = _drawn(_streams(settings.seed, [read]), logits) if settings.temperature else None
    numbers = likeliest.tolist()
    texts = [_text(loaded, read, [number], special=True) for number in [*numbers, int(choose(logits, uniform)[0])]]
    return Step(tuple(texts[:-1]), tuple(numbers), tuple(stages), tuple(kept), texts[-1])


def check_text(text: str) -> None:
    """Refuse a text that has no bytes, so that no tokenizer can read it.

    Args:
        text: a prompt.

    Raises:
        ValueError: it holds half of a surrogate pair.
    """
    half = re.search("[\ud800-\udfff]", text)
    if half:
        raise ValueError(
            f"the prompt holds {half[0]!r} at place {half.start()}, half of a character, which has no bytes: take it "
            "out, or read the file it comes from as UTF-8"
        )


def _encoded(loaded: Loaded, texts: Sequence[str], settings: Decoding) -> list[list[int]]:
    """Return the tokens of prompts that fit."""
    for text in texts:
        if not text:
            raise ValueError("the prompt is empty: give at least one character")
        check_text(text)
    every = cast(list[list[int]], loaded.tokenizer(list(texts), verbose=False)["input_ids"]) if texts else []
    kind = "encoder-decoder" if loaded.model.config.is_encoder_decoder else "decoder"
    longest, window = max(map(len, every), default=0), context_window(loaded)
    if kind == "encoder-decoder":  # the tokenizer's limit is one of the source
        _check_window(window, longest, 0, kind)
        window = context_window(cast(nn.Module, loaded.model))
    _check_window(window, longest, settings.max_new_tokens, kind)
    return every


def _steps_of(
    loaded: Loaded,
    model: nn.Module,
    read: Sequence[Sequence[int]],
    settings: Decoding,
    streams: Sequence[torch.Generator] | None,
) -> Iterator[Tensor]:
    """Pad prompts on the left, and yield the new tokens as :func:`_steps` does."""
    longest = max(map(len, read))
    pad = loaded.tokenizer.pad_token_id or 0
    device = loaded.model.device
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in read], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in read], device=device)

    def stopped(row: int, written: list[int]) -> bool:
        text = _text(loaded, read[row], written)
        return any(one in text for one in settings.stop)

    start = _start(cast(nn.Module, loaded.model), None)
    return _steps(model, ids, mask, settings, _ends(loaded), start, stopped if settings.stop else None, streams)


def _ends(loaded: Loaded) -> tuple[int, ...]:
    """Return the tokens that end a text, as the model's settings for generation say, or its tokenizer."""
    settings = getattr(loaded.model, "generation_config", None)
    for end in (getattr(settings, "eos_token_id", None), loaded.tokenizer.eos_token_id):
        if end is not None:
            return (end,) if isinstance(end, int) else tuple(end)
    return ()


def _text(loaded: Loaded, read: Sequence[int], ids: Sequence[int], special: bool = False) -> str:
    """Return new tokens as text, as it stands behind the prompt (some tokenizers drop a leading blank)."""

    def decoded(tokens: Sequence[int]) -> str:
        options: dict[str, Any] = {"skip_special_tokens": not special, "clean_up_tokenization_spaces": False}
        return cast(str, loaded.tokenizer.decode(list(tokens), **options))

    before = [] if loaded.model.config.is_encoder_decoder else read[-8:]
    head, whole = decoded(before), decoded([*before, *ids])
    return whole[len(head) :] if whole.startswith(head) else decoded(ids)


def _completion(loaded: Loaded, read: Sequence[int], ids: list[int], settings: Decoding) -> Completion:
    ended = bool(ids) and ids[-1] in _ends(loaded)
    ids = ids[:-1] if ended else ids
    text = _text(loaded, read, ids)
    cuts = [place for place in (text.find(one) for one in settings.stop) if place >= 0]
    reason = "stop" if cuts else "end" if ended else "length"
    return Completion(text[: min(cuts)] if cuts else text, tuple(ids), reason, len(read))


# --- models, one token at a time


@runtime_checkable
class _Run(Protocol):
    """A model in the middle of writing."""

    def first(self) -> Tensor:
        """Read the prompts; return the scores of the next token, (batch, vocabulary)."""

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token of each row, (batch,); return the scores of the next one."""

    def reorder(self, rows: Tensor) -> None:
        """Go on with these rows, which may repeat or be left out."""


class _Theirs:
    """A model of ``transformers``, with its own cache."""

    def __init__(self, model: nn.Module, input_ids: Tensor, mask: Tensor | None, start_id: int | None, new: int):
        self.model: Any = model
        self.input_ids, self.mask, self.start_id, self.new = input_ids, mask, start_id, new
        self.kept: dict[str, Any] = {"use_cache": True, "past_key_values": None}  # arguments of every step
        self.length = 0
        taken = signature(self.model.forward).parameters
        self.counts = "position_ids" in taken
        if "logits_to_keep" in taken:
            self.kept["logits_to_keep"] = 1

    def first(self) -> Tensor:
        """See :class:`_Run`."""
        ids, mask = self.input_ids, self.mask
        if self.start_id is None:
            self.mask = None if mask is None else F.pad(mask.long(), (0, self.new), value=1)
            return self._read(ids)
        self.kept["attention_mask"] = torch.ones_like(ids) if mask is None else mask.long()
        read = self.model.get_encoder()(input_ids=ids, attention_mask=self.kept["attention_mask"], return_dict=True)
        self.kept["encoder_outputs"] = read
        return self._read(torch.full_like(ids[:, :1], self.start_id))

    def step(self, tokens: Tensor) -> Tensor:
        """See :class:`_Run`."""
        return self._read(tokens[:, None])

    def reorder(self, rows: Tensor) -> None:
        """See :class:`_Run`."""
        self.kept["past_key_values"].reorder_cache(rows)
        if self.start_id is None:
            self.mask = None if self.mask is None else self.mask[rows]
            return
        self.kept["attention_mask"] = self.kept["attention_mask"][rows]
        read = self.kept["encoder_outputs"]
        read.last_hidden_state = read.last_hidden_state[rows]

    def _read(self, tokens: Tensor) -> Tensor:
        self.length += tokens.shape[1]
        new: dict[str, Any] = {"input_ids" if self.start_id is None else "decoder_input_ids": tokens}
        if self.start_id is None and self.mask is not None:
            new["attention_mask"] = self.mask[:, : self.length]
            if self.counts:  # real tokens count from 0
                new["position_ids"] = (new["attention_mask"].cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        output = self.model(**new, **self.kept)
        self.kept["past_key_values"] = getattr(output, "past_key_values", None)
        if self.kept["past_key_values"] is None:
            raise ValueError(f"{type(self.model).__name__} returns no cache of keys and values (past_key_values)")
        return cast(Tensor, output.logits[:, -1])


class _Layer:
    """One block while a model writes: its norms as they are needed, its keys and values."""

    def __init__(self, block: Block, held: LayerCache, room: int, dtype: torch.dtype):
        key, value = cast(Tensor, held.own.key), cast(Tensor, held.own.value)  # the prompt has been read
        self.keys, self.values = _roomy(key, room), _roomy(value, room)
        self.cross: tuple[Tensor, Tensor] | None = None
        if held.cross.key is not None and held.cross.value is not None:
            self.cross = held.cross.key.flatten(0, 1), held.cross.value.flatten(0, 1)
        maps = [block.attention.query, block.attention.key, block.attention.value]
        self.product: Callable[[Tensor], Tensor] = getattr(
            block.attention, "product", lambda states: torch.cat([one(states) for one in maps], dim=-1)
        )
        self.block, self.attention_norm = block, _norm(block.attention_norm, dtype)
        self.cross_norm, self.feed_forward_norm = _norm(block.cross_norm, dtype), _norm(block.feed_forward_norm, dtype)


class _Ours:
    """Our Transformer. It reads the prompts as always; then each step computes only what one more token needs.

    What does not depend on the tokens is computed once, for all steps: positions, angles, masks and biases. Keys and
    values go into buffers that are large enough for all. All heads of all rows stand in one dimension: (batch *
    key/value heads, heads that share them, size).
    """

    def __init__(self, model: Transformer, input_ids: Tensor, mask: Tensor | None, start_id: int | None, new: int):
        assert model.decoder is not None  # checked before
        self.model, self.stack, self.config, self.new = model, model.decoder, model.decoder.config, new
        self.input_ids, self.mask, self.start_id, self.batch = input_ids, mask, start_id, len(input_ids)
        table = (model.decoder_embeddings or model.embeddings).weight
        table = table * math.sqrt(self.config.width) if self.config.scaled_embeddings else table
        self.embeddings = table if model.segments is None else table + model.segments.weight[0]

    def first(self) -> Tensor:
        """See :class:`_Run`."""
        ids, mask = self.input_ids, self.mask
        if self.start_id is None:
            real = torch.ones_like(ids) if mask is None else mask.long()
            places = (real.cumsum(-1) - 1).clamp(min=0)  # real tokens count from 0
            output = self.model(ids, mask, position_ids=places, use_cache=True, logits_to_keep=1)
        else:
            places = torch.zeros_like(ids[:, :1])
            output = self.model(ids, mask, places + self.start_id, use_cache=True, logits_to_keep=1)
        self.begun = self.past = cast(int, output.cache.length)
        self.room = self.begun + self.new - 1
        dtype = output.logits.dtype
        self._prepare(places[:, -1:] + torch.arange(1, self.new, device=ids.device), dtype)
        self.embedding_norm, self.final_norm = (
            _norm(one, dtype) for one in (self.stack.embedding_norm, self.stack.final_norm)
        )
        self.scale = self.config.size_of_head**-0.5 if self.config.attention_scale else 1.0
        held = zip(self.stack.layers, output.cache.layers, strict=True)
        self.layers = [_Layer(cast(Block, block), kept, self.room, dtype) for block, kept in held]
        return cast(Tensor, output.logits[:, -1])

    def _prepare(self, places: Tensor, dtype: torch.dtype) -> None:
        """Compute what positions, (batch, new - 1), and padding add or turn, for all steps."""
        stack, config, mask = self.stack, self.config, self.mask
        self.placed = None if stack.positions is None else stack.positions(places)  # (batch, new - 1, width)
        self.turns: tuple[Tensor, Tensor] | None = None
        if stack.rotary is not None:
            half, size = config.turning_size // 2, config.size_of_head
            cosine, sine = stack.rotary.angles(places, dtype)
            still = (0, size - 2 * half)  # dimensions that do not turn
            self.turns = (
                F.pad(torch.cat([cosine, cosine], -1), still, value=1.0),
                F.pad(torch.cat([-sine, sine], -1), still),
            )
        self.added = self.source = self.relative = None  # what is added to the scores
        keys = torch.arange(self.room, device=places.device)
        if mask is not None and self.start_id is not None:
            self.source = self._spread(torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -math.inf)[:, None])
        elif mask is not None:
            mask = F.pad(mask, (0, self.new - 1), value=True)
            self.added = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -math.inf)[:, None]
            keys = (mask.long().cumsum(-1) - 1).clamp(min=0)
        if config.positions == "alibi":
            slopes = alibi_bias(config.heads, keys, dtype=dtype)[..., 0, :]
            self.added = slopes if self.added is None else slopes + self.added
        self.added = None if self.added is None else self._spread(self.added)
        if stack.relative_bias is not None:  # by the distance alone, so that every step finds its part at the end
            self.relative = self._spread(stack.relative_bias(keys[..., -1:], keys)[..., 0, :])

    def _spread(self, bias: Tensor) -> Tensor:
        """Give each head of each row its own bias, (batch * key/value heads, heads that share them, keys)."""
        heads, groups, keys = self.config.heads, self.config.groups, bias.shape[-1]
        return bias.expand(self.batch, heads, keys).reshape(self.batch * groups, heads // groups, keys)

    def step(self, tokens: Tensor) -> Tensor:
        """See :class:`_Run`."""
        place, self.past = self.past - self.begun, self.past + 1
        hidden = F.embedding(tokens, self.embeddings)  # (batch, width)
        if self.placed is not None:
            hidden = hidden + self.placed[:, place]
        hidden = self.embedding_norm(hidden)
        turn = None if self.turns is None else tuple(part[:, place, None] for part in self.turns)
        added = None if self.added is None else self.added[..., : self.past]
        if self.relative is not None:
            relative = self.relative[..., self.room - self.past :]
            added = relative if added is None else added + relative
        for layer in self.layers:
            hidden = self._block(layer, hidden, turn, added)
        hidden = self.final_norm(hidden)
        return cast(Tensor, self.model.logits(hidden[:, None]))[:, 0]

    def _block(self, layer: _Layer, hidden: Tensor, turn: tuple[Tensor, ...] | None, added: Tensor | None) -> Tensor:
        """The same as :class:`course_utils.transformer.Block`, for one token of each row."""
        block, pre = layer.block, layer.block.pre
        states = layer.attention_norm(hidden) if pre else hidden
        attended = self._attention(layer, states, turn, added)
        if block.parallel and block.feed_forward is not None:
            return hidden + attended + block.feed_forward(states)
        hidden = hidden + attended
        hidden = hidden if pre else layer.attention_norm(hidden)
        if block.cross_attention is not None and layer.cross is not None:
            states = block.cross_attention.query(layer.cross_norm(hidden) if pre else hidden)
            keys, values = layer.cross
            query = states.view(len(keys), -1, self.config.size_of_head)
            mixed = _mix(query * self.scale, keys, values, self.source).view(self.batch, -1)
            hidden = hidden + block.cross_attention.output(mixed)
            hidden = hidden if pre else layer.cross_norm(hidden)
        if block.feed_forward is None:
            return hidden
        hidden = hidden + block.feed_forward(layer.feed_forward_norm(hidden) if pre else hidden)
        return hidden if pre else layer.feed_forward_norm(hidden)

    def _attention(
        self, layer: _Layer, states: Tensor, turn: tuple[Tensor, ...] | None, added: Tensor | None
    ) -> Tensor:
        heads, groups, size = self.config.heads, self.config.groups, self.config.size_of_head
        all_three, new = layer.product(states).view(self.batch, -1, size), self.past - 1
        turning, value = all_three[:, : heads + groups], all_three[:, heads + groups :]
        if turn is not None:
            half = self.config.turning_size // 2
            if 2 * half == size:
                partner = turning.roll(half, -1)
            else:
                pieces = turning[..., half : 2 * half], turning[..., :half], turning[..., 2 * half :]
                partner = torch.cat(pieces, dim=-1)
            turning = torch.addcmul(turning * turn[0], partner, turn[1])
        layer.keys[:, :, new], layer.values[:, :, new] = turning[:, heads:], value
        keys, values = layer.keys[:, :, : self.past].flatten(0, 1), layer.values[:, :, : self.past].flatten(0, 1)
        query = (turning[:, :heads] * self.scale).reshape(self.batch * groups, heads // groups, size)
        mixed = _mix(query, keys, values, added)
        return cast(Tensor, layer.block.attention.output(mixed.view(self.batch, -1)))

    def reorder(self, rows: Tensor) -> None:
        """See :class:`_Run`."""

        def picked(states: Tensor | None) -> Tensor | None:
            return None if states is None else states.unflatten(0, (self.batch, -1))[rows].flatten(0, 1)

        if torch.equal(rows, torch.arange(self.batch, device=rows.device)):
            return
        for layer in self.layers:
            layer.keys, layer.values = (
                _roomy(held[rows, :, : self.past], self.room) for held in (layer.keys, layer.values)
            )
            if layer.cross is not None:
                keys, values = map(picked, layer.cross)
                layer.cross = cast(Tensor, keys), cast(Tensor, values)
        self.added, self.source, self.relative = picked(self.added), picked(self.source), picked(self.relative)
        self.placed = None if self.placed is None else self.placed[rows]
        self.turns = None if self.turns is None else (self.turns[0][rows], self.turns[1][rows])
        self.batch = len(rows)


def _mix(query: Tensor, keys: Tensor, values: Tensor, added: Tensor | None) -> Tensor:
    """Attention in three operations; the scale is in the query."""
    keys = keys.transpose(1, 2)
    scores = torch.bmm(query, keys) if added is None else torch.baddbmm(added, query, keys)
    return torch.bmm(scores.softmax(-1), values)


def _norm(norm: nn.Module | None, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return the norm as a function; RMSNorm in fewer operations where the dtype is float32 anyway."""
    if norm is None:
        return lambda hidden: hidden
    if not isinstance(norm, RMSNorm) or dtype != torch.float32:
        return norm
    width = len(norm.weight)  # hidden / sqrt((|hidden|^2 + width * eps) / width) * weight
    weight, small = norm.weight * width**0.5, torch.full_like(norm.weight[0], (width * norm.eps) ** 0.5)
    length = torch.linalg.vector_norm
    return lambda hidden: hidden / torch.hypot(length(hidden, dim=-1, keepdim=True), small) * weight


def _roomy(states: Tensor, room: int) -> Tensor:
    """Copy keys or values, (batch, heads, tokens, size), into a buffer (batch, heads, room, size)."""
    buffer = states.new_empty(*states.shape[:2], room, states.shape[-1])
    buffer[:, :, : states.shape[2]] = states
    return buffer


def _run(model: nn.Module, input_ids: Tensor, mask: Tensor | None, start_id: int | None, new: int) -> _Run:
    if isinstance(model, Transformer):
        return _Ours(model, input_ids, mask, start_id, new)
    return _Theirs(model, input_ids, mask, start_id, new)


QUICK_PARAMETERS = 20_000_000
"""Models of ``transformers`` up to this size are copied into ours to write; with larger ones little is gained."""
_copies: "WeakKeyDictionary[nn.Module, tuple[list[Tensor], Transformer]]" = WeakKeyDictionary()


def _quick(model: nn.Module) -> nn.Module:
    """Return our Transformer with the weights of a small model of a known family, else the model as it is.

    The copy is kept for the next time; it is used again only if every weight is still the same.
    """
    if isinstance(model, Transformer):
        return model
    weights = [weight.detach() for weight in model.parameters()]
    small = sum(weight.numel() for weight in weights) <= QUICK_PARAMETERS
    plain = all(weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64) for weight in weights)
    hooked = any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())
    if not small or not plain or hooked:
        return model
    try:
        config = config_from_huggingface(model)
        if config.kind == "encoder" or not config.head:
            return model
        before, ours = _copies.get(model, ([], None))
        same = len(before) == len(weights) and all(
            old.dtype == new.dtype and torch.equal(old, new) for old, new in zip(before, weights, strict=True)
        )
        if ours is None or not same or ours.config != config:
            ours = _laid_out(model)
            _copies[model] = [weight.clone() for weight in weights], ours
    except ValueError:  # not a family that we know
        return model
    return ours.train(model.training)


def _laid_out(model: nn.Module) -> Transformer:
    """Copy a model of ``transformers`` into ours, with its weights as single rows are multiplied fastest.

    Each matrix lies in memory as (in, out), and query, key and value of a layer side by side: one product.
    """
    ours = from_huggingface(model)
    if ours.head_weight is None:
        ours.head_weight = nn.Parameter(ours.embeddings.weight.detach())
    for weight in [ours.head_weight, *(part.weight for part in ours.modules() if isinstance(part, nn.Linear))]:
        weight.data = weight.data.T.contiguous().T
    for block in cast(nn.Module, ours.decoder).modules():
        if isinstance(block, Block):
            maps = [block.attention.query, block.attention.key, block.attention.value]
            joined = torch.cat([one.weight.detach().T for one in maps], dim=1).T
            bias = None if maps[0].bias is None else torch.cat([one.bias.detach() for one in maps])
            for each, part in zip(maps, joined.split([one.out_features for one in maps]), strict=True):
                each.weight.data = part
            cast(Any, block.attention).product = partial(F.linear, weight=joined, bias=bias)
    return ours


# --- checks


def _start(model: nn.Module, start_id: int | None) -> int | None:
    """Return the token that begins a target: as given, else as a model of ``transformers`` says."""
    if start_id is not None or isinstance(model, Transformer):
        return start_id
    found: Any = model
    if not getattr(found.config, "is_encoder_decoder", False):
        return None
    for settings in (found.generation_config, found.config):
        if getattr(settings, "decoder_start_token_id", None) is not None:
            return int(settings.decoder_start_token_id)
    return None


def context_window(model: Loaded | nn.Module) -> int | None:
    """Return how many tokens a model can read, or None where nothing limits them.

    In a decoder prompt and new tokens share the window; in an encoder-decoder source and target have one each.

    Args:
        model: a model, ours or of ``transformers``; or one with its tokenizer (:func:`course_utils.models.load`), whose
            limit then counts too: relative positions set none, but a model knows only lengths that it was trained on.
    """
    if isinstance(model, Loaded):
        limits = [context_window(cast(nn.Module, model.model)), int(min(model.tokenizer.model_max_length, 10**9))]
        return min((one for one in limits if one is not None and one < 10**9), default=None)
    config: Any = model.config
    if isinstance(model, Transformer):
        return cast(int | None, config.context_window)
    return cast(int | None, getattr(config, "max_position_embeddings", None))


def _check(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None, max_new_tokens: int, start_id: int | None
) -> None:
    config: Any = model.config
    if isinstance(model, Transformer):
        kind, writes = model.config.kind, model.config.kind != "encoder" and model.config.head
    else:
        kind = "encoder-decoder" if config.is_encoder_decoder else "decoder"
        writes = bool(cast(Any, model).can_generate())
    if not writes:
        raise ValueError("this model cannot write: it needs a decoder and a head (kind 'decoder' or 'encoder-decoder')")
    if (start_id is not None) != (kind == "encoder-decoder"):
        raise ValueError(
            f"start_id={start_id} with kind={kind!r}: an encoder-decoder needs the token that begins a target, a "
            "decoder goes on from its prompt and takes none"
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids has {tuple(input_ids.shape)}: they "
            "must be the same"
        )
    real = torch.ones_like(input_ids) if attention_mask is None else attention_mask != 0
    if len(input_ids) and not bool(real.any(-1).all()):
        raise ValueError("the prompt is empty: give at least one token, for example the one that begins a text")
    if kind == "decoder" and not bool(real[:, -1:].all()):
        raise ValueError("a prompt is padded on the right, where the new tokens must follow: pad on the left")
    longest = int(real.sum(-1).max()) if len(input_ids) else 0
    _check_window(context_window(model), longest, max_new_tokens, kind)


def _check_window(window: int | None, length: int, new: int, kind: str) -> None:
    """Refuse what does not fit; nothing is ever cut."""
    if window is None:
        return
    if length > window:
        raise ValueError(f"a prompt of {length} tokens exceeds the context window of {window}: shorten the prompt")
    used = length if kind == "decoder" else 0
    if used + new > window:
        what = (
            f"a prompt of {length} tokens and max_new_tokens={new} exceed" if used else f"max_new_tokens={new} exceeds"
        )
        raise ValueError(
            f"{what} the context window of {window}: shorten the prompt, or write at most {window - used} tokens"
        )


def _without(logits: Tensor, out: Tensor) -> Tensor:
    return logits.masked_fill(out, -math.inf)


def _no_numbers() -> ValueError:
    return ValueError(
        "the model's scores are not numbers (NaN or infinite): look for NaN in its weights, or use a wider dtype"
    )


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(name: str, value: object, smallest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
        raise ValueError(f"{name}={value!r}: expected a whole number of {smallest} or more")


def _positive(name: str, value: float) -> None:
    if not _number(value) or value <= 0:
        raise ValueError(f"{name}={value!r}: expected a number above 0")


def _share(name: str, value: float) -> None:
    if not _number(value) or not 0 < value <= 1:
        raise ValueError(f"{name}={value!r}: expected a share above 0 and at most 1")


def _check_temperature(name: str, value: float) -> None:
    if not _number(value) or value < 0:
        raise ValueError(f"{name}={value!r}: expected a number of 0 or more; 0 takes the most probable token")
