"""Exercises of the notebook ``week5/01_number_formats``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_utils.checks.framework import Case, Exercise, Mistake, case
from course_utils.quantization.formats import (
    FORMATS,
    FloatFormat,
    decode,
    float_format,
    next_scale,
    spacing,
    stochastic_round,
)

# --- from fields to a number


def _decode_cases() -> list[Case]:
    def parts(*values: int) -> tuple[Tensor, ...]:
        return tuple(
            torch.tensor(each) for each in zip(*(values[k : k + 3] for k in range(0, len(values), 3)), strict=True)
        )

    half, brain = FORMATS["fp16"], FORMATS["bf16"]
    return [
        case(*parts(0, 16, 584, 1, 14, 3, 0, 30, 1023, 1, 1, 0), half),
        case(*parts(0, 0, 512, 1, 0, 3, 0, 0, 0, 1, 0, 1023), half),
        case(*parts(0, 128, 73, 1, 120, 1, 0, 127, 0, 1, 0, 5), brain),
        case(*parts(0, 31, 0, 1, 31, 0, 0, 31, 7), half),
        case(*parts(0, 15, 6, 1, 15, 7, 0, 0, 7), FORMATS["fp8_e4m3fn"]),
    ]


def _decoded(change: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The right function, with another formula for what is finite."""

    def function(sign: Tensor, exponent: Tensor, mantissa: Tensor, format: FloatFormat) -> Tensor:
        right = decode(sign, exponent, mantissa, format)
        wrong = change(sign, exponent.double(), mantissa.double(), format)
        return torch.where(right.isfinite(), wrong, right)

    return function


def _sign(sign: Tensor) -> Tensor:
    return 1.0 - 2.0 * sign


def _power(exponent: Tensor, format: FloatFormat, bias: int | None = None) -> Tensor:
    return torch.exp2(exponent.clamp(min=1) - (format.bias if bias is None else bias))


DECODE = Exercise(
    name="formats.decode",
    title="From three fields to a number",
    minutes=10,
    difficulty=2,
    importance=5,
    reference=decode,
    cases=_decode_cases,
    mistakes=[
        Mistake(
            _decoded(lambda s, e, m, f: _sign(s) * (1 + m / 2**f.mantissa) * torch.exp2(e - f.bias)),
            "numbers whose exponent field is 0 are subnormal: 2^(1 - bias) * (0 + mantissa / 2^bits), no hidden one.",
        ),
        Mistake(
            _decoded(lambda s, e, m, f: _sign(s) * ((e > 0) + m / 2**f.mantissa) * torch.exp2(e - f.bias)),
            "subnormal numbers have the exponent 1 - bias, as the smallest normal ones have, not 0 - bias.",
        ),
        Mistake(
            _decoded(lambda s, e, m, f: _sign(s) * (m / 2**f.mantissa) * _power(e, f)),
            "the hidden one is missing: a normal number's mantissa means 1 + mantissa / 2^bits.",
        ),
        Mistake(
            _decoded(lambda s, e, m, f: ((e > 0) + m / 2**f.mantissa) * _power(e, f)),
            "all of your numbers are positive: a sign of 1 means minus.",
        ),
        Mistake(
            _decoded(lambda s, e, m, f: _sign(s) * ((e > 0) + m / 2**f.mantissa) * _power(e, f, f.bias + 1)),
            "half of what it should be: the bias is 2^(exponent bits - 1) - 1, 15 for 5 bits; use format.bias.",
        ),
        Mistake(
            _decoded(lambda s, e, m, f: _sign(s) * ((e > 0) + m / (2**f.mantissa - 1)) * _power(e, f)),
            "mantissa bits are worth 1/2, 1/4, ...: divide by 2^bits, not by 2^bits - 1.",
        ),
        Mistake(
            lambda s, e, m, f: _sign(s) * ((e > 0) + m / 2.0**f.mantissa) * _power(e.double(), f),
            "the largest exponent field means infinity (mantissa 0) or NaN; where format.finite_only is set, only all "
            "ones mean NaN and the rest are numbers.",
        ),
    ],
    hints=[
        "(-1)^sign * 2^(exponent - bias) * (1 + mantissa / 2^mantissa bits). Then: what if the exponent field is 0?",
        "normal = exponent > 0: it is both the hidden one (normal.double()) and what decides the power: exponent or 1.",
        "Last, the largest exponent field, 2^format.exponent - 1: infinity or NaN, by torch.where.",
    ],
    tolerance=0.0,
)

