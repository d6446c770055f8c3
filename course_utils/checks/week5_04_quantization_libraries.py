"""Exercises of the notebook ``week5/04_quantization_libraries``."""

import math

from course_utils.checks.framework import Case, Exercise, Mistake, case

# --- what was left as it was


def untouched(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """Names of the layers whose bytes did not fall."""
    return [name for name in before if after[name] >= before[name]]


def _untouched_cases() -> list[Case]:
    before = {"up": 4096, "down": 4096, "query": 1024, "key": 1024}
    return [
        case(before, {"up": 1088, "down": 4096, "query": 1024, "key": 272}),
        case(before, {"key": 272, "query": 272, "down": 1088, "up": 1088}),
        case(before, dict(before)),
        case(before, {"up": 4096, "down": 5120, "query": 544, "key": 544}),
    ]


UNTOUCHED = Exercise(
    name="libraries.untouched",
    title="Layers that were left as they were",
    minutes=6,
    difficulty=1,
    importance=5,
    reference=untouched,
    cases=_untouched_cases,
    mistakes=[
        Mistake(
            lambda before, after: [name for name in before if after[name] < before[name]],
            "these are the layers that became smaller. We look for the others.",
        ),
        Mistake(
            lambda before, after: [name for name in before if after[name] == before[name]],
            "a layer can also grow (codes beside the old weights): its bytes did not fall either.",
        ),
        Mistake(
            lambda before, after: list(before) if sum(after.values()) >= sum(before.values()) else [],
            "you compare the totals. They fall as soon as some layers do; look at each layer.",
        ),
        Mistake(
            lambda before, after: [name for name in after if after[name] > before[name]],
            "equal bytes mean untouched, too: use >= instead of >.",
        ),
        Mistake(
            lambda before, after: sum(after[name] >= before[name] for name in before),
            "that is how many. Return their names, in the order of before.",
        ),
    ],
    hints=[
        "Go through the names in before and look the name up in both.",
        "[name for name in before if after[name] >= before[name]].",
    ],
)

# --- the time of a product


def forward_seconds(weights: int, bits: float, tokens: int, flops: float, bandwidth: float) -> float:
    """The longer of the time to compute and the time to read the weights."""
    return max(2 * weights * tokens / flops, weights * bits / 8 / bandwidth)


def _seconds_cases() -> list[Case]:
    return [
        case(7_000_000, 32, 1, 1e12, 5e10),
        case(7_000_000, 4.5, 1, 1e12, 5e10),
        case(7_000_000, 4.5, 512, 1e12, 5e10),
        case(1_000_000, 8, 64, 1e11, 1e10),
    ]


FORWARD_SECONDS = Exercise(
    name="libraries.forward_seconds",
    title="Reading or computing",
    minutes=10,
    difficulty=3,
    importance=5,
    reference=forward_seconds,
    cases=_seconds_cases,
    mistakes=[
        Mistake(
            lambda weights, bits, tokens, flops, bandwidth: (
                2 * weights * tokens / flops + weights * bits / 8 / bandwidth
            ),
            "you add the two times. They overlap: while one weight is used, the next is being read. Take the longer.",
        ),
        Mistake(
            lambda weights, bits, tokens, flops, bandwidth: min(
                2 * weights * tokens / flops, weights * bits / 8 / bandwidth
            ),
            "the pass ends when both are done: the longer time counts, not the shorter.",
        ),
        Mistake(
            lambda weights, bits, tokens, flops, bandwidth: max(
                2 * weights * tokens / flops, weights * bits / bandwidth
            ),
            "bandwidth counts bytes: divide the bits by 8.",
        ),
        Mistake(
            lambda weights, bits, tokens, flops, bandwidth: max(
                weights * tokens / flops, weights * bits / 8 / bandwidth
            ),
            "a weight costs two operations for each token, a multiplication and an addition.",
        ),
        Mistake(
            lambda weights, bits, tokens, flops, bandwidth: max(2 * weights / flops, weights * bits / 8 / bandwidth),
            "the operations grow with the tokens: each of them meets each weight.",
        ),
        Mistake(
            lambda weights, bits, tokens, flops, bandwidth: max(
                2 * weights * tokens / flops, weights * bits / 8 * tokens / bandwidth
            ),
            "the weights are read once for all tokens of the pass.",
        ),
        Mistake(
            lambda weights, bits, tokens, flops, bandwidth: max(
                2 * weights * tokens / flops * bits / 32, weights * bits / 8 / bandwidth
            ),
            "the product is computed in floating point, whatever the bits in which the weights are stored.",
        ),
    ],
    hints=[
        "Two times: operations / flops, and bytes / bandwidth.",
        "Operations: 2 * weights * tokens. Bytes: weights * bits / 8, once.",
        "max of the two.",
    ],
)

# --- a layer in QLoRA


def qlora_bytes(rows: int, columns: int, rank: int) -> int:
    """NF4 with double quantization, and LoRA in 16 bits with gradients in 16 and Adam's averages in 32."""
    weights = rows * columns
    scales = math.ceil(weights / 64)
    base = weights // 2 + scales + 4 * math.ceil(scales / 256) + 4
    return base + rank * (rows + columns) * (2 + 2 + 8)


def _qlora_cases() -> list[Case]:
    return [case(4096, 4096, 16), case(11008, 4096, 8), case(512, 192, 4), case(192, 512, 64)]


def _with(rows: int, columns: int, rank: int, base: float | None = None, each: int = 12) -> int:
    """The bytes with another base or another size of what is trained."""
    right = qlora_bytes(rows, columns, 0)
    return int(right if base is None else base) + rank * (rows + columns) * each


QLORA_BYTES = Exercise(
    name="libraries.qlora_bytes",
    title="Bytes of a layer in QLoRA",
    minutes=12,
    difficulty=3,
    importance=4,
    reference=qlora_bytes,
    cases=_qlora_cases,
    mistakes=[
        Mistake(
            lambda rows, columns, rank: _with(rows, columns, rank, rows * columns // 2 + rows * columns // 64 * 4),
            "your scales are float32: that is NF4 without double quantization. With it a scale takes one byte, and 256 "
            "of them share a float32; one more float32 is their mean.",
        ),
        Mistake(
            lambda rows, columns, rank: _with(rows, columns, rank, rows * columns // 2),
            "the scales are missing: one byte for each 64 weights, 4 bytes for each 256 scales, and 4 for their mean.",
        ),
        Mistake(
            lambda rows, columns, rank: qlora_bytes(rows, columns, rank) + rows * columns // 2,
            "two codes share a byte: 4 bits a weight are half a byte.",
        ),
        Mistake(
            lambda rows, columns, rank: _with(rows, columns, rank, None, 2),
            "you counted LoRA's weights alone. What is trained also has gradients (2 bytes) and Adam's averages (4 + "
            "4).",
        ),
        Mistake(
            lambda rows, columns, rank: qlora_bytes(rows, columns, rank) + 10 * rows * columns,
            "the base is frozen: it has no gradients and no averages.",
        ),
        Mistake(
            lambda rows, columns, rank: qlora_bytes(rows, columns, 0) + rank * columns * 12,
            "LoRA has two thin matrices, (rank, columns) and (rows, rank).",
        ),
        Mistake(
            lambda rows, columns, rank: qlora_bytes(rows, columns, rank) - 4,
            "4 bytes are missing: the mean of the scales, which is subtracted before they are quantized.",
        ),
    ],
    hints=[
        "Base: half a byte a weight, one byte for each 64 weights, 4 bytes for each 256 of those, and 4 for the mean.",
        "Adapter: rank * (rows + columns) numbers of 2 bytes, with 2 for the gradient and 8 for Adam.",
        "Round the number of blocks up: math.ceil(weights / 64), then math.ceil(scales / 256).",
    ],
)

EXERCISES = [UNTOUCHED, FORWARD_SECONDS, QLORA_BYTES]
