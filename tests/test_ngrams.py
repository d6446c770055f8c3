"""The counting language model: probabilities by hand, sums of 1, and generation."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.ngrams import END, NGramModel, mean_loss, next_word_probabilities

SENTENCES = [line.split() for line in ("the cat sees the dog", "the dog sees a bird", "a bird sees the cat")]


def test_next_word_probabilities_by_hand():
    assert next_word_probabilities(SENTENCES, "the") == {"cat": 0.5, "dog": 0.5}
    assert next_word_probabilities(SENTENCES, "sees") == {"the": 2 / 3, "a": 1 / 3}
    assert next_word_probabilities(SENTENCES, "tree") == {}
    assert next_word_probabilities([["end"], ["end", "x"]], "end") == {"x": 1.0}


def test_mean_loss_by_hand():
    assert mean_loss([0.5, 0.25]) == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert mean_loss([1.0]) == 0
    assert mean_loss([0.5, 0.0]) == math.inf


def test_probability_by_hand():
    model = NGramModel(SENTENCES, context=1, strength=2.0, fall_back=False)
    assert model.vocabulary == ["<end>", "a", "bird", "cat", "dog", "sees", "the"]
    # the: 4 times followed, twice by cat
    assert model.probability(["the"], "cat") == pytest.approx((2 + 2 / 7) / (4 + 2))
    assert model.probability(["tree"], "cat") == pytest.approx(1 / 7)
    assert model.probability(["dog"], END) == pytest.approx((1 + 2 / 7) / (2 + 2))
    falling = NGramModel(SENTENCES, context=1, strength=2.0)
    alone = (2 + 2 / 7) / (18 + 2)  # cat: 2 of 15 words and 3 ends
    assert falling.probability([], "tree") == pytest.approx((0 + 2 * ((0 + 2 / 7) / 20)) / (3 + 2))
    assert falling.probability(["the"], "cat") == pytest.approx((2 + 2 * alone) / (4 + 2))


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=6), min_size=1, max_size=4),
    st.integers(0, 3),
    st.booleans(),
    st.lists(st.sampled_from("abcd"), max_size=5),
)
def test_probabilities_sum_to_one(sequences, context, fall_back, before):
    model = NGramModel(sequences, context, 0.7, fall_back)
    assert math.fsum(model.probability(before, token) for token in model.vocabulary) == pytest.approx(1)
    for token, probability in model.most_likely(before, 99):
        assert probability == pytest.approx(model.probability(before, token))


def test_only_the_context_window_counts():
    model = NGramModel(SENTENCES, context=2)
    assert model.most_likely(["a", "bird", "sees", "the"]) == model.most_likely(["who", "sees", "the"])


def test_loss_and_unseen():
    model = NGramModel(SENTENCES, context=3, strength=0.01)
    assert model.loss(SENTENCES) < 0.5
    assert model.loss(SENTENCES) < model.loss([["bird", "dog", "cat"]])
    assert model.unseen(SENTENCES) == 0
    assert model.unseen([["bird", "dog"]]) == pytest.approx(2 / 3)
    assert len(model.token_probabilities(["the", "cat"])) == 3


def test_completion_goes_on_and_stops():
    model = NGramModel([["a", "b", "c"]], context=2, strength=0.01)
    assert model.complete(["a"]) == ["a", "b", "c"]
    assert model.complete(["a"], max_new_tokens=1) == ["a", "b"]
    assert model.complete(["a", "b", "c"]) == ["a", "b", "c"]
    assert model.complete([], max_new_tokens=3) == ["a", "b", "c"]


def test_sampling_repeats_with_its_seed():
    model = NGramModel(SENTENCES, context=1)
    assert model.complete(["the"], 9, seed=3) == model.complete(["the"], 9, seed=3)
    assert len({tuple(model.complete(["the"], 9, seed=seed)) for seed in range(8)}) > 1


def test_numbers_are_tokens_too():
    model = NGramModel([[1, 2, 3], [1, 2, 4]], context=1, vocabulary=range(10))
    assert model.vocabulary == [*range(10), END]
    assert model.most_likely([2], 1)[0][0] == 3  # as probable as 4, and first


def test_refuses_bad_input():
    with pytest.raises(ValueError, match="context=-1"):
        NGramModel(SENTENCES, context=-1)
    with pytest.raises(ValueError, match="strength=0"):
        NGramModel(SENTENCES, context=1, strength=0)
    with pytest.raises(ValueError, match="no text"):
        NGramModel([], context=1)
    for wrong in ([], [1.5], [-0.1], [math.nan]):
        with pytest.raises(ValueError, match="one probability from 0 to 1"):
            mean_loss(wrong)
