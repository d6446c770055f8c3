"""Pictures of number formats: the bits of pi, read from the real formats."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from course_utils.figures.canvas import BLUE, GREEN, GREY, ORANGE, VERMILION, Number, box, sheet, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Bits:
    """A number as a floating-point format holds it.

    Attributes:
        sign: one character, ``"0"`` or ``"1"``.
        exponent: the bits of the biased exponent.
        fraction: the bits after the leading 1.
        value: the number held, exactly.
    """

    sign: str
    exponent: str
    fraction: str
    value: float


def bits(value: float, dtype: torch.dtype) -> Bits:
    """Return the bits that a floating-point format of torch stores for a number.

    Args:
        value: the number to be held.
        dtype: ``torch.float32``, ``torch.float16`` or ``torch.bfloat16``.

    Returns:
        Sign, exponent and fraction as text, and the value held.

    Raises:
        ValueError: the format is not one of these.
    """
    exponents = {torch.float32: 8, torch.float16: 5, torch.bfloat16: 8}
    if dtype not in exponents:
        raise ValueError(f"bits() got {dtype}; it knows torch.float32, torch.float16 and torch.bfloat16")
    held = torch.tensor(value, dtype=torch.float64).to(dtype)
    size = held.element_size()
    word = int(held.view(_INTEGERS[size]).item()) % 2 ** (8 * size)
    text = f"{word:0{8 * size}b}"
    return Bits(text[0], text[1 : 1 + exponents[dtype]], text[1 + exponents[dtype] :], held.double().item())


def _raised(power: int) -> str:
    """Return a whole number in superscript digits."""
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _scientific(value: float, digits: int = 2) -> str:
    """Return a number as digits times a power of ten, for example ``-9.68 × 10⁻⁴``."""
    text, power = f"{value:.{digits}e}".split("e")
    return f"{text} × 10{_raised(int(power))}".replace("-", "−")


def _short(value: float) -> str:
    """Return a number in plain digits where that is short."""
    if value >= 1000:
        return f"{value:,.0f}" if value < 1e6 else _scientific(value)
    return f"{value:.2g}" if value > 1e-4 else _scientific(value, 1)


def _row(axes: "Axes", top: Number, name: str, dtype: torch.dtype) -> None:
    """Draw the bits of pi in one format as boxes, 32 places wide, with the value and the error below."""
    held = bits(math.pi, dtype)
    write(axes, 20, top + 14, name, 18, ha="left", weight="bold")
    size = torch.empty(0, dtype=dtype).element_size()
    write(axes, 780, top + 14, f"{8 * size} bits = {size} bytes", 14, ha="right", color=GREY)
    cell, left = 23.75, 20.0
    for text, label, color, hatch in (
        (held.sign, "sign", VERMILION, ""),
        (held.exponent, "exponent", GREEN, ""),
        (held.fraction, "fraction", BLUE, ""),
    ):
        for number, bit in enumerate(text):
            box(axes, left + number * cell, top + 36, cell - 2, 32, bit, color, 14, rounding=2, hatch=hatch)
        right = left + len(text) * cell - 2
        axes.plot(
            [left, left, right, right], [top + 73, top + 78, top + 78, top + 73], color=color, linewidth=1.4, marker=""
        )
        count = "1 bit" if len(text) == 1 else f"{len(text)} bits"
        write(axes, max((left + right) / 2, 34), top + 99, f"{label}\n{count}", 13)
        left += len(text) * cell
    power = int(held.exponent, 2) - (2 ** (len(held.exponent) - 1) - 1)
    error = held.value - math.pi
    write(axes, 20, top + 138, f"holds {held.value:.16g}", 15, ha="left", weight="bold")
    digits = f"= {held.value / 2**power:.10g} × 2{_raised(power)}"
    write(axes, 260, top + 138, digits, 14, ha="left", color=GREY)
    write(axes, 780, top + 138, f"error {'+' if error > 0 else ''}{_scientific(error)}", 15, ha="right")


def _two_formats(first: tuple[str, torch.dtype], second: tuple[str, torch.dtype], remark: str) -> "Figure":
    """Draw pi in two formats and a remark underneath."""
    fig, axes = sheet(800, 402)
    write(axes, 400, 22, "π = 3.14159265358979...", 16)
    _row(axes, 40, *first)
    axes.plot([20, 780], [200, 200], color="#C4C4C4", linewidth=1, marker="")
    _row(axes, 212, *second)
    write(axes, 400, 382, remark, 14)
    return fig


def fp16() -> "Figure":
    """Draw the bits of pi in FP32 and in FP16."""
    largest = torch.finfo(torch.float16).max
    return _two_formats(
        ("FP32", torch.float32),
        ("FP16", torch.float16),
        f"Half the memory, and a smaller range: the largest FP16 number is {largest:,.0f}.",
    )


def bfloat16() -> "Figure":
    """Draw the bits of pi in FP32 and in BFLOAT16."""
    top = torch.finfo(torch.bfloat16).max
    return _two_formats(
        ("FP32", torch.float32),
        ("BFLOAT16", torch.bfloat16),
        f"Half the memory and the same 8 exponent bits: numbers up to {_scientific(top, 1)}, with fewer digits.",
    )


def number_formats() -> "Figure":
    """Draw FP32, FP16, BFLOAT16 and INT8 side by side: layout, memory, range and precision."""
    fig, axes = sheet(800, 330)
    heads = [(20, "format", "left"), (110, "layout, to scale", "left"), (455, "1 billion\nweights", "right")]
    heads += [(565, "largest\nnumber", "right"), (672, "step\nafter 1", "right"), (780, "holds π as", "right")]
    for x, text, side in heads:
        write(axes, x, 30, text, 13, ha=side, weight="bold")
    formats = (("FP32", torch.float32), ("FP16", torch.float16), ("BFLOAT16", torch.bfloat16))
    cell = 8.0
    for number, (name, dtype) in enumerate(formats):
        y = 60 + 58 * number
        held = bits(math.pi, dtype)
        write(axes, 20, y + 18, name, 14, ha="left", weight="bold")
        left = 110.0
        for text, label, color in (
            (held.sign, "", VERMILION),
            (held.exponent, "exponent", GREEN),
            (held.fraction, "fraction", BLUE),
        ):
            width = cell * len(text)
            inside = f"{label} {len(text)}" if width > 70 else (str(len(text)) if label else "")
            box(axes, left, y, width - 1, 36, inside, color, 12, rounding=2)
            left += width
        info = torch.finfo(dtype)
        values = (f"{dtype.itemsize} GB", _short(info.max), _short(info.eps), f"{held.value:.8g}")
        for x, text in zip((455, 565, 672, 780), values, strict=True):
            write(axes, x, y + 18, text, 13.5, ha="right")
    y = 60 + 58 * 3
    write(axes, 20, y + 18, "INT8", 14, ha="left", weight="bold")
    box(axes, 110, y, cell * 8 - 1, 36, "integer", ORANGE, 12, rounding=2)
    for x, text in zip((455, 565), ("1 GB", "127"), strict=True):
        write(axes, x, y + 18, text, 13.5, ha="right")
    write(axes, 780, y + 18, "whole numbers × a scale", 13.5, ha="right")
    write(
        axes,
        400,
        308,
        "Left to right in each bar: sign (1 bit), exponent (sets the range), fraction (sets the digits).",
        13,
    )
    return fig
