"""What training and inference hold in memory, part by part: computed from the shape, and counted while it runs.

Everything is counted in bytes; 1 GB is 10^9 of them. :func:`needs` computes; :func:`measure_training` and
:func:`measure_generation` count what really exists; :func:`compare` holds one against the other. Where a number depends
on how a library computes something, it is this course's Transformer or ``transformers``, on PyTorch.
"""

import contextlib
import dataclasses
import functools
import inspect
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from course_utils.families import PALM
from course_utils.reporting import table
from course_utils.training import language_model_loss
from course_utils.transformer import Block, TransformerConfig

GB = 10**9
GPUS: dict[str, int] = {
    "T4": 16,
    "V100": 32,
    "A100 40": 40,
    "A100 80": 80,
    "H100": 80,
    "H200": 141,
}
"""Memory of a GPU in GB, from NVIDIA's datasheets. A few per cent of it belong to the driver and CUDA's context."""
BYTES: dict[str, float] = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int8": 1,
}
"""Bytes of a number by its dtype."""
METHODS = ("full", "lora", "qlora", "inference")
OPTIMIZERS = ("sgd", "momentum", "adam", "adam8bit", "adafactor")
TARGETS = ("query", "key", "value", "output", "gate", "up", "down", "query_key_value")
LIBRARIES = ("course", "transformers")
DEVICES = ("cuda", "cpu")
_NETWORK = ("gate", "up", "down")
_BIASES = ("alibi", "t5")


def _shape(width: int, layers: int, heads: int, **switches: Any) -> TransformerConfig:
    return TransformerConfig(width=width, layers=layers, heads=heads, **switches)


_GPT2: dict[str, Any] = dict(
    vocabulary_size=50257, positions="learned", context_window=1024, activation="gelu_tanh", dropout=0.1,
    attention_dropout=0.1,
)  # fmt: skip
_GPT3: dict[str, Any] = _GPT2 | dict(context_window=2048, dropout=0.0, attention_dropout=0.0)
_BERT: dict[str, Any] = dict(
    vocabulary_size=30522, kind="encoder", positions="learned", context_window=512, norm_place="post",
    embedding_norm=True, segments=2, head_bias=True, head_transform=True, dropout=0.1, attention_dropout=0.1,
)  # fmt: skip
_T5: dict[str, Any] = dict(
    vocabulary_size=32128, kind="encoder-decoder", positions="t5", norm="rmsnorm", float32_norm=False,
    activation="relu", attention_bias=False, mlp_bias=False, attention_scale=False, scaled_logits=True, dropout=0.1,
    attention_dropout=0.1,
)  # fmt: skip
_LLAMA: dict[str, Any] = dict(
    vocabulary_size=32000, positions="rotary", norm="rmsnorm", activation="silu", gated=True, attention_bias=False,
    mlp_bias=False, float32_softmax=True, tied_embeddings=False,
)  # fmt: skip
_BLOOM: dict[str, Any] = dict(
    vocabulary_size=250880, positions="alibi", embedding_norm=True, activation="gelu_bloom", float32_softmax=True
)
SHAPES: dict[str, TransformerConfig] = {
    "bert-base": _shape(768, 12, 12, **_BERT),
    "bert-large": _shape(1024, 24, 16, **_BERT),
    "t5-base": _shape(768, 12, 12, mlp_width=3072, **_T5),
    "t5-11b": _shape(1024, 24, 128, head_size=128, mlp_width=65536, **_T5),
    "smollm2-135m": _shape(
        576, 30, 9, key_value_heads=3, mlp_width=1536, **(_LLAMA | dict(vocabulary_size=49152, tied_embeddings=True))
    ),
    "gpt2": _shape(768, 12, 12, **_GPT2),
    "gpt2-medium": _shape(1024, 24, 16, **_GPT2),
    "gpt2-large": _shape(1280, 36, 20, **_GPT2),
    "gpt2-xl": _shape(1600, 48, 25, **_GPT2),
    "gpt3-2.7b": _shape(2560, 32, 32, **_GPT3),
    "gpt3-6.7b": _shape(4096, 32, 32, **_GPT3),
    "gpt3-175b": _shape(12288, 96, 96, **_GPT3),
    "bloom-560m": _shape(1024, 24, 16, **_BLOOM),
    "bloom-7b": _shape(4096, 30, 32, **_BLOOM),
    "bloom-176b": _shape(14336, 70, 112, **_BLOOM),
    "bloomberggpt-50b": _shape(7680, 70, 40, **(_BLOOM | dict(vocabulary_size=131072))),
    "llama-7b": _shape(4096, 32, 32, mlp_width=11008, **_LLAMA),
    "llama-13b": _shape(5120, 40, 40, mlp_width=13824, **_LLAMA),
    "llama-33b": _shape(6656, 60, 52, mlp_width=17920, **_LLAMA),
    "llama-65b": _shape(8192, 80, 64, mlp_width=22016, **_LLAMA),
    "llama2-70b": _shape(8192, 80, 64, key_value_heads=8, mlp_width=28672, **_LLAMA),
    "llama3-8b": _shape(4096, 32, 32, key_value_heads=8, mlp_width=14336, **(_LLAMA | dict(vocabulary_size=128256))),
    "palm-540b": _shape(18432, 118, 48, head_size=256, vocabulary_size=256000, **PALM),
}
"""Shapes of published models, by name. Their sources stand in ``SOURCES``."""
SOURCES: dict[str, tuple[float, str]] = {
    "bert-base": (0.110e9, "Devlin et al. 2019, section 3"),
    "bert-large": (0.340e9, "Devlin et al. 2019, section 3"),
    "t5-base": (0.22e9, "Raffel et al. 2020, section 3.1.1"),
    "t5-11b": (11e9, "Raffel et al. 2020, section 3.7"),
    "smollm2-135m": (0.135e9, "Ben Allal et al. 2025, and the model's configuration"),
    "gpt2": (0.124e9, "Radford et al. 2019, table 2 (there 117 M; 124 M as its authors corrected it)"),
    "gpt2-medium": (0.355e9, "Radford et al. 2019, table 2 (there 345 M; 355 M as corrected)"),
    "gpt2-large": (0.774e9, "Radford et al. 2019, table 2 (there 762 M; 774 M as corrected)"),
    "gpt2-xl": (1.558e9, "Radford et al. 2019, table 2 (there 1542 M; 1558 M as corrected)"),
    "gpt3-2.7b": (2.7e9, "Brown et al. 2020, table 2.1"),
    "gpt3-6.7b": (6.7e9, "Brown et al. 2020, table 2.1"),
    "gpt3-175b": (175e9, "Brown et al. 2020, table 2.1"),
    "bloom-560m": (0.559e9, "Le Scao et al. 2022, table 3"),
    "bloom-7b": (7.069e9, "Le Scao et al. 2022, table 3"),
    "bloom-176b": (176.247e9, "Le Scao et al. 2022, table 3"),
    "bloomberggpt-50b": (50.6e9, "Wu et al. 2023, table 4"),
    "llama-7b": (6.7e9, "Touvron et al. 2023, table 2"),
    "llama-13b": (13.0e9, "Touvron et al. 2023, table 2"),
    "llama-33b": (32.5e9, "Touvron et al. 2023, table 2"),
    "llama-65b": (65.2e9, "Touvron et al. 2023, table 2"),
    "llama2-70b": (70e9, "Touvron et al. 2023 (Llama 2), table 1"),
    "llama3-8b": (8e9, "Dubey et al. 2024, table 3"),
    "palm-540b": (540.35e9, "Chowdhery et al. 2022, table 1"),
}
"""For each of ``SHAPES`` the number of parameters that its authors state, and where the shape stands."""


