"""Quality filters and de-duplication of published pipelines, run over the raw text that is on this machine.

A pipeline is a row of named steps. Each step sees the documents that the steps before it left, and says of every one
what is left of it and which value decided. The rules and thresholds are those of C4 (Raffel et al., 2020, section 2.2),
Gopher (Rae et al., 2021, appendix A.1) and FineWeb (Penedo et al., 2024, section 3). Words are what white space
separates; the papers' own tokenizers split a little differently. Not here: lists of web addresses and of bad words,
and filters that are themselves trained models.
"""

import functools
import hashlib
import itertools
import os
import re
import stat
import string
import sysconfig
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from course_utils.data.corpus import PYTHON, Document
from course_utils.reporting import progress_bar

# --- the raw text of the machine

SUFFIXES = {
    ".c", ".cfg", ".cpp", ".css", ".csv", ".cu", ".cuh", ".h", ".hpp", ".htm", ".html", ".ini", ".ipynb", ".js",
    ".json", ".md", ".po", ".pxd", ".pxi", ".py", ".pyi", ".pyx", ".rst", ".sh", ".svg", ".tex", ".toml", ".ts",
    ".tsv", ".txt", ".xml", ".yaml", ".yml",
}  # fmt: skip
"""Endings of the names of source and text files."""
_NAMES = re.compile(
    r"(licen[cs]e|copying|notice|authors|contributors|changelog|changes|news|readme|metadata)\b.*", re.I
)
SIZES: dict[str, int | None] = {"small": 8_000_000, "medium": 30_000_000, "full": None}
"""Bytes of each size; None for all files."""
LARGEST_FILE = 200_000
"""Larger files, less than one in 100 and mostly tables and generated code, are left out: a few would fill a sample."""
_SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages", "node_modules", ".git"}


def raw_documents(
    size: str | int = "small",
    without: Sequence[str] = (),
    folders: Sequence[tuple[str, str | os.PathLike[str]]] | None = None,
    seed: int = 0,
) -> list[Document]:
    """Read source and text files of the standard library and of all installed packages, one document a file.

    Which files a smaller size holds is decided by a hash of their names, so the small size is a part of the medium one.
    The text differs between machines, as their packages do. Left out are links, files that are no regular ones, binary
    files (a zero byte), files that are not UTF-8, and those above ``LARGEST_FILE``.

    Args:
        size: ``small`` (8 MB), ``medium`` (30 MB), ``full`` (hundreds of MB), or a number of bytes.
        without: names of packages to leave out, ``python`` for the standard library.
        folders: (name, folder) of what to read instead; the name comes before the path in a document's source, unless
            it is empty.
        seed: another sample.

    Returns:
        The documents, in the order of their sources, such as ``numpy/ma/core.py`` or ``python/abc.py``.

    Raises:
        ValueError: there is no such size, or no file was found.
    """
    wanted = SIZES.get(size, 0) if isinstance(size, str) else size
    if wanted is not None and (isinstance(wanted, bool) or wanted < 1):
        raise ValueError(f"size={size!r}: expected one of {', '.join(SIZES)}, or a number of bytes of 1 or more")
    if isinstance(without, str):
        raise ValueError(f"without={without!r}: expected several names, for example ({without!r},)")
    found = {name: (path, held) for name, path, held in _files(folders) if _package(name) not in without}

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    chosen: list[Document] = []
    left = wanted
    for name in sorted(found) if wanted is None else sorted(found, key=rank):
        path, held = found[name]
        text = _read(path)
        if text is not None:
            chosen.append(Document(text, name))
            if left is not None:
                left -= held
                if left <= 0:
                    break
    if not chosen:
        raise ValueError(f"no text file found in {[name for name, _ in folders] if folders else 'any package'}")
    return sorted(chosen, key=lambda document: document.source)


def _files(folders: Sequence[tuple[str, str | os.PathLike[str]]] | None) -> Iterator[tuple[str, Path, int]]:
    """Yield the name, path and bytes of each candidate; no link is followed."""
    if folders is None:
        packages = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        folders = [(PYTHON, sysconfig.get_path("stdlib")), *(("", folder) for folder in packages)]
    for prefix, folder in folders:
        for place, inner, files in os.walk(folder):
            inner[:] = [name for name in inner if name not in _SKIPPED_FOLDERS]
            for name in files:
                if Path(name).suffix.lower() not in SUFFIXES and not _NAMES.fullmatch(name):
                    continue
                path = Path(place, name)
                try:
                    status = path.lstat()
                except OSError:
                    continue
                if stat.S_ISREG(status.st_mode) and 0 < status.st_size <= LARGEST_FILE:
                    name = Path(prefix, path.relative_to(folder)).as_posix()
                    yield name.encode(errors="replace").decode(), path, status.st_size


def _package(name: str) -> str:
    """The package that a file belongs to: the first part of its name, without version and ending."""
    return re.sub(r"(-[^-]*\.(dist|egg)-info|\.pyi?|-stubs)$", "", name.split("/")[0])


def _read(path: Path) -> str | None:
    """The text of a file; None where it cannot be read, holds a zero byte or is not UTF-8."""
    try:
        data = path.read_bytes()
        return None if b"\x00" in data else data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError):
        return None


