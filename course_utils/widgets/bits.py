"""Flip the bits of a float and see which number they make; and the same bits as a picture."""

import math
from collections.abc import Sequence
from typing import Any

from course_utils.plotting import COLORS, figure
from course_utils.widgets.base import ONE_AT_A_TIME, Drawing, Live, choice, frame, refused, text

FILLS = {"sign": COLORS[4], "exponent": COLORS[5], "mantissa": COLORS[6], "value": COLORS[6], "place": "white"}
"""What the fields of a format are coloured with; black digits are readable on each. Their names stand beside them."""
NAMED = {"pi": math.pi, "e": math.e}
"""Numbers that may be typed by name."""
OWN = "own bits"
PLACES = (
    OWN, "zero", "smallest subnormal", "largest subnormal", "smallest normal", "one", "next after one", "largest",
    "infinity", "NaN",
)  # fmt: skip
State = tuple[str, int, float | None]
"""Name of a format, the bits, and the number that was typed (None where bits were flipped)."""


class BitFlipper(Live):
    """The bits of a float as buttons, grouped and coloured as sign, exponent and mantissa, and the number they make.

    Press a bit to flip it (Tab moves on, Space presses), or type a number and see which bits it gets. Display it as the
    last line of a cell.

    Args:
        number: the number shown first.
        format: name of a floating-point format.

    Raises:
        ValueError: there is no such format.
    """

    def __init__(self, number: float = math.pi, format: str = "fp32"):
        from course_utils.quantization.formats import float_format

        name = float_format(format).name
        super().__init__(*frame({"state": _board((name, _round(number, name), number))}, draw_state))


def bit_figure(rows: Sequence[tuple[str, int]], title: str | None = None) -> Any:
    """Draw numbers as rows of cells, one for each bit, in the fields of their formats, with their values beside them.

    Args:
        rows: name of a format and bits as a whole number, for each row.
        title: title of the picture.

    Returns:
        The figure.

    Raises:
        ValueError: there is no such format, or it has not so many bits.
    """
    import torch
    from matplotlib.patches import Rectangle

    from course_utils.quantization.formats import bit_string, find, from_bits, widths

    longest = max(find(name).bits + len(widths(name)) / 2 for name, _ in rows)
    fig, axes = figure(9.6, 0.5 + 0.62 * len(rows))
    for place, (name, bits) in enumerate(rows):
        start = 0.0
        for (field, _), digits in zip(widths(name).items(), bit_string(bits, name).split(), strict=True):
            for offset, digit in enumerate(digits):
                box = Rectangle((start + offset, 2 * place), 1, 1, facecolor=FILLS[field], edgecolor="black", lw=0.8)
                axes.add_patch(box)
                axes.text(start + offset + 0.5, 2 * place + 0.5, digit, ha="center", va="center", fontsize=9)
            said = field if len(digits) == 1 else f"{field}, {len(digits)} bits"
            axes.text(start, 2 * place + 1.15, said, va="top", fontsize=7)
            start += len(digits) + 0.5
        axes.text(-0.5, 2 * place + 0.5, name, ha="right", va="center")
        axes.text(longest + 0.2, 2 * place + 0.5, f"{float(from_bits(torch.tensor(bits), name))!r}", va="center")
    axes.set(xlim=(-6.5, longest + 11), ylim=(2 * len(rows) - 0.1, -0.2))
    axes.set_title(title or "")
    axes.axis("off")
    return fig


def landmark(place: str, format: str) -> int:
    """Return the bits of a special number.

    Args:
        place: one of :data:`PLACES`, except the first.
        format: name of a floating-point format.

    Raises:
        ValueError: there is no such place, or the format has no infinity.
    """
    from course_utils.quantization.formats import float_format

    target = float_format(format)
    if place == "infinity" and target.finite_only:
        raise ValueError(f"{format} has no infinity: what is too large becomes NaN")
    values: dict[str, float] = {
        "zero": 0.0,
        "smallest subnormal": target.smallest_subnormal,
        "largest subnormal": target.smallest_normal - target.smallest_subnormal,
        "smallest normal": target.smallest_normal,
        "one": 1.0,
        "next after one": 1 + target.epsilon,
        "largest": target.largest,
        "infinity": math.inf,
        "NaN": math.nan,
    }
    if place not in values:
        raise ValueError(f"there is no place {place!r}; there are: {', '.join(values)}")
    return _round(values[place], format)