@dataclass(frozen=True)
class Plan:
    """What is to be done with a model, and in which number formats.

    Attributes:
        method: ``full`` (every weight is trained), ``lora``, ``qlora`` (LoRA on NF4 weights) or ``inference``.
        batch: sequences at a time on one device.
        tokens: length of each; of an encoder-decoder that of the target. For inference all that the cache will hold.
        source: length of an encoder-decoder's source; by default ``tokens``.
        weights: dtype of the weights (of those that are not quantized, in ``qlora``); ``int8`` for inference alone.
        activations: dtype that the layers compute in; by default that of the weights, bfloat16 for int8. Half
            precision on float32 weights is autocast.
        gradients: dtype of the gradients; by default that of the weights they belong to, as in PyTorch.
        states: dtype of the optimizer's states; by default that of the weights they belong to, as in PyTorch.
        master: keep a float32 copy of half-precision weights with the optimizer (Micikevicius et al. 2018, 3.1).
        optimizer: ``sgd``, ``momentum``, ``adam`` (also AdamW), ``adam8bit`` or ``adafactor``.
        checkpointing: keep each block's input alone, and compute the block again when it is needed (Chen et al. 2016).
        fused: attention in a kernel that never stores the maps (Dao et al. 2022).
        rank: LoRA's rank.
        targets: LoRA's maps, of ``TARGETS``, by default all of each block; ``query_key_value`` is the joint map that
            GPT-2 and BLOOM have in ``transformers``.
        adapters: dtype of LoRA's weights.
        double: quantize the block scales of NF4 too (QLoRA's double quantization).
        shards: devices among which ZeRO or FSDP shares what the stage says; ``batch`` is then that of one of them.
        stage: 1 shares the optimizer's states, 2 the gradients too, 3 the weights too (Rajbhandari et al. 2020).
        library: whose layers: ``course`` or ``transformers``; they keep different things for the backward pass.
        device: ``cuda`` or ``cpu``: on the CPU dropout's mask takes a whole number instead of a byte, and attention
            with dropout or with a bias (ALiBi, T5) has no fused kernel. The tests measure on what is there.

    Raises:
        ValueError: a value is out of range, or two of them contradict each other.
    """

    method: str = "full"
    batch: int = 1
    tokens: int = 1024
    source: int | None = None
    weights: str = "float32"
    activations: str | None = None
    gradients: str | None = None
    states: str | None = None
    master: bool = False
    optimizer: str = "adam"
    checkpointing: bool = False
    fused: bool = True
    rank: int = 8
    targets: tuple[str, ...] = ("query", "key", "value", "output", "gate", "up", "down")
    adapters: str = "float32"
    double: bool = True
    shards: int = 1
    stage: int = 3
    library: str = "course"
    device: str = "cuda"

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        own: dict[str, tuple[str | None, ...]] = dict(
            method=METHODS, optimizer=OPTIMIZERS, library=LIBRARIES, device=DEVICES
        )
        wide = tuple(dtype for dtype in BYTES if dtype != "int8")
        own |= dict.fromkeys(("activations", "gradients", "states"), (None, *wide))
        own |= dict(adapters=wide, weights=wide if self.trains else tuple(BYTES))
        for name, allowed in own.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(map(str, allowed))}")
        if self.weights != "int8" and BYTES[self.activations or self.weights] > BYTES[self.weights]:
            raise ValueError(f"activations={self.activations!r} on weights={self.weights!r}: expected no wider numbers")
        for name in ("batch", "tokens", "source", "rank", "shards", "stage"):
            value = getattr(self, name)
            if value is None and name == "source":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}: expected a whole number of 1 or more")
        if self.stage > 3:
            raise ValueError(f"stage={self.stage}: ZeRO has the stages 1, 2 and 3")
        if self.method in ("lora", "qlora") and (not self.targets or set(self.targets) - set(TARGETS)):
            raise ValueError(f"targets={self.targets!r}: expected some of {', '.join(TARGETS)}")

    @property
    def trains(self) -> bool:
        """Whether there is a backward pass."""
        return self.method != "inference"


