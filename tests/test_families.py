"""Our Transformer with the weights of a published family gives its logits, states and maps, whatever its sizes."""

import copy

import pytest
import torch
import transformers as hf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from course_utils.families import FAMILIES, PALM, config_from_huggingface, from_huggingface, palm_block
from course_utils.generation import greedy
from course_utils.models import load
from course_utils.transformer import TransformerConfig

COMMON = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0, attn_implementation="eager")
ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu")
LENGTH = 11
"""Longest sequence of the tests; context windows are as long or longer."""


def sizes(draw, even=False):
    """Layers, heads, head size and MLP width, odd ones preferred."""
    heads, size = draw(st.integers(1, 7)), draw(st.sampled_from((2, 4, 6, 10) if even else (1, 2, 3, 5, 8)))
    return draw(st.integers(1, 3)), heads, size, draw(st.integers(1, 41))


@st.composite
def gpt2(draw):
    layers, heads, size, inner = sizes(draw)
    return dict(
        vocab_size=53, n_positions=draw(st.integers(LENGTH, 19)), n_embd=heads * size, n_layer=layers, n_head=heads,
        n_inner=draw(st.sampled_from((None, inner))), activation_function=draw(st.sampled_from(ACTIVATIONS)),
        tie_word_embeddings=draw(st.booleans()), scale_attn_weights=draw(st.booleans()),
        layer_norm_epsilon=draw(st.sampled_from((1e-5, 1e-3))),
    )  # fmt: skip


@st.composite
def bert(draw):
    layers, heads, size, inner = sizes(draw)
    return dict(
        vocab_size=53, max_position_embeddings=draw(st.integers(LENGTH + 3, 19)), hidden_size=heads * size,
        num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner,
        hidden_act=draw(st.sampled_from(ACTIVATIONS)), tie_word_embeddings=draw(st.booleans()),
        type_vocab_size=draw(st.integers(1, 3)), layer_norm_eps=draw(st.sampled_from((1e-12, 1e-5))),
        pad_token_id=draw(st.integers(0, 2)),
    )  # fmt: skip


@st.composite
def llama(draw):
    layers, heads, size, inner = sizes(draw, even=True)
    groups = draw(st.sampled_from([number for number in range(1, heads + 1) if heads % number == 0]))
    return dict(
        vocab_size=53, max_position_embeddings=draw(st.integers(LENGTH, 19)), num_hidden_layers=layers,
        hidden_size=draw(st.sampled_from((heads * size, 2 * heads, 3 * heads))), num_attention_heads=heads,
        num_key_value_heads=groups, head_dim=size, intermediate_size=inner, tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()), mlp_bias=draw(st.booleans()), hidden_act=draw(st.sampled_from(ACTIVATIONS)),
        rope_parameters=dict(rope_type="default", rope_theta=draw(st.sampled_from((1e4, 777.0, 5e5)))),
        rms_norm_eps=draw(st.sampled_from((1e-6, 1e-3))),
    )  # fmt: skip


@st.composite
def bloom(draw):
    layers, heads, size, _ = sizes(draw)
    return dict(
        vocab_size=53, hidden_size=heads * size, n_layer=layers, n_head=heads,
        tie_word_embeddings=draw(st.booleans()), layer_norm_epsilon=draw(st.sampled_from((1e-5, 1e-3))),
    )  # fmt: skip


@st.composite
def t5(draw):
    layers, heads, size, inner = sizes(draw)
    return dict(
        vocab_size=53, d_model=draw(st.integers(2, 33)), d_kv=size, d_ff=inner, num_layers=layers,
        num_decoder_layers=draw(st.integers(1, 3)), num_heads=heads, decoder_start_token_id=0,
        feed_forward_proj=draw(st.sampled_from(("relu", "gated-gelu", "gated-silu", "gelu"))),
        relative_attention_num_buckets=draw(st.sampled_from((4, 6, 32))),
        relative_attention_max_distance=draw(st.sampled_from((17, 20, 128))),
        tie_word_embeddings=draw(st.booleans()), layer_norm_epsilon=draw(st.sampled_from((1e-6, 1e-3))),
    )  # fmt: skip


