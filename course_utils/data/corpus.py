"""The laptop corpus: documentation that is on every machine that can run the course.

The docstrings of the installed libraries and of the standard library, and Python's reference topics, are read from the
source files with ``ast``: nothing is imported or run. Texts are dedented in one way for all versions of Python,
cleaned, de-duplicated exactly, put in a fixed order, and split by a hash of the text, so a text keeps its split.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
import sysconfig
import tempfile
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from course_utils.environment import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = 1
"""Raised whenever the rules below change, so that older caches are left aside."""

SPLITS = ("train", "validation")
SMALLEST = 40
"""Texts of fewer characters are left out."""

PYTHON = "python"
"""Stands for the standard library and the reference topics."""

_SMALL = ("matplotlib", "numpy", "pandas")
_MEDIUM = ("datasets", "huggingface_hub", "networkx", "torch")
_FULL = (
    "IPython", "PIL", "fsspec", "ipywidgets", "jinja2", "mpmath", "pyarrow", "rich", "safetensors", "sympy",
    "tokenizers", "tqdm", "traitlets", "transformers", "typer",
)  # fmt: skip
SIZES: dict[str, tuple[str, ...]] = {
    "small": _SMALL,
    "medium": (*_SMALL, *_MEDIUM, PYTHON),
    "full": (*_SMALL, *_MEDIUM, *_FULL, PYTHON),
}
"""The libraries of each size. The small ones read the same on every operating system and Python of one lock."""

_DISTRIBUTION = {"IPython": "ipython", "PIL": "pillow"}
_SKIPPED_FOLDERS = {
    "tests", "test", "idle_test", "idlelib", "turtledemo", "lib2to3", "site-packages", "dist-packages", "__pycache__",
    "_vendor", "_vendored", "vendored", "_bundled", "distutils", "_pyrepl", "node_modules", "pydoc_data",
}  # fmt: skip
_SKIPPED_FILES = re.compile(r"(test_.*|.*_test|conftest|_?version|_version_meson|__config__|_distributor_init.*)\.py")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff]")


class Document(NamedTuple):
    """One text and the dotted name of what it documents."""

    text: str
    source: str


def library_docs(size: str = "full", split: str | None = None, progress: bool = True) -> "Dataset":
    """Return the documentation of the installed libraries as a data set.

    The first call reads the sources (seconds for ``small``, a minute or two for ``full``) and writes a cache under
    :func:`course_utils.environment.cache_folder`; later calls map that file into memory. The cache is made again when a
    library's version changes or the file is damaged, and several processes may ask for it at once.

    Args:
        size: ``small`` (NumPy, pandas, Matplotlib: about 6 MB), ``medium`` (17 MB) or ``full`` (29 MB).
        split: ``train`` (95 %), ``validation`` (5 %), or None for both, training texts first.
        progress: show a progress bar while reading.

    Returns:
        A data set with the columns ``text``, ``source`` (a dotted name such as ``numpy.ma.core.MaskedArray.mean``) and
        ``split``. A library that is not installed is left out, with a note.

    Raises:
        ValueError: there is no such size or split.
        RuntimeError: none of the libraries could be read.
        OSError: the cache folder cannot be written.
    """
    if size not in SIZES:
        raise ValueError(f"library_docs(size={size!r}): expected one of {', '.join(SIZES)}")
    if split is not None and split not in SPLITS:
        raise ValueError(f"library_docs(split={split!r}): expected one of {', '.join(SPLITS)}, or None for both")
    from datasets import Dataset

    folder = cache_folder() / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    versions = {name: version for name in SIZES[size] if (version := _version(name)) is not None}
    for name in SIZES[size]:
        if name not in versions:
            print(f"library_docs: {name} is not installed, its documentation is left out")
    key = hashlib.sha256(json.dumps([FORMAT, size, versions]).encode()).hexdigest()[:12]
    card_path = folder / f"library-docs-{size}-{key}.json"
    card = _read_card(card_path) or _build(card_path, tuple(versions), progress)
    everything = Dataset.from_file(str(folder / card["file"]))
    if split == "train":
        return everything.select(range(card["train"]))
    if split == "validation":
        return everything.select(range(card["train"], card["train"] + card["validation"]))
    return everything


def documents(folder: Path, name: str) -> Iterator[Document]:
    """Read the docstrings of all Python files in a folder, in the order of their dotted names.

    Tests, bundled copies of other packages and generated files are left out; so is a file that cannot be decoded or
    parsed.

    Args:
        folder: the folder of a package.
        name: the package's dotted name; empty for a folder of top-level modules.
    """
    for path in _source_files(folder):
        parts = [*path.relative_to(folder).parts[:-1], path.stem]
        module = ".".join(filter(None, [name, *(part for part in parts if part != "__init__")]))
        tree = _parse(path)
        if tree is not None:
            yield from _docstrings(tree, module)


def clean_docstring(text: str) -> str:
    """Dedent and tidy a docstring, to the same result in every version of Python.

    Tabs become spaces, the common indentation of all lines but the first goes, and so do white space at the ends of
    lines and of the text, control characters, and all but one of several empty lines.
    """
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    lines = text.expandtabs().split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()), default=0)
    lines = [lines[0].strip(), *(line[margin:].rstrip() for line in lines[1:])]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def split_of(text: str) -> str:
    """Return the split of a text: ``validation`` for one in twenty, by the SHA-256 hash of its UTF-8 form."""
    return "validation" if int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 20 == 0 else "train"


def _version(name: str) -> str | None:
    """Version of a library, or None where it is not installed; nothing is imported."""
    if name == PYTHON:
        return platform.python_version()
    try:
        return importlib.metadata.version(_DISTRIBUTION.get(name, name)) if _package_folder(name) else None
    except importlib.metadata.PackageNotFoundError:
        return None


def _package_folder(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places and Path(places[0]).is_dir() else None


def _source_files(folder: Path) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS and name.isidentifier()]
        found += [Path(place, name) for name in files if name.endswith(".py") and not _SKIPPED_FILES.fullmatch(name)]
    return sorted(found, key=lambda path: path.relative_to(folder).with_suffix("").parts)


def _parse(path: Path) -> ast.Module | None:
    """Parse a source file in its declared encoding; None where that does not work."""
    try:
        with tokenize.open(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(file.read())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _docstrings(node: ast.AST, name: str) -> Iterator[Document]:
    """Yield the docstring of a module, class or function, then those inside it."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        text = ast.get_docstring(node, clean=False)
        if text is not None:
            yield Document(text, name)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, (ast.stmt, ast.excepthandler)):
            yield from _docstrings(child, name)


