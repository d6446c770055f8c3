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
LAUNCH = ["--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
WAYS = {"fsdp": ["--use_fsdp", "--fsdp_version=2"], "ddp": ["--multi_gpu"]}


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


def test_shards_killed_and_resumed_as_copies_end_as_one_process(data, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, "--main_process_port=0"]
    words = ["-m", "course_utils.cli", *command(data, tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    launched = dict(cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    child = subprocess.Popen([*launch, *WAYS["fsdp"], *words], **launched)
    states, end = [], time.monotonic() + 300
    while not states and child.poll() is None and time.monotonic() < end:
        states = list((tmp_path / "two").glob("training-*.safetensors"))
        time.sleep(0.005)
    ranks = [one for one in psutil.Process(child.pid).children(recursive=True) if one.environ().get("RANK") == "1"]
    os.kill(ranks[0].pid, signal.SIGKILL)
    said = child.communicate(timeout=120)[0]
    lines = [line for line in said.splitlines() if line.startswith("course:")]
    assert child.returncode != 0 and len(lines) == 1, said
    assert lines[0].startswith("course: rank 1 of 2 was lost; the same command goes on from step ")
    assert states[0].exists() and not (tmp_path / "two" / "model.safetensors").exists()
    child = subprocess.run([*launch, *WAYS["ddp"], *words], **launched, timeout=300)
    assert child.returncode == 0 and "on 2 process(es)" in child.stdout, child.stdout
    assert child.stdout.count("exact match") == 1 and not states[0].exists()

    alone = run(*command(data, tmp_path / "one"))
    assert alone.exit_code == 0, alone.output
    curves = [json.loads((tmp_path / name / "results.json").read_text())["history"] for name in ("one", "two")]
    assert len(curves[0]["losses"]) == 24 and curves[0]["losses"][-1] < 0.7 * curves[0]["losses"][0]
    assert curves[1]["losses"] == pytest.approx(curves[0]["losses"], abs=1e-5)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 2e-3  # two full steps of AdamW
    assert max((one[name] - two[name]).abs().mean().item() for name in one) < 2e-5


def test_files_of_other_kinds(tmp_path):
    """A table of its own, of which a tenth is held out; a folder whose held-out part lacks a label."""
    table = tmp_path / "jobs.csv"
    table.write_text("question,answer\n" + "".join(f"what is {n}?,it is {n}\n" for n in range(20)))
    done = run(*command(table, tmp_path / "out", steps=1, method="lora"), "--longest", "64", "--checkpointing")
    assert done.exit_code == 0 and "2 items of jobs.csv" in done.output, done.output
    measures = json.loads((tmp_path / "out" / "results.json").read_text())["measures"]
    assert set(measures) == {"before", "after"} and len(measures["after"]["ROUGE-L"]) == 3
    folder = tmp_path / "labels"
    folder.mkdir()
    lines = [json.dumps({"text": f"line {n}", "label": label}) for n, label in enumerate(["b", "c", "a"] * 4)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    (folder / "validation.jsonl").write_text("\n".join(lines[1::3]))
    done = run(*command(folder, tmp_path / "head", steps=1), "--model", "encoder")
    assert done.exit_code == 0 and "F1" in done.output, done.output
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["a", "b", "c"]


def test_an_interrupted_run_goes_on_with_the_same_examples_alone(data, tmp_path, monkeypatch):
    from course_utils import training

    save = training._save

    def interrupted(*arguments):
        monkeypatch.undo()
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save", interrupted)
    words = command(data, tmp_path / "out", steps=8, method="lora")
    stopped = run(*words)
    assert stopped.exit_code == 1
    assert "course: interrupted after step 4; the same command goes on from there" in stopped.output
    other = run(*words, "--items", "1")  # one example more to train on
    assert other.exit_code == 1 and "state of a training of another model, or on other data" in other.output
    assert run(*words).exit_code == 0
    resumed, whole = tmp_path / "out", tmp_path / "whole"
    assert run(*command(data, whole, steps=8, method="lora")).exit_code == 0
    same = [load_file(folder / "adapter_model.safetensors") for folder in (resumed, whole)]
    assert same[0].keys() == same[1].keys() and all((same[0][name] == same[1][name]).all() for name in same[0])


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
        (["--data", __file__], "expected a file that ends in .jsonl"),
        (["--output", f"{__file__}/out"], "no folder that can be written to"),
    ],
)
def test_errors_are_one_line(data, tmp_path, options, message):
    done = run(*command(data, tmp_path / "out"), *options)
    assert done.exit_code == 1 and message in done.output
    assert len(done.output.strip().splitlines()) == 1 and done.output.startswith("course: ")


def test_bad_lines_and_accelerates_single_process_refuse(data, tmp_path, monkeypatch):
    bad = tmp_path / "bad.jsonl"
    for text, message in (
        ('{"input": "a"}\n', "expected columns such as input and target"),
        ('{"input": "a", "target": "b"}\n', "one example; expected two or more"),
        ("[1]\n", "expected one example a row"),
        ("", "found 0 rows"),
        ("{", "cannot be read"),
    ):
        bad.write_text(text)
        done = run(*command(bad, tmp_path / "out"))
        assert done.exit_code == 1 and message in done.output
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    done = run(*command(data, tmp_path / "out"))
    assert done.exit_code == 1 and "told of several processes and started one" in done.output