def describe(format: str, bits: int) -> str:
    """Return in a line which number bits make: ``(-1)^0 x 2^(128 - 127) x (1 + 4788187 / 2^23) = 3.14...``.

    Args:
        format: name of a floating-point format.
        bits: the bits as a whole number.

    Raises:
        ValueError: there is no such format, or it has not so many bits.
    """
    from course_utils.quantization.formats import fields, float_format, kind

    target = float_format(format)
    what, (sign, exponent, mantissa) = kind(bits, format), fields(bits, format)
    if what in ("infinity", "NaN"):
        return f"{'-' if sign and what == 'infinity' else ''}{what}"
    power, one = (f"{exponent} - {target.bias}", 1) if exponent else (f"1 - {target.bias}", 0)
    return f"(-1)^{sign} × 2^({power}) × ({one} + {mantissa} / 2^{target.mantissa}) = {_value(bits, format)!r}"


def draw_state(state: State) -> Drawing:
    """Draw the bits of one float and say which number they make, and what its neighbours are.

    Args:
        state: format, bits, and the number that was typed.

    Returns:
        Figure, alternative text, and lines of text.
    """
    from course_utils.quantization.formats import bit_string, kind, widths

    name, bits, wanted = state
    fig, what, value = bit_figure([(name, bits)]), kind(bits, name), _value(bits, name)
    lines = [f"{describe(name, bits)} ({what})" if what in ("normal", "subnormal", "zero") else describe(name, bits)]
    if math.isfinite(value):
        below, above = _neighbours(bits, name)
        lines.append(f"The next number below is {below!r}, the next above {above!r}.")
    if wanted is not None and math.isfinite(value):
        lines.append(f"Typed: {wanted!r}. Rounded to this format it is off by {abs(value - wanted):.3g}.")
    elif wanted is not None and math.isfinite(wanted):
        lines.append(f"Typed: {wanted!r}, which is too large for this format.")
    parts = zip(widths(name), bit_string(bits, name).split(), strict=True)
    alt = f"A {name} number as boxes: {', '.join(f'{field} {digits}' for field, digits in parts)}; it is {value!r}."
    return fig, alt, lines


def _board(first: State) -> Any:
    """Controls that set a state: format, number, special number, and a button for each bit."""
    import ipywidgets
    import traitlets

    from course_utils.quantization.formats import FORMATS, FloatFormat, kind

    class Board(traitlets.HasTraits):
        value = traitlets.Tuple()
        panel = traitlets.Any()

    names = [name for name, each in FORMATS.items() if isinstance(each, FloatFormat)]
    board, busy = Board(value=first), [False]
    formats, number, places = choice("Format", names, first[0]), text("Number", ""), choice("Go to", PLACES)
    style = ipywidgets.HTML(_style())
    status = ipywidgets.HTML()
    labels = {field: ipywidgets.HTML() for field in ("sign", "exponent", "mantissa")}
    most = {"sign": 1, "exponent": 8, "mantissa": 23}
    buttons = {field: [_button(field) for _ in range(count)] for field, count in most.items()}
    rows = {field: ipywidgets.HBox() for field in most}

    def show(state: State, at: str = OWN) -> None:
        """Bring all controls to a state; what they set off meanwhile is not heard."""
        busy[0] = True
        formats.value, places.value = state[0], at
        number.value = f"{_value(state[1], state[0]) if state[2] is None else state[2]!r}"
        _fill(state, labels, buttons, rows)
        status.value = (
            f"<p role='status' style='margin:.2em 0'>{kind(state[1], state[0])}: {_value(state[1], state[0])!r}</p>"
        )
        busy[0] = False
        board.value = state

    def heard(action: Any) -> Any:
        def respond(event: Any) -> None:
            with ONE_AT_A_TIME:
                if not busy[0]:
                    try:
                        action(event)
                    except ValueError as error:
                        status.value = refused(error)

        return respond

    def change_format(_change: Any) -> None:
        name, bits, wanted = board.value
        wanted = _value(bits, name) if wanted is None else wanted
        show((formats.value, _round(wanted, formats.value), wanted))

    def change_number(_change: Any) -> None:
        typed = _number(number.value)
        show((formats.value, _round(typed, formats.value), typed))

    def change_place(_change: Any) -> None:
        if places.value != OWN:
            show((formats.value, landmark(places.value, formats.value), None), places.value)

    def flip(field: str, index: int) -> Any:
        def flipped(_button: Any) -> None:
            name, bits, _ = board.value
            below = 0 if field == "mantissa" else len(rows["mantissa"].children)
            below += len(rows["exponent"].children) if field == "sign" else 0
            show((name, bits ^ (1 << (below + len(rows[field].children) - 1 - index)), None))

        return flipped

    formats.observe(heard(change_format), names="value")
    number.observe(heard(change_number), names="value")
    places.observe(heard(change_place), names="value")
    for field, some in buttons.items():
        for index, button in enumerate(some):
            button.on_click(heard(flip(field, index)))
    apart = ipywidgets.Layout(margin="0 12px 0 0")
    groups = [ipywidgets.VBox([labels[field], rows[field]], layout=apart) for field in most]
    board.panel = ipywidgets.VBox(
        [
            style,
            number,
            places,
            formats,
            ipywidgets.HBox(groups, layout=ipywidgets.Layout(flex_flow="row wrap")),
            status,
        ]
    )
    show(first)
    return board