@st.composite
def bart(draw):
    layers, heads, size, inner = sizes(draw)
    width = heads * size
    return dict(
        vocab_size=53, d_model=width, encoder_layers=layers, decoder_layers=draw(st.integers(1, 3)),
        encoder_attention_heads=heads, encoder_ffn_dim=inner, decoder_ffn_dim=draw(st.integers(1, 41)),
        decoder_attention_heads=draw(st.sampled_from([part for part in range(1, width + 1) if width % part == 0])),
        max_position_embeddings=draw(st.integers(LENGTH, 19)), scale_embedding=draw(st.booleans()),
        activation_function=draw(st.sampled_from(ACTIVATIONS)), tie_word_embeddings=draw(st.booleans()),
    )  # fmt: skip


MODELS = {
    "gpt2": (hf.GPT2Config, gpt2()),
    "bert": (hf.BertConfig, bert()),
    "roberta": (hf.RobertaConfig, bert()),
    "llama": (hf.LlamaConfig, llama()),
    "bloom": (hf.BloomConfig, bloom()),
    "t5": (hf.T5Config, t5()),
    "bart": (hf.BartConfig, bart()),
}


def make(family, options, head=True, seed=3):
    """Return the library's model with every weight random: norms, biases and buffers too."""
    config, _ = MODELS[family]
    torch.manual_seed(seed)
    model = getattr(hf, FAMILIES[family].classes[int(head)])(config(**{**COMMON, **options}))
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            if weight.is_floating_point() and "rotary" not in name:
                mean = float("norm" in name.lower() or "ln_" in name)
                weight.normal_(mean, 0.3 if weight.ndim < 2 else 0.5 / weight.shape[-1] ** 0.5)
    return model.eval()


def batch(draw, family, options):
    """Token ids, masks with padding on either side, and their names for ours and for the library's."""
    rows, tokens = draw(st.integers(1, 3)), draw(st.integers(1, LENGTH))
    seed = draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    both = family in ("t5", "bart")
    inputs = {}
    for ids, mask, length in (
        ("input_ids", "attention_mask", tokens),
        ("decoder_input_ids", "decoder_attention_mask", draw(st.integers(1, LENGTH)) if both else 0),
    ):
        if not length:
            continue
        inputs[ids] = torch.randint(3, 53, (rows, length), generator=generator)
        side = draw(st.sampled_from(("none", "right", "left")))
        if side != "none":
            kept = torch.randint(1, length + 1, (rows, 1), generator=generator)
            real = torch.arange(length) < kept
            inputs[mask] = (real if side == "right" else real.flip(-1)).long()
            inputs[ids][inputs[mask] == 0] = options.get("pad_token_id", 0)
    if family == "bert":
        inputs["token_type_ids"] = torch.randint(0, options["type_vocab_size"], (rows, tokens), generator=generator)
    return inputs, seed


def check(name, ours, theirs, real, tolerance):
    """Compare the places of real tokens alone; the error counts relative to the largest number."""
    assert ours.shape == theirs.shape, name
    ours, theirs = ours[real], theirs[real]
    error = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-3)
    assert error < tolerance, f"{name}: relative error {error:.2g}"


@torch.no_grad()
def compare(theirs, inputs, tolerance):
    """Hold all that our model returns against the library's; returns our output."""
    ours = from_huggingface(theirs)
    expected = theirs(**inputs, output_attentions=True, output_hidden_states=True)
    output = ours(**inputs, return_attentions=True, return_hidden_states=True)
    source = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])) != 0
    target = source
    if "decoder_input_ids" in inputs:
        target = inputs.get("decoder_attention_mask", torch.ones_like(inputs["decoder_input_ids"])) != 0
    for name in ("attentions", "hidden_states"):
        for prefix in ("", "encoder_", "decoder_", "cross_"):
            mine, other = (getattr(one, prefix + name, None) for one in (output, expected))
            if not other:
                assert not mine, prefix + name
                continue
            real = source if prefix == "encoder_" else target
            assert len(mine) == len(other), prefix + name
            for number, (one, two) in enumerate(zip(mine, other, strict=True)):
                maps = name == "attentions"
                one, two = (one.transpose(1, 2), two.transpose(1, 2)) if maps else (one, two)
                check(f"{prefix}{name}[{number}]", one, two, real, tolerance)
    last = getattr(expected, "last_hidden_state", None)
    if last is not None:
        assert output.logits is None
        check("last_hidden_state", output.last_hidden_state, last, target, tolerance)
    else:
        check("logits", output.logits, expected.logits, target, tolerance)
    return ours, output, target


