"""Two processes are one: the same losses and weights, shards of the right size, lost ranks named, runs resumed."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from course_utils import distributed, training
from course_utils.distributed import RankLost, Team, blocks, held, ring_all_reduce, start
from course_utils.transformer import Transformer, TransformerConfig

ROOT = Path(__file__).resolve().parents[1]
# No biases: the gradient of a key's bias is nothing but rounding, which AdamW blows up to full steps.
CONFIG = TransformerConfig(31, width=16, layers=2, heads=2, attention_bias=False, mlp_bias=False, norm_bias=False)
SETTINGS = dict(steps=12, batch_size=4, learning_rate=1e-2, every=5, progress=False)


# --- what the processes run (they import this module)


def rows(count=21, seed=1):
    """Of very different lengths, so that the ranks have very different numbers of targets; one makes tables grow."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 14, (count,), generator=generator)
    lengths[-1] = 70
    return [{"input_ids": torch.randint(0, 31, (int(length),), generator=generator)} for length in lengths]


def masking(examples):
    """A collate that draws: the ranks have to draw alike."""
    batch = training.collate(examples)
    labels = batch["input_ids"].masked_fill(torch.rand(batch["input_ids"].shape) < 0.4, -100)
    real = batch.get("attention_mask", torch.ones_like(labels)).bool()
    return batch | {"labels": labels.masked_fill(~real, -100)}


def mean_of_rows(model, batch):
    return model(batch["input_ids"]).logits.square().mean(dim=(1, 2)).mean()


VARIANTS = {
    "uneven": {},
    "masking": dict(collate=masking),
    "accumulate": dict(accumulate=3, batch_size=3),
    "mean": dict(loss=mean_of_rows, batch_size=5),
    "one row": dict(batch_size=1),
    "frozen": dict(frozen=True),
}


def train(processes=None, *, config=CONFIG, frozen=False, **changes):
    torch.manual_seed(0)
    model = Transformer(config)
    if frozen:
        next(model.parameters()).requires_grad_(False)
    torch.manual_seed(5 + (processes.rank if processes else 0))  # rank 0's must become all ranks'
    if processes:
        nn.init.zeros_(next(model.parameters())) if processes.rank else None
    history = training.fit(model, rows(), validation=rows(7, 2), processes=processes, **(SETTINGS | changes))
    return history, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def train_variants(strategy, names):
    processes = start(strategy)
    return {name: train(processes, **VARIANTS[name]) for name in names}


def interrupted_at(path, strategy, step):
    """Rank 1 gets a signal in the given step."""
    processes = start(strategy)

    def on_step(number, model, loss):
        if number == step - 1 and processes.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    return train(processes, checkpoint=path, on_step=on_step)


def train_with(strategy, **changes):
    return train(start(strategy), **changes)


def refused():
    """What each of several bad settings says."""
    said = []
    for strategy, changes in (
        ("ddp", dict(collate=lambda examples: {"a": torch.ones(2, 3), "b": torch.ones(3)})),
        ("fsdp", dict(dtype=torch.float16)),
        ("ddp", dict(checkpoint=__file__)),
        ("ddp", dict(batch_size=0)),
    ):
        try:
            train(start(strategy), **changes)
        except ValueError as error:
            said.append(str(error))
    return said


def speak():
    print("this is", os.environ["RANK"])
    return ring_all_reduce(torch.arange(5.0) * (1 + dist.get_rank()))


def fail(ranks):
    if dist.get_rank() in ranks:
        raise KeyError("nothing there")
    dist.barrier()


# --- two processes


@pytest.fixture(scope="module")
def team():
    with Team(2) as team:
        yield team