# --- what is measured of one document

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
"""Those of Rae et al. (2021), appendix A.1.1."""
TERMINAL = (".", "!", "?", '"', "”")
"""Ends of a sentence in C4 (Raffel et al., 2020, section 2.2): period, exclamation and question mark, end quotation."""
_EDGES = string.punctuation + "“”„‘’‚«»…–—¿¡"
_BULLETS = ("•", "‣", "▶", "◦", "■", "□", "▪", "▫", "–", "-", "*")
_ELLIPSES = ("...", "…")


def word_count(text: str) -> int:
    """Return the number of words."""
    return len(text.split())


def mean_word_length(text: str) -> float:
    """Return the mean number of characters of a word, 0 where there is none."""
    words = text.split()
    return sum(map(len, words)) / len(words) if words else 0.0


def hash_ratio(text: str) -> float:
    """Return the number of ``#`` for each word (Rae et al., 2021, A.1.1); 0 where there is no word."""
    return text.count("#") / max(word_count(text), 1)


def ellipsis_ratio(text: str) -> float:
    """Return the number of ``...`` and ``…`` for each word (Rae et al., 2021, A.1.1); 0 where there is no word."""
    return sum(map(text.count, _ELLIPSES)) / max(word_count(text), 1)


def bullet_lines(text: str) -> float:
    """Return the share of lines that begin with a bullet point (Rae et al., 2021, A.1.1); a ``-`` or ``*`` is one."""
    return _share(_lines(text), lambda line: line.lstrip().startswith(_BULLETS))


def ellipsis_lines(text: str) -> float:
    """Return the share of lines that end in an ellipsis (Rae et al., 2021, A.1.1)."""
    return _share(_lines(text), lambda line: line.rstrip().endswith(_ELLIPSES))


def alphabetic_words(text: str) -> float:
    """Return the share of words with at least one letter (Rae et al., 2021, A.1.1)."""
    return _share(text.split(), lambda word: any(map(str.isalpha, word)))


def stop_words(text: str) -> int:
    """Return how many different words of :data:`STOP_WORDS` occur (Rae et al., 2021, A.1.1)."""
    return len(set(STOP_WORDS) & {word.strip(_EDGES) for word in text.lower().split()})


def punctuated_lines(text: str) -> float:
    """Return the share of lines that end in :data:`TERMINAL` punctuation (Penedo et al., 2024, section 3.6)."""
    return _share(_lines(text), lambda line: line.rstrip().endswith(TERMINAL))


def short_lines(text: str) -> float:
    """Return the share of lines of less than 30 characters (Penedo et al., 2024, section 3.6)."""
    return _share(_lines(text), lambda line: len(line) < 30)


def duplicate_lines(text: str, characters: bool = False, paragraphs: bool = False) -> float:
    """Return the share of lines that stood in the document before (Rae et al., 2021, table A1).

    Args:
        text: the document; empty lines do not count.
        characters: count the lines' characters instead of the lines.
        paragraphs: look at paragraphs, between empty lines, instead of lines.
    """
    parts = _paragraphs(text) if paragraphs else _lines(text)
    sizes = [len(part) if characters else 1 for part in parts]
    first = {part: number for number, part in reversed(list(enumerate(parts)))}
    repeated = sum(size for number, (part, size) in enumerate(zip(parts, sizes, strict=True)) if first[part] < number)
    return repeated / max(sum(sizes), 1)


def top_ngram(text: str, n: int) -> float:
    """Return the share of the words' characters inside the most frequent n-gram (Rae et al., 2021, table A1).

    A character counts once, also where occurrences overlap. An n-gram that occurs once is no repetition: 0. Of equally
    frequent ones that with the most characters counts.

    Args:
        text: the document.
        n: words of an n-gram.
    """
    lengths, keys, counts = _ngrams(text, n)
    if not len(keys) or counts.max() < 2:
        return 0.0
    best = np.unique(keys[counts[keys] == counts.max()])
    return max(_covered(lengths, keys == key, n) for key in best) / lengths.sum()


def duplicate_ngrams(text: str, n: int) -> float:
    """Return the share of the words' characters inside n-grams that occur more than once (Rae et al., 2021, table A1).

    A character counts once, also where such n-grams overlap.

    Args:
        text: the document.
        n: words of an n-gram.
    """
    lengths, keys, counts = _ngrams(text, n)
    return _covered(lengths, counts[keys] > 1, n) / lengths.sum() if len(keys) else 0.0


