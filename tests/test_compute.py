"""FLOPs by formula against torch's counter, over families; peaks, days and published runs against their sources."""

import copy
import dataclasses

import pytest
import torch
import transformers as hf
from torch import nn
from torch.utils.checkpoint import checkpoint

from course_utils import compute
from course_utils.compute import DEVICES, RUNS, counted, forward_flops, six_nd, training_flops
from course_utils.families import PALM, config_from_huggingface
from course_utils.memory import parameters
from course_utils.transformer import Transformer, TransformerConfig

T5_LIKE = dict(kind="encoder-decoder", positions="t5", decoder_layers=3, decoder_heads=2, decoder_mlp_width=50)
OURS = {
    "gpt-2": TransformerConfig(61, width=24, layers=2, heads=3, positions="learned", context_window=32),
    "llama, grouped": TransformerConfig(
        61, width=24, layers=2, heads=4, key_value_heads=2, head_size=10, mlp_width=35, positions="rotary",
        gated=True, norm="rmsnorm", tied_embeddings=False, attention_bias=False, mlp_bias=False,
    ),
    "bert": TransformerConfig(61, kind="encoder", width=24, heads=4, layers=2, head_transform=True, head_bias=True),
    "palm": TransformerConfig(61, width=24, heads=4, layers=2, **PALM),
    "t5, unequal": TransformerConfig(61, width=24, layers=2, heads=4, gated=True, **T5_LIKE),
    "attention alone": TransformerConfig(61, width=24, layers=3, heads=4, mlp_width=0),
    "no head": TransformerConfig(61, width=24, layers=2, heads=4, head=False, positions="alibi"),
}  # fmt: skip
SMALL = dict(vocab_size=61, bos_token_id=1, eos_token_id=2, pad_token_id=0)
WIDE = SMALL | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=50)
FIVE = SMALL | dict(d_model=32, d_kv=8, d_ff=50, num_layers=2, num_decoder_layers=3, num_heads=4)
BART = SMALL | dict(d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=50)
THEIRS = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, **SMALL)),
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**WIDE)),
    "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**WIDE)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(num_key_value_heads=2, **WIDE)),
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **SMALL)),
    "t5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(feed_forward_proj="gated-gelu", decoder_start_token_id=0, **FIVE)
    ),
    "bart": lambda: hf.BartForConditionalGeneration(
        hf.BartConfig(decoder_ffn_dim=70, decoder_attention_heads=2, max_position_embeddings=64, **BART)
    ),
}


def ids(batch, tokens):
    return torch.randint(3, 61, (batch, tokens), generator=torch.Generator().manual_seed(0))


def inputs_of(config, batch=2, tokens=12, source=9):
    if config.kind == "encoder-decoder":
        return dict(input_ids=ids(batch, source), decoder_input_ids=ids(batch, tokens))
    return dict(input_ids=ids(batch, tokens))


def passes(model, inputs, read=lambda output: output.logits):
    """FLOPs that torch counts in a forward and in the backward pass behind it."""
    kept = []
    forward = counted(lambda: kept.append(read(model(**inputs))))
    backward = counted(lambda: kept[0].float().sum().backward())
    return sum(forward.values()), sum(backward.values())


# --- formula against counter ---


def test_by_hand():
    config = TransformerConfig(7, width=4, layers=1, heads=2, mlp_width=6, positions="none")
    flops = forward_flops(config, 1, 3)
    assert flops.projections == 4 * (2 * 3 * 4 * 4)  # four maps of 4 x 4, three tokens, two FLOPs a weight
    assert flops.scores == 2 * (2 * 3 * 3 * 4)  # nine pairs, four numbers each, two products
    assert flops.feed_forward == 2 * (2 * 3 * 4 * 6)
    assert flops.head == 2 * 3 * 4 * 7
    gated = forward_flops(dataclasses.replace(config, gated=True), 5, 3)
    assert gated.feed_forward == 5 * flops.feed_forward * 3 // 2
    assert flops.total == sum(flops.parts.values())


@pytest.mark.parametrize("config", OURS.values(), ids=OURS)
def test_our_transformer(config):
    torch.manual_seed(0)
    model = Transformer(config)
    step = training_flops(config, 2, 12, 9)
    read = (lambda output: output.logits) if config.head else (lambda output: output.last_hidden_state)
    explicit = passes(model, inputs_of(config) | dict(return_attentions=True), read)
    assert explicit == (step.forward.total, step.backward.total)
    assert step.model == step.total == 3 * step.forward.total
    if config.positions not in ("t5", "alibi"):  # a bias that is trained, or of float, takes torch's other path
        fused = training_flops(config, 2, 12, 9, fused=True)
        assert passes(model, inputs_of(config), read) == (fused.forward.total, fused.total - fused.forward.total)
        assert fused.model == step.model and fused.recomputed.total == step.forward.scores // 2


