"""The three pretraining objectives: what a model reads, and which tokens it has to predict.

A decoder predicts each next token (causal), an encoder the tokens that were hidden from it (masked), an
encoder-decoder the spans that were cut out (span corruption). Each class here turns examples into a batch and can be
given to :func:`course_utils.training.fit` as ``collate``. Labels of -100 count in no loss.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from course_utils.training import IGNORED

Example = Sequence[int] | Tensor | Mapping[str, Any]
"""Token ids, or a row of a data set that holds them as ``input_ids``."""


@dataclass(frozen=True)
class Causal:
    """Predict each next token (Radford et al. 2018, section 3.1): the labels are the input itself.

    Labels stand at the place of their token, as ``transformers`` has them; the loss shifts them by one
    (:func:`course_utils.training.next_token_loss`).

    Attributes:
        pad: id that fills up shorter examples, at their end.
    """

    pad: int = 0

    def __call__(self, examples: Iterable[Example]) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask`` (True for tokens) and ``labels``, all (batch, tokens).

        Args:
            examples: token ids of two tokens or more each.

        Raises:
            ValueError: there is no example, one is too short, or one holds no token ids.
        """
        batch = _padded(_rows(examples, least=2), self.pad)
        return {**batch, "labels": batch["input_ids"].masked_fill(~batch["attention_mask"], IGNORED)}


@dataclass(frozen=True)
class Masked:
    """Predict hidden tokens from both sides (Devlin et al. 2018, section 3.1 and appendix A.1).

    Each token that is not special is chosen with probability ``rate``, independently. Of the chosen, 80 % are replaced
    by the mask token, 10 % by any entry of the vocabulary, and 10 % stay as they are. The loss is on the chosen.

    Attributes:
        mask: id of the mask token.
        vocabulary: number of entries of the vocabulary.
        special: ids that are never chosen (start, end, separator, padding...).
        pad: id that fills up shorter examples, at their end.
        rate: probability that a token is chosen.
        masked: share of the chosen that become the mask token.
        random: share of the chosen that become a random token; the rest stay.
    """

    mask: int
    vocabulary: int
    special: tuple[int, ...] = ()
    pad: int = 0
    rate: float = 0.15
    masked: float = 0.8
    random: float = 0.1

    def __post_init__(self):
        shares = min(self.masked, self.random) >= 0 and self.masked + self.random <= 1
        if not (0 < self.rate <= 1 and shares):
            raise ValueError(
                f"rate={self.rate}, masked={self.masked}, random={self.random}: expected a rate above 0 and at most "
                "1, and two shares of 0 or more that add up to at most 1"
            )
        if not 0 <= self.mask < self.vocabulary:
            raise ValueError(f"mask={self.mask} is no entry of a vocabulary of {self.vocabulary}")

    @classmethod
    def of(cls, tokenizer: Any, **changes: Any) -> "Masked":
        """Take the ids from a tokenizer of ``transformers``.

        Args:
            tokenizer: the tokenizer; its special tokens are never chosen.
            changes: other values for the attributes, for example ``rate=0.3``.

        Raises:
            ValueError: it has no mask token.
        """
        if tokenizer.mask_token_id is None:
            raise ValueError(f"{type(tokenizer).__name__} has no mask token; take the tokenizer of an encoder")
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        known = {"special": tuple(sorted(special | set(tokenizer.all_special_ids))), "pad": tokenizer.pad_token_id or 0}
        return cls(tokenizer.mask_token_id, len(tokenizer), **{**known, **changes})

    def __call__(self, examples: Iterable[Example], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask`` (True for tokens) and ``labels``, all (batch, tokens).

        Args:
            examples: token ids, special tokens included.
            generator: source of the draws; by default torch's own, which a checkpoint of ``training.fit`` keeps.

        Raises:
            ValueError: there is no example, or one holds nothing that could be masked.
        """
        batch = _padded(_rows(examples, least=1), self.pad)
        ids = batch["input_ids"]
        maskable = batch["attention_mask"] & ~torch.isin(ids, torch.tensor(self.special, dtype=torch.long))
        if not maskable.any(1).all():
            number = int((~maskable.any(1)).nonzero()[0])
            raise ValueError(f"example {number} holds special tokens only: there is nothing to mask; leave it out")
        chosen = maskable & (torch.rand(ids.shape, generator=generator) < self.rate)
        fate = torch.rand(ids.shape, generator=generator)
        anything = torch.randint(self.vocabulary, ids.shape, generator=generator)
        shown, labels = hide(ids, chosen, fate, anything, self.mask, self.masked, self.random)
        return {**batch, "input_ids": shown, "labels": labels}


@dataclass(frozen=True)
class SpanCorruption:
    """Predict the spans that were cut out (Raffel et al. 2020, sections 3.1.4 and 3.3.4).

    15 % of the tokens are cut out, in spans of 3 on average; in the input each span leaves one sentinel, and the labels
    are the spans, each after its sentinel. Both end with the end-of-text token, and the decoder reads the labels
    shifted right by one.

    Attributes:
        sentinels: ids of the sentinels in the order in which they are used.
        eos: id of the end-of-text token.
        pad: id that fills up shorter examples, at their end.
        start: id from which the decoder starts; T5 takes the padding.
        density: share of the tokens that are cut out.
        span: mean length of a span.
    """

    sentinels: tuple[int, ...]
    eos: int
    pad: int = 0
    start: int = 0
    density: float = 0.15
    span: float = 3.0

    def __post_init__(self):
        _check_noise(self.density, self.span)

    @classmethod
    def of(cls, tokenizer: Any, **changes: Any) -> "SpanCorruption":
        """Take the ids from a tokenizer of ``transformers`` with the sentinels ``<extra_id_0>``, ``<extra_id_1>``...

        Args:
            tokenizer: the tokenizer.
            changes: other values for the attributes, for example ``density=0.5``.

        Raises:
            ValueError: it has no such tokens, or no padding and end-of-text token.
        """
        vocabulary = tokenizer.get_vocab()
        sentinels: list[int] = []
        while (token := f"<extra_id_{len(sentinels)}>") in vocabulary:
            sentinels.append(vocabulary[token])
        if not sentinels or tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
            raise ValueError(
                f"{type(tokenizer).__name__} needs the tokens <extra_id_0>, <extra_id_1>..., an eos_token and a "
                "pad_token; take the tokenizer of an encoder-decoder"
            )
        known = {"pad": tokenizer.pad_token_id, "start": tokenizer.pad_token_id}
        return cls(tuple(sentinels), tokenizer.eos_token_id, **{**known, **changes})

    def __call__(self, examples: Iterable[Example], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return the batch.

        Args:
            examples: token ids of plain text, two tokens or more each, without end-of-text or padding.
            generator: source of the draws; by default torch's own, which a checkpoint of ``training.fit`` keeps.

        Returns:
            ``input_ids`` and ``attention_mask`` (True for tokens), (batch, tokens); ``labels`` and
            ``decoder_input_ids``, (batch, targets).

        Raises:
            ValueError: there is no example, one is too short, or one needs more sentinels than there are.
        """
        inputs, targets = [], []
        eos = torch.tensor([self.eos])
        for row in _rows(examples, least=2):
            noise = noise_mask(len(row), self.density, self.span, generator)
            shown, hidden = corrupt(row, noise, self.sentinels)
            inputs.append(torch.cat([shown, eos]))
            targets.append(torch.cat([hidden, eos]))
        labels = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED)
        return {
            **_padded(inputs, self.pad),
            "labels": labels,
            "decoder_input_ids": shift_right(labels, self.start, self.pad),
        }