def largest(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize(
    ("strategy", "names"),
    [("ddp", list(VARIANTS)), ("fsdp", ["uneven", "masking", "accumulate", "frozen"]), ("zero2", ["uneven"])],
)
def test_two_processes_are_one_process_with_the_same_batches(team, strategy, names):
    first, second = team.run(train_variants, strategy, names)
    for name in names:
        alone, weights = train(**VARIANTS[name])
        for history, state in (first[name], second[name]):
            assert history.losses == pytest.approx(alone.losses, abs=1e-5), name
            assert history.gradient_norms == pytest.approx(alone.gradient_norms, abs=1e-5), name
            assert dict(history.validation) == pytest.approx(dict(alone.validation), abs=1e-5), name
            assert history.learning_rates == alone.learning_rates
            assert set(state) == set(weights) and largest(state, weights) < 5e-5, name
        assert first[name][0].losses == second[name][0].losses and largest(first[name][1], second[name][1]) == 0


def test_what_ranks_hold_and_send(team):
    weights = 4 * sum(parameter.numel() for parameter in Transformer(CONFIG).parameters())
    tensors = len(list(Transformer(CONFIG).parameters()))
    ddp, zero2, fsdp = (team.run(distributed.measure, strategy, CONFIG) for strategy in ("ddp", "zero2", "fsdp"))
    for step in ddp:
        assert step.backward == distributed.Held(weights, weights, 2 * weights + 4 * tensors)
        assert step.forward.weights == weights
        assert step.traffic["all-reduce"] == pytest.approx(weights, rel=0.02) and step.traffic["all-reduce"] > weights
        assert step.predicted == step.traffic["all-reduce"]  # two ranks: 2 (2 - 1) / 2
    for shared in (zero2, fsdp):
        for part in ("weights", "gradients"):
            assert sum(getattr(step.backward, part) for step in shared) == weights
            assert max(getattr(step.backward, part) for step in shared) < 0.51 * weights
        assert sum(step.backward.states for step in shared) == 2 * weights + 2 * 4 * tensors
        assert all(step.traffic["reduce-scatter"] == pytest.approx(weights, rel=0.02) for step in shared)
    for kept, freed in zip(zero2, fsdp, strict=True):
        assert kept.forward.weights == weights + kept.backward.weights
        assert freed.forward.weights == freed.backward.weights
        assert freed.traffic["all-gather"] == 2 * kept.traffic["all-gather"]
    if sys.platform == "linux":
        for step in [*ddp, *zero2, *fsdp]:
            assert step.predicted < step.sent < 2 * step.predicted + 10_000


def test_a_ring_sums_and_sends_each_part_twice(team, capsys):
    for total, sent in team.run(speak):
        assert total.tolist() == [0, 3, 6, 9, 12] and sent == 20
    assert capsys.readouterr().out == "[rank 0] this is 0\n[rank 1] this is 1\n"
    files = team.run(os.listdir, "/proc/self/fd") if sys.platform == "linux" else []
    values = torch.randn(2, 5000)
    for ring in (True, False):
        for total, sent in team.run(distributed.summed, values, ring):
            torch.testing.assert_close(total, values.sum(0))
            assert sent is None or 20_000 <= sent < 25_000
    if files:  # counting leaves no file open
        assert list(map(len, team.run(os.listdir, "/proc/self/fd"))) == list(map(len, files))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_signal_to_one_rank_ends_all_at_the_same_step_and_any_number_goes_on(team, tmp_path, strategy):
    path = tmp_path / "run.safetensors"
    for history, _ in team.run(interrupted_at, str(path), strategy, 6):
        assert history.interrupted and history.steps == 6 and "after step 6" in history.stopped
    saved = path.read_bytes()
    undisturbed, weights = train()
    alone, state = train(checkpoint=path)
    assert alone.steps == 12 and alone.losses == pytest.approx(undisturbed.losses, abs=1e-5)
    assert largest(state, weights) < 5e-5
    path.write_bytes(saved)
    other = {"ddp": "fsdp", "fsdp": "ddp"}[strategy]
    together, state = team.run(train_with, other, checkpoint=str(path))[1]
    assert together.losses == pytest.approx(undisturbed.losses, abs=1e-5) and largest(state, weights) < 5e-5


def test_bad_settings_refuse_on_all_ranks(team):
    for said in team.run(refused):
        assert len(said) == 4
        assert "first dimensions [2, 3] cannot be split" in said[0] and "float16" in said[1]
        assert "damaged, or is none" in said[2] and "batch_size=0" in said[3]


def test_a_team_refuses_and_reports_errors(team):
    with pytest.raises(ValueError, match="processes=0"):
        Team(0)
    with pytest.raises(ValueError, match="module that can be imported"):
        team.run(lambda: 1)
    with pytest.raises(RuntimeError, match=r"rank 0: KeyError: 'nothing there'") as caught:
        team.run(fail, [0, 1])
    assert "Traceback" in caught.value.__notes__[0]
    assert len(team.run(speak)) == 2  # both had answered: it lives on


# --- lost ranks

KILLS = """
import json, os, random, signal, sys, time
import torch, torch.distributed as dist
from course_utils import distributed
from course_utils.transformer import Transformer
import tqdm.auto, torch.distributed.fsdp, torch.distributed.tensor, torch._dynamo  # once, before the forks
import dataclasses, test_distributed as t
distributed.GRACE_S = 0.5
config = dataclasses.replace(t.CONFIG, dropout=0.1)
folder, seed = sys.argv[1], int(sys.argv[2])
draw = random.Random(seed)

def rank(number, store, path, strategy, step, lines):
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(store), TORCHELASTIC_USE_AGENT_STORE="True", ACCELERATE_USE_CPU="True")
    def on_step(done, model, loss):
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)
    code = 0
    try:
        processes = distributed.start(strategy, timeout=60)
        history, state = t.train(processes, config=config, checkpoint=path, checkpoint_every=3, on_step=on_step)
        if number == 0:
            torch.save((history, state), lines)
    except distributed.RankLost as error:
        print("LOST", number, error.ranks, error.first, error, flush=True)
        code = 3
    os._exit(code)

def pair(path, strategy, victim=None, step=None, after=None):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = []
    for number in range(2):
        pid = os.fork()
        if not pid:
            rank(number, store.port, path, strategy, step if number == victim else None, path + ".result")
        children.append(pid)
    if after is not None:
        time.sleep(after)
        os.kill(children[victim], signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    print("CODES", strategy, victim, step, after, codes, flush=True)

for strategy in ("ddp", "fsdp"):
    pair(f"{folder}/{strategy}.whole", strategy)
    path = f"{folder}/{strategy}"
    for low, high in ((1, 4), (5, 8), (9, 11)) if strategy == "ddp" else ((4, 11),):
        pair(path, strategy, draw.randrange(2), step=draw.randint(low, high))
    pair(path, strategy, draw.randrange(2), after=draw.uniform(0.05, 0.5))
    pair(path, strategy)
"""


def test_runs_killed_at_random_name_the_rank_and_end_as_the_undisturbed_one(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path), str(seed)],
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    lines = [line.split(maxsplit=4) for line in child.stdout.splitlines() if line.startswith("LOST")]
    codes = [line.split() for line in child.stdout.splitlines() if line.startswith("CODES")]
    assert len(codes) == 10, child.stdout
    for _, strategy, victim, step, _, *ended in codes:
        ended = json.loads(" ".join(ended))
        if victim == "None":
            assert ended == [0, 0], (strategy, ended, child.stderr[-3000:])
        elif step != "None":
            assert ended[int(victim)] == -signal.SIGKILL and ended[1 - int(victim)] == 3, (seed, child.stdout)
    assert len(lines) >= 4, (seed, child.stdout)
    for _, number, lost, first, message in lines:
        other = 1 - int(number)
        assert (lost, first) == (f"[{other}]", "True") and message.startswith(f"rank {other} of 2 was lost; ")
    assert any("the same command goes on from step" in line[4] for line in lines)
    for strategy in ("ddp", "fsdp"):
        (history, state), (whole, weights) = (
            torch.load(tmp_path / f"{strategy}{name}.result", weights_only=False) for name in ("", ".whole")
        )
        assert history.losses == whole.losses and history.validation == whole.validation, seed
        assert history.steps == 12 and largest(state, weights) == 0, seed