def _ngrams(text: str, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths of the words, a number for each n-gram in its place (equal where they are equal), and its count."""
    words = text.split()
    number: dict[str, int] = {}
    ids = np.array([number.setdefault(word, len(number)) for word in words], dtype=np.int64)
    keys = ids
    for shift in range(1, n):
        keys = keys[:-1] * len(number) + ids[shift:]
        keys = np.unique(keys, return_inverse=True)[1].reshape(-1)
    return np.array([len(word) for word in words], dtype=np.int64), keys, np.bincount(keys, minlength=1)


def _covered(lengths: np.ndarray, begins: np.ndarray, n: int) -> int:
    """Characters of the words that lie in an n-gram that begins at one of these places."""
    edges = np.zeros(len(lengths) + 1, dtype=np.int64)
    edges[: len(begins)] += begins
    edges[n : n + len(begins)] -= begins
    return int(lengths[np.cumsum(edges[:-1]) > 0].sum())


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _paragraphs(text: str) -> list[str]:
    """The parts between empty lines, without the indentation that their lines have in common."""
    return [textwrap.dedent(part).strip() for part in re.split(r"\n\s*\n", f"\n{text}") if part.strip()]


def _share(things: Sequence[Any], holds: Callable[[Any], bool]) -> float:
    return sum(map(holds, things)) / len(things) if things else 0.0


FUNCTION_WORDS: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the of and to a in is that for it as with be on by this are or from an not which can if at you "
        "will but have has was all when they their its than then these been were would there what so no we "
        "he she his her",
        "de": "der die das und in den von zu mit sich des auf für ist im dem nicht ein eine als auch es an werden "
        "aus er hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur "
        "oder aber vor zur",
        "fr": "le la les de des et en un une du que est pour qui dans a par plus pas au sur ne se ce il sont avec "
        "son aux mais ou comme on cette elle nous vous être été leur ses peut fait sans même ces deux où",
        "es": "de la que el en y a los del se las por un para con no una su al lo como más pero sus le ya o este "
        "sí porque esta entre cuando muy sin sobre también me hasta hay donde han quien desde todo nos ser "
        "es son fue está",
        "it": "di e il la che in un a per è una sono con non del si da i le dei nel alla come più della lo ha gli "
        "al anche ma o se questo delle dal essere nella suo su tra ed ai quando cui ci loro molto questa",
        "pt": "de a o que e do da em um para com não uma os no se na por mais as dos como mas ao ele das à seu "
        "sua ou quando muito nos já eu também só pelo pela até isso ela entre depois sem mesmo aos são está "
        "foi ser",
        "nl": "de van het een en in is dat op te zijn met voor niet aan er om ook als dan maar bij of uit nog "
        "naar heeft ze wordt door over hij worden tot je geen deze die meer dit hebben kan al zo wat werd",
        "sv": "och att det i en på är som för av med till den inte om ett han men var de jag sig från vi så kan "
        "när har hade skulle eller vid under efter också bara ut mycket hon finns alla detta mot",
        "pl": "w i na z do się nie że to jest o jak po co za od ale dla tego przez są ma tym czy już ich jego "
        "tylko być przy oraz lub może może także jej było który która które",
        "fi": "ja on ei että se hän oli ovat myös kun mutta tai joka sen niin kuin hänen ole jos mitä voi olla "
        "mukaan sekä ne siitä jotka tämä vain nyt sitä minä",
    }.items()
}
"""Frequent function words of ten languages; a word may stand in several lists."""
FEWEST_FUNCTION_WORDS = 0.05


def language_scores(text: str) -> dict[str, float]:
    """Return the share of each language in a text, by its function words.

    A small stand-in for the classifiers of the papers: FineWeb has fastText, C4 langdetect, both trained on many
    languages. Here each word that stands in a list of :data:`FUNCTION_WORDS` gives one vote to its language, divided
    where several have it, and the votes are normalised. Where less than one word in 20 has a vote, no language is
    recognised and all scores are 0. It knows ten languages of the Latin script; a text in another one may get a vote by
    chance, and program code looks like sparse English, since its keywords are English words.

    Args:
        text: any text.

    Returns:
        Language (ISO 639-1) to a number from 0 to 1.
    """
    words = [word for word in (word.strip(_EDGES) for word in text.lower().split()) if word]
    votes = dict.fromkeys(FUNCTION_WORDS, 0.0)
    voters = 0
    for word, count in Counter(words).items():
        held = _languages().get(word, ())
        voters += count if held else 0
        for language in held:
            votes[language] += count / len(held)
    if not words or voters < FEWEST_FUNCTION_WORDS * len(words):
        return dict.fromkeys(votes, 0.0)
    return {language: vote / voters for language, vote in votes.items()}


def language_score(text: str, language: str = "en") -> float:
    """Return the share of one language in a text; see :func:`language_scores`."""
    return language_scores(text)[language]


@functools.cache
def _languages() -> dict[str, list[str]]:
    """Each function word's languages."""
    held: dict[str, list[str]] = {}
    for language, words in FUNCTION_WORDS.items():
        for word in words:
            held.setdefault(word, []).append(language)
    return held


# --- steps


class Verdict(NamedTuple):
    """What a step says of a document.

    Attributes:
        text: what is left of it; None where it goes.
        rule: the rule that decided; empty where the step changed nothing.
        value: the value that decided.
        detail: the source of the document that this one repeats, or the like.
    """

    text: str | None
    rule: str = ""
    value: float = 0.0
    detail: str = ""


class Step(Protocol):
    """A named step of a pipeline."""

    @property
    def name(self) -> str:
        """Name of the step."""
        ...

    @property
    def source(self) -> str:
        """The paper, with its section."""
        ...

    def apply(self, documents: Sequence[Document]) -> list[Verdict]:
        """Return a verdict for each document."""
        ...


@dataclass(frozen=True)
class Rule:
    """A measure and the range in which a document stays.

    Attributes:
        name: what is measured.
        measure: function of the text.
        least: smallest value that stays.
        most: largest value that stays.
        open: whether the two bounds themselves are outside.
    """

    name: str
    measure: Callable[[str], float]
    least: float = -np.inf
    most: float = np.inf
    open: bool = False

    def holds(self, value: float) -> bool:
        """Whether a document with this value stays."""
        return self.least < value < self.most if self.open else self.least <= value <= self.most


@dataclass(frozen=True)
class Rules:
    """A step that removes a document at the first of its rules that does not hold.

    Attributes:
        name: name of the step.
        source: the paper, with its section.
        rules: the rules, in order.
    """

    name: str
    source: str
    rules: tuple[Rule, ...]

    def apply(self, documents: Sequence[Document]) -> list[Verdict]:
        """Return a verdict for each document."""
        return [self.judge(document.text) for document in documents]

    def judge(self, text: str) -> Verdict:
        """Return the verdict on one text."""
        for rule in self.rules:
            value = float(rule.measure(text))
            if not rule.holds(value):
                return Verdict(None, rule.name, value)
        return Verdict(text)


GOPHER_QUALITY = tuple(
    Rules(rule.name, "Rae et al. (2021), A.1.1", (rule,))
    for rule in (
        Rule("words", word_count, 50, 100_000),
        Rule("mean word length", mean_word_length, 3, 10),
        Rule("# for each word", hash_ratio, most=0.1),
        Rule("ellipses for each word", ellipsis_ratio, most=0.1),
        Rule("bullet lines", bullet_lines, most=0.9),
        Rule("ellipsis lines", ellipsis_lines, most=0.3),
        Rule("alphabetic words", alphabetic_words, 0.8),
        Rule("stop words", stop_words, 2),
    )
)
"""The quality rules of Gopher: words 50 to 100,000, mean length 3 to 10, and so on; a step each."""

GOPHER_REPETITION = Rules(
    "repetition",
    "Rae et al. (2021), table A1",
    (
        Rule("duplicate lines", duplicate_lines, most=0.3),
        Rule("duplicate paragraphs", functools.partial(duplicate_lines, paragraphs=True), most=0.3),
        Rule("duplicate line characters", functools.partial(duplicate_lines, characters=True), most=0.2),
        Rule(
            "duplicate paragraph characters",
            functools.partial(duplicate_lines, characters=True, paragraphs=True),
            most=0.2,
        ),
        *(
            Rule(f"top {n}-gram", functools.partial(top_ngram, n=n), most=most)
            for n, most in ((2, 0.2), (3, 0.18), (4, 0.16))
        ),
        *(
            Rule(f"duplicate {n}-grams", functools.partial(duplicate_ngrams, n=n), most=round(0.2 - n / 100, 2))
            for n in range(5, 11)
        ),
    ),
)
"""The repetition rules of Gopher; the limit for duplicate n-grams falls from 0.15 (n = 5) to 0.10 (n = 10)."""

ENGLISH = Rules("English", "Penedo et al. (2024), 3.3", (Rule("English", language_score, 0.65),))
"""FineWeb's limit, 0.65, for our own :func:`language_score` in place of fastText."""

FINEWEB_QUALITY = tuple(
    Rules(rule.name, "Penedo et al. (2024), 3.6", (rule,))
    for rule in (
        Rule("lines that end in punctuation", punctuated_lines, least=0.12, open=True),
        Rule("characters in duplicate lines", functools.partial(duplicate_lines, characters=True), most=0.1, open=True),
        Rule("short lines", short_lines, most=0.67, open=True),
    )
)
"""FineWeb's own three rules: lines that end in punctuation above 0.12, and so on; a step each.

For the second, section 3.6 says 0.1, as here; the paper's table 2 says 0.01.
"""


def curly_brackets(text: str) -> int:
    """Return the number of ``{`` (Raffel et al., 2020, section 2.2): programming languages have it, prose has not."""
    return text.count("{")


def lorem_ipsum(text: str) -> int:
    """Return how often the placeholder text "lorem ipsum" begins (Raffel et al., 2020, section 2.2)."""
    return text.lower().count("lorem ipsum")


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"”')\]])\s+|\n+")


