"""Word vectors from counting: who stands beside whom, weighted, and squeezed into a few dimensions.

"You shall know a word by the company it keeps" (Firth 1957), as arithmetic: count co-occurrences, weight them by
positive pointwise mutual information (Bullinaria and Levy 2007), keep the strongest directions of a singular value
decomposition. Levy and Goldberg (2014) showed that word2vec's skip-gram factorises such a matrix implicitly.
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import permutations

import torch
from jaxtyping import Float
from torch import Tensor

_WORD = re.compile(r"[a-z]+")
_EXACT = 500
"""Up to this many words the decomposition is exact, above it the randomised one is used."""


def words(text: str) -> list[str]:
    """Return the runs of letters a to z in a text, in lower case: ``"Row_0 of x.T"`` gives row, of, x, t."""
    return _WORD.findall(text.lower())


def most_frequent(documents: Iterable[Sequence[str]], size: int) -> list[str]:
    """Return the ``size`` most frequent words, the most frequent first, equally frequent ones by the alphabet."""
    counts = Counter(word for document in documents for word in document)
    return sorted(counts, key=lambda word: (-counts[word], word))[:size]


def cooccurrence(
    documents: Iterable[Sequence[str]], vocabulary: Sequence[str], window: int = 2
) -> Float[Tensor, "words words"]:
    """Count how often two words stand at most ``window`` words apart.

    Args:
        documents: lists of words; pairs never reach from one document into the next.
        vocabulary: the words that are counted, all different. Others keep their place but count for nothing.
        window: largest distance, 1 for direct neighbours.

    Returns:
        Symmetric matrix in float64: entry (i, j) is how often word j stands near word i. A word near itself counts from
        both sides.

    Raises:
        ValueError: the vocabulary is empty or repeats a word, or the window is below 1.
    """
    number = {word: index for index, word in enumerate(vocabulary)}
    if not number or len(number) != len(vocabulary):
        raise ValueError("the vocabulary must hold each word once, and at least one word")
    if window < 1:
        raise ValueError(f"window={window}: expected 1 or more words")
    ids: list[int] = []
    for document in documents:
        ids += [number.get(word, -1) for word in document]
        ids += [-1] * window
    place, size = torch.tensor(ids, dtype=torch.int64), len(vocabulary)
    counts = torch.zeros(size * size, dtype=torch.float64)
    for distance in range(1, window + 1):
        left, right = place[:-distance], place[distance:]
        both = (left >= 0) & (right >= 0)
        counts += torch.bincount(left[both] * size + right[both], minlength=size * size)
    one_way = counts.view(size, size)
    return one_way + one_way.T


def ppmi(counts: Float[Tensor, "words contexts"], smoothing: float = 0.75) -> Float[Tensor, "words contexts"]:
    """Weight co-occurrence counts by positive pointwise mutual information.

    ``max(0, log(P(word, context) / (P(word) P(context))))``: 0 for pairs that meet no more often than chance would have
    it. Context probabilities are taken from counts to the power ``smoothing``, which tames rare contexts (Levy,
    Goldberg and Dagan 2015, section 3.1).

    Args:
        counts: co-occurrence counts, words in rows, contexts in columns.
        smoothing: 1 leaves the probabilities as counted, 0.75 is word2vec's choice.

    Returns:
        A matrix of the same shape, in nats; all-zero rows and columns stay zero.

    Raises:
        ValueError: a count is negative or not a number.
    """
    if not bool((counts >= 0).all()):
        raise ValueError("counts must not be negative or NaN: pass how often words meet, not scores")
    joint = counts / counts.sum().clamp(min=1e-300)  # P(word, context)
    word = joint.sum(dim=1, keepdim=True)  # P(word)
    context = counts.sum(dim=0, keepdim=True) ** smoothing
    context = context / context.sum().clamp(min=1e-300)  # P(context)
    return torch.where(counts > 0, torch.log(joint / (word * context)), 0.0).clamp(min=0)


def svd_vectors(
    matrix: Float[Tensor, "words contexts"], size: int = 100, power: float = 0.5
) -> Float[Tensor, "words size"]:
    """Squeeze the rows of a matrix into ``size`` dimensions by a truncated singular value decomposition.

    Above 500 words the randomised method of Halko, Martinsson and Tropp (2011) is used, from a fixed seed of its own.

    Args:
        matrix: for instance :func:`ppmi`, words in rows.
        size: number of dimensions kept, those of the largest singular values.
        power: the dimensions are scaled by the singular values to this power: 1 keeps distances, 0.5 gives more even
            weight and works better for words (Levy, Goldberg and Dagan 2015, section 3.3).

    Returns:
        One vector a word. Signs are fixed so that the largest entry of each dimension is positive.

    Raises:
        ValueError: ``size`` is not between 1 and the smaller side of the matrix.
    """
    smaller = min(matrix.shape)
    if not 1 <= size <= smaller:
        raise ValueError(f"size={size}: a matrix of shape {tuple(matrix.shape)} has 1 to {smaller} dimensions")
    if smaller <= _EXACT:
        left, singular, _ = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, singular, _ = torch.svd_lowrank(matrix, q=min(size + 20, smaller), niter=6)
    left, singular = left[:, :size], singular[:size]
    largest = left.gather(0, left.abs().argmax(dim=0, keepdim=True))  # (1, size)
    return left * largest.sign() * singular**power


def analogy_scores(vectors: Float[Tensor, "words size"], a: int, b: int, c: int) -> Float[Tensor, "words"]:
    """Score every word as the answer to "a is to b as c is to ...?" (3CosAdd; Mikolov, Yih and Zweig 2013).

    Args:
        vectors: one vector a word, of any length.
        a: row of the first word.
        b: row of what belongs to the first word.
        c: row of the word that is asked about.

    Returns:
        The cosine of each word's vector with ``b - a + c``, made from vectors of length 1; minus infinity for the three
        words of the question, which are no answers.
    """
    units = torch.nn.functional.normalize(vectors, dim=1)
    target = torch.nn.functional.normalize(units[b] - units[a] + units[c], dim=0)
    scores = units @ target
    scores[[a, b, c]] = -math.inf
    return scores


class WordVectors:
    """Words and their vectors, with the questions that one asks of them.

    Attributes:
        words: the words, in the order of the rows.
        vectors: one vector of length 1 a word, shape (words, size).
    """

    def __init__(self, words: Sequence[str], vectors: Float[Tensor, "words size"]) -> None:
        """Keep words and vectors together.

        Args:
            words: the words, all different.
            vectors: one vector a word; they are scaled to length 1.

        Raises:
            ValueError: the numbers of words and vectors differ, or a word is repeated.
        """
        self.words = list(words)
        self._row = {word: row for row, word in enumerate(self.words)}
        if len(self._row) != len(vectors) or len(self._row) != len(self.words):
            raise ValueError(
                f"{len(self._row)} different words do not fit {len(vectors)} vectors and {len(words)} rows"
            )
        self.vectors = torch.nn.functional.normalize(vectors, dim=1)

    @classmethod
    def train(
        cls, documents: Iterable[Sequence[str]], vocabulary_size: int = 3000, window: int = 2, size: int = 100
    ) -> "WordVectors":
        """Make vectors from texts: co-occurrence, PPMI, truncated SVD.

        Args:
            documents: lists of words, see :func:`words`.
            vocabulary_size: how many of the most frequent words get a vector.
            window: largest distance of words that count as neighbours.
            size: dimensions of the vectors.
        """
        documents = list(documents)
        vocabulary = most_frequent(documents, vocabulary_size)
        return cls(vocabulary, svd_vectors(ppmi(cooccurrence(documents, vocabulary, window)), size))

    def __contains__(self, word: str) -> bool:
        """Whether a word has a vector."""
        return word in self._row

    def __len__(self) -> int:
        """Return the number of words."""
        return len(self.words)

    def row(self, word: str) -> int:
        """Return the row of a word.

        Raises:
            ValueError: the word has no vector; the message proposes close spellings.
        """
        if word not in self._row:
            close = difflib.get_close_matches(word, self.words, n=3)
            proposal = f"; did you mean {', '.join(close)}?" if close else ""
            raise ValueError(f"there is no vector for {word!r} among {len(self)} words{proposal}")
        return self._row[word]

    def vector(self, word: str) -> Float[Tensor, "size"]:
        """Return the vector of a word, of length 1.

        Raises:
            ValueError: the word has no vector.
        """
        return self.vectors[self.row(word)]

    def similarity(self, first: str, second: str) -> float:
        """Return the cosine of the angle between two words, -1 to 1.

        Raises:
            ValueError: a word has no vector.
        """
        return float(self.vector(first) @ self.vector(second))

    def neighbours(self, word: str, count: int = 8) -> list[tuple[str, float]]:
        """Return the nearest words and their cosines, the nearest first.

        Raises:
            ValueError: the word has no vector.
        """
        scores = self.vectors @ self.vector(word)
        scores[self.row(word)] = -math.inf
        return self._best(scores, count)

    def analogy(self, a: str, b: str, c: str, count: int = 5) -> list[tuple[str, float]]:
        """Return the best answers to "a is to b as c is to ...?", see :func:`analogy_scores`.

        Raises:
            ValueError: a word has no vector.
        """
        return self._best(analogy_scores(self.vectors, self.row(a), self.row(b), self.row(c)), count)

    def analogy_accuracy(self, pairs: Iterable[tuple[str, str]]) -> tuple[int, int, int]:
        """Ask every analogy that two pairs of a kind make, such as (row, rows) and (axis, axes).

        Args:
            pairs: pairs of words in the same relation; those with a word that has no vector are left out.

        Returns:
            How many questions the best answer was right for; how many for the nearest neighbour of c, a control that
            ignores a and b (Linzen 2016); and how many questions there were.
        """
        rows = [(self.row(a), self.row(b)) for a, b in pairs if a in self and b in self]
        right = control = asked = 0
        for (a, b), (c, answer) in permutations(rows, 2):
            nearest = self.vectors @ self.vectors[c]
            nearest[[a, b, c]] = -math.inf
            right += int(analogy_scores(self.vectors, a, b, c).argmax()) == answer
            control += int(nearest.argmax()) == answer
            asked += 1
        return right, control, asked

    def odd_one_out(self, words: Sequence[str]) -> str:
        """Return the word that is least similar to the others.

        Raises:
            ValueError: there are fewer than three words, or one has no vector.
        """
        if len(words) < 3:
            raise ValueError(f"odd_one_out needs three words or more, got {list(words)}")
        chosen = self.vectors[[self.row(word) for word in words]]
        return words[int((chosen @ chosen.T).sum(dim=1).argmin())]

    def _best(self, scores: Float[Tensor, "words"], count: int) -> list[tuple[str, float]]:
        best = scores.topk(min(count, len(self) - 1))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(self.words[row], score) for row, score in pairs if score > -math.inf]
