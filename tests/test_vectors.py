"""Word vectors: counts, PPMI and SVD by hand and against NumPy, and the questions asked of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.vectors import (
    WordVectors,
    analogy_scores,
    cooccurrence,
    most_frequent,
    ppmi,
    svd_vectors,
    words,
)

PHRASES = [line.split() for line in ("a b c d", "a b", "d d a x a")]


@pytest.fixture(scope="module")
def toy():
    """Vectors in which gender is a direction of its own, and the larger part of each."""
    names = ["man", "woman", "king", "queen", "prince", "princess", "stone"]
    rows = [[side, *(float(kind == axis) for axis in range(3)), 0.0] for kind in range(3) for side in (1.2, -1.2)]
    return WordVectors(names, torch.tensor([*rows, [0.0, 0.0, 0.0, 0.0, 1.0]]))


def test_words():
    assert words("Row_0 of x.T, naïve") == ["row", "of", "x", "t", "na", "ve"]


def test_most_frequent_breaks_ties_by_the_alphabet():
    assert most_frequent(PHRASES, 3) == ["a", "d", "b"]
    assert most_frequent([], 3) == []


def test_cooccurrence_by_hand():
    counts = cooccurrence(PHRASES, ["a", "b", "c", "d"], window=1)
    assert counts.tolist() == [[0, 2, 0, 1], [2, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 2]]
    wide = cooccurrence(PHRASES, ["a", "b", "c", "d"], window=2)
    assert wide[0].tolist() == [2, 2, 1, 2]  # x keeps its place between the two a
    assert wide.dtype == torch.float64


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcde"), max_size=9), max_size=5), st.integers(1, 4))
def test_cooccurrence_equals_the_plain_loop(documents, window):
    vocabulary = list("abcd")
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for document in documents:
        for i, word in enumerate(document):
            for j, other in enumerate(document):
                if 0 < abs(i - j) <= window and "e" not in (word, other):
                    expected[vocabulary.index(word), vocabulary.index(other)] += 1
    assert torch.equal(cooccurrence(documents, vocabulary, window), expected)


def test_ppmi_by_hand():
    counts = torch.tensor([[2.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    scores = ppmi(counts, smoothing=1.0)
    # P(0, 0) = 2/4, P(word 0) = 2/4, P(context 0) = 3/4
    assert scores[0, 0].item() == pytest.approx(math.log((2 / 4) / (2 / 4 * 3 / 4)))
    assert scores[0, 1] == 0
    assert scores[1, 0] == 0  # less than chance
    assert scores[1, 1].item() == pytest.approx(math.log((1 / 4) / (2 / 4 * 1 / 4)))


def test_ppmi_of_independent_words_is_zero():
    counts = torch.outer(torch.tensor([1.0, 2, 5]), torch.tensor([3.0, 1])).double()
    assert ppmi(counts, smoothing=1.0).abs().max() < 1e-12


def test_ppmi_smoothing_lowers_rare_contexts():
    counts = torch.tensor([[5.0, 1.0], [90.0, 0.0]], dtype=torch.float64)
    assert ppmi(counts, smoothing=0.75)[0, 1] < ppmi(counts, smoothing=1.0)[0, 1]


def test_ppmi_of_empty_rows_and_of_nothing():
    counts = torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    assert ppmi(counts).isfinite().all()
    assert ppmi(torch.zeros(3, 2, dtype=torch.float64)).abs().sum() == 0


@pytest.mark.parametrize("words_count", [40, 700])
def test_svd_keeps_the_largest_directions(words_count):
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(words_count, 8, generator=generator, dtype=torch.float64)
    matrix = factors @ torch.diag(torch.arange(8, 0, -1.0).double()) @ factors.T
    vectors = svd_vectors(matrix, size=8, power=1.0)
    left, singular, _ = torch.linalg.svd(matrix, full_matrices=False)
    exact = left[:, :8] * singular[:8]
    assert torch.allclose(vectors @ vectors.T, exact @ exact.T, rtol=1e-8, atol=1e-5)


def test_svd_signs_do_not_depend_on_the_library():
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    vectors = svd_vectors(matrix, size=5)
    assert (vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) > 0).all()


def test_svd_leaves_the_random_state_alone_and_repeats():
    matrix = torch.rand(600, 600, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = svd_vectors(matrix, size=10)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    assert torch.equal(svd_vectors(matrix, size=10), first)


def test_analogies(toy):
    assert toy.analogy("man", "king", "woman", count=1)[0][0] == "queen"
    assert toy.analogy("king", "queen", "prince", count=1)[0][0] == "princess"
    assert not {"man", "king", "woman"} & {word for word, _ in toy.analogy("man", "king", "woman", count=99)}


def test_analogy_scores_are_cosines_of_unit_vectors(toy):
    long = toy.vectors * torch.tensor([1.0, 5, 0.1, 7, 2, 3, 9])[:, None]
    scores = analogy_scores(long, 0, 2, 1)
    target = toy.vectors[2] - toy.vectors[0] + toy.vectors[1]
    assert scores[3].item() == pytest.approx(torch.cosine_similarity(toy.vectors[3], target, dim=0).item(), abs=1e-6)
    assert scores[[0, 1, 2]].tolist() == [-math.inf] * 3


def test_analogy_accuracy_counts_questions_and_control(toy):
    pairs = [("man", "woman"), ("king", "queen"), ("prince", "princess"), ("cat", "dog")]
    right, control, asked = toy.analogy_accuracy(pairs)
    assert asked == 6  # three known pairs, asked in both orders
    assert right == 6
    assert control < right


def test_neighbours(toy):
    found = toy.neighbours("king", 3)
    assert found[0][0] in ("man", "prince")
    assert "king" not in [word for word, _ in found]
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert len(toy.neighbours("king", 99)) == 6
    assert toy.similarity("king", "stone") == pytest.approx(0)
    assert toy.similarity("king", "king") == pytest.approx(1)


def test_odd_one_out(toy):
    assert toy.odd_one_out(["king", "man", "stone", "prince"]) == "stone"


def test_training_finds_equal_company():
    texts = [f"we drink {cup} {drink} today".split() for cup in ("hot", "cold") for drink in ("tea", "coffee", "milk")]
    texts += [f"they read {kind} {thing} often".split() for kind in ("old", "long") for thing in ("books", "letters")]
    vectors = WordVectors.train(texts, vocabulary_size=30, window=2, size=6)
    assert {word for word, _ in vectors.neighbours("tea", 2)} == {"coffee", "milk"}
    assert vectors.neighbours("books", 1)[0][0] == "letters"
    assert "tea" in vectors
    assert "wine" not in vectors
    assert len(vectors) == 16 - 1


def test_refuses_bad_input(toy):
    with pytest.raises(ValueError, match="did you mean prince"):
        toy.neighbours("princ")
    with pytest.raises(ValueError, match=r"no vector for 'qqq' among 7 words$"):
        toy.analogy("man", "king", "qqq")
    with pytest.raises(ValueError, match="three words or more"):
        toy.odd_one_out(["king", "queen"])
    with pytest.raises(ValueError, match="do not fit"):
        WordVectors(["a", "a"], torch.ones(2, 3))
    with pytest.raises(ValueError, match="do not fit"):
        WordVectors(["a", "b"], torch.ones(3, 3))
    with pytest.raises(ValueError, match="each word once"):
        cooccurrence([["a"]], ["a", "a"])
    with pytest.raises(ValueError, match="each word once"):
        cooccurrence([["a"]], [])
    with pytest.raises(ValueError, match="window=0"):
        cooccurrence([["a"]], ["a"], window=0)
    with pytest.raises(ValueError, match="negative or NaN"):
        ppmi(torch.tensor([[1.0, -1.0]]))
    with pytest.raises(ValueError, match="negative or NaN"):
        ppmi(torch.tensor([[1.0, math.nan]]))
    for size in (0, 5):
        with pytest.raises(ValueError, match="1 to 4 dimensions"):
            svd_vectors(torch.rand(4, 6, dtype=torch.float64), size=size)
