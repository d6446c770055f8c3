"""Data and tools beyond the weights: retrieval, prompts that cite, calls of tools, and expressions run safely.

A model knows what its training left in its weights. What else it needs is searched for and put into its prompt
(retrieval-augmented generation, Lewis et al., 2020), or computed by a tool that it calls (Schick et al., 2023; Yao et
al., 2023). Whatever a model writes is text from a stranger: it is parsed strictly, bounded, and never evaluated.
"""

import ast
import itertools
import json
import math
import operator
import os
import random
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from course_utils import generation, models
from course_utils.data import library_docs
from course_utils.data.tasks import tool_use
from course_utils.recipes.base import Result, from_items
from course_utils.reporting import approx, progress_bar

if TYPE_CHECKING:
    from course_utils.models import Loaded

METHODS = ("bm25", "embeddings", "both")
LONGEST_PASSAGE = 600
"""Characters of a passage at most."""
LARGEST_FILE = 10_000_000
"""Bytes of a file that is read into an index at most."""
SUFFIXES = (".txt", ".md", ".rst")
CHUNK = 256
"""Tokens that the encoder reads at once; a longer text is read in parts."""
_WORD = re.compile(r"[^\W_]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

# --- retrieval


def words(text: str) -> list[str]:
    """Return the runs of letters and digits of a text, in lower case: ``"np.log_2"`` gives np, log, 2."""
    return _WORD.findall(text.lower())


def passages_of(text: str, longest: int = LONGEST_PASSAGE) -> list[tuple[int, str]]:
    """Cut a text into passages of whole lines; a line that is too long is cut between words, a word if it must be.

    A blank line ends a passage that is more than half full.

    Args:
        text: any text; nothing of it but white space is lost.
        longest: characters of a passage at most.

    Returns:
        The passages, each with the number of the line, from 1, where it begins.

    Raises:
        ValueError: ``longest`` is below 1.
    """
    _whole("longest", longest)
    found: list[tuple[int, str]] = []
    blank = False
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        whole = textwrap.wrap(line, longest, expand_tabs=False, replace_whitespace=False, break_on_hyphens=False)
        for piece in [line.rstrip()] if len(line) <= longest else whole:
            if not piece:
                blank = True
                continue
            begun, before = found[-1] if found else (number, "")
            joined = f"{before}\n{piece}" if not blank else f"{before}\n\n{piece}"
            if found and len(joined) <= longest and not (blank and len(before) > longest / 2):
                found[-1] = (begun, joined)
            else:
                found.append((number, piece))
            blank = False
    return found


class BM25:
    """The score of Robertson and Zaragoza (2009), "The probabilistic relevance framework", equation 3.15.

    A passage scores for each word of the query that it holds: ``idf * tf / (tf + k1 * (1 - b + b * length / mean))``.
    Rare words count more (idf), a second occurrence counts less than the first (``k1``), and occurrences in long
    passages count less (``b``). The idf is ``log(1 + (n - df + .5) / (df + .5))``, which is never negative. For each
    word only the passages that hold it are kept, with their weights (postings).
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.2, b: float = 0.75) -> None:
        """Count words and weight them.

        Args:
            texts: the passages.
            k1: how slowly repeated words cease to count; 0 counts a word once.
            b: how much the length matters, 0 to 1.

        Raises:
            ValueError: there is no passage, or ``k1`` or ``b`` is out of range.
        """
        if not texts:
            raise ValueError("there is no passage to search in: give at least one text")
        if not 0 <= k1 < math.inf or not 0 <= b <= 1:
            raise ValueError(f"k1={k1}, b={b}: expected k1 of 0 or more, and b from 0 to 1")
        self.size = len(texts)
        self.number: dict[str, int] = {}
        held: list[tuple[int, int, int]] = []  # word, passage, count
        for row, text in enumerate(texts):
            for word, count in Counter(words(text)).items():
                held.append((self.number.setdefault(word, len(self.number)), row, count))
        column, places, counts = np.array(held, dtype=np.int64).reshape(-1, 3).T
        length = np.bincount(places, counts, minlength=self.size)
        frequency = np.bincount(column, minlength=len(self.number))
        idf = np.log(1 + (self.size - frequency + 0.5) / (frequency + 0.5))
        norm = k1 * (1 - b + b * length / max(length.mean(), 1e-9))
        order = np.argsort(column, kind="stable")
        self.rows = places[order]
        self.weights = (idf[column] * counts / (counts + norm[places]))[order]
        self.starts = np.concatenate([[0], np.cumsum(frequency)])

    def scores(self, query: str) -> Float[np.ndarray, "passages"]:
        """Return the score of every passage, 0 where it holds no word of the query.

        Args:
            query: any text; a word in it that occurs twice counts twice.
        """
        scores = np.zeros(self.size)
        for word, count in Counter(words(query)).items():
            if word in self.number:
                part = slice(*self.starts[self.number[word] : self.number[word] + 2])
                scores[self.rows[part]] += count * self.weights[part]
        return scores


@torch.no_grad()
def pooled(
    loaded: "Loaded",
    texts: Sequence[str],
    kinds: Sequence[tuple[int | None, Float[Tensor, "vocabulary"]]],
    rows: int = 32,
    progress: bool = False,
) -> list[Float[Tensor, "texts width"]]:
    """Return vectors of texts: weighted means of the states of their tokens.

    Args:
        loaded: an encoder and its tokenizer.
        texts: the texts; those of more than ``CHUNK`` tokens are read in parts.
        kinds: for each kind of vector the layer, -1 for the last one, and the weight of each token of the vocabulary.
            The layer None stands for the vectors of the tokens alone, without places or context: no layer is run.
        rows: texts of similar length that are read at once.
        progress: show a progress bar.
    """
    model: Any = loaded.model.base_model
    vocabulary: Tensor = model.get_input_embeddings().weight.float().cpu()
    parts = [
        (number, ids[start : start + CHUNK])
        for number, ids in enumerate(_token_ids(loaded, texts))
        for start in range(0, len(ids), CHUNK)
    ]
    parts.sort(key=lambda part: len(part[1]))
    sums = [torch.zeros(len(texts), model.config.hidden_size) for _ in kinds]
    totals = [torch.zeros(len(texts), 1) for _ in kinds]
    with progress_bar(len(parts), "embedding", progress, unit="text") as bar:
        for start in range(0, len(parts), rows):
            batch = parts[start : start + rows]
            place = torch.tensor([number for number, _ in batch])
            ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(part) for _, part in batch], batch_first=True)
            mask = torch.arange(ids.shape[1]) < torch.tensor([[len(part)] for _, part in batch])  # (rows, tokens)
            states: dict[int | None, Tensor] = {None: vocabulary[ids]}
            if any(layer is not None for layer, _ in kinds):
                inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.long().to(model.device)}
                found = model(**inputs, output_hidden_states=True).hidden_states
                states |= {layer: found[layer].float().cpu() for layer, _ in kinds if layer is not None}
            for (layer, weights), summed, total in zip(kinds, sums, totals, strict=True):
                weight = (weights[ids] * mask)[..., None]
                summed.index_add_(0, place, (states[layer] * weight).sum(1))
                total.index_add_(0, place, weight.sum(1))
            bar.update(len(batch))
    return [summed / total.clamp(min=1e-9) for summed, total in zip(sums, totals, strict=True)]


def token_weights(loaded: "Loaded", texts: Sequence[str] | None = None) -> Float[Tensor, "vocabulary"]:
    """Return the weight of each token in :func:`pooled`: its idf in the texts, or 1; special tokens have 0.

    Weighting by rarity is what makes a mean of word vectors hard to beat (Arora, Liang and Ma, 2017).

    Args:
        loaded: the encoder whose tokenizer counts.
        texts: the collection; None for equal weights.
    """
    embeddings: Any = loaded.model.get_input_embeddings()
    weights = torch.ones(embeddings.num_embeddings)
    if texts is not None:
        counts = Counter(token for ids in _token_ids(loaded, texts) for token in set(ids))
        frequency = torch.zeros_like(weights)
        frequency[list(counts)] = torch.tensor(list(counts.values()), dtype=torch.float32)
        weights = torch.log(1 + (len(texts) - frequency + 0.5) / (frequency + 0.5))
    weights[loaded.tokenizer.all_special_ids] = 0
    return weights


def _token_ids(loaded: "Loaded", texts: Sequence[str]) -> list[list[int]]:
    found: list[list[int]] = loaded.tokenizer(list(texts), verbose=False)["input_ids"]
    return found


class Whitening:
    """Vectors compared after the mean is taken away and all directions have the same variance.

    Mean states of a masked language model point nearly the same way, whatever the text: their common part, and a few
    directions of large variance, drown the rest. Mu and Viswanath (2018) remove the first of these directions, Su et
    al. (2021), section 3, scale all of them. The covariance is drawn towards a multiple of the identity, the more, the
    fewer texts there are.
    """

    def __init__(self, vectors: Float[Tensor, "texts width"]) -> None:
        """Estimate mean and covariance.

        Args:
            vectors: one a passage.
        """
        count, width = vectors.shape
        self.mean = vectors.double().mean(0)
        centred = vectors.double() - self.mean
        covariance = centred.T @ centred / count
        share = width / (width + count)
        level = covariance.trace() / width + 1e-12
        values, axes = torch.linalg.eigh((1 - share) * covariance + share * level * torch.eye(width))
        self.matrix = axes / values.sqrt()

    def __call__(self, vectors: Float[Tensor, "texts width"]) -> Float[Tensor, "texts width"]:
        """Return vectors of length 1 whose dot products are the scores."""
        return torch.nn.functional.normalize((vectors.double() - self.mean) @ self.matrix, dim=1)


class Hit(NamedTuple):
    """A passage that was found.

    Attributes:
        text: the passage.
        source: where it is from: a dotted name, or ``file:line``.
        score: its score by the method of the search.
        row: its number in the index.
    """

    text: str
    source: str
    score: float
    row: int


class Index:
    """Passages that can be searched by their words, by the encoder's vectors, or by both.

    Attributes:
        texts: the passages.
        sources: where each is from.
        bm25: their BM25 scores.
    """

    def __init__(
        self, texts: Sequence[str], sources: Sequence[str], k1: float = 1.2, b: float = 0.75, titled: bool = False
    ) -> None:
        """Make an index of passages as they are; see the class methods for other ways.

        Args:
            texts: the passages.
            sources: where each is from.
            k1: see :class:`BM25`.
            b: see :class:`BM25`.
            titled: whether the words of the sources are searched as well.

        Raises:
            ValueError: there are no passages, or not as many sources, or one is empty.
        """
        if len(texts) != len(sources):
            raise ValueError(f"{len(texts)} texts and {len(sources)} sources: expected one source for each text")
        empty = next((source for text, source in zip(texts, sources, strict=True) if not text.strip()), None)
        if empty is not None:
            raise ValueError(f"the passage {empty} is empty: leave it out")
        self.texts, self.sources = list(texts), list(sources)
        searched = [f"{source}\n{text}" for text, source in zip(texts, sources, strict=True)] if titled else self.texts
        self.bm25 = BM25(searched, k1, b)
        self._encoder: Loaded | None = None
        self._kind: tuple[int | None, Tensor] | None = None
        self._whitening: Whitening | None = None
        self._vectors: Tensor | None = None

    @classmethod
    def from_texts(
        cls, texts: Iterable[str], sources: Iterable[str] | None = None, longest: int = LONGEST_PASSAGE
    ) -> "Index":
        """Make an index of texts, which are cut into passages.

        Args:
            texts: the texts.
            sources: where each is from; by default ``text 1``, ``text 2``... Of a text in several passages the later
                ones have the line where they begin behind it, ``notes:12``.
            longest: characters of a passage at most.

        Raises:
            ValueError: there is no text, or not as many sources as texts.
        """
        texts = list(texts)
        names = [f"text {number}" for number in range(1, len(texts) + 1)] if sources is None else list(sources)
        if len(texts) != len(names):
            raise ValueError(f"{len(texts)} texts and {len(names)} sources: expected one source for each text")
        found = [
            (passage, name if line == 1 else f"{name}:{line}")
            for text, name in zip(texts, names, strict=True)
            for line, passage in passages_of(text, longest)
        ]
        if not found:
            raise ValueError(f"{len(texts)} texts hold no passage: expected at least one text that is not empty")
        return cls([text for text, _ in found], [source for _, source in found])

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike[str], suffixes: Sequence[str] = SUFFIXES, longest: int = LONGEST_PASSAGE
    ) -> "Index":
        """Make an index of the text files in a folder and its sub-folders; hidden ones are left out.

        Args:
            folder: the folder.
            suffixes: endings of the names of the files that are read.
            longest: characters of a passage at most.

        Returns:
            The index; sources are ``file:line``, from the folder on.

        Raises:
            ValueError: the folder is missing or holds no text, or a file is too large, cannot be read or is not UTF-8.
        """
        top = Path(folder).expanduser()
        if not top.is_dir():
            raise ValueError(f"there is no folder {top}: give the folder that holds your text files")
        found: list[tuple[str, str]] = []
        for path in _text_files(top, tuple(suffixes)):
            name = path.relative_to(top).as_posix()
            found += [(text, f"{name}:{line}") for line, text in passages_of(_read(path), longest)]
        if not found:
            raise ValueError(
                f"{top} holds no text: expected files that end with {', '.join(suffixes)} and are not empty"
            )
        return cls([text for text, _ in found], [source for _, source in found])

    @classmethod
    def from_library(
        cls,
        size: str = "small",
        split: str | None = None,
        documents: int | None = None,
        seed: int = 0,
        longest: int = LONGEST_PASSAGE,
    ) -> "Index":
        """Make an index of the docstrings of the installed libraries, which can be searched by their names too.

        Args:
            size: see :func:`course_utils.data.library_docs`.
            split: ``train``, ``validation``, or None for both.
            documents: how many docstrings are drawn; None for all.
            seed: seed of the draw.
            longest: characters of a passage at most.

        Returns:
            The index; sources are dotted names such as ``numpy.ma.core.MaskedArray.mean``.

        Raises:
            ValueError: there is no such size or split, or ``documents`` is below 1.
        """
        docs = library_docs(size, split, progress=False)
        if documents is not None:
            _whole("documents", documents)
            docs = docs.select(sorted(random.Random(seed).sample(range(len(docs)), min(documents, len(docs)))))
        found = [
            (text, source)
            for whole, source in zip(docs["text"], docs["source"], strict=True)
            for _, text in passages_of(whole, longest)
        ]
        return cls([text for text, _ in found], [source for _, source in found], titled=True)

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self.texts)

    def embed(
        self, loaded: "Loaded | None" = None, layer: int | None = None, weighted: bool = True, whiten: bool = True,
        progress: bool = True,
    ) -> "Index":  # fmt: skip
        """Give each passage a vector: the mean of its tokens' vectors or states, weighted by rarity, then whitened.

        For the embedded encoder the tokens' own vectors find more than the states of any layer, see
        :func:`recall_at_k`, and take no time.

        Args:
            loaded: an encoder; by default that of the profile.
            layer: whose output is taken, -1 for the last one; None for the tokens' vectors, before all layers.
            weighted: whether rare tokens count more.
            whiten: see :class:`Whitening`; else vectors are compared as they are.
            progress: show a progress bar.

        Returns:
            The index itself.
        """
        encoder = loaded or models.load("encoder")
        self._kind = (layer, token_weights(encoder, self.texts if weighted else None))
        (vectors,) = pooled(encoder, self.texts, [self._kind], progress=progress)
        self._encoder, self._whitening = encoder, Whitening(vectors) if whiten else None
        self._vectors = self._compared(vectors)
        return self

    def _compared(self, vectors: Tensor) -> Tensor:
        return self._whitening(vectors) if self._whitening else torch.nn.functional.normalize(vectors.double(), dim=1)

    def scores(self, query: str, method: str = "bm25") -> Float[np.ndarray, "passages"]:
        """Return the score of every passage.

        Args:
            query: what is searched for.
            method: ``bm25``, ``embeddings`` (cosines; the passages are embedded on first use), or ``both``: reciprocal
                rank fusion, the sum of ``1 / (60 + rank)`` (Cormack, Clarke and Buettcher, 2009).

        Raises:
            ValueError: there is no such method, or the query holds no word.
        """
        if method not in METHODS:
            raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
        if not words(query):
            raise ValueError(f"the query {query[:40]!r} holds no word: expected some letters or digits")
        if method == "bm25":
            return self.bm25.scores(query)
        if self._vectors is None:
            self.embed()
        assert self._encoder is not None and self._kind is not None and self._vectors is not None
        (vector,) = pooled(self._encoder, [query], [self._kind])
        cosines: np.ndarray = (self._vectors @ self._compared(vector)[0]).numpy()
        return cosines if method == "embeddings" else fuse([self.bm25.scores(query), cosines])

    def search(self, query: str, k: int = 5, method: str = "bm25") -> list[Hit]:
        """Return the best passages, the best first; equally good ones in the order of the index.

        Args:
            query: what is searched for.
            k: how many passages at most; those that share no word with the query are not found by BM25.
            method: see :meth:`scores`.

        Raises:
            ValueError: ``k`` is below 1, there is no such method, or the query holds no word.
        """
        _whole("k", k)
        scores = self.scores(query, method)
        best = np.argsort(-scores, kind="stable")[:k]
        return [
            Hit(self.texts[row], self.sources[row], float(scores[row]), int(row))
            for row in best
            if scores[row] > 0 or method == "embeddings"
        ]


def fuse(scores: Sequence[Float[np.ndarray, "passages"]], k: int = 60) -> Float[np.ndarray, "passages"]:
    """Join several rankings: a passage gets ``1 / (k + rank)`` from each one (Cormack et al., 2009).

    Args:
        scores: for each ranking the scores of all passages; those with a score of 0, found by no word, get nothing.
        k: how much less the first ranks count than their reciprocals.
    """
    fused = np.zeros(len(scores[0]))
    for one in scores:
        order = np.argsort(-one, kind="stable")
        rank = np.empty(len(one))
        rank[order] = np.arange(1, len(one) + 1)
        fused += np.where(one != 0, 1 / (k + rank), 0)
    return fused


def _text_files(top: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found = []
    for place, folders, files in os.walk(top):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in files if name.endswith(suffixes) and not name.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(top).parts)


def _read(path: Path) -> str:
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise ValueError(f"{path} has {size:,} bytes: expected at most {LARGEST_FILE:,}; cut it into several files")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8, or leave it out") from None
    if "\x00" in text:
        raise ValueError(f"{path} is not text (it holds zero bytes): leave it out")
    return text


# --- how well retrieval works


@dataclass(frozen=True)
class Recall:
    """What :func:`recall_at_k` measured.

    Attributes:
        results: recall of each method on each form of question, named ``form, method``.
        differences: paired differences to BM25, named in the same way.
    """

    results: tuple[Result, ...]
    differences: tuple[Result, ...]

    HEADER: ClassVar = ("questions", "method", "recall", "95 % interval", "minus BM25", "95 % interval of it")

    def rows(self) -> list[tuple[str, ...]]:
        """Return rows for :func:`course_utils.reporting.table` under :attr:`HEADER`."""

        def cells(one: Result | None) -> tuple[str, str]:
            return (approx(one.value), f"{approx(one.low)} to {approx(one.high)}") if one else ("", "")

        paired = {one.name: one for one in self.differences}
        return [(*one.name.split(", "), *cells(one), *cells(paired.get(one.name))) for one in self.results]


FORMS = ("first sentence", "without its name")
"""Forms of a question: the first sentence of a docstring, and that without the words of the documented name."""
VARIANTS: dict[str, tuple[int | None, bool, bool]] = {
    "embeddings": (None, True, True),
    "states of layer 1": (1, True, True),
    "last states as they are": (-1, False, False),
}
"""Kinds of vectors that are compared: layer, weighted, whitened; as in :meth:`Index.embed`."""


def questions_of(text: str, source: str, longest: int = 300) -> tuple[tuple[str, str], str] | None:
    """Make questions, and the passage that answers them, of different parts of one docstring.

    Args:
        text: the docstring.
        source: its dotted name.
        longest: characters of the passage at most.

    Returns:
        The first sentence and the same without words that begin like one of the name (:data:`FORMS`), and the passage:
        what follows the first paragraph. None where a part is missing or too short.
    """
    first, _, rest = text.partition("\n\n")
    sentence = re.split(r"(?<=[.!?])\s", " ".join(first.split()), maxsplit=1)[0]
    found = passages_of(rest, longest)
    if not found or len(found[0][1]) < 60 or len(sentence) > 300:
        return None
    name = {word[:4] for word in words(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", source))}
    masked = " ".join(word for word in sentence.split() if not any(part[:4] in name for part in words(word)))
    if min(len(words(sentence)), len(words(masked))) < 4:
        return None
    return (sentence, masked), found[0][1]


def recall_at_k(
    k: int = 5,
    *,
    loaded: "Loaded | None" = None,
    size: str = "small",
    passages: int = 1200,
    questions: int = 120,
    seeds: Sequence[int] = (0, 1, 2),
    progress: bool = False,
) -> Recall:
    """Measure how often the right passage is among the first ``k``, by each method of :class:`Index`.

    Questions are made from docstrings that no embedded model was trained on (:func:`questions_of`). Each seed draws its
    own questions among them, and its own other passages in which the right one must be found.

    Args:
        k: how many passages are looked at.
        loaded: an encoder; by default that of the profile.
        size: see :func:`course_utils.data.library_docs`.
        passages: passages searched in each draw.
        questions: questions of each draw.
        seeds: seeds of the draws.
        progress: show a progress bar.

    Raises:
        ValueError: a number is below 1, there is no seed, or the corpus has too few docstrings for it.
    """
    for name, value in (("k", k), ("passages", passages), ("questions", questions)):
        _whole(name, value)
    if not seeds:
        raise ValueError("seeds=(): expected at least one seed")
    docs = library_docs(size, progress=False)
    held: list[int] = []
    others: list[int] = []
    items: list[tuple[tuple[str, str], str]] = []
    for text, source, split in zip(docs["text"], docs["source"], docs["split"], strict=True):
        if (made := questions_of(text, source)) is not None:
            (held if split == "validation" else others).append(len(items))
            items.append(made)
    if questions > len(held) or not len(held) <= passages <= len(items):
        raise ValueError(
            f"questions={questions}, passages={passages}: this corpus gives at most {len(held)} questions, and "
            f"{len(held)} to {len(items)} passages"
        )
    draws = []
    for seed in seeds:
        generator = random.Random(f"recall {seed}")
        draws.append((generator.sample(held, questions), held + generator.sample(others, passages - len(held))))
    union = sorted({row for _, pool in draws for row in pool})
    place = {row: number for number, row in enumerate(union)}
    texts = [items[row][1] for row in union]
    encoder = loaded or models.load("encoder")
    weights = {weighted: token_weights(encoder, texts if weighted else None) for weighted in (True, False)}
    kinds = [(layer, weights[weighted]) for layer, weighted, _ in VARIANTS.values()]
    vectors = dict(zip(VARIANTS, pooled(encoder, texts, kinds, progress=progress), strict=True))
    asked = [items[row][0][form] for form in range(len(FORMS)) for row in held]
    queries = dict(zip(VARIANTS, pooled(encoder, asked, kinds), strict=True))

    names = [f"{form}, {method}" for form in FORMS for method in ("bm25", *VARIANTS, "both")]
    hits: dict[str, list[list[float]]] = {name: [[] for _ in seeds] for name in names}
    for draw, (chosen, pool) in enumerate(draws):
        rows = [place[row] for row in pool]
        bm25 = BM25([texts[row] for row in rows])
        cosines = {}
        for name, (_, _, whiten) in VARIANTS.items():
            unit = Whitening(vectors[name][rows]) if whiten else torch.nn.functional.normalize
            cosines[name] = (unit(queries[name]) @ unit(vectors[name][rows]).T).double().numpy()
        for number, form in enumerate(FORMS):
            for row in chosen:
                scores: dict[str, np.ndarray] = {"bm25": bm25.scores(items[row][0][number])}
                scores |= {name: cosine[number * len(held) + held.index(row)] for name, cosine in cosines.items()}
                scores["both"] = fuse([scores["bm25"], scores["embeddings"]])
                for method, one in scores.items():
                    best = np.argsort(-one, kind="stable")[:k]
                    right = any(one[hit] and texts[rows[hit]] == items[row][1] for hit in best)
                    hits[f"{form}, {method}"][draw].append(float(right))
    results = tuple(from_items(name, seen) for name, seen in hits.items())
    differences = []
    for name, seen in hits.items():
        if not name.endswith("bm25"):
            base = hits[f"{name.split(', ')[0]}, bm25"]
            gaps = [np.subtract(*pair).tolist() for pair in zip(seen, base, strict=True)]
            differences.append(from_items(name, gaps))
    return Recall(results, tuple(differences))


# --- prompts that cite

INSTRUCTION = (
    "Answer the question from the passages below. Behind each statement give the number of its passage, like [1]. "
    "If the passages do not hold the answer, say so."
)
_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by for from has have if in is it its no not of on or that the this to was were "
        "which will with",
    )
)
_CITED = re.compile(r"\[([0-9]+(?:\s*,\s*[0-9]+)*)\]")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?!\[[0-9])|(?<=\])\s+(?=[A-Z])|\n+")


@dataclass(frozen=True)
class CitingPrompt:
    """A prompt with numbered passages, as :func:`citing_prompt` makes it.

    Attributes:
        text: what the model reads.
        hits: the passages in it; the first one has the number 1.
        dropped: the passages for which there was no room.
        tokens: tokens of the prompt; None where no model was given.
        window: tokens of the context window; None where no bound is known.
        note: what was left out and why; empty where all is in.
    """

    text: str
    hits: tuple[Hit, ...]
    dropped: tuple[Hit, ...] = ()
    tokens: int | None = None
    window: int | None = None
    note: str = ""


def citing_prompt(
    question: str,
    hits: Sequence[Hit],
    loaded: "Loaded | None" = None,
    *,
    max_new_tokens: int = 64,
    drop: bool = True,
    instruction: str = INSTRUCTION,
) -> CitingPrompt:
    """Put passages that were found before a question, numbered, so that the answer can cite them.

    Retrieval-augmented generation in the prompt (Lewis et al., 2020); citations as in Nakano et al. (2021, WebGPT).

    Args:
        question: the question.
        hits: the passages, the best first.
        loaded: the model that will read it; its tokenizer counts, and its context window is the bound.
        max_new_tokens: tokens kept free for the answer, in a decoder.
        drop: whether the last passages are left out until the prompt fits, which ``note`` then says; else an error.
        instruction: the first line.

    Raises:
        ValueError: the question is empty, there is no passage, or the prompt does not fit the context window.
    """
    if not question.strip():
        raise ValueError("the question is empty")
    if not hits:
        raise ValueError("there is no passage to cite: search first, or ask without passages")
    window = None if loaded is None else generation.context_window(loaded)
    reserve = 0 if loaded is None or loaded.model.config.is_encoder_decoder else max_new_tokens
    for count in range(len(hits), 0, -1):
        numbered = [f"[{number}] {hit.source}\n{hit.text}" for number, hit in enumerate(hits[:count], 1)]
        text = "\n\n".join([instruction, *numbered, f"Question: {question.strip()}\nAnswer:"])
        tokens = None if loaded is None else len(_token_ids(loaded, [text])[0])
        if count == len(hits):
            needed = tokens
        if tokens is None or window is None or tokens + reserve <= window:
            note = (
                f"{len(hits) - count} of {len(hits)} passages are left out: with all, {needed} tokens and {reserve} "
                f"for the answer exceed the context window of {window}"
            )
            left = tuple(hits[count:])
            return CitingPrompt(text, tuple(hits[:count]), left, tokens, window, note if left else "")
        if not drop:
            break
    raise ValueError(
        f"a prompt of {tokens} tokens with {count} of the passages, and {reserve} for the answer, exceed the context "
        f"window of {window}: take fewer or shorter passages, or a model with a longer window"
    )


class Citation(NamedTuple):
    """One citation in an answer.

    Attributes:
        number: the cited number.
        sentence: the sentence that cites, without its citations.
        source: where the passage is from; None where no passage has this number.
        support: share of the sentence's words, frequent ones aside, that the passage holds; 0 where there is none.
        supported: whether the passage is there and the share is large enough.
    """

    number: int
    sentence: str
    source: str | None
    support: float
    supported: bool


class Citations(NamedTuple):
    """What :func:`check_citations` found.

    Attributes:
        cited: the citations.
        uncited: sentences without one.
    """

    cited: tuple[Citation, ...]
    uncited: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every sentence cites, and every citation is supported."""
        return bool(self.cited) and not self.uncited and all(one.supported for one in self.cited)


def check_citations(answer: str, hits: Sequence[Hit], least: float = 0.5) -> Citations:
    """Check which citations of an answer exist, and whether their passages hold the words of the sentence.

    Shared words are a necessary sign of support, no proof: "does" and "does not" share nearly all.

    Args:
        answer: what the model wrote.
        hits: the passages of the prompt, the first one with the number 1.
        least: smallest share of the sentence's words in a passage that supports it.
    """
    cited, uncited = [], []
    for sentence in filter(str.strip, _SENTENCE.split(answer)):
        plain = re.sub(r" (?=[.,;:!?])", "", " ".join(_CITED.sub(" ", sentence).split()))
        said = set(words(plain)) - _STOP
        numbers = [int(part[:9]) for found in _CITED.findall(sentence) for part in found.split(",")]
        if not numbers:
            uncited.append(plain)
        for number in dict.fromkeys(numbers):
            hit = hits[number - 1] if 1 <= number <= len(hits) else None
            held = set(words(f"{hit.source} {hit.text}")) if hit else set()
            support = len(said & held) / len(said) if said else 0.0
            cited.append(Citation(number, plain, hit.source if hit else None, support, bool(hit) and support >= least))
    return Citations(tuple(cited), tuple(uncited))


# --- expressions, run without eval

LONGEST_EXPRESSION, DEEPEST, STEPS = 200, 100, 10_000
"""Characters of a calculation, levels of nesting, and parts of an expression that are evaluated, at most."""
BITS, ELEMENTS = 1024, 10_000
"""Size of a whole number, and of a list or string, at most."""
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.UAdd: operator.pos,
    ast.USub: operator.neg, ast.Not: operator.not_, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sum": sum, "len": len, "max": max, "min": min, "sorted": sorted, "abs": abs,
}  # fmt: skip
STRING_METHODS = ("startswith", "endswith", "upper", "lower")


