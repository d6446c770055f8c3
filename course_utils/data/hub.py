"""Data sets of the hub, DialogSum and SST-2, in the form of the generated tasks; or from a folder with their files.

Only data files are read (Parquet, CSV, TSV, JSON lines): no code of a data set is ever run.
"""

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class HubSet:
    """Where a data set is, and which of its columns are input and target.

    Attributes:
        repository: its id on the hub.
        input: column of the inputs.
        targets: columns of the targets; the first one that is there counts.
        labels: names of the labels, where the target is the number of one, from 0.
        revision: commit on the hub, None for the newest.
        licence: under which terms it may be used.
    """

    repository: str
    input: str
    targets: tuple[str, ...]
    licence: str
    labels: tuple[str, ...] | None = None
    revision: str | None = None


HUB_SETS = {
    "dialogsum": HubSet("knkarthick/dialogsum", "dialogue", ("summary", "summary1"), "CC BY-NC-SA 4.0"),
    "sst2": HubSet(
        "stanfordnlp/sst2",
        "sentence",
        ("label",),
        "not stated",
        ("negative", "positive"),
        "8d51e7e4887a4caaa95b3fbebbf53c0490b58bbb",
    ),
}
"""DialogSum (Chen et al., 2021): dialogues and summaries; SST-2 (Socher et al., 2013): film reviews, good or bad."""
_SPLIT = re.compile(r"(?:^|[._-])(train|dev|validation|valid|val|test)(?:[._-]|$)")
KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def hub(name: str, folder: str | os.PathLike[str] | None = None) -> "datasets.DatasetDict":
    """Load a data set from the hub, or from a folder that holds its files.

    In a folder, a file belongs to the split that its name says (``dialogsum.dev.jsonl``, ``train.tsv``,
    ``test-00000-of-00001.parquet``); sub-folders are searched as well. Examples without a target, as in the test split
    of SST-2, are left out.

    Args:
        name: ``dialogsum`` or ``sst2``.
        folder: folder with the files, as the hub or the authors give them; None to ask the hub.

    Returns:
        The splits that are there, among ``train``, ``validation`` and ``test``, each with the fields ``input``,
        ``target`` and ``task`` (the name).

    Raises:
        ValueError: there is no such data set, or a file is not as it should be.
        FileNotFoundError: the folder or its files are missing.
        ConnectionError: the hub is out of reach, and the data set is not in its cache.
    """
    if name not in HUB_SETS:
        raise ValueError(f"name={name!r}: expected one of {', '.join(HUB_SETS)}")
    chosen = HUB_SETS[name]
    found = _from_hub(name) if folder is None else _from_folder(name, Path(folder))
    from datasets import Dataset, DatasetDict

    result = DatasetDict()
    for split, (where, columns) in found.items():
        pairs = _pairs(where, columns, chosen, optional=split == "test")
        if pairs:
            texts, targets = zip(*pairs, strict=True)
            result[split] = Dataset.from_dict({"input": texts, "target": targets, "task": [name] * len(pairs)})
    if not result:
        raise ValueError(f"{name}: no example with a target in {', '.join(where for where, _ in found.values())}")
    return result


def _pairs(where: str, columns: Columns, chosen: HubSet, optional: bool) -> list[tuple[str, str]]:
    """Return inputs and targets; ``where`` names the source in errors, ``optional`` lets targets be missing."""
    target = next((column for column in chosen.targets if column in columns), None)
    if target is None and optional:
        return []
    if target is None or chosen.input not in columns:
        wanted = f"{chosen.input} and {' or '.join(chosen.targets)}"
        raise ValueError(f"{where}: expected columns {wanted}, found {', '.join(map(str, columns)) or 'none'}")
    pairs = []
    for number, (text, answer) in enumerate(zip(columns[chosen.input], columns[target], strict=True), 1):
        if chosen.labels and str(answer) in map(str, range(len(chosen.labels))):
            answer = chosen.labels[int(answer)]
        if str(answer) == "-1" or (optional and answer is None):
            continue  # the hub's mark for a label that is kept secret
        if not isinstance(text, str) or not isinstance(answer, str) or not text.strip() or not answer.strip():
            raise ValueError(f"{where}, example {number}: {chosen.input} or {target} is empty or no text")
        if chosen.labels and answer not in chosen.labels:
            expected = f"a number below {len(chosen.labels)} or one of {', '.join(chosen.labels)}"
            raise ValueError(f"{where}, example {number}: {target}={answer!r}, expected {expected}")
        pairs.append((text.strip(), answer.strip()))
    return pairs


