"""Byte-pair encoding from scratch: how text becomes the whole numbers that a language model reads.

Sennrich, Haddow and Birch (2016, arXiv 1508.07909) brought byte-pair encoding from data compression to language models:
start from single symbols, and again and again replace the most frequent pair of neighbours by one new symbol. GPT-2
(Radford et al. 2019) starts from the 256 *bytes* of UTF-8, so that no text is ever unknown; that is the form built
here, with GPT-2's alphabet and its pattern for cutting text into pieces that merges never cross.
"""

import heapq
import json
import operator
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import SupportsIndex, TypeVar

import regex

Symbol = TypeVar("Symbol", bound=Hashable)
Pair = tuple[int, int]

PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
"""GPT-2's pattern: English endings, then letters, digits or other signs with the space before, then white space."""

FORMAT = 1
_CACHED_PIECES = 1 << 16


@cache
def byte_alphabet() -> dict[int, str]:
    """Return GPT-2's alphabet: one visible character for each of the 256 bytes.

    Printable characters of Latin-1 stand for themselves; the other 68 bytes get the characters from U+0100 on, so that
    a space is written ``Ġ`` and a new line ``Ċ``. The order is that of the characters, and with it that of the ids.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


@cache
def _bytes_of() -> dict[str, int]:
    return {character: byte for byte, character in byte_alphabet().items()}


def split_pieces(text: str) -> list[str]:
    """Cut text into the pieces that merges never cross (roughly words, each with the space before it).

    Args:
        text: any text; ``"".join`` of the result gives it back.

    Raises:
        TypeError: it is not a string.
        ValueError: it holds half of a surrogate pair, which is no character and has no UTF-8 form.
    """
    if not isinstance(text, str):
        raise TypeError(f"expected text (str), got {type(text).__name__}: {str(text)[:60]!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds a lone surrogate U+{ord(text[error.start]):04X} at position {error.start}, which is no "
            "Unicode character; clean it with text.encode('utf-8', 'replace').decode()"
        ) from None
    return PATTERN.findall(text)


def spell(piece: str) -> list[str]:
    """Spell a piece of text in the byte alphabet: one character for each byte of its UTF-8 form."""
    alphabet = byte_alphabet()
    return [alphabet[byte] for byte in piece.encode()]


def count_pairs(words: Mapping[tuple[Symbol, ...], int]) -> dict[tuple[Symbol, Symbol], int]:
    """Count how often each pair of neighbouring symbols stands in a corpus.

    Args:
        words: each different word as a tuple of symbols, with how often it occurs.

    Returns:
        For each (left, right) pair inside a word, its number of occurrences in the whole corpus.
    """
    counts: Counter[tuple[Symbol, Symbol]] = Counter()
    for symbols, times in words.items():
        for pair in pairwise(symbols):
            counts[pair] += times
    return dict(counts)


def merge_pair(symbols: Sequence[Symbol], pair: tuple[Symbol, Symbol], merged: Symbol) -> list[Symbol]:
    """Replace each occurrence of a pair by one symbol, from left to right and without overlap.

    Args:
        symbols: the symbols of one word.
        pair: the two neighbours to merge.
        merged: what stands in their place.

    Returns:
        A new, shorter list: ``merge_pair("aaab", ("a", "a"), "aa")`` is ``["aa", "a", "b"]``.
    """
    result: list[Symbol] = []
    position = 0
    while position < len(symbols):
        if tuple(symbols[position : position + 2]) == pair:
            result.append(merged)
            position += 2
        else:
            result.append(symbols[position])
            position += 1
    return result


class BytePairEncoding:
    """A byte-level byte-pair tokenizer, lossless on every Unicode text.

    Ids run in this order: special tokens, the 256 bytes, then one id for each merge.

    Attributes:
        merges: the pairs in the order in which they were learned, written in the byte alphabet.
        special_tokens: tokens that stand for themselves and are never cut, such as ``"<end>"``.
        vocabulary: the id of each token, written in the byte alphabet (special tokens as they are).
    """

    def __init__(self, merges: Iterable[tuple[str, str]] = (), special_tokens: Iterable[str] = ()) -> None:
        """Build a tokenizer from known merges; :meth:`train` finds them.

        Args:
            merges: pairs of tokens, the first learned first; with none, each byte is a token.
            special_tokens: texts that become one token each.

        Raises:
            ValueError: a merge joins tokens that do not exist by then, or a special token is empty, repeated, or could
                be mistaken for the spelling of bytes.
            TypeError: a special token is not text.
        """
        self.special_tokens = _valid_special_tokens(special_tokens)
        self.merges = [(str(left), str(right)) for left, right in merges]
        self.vocabulary: dict[str, int] = {}
        for token in (*self.special_tokens, *byte_alphabet().values()):
            self.vocabulary.setdefault(token, len(self.vocabulary))
        # For each pair of ids, when it was learned and what it becomes. Two merges may spell the same token.
        self._merge: dict[Pair, tuple[int, int]] = {}
        for rank, (left, right) in enumerate(self.merges):
            if left not in self.vocabulary or right not in self.vocabulary:
                raise ValueError(f"merge {rank} joins {left!r} and {right!r}, but no earlier merge makes them")
            merged = self.vocabulary.setdefault(left + right, len(self.vocabulary))
            self._merge[self.vocabulary[left], self.vocabulary[right]] = (rank, merged)
        self._token = list(self.vocabulary)
        self._special = (
            regex.compile("(" + "|".join(map(regex.escape, sorted(self.special_tokens, key=len, reverse=True))) + ")")
            if self.special_tokens
            else None
        )
        self._bytes = [self._spelled_bytes(token) for token in self._token]
        self._pieces: dict[str, tuple[int, ...]] = {}

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocabulary_size: int,
        special_tokens: Iterable[str] = (),
        progress: bool = True,
    ) -> "BytePairEncoding":
        """Learn merges from texts: the most frequent pair first; of equally frequent pairs, the one of smaller ids.

        The merges and ids are those that the ``tokenizers`` library's byte-level trainer finds on the same texts.

        Args:
            texts: any number of texts; pieces never reach from one into the next.
            vocabulary_size: number of entries wanted, counting the special tokens and the 256 bytes. Where the texts
                hold no further pair, training ends with fewer.
            special_tokens: texts that become one token each.
            progress: show a progress bar.

        Returns:
            The trained tokenizer.

        Raises:
            TypeError: ``texts`` is one string, or an item of it is not text.
            ValueError: the vocabulary is too small for the bytes and special tokens, or a text holds a lone surrogate.
        """
        if isinstance(texts, (str, bytes)):
            raise TypeError("texts is one string, of which each character would be a text: pass a list, [text]")
        start = cls((), special_tokens)
        size = operator.index(vocabulary_size)
        if size < len(start):
            raise ValueError(
                f"vocabulary_size={size} leaves no room for the 256 bytes and {len(start.special_tokens)} special "
                f"tokens: ask for {len(start)} or more"
            )
        frequency = Counter(piece for text in texts for piece in split_pieces(text))
        words = [[start.vocabulary[character] for character in spell(piece)] for piece in frequency]
        merges = _learn_merges(words, list(frequency.values()), dict(start.vocabulary), size, progress)
        return cls(merges, start.special_tokens)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; special tokens that stand in it become their own id.

        Raises:
            TypeError: it is not a string.
            ValueError: it holds a lone surrogate.
        """
        if self._special is None or not isinstance(text, str):
            return self._encode_plain(text)
        ids: list[int] = []
        for number, part in enumerate(self._special.split(text)):
            ids += [self.vocabulary[part]] if number % 2 else self._encode_plain(part)
        return ids

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Return the text of ids; bytes that are no UTF-8 (a character cut in half) become U+FFFD.

        Args:
            ids: whole numbers; a one-dimensional tensor will do.

        Raises:
            ValueError: an id is not in the vocabulary.
            TypeError: an id is not a whole number.
        """
        numbers = [operator.index(number) for number in ids]
        for number in numbers:
            if not 0 <= number < len(self):
                raise ValueError(f"id {number} is not in the vocabulary of {len(self)} tokens (0 to {len(self) - 1})")
        return b"".join(self._bytes[number] for number in numbers).decode(errors="replace")

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of a text as they are written in the vocabulary (``Ġ`` for a space).

        Raises:
            TypeError: it is not a string.
            ValueError: it holds a lone surrogate.
        """
        return [self._token[number] for number in self.encode(text)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer to a JSON file, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        target = Path(path)
        content = {"format": FORMAT, "special_tokens": self.special_tokens, "merges": self.merges}
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(content, file, ensure_ascii=False, indent=0)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "BytePairEncoding":
        """Read a tokenizer that :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not such a tokenizer.
        """
        problem = f"{Path(path).name} is not a tokenizer saved by this course"
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            written = content["format"]
            merges = [(str(left), str(right)) for left, right in content["merges"]]
            special_tokens = list(content["special_tokens"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{problem}: {type(error).__name__}: {error}") from None
        if written != FORMAT:
            raise ValueError(f"{problem}: it has format {written!r}, this version reads format {FORMAT}")
        return cls(merges, special_tokens)

    def __len__(self) -> int:
        """Return the number of tokens in the vocabulary."""
        return len(self.vocabulary)

    def __eq__(self, other: object) -> bool:
        """Compare by merges and special tokens."""
        if not isinstance(other, BytePairEncoding):
            return NotImplemented
        return self.merges == other.merges and self.special_tokens == other.special_tokens

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Say how large the tokenizer is."""
        return f"BytePairEncoding({len(self)} tokens: {len(self.merges)} merges, special {self.special_tokens})"

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in split_pieces(text):
            known = self._pieces.get(piece)
            if known is None:
                known = tuple(self._apply_merges([self.vocabulary[character] for character in spell(piece)]))
                if len(self._pieces) < _CACHED_PIECES and len(piece) < 100:
                    self._pieces[piece] = known
            ids += known
        return ids

    def _apply_merges(self, ids: list[int]) -> list[int]:
        """Merge the neighbours whose pair was learned first (the leftmost of them) until no pair is left.

        The ids form a chain: ``following`` and ``before`` give the neighbours of a position that is still in use.
        """
        following, before = list(range(1, len(ids) + 1)), list(range(-1, len(ids) - 1))
        in_use = [True] * len(ids)
        queue: list[tuple[int, int, int]] = []  # (when learned, position of the left token, what the pair becomes)

        def consider(left: int) -> None:
            if left >= 0 and following[left] < len(ids):
                learned = self._merge.get((ids[left], ids[following[left]]))
                if learned is not None:
                    heapq.heappush(queue, (learned[0], left, learned[1]))

        for position in range(len(ids)):
            consider(position)
        while queue:
            _, left, merged = heapq.heappop(queue)
            right = following[left]
            if not in_use[left] or right >= len(ids):
                continue
            if self._merge.get((ids[left], ids[right]), (0, -1))[1] != merged:
                continue  # one of the two has been merged otherwise since
            ids[left], in_use[right] = merged, False
            following[left] = following[right]
            if following[left] < len(ids):
                before[following[left]] = left
            consider(before[left])
            consider(left)
        return [number for number, used in zip(ids, in_use, strict=True) if used]

    def _spelled_bytes(self, token: str) -> bytes:
        return token.encode() if token in self.special_tokens else bytes(_bytes_of()[character] for character in token)


def _learn_merges(
    words: list[list[int]], times: list[int], vocabulary: dict[str, int], size: int, progress: bool
) -> list[tuple[str, str]]:
    """Find merges until the vocabulary has ``size`` entries; ``words`` and ``vocabulary`` are changed in place.

    Counting all pairs again after each merge would take a pass over the corpus per token. Only the words that hold the
    merged pair change, so only they are counted again: ``where`` knows them, and a heap keeps the most frequent pair on
    top. The heap may hold outdated counts; an entry counts only if it agrees with ``counts``.
    """
    from tqdm.auto import tqdm

    token = list(vocabulary)
    counts: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for number, (word, occurrences) in enumerate(zip(words, times, strict=True)):
        for pair in pairwise(word):
            counts[pair] += occurrences
            where[pair].add(number)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    merges: list[tuple[str, str]] = []
    with tqdm(total=size - len(vocabulary), desc="merges", disable=not progress, leave=False) as bar:
        while len(vocabulary) < size and heap:
            count, pair = heapq.heappop(heap)
            if counts[pair] != -count or count == 0:
                continue
            left, right = (token[number] for number in pair)
            merges.append((left, right))
            if left + right not in vocabulary:
                vocabulary[left + right] = len(token)
                token.append(left + right)
                bar.update()
            merged, changed = vocabulary[left + right], set()
            for number in where.pop(pair):
                old = words[number]
                new = words[number] = merge_pair(old, pair, merged)
                for neighbours in pairwise(old):
                    counts[neighbours] -= times[number]
                    changed.add(neighbours)
                for neighbours in pairwise(new):
                    counts[neighbours] += times[number]
                    where[neighbours].add(number)
                    changed.add(neighbours)
            for neighbours in changed:
                heapq.heappush(heap, (-counts[neighbours], neighbours))
    return merges


def _valid_special_tokens(special_tokens: Iterable[str]) -> list[str]:
    if isinstance(special_tokens, str):
        raise TypeError(f"special_tokens is one string: pass a list, [{special_tokens!r}]")
    valid = list(special_tokens)
    for number, token in enumerate(valid):
        if not isinstance(token, str):
            raise TypeError(f"special tokens are texts, got {type(token).__name__}: {token!r}")
        if not token or token in valid[:number]:
            raise ValueError(f"special token {token!r} is {'repeated' if token else 'empty'}")
        spelled_from_bytes = set(token) <= set(_bytes_of())
        if spelled_from_bytes and (len(token) == 1 or not token.isascii()):
            raise ValueError(f"special token {token!r} could be the spelling of bytes: write it like '<end>'")
        split_pieces(token)
    return valid
