"""What nbval cannot see: that outputs are there, pictures have texts, links lead somewhere, and the form is kept."""

import json
import re
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from course_utils.checks import by_notebook
from course_utils.notebooks import FIRST_TAG, WIDGET_VIEW, badge, card, find, first_cell
from course_utils.quiz import quiz_names

ROOT = Path(__file__).parents[1]
NOTEBOOKS = find(root=ROOT)
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:root|tmp|work|home|opt|Users|usr/lib|var/folders)/[\w./-]+|[A-Z]:\\\\?Users")
UNSTABLE = re.compile(r" at 0x[0-9a-f]{6,}|\b\d+(?:\.\d+)?\s?(?:it/s|s/it)\b|T_[0-9a-f]{5}_")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def prose(notebook):
    return [source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]


def shown(output):
    """Every text form of an output."""
    data = output.get("data", {})
    texts = [output.get("text", ""), *(value for kind, value in data.items() if kind.startswith("text/"))]
    return "\n".join("".join(text) for text in texts)


def anchors(text):
    """The anchors that GitHub makes of a Markdown file's headings, and those that it names itself."""
    found = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for heading in re.findall(r"^#{1,6} +(.+?)\s*$", text, flags=re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|`", r"\1", heading)
        found.add(re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-"))
    return found


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS][:5] == [
        "00_start_here",
        "01_language_models_and_vectors",
        "02_attention_from_scratch",
        "03_the_transformer",
        "04_rnn_vs_transformer",
    ]


@each
def test_executed_once_from_top_to_bottom(path):
    counts = [cell["execution_count"] for cell in code(read(path))]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks`"


@each
def test_outputs_are_stored(path):
    """A stripped notebook would pass a strict comparison trivially."""
    cells = code(read(path))
    speaking = [cell for cell in cells if re.search(r"\b(?:print|show|table|measured|check|quiz)\(", source(cell))]
    silent = [source(cell) for cell in speaking if not cell["outputs"]]
    assert len(speaking) >= len(cells) / 2
    assert not silent, "these cells print or show something, but no output is stored: run `make notebooks`"


@each
def test_outputs_are_fit_to_be_compared(path):
    for number, cell in enumerate(code(read(path)), 1):
        for output in cell["outputs"]:
            assert output["output_type"] != "error", f"cell {number} ends in {output.get('ename')}"
            assert output.get("name") != "stderr", f"cell {number} writes to stderr: {shown(output)[:200]}"
            text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", shown(output))
            for pattern in (MACHINE_PATH, UNSTABLE):
                hit = pattern.search(text)
                assert not hit, f"cell {number} shows {hit[0]!r}"
            assert len(shown(output)) < 200_000, f"cell {number} holds more than 200 kB of output"


@each
def test_no_widget_state_and_no_stray_metadata(path):
    notebook = read(path)
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info", "accelerator", "colab"}
    assert WIDGET_VIEW not in path.read_text(encoding="utf-8")
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags"}
        assert not {"nbval-ignore-output", "nbval-skip"} & set(cell["metadata"].get("tags", []))
        assert "NBVAL_" not in source(cell)


@each
def test_every_picture_has_a_text(path):
    notebook = read(path)
    for part in prose(notebook):
        assert not re.search(r"!\[\s*\]\(|<img(?![^>]*\balt=[\"'][^\"']{8,})", part), part
        assert not re.search(r"!\[[^\]]*\]\(https?:|<img[^>]+src=[\"']https?:", part), f"an image from the web: {part}"
    for number, cell in enumerate(code(notebook), 1):
        for output in cell["outputs"]:
            kinds = set(output.get("data", {}))
            alone = any(kind.startswith("image/") for kind in kinds) and not {"text/html", "text/plain"} <= kinds
            assert not alone, f"cell {number} shows a picture without plotting.show(fig, alt=...)"
            for tag in re.findall(r"<img[^>]*>", shown(output)):
                assert re.search(r"""alt=(["'])[^"']{20,}\1""", tag), f"cell {number}: a picture without a text"


@each
def test_cells_are_short(path):
    notebook = read(path)
    lines = [len(source(cell).strip().splitlines()) for cell in code(notebook)]
    assert 6 <= len(notebook["cells"]) <= 60
    assert statistics.median(lines) <= 8
    assert max(lines) <= 25
    assert not any(re.search(r"^\s*class \w+Exception|^from previous", source(cell), re.M) for cell in code(notebook))


@each
def test_headings_are_in_order(path):
    text = re.sub(r"```.*?```", "", "\n".join(prose(read(path))), flags=re.S)
    levels = [len(marks) for marks in re.findall(r"^(#{1,6}) ", text, flags=re.M)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


@each
def test_first_cells_are_the_courses(path):
    notebook = read(path)
    tagged = [cell for cell in code(notebook) if FIRST_TAG in cell["metadata"].get("tags", [])]
    assert tagged == [code(notebook)[0]]
    assert source(tagged[0]) == first_cell(ROOT), "run `course colab OWNER/REPO` with the address in pyproject.toml"
    assert badge(path, ROOT) in prose(notebook)[0]
    assert not tagged[0]["outputs"]


@each
def test_card_is_there_and_gpu_notebooks_ask_for_one(path):
    notebook = read(path)
    stated = card(notebook)
    assert stated.seconds <= (240 if path.stem == "04_fine_tuning" else 60)  # it trains the same model thrice
    assert stated.gigabytes <= 3
    assert (notebook["metadata"].get("accelerator") == "GPU") == (stated.gpu != "not needed")


@each
def test_links_resolve(path):
    text = "\n".join(prose(read(path)))
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", text) + re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.is_file(), f"{target} leads nowhere"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{target}: no such anchor"
        elif anchor:
            headings = anchors("\n".join(prose(read(file)))) | {
                h.replace("-", " ") for h in anchors("\n".join(prose(read(file))))
            }
            assert anchor.lower() in headings, f"{target}: no such heading"


@each
def test_ends_as_every_notebook_does(path):
    headings = re.findall(r"^## (.+)$", "\n".join(prose(read(path))), flags=re.M)
    if path.stem.startswith("00"):
        return
    assert headings[-4:] == ["Summary", "Quiz", "Further reading", "Next"]
    week = path.parent.name.split("_")[0]
    assert f"{week}/{path.stem}" in quiz_names()
    assert f'quiz("{week}/{path.stem}")' in "\n".join(map(source, code(read(path))))


def test_every_exercise_stands_in_one_notebook_as_a_stub():
    texts = {path: "\n".join(map(source, code(read(path)))) for path in NOTEBOOKS}
    for group, exercises in by_notebook().items():
        holders = set()
        for exercise in exercises:
            where = [path for path, text in texts.items() if f'check("{exercise.name}"' in text]
            assert len(where) == 1, f"{exercise.name} stands in {len(where)} notebooks"
            holders.add(where[0])
        assert [holder.stem for holder in holders] == [group], f"the exercises of {group} stand in {holders}"
        assert 3 <= len(exercises) <= 6 or group == "00_start_here"
    named = set(re.findall(r'check\("([^"]+)"', "\n".join(texts.values())))
    assert named == {exercise.name for group in by_notebook().values() for exercise in group}


def test_no_solution_is_in_view():
    for path in NOTEBOOKS:
        for cell in code(read(path)):
            for output in cell["outputs"]:
                assert "[passed]" not in shown(output) or path.stem.startswith("00"), (
                    f"{path.stem} ships a solved exercise"
                )