@pytest.mark.parametrize("family", MODELS)
def test_random_configurations_agree_with_the_library(family):
    """Logits, states and all maps, in float32 and float64, whole and step by step."""

    @settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data):
        options = data.draw(MODELS[family][1])
        inputs, seed = batch(data.draw, family, options)
        head = data.draw(st.sampled_from((True, True, False)))
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
            theirs = make(family, options, head, seed).to(dtype)
            if dtype is torch.float64 and overflows(family, inputs):
                with torch.no_grad():
                    broken = theirs(**inputs)
                assert (broken.logits if head else broken.last_hidden_state).isnan().any()
                continue
            ours, output, real = compare(theirs, inputs, tolerance)
            if head and family not in ("bert", "roberta"):
                if ours.config.float32_softmax:  # whose rounding depends on the number of keys
                    tolerance = max(tolerance, 1e-6)
                check("with a cache", step_by_step(ours, inputs), output.logits, real, tolerance)

    run()


def overflows(family, inputs):
    """Whether the library gives NaN: in float64 its mask of a row that sees nothing is -inf in its float32 softmax."""
    mask = inputs.get("attention_mask")
    return family in ("llama", "bloom") and mask is not None and bool((mask[:, 0] == 0).any())


@torch.no_grad()
def step_by_step(ours, inputs):
    """Logits of the tokens given one by one, with a cache."""
    both = "decoder_input_ids" in inputs
    ids, name = (inputs["decoder_input_ids"], "decoder_") if both else (inputs["input_ids"], "")
    mask = inputs.get(f"{name}attention_mask", torch.ones_like(ids))
    cache, logits = None, []
    for place in range(ids.shape[1]):
        step = {f"{name}input_ids": ids[:, place : place + 1], f"{name}attention_mask": mask[:, : place + 1]}
        if both and cache is None:
            step |= {key: inputs[key] for key in ("input_ids", "attention_mask") if key in inputs}
        output = ours(**step, cache=cache, use_cache=True, return_attentions=True)
        cache = output.cache
        logits.append(output.logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("name", ["course-decoder", "course-encoder", "course-seq2seq", "course-instruct"])
def test_embedded_models_agree(name):
    model = load(name, profile="laptop").model
    model.set_attn_implementation("eager")
    inputs = {"input_ids": torch.randint(50, 4096, (2, 60), generator=torch.Generator().manual_seed(0))}
    inputs["attention_mask"] = torch.ones(2, 60, dtype=torch.long)
    inputs["attention_mask"][1, 40:] = 0
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :20]
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        compare(copy.deepcopy(model).to(dtype), inputs, tolerance)


def test_fused_attention_agrees_with_the_library_s():
    """Where no maps are asked for, both run torch's kernel; LLaMA's does without the float32 softmax then."""
    ids, mask = torch.randint(3, 53, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    mask[1, :4] = mask[2, :1] = 0
    for options in (dict(num_key_value_heads=2), dict(num_key_value_heads=1, head_dim=10, attention_bias=True)):
        sizes = dict(vocab_size=53, hidden_size=36, num_hidden_layers=3, num_attention_heads=6, intermediate_size=51)
        theirs = make("llama", {**sizes, **options}).double()
        theirs.set_attn_implementation("sdpa")
        with torch.no_grad():
            check("logits", from_huggingface(theirs)(ids, mask).logits, theirs(ids, mask).logits, mask == 1, 1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_greedy_equals_generate_on_a_left_padded_batch(family):
    theirs = make(family, SMALL[family])
    ids, mask = torch.randint(3, 53, (3, 6)), torch.ones(3, 6, dtype=torch.long)
    mask[1, :3] = mask[2, :1] = 0
    expected = theirs.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert torch.equal(greedy(from_huggingface(theirs), ids, 8, attention_mask=mask), expected[:, 6:])


SMALL = {
    "gpt2": dict(vocab_size=53, n_positions=19, n_embd=35, n_layer=3, n_head=5),
    "bert": dict(vocab_size=53, hidden_size=35, num_hidden_layers=2, num_attention_heads=5, intermediate_size=51),
    "llama": dict(
        vocab_size=53, hidden_size=36, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
        intermediate_size=51,
    ),
    "bloom": dict(vocab_size=53, hidden_size=12, n_layer=1, n_head=3),
    "t5": dict(vocab_size=53, d_model=12, d_kv=4, d_ff=9, num_layers=1, num_heads=3),
    "bart": dict(
        vocab_size=53, d_model=12, encoder_layers=1, decoder_layers=1, encoder_attention_heads=3,
        decoder_attention_heads=2, encoder_ffn_dim=9, decoder_ffn_dim=9, max_position_embeddings=19,
    ),
}  # fmt: skip
SMALL["roberta"] = SMALL["bert"]


def test_weights_are_copies_in_dtype_and_mode_of_the_original():
    theirs = make("gpt2", SMALL["gpt2"]).to(torch.bfloat16).train()
    before = copy.deepcopy(theirs.state_dict())
    ours = from_huggingface(theirs)
    assert ours.training
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}
    assert all(parameter.requires_grad for parameter in ours.parameters())
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in theirs.state_dict().items())