def sentences(text: str) -> list[str]:
    """Cut a text into sentences, behind ``.``, ``!`` or ``?`` and white space, and at the ends of lines."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def sentence_count(text: str) -> int:
    """Return the number of :func:`sentences`."""
    return len(sentences(text))


C4_BRACKETS = Rules("{", "Raffel et al. (2020), 2.2", (Rule("{", curly_brackets, most=0),))
"""A page that holds a curly bracket is taken for code and removed."""
C4_PLACEHOLDERS = Rules("lorem ipsum", "Raffel et al. (2020), 2.2", (Rule("lorem ipsum", lorem_ipsum, most=0),))
"""A page with placeholder text is removed."""
C4_SENTENCES = Rules("sentences", "Raffel et al. (2020), 2.2", (Rule("sentences", sentence_count, least=3),))
"""A page of fewer than three sentences is removed."""


@dataclass(frozen=True)
class C4Lines:
    """Keep the lines that look like sentences, and drop boilerplate (Raffel et al., 2020, section 2.2).

    A line stays if it ends in a terminal punctuation mark (no ellipsis), has at least five words, does not mention
    Javascript, and holds none of six phrases of cookie and privacy notices. Citation marks such as ``[1]`` are cut out.

    Attributes:
        punctuation: whether lines need the mark at their end. FineWeb does without (Penedo et al., 2024, section 3.5).
        fewest_words: words of a line at least.
        paragraphs: judge paragraphs, between empty lines, and keep their lines. A line of a web page is a paragraph;
            in a text file sentences go over several lines, and the line rule would keep their last pieces.
        name: name of the step.
        source: the paper, with its section.
    """

    punctuation: bool = True
    fewest_words: int = 5
    paragraphs: bool = False
    name: str = "lines"
    source: str = "Raffel et al. (2020), 2.2"
    POLICIES: ClassVar[tuple[str, ...]] = (
        "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
    )  # fmt: skip
    CITATION: ClassVar[re.Pattern[str]] = re.compile(r"\[\d+\]|\[edit\]|\[citation needed\]")

    def fault(self, line: str) -> str:
        """Return why a line goes; empty where it stays."""
        line = self.CITATION.sub("", line).strip()
        lower = line.lower()
        if self.punctuation and (not line.endswith(TERMINAL) or line.endswith("...")):
            return "no punctuation at the end"
        if len(line.split()) < self.fewest_words:
            return "few words"
        if "javascript" in lower:
            return "javascript"
        return "policy" if any(phrase in lower for phrase in self.POLICIES) else ""

    def apply(self, documents: Sequence[Document]) -> list[Verdict]:
        """Return a verdict for each document: its good lines, the commonest fault, the share of lines that go."""
        return [self.judge(document.text) for document in documents]

    def judge(self, text: str) -> Verdict:
        """Return the verdict on one text."""
        parts = _paragraphs(text) if self.paragraphs else _lines(text)
        faults = [self.fault(part) for part in parts]
        kept = [self.CITATION.sub("", part).rstrip() for part, why in zip(parts, faults, strict=True) if not why]
        bad = Counter(filter(None, faults))
        rule = max(bad, key=lambda why: (bad[why], why)) if bad else ("" if parts else "nothing there")
        together = ("\n\n" if self.paragraphs else "\n").join(kept)
        return Verdict(together or None, rule, bad.total() / max(len(parts), 1))


@dataclass(frozen=True)
class RepeatedLines:
    """Remove lines that occur too often in the whole collection: licence headers, menus, navigation.

    Grattafiori et al. (2024), "The Llama 3 herd of models", section 3.1.1: lines that appear more than six times among
    30 million documents. Lines are compared by :func:`exact_key`.

    Attributes:
        most: occurrences at most.
        name: name of the step.
        source: the paper, with its section.
    """

    most: int = 6
    name: str = "repeated lines"
    source: str = "Grattafiori et al. (2024), 3.1.1"

    def apply(self, documents: Sequence[Document]) -> list[Verdict]:
        """Return a verdict for each document: its rarer lines, the share of lines that go."""
        keys = [[exact_key(line) for line in _lines(document.text)] for document in documents]
        counts = Counter(itertools.chain.from_iterable(keys))
        verdicts = []
        for document, row in zip(documents, keys, strict=True):
            gone = sum(counts[key] > self.most for key in row)
            if not gone and row:
                verdicts.append(Verdict(document.text))
                continue
            left = iter(row)
            lines = [line for line in document.text.split("\n") if not line.strip() or counts[next(left)] <= self.most]
            text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
            verdicts.append(
                Verdict(text or None, "repeated lines" if gone else "nothing there", gone / max(len(row), 1))
            )
        return verdicts


@dataclass(frozen=True)
class RepeatedSpans:
    """Remove spans of three sentences that occurred before in the collection (Raffel et al., 2020, section 2.2).

    Attributes:
        length: sentences of a span.
        name: name of the step.
        source: the paper, with its section.
    """

    length: int = 3
    name: str = "repeated spans"
    source: str = "Raffel et al. (2020), 2.2"

    def apply(self, documents: Sequence[Document]) -> list[Verdict]:
        """Return a verdict for each document: the sentences in no such span, the share of sentences that go."""
        seen: set[bytes] = set()
        verdicts = []
        for document in documents:
            parts = sentences(document.text)
            gone = np.zeros(len(parts), dtype=bool)
            for start in range(len(parts) - self.length + 1):
                key = exact_key("\n".join(parts[start : start + self.length]))
                if key in seen:
                    gone[start : start + self.length] = True
                seen.add(key)
            if not gone.any():
                verdicts.append(Verdict(document.text))
                continue
            kept = [part for part, out in zip(parts, gone, strict=True) if not out]
            verdicts.append(Verdict("\n".join(kept) or None, "repeated spans", float(gone.mean())))
        return verdicts


# --- duplicates


def normalized(text: str) -> str:
    """Return a text without what is only its form: lower case, 0 for each digit, no accents, no punctuation.

    Wenzek et al. (2020), "CCNet", section 3.2. White space counts as one blank here.
    """
    lower = text.lower() if text.isascii() else unicodedata.normalize("NFD", text.lower())
    return " ".join(_marks().sub("", re.sub(r"\d", "0", lower)).split())


def exact_key(text: str) -> bytes:
    """Return 16 bytes that are equal for texts with an equal :func:`normalized` form: the beginning of its SHA-256."""
    return hashlib.sha256(normalized(text).encode(errors="surrogatepass")).digest()[:16]


@functools.cache
def _marks() -> Any:
    import regex

    return regex.compile(r"[\p{P}\p{Mn}]+")


@dataclass(frozen=True)
class ExactDuplicates:
    """Remove documents whose key occurred before; the first one stays.

    Attributes:
        key: function of a text; equal keys mean equal texts.
        name: name of the step.
        source: the paper, with its section.
    """

    key: Callable[[str], Hashable] = exact_key
    name: str = "exact duplicates"
    source: str = "Wenzek et al. (2020), 3.2"

    def apply(self, documents: Sequence[Document]) -> list[Verdict]:
        """Return a verdict for each document, with the source of the one that stays."""
        first: dict[Hashable, str] = {}
        verdicts = []
        for document in documents:
            key = self.key(document.text)
            new = key not in first
            kept = first.setdefault(key, document.source)
            verdicts.append(Verdict(document.text) if new else Verdict(None, "exact duplicate", 1.0, kept))
        return verdicts


def shingles(text: str, n: int) -> set[str]:
    """Return the different n-grams of words of a text; those of a shorter text are the text itself.

    Args:
        text: any text; case and white space do not count.
        n: words of an n-gram.
    """
    words = text.lower().split()
    return {" ".join(words[start : start + n]) for start in range(max(len(words) - n + 1, 1))} if words else set()


def jaccard(first: Iterable[Hashable], second: Iterable[Hashable]) -> float:
    """Return the Jaccard similarity of two sets: the size of what they share over that of their union; 1 if empty."""
    first, second = set(first), set(second)
    union = len(first | second)
    return len(first & second) / union if union else 1.0


def match_probability(similarity: float, buckets: int, rows: int) -> float:
    """Return how likely two documents share a bucket: ``1 - (1 - s ** rows) ** buckets``, an S-shaped curve.

    Leskovec, Rajaraman and Ullman (2014), "Mining of massive datasets", section 3.4.2; Penedo et al. (2024), section
    3.4, have 14 buckets of 8 rows. One row, a minimum under one hash function, agrees with probability s (Broder,
    1997).

    Args:
        similarity: Jaccard similarity s of the two documents, 0 to 1.
        buckets: number of buckets; one that agrees is enough.
        rows: minima that have to agree in a bucket.

    Raises:
        ValueError: a number is out of range.
    """
    if not 0 <= similarity <= 1 or buckets < 1 or rows < 1:
        raise ValueError(
            f"similarity={similarity}, buckets={buckets}, rows={rows}: expected 0 to 1, and whole numbers of 1 or more"
        )
    return 1 - (1 - similarity**rows) ** buckets


@dataclass(frozen=True)
class NearDuplicates:
    """Remove documents that share a bucket of MinHashes with another one; of each group the first one stays.

    Penedo et al. (2024), section 3.4: 5-grams of words, 112 hash functions in 14 buckets of 8, meant for documents that
    are at least 75 % alike; documents with an equal bucket are duplicates, and so are the duplicates of duplicates.
    (There a random one of a group stays.) Rae et al. (2021), A.1.1, have 13-grams and a similarity of 0.8. MinHash
    and LSH are those of ``datasketch``. Documents without a word are left alone.

    Attributes:
        ngram: words of an n-gram.
        buckets: number of buckets.
        rows: hash functions of a bucket.
        seed: seed of the hash functions.
        name: name of the step.
        source: the paper, with its section.
    """

    ngram: int = 5
    buckets: int = 14
    rows: int = 8
    seed: int = 1
    name: str = "near duplicates"
    source: str = "Penedo et al. (2024), 3.4"

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.ngram < 1 or self.buckets < 2 or self.rows < 1:
            raise ValueError(
                f"ngram={self.ngram}, buckets={self.buckets}, rows={self.rows}: expected at least 1, 2 and 1"
            )

    def apply(self, documents: Sequence[Document]) -> list[Verdict]:
        """Return a verdict for each document, with its estimated similarity to another one of its group."""
        from datasketch import MinHash, MinHashLSH

        hashes = self.buckets * self.rows
        index = MinHashLSH(num_perm=hashes, params=(self.buckets, self.rows))
        sketches: list[Any] = []
        group = list(range(len(documents)))
        found: dict[int, int] = {}

        def head(number: int) -> int:
            while group[number] != number:
                number = group[number]
            return number

        for number, document in enumerate(documents):
            grams = sorted(shingles(document.text, self.ngram))
            sketch = MinHash(num_perm=hashes, seed=self.seed)
            sketch.update_batch([gram.encode(errors="surrogatepass") for gram in grams])
            sketches.append(sketch)
            if not grams:
                continue
            alike = sorted(index.query(sketch))
            for other in alike:
                low, high = sorted((head(other), head(number)))
                if low != high:
                    group[high] = low
                    if high != number:
                        found.setdefault(high, number if high == other else other)
            if alike:
                found[number] = alike[0]
            index.insert(number, sketch)
        verdicts = []
        for number, document in enumerate(documents):
            if head(number) == number:
                verdicts.append(Verdict(document.text))
                continue
            other = found[number]
            value = float(sketches[number].jaccard(sketches[other]))
            verdicts.append(Verdict(None, "near duplicate", value, documents[other].source))
        return verdicts


@dataclass(frozen=True)
class Contamination:
    """Remove documents that share an n-gram of words with held-out texts, so that these stay unseen.

    Brown et al. (2020), appendix C, look for common 13-grams; Rae et al. (2021), A.1.1, for a 13-gram Jaccard
    similarity. Here one common 13-gram is enough.

    Attributes:
        texts: the held-out texts.
        ngram: words of an n-gram.
        name: name of the step.
        source: the paper, with its section.
    """

    texts: tuple[str, ...]
    ngram: int = 13
    name: str = "contamination"
    source: str = "Brown et al. (2020), C"
    _held: frozenset[str] = field(init=False, repr=False, compare=False, default=frozenset())

    def __post_init__(self) -> None:
        """Collect the n-grams of the held-out texts; shorter texts have none."""
        held = (shingles(text, self.ngram) for text in self.texts if word_count(text) >= self.ngram)
        object.__setattr__(self, "_held", frozenset().union(*held))

    def apply(self, documents: Sequence[Document]) -> list[Verdict]:
        """Return a verdict for each document, with the number of common n-grams and one of them."""
        verdicts = []
        for document in documents:
            common = shingles(document.text, self.ngram) & self._held
            verdicts.append(
                Verdict(None, "common n-grams", float(len(common)), min(common)) if common else Verdict(document.text)
            )
        return verdicts


# --- the pipeline and its report


class Counts(NamedTuple):
    """How much text there is: documents, bytes in UTF-8, tokens."""

    documents: int
    bytes: int
    tokens: int

    def share(self, of: "Counts") -> tuple[float, float, float]:
        """Return these numbers as shares of others, 0 where those are 0."""
        documents, size, tokens = (part / whole if whole else 0.0 for part, whole in zip(self, of, strict=True))
        return documents, size, tokens


class Example(NamedTuple):
    """Something that a step removed.

    Attributes:
        source: the document.
        rule: the rule that decided.
        value: the value that decided.
        detail: the document that it repeats, or the like.
        text: the beginning of what was removed, a whole document or lines of it.
    """

    source: str
    rule: str
    value: float
    detail: str
    text: str


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        name: name of the step.
        source: the paper, with its section.
        before: how much came in.
        after: how much is left.
        rules: how often each rule decided against a document, or against lines of it.
        examples: some of what was removed.
    """

    name: str
    source: str
    before: Counts
    after: Counts
    rules: dict[str, int]
    examples: tuple[Example, ...]

    @property
    def removed(self) -> Counts:
        """How much went."""
        return Counts(*(one - other for one, other in zip(self.before, self.after, strict=True)))


