"""Exercises of the notebook ``week4/03_scaling_laws``."""

import math
from collections.abc import Sequence

import numpy as np

from course_utils.checks.framework import Case, Exercise, Mistake, case
from course_utils.scaling import allocation, huber, power_law, vertex

# --- a power law


def _power_cases() -> list[Case]:
    chance = np.random.default_rng(0)
    found = []
    for exponent, scale, count in ((0.076, 8.8e13, 6), (0.31, 4e4, 5), (0.5, 300.0, 9)):
        x = np.geomspace(20.0, 5e6, count)
        losses = (scale / x) ** exponent * np.exp(0.05 * chance.standard_normal(count))
        found.append(case(x.tolist(), losses.tolist()))
    return found


def _line(x: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    slope, height = np.polyfit(np.log(x), np.log(losses), 1)
    return float(slope), float(height)


def _negative(x: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    return _line(x, losses)[0], power_law(x, losses)[1]


def _height_only(x: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    return power_law(x, losses)[0], math.exp(_line(x, losses)[1])


def _wrong_root(x: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    exponent, _ = power_law(x, losses)
    return exponent, math.exp(_line(x, losses)[1] * exponent)


def _half_logarithmic(x: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    slope, height = np.polyfit(np.log(x), losses, 1)
    return float(-slope), float(np.exp(-height / slope))


def _mixed_bases(x: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    slope, height = np.polyfit(np.log10(x), np.log10(losses), 1)
    return float(-slope), float(np.exp(-height / slope))


def _two_ends(x: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    return power_law([x[0], x[-1]], [losses[0], losses[-1]])


POWER_LAW = Exercise(
    name="scaling.power_law",
    title="Fit a power law",
    minutes=10,
    difficulty=2,
    importance=5,
    reference=power_law,
    cases=_power_cases,
    mistakes=[
        Mistake(
            _negative,
            "the exponent has the wrong sign: the line falls, so its slope is -exponent.",
        ),
        Mistake(
            _height_only,
            "the exponent is right. The line's height at log x = 0 is exponent * log(scale): divide by the exponent "
            "before the exp.",
        ),
        Mistake(
            _wrong_root,
            "the exponent is right. For the scale you multiplied the height by the exponent: divide by it.",
        ),
        Mistake(
            _half_logarithmic,
            "you took the logarithm of x alone: a power law is straight where both axes are logarithmic.",
        ),
        Mistake(
            _mixed_bases,
            "the exponent is right, the scale mixes bases: with log10 go back by 10**..., with log by exp.",
        ),
        Mistake(
            lambda x, losses: power_law(x, losses)[::-1],
            "the two are swapped: the exponent comes first, then the scale.",
        ),
        Mistake(
            _two_ends,
            "you drew the line through the first and the last point: each of them is noisy, so let all points speak "
            "(np.polyfit).",
        ),
    ],
    hints=[
        "log loss = exponent * log scale - exponent * log x: a straight line in log x.",
        "slope, height = np.polyfit(np.log(x), np.log(losses), 1).",
        "exponent = -slope; scale = exp(height / exponent). Return both as floats.",
    ],
)

# --- the robust loss


def _huber_cases() -> list[Case]:
    return [
        case([0.4, -0.2, 0.0, 0.7], 1.5),
        case([0.5, -3.0, 0.25, 4.0, -0.75], 1.0),
        case([-2.5, 7.0, 0.3, -0.1], 0.5),
        case([1.5, -2.0], 10.0),
    ]


def _sum(residuals: Sequence[float], delta: float, inside: float, beyond: str) -> float:
    """Variants: the factor of the squares, and what stands beyond delta."""
    total = 0.0
    for residual in residuals:
        size = abs(residual)
        lines = {"line": delta * (size - delta / 2), "bare": delta * size, "flat": delta**2 / 2, "unscaled": size}
        total += inside * size**2 if size <= delta else lines[beyond]
    return total


def _signed(residuals: Sequence[float], delta: float) -> float:
    return float(sum(r * r / 2 if r <= delta else delta * (r - delta / 2) for r in residuals))


HUBER = Exercise(
    name="scaling.huber",
    title="The Huber loss",
    minutes=8,
    difficulty=2,
    importance=4,
    reference=huber,
    cases=_huber_cases,
    mistakes=[
        Mistake(
            lambda residuals, delta: sum(r * r for r in residuals) / 2,
            "these are least squares: beyond delta the loss goes on as a straight line.",
        ),
        Mistake(
            lambda residuals, delta: huber(residuals, delta) / len(residuals),
            "you took the mean. Here we ask for the sum: the mean is what let L-BFGS stop too early for the paper.",
        ),
        Mistake(
            lambda residuals, delta: _sum(residuals, delta, 1.0, "line"),
            "the squares want a half, r**2 / 2; otherwise the line does not go on with their slope.",
        ),
        Mistake(
            lambda residuals, delta: 2 * huber(residuals, delta),
            "this is twice the Huber loss: the squares want a half, r**2 / 2, and the line is "
            "delta * (|r| - delta / 2).",
        ),
        Mistake(
            lambda residuals, delta: _sum(residuals, delta, 0.5, "bare"),
            "there is a jump at delta: the line is delta * (|r| - delta / 2), which meets the square there.",
        ),
        Mistake(
            lambda residuals, delta: _sum(residuals, delta, 0.5, "unscaled"),
            "the line's slope must be delta, that of the square where they meet: delta * (|r| - delta / 2).",
        ),
        Mistake(
            lambda residuals, delta: _sum(residuals, delta, 0.5, "flat"),
            "you made it flat beyond delta: then a far run would not pull at all. It pulls, with the same force from "
            "any distance.",
        ),
        Mistake(
            _signed,
            "you compare r with delta instead of |r|: large negative residuals still count as squares.",
        ),
    ],
    hints=[
        "Two branches, by the size of r: r**2 / 2 up to delta, a straight line beyond.",
        "At delta the line must meet the square in height, delta**2 / 2, and in slope, delta.",
        "sum(r**2 / 2 if abs(r) <= delta else delta * (abs(r) - delta / 2) for r in residuals).",
    ],
)

# --- the lowest point of a profile


def _vertex_cases() -> list[Case]:
    chance = np.random.default_rng(1)
    found = []
    for best, sizes in ((4e4, np.geomspace(9e3, 3.3e5, 6)), (9e4, np.geomspace(2e4, 1.5e5, 4))):
        losses = 1.7 + 0.06 * np.log(sizes / best) ** 2 + 0.004 * chance.standard_normal(len(sizes))
        found.append(case(sizes.tolist(), losses.tolist()))
    return [*found, case([2.0, 8.0, 40.0], [3.0, 2.0, 2.5])]


def _parabola(x: np.ndarray, losses: Sequence[float]) -> tuple[float, float]:
    square, slope, _ = np.polyfit(x, losses, 2)
    return float(square), float(slope)


def _plain(sizes: Sequence[float], losses: Sequence[float]) -> float:
    square, slope = _parabola(np.asarray(sizes), losses)
    return -slope / (2 * square)


def _without_half(sizes: Sequence[float], losses: Sequence[float]) -> float:
    square, slope = _parabola(np.log(sizes), losses)
    return float(np.exp(-slope / square))


VERTEX = Exercise(
    name="scaling.vertex",
    title="The best size of a budget",
    minutes=8,
    difficulty=2,
    importance=3,
    reference=vertex,
    cases=_vertex_cases,
    mistakes=[
        Mistake(
            lambda sizes, losses: float(sizes[int(np.argmin(losses))]),
            "that is the best of the sizes that were trained. The parabola's lowest point may lie between two of them.",
        ),
        Mistake(
            _plain,
            "you fitted the parabola over the sizes: they are spread by factors, so fit it over their logarithms.",
        ),
        Mistake(
            lambda sizes, losses: math.log(vertex(sizes, losses)),
            "that is the logarithm of the best size: go back with exp.",
        ),
        Mistake(
            lambda sizes, losses: 1 / vertex(sizes, losses),
            "the sign is lost: the lowest point of a x**2 + b x + c lies at -b / (2 a).",
        ),
        Mistake(
            lambda sizes, losses: vertex(sizes, np.log(losses)),
            "you took the logarithm of the losses too: the parabola goes through the losses as they are.",
        ),
        Mistake(
            lambda sizes, losses: float(min(losses)),
            "that is the lowest loss. The size at which it lies is asked for.",
        ),
        Mistake(
            _without_half,
            "the lowest point of a x**2 + b x + c lies at -b / (2 a): the 2 is missing.",
        ),
    ],
    hints=[
        "a, b, c = np.polyfit(np.log(sizes), losses, 2).",
        "Where is the slope 2 a x + b zero? There x is the logarithm of the best size.",
        "float(np.exp(-b / (2 * a))).",
    ],
)

# --- the division of a budget


def _allocation_cases() -> list[Case]:
    return [
        case(5.76e23, 406.4, 410.7, 0.34, 0.28),
        case(1e12, 56.0, 300.0, 0.51, 0.46),
        case(3e6, 5.0, 2.0, 0.2, 0.7),
    ]


def _with(flops: float, A: float, B: float, alpha: float, beta: float, **change: float) -> tuple[float, float]:
    """The right way but for one piece: the exponent of the budget, the ratio before, the FLOPs of a token."""
    ratio = change.get("ratio", alpha * A / (beta * B))
    power, each = change.get("power", beta / (alpha + beta)), change.get("each", 6)
    size = ratio ** (1 / (alpha + beta)) * (flops / each) ** power
    return size, flops / (each * size)


ALLOCATION = Exercise(
    name="scaling.allocation",
    title="Divide a budget",
    minutes=15,
    difficulty=4,
    importance=5,
    reference=allocation,
    cases=_allocation_cases,
    mistakes=[
        Mistake(
            lambda flops, A, B, alpha, beta: allocation(flops, A, B, alpha, beta)[::-1],
            "the two are swapped: parameters first, then tokens.",
        ),
        Mistake(
            lambda flops, A, B, alpha, beta: _with(flops, A, B, alpha, beta, ratio=A / B),
            "you made the two terms equal. At the minimum their *slopes* are: alpha A / N**alpha = beta B / D**beta.",
        ),
        Mistake(
            lambda flops, A, B, alpha, beta: _with(flops, A, B, alpha, beta, ratio=beta * B / (alpha * A)),
            "the ratio stands on its head: the more is lost for want of parameters (A), the larger N should be.",
        ),
        Mistake(
            lambda flops, A, B, alpha, beta: _with(flops, A, B, alpha, beta, power=alpha / (alpha + beta)),
            "the exponents are swapped: N grows as C**(beta / (alpha + beta)).",
        ),
        Mistake(
            lambda flops, A, B, alpha, beta: _with(flops, A, B, alpha, beta, each=1),
            "you spend C = N D: a token costs 6 FLOPs a parameter.",
        ),
        Mistake(
            lambda flops, A, B, alpha, beta: (math.sqrt(flops / 6),) * 2,
            "as many parameters as tokens: that pays the budget, but it is not the minimum. A, B and the exponents "
            "decide.",
        ),
        Mistake(
            lambda flops, A, B, alpha, beta: (math.sqrt(flops / 120), 20 * math.sqrt(flops / 120)),
            "that is the rule of 20. Here we ask for the minimum of this law, with its own constants.",
        ),
    ],
    hints=[
        "Put D = C / (6 N) into A / N**alpha + B / D**beta and set the derivative by N to 0.",
        "That gives alpha A / N**alpha = beta B / D**beta: both slopes are equal, per factor of N and of D.",
        "With D = C / (6 N): N**(alpha + beta) = alpha A / (beta B) * (C / 6)**beta.",
        "N = (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (flops / 6) ** (beta / (alpha + beta)).",
    ],
)

EXERCISES = [POWER_LAW, HUBER, VERTEX, ALLOCATION]