def calculate(expression: str) -> int | float:
    """Compute an arithmetic expression as Python would, without ``eval``: its syntax tree is walked.

    Args:
        expression: numbers, ``+ - * / // % **`` and brackets, at most ``LONGEST_EXPRESSION`` characters.

    Raises:
        ValueError: anything else stands in it, it is too long, too deep or its numbers too large, it divides by 0, or
            the result is not a real number.
    """
    if len(expression) > LONGEST_EXPRESSION:
        raise ValueError(f"{len(expression)} characters: expected an expression of at most {LONGEST_EXPRESSION}")
    if strange := re.search(r"[^0-9.+\-*/%() eE]", expression):
        raise ValueError(
            f"{strange.group()!r} cannot be calculated with: expected numbers, + - * / // % ** and brackets"
        )
    value = run_expression(expression.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{expression!r} is not a number")
    return value


def run_expression(code: str, variables: Mapping[str, Any] | None = None) -> Any:
    """Evaluate a small part of Python's expressions without ``eval``, in a bounded number of steps.

    Numbers, strings, lists, list comprehensions, comparisons, ``and or not in``, arithmetic on numbers, ``+`` of
    strings and lists, elements by their number, :data:`FUNCTIONS` with one argument, and :data:`STRING_METHODS`. Enough
    to score code that a model wrote by running it (Chen et al., 2021, section 2.1), and nothing that could do harm.

    Args:
        code: the expression.
        variables: what its names mean: numbers, strings, and lists of them.

    Raises:
        ValueError: the code is no such expression, it fails, or it exceeds a bound; the message says which.
    """
    if len(code) > 5 * LONGEST_EXPRESSION:
        raise ValueError(f"{len(code)} characters: expected an expression of at most {5 * LONGEST_EXPRESSION}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{code[:60]!r} is not an expression: {getattr(error, 'msg', error)}") from None
    try:
        return _Evaluator(code.strip()).value(tree.body, dict(variables or {}), 0)
    except (TypeError, ArithmeticError, LookupError) as error:
        raise ValueError(f"{code[:60]!r} fails: {error}") from None


class _Evaluator:
    """Walks a syntax tree; every value that comes up is of a known type and a bounded size."""

    def __init__(self, code: str) -> None:
        self.code, self.steps = code, 0

    def shown(self, node: ast.expr) -> str:
        return _short(ast.get_source_segment(self.code, node) or "")

    def value(self, node: ast.expr, names: dict[str, Any], depth: int) -> Any:
        self.steps += 1
        if self.steps > STEPS:
            raise ValueError(f"more than {STEPS:,} steps")
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise ValueError(f"{type(node).__name__} is not allowed: {self.shown(node)}")
        return self._bounded(method(node, lambda part, inner=names: self.value(part, inner, depth + 1), names))

    def _bounded(self, value: Any) -> Any:
        if type(value) not in (int, float, str, bool, list):
            raise ValueError(f"a value of type {type(value).__name__}: expected numbers, strings or lists")
        if type(value) is int and value.bit_length() > BITS:
            raise ValueError(f"a whole number of more than {BITS} bits")
        if type(value) is float and not math.isfinite(value):
            raise ValueError("a number that is too large, or none at all")
        if isinstance(value, str | list):
            self.steps += len(value) // 100
            if len(value) > ELEMENTS:
                raise ValueError(f"a text or list of more than {ELEMENTS:,} elements")
        return value

    def _constant(self, node: ast.Constant, value: Callable[..., Any], names: dict[str, Any]) -> Any:
        return node.value

    def _name(self, node: ast.Name, value: Callable[..., Any], names: dict[str, Any]) -> Any:
        if node.id not in names:
            raise ValueError(f"there is no {node.id!r}; there is {', '.join(names) or 'no variable'}")
        return names[node.id]

    def _list(self, node: ast.List, value: Callable[..., Any], names: dict[str, Any]) -> Any:
        return [value(element) for element in node.elts]

    def _unaryop(self, node: ast.UnaryOp, value: Callable[..., Any], names: dict[str, Any]) -> Any:
        return _apply(node.op, value(node.operand))

    def _binop(self, node: ast.BinOp, value: Callable[..., Any], names: dict[str, Any]) -> Any:
        left, right = value(node.left), value(node.right)
        joined = isinstance(node.op, ast.Add) and type(left) is type(right) and isinstance(left, str | list)
        if not joined and not all(isinstance(one, int | float) for one in (left, right)):
            raise ValueError(f"{self.shown(node)} computes with something that is not a number")
        power = isinstance(node.op, ast.Pow) and isinstance(left, int) and isinstance(right, int) and abs(left) > 1
        if power and (left.bit_length() - 1) * right > BITS:
            raise ValueError(f"{self.shown(node)} is a whole number of more than {BITS} bits")
        return _apply(node.op, left, right)

    def _boolop(self, node: ast.BoolOp, value: Callable[..., Any], names: dict[str, Any]) -> Any:
        result: Any = isinstance(node.op, ast.And)
        for part in node.values:
            result = value(part)
            if bool(result) is isinstance(node.op, ast.Or):
                break
        return result

    def _compare(self, node: ast.Compare, value: Callable[..., Any], names: dict[str, Any]) -> Any:
        left = value(node.left)
        for kind, part in zip(node.ops, node.comparators, strict=True):
            right = value(part)
            if not _apply(kind, left, right):
                return False
            left = right
        return True

    def _subscript(self, node: ast.Subscript, value: Callable[..., Any], names: dict[str, Any]) -> Any:
        return value(node.value)[value(node.slice)]

    def _call(self, node: ast.Call, value: Callable[..., Any], names: dict[str, Any]) -> Any:
        called = node.func
        if node.keywords:
            raise ValueError(f"named arguments are not allowed: {self.shown(node)}")
        arguments = [value(argument) for argument in node.args]
        if isinstance(called, ast.Name) and called.id in FUNCTIONS and len(arguments) == 1:
            return FUNCTIONS[called.id](*arguments)
        if isinstance(called, ast.Attribute) and called.attr in STRING_METHODS:
            text = value(called.value)
            if isinstance(text, str):
                return getattr(text, called.attr)(*arguments)
        known = f"{', '.join(FUNCTIONS)} with one argument, and {', '.join(STRING_METHODS)} of a string"
        raise ValueError(f"{self.shown(node)} cannot be called: expected {known}")

    def _listcomp(self, node: ast.ListComp | ast.GeneratorExp, value: Callable[..., Any], names: dict[str, Any]) -> Any:
        found: list[Any] = []

        def run(level: int, inner: dict[str, Any]) -> None:
            if level == len(node.generators):
                found.append(value(node.elt, inner))
                return
            part = node.generators[level]
            if not isinstance(part.target, ast.Name) or part.is_async:
                raise ValueError(f"{self.shown(part.target)} is not allowed: expected 'for one name in a list'")
            for element in value(part.iter, inner):
                here = inner | {part.target.id: element}
                if all(value(condition, here) for condition in part.ifs):
                    run(level + 1, here)

        run(0, names)
        return found

    _generatorexp = _listcomp


def _apply(kind: ast.AST, *values: Any) -> Any:
    if type(kind) not in _OPERATORS:
        raise ValueError(f"the operator {type(kind).__name__} is not allowed")
    return _OPERATORS[type(kind)](*values)


# --- tools and their loop

LONGEST_ARGUMENT, LONGEST_RESULT, LONGEST_REPLY = 200, 400, 4000
"""Characters of a call's argument, of a tool's result, and of what a model writes in one turn, at most."""


class Call(NamedTuple):
    """A call of a tool.

    Attributes:
        name: name of the tool, or ``answer``.
        argument: its one argument.
    """

    name: str
    argument: str

    def __str__(self) -> str:
        """As the embedded model writes it."""
        return tool_use.call(self.name, self.argument)


@dataclass(frozen=True)
class Tool:
    """Something that a model can ask for.

    Attributes:
        name: its name.
        run: takes the argument and returns the result; a ``ValueError`` becomes the result ``error: ...``.
        about: what it does, for the model.
        argument: name of the argument.
    """

    name: str
    run: Callable[[str], str]
    about: str
    argument: str

    @property
    def schema(self) -> dict[str, Any]:
        """The description that chat templates take, a JSON schema."""
        parameters = {
            "type": "object",
            "properties": {self.argument: {"type": "string", "description": f"the {self.argument}"}},
            "required": [self.argument],
        }
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.about, "parameters": parameters},
        }


