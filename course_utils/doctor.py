"""``course doctor``: is this machine ready for the course, and if not, what to do."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
MEMORY_NEEDED, DISK_NEEDED = 2, 1
"""Free memory and disk (GiB) below which a notebook may fail."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report: what was looked at, whether it is well, what was seen, what to do."""

    name: str
    well: bool
    seen: str
    cure: str = ""

    def __str__(self) -> str:
        line = f"[{'OK' if self.well else 'FAIL'}] {self.name}: {self.seen}"
        return line if self.well else f"{line}\n       -> {self.cure}"


def examine() -> Iterator[Finding]:
    """Yield the findings one by one; a look that fails itself is reported as a finding, it never stops the others."""
    for look in (_python, _versions, _device, _memory, _disk, _kernel, _fonts, _profile):
        try:
            yield from look()
        except Exception as error:
            name = look.__name__.strip("_")
            yield Finding(name, False, f"{type(error).__name__}: {error}", "install again: pip install -e '.[dev]'")


def requirements() -> list[str]:
    """Return the course's run-time requirements: from the installed package, else from ``pyproject.toml`` beside it."""
    try:
        found = importlib.metadata.requires("course-utils") or []
        return [line for line in found if "extra ==" not in line]
    except importlib.metadata.PackageNotFoundError:
        project = Path(__file__).resolve().parents[1] / "pyproject.toml"
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]


def _python() -> Iterator[Finding]:
    well = sys.version_info[:2] >= (3, 11)
    yield Finding(
        "Python", well, platform.python_version(), "install Python 3.11, 3.12 or 3.13 and set up again with it"
    )


def _versions() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    wrong, right = [], []
    for line in requirements():
        requirement = Requirement(line)
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing (needs {requirement.specifier})")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            right.append(f"{requirement.name} {version}")
        else:
            wrong.append(f"{requirement.name} {version} (needs {requirement.specifier})")
    if wrong:
        yield Finding(
            "packages", False, "; ".join(wrong), "pip install -c constraints.txt -e '.[dev]', in this environment"
        )
    else:
        yield Finding("packages", True, f"all {len(right)} in their bounds, among them {', '.join(right[:3])}")


def _device() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        yield Finding("device", True, f"{properties.name} with {properties.total_memory / GIB:.0f} GiB")
    elif torch.backends.mps.is_available():
        yield Finding(
            "device", True, f"CPU with {os.cpu_count()} cores (the Apple GPU is used only where a cell asks for it)"
        )
    else:
        yield Finding("device", True, f"CPU with {os.cpu_count()} cores; no GPU is needed in the laptop profile")
    torch.ones(2, 2) @ torch.ones(2, 2)


def _memory() -> Iterator[Finding]:
    import psutil

    free = psutil.virtual_memory().available / GIB
    yield Finding(
        "free memory",
        free >= MEMORY_NEEDED,
        f"{free:.1f} GiB",
        f"close other programs: {MEMORY_NEEDED} GiB should be free",
    )


def _disk() -> Iterator[Finding]:
    from course_utils.environment import cache_folder

    folder = cache_folder()
    free = shutil.disk_usage(folder).free / GIB
    cure = f"make room, or set COURSE_CACHE to a folder on another disk: {DISK_NEEDED} GiB should be free"
    yield Finding("free disk", free >= DISK_NEEDED, f"{free:.1f} GiB at {folder}", cure)


def _kernel() -> Iterator[Finding]:
    cure = "pip install ipykernel, in this environment"
    try:
        from jupyter_client.kernelspec import KernelSpecManager
    except ModuleNotFoundError:
        yield Finding("kernel", False, "jupyter_client is missing", cure)
        return
    spec = KernelSpecManager().get_kernel_spec("python3")
    program = shutil.which(spec.argv[0]) or spec.argv[0]
    own = spec.argv[0] in ("python", "python3") or Path(program).resolve() == Path(sys.executable).resolve()
    there = importlib.util.find_spec("ipykernel") is not None
    seen = f"python3 runs {'this Python' if own else program}" if there else "ipykernel is missing"
    other = f"the kernel 'python3' belongs to another Python; {sys.executable} -m ipykernel install --sys-prefix"
    yield Finding("kernel", own and there, seen, other if there else cure)


def _fonts() -> Iterator[Finding]:
    from matplotlib import font_manager

    path = font_manager.findfont("DejaVu Sans", fallback_to_default=False)
    yield Finding("fonts", True, f"DejaVu Sans ({Path(path).name})")


def _profile() -> Iterator[Finding]:
    import torch

    from course_utils.environment import PROFILES

    asked = os.environ.get("COURSE_PROFILE")
    profile = asked or ("gpu" if torch.cuda.is_available() else "laptop")
    where = "set by COURSE_PROFILE" if asked else "chosen by what is here"
    yield Finding(
        "profile", profile in PROFILES, f"{profile} ({where})", f"set COURSE_PROFILE to one of {', '.join(PROFILES)}"
    )