def attention_pattern(kind: str, source: int, target: int) -> Bool[Tensor, "tokens tokens"]:
    """Return who may look at whom: the three patterns by which the families differ.

    The tokens are those of the source, then those of the target. An ``encoder`` reads both as one text, and each token
    sees all. A ``decoder`` does so too, but each token sees itself and those before it. An ``encoder-decoder`` reads
    the source in its encoder, where no token sees the target; in its decoder each token of the target sees the source
    (cross-attention), itself and the target before it (Raffel et al. 2020, section 3.2.1).

    Args:
        kind: ``encoder``, ``decoder`` or ``encoder-decoder``.
        source: number of tokens of the source.
        target: number of tokens of the target.

    Returns:
        True where the row's token (query) may look at the column's (key).

    Raises:
        ValueError: there is no such kind, or a number is below 0.
    """
    if kind not in ("encoder", "decoder", "encoder-decoder"):
        raise ValueError(f"kind={kind!r}: expected encoder, decoder or encoder-decoder")
    if min(source, target) < 0:
        raise ValueError(f"source={source}, target={target}: expected numbers of tokens, 0 or more")
    everything = torch.ones(source + target, source + target, dtype=torch.bool)
    if kind == "encoder":
        return everything
    allowed = everything.tril()
    if kind == "encoder-decoder":
        allowed[:source, :source] = True
    return allowed


def hide(
    tokens: Int[Tensor, "*batch tokens"],
    chosen: Bool[Tensor, "*batch tokens"],
    fate: Float[Tensor, "*batch tokens"],
    anything: Int[Tensor, "*batch tokens"],
    mask: int,
    masked: float = 0.8,
    random: float = 0.1,
) -> tuple[Int[Tensor, "*batch tokens"], Int[Tensor, "*batch tokens"]]:
    """Hide the chosen tokens as BERT does, and keep them as labels (Devlin et al. 2018, section 3.1).

    Args:
        tokens: the text.
        chosen: True for each token that is to be predicted.
        fate: a number from 0 to 1 for each token: below ``masked`` a chosen token becomes the mask token, in the next
            stretch of size ``random`` it becomes any token, above that it stays.
        anything: the token that would take its place.
        mask: id of the mask token.
        masked: share of the chosen that become the mask token.
        random: share of the chosen that become any token.

    Returns:
        What the model reads; and the labels: the chosen tokens as they were, -100 elsewhere.
    """
    shown = torch.where(chosen & (fate < masked + random), anything, tokens)
    shown = torch.where(chosen & (fate < masked), mask, shown)
    return shown, torch.where(chosen, tokens, IGNORED)


