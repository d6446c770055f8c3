"""The training loop: what it computes, that it resumes bit for bit, and what it refuses."""

import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional

from course_utils.training import (
    SCHEDULES,
    aligned_loss,
    collate,
    evaluate,
    fit,
    inverse_sqrt,
    language_model_loss,
    next_token_loss,
)

CHECKED = hasattr(fit, "__wrapped__")
"""Whether shapes are checked at run time: beartype itself then draws from Python's generator."""
ROOT = Path(__file__).resolve().parents[1]


class Tiny(nn.Module):
    """A bigram model with dropout, tied weights and a norm: everything that a checkpoint could get wrong."""

    def __init__(self, vocabulary=11, width=6):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.dropout(self.norm(self.embedding(input_ids))))


def make(seed=0):
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed)
    return Tiny()


def examples(count=21, seed=1):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9, (count,), generator=generator)
    return [{"input_ids": torch.randint(0, 11, (int(n),), generator=generator)} for n in lengths]


def noisy_collate(rows):
    """Draws from all three generators, so that a resumption has to restore all three."""
    batch = collate(rows)
    shift = (0 if CHECKED else random.randrange(3)) + int(numpy.random.randint(3)) + int(torch.randint(3, ()))
    return batch | {"input_ids": (batch["input_ids"] + shift) % 11}


SETTINGS = dict(steps=24, batch_size=4, learning_rate=1e-2, warmup=3, collate=noisy_collate, progress=False)


def run(path=None, model=None, **changes):
    model = model or make()
    history = fit(model, examples(), validation=examples(9, 2), every=7, checkpoint=path, **(SETTINGS | changes))
    return model, history


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


CHILD = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import test_training
from test_training import run
test_training.CHECKED = {checked}
import course_utils.checkpoints as checkpoints
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
if {inside}:  # dies while a later checkpoint is half written
    real, count = os.replace, [0]
    def replace(source, target):
        count[0] += 1
        if count[0] * 2 > {step}:
            kill()
        real(source, target)
    checkpoints.os.replace = replace