def calculator() -> Tool:
    """Return the tool ``calculate``; whole results are written without a point."""

    def run(expression: str) -> str:
        value = calculate(expression)
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.10g}"

    return Tool("calculate", run, "Computes an arithmetic expression such as 12 * 7.", "expression")


def searcher(index: Index, k: int = 1, method: str = "bm25", names: bool = False) -> Tool:
    """Return the tool ``search`` over an index.

    Args:
        index: where it searches.
        k: how many passages it returns; several are numbered, with their sources.
        method: see :meth:`Index.scores`.
        names: whether a passage counts only if it holds every capitalised word of the query: the nearest passage about
            somebody else is worse than none.
    """
    _whole("k", k)

    def run(query: str) -> str:
        wanted = {word.lower() for word in _WORD.findall(query) if names and word[0].isupper()}
        hits = [hit for hit in index.search(query, len(index) if names else k, method) if wanted <= {*words(hit.text)}]
        lines = [f"[{number}] {hit.source}: {hit.text}" for number, hit in enumerate(hits[:k], 1)]
        return "\n".join(lines if k > 1 else [hit.text for hit in hits[:1]]) or tool_use.NOTHING

    return Tool("search", run, "Searches the collection and returns the passages that fit best.", "query")


def parse_call(text: str) -> Call:
    """Read a call in the format of the embedded model, ``name(argument)``, and nothing else.

    Args:
        text: what the model wrote.

    Raises:
        ValueError: it is not exactly one call with one argument of a sensible length.
    """
    found = re.fullmatch(r"([a-z_]{1,30})\((.*)\)", text.strip(), flags=re.S)
    depth = [0, *itertools.accumulate((sign == "(") - (sign == ")") for sign in found[2])] if found else []
    if found is None or min(depth) < 0 or depth[-1] != 0:
        raise ValueError(f"{_short(text)} is not a call: expected name(argument), for example calculate(12 * 7)")
    return _call(found[1], found[2])


