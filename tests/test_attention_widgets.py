"""The widgets of the notebook on attention answer to their controls, and refuse what they cannot show."""

import math

import pytest

from course_utils.widgets.mask_painter import PRESETS, TOKENS, draw_mask, mask_painter, preset_mask
from course_utils.widgets.softmax_temperature import draw_softmax, softmax_temperature


def walk(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


def test_mask_painter_answers_to_preset_and_tick(shown):
    panel = mask_painter()
    body = panel.children[-1]
    boxes = [w for w in walk(panel) if type(w).__name__ == "Checkbox"]
    (names,) = [w for w in walk(panel) if type(w).__name__ == "Dropdown"]
    assert [box.value for box in boxes] == [key <= query for query in range(5) for key in range(5)]
    assert "Looks into the future: no token" in body.value
    assert shown[0][1] == body.value
    drawn = []
    body.observe(drawn.append, names="value")
    names.value = "everything"
    assert len(drawn) == 1
    assert all(box.value for box in boxes)
    assert "25 of 25 pairs" in body.value
    boxes[0].value = False
    assert names.value == "own painting"
    assert "24 of 25 pairs" in body.value
    names.value = "nothing"
    assert "all weights are 0: the, cat, sat, down, &lt;pad&gt;" in body.value
    assert len({box.description for box in boxes}) == 25
    assert not any("<" in box.description for box in boxes)


def test_presets():
    assert preset_mask("causal", "abc") == ((True, False, False), (True, True, False), (True, True, True))
    assert preset_mask("window of 2", "abc") == ((True, False, False), (True, True, False), (False, True, True))
    assert preset_mask("padding", ["a", "<pad>"]) == ((True, False), (True, False))
    assert preset_mask("causal and padding", ["<pad>", "a"]) == ((False, False), (False, True))
    for name in PRESETS:
        fig, alt, lines = draw_mask(preset_mask(name, TOKENS), TOKENS)
        assert len(fig.axes) == 2
        assert len(alt) > 20
        assert ("Not fit" in lines[1]) == (name in ("padding", "everything", "own painting"))
        assert ("Padding is hidden." in lines) == (name in ("padding", "causal and padding", "nothing"))


def test_softmax_temperature_answers_to_its_controls(shown):
    panel = softmax_temperature()
    body = panel.children[-1]
    first = body.value
    choices = [w for w in walk(panel) if type(w).__name__ == "Dropdown"]
    choices[0].value = 256
    assert body.value.split("</figure>")[1] == first.split("</figure>")[1]  # divided by the root: nothing changes
    choices[1].value = "no"
    assert "weights: 1.00, 0.00, 0.00, 0.00, 0.00" in body.value
    (box,) = [w for w in walk(panel) if type(w).__name__ == "BoundedFloatText"]
    box.value = 5.0
    assert "scores: 4.16" in body.value


def test_softmax_is_softmax():
    _, alt, lines = draw_softmax([0.0, math.log(3)], ["a", "b"], 1.0)
    assert lines[1] == "weights: 0.25, 0.75"
    assert "the largest, b, has 0.75" in alt
    assert "entropy: 0.69 of at most 0.69" in draw_softmax([2.0, 2.0], ["a", "b"], 0.1)[2][2]
    assert draw_softmax([0.0, 1.0], ["a", "b"], 2.0, 4, False)[2][1] == draw_softmax([0.0, 1.0], ["a", "b"], 1.0)[2][1]


def test_widgets_refuse_what_they_cannot_show():
    with pytest.raises(ValueError, match="1 tokens"):
        mask_painter(["a"])
    with pytest.raises(ValueError, match="no mask 'checkers'"):
        mask_painter(preset="checkers")
    with pytest.raises(ValueError, match="2 scores and 1 names"):
        softmax_temperature([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="temperature 0"):
        draw_softmax([1.0, 2.0], ["a", "b"], 0)