run({path!r}, checkpoint_every=2, on_step=lambda step, model, loss: step == {step} and not {inside} and kill())
"""


@pytest.mark.parametrize("inside", [False, True])
def test_a_run_that_was_killed_and_resumed_is_the_undisturbed_run_bit_for_bit(tmp_path, inside):
    step = random.SystemRandom().randrange(3, 24)
    path = str(tmp_path / "run.safetensors")
    code = CHILD.format(root=str(ROOT), tests=str(ROOT / "tests"), path=path, step=step, inside=inside, checked=CHECKED)
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.run([sys.executable, "-c", code], env=environment, timeout=120)
    assert child.returncode == -signal.SIGKILL, step
    torch.manual_seed(99)
    model, history = run(path, model=Tiny())  # other first weights, other generator states: all must come from the file
    state = torch.get_rng_state()
    undisturbed, whole = run()
    assert same(model, undisturbed), step
    assert history.losses == whole.losses and history.validation == whole.validation, step
    assert history.gradient_norms == whole.gradient_norms and history.learning_rates == whole.learning_rates
    assert torch.equal(state, torch.get_rng_state())
    assert len(history.losses) == 24


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_run_on_a_gpu_resumes_with_the_same_dropout(tmp_path):
    whole = run(device="cuda")[1]
    path = tmp_path / "run"
    run(path, device="cuda", checkpoint_every=5, on_step=lambda step, m, loss: interrupt(step, 12))
    assert run(path, device="cuda")[1].losses == pytest.approx(whole.losses, abs=1e-6)


def interrupt(step, at):
    if step == at:
        raise KeyboardInterrupt


def test_an_interruption_keeps_what_was_learned_and_goes_on_from_there(tmp_path):
    path = tmp_path / "deep" / "run"
    model, history = run(path, on_step=lambda step, m, loss: interrupt(step, 9))
    assert history.interrupted and history.steps == 9 and "after step 9" in history.stopped
    assert not same(model, make())
    assert run(path, model=Tiny())[1].losses == run()[1].losses


def test_an_interruption_in_the_middle_of_a_step_resumes_bit_for_bit(tmp_path):
    calls = []

    def loss(model, batch):
        result = language_model_loss(model, batch)  # dropout has drawn by now
        calls.append(1)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return result

    model = make()
    history = fit(model, examples(), checkpoint=tmp_path / "run", loss=loss, **SETTINGS)
    assert history.interrupted and history.steps == 10
    resumed = Tiny()
    assert fit(resumed, examples(), checkpoint=tmp_path / "run", **SETTINGS).losses[:10] == history.losses
    undisturbed = make()
    fit(undisturbed, examples(), **SETTINGS)
    assert same(resumed, undisturbed)


def test_a_finished_run_is_not_trained_again(tmp_path):
    _, first = run(tmp_path / "run")
    model, again = run(tmp_path / "run", model=Tiny())
    assert again == first and same(model, run()[0])


def test_a_damaged_checkpoint_refuses(tmp_path):
    path = tmp_path / "run"
    run(path)
    whole = path.read_bytes()
    generator = random.Random(0)
    places = [8, len(whole) // 2, len(whole) - 1, *(generator.randrange(len(whole)) for _ in range(10))]
    damaged = [whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :] for place in places]
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2], whole[:-1], *damaged):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged.*Delete it"):
            run(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(learning_rate=2e-2), "learning_rate was 0.01, is now 0.02"),
        (dict(seed=5), "seed was 0, is now 5"),
        (dict(steps=30), "steps was 24, is now 30"),
        (dict(schedule="linear"), "schedule was cosine"),
        (dict(batch_size=5), "batch_size was 4"),
    ],
)
def test_a_checkpoint_of_another_configuration_refuses(tmp_path, change, message):
    run(tmp_path / "run", on_step=lambda step, m, loss: step == 2)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", **change)


def test_a_checkpoint_of_another_model_refuses(tmp_path):
    run(tmp_path / "run", on_step=lambda step, m, loss: step == 2)
    with pytest.raises(ValueError, match="another training"):
        run(tmp_path / "run", model=Tiny(width=8))


def test_one_step_is_adamw_by_hand():
    data = {"x": torch.randn(6, 3), "y": torch.randn(6)}
    model = nn.Linear(3, 1)
    weight, bias = (p.detach().clone().requires_grad_() for p in (model.weight, model.bias))

    def loss(m, batch):
        return functional.mse_loss(m(batch["x"])[:, 0], batch["y"])

    fit(model, data, steps=1, batch_size=6, learning_rate=0.1, weight_decay=0.3, clip=None, schedule="constant",
        loss=loss, progress=False)  # fmt: skip
    functional.mse_loss((data["x"] @ weight.T)[:, 0] + bias, data["y"]).backward()
    for ours, before, decay in ((model.weight, weight, 0.3), (model.bias, bias, 0.0)):
        expected = before * (1 - 0.1 * decay) - 0.1 * before.grad / (before.grad.abs() + 1e-8)
        torch.testing.assert_close(ours, expected)


def test_it_learns_and_a_validation_changes_nothing():
    data = [{"input_ids": (torch.arange(8) * 2 + start) % 11} for start in range(11)]
    losses = [fit(make(), data, steps=150, learning_rate=3e-2, batch_size=11, validation=v, every=10,
                  progress=False).losses for v in (None, data)]  # fmt: skip
    assert losses[0] == losses[1]
    assert losses[0][0] > 3.0 and sum(losses[0][-10:]) / 10 < 1.8 < math.log(11)


def test_accumulated_batches_equal_one_large_batch_even_when_padding_is_uneven():
    rows = examples(16)
    results = []
    for batch_size, accumulate in ((16, 1), (4, 4), (2, 8)):
        model = make().eval()
        model.dropout.p = 0.0
        history = fit(model, rows, steps=3, batch_size=batch_size, accumulate=accumulate, progress=False, seed=3)
        results.append((model.embedding.weight.detach(), history))
    for weight, history in results[1:]:
        torch.testing.assert_close(weight, results[0][0], rtol=1e-4, atol=1e-5)
        assert history.losses == pytest.approx(results[0][1].losses, abs=1e-5)


def test_each_epoch_shows_every_example_once_in_an_order_of_its_own():
    seen = []

    def loss(model, batch):
        seen.append(batch["x"].tolist())
        return model(torch.zeros(1, 1)).sum()

    def order(seed):
        seen.clear()
        torch.manual_seed(random.SystemRandom().randrange(1000))  # must not matter
        fit(
            nn.Linear(1, 1), [{"x": i} for i in range(10)], epochs=2, batch_size=4, seed=seed, loss=loss, progress=False
        )
        assert [len(batch) for batch in seen] == [4, 4, 2] * 2
        flat = [x for batch in seen for x in batch]
        return flat[:10], flat[10:]

    first, second = order(0)
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert order(0) == (first, second) and order(1) != (first, second)


def test_batches_come_from_a_function_a_dict_a_list_a_dataset_or_a_torch_dataset():
    import datasets

    rows = torch.randint(0, 11, (8, 5), generator=torch.Generator().manual_seed(0))
    sources = [
        lambda number: {"input_ids": rows},
        {"input_ids": rows},
        [{"input_ids": row} for row in rows],
        datasets.Dataset.from_dict({"input_ids": rows.tolist(), "text": ["a"] * 8}),
        datasets.Dataset.from_dict({"input_ids": rows.tolist()}).with_format("torch"),
    ]
    losses = [fit(make(), source, steps=2, batch_size=8, progress=False).losses[1] for source in sources]
    assert losses == pytest.approx([losses[0]] * 5, rel=0.2)
    plain = torch.utils.data.TensorDataset(rows)
    history = fit(make(), plain, steps=2, loss=lambda m, b: m(b[0]).square().mean(), progress=False)
    assert history.steps == 2


def test_collate_fills_up_and_masks():
    batch = collate(
        [{"input_ids": [5, 6, 7], "labels": [1, 2, 3], "text": "x"}, {"input_ids": [8], "labels": [4]} | {"text": "y"}]
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[True] * 3, [True, False, False]]
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
    assert set(collate([{"input_ids": [1, 2]}, {"input_ids": [3, 4]}])) == {"input_ids"}


def test_losses_ignore_padding_and_shift_where_they_should():
    model = make().eval()
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    logits = model(ids)
    total, count = next_token_loss(model, {"input_ids": ids, "attention_mask": mask})
    by_hand = sum(functional.cross_entropy(logits[b, t], ids[b, t + 1]) for b, t in ((0, 0), (0, 1), (0, 2), (1, 0)))
    assert count == 4
    torch.testing.assert_close(total, by_hand)
    labels = torch.tensor([[-100, 7, -100, 8], [9, -100, -100, -100]])
    total, count = aligned_loss(model, {"input_ids": ids, "labels": labels})
    by_hand = sum(functional.cross_entropy(logits[b, t], labels[b, t]) for b, t in ((0, 1), (0, 3), (1, 0)))
    assert count == 3
    torch.testing.assert_close(total, by_hand)
    assert next_token_loss(model, {"input_ids": ids, "labels": labels})[1] == 2
    mean = evaluate(model, [{"input_ids": ids[0]}, {"input_ids": ids[1, :2]}], batch_size=1)
    assert mean == pytest.approx(by_hand_mean(logits, ids).item(), abs=1e-5)


def by_hand_mean(logits, ids):
    pairs = ((0, 0), (0, 1), (0, 2), (1, 0))
    return sum(functional.cross_entropy(logits[b, t], ids[b, t + 1]) for b, t in pairs) / 4


def test_modes_are_put_back_module_by_module():
    model = make().train()
    model.norm.eval()
    inside = []
    run(model=model, on_step=lambda step, m, loss: inside.append(m.dropout.training))
    assert all(inside) and model.training and model.dropout.training and not model.norm.training
    model = make().eval()
    run(model=model)
    assert not any(module.training for module in model.modules())


def test_frozen_parameters_stay_and_are_not_decayed():
    model = make()
    model.norm.weight.requires_grad_(False)
    before = model.norm.weight.clone()
    run(model=model, weight_decay=0.5)
    assert torch.equal(model.norm.weight, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights(bad):
    seen = []

    def loss(model, batch):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        value = language_model_loss(model, batch)[0]
        return value * bad if len(seen) == 4 else value

    model = make()
    with pytest.warns(RuntimeWarning, match="step 4: the loss is"):
        history = fit(model, examples(), loss=loss, **SETTINGS)
    assert history.steps == 3 and "step 3" in history.stopped
    assert all(torch.equal(model.state_dict()[k], v) for k, v in seen[-1].items())


def test_a_gradient_that_is_no_number_stops_too():
    model = nn.Linear(1, 1)
    before = model.weight.clone()
    with pytest.warns(RuntimeWarning, match="gradient's norm is"):
        fit(model, {"x": torch.ones(1)}, steps=1, loss=lambda m, b: (m.weight - m.weight).sqrt().sum(), progress=False)
    assert torch.equal(model.weight, before)


def test_clipping_bounds_what_the_norm_reports():
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.clone()
    history = fit(
        model,
        {"x": torch.ones(4, 2)},
        steps=1,
        clip=1e-9,  # far below AdamW's epsilon, so that the update shows the size of the gradient it was given
        learning_rate=1.0,
        weight_decay=0.0,
        schedule="constant",
        loss=lambda m, b: 100 * m(b["x"]).sum(),
        progress=False,
    )
    assert history.gradient_norms[0] == pytest.approx(400 * math.sqrt(2), rel=1e-4)
    clipped = 1e-9 / math.sqrt(2)
    torch.testing.assert_close(before - model.weight, torch.full((1, 2), clipped / (clipped + 1e-8)), rtol=1e-3, atol=0)


def test_autocast_trains_in_bfloat16_and_keeps_float32_weights():
    kinds = []

    def loss(model, batch):
        logits = nn.Linear.__call__(model.head, model.embedding(batch["input_ids"]))
        kinds.append(logits.dtype)
        return logits.float().square().mean()

    model = make()
    fit(model, {"input_ids": torch.randint(0, 11, (4, 5))}, steps=2, dtype=torch.bfloat16, loss=loss, progress=False)
    assert set(kinds) == {torch.bfloat16} and model.head.weight.dtype == torch.float32


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_rise_to_one_and_never_leave_the_range(name):
    rates = [SCHEDULES[name](step, 50, 10) for step in range(1, 51)]
    assert rates[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert max(rates) == pytest.approx(1.0) and min(rates) > 0
    tail = rates[10:]
    assert tail == sorted(tail, reverse=True)
    assert SCHEDULES[name](1, 50, 0) == pytest.approx(1.0)


def test_inverse_sqrt_is_the_papers_formula():
    width, warmup = 512, 400
    for step in (1, 100, 400, 401, 5000):
        paper = width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert (width * warmup) ** -0.5 * inverse_sqrt(step, 9999, warmup) == pytest.approx(paper)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(steps=0), "steps=0"),
        (dict(epochs=2), "either steps= or epochs="),
        (dict(steps=None), "either steps= or epochs="),
        (dict(batch_size=-1), "batch_size=-1"),
        (dict(schedule="cosinus"), "expected one of constant, linear, cosine, inverse_sqrt"),
        (dict(learning_rate=math.nan), "learning_rate"),
        (dict(clip=0.0), "clip"),
        (dict(warmup=24), "below the number of steps"),
        (dict(dataset=[]), "empty"),
        (dict(dataset=iter([1])), "map-style"),
        (dict(dataset={"a": torch.ones(2), "b": torch.ones(3)}), "same number"),
        (dict(validation=lambda number: {}), "no end"),
        (dict(loss=lambda m, b: 1.0), "one number as a tensor"),
    ],
)
def test_bad_settings_refuses(change, message):
    settings = SETTINGS | dict(dataset=examples()) | change
    with pytest.raises(ValueError, match=message):
        fit(make(), settings.pop("dataset"), **settings)


def test_nothing_to_train_refuses():
    with pytest.raises(ValueError, match="nothing to train"):
        fit(make().requires_grad_(False), examples(), **SETTINGS)
    with pytest.raises(ValueError, match="give steps="):
        fit(make(), lambda number: {}, epochs=1, progress=False)
    with pytest.raises(ValueError, match="no field holds numbers"):
        collate([{"text": "a"}])
