"""The one frame that all explorers share: controls above, a figure and a few lines of text below.

The output holds two forms of the same thing: the live widget, and the figure for its first setting as plain HTML. A
front end with a running kernel shows the widget; a saved notebook, GitHub or a printed page shows the figure.
Only what ipywidgets 7.7 and 8 share is used, and every string is escaped.
"""

import html
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from course_utils.plotting import figure_html

Drawing = tuple[Any, str, Sequence[str]]
"""What a drawing function returns: figure, alternative text, lines of text."""
ONE_AT_A_TIME = threading.RLock()
"""Held while a widget answers: front ends may hand over two changes in two threads (a kernel's subshells)."""


class Live:
    """A widget, and what stands for it where no kernel runs; an object of it is the last line of a cell.

    Args:
        panel: any ipywidget.
        still_html: HTML of its first state, already escaped.
        still_text: the same in words.
    """

    def __init__(self, panel: Any, still_html: str, still_text: str):
        self.panel, self._still_html, self._still_text = panel, still_html, still_text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """What Jupyter shows."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.panel.model_id}
        return {
            "application/vnd.jupyter.widget-view+json": view,
            "text/html": self._still_html,
            "text/plain": self._still_text,
        }


def explorer(controls: Mapping[str, Any], draw: Callable[..., Drawing]) -> Any:
    """Display controls and a figure that is drawn again whenever one of them moves.

    Args:
        controls: as for :func:`frame`.
        draw: as for :func:`frame`.

    Returns:
        The widget that was displayed (a box), so that a test or a learner can reach the controls.
    """
    panel, still_html, still_text = frame(controls, draw)
    show_live(panel, still_html, still_text)
    return panel


def frame(controls: Mapping[str, Any], draw: Callable[..., Drawing]) -> tuple[Any, str, str]:
    """Put controls above a figure that is drawn again whenever one of them moves.

    Args:
        controls: keyword of ``draw`` to an ipywidget with a ``value`` (see :func:`slider`, :func:`choice`...).
        draw: called with the controls' values; returns figure, alternative text and lines of text. A ``ValueError``
            that it raises is shown in place of the figure.

    Returns:
        The widget (a box), and its first state as HTML and in words, as for :class:`Live`.
    """
    import ipywidgets

    body = ipywidgets.HTML()

    def values() -> dict[str, Any]:
        return {name: widget.value for name, widget in controls.items()}

    def redraw(_change: object = None) -> None:
        with ONE_AT_A_TIME:
            try:
                body.value = drawn(*draw(**values()))
            except ValueError as error:
                body.value = refused(error)

    for widget in controls.values():
        widget.observe(redraw, names="value")
    fig, alt, lines = draw(**values())
    body.value = still = drawn(fig, alt, lines)
    panel = ipywidgets.VBox([*(getattr(widget, "panel", widget) for widget in controls.values()), body])
    return panel, still, "\n".join([f"Figure: {alt}", *lines])


def show_live(widget: Any, still_html: str, still_text: str) -> None:
    """Display a widget in one output with what stands for it where no kernel runs.

    Args:
        widget: any ipywidget.
        still_html: HTML of its first state, already escaped.
        still_text: the same in words.
    """
    from IPython.display import display

    display(Live(widget, still_html, still_text)._repr_mimebundle_(), raw=True)


def slider(description: str, value: int | float, low: int | float, high: int | float, step: int | float = 1) -> Any:
    """Return a slider with a number box beside it: the box has a name for screen readers and takes typed values.

    Args:
        description: the name shown and read out.
        value: first value.
        low: smallest value.
        high: largest value.
        step: step; whole numbers give whole values.

    Returns:
        The number box; its ``panel`` is the row of box and slider to put on the page.
    """
    import ipywidgets

    whole = all(float(number).is_integer() for number in (value, low, high, step))
    box_type, slider_type = (
        (ipywidgets.BoundedIntText, ipywidgets.IntSlider)
        if whole
        else (ipywidgets.BoundedFloatText, ipywidgets.FloatSlider)
    )
    style, layout = {"description_width": "initial"}, ipywidgets.Layout(width=f"{150 + 7 * len(description)}px")
    box = box_type(value=value, min=low, max=high, step=step, description=description, style=style, layout=layout)
    knob = slider_type(value=value, min=low, max=high, step=step, readout=False, continuous_update=False)
    ipywidgets.link((box, "value"), (knob, "value"))
    box.panel = ipywidgets.HBox([box, knob])
    return box


def choice(description: str, options: Sequence[Any], value: Any = None) -> Any:
    """Return a drop-down list with a name that is shown and read out; the first option is chosen by default."""
    import ipywidgets

    return ipywidgets.Dropdown(
        options=list(options),
        value=options[0] if value is None else value,
        description=description,
        style={"description_width": "initial"},
        layout=ipywidgets.Layout(width="360px"),
    )


def text(description: str, value: str) -> Any:
    """Return a one-line text field whose value changes when Enter is pressed or the field is left."""
    import ipywidgets

    return ipywidgets.Text(
        value=value,
        description=description,
        continuous_update=False,
        style={"description_width": "initial"},
        layout=ipywidgets.Layout(width="520px"),
    )


def drawn(fig: Any, alt: str, lines: Sequence[str]) -> str:
    """Return a drawing as HTML; a box stands for a sign that the font lacks.

    Args:
        fig: the figure.
        alt: its alternative text.
        lines: lines below it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        picture = figure_html(fig, alt)
    return picture + "".join(f"<p style='margin:.2em 0'>{html.escape(line)}</p>" for line in lines)


def refused(error: Exception) -> str:
    """Return the HTML that says what cannot be done.

    Args:
        error: its text is the line to show.
    """
    return f"<p role='alert'><strong>Not possible:</strong> {html.escape(str(error))}</p>"