@pytest.mark.parametrize("family", THEIRS)
def test_models_of_transformers(family):
    torch.manual_seed(0)
    model = THEIRS[family]().train()
    model.set_attn_implementation("eager")
    config = config_from_huggingface(model)
    step = training_flops(config, 2, 12, 9)
    assert passes(model, inputs_of(config)) == (step.forward.total, step.backward.total)


@pytest.mark.parametrize(("family", "left_out"), [("gpt2", 0), ("llama", 1)])
def test_checkpointing_is_a_third_more(family, left_out):
    torch.manual_seed(0)
    model = THEIRS[family]().train()
    model.set_attn_implementation("eager")
    config = config_from_huggingface(model)
    model.activation_checkpointing_enable()
    step = training_flops(config, 2, 12, checkpointing=True)
    head = step.forward.head
    assert step.recomputed.total == step.forward.total - head
    assert (step.total - 3 * head) / (step.model - 3 * head) == 4 / 3
    # LLaMA has no dropout behind a block's last map: torch then need not compute that map again.
    last = left_out * config.layers * 2 * 2 * 12 * config.size_of_mlp * config.width
    assert sum(passes(model, inputs_of(config))) == step.total - last


def test_checkpointing_by_hand():
    layer = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
    states = torch.randn(5, 8, requires_grad=True)
    plain = sum(counted(lambda: layer(states).sum().backward()).values())
    again = sum(counted(lambda: checkpoint(layer, states, use_reentrant=False).sum().backward()).values())
    assert plain == 3 * 2 * (2 * 5 * 8 * 16) and again * 3 == plain * 4


def test_frozen_weights_save_a_product():
    config = OURS["llama, grouped"]
    torch.manual_seed(0)
    model = Transformer(config).requires_grad_(False)
    model.embeddings.requires_grad_(True)  # below everything: the gradient passes through all
    step = training_flops(config, 2, 12, frozen=True)
    assert passes(model, inputs_of(config) | dict(return_attentions=True)) == (step.forward.total, step.backward.total)
    assert step.model < 0.75 * training_flops(config, 2, 12).model


def test_table_adds_up():
    rows = training_flops("gpt2", 1, 1024, checkpointing=True).rows()
    assert [row[0] for row in rows] == ["projections", "scores", "feed-forward", "head", "total"]
    assert rows[-1][-1] == "100%"


@pytest.mark.parametrize("wrong", [dict(batch=0, tokens=3), dict(batch=1, tokens=2.5), dict(batch=True, tokens=3)])
def test_refuses_sizes(wrong):
    with pytest.raises(ValueError, match="expected a whole number of 1 or more"):
        forward_flops("gpt2", **wrong)
    with pytest.raises(ValueError, match="expected a TransformerConfig or one of"):
        forward_flops("gpt5", 1, 1)


# --- the short rule ---


def test_six_nd_is_near_for_large_models_and_errs_for_small_or_long():
    def ratio(shape, tokens):
        return training_flops(shape, 1, tokens).model / six_nd(parameters(shape), tokens)

    assert ratio("gpt3-175b", 2048) == pytest.approx(1.03, abs=0.01)
    assert ratio("gpt2", 1024) == pytest.approx(1.14, abs=0.02)
    assert ratio("llama-7b", 131072) > 3
    tiny = TransformerConfig(50000, width=64, layers=2, heads=4, positions="none", tied_embeddings=False)
    assert ratio(tiny, 64) < 0.6  # the table that is only looked up is half of its parameters


@pytest.mark.parametrize("shape", ["gpt2-xl", "palm-540b", "bloom-176b"])
def test_appendix_b_of_palm(shape):
    exact = training_flops(shape, 1, 2048).model / 2048
    assert compute.per_token(shape, 2048) == pytest.approx(exact, rel=0.01)


def test_appendix_b_refuses_encoder_decoders():
    with pytest.raises(ValueError, match="no token meets all weights"):
        compute.per_token("t5-base", 512)


# --- speed ---


def test_utilisation_of_a_matrix_product():
    left = torch.randn(384, 384)
    taken = compute.seconds(lambda: left @ left)
    share = compute.utilisation(2 * 384**3, taken, compute.peak(size=384))
    assert 0.3 < share < 3
    with pytest.raises(ValueError, match="seconds=0: expected a positive number"):
        compute.utilisation(1.0, 0, 1.0)


