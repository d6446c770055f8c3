"""The one frame that all explorers share: controls above, a figure and a few lines of text below.

The output holds two forms of the same thing: the live widget, and the figure for its first setting as plain HTML. A
front end with a running kernel shows the widget; a saved notebook, GitHub or a printed page shows the figure.
Only what ipywidgets 7.7 and 8 share is used, and every string is escaped.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from course_utils.plotting import figure_html

Drawing = tuple[Any, str, Sequence[str]]
"""What a drawing function returns: figure, alternative text, lines of text."""


def explorer(controls: Mapping[str, Any], draw: Callable[..., Drawing]) -> Any:
    """Display controls and a figure that is drawn again whenever one of them moves.

    Args:
        controls: keyword of ``draw`` to an ipywidget with a ``value`` (see :func:`slider`, :func:`choice`...).
        draw: called with the controls' values; returns figure, alternative text and lines of text. A ``ValueError``
            that it raises is shown in place of the figure.

    Returns:
        The widget that was displayed (a box), so that a test or a learner can reach the controls.
    """
    import ipywidgets

    body = ipywidgets.HTML()

    def values() -> dict[str, Any]:
        return {name: widget.value for name, widget in controls.items()}

    def redraw(_change: object = None) -> None:
        try:
            body.value = _body(*draw(**values()))
        except ValueError as error:
            body.value = f"<p role='alert'><strong>Not possible:</strong> {html.escape(str(error))}</p>"

    for widget in controls.values():
        widget.observe(redraw, names="value")
    fig, alt, lines = draw(**values())
    body.value = still = _body(fig, alt, lines)
    panel = ipywidgets.VBox([*(getattr(widget, "panel", widget) for widget in controls.values()), body])
    show_live(panel, still, "\n".join([f"Figure: {alt}", *lines]))
    return panel


def show_live(widget: Any, still_html: str, still_text: str) -> None:
    """Display a widget in one output with what stands for it where no kernel runs.

    Args:
        widget: any ipywidget.
        still_html: HTML of its first state, already escaped.
        still_text: the same in words.
    """
    from IPython.display import display

    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    bundle = {
        "application/vnd.jupyter.widget-view+json": view,
        "text/html": still_html,
        "text/plain": still_text,
    }
    display(bundle, raw=True)


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


def _body(fig: Any, alt: str, lines: Sequence[str]) -> str:
    return figure_html(fig, alt) + "".join(f"<p style='margin:.2em 0'>{html.escape(line)}</p>" for line in lines)