def parse_chat_call(text: str, tools: Sequence[Tool]) -> Call:
    """Read a chat model's reply: a call as JSON, in ``<tool_call>`` marks or bare; any other text is the answer.

    Args:
        text: what the model wrote.
        tools: the tools, for the names of their arguments.

    Raises:
        ValueError: it tries to call, but not exactly one tool with its one argument, a string.
    """
    if len(text) > LONGEST_REPLY:
        raise ValueError(f"a reply of {len(text):,} characters: expected at most {LONGEST_REPLY:,}")
    marked = re.findall(r"<tool_call>(.*?)</tool_call>", text, flags=re.S)
    if "<tool_call>" not in text and not re.match(r"\s*\[?\s*\{", text):
        return Call("answer", text.strip())
    if "<tool_call>" in text and (len(marked) != 1 or text.count("<tool_call>") != 1):
        raise ValueError(f"{_short(text)}: expected one call between <tool_call> and </tool_call>")
    try:
        read = json.loads(marked[0] if marked else text)
    except (ValueError, RecursionError):
        raise ValueError(f'{_short(text)} is not JSON: expected {{"name": ..., "arguments": {{...}}}}') from None
    one = read[0] if isinstance(read, list) and len(read) == 1 else read
    arguments = one.get("arguments", one.get("parameters")) if isinstance(one, dict) else None
    if not isinstance(arguments, dict) or not isinstance(one.get("name"), str):
        raise ValueError(f"{_short(text)}: expected one call with a name and arguments")
    names = {tool.name: tool.argument for tool in tools}
    if one["name"] == "answer" or not re.fullmatch(r"[\w.-]{1,60}", one["name"]):
        raise ValueError(f"{_short(one['name'])} is no name of a tool; there is {', '.join(names)}")
    if one["name"] not in names:
        return Call(one["name"], _short(json.dumps(arguments)))
    wanted = names[one["name"]]
    if list(arguments) != [wanted] or not isinstance(arguments[wanted], str):
        raise ValueError(f"{_short(text)}: {one['name']} takes one argument, {wanted!r}, a string")
    return _call(one["name"], arguments[wanted])


