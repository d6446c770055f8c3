"""The course command and what it stands on: finding, running, cleaning and stamping notebooks; the doctor."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from typer.testing import CliRunner

from course_utils import doctor, notebooks
from course_utils.cli import app

ROOT = Path(__file__).parents[1]
CARD = """\
| study | compute | RAM | download | GPU |
| --- | --- | --- | --- | --- |
| 60 min | under 30 s | under 1.5 GB | 0 MB | not needed |"""


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A small course of its own: two notebooks, a project file, a README."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "README.md").write_text(f"See {notebooks.address(ROOT)[0]}.\n")
    for name, cells in {
        "00_start_here": [new_code_cell("print(6 * 7)")],
        "week1_attention/01_words": [
            new_markdown_cell("# Words\n\n[![Open in Colab](x.svg)](y)\n\n" + CARD),
            new_code_cell("old", metadata={"tags": [notebooks.FIRST_TAG]}),
        ],
    }.items():
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        kernel = {"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}}
        nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def course_command(*words):
    return CliRunner().invoke(app, list(words))


# --- finding ---


def test_find_by_week_name_and_path(course):
    names = lambda *targets: [path.stem for path in notebooks.find(targets, course)]  # noqa: E731
    assert names() == ["00_start_here", "01_words"]
    assert names("week1") == names("1") == names("words") == ["01_words"]
    assert names("notebooks/00_start_here.ipynb", "words", "week1") == ["00_start_here", "01_words"]
    with pytest.raises(ValueError, match="'week7' names no week"):
        names("week7")


def test_root_is_found_from_below_and_refused_outside(course, tmp_path_factory, monkeypatch):
    assert notebooks.course_root(course / "notebooks" / "week1_attention") == course
    monkeypatch.setattr(notebooks, "__file__", str(tmp_path_factory.mktemp("elsewhere") / "a" / "b.py"))
    with pytest.raises(FileNotFoundError, match="run this inside a copy"):
        notebooks.course_root(tmp_path_factory.mktemp("empty"))


# --- cards ---


def test_card_is_read():
    found = notebooks.card(new_notebook(cells=[new_markdown_cell(f"# T\n\n{CARD}\n\nmore")]))
    assert found == notebooks.Card(60, 30.0, 1.5, 0.0, "not needed")


@pytest.mark.parametrize(
    "text", ["no table", CARD.replace("under 30 s", "half a minute"), CARD.replace("1.5 GB", "lots")]
)
def test_card_refuses(text):
    with pytest.raises(ValueError, match="resource card"):
        notebooks.card(new_notebook(cells=[new_markdown_cell(text)]))


# --- running ---


def write_notebook(path, *sources):
    kernel = {"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}}
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources], metadata=kernel), path)


def test_run_leaves_the_files_alone_and_reports(course):
    path = course / "notebooks" / "00_start_here.ipynb"
    before = path.read_bytes()
    result = course_command("run", "00", "--output", "kept")
    assert result.exit_code == 0, result.output
    assert re.search(r"00_start_here │ \d+\.\d +│ 0\.\d+ GB +│ passed", result.output)
    assert path.read_bytes() == before
    kept = nbformat.read(course / "kept" / "00_start_here.ipynb", as_version=4)
    assert kept.cells[0].outputs[0].text == "42\n"


def test_run_names_the_cell_that_failed(course):
    write_notebook(course / "notebooks" / "00_start_here.ipynb", "x = 1", "x / 0", "print('never')")
    result = course_command("run", "00")
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.output.replace("\n", "")


def test_a_dead_kernel_ends_the_run(course):
    path = course / "notebooks" / "00_start_here.ipynb"
    write_notebook(path, "import os", "os._exit(1)")
    _, run = notebooks.execute(path)
    assert "DeadKernelError" in run.error


def test_refresh_writes_a_clean_notebook_and_twice_the_same(course):
    path = course / "notebooks" / "00_start_here.ipynb"
    write_notebook(path, "import os; print(os.environ['COURSE_PROFILE'])", "import ipywidgets; ipywidgets.IntSlider()")
    assert not notebooks.refresh(path).error
    first = path.read_bytes()
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].outputs[0].text == "laptop\n"
    assert notebooks.WIDGET_VIEW not in first.decode()
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]
    assert not notebooks.refresh(path).error
    assert path.read_bytes() == first


def test_refresh_keeps_the_outputs_when_a_cell_fails(course):
    path = course / "notebooks" / "00_start_here.ipynb"
    write_notebook(path, "print(1)")
    notebooks.refresh(path)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(new_code_cell("1 / 0"))
    nbformat.write(notebook, path)
    assert "ZeroDivisionError" in notebooks.refresh(path).error
    assert nbformat.read(path, as_version=4).cells[0].outputs[0].text == "1\n"


def test_clean_takes_out_what_differs_between_machines():
    data = {notebooks.WIDGET_VIEW: {"model_id": "1"}, "text/plain": "x"}
    cell = new_code_cell("x", metadata={"execution": {"a": "1"}, "tags": ["t"]}, execution_count=1)
    cell.outputs = [new_output("display_data", data=data, metadata={"x": 1})]
    language = {"name": "python", "version": "3.11.7"}
    metadata = {"widgets": {}, "language_info": language, "accelerator": "GPU"}
    book = new_notebook(cells=[cell], metadata=metadata)
    notebooks.clean(book)
    assert cell.metadata == {"tags": ["t"]}
    assert cell.outputs[0] == {"output_type": "display_data", "data": {"text/plain": "x"}, "metadata": {}}
    assert set(book.metadata) == {"accelerator", "kernelspec", "language_info"}
    assert book.metadata.language_info == {"name": "python"}


def test_clean_joins_what_a_cell_printed_piece_by_piece():
    def printed(text, name="stdout"):
        return new_output("stream", name=name, text=text)

    picture = new_output("display_data", data={"text/plain": "x"})
    cell = new_code_cell("x", outputs=[printed("a\n"), printed("b\n"), picture, printed("c\n"), printed("a\n")])
    cell.outputs += [printed("e\n", "stderr"), printed("d\n")]
    notebooks.clean(new_notebook(cells=[cell]))
    texts = [output.get("text", output.get("data", {}).get("text/plain")) for output in cell.outputs]
    assert texts == ["a\nb\n", "x", "c\na\n", "e\n", "d\n"]


# --- stamping ---


def test_colab_stamps_everything_and_only_once(course):
    result = course_command("colab", "octocat/llm-course")
    assert result.exit_code == 0, result.output
    assert notebooks.address(course)[0] == "https://github.com/octocat/llm-course"
    notebook = nbformat.read(course / "notebooks" / "week1_attention" / "01_words.ipynb", as_version=4)
    assert "git+https://github.com/octocat/llm-course@v" in notebook.cells[1].source
    badge = "[![Open in Colab](../../images/open-in-colab.svg)](https://colab.research.google.com/github/octocat/"
    assert badge + "llm-course/blob/main/notebooks/week1_attention/01_words.ipynb)" in notebook.cells[0].source
    assert "octocat/llm-course" in (course / "README.md").read_text()
    assert "0 files changed" in course_command("colab", "octocat/llm-course").output


@pytest.mark.parametrize("wrong", ["", "octocat", "https://github.com/a/b", "a/b/c", "a b/c", "a/b;rm"])
def test_colab_refuses(course, wrong):
    before = (course / "pyproject.toml").read_bytes()
    result = course_command("colab", wrong)
    assert result.exit_code == 1
    assert "expected OWNER/REPO" in result.output
    assert (course / "pyproject.toml").read_bytes() == before


# --- the first cell ---


def first_cell_in(folder, installed=("jaxtyping",)):
    """Run the first cell where course_utils is not installed; say where it was found and what pip was given."""
    cell = notebooks.first_cell(ROOT).replace('%pip install -q "', 'print("PIP", "')
    cell = cell[:-1] + '")' if 'print("PIP"' in cell else cell
    code = f"""
        import importlib.util, sys
        from pathlib import Path
        sys.path = [p for p in sys.path if p and not (Path(p) / "course_utils").exists()]
        sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
        spec_of = importlib.util.find_spec
        there = ("course_utils", *{installed!r})
        importlib.util.find_spec = lambda name: spec_of(name) if name in there else None
    """
    script = textwrap.dedent(code) + cell + "\nspec = spec_of('course_utils'); print('FOUND', spec and spec.origin)\n"
    run = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout


def test_first_cell_finds_the_folder_around_the_notebook(tmp_path):
    (tmp_path / "clone" / "course_utils").mkdir(parents=True)
    (tmp_path / "clone" / "course_utils" / "__init__.py").write_text("")
    deep = tmp_path / "clone" / "notebooks" / "week1_attention"
    deep.mkdir(parents=True)
    for place in (deep, tmp_path / "clone", tmp_path):  # inside the clone, at its top, and beside it as on Colab
        printed = first_cell_in(place)
        assert "PIP" not in printed
        assert str(tmp_path / "clone" / "course_utils" / "__init__.py") in printed


def test_first_cell_installs_the_tagged_release_where_nothing_is_found(tmp_path):
    url, tag = notebooks.address(ROOT)
    assert f"PIP course-utils[colab] @ git+{url}@{tag}" in first_cell_in(tmp_path)


def test_first_cell_installs_what_the_folder_needs(tmp_path):
    (tmp_path / "course_utils").mkdir()
    (tmp_path / "course_utils" / "__init__.py").write_text("")
    printed = first_cell_in(tmp_path, installed=())
    assert "PIP" in printed and str(tmp_path / "course_utils") in printed


# --- the doctor ---


def test_doctor_is_well_here():
    result = course_command("doctor")
    assert result.exit_code == 0, result.output
    names = re.findall(r"^\[OK\] ([\w ]+):", result.output, flags=re.M)
    assert names == ["Python", "packages", "device", "free memory", "free disk", "kernel", "fonts", "profile"]


def test_doctor_says_what_to_do(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "cluster")
    monkeypatch.setattr(doctor, "requirements", lambda: ["torch>=99", "no-such-package>=1", "numpy>=1"])
    monkeypatch.setattr(doctor, "MEMORY_NEEDED", 10**6)
    monkeypatch.setattr(doctor, "_fonts", lambda: 1 / 0)
    result = course_command("doctor")
    assert result.exit_code == 1
    assert "[FAIL] packages: torch" in result.output and "needs >=99" in result.output
    assert "no-such-package is missing" in result.output
    assert re.search(r"\[FAIL\] free memory: .*\n +-> close other programs", result.output)
    assert "[FAIL] profile: cluster" in result.output
    assert "ZeroDivisionError" in result.output, "a look that breaks is a finding, and the others go on"
    assert "[OK] kernel" in result.output


def test_doctor_reads_the_projects_bounds():
    assert any(line.startswith("torch>=") for line in doctor.requirements())
    assert not any("pytest" in line for line in doctor.requirements())


# --- the rest of the command ---


def test_lab_is_bound_to_this_machine_and_keeps_its_token(course, monkeypatch):
    seen = []
    monkeypatch.setattr(subprocess, "call", lambda command, cwd, env: seen.append((command, cwd)) or 0)
    assert course_command("lab", "--no-browser", "--port", "9001").exit_code == 0
    ((command, cwd),) = seen
    assert cwd == course
    assert "--ServerApp.ip=127.0.0.1" in command
    assert not any("token" in word or "password" in word for word in command)
    assert command[-3:] == ["--no-browser", "--port", "9001"]
    assert any("notebooks/00_start_here.ipynb" in word for word in command)


def test_test_passes_options_on(course, monkeypatch):
    seen = []
    monkeypatch.setattr(subprocess, "call", lambda command, cwd: seen.append(command) or 3)
    assert course_command("test", "-k", "attention").exit_code == 3
    assert seen[0][1:] == ["-m", "pytest", "-k", "attention"]


def test_unknown_target_is_one_line(course):
    result = course_command("run", "week9")
    assert result.exit_code == 1
    assert result.output.startswith("course: 'week9' names no week")


# --- nbval, as conftest.py hardens it ---


@pytest.fixture
def pytest_here(tmp_path):
    """Run pytest with the course's conftest on one notebook; the notebook is executed and stored first where asked."""

    def run(*sources, outputs=None, stated=CARD):
        shutil.copy(ROOT / "conftest.py", tmp_path)
        (tmp_path / "tests").mkdir(exist_ok=True)
        shutil.copy(ROOT / "tests" / "sanitize.cfg", tmp_path / "tests")
        code = [new_code_cell(source, execution_count=number) for number, source in enumerate(sources, 1)]
        cells = [new_markdown_cell(f"# T\n\n{stated}"), *code]
        for cell, text in zip(code, outputs or [], strict=False):
            cell.outputs = [new_output("stream", name="stdout", text=text)] if text else []
        nbformat.write(new_notebook(cells=cells), tmp_path / "a.ipynb")
        words = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=60", "-q", "-p", "no:cacheprovider"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "pytest", *words, "--rootdir", str(tmp_path), str(tmp_path / "a.ipynb")]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120)

    return run


