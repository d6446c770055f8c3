"""Move a token along a text and see what each way of marking positions makes of the distance."""

from typing import Any

from course_utils.plotting import COLORS, figure, heatmap
from course_utils.widgets.base import Drawing, choice, explorer, slider

KINDS = ("sinusoidal", "rotary", "ALiBi")
TOKENS = 48


def positions_explorer(kind: str = "sinusoidal", position: int = 16, width: int = 32, base: int = 10000) -> Any:
    """Display how strongly a position answers to all others, with controls for its place, the width and the base.

    Args:
        kind: ``sinusoidal``, ``rotary`` or ``ALiBi``; shown first.
        position: the position that asks, 0 to 47.
        width: size of the vectors, even, 4 to 128 (ALiBi: number of heads, at most 16).
        base: base of the wave lengths.

    Returns:
        The widget that was displayed.

    Raises:
        ValueError: there is no such kind.
    """
    draw_positions(kind, position, width, base)
    return explorer(
        {
            "kind": choice("Positions", KINDS, kind),
            "position": slider("Position that asks", position, 0, TOKENS - 1),
            "width": slider("Width", width, 4, 128, 4),
            "base": choice("Base", (100, 1000, 10000, 100000), base),
        },
        draw_positions,
    )


def draw_positions(kind: str, position: int, width: int, base: int) -> Drawing:
    """Draw the marks of all positions, and how one position answers to each.

    Args:
        kind: ``sinusoidal``, ``rotary`` or ``ALiBi``.
        position: the position that asks.
        width: size of the vectors.
        base: base of the wave lengths.

    Returns:
        Figure, alternative text, and lines of text.

    Raises:
        ValueError: there is no such kind.
    """
    import torch

    from course_utils.positions import Rotary, alibi_bias, alibi_slopes, sinusoidal_positions

    if kind not in KINDS:
        raise ValueError(f"there are no positions of kind {kind!r}; there are: {', '.join(KINDS)}")
    places = torch.arange(TOKENS)
    if kind == "sinusoidal":
        marks = sinusoidal_positions(places, width, float(base), torch.float64)
        answers = {"dot product": marks @ marks[position] / (width / 2)}
        what, lines = (
            "Vectors added to the embeddings",
            ["The dot product with itself is 1; with distance it falls, in ripples, and is the same on both sides."],
        )
    elif kind == "rotary":
        same = torch.ones(TOKENS, width, dtype=torch.float64) / width**0.5
        marks = Rotary(width, float(base))(same[None], places)[0]
        answers = {"query · key, both all ones before turning": marks @ marks[position]}
        what, lines = (
            "One and the same vector, turned by its position",
            ["Query and key are the same vector here; only the distance between their positions makes the difference."],
        )
    else:
        heads = min(width, 16)
        marks = alibi_bias(heads, places, places[position : position + 1], torch.float64)[:, 0].T
        shown = sorted({0, heads // 2, heads - 1})
        answers = {f"head {head + 1}, slope {alibi_slopes(heads)[head]:.3g}": marks[:, head] for head in shown}
        what, lines = (
            "Bias added to the scores, head by head",
            ["A straight line: steep heads see near tokens only, flat ones nearly all. The base plays no part."],
        )
    fig, (left, right) = figure(9.2, 3.4, ncols=2)
    heatmap(marks.T, title=what, axes=left, numbers=False, signed=True, xlabel="position", ylabel="column")
    left.set_xticks([0, TOKENS // 2, TOKENS - 1])
    left.axvline(position, color=COLORS[7], linestyle="--", linewidth=1)
    for name, values in answers.items():
        right.plot(places, values, label=name, markevery=6)
    right.axvline(position, color=COLORS[7], linestyle="--", linewidth=1)
    right.set(xlabel="position that answers", title=f"What position {position} gets from each")
    right.legend(fontsize=9)
    values = next(iter(answers.values()))
    near, far = position + 1 if position + 1 < TOKENS else position - 1, (position + TOKENS // 2) % TOKENS
    lines += [
        f"To itself {values[position]:.2f}, to its neighbour {values[near]:.2f}, to position {far} {values[far]:.2f}."
    ]
    alt = (
        f"Left, a table of colours: one column of it for each of {TOKENS} positions. Right, a curve with its "
        f"peak at position {position}: the {kind} positions answer most to themselves and less with the distance."
    )
    return fig, alt, lines
