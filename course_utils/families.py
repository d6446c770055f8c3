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
    "gelu_bloom": "gelu_bloom",
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
        interleaved: parts of the names of weights cut into equal parts head by head, not as a whole.
        unused: beginnings of names that we do not need (pooling, buffers).
        refused: options with the only value that they may have.
    """

    classes: tuple[str, ...]
    switches: Callable[[Any], dict[str, Any]]
    names: Mapping[str, tuple[str, ...]]
    prefix: str
    transposed: tuple[str, ...] = ()
    interleaved: tuple[str, ...] = ()
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


def _roberta_switches(config: Any) -> dict[str, Any]:
    padding = config.pad_token_id
    return _bert_switches(config) | dict(
        context_window=config.max_position_embeddings - padding - 1,
        position_offset=padding + 1,
        padding_id=padding,
        head_activation="gelu",
    )


def _bloom_switches(config: Any) -> dict[str, Any]:
    return dict(
        kind="decoder",
        vocabulary_size=config.vocab_size,
        width=config.hidden_size,
        layers=config.n_layer,
        heads=config.n_head,
        positions="alibi",
        norm_eps=config.layer_norm_epsilon,
        embedding_norm=True,
        activation="gelu_bloom",
        float32_softmax=True,
        dropout=config.hidden_dropout,
        attention_dropout=config.attention_dropout,
    )


def _t5_switches(config: Any) -> dict[str, Any]:
    return dict(
        kind="encoder-decoder",
        vocabulary_size=config.vocab_size,
        width=config.d_model,
        layers=config.num_layers,
        decoder_layers=config.num_decoder_layers,
        heads=config.num_heads,
        head_size=config.d_kv,
        mlp_width=config.d_ff,
        positions="t5",
        relative_buckets=config.relative_attention_num_buckets,
        relative_max_distance=config.relative_attention_max_distance,
        norm="rmsnorm",
        norm_eps=config.layer_norm_epsilon,
        float32_norm=False,
        activation=config.dense_act_fn,
        gated=config.is_gated_act,
        attention_bias=False,
        mlp_bias=False,
        attention_scale=False,
        scaled_logits=config.scale_decoder_outputs,
        dropout=config.dropout_rate,
        attention_dropout=config.dropout_rate,
    )


def _bart_switches(config: Any) -> dict[str, Any]:
    return dict(
        kind="encoder-decoder",
        vocabulary_size=config.vocab_size,
        width=config.d_model,
        layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        heads=config.encoder_attention_heads,
        decoder_heads=config.decoder_attention_heads,
        mlp_width=config.encoder_ffn_dim,
        decoder_mlp_width=config.decoder_ffn_dim,
        context_window=config.max_position_embeddings,
        positions="learned",
        position_offset=2,
        norm_place="post",
        embedding_norm=True,
        activation=config.activation_function,
        scaled_embeddings=config.scale_embedding,
        head_bias=True,
        shared_embeddings=bool(config.tie_word_embeddings),
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
    )


def _bert_names(head: str, norm: str) -> dict[str, tuple[str, ...]]:
    """Names of BERT, of which RoBERTa's head differs."""
    return {
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
        **_linear(f"{head}dense", "transform.dense"),
        **_linear(f"{head}{norm}", "transform.norm"),
        f"{head.removesuffix('transform.')}decoder.weight": ("head_weight",),
        f"{head.removesuffix('transform.')}decoder.bias": ("head_bias",),
    }


def _t5_names() -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {"shared.weight": ("embeddings.weight",), "lm_head.weight": ("head_weight",)}
    for stack, last in (("encoder", 1), ("decoder", 2)):
        block, ours = f"{stack}.block.*.layer", f"{stack}.layers.*"
        parts = [("0.SelfAttention", "attention")] + [("1.EncDecAttention", "cross_attention")] * (last - 1)
        for theirs, mine in parts:
            for letter, name in dict(q="query", k="key", v="value", o="output").items():
                names[f"{block}.{theirs}.{letter}.weight"] = (f"{ours}.{mine}.{name}.weight",)
        for number, norm in enumerate((*("attention_norm", "cross_norm")[:last], "feed_forward_norm")):
            names[f"{block}.{number}.layer_norm.weight"] = (f"{ours}.{norm}.weight",)
        for theirs, mine in dict(wi="up", wi_0="gate", wi_1="up", wo="down").items():
            names[f"{block}.{last}.DenseReluDense.{theirs}.weight"] = (f"{ours}.feed_forward.{mine}.weight",)
        names[f"{block}.0.SelfAttention.relative_attention_bias.weight"] = (f"{stack}.relative_bias.weight",)
        names[f"{stack}.final_layer_norm.weight"] = (f"{stack}.final_norm.weight",)
    return names


