"""Quantized layers, and whole models: bytes, files, errors, outliers, quality on the embedded decoder."""

import copy
import math
import os

import pytest
import torch
from torch import nn

from course_utils import checkpoints, models
from course_utils.families import from_huggingface
from course_utils.lora import LoRALinear, add_lora
from course_utils.quantization.layers import (
    QuantizedEmbedding,
    QuantizedLinear,
    TiedHead,
    bytes_of,
    groups_of,
    inject_outliers,
    linear_maps,
    load,
    norm_pairs,
    quantize,
    quantize_inputs,
    replace,
    rescale,
    save,
    sensitivity,
    weight_of,
    whole_product,
)
from course_utils.quantization.quality import held_out, perplexity, recalls, relative, token_losses
from course_utils.quantization.schemes import Scheme, encode
from course_utils.transformer import Transformer, TransformerConfig

INT4 = Scheme(4, "group", 32, symmetric=False)
IDS = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(0))


def tiny(kind: str) -> nn.Module:
    """Untrained models of several families."""
    import transformers

    torch.manual_seed(0)
    if kind == "ours":
        return Transformer(TransformerConfig(96, width=64, layers=2, positions="rotary", norm="rmsnorm", gated=True))
    if kind == "ours untied":
        return Transformer(TransformerConfig(96, width=64, layers=2, tied_embeddings=False))
    sizes = dict(vocab_size=96, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=32, **sizes)
        ).eval()
    if kind == "llama":
        config = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(tie_word_embeddings=True, **config, **sizes)
        ).eval()
    if kind == "bert":
        config = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
        return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=96, **config)).eval()
    config = dict(d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=96, **config)).eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        seq2seq = getattr(model.config, "is_encoder_decoder", False)
        return model(input_ids=IDS, **({"decoder_input_ids": IDS} if seq2seq else {})).logits


@pytest.mark.parametrize("kind", ["ours", "gpt2", "llama", "bert", "t5"])
def test_models_of_all_families_are_quantized_saved_and_loaded(kind, tmp_path):
    model = tiny(kind)
    fresh, before = copy.deepcopy(model), logits(model)
    predicted = bytes_of(model, INT4)
    report = quantize(model, INT4)
    count = {"ours": 14, "gpt2": 8, "llama": 14, "bert": 12, "t5": 28}[kind]
    assert len([one for one in model.modules() if isinstance(one, QuantizedLinear)]) >= count
    assert len(report.layers) >= count and all(0 < one.error < 0.15 for one in report.layers)
    assert sum(predicted.values()) == sum(bytes_of(model).values()) == sum(report.after.values())
    assert sum(report.before.values()) == sum(bytes_of(fresh).values())
    after = logits(model)
    assert 0 < (after - before).norm() / before.norm() < 0.4
    path = save(model, tmp_path / "model.safetensors")
    again = load(fresh, path)
    assert torch.equal(logits(again), after)
    with pytest.raises(ValueError, match="nothing to quantize"):
        quantize(model, INT4)


@pytest.mark.parametrize("kind", ["ours", "gpt2", "llama", "bert", "t5"])
def test_tied_embeddings_and_head_are_stored_once(kind, tmp_path):
    model = tiny(kind)
    with pytest.raises(ValueError, match="share their weights in this model"):
        quantize(model, INT4, embeddings=True)
    assert not any(isinstance(one, QuantizedLinear) for one in model.modules())
    fresh, before = copy.deepcopy(model), logits(model)
    predicted = bytes_of(model, INT4, embeddings=True, head=True)
    report = quantize(model, INT4, embeddings=True, head=True)
    assert sum(predicted.values()) == sum(bytes_of(model).values()) == sum(report.after.values())
    assert [one.part for one in report.layers].count("embeddings") == 1
    after = logits(model)
    assert 0 < (after - before).norm() / before.norm() < 0.4
    path = save(model, tmp_path / "model.safetensors")
    assert torch.equal(logits(load(fresh, path)), after)
    assert (
        abs(os.path.getsize(path) / (sum(bytes_of(model).values()) + 15_000) - 1) < 0.25
    )  # header beside tiny weights


def test_untied_heads():
    model = tiny("llama")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    other = copy.deepcopy(model)
    assert [one.part for one in quantize(model, INT4, head=True).layers].count("head") == 1
    assert isinstance(model.lm_head, QuantizedLinear) and type(model.model.embed_tokens) is nn.Embedding
    quantize(other, INT4, embeddings=True)
    assert type(other.lm_head) is nn.Linear and isinstance(other.model.embed_tokens, QuantizedEmbedding)
    assert logits(other).isfinite().all()
    with pytest.raises(ValueError, match="no output layer that is a module of its own"):
        quantize(tiny("ours untied"), INT4, head=True)
    quantize(tiny("ours untied"), INT4, embeddings=True)


