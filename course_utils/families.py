"""Published families as rows of switches: weights of a loaded ``transformers`` model into our own Transformer.

A family is two things: how its configuration sets our switches, and how its weights are named. Options of a published
configuration that have no switch here are refused by name, never ignored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.transformer import Transformer, TransformerConfig

ACTIVATION_NAMES = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
"""Names of activations in ``transformers`` and here."""


@dataclass(frozen=True)
class Family:
    """How one family maps onto :class:`course_utils.transformer.TransformerConfig`.

    Attributes:
        classes: supported model classes of ``transformers``; those with a head last.
        switches: their configuration to our switches.
        names: their weight to ours; ``*`` stands for the number of the block. Several names: the weight is cut into
            equal parts along its first dimension.
        prefix: what a model with a head puts before the names of the weights of the one without.
        transposed: endings of the names of matrices stored as (in, out) instead of (out, in).
        unused: beginnings of names that we do not need (pooling, buffers).
        refused: options with the only value that they may have.
    """

    classes: tuple[str, ...]
    switches: Callable[[Any], dict[str, Any]]
    names: Mapping[str, tuple[str, ...]]
    prefix: str
    transposed: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    refused: Mapping[str, Any] | None = None


def _linear(theirs: str, *ours: str) -> dict[str, tuple[str, ...]]:
    """Map a weight and its bias."""
    return {f"{theirs}.{part}": tuple(f"{name}.{part}" for name in ours) for part in ("weight", "bias")}


def _gpt2_switches(config: Any) -> dict[str, Any]:
    return dict(
        kind="decoder",
        vocabulary_size=config.vocab_size,
        width=config.n_embd,
        layers=config.n_layer,
        heads=config.n_head,
        mlp_width=config.n_inner,
        context_window=config.n_positions,
        positions="learned",
        norm_eps=config.layer_norm_epsilon,
        activation=config.activation_function,
        attention_scale=config.scale_attn_weights,
        dropout=config.resid_pdrop,
        attention_dropout=config.attn_pdrop,
    )


def _bert_switches(config: Any) -> dict[str, Any]:
    return dict(
        kind="encoder",
        vocabulary_size=config.vocab_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        mlp_width=config.intermediate_size,
        context_window=config.max_position_embeddings,
        positions="learned",
        norm_place="post",
        norm_eps=config.layer_norm_eps,
        embedding_norm=True,
        activation=config.hidden_act,
        segments=config.type_vocab_size,
        head_bias=True,
        head_transform=True,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
    )


def _llama_switches(config: Any) -> dict[str, Any]:
    rotary = config.rope_parameters
    if rotary.get("rope_type", "default") != "default" or rotary.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"rope_parameters={dict(rotary)}: supported are rotary positions of rope_type 'default' over the whole head"
        )
    return dict(
        kind="decoder",
        vocabulary_size=config.vocab_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        head_size=config.head_dim,
        mlp_width=config.intermediate_size,
        context_window=config.max_position_embeddings,
        positions="rotary",
        rotary_base=rotary["rope_theta"],
        norm="rmsnorm",
        norm_eps=config.rms_norm_eps,
        activation=config.hidden_act,
        gated=True,
        attention_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
        float32_softmax=True,
        attention_dropout=config.attention_dropout,
    )


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        classes=("GPT2Model", "GPT2LMHeadModel"),
        switches=_gpt2_switches,
        prefix="transformer.",
        names={
            "wte.weight": ("embeddings.weight",),
            "wpe.weight": ("decoder.positions.weight",),
            **_linear("h.*.ln_1", "decoder.layers.*.attention_norm"),
            **_linear(
                "h.*.attn.c_attn",
                "decoder.layers.*.attention.query",
                "decoder.layers.*.attention.key",
                "decoder.layers.*.attention.value",
            ),
            **_linear("h.*.attn.c_proj", "decoder.layers.*.attention.output"),
            **_linear("h.*.ln_2", "decoder.layers.*.feed_forward_norm"),
            **_linear("h.*.mlp.c_fc", "decoder.layers.*.feed_forward.up"),
            **_linear("h.*.mlp.c_proj", "decoder.layers.*.feed_forward.down"),
            **_linear("ln_f", "decoder.final_norm"),
            "lm_head.weight": ("head_weight",),
        },
        transposed=("c_attn.weight", "c_proj.weight", "c_fc.weight"),
        refused={"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ),
    "bert": Family(
        classes=("BertModel", "BertForMaskedLM"),
        switches=_bert_switches,
        prefix="bert.",
        names={
            "embeddings.word_embeddings.weight": ("embeddings.weight",),
            "embeddings.position_embeddings.weight": ("encoder.positions.weight",),
            "embeddings.token_type_embeddings.weight": ("segments.weight",),
            **_linear("embeddings.LayerNorm", "encoder.embedding_norm"),
            **_linear("encoder.layer.*.attention.self.query", "encoder.layers.*.attention.query"),
            **_linear("encoder.layer.*.attention.self.key", "encoder.layers.*.attention.key"),
            **_linear("encoder.layer.*.attention.self.value", "encoder.layers.*.attention.value"),
            **_linear("encoder.layer.*.attention.output.dense", "encoder.layers.*.attention.output"),
            **_linear("encoder.layer.*.attention.output.LayerNorm", "encoder.layers.*.attention_norm"),
            **_linear("encoder.layer.*.intermediate.dense", "encoder.layers.*.feed_forward.up"),
            **_linear("encoder.layer.*.output.dense", "encoder.layers.*.feed_forward.down"),
            **_linear("encoder.layer.*.output.LayerNorm", "encoder.layers.*.feed_forward_norm"),
            **_linear("cls.predictions.transform.dense", "transform.dense"),
            **_linear("cls.predictions.transform.LayerNorm", "transform.norm"),
            "cls.predictions.decoder.weight": ("head_weight",),
            "cls.predictions.decoder.bias": ("head_bias",),
        },
        unused=("pooler.", "cls.predictions.bias"),
        refused={"is_decoder": False, "add_cross_attention": False},
    ),
    "llama": Family(
        classes=("LlamaModel", "LlamaForCausalLM"),
        switches=_llama_switches,
        prefix="model.",
        names={
            "embed_tokens.weight": ("embeddings.weight",),
            "layers.*.input_layernorm.weight": ("decoder.layers.*.attention_norm.weight",),
            **_linear("layers.*.self_attn.q_proj", "decoder.layers.*.attention.query"),
            **_linear("layers.*.self_attn.k_proj", "decoder.layers.*.attention.key"),
            **_linear("layers.*.self_attn.v_proj", "decoder.layers.*.attention.value"),
            **_linear("layers.*.self_attn.o_proj", "decoder.layers.*.attention.output"),
            "layers.*.post_attention_layernorm.weight": ("decoder.layers.*.feed_forward_norm.weight",),
            **_linear("layers.*.mlp.gate_proj", "decoder.layers.*.feed_forward.gate"),
            **_linear("layers.*.mlp.up_proj", "decoder.layers.*.feed_forward.up"),
            **_linear("layers.*.mlp.down_proj", "decoder.layers.*.feed_forward.down"),
            "norm.weight": ("decoder.final_norm.weight",),
            "lm_head.weight": ("head_weight",),
        },
    ),
}
"""The families that :func:`from_huggingface` takes, by their ``model_type``."""


def config_from_huggingface(model: nn.Module) -> TransformerConfig:
    """Return the row of switches that makes our Transformer this published model.

    Args:
        model: a loaded ``transformers`` model.

    Raises:
        ValueError: the family, its class or one of its options is not supported; the message names it.
    """
    family = _family(model)
    theirs: Any = model.config
    for option, value in (family.refused or {}).items():
        if getattr(theirs, option, value) != value:
            raise ValueError(f"{option}={getattr(theirs, option)!r} is not supported, only {option}={value!r}")
    for option in ("sliding_window", "attn_logit_softcapping", "quantization_config"):
        if getattr(theirs, option, None):
            raise ValueError(f"{option}={getattr(theirs, option)!r} is not supported: load a model without it")
    switches = family.switches(theirs)
    activation = switches["activation"]
    if activation not in ACTIVATION_NAMES:
        raise ValueError(f"activation {activation!r} is not supported; supported: {', '.join(ACTIVATION_NAMES)}")
    switches["activation"] = ACTIVATION_NAMES[activation]
    if type(model).__name__ == family.classes[0]:
        switches |= {"head": False, "head_bias": False, "head_transform": False, "scaled_logits": False}
    return TransformerConfig(**switches, tied_embeddings=bool(theirs.tie_word_embeddings))


def from_huggingface(model: nn.Module) -> Transformer:
    """Copy the weights of a loaded ``transformers`` model into our Transformer.

    The result has the model's dtype, device and mode (training or evaluation), and shares no memory with it. Logits,
    hidden states and attention maps agree with the original, whose maps need ``attn_implementation="eager"``.

    Args:
        model: GPT-2, BERT or LLaMA, with or without its language-model head, unquantized.

    Returns:
        The model; its ``config`` is the family's row of switches.

    Raises:
        ValueError: the family, its class, an option or a weight is not supported; the message names it.
    """
    config, family = config_from_huggingface(model), _family(model)
    with torch.device("meta"):
        ours = Transformer(config)
    wanted, found = ours.state_dict(), {}
    for theirs, weight in model.state_dict().items():
        name = theirs.removeprefix(family.prefix)
        if name.startswith(family.unused):
            continue
        pattern, number = _pattern(name)
        if pattern not in family.names:
            raise ValueError(f"the weight {theirs} has no place in the family as known here: {family.classes[-1]}")
        if family.names[pattern] == ("head_weight",) and config.tied_embeddings:
            continue
        weight = weight.T if name.endswith(family.transposed) else weight
        parts = weight.chunk(len(family.names[pattern]))
        for target, part in zip(family.names[pattern], parts, strict=True):
            found[target.replace("*", number)] = part.detach().clone(memory_format=torch.contiguous_format)
    _check_weights(wanted, found)
    ours.load_state_dict(found, assign=True)
    return ours.train(model.training)


def _family(model: nn.Module) -> Family:
    kind, name = getattr(getattr(model, "config", None), "model_type", None), type(model).__name__
    if kind not in FAMILIES:
        raise ValueError(
            f"{name} (model_type {kind!r}) is not a supported family; supported: {', '.join(sorted(FAMILIES))}"
        )
    if name not in FAMILIES[kind].classes:
        raise ValueError(f"{name} is not supported; supported of {kind}: {', '.join(FAMILIES[kind].classes)}")
    return FAMILIES[kind]


def _pattern(name: str) -> tuple[str, str]:
    """Split ``h.3.ln_1.weight`` into ``h.*.ln_1.weight`` and ``3``."""
    pieces = name.split(".")
    numbers = [piece for piece in pieces if piece.isdigit()]
    return ".".join("*" if piece.isdigit() else piece for piece in pieces), numbers[0] if numbers else ""


def _check_weights(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse anything but exactly the weights that our model has, in its shapes."""
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or extra:
        raise ValueError(f"the weights do not match the configuration: missing {missing[:3]}, left over {extra[:3]}")
    for name, weight in found.items():
        if weight.shape != wanted[name].shape or not weight.is_floating_point():
            raise ValueError(
                f"{name}: got {weight.dtype} of shape {tuple(weight.shape)}, expected floating-point numbers of shape "
                f"{tuple(wanted[name].shape)}; load the model unquantized"
            )