def test_gradients_equal_transformers():
    theirs = make("gpt2", SMALL["gpt2"]).double()
    ours, ids = from_huggingface(theirs), torch.randint(0, 53, (2, 9))
    theirs(ids).logits.logsumexp(-1).sum().backward()
    ours(ids).logits.logsumexp(-1).sum().backward()
    gradients = [(ours.embeddings.weight.grad, theirs.transformer.wte.weight.grad)]
    gradients += [(ours.decoder.positions.weight.grad, theirs.transformer.wpe.weight.grad)]
    up = ours.decoder.layers[1].feed_forward.up.weight.grad
    gradients += [(up.T, theirs.transformer.h[1].mlp.c_fc.weight.grad)]
    assert all((mine - other).abs().max() < 1e-10 for mine, other in gradients)


def test_a_family_is_a_row_of_switches():
    switches = dict(config_from_huggingface(make("llama", SMALL["llama"])).describe())
    assert switches["positions"] == "rotary"
    assert switches["norm"] == "rmsnorm"
    assert switches["gated"] == "True"
    assert switches["key_value_heads"] == "2"
    assert "norm_place" not in switches  # as by default


def test_all_families_differ_in_their_switches():
    rows = {family: config_from_huggingface(make(family, SMALL[family])).describe() for family in MODELS}
    assert len({tuple(row) for row in rows.values()}) == len(rows) == 7


def test_roberta_counts_positions_by_the_padding_id_and_not_by_the_mask():
    theirs = make("roberta", {**SMALL["bert"], "pad_token_id": 1})
    ids = torch.tensor([[1, 1, 5, 6, 1, 7]])
    compare(theirs, {"input_ids": ids}, 1e-5)
    compare(theirs, {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 1, 1, 0, 1]])}, 1e-5)


def test_encoder_and_decoder_of_bart_may_have_embeddings_of_their_own():
    theirs = make("bart", {**SMALL["bart"], "tie_word_embeddings": False})
    assert not torch.equal(theirs.model.encoder.embed_tokens.weight, theirs.model.decoder.embed_tokens.weight)
    ours, _, _ = compare(theirs, {"input_ids": torch.arange(5)[None], "decoder_input_ids": torch.arange(4)[None]}, 1e-5)
    assert torch.equal(ours.decoder_embeddings.weight, theirs.model.decoder.embed_tokens.weight)


def test_a_head_with_weights_of_its_own_is_used_whatever_the_configuration_says():
    """T5 v1.1 says nothing of it in new versions of the library, and its published head is not the embeddings."""
    theirs = make("t5", SMALL["t5"])
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(53, 12))
    ours, _, _ = compare(theirs, {"input_ids": torch.arange(5)[None], "decoder_input_ids": torch.arange(4)[None]}, 1e-5)
    assert torch.equal(ours.head_weight, theirs.lm_head.weight)


