"""The registry: which model plays which role in which profile, how large it is, under which licence it stands."""

import hashlib
import json
import math
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REGISTRY = HERE / "registry.toml"
LOCK = HERE / "lock.json"
EMBEDDED = HERE / "embedded"
SUMS = "sha256.json"
"""In the folder of the embedded models: name of a model to the SHA-256 of its weights."""
BEGIN, END = "<!-- models: begin (course models table) -->", "<!-- models: end -->"
"""What stands around the table of models in the README."""


@dataclass(frozen=True)
class Role:
    """What a notebook asks for.

    Attributes:
        name: such as ``"decoder"``.
        about: what such a model does.
        laptop: name of the embedded model that plays it in the laptop profile.
        gpu: hub id of the model that plays it in the gpu profile.
    """

    name: str
    about: str
    laptop: str
    gpu: str


@dataclass(frozen=True)
class Model:
    """One model of the registry.

    Attributes:
        name: name of an embedded model, or hub id.
        family: the architecture it belongs to, such as ``"GPT-2"``.
        licence: its licence, by its SPDX name where it has one.
        notebooks: where it is used, as ``week.notebook``.
        embedded: whether it lies in this package; else it is on the hub.
        parameters: number of its weights, None where that is not known.
        megabytes: size of what is loaded or downloaded, in units of 10**6 bytes; None where that is not known.
        revision: commit on the hub that is pinned; None for an embedded model, or before ``course models pin``.
    """

    name: str
    family: str
    licence: str
    notebooks: tuple[str, ...]
    embedded: bool
    parameters: int | None = None
    megabytes: int | float | None = None
    revision: str | None = None

    @property
    def weeks(self) -> set[int]:
        """The weeks in which it is used."""
        return {int(notebook.split(".")[0]) for notebook in self.notebooks}


def roles() -> dict[str, Role]:
    """Return the roles by name."""
    return {name: Role(name, **entry) for name, entry in _registry()["role"].items()}


def embedded_models() -> dict[str, Model]:
    """Return the embedded models by name; parameters and size are read from their files, None where one is missing."""
    found = {}
    for name, entry in _registry()["embedded"].items():
        weights = EMBEDDED / name / "model.safetensors"
        there = weights.is_file()
        found[name] = Model(
            name=name,
            family=entry["family"],
            licence=entry["licence"],
            notebooks=tuple(entry["notebooks"]),
            embedded=True,
            parameters=_count_parameters(weights) if there else None,
            megabytes=weights.stat().st_size / 1e6 if there else None,
        )
    return found


def hub_models() -> dict[str, Model]:
    """Return the hub models by id; where one is pinned, revision, parameters and size are those of the lock file."""
    locked = json.loads(LOCK.read_text(encoding="utf-8")) if LOCK.is_file() else {}
    return {
        name: Model(
            **{"name": name, "embedded": False, **entry, **locked.get(name, {})}
            | {"notebooks": tuple(entry["notebooks"])}
        )
        for name, entry in _registry()["hub"].items()
    }


def roles_of(name: str) -> str:
    """Return the roles that a model plays, as one shows them; empty where it plays none.

    Args:
        name: embedded name or hub id.
    """
    return ", ".join(role.name for role in roles().values() if name in (role.laptop, role.gpu))


def seal() -> dict[str, str]:
    """List the SHA-256 of every embedded model's weights, so that a damaged file is noticed when it is loaded.

    To be called by whoever writes such a file.

    Returns:
        What was written: name to digest, in hexadecimal.
    """
    sums = {
        path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(EMBEDDED.glob("*/model.safetensors"))
    }
    write_text(EMBEDDED / SUMS, json.dumps(sums, indent=1) + "\n")
    return sums


def check_embedded(name: str) -> None:
    """Refuse an embedded model whose weights are missing or are not those that were sealed.

    Raises:
        ValueError: with what to do.
    """
    weights = EMBEDDED / name / "model.safetensors"
    cure = f"Put it back with `git checkout -- {EMBEDDED.name}/{name}` in {HERE}, or install the course again."
    sums = EMBEDDED / SUMS
    listed = json.loads(sums.read_text(encoding="utf-8")) if sums.is_file() else {}
    if not weights.is_file() and name not in listed:
        raise ValueError(f"{name}: it is not trained yet. `course train {name}` makes it.")
    if not weights.is_file():
        raise ValueError(f"{name}: {weights} is missing. {cure}")
    if listed.get(name) != hashlib.sha256(weights.read_bytes()).hexdigest():
        raise ValueError(f"{name}: {weights} is damaged, its SHA-256 is not the one in {SUMS}. {cure}")


def table() -> str:
    """Return the registry as a Markdown table, with a line on what is not pinned yet."""
    lines = [
        "| model | family | role | profile | revision | parameters | MB | licence | notebooks |",
        "| --- | --- | --- | --- | --- | ---: | ---: | --- | --- |",
    ]
    hub = hub_models()
    for model in [*embedded_models().values(), *hub.values()]:
        name = model.name if model.embedded else f"[{model.name}](https://huggingface.co/{model.name})"
        cells = [
            name,
            model.family,
            roles_of(model.name),
            "laptop" if model.embedded else "gpu",
            ("in this repository" if model.parameters else "in the making")
            if model.embedded
            else (model.revision or "not pinned")[:10],
            *sizes(model),
            model.licence,
            ", ".join(model.notebooks),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if any(model.revision is None for model in hub.values()):
        lines += ["", "Not pinned: the newest revision is taken until `course models pin` has run once with a network."]
    return "\n".join(lines) + "\n"


def sizes(model: Model) -> tuple[str, str]:
    """Return parameters (in millions) and megabytes of a model as one shows them; empty where they are not known."""
    parameters = "" if model.parameters is None else f"{model.parameters / 1e6:.3g} M"
    return (
        parameters,
        ""
        if model.megabytes is None
        else f"{model.megabytes:.3g}"
        if model.megabytes < 100
        else f"{model.megabytes:.0f}",
    )


def write_table(readme: Path) -> bool:
    """Put the table between the two marker comments of a README; return whether that changed it.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"{readme} needs the lines {BEGIN} and {END}, once each and in this order")
    new = f"{before}{BEGIN}\n{table()}{END}{after}"
    if new != text:
        write_text(readme, new)
    return new != text


def write_text(path: Path, text: str) -> None:
    """Write a text beside its place and move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def _registry() -> dict[str, Any]:
    return tomllib.loads(REGISTRY.read_text(encoding="utf-8"))


def _count_parameters(weights: Path) -> int:
    """Number of weights by the header of a safetensors file: 8 bytes with its length, then JSON with the shapes."""
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
