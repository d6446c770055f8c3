"""The libraries of today: what is counted, what is noticed, the shipped table, and live where they are installed."""

import contextlib
import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from course_utils import lora
from course_utils.families import config_from_huggingface
from course_utils.memory import Plan, needs
from course_utils.quantization import libraries
from course_utils.quantization.layers import QuantizedLinear, linear_maps, quantize
from course_utils.quantization.libraries import (
    NF4_SCHEME,
    WAYS,
    Way,
    attempt,
    installed,
    measured_runs,
    stored_bytes,
    way,
    write_runs,
)
from course_utils.quantization.schemes import Scheme


@pytest.fixture(scope="module")
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = dict(hidden_size=64, num_attention_heads=4, intermediate_size=128, vocab_size=300, num_hidden_layers=2)
    return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True)).eval()


@pytest.fixture(scope="module")
def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = dict(n_embd=64, n_layer=2, n_head=4, n_positions=64, vocab_size=300, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(GPT2Config(**shape)).eval()


IDS = torch.arange(48).view(2, 24)


def test_storages_are_counted_once_and_inside_of_tensors():
    first, second = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)
    second.weight = first.weight
    assert stored_bytes(first, second) == stored_bytes(nn.ModuleList([first, second])) == 8 * 4 * 4
    assert stored_bytes(first.weight[:2]) == 8 * 4 * 4  # a view keeps the whole storage
    from torch.testing._internal.two_tensor import TwoTensor

    inner = torch.zeros(8, 4, dtype=torch.int8)
    assert stored_bytes(TwoTensor(inner, inner.clone())) == 2 * 32
    assert stored_bytes(None, {"a": [inner]}, "text") == 32


@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(4, "group", 32), NF4_SCHEME])
def test_the_bytes_of_ours_are_those_of_the_scheme(llama, scheme):
    changed = copy.deepcopy(llama)
    quantize(changed, scheme)
    expected = sum(scheme.bytes(*module.weight.shape) for module in linear_maps(llama).values())
    assert sum(libraries._weights(changed.get_submodule(name)) for name in linear_maps(llama)) == expected


def test_a_missing_library_says_how_to_get_it():
    with pytest.raises(ImportError, match=r"pip install \"course-utils\[quantization\]"):
        libraries.optional("no_such_library.part")
    assert "no_such_library" not in installed(["no_such_library", "torch"])
    assert "+" not in installed(["torch"])["torch"]