def test_peak_of_a_known_gpu(monkeypatch):
    names = {
        "Tesla T4": 65, "Tesla V100-SXM2-16GB": 125, "Tesla V100-PCIE-32GB": 112, "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA H100 PCIe": 756.5, "NVIDIA H100 80GB HBM3": 989.5, "NVIDIA H200": 989.5, "NVIDIA L4": 121,
    }  # fmt: skip
    for name, teraflops in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert compute.peak("cuda", torch.float16) == teraflops * 1e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ValueError, match="the T4 has peaks for float16, float32"):
        compute.peak("cuda", torch.bfloat16)


# --- days ---


def test_the_claim_of_the_notes():
    """A petaFLOP/s-day is 8 V100 for a day, and 2 A100 only with the sparse peak rounded up."""
    day = compute.PETAFLOP_DAY
    assert compute.device_days(day, "V100", 1.0) == pytest.approx(8)
    assert compute.device_days(day, "A100", 1.0) == pytest.approx(1000 / 312)
    assert compute.device_days(day, "A100", 1.0, "float32") == pytest.approx(1000 / 19.5)
    assert 1e15 / DEVICES["A100"].sparse["bfloat16"] == pytest.approx(1.6, abs=0.01)
    assert compute.device_days(day, "H100", 0.4) == pytest.approx(compute.device_days(day, "H200", 1.0) * 2.5)


def test_cost():
    flops = 3600 * 312e12 * 0.5
    assert compute.device_days(flops, "A100", 0.5) * 24 == pytest.approx(1)
    assert compute.cost(flops, "A100", 0.5, price=2.5) == pytest.approx(2.5)
    assert compute.petaflop_days(compute.PETAFLOP_DAY) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(device="A1000", share=0.4, price=1), "device='A1000': expected one of T4, V100"),
        (dict(device="A100", share=40, price=1), "share=40: expected a utilisation above 0"),
        (dict(device="A100", share=0.4, price=-1), "price=-1: expected what one device costs"),
    ],
)
def test_days_refuse(wrong, message):
    with pytest.raises(ValueError, match=message):
        compute.cost(1e20, **wrong)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (999.6, "1 k"), (3.14e23, "314 Z"), (2e27, "2e+03 Y")]
)
def test_shown(number, text):
    assert compute.shown(number) == text


# --- published runs ---


def test_every_published_number_has_a_source():
    assert {"GPT-3", "BLOOM", "LLaMA", "Chinchilla", "BloombergGPT", "PaLM"} <= {name.split()[0] for name in RUNS}
    for run in RUNS.values():
        assert run.paper and run.counts and run.devices and run.device in DEVICES
        assert (run.flops is None) == (not run.stated) and (run.utilisation is None) == (not run.utilised)
    for device in DEVICES.values():
        assert device.source and all(10**12 < one < 10**16 for one in device.dense.values())
        assert all(one == 2 * device.dense[dtype] for dtype, one in device.sparse.items())


@pytest.mark.parametrize(
    ("name", "deviation", "implied"),
    [
        ("GPT-3 175B", 0.001, None),
        ("PaLM 540B", 0.001, 0.304),
        ("Chinchilla 70B", 0.021, None),
        ("Gopher 280B", -0.201, 0.302),
        ("BloombergGPT 50B", -0.268, 0.236),
        ("Llama 3 405B", -0.002, 0.345),
        ("BLOOM 176B", None, 0.318),
        ("LLaMA 13B", None, 0.514),
        ("LLaMA 65B", None, 0.477),
    ],
)
def test_recomputed(name, deviation, implied):
    run = RUNS[name]
    for found, expected in ((run.deviation, deviation), (run.implied, implied)):
        assert found is None if expected is None else found == pytest.approx(expected, abs=0.001)


def test_what_bloomberg_states_is_that_of_a_checkpointed_step():
    run = RUNS["BloombergGPT 50B"]
    step = training_flops("bloomberggpt-50b", 1, 2048, checkpointing=True)
    assert step.total / 2048 * run.tokens == pytest.approx(run.flops, rel=0.03)


def test_gpt3_in_petaflop_days():
    assert compute.petaflop_days(RUNS["GPT-3 175B"].computed) == pytest.approx(3640, abs=5)


def test_rows_say_what_is_not_stated():
    rows = {row[0]: row for row in compute.run_rows()}
    assert all(len(row) == len(compute.RUN_COLUMNS) for row in rows.values()) and len(rows) == len(RUNS)
    assert rows["LLaMA 65B"][4] == "not stated" and rows["LLaMA 65B"][7] == "1,022,362 A100"
    assert rows["Chinchilla 70B"][7:] == ("not stated", "")


def test_runs_are_not_changed_by_use():
    before = copy.deepcopy(RUNS)
    compute.run_rows(list(RUNS.values())[:2])
    assert before == RUNS