def _fill(state: State, labels: dict[str, Any], buttons: dict[str, list[Any]], rows: dict[str, Any]) -> None:
    """Write a state's bits onto the buttons."""
    from course_utils.quantization.formats import bit_string, fields

    name, bits, _ = state
    values = fields(bits, name)
    for field, value, digits in zip(labels, values, bit_string(bits, name).split(), strict=True):
        shown = "" if field == "sign" else f", {len(digits)} bits: {value}"
        labels[field].value = f"<span class='course-bits-label'>{field}{shown}</span>"
        children = tuple(buttons[field][: len(digits)])
        for place, (button, digit) in enumerate(zip(children, digits, strict=True)):
            button.description = digit
            worth = {
                "sign": "minus",
                "exponent": f"{2 ** (len(digits) - 1 - place)}",
                "mantissa": f"1/{2 ** (place + 1)}",
            }
            button.tooltip = f"{field} bit {place + 1} of {len(digits)}, worth {worth[field]}; now {digit}"
        if rows[field].children != children:
            rows[field].children = children


def _button(field: str) -> Any:
    import ipywidgets

    button = ipywidgets.Button(description="0", layout=ipywidgets.Layout(width="25px", padding="0", margin="1px"))
    button.add_class("course-bit")
    button.add_class(f"course-bit-{field}")
    return button


def _style() -> str:
    """Colours of the buttons, the same in a dark front end; the focus is drawn inside the button."""
    rules = [
        f".course-bit-{field}{{background:{FILLS[field]} !important;color:#000 !important;border:1px solid #000}}"
        for field in ("sign", "exponent", "mantissa")
    ]
    focus = ".course-bit:focus{outline:3px solid #000 !important;outline-offset:-4px}"
    return f"<style>{''.join(rules)}{focus}</style>"


def _number(typed: str) -> float:
    """The number that was typed."""
    plain = typed.strip().lower()
    if plain in NAMED:
        return NAMED[plain]
    try:
        return float(plain)
    except ValueError:
        shown = typed if len(typed) <= 40 else typed[:37] + "..."
        raise ValueError(f"{shown!r} is no number: type for example 0.1, -1e-7, inf, nan or pi") from None


def _round(number: float, format: str) -> int:
    import torch

    from course_utils.quantization.formats import to_bits

    return int(to_bits(torch.tensor(number, dtype=torch.float64), format))


def _value(bits: int, format: str) -> float:
    import torch

    from course_utils.quantization.formats import from_bits

    return float(from_bits(torch.tensor(bits), format))


def _neighbours(bits: int, format: str) -> tuple[float, float]:
    """The next numbers below and above; without the sign bit, bits count up as their numbers do."""
    from course_utils.quantization.formats import float_format

    sign = 1 << (float_format(format).bits - 1)
    size = bits & (sign - 1)

    def at(rank: int) -> float:
        return _value(rank if rank >= 0 else sign - rank, format)

    rank = -size if bits & sign else size
    return at(rank - 1), at(rank + 1)
