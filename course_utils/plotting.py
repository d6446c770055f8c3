"""One style for every figure: colour-blind-safe, readable, with a text that says what one sees."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"]
"""Okabe and Ito's palette (2008), strongest on white first; use it together with :data:`MARKERS` or line styles."""
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
SEQUENTIAL = "Blues"
"""Colour map for values from 0 upwards: lightness alone carries the order."""
DIVERGING = "PuOr"
"""Colour map for values on both sides of 0; safe for the common forms of colour blindness."""

STYLE: dict[Any, Any] = {
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "svg.hashsalt": "course",
}


def use_style() -> None:
    """Make the course's style the default of every figure drawn from here on."""
    import matplotlib
    from cycler import cycler

    matplotlib.rcParams.update(STYLE)
    matplotlib.rcParams["axes.prop_cycle"] = cycler(color=COLORS, marker=MARKERS)
    matplotlib.rcParams["lines.markersize"] = 5


def figure(width: float = 6.4, height: float = 3.6, **subplots: Any) -> tuple["Figure", Any]:
    """Create a figure in the course's style.

    Args:
        width: inches.
        height: inches.
        **subplots: passed on to ``matplotlib.figure.Figure.subplots`` (``ncols=2``, ``sharey=True``...).

    Returns:
        The figure and its axes (one, or an array of them). It belongs to no window: only :func:`show` displays it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    use_style()
    fig = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(fig)
    return fig, fig.subplots(**subplots)


def heatmap(
    matrix: Any,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    title: str | None = None,
    axes: Any = None,
    numbers: bool | None = None,
    colorbar: bool = False,
    xlabel: str | None = None,
    ylabel: str | None = None,
    signed: bool = False,
    digits: int = 2,
    limits: tuple[float, float] | None = None,
) -> "Figure":
    """Draw a matrix as coloured cells, with its numbers written in where they fit.

    Args:
        matrix: (rows, columns), a tensor, array or nested list.
        rows: names of the rows; columns: names of the columns.
        columns: see rows.
        title: title of the panel.
        axes: draw here instead of into a new figure.
        numbers: write the values into the cells; by default up to 12 columns.
        colorbar: add the scale.
        xlabel: name of the columns' axis.
        ylabel: name of the rows' axis.
        signed: colour around 0 (for scores), instead of from 0 upwards (for weights).
        digits: decimals of the numbers.
        limits: smallest and largest value of the colour scale; by default those of the data.

    Returns:
        The figure that was drawn into.

    Raises:
        ValueError: the matrix is not two-dimensional or the names do not fit it.
    """
    import numpy as np

    values = np.asarray(matrix.detach().cpu().float() if hasattr(matrix, "detach") else matrix, dtype=float)
    if values.ndim != 2:
        raise ValueError(
            f"heatmap() got shape {values.shape}; it draws one matrix (rows, columns): pick one head or batch item"
        )
    for names, size, what in ((rows, values.shape[0], "rows"), (columns, values.shape[1], "columns")):
        if names is not None and len(names) != size:
            raise ValueError(f"heatmap() got {len(names)} names for {size} {what}")
    if axes is None:
        fig, axes = figure(1.6 + 0.62 * min(values.shape[1], 14), 1.2 + 0.5 * min(values.shape[0], 14))
    else:
        use_style()
        fig = axes.figure
    finite = values[np.isfinite(values)]
    top = float(np.abs(finite).max()) if finite.size else 1.0
    low, high = limits or ((-top, top) if signed else (min(0.0, float(finite.min(initial=0.0))), top))
    image = axes.imshow(values, cmap=DIVERGING if signed else SEQUENTIAL, vmin=low, vmax=high or 1.0, aspect="auto")
    axes.set_xticks(range(values.shape[1]) if columns is not None else [])
    axes.set_yticks(range(values.shape[0]) if rows is not None else [])
    if columns is not None:
        long = max(map(len, columns), default=0) > 5
        axes.set_xticklabels(
            columns, rotation=45 if long else 0, ha="right" if long else "center", rotation_mode="anchor"
        )
    if rows is not None:
        axes.set_yticklabels(rows)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if numbers if numbers is not None else values.shape[1] <= 12:
        for (row, column), value in np.ndenumerate(values):
            share = (value - low) / ((high - low) or 1.0)
            dark = abs(share - 0.5) > 0.33 if signed else share > 0.55
            text = f"{value:.{digits}f}" if np.isfinite(value) else str(value).replace("inf", "∞")
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize=9)
    axes.set_title(title or "")
    axes.set_xlabel(xlabel or "")
    axes.set_ylabel(ylabel or "")
    if colorbar:
        fig.colorbar(image, ax=axes, shrink=0.8)
    return fig


def curves(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    xlabel: str = "",
    ylabel: str = "",
    title: str | None = None,
    log: str = "",
    axes: Any = None,
) -> "Figure":
    """Draw one or more lines over the same x, with a marker of its own for each and a legend.

    Args:
        x: where the lines have their points.
        lines: name to values, one for each x.
        xlabel: what x is, with its unit.
        ylabel: what the values are, with their unit.
        title: title of the panel.
        log: the axes with a logarithmic scale: ``"x"``, ``"y"`` or ``"xy"``. Such an x axis is labelled at the points.
        axes: draw here instead of into a new figure.

    Returns:
        The figure that was drawn into.

    Raises:
        ValueError: a line has not as many values as x.
    """
    if axes is None:
        _, axes = figure()
    for name, values in lines.items():
        if len(values) != len(x):
            raise ValueError(f"curves() got {len(values)} values for {name!r} and {len(x)} for x")
        axes.plot(x, values, label=name)
    if "y" in log:
        axes.set_yscale("log")
    if "x" in log:
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{number:,}" for number in x])
        axes.xaxis.minorticks_off()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title or "")
    axes.legend()
    return axes.figure


def png(fig: "Figure", dpi: int = 100) -> bytes:
    """Return a figure as the bytes of a PNG file, without a date or a program's name in it."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def figure_html(fig: "Figure", alt: str, caption: str | None = None, dpi: int = 100) -> str:
    """Return a figure as an HTML ``<figure>`` whose picture carries its alternative text.

    Args:
        fig: a matplotlib figure.
        alt: what one sees and what it shows, for those who do not see it; at least 20 characters.
        caption: a line under the picture.
        dpi: pixels an inch.

    Raises:
        ValueError: the text is too short to say anything.
    """
    if len(alt.strip()) < 20:
        raise ValueError(
            f"alt={alt!r} says too little: describe in a sentence what the figure shows (20 characters or more)"
        )
    data = base64.b64encode(png(fig, dpi)).decode()
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    picture = f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt, quote=True)}" style="max-width:100%">'
    return f'<figure style="margin:0;background:#fff;color:#000;width:fit-content">{picture}{below}</figure>'