def test_our_transformer_computes_what_the_library_computes():
    theirs = tiny("llama")
    ours = from_huggingface(theirs)
    for model in (ours, theirs):
        quantize(model, INT4)
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-5)


def test_skipping_choosing_and_mixing():
    model = tiny("llama")
    names = list(linear_maps(model))
    assert len(linear_maps(model, skip="down_proj")) == len(names) - 2
    assert len(linear_maps(model, only=["layers.0"])) == 7 and not linear_maps(model, skip=["model"])
    first = quantize(model, Scheme(8), only=["down_proj", "k_proj"])
    second = quantize(model, Scheme(2, "group", 32), skip=["layers.1"])
    assert (len(first.layers), len(second.layers)) == (4, 5)
    for kind in ("skip", "only"):
        with pytest.raises(ValueError, match=f"{kind}='w_proj': the model has no layer of this name; .* q_proj"):
            quantize(model, INT4, **{kind: ["w_proj"]})


def test_what_cannot_be_done_is_refused_and_nothing_changed():
    model = tiny("llama")
    with pytest.raises(ValueError, match=r"layers.0.self_attn.q_proj has 64 columns .* no multiple of group=48"):
        quantize(model, Scheme(4, "group", 48))
    with pytest.raises(ValueError, match="no multiple of group=48"):
        bytes_of(model, Scheme(4, "group", 48))
    with pytest.raises(ValueError, match="down_proj has 96 columns"):
        quantize(model, Scheme(4, "group", 64))
    with pytest.raises(ValueError, match="activations='int8': expected one of None, dynamic, static, mixed"):
        quantize(model, Scheme(8), activations="int8")
    with pytest.raises(ValueError, match="give calibration="):
        quantize(model, Scheme(8), activations="static")
    model.model.layers[1].mlp.up_proj.weight.data[2, 3] = math.nan
    with pytest.raises(ValueError, match=r"layers.1.mlp.up_proj holds 1 values .* the first at \(2, 3\)"):
        quantize(model, Scheme(8))
    assert len(linear_maps(model)) == 14
    with pytest.raises(ValueError, match="nothing to quantize in this LayerNorm"):
        quantize(nn.LayerNorm(4), Scheme(8))


def test_a_zero_channel_stays_one():
    model = nn.Sequential(nn.Linear(64, 8))
    model[0].weight.data[5] = 0
    quantize(model, Scheme(4, "group", 32))
    assert (model[0].decode()[5] == 0).all() and model(torch.randn(3, 64)).isfinite().all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda t: t.update({"0.scales": t["0.scales"][:, :1].clone()}),
            r"scales of .*: 0: shape \(48, 1\) in float16",
        ),
        (lambda t: t["0.scales"].fill_(math.nan), "0.scales holds 96 values"),
        (lambda t: t["2.weight"].fill_(math.inf), "2.weight holds 144 values"),
        (lambda t: t.pop("0.scales"), "0 has no scales: the file is not whole"),
        (lambda t: t.pop("0.bias"), r"0.bias has the shape None, this model needs \(48,\)"),
        (lambda t: t.update({"0.codes": t["0.codes"].float()}), r"codes of .* in float32"),
        (lambda t: t.update({"more": torch.zeros(2)}), "more has the shape"),
    ],
)
def test_damaged_files_are_refused_and_nothing_changed(spoil, message, tmp_path):
    def made():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 3))

    model = made()
    quantize(model, Scheme(4, "group", 32), only=["0"])
    path = save(model, tmp_path / "model.safetensors")
    tensors, state = checkpoints.load(path)
    spoil(tensors)
    checkpoints.save(path, tensors, state)
    fresh = made()
    with pytest.raises(ValueError, match=message):
        load(fresh, path)
    assert type(fresh[0]) is nn.Linear


