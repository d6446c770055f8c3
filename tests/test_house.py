"""The house: the files that must agree with one another, style, types, layers, docstrings, links."""

import importlib.metadata
import logging
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from rattler import MatchSpec

from course_utils.notebooks import address, find

ROOT = Path(__file__).parents[1]
COLAB = ROOT.parent / "shared" / "data" / "colab-pip-freeze.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
DEVELOPMENT = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]
CONDA_NAMES = {"pytorch": "torch"}


def pins(path):
    """Name to version of the ``name==version`` lines of a file."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)$", path.read_text(encoding="utf-8"), flags=re.M)
    return {canonicalize_name(name): version for name, version in found}


CONSTRAINTS = pins(ROOT / "constraints.txt")


def command(*words, **environment):
    env = {**os.environ, **environment}
    result = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


def test_every_requirement_is_pinned_within_its_bounds():
    for requirement in RUNTIME + DEVELOPMENT:
        version = CONSTRAINTS.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} does not admit {version}"
    assert CONSTRAINTS["torch"] == "2.13.0"


def test_constraints_are_exact_and_for_every_machine():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line), line


def test_constraints_are_the_whole_closure():
    """Every package that the requirements bring, by the metadata of what is installed, is pinned."""
    seen, waiting = set(), [canonicalize_name(r.name) for r in RUNTIME + DEVELOPMENT]
    while waiting:
        name = waiting.pop()
        if name in seen or name in ("pip", "setuptools", "wheel"):
            continue
        seen.add(name)
        assert name in CONSTRAINTS, f"{name} is not pinned"
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))


def test_environment_yml_says_the_same():
    described = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert set(described) == {"name", "channels", "dependencies"}
    assert described["channels"] == ["conda-forge"]
    specs = [MatchSpec(line) for line in described["dependencies"] if isinstance(line, str)]
    (extra,) = [line["pip"] for line in described["dependencies"] if isinstance(line, dict)]
    assert extra[-1] == "-e ."
    found = {CONDA_NAMES.get(spec.name.normalized, spec.name.normalized): str(spec.version) for spec in specs}
    assert "pip" in found
    assert found.pop("python") == ">=3.11,<3.14"
    found.pop("pip")
    found |= {Requirement(line).name: str(Requirement(line).specifier) for line in extra[:-1]}
    versions = {canonicalize_name(name): version.lstrip("=") for name, version in found.items()}
    wanted = {canonicalize_name(r.name): CONSTRAINTS[canonicalize_name(r.name)] for r in RUNTIME + DEVELOPMENT}
    assert versions == wanted


@pytest.mark.skipif(not COLAB.is_file(), reason="Colab's package list is not beside this checkout")
def test_installing_on_colab_changes_nothing_of_colabs_own():
    colab = pins(COLAB) | {"torch": "2.11.0"}
    new, waiting = set(), list(RUNTIME)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in colab:
            assert requirement.specifier.contains(Version(colab[name])), f"{requirement} would replace {colab[name]}"
        elif name not in new:
            new.add(name)
            lines = [Requirement(line) for line in importlib.metadata.requires(name) or []]
            waiting += [
                r for r in lines if r.marker is None or r.marker.evaluate({"extra": "", "python_version": "3.13"})
            ]
    evaluation = {"colorama", "datasketch", "portalocker", "rouge-score", "sacrebleu"}
    assert new == {"jaxtyping", "wadler-lindig"} | evaluation


def test_lower_bounds_fit_colab_and_ipython_is_never_required():
    assert not {canonicalize_name(r.name) for r in RUNTIME} & {"ipython", "jupyterlab", "notebook", "nbval", "pytest"}
    assert PROJECT["requires-python"] == ">=3.11"


def test_the_address_stands_once():
    """Every other mention of a repository on GitHub that hosts this course is stamped from pyproject.toml."""
    url, tag = address(ROOT)
    for path in [*find(root=ROOT), ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        place = url.removeprefix("https://github.com/")
        for found in re.findall(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/", text):
            assert found == place
        for found in re.findall(r"git\+(https://github\.com/[\w./-]+)@([\w.]+)", text):
            assert found == (url, tag)


def test_style():
    command("ruff", "check", ".")
    command("ruff", "format", "--check", ".")


def test_types():
    command("mypy")


def test_layers():
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_every_public_thing_has_a_docstring():
    """Ruff's D rules are selected for the package and nothing switches them off in a file."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    assert "D" in settings["select"]
    assert set(settings["ignore"]) & {"D100", "D101", "D102", "D103", "D104", "D106"} == set()
    for path in (ROOT / "course_utils").rglob("*.py"):
        assert not re.search(
            r"# (?:ruff: )?noqa: ?D1|# ruff: noqa\s*$", path.read_text(encoding="utf-8"), flags=re.M
        ), path


