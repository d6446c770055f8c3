"""Speed and memory of a quantized forward pass on GPT-2 small's size, against float32: ours and the libraries'.

A part of ``make bench``. The ways are those of :mod:`course_utils.quantization.libraries`; one whose library is not
there, or that fails, gets a row that says so.
"""

import copy
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from course_utils.quantization.layers import linear_maps
from course_utils.quantization.libraries import BF16, _hushed, _short, _weights, installed, stored_bytes, way

ABOUT = (
    "A LLaMA of GPT-2 small's size (width 768, 12 blocks, 124 million random weights, embeddings tied), a forward pass "
    "without gradients, logits of the last token. Memory: storages counted, of the linear maps and of the whole model. "
    "Speed against float32 on the same device: above 1 is faster. Each pair was timed alternately in one run; median "
    "(smallest to largest). The embeddings stay in floating point."
)
TOKENS = (128, 1)
F32 = torch.float32
ROWS: tuple[tuple[str, torch.dtype], ...] = (
    ("torch: model.to(bfloat16)", BF16),
    ("ours: int8 channel", F32),
    ("ours: int8 channel", BF16),
    ("ours: int8 channel, inputs dynamic", F32),
    ("ours: int4 group 32", F32),
    ("ours: int4 group 32", BF16),
    ("ours: nf4 group 64 double", F32),
    ("torchao: Int8WeightOnlyConfig", F32),
    ("torchao: Int8WeightOnlyConfig", BF16),
    ("torchao: Int8DynamicActivationInt8WeightConfig", BF16),
    ("torchao: Int4WeightOnlyConfig, group 32", BF16),
    ("torchao: Int4WeightOnlyConfig, group 32, tile_packed_to_4d", BF16),
    ("torchao: IntxWeightOnlyConfig, int4 group 32", BF16),
    ("torchao: Float8WeightOnlyConfig", BF16),
    ("torchao: Float8DynamicActivationFloat8WeightConfig", BF16),
    ("bitsandbytes: Linear8bitLt", BF16),
    ("bitsandbytes: Linear4bit, NF4, double", F32),
    ("bitsandbytes: Linear4bit, NF4, double", BF16),
)
"""Ways, and the type of all that stays in floating point."""


def network(layers: int = 12) -> nn.Module:
    """Return the model in float32, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = dict(hidden_size=768, num_attention_heads=12, intermediate_size=2048, vocab_size=50257)
    return LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=layers, tie_word_embeddings=True)).eval()


def lines(quick: bool) -> list[str]:
    """Measure on the CPU, and on CUDA where it is there; a row for each way."""
    versions = ", ".join(f"{name} {version}" for name, version in installed(("torchao", "bitsandbytes")).items())
    shown: list[str] = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
        head = (
            "way",
            "rest in",
            "maps, MB",
            "smaller",
            "all, MB",
            *(f"{count} token{'s' * (count > 1)}" for count in TOKENS),
        )
        said = f"{name}; {versions or 'neither torchao nor bitsandbytes is installed'}:"
        shown += ["", said, "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"][not shown :]
        exact = network(2 if quick else 12).to(device)
        maps = list(linear_maps(exact))
        whole = sum(_weights(exact.get_submodule(one)) for one in maps)
        millions = f"{whole / 1e6:.1f} | 1.00 | {stored_bytes(exact) / 1e6:.1f}"
        shown.append(f"| float32 | float32 | {millions} |{''.join(f' {_alone(exact, count)} |' for count in TOKENS)}")
        for label, dtype in tqdm(ROWS, desc=name, leave=False):
            shown.append(f"| {label} | {str(dtype)[6:]} | {_row(exact, maps, label, dtype, whole, quick)} |")
            gc.collect()
    return shown


def _forward(model: nn.Module, count: int) -> Callable[[], float]:
    """A function that runs the model and returns the seconds."""
    device = next(model.parameters()).device
    ids = torch.randint(50000, (1, count), generator=torch.Generator().manual_seed(count)).to(device)

    @torch.no_grad()
    def timed() -> float:
        begun = time.perf_counter()
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    return timed


def _alone(model: nn.Module, count: int) -> str:
    forward = _forward(model, count)
    forward()
    return f"{1000 * statistics.median(forward() for _ in range(3)):.0f} ms"


def _row(exact: nn.Module, maps: list[str], label: str, dtype: torch.dtype, whole: int, quick: bool) -> str:
    try:
        with _hushed():
            model = way(label).change(copy.deepcopy(exact).to(dtype))
            speeds = [_speed(exact, model, count, quick) for count in TOKENS]
    except Exception as problem:  # what a library raises is the row
        return f"{_short(f'{type(problem).__name__}: {problem}', 100)} | | | |"
    now = sum(_weights(model.get_submodule(one)) for one in maps)
    return f"{now / 1e6:.1f} | {whole / now:.2f} | {stored_bytes(model) / 1e6:.1f} | {' | '.join(speeds)}"


def _speed(exact: nn.Module, model: nn.Module, count: int, quick: bool) -> str:
    plain, small = _forward(exact, count), _forward(model, count)
    plain(), small()
    found = []
    for pair in range((3 if quick else 5) if count > 1 else (3 if quick else 11)):
        first, second = (plain(), small()) if pair % 2 else reversed((small(), plain()))
        found.append(first / second)
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