def test_files_of_other_models_are_refused(tmp_path):
    model = tiny("llama")
    quantize(model, INT4)
    path = save(model, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="this model has none"):
        load(tiny("gpt2"), path)
    with pytest.raises(ValueError, match=r"has 64 x 64 weights, this model's \(64, 32\)"):
        other = tiny("llama")
        replace(other, "model.layers.0.self_attn.q_proj", nn.Linear(32, 64, bias=False))
        load(other, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        load(tiny("llama"), path)
    with pytest.raises(ValueError, match="nothing in this LlamaForCausalLM is quantized"):
        save(tiny("llama"), path)
    checkpoints.save(path, {}, {})
    with pytest.raises(ValueError, match="holds no quantized model"):
        load(tiny("llama"), path)


def test_moving_to_another_type_rounds_no_scale():
    model = tiny("llama")
    quantize(model, Scheme(4, "group", 32, scales="float32"), embeddings=True, head=True)
    kept = model.model.layers[0].mlp.up_proj.scales.clone()
    model.to(torch.bfloat16)
    moved = model.model.layers[0].mlp.up_proj
    assert moved.scales.dtype == torch.float32 and torch.equal(moved.scales, kept)
    assert model.model.embed_tokens(IDS).dtype == torch.bfloat16 == logits(model).dtype
    assert isinstance(model.lm_head, TiedHead)


def test_a_quantized_base_trains_its_adapter():
    model = tiny("llama")
    add_lora(model, rank=4)
    quantize(model, Scheme(4, "group", 32, codes="nf4", double=True))
    assert isinstance(model.model.layers[0].mlp.up_proj, LoRALinear)
    model(input_ids=IDS).logits.square().mean().backward()
    gradients = [one.grad for name, one in model.named_parameters() if name.endswith("up")]
    assert gradients and all(one is not None and one.norm() > 0 for one in gradients)


def test_inputs_are_rounded_and_multiplied_as_whole_numbers():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 5, 64, generator=generator)
    codes, scales = quantize_inputs(states)
    assert scales.shape == (2, 5, 1) and codes.abs().amax(-1).eq(127).all()
    assert ((codes * scales - states).abs() <= scales / 2 + 1e-6).all()
    zeros, _ = quantize_inputs(torch.zeros(3, 64))
    assert not zeros.any()
    assert quantize_inputs(torch.tensor([[100.0]]), torch.tensor([0.1]))[0].item() == 127
    for width in (64, 2048):  # beyond 1,040 columns float32 would not be exact
        left = torch.full((18, width), 127, dtype=torch.int8)
        right = torch.full((8, width), -127, dtype=torch.int8)
        right[:, 0] = 1
        assert (whole_product(left, right) == -(127**2) * (width - 1) + 127).all()


@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(8, "tensor"), Scheme(4, "group", 32)], ids=lambda one: one.name)
def test_products_of_integers_are_those_of_what_they_stand_for(scheme):
    torch.manual_seed(0)
    linear, states = nn.Linear(64, 24), torch.randn(4, 7, 64)
    stored = encode(weight_of(linear), scheme)
    layer = QuantizedLinear(stored, linear.bias, "dynamic")
    codes, scales = quantize_inputs(states)
    assert torch.allclose(layer(states), (codes * scales) @ stored.decode().T + linear.bias, atol=1e-5)
    assert (layer(states) - linear(states)).abs().max() < (0.05 if scheme.bits == 8 else 0.5)
    fixed = QuantizedLinear(stored, linear.bias, "static", torch.tensor([0.03]))
    codes, _ = quantize_inputs(states, torch.tensor([0.03]))
    assert torch.allclose(fixed(states), codes * 0.03 @ stored.decode().T + linear.bias, atol=1e-5)
    for settings in ({"activations": "static"}, {"input_scale": torch.ones(1)}, {"activations": "int4"}):
        with pytest.raises(ValueError, match=r"input_scale belongs|expected one of"):
            QuantizedLinear(stored, **settings)
    with pytest.raises(ValueError, match="threshold=0"):
        QuantizedLinear(stored, activations="mixed", threshold=0)


def test_outliers_are_multiplied_apart():
    torch.manual_seed(0)
    linear, states = nn.Linear(64, 24, bias=False), torch.randn(9, 64)
    states[:, 7] *= 100
    states[2, 9] = -50.0
    stored = encode(weight_of(linear), Scheme(8))
    exact = states @ stored.decode().T
    errors = {how: (QuantizedLinear(stored, None, how)(states) - exact).norm() for how in ("dynamic", "mixed")}
    assert errors["mixed"] < errors["dynamic"] / 10
    plain = states.clone()
    plain[:, [7, 9]] = 0
    by_hand = QuantizedLinear(stored, None, "dynamic")(plain) + states[:, [7, 9]] @ stored.decode()[:, [7, 9]].T
    assert torch.allclose(QuantizedLinear(stored, None, "mixed")(states), by_hand, atol=1e-5)


