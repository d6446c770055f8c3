"""The bits of a number as buttons: each flips, says what it is worth, and a still picture stands for all of them."""

import html
import math
import re

import pytest
import torch

from course_utils.plotting import png
from course_utils.quantization.formats import FORMATS, FloatFormat, bit_string, from_bits, kind, to_bits
from course_utils.widgets.bits import FILLS, OWN, PLACES, BitFlipper, bit_figure, describe, draw_state, landmark

HOSTILE = "<img src=x onerror=alert(1)>"
FLOATS = [name for name, each in FORMATS.items() if isinstance(each, FloatFormat)]


def parts(flipper):
    board, body = flipper.panel.children
    _, number, places, formats, groups, status = board.children
    return formats, number, places, groups, status, body


def buttons(flipper):
    return [button for group in parts(flipper)[3].children for button in group.children[1].children]


def shown(flipper):
    return "".join(button.description for button in buttons(flipper))


def said(widget):
    return html.unescape(re.sub("<[^>]+>", " ", widget.value))


def test_without_a_kernel_the_first_number_is_shown():
    flipper = BitFlipper()
    bundle, body = flipper._repr_mimebundle_(), parts(flipper)[-1]
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == flipper.panel.model_id
    assert bundle["text/html"] == body.value and "<img" in body.value
    (alt,) = re.findall(r'alt="([^"]*)"', body.value)
    assert alt == (
        "A fp32 number as boxes: sign 0, exponent 10000000, mantissa 10010010000111111011011; it is 3.1415927410125732."
    )
    assert bundle["text/plain"].startswith(f"Figure: {alt}")
    assert "(-1)^0 × 2^(128 - 127) × (1 + 4788187 / 2^23) = 3.1415927410125732 (normal)" in bundle["text/plain"]
    assert "Typed: 3.141592653589793. Rounded to this format it is off by 8.74e-08." in bundle["text/plain"]


@pytest.mark.parametrize("name", FLOATS)
def test_each_bit_flips_that_bit(name):
    flipper = BitFlipper(1.7, name)
    bits = bit_string(int(to_bits(torch.tensor(1.7), name)), name).replace(" ", "")
    assert shown(flipper) == bits
    for place, button in enumerate(buttons(flipper)):
        button.click()
        bits = bits[:place] + ("1" if bits[place] == "0" else "0") + bits[place + 1 :]
        assert shown(flipper) == bits
        assert parts(flipper)[1].value == repr(float(from_bits(torch.tensor(int(bits, 2)), name)))
        assert describe(name, int(bits, 2)) in said(parts(flipper)[5])
        assert said(parts(flipper)[4]).strip() == f"{kind(int(bits, 2), name)}: {parts(flipper)[1].value}"
    button.click()
    button.click()
    assert shown(flipper) == bits


def test_a_typed_number_gets_its_bits():
    flipper = BitFlipper(1.0, "bf16")
    formats, number, _, _, status, body = parts(flipper)
    for typed, value in (("0.1", 0.1), (" PI ", math.pi), ("-1e-40", -1e-40), ("1e39", math.inf)):
        number.value = typed
        assert int(shown(flipper), 2) == int(to_bits(torch.tensor(value, dtype=torch.float64), "bf16"))
    assert said(status).strip() == "infinity: inf" and "Typed: 1e+39, which is too large for this format." in said(body)
    number.value = "pi"
    formats.value = "fp8_e5m2"
    assert shown(flipper) == "01000010" and number.value == repr(math.pi)
    formats.value = "fp32"  # the number that was typed is kept, not what was left of it
    assert shown(flipper) == "01000000010010010000111111011011"


@pytest.mark.parametrize("name", FLOATS)
def test_special_numbers_are_where_the_format_has_them(name):
    format = FORMATS[name]
    flipper = BitFlipper(2.5, name)
    places, status = parts(flipper)[2], parts(flipper)[4]
    found = {}
    for place in PLACES[1:]:
        if place == "infinity" and format.finite_only:
            before = shown(flipper)
            places.value = place
            assert "role='alert'" in status.value and f"{name} has no infinity" in said(status)
            assert shown(flipper) == before
            continue
        places.value = place
        assert places.value == place
        found[place] = float(from_bits(torch.tensor(int(shown(flipper), 2)), name))
    assert found["largest"] == format.largest and found["smallest subnormal"] == format.smallest_subnormal
    assert found["next after one"] == 1 + format.epsilon and math.isnan(found["NaN"])
    assert found["largest subnormal"] + format.smallest_subnormal == found["smallest normal"] == format.smallest_normal
    buttons(flipper)[-1].click()
    assert places.value == OWN


