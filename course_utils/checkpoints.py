"""Checkpoints: one safetensors file with tensors and state, written atomically, with a digest over all, no pickle."""

import hashlib
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor


def save(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a checkpoint beside its place and move it there: whoever looks finds the old one or the new one, whole.

    Args:
        path: the file; its folder is created.
        tensors: what to keep, any devices and shapes.
        state: everything else, in what JSON holds.
    """
    from safetensors.torch import save_file

    # A copy of each: tied weights share their storage, which the format does not allow.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    save_file(copies, temporary, {"state": text, "sha256": _digest(copies, text)})
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the state of a checkpoint.

    Raises:
        ValueError: the file is damaged, or is no checkpoint.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            text, digest = file.metadata()["state"], file.metadata()["sha256"]
        if digest != _digest(tensors, text):
            raise ValueError("its digest does not match its contents")
        return tensors, json.loads(text)
    except Exception as error:
        raise ValueError(
            f"the checkpoint {path} is damaged, or is none ({error}). "
            f"Delete it to start from the beginning, or put back a copy."
        ) from None


def generator_states(device: torch.device) -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators (that of the device included), for JSON."""
    legacy: Any = numpy.random.get_state()
    _, words, place, has_gauss, gauss = legacy
    states = {
        "python": random.getstate(),
        "numpy": [words.tolist(), int(place), int(has_gauss), float(gauss)],
        "cpu": torch.get_rng_state().numpy().tobytes().hex(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device).numpy().tobytes().hex()
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state().numpy().tobytes().hex()
    return states


def set_generator_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators back into the states that :func:`generator_states` returned."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    numpy.random.set_state(("MT19937", numpy.array(states["numpy"][0], dtype=numpy.uint32), *states["numpy"][1:]))

    def tensor(kind: str) -> Tensor:
        return torch.frombuffer(bytearray.fromhex(states[kind]), dtype=torch.uint8)

    torch.set_rng_state(tensor("cpu"))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(tensor("cuda"), device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(tensor("mps"))


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
