"""The widgets of the notebook on the Transformer answer to their controls, and refuse what they cannot show."""

import pytest
import torch

from course_utils.data.tasks.translation import WordVocabulary, words
from course_utils.plotting import figure
from course_utils.transformer import Transformer, TransformerConfig
from course_utils.widgets.alignment_explorer import (
    alignment_explorer,
    alignment_lines,
    cross_attention,
    draw_alignment,
)
from course_utils.widgets.positions_explorer import KINDS, draw_positions, positions_explorer


def walk(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


def test_positions_explorer_answers_to_its_controls(shown):
    panel = positions_explorer()
    body = panel.children[-1]
    kind, chosen_base = (w for w in walk(panel) if type(w).__name__ == "Dropdown")
    place, width = (w for w in walk(panel) if type(w).__name__ == "BoundedIntText")
    assert shown[0][1] == body.value
    for widget, value, text in (
        (place, 30, "peak at position 30"),
        (kind, "rotary", "rotary positions"),
        (chosen_base, 100, "rotary positions"),
        (width, 8, "rotary positions"),
        (kind, "ALiBi", "A straight line"),
    ):
        before = body.value
        widget.value = value
        assert body.value != before
        assert text in body.value


@pytest.mark.parametrize("kind", KINDS)
def test_positions_peak_at_themselves(kind):
    fig, alt, lines = draw_positions(kind, 20, 16, 10000)
    curve = fig.axes[1].lines[0].get_ydata()
    assert int(curve.argmax()) == 20
    assert "position 20" in alt
    assert f"To itself {curve[20]:.2f}" in lines[-1]


def tiny():
    torch.manual_seed(0)
    vocabulary = WordVocabulary(words())
    sizes = dict(width=16, layers=1, heads=2, dropout=0.5)
    return Transformer(TransformerConfig(len(vocabulary), kind="encoder-decoder", **sizes)).train(), vocabulary


def test_alignment_explorer_answers_to_sentence_and_head(shown):
    model, vocabulary = tiny()
    examples = [
        ("the dog will see a cat", "der Hund wird eine Katze sehen"),
        ("a cat can see", "eine Katze kann sehen"),
    ]
    panel = alignment_explorer(model, vocabulary, examples)
    body = panel.children[-1]
    source, head = (w for w in walk(panel) if type(w).__name__ == "Dropdown")
    assert "der Hund wird eine Katze sehen" in body.value
    assert head.options == ("mean", "1", "2")
    before = body.value
    head.value = "2"
    assert body.value != before
    source.value = "a cat can see"
    assert "eine Katze kann sehen" in body.value
    assert model.training  # its mode is left as it was


def test_cross_attention_has_a_row_for_each_word_and_the_end():
    model, vocabulary = tiny()
    weights = cross_attention(model, vocabulary, "the dog will see a cat", "der Hund wird eine Katze sehen")
    assert weights.shape == (2, 7, 6)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 7))
    again = cross_attention(model, vocabulary, "the dog will see a cat", "der Hund wird eine Katze sehen")
    assert torch.equal(weights, again)  # no dropout


def test_lines_that_cross_are_marked():
    _, axes = figure()
    alignment_lines(axes, ["a", "b", "c"], ["x", "y", "z", "<end>"], [0, 2, 1, 2])
    assert [line.get_linestyle() for line in axes.lines] == ["--", "-", "-"]
    fig, alt, _ = draw_alignment(torch.eye(3)[None], ["a", "b", "c"], ["x", "y", "z"])
    assert len(fig.axes[1].lines) == 3
    assert "x y z" in alt


def test_refuses_what_cannot_be_shown():
    with pytest.raises(ValueError, match="no positions of kind 'T5'"):
        positions_explorer("T5")
    with pytest.raises(ValueError, match="at least one pair"):
        alignment_explorer(*tiny(), [])
