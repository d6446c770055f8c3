"""The notebook on zero-, one- and few-shot with another model and other data, given as folders."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers

from tests.test_data_hub import DIALOGUES, write
from tests.test_prompting import made

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "week3_prompting" / "02_zero_one_few_shot.ipynb"
ITEMS = 40


@pytest.fixture(autouse=True)
def undisturbed():
    """start() sets the number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def sources():
    """Source of the code cells, without the one that finds the course, with fewer items."""
    cells = [
        "".join(cell["source"])
        for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code" and "setup-course" not in cell["metadata"].get("tags", [])
    ]
    whole = "\n# cell\n".join(cells)
    assert whole.count("ITEMS, SEEDS = 200, range(5)") == 1
    return whole.replace("ITEMS, SEEDS = 200,", f"ITEMS, SEEDS = {ITEMS},").split("\n# cell\n")


@pytest.mark.parametrize("family", ["GPT-2", "T5"])
def test_the_notebook_runs_with_a_model_and_dialogues_from_folders(tmp_path, monkeypatch, capsys, family):
    loaded = made(family)
    loaded.model.to(torch.float32).save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    rows = [
        {**DIALOGUES[0], "dialogue": f"#Person1#: Hi, {number}!\n#Person2#: Hi.", "summary": f"They greet, {number}."}
        for number in range(30)
    ]
    write(tmp_path / "data" / "dialogsum.train.jsonl", rows[:20])
    write(tmp_path / "data" / "dialogsum.dev.jsonl", rows[20:])
    monkeypatch.setenv("COURSE_MODEL", str(tmp_path / "model"))
    monkeypatch.setenv("COURSE_DIALOGSUM", str(tmp_path / "data"))

    space = {}
    for number, source in enumerate(sources(), 2):
        exec(compile(source, f"cell {number}", "exec"), space)

    printed = capsys.readouterr().out
    assert f"model: folder, {type(loaded.model).__name__}" in printed
    assert isinstance(space["model"].model, transformers.PreTrainedModel)
    assert f"all five unseen kinds, {5 * ITEMS} items x 5 seeds" in printed
    for outcome in space["everything"].outcomes:
        low, high = outcome.interval
        assert outcome.scores.shape == (5, 5 * ITEMS)
        assert 0 <= low <= outcome.accuracy <= high < 0.6, "random weights do not know anything"
    assert space["dialogues"].name == "DialogSum"
    assert {item.input for item in space["dialogues"].items} <= {row["dialogue"] for row in rows[20:]}
    assert {one.target for one in space["dialogues"].pool[""]} == {row["summary"] for row in rows[:20]}
    assert not re.findall(r".*NO: see.*", printed), "ranges of the course's own model were held against another one"