@pytest.mark.parametrize(
    "model, message",
    [
        (lambda: torch.nn.Linear(2, 2), "Linear .* not a supported family; supported: bart, bert, bloom, gpt2, llama"),
        (
            lambda: hf.MistralForCausalLM(
                hf.MistralConfig(
                    vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                    num_key_value_heads=2,
                )
            ),
            "mistral",
        ),
        (
            lambda: hf.BertForSequenceClassification(hf.BertConfig(**SMALL["bert"])),
            "BertForSequenceClassification .*BertModel, BertForMaskedLM",
        ),
        (lambda: hf.T5EncoderModel(hf.T5Config(**SMALL["t5"])), "T5EncoderModel .*T5Model, T5ForConditionalGeneration"),
        (lambda: make("bert", {**SMALL["bert"], "is_decoder": True}), "is_decoder=True"),
        (
            lambda: make("gpt2", {**SMALL["gpt2"], "scale_attn_by_inverse_layer_idx": True}),
            "scale_attn_by_inverse_layer_idx=True",
        ),
        (lambda: make("gpt2", {**SMALL["gpt2"], "add_cross_attention": True}), "add_cross_attention=True"),
        (lambda: make("gpt2", {**SMALL["gpt2"], "activation_function": "tanh"}), "activation 'tanh' is not supported"),
        (
            lambda: make("bloom", {**SMALL["bloom"], "apply_residual_connection_post_layernorm": True}),
            "apply_residual_connection_post_layernorm=True",
        ),
        (lambda: make("t5", {**SMALL["t5"], "feed_forward_proj": "gated-tanh"}), "activation 'tanh' is not supported"),
        (
            lambda: make(
                "llama", {**SMALL["llama"], "rope_parameters": dict(rope_type="linear", factor=2.0, rope_theta=1e4)}
            ),
            "rope_parameters=.*linear",
        ),
    ],
)  # fmt: skip
def test_refuses_by_name(model, message):
    with pytest.raises(ValueError, match=message):
        from_huggingface(model())


def test_refuses_a_weight_that_has_no_place():
    theirs = make("gpt2", SMALL["gpt2"])
    theirs.transformer.h[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"transformer\.h\.0\.extra\.weight"):
        from_huggingface(theirs)


def test_a_palm_block_is_what_its_paper_writes():
    """Chowdhery et al. (2022), section 2, written out once more with one head at a time."""
    torch.manual_seed(0)
    model = palm_block(12, 3, vocabulary_size=20, head_size=6, mlp_width=10).double().eval()
    ids = torch.randint(0, 20, (2, 7))
    hidden, block = model.embeddings(ids), model.decoder.layers[0]

    def norm(states, weight):
        centred = states - states.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def turn(states):  # (batch, tokens, 6): dimensions i and i + 3 turn together
        angles = torch.arange(7)[:, None] * 10_000.0 ** (-torch.arange(3) / 3)
        one, two = states[..., :3], states[..., 3:]
        return torch.cat([one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()], -1)

    states = norm(hidden, block.attention_norm.weight)
    key, value = turn(states @ block.attention.key.weight.T), states @ block.attention.value.weight.T
    heads = []
    for head in range(3):
        query = turn(states @ block.attention.query.weight[6 * head : 6 * head + 6].T)
        scores = query @ key.mT / 6**0.5
        heads.append(scores.masked_fill(~torch.ones(7, 7).tril().bool(), -torch.inf).softmax(-1) @ value)
    attended = torch.cat(heads, -1) @ block.attention.output.weight.T
    gate, up = states @ block.feed_forward.gate.weight.T, states @ block.feed_forward.up.weight.T
    expected = hidden + attended + (gate * gate.sigmoid() * up) @ block.feed_forward.down.weight.T
    output = model(ids, return_hidden_states=True, return_attentions=True)
    final = norm(expected, model.decoder.final_norm.weight)
    assert (output.hidden_states[-1] - final).abs().max() < 1e-6  # angles are taken in float32
    assert (output.logits - final @ model.embeddings.weight.T).abs().max() < 1e-6
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]


def test_palm_s_switches_may_be_changed_and_are_checked():
    assert palm_block(12, 3, layers=2, activation="gelu").config == TransformerConfig(
        256, width=12, heads=3, layers=2, **(PALM | {"activation": "gelu"})
    )
    with pytest.raises(ValueError, match="no multiple of heads=5"):
        palm_block(12, 5)
