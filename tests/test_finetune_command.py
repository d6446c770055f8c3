"""``course finetune``: one process, two under ``accelerate launch``, killed and resumed, and its one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from course_utils.cli import app

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sentences to be said backwards: (input, target) a line."""
    path = tmp_path_factory.mktemp("data") / "backwards.jsonl"
    words = ["the", "cat", "saw", "a", "dog", "near", "our", "old", "house", "and", "ran", "away", "from", "it"]
    lines = [words[start : start + size] for size in (2, 3, 4, 7) for start in range(12)]
    rows = [{"input": " ".join(line), "target": " ".join(line[::-1])} for line in lines]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def command(data, output, **options):
    chosen = dict(steps=24, batch_size=8, learning_rate=1e-3, items=3, checkpoint_every=4) | options
    words = [word for name, value in chosen.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["finetune", "--model", "seq2seq", "--data", str(data), "--output", str(output), *words]


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_lora_is_measured_saved_and_not_written_over(data, tmp_path):
    done = run(*command(data, tmp_path / "out", method="lora", steps=3))
    assert done.exit_code == 0, done.output
    assert "before" in done.output and "after" in done.output and "exact match" in done.output
    assert "on 1 process(es)" in done.output and "loss" in done.output
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == ["adapter_model.safetensors"]
    again = run(*command(data, tmp_path / "out", method="lora", steps=3))
    assert again.exit_code == 1 and "holds a model already" in again.output
    merged = run(*command(data, tmp_path / "merged", method="lora", steps=3), "--merge")
    assert merged.exit_code == 0, merged.output
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_two_processes_killed_and_started_again_end_as_one(data, tmp_path):
    words = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, "--main_process_port=0"]
    words += ["-m", "course_utils.cli", *command(data, tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    launched = dict(cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    child = subprocess.Popen(words, **launched)
    state = tmp_path / "two" / "training.safetensors"
    end = time.monotonic() + 200
    while not state.exists() and child.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    ranks = [one for one in psutil.Process(child.pid).children(recursive=True) if one.environ().get("RANK") == "1"]
    os.kill(ranks[0].pid, signal.SIGKILL)
    said = child.communicate(timeout=60)[0]
    lines = [line for line in said.splitlines() if line.startswith("course:")]
    assert child.returncode != 0 and len(lines) == 1, said
    assert lines[0].startswith("course: rank 1 of 2 was lost; the same command goes on from step ")
    assert state.exists() and not (tmp_path / "two" / "model.safetensors").exists()
    child = subprocess.run(words, **launched, timeout=200)
    assert child.returncode == 0 and "on 2 process(es)" in child.stdout, child.stdout
    assert child.stdout.count("exact match") == 1 and not state.exists()

    alone = run(*command(data, tmp_path / "one"))
    assert alone.exit_code == 0, alone.output
    loss = [
        next(line for line in text.splitlines() if line.startswith("loss")) for text in (alone.output, child.stdout)
    ]
    assert loss[0] == loss[1]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 2e-3  # two full steps of AdamW
    assert max((one[name] - two[name]).abs().mean().item() for name in one) < 2e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nobody"], "nothing is called 'nobody'"),
        (["--data", "nothing"], "data='nothing'"),
        (["--method", "half"], "method='half'"),
        (["--dtype", "int8"], "--dtype int8: expected float32, bfloat16 or float16"),
        (["--processes", "2"], "processes=2: 1 is running"),
        (["--strategy", "all"], "strategy='all': expected one of ddp, zero2, fsdp"),
        (["--accumulate", "99"], "accumulate=99"),
    ],
)
def test_errors_are_one_line(data, tmp_path, options, message):
    done = run(*command(data, tmp_path / "out"), *options)
    assert done.exit_code == 1 and message in done.output
    assert len(done.output.strip().splitlines()) == 1 and done.output.startswith("course: ")


def test_bad_lines_and_accelerates_single_process_refuse(data, tmp_path, monkeypatch):
    bad = tmp_path / "bad.jsonl"
    for text, message in (('{"input": "a"}\n', "a JSON object a line"), ("", "0 examples"), ("[1]\n", "a JSON object")):
        bad.write_text(text)
        done = run(*command(bad, tmp_path / "out"))
        assert done.exit_code == 1 and message in done.output
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    done = run(*command(data, tmp_path / "out"))
    assert done.exit_code == 1 and "told of several processes and started one" in done.output