def test_what_was_typed_wrong_is_one_line_and_goes_away():
    flipper = BitFlipper(1.0)
    _, number, _, _, status, body = parts(flipper)
    before, bits = body.value, shown(flipper)
    for typed in (HOSTILE, "", "1,5", "one", "9" * 5000 + "x"):
        number.value = typed
        assert re.fullmatch("<p role='alert'>.*</p>", status.value) and "type for example 0.1" in status.value
        assert "<img" not in status.value and len(status.value) < 300 and shown(flipper) == bits
    number.value = "1"
    assert "alert" not in status.value and body.value == before
    with pytest.raises(ValueError, match="'int8' has no exponent"):
        BitFlipper(1.0, "int8")
    with pytest.raises(ValueError, match="no place 'top'"):
        landmark("top", "fp16")


def test_nothing_is_told_by_colour_alone():
    flipper = BitFlipper(1.0, "fp16")
    assert len({FILLS[field] for field in ("sign", "exponent", "mantissa")}) == 3
    labels = [said(group.children[0]).strip() for group in parts(flipper)[3].children]
    assert labels == ["sign", "exponent, 5 bits: 15", "mantissa, 10 bits: 0"]
    tips = [button.tooltip for button in buttons(flipper)]
    assert len(set(tips)) == 16 and tips[0] == "sign bit 1 of 1, worth minus; now 0"
    assert tips[1] == "exponent bit 1 of 5, worth 16; now 0" and tips[6] == "mantissa bit 1 of 10, worth 1/2; now 0"
    texts = [text.get_text() for text in bit_figure([("fp16", 0x3C00)]).axes[0].texts]
    assert {"sign", "exponent, 5 bits", "mantissa, 10 bits", "fp16", "1.0"} <= set(texts)
    assert "".join(text for text in texts if text in "01") == f"{0x3C00:016b}"


def test_every_format_is_drawn():
    rows = [(name, int(to_bits(torch.tensor(0.8), name))) for name in FORMATS]
    fig = bit_figure(rows, "0.8")
    assert png(fig).startswith(b"\x89PNG") and fig.axes[0].get_title(loc="left") == "0.8"
    assert len(fig.axes[0].patches) == sum(each.bits for each in FORMATS.values())
    for name, bits in rows:
        assert repr(float(from_bits(torch.tensor(bits), name))) in [text.get_text() for text in fig.axes[0].texts]


def test_neighbours_of_float32_are_those_of_torch():
    for value in (math.pi, 1e-40, 0.0, -2.0):
        x = torch.tensor(value)
        _, _, lines = draw_state(("fp32", int(to_bits(x, "fp32")), None))
        below, above = (float(torch.nextafter(x, torch.tensor(end))) for end in (-math.inf, math.inf))
        assert f"below is {below!r}, the next above {above!r}." in lines[1]


@pytest.mark.parametrize("name", FLOATS[1:])
def test_neighbours_are_the_next_numbers(name):
    every = from_bits(torch.arange(2 ** FORMATS[name].bits), name)
    sizes = every[every.isfinite()].unique()
    for bits in (0, 1, 2 ** FORMATS[name].mantissa, 2 ** FORMATS[name].mantissa + 1):
        value = float(every[bits])
        _, _, lines = draw_state((name, bits, None))
        below, above = re.findall(r"below is (\S+), the next above (\S+)\.", lines[1])[0]
        assert float(above) == sizes[sizes > value].min()
        if bits:
            assert float(below) == max(sizes[sizes < value].max(), torch.tensor(0.0))
        else:
            assert float(below) == -float(above)


def test_older_ipywidgets_have_all_that_is_used():
    """Of the buttons only traits that ipywidgets 7.7 has are set."""
    button = buttons(BitFlipper(1.0))[0]
    assert {"course-bit", "course-bit-sign"} <= set(button._dom_classes)
    assert not set(button.trait_values()) - set(type(button)().trait_values())
