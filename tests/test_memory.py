"""What is computed about memory against what is counted, published numbers, and what must be refused."""

import dataclasses
import importlib.util
import math

import pytest
import torch
from torch import nn

from course_utils import families, memory
from course_utils.lora import add_lora
from course_utils.memory import GB, SHAPES, Allocations, Plan, Weight, needs
from course_utils.transformer import Transformer, TransformerConfig
from tests.benchmarks import memory as grid

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here: its allocator is measured where it is")
TINY = TransformerConfig(100, width=32, heads=4, layers=2, positions="learned", context_window=32)


# --- shapes


@pytest.mark.parametrize("name", SHAPES)
def test_the_weights_of_a_shape_are_those_of_the_model(name):
    with torch.device("meta"):
        model = Transformer(SHAPES[name])
    assert memory.parameters(name) == model.parameter_count()
    counted = sorted(tuple(weight.shape) for weight in memory.weight_shapes(name) for _ in range(weight.copies))
    assert counted == sorted(tuple(parameter.shape) for parameter in model.parameters())
    stated, source = memory.SOURCES[name]
    assert memory.parameters(name) == pytest.approx(stated, rel=0.03) and source


def test_every_switch_that_changes_weights_is_counted():
    for config in (
        dataclasses.replace(TINY, mlp_width=0),
        dataclasses.replace(TINY, head_bias=True, tied_embeddings=False, head_transform=True),
        TransformerConfig(50, kind="encoder-decoder", decoder_layers=3, decoder_heads=2, decoder_mlp_width=40),
        TransformerConfig(50, kind="encoder-decoder", shared_embeddings=False, norm="rmsnorm"),
        TransformerConfig(50, head=False, attention_output_bias=False, norm_bias=False),
        families.palm_block(32, 4, head_size=16).config,
    ):
        assert memory.parameters(config) == Transformer(config).parameter_count()


# --- prediction against measurement


QUICK = [setting for setting in grid.settings() if setting.size == "small"]


@pytest.mark.parametrize("setting", QUICK, ids=str)
def test_predictions_agree_with_what_exists(setting):
    predicted, measured = grid.run(setting)
    compared = memory.compare(predicted, measured)
    for part, _, _, deviation in compared:
        assert abs(deviation) <= grid.LIMITS[part], part
    expected = {"weights", "peak", *(("gradients", "activations") if setting.plan.trains else ("cache",))}
    assert {row[0] for row in compared} - {"optimizer"} == expected
    assert predicted.peak <= predicted.total == sum(predicted.parts.values())


def test_the_grid_covers_what_was_promised():
    plans = [setting.plan for setting in grid.settings()]
    assert len(plans) >= 12 and len(QUICK) >= 12
    assert {"gpt2", "llama", "bert", "t5"} <= {setting.family for setting in grid.settings()}
    assert len({setting.family for setting in grid.settings() if setting.plan.library == "transformers"}) >= 2
    assert {plan.optimizer for plan in plans} == {"sgd", "momentum", "adam", "adafactor"}
    assert {plan.method for plan in plans} == {"full", "lora", "inference"}
    assert {plan.checkpointing for plan in plans} == {plan.fused for plan in plans} == {True, False}
    assert {(plan.weights, plan.activations) for plan in plans} == {
        ("float32", None), ("bfloat16", None), ("float32", "bfloat16")
    }  # fmt: skip


ODD = dict(vocabulary_size=333, width=48, heads=6, mlp_width=130)