@dataclass(frozen=True)
class Report:
    """What a pipeline did, step by step.

    Attributes:
        steps: reports of the steps, in order.
        documents: the documents that are left, with what is left of them.
        before: how much came in.
        after: how much is left.
    """

    HEADER: ClassVar[tuple[str, ...]] = (
        "step", "source", "documents removed", "bytes removed", "tokens removed", "tokens left",
    )  # fmt: skip

    steps: tuple[StepReport, ...]
    documents: tuple[Document, ...]
    before: Counts
    after: Counts

    @property
    def kept(self) -> float:
        """Share of the tokens that are left."""
        return self.after.share(self.before)[2]

    def rows(self, number: Callable[[float, int], str] = "{:.{}f}".format) -> list[tuple[str, ...]]:
        """Return the report as rows of a table, in percent of what came into the pipeline.

        Args:
            number: how a number is written, from its value and decimals; :func:`course_utils.reporting.approx` for
                text that differs between machines.
        """
        return [
            (step.name, step.source, *(f"{number(100 * share, 1)} %" for share in shares))
            for step in self.steps
            for shares in [(*step.removed.share(self.before), step.after.share(self.before)[2])]
        ]

    def step(self, name: str) -> StepReport:
        """Return the report of a step.

        Raises:
            ValueError: there is no such step.
        """
        for step in self.steps:
            if step.name == name:
                return step
        raise ValueError(f"there is no step {name!r}; there are: {', '.join(step.name for step in self.steps)}")


