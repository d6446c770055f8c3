"""What attention heads do: scores of their maps, what is lost without them, and heads that form while one looks on.

A map says how much each token (query) attends to each other one (key). The scores below are means over the queries to
which they apply; the names and ideas are those of Elhage et al. (2021) and Olsson et al. (2022). A score tells where a
head looks, on these tokens; whether the model needs the head is another question.
"""

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from course_utils import training
from course_utils.families import from_huggingface
from course_utils.transformer import Transformer, TransformerConfig

Mask = Num[Tensor, "batch tokens"] | Bool[Tensor, "batch tokens"]
"""1 or True for real tokens, 0 or False for padding."""

# --- scores of maps


def previous_token_score(
    maps: Float[Tensor, "batch heads queries keys"], attention_mask: Mask | None = None
) -> Float[Tensor, "heads"]:
    """Mean weight on the token just before the query: 1 for a perfect previous-token head.

    Elhage et al. (2021), "How induction heads work": the first half of that circuit.

    Args:
        maps: attention maps of one layer over one sequence (self-attention).
        attention_mask: 1 for real tokens, 0 for padding, which counts neither as query nor as key.

    Returns:
        One number from 0 to 1 for each head.

    Raises:
        ValueError: the maps are none, shapes do not fit, or no token has one before it.
    """
    real = _checked(maps, attention_mask)
    before = torch.eye(maps.shape[-1], dtype=torch.bool, device=maps.device)[:-1]
    return _mean_weight(maps, F.pad(before, (0, 0, 1, 0)).expand_as(maps[:, 0]), real, "no token has one before it")


def first_token_score(
    maps: Float[Tensor, "batch heads queries keys"], attention_mask: Mask | None = None
) -> Float[Tensor, "heads"]:
    """Mean weight that the later tokens put on the first one, where many heads rest when they find nothing.

    Xiao et al. (2024), "Efficient streaming language models with attention sinks", section 3.1.

    Args:
        maps: attention maps of one layer over one sequence (self-attention).
        attention_mask: 1 for real tokens, 0 for padding; the first token is the first real one of its row.

    Returns:
        One number from 0 to 1 for each head.

    Raises:
        ValueError: the maps are none, shapes do not fit, or there is no second token.
    """
    real = _checked(maps, attention_mask)
    first = real & (real.cumsum(-1) == 1)
    return _mean_weight(maps, first[:, None, :] & ~first[:, :, None], real, "there is no token after the first")


def induction_score(
    maps: Float[Tensor, "batch heads queries keys"],
    tokens: Int[Tensor, "batch keys"],
    attention_mask: Mask | None = None,
) -> Float[Tensor, "heads"]:
    """Mean weight on the tokens that followed earlier occurrences of the query's token: `A B ... A` looks at `B`.

    Olsson et al. (2022), key concepts, "prefix matching", there on repeated random tokens (:func:`repeated_tokens`);
    Elhage et al. (2021), "How induction heads work". Queries whose token occurs for the first time do not count, nor
    does the weight of a query on itself, where its token follows itself.

    Args:
        maps: attention maps of one layer over one sequence (self-attention).
        tokens: the tokens that the maps belong to.
        attention_mask: 1 for real tokens, 0 for padding.

    Returns:
        One number from 0 to 1 for each head.

    Raises:
        ValueError: the maps are none, shapes do not fit, or no token occurs twice (with another token behind the first
            occurrence).
    """
    real = _checked(maps, attention_mask, tokens)
    return _mean_weight(maps, _followed(tokens, real), real, "no token occurs twice with another one in between")


def duplicate_token_score(
    maps: Float[Tensor, "batch heads queries keys"],
    tokens: Int[Tensor, "batch keys"],
    attention_mask: Mask | None = None,
) -> Float[Tensor, "heads"]:
    """Mean weight on earlier occurrences of the query's own token.

    Wang et al. (2023), "Interpretability in the wild", section 3 (duplicate token heads). Queries whose token occurs
    for the first time do not count.

    Args:
        maps: attention maps of one layer over one sequence (self-attention).
        tokens: the tokens that the maps belong to.
        attention_mask: 1 for real tokens, 0 for padding.

    Returns:
        One number from 0 to 1 for each head.

    Raises:
        ValueError: the maps are none, shapes do not fit, or no token occurs twice.
    """
    real = _checked(maps, attention_mask, tokens)
    return _mean_weight(maps, _earlier(tokens, real), real, "no token occurs twice")