def _call(name: str, argument: str) -> Call:
    argument = argument.strip()
    if not argument or len(argument) > LONGEST_ARGUMENT or _CONTROL.search(argument):
        raise ValueError(
            f"{name}({_short(argument)}): expected an argument of 1 to {LONGEST_ARGUMENT} characters on one line"
        )
    return Call(name, argument)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


class Step(NamedTuple):
    """One turn of the loop.

    Attributes:
        prompt: what the model read.
        written: what it wrote.
        call: what was understood of it; None where nothing was.
        result: what the tool gave back, as the model reads it; empty where none ran.
    """

    prompt: str
    written: str
    call: Call | None
    result: str


ENDS = ("answered", "malformed call", "unknown tool", "repeated call", "too many steps", "prompt refused")


@dataclass(frozen=True)
class ToolRun:
    """What happened in :func:`run_tools`.

    Attributes:
        question: the question.
        steps: all turns.
        answer: the model's answer; None where it came to none.
        ended: why the loop ended, one of :data:`ENDS`.
        message: the same in a sentence.
    """

    question: str
    steps: tuple[Step, ...]
    answer: str | None
    ended: str
    message: str

    HEADER: ClassVar = ("step", "the model wrote", "the tool gave back")

    def rows(self) -> list[tuple[str, str, str]]:
        """Return rows for :func:`course_utils.reporting.table` under :attr:`HEADER`."""
        return [(str(number), step.written, step.result) for number, step in enumerate(self.steps, 1)]