def _bart_names() -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {
        "shared.weight": ("embeddings.weight",),
        "lm_head.weight": ("head_weight",),
        "final_logits_bias": ("head_bias",),
        "encoder.embed_tokens.weight": ("embeddings.weight",),
        "decoder.embed_tokens.weight": ("decoder_embeddings.weight",),
    }
    for stack in ("encoder", "decoder"):
        block, ours = f"{stack}.layers.*", f"{stack}.layers.*"
        names[f"{stack}.embed_positions.weight"] = (f"{stack}.positions.weight",)
        names |= _linear(f"{stack}.layernorm_embedding", f"{stack}.embedding_norm")
        for theirs, mine in (("self_attn", "attention"), ("encoder_attn", "cross_attention")):
            for part, name in dict(q_proj="query", k_proj="key", v_proj="value", out_proj="output").items():
                names |= _linear(f"{block}.{theirs}.{part}", f"{ours}.{mine}.{name}")
        names |= _linear(f"{block}.self_attn_layer_norm", f"{ours}.attention_norm")
        names |= _linear(f"{block}.encoder_attn_layer_norm", f"{ours}.cross_norm")
        names |= _linear(f"{block}.final_layer_norm", f"{ours}.feed_forward_norm")
        names |= _linear(f"{block}.fc1", f"{ours}.feed_forward.up") | _linear(
            f"{block}.fc2", f"{ours}.feed_forward.down"
        )
    return names


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
        names=_bert_names("cls.predictions.transform.", "LayerNorm"),
        unused=("pooler.", "cls.predictions.bias"),
        refused={"is_decoder": False, "add_cross_attention": False},
    ),
    "roberta": Family(
        classes=("RobertaModel", "RobertaForMaskedLM"),
        switches=_roberta_switches,
        prefix="roberta.",
        names=_bert_names("lm_head.", "layer_norm"),
        unused=("pooler.", "lm_head.bias"),
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
    "bloom": Family(
        classes=("BloomModel", "BloomForCausalLM"),
        switches=_bloom_switches,
        prefix="transformer.",
        names={
            "word_embeddings.weight": ("embeddings.weight",),
            **_linear("word_embeddings_layernorm", "decoder.embedding_norm"),
            **_linear("h.*.input_layernorm", "decoder.layers.*.attention_norm"),
            **_linear(
                "h.*.self_attention.query_key_value",
                "decoder.layers.*.attention.query",
                "decoder.layers.*.attention.key",
                "decoder.layers.*.attention.value",
            ),
            **_linear("h.*.self_attention.dense", "decoder.layers.*.attention.output"),
            **_linear("h.*.post_attention_layernorm", "decoder.layers.*.feed_forward_norm"),
            **_linear("h.*.mlp.dense_h_to_4h", "decoder.layers.*.feed_forward.up"),
            **_linear("h.*.mlp.dense_4h_to_h", "decoder.layers.*.feed_forward.down"),
            **_linear("ln_f", "decoder.final_norm"),
            "lm_head.weight": ("head_weight",),
        },
        interleaved=("query_key_value",),
        refused={"apply_residual_connection_post_layernorm": False},
    ),
    "t5": Family(
        classes=("T5Model", "T5ForConditionalGeneration"),
        switches=_t5_switches,
        prefix="",
        names=_t5_names(),
        unused=("encoder.embed_tokens.", "decoder.embed_tokens."),
    ),
    "bart": Family(
        classes=("BartModel", "BartForConditionalGeneration"),
        switches=_bart_switches,
        prefix="model.",
        names=_bart_names(),
        refused={"is_decoder": False},
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
    loaded: Any = model
    reads, writes = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    return TransformerConfig(**switches, tied_embeddings=writes is None or writes.weight is reads.weight)


def from_huggingface(model: nn.Module) -> Transformer:
    """Copy the weights of a loaded ``transformers`` model into our Transformer.

    The result has the model's dtype, device and mode (training or evaluation), and shares no memory with it. Logits,
    hidden states and attention maps agree with the original, whose maps need ``attn_implementation="eager"``.

    Args:
        model: BERT, RoBERTa, GPT-2, LLaMA, BLOOM, T5 (also v1.1 and FLAN-T5) or BART, with or without its head for
            language modelling, unquantized.

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
        targets = family.names[pattern]
        if (targets == ("head_weight",) and config.tied_embeddings) or (
            targets == ("decoder_embeddings.weight",) and config.shared_embeddings
        ):
            continue
        weight = weight.T if name.endswith(family.transposed) else weight
        if targets == ("head_bias",):
            weight = weight.flatten()
        if any(part in name for part in family.interleaved):  # (heads, parts, head size, ...) to (parts, heads, ...)
            weight = weight.unflatten(0, (config.heads, len(targets), -1)).transpose(0, 1).flatten(0, 2)
        for target, part in zip(targets, weight.chunk(len(targets)), strict=True):
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
    """Split ``h.3.ln_1.weight`` into ``h.*.ln_1.weight`` and ``3``; only the first number is that of a block."""
    pieces = name.split(".")
    place = next((place for place, piece in enumerate(pieces) if piece.isdigit()), None)
    if place is None:
        return name, ""
    return ".".join([*pieces[:place], "*", *pieces[place + 1 :]]), pieces[place]


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


PALM: dict[str, Any] = dict(
    kind="decoder",
    key_value_heads=1,
    positions="rotary",
    norm_bias=False,
    parallel=True,
    activation="silu",
    gated=True,
    attention_bias=False,
    mlp_bias=False,
)
"""The switches of PaLM (Chowdhery et al. 2022, section 2), whose weights were never published."""


def palm_block(width: int, heads: int, *, layers: int = 1, vocabulary_size: int = 256, **switches: Any) -> Transformer:
    """Return PaLM in small, from random weights: attention and feed-forward network read the same norm and add up.

    Chowdhery et al. (2022), section 2: ``y = x + MLP(LayerNorm(x)) + Attention(LayerNorm(x))``, SwiGLU, one key/value
    head for all heads, rotary positions, no biases, tied embeddings.

    Args:
        width: size of the vector that stands for a token.
        heads: number of heads.
        layers: number of blocks.
        vocabulary_size: number of different tokens.
        **switches: further switches of :class:`course_utils.transformer.TransformerConfig`, such as ``head_size``.

    Raises:
        ValueError: a switch is out of range.
    """
    return Transformer(TransformerConfig(vocabulary_size, width=width, heads=heads, layers=layers, **(PALM | switches)))


def family_of(config: TransformerConfig) -> str:
    """Say which published family a row of switches is, by the switches that tell it apart.

    Args:
        config: the switches of one of the families of this module, of any size.

    Returns:
        ``BERT``, ``RoBERTa``, ``GPT-2``, ``LLaMA``, ``PaLM``, ``BLOOM``, ``T5``, ``T5 1.1`` or ``BART``.
    """
    if config.kind == "encoder":
        return "BERT" if config.padding_id is None else "RoBERTa"
    if config.kind == "encoder-decoder":
        if config.positions == "learned":
            return "BART"
        return "T5 1.1" if config.gated else "T5"
    if config.positions == "rotary":
        return "PaLM" if config.parallel else "LLaMA"
    return "BLOOM" if config.positions == "alibi" else "GPT-2"


def switch_row(config: TransformerConfig) -> dict[str, str]:
    """Return the switches in which the families differ, in words: the names of columns and what stands there.

    Args:
        config: the configuration; its sizes do not show.
    """
    norm = "RMSNorm" if config.norm == "rmsnorm" else "LayerNorm" if config.norm_bias else "LayerNorm, no bias"
    activation = {"silu": "SiLU", "relu": "ReLU"}.get(config.activation, "GELU")
    biases = {(True, True): "yes", (False, False): "no"}.get((config.attention_bias, config.mlp_bias), "some")
    shared = {config.heads: "one a head", 1: "one for all"}.get(config.groups, "one for a group")
    return {
        "kind": config.kind,
        "positions": config.positions,
        "norm": norm,
        "norm stands": config.norm_place + (", and on embeddings" if config.embedding_norm else ""),
        "feed-forward": f"gated {activation}" if config.gated else activation,
        "biases": biases,
        "keys and values": shared,
        "block": "side by side" if config.parallel else "one by one",
    }
