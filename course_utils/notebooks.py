"""Running, cleaning and stamping the course's notebooks."""

import os
import re
import subprocess
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIRST_TAG = "setup-course"
"""Tag of the cell that finds or installs the course."""
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CARD_HEADER = ("study", "compute", "RAM", "download", "GPU")
FIRST_CELL = """\
# Finds the course: installed, or in a folder around this notebook, or (on Colab) from its tagged release.
import importlib.util, pathlib, sys
if not importlib.util.find_spec("course_utils"):
    here = pathlib.Path.cwd()
    found = [p for p in (here, *here.parents, *here.glob("*/")) if (p / "course_utils" / "__init__.py").is_file()]
    sys.path[:0] = map(str, found[:1])
if not all(map(importlib.util.find_spec, ("course_utils", "jaxtyping"))):
    %pip install -q "course-utils[colab] @ git+{address}@{tag}"
"""


@dataclass(frozen=True)
class Card:
    """The resource card of a notebook, as its table states it.

    Attributes:
        minutes: time to study it.
        seconds: upper bound of the computing time of one core.
        gigabytes: upper bound of the kernel's memory, in 10**9 bytes.
        megabytes: what it downloads, in 10**6 bytes.
        gpu: ``not needed``, ``optional`` or ``needed``.
    """

    minutes: int
    seconds: float
    gigabytes: float
    megabytes: float
    gpu: str


@dataclass(frozen=True)
class Run:
    """What came of running one notebook: wall seconds, peak memory in bytes, and the first error ("" for none)."""

    path: Path
    seconds: float
    peak_bytes: int
    error: str


def course_root(start: Path | None = None) -> Path:
    """Return the folder of the course: the one above ``start`` that holds the notebooks, else the package's own.

    Args:
        start: where to look first; by default the working folder.

    Raises:
        FileNotFoundError: neither holds ``notebooks/00_start_here.ipynb``.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[1]):
        if (folder / "notebooks" / "00_start_here.ipynb").is_file():
            return folder
    raise FileNotFoundError(f"no course notebooks in {here} or above it: run this inside a copy of the repository")


def find(targets: Iterable[str] = (), root: Path | None = None) -> list[Path]:
    """Return notebooks by week, by path or by part of their name; all of them, in order, when nothing is named.

    Args:
        targets: such as ``week1``, ``1``, ``02_attention`` or a path.
        root: folder of the course.

    Raises:
        ValueError: a target names no notebook.
    """
    root = root or course_root()
    every = sorted((root / "notebooks").rglob("*.ipynb"), key=lambda path: (path.parent != root / "notebooks", path))
    every = [path for path in every if ".ipynb_checkpoints" not in path.parts]
    chosen: list[Path] = []
    for target in targets:
        week = f"week{target}" if target.isdigit() else target
        if Path(target).is_file():
            matches = [Path(target).resolve()]
        else:
            matches = [p for p in every if p.parent.name.split("_")[0] == week] or [
                p for p in every if target in p.name
            ]
        if not matches:
            names = ", ".join(path.stem for path in every)
            raise ValueError(f"{target!r} names no week and no notebook; there are: {names}")
        chosen += [path for path in matches if path not in chosen]
    return chosen or every


def card(notebook: Any) -> Card:
    """Read the resource card of a notebook.

    Args:
        notebook: a notebook as nbformat or json reads it.

    Raises:
        ValueError: there is no table with the card's columns, or its row does not read as one.
    """
    text = "\n".join(_source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    header = r"\|\s*" + r"\s*\|\s*".join(CARD_HEADER) + r"\s*\|"
    found = re.search(header + r"\s*\n\|[-| :]+\|\s*\n\|(.+)\|", text)
    if not found:
        raise ValueError(f"no resource card: expected a table with the columns {', '.join(CARD_HEADER)}")
    cells = [cell.strip() for cell in found[1].split("|")]
    patterns = (
        r"(\d+) min",
        r"under ([\d.]+) s",
        r"under ([\d.]+) GB",
        r"([\d.]+) MB",
        r"(not needed|optional|needed)",
    )
    values = [re.fullmatch(pattern, cell) for pattern, cell in zip(patterns, cells, strict=True)]
    if not all(values):
        raise ValueError(
            f"the resource card reads {cells}; expected for example '60 min', 'under 30 s', 'under 1.0 GB'"
        )
    minutes, seconds, gigabytes, megabytes, gpu = (value[1] for value in values if value)
    return Card(int(minutes), float(seconds), float(gigabytes), float(megabytes), gpu)


def kernel_environment(home: str) -> dict[str, str]:
    """Return the variables under which stored outputs are made and compared: laptop profile, no network, fixed hashes.

    Args:
        home: an empty folder for the learner's progress, so that nobody's own shows in an output.
    """
    return {
        "COURSE_PROFILE": "laptop",
        "COURSE_THREADS": "1",
        "COURSE_HOME": home,
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MPLBACKEND": "agg",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def execute(path: Path, on_cell: Callable[[int], None] | None = None, cell_timeout: int = 1200) -> tuple[Any, Run]:
    """Run a copy of a notebook from top to bottom in a fresh kernel; the file is not touched.

    Args:
        path: the notebook.
        on_cell: called with the number of cells done.
        cell_timeout: seconds after which a cell counts as hanging.

    Returns:
        The executed notebook and the :class:`Run`.
    """
    import nbformat
    import psutil
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=cell_timeout,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=lambda cell, cell_index, execute_reply: on_cell(cell_index + 1) if on_cell else None,
    )
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            try:
                process = psutil.Process(client.km.provisioner.pid)  # type: ignore[union-attr]
                family = [process, *process.children(recursive=True)]
                peak[0] = max(peak[0], sum(member.memory_info().rss for member in family))
            except (AttributeError, psutil.Error):
                continue

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    begin, error = time.monotonic(), ""
    try:
        client.execute(stderr=subprocess.DEVNULL)  # what the kernel says of itself; a cell's stderr is an output
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as caught:
        number = sum(bool(cell.get("execution_count")) for cell in notebook.cells)
        what = f"{caught.ename}: {caught.evalue}" if isinstance(caught, CellExecutionError) else type(caught).__name__
        error = f"code cell {number}: {what.splitlines()[0][:200]}"
    finally:
        done.set()
        watcher.join()
    return notebook, Run(path, time.monotonic() - begin, peak[0], error)


def clean(notebook: Any) -> Any:
    """Take out of a notebook what differs from run to run or from machine to machine.

    Widget state and live widget views go (the figure that stands for them stays), timings, the kernel's name for this
    machine and the Python version too. What a cell printed piece by piece becomes one piece. Cell ids and execution
    counts stay.

    Args:
        notebook: an executed notebook; it is changed in place.

    Returns:
        The notebook.
    """
    keep = {key: notebook.metadata[key] for key in ("accelerator", "colab") if key in notebook.metadata}
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook.metadata = type(notebook.metadata)(**keep, kernelspec=kernel, language_info={"name": "python"})
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = type(cell.metadata)(**({"tags": tags} if tags else {}))
        outputs: list[Any] = []
        for output in cell.get("outputs", []):
            if outputs and output["output_type"] == "stream" and outputs[-1].get("name") == output["name"]:
                outputs[-1]["text"] += output["text"]
                continue
            outputs.append(output)
            output.pop("transient", None)
            if "metadata" in output:
                output["metadata"] = type(cell.metadata)()
            if "data" in output:
                output["data"].pop(WIDGET_VIEW, None)
        if "outputs" in cell:
            cell["outputs"] = outputs
    return notebook


def refresh(path: Path, on_cell: Callable[[int], None] | None = None) -> Run:
    """Execute a notebook in the laptop profile and write it back, stamped and cleaned; on an error it stays as it was.

    Args:
        path: the notebook.
        on_cell: called with the number of cells done.

    Returns:
        The :class:`Run`.
    """
    import nbformat

    root = course_root(path.parent)
    source = nbformat.read(path, as_version=4)
    stamped = nbformat.writes(_stamped(source, path, root)) + "\n"
    if stamped != path.read_text(encoding="utf-8"):
        write(path, stamped)
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(kernel_environment(home))
        try:
            notebook, run = execute(path, on_cell)
        finally:
            os.environ.clear()
            os.environ.update(before)
    if not run.error:
        write(path, nbformat.writes(clean(notebook)) + "\n")
    return run


def address(root: Path) -> tuple[str, str]:
    """Return the repository's address and the tag of this release, both from ``pyproject.toml``."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"], f"v{project['version']}"


