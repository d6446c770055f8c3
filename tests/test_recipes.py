import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from course_utils.recipes import Result, card, from_items, recipes
from course_utils.recipes.tokenizer import SPECIAL, TEMPLATES, tokenizer

CARDS = Path(__file__).parents[1] / "supplemental" / "cards"


def test_an_interval_covers_the_mean_and_narrows_with_the_items() -> None:
    few = from_items("few", [[0, 1, 1, 1] * 5, [1, 1, 0, 1] * 5, [1, 0, 1, 1] * 5])
    many = from_items("many", [[0, 1, 1, 1] * 50, [1, 1, 0, 1] * 50, [1, 0, 1, 1] * 50])
    assert few.value == many.value == 0.75
    assert few.low < many.low < 0.75 < many.high < few.high
    assert (many.items, many.seeds) == (600, 3)
    # the normal approximation of a share over 600 items, within a tenth of its width
    width = 2 * 1.96 * (0.75 * 0.25 / 600) ** 0.5
    assert abs((many.high - many.low) - width) < 0.15 * width


def test_seeds_that_differ_widen_the_interval() -> None:
    same = from_items("same", [[0, 1] * 50] * 3)
    apart = from_items("apart", [[0] * 100, [1] * 100, [0, 1] * 50])
    assert apart.value == same.value
    assert apart.high - apart.low > 3 * (same.high - same.low)


def test_from_items_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        from_items("nothing", [])
    with pytest.raises(ValueError, match="each with items"):
        from_items("nothing", [[1.0], []])


def test_bounds_hold_or_not() -> None:
    assert Result("a", 0.8, 0.7, 0.9, at_least=0.75).holds
    assert not Result("a", 0.8, 0.7, 0.9, at_least=0.85).holds
    assert not Result("a", 0.8, 0.7, 0.9, at_most=0.7).holds


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_tokenizer_marks_a_text_as_its_family_does(kind: str) -> None:
    one = tokenizer(kind)
    assert len(one) == 4096
    assert one.convert_ids_to_tokens(list(range(len(SPECIAL)))) == list(SPECIAL)
    text = "a dog -> naïve 犬\n\tend  "
    ids = one(text).input_ids
    assert (ids[0] == one.bos_token_id) == (kind != "seq2seq")
    assert (ids[-1] == one.eos_token_id) == (kind != "decoder")
    assert one.decode(ids, skip_special_tokens=True) == text


def test_words_of_the_tasks_are_one_token_each() -> None:
    from course_utils.data.tasks.words import CATEGORY_OF

    one = tokenizer("decoder")
    assert all(len(one(f" {word}", add_special_tokens=False).input_ids) == 1 for word in CATEGORY_OF)


def test_tokenizer_refuses_other_kinds() -> None:
    with pytest.raises(ValueError, match="rnn"):
        tokenizer("rnn")


@pytest.mark.parametrize("name", recipes())
def test_batches_are_a_function_of_their_number(name: str) -> None:
    recipe = recipes()[name]
    marks = tokenizer(recipe.post_processor)
    first, again = recipe.batches(marks, 0), recipe.batches(marks, 0)
    last = recipe.steps - 1
    for number in (0, last, 3):
        one, other = first(number), again(number)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
        assert (one["labels"] != -100).any()
        assert one["input_ids"].max() < 4096
    assert not torch.equal(first(1)["input_ids"], recipe.batches(marks, 1)(1)["input_ids"])


@pytest.mark.parametrize("name", recipes())
def test_the_card_is_what_its_code_writes_from_the_record(name: str) -> None:
    from course_utils.models.registry import EMBEDDED

    recipe = recipes()[name]
    record = json.loads((EMBEDDED / name / "training.json").read_text())
    stored = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    head, _, _ = card(recipe, record, []).partition("## Measured")
    assert stored.startswith(head)
    assert recipe.limits in stored
    assert (CARDS / f"{name}-loss.png").stat().st_size > 5000
    assert ": NO |" not in stored
    assert record["steps"] == recipe.steps
    assert record["losses"][-1][1] < record["losses"][0][1]


def course(*arguments: str, **settings: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "course_utils.cli", *arguments]
    environment = os.environ | {"TQDM_DISABLE": "1"} | settings  # A full pipe would stop it.
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_training_killed_ten_times_ends_with_the_same_weights(tmp_path: Path) -> None:
    """The caches of the corpus are shared; the checkpoint is found by its place in the cache."""
    from course_utils.environment import cache_folder

    chance, steps, seed = random.Random(0), 30, 90_000 + os.getpid() % 10_000
    state = cache_folder() / "training" / f"course-decoder-{steps}-{seed}.safetensors"
    arguments = ["train", "course-decoder", "--steps", str(steps), "--seed", str(seed), "--checkpoint-every", "1"]
    try:
        kills = 0
        while kills < 10:
            before = state.stat().st_mtime_ns if state.exists() else 0
            process = course(*arguments, "--output", str(tmp_path / "killed"))
            while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
                time.sleep(0.02)
            time.sleep(chance.random() * 0.8)
            assert process.poll() is None, process.communicate()[0]
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            assert not (tmp_path / "killed").exists()
        process = course(*arguments, "--output", str(tmp_path / "killed"))
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        assert not state.exists(), "a finished training leaves no checkpoint"
        process = course(*arguments, "--output", str(tmp_path / "undisturbed"))
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    finally:
        state.unlink(missing_ok=True)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "undisturbed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_base_that_is_not_trained_yet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from course_utils.models import registry
    from course_utils.recipes import train

    monkeypatch.setattr(registry, "EMBEDDED", tmp_path)
    with pytest.raises(ValueError, match=r"course-seq2seq: it is not trained yet. `course train course-seq2seq` makes"):
        train(recipes()["course-instruct"], tmp_path / "made", steps=1, progress=False)
    assert not (tmp_path / "made").exists()


def test_train_refuses_a_model_that_there_is_not() -> None:
    output, _ = (process := course("train", "course-oracle")).communicate(timeout=120)
    assert process.returncode == 1
    assert "course-oracle" in output
    assert "course-decoder" in output
    assert "Traceback" not in output