@pytest.mark.parametrize("kind", ["ours", "gpt2", "llama", "t5"])
def test_injected_outliers_change_no_output(kind):
    model = tiny(kind)
    before = logits(model)
    assert len(norm_pairs(model)) == {"t5": 10}.get(kind, 4)
    columns = inject_outliers(model, 3, 16.0)
    assert len(columns) == 3 and torch.allclose(logits(model), before, atol=1e-4)
    norm, _ = norm_pairs(model)[0]
    quantize(model, Scheme(8))
    with pytest.raises(ValueError, match="rescale before quantize"):
        rescale(norm, [next(one for one in model.modules() if isinstance(one, QuantizedLinear))], torch.ones(64))


def test_outliers_are_refused_where_the_residual_reads_the_norm():
    with pytest.raises(ValueError, match="no norm is known"):
        inject_outliers(tiny("bert"))
    with pytest.raises(ValueError, match="no norm is known"):
        norm_pairs(Transformer(TransformerConfig(96, width=64, layers=2, norm_place="post")))
    with pytest.raises(ValueError, match="columns=99, factor=64"):
        inject_outliers(tiny("llama"), 99)


# --- the embedded decoder


@pytest.fixture(scope="module")
def decoder():
    loaded = models.load("decoder", profile="laptop")
    ids = held_out(loaded.tokenizer, 16, 256)
    return loaded.model, loaded.tokenizer, ids, token_losses(loaded.model, ids)


@pytest.mark.parametrize(
    ("scheme", "least", "most"),
    [
        (Scheme(8), 0.995, 1.005),
        (INT4, 1.0, 1.05),
        (Scheme(4, "group", 64, codes="nf4", double=True), 1.0, 1.05),
        (Scheme(2, "group", 32), 3.0, 100.0),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_quality_of_the_embedded_decoder(decoder, scheme, least, most):
    model, _, ids, baseline = decoder
    other = copy.deepcopy(model)
    quantize(other, scheme)
    ratio, low, high = relative(token_losses(other, ids), baseline)
    assert least <= low <= ratio <= high <= most
    assert perplexity(other, ids) / perplexity(model, ids) == pytest.approx(ratio, rel=1e-4)


def test_bytes_of_the_embedded_decoder_in_memory_and_file(decoder, tmp_path):
    model = copy.deepcopy(decoder[0])
    predicted = sum(bytes_of(model, INT4).values())
    report = quantize(model, INT4)
    assert report.smaller > 6.5
    path = save(model, tmp_path / "decoder.safetensors")
    assert abs(os.path.getsize(path) / predicted - 1) < 0.01
    assert sum(bytes_of(model).values()) == predicted
    report.table()
    report.layers_table(3)


def test_inputs_of_eight_bits_on_the_embedded_decoder(decoder):
    model, _, ids, baseline = decoder
    ids, baseline = ids[:6], baseline[:6]
    ratios = {}
    for name, changed in (("plain", False), ("outliers", True)):
        for how in ("dynamic", "static", "mixed"):
            other = copy.deepcopy(model)
            if changed:
                inject_outliers(other, 6, 128.0)
            quantize(other, Scheme(8), activations=how, calibration=[ids[:2]])
            ratios[name, how] = relative(token_losses(other, ids), baseline)[0]
    assert ratios["plain", "dynamic"] < 1.01 and ratios["plain", "static"] < 1.06
    assert ratios["outliers", "dynamic"] > 1.1 and ratios["outliers", "static"] > 1.5
    assert ratios["outliers", "mixed"] < 1.05


def test_which_layers_hurt(decoder):
    model, tokenizer, ids, baseline = decoder
    kept = [one.clone() for one in model.parameters()]
    groups = groups_of(model, "block")
    assert [len(names) for names in groups.values()] == [7] * 5 and len(groups_of(model, "layer")) == 35
    found = sensitivity(model, Scheme(3), lambda one: relative(token_losses(one, ids[:4]), baseline[:4])[0], groups)
    assert max(found, key=found.get) in ("0", "1") and found["0"] > found["4"]
    assert all(torch.equal(one, other) for one, other in zip(kept, model.parameters(), strict=True))
    with pytest.raises(ValueError, match="by='size': expected one of kind, block, layer"):
        groups_of(model, "size")
    assert recalls(model, tokenizer, 20).mean() > 0.7
    with pytest.raises(ValueError, match="the same tokens"):
        relative(baseline, baseline[:2])