@runtime_checkable
class Form(Protocol):
    """How a model reads the state of a loop, and how its calls are read."""

    def prompt(self, question: str, steps: Sequence[Step], tools: Sequence[Tool]) -> str:
        """Return what the model reads next."""

    def parse(self, text: str, tools: Sequence[Tool]) -> Call:
        """Return the call in what it wrote, or raise a ``ValueError``."""

    def clean(self, text: str) -> str:
        """Return text from outside without what the model would take for marks of the form."""


class LineForm:
    """The format in which the embedded instruct model was trained: a line for each call with its result.

    See :mod:`course_utils.data.tasks.tool_use`.
    """

    def prompt(self, question: str, steps: Sequence[Step], tools: Sequence[Tool]) -> str:
        """Return what the model reads next."""
        return tool_use.TOOLS.prefix + tool_use.transcript(question, [(str(step.call), step.result) for step in steps])

    def parse(self, text: str, tools: Sequence[Tool]) -> Call:
        """Return the call in what it wrote, see :func:`parse_call`."""
        return parse_call(text)

    def clean(self, text: str) -> str:
        """Return the text on one line, so that none of its lines passes for a call with its result."""
        return " ".join(_CONTROL.sub(" ", text).split())


@dataclass(frozen=True)
class ChatForm:
    """The chat template of a hub model, with ``tools=`` where the template knows them, else described in words.

    Attributes:
        tokenizer: a tokenizer with a chat template.
        system: the system message; none by default.
    """

    tokenizer: Any
    system: str = ""

    def prompt(self, question: str, steps: Sequence[Step], tools: Sequence[Tool]) -> str:
        """Return what the model reads next.

        Raises:
            ValueError: the tokenizer has no chat template, or it cannot render the conversation.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError("this tokenizer has no chat template: take an instruction-tuned model, or LineForm")
        from jinja2 import TemplateError

        try:
            text = self._rendered(self._messages(question, steps, tools, native=True), [tool.schema for tool in tools])
            shown = [[tool.name] for tool in tools] + [[step.result, json.dumps(step.result)[1:-1]] for step in steps]
            told = all(any(form in text for form in forms) for forms in shown)
        except TemplateError:
            told = False
        if not told:  # the template knows no tools: say it in words
            try:
                text = self._rendered(self._messages(question, steps, tools, native=False), None)
            except TemplateError as error:
                raise ValueError(f"the chat template cannot render this conversation: {error}") from None
        if self.tokenizer.bos_token and self.tokenizer("").input_ids[:1] == [self.tokenizer.bos_token_id]:
            text = text.removeprefix(self.tokenizer.bos_token)  # the tokenizer writes it itself
        return text

    def _rendered(self, messages: list[dict[str, Any]], schemas: list[dict[str, Any]] | None) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages, tools=schemas, add_generation_prompt=True, tokenize=False
        )
        return text

    def _messages(
        self, question: str, steps: Sequence[Step], tools: Sequence[Tool], native: bool
    ) -> list[dict[str, Any]]:
        described = "" if native else (
            "You can call one of these tools a turn:\n" + "\n".join(json.dumps(tool.schema) for tool in tools)
            + '\nTo call one, write <tool_call>{"name": ..., "arguments": {...}}</tool_call> and nothing else.'
        )  # fmt: skip
        system = "\n".join(filter(None, [self.system, described]))
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        argument = {tool.name: tool.argument for tool in tools}
        for step in steps:
            assert step.call is not None
            made = {"name": step.call.name, "arguments": {argument[step.call.name]: step.call.argument}}
            if native:
                call = {"type": "function", "function": made}
                messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
                messages.append({"role": "tool", "name": step.call.name, "content": step.result})
            else:
                messages.append({"role": "assistant", "content": f"<tool_call>{json.dumps(made)}</tool_call>"})
                messages.append({"role": "user", "content": f"<tool_response>{step.result}</tool_response>"})
        return messages

    def parse(self, text: str, tools: Sequence[Tool]) -> Call:
        """Return the call in what it wrote, see :func:`parse_chat_call`."""
        return parse_chat_call(text, tools)

    def clean(self, text: str) -> str:
        """Return the text without the tokenizer's special tokens, so that it cannot open a turn of its own."""
        marks = [*self.tokenizer.all_special_tokens, *map(str, self.tokenizer.get_added_vocab())]
        pattern = "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True) if mark.strip())
        while pattern and (shorter := re.sub(pattern, "", text)) != text:  # again: the rest may join to another mark
            text = shorter
        return "\n".join(" ".join(_CONTROL.sub(" ", line).split()) for line in text.splitlines())


