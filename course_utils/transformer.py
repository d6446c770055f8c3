"""One Transformer for all families: encoder, decoder or both, every difference between them a switch.

The architecture is that of Vaswani et al. (2017); the switches are what BERT, RoBERTa, GPT-2, LLaMA, T5, BART, BLOOM
and PaLM changed in it. Attention is :class:`course_utils.attention.MultiHeadAttention`.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from course_utils.attention import KeyValueCache, MultiHeadAttention
from course_utils.positions import (
    LearnedPositions,
    RelativeBias,
    Rotary,
    SinusoidalPositions,
    alibi_bias,
    apply_rotary,
)

KINDS = ("encoder", "decoder", "encoder-decoder")
POSITIONS = ("sinusoidal", "learned", "rotary", "alibi", "t5", "none")
NORMS = ("layernorm", "rmsnorm")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda states: F.gelu(states, approximate="tanh"),
    "gelu_bloom": lambda states: states * 0.5 * (1 + torch.tanh(0.79788456 * states * (1 + 0.044715 * states**2))),
    "silu": F.silu,
}


@dataclass(frozen=True)
class TransformerConfig:
    """The row of switches that makes a family. ``dataclasses.replace(config, layers=6)`` changes one of them.

    Attributes:
        vocabulary_size: number of different tokens.
        kind: ``encoder`` (each token sees all), ``decoder`` (each sees those before it) or ``encoder-decoder``.
        width: size of the vector that stands for a token.
        layers: number of blocks; in an encoder-decoder those of the encoder.
        decoder_layers: blocks of the decoder of an encoder-decoder; by default ``layers``.
        heads: number of attention heads.
        decoder_heads: those of the decoder of an encoder-decoder; by default ``heads``.
        key_value_heads: number of key/value heads, a divisor of ``heads``; by default ``heads``.
        head_size: width of one head; by default ``width / heads``.
        mlp_width: hidden width of the feed-forward network; by default ``4 * width``. With 0 there is none: each block
            is attention alone (Elhage et al. 2021).
        decoder_mlp_width: that of the decoder of an encoder-decoder; by default ``mlp_width``.
        context_window: largest number of tokens; None where the positions set no limit.
        positions: ``sinusoidal``, ``learned``, ``rotary``, ``alibi``, ``t5`` or ``none``.
        position_offset: unused rows at the beginning of the learned table (RoBERTa, BART: 2).
        padding_id: tokens with this id have no position, and the others are counted without them (RoBERTa); by default
            all places count (GPT-2, BERT).
        rotary_base: base of the rotary angles.
        rotary_size: how many dimensions of a head turn; by default all.
        relative_buckets: number of T5's buckets.
        relative_max_distance: distance from which on T5's last bucket holds all.
        norm: ``layernorm`` or ``rmsnorm``.
        norm_place: ``pre`` (inside the residual branch) or ``post`` (after the sum, as in 2017).
        norm_eps: small number under the root.
        norm_bias: whether LayerNorms have a bias.
        float32_norm: round what RMSNorm normalised to float32 whatever the dtype, as LLaMA's published code does and
            T5's does not.
        embedding_norm: normalise the embeddings (BERT, BART, BLOOM).
        final_norm: normalise after the last block; by default where ``norm_place`` is ``pre``.
        parallel: attention and feed-forward network read the same normalised input (PaLM), instead of one after the
            other.
        activation: ``relu``, ``gelu``, ``gelu_tanh``, ``gelu_bloom`` (the same with BLOOM's rounded constant) or
            ``silu``.
        gated: multiply the activation by a second linear map (with ``silu``: SwiGLU).
        attention_bias: biases of query, key and value.
        attention_output_bias: bias of the attention's output map; by default as ``attention_bias``.
        mlp_bias: biases of the feed-forward network.
        attention_scale: divide the scores by the root of the head size (T5 does not).
        float32_softmax: softmax in float32 whatever the dtype, as in LLaMA's published code.
        segments: number of segment (token type) embeddings; 0 for none.
        scaled_embeddings: multiply the embeddings by the root of the width (2017).
        scaled_logits: divide the final states by the root of the width before the head (T5 v1.0).
        head: whether there are logits at all.
        head_bias: bias of the logits.
        head_transform: dense map, activation and norm before the logits (BERT's masked-token head).
        head_activation: activation of that head; by default ``activation``.
        tied_embeddings: the logits use the embeddings' weights.
        shared_embeddings: encoder and decoder of an encoder-decoder use the same embeddings.
        dropout: share of the embeddings' and the residual branches' values set to 0 in training.
        attention_dropout: share of the attention weights set to 0 in training.

    Raises:
        ValueError: a value is out of range, or two of them contradict each other; the message says which and why.
    """

    vocabulary_size: int
    kind: str = "decoder"
    width: int = 128
    layers: int = 4
    decoder_layers: int | None = None
    heads: int = 4
    decoder_heads: int | None = None
    key_value_heads: int | None = None
    head_size: int | None = None
    mlp_width: int | None = None
    decoder_mlp_width: int | None = None
    context_window: int | None = None
    positions: str = "sinusoidal"
    position_offset: int = 0
    padding_id: int | None = None
    rotary_base: float = 10000.0
    rotary_size: int | None = None
    relative_buckets: int = 32
    relative_max_distance: int = 128
    norm: str = "layernorm"
    norm_place: str = "pre"
    norm_eps: float = 1e-5
    norm_bias: bool = True
    float32_norm: bool = True
    embedding_norm: bool = False
    final_norm: bool | None = None
    parallel: bool = False
    activation: str = "gelu"
    gated: bool = False
    attention_bias: bool = True
    attention_output_bias: bool | None = None
    mlp_bias: bool = True
    attention_scale: bool = True
    float32_softmax: bool = False
    segments: int = 0
    scaled_embeddings: bool = False
    scaled_logits: bool = False
    head: bool = True
    head_bias: bool = False
    head_transform: bool = False
    head_activation: str | None = None
    tied_embeddings: bool = True
    shared_embeddings: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        for name, allowed in (
            ("kind", KINDS),
            ("positions", POSITIONS),
            ("norm", NORMS),
            ("norm_place", ("pre", "post")),
            ("activation", tuple(ACTIVATIONS)),
            ("head_activation", (None, *ACTIVATIONS)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(map(str, allowed))}")
        for name in ("vocabulary_size", "width", "layers", "heads", "relative_buckets", "relative_max_distance"):
            _whole(name, getattr(self, name), 1)
        for name in (
            "decoder_layers",
            "decoder_heads",
            "key_value_heads",
            "head_size",
            "context_window",
            "rotary_size",
        ):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        _whole("mlp_width", self.size_of_mlp, 0)
        for name in ("decoder_mlp_width", "padding_id"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 0)
        _whole("position_offset", self.position_offset, 0)
        _whole("segments", self.segments, 0)
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a share from 0 to below 1")
        for name in ("norm_eps", "rotary_base"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a positive number")
        self._check_heads()
        self._check_positions()
        for name in ("decoder_layers", "decoder_heads", "decoder_mlp_width"):
            if self.kind != "encoder-decoder" and getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)} with kind={self.kind!r}: only an encoder-decoder has two sizes; "
                    f"set {name.removeprefix('decoder_')} alone"
                )
        if self.kind != "encoder-decoder" and not self.shared_embeddings:
            raise ValueError(f"shared_embeddings=False with kind={self.kind!r}: only an encoder-decoder has two")
        if self.kind == "encoder-decoder":
            self.of_decoder._check_heads()
        if self.parallel and (self.norm_place == "post" or self.kind == "encoder-decoder"):
            raise ValueError(
                "parallel=True: attention and feed-forward network share one normalised input, which needs "
                "norm_place='pre' and leaves no place for cross-attention (kind 'encoder' or 'decoder')"
            )
        if self.mlp_width == 0 and (self.parallel or self.gated):
            raise ValueError(
                f"{'parallel' if self.parallel else 'gated'}=True with mlp_width=0: there is no feed-forward network; "
                "set one of the two"
            )
        if not self.head:
            for name in ("head_bias", "head_transform", "scaled_logits"):
                if getattr(self, name):
                    raise ValueError(f"{name}=True with head=False: there are no logits; set one of the two")

    def _check_heads(self) -> None:
        if self.head_size is None and self.width % self.heads:
            raise ValueError(
                f"width={self.width} is no multiple of heads={self.heads}: change one of them, or give head_size"
            )
        if self.heads % self.groups:
            raise ValueError(
                f"key_value_heads={self.groups} does not divide heads={self.heads}: each key/value head serves the "
                "same number of heads"
            )

    def _check_positions(self) -> None:
        if self.positions == "learned" and self.context_window is None:
            raise ValueError("positions='learned' needs context_window: each position up to it has its own vector")
        if self.positions != "learned" and self.position_offset:
            raise ValueError(f"position_offset={self.position_offset}: only learned positions have a table to offset")
        if self.padding_id is not None and (self.position_offset < 1 or self.kind != "encoder"):
            raise ValueError(
                f"padding_id={self.padding_id}: tokens without a position need the learned positions of an encoder, "
                "with position_offset=1 or more for the row that they read"
            )
        turning = self.turning_size
        if self.positions == "rotary" and (turning % 2 or turning > self.size_of_head):
            raise ValueError(
                f"positions='rotary' turns {turning} of the {self.size_of_head} dimensions of a head: the number must "
                "be even and at most the head size; set rotary_size or head_size"
            )
        if self.positions != "rotary" and self.rotary_size is not None:
            raise ValueError(f"rotary_size={self.rotary_size} needs positions='rotary', not {self.positions!r}")
        if self.positions == "t5":
            directions = 1 if self.kind == "decoder" else 2
            exact = self.relative_buckets // directions // 2
            if exact < 1 or self.relative_buckets % directions or self.relative_max_distance <= exact:
                raise ValueError(
                    f"relative_buckets={self.relative_buckets}, relative_max_distance={self.relative_max_distance}: "
                    f"expected {2 * directions} buckets or more, an even number, and a larger distance than the "
                    f"{exact} with a bucket of their own"
                )

    @property
    def of_decoder(self) -> "TransformerConfig":
        """The configuration of a decoder like that of this encoder-decoder."""
        sizes = dict(heads=self.decoder_heads, mlp_width=self.decoder_mlp_width)
        own: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
        nothing: dict[str, Any] = dict(decoder_layers=None, decoder_heads=None, decoder_mlp_width=None)
        return dataclasses.replace(self, kind="decoder", shared_embeddings=True, **nothing, **own)

    @property
    def size_of_head(self) -> int:
        """Width of one head."""
        return self.width // self.heads if self.head_size is None else self.head_size

    @property
    def groups(self) -> int:
        """Number of key/value heads."""
        return self.heads if self.key_value_heads is None else self.key_value_heads

    @property
    def size_of_mlp(self) -> int:
        """Hidden width of the feed-forward network."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width

    @property
    def turning_size(self) -> int:
        """Number of dimensions of a head that rotary positions turn."""
        return self.size_of_head if self.rotary_size is None else self.rotary_size

    @property
    def ends_with_norm(self) -> bool:
        """Whether a norm follows the last block."""
        return self.norm_place == "pre" if self.final_norm is None else self.final_norm

    def describe(self) -> list[tuple[str, str]]:
        """Return the switches that differ from their defaults, as rows (switch, value) for a table."""
        return [
            (item.name, str(getattr(self, item.name)))
            for item in dataclasses.fields(self)
            if item.default is dataclasses.MISSING or getattr(self, item.name) != item.default
        ]


@dataclass
class LayerCache:
    """What one decoder block keeps between steps: its own keys and values, and those of the encoder's output."""

    own: KeyValueCache = field(default_factory=KeyValueCache)
    cross: KeyValueCache = field(default_factory=KeyValueCache)


@dataclass
class Cache:
    """What a model keeps between steps of generation.

    Attributes:
        layers: one entry for each block of the decoder.
        encoder_output: the encoder's last states, (batch, source tokens, width), in an encoder-decoder.
        encoder_mask: which source tokens are real, (batch, source tokens), or None for all.
    """

    layers: list[LayerCache]
    encoder_output: Tensor | None = None
    encoder_mask: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of tokens held."""
        return self.layers[0].own.length

    def reorder(self, rows: Int[Tensor, "new_batch"]) -> None:
        """Put the batch into a new order; rows may repeat or be left out (beam search).

        Args:
            rows: for each new row, the number of the old row that it continues.
        """
        for layer in self.layers:
            layer.own.reorder(rows)
            layer.cross.reorder(rows)
        if self.encoder_output is not None:
            self.encoder_output = self.encoder_output[rows]
        if self.encoder_mask is not None:
            self.encoder_mask = self.encoder_mask[rows]


@dataclass
class ModelOutput:
    """What a forward pass returns, under the names that ``transformers`` uses; what was not asked for is None.

    Attributes:
        logits: scores of the next (or masked) token, (batch, tokens, vocabulary).
        last_hidden_state: states behind the last block and the final norm, (batch, tokens, width).
        hidden_states: the embeddings and the states behind each block (the last one behind the final norm).
        attentions: maps of each block, (batch, heads, queries, keys); of an encoder or decoder alone.
        encoder_hidden_states: as ``hidden_states``, of the encoder of an encoder-decoder.
        encoder_attentions: as ``attentions``, of that encoder.
        encoder_last_hidden_state: that encoder's last states.
        decoder_hidden_states: as ``hidden_states``, of the decoder of an encoder-decoder.
        decoder_attentions: maps of that decoder's self-attention.
        cross_attentions: maps from that decoder's tokens (queries) to the encoder's (keys).
        cache: what the next step needs: a :class:`Cache`, or the state of a recurrent model.
    """

    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    cache: Any = None


class RMSNorm(nn.Module):
    """Divide each vector by its root mean square (Zhang and Sennrich, 2019), which is taken in float32 as published.

    Args:
        width: size of the vectors.
        eps: small number under the root.
        float32: round the normalised vector to float32 too (LLaMA), instead of dividing in the input's dtype (T5).
    """

    def __init__(self, width: int, eps: float = 1e-6, float32: bool = True):
        super().__init__()
        self.weight, self.eps, self.float32 = nn.Parameter(torch.ones(width)), eps, float32

    def forward(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Return the normalised vectors, times the weight.

        Args:
            hidden: the vectors.
        """
        wide = hidden.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        normal = (wide if self.float32 else hidden) * scale
        return self.weight * normal.to(hidden.dtype)


def layer_norm(
    hidden: Float[Tensor, "*batch width"],
    weight: Float[Tensor, "width"],
    bias: Float[Tensor, "width"],
    eps: float = 1e-5,
) -> Float[Tensor, "*batch width"]:
    """Give each vector the mean 0 and the spread 1, then stretch and shift it (Ba, Kiros and Hinton 2016).

    Written out for reading; the model runs torch's ``nn.LayerNorm``, which computes the same.

    Args:
        hidden: the vectors; each one is normalised by itself.
        weight: factor of each column.
        bias: added to each column.
        eps: small number under the root, so that a constant vector does not divide by 0.
    """
    centred = hidden - hidden.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * weight + bias


def residual(
    hidden: Float[Tensor, "*batch width"],
    branch: Callable[[Tensor], Tensor],
    norm: Callable[[Tensor], Tensor],
    place: str = "post",
) -> Float[Tensor, "*batch width"]:
    """Add a branch to what goes by it, and normalise after the sum or inside the branch.

    ``post`` is the layout of Vaswani et al. (2017), section 3.1, ``pre`` that of GPT-2 and nearly all since (Xiong et
    al. 2020).

    Args:
        hidden: the vectors that come in.
        branch: attention or feed-forward network: vectors to vectors of the same shape.
        norm: the normalisation.
        place: ``pre`` or ``post``.
    """
    if place == "pre":
        return hidden + branch(norm(hidden))
    return norm(hidden + branch(hidden))


def make_norm(config: TransformerConfig) -> nn.Module:
    """Return a new norm of the kind that the configuration asks for.

    Args:
        config: the configuration.
    """
    if config.norm == "rmsnorm":
        return RMSNorm(config.width, config.norm_eps, config.float32_norm)
    return nn.LayerNorm(config.width, config.norm_eps, bias=config.norm_bias)


class FeedForward(nn.Module):
    """The network that each token passes alone: out, activation, back in (Vaswani et al. 2017, section 3.3).

    With ``gated`` the activation is multiplied by a second map (Shazeer 2020), as in LLaMA, PaLM and T5 v1.1.

    Args:
        config: the configuration.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = nn.Linear(config.width, config.size_of_mlp, bias=config.mlp_bias)
        self.gate = nn.Linear(config.width, config.size_of_mlp, bias=config.mlp_bias) if config.gated else None
        self.down = nn.Linear(config.size_of_mlp, config.width, bias=config.mlp_bias)

    def forward(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Return what is to be added to each token.

        Args:
            hidden: the tokens' vectors.
        """
        if self.gate is None:
            return self.down(self.activation(self.up(hidden)))
        return self.down(self.activation(self.gate(hidden)) * self.up(hidden))


class Block(nn.Module):
    """One layer: attention, cross-attention where there is an encoder to read, and the feed-forward network (if any).

    Each is a residual branch: its result is *added* to what came in (Vaswani et al. 2017, section 3.1).

    Args:
        config: the configuration.
        causal: hide later tokens from earlier ones.
        cross: whether there is an encoder to read.
    """

    def __init__(self, config: TransformerConfig, causal: bool, cross: bool):
        super().__init__()

        def attention() -> MultiHeadAttention:
            return MultiHeadAttention(
                config.width,
                config.heads,
                key_value_heads=config.key_value_heads,
                head_size=config.head_size,
                bias=config.attention_bias,
                output_bias=config.attention_output_bias,
                dropout=config.attention_dropout,
                scale=None if config.attention_scale else 1.0,
                float32_softmax=config.float32_softmax,
            )

        self.causal, self.pre, self.parallel = causal, config.norm_place == "pre", config.parallel
        self.attention_norm, self.attention = make_norm(config), attention()
        self.cross_norm = make_norm(config) if cross else None
        self.cross_attention = attention() if cross else None
        self.feed_forward_norm = make_norm(config) if config.size_of_mlp and not config.parallel else None
        self.feed_forward = FeedForward(config) if config.size_of_mlp else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden: Float[Tensor, "batch tokens width"],
        context: Float[Tensor, "batch source width"] | None = None,
        *,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        bias: Tensor | None = None,
        rotary: Callable[[Tensor, Tensor], Tensor] | None = None,
        cache: LayerCache | None = None,
        return_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch tokens width"], Tensor | None, Tensor | None]:
        """Return the tokens' new states, the map of self-attention and that of cross-attention (None if not asked).

        Args:
            hidden: the tokens' states.
            context: the encoder's output, for cross-attention.
            mask: keys that may be seen, broadcastable to (batch, heads, queries, keys).
            context_mask: the same for the encoder's tokens.
            bias: added to the scores of self-attention (ALiBi, T5).
            rotary: turns queries and keys by their positions.
            cache: what earlier steps kept.
            return_weights: whether to return the maps.
        """

        def attend(states: Tensor) -> tuple[Tensor, Tensor | None]:
            return self.attention(
                states,
                mask=mask,
                causal=self.causal,
                bias=bias,
                rotary=rotary,
                cache=cache and cache.own,
                return_weights=return_weights,
            )

        if self.parallel and self.feed_forward is not None:
            states = self.attention_norm(hidden)
            attended, weights = attend(states)
            return hidden + self.dropout(attended + self.feed_forward(states)), weights, None
        attended, weights = attend(self.attention_norm(hidden) if self.pre else hidden)
        hidden = hidden + self.dropout(attended)
        hidden = hidden if self.pre else self.attention_norm(hidden)
        cross_weights = None
        if self.cross_attention is not None and self.cross_norm is not None:
            attended, cross_weights = self.cross_attention(
                self.cross_norm(hidden) if self.pre else hidden,
                context,
                mask=context_mask,
                cache=cache and cache.cross,
                return_weights=return_weights,
            )
            hidden = hidden + self.dropout(attended)
            hidden = hidden if self.pre else self.cross_norm(hidden)
        norm = self.feed_forward_norm
        if norm is None or self.feed_forward is None:
            return hidden, weights, cross_weights
        hidden = hidden + self.dropout(self.feed_forward(norm(hidden) if self.pre else hidden))
        return hidden if self.pre else norm(hidden), weights, cross_weights


class Stack(nn.Module):
    """Positions, blocks and final norm: an encoder, or a decoder.

    Args:
        config: the configuration.
        layers: number of blocks.
        causal: hide later tokens from earlier ones (decoder).
        cross: whether there is an encoder to read.
    """

    def __init__(self, config: TransformerConfig, layers: int, causal: bool, cross: bool):
        super().__init__()
        self.config, self.causal = config, causal
        self.positions: nn.Module | None = None
        if config.positions == "learned":
            assert config.context_window is not None  # the configuration refuses it
            self.positions = LearnedPositions(config.context_window, config.width, config.position_offset)
        elif config.positions == "sinusoidal":
            self.positions = SinusoidalPositions(config.width)
        self.rotary = Rotary(config.turning_size, config.rotary_base) if config.positions == "rotary" else None
        self.relative_bias: RelativeBias | None = None
        if config.positions == "t5":
            self.relative_bias = RelativeBias(
                config.heads, config.relative_buckets, config.relative_max_distance, bidirectional=not causal
            )
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config, causal, cross) for _ in range(layers))
        self.final_norm = make_norm(config) if config.ends_with_norm else None

    def forward(
        self,
        embeddings: Float[Tensor, "batch tokens width"],
        attention_mask: Bool[Tensor, "batch keys"] | None = None,
        context: Float[Tensor, "batch source width"] | None = None,
        context_mask: Bool[Tensor, "batch source"] | None = None,
        *,
        position_ids: Int[Tensor, "*batch_or_not tokens"] | None = None,
        cache: list[LayerCache] | None = None,
        return_attentions: bool = False,
        return_hidden_states: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """Return the last states, and, where asked, all states, the maps and the cross-attention maps.

        Args:
            embeddings: the tokens' embeddings, without positions.
            attention_mask: True for the real ones of all tokens, cached and new.
            context: the encoder's output.
            context_mask: True for its real tokens.
            position_ids: positions of the new tokens; by default they go on from the cache.
            cache: what each block kept from earlier steps.
            return_attentions: return the maps (computed explicitly; else torch's fused kernel runs).
            return_hidden_states: return the embeddings and the states behind each block.
        """
        past = cache[0].own.length if cache else 0
        total = past + embeddings.shape[1]
        position_ids = self._position_ids(position_ids, past, total, embeddings.device)
        hidden = embeddings if self.positions is None else embeddings + self.positions(position_ids)
        if self.embedding_norm is not None:
            hidden = self.embedding_norm(hidden)
        hidden = self.dropout(hidden)
        mask = None if attention_mask is None else attention_mask[:, None, None, :]
        context_mask = None if context_mask is None else context_mask[:, None, None, :]
        bias = self._bias(attention_mask, past, total, hidden)
        rotary = self._rotation(position_ids, hidden.dtype)
        states, maps, cross_maps = [hidden], [], []
        for number, layer in enumerate(self.layers):
            hidden, weights, cross_weights = layer(
                hidden,
                context,
                mask=mask,
                context_mask=context_mask,
                bias=bias,
                rotary=rotary,
                cache=cache[number] if cache else None,
                return_weights=return_attentions,
            )
            states.append(hidden)
            maps.append(weights)
            cross_maps.append(cross_weights)
        if self.final_norm is not None:
            hidden = states[-1] = self.final_norm(hidden)
        return (
            hidden,
            tuple(states) if return_hidden_states else None,
            tuple(maps) if return_attentions else None,
            tuple(cross_maps) if return_attentions and context is not None else None,
        )

    def _position_ids(self, given: Tensor | None, past: int, total: int, device: torch.device) -> Tensor:
        """Return the positions of the new tokens, inside the context window."""
        longest = total if given is None else int(given.max()) + 1 if given.numel() else 0
        window = self.config.context_window
        if window is not None and longest > window:
            raise ValueError(
                f"{longest} tokens do not fit into the context window of {window}: shorten the input, or build the "
                "model with a larger context_window"
            )
        return torch.arange(past, total, device=device) if given is None else given

    def _bias(self, mask: Tensor | None, past: int, total: int, hidden: Tensor) -> Tensor | None:
        """Return what ALiBi or T5 add to the scores, broadcastable to (batch, heads, queries, keys)."""
        keys = torch.arange(total, device=hidden.device)
        if self.relative_bias is not None:
            return self.relative_bias(keys[past:], keys)
        if self.config.positions != "alibi":
            return None
        if mask is not None:
            keys = _places(mask).clamp(min=0)
        return alibi_bias(self.config.heads, keys, None if self.causal else keys, hidden.dtype)

    def _rotation(self, position_ids: Tensor, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Return the function that turns queries and keys; the angles are computed once for all blocks."""
        if self.rotary is None:
            return None
        cosine, sine = (part.unsqueeze(-3) for part in self.rotary.angles(position_ids, dtype))
        return lambda states, _: apply_rotary(states, cosine, sine)


class Transformer(nn.Module):
    """The Transformer: embeddings, an encoder and/or a decoder, and the head that scores the vocabulary.

    Args:
        config: the switches.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        both = config.kind == "encoder-decoder"
        self.embeddings = nn.Embedding(config.vocabulary_size, config.width)
        self.segments = nn.Embedding(config.segments, config.width) if config.segments else None
        self.encoder = Stack(config, config.layers, causal=False, cross=False) if config.kind != "decoder" else None
        depth = config.decoder_layers if both and config.decoder_layers is not None else config.layers
        row = config.of_decoder if both else config
        self.decoder = Stack(row, depth, causal=True, cross=both) if config.kind != "encoder" else None
        own = not config.shared_embeddings
        self.decoder_embeddings = nn.Embedding(config.vocabulary_size, config.width) if own else None
        self.transform: nn.Module | None = None
        if config.head_transform:
            self.transform = nn.ModuleDict({"dense": nn.Linear(config.width, config.width), "norm": make_norm(config)})
        untied, bias = config.head and not config.tied_embeddings, config.head and config.head_bias
        self.head_weight = nn.Parameter(torch.empty(config.vocabulary_size, config.width)) if untied else None
        self.head_bias = nn.Parameter(torch.zeros(config.vocabulary_size)) if bias else None
        self._initialise()

    def _initialise(self) -> None:
        """Draw the weights: normal, narrower the wider the model; residual branches narrower the deeper it is.

        The spread is ``sqrt(2 / (5 * width))``, which is GPT-2's 0.02 at its width (Nguyen and Salazar 2019, section
        2.2); maps that end a residual branch get ``1 / sqrt(branches)`` of it (Radford et al. 2019, section 2.3).
        """
        width = self.config.width
        spread = math.sqrt(2 / (5 * width))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=spread)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=width**-0.5 if self.config.scaled_embeddings else spread)
        if self.head_weight is not None:
            nn.init.normal_(self.head_weight, std=spread)
        for stack in (self.encoder, self.decoder):
            blocks = [] if stack is None else [block for block in stack.layers if isinstance(block, Block)]
            for block in blocks:
                ends = [block.attention.output]
                ends += [block.feed_forward.down] if block.feed_forward is not None else []
                ends += [block.cross_attention.output] if block.cross_attention is not None else []
                for linear in ends:
                    nn.init.normal_(linear.weight, std=spread / math.sqrt(len(ends) * len(blocks)))

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        attention_mask: Num[Tensor, "batch keys"] | Bool[Tensor, "batch keys"] | None = None,
        decoder_input_ids: Int[Tensor, "batch targets"] | None = None,
        decoder_attention_mask: Num[Tensor, "batch past"] | Bool[Tensor, "batch past"] | None = None,
        *,
        token_type_ids: Int[Tensor, "batch tokens"] | None = None,
        position_ids: Int[Tensor, "*batch_or_not tokens"] | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
        return_attentions: bool = False,
        return_hidden_states: bool = False,
        logits_to_keep: int = 0,
    ) -> ModelOutput:
        """Run the model.

        Args:
            input_ids: the tokens; of an encoder-decoder those of the source (None once the cache holds them).
            attention_mask: 1 for real tokens, 0 for padding; with a cache, for all tokens, cached and new.
            decoder_input_ids: of an encoder-decoder the tokens of the target so far, or, with a cache, the new ones.
            decoder_attention_mask: the same as ``attention_mask``, for the target.
            token_type_ids: segments of the tokens (BERT); by default all 0.
            position_ids: positions of ``input_ids``; by default their places, counted from 0 or from the cache, padding
                included, as in ``transformers``. For a decoder padded on the left, count the real tokens.
            cache: the cache that the last step returned.
            use_cache: return a cache, for the next step.
            return_attentions: return every attention map; they are then computed explicitly, else by torch's fused
                kernel.
            return_hidden_states: return the states behind every block.
            logits_to_keep: score only so many of the last tokens, since a large vocabulary costs much; 0 scores all.

        Returns:
            The output; see :class:`ModelOutput`.

        Raises:
            TypeError: the ids are not whole numbers.
            ValueError: a shape does not fit, an id is not in the vocabulary, the input exceeds the context window, or
                an argument does not go with the kind of model.
        """
        kind = self.config.kind
        self._check_kind(input_ids, decoder_input_ids, decoder_attention_mask, token_type_ids, cache, use_cache)
        use_cache = use_cache or cache is not None
        switches = dict(return_attentions=return_attentions, return_hidden_states=return_hidden_states)
        if self.decoder is not None and use_cache and cache is None:
            cache = Cache([LayerCache() for _ in self.decoder.layers])
        layers = cache.layers if cache is not None else None
        if kind != "encoder-decoder":
            stack = self.encoder if self.decoder is None else self.decoder
            assert stack is not None and input_ids is not None  # checked above
            past = 0 if cache is None else cache.length
            embedded = self._embed("input_ids", input_ids, token_type_ids)
            mask = _keep("attention_mask", attention_mask, input_ids, past)
            if self.config.padding_id is not None and position_ids is None:
                position_ids = _places(input_ids != self.config.padding_id)
            hidden, states, maps, _ = stack(embedded, mask, position_ids=position_ids, cache=layers, **switches)
            return ModelOutput(self.logits(hidden[:, -logits_to_keep:]), hidden, states, maps, cache=cache)
        assert self.encoder is not None and self.decoder is not None and decoder_input_ids is not None
        output = ModelOutput(cache=cache)
        if cache is not None and cache.encoder_output is not None:
            context, context_mask = cache.encoder_output, cache.encoder_mask
        else:
            assert input_ids is not None  # checked above
            context_mask = _keep("attention_mask", attention_mask, input_ids, 0)
            context, output.encoder_hidden_states, output.encoder_attentions, _ = self.encoder(
                self._embed("input_ids", input_ids, token_type_ids), context_mask, position_ids=position_ids, **switches
            )
            if cache is not None:
                cache.encoder_output, cache.encoder_mask = context, context_mask
        past = 0 if cache is None else cache.length
        hidden, output.decoder_hidden_states, output.decoder_attentions, output.cross_attentions = self.decoder(
            self._embed("decoder_input_ids", decoder_input_ids, None),
            _keep("decoder_attention_mask", decoder_attention_mask, decoder_input_ids, past),
            context,
            context_mask,
            cache=layers,
            **switches,
        )
        output.encoder_last_hidden_state, output.last_hidden_state = context, hidden
        output.logits = self.logits(hidden[:, -logits_to_keep:])
        return output

    def parameter_count(self) -> int:
        """Return the number of weights; tied ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _check_kind(
        self,
        input_ids: Tensor | None,
        decoder_input_ids: Tensor | None,
        decoder_attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        cache: Cache | None,
        use_cache: bool,
    ) -> None:
        kind = self.config.kind
        if kind == "encoder" and (cache is not None or use_cache):
            raise ValueError(
                "an encoder has no cache, since each of its tokens sees all others: leave cache and use_cache out"
            )
        if cache is not None and self.decoder is not None and len(cache.layers) != len(self.decoder.layers):
            raise ValueError(
                f"the cache has {len(cache.layers)} layers, the model {len(self.decoder.layers)}: it is another model's"
            )
        if kind == "encoder-decoder":
            if decoder_input_ids is None:
                raise ValueError(
                    "decoder_input_ids is missing: an encoder-decoder reads the source in input_ids and the target so "
                    "far in decoder_input_ids (at first the start token alone)"
                )
            if input_ids is None and (cache is None or cache.encoder_output is None):
                raise ValueError("input_ids is missing: give the source, or a cache that holds it already")
        elif input_ids is None:
            raise ValueError("input_ids is missing: give the tokens, (batch, tokens)")
        elif decoder_input_ids is not None or decoder_attention_mask is not None:
            raise ValueError(
                f"decoder_input_ids and decoder_attention_mask belong to an encoder-decoder, but kind is {kind!r}"
            )
        if token_type_ids is not None and self.segments is None:
            raise ValueError("token_type_ids were given, but the model has no segment embeddings (segments=0)")

    def _embed(self, name: str, ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Return the tokens' embeddings, (batch, tokens, width), without positions."""
        _check_ids(name, ids, self.config.vocabulary_size, "the vocabulary")
        table = self.decoder_embeddings if name == "decoder_input_ids" else None
        embedded = (table or self.embeddings)(ids)
        if self.config.scaled_embeddings:
            embedded = embedded * math.sqrt(self.config.width)
        if self.segments is not None:
            types = torch.zeros_like(ids) if token_type_ids is None else token_type_ids
            _check_ids("token_type_ids", types, self.config.segments, "the segments")
            embedded = embedded + self.segments(types)
        return embedded

    def logits(self, hidden: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens vocabulary"] | None:
        """Return the scores of the vocabulary, or None where there is no head.

        Args:
            hidden: states behind the last block and the final norm.
        """
        if not self.config.head:
            return None
        if isinstance(self.transform, nn.ModuleDict):
            activation = ACTIVATIONS[self.config.head_activation or self.config.activation]
            hidden = self.transform["norm"](activation(self.transform["dense"](hidden)))
        if self.config.scaled_logits:
            hidden = hidden * self.config.width**-0.5
        weight = self.embeddings.weight if self.head_weight is None else self.head_weight
        return F.linear(hidden, weight, self.head_bias)


def _places(mask: Tensor) -> Tensor:
    """Number the real tokens of each row from 0; padding gets -1."""
    return mask.long().cumsum(-1) * mask - 1


def _keep(name: str, mask: Tensor | None, ids: Tensor, past: int) -> Tensor | None:
    """Return a mask as Bool, or None where it hides nothing: the fused kernel is faster without one."""
    if mask is None:
        return None
    expected = (ids.shape[0], past + ids.shape[1])
    if tuple(mask.shape) != expected:
        cached = f" ({past} cached and {ids.shape[1]} new ones)" if past else ""
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)}, expected {expected}: 1 or 0 for each token{cached} of each row"
        )
    keep = mask if mask.dtype == torch.bool else mask != 0
    return None if bool(keep.all()) else keep


def _check_ids(name: str, ids: Tensor, size: int, what: str) -> None:
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"{name} is {ids.dtype}; expected whole numbers (torch.long)")
    if ids.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(ids.shape)}; expected (batch, tokens), for one text ids[None, :]")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise ValueError(f"{name} holds ids from {int(ids.min())} to {int(ids.max())}, but {what} ends at {size - 1}")


def _whole(name: str, value: object, smallest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
        raise ValueError(f"{name}={value!r}: expected a whole number, {smallest} or more")
