"""Move temperature and dimension, and watch softmax go from even to one-sided."""

import math
from collections.abc import Sequence
from typing import Any

from course_utils.plotting import COLORS, figure
from course_utils.widgets.base import Drawing, choice, explorer, slider

SCORES = (1.3, 0.4, -0.2, 0.9, -1.1)
DIMENSIONS = (1, 4, 16, 64, 256, 1024)
DIVIDE = ("yes", "no")


def softmax_temperature(scores: Sequence[float] = SCORES, names: Sequence[str] | None = None) -> Any:
    """Display the softmax of a few scores, with controls for temperature, dimension and scale.

    The scores are those of one dimension. In ``size`` dimensions a dot product of random vectors is ``sqrt(size)``
    times as large, which dividing by ``sqrt(size)`` takes back.

    Args:
        scores: 2 to 12 scores.
        names: their names; by default ``key 1``, ``key 2``...

    Returns:
        The widget that was displayed.

    Raises:
        ValueError: there are too few or too many scores, or not as many names.
    """
    names = [f"key {number}" for number in range(1, len(scores) + 1)] if names is None else list(names)
    if not 2 <= len(scores) <= 12 or len(names) != len(scores):
        raise ValueError(
            f"softmax_temperature() got {len(scores)} scores and {len(names)} names; expected 2 to 12 of each"
        )
    controls = {
        "temperature": slider("Temperature", 1.0, 0.1, 5.0, 0.1),
        "size": choice("Dimension of query and key", DIMENSIONS),
        "divide": choice("Divide by the square root of the dimension", DIVIDE),
    }
    return explorer(
        controls,
        lambda temperature, size, divide: draw_softmax(scores, names, temperature, size, divide == "yes"),
    )


def draw_softmax(
    scores: Sequence[float], names: Sequence[str], temperature: float, size: int = 1, divide: bool = True
) -> Drawing:
    """Draw the probabilities of a few scores as bars.

    Args:
        scores: scores of one dimension.
        names: their names.
        temperature: the scores are divided by it; above 0.
        size: dimension of query and key; the scores grow with its square root.
        divide: whether the scale of attention takes that back.

    Returns:
        Figure, alternative text, and lines of text.

    Raises:
        ValueError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: expected a number above 0")
    factor = (1.0 if divide else math.sqrt(size)) / temperature
    peak = max(scores)
    exponentials = [math.exp((score - peak) * factor) for score in scores]
    weights = [value / sum(exponentials) for value in exponentials]
    entropy = -sum(weight * math.log(weight) for weight in weights if weight > 0)
    fig, axes = figure(6.4, 3.0)
    bars = axes.bar(range(len(scores)), weights, color=COLORS[0])
    axes.bar_label(bars, [f"{weight:.2f}" for weight in weights], padding=2)
    axes.set_xticks(range(len(scores)), names, rotation=0 if len(scores) <= 7 else 45)
    axes.set(ylim=(0, 1.1), ylabel="weight", title=f"Softmax of the scores times {factor:.2f}")
    lines = [
        "scores: " + ", ".join(f"{score * factor:.2f}" for score in scores),
        "weights: " + ", ".join(f"{weight:.2f}" for weight in weights),
        f"entropy: {entropy:.2f} of at most {math.log(len(scores)):.2f} nats (all equal); 0 is one key alone",
    ]
    alt = (
        f"Bars of {len(scores)} softmax weights that sum to 1, at temperature {temperature:g}: "
        f"the largest, {names[weights.index(max(weights))]}, has {max(weights):.2f}."
    )
    return fig, alt, lines