def writer(loaded: "Loaded", settings: "generation.Decoding | None" = None) -> Callable[[str], str]:
    """Return a function from a prompt to what a model writes, for :func:`run_tools`.

    Args:
        loaded: the model.
        settings: how it writes; by default greedily, at most 48 tokens.
    """
    chosen = settings or generation.Decoding(max_new_tokens=48)

    def write(prompt: str) -> str:
        completion: Any = generation.complete(loaded, prompt, chosen)
        return str(completion.text).strip()

    return write


def run_tools(
    question: str, write: Callable[[str], str], tools: Sequence[Tool], *, form: Form | None = None, steps: int = 6
) -> ToolRun:
    """Let a model call tools until it answers: reason and act in turns (Yao et al., 2023, ReAct).

    Whatever the model writes, the loop ends with a message and keeps its transcript. A tool that refuses an argument
    says so in its result, which the model reads; the same call a second time ends the loop.

    Args:
        question: the question.
        write: from a prompt to what the model writes, see :func:`writer`.
        tools: what it can call.
        form: the format of prompts and calls; by default the embedded model's.
        steps: turns at most.

    Raises:
        ValueError: the question is empty, ``steps`` is below 1, or two tools have one name.
    """
    _whole("steps", steps)
    form = form or LineForm()
    known = {tool.name: tool for tool in tools}
    if len(known) != len(tools) or "answer" in known:
        raise ValueError(f"tools {[tool.name for tool in tools]}: expected different names, none of them 'answer'")
    question = form.clean(question)
    if not question:
        raise ValueError("the question is empty")
    taken: list[Step] = []

    def end(ended: str, message: str, answer: str | None = None) -> ToolRun:
        return ToolRun(question, tuple(taken), answer, ended, message)

    for number in range(1, steps + 1):
        try:
            prompt = form.prompt(question, taken, tools)
            written = write(prompt)
        except ValueError as error:
            return end("prompt refused", f"step {number}: {error}")
        try:
            if not isinstance(written, str):
                raise ValueError(f"the model gave back {type(written).__name__}, no text")
            call = form.parse(written, tools)
            if call.name == "answer" and not call.argument:
                raise ValueError("the model wrote nothing")
        except ValueError as error:
            taken.append(Step(prompt, str(written)[:LONGEST_REPLY], None, ""))
            return end("malformed call", f"step {number}: {error}")
        earlier = [step.call for step in taken]
        taken.append(Step(prompt, written, call, ""))
        if call.name == "answer":
            return end("answered", f"step {number}: answered", call.argument)
        if call.name not in known:
            return end("unknown tool", f"step {number}: there is no tool {call.name!r}; there is {', '.join(known)}")
        if call in earlier:
            return end("repeated call", f"step {number}: {_short(str(call))} was called before, in step "
                       f"{earlier.index(call) + 1}; its result does not change")  # fmt: skip
        taken[-1] = Step(prompt, written, call, _result(known[call.name], call.argument, form))
    return end("too many steps", f"no answer after {steps} steps")


def _result(tool: Tool, argument: str, form: Form) -> str:
    """Run a tool; what it gives back has no marks of the form in it and is cut openly."""
    try:
        text = tool.run(argument)
    except ValueError as error:
        text = f"error: {error}"
    text = form.clean(text)
    more = len(text) - LONGEST_RESULT
    return text if more <= 0 else f"{text[:LONGEST_RESULT]} (and {more} more characters)"


def _whole(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: expected a whole number of 1 or more")