@pytest.mark.parametrize(
    ("config", "plan"),
    [
        (TransformerConfig(**(families.PALM | ODD)), Plan(batch=1, tokens=17)),
        (
            TransformerConfig(kind="encoder-decoder", norm_place="post", layers=2, **ODD),
            Plan(batch=5, tokens=7, source=30),
        ),
        (
            dataclasses.replace(TINY, mlp_width=0, dropout=0.1),
            Plan(batch=2, tokens=9, fused=False, optimizer="momentum"),
        ),
        (
            dataclasses.replace(SHAPES["t5-base"], dropout=0.0, attention_dropout=0.0, **ODD),
            Plan(tokens=40, checkpointing=True),
        ),
        (dataclasses.replace(SHAPES["bloom-560m"], **ODD), Plan(batch=2, tokens=33, checkpointing=True)),
        (dataclasses.replace(SHAPES["llama-7b"], **ODD), Plan(batch=1, tokens=50, activations="bfloat16")),
    ],
    ids=("palm", "post-norm encoder-decoder", "attention alone", "t5", "bloom", "llama"),
)
def test_odd_shapes_agree_too(config, plan):
    config = dataclasses.replace(config, layers=3)
    plan = dataclasses.replace(plan, device="cpu")
    ids = torch.randint(0, config.vocabulary_size, (plan.batch, plan.tokens))
    batch = dict(input_ids=ids, labels=ids)
    if config.kind == "encoder-decoder":
        source = plan.source or plan.tokens
        batch |= dict(decoder_input_ids=ids, input_ids=torch.randint(0, 333, (plan.batch, source)))
    if not plan.fused:
        batch["return_attentions"] = True
    dtype = torch.bfloat16 if plan.activations else None
    measured = memory.measure_training(
        Transformer(config), batch, optimizer=plan.optimizer, dtype=dtype, checkpointing=plan.checkpointing
    )
    for part, _, _, deviation in memory.compare(needs(config, plan), measured):
        assert abs(deviation) <= (0.02 if part == "activations" else grid.LIMITS[part]), part


@CUDA
@pytest.mark.parametrize("setting", grid.settings("cuda")[::3], ids=str)
def test_predictions_agree_on_cuda(setting):
    for part, _, _, deviation in memory.compare(*grid.run(setting)):
        assert abs(deviation) <= grid.LIMITS[part], part