def test_shapes_are_checked_at_run_time():
    """The tests of the lower rows once more, with jaxtyping and beartype holding every call to its signature."""
    names = ["attention", "positions", "tokenization", "vectors", "transformer", "families", "rnn", "generation"]
    names += ["objectives", "packing", "interpretability", "lora", "compute"]
    files = [f"tests/test_{name}.py" for name in names]
    options = [
        "--jaxtyping-packages=course_utils,shapes.checked",
        "-p",
        "no:cacheprovider",
        "-q",
        "-k",
        "not refuses",
    ]
    command("pytest", *options, *files, PYTHONPATH=str(ROOT / "tests"))


def test_a_wrong_shape_is_caught_at_run_time(tmp_path):
    """The run above can fail: a function whose result does not have its shape is caught."""
    package = tmp_path / "wrongly_shaped"
    package.mkdir()
    package.joinpath("__init__.py").write_text(
        "from jaxtyping import Float\nfrom torch import Tensor\n\n\n"
        'def turn(x: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:\n    return x.T\n'
    )
    tmp_path.joinpath("test_it.py").write_text(
        "import torch\nfrom wrongly_shaped import turn\n\n\ndef test_it():\n    turn(torch.zeros(2, 3))\n"
    )
    words = ["pytest", "-q", "--rootdir", str(tmp_path), "-p", "no:cacheprovider", str(tmp_path / "test_it.py")]
    run = subprocess.run(
        [sys.executable, "-m", *words, "--jaxtyping-packages=wrongly_shaped,shapes.checked"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT / "tests")))},
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert "TypeCheckError" in run.stdout


def test_what_torchao_says_when_it_is_imported_is_not_shown():
    def shown(name, message):
        return bool(logging.getLogger(name).filter(logging.makeLogRecord({"msg": message, "levelno": logging.WARNING})))

    assert not shown("torchao", "Failed to load _C.so: Could not load this library")
    assert not shown(
        "torch.utils._pytree", "<enum 'KernelPreference'> is an Enum subclass and is now natively supported"
    )
    assert shown("torchao", "another thing") and shown("torch.utils._pytree", "another thing")


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, course_utils; heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'ipywidgets'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "import course_utils.attention, course_utils.transformer;"
        "rest = heavy - {'torch'}; assert not rest & set(sys.modules), rest & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_workflows_run_the_readmes_commands():
    texts = {}
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        texts[path.name] = yaml.safe_load(path.read_text(encoding="utf-8"))
    jobs = [job for text in texts.values() for job in text["jobs"].values()]
    systems = {system for job in jobs for system in job.get("strategy", {}).get("matrix", {}).get("os", [])}
    assert {name.split("-")[0] for name in systems} == {"ubuntu", "macos", "windows"}
    assert any("schedule" in (text.get("on") or text.get(True)) for text in texts.values())


def test_readme_begins_with_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert 0 < text.index("make lab") < 1500
    assert 0 < text.index("make test") < 1500
    for word in (
        "pip install -c constraints.txt",
        "conda env create",
        "Colab",
        "## Map",
        "## The five weeks",
        "## Contribut",
    ):
        assert word in text, word


def test_ci_runs_the_readmes_test_command():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith(("#", "set", "cd"))] == [
        'exec make test ARGS="-n 2"'
    ]


def test_licences_are_whole():
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Attribution 4.0 International" in (ROOT / "LICENSE-TEXT").read_text(encoding="utf-8")