def _from_hub(name: str) -> dict[str, tuple[str, Columns]]:
    """Read the data files from the hub's cache; fetch them first where they are not there or cannot be read."""
    from huggingface_hub import HfApi, snapshot_download

    chosen, endpoint = HUB_SETS[name], os.environ.get("HF_ENDPOINT")

    def read(here: bool = False, again: bool = False) -> dict[str, tuple[str, Columns]]:
        folder = snapshot_download(
            chosen.repository,
            repo_type="dataset",
            revision=chosen.revision,
            endpoint=endpoint,
            allow_patterns=[f"*{kind}" for kind in KINDS],
            local_files_only=here,
            force_download=again,
        )
        found = _from_folder(name, Path(folder))
        if {"train", "validation"} - set(found):
            raise FileNotFoundError(f"only {', '.join(found)} in {folder}")
        return found

    try:
        return read(here=True)
    except Exception as error:
        damaged = isinstance(error, ValueError)
    try:
        # One request with a limit: snapshot_download alone would try for half a minute where there is no network.
        HfApi(endpoint=endpoint).dataset_info(chosen.repository, revision=chosen.revision or "main", timeout=10)
        return read(again=damaged)
    except Exception as error:  # The library has a dozen kinds, from looking up a name to a full disk.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConnectionError(
            f"{chosen.repository} cannot be had from the hub. Go online and try again, or give a folder with its "
            f"files: data.hub({name!r}, folder=...). ({reason})"
        ) from error


def _from_folder(name: str, folder: Path) -> dict[str, tuple[str, Columns]]:
    if not folder.is_dir():
        raise FileNotFoundError(f"folder={str(folder)!r} is no folder: give the one that holds the files of {name}")
    files: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    for path in sorted(folder.rglob("*")):
        split = _SPLIT.search(path.name)
        if split and path.suffix in KINDS and path.is_file():
            files[split[1] if split[1] in files else "validation"].append(path)
    if not any(files.values()):
        raise FileNotFoundError(
            f"{folder}: no file of {name} in it; expected names such as {name}.train.jsonl, dev.tsv, validation.csv or "
            "test-00000-of-00001.parquet"
        )
    found: dict[str, tuple[str, Columns]] = {}
    for part, paths in files.items():
        if len({path.suffix for path in paths} | {path.parent for path in paths}) > 2:
            raise ValueError(f"{folder}: several {part} files, {', '.join(path.name for path in paths)}: keep one")
        if paths:
            tables = [_read(path) for path in paths]
            together = {column: [value for table in tables for value in table.get(column, [])] for column in tables[0]}
            found[part] = (", ".join(map(str, paths)), together)
    return found


def _read(path: Path) -> Columns:
    """Return the columns of a file."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path).to_pydict()
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix in (".csv", ".tsv"):
                # GLUE's tables have bare quotation marks, which mean nothing in them.
                table = path.suffix == ".tsv"
                rows: list[dict[str, Any]] = list(
                    csv.DictReader(
                        file,
                        delimiter="\t" if table else ",",
                        quoting=csv.QUOTE_NONE if table else csv.QUOTE_MINIMAL,
                        strict=True,
                    )
                )
            else:
                rows = [json.loads(line) for line in file if line.strip()]
    except (ValueError, OSError, csv.Error) as error:  # pyarrow's errors and bad UTF-8 are ValueErrors
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected one example a row, each with named fields; found {len(rows)} rows")
    return {column: [row.get(column) for row in rows] for column in rows[0]}