# --- the gap


def _gap_cases() -> list[Case]:
    x = torch.tensor([1.0, 1.99, 2.0, -3.1416, 1000.7, 1e-5, -3e-6, 6e-8, 0.0], dtype=torch.float64)
    return [case(x, "fp16"), case(x, "bf16"), case(x[:4] * 0.01, "fp8_e4m3fn")]


def _gap(exponent: Callable[[Tensor, FloatFormat], Tensor]) -> Callable[[Tensor, str], Tensor]:
    return lambda x, format: torch.exp2(exponent(x.abs(), float_format(format)))


def _lowest(format: FloatFormat) -> int:
    return 1 - format.bias


SPACING = Exercise(
    name="formats.spacing",
    title="The gap between two numbers",
    minutes=10,
    difficulty=3,
    importance=4,
    reference=spacing,
    cases=_gap_cases,
    mistakes=[
        Mistake(
            _gap(lambda size, f: torch.floor(torch.log2(size)) - f.mantissa),
            "below the smallest normal number the gap stays the same: clamp the exponent at 1 - bias.",
        ),
        Mistake(
            _gap(lambda size, f: torch.floor(torch.log2(size)).clamp(min=-f.bias) - f.mantissa),
            "the smallest normal number has the exponent 1 - bias, not -bias.",
        ),
        Mistake(
            _gap(lambda size, f: torch.floor(torch.log2(size)).clamp(min=_lowest(f))),
            "that is the power of two below x: the gap is 2^(mantissa bits) times smaller.",
        ),
        Mistake(
            _gap(lambda size, f: torch.round(torch.log2(size)).clamp(min=_lowest(f)) - f.mantissa),
            "the gap changes at powers of two: take the floor of log2, not the nearest.",
        ),
        Mistake(
            _gap(lambda size, f: torch.ceil(torch.log2(size)).clamp(min=_lowest(f)) - f.mantissa),
            "the gap changes at powers of two: take the floor of log2, not the ceiling.",
        ),
        Mistake(
            _gap(lambda size, f: torch.full_like(size, -f.mantissa)),
            "that is the gap above 1 everywhere: it doubles at each power of two.",
        ),
    ],
    hints=[
        "From 1 to 2 there are 2^(mantissa bits) numbers at equal gaps. And from 2 to 4? From 1/2 to 1?",
        "gap = 2^(e - mantissa bits) with e = floor(log2(|x|)), which is at least 1 - bias.",
        "torch.exp2(torch.floor(torch.log2(x.abs())).clamp(min=1 - f.bias) - f.mantissa) with f = FORMATS[format].",
    ],
    tolerance=0.0,
)

# --- stochastic rounding


def _stochastic_cases() -> list[Case]:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(50, generator=source, dtype=torch.float64)
    draws = torch.rand(50, generator=source, dtype=torch.float64)
    return [case(x, 0.5, draws), case(10 * x, 0.125, draws), case(torch.tensor([1.0, -2.0, 0.0]), 0.25, draws[:3])]