def noise_mask(
    length: int, density: float = 0.15, span: float = 3.0, generator: torch.Generator | None = None
) -> Bool[Tensor, " length"]:
    """Choose spans of a text to cut out, as T5's code does (Raffel et al. 2020, section 3.1.4).

    How many tokens and how many spans is fixed by the length: ``density`` of the tokens, rounded, at least one; and one
    span for each ``span`` of these. Text and spans alternate, beginning with text and ending with a span; all ways to
    cut both into pieces of one token or more are equally likely.

    Args:
        length: number of tokens, 2 or more.
        density: share of the tokens to cut out.
        span: mean length of a span.
        generator: source of the draws; by default torch's own.

    Returns:
        True for each token that is cut out.

    Raises:
        ValueError: the text is too short, or a setting is out of range.
    """
    _check_noise(density, span)
    if length < 2:
        raise ValueError(f"a text of {length} tokens is too short to cut a span out: expected 2 tokens or more")
    noisy = min(max(round(length * density), 1), length - 1)
    count = min(max(round(noisy / span), 1), noisy, length - noisy)
    pieces = torch.stack([_pieces(length - noisy, count, generator), _pieces(noisy, count, generator)], dim=1)
    return (torch.arange(2 * count) % 2 == 1).repeat_interleave(pieces.flatten())


def corrupt(
    tokens: Int[Tensor, " length"], noise: Bool[Tensor, " length"], sentinels: Sequence[int]
) -> tuple[Int[Tensor, " inputs"], Int[Tensor, " targets"]]:
    """Cut spans out of a text: what is left, and what was taken, joined by the same sentinels.

    The k-th span becomes the k-th sentinel in the input; the targets are the text in which each stretch *between* the
    spans has become its sentinel. So a text that goes on after its last span has one more sentinel at the end of its
    targets (``<Z>`` in figure 2 of Raffel et al. 2020).

    Args:
        tokens: the text.
        noise: True for each token that is cut out; the first token stays.
        sentinels: ids of the sentinels in the order in which they are used.

    Returns:
        Input and targets, neither with an end-of-text token.

    Raises:
        ValueError: the first token is to be cut out, or there are more stretches than sentinels.
    """
    if bool(noise[0]):
        raise ValueError("noise[0] is True: the text has to begin with a token that stays")
    return _replaced(tokens, noise, sentinels), _replaced(tokens, ~noise, sentinels)


def shift_right(labels: Int[Tensor, "batch targets"], start: int = 0, pad: int = 0) -> Int[Tensor, "batch targets"]:
    """Return what a decoder reads when it has to produce the labels: the start, then the labels but for the last.

    Args:
        labels: token ids; -100 counts as padding.
        start: id from which the decoder starts.
        pad: id of the padding.
    """
    shifted = labels.roll(1, dims=1).masked_fill(labels.roll(1, dims=1) == IGNORED, pad)
    shifted[:, 0] = start
    return shifted


def _replaced(tokens: Tensor, gone: Tensor, sentinels: Sequence[int]) -> Tensor:
    """The tokens with each stretch that is gone replaced by the next sentinel."""
    starts = gone & ~torch.cat([torch.tensor([False]), gone[:-1]])
    number = starts.cumsum(0) - 1
    if int(number[-1]) >= len(sentinels):
        raise ValueError(
            f"{int(number[-1]) + 1} spans need as many sentinels, there are {len(sentinels)}; cut the text shorter"
        )
    return torch.where(starts, torch.tensor(sentinels)[number.clamp(min=0)], tokens)[~gone | starts]


def _pieces(items: int, count: int, generator: torch.Generator | None) -> Tensor:
    """Cut a row of items into so many pieces, none empty, all ways equally likely; return their lengths."""
    cuts = torch.randperm(items - 1, generator=generator)[: count - 1].sort().values + 1
    return torch.diff(cuts, prepend=torch.tensor([0]), append=torch.tensor([items]))


def _check_noise(density: float, span: float) -> None:
    if not (0 < density < 1 and span >= 1):
        raise ValueError(f"density={density}, span={span}: expected a density between 0 and 1 and a span of 1 or more")


def _rows(examples: Iterable[Example], least: int) -> list[Tensor]:
    """Each example as a tensor of token ids."""
    rows = [torch.as_tensor(one["input_ids"] if isinstance(one, Mapping) else one) for one in examples]
    if not rows:
        raise ValueError("there is no example: a batch needs one or more")
    for number, row in enumerate(rows):
        if row.ndim != 1 or len(row) < least:
            what = f"{len(row)} tokens" if row.ndim == 1 else f"the shape {tuple(row.shape)}"
            raise ValueError(f"example {number} has {what}: expected a row of {least} or more token ids; leave it out")
        if row.is_floating_point() or row.dtype == torch.bool:
            raise ValueError(f"example {number} holds {row.dtype} values: expected token ids (whole numbers)")
    return [row.long() for row in rows]


def _padded(rows: list[Tensor], pad: int) -> dict[str, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    return {"input_ids": ids, "attention_mask": torch.arange(ids.shape[1]) < lengths[:, None]}