@dataclass(frozen=True)
class Needs:
    """Bytes on one device, part by part.

    Attributes:
        weights: the weights, LoRA's included.
        gradients: one number for each trained weight.
        optimizer: the optimizer's states, and the float32 copy of the weights where there is one.
        activations: what the forward pass keeps for the backward pass.
        cache: keys and values of the tokens so far (inference).
        temporary: the most that comes on top for a moment: logits and the gradients of the loss, one block's
            intermediate results, gathered shards.
        peak: the most that is held at one time, where gradients are freed after each step (``set_to_none=True``, the
            default): the activations are then gone before all gradients are there. At most ``total``.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    cache: int
    temporary: int
    peak: int

    @property
    def parts(self) -> dict[str, int]:
        """Name of a part to its bytes, without the empty ones."""
        names = ("weights", "gradients", "optimizer", "activations", "cache", "temporary")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    @property
    def total(self) -> int:
        """Sum of the parts: what is held at most where gradients are added up over several batches."""
        return sum(self.parts.values())

    def rows(self) -> list[tuple[str, str, str]]:
        """Return a row for each part, the sum and the peak: name, size, share of the sum."""
        whole = max(self.total, 1)
        lines = [(name, size(value), f"{value / whole:.0%}") for name, value in self.parts.items()]
        return [*lines, ("total", size(self.total), "100%"), ("peak", size(self.peak), f"{self.peak / whole:.0%}")]

    def __str__(self) -> str:
        """The rows as lines of text."""
        return "\n".join(f"{name:<12}{amount:>9}{share:>6}" for name, amount, share in self.rows())

    def table(self, caption: str | None = None) -> None:
        """Display the rows as a table.

        Args:
            caption: one line above it.
        """
        table(self.rows(), ("part", "memory", "share"), caption)


def size(number: float) -> str:
    """Return a number of bytes in readable units of 1000: ``16.0 GB``.

    Args:
        number: bytes.
    """
    units = ["B", "kB", "MB", "GB", "TB"]
    while number >= 999.5 and len(units) > 1:
        number, units = number / 1000, units[1:]
    digits = 0 if number >= 99.95 or units[0] == "B" else 1 if number >= 9.995 else 2
    return f"{number:.{digits}f} {units[0]}"


def shape_of(shape: TransformerConfig | str) -> TransformerConfig:
    """Return the configuration, of a published model where a name was given.

    Args:
        shape: a configuration, or a name of ``SHAPES``.

    Raises:
        ValueError: there is no such name.
    """
    if isinstance(shape, TransformerConfig):
        return shape
    if shape not in SHAPES:
        raise ValueError(f"shape={shape!r}: expected a TransformerConfig or one of {', '.join(SHAPES)}")
    return SHAPES[shape]


class Weight(NamedTuple):
    """Weights of one shape.

    Attributes:
        name: part of the model, ``embeddings``, ``layers.attention.query.weight``...
        shape: their shape, (rows, columns) or (columns,).
        copies: how many of them there are.
    """

    name: str
    shape: tuple[int, ...]
    copies: int

    @property
    def numbers(self) -> int:
        """How many numbers they hold, all copies together."""
        return self.copies * math.prod(self.shape)


def weight_shapes(shape: TransformerConfig | str) -> list[Weight]:
    """Return the shapes of all weights of a model; tied ones stand there once.

    Args:
        shape: a configuration, or a name of ``SHAPES``.
    """
    config = shape_of(shape)
    width, words = config.width, config.vocabulary_size
    found = [Weight("embeddings", (words, width), 1)]
    if config.segments:
        found.append(Weight("segments", (config.segments, width), 1))
    for name, row, depth, cross in _stacks(config):
        if row.positions == "learned":
            assert row.context_window is not None  # the configuration refuses it
            found.append(Weight(f"{name}.positions", (row.context_window + row.position_offset, width), 1))
        if row.positions == "t5":
            found.append(Weight(f"{name}.relative_bias", (row.relative_buckets, row.heads), 1))
        found += _norm(f"{name}.embedding_norm", row, 1) if row.embedding_norm else []
        found += _norm(f"{name}.final_norm", row, 1) if row.ends_with_norm else []
        for attention in ("attention", "cross_attention")[: 1 + cross]:
            found += _norm(f"{name}.layers.{attention}_norm", row, depth)
            for part, (rows, columns, bias) in _maps(row).items():
                if part not in ("gate", "up", "down"):
                    found += _linear(f"{name}.layers.{attention}.{part}", rows, columns, bias, depth)
        if row.size_of_mlp:
            found += _norm(f"{name}.layers.feed_forward_norm", row, depth) if not row.parallel else []
            for part, (rows, columns, bias) in _maps(row).items():
                if part in ("gate", "up", "down"):
                    found += _linear(f"{name}.layers.feed_forward.{part}", rows, columns, bias, depth)
    if not config.shared_embeddings:
        found.append(Weight("decoder_embeddings", (words, width), 1))
    if config.head_transform:
        found += _linear("transform.dense", width, width, True, 1) + _norm("transform.norm", config, 1)
    if config.head and not config.tied_embeddings:
        found.append(Weight("head_weight", (words, width), 1))
    if config.head and config.head_bias:
        found.append(Weight("head_bias", (words,), 1))
    return found


def parameters(shape: TransformerConfig | str) -> int:
    """Return the number of weights of a model; tied ones count once.

    Args:
        shape: a configuration, or a name of ``SHAPES``.
    """
    return sum(weight.numbers for weight in weight_shapes(shape))


def _stacks(config: TransformerConfig) -> Iterator[tuple[str, TransformerConfig, int, bool]]:
    """Name, configuration, depth and whether there is cross-attention, of the encoder and the decoder."""
    if config.kind != "decoder":
        yield "encoder", config, config.layers, False
    if config.kind == "decoder":
        yield "decoder", config, config.layers, False
    elif config.kind == "encoder-decoder":
        yield "decoder", config.of_decoder, config.decoder_layers or config.layers, True


def _maps(row: TransformerConfig) -> dict[str, tuple[int, int, bool]]:
    """Name of each linear map of a block to its rows (outputs), columns (inputs) and whether it has a bias."""
    width, every, shared = row.width, row.heads * row.size_of_head, row.groups * row.size_of_head
    bias, network = row.attention_bias, row.size_of_mlp
    output = bias if row.attention_output_bias is None else row.attention_output_bias
    maps = {
        "query": (every, width, bias),
        "key": (shared, width, bias),
        "value": (shared, width, bias),
        "output": (width, every, output),
    }
    if network:
        maps |= {"gate": (network, width, row.mlp_bias)} if row.gated else {}
        maps |= {"up": (network, width, row.mlp_bias), "down": (width, network, row.mlp_bias)}
    return maps


def _linear(name: str, rows: int, columns: int, bias: bool, copies: int) -> list[Weight]:
    found = [Weight(f"{name}.weight", (rows, columns), copies)]
    return [*found, Weight(f"{name}.bias", (rows,), copies)] if bias else found


def _norm(name: str, row: TransformerConfig, copies: int) -> list[Weight]:
    found = [Weight(f"{name}.weight", (row.width,), copies)]
    bias = row.norm == "layernorm" and row.norm_bias
    return [*found, Weight(f"{name}.bias", (row.width,), copies)] if bias else found


# --- from shape and plan to bytes


def trained_parameters(shape: TransformerConfig | str, plan: Plan) -> tuple[int, int]:
    """Return how many weights are trained, and how many there are, LoRA's included.

    Args:
        shape: a configuration, or a name of ``SHAPES``.
        plan: what is to be done.
    """
    every = parameters(shape)
    if plan.method in ("full", "inference"):
        return (every if plan.trains else 0), every
    added = sum(weight.numbers for weight in lora_shapes(shape, plan))
    return added, every + added


def lora_shapes(shape: TransformerConfig | str, plan: Plan) -> list[Weight]:
    """Return the shapes of LoRA's weights: for a map of m rows and n columns (rank, n) and (m, rank).

    Hu et al. (2021), section 4.1. Maps of that name are adapted in every attention and network of the model.

    Args:
        shape: a configuration, or a name of ``SHAPES``.
        plan: rank and targets.

    Raises:
        ValueError: the model has none of the targets.
    """
    found = []
    for name, row, depth, cross in _stacks(shape_of(shape)):
        maps = _maps(row)
        joint = sum(maps[part][0] for part in ("query", "key", "value"))
        for target in plan.targets:
            rows, columns = (joint, row.width) if target == "query_key_value" else maps.get(target, (0, 0))[:2]
            copies = depth * (1 + (cross and target not in _NETWORK)) if rows else 0
            found += [
                Weight(f"{name}.{target}.A", (plan.rank, columns), copies),
                Weight(f"{name}.{target}.B", (rows, plan.rank), copies),
            ]
    if not any(weight.copies for weight in found):
        raise ValueError(f"targets={plan.targets!r}: the model has none of these maps")
    return [weight for weight in found if weight.copies]


def nf4_bytes(numbers: int, double: bool = True, block: int = 64) -> int:
    """Return the bytes of weights in NF4: half a byte each, and a scale for each block of them.

    Dettmers et al. (2023, QLoRA), section 3: blocks of 64 with a float32 scale (0.5 bits a weight); with double
    quantization the scales are 8-bit numbers with one float32 for each 256 of them (0.127 bits a weight).

    Args:
        numbers: number of weights of one matrix.
        double: quantize the scales too.
        block: weights that share a scale.
    """
    blocks = math.ceil(numbers / block)
    return math.ceil(numbers / 2) + (blocks + 4 * math.ceil(blocks / 256) if double else 4 * blocks)


def optimizer_bytes(weights: list[Weight], optimizer: str, dtype: str = "float32") -> int:
    """Return the bytes of an optimizer's states.

    - ``sgd`` keeps nothing, ``momentum`` one number a weight, ``adam`` (and AdamW) two, and a step counter a tensor.
    - ``adam8bit`` (Dettmers et al. 2022, sections 2.1 and 3): two bytes a weight, and a float32 scale for each block of
      2048 of each state; tensors of fewer than 4096 numbers stay in 32 bits, as in bitsandbytes. Computed only: there
      is no such optimizer on this course's CPU against which it could be measured.
    - ``adafactor`` (Shazeer and Stern 2018, section 3, no momentum; ``torch.optim.Adafactor``): for a matrix one number
      a row and one a column, for a vector one a weight.

    Args:
        weights: shapes of what is trained.
        optimizer: one of ``OPTIMIZERS``.
        dtype: dtype of the states; not used for ``adam8bit``.
    """
    each, total = BYTES[dtype], 0.0
    for weight in weights:
        numbers = math.prod(weight.shape)
        if optimizer == "momentum":
            one = numbers * each
        elif optimizer == "adam":
            one = 2 * numbers * each + 4
        elif optimizer == "adam8bit":
            one = 2 * (numbers + 4 * math.ceil(numbers / 2048)) if numbers >= 4096 else 8 * numbers
        elif optimizer == "adafactor":
            one = (sum(weight.shape) if len(weight.shape) > 1 else numbers) * each + 4
        else:
            one = 0
        total += weight.copies * one
    return int(total)


def cache_bytes(shape: TransformerConfig | str, plan: Plan) -> int:
    """Return the bytes of the keys and values of ``plan.tokens`` tokens, and of an encoder-decoder's source.

    Two vectors of ``key_value_heads * head_size`` for each token and block: with grouped heads (Ainslie et al. 2023) it
    is by that factor smaller than with one key/value head a head.

    Args:
        shape: a configuration, or a name of ``SHAPES``.
        plan: batch, tokens, source and the dtype that the layers compute in.
    """
    numbers = 0
    for name, row, depth, cross in _stacks(shape_of(shape)):
        if name == "decoder":
            held = plan.tokens + (_source(plan) if cross else 0)
            numbers += 2 * depth * plan.batch * held * row.groups * row.size_of_head
    return int(numbers * BYTES[_computed(plan)])


def needs(shape: TransformerConfig | str, plan: Plan | None = None) -> Needs:
    """Return what a plan needs on one device, part by part.

    Weights, gradients, states and cache follow from the shapes. The activations are those of :func:`kept`. The part
    ``temporary`` is the largest of what the loss holds on top (the log-probabilities in float32, their gradient and
    that of the logits: 12 bytes a logit), what one block holds in its backward pass, and the second gradient of tied
    embeddings, which is made whole before it is added, or Adafactor's update of the largest matrix. At stage 3 the
    gathered weights of one block come on top.

    Args:
        shape: a configuration, or a name of ``SHAPES``.
        plan: what is to be done; by default full training in float32 with Adam, one sequence of 1024 tokens.

    Raises:
        ValueError: there is no such name, or the sequence does not fit the context window.
    """
    config, plan = shape_of(shape), plan or Plan()
    _check_window(config, plan)
    adapted = lora_shapes(config, plan) if plan.method in ("lora", "qlora") else []
    every = weight_shapes(config)
    if plan.method == "qlora":
        stored = sum(
            weight.copies * nf4_bytes(math.prod(weight.shape), plan.double)
            if _quantized(weight)
            else weight.numbers * BYTES[plan.weights]
            for weight in every
        )
    else:
        stored = sum(weight.numbers for weight in every) * BYTES[plan.weights]
    own = plan.adapters if adapted else plan.weights
    stored += sum(weight.numbers for weight in adapted) * BYTES[plan.adapters]
    if not plan.trains:
        cache, temporary = cache_bytes(config, plan), _forward_bytes(config, plan)
        shared = _share(stored, plan, 3)
        gathered = temporary + (_largest(config, plan) if plan.shards > 1 and plan.stage == 3 else 0)
        return Needs(shared, 0, 0, 0, cache, gathered, shared + cache + gathered)
    trained = adapted or every
    count = sum(weight.numbers for weight in trained)
    states = optimizer_bytes(trained, plan.optimizer, plan.states or own)
    states += 4 * count if plan.master and BYTES[own] < 4 else 0
    weights, optimizer = _share(stored, plan, 3), _share(states, plan, 1)
    gradients = _share(count * BYTES[plan.gradients or own], plan, 2)
    activations = sum(item.bytes * item.copies for item in kept(config, plan))
    words = 0 if adapted else int(config.vocabulary_size * config.width * BYTES[plan.gradients or own])
    logits = _logits(config, plan)
    loss, block = 12 * logits, _block_backward(config, plan)
    head = int(logits * BYTES[_computed(plan)]) + (words if config.head else 0)
    twice = words if config.tied_embeddings and config.head else 0
    if plan.optimizer == "adafactor":  # the update of one matrix is made whole
        twice = max(twice, int(max(math.prod(weight.shape) for weight in trained) * BYTES[plan.states or own]))
    temporary = max(loss, block, twice, head - gradients)
    gathered = _largest(config, plan) if plan.shards > 1 and plan.stage == 3 else 0
    moment = max(activations + max(loss, block, head), gradients + twice)
    return Needs(
        weights, gradients, optimizer, activations, 0, int(temporary + gathered),
        int(weights + optimizer + gathered + moment),
    )  # fmt: skip


def _computed(plan: Plan) -> str:
    return plan.activations or ("bfloat16" if plan.weights == "int8" else plan.weights)


def _source(plan: Plan) -> int:
    return plan.tokens if plan.source is None else plan.source


def _share(number: float, plan: Plan, stage: int) -> int:
    return math.ceil(number / plan.shards) if plan.stage >= stage else int(number)


def _quantized(weight: Weight) -> bool:
    """Whether QLoRA stores these in NF4: the linear maps of the blocks."""
    return ".layers." in weight.name and len(weight.shape) == 2


def _check_window(config: TransformerConfig, plan: Plan) -> None:
    longest = max(plan.tokens, _source(plan) if config.kind == "encoder-decoder" else 0)
    if config.context_window is not None and longest > config.context_window:
        raise ValueError(
            f"tokens={longest}: the model's context window ends at {config.context_window}; give fewer tokens"
        )


def _logits(config: TransformerConfig, plan: Plan) -> int:
    """Number of logits of which there is a loss: in a decoder all but the last token's."""
    rows = plan.tokens - (config.kind == "decoder")
    return plan.batch * rows * config.vocabulary_size if config.head else 0