def _topics() -> Iterator[Document]:
    """Read the texts behind Python's ``help("if")`` and the like: one dictionary of constants in one file."""
    place = _package_folder("pydoc_data")
    tree = _parse(place / "topics.py") if place else None
    for statement in tree.body if tree else ():
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            for key, value in zip(statement.value.keys, statement.value.values, strict=True):
                try:
                    topic, text = ast.literal_eval(key or ""), ast.literal_eval(value)
                except ValueError:
                    continue
                if isinstance(text, str):
                    yield Document(text, f"pydoc_data.topics.{topic}")


def _collect(names: tuple[str, ...], progress: bool) -> Iterator[Document]:
    """Yield the cleaned, distinct documents of several libraries in a fixed order."""
    from tqdm.auto import tqdm

    seen: set[bytes] = set()
    with tqdm(desc="reading documentation", unit=" texts", disable=not progress, leave=False) as bar:
        for name in sorted(names):
            bar.set_postfix_str(name)
            for document in _documents_of(name):
                text = clean_docstring(document.text)
                digest = hashlib.sha256(text.encode()).digest()
                if len(text) >= SMALLEST and digest not in seen:
                    seen.add(digest)
                    bar.update()
                    yield Document(text, document.source)


def _documents_of(name: str) -> Iterator[Document]:
    if name == PYTHON:
        yield from documents(Path(sysconfig.get_path("stdlib")), "")
        yield from _topics()
    elif (folder := _package_folder(name)) is not None:
        yield from documents(folder, name)


def _build(card_path: Path, names: tuple[str, ...], progress: bool) -> dict:
    """Write the data and then its card, each whole or not at all.

    The data file is named after its content, so processes that build at the same time write the same file, and a card
    never speaks of a file that is not finished.
    """
    import pyarrow

    schema = pyarrow.schema([(column, pyarrow.string()) for column in ("text", "source", "split")])
    handle, temporary = tempfile.mkstemp(dir=card_path.parent, prefix=".library-docs-")
    held: list[Document] = []
    counts = dict.fromkeys(SPLITS, 0)
    try:
        with os.fdopen(handle, "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:

            def write(batch: list[Document], split: str) -> None:
                texts, sources = [one.text for one in batch], [one.source for one in batch]
                writer.write_batch(pyarrow.record_batch([texts, sources, [split] * len(batch)], schema=schema))
                counts[split] += len(batch)

            batch: list[Document] = []
            for document in _collect(names, progress):
                (held if split_of(document.text) == "validation" else batch).append(document)
                if len(batch) == 2000:
                    write(batch, "train")
                    batch = []
            write(batch, "train")
            write(held, "validation")
        if not counts["train"]:
            raise RuntimeError(
                f"library_docs: no documentation found for {', '.join(names) or 'any library'}: their source files "
                f"are not readable from {Path(sys.prefix).name}; reinstall them with pip"
            )
        digest = _digest(Path(temporary))
        data_path = card_path.with_name(f"{card_path.stem}-{digest[:12]}.arrow")
        if not data_path.is_file() or _digest(data_path) != digest:
            os.replace(temporary, data_path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    card = {"file": data_path.name, "sha256": digest, **counts}
    handle, temporary = tempfile.mkstemp(dir=card_path.parent, prefix=".library-docs-")
    with os.fdopen(handle, "w", encoding="utf-8") as text_file:
        json.dump(card, text_file)
    os.replace(temporary, card_path)
    return card


def _read_card(card_path: Path) -> dict | None:
    """Return the card of a cache whose data file is whole, else None."""
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
        whole = _digest(card_path.with_name(card["file"])) == card["sha256"]
        return card if whole and all(isinstance(card[split], int) for split in SPLITS) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