def _stochastic(rounded: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, step, draws: rounded(x / step, draws) * step


STOCHASTIC = Exercise(
    name="formats.stochastic",
    title="Rounding by chance",
    minutes=8,
    difficulty=2,
    importance=3,
    reference=stochastic_round,
    cases=_stochastic_cases,
    mistakes=[
        Mistake(
            _stochastic(lambda q, draws: torch.round(q)),
            "that is rounding to nearest, whatever the draws say: compare them with the share of the gap below x.",
        ),
        Mistake(
            _stochastic(lambda q, draws: torch.floor(q) + (draws < 0.5)),
            "up with probability 1/2 wherever x lies: it must be the share of the gap, so that the mean is x.",
        ),
        Mistake(
            _stochastic(lambda q, draws: torch.floor(q) + (draws >= q - torch.floor(q))),
            "upside down: near the upper number it must mostly go up.",
        ),
        Mistake(
            _stochastic(lambda q, draws: torch.trunc(q) + (draws < (q - torch.trunc(q)).abs())),
            "negative numbers go the wrong way: torch.floor goes down, truncation goes towards 0.",
        ),
        Mistake(
            lambda x, step, draws: torch.floor(x) + (draws < x - torch.floor(x)),
            "these are whole numbers: measure x in steps first (x / step), and go back at the end.",
        ),
        Mistake(
            _stochastic(lambda q, draws: torch.floor(q + draws)),
            "right in the mean, but with the draws the other way round: asked is up where the draw is below the share.",
        ),
        Mistake(
            _stochastic(lambda q, draws: torch.round(q + draws)),
            "floor, not round, after adding the draw: else it goes up too often.",
        ),
    ],
    hints=[
        "x lies between two multiples of step. Which share of the way up has it come?",
        "With q = x / step: torch.floor(q) is below it, and q - torch.floor(q) is the share.",
        "(below + (draws < q - below)) * step.",
    ],
    tolerance=1e-12,
)

# --- dynamic loss scaling


def _scale_cases() -> list[Case]:
    return [
        case(1024.0, True, 5, 10), case(1024.0, False, 5, 10), case(1024.0, False, 9, 10), case(2.0, True, 9, 10),
        case(65536.0, False, 1999), case(3.0, False, 0, 1),
    ]  # fmt: skip


def _scaled(change: Callable[[float, bool, int, int], tuple[float, int]]) -> Callable[..., Any]:
    def function(scale: float, overflowed: bool, good: int, interval: int = 2000) -> tuple[float, int]:
        return change(scale, overflowed, good, interval)

    return function


def _raised(scale: float, good: int, interval: int) -> tuple[float, int]:
    return (scale * 2, 0) if good + 1 == interval else (scale, good + 1)


NEXT_SCALE = Exercise(
    name="formats.next_scale",
    title="The next loss scale",
    minutes=6,
    difficulty=2,
    importance=4,
    reference=next_scale,
    cases=_scale_cases,
    mistakes=[
        Mistake(
            _scaled(lambda s, bad, good, n: (s * 2, 0) if bad else _raised(s, good, n)),
            "an overflow means that the scale is too large: halve it.",
        ),
        Mistake(
            _scaled(lambda s, bad, good, n: (s / 2, good) if bad else _raised(s, good, n)),
            "after an overflow the count of good steps in a row starts again at 0.",
        ),
        Mistake(
            _scaled(
                lambda s, bad, good, n: (s / 2, 0) if bad else ((s * 2, good + 1) if good + 1 == n else (s, good + 1))
            ),
            "after doubling, the count starts again at 0, or the scale would never rise a second time.",
        ),
        Mistake(
            _scaled(lambda s, bad, good, n: (s / 2, 0) if bad else (s, good + 1)),
            "the scale does not rise after the last of `interval` good steps: the one just done counts too, good + 1.",
        ),
    ],
    hints=[
        "Three cases: overflow; the last of `interval` good steps in a row; any other good step.",
        "The step just done counts: after it there are good + 1 in a row.",
        "Overflow: (scale / 2, 0). good + 1 == interval: (scale * 2, 0). Else (scale, good + 1).",
    ],
    tolerance=0.0,
)

EXERCISES = (DECODE, SPACING, NEXT_SCALE, STOCHASTIC)