def _largest(config: TransformerConfig, plan: Plan) -> int:
    """Bytes of the largest unit that stage 3 gathers to compute with it: a block, or the embeddings."""
    sums: dict[str, float] = {}
    for weight in weight_shapes(config):
        unit = weight.name.split(".layers.")[0] if ".layers." in weight.name else weight.name
        sums[unit] = sums.get(unit, 0) + math.prod(weight.shape)
    return int(max(sums.values()) * BYTES[plan.weights])


# --- the rule of thumb


@dataclass(frozen=True)
class Rule:
    """The rule "4 bytes a weight to store, 4 + 8 + 4 + 8 to train, about 20 times as much", taken apart.

    Attributes:
        parameters: number of weights.
        parts: what the rule lists, name to bytes a weight.
        factor: all parts over the weights alone.
        claimed: the factor that is given as a rule of thumb.
        left: bytes a weight that activations would have to take for that factor.
        shape: the published shape in which activations are counted.
        tokens: tokens a sequence.
        sequences: sequences in a batch for which activations and temporary take the bytes that the rule lists,
        sequences_claimed: and for which they take those left for the claimed factor.
    """

    parameters: int
    parts: dict[str, int]
    factor: float
    claimed: int
    left: int
    shape: str
    tokens: int
    sequences: float
    sequences_claimed: float

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return a row for each part and the sum: name, bytes a weight, size, how many times the weights."""
        stored = self.parts["weights"]
        lines = [*self.parts.items(), ("sum", sum(self.parts.values())), ("claimed", self.claimed * stored)]
        return [(name, str(each), size(each * self.parameters), f"{each / stored:g}x") for name, each in lines]


def notes_rule(parameters: int = 10**9, shape: str | None = None, tokens: int = 1024) -> Rule:
    """Add up a common rule of thumb, and say what its other figure would take.

    The listed parts, in float32, are 4 bytes a weight for the weights, 8 for Adam's two states, 4 for the gradients and
    8 for activations and temporary memory: 24 bytes, 6 times the weights. The additions are 20 *bytes* a weight, which
    is 5 times the weights, not 20. Twenty times the weights are 80 bytes: 64 are then left for the activations, whose
    size does not follow from the number of weights at all, but from batch and tokens. So the figure assumes a batch;
    this says which.

    Args:
        parameters: number of weights.
        shape: a name of ``SHAPES`` in which activations are counted; by default the one of the nearest size.
        tokens: tokens a sequence.

    Raises:
        ValueError: the number of weights is not positive, or there is no such shape.
    """
    if not parameters > 0:
        raise ValueError(f"parameters={parameters!r}: expected a number above 0, for example 10**9")
    if shape is None:
        counts = {name: sum(weight.numbers for weight in weight_shapes(name)) for name in SHAPES}
        shape = min(SHAPES, key=lambda name: abs(math.log(counts[name] / parameters)))
    parts = {"weights": 4, "Adam's two states": 8, "gradients": 4, "activations and temporary": 8}
    claimed = 20
    left = claimed * parts["weights"] - sum(list(parts.values())[:3])
    found = needs(shape, Plan(batch=1, tokens=tokens))
    each = (found.activations + found.temporary) / (found.weights / 4)
    factor = sum(parts.values()) / parts["weights"]
    return Rule(
        parameters, parts, factor, claimed, left, shape, tokens, parts["activations and temporary"] / each, left / each
    )


# --- what the forward pass keeps for the backward pass


class Kept(NamedTuple):
    """Tensors that autograd keeps.

    Attributes:
        where: the module that keeps them.
        what: what they are.
        bytes: bytes of one of them.
        copies: how many of them there are: one for each block, or one.
    """

    where: str
    what: str
    bytes: int
    copies: int


def kept(shape: TransformerConfig | str, plan: Plan | None = None) -> list[Kept]:
    """Return what one forward pass keeps for the backward pass, tensor by tensor, without the loss.

    The rules are those of PyTorch's operations. A linear map keeps its input, once for all maps that read the same
    tensor; LayerNorm its input, mean and deviation; RMSNorm, which is written out, its input in float32, the root and
    the normalised vector; GELU and SiLU their input, ReLU its result; a product both factors; dropout its mask. Fused
    attention keeps query, key, value, output and one float32 a query and head. Attention written out keeps (scaled, and
    copied) query, key and value, and two maps: the exponentials and the weights. Sums keep nothing.

    Weights that are not trained do not keep their input, so LoRA needs less. Under autocast each map keeps its own
    half-precision copy of its input, and of its weights. With checkpointing each block keeps its input alone.

    Korthikanti et al. (2022), equation 1, count for one kind of block: half precision, dropout with masks of a byte,
    maps stored, GELU, LayerNorm, a network four times as wide. Here each of these is a switch, the statistics of the
    norms, embeddings and head are counted too, and softmax is in float32, so its maps take 8 bytes instead of 2. See
    :func:`korthikanti`.

    Args:
        shape: a configuration, or a name of ``SHAPES``.
        plan: what is to be done.
    """
    config, plan = shape_of(shape), plan or Plan()
    if not plan.trains:
        return []
    ledger = _Ledger(config, plan)
    for name, row, depth, cross in _stacks(config):
        source = cross or (name == "encoder" and config.kind == "encoder-decoder")
        length = _source(plan) if name == "encoder" and source else plan.tokens
        ledger.stack(name, row, depth, plan.batch * length, length, _source(plan) if cross else 0)
    ledger.head(plan.batch * plan.tokens)
    return [item for item in ledger.items if item.bytes * item.copies]


def korthikanti(shape: TransformerConfig | str, plan: Plan | None = None) -> int:
    """Return the bytes of the blocks' activations by Korthikanti et al. (2022), section 4.1.

    A sequence and block takes 34 * tokens * width bytes (11 for attention, 19 for the network, 4 for the two norms) and
    5 * heads * tokens**2 for the maps: the softmax, and dropout's mask and result. Checkpointed, 2 * tokens * width.

    Args:
        shape: a configuration, or a name of ``SHAPES``; its sizes alone count.
        plan: batch, tokens and checkpointing; half precision with dropout is assumed.
    """
    config, plan = shape_of(shape), plan or Plan()
    layers = sum(depth for _, _, depth, _ in _stacks(config))
    token = 2 * config.width if plan.checkpointing else 34 * config.width + 5 * config.heads * plan.tokens
    return layers * plan.batch * plan.tokens * token


class _Ledger:
    """Walks through a model in the order of its forward pass, and writes down what is kept."""

    def __init__(self, config: TransformerConfig, plan: Plan):
        self.config, self.plan = config, plan
        self.items: list[Kept] = []
        self.full = plan.method == "full"
        self.autocast = BYTES[_computed(plan)] != BYTES[plan.weights]
        self.stored, self.computed = BYTES[plan.weights], BYTES[_computed(plan)]
        self.where, self.copies, self.context = "", 1, self.full

    def add(self, what: str, numbers: float, each: float) -> None:
        """Write down one tensor."""
        self.items.append(Kept(self.where, what, int(numbers * each), self.copies))

    def adapted(self, names: Iterable[str]) -> list[str]:
        """Those of the maps that are trained: all, or those with LoRA; the joint map counts as the query's."""
        if self.full:
            return list(names)
        joint = {"query"} if "query_key_value" in self.plan.targets else set()
        return [name for name in names if name in joint or name in self.plan.targets]

    def read(self, what: str, maps: Mapping[str, tuple[int, int]], rows: int, flows: bool, kept: bool = False) -> bool:
        """Linear maps that read one tensor keep it; return whether their results have a gradient.

        ``kept``: the tensor is kept by somebody else already, in the dtype that the layers compute in.
        """
        trained = self.adapted(maps)
        width = next(iter(maps.values()))[1]
        adapters = BYTES[self.plan.adapters]
        if not self.full and trained:
            self.add(
                "LoRA's inner vectors",
                len(trained) * rows * self.plan.rank,
                self.computed if self.autocast else adapters,
            )
        if self.autocast:
            thin = sum(out + (into if flows else 0) for name, (out, into) in maps.items() if name in trained)
            self.add("LoRA's weights in half precision", 0 if self.full else self.plan.rank * thin, self.computed)
            reading = 1 if self.joint(maps) and trained else len(trained)
            self.add(what, 0 if kept and self.full else reading * rows * width, self.computed)
            if flows or (self.full and trained):
                self.add("weights in half precision", sum(out * into for out, into in maps.values()), self.computed)
        elif not self.full and trained and adapters != self.stored:
            self.add(f"{what}, for LoRA", len(trained) * rows * width, adapters)
        elif trained and not kept:
            self.add(what, rows * width, self.stored)
        return flows or bool(trained)

    def joint(self, maps: Mapping[str, Any]) -> bool:
        """Whether these are one map in the library: query, key and value of GPT-2 and BLOOM."""
        return "query" in maps and "key" in maps and self.plan.library == "transformers" and (
            self.config.kind == "decoder" and self.config.positions in ("learned", "alibi")
        )  # fmt: skip

    def norm(self, what: str, row: TransformerConfig, rows: int, flows: bool, each: float | None = None) -> None:
        """What a norm keeps; its result is kept by whoever reads it."""
        if not flows:
            return
        each = (self.stored if self.autocast else self.computed) if each is None else each
        numbers = rows * row.width
        if row.norm == "layernorm":
            self.add(f"{what}: input", numbers, each)
            self.add(f"{what}: mean and deviation", 2 * rows, 4 if self.plan.device == "cuda" else each)
            return
        self.add(f"{what}: input in float32", numbers, max(each, 4))
        self.add(f"{what}: root", rows, 4)
        if each < 4 and not row.float32_norm:
            self.add(f"{what}: input", numbers, each)
        if self.full:
            self.add(f"{what}: normalised", numbers, each)

    def dropped(self, what: str, numbers: int, share: float, each: float, flows: bool = True) -> None:
        """Dropout's mask."""
        if share and flows:
            self.add(f"{what}: dropout's mask", numbers, 1 if self.plan.device == "cuda" else each)

    def fused(self, row: TransformerConfig, own: bool) -> bool:
        """Whether there is a kernel that does not store the maps."""
        bias = own and row.positions in _BIASES
        return self.plan.fused and (self.plan.device == "cuda" or not (row.attention_dropout or bias))

    def attention(self, row: TransformerConfig, rows: int, queries: int, keys: int, own: bool) -> None:
        """Query, key, value and what comes of them: ``rows`` queries in all, ``queries`` and ``keys`` a sequence."""
        plan, each = self.plan, self.computed
        batch = rows // queries
        query, key = rows * row.heads * row.size_of_head, batch * keys * row.groups * row.size_of_head
        maps = batch * row.heads * queries * keys
        share, bias = row.attention_dropout, own and row.positions in _BIASES
        causal = own and row.kind == "decoder"
        if self.fused(row, own):
            self.add("query", query, each)
            self.add("key and value", 2 * key, each)
            self.add("attention's output", query, each)
            self.add("attention's normalizers", batch * row.heads * queries, 4)
            self.add("bias of the scores", row.heads * queries * keys if bias else 0, each)
            return
        spread = batch * keys * row.heads * row.size_of_head  # grouped heads are copied
        wide = max(each, 4)
        mask = queries * keys if causal and (row.positions == "t5" or not plan.fused) else 0
        if plan.fused or plan.library == "course":
            inner = each if self.autocast and not plan.fused else wide
            self.add("query, scaled", query, inner)
            self.add("key and value, copied", 2 * spread, inner)
            self.add("attention maps", maps, wide)
            if not plan.fused:
                self.add("attention maps, normalised", maps, inner)
                self.add("masks and sums of the maps", batch * row.heads * queries, 1 if row.float32_softmax else 5)
            self.add("attention maps: dropout's mask", maps * (1 + plan.fused) if share else 0, inner)
        else:
            float32 = row.float32_softmax or (self.autocast and (row.positions == "t5" or row.kind == "decoder"))
            self.add("query", query, each)
            self.add("key and value, copied", 2 * spread, each)
            self.add("attention maps", maps, wide if float32 else each)
            self.add("attention maps, rounded", maps if each < wide and float32 and not share else 0, each)
            self.add("attention maps: dropout's mask and result", 2 * maps if share else 0, each)
            mask = 0
        self.add("causal mask", mask, 1)

    def network(self, row: TransformerConfig, rows: int, flows: bool) -> None:
        """The activation and what it is multiplied with, and the input of the last map."""
        if not flows:
            return
        numbers, each = rows * row.size_of_mlp, self.computed
        inner = {"relu": 0, "gelu_bloom": 6}.get(row.activation, 1)
        if self.plan.library == "transformers":
            inner = {"gelu_tanh": 4, "relu": 0}.get(row.activation, 1)
        self.add("activation: input and intermediate results", inner * numbers, each)
        trained = bool(self.adapted(["down"]))
        if row.gated:
            self.add("activation: result", numbers, each)
            self.add("gated map", numbers, each)
        elif row.activation == "relu":
            self.add("activation: result", numbers, each)
        within = row.positions == "t5" and self.plan.library == "transformers"
        self.dropped("network", numbers, row.dropout if within else 0, each)
        shared = row.activation == "relu" and not row.gated and not (within and (row.dropout or self.autocast))
        self.read(
            "input of the last map", {"down": (row.width, row.size_of_mlp)}, rows, True, kept=shared or not trained
        )

    def block(self, name: str, row: TransformerConfig, rows: int, tokens: int, source: int, flows: bool) -> bool:
        """One block; returns whether its result has a gradient."""
        residual = self.stored if self.autocast else self.computed
        maps = {part: (out, into) for part, (out, into, _) in _maps(row).items()}
        network: dict[str, tuple[int, int]] = {part: maps[part] for part in ("gate", "up") if part in maps}
        pre = row.norm_place == "pre"

        def branch(kind: str, keys: int, own: bool, before: bool) -> bool:
            if pre:
                self.norm(f"{kind} norm", row, rows, before)
            reading = {part: maps[part] for part in ("query", "key", "value")}
            if own:
                read = self.read(f"{kind} norm: result", reading | (network if row.parallel else {}), rows, before)
                after = before or bool(self.adapted(reading)) if row.parallel else read
            else:
                after = self.read(f"{kind} norm: result", {"query": maps["query"]}, rows, before)
                both = {part: maps[part] for part in ("key", "value")}
                after |= self.read(
                    "encoder's states", both, rows // tokens * keys, self.context, kept=not self.autocast
                )
            if after:
                self.attention(row, rows, tokens, keys, own)
            fused = self.fused(row, own) and not (own and row.positions == "rotary" and self.plan.library == "course")
            after = self.read("attention's merged heads", {"output": maps["output"]}, rows, after, kept=fused)
            if not row.parallel:
                self.dropped(kind, rows * row.width, row.dropout, self.computed, after)
            if not pre:
                self.norm(f"{kind} norm", row, rows, before or after)
            return before or after

        before, flows = flows, branch("attention", tokens, True, flows)
        if source:
            flows = branch("cross-attention", source, False, flows)
        if row.size_of_mlp:
            if pre and not row.parallel:
                self.norm("network norm", row, rows, flows)
            if not row.parallel:
                flows = self.read("network norm: result", network, rows, flows)
            inside = before or bool(self.adapted(network)) if row.parallel else flows
            self.network(row, rows, inside)
            self.dropped("network", rows * row.width, row.dropout, self.computed, flows)
            flows = flows or bool(self.adapted(["down"]))
            if not pre:
                self.norm("network norm", row, rows, flows, residual)
        return flows

    def stack(self, name: str, row: TransformerConfig, depth: int, rows: int, tokens: int, source: int) -> None:
        """An encoder or a decoder."""
        plan, each = self.plan, self.stored if self.autocast else self.computed
        self.where, self.copies = f"{name}'s embeddings", 1
        if self.full:
            self.add("token numbers", rows * (1 + bool(self.config.segments)), 8)
            if row.positions == "t5":
                self.add("distances", tokens * tokens, 8)
            if row.embedding_norm:
                self.norm("embeddings' norm", row, rows, True)
            self.dropped("embeddings", rows * row.width, row.dropout, each)
        if row.positions == "rotary":
            self.add(
                "cosines and sines", tokens * row.turning_size * (2 if plan.library == "transformers" else 1), each
            )
        flows = self.full
        if plan.checkpointing:
            self.where, self.copies = f"{name}'s blocks", depth
            self.add("input of the block", rows * row.width, each)
            self.copies = 1
            bias = {"t5": tokens, "alibi": 1}.get(row.positions, 0)
            self.add("bias of the scores", row.heads * tokens * bias, each)
            flows = self.full or bool(plan.targets)
        else:
            for number in range(1 if self.full else min(depth, 2)):
                self.where = f"{name}'s blocks" if self.full or number else f"{name}'s first block"
                self.copies = depth if self.full else depth - 1 if number else 1
                flows = self.block(name, row, rows, tokens, source, flows)
        self.where, self.copies = name, 1
        if row.ends_with_norm:
            self.norm("final norm", row, rows, flows)
        if name == "encoder":
            self.context = flows
        cast = self.autocast or not (self.full or BYTES[plan.adapters] == self.stored)
        if name == "encoder" and self.config.kind == "encoder-decoder" and not cast and self.adapted(["key", "value"]):
            self.add("states that the decoder reads", rows * row.width, self.stored)

    def head(self, rows: int) -> None:
        """What scores the vocabulary."""
        row, each = self.config, self.computed
        self.where, self.copies = "head", 1
        if not row.head:
            return
        flat = rows * row.width
        if row.head_transform:
            self.add("final states", flat if self.full else 0, each)
            if self.autocast:
                self.add("weights in half precision", row.width * row.width, each)
            self.add("activation's input", flat, each)
            self.norm("norm", row, rows, True, each)
        if self.autocast:
            self.add("weights in half precision", row.vocabulary_size * row.width, each)
        self.add("states that are scored", flat if self.full else 0, each)