def words_as_tokens(texts: Sequence[str]) -> list[int]:
    """Return the number of words of each text, where no tokenizer is at hand."""
    return [word_count(text) for text in texts]


def token_counter(tokenizer: Any) -> Callable[[Sequence[str]], list[int]]:
    """Return a function from texts to their numbers of tokens; it remembers the texts that it has seen.

    Args:
        tokenizer: a fast tokenizer of ``transformers`` with an ``eos_token``.
    """
    from course_utils.data.packing import _plain

    plain = _plain(tokenizer)
    known: dict[str, int] = {}

    def count(texts: Sequence[str]) -> list[int]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, map(len, plain.encode_batch_fast(new, add_special_tokens=False)), strict=True))
        return [known[text] for text in texts]

    return count


@dataclass(frozen=True)
class Pipeline:
    """Steps in order.

    Attributes:
        steps: the steps; no two have the same name.
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        """Check the names."""
        names = Counter(step.name for step in self.steps)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(f"the step {twice[0]!r} is there twice: give each step a name of its own")

    def run(
        self,
        documents: Iterable[Document],
        tokens: Callable[[Sequence[str]], list[int]] = words_as_tokens,
        examples: int = 3,
        progress: bool = False,
    ) -> Report:
        """Send documents through all steps.

        Args:
            documents: the documents; they are not changed.
            tokens: function from texts to their numbers of tokens, such as :func:`token_counter`.
            examples: examples to keep of each step, spread over what it removed.
            progress: show a progress bar.

        Raises:
            ValueError: ``examples`` is negative.
        """
        if examples < 0:
            raise ValueError(f"examples={examples}: expected 0 or more")
        left = list(documents)
        counts = tokens([document.text for document in left])
        before = current = _count(left, counts)
        reports = []
        with progress_bar(len(self.steps), "filtering", progress, unit="step") as bar:
            for step in self.steps:
                bar.set_postfix_str(step.name)
                verdicts = step.apply(left)
                changed = [
                    number
                    for number, (document, verdict) in enumerate(zip(left, verdicts, strict=True))
                    if verdict.text != document.text
                ]
                kept = {number: text for number in changed if (text := verdicts[number].text)}
                counts = list(counts)
                for number, count in zip(kept, tokens(list(kept.values())) if kept else (), strict=True):
                    counts[number] = count
                decided = [number for number in changed if verdicts[number].rule]
                shown = sorted({decided[place * len(decided) // examples] for place in range(examples) if decided})
                removed = tuple(_example(left[number], verdicts[number]) for number in shown)
                gone = set(changed) - kept.keys()
                left = [
                    Document(kept.get(number, document.text), document.source)
                    for number, document in enumerate(left)
                    if number not in gone
                ]
                counts = [count for number, count in enumerate(counts) if number not in gone]
                after = _count(left, counts)
                rules = Counter(verdicts[number].rule for number in decided)
                reports.append(StepReport(step.name, step.source, current, after, dict(rules.most_common()), removed))
                current = after
                bar.update()
        return Report(tuple(reports), tuple(left), before, current)


LONGEST_EXAMPLE = 300


def _example(document: Document, verdict: Verdict) -> Example:
    """What was removed of a document: all of it, or the lines that are no longer there."""
    text = document.text
    if verdict.text is not None:
        kept = set(_lines(verdict.text))
        text = "\n".join(line for line in _lines(text) if line not in kept)
    return Example(document.source, verdict.rule, verdict.value, verdict.detail, text.strip()[:LONGEST_EXAMPLE])


def _count(documents: Sequence[Document], tokens: Sequence[int]) -> Counts:
    size = sum(len(document.text.encode(errors="surrogatepass")) for document in documents)
    return Counts(len(documents), size, sum(tokens))


PIPELINES: dict[str, Pipeline] = {
    "c4": Pipeline((C4_PLACEHOLDERS, C4_BRACKETS, C4Lines(), C4_SENTENCES, RepeatedSpans(), ENGLISH)),
    "gopher": Pipeline(
        (
            *GOPHER_QUALITY,
            GOPHER_REPETITION,
            ExactDuplicates(),
            NearDuplicates(13, 9, 13, source="Rae et al. (2021), A.1.1"),
        )
    ),
    "fineweb": Pipeline(
        (
            ENGLISH,
            *GOPHER_QUALITY,
            GOPHER_REPETITION,
            NearDuplicates(),
            C4_PLACEHOLDERS,
            C4_BRACKETS,
            C4Lines(punctuation=False),
            C4_SENTENCES,
            *FINEWEB_QUALITY,
        )
    ),
    "prose": Pipeline(
        (
            ExactDuplicates(),
            ENGLISH,
            C4Lines(paragraphs=True, name="paragraphs"),
            RepeatedLines(),
            *GOPHER_QUALITY,
            GOPHER_REPETITION,
            NearDuplicates(),
        )
    ),
}
"""The rules of three published pipelines, in the order of their papers, as far as they apply to files on a disk.

The fourth, ``prose``, is ours for source files: it has the same rules, but looks for good paragraphs before it judges a
file, since in source code the prose of docstrings and comments stands between code.

C4 wants 99 % of langdetect's confidence; ours is no such probability, so the language step is FineWeb's everywhere. For
Gopher's similarity of 0.8, 9 buckets of 13 rows are what ``datasketch`` chooses from 128 hash functions.
"""
