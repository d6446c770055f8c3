"""Drawing in README pixels: a blank sheet, boxes, arrows, rows of tokens and matrices."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from course_utils.plotting import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, YELLOW, BLACK = COLORS
Number = int | float
"""Pixels."""
GREY = "#5A5A5A"
"""For lines and side remarks: 6.9 to 1 on white."""
PALE = {BLUE: "#D6E8F4", VERMILION: "#FBE3D3", GREEN: "#D3EEE5", PINK: "#F6E6EF", ORANGE: "#FCEFD2", SKY: "#E4F3FB"}
"""A light tint of each colour, for the inside of boxes that hold black text."""
SMALLEST = 11.5
"""Smallest text, in pixels at a width of 800."""


def sheet(width: Number = 800, height: Number = 450) -> tuple["Figure", "Axes"]:
    """Create a blank figure whose data coordinates are pixels, the origin at the upper left.

    Args:
        width: pixels at which a README shows the figure.
        height: pixels.

    Returns:
        The figure and its only axes, without frame or ticks.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(fig)
    axes = fig.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return fig, axes


def write(axes: "Axes", x: Number, y: Number, text: str, size: Number = 13, **style: Any) -> None:
    """Write text centred on a point, every line on its own baseline, so that neighbours stand level.

    Args:
        axes: those of :func:`sheet`.
        x: pixels from the left.
        y: pixels from the top.
        text: one or more lines.
        size: height of the font in pixels.
        **style: passed on to ``Axes.text`` (``ha``, ``color``, ``weight``, ``rotation`` with ``va``...).

    Raises:
        ValueError: the font is too small to read at README width.
    """
    if size < SMALLEST:
        raise ValueError(f"size={size} pixels cannot be read at README width; use {SMALLEST} or more")
    if "va" in style:
        axes.text(x, y, text, fontsize=size * 0.72, **{"ha": "center"} | style)
        return
    lines = text.split("\n")
    for number, line in enumerate(lines):
        baseline = y + (number - (len(lines) - 1) / 2) * 1.35 * size + 0.36 * size
        axes.text(x, baseline, line, fontsize=size * 0.72, va="baseline", **{"ha": "center"} | style)


def box(
    axes: "Axes",
    x: Number,
    y: Number,
    width: Number,
    height: Number,
    text: str = "",
    color: str = BLUE,
    size: Number = 13,
    fill: str | None = None,
    rounding: Number = 6,
    dashed: bool = False,
    hatch: str | None = None,
    **style: Any,
) -> None:
    """Draw a rounded box with text in its middle.

    Args:
        axes: those of :func:`sheet`.
        x: left edge in pixels.
        y: upper edge in pixels.
        width: pixels.
        height: pixels.
        text: what stands in it.
        color: colour of the edge.
        size: height of the font in pixels.
        fill: colour inside; by default a light tint of the edge's.
        rounding: radius of the corners in pixels.
        dashed: draw the edge dashed.
        hatch: a pattern of matplotlib's, so that colour is not the only sign.
        **style: of the text, see :func:`write`.
    """
    from matplotlib.patches import FancyBboxPatch

    axes.add_artist(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle=f"round,pad=0,rounding_size={rounding}",
            facecolor=fill or PALE.get(color, "white"),
            edgecolor=color,
            linewidth=1.2,
            linestyle="--" if dashed else "-",
            hatch=hatch,
        )
    )
    if text:
        write(axes, x + width / 2, y + height / 2, text, size, **style)


def arrow(
    axes: "Axes",
    start: tuple[Number, Number],
    end: tuple[Number, Number],
    color: str = GREY,
    bend: Number = 0.0,
    width: Number = 1.4,
    head: bool = True,
    dashed: bool = False,
) -> None:
    """Draw an arrow from one point to another.

    Args:
        axes: those of :func:`sheet`.
        start: where it begins, in pixels.
        end: where its head is.
        color: of the line.
        bend: curvature; 0 is straight.
        width: of the line, in points.
        head: with False a plain line.
        dashed: draw it dashed.
    """
    from matplotlib.patches import FancyArrowPatch

    axes.add_artist(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>" if head else "-",
            connectionstyle=f"arc3,rad={bend}",
            mutation_scale=11,
            shrinkA=0,
            shrinkB=0,
            linewidth=width,
            linestyle="--" if dashed else "-",
            color=color,
        )
    )


def path(axes: "Axes", points: Sequence[tuple[Number, Number]], color: str = GREY, head: bool = True) -> None:
    """Draw straight lines from point to point, with an arrow head at the last one.

    Args:
        axes: those of :func:`sheet`.
        points: two or more corners, in pixels.
        color: of the line.
        head: with False a plain line.
    """
    axes.plot(*zip(*points[:-1], strict=True), color=color, linewidth=1.4, solid_capstyle="butt", marker="")
    arrow(axes, points[-2], points[-1], color, head=head)


def tokens(
    axes: "Axes",
    x: Number,
    y: Number,
    words: Sequence[str],
    width: Number,
    height: Number = 28,
    gap: Number = 6,
    colors: Sequence[str | None] | str = BLUE,
    size: Number = 12,
) -> list[Number]:
    """Draw a row of tokens and return where their middles are.

    Args:
        axes: those of :func:`sheet`.
        x: left edge of the first in pixels.
        y: upper edge in pixels.
        words: one text a token.
        width: of each box.
        height: of each box.
        gap: between boxes.
        colors: one colour for all or one for each; None leaves the place empty.
        size: height of the font in pixels.

    Returns:
        The x coordinate of the middle of each token.
    """
    each = [colors] * len(words) if isinstance(colors, str) else colors
    middles: list[Number] = []
    for number, (word, color) in enumerate(zip(words, each, strict=True)):
        left = x + number * (width + gap)
        if color is not None:
            box(axes, left, y, width, height, word, color, size, rounding=4)
        middles.append(left + width / 2)
    return middles


def matrix(
    axes: "Axes",
    x: Number,
    y: Number,
    values: Any,
    cell: Number,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    numbers: bool = False,
    size: Number = 12,
) -> None:
    """Draw a matrix of weights between 0 and 1: darker is larger, and the largest can be written in.

    Args:
        axes: those of :func:`sheet`.
        x: left edge in pixels.
        y: upper edge in pixels.
        values: (rows, columns), numbers from 0 to 1.
        cell: width and height of a cell in pixels.
        rows: names to the left.
        columns: names above, written upwards.
        numbers: write those of 0.1 and more into the cells, in hundredths.
        size: height of the font in pixels.
    """
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    shades = colormaps["Blues"]
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            corner = (x + column * cell, y + row * cell)
            # The square root spreads small weights over more shades; only the colour is changed.
            shade = shades(0.9 * float(value) ** 0.5)
            axes.add_artist(Rectangle(corner, cell, cell, facecolor=shade, edgecolor="#B8B8B8", linewidth=0.5))
            if numbers and value >= 0.1:
                red, green, blue = (part**2.2 for part in shade[:3])
                color = "black" if 0.21 * red + 0.72 * green + 0.07 * blue > 0.18 else "white"
                write(axes, corner[0] + cell / 2, corner[1] + cell / 2, f"{100 * value:.0f}", size, color=color)
    for row, name in enumerate(rows):
        write(axes, x - 6, y + (row + 0.5) * cell, name, size, ha="right")
    for column, name in enumerate(columns):
        write(axes, x + (column + 0.5) * cell, y - 5, name, size, rotation=90, va="bottom")