def entropy(
    maps: Float[Tensor, "batch heads queries keys"], attention_mask: Mask | None = None
) -> Float[Tensor, "heads"]:
    """Mean entropy of the rows, in nats: 0 where each query looks at one key, ``log(keys)`` where at all alike.

    Shannon (1948); for attention heads Clark et al. (2019), section 3.3. Maps of cross-attention are welcome.

    Args:
        maps: attention maps of one layer.
        attention_mask: 1 for queries that count, 0 for padding.

    Returns:
        One number of nats for each head.

    Raises:
        ValueError: the maps are none, shapes do not fit, or no query counts.
    """
    real = _checked(maps, attention_mask, square=False)
    if not real.any():
        raise ValueError("attention_mask hides every query: there is nothing to score")
    rows = torch.special.entr(maps.double()).sum(-1)  # (batch, heads, queries)
    return rows.transpose(0, 1)[:, real].mean(-1).to(maps.dtype)


def _checked(
    maps: Tensor, attention_mask: Tensor | None, tokens: Tensor | None = None, square: bool = True
) -> Bool[Tensor, "batch queries"]:
    """Refuse what is no attention map; return which queries are real tokens."""
    if not isinstance(maps, Tensor) or maps.ndim != 4 or not maps.is_floating_point():
        found = f"{maps.dtype} of shape {tuple(maps.shape)}" if isinstance(maps, Tensor) else type(maps).__name__
        raise ValueError(
            f"maps: expected weights of one layer, (batch, heads, queries, keys), got {found}; of what a model returns "
            "in .attentions, give one layer: output.attentions[0]"
        )
    batch, _, queries, keys = maps.shape
    if square and queries != keys:
        raise ValueError(
            f"maps have {queries} queries and {keys} keys; this score compares the places of tokens in one sequence: "
            "give maps of self-attention, of a whole pass without a cache"
        )
    for name, tensor in (("attention_mask", attention_mask), ("tokens", tokens)):
        if tensor is not None and tuple(tensor.shape) != (batch, queries):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {(batch, queries)} as in the maps")
    real = torch.ones(batch, queries, dtype=torch.bool, device=maps.device)
    if attention_mask is not None:
        real = attention_mask.to(maps.device) != 0
    rows = maps.detach().transpose(1, 2)[real]  # what padding attends to may be anything
    tolerance = 1e-3 if maps.dtype in (torch.float32, torch.float64) else 0.05
    if not bool((rows >= 0).all() and (rows.double().sum(-1) <= 1 + tolerance).all()):
        raise ValueError(
            "maps hold numbers that are no attention weights (NaN, below 0, or rows that sum to more than 1): give the "
            "weights behind the softmax, and no dropout (model.eval())"
        )
    return real


def induction_targets(tokens: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch queries keys"]:
    """Where an induction head looks: True for the keys right behind earlier occurrences of the query's token.

    Elhage et al. (2021), "How induction heads work". A query whose token occurs for the first time has none.

    Args:
        tokens: token ids.
    """
    earlier = (tokens[:, :, None] == tokens[:, None, :]).tril(-1)
    return F.pad(earlier[:, :, :-1], (1, 0)).tril(-1)


def _earlier(tokens: Tensor, real: Tensor) -> Bool[Tensor, "batch queries keys"]:
    """Whether the key is an earlier occurrence of the query's token; both are real tokens."""
    tokens = tokens.to(real.device)
    return ((tokens[:, :, None] == tokens[:, None, :]) & real[:, None, :] & real[:, :, None]).tril(-1)


def _followed(tokens: Tensor, real: Tensor) -> Bool[Tensor, "batch queries keys"]:
    """Whether the key, itself before the query, followed an earlier occurrence of the query's token."""
    behind = real & F.pad(real[:, :-1], (1, 0))  # a real token behind a real one
    return induction_targets(tokens.to(real.device)) & behind[:, None, :] & real[:, :, None]


def _mean_weight(maps: Tensor, chosen: Tensor, real: Tensor, none: str) -> Float[Tensor, "heads"]:
    """Mean, over the real queries for which a real key is chosen, of the weight on the chosen keys."""
    chosen = chosen & real[:, :, None] & real[:, None, :]
    counted = chosen.any(-1)  # (batch, queries)
    if not counted.any():
        raise ValueError(f"there is nothing to score: {none}")
    weights = (maps.double() * chosen[:, None]).sum(-1)  # (batch, heads, queries)
    return weights.transpose(0, 1)[:, counted].mean(-1).to(maps.dtype)


# --- maps and scores of models


def repeated_tokens(
    vocabulary: int, length: int, *, repeats: int = 2, batch: int = 16, seed: int = 0, exclude: Collection[int] = ()
) -> Int[Tensor, "batch tokens"]:
    """Random tokens, then the same again: whoever predicts the second half must have looked it up in the first.

    The test of Olsson et al. (2022), key concepts. Within a segment no token occurs twice, so that each token of the
    second half has one earlier occurrence, and one right place to look.

    Args:
        vocabulary: number of different tokens, ids from 0.
        length: tokens of the segment.
        repeats: how often it stands there.
        batch: number of sequences.
        seed: seed of the draw; the same seed gives the same tokens.
        exclude: ids never drawn, such as special tokens.

    Returns:
        Ids, (batch, repeats * length).

    Raises:
        ValueError: a number is too small, or fewer than ``length`` tokens are left to draw from.
    """
    for name, value, least in (("length", length, 1), ("repeats", repeats, 1), ("batch", batch, 1), ("seed", seed, 0)):
        _whole(name, value, least)
    left = torch.tensor([token for token in range(vocabulary) if token not in set(exclude)])
    if len(left) < length:
        raise ValueError(
            f"length={length}: only {len(left)} different tokens are left to draw from; shorten the segment"
        )
    generator = torch.Generator().manual_seed(seed)
    segments = torch.stack([left[torch.randperm(len(left), generator=generator)[:length]] for _ in range(batch)])
    return segments.repeat(1, repeats)


def attention_maps(
    model: nn.Module,
    input_ids: Int[Tensor, "batch tokens"],
    attention_mask: Mask | None = None,
    **inputs: Any,
) -> dict[str, tuple[Tensor, ...]]:
    """Every attention map of a model, ours or one of ``transformers``, in evaluation mode and without gradients.

    A model of ``transformers`` is switched to its eager attention for the pass, since its fused kernels return no
    maps, and then back to what it was.

    Args:
        model: an encoder, a decoder or an encoder-decoder.
        input_ids: the tokens; they are moved to where the model is.
        attention_mask: 1 for real tokens, 0 for padding.
        **inputs: what else the model takes, such as ``decoder_input_ids``.

    Returns:
        One tensor (batch, heads, queries, keys) a layer, under ``attentions``, or for an encoder-decoder
        under ``encoder_attentions``, ``decoder_attentions`` and ``cross_attentions``.

    Raises:
        ValueError: the model returns no maps.
    """
    device = next(model.parameters()).device
    inputs |= {"input_ids": input_ids, "attention_mask": attention_mask}
    inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    if isinstance(model, Transformer):
        inputs["return_attentions"] = True
    else:
        inputs |= {"output_attentions": True, "return_dict": True}
    with training.modes(model, training=False), _eager(model), torch.no_grad():
        output = model(**inputs)
    found = {}
    for name in ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions"):
        maps = tuple(each for each in getattr(output, name, None) or () if each is not None)
        if maps:
            found[name] = maps
    if not found:
        raise ValueError(f"{type(model).__name__} returned no attention maps, not even with eager attention")
    return found


def head_scores(
    model: nn.Module,
    tokens: Int[Tensor, "batch tokens"],
    attention_mask: Mask | None = None,
    part: str = "attentions",
) -> dict[str, Float[Tensor, "layers heads"]]:
    """Score every head of a model on some tokens: ``previous_token``, ``first_token``, ``entropy`` and so on.

    Args:
        model: ours, or one of ``transformers``; see :func:`attention_maps`.
        tokens: what the model reads; for induction heads :func:`repeated_tokens`.
        attention_mask: 1 for real tokens, 0 for padding.
        part: of an encoder-decoder ``encoder_attentions`` or ``decoder_attentions``; both then read the tokens.

    Returns:
        For each score one number a head. ``induction`` and ``duplicate_token`` only where a token occurs twice.

    Raises:
        ValueError: the model has no such maps.
    """
    config: Any = getattr(model, "config", None)
    both = getattr(config, "is_encoder_decoder", getattr(config, "kind", "") == "encoder-decoder")
    parts = ("encoder_attentions", "decoder_attentions") if both else ("attentions",)
    if part not in parts:
        raise ValueError(f"part={part!r}: of this model expected one of {', '.join(parts)}")
    target = {"decoder_input_ids": tokens, "decoder_attention_mask": attention_mask} if both else {}
    maps = attention_maps(model, tokens, attention_mask, **target)
    scores: dict[str, Callable[[Tensor], Tensor]] = {
        "previous_token": lambda layer: previous_token_score(layer, attention_mask),
        "first_token": lambda layer: first_token_score(layer, attention_mask),
        "entropy": lambda layer: entropy(layer, attention_mask),
    }
    real = torch.ones_like(tokens, dtype=torch.bool)
    if attention_mask is not None:
        real = attention_mask.to(tokens.device) != 0
    if _earlier(tokens, real).any():
        scores["duplicate_token"] = lambda layer: duplicate_token_score(layer, tokens, attention_mask)
    if _followed(tokens, real).any():
        scores["induction"] = lambda layer: induction_score(layer, tokens, attention_mask)
    return {name: torch.stack([score(layer).cpu() for layer in maps[part]]) for name, score in scores.items()}


@contextlib.contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Switch a model of ``transformers`` to eager attention for a while."""
    switch: Any = getattr(model, "set_attn_implementation", None)
    if switch is None:
        yield
        return
    configs: dict[int, Any] = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        switch("eager")
        yield
    finally:
        for config, implementation in before:  # the outer ones first: theirs reaches the inner ones
            config._attn_implementation = implementation


# --- what flows, what is lost, what is known


def attention_rollout(
    maps: Sequence[Float[Tensor, "batch heads tokens tokens"]], attention_mask: Mask | None = None
) -> Float[Tensor, "batch tokens tokens"]:
    """Follow the maps through all layers: how much of each input token could have arrived at each output token.

    Abnar and Zuidema (2020), section 3: the mean over the heads of a layer, half of it replaced by the token itself
    (for the residual connection), and the product of the layers. It takes for granted that attention weights tell how
    much is passed on, which they do not (Jain and Wallace, 2019): a hint, not an explanation.

    Args:
        maps: attention maps of every layer over one sequence, the first layer first.
        attention_mask: 1 for real tokens, 0 for padding; the rows of padding are 0.

    Returns:
        For each output token (row) a share of each input token (column); each row sums to 1.

    Raises:
        ValueError: there is no layer, the maps are none, or shapes do not fit.
    """
    if not len(maps):
        raise ValueError("attention_rollout() got no layers: give the maps of all layers, model output.attentions")
    rollout: Tensor | None = None
    for layer in maps:
        real = _checked(layer, attention_mask)
        mean = layer.double().mean(1).masked_fill(~real[:, None, :], 0)
        mean = mean / mean.sum(-1, keepdim=True).clamp(min=1e-12)
        mixed = (mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)) / 2
        mixed = mixed.masked_fill(~real[:, :, None], 0)
        rollout = mixed if rollout is None else mixed @ rollout
    assert rollout is not None
    return rollout.to(maps[0].dtype)


PARTS = {
    "attentions": ("decoder", "attention"),
    "encoder_attentions": ("encoder", "attention"),
    "decoder_attentions": ("decoder", "attention"),
    "cross_attentions": ("decoder", "cross_attention"),
}
"""Name of the maps to the stack and the module of its blocks that make them."""


@contextlib.contextmanager
def ablated(model: Transformer, heads: Collection[tuple[int, int]], part: str = "attentions") -> Iterator[Transformer]:
    """Silence some heads for a while: what they would have written is 0 (Michel, Levy and Neubig, 2019, section 2.3).

    Args:
        model: our Transformer; one of ``transformers`` goes through :func:`course_utils.families.from_huggingface`.
        heads: pairs of layer and head, both counted from 0.
        part: of an encoder-decoder ``encoder_attentions``, ``decoder_attentions`` or ``cross_attentions``.

    Yields:
        The same model, which is whole again at the end.

    Raises:
        ValueError: there is no such part, layer or head.
    """
    blocks = _attentions(model, part)
    silent: dict[int, list[int]] = {}
    for layer, head in heads:
        if not 0 <= layer < len(blocks) or not 0 <= head < blocks[layer].heads:
            raise ValueError(
                f"head {head} of layer {layer}: {part} has {len(blocks)} layers of {blocks[0].heads} heads, counted "
                "from 0"
            )
        silent.setdefault(layer, []).append(head)

    def silencer(chosen: list[int], size: int) -> Callable[..., tuple[Tensor]]:
        def silence(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            return (silenced(inputs[0].unflatten(-1, (-1, size)), chosen).flatten(-2),)

        return silence

    with contextlib.ExitStack() as stack:
        for layer, chosen in silent.items():
            output = blocks[layer].output
            stack.enter_context(output.register_forward_pre_hook(silencer(chosen, blocks[layer].head_size)))
        yield model


def silenced(
    states: Float[Tensor, "batch tokens heads size"], heads: Collection[int]
) -> Float[Tensor, "batch tokens heads size"]:
    """Return what the heads of a layer have gathered, with 0 in place of some heads' part.

    Michel, Levy and Neubig (2019), section 2.3. It goes on through the layer's output matrix: no head, no contribution.

    Args:
        states: weighted sums of values, one part for each head.
        heads: numbers of the heads to silence, from 0.
    """
    kept = states.clone()
    kept[:, :, list(heads)] = 0
    return kept


def ablation_effects(
    model: nn.Module, measure: Callable[[Transformer], float], part: str = "attentions"
) -> Float[Tensor, "layers heads"]:
    """Silence each head alone, and see how much a measure changes: what the model loses with this head.

    Other heads may do the same work, so that a head can matter and its effect be small (Michel et al., 2019; backup
    heads: Wang et al., 2023, section 3).

    Args:
        model: ours, or one of ``transformers`` of a family that :func:`course_utils.families.from_huggingface` takes.
        measure: what is measured, for example the mean loss on a text; called in evaluation mode without gradients.
        part: see :func:`ablated`.

    Returns:
        The measure without the head minus that of the whole model, for each head.

    Raises:
        ValueError: there is no such part, or the family is not supported.
    """
    ours = model if isinstance(model, Transformer) else from_huggingface(model)
    with training.modes(ours, training=False), torch.no_grad():
        whole = float(measure(ours))
        blocks = _attentions(ours, part)
        effects = torch.zeros(len(blocks), blocks[0].heads)
        for layer, block in enumerate(blocks):
            for head in range(block.heads):
                with ablated(ours, [(layer, head)], part):
                    effects[layer, head] = float(measure(ours)) - whole
    return effects


def logit_lens(
    model: nn.Module, input_ids: Int[Tensor, "batch tokens"], attention_mask: Mask | None = None
) -> Float[Tensor, "states batch tokens vocabulary"]:
    """Ask the model after each layer what it would predict if it ended there: its last norm and its head on each state.

    nostalgebraist (2020), "interpreting GPT: the logit lens". Early states were never trained to be read this way.

    Args:
        model: a decoder or an encoder with a head, ours or one of ``transformers``.
        input_ids: the tokens.
        attention_mask: 1 for real tokens, 0 for padding.

    Returns:
        Logits for the embeddings and for the states behind each layer; the last ones are the model's own.

    Raises:
        ValueError: the model has two stacks or no head, or its family is not supported.
    """
    ours = model if isinstance(model, Transformer) else from_huggingface(model)
    if ours.config.kind == "encoder-decoder" or not ours.config.head:
        raise ValueError(
            f"logit_lens() needs a decoder or an encoder with a head, not kind={ours.config.kind!r} with "
            f"head={ours.config.head}"
        )
    stack: Any = ours.encoder if ours.decoder is None else ours.decoder
    device = ours.embeddings.weight.device
    mask = None if attention_mask is None else attention_mask.to(device)
    with training.modes(ours, training=False), torch.no_grad():
        output = ours(input_ids.to(device), mask, return_hidden_states=True)
        assert output.hidden_states is not None
        states = list(output.hidden_states)
        if stack.final_norm is not None:
            states[:-1] = [stack.final_norm(state) for state in states[:-1]]  # the last one has passed it
        logits = [ours.logits(state) for state in states]
        return torch.stack([each for each in logits if each is not None])


def _attentions(model: Transformer, part: str) -> list[Any]:
    """Return the attention modules of a part, one a layer."""
    both = model.config.kind == "encoder-decoder"
    parts = [name for name in PARTS if (name == "attentions") != both]
    if part not in parts:
        raise ValueError(f"part={part!r}: of this model expected one of {', '.join(parts)}")
    stack, name = PARTS[part]
    home: Any = model.encoder if stack == "encoder" or model.decoder is None else model.decoder
    return [getattr(block, name) for block in home.layers]


# --- heads that form while one looks on

VOCABULARY = 64
TOKENS = 64
"""Tokens a sequence in training."""
SEQUENCES = 32
"""Sequences a step."""
SEGMENT = (8, 31)
"""Shortest and longest segment in training, in tokens."""
PROBE_LENGTH = 24
"""Tokens of the segment that snapshots are measured on; it stands there twice."""


@dataclass
class Snapshot:
    """The model at one step of its training.

    Attributes:
        step: number of updates done; 0 is the random start.
        tokens_seen: tokens trained on so far.
        loss: mean next-token loss on fresh repeated sequences, nats a token.
        repeated_loss: the same over the second occurrences alone, which can be predicted from the first.
        copy_accuracy: share of the second occurrences that the model predicts, 0 to 1.
        previous_token: :func:`previous_token_score` of each head, (layers, heads).
        induction: :func:`induction_score` of each head, (layers, heads).
        maps: attention maps on the probe, (layers, heads, queries, keys).
        weights: the model's ``state_dict``.
    """

    step: int
    tokens_seen: int
    loss: float
    repeated_loss: float
    copy_accuracy: float
    previous_token: Tensor
    induction: Tensor
    maps: Tensor
    weights: dict[str, Tensor] = field(repr=False)


@dataclass
class FormingHeads:
    """A training of :func:`watch_heads_form`.

    Attributes:
        model: the trained model, in evaluation mode.
        config: its switches.
        probe: the tokens that the snapshots' maps belong to: a random segment, twice.
        snapshots: the model at log-spaced steps, first at step 0, last as it ended.
        history: loss of each step and more; ``history.interrupted`` tells of an interruption.
    """

    model: Transformer
    config: TransformerConfig
    probe: Int[Tensor, "tokens"]
    snapshots: list[Snapshot]
    history: training.History

    def steepest_drop(self, window: int = 25) -> float:
        """Return the step around which the training loss falls fastest: its mean before against its mean after.

        Args:
            window: number of steps on either side over which the loss is averaged.

        Raises:
            ValueError: the training was shorter than two windows.
        """
        losses = torch.tensor(self.history.losses, dtype=torch.float64)
        _whole("window", window, 1)
        if len(losses) < 2 * window:
            raise ValueError(f"window={window}: the training has {len(losses)} steps, expected {2 * window} or more")
        means = losses.unfold(0, window, 1).mean(-1)
        return float((means[:-window] - means[window:]).argmax() + window)

    def induction_rise(self) -> float:
        """Return the step at which the induction score of the best head crosses half of what it ends at.

        The best head is the one that ends highest; between snapshots the score is taken as a straight line.
        """
        best = int(self.snapshots[-1].induction.argmax())
        scores = [float(snapshot.induction.flatten()[best]) for snapshot in self.snapshots]
        steps, half = [snapshot.step for snapshot in self.snapshots], scores[-1] / 2
        place = next(number for number, score in enumerate(scores) if score >= half)
        if place == 0:
            return float(steps[0])
        share = (half - scores[place - 1]) / (scores[place] - scores[place - 1])
        return steps[place - 1] + share * (steps[place] - steps[place - 1])


def watch_heads_form(
    seed: int = 0,
    *,
    layers: int = 2,
    heads: int = 4,
    steps: int = 800,
    snapshots: int = 40,
    progress: bool = True,
    on_snapshot: Callable[[Snapshot], Any] | None = None,
) -> FormingHeads:
    """Train a small model of attention alone from random weights, and keep what its heads look like on the way.

    The text is 64 tokens long: a segment of 8 to 31 random tokens, again and again. Only who looks back can predict it.
    With two layers a previous-token head forms in the first and, on top of it, an induction head in the second, at the
    step at which the loss drops (Elhage et al. 2021; Olsson et al. 2022). An interruption keeps what was learned.

    Args:
        seed: of the weights and of the text.
        layers: number of layers; one alone has nothing to build an induction head on.
        heads: heads a layer, a divisor of the width, 64.
        steps: number of updates, of 32 sequences each.
        snapshots: about how many snapshots to keep, at steps that grow by a constant factor, and at step 0.
        progress: show a progress bar.
        on_snapshot: called with each snapshot as it is taken, for example to draw it; returning True ends the training.

    Returns:
        The model, the snapshots and the history.

    Raises:
        ValueError: a setting is out of range.
    """
    for name, value, least in (("seed", seed, 0), ("steps", steps, 1), ("snapshots", snapshots, 2)):
        _whole(name, value, least)
    config = TransformerConfig(
        VOCABULARY,
        width=64,
        layers=layers,
        heads=heads,
        mlp_width=0,
        positions="rotary",
        tied_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = Transformer(config)
    tests = repeated_tokens(VOCABULARY, PROBE_LENGTH, batch=64, seed=seed)
    taken: list[Snapshot] = []
    wanted = {round(steps ** (number / (snapshots - 2 or 1))) for number in range(snapshots - 1)} | {steps}

    def look(step: int) -> bool:
        taken.append(_snapshot(model, tests, step))
        return on_snapshot is not None and on_snapshot(taken[-1]) is True

    history = training.History()
    if not look(0):
        history = training.fit(
            model,
            lambda number: {"input_ids": _text(seed, number)},
            steps=steps,
            learning_rate=1e-2,
            warmup=min(50, steps - 1),
            on_step=lambda step, *_: step in wanted and look(step),
            progress=progress,
        )
    if taken[-1].step != history.steps:
        taken.append(_snapshot(model, tests, history.steps))
    return FormingHeads(model.eval(), config, tests[0], taken, history)


def repeated_loss(
    logits: Float[Tensor, "batch tokens vocabulary"], tokens: Int[Tensor, "batch tokens"], first: int
) -> float:
    """Mean next-token loss from a place on, in nats a token: over those tokens that repeat an earlier segment.

    Args:
        logits: what the model predicts at each place for the next one.
        tokens: the tokens that it read.
        first: place of the first token that counts, 1 or more.
    """
    targets = tokens[:, first:]
    return F.cross_entropy(logits[:, first - 1 : -1].transpose(1, 2), targets).item()


def _text(seed: int, number: int) -> Int[Tensor, "batch tokens"]:
    """Batch of a training: in each row a random segment of random length, repeated up to the end."""
    generator = torch.Generator().manual_seed((seed << 32) + number)
    tokens = torch.randint(VOCABULARY, (SEQUENCES, TOKENS), generator=generator)
    lengths = torch.randint(SEGMENT[0], SEGMENT[1] + 1, (SEQUENCES, 1), generator=generator)
    return tokens.gather(1, torch.arange(TOKENS) % lengths)


def _snapshot(model: Transformer, tests: Tensor, step: int) -> Snapshot:
    """Measure the model on sequences of a segment and its repetition."""
    with training.modes(model, training=False), torch.no_grad():
        output = model(tests, return_attentions=True)
    assert output.logits is not None and output.attentions is not None
    second = PROBE_LENGTH + 1  # the first repeated token itself cannot be foreseen
    copied = output.logits[:, second - 1 : -1].argmax(-1) == tests[:, second:]
    return Snapshot(
        step=step,
        tokens_seen=step * SEQUENCES * TOKENS,
        loss=repeated_loss(output.logits, tests, 1),
        repeated_loss=repeated_loss(output.logits, tests, second),
        copy_accuracy=float(copied.double().mean()),
        previous_token=torch.stack([previous_token_score(layer) for layer in output.attentions]),
        induction=torch.stack([induction_score(layer, tests) for layer in output.attentions]),
        maps=torch.stack([layer[0] for layer in output.attentions]),
        weights=copy.deepcopy(model.state_dict()),
    )


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: expected a whole number of {least} or more")
