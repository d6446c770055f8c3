"""Exercises of the notebook ``week5/02_quantization_from_scratch``."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_utils.checks.framework import Case, Exercise, Mistake, case
from course_utils.quantization.layers import quantize_inputs
from course_utils.quantization.schemes import SCALES, Scheme, pack

# --- rows to integers


def _row_cases() -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([[0.1], [1.0], [40.0]])
    negative = torch.randn(3, 7, generator=generator) * spread
    negative[1, 2] = -5.0  # the largest one is negative
    return [case(negative), case(torch.randn(2, 3, 6, generator=generator))]


def _rows(reach: Callable[[Tensor], Tensor], top: float = 127, whole: Callable[[Tensor], Tensor] = torch.round) -> Any:
    def function(states: Tensor) -> tuple[Tensor, Tensor]:
        scale = reach(states) / top
        return whole(states / scale).clamp(-127, 127).to(torch.int8), scale

    return function


def _absmax(states: Tensor) -> Tensor:
    return states.abs().amax(-1, keepdim=True)


ROWS = Exercise(
    name="quantize.rows",
    title="Rows to integers",
    minutes=8,
    difficulty=2,
    importance=5,
    reference=quantize_inputs,
    cases=_row_cases,
    mistakes=[
        Mistake(
            _rows(lambda states: states.abs().max().expand(*states.shape[:-1], 1)),
            "that is one scale for all: each row has its own largest value.",
        ),
        Mistake(
            _rows(lambda states: states.amax(-1, keepdim=True)),
            "the largest value may be negative: take the absolute values first.",
        ),
        Mistake(_rows(_absmax, 128), "the largest value shall get the code 127: divide by 127, not by 128."),
        Mistake(
            _rows(_absmax, 255),
            "255 is the number of steps from -127 to 127 plus one; the largest absolute value has 127 steps.",
        ),
        Mistake(_rows(_absmax, whole=torch.trunc), "converting to integers cuts off: use round() first."),
        Mistake(
            lambda states: (quantize_inputs(states)[0], 1 / quantize_inputs(states)[1]),
            "the scale is what a code is multiplied with to get the value back; yours is its inverse.",
        ),
        Mistake(
            lambda states: (quantize_inputs(states)[0], quantize_inputs(states)[1][..., 0]),
            "the scales need the shape (..., 1), so that they can be multiplied with the codes: keepdim=True.",
        ),
    ],
    hints=[
        "The largest absolute value of each row shall get the code 127.",
        "scale = states.abs().amax(-1, keepdim=True) / 127",
        "Then (states / scale).round().to(torch.int8), and the scale.",
    ],
)

# --- pack


def _pack_cases() -> list[Case]:
    generator = torch.Generator().manual_seed(1)
    made = [torch.randint(0, 2**bits, (3, 16), generator=generator).to(torch.uint8) for bits in (4, 2)]
    return [case(made[0], 4), case(made[1], 2)]


def _packed(codes: Tensor, bits: int, shifts: Callable[[int, int], list[int]], apart: bool = False) -> Tensor:
    each = 8 // bits
    wide = codes.int().view(len(codes), each, -1).transpose(1, 2) if apart else codes.int().view(len(codes), -1, each)
    return sum(wide[..., place] << shift for place, shift in enumerate(shifts(each, bits))).to(torch.uint8)  # type: ignore[union-attr]


def _high_first(each: int, bits: int) -> list[int]:
    return [bits * (each - 1 - place) for place in range(each)]


PACK = Exercise(
    name="quantize.pack",
    title="Pack",
    minutes=10,
    difficulty=3,
    importance=3,
    reference=pack,
    cases=_pack_cases,
    mistakes=[
        Mistake(
            lambda codes, bits: codes,
            "there is still one code a byte: shift the codes and put 8 // bits of them together.",
        ),
        Mistake(
            lambda codes, bits: _packed(codes, bits, lambda each, bits: [bits * place for place in range(each)]),
            "the first code stands in the lowest bits: it belongs into the highest ones.",
        ),
        Mistake(
            lambda codes, bits: _packed(codes, bits, lambda each, bits: [0] * each),
            "you added the codes without shifting them: they overlap.",
        ),
        Mistake(
            lambda codes, bits: _packed(codes, bits, _high_first, apart=True),
            "neighbours share a byte: you joined a code of the first part of the row with one of a later part.",
        ),
        Mistake(
            lambda codes, bits: pack(codes, 4)[:, : codes.shape[1] * bits // 8],
            "you shifted by 4 bits whatever the number of bits: with 2 bits, four codes share a byte.",
        ),
    ],
    hints=[
        "Reshape a row to (bytes, codes of a byte): codes.view(rows, -1, 8 // bits).",
        "The first code of a byte is shifted by 8 - bits, the next one by bits less, the last one by 0.",
        "Shifted codes do not overlap, so their sum is the byte: (wide << shifts).sum(-1).to(torch.uint8).",
    ],
)

# --- bytes of a matrix


def _byte_cases() -> list[Case]:
    return [
        case(Scheme(4, "group", 32), 48, 192),
        case(Scheme(4, "group", 64, symmetric=False), 30, 128),
        case(Scheme(8, scales="float32"), 50, 70),
        case(Scheme(3, "group", 16), 11, 48),
        case(Scheme(2, "tensor", symmetric=False), 9, 40),
    ]


def _bytes(**changes: Callable[[Scheme, int, int], float]) -> Callable[[Scheme, int, int], float]:
    """The right count with some of its parts replaced."""

    def function(scheme: Scheme, rows: int, columns: int) -> float:
        scales = math.prod(scheme.groups(rows, columns))
        parts: dict[str, float] = {
            "codes": rows * math.ceil(columns * scheme.bits / 8),
            "scales": scales * SCALES[scheme.scales].itemsize,
            "zeros": 0 if scheme.symmetric else scales,
        }
        return sum(changes[name](scheme, rows, columns) if name in changes else one for name, one in parts.items())

    return function


BYTES = Exercise(
    name="quantize.bytes",
    title="Bytes of a matrix",
    minutes=8,
    difficulty=2,
    importance=4,
    reference=Scheme.bytes,
    cases=_byte_cases,
    mistakes=[
        Mistake(
            _bytes(scales=lambda *_: 0, zeros=lambda *_: 0),
            "those are the codes alone: scales and zero points are stored as well.",
        ),
        Mistake(
            _bytes(zeros=lambda *_: 0),
            "the zero points are missing: one byte for each scale where the scheme is not symmetric.",
        ),
        Mistake(
            _bytes(zeros=lambda scheme, rows, columns: math.prod(scheme.groups(rows, columns))),
            "a symmetric scheme has no zero points.",
        ),
        Mistake(
            _bytes(scales=lambda scheme, rows, columns: 4 * math.prod(scheme.groups(rows, columns))),
            "you counted 4 bytes a scale whatever its type: SCALES[scheme.scales].itemsize.",
        ),
        Mistake(
            _bytes(scales=lambda scheme, rows, columns: rows * SCALES[scheme.scales].itemsize),
            "that is one scale a row: scheme.groups(rows, columns) says how many there are.",
        ),
        Mistake(
            _bytes(codes=lambda scheme, rows, columns: rows * columns),
            "you counted a byte for each code: packed, it takes scheme.bits bits.",
        ),
        Mistake(
            _bytes(codes=lambda scheme, rows, columns: rows * columns * scheme.bits),
            "those are the bits of the codes: 8 of them are a byte.",
        ),
    ],
    hints=[
        "Three parts: codes, scales, and zero points where the scheme is not symmetric.",
        "A row of codes takes columns * bits / 8 bytes, rounded up.",
        "math.prod(scheme.groups(rows, columns)) scales; as many zero points, a byte each.",
    ],
    tolerance=1e-9,
)

EXERCISES = [ROWS, PACK, BYTES]
