"""The widgets of the notebook on language models answer to their controls, and refuse what they cannot show."""

import pytest
import torch

from course_utils.tokenization import BytePairEncoding
from course_utils.vectors import WordVectors
from course_utils.widgets.merge_stepper import draw_merges, merge_stepper
from course_utils.widgets.neighbour_explorer import draw_neighbours, neighbour_explorer


@pytest.fixture(scope="module")
def tokenizer():
    return BytePairEncoding.train(["low lower lowest newest"] * 4, 264, progress=False)


@pytest.fixture(scope="module")
def vectors():
    return WordVectors(["tea", "coffee", "book"], torch.tensor([[1.0, 0.1], [1.0, 0.2], [0.0, 1.0]]))


def walk(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


def control(panel, description):
    (found,) = [w for w in walk(panel) if getattr(w, "description", "") == description]
    return found


def test_merge_stepper_answers_to_text_and_merges(shown, tokenizer):
    panel = merge_stepper(tokenizer, "lowest <b>")
    body = panel.children[-1]
    assert "0 merges" in shown[0][1] or "no merge yet" in shown[0][1]
    assert "l | o | w | e | s | t" in body.value
    assert "<b>" not in body.value.replace("&lt;b&gt;", "")
    control(panel, "Merges").value = len(tokenizer.merges)
    after = body.value
    assert "l | o | w" not in after
    control(panel, "Text").value = "low"
    assert body.value != after
    control(panel, "Text").value = ""
    assert "Not possible" in body.value


def test_merge_stepper_cuts_as_the_tokenizer_does(tokenizer):
    for merges in (0, 3, len(tokenizer.merges)):
        _, alt, lines = draw_merges(tokenizer, "newest low", merges)
        tokens = BytePairEncoding(tokenizer.merges[:merges]).tokens("newest low")
        assert lines[0] == " | ".join(tokens)
        assert f"{len(tokens)} boxes" in alt


def test_long_texts_go_over_several_lines(tokenizer):
    few, _, _ = draw_merges(tokenizer, "low", 0)
    many, _, _ = draw_merges(tokenizer, "🙂" * 40, 0)
    assert many.get_size_inches()[1] > few.get_size_inches()[1]


def test_neighbour_explorer_answers_to_the_word(shown, vectors):
    panel = neighbour_explorer(vectors, "tea", count=1)
    body = panel.children[-1]
    assert "the nearest is coffee" in shown[0][1]
    control(panel, "Word").value = " Book "
    assert "the nearest is coffee" in body.value
    assert "nearest to book" in body.value
    control(panel, "Word").value = "teaa"
    assert "did you mean tea" in body.value
    control(panel, "Word").value = "tea"
    control(panel, "Neighbours").value = 2
    assert "book" in body.value


def test_refuses_what_it_cannot_show(tokenizer, vectors):
    for text in ("", "x" * 161):
        with pytest.raises(ValueError, match="expected 1 to 160"):
            draw_merges(tokenizer, text, 0)
    with pytest.raises(ValueError, match="no vector for"):
        draw_neighbours(vectors, "zebra", 3)