def first_cell(root: Path) -> str:
    """Return the text of the cell that each notebook begins with."""
    url, tag = address(root)
    return FIRST_CELL.format(address=url, tag=tag).rstrip("\n")


def badge(path: Path, root: Path) -> str:
    """Return the Markdown of a notebook's Colab badge: a picture of ours that links to the notebook in Colab."""
    up = "../" * len(path.relative_to(root).parent.parts)
    place = address(root)[0].removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{place}/blob/main/{path.relative_to(root).as_posix()}"
    return f"[![Open in Colab]({up}images/open-in-colab.svg)]({link})"


def stamp(repository: str, root: Path) -> list[Path]:
    """Write a repository's address into ``pyproject.toml`` and from there into every badge and first cell.

    Args:
        repository: ``OWNER/REPO`` on GitHub.
        root: folder of the course.

    Returns:
        The files that changed.

    Raises:
        ValueError: this is not the form ``OWNER/REPO``.
    """
    if not re.fullmatch(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+", repository):
        raise ValueError(
            f"{repository!r} is no GitHub repository; expected OWNER/REPO, for example octocat/hello-world"
        )
    import nbformat

    changed = []
    old = address(root)[0]
    project = root / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    new = text.replace(f'"{old}"', f'"https://github.com/{repository}"')
    if new != text:
        write(project, new)
        changed.append(project)
    readme = root / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8")
        place = old.removeprefix("https://github.com/")
        new = text.replace(old, f"https://github.com/{repository}").replace(
            f"/github/{place}/", f"/github/{repository}/"
        )
        if new != text:
            write(readme, new)
            changed.append(readme)
    for path in find(root=root):
        before = path.read_text(encoding="utf-8")
        after = nbformat.writes(_stamped(nbformat.reads(before, as_version=4), path, root)) + "\n"
        if after != before:
            write(path, after)
            changed.append(path)
    return changed


def _stamped(notebook: Any, path: Path, root: Path) -> Any:
    """Put the first cell and the badge into a notebook, in place."""
    for cell in notebook.cells:
        if FIRST_TAG in cell.metadata.get("tags", []):
            cell.source = first_cell(root)
        elif cell.cell_type == "markdown":
            cell.source = re.sub(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)", lambda _: badge(path, root), cell.source)
    return notebook


def write(path: Path, text: str) -> None:
    """Write a text file so that it is never seen half-written."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", newline="\n", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        file.write(text)
    if path.exists():
        os.chmod(file.name, path.stat().st_mode)
    os.replace(file.name, path)


def _source(cell: Any) -> str:
    return "".join(cell["source"])