def show(fig: "Figure", alt: str, caption: str | None = None, dpi: int = 100) -> None:
    """Display a figure together with its alternative text, in every front end.

    Args:
        fig: a matplotlib figure.
        alt: what one sees and what it shows, for those who do not see it; at least 20 characters.
        caption: a line under the picture.
        dpi: pixels an inch.

    Raises:
        ValueError: the text is too short to say anything.
    """
    from IPython.display import display

    display(_bundle(fig, alt, caption, dpi), raw=True)


class LiveFigure:
    """A figure in a notebook that is drawn again and again, in its one place; the last one stays.

    Args:
        alt: what one sees and what it shows, true of the last figure; at least 20 characters.
        caption: a line under the picture.
    """

    def __init__(self, alt: str, caption: str | None = None):
        self.alt, self.caption = alt, caption
        self._handle: Any = None

    def draw(self, fig: "Figure") -> None:
        """Show this figure in place of the one before."""
        from IPython.display import display

        bundle = _bundle(fig, self.alt, self.caption)
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def _bundle(fig: "Figure", alt: str, caption: str | None, dpi: int = 100) -> dict[str, str]:
    """A figure as a notebook shows it: the picture with its text, or the text alone."""
    return {"text/html": figure_html(fig, alt, caption, dpi), "text/plain": f"Figure: {alt}"}