@pytest.mark.parametrize("name", ["torchao.quantization", "bitsandbytes.nn"])
def test_an_import_is_quiet(name):
    pytest.importorskip(name.partition(".")[0])
    code = f"from course_utils.quantization.libraries import optional; optional({name!r})"
    done = subprocess.run([sys.executable, "-W", "default::UserWarning", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_attempt_that_works_and_one_that_does_nothing(llama, gpt2):
    done = attempt(way("ours: int8 channel"), llama, IDS)
    assert (done.verdict, done.changed, done.maps, done.model) == ("runs", 14, 14, "nn.Linear")
    assert 3.5 < done.smaller < 4 and 0 < done.error < 0.05 and abs(done.perplexity - 1) < 0.01
    assert done.whole == pytest.approx(done.claimed, rel=1e-3)
    nothing = attempt(Way("ours", "leave it", lambda model: model), gpt2, IDS, text=False)
    assert (nothing.verdict, nothing.changed, nothing.model, nothing.error) == ("nothing", 0, "Conv1D", 0)
    assert nothing.perplexity is None
    cast = attempt(Way("ours", "leave it", lambda model: model, torch.bfloat16), gpt2, IDS, text=False)
    assert cast.verdict == "nothing" and cast.smaller == 2 and cast.error > 0
    some = attempt(Way("ours", "one map", lambda model: _one(model)), llama, IDS)
    assert (some.verdict, some.changed) == ("runs", 1)


def _one(model):
    quantize(model, Scheme(8), only=["layers.0.mlp.up_proj"])
    return model


def test_an_attempt_that_fails_gives_the_reason_on_one_line(llama):
    def broken(model):
        raise RuntimeError("no such\n  kernel " + 200 * "x")

    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    failed = attempt(Way("ours", "broken", broken), llama, IDS)
    assert failed.verdict == "fails" and failed.reason.startswith("RuntimeError: no such kernel x")
    assert len(failed.reason) <= 150 and failed.reason.endswith("...")
    assert (failed.smaller, failed.error, failed.perplexity) == (0, None, None)

    def spoiled(model):
        with torch.no_grad():
            model.model.norm.weight[0] = float("nan")
        return _one(model)

    wrong = attempt(Way("ours", "spoiled", spoiled), llama, IDS)
    assert (wrong.verdict, wrong.error, wrong.reason) == ("fails", None, "the logits are not finite")
    assert all(torch.equal(before[name], tensor) for name, tensor in llama.state_dict().items())


def test_the_shipped_file_holds_every_way_on_both_models():
    run = measured_runs()["cpu"]
    for model in ("nn.Linear", "Conv1D"):
        assert [row.way for row in run.results if row.model == model] == [str(one) for one in WAYS]
    assert {"torch", "torchao", "bitsandbytes", "transformers"} <= set(run.versions)
    for row in run.results:
        assert (row.verdict == "fails") == bool(row.reason)
        assert row.verdict != "runs" or (row.changed and row.error > 0)
    assert {one.library for one in run.codes} == {"torchao", "bitsandbytes"}
    with pytest.raises(ValueError, match=r"has no such row"):
        run.of("ours: nothing")
    with pytest.raises(ValueError, match=r"expected one of torch: model"):
        way("ours: nothing")


def test_our_rows_of_the_shipped_file_are_what_this_machine_gets():
    names = ["ours: int8 channel", "ours: nf4 group 64 double"]
    found, live = libraries.here(names)
    assert live == 2
    for name, row in zip(names, found, strict=True):
        shipped = measured_runs()["cpu"].of(name)
        assert row.smaller == pytest.approx(shipped.smaller, rel=1e-4)
        assert row.error == pytest.approx(shipped.error, rel=0.05)
        assert row.perplexity == pytest.approx(shipped.perplexity, abs=0.003)


def test_shipped_numbers_stand_in_for_a_library_that_is_missing(monkeypatch):
    monkeypatch.setattr(libraries, "installed", lambda *_: {})
    found, live = libraries.here(["torchao: Int8WeightOnlyConfig"])
    assert live == 0 and found == [measured_runs()["cpu"].of("torchao: Int8WeightOnlyConfig")]
    monkeypatch.setattr(libraries, "measured_runs", lambda: {})
    with pytest.raises(ValueError, match=r"torchao is not installed, and measured.json has no run"):
        libraries.here(["torchao: Int8WeightOnlyConfig"])


def test_writing_keeps_other_devices_and_a_damaged_file_is_refused(tmp_path):
    run = measured_runs()["cpu"]
    path = tmp_path / "measured.json"
    write_runs({"cpu": run}, path)
    assert measured_runs(path) == {"cpu": run}
    write_runs({"cuda": replace(run, device="cuda", codes=())}, path)
    assert set(measured_runs(path)) == {"cpu", "cuda"}
    assert [one.name for one in tmp_path.iterdir()] == ["measured.json"]
    for text in ("{", '{"cpu": {}}', '{"cpu": {"machine": "", "versions": {}, "codes": [], "results": [{"a": 1}]}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"make it with python -m"):
            measured_runs(path)


def test_rows_and_command_line(monkeypatch, capsys):
    assert len(libraries.rows_of(measured_runs()["cpu"])) == len(WAYS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    libraries.main(["--only", "to(bfloat16)"])
    assert "torch: model.to(bfloat16) | runs | 35 of 35 | 2.00" in capsys.readouterr().out
    for wrong in (["--only", "nothing like this"], ["--write", "--only", "ours"]):
        with pytest.raises(SystemExit), contextlib.redirect_stderr(None):
            libraries.main(wrong)


def test_qlora_is_add_lora_and_quantize(llama):
    model = copy.deepcopy(llama)
    names = lora.add_lora(model, rank=4)
    quantize(model, NF4_SCHEME)
    layers = [model.get_submodule(name) for name in names]
    assert len(names) == 14 and all(isinstance(one.base, QuantizedLinear) for one in layers)
    plain = copy.deepcopy(llama)
    quantize(plain, NF4_SCHEME)
    assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)  # the adapter begins as nothing
    model(input_ids=IDS, labels=IDS).loss.backward()
    trained = {name for name, one in model.named_parameters() if one.grad is not None}
    assert trained == {f"{name}.{part}" for name in names for part in ("down", "up")}
    assert all(one.up.grad.abs().sum() > 0 for one in layers)
    with pytest.raises(ValueError, match=r"floating-point weights"):
        lora.merge(model)


def test_the_planner_knows_the_bytes_of_a_qlora(llama):
    model = copy.deepcopy(llama)
    lora.add_lora(model, rank=8)
    quantize(model, NF4_SCHEME)
    predicted = needs(config_from_huggingface(llama), Plan(method="qlora", tokens=24, library="transformers")).weights
    assert stored_bytes(*model.parameters(), *_codes(model)) == pytest.approx(predicted, rel=0.01)


def _codes(model):
    return [one.quantized.tensors() for one in model.modules() if isinstance(one, QuantizedLinear)]


# --- with the libraries


@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_torchao_runs_on_linear_maps_and_leaves_conv1d(name, llama, gpt2):
    pytest.importorskip("torchao")
    done = attempt(way(f"torchao: {name}"), llama, IDS)
    assert (done.verdict, done.changed) == ("runs", 14) and 3 < done.smaller < 4
    assert done.claimed < 1.05 < done.whole  # the footprint believes the tensor
    silent = attempt(way(f"torchao: {name}"), gpt2, IDS, text=False)
    assert (silent.verdict, silent.error) == ("nothing", 0)


def test_torchao_by_its_own_filter_leaves_the_blocks_of_gpt2(gpt2):
    api = pytest.importorskip("torchao.quantization")
    model = copy.deepcopy(gpt2)
    api.quantize_(model, api.Int8WeightOnlyConfig())
    assert all(type(module.weight) is nn.Parameter for module in linear_maps(model).values())


@pytest.mark.parametrize("bits", ["Linear8bitLt", "Linear4bit, NF4, double"])
def test_bitsandbytes_runs_and_its_scales_are_counted(bits, llama):
    pytest.importorskip("bitsandbytes")
    done = attempt(way(f"bitsandbytes: {bits}"), llama, IDS)
    assert (done.verdict, done.changed) == ("runs", 14)
    assert (3 < done.smaller < 4) if "8" in bits else (5 < done.smaller < 7.76)


def test_the_configs_of_transformers_know_conv1d(gpt2):
    pytest.importorskip("bitsandbytes")
    done = attempt(way("transformers: BitsAndBytesConfig, 8-bit"), gpt2, IDS, text=False)
    assert (done.verdict, done.changed) == ("runs", 8)


def test_the_codes_of_the_libraries_are_ours(llama):
    pytest.importorskip("torchao")
    pytest.importorskip("bitsandbytes")
    for one in libraries.agreements(llama):
        least = 0.99 * one.codes if one.what == "int8_vectorwise_quant" else one.codes  # ties of float16
        assert one.equal >= least, one


def test_lora_trains_on_bitsandbytes(llama):
    pytest.importorskip("bitsandbytes")
    model = way("bitsandbytes: Linear4bit, NF4, double").change(copy.deepcopy(llama))
    names = lora.add_lora(model, rank=4)
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert len(names) == 14
    assert all(model.get_submodule(name).up.grad.abs().sum() > 0 for name in names)