def test_an_error_on_one_rank_ends_the_waiting_of_the_other(team):
    """The last test of this team, which ends with it."""
    with pytest.raises(RuntimeError, match=r"rank 1: KeyError: 'nothing there'"):
        team.run(fail, [1])
    with pytest.raises(ValueError, match="team has ended"):
        team.run(speak)


def test_a_rank_that_dies_in_a_team_is_named_and_the_others_end(tmp_path):
    team = Team(2)
    children = list(team._ranks)
    with pytest.raises(RankLost, match=r"rank 1 was ended by SIGKILL.*goes on from step 4") as caught:
        team.run(
            distributed.fit, Transformer(CONFIG), rows(), "fsdp", steps=8, checkpoint=tmp_path / "run",
            checkpoint_every=2, on_step=distributed.Drill(1, 5),
        )  # fmt: skip
    assert caught.value.ranks == [1]
    assert all(child.poll() is not None for child in children)
    with pytest.raises(ValueError, match="team has ended"):
        team.run(speak)


# --- one process


def test_starting_alone_and_not_as_many_as_asked_for(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    alone = start()
    assert type(alone) is training.Processes and (alone.rank, alone.world) == (0, 1)
    with pytest.raises(ValueError, match=r"processes=2: 1 is running. Start them with torchrun --standalone"):
        start(processes=2)
    with pytest.raises(ValueError, match="strategy='zero': expected one of ddp, zero2, fsdp"):
        start("zero")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # what `accelerate launch --cpu --num_processes 2` sets
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(ValueError, match=r"several processes and started one.*--multi_gpu --num_processes=2"):
        start()


def test_blocks_are_the_outermost_lists():
    model = Transformer(CONFIG)
    assert len(blocks(model)) == CONFIG.layers and all(block in list(model.modules()) for block in blocks(model))
    nested = nn.ModuleList([nn.Sequential(nn.ModuleList([nn.Linear(2, 2)])), nn.Identity()])
    assert blocks(nn.Sequential(nested)) == [nested[0]]
    assert blocks(nn.Linear(2, 2)) == []


def test_held_counts_weights_gradients_and_states():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    assert held(model, optimizer) == distributed.Held(32, 0, 0)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert held(model, optimizer) == distributed.Held(32, 32, 2 * 32 + 2 * 4) and held(model, optimizer).total == 136


def test_traffic_of_a_ring():
    traffic = distributed.Traffic()
    traffic.bytes = {"all-reduce": 400, "all-gather": 800, "reduce-scatter": 800, "broadcast": 5}
    assert traffic.sent(4) == 600 + 600 + 600 and traffic.sent(1) == 0
    assert traffic.sent(1000) == 2397