def _block_backward(config: TransformerConfig, plan: Plan) -> int:
    """Bytes that one block holds on top in its backward pass: its activations again if checkpointed, and gradients."""
    largest = 0.0
    for name, row, _, cross in _stacks(config):
        length = _source(plan) if name == "encoder" and config.kind == "encoder-decoder" else plan.tokens
        rows = plan.batch * length
        again = 0
        if plan.checkpointing:
            ledger = _Ledger(config, dataclasses.replace(plan, checkpointing=False))
            ledger.block(name, row, rows, length, _source(plan) if cross else 0, True)
            again = sum(item.bytes for item in ledger.items)
        each = BYTES[_computed(plan)]
        network = rows * row.size_of_mlp * (3 if row.gated else 2) * each
        maps = 0.0 if plan.fused else 2 * rows * length * row.heads * max(each, 4)
        largest = max(largest, again + max(network, maps) + rows * row.width * each)
        if plan.method == "qlora":  # a map's weights come out of NF4 when they are used
            largest += max(out * into for out, into, _ in _maps(row).values()) * each
    return int(largest)


def _forward_bytes(config: TransformerConfig, plan: Plan) -> int:
    """Bytes that one pass without gradients holds for a moment: the widest place of a block, or the last logits."""
    each, largest = BYTES[_computed(plan)], 0.0
    written_out = "gelu_tanh" if plan.library == "transformers" else "gelu_bloom"
    for name, row, _, _ in _stacks(config):
        length = _source(plan) if name == "encoder" and config.kind == "encoder-decoder" else plan.tokens
        rows = plan.batch * length
        vectors = 4 if row.activation == written_out else 3 if row.gated else 2
        maps = 0.0 if plan.fused else 2 * rows * length * row.heads * max(each, 4)
        largest = max(largest, max(rows * row.size_of_mlp * vectors * each, maps) + 2 * rows * row.width * each)
    logits = plan.batch * config.vocabulary_size * (each + 4) if config.head else 0
    return int(max(largest, logits))


