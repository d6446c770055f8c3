"""Where the course runs: profile, device, seeds, threads, folders."""

import os
import random
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PROFILES = ("laptop", "gpu")
QUIET = (
    "IProgress not found",
    "Torch was not compiled with flash attention",
    "The given NumPy array is not writable",
    "enable_nested_tensor is True",
)
"""Beginnings of library warnings on which a learner cannot act."""


@dataclass(frozen=True)
class Lab:
    """What :func:`start` found and set.

    Attributes:
        device: where tensors live, ``cpu``, ``cuda`` or ``mps``.
        dtype: floating-point type that models load in.
        profile: ``laptop`` (embedded models, no network) or ``gpu`` (hub models).
        seed: the seed of Python, NumPy and torch.
        threads: how many threads torch computes with.
    """

    device: "torch.device"
    dtype: "torch.dtype"
    profile: str
    seed: int
    threads: int


def start(
    seed: int = 0,
    profile: str | None = None,
    device: str | None = None,
    dtype: "torch.dtype | None" = None,
    threads: int | None = None,
) -> Lab:
    """Begin a notebook: choose the device, seed everything, fix the threads, and print what was chosen.

    Args:
        seed: seed of Python's, NumPy's and torch's generators, 0 to 2**32 - 1.
        profile: ``laptop`` or ``gpu``; by default ``COURSE_PROFILE``, else ``gpu`` where CUDA is, else ``laptop``.
        device: by default the CPU in the laptop profile and the GPU in the gpu profile.
        dtype: by default float32 on a CPU, and on a GPU bfloat16 where the chip computes in it, else float16.
        threads: by default ``COURSE_THREADS``, else 1: the embedded models are small, and one thread gives the same
            sums on every machine.

    Returns:
        The settings, as a :class:`Lab`.

    Raises:
        ValueError: a setting is not one of those above.
        RuntimeError: the device that was asked for is not there.
    """
    import torch

    profile = _profile(profile)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ValueError(f"start(seed={seed!r}): expected a whole number from 0 to 4294967295, for example seed=0")
    for beginning in QUIET:
        warnings.filterwarnings("ignore", message=beginning)
    chosen = _device(device, profile)
    if dtype is None:
        dtype = torch.float32 if chosen.type != "cuda" else _half_type()
    elif not dtype.is_floating_point:
        raise ValueError(f"start(dtype={dtype}): expected a floating-point type, for example torch.float32")
    lab = Lab(chosen, dtype, profile, seed, _threads(threads))
    torch.set_num_threads(lab.threads)
    seed_everything(seed)
    for name, value in (
        ("profile", lab.profile),
        ("device", _device_name(chosen)),
        ("dtype", str(dtype).removeprefix("torch.")),
        ("seed", lab.seed),
        ("threads", lab.threads),
    ):
        print(f"{name:<8} {value}")
    return lab


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators, on every device."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def cache_folder() -> Path:
    """Return (and create) the folder for what can be made again: ``COURSE_CACHE``, else ``~/.cache/course-utils``.

    Raises:
        OSError: it cannot be created; set ``COURSE_CACHE`` to a folder that can be written.
    """
    return _folder("COURSE_CACHE", Path.home() / ".cache" / "course-utils")


def home_folder() -> Path:
    """Return (and create) the folder for what is the learner's own: ``COURSE_HOME``, else ``~/.course-utils``.

    Raises:
        OSError: it cannot be created; set ``COURSE_HOME`` to a folder that can be written.
    """
    return _folder("COURSE_HOME", Path.home() / ".course-utils")


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable) or default).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot create {folder}: {error.strerror}. Set {variable} to a folder that can be written."
        ) from None
    return folder


def _profile(asked: str | None) -> str:
    import torch

    name = "start(profile=...)" if asked else "COURSE_PROFILE"
    profile = asked or os.environ.get("COURSE_PROFILE") or ("gpu" if torch.cuda.is_available() else "laptop")
    if profile not in PROFILES:
        raise ValueError(f"{name} is {profile!r}; expected one of {', '.join(PROFILES)}")
    return profile


def _device(asked: str | None, profile: str, caller: str = "start") -> "torch.device":
    import torch

    if asked is None:
        if profile == "laptop":
            return torch.device("cpu")
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise ValueError(f"{caller}(device={asked!r}): expected 'cpu', 'cuda', 'cuda:1' or 'mps'") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"{caller}(device={asked!r}): expected 'cpu', 'cuda', 'cuda:1' or 'mps'")
    missing = (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise RuntimeError(
            f"{caller}(device={asked!r}): torch finds no such device here; leave device out to use the CPU"
        )
    return device


def _device_name(device: "torch.device") -> str:
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _half_type() -> "torch.dtype":
    """bfloat16 where the GPU computes in it (compute capability 8 and up), else float16 (a T4 only emulates it)."""
    import torch

    return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16


def _threads(asked: int | None) -> int:
    value = asked if asked is not None else os.environ.get("COURSE_THREADS", "1")
    try:
        threads = int(value)
    except ValueError:
        threads = 0
    if threads < 1:
        name = "start(threads=...)" if asked is not None else "COURSE_THREADS"
        raise ValueError(f"{name} is {value!r}; expected a whole number of 1 or more")
    return threads