def test_activations_are_what_autograd_saves():
    """The allocations of a forward pass against autograd's own list of saved tensors."""
    model = Transformer(TINY)
    ids = torch.randint(0, 100, (3, 16))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def note(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(ids)
    kept = sum(size for place, size in saved.items() if place not in own)
    with Allocations() as counts:
        graph = model(ids).logits.grad_fn
    assert graph is not None
    # The token numbers existed before; the positions are made anew.
    assert counts.held + ids.nbytes == pytest.approx(kept, rel=1e-3)
    predicted = memory.kept(TINY, Plan(batch=3, tokens=16, device="cpu"))
    assert sum(item.bytes * item.copies for item in predicted) == pytest.approx(kept, rel=1e-3)
    assert output.logits.shape == (3, 16, 100)


def test_allocations_are_those_of_the_profiler(capfd):
    """Our count against the events of the allocator itself."""
    from torch.profiler import ProfilerActivity, profile

    model = Transformer(dataclasses.replace(TINY, width=64))
    ids = torch.randint(0, 100, (4, 32))

    def step():
        model(ids).logits.logsumexp(-1).sum().backward()
        model.zero_grad()

    step()
    with Allocations() as ours:
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert ours.peak == pytest.approx(peak, rel=0.01) and ours.held == now == 0
    capfd.readouterr()


def test_allocations_count_each_storage_once_and_nothing_from_before():
    before = torch.ones(1000)
    with Allocations() as counts:
        view = before[10:]
        new = before + 1
        assert (counts.held, counts.peak) == (4000, 4000)
        flat = new.view(10, 100).t()
        new.mul_(2)
        assert counts.held == 4000
        del new
        assert counts.held == 4000
        del flat
        assert (counts.held, counts.peak) == (0, 4000)
        left = torch.zeros(5, dtype=torch.float64)
    del left
    assert counts.held == 40 and len(view) == 990
    assert memory.bytes_of([before, view], {"again": before}, None, "text") == 4000


def test_checkpointing_changes_memory_and_no_gradient():
    ids = torch.randint(0, 100, (2, 16))
    torch.manual_seed(0)
    model = Transformer(TINY)
    found = []
    for manager in (memory.checkpointed(model), torch.enable_grad()):
        with manager:
            model(ids).logits.logsumexp(-1).sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
        model.zero_grad()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert "forward" not in vars(model.decoder.layers[0])


def test_a_cache_that_grows_step_by_step_holds_up_to_twice_the_keys():
    model = Transformer(TINY).eval()
    with torch.no_grad():
        cache = model(torch.zeros(1, 9, dtype=torch.long), use_cache=True).cache
        computed = memory.cache_bytes(TINY, Plan(method="inference", tokens=9))
        assert memory.bytes_of(cache.layers) == computed
        model(torch.zeros(1, 1, dtype=torch.long), cache=cache)
    assert memory.bytes_of(cache.layers) == 2 * computed


# --- published numbers


def test_zero_is_that_of_the_paper():
    """Rajbhandari et al. (2020), figure 1: 7.5 billion weights, mixed precision, 64 devices."""
    weights, shards = 7.5e9, 64
    config = TransformerConfig(1000, width=4096, heads=32, layers=37, norm_bias=False, positions="none")
    scale = weights / memory.parameters(config)
    assert 0.98 < scale < 1.02
    for stage, stated in ((0, 120), (1, 31.4), (2, 16.6), (3, 1.9)):
        plan = Plan(
            weights="bfloat16", states="float32", master=True, stage=max(stage, 1), shards=shards if stage else 1
        )
        found = needs(config, plan)
        total = (found.weights + found.gradients + found.optimizer) * scale / GB
        assert total == pytest.approx(stated, rel=0.015)


def test_korthikanti_is_that_of_the_paper():
    """Korthikanti et al. (2022), section 4.1: 5as/h is 80 for GPT-3; and our own count of the same block."""
    plan = Plan(batch=1, tokens=2048, weights="float16")
    config = SHAPES["gpt3-175b"]
    assert memory.korthikanti(config, plan) == 96 * 2048 * 12288 * (34 + 80)
    assert memory.korthikanti(config, dataclasses.replace(plan, checkpointing=True)) == 96 * 2048 * 12288 * 2
    # In the same setting, without the maps: dropout, half precision, masks of a byte.
    config = dataclasses.replace(config, dropout=0.1, attention_dropout=0.1)
    ours = sum(
        item.bytes * item.copies
        for item in memory.kept(config, plan)
        if item.where == "decoder's blocks" and "normalizers" not in item.what and "deviation" not in item.what
    )
    assert ours == 96 * 2048 * 12288 * 34


def test_eight_bit_adam_and_adafactor():
    matrix, vector = Weight("matrix", (4096, 1024), 2), Weight("vector", (1024,), 3)
    numbers = 4096 * 1024
    assert memory.optimizer_bytes([matrix], "adam8bit") == 2 * 2 * (numbers + 4 * numbers // 2048)
    assert memory.optimizer_bytes([vector], "adam8bit") == 3 * 8 * 1024
    assert memory.optimizer_bytes([matrix], "adafactor") == 2 * (4 * (4096 + 1024) + 4)
    assert memory.optimizer_bytes([vector], "sgd") == 0
    assert memory.optimizer_bytes([matrix, vector], "momentum", "bfloat16") == 2 * (2 * numbers + 3 * 1024)
    # Dettmers et al. (2022), section 1: from 8 bytes a weight to 2, a quarter.
    share = needs("gpt2-large", Plan(optimizer="adam8bit")).optimizer / needs("gpt2-large").optimizer
    assert share == pytest.approx(0.25, abs=0.002)


@pytest.mark.skipif(not (torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes")), reason="needs both")
def test_eight_bit_adam_of_bitsandbytes():
    import bitsandbytes

    layer = nn.Linear(2048, 2048, device="cuda")
    optimizer = bitsandbytes.optim.Adam8bit(layer.parameters())
    layer(torch.ones(1, 2048, device="cuda")).sum().backward()
    optimizer.step()
    weights = [Weight("weight", (2048, 2048), 1), Weight("bias", (2048,), 1)]
    assert memory.optimizer_bytes(weights, "adam8bit") == pytest.approx(memory.bytes_of(optimizer), rel=0.1)


def test_nf4_takes_the_bits_of_the_paper():
    """Dettmers et al. (2023), section 3: 0.5 bits a weight for the scales, 0.127 with double quantization."""
    numbers = 2**24
    assert 8 * memory.nf4_bytes(numbers, double=False) / numbers == 4.5
    assert 8 * memory.nf4_bytes(numbers) / numbers == pytest.approx(4.127, abs=0.0005)
    assert memory.nf4_bytes(1) == 1 + 1 + 4


def test_qlora_fits_where_the_paper_says():
    """Dettmers et al. (2023), abstract: a 65 B model is fine-tuned on one GPU of 48 GB instead of more than 780 GB."""
    plan = Plan(method="qlora", weights="bfloat16", rank=64, adapters="bfloat16", tokens=512, checkpointing=True)
    assert needs("llama-65b", plan).peak < 48 * GB
    full = needs("llama-65b", Plan(weights="float16", states="float32", tokens=512, checkpointing=True))
    assert full.weights + full.gradients + full.optimizer > 780 * GB


def test_grouped_heads_shrink_the_cache():
    plan = Plan(method="inference", weights="bfloat16", tokens=4096)
    assert memory.cache_bytes("llama-65b", plan) == 8 * memory.cache_bytes("llama2-70b", plan)
    assert needs("llama-7b", plan).cache == 2 * 2 * 32 * 4096 * 4096
    assert needs("gpt2", Plan(method="inference", weights="int8")).weights == memory.parameters("gpt2")


# --- LoRA


def test_lora_trains_what_our_module_adds():
    for config, targets in ((TINY, ("query", "value")), (TINY, Plan().targets)):
        model = Transformer(config)
        plan = Plan(method="lora", rank=4, targets=targets)
        add_lora(model, rank=4, targets=[target for target in targets if target != "gate"])
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert memory.trained_parameters(config, plan) == (trained, model.parameter_count())
    assert memory.trained_parameters(TINY, Plan()) == (memory.parameters(TINY),) * 2
    assert memory.trained_parameters(TINY, Plan(method="inference"))[0] == 0


def test_lora_of_gpt3_is_that_of_the_paper():
    """Hu et al. (2022), tables 4 and 5: 4.7 and 37.7 million weights for ranks 1 and 8; 18 million in two ways."""
    for rank, targets, stated in (
        (1, ("query", "value"), 4.7e6),
        (8, ("query", "value"), 37.7e6),
        (8, ("query",), 18.9e6),
        (4, ("query", "value"), 18.9e6),
        (2, ("query", "key", "value", "output"), 18.9e6),
    ):
        plan = Plan(method="lora", rank=rank, targets=targets)
        assert memory.trained_parameters("gpt3-175b", plan)[0] == pytest.approx(stated, rel=0.005)


# --- the rule


def test_the_listed_parts_give_six_times_not_twenty():
    rule = memory.notes_rule(10**9)
    assert list(rule.parts.values()) == [4, 8, 4, 8] and rule.factor == 6 and rule.left == 64
    assert rule.rows()[0] == ("weights", "4", "4.00 GB", "1x")
    assert rule.rows()[-2:] == [("sum", "24", "24.0 GB", "6x"), ("claimed", "80", "80.0 GB", "20x")]
    # What it says of batches is what needs() says of one of that size.
    assert rule.sequences_claimed == pytest.approx(8 * rule.sequences)
    found = needs(rule.shape, Plan(batch=round(rule.sequences_claimed), tokens=rule.tokens))
    assert found.total / found.weights == pytest.approx(rule.claimed, rel=0.05)
    assert memory.notes_rule(175 * 10**9).shape in ("gpt3-175b", "bloom-176b")
    with pytest.raises(ValueError, match="above 0"):
        memory.notes_rule(0)


# --- the parts


def test_each_switch_moves_its_part():
    base = needs("gpt2", Plan(batch=2))
    half = needs("gpt2", Plan(batch=2, weights="bfloat16"))
    assert base.weights == 2 * half.weights and base.gradients == 2 * half.gradients
    mixed = needs("gpt2", Plan(batch=2, weights="bfloat16", states="float32", master=True))
    assert mixed.optimizer == base.optimizer + base.weights
    assert needs("gpt2", Plan(batch=4)).activations == pytest.approx(2 * base.activations, rel=0.001)
    assert needs("gpt2", Plan(batch=2, checkpointing=True)).activations < 0.1 * base.activations
    assert needs("gpt2", Plan(batch=2, fused=False)).activations > base.activations
    lora = needs("gpt2", Plan(batch=2, method="lora"))
    assert lora.optimizer < 0.02 * base.optimizer and lora.weights > base.weights
    assert needs("gpt2", Plan(batch=2, shards=4)).weights == math.ceil(base.weights / 4)
    assert needs("gpt2", Plan(batch=2, shards=4, stage=1)).gradients == base.gradients
    assert needs("gpt2", Plan(method="inference")).parts.keys() == {"weights", "cache", "temporary"}
    assert memory.kept("gpt2", Plan(method="inference")) == []


@pytest.mark.parametrize("name", SHAPES)
def test_the_peak_is_never_more_than_the_sum(name):
    for method in memory.METHODS:
        for switches in (
            {},
            dict(shards=64),
            dict(shards=8, stage=1),
            dict(checkpointing=True),
            dict(weights="bfloat16"),
        ):
            for tokens in (1, 512):
                found = needs(name, Plan(method=method, tokens=tokens, **switches))
                assert 0 < found.weights < found.peak <= found.total


def test_rows_sizes_and_text(capsys):
    found = needs("gpt2", Plan())
    assert [row[0] for row in found.rows()] == [*found.parts, "total", "peak"]
    assert found.rows()[0] == ("weights", "498 MB", f"{found.weights / found.total:.0%}")
    assert "optimizer" in str(found) and str(found).count("\n") == 6
    found.table("GPT-2")
    assert capsys.readouterr().out.startswith("GPT-2\npart | memory | share\nweights | 498 MB")
    for number, text in ((0, "0 B"), (999, "999 B"), (1500, "1.50 kB"), (99.96e9, "100 GB"), (2.5e13, "25.0 TB")):
        assert memory.size(number) == text
    assert memory.GPUS["T4"] < memory.GPUS["A100 40"] < memory.GPUS["A100 80"] < memory.GPUS["H200"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (dict(method="fine"), "method='fine': expected one of full, lora"),
        (dict(optimizer="adagrad"), "adam8bit"),
        (dict(weights="int4"), "weights='int4'"),
        (dict(weights="int8"), "weights='int8'"),
        (dict(activations="float32", weights="float16"), "no wider"),
        (dict(batch=0), "batch=0: expected a whole number"),
        (dict(tokens=1.5), "tokens=1.5"),
        (dict(shards=True), "shards=True"),
        (dict(stage=4), "stages 1, 2 and 3"),
        (dict(method="lora", targets=()), "targets=()"),
        (dict(method="lora", targets=("q_proj",)), "query_key_value"),
        (dict(device="tpu"), "device='tpu'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says.replace("(", r"\(").replace(")", r"\)")):
        Plan(**wrong)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="expected a TransformerConfig or one of bert-base"):
        needs("gpt5")
    with pytest.raises(ValueError, match="context window ends at 1024"):
        needs("gpt2", Plan(tokens=2000))
    with pytest.raises(ValueError, match="none of these maps"):
        needs("gpt2", Plan(method="lora", targets=("gate",)))
    with pytest.raises(ValueError, match="8-bit Adam needs bitsandbytes"):
        memory.measure_training(Transformer(TINY), {}, optimizer="adam8bit")
    with pytest.raises(ValueError, match="nothing to train"):
        memory.measure_training(Transformer(TINY).requires_grad_(False), {})