def test_nbval_accepts_equal_and_measured_outputs(pytest_here):
    run = pytest_here("print('x', 1)", "print('≈0.97 (yes)');", outputs=["x 1\n", "≈0.12 (yes)\n"])
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    ("source", "stored"), [("print('x', 1)", "x 2\n"), ("print('≈0.97 (NO)')", "≈0.97 (yes)\n"), ("print(1)", None)]
)
def test_nbval_fails_on_another_output(pytest_here, source, stored):
    assert pytest_here(source, outputs=[stored]).returncode == 1


def test_nbval_fails_in_seconds_when_the_kernel_dies(pytest_here):
    run = pytest_here("import os; os._exit(1)", "print(1)", outputs=[None, "1\n"])
    assert run.returncode == 1
    assert "kernel died" in run.stdout
    assert float(re.search(r"in ([\d.]+)s", run.stdout)[1]) < 30


@pytest.mark.parametrize(
    ("stated", "source", "what"),
    [
        (CARD.replace("under 30 s", "under 0.1 s"), "print(1)", "its card says under 0.1 s"),
        (CARD.replace("1.5 GB", "0.2 GB"), "x = bytearray(400_000_000); print(1)", "its card says under 0.2 GB"),
    ],
)
def test_nbval_holds_a_notebook_to_its_card(pytest_here, stated, source, what):
    run = pytest_here(source, outputs=["1\n"], stated=stated)
    assert run.returncode == 1
    assert what in run.stdout