# --- what really exists


@dataclass(frozen=True)
class Measured:
    """Bytes that were counted, part by part; the same parts as in :class:`Needs`, without ``temporary``.

    Attributes:
        weights: storages of the parameters.
        gradients: storages of their gradients after a backward pass.
        optimizer: storages of the optimizer's states after a step.
        activations: what a forward pass leaves allocated as long as its result can be differentiated.
        cache: storages of the keys and values.
        peak: the most that was allocated at one time during a step, weights and states included.
    """

    weights: int
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    cache: int = 0
    peak: int = 0


class Allocations:
    """Counts what is allocated and freed inside a ``with`` statement.

    On the CPU each operation's result is looked at as it is made, and again when it is freed; memory that a kernel
    takes and gives back within one operation is not seen. On CUDA the allocator's own counters are read, which see it
    (``torch.cuda.memory_allocated`` and ``max_memory_allocated``).

    Args:
        device: where to count.

    Attributes:
        held: bytes that are allocated now and were not at the beginning; after the end, those at the end.
        peak: the largest value that ``held`` had.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.held = self.peak = 0
        self._begin, self._mode = 0, _Watch(self)

    def __enter__(self) -> "Allocations":
        """Begin."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._begin = torch.cuda.memory_allocated(self.device)
        else:
            self._mode.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        """End; what is freed from here on is not counted any more."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.held = torch.cuda.memory_allocated(self.device) - self._begin
            self.peak = torch.cuda.max_memory_allocated(self.device) - self._begin
        else:
            self._mode.__exit__(*problem)
            self._mode.storages.clear()


class _Watch(TorchDispatchMode):
    """Sees every operation."""

    def __init__(self, counts: Allocations):
        super().__init__()
        self.counts = counts
        self.storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; count storages that come out of it and did not go in."""
        kwargs = kwargs or {}
        for given in tree_leaves((args, kwargs)):
            self.note(given, counted=False)
        result = func(*args, **kwargs)
        for made in tree_leaves(result):
            self.note(made, counted=True)
        return result

    def note(self, value: Any, counted: bool) -> None:
        if not isinstance(value, Tensor) or value.device.type != self.counts.device.type:
            return
        storage = value.untyped_storage()
        key, amount = storage._cdata, storage.nbytes() if counted else 0
        if key in self.storages:
            return
        storages, counts = self.storages, self.counts

        def freed(_reference: Any) -> None:
            if storages.pop(key, None) is not None:
                counts.held -= amount

        storages[key] = weakref.ref(storage, freed)
        counts.held += amount
        counts.peak = max(counts.peak, counts.held)


def bytes_of(*things: Any) -> int:
    """Return the bytes of all tensors in these things, each storage counted once.

    Args:
        *things: tensors, modules (their parameters), optimizers (their states), and lists, dictionaries or objects that
            hold such, for example a cache.
    """
    found: dict[int, int] = {}
    seen: set[int] = set()
    waiting = list(things)
    while waiting:
        thing = waiting.pop()
        if thing is None or isinstance(thing, (str, int, float, bool, torch.dtype, torch.device)) or id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            storage = thing.untyped_storage()
            found[storage._cdata] = storage.nbytes()
        elif isinstance(thing, nn.Module):
            waiting += thing.parameters()
        elif isinstance(thing, torch.optim.Optimizer):
            waiting += thing.state.values()
        elif isinstance(thing, Mapping):
            waiting += thing.values()
        elif isinstance(thing, (list, tuple)):
            waiting += thing
        elif hasattr(thing, "__dict__"):
            waiting += vars(thing).values()
    return sum(found.values())


@contextlib.contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Gradient checkpointing for a while: each block keeps its input alone, and is computed again when needed.

    Args:
        model: our Transformer, or a model of ``transformers`` (which has the switch itself).
    """
    for name in ("activation", "gradient"):  # the newer and the older name in transformers
        switch: Any = getattr(model, f"{name}_checkpointing_enable", None)
        if switch is not None:
            switch(**{f"{name}_checkpointing_kwargs": {"use_reentrant": False}})
            try:
                yield
            finally:
                getattr(model, f"{name}_checkpointing_disable")()
            return
    blocks: list[Any] = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def measure_training(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    optimizer: str = "adam",
    loss: Callable[[nn.Module, Any], Any] = language_model_loss,
    dtype: torch.dtype | None = None,
    checkpointing: bool = False,
) -> Measured:
    """Take two training steps and count what exists: after the first one the parts, during the second one the peak.

    The model's weights change. Gradients are freed after a step, as in :func:`course_utils.training.fit`.

    Args:
        model: the model, on the CPU or on CUDA; its mode (training) and its frozen weights stay as they are.
        batch: fields of the model's forward pass and ``labels``, on the same device.
        optimizer: ``sgd``, ``momentum``, ``adam`` or ``adafactor``, of ``torch.optim``.
        loss: as in :func:`course_utils.training.fit`.
        dtype: ``torch.bfloat16`` or ``torch.float16`` for autocast.
        checkpointing: see :func:`checkpointed`.

    Raises:
        ValueError: there is no such optimizer here, or nothing to train.
    """
    device = next(model.parameters()).device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("the model has no parameter that requires a gradient: there is nothing to train")
    stepper = _optimizer(optimizer, trained)
    inputs = {name: value for name, value in batch.items() if name != "labels"}

    def autocast() -> Any:
        return torch.autocast(device.type, dtype) if dtype is not None else contextlib.nullcontext()

    def backward() -> None:
        with autocast():
            result = loss(model, batch)
            total = result[0] / result[1] if isinstance(result, tuple) else result
            del result
        total.backward()

    with checkpointed(model) if checkpointing else contextlib.nullcontext():
        backward()
        stepper.step()
        gradients = bytes_of([parameter.grad for parameter in trained])
        stepper.zero_grad()
        with Allocations(device) as forward, autocast():
            graph = _scores(model(**inputs)).grad_fn
        del graph
        with Allocations(device) as step:
            backward()
            stepper.step()
            stepper.zero_grad()
    held = bytes_of(model), bytes_of(stepper)
    return Measured(held[0], gradients, held[1], forward.held, 0, sum(held) + step.peak)


def measure_generation(model: nn.Module, batch: Mapping[str, Any]) -> Measured:
    """Read a batch with a cache, and count the cache's keys and values and the peak.

    Args:
        model: the model, on the CPU or on CUDA.
        batch: fields of the model's forward pass, on the same device.
    """
    device = next(model.parameters()).device
    weights = bytes_of(model)
    last = "logits_to_keep" in inspect.signature(model.forward).parameters
    with torch.no_grad(), Allocations(device) as forward:
        output: Any = model(**batch, use_cache=True, **({"logits_to_keep": 1} if last else {}))
    cache = getattr(output, "cache", None)
    layers = cache.layers if cache is not None else output.past_key_values
    return Measured(weights, cache=bytes_of(layers), peak=weights + forward.peak)


def compare(predicted: Needs, measured: Measured) -> list[tuple[str, int, int, float]]:
    """Return a row for each part that was measured: name, predicted bytes, measured bytes, relative deviation.

    Args:
        predicted: from :func:`needs`.
        measured: from :func:`measure_training` or :func:`measure_generation`.
    """
    rows = []
    for item in dataclasses.fields(measured):
        ours, theirs = getattr(predicted, item.name), getattr(measured, item.name)
        if ours or theirs:
            rows.append((item.name, ours, theirs, ours / theirs - 1 if theirs else math.inf))
    return rows


def _optimizer(name: str, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    fused = trained[0].device.type in ("cpu", "cuda")
    makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(trained, lr=1e-3),
        "momentum": lambda: torch.optim.SGD(trained, lr=1e-3, momentum=0.9),
        "adam": lambda: torch.optim.AdamW(trained, lr=1e-3, fused=fused),
        "adafactor": lambda: torch.optim.Adafactor(trained, lr=1e-3),
    }
    if name not in makers:
        raise ValueError(f"optimizer={name!r}: torch has {', '.join(makers)}; 8-bit Adam needs bitsandbytes")
    return makers[name]()


def _scores(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits
