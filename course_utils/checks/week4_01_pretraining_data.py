"""Exercises of the notebook ``week4/01_pretraining_data``."""

import random
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from course_utils.checks.framework import Case, Exercise, Mistake, case
from course_utils.data.quality import jaccard, match_probability, normalized

# --- repetition

Words = Sequence[str]


def repeated_share(words: Words, n: int) -> float:
    """Share of the characters of some words that lie in an n-gram that occurs more than once; each counts once."""
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    counts = Counter(grams)
    inside = {start + place for start, gram in enumerate(grams) if counts[gram] > 1 for place in range(n)}
    characters = sum(map(len, words))
    return sum(len(words[place]) for place in inside) / characters if characters else 0.0


def _share_cases() -> list[Case]:
    lines = (
        "a bb ccc a bb ccc dddd",
        "the list of the list of the list",
        "one two three four",
        "go go go go stop",
        "see the note see the note and see the rest of it",
        "one",
        "",
    )
    return [case(line.split(), n) for line in lines for n in (2, 3)]


def _grams(words: Words, n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _of_ngrams(words: Words, n: int) -> float:
    grams = _grams(words, n)
    counts = Counter(grams)
    return sum(counts[gram] > 1 for gram in grams) / len(grams) if grams else 0.0


def _of_words(words: Words, n: int) -> float:
    grams = _grams(words, n)
    counts = Counter(grams)
    inside = {start + place for start, gram in enumerate(grams) if counts[gram] > 1 for place in range(n)}
    return len(inside) / len(words) if words else 0.0


def _twice(words: Words, n: int) -> float:
    grams = _grams(words, n)
    counts = Counter(grams)
    characters = sum(map(len, words))
    return sum(sum(map(len, gram)) for gram in grams if counts[gram] > 1) / characters if characters else 0.0


def _later(words: Words, n: int) -> float:
    seen: set[tuple[str, ...]] = set()
    inside: set[int] = set()
    for start, gram in enumerate(_grams(words, n)):
        if gram in seen:
            inside.update(range(start, start + n))
        seen.add(gram)
    characters = sum(map(len, words))
    return sum(len(words[place]) for place in inside) / characters if characters else 0.0


def _with_blanks(words: Words, n: int) -> float:
    return repeated_share(words, n) * sum(map(len, words)) / max(len(" ".join(words)), 1)


def _begins_only(words: Words, n: int) -> float:
    grams = _grams(words, n)
    counts = Counter(grams)
    characters = sum(map(len, words))
    inside = sum(len(words[start]) for start, gram in enumerate(grams) if counts[gram] > 1)
    return inside / characters if characters else 0.0


def _without_the_last(words: Words, n: int) -> float:
    counts = Counter(_grams(words, n)[:-1])
    inside = {
        start + place for start, gram in enumerate(_grams(words, n)[:-1]) if counts[gram] > 1 for place in range(n)
    }
    return sum(len(words[place]) for place in inside) / max(sum(map(len, words)), 1)


def _of_word_forms(words: Words, n: int) -> float:
    forms = {word for gram, count in Counter(_grams(words, n)).items() if count > 1 for word in gram}
    return sum(len(word) for word in words if word in forms) / max(sum(map(len, words)), 1)


SHARE = Exercise(
    name="quality.repeated_share",
    title="How much of a text is repetition",
    minutes=15,
    difficulty=3,
    importance=4,
    reference=repeated_share,
    cases=_share_cases,
    mistakes=[
        Mistake(_of_ngrams, "you count n-grams: count the characters of the words that lie in them."),
        Mistake(_of_words, "each word counts the same: a long word has more characters, count those."),
        Mistake(
            _twice,
            "a word that lies in two repeated n-grams counts twice, so that the share may exceed 1: collect the places "
            "of such words in a set.",
        ),
        Mistake(
            _later,
            "only later occurrences count: an n-gram that occurs more than once counts wherever it stands, also the "
            "first time.",
        ),
        Mistake(_with_blanks, "you divide by the length with the blanks: divide by the characters of the words."),
        Mistake(_begins_only, "only the first word of each repeated n-gram counts: all n of them lie in it."),
        Mistake(_without_the_last, "the last n-gram is missing: there are len(words) - n + 1 of them."),
        Mistake(
            _of_word_forms,
            "a word counts wherever it stands in the text: collect the places that lie in repeated n-grams, not words.",
        ),
    ],
    hints=[
        "First list the n-grams, one for each place where one begins, and count them with collections.Counter.",
        "A set of places: for each n-gram with a count above 1 the places start, start + 1, ... start + n - 1.",
        "return sum(len(words[place]) for place in inside) / sum(map(len, words)); mind a text without words.",
    ],
)

# --- the key of exact duplicates


def _key_cases() -> list[Case]:
    return [
        case(text)
        for text in (
            "The licence of 2021, version 1.0",
            "THE LICENCE  of\n2024, version 2.0!",
            "Café au lait",
            "naïve co-operation (again)",
            "  two   blanks\tand a tab ",
            "1,234 and 56",
            "“Quoted” — and so on…",
            "Ünïcode ÄÖÜ, Straße, дом",
            "2 + 2 = 4, $5 each",
            "",
        )
    ]


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] == "P"


def _form(
    lower: bool = True,
    digits: tuple[str, str] = (r"\d", "0"),
    accents: bool = True,
    out: Callable[[str], bool] = _is_punctuation,
    instead: str = "",
    blanks: str | None = " ",
) -> Callable[[str], str]:
    """A normal form with some of its parts changed."""

    def form(text: str) -> str:
        text = text.lower() if lower else text
        text = unicodedata.normalize("NFD", text) if accents else text
        text = "".join(one for one in text if not (accents and unicodedata.category(one) == "Mn"))
        text = "".join(instead if out(one) else one for one in re.sub(*digits, text))
        return text if blanks is None else blanks.join(text.split())

    return form


KEY = Exercise(
    name="quality.normalized",
    title="A key for exact duplicates",
    minutes=10,
    difficulty=2,
    importance=3,
    reference=normalized,
    cases=_key_cases,
    mistakes=[
        Mistake(_form(lower=False), "capitals stay: texts that differ only in them should have the same key."),
        Mistake(
            _form(digits=(r"\d", "")), "digits are taken out: put 0 for each, so that the form stays recognisable."
        ),
        Mistake(_form(digits=(r"\d+", "0")), "a whole number becomes one 0: put a 0 for each digit."),
        Mistake(_form(digits=("a^", "")), "digits stay as they are: put 0 for each."),
        Mistake(
            _form(accents=False),
            'accents stay: unicodedata.normalize("NFD", text) parts é into e and a mark of category Mn; take that out.',
        ),
        Mistake(_form(out=lambda one: False), "punctuation stays: take out what has a category that begins with P."),
        Mistake(_form(instead=" "), "punctuation becomes a blank: take it out, so that co-operation is cooperation."),
        Mistake(
            _form(out=lambda one: one in string.punctuation),
            "string.punctuation is another list: “ ” — and … are not in it, and have categories that begin with P; "
            "$ and + are, and have others.",
        ),
        Mistake(
            _form(out=lambda one: not (one.isalnum() or one.isspace())),
            "$ and + are gone, too: take out only what has a category that begins with P.",
        ),
        Mistake(
            _form(out=lambda one: _is_punctuation(one) or not one.isascii()),
            "letters outside ASCII are gone, such as ß and д: of letters take out only their accents, category Mn.",
        ),
        Mistake(_form(blanks=""), "all white space is gone: words should stay apart, with one blank."),
        Mistake(_form(blanks=None), "white space stays as it is: put one blank for it, and none at the ends."),
    ],
    hints=[
        'Five small steps. unicodedata.normalize("NFD", text.lower()) parts letters from their accents.',
        'unicodedata.category(character) is "Mn" for an accent, and begins with "P" for punctuation.',
        '" ".join(text.split()) leaves one blank where there was any white space.',
    ],
)

# --- MinHash

Set = set[int]
Orders = Sequence[Sequence[int]]


def minhash_similarity(first: Set, second: Set, orders: Orders) -> float:
    """Share of orders in which both sets have the same smallest rank; order[element] is an element's rank."""
    same = [min(order[one] for one in first) == min(order[one] for one in second) for order in orders]
    return sum(same) / len(same)


def _minhash_cases() -> list[Case]:
    chance = random.Random(0)
    orders = [chance.sample(range(30), 30) for _ in range(40)]
    pairs = [
        (set(range(0, 10)), set(range(3, 12))),
        ({1, 2, 3, 4, 5, 6}, {5, 6, 7, 8}),
        ({0, 9, 28}, {0, 9, 28}),
        ({20, 21}, {22, 23, 24}),
        (set(range(5, 30)), {29, 11}),
        ({13}, {13, 14, 15}),
    ]
    return [case(*pair, orders) for pair in pairs]


def _exact(first: Set, second: Set, orders: Orders) -> float:
    return jaccard(first, second)


def _largest(first: Set, second: Set, orders: Orders) -> float:
    return minhash_similarity(first, second, [[-rank for rank in order] for order in orders])


def _count(first: Set, second: Set, orders: Orders) -> float:
    return minhash_similarity(first, second, orders) * len(orders)


def _without_order(first: Set, second: Set, orders: Orders) -> float:
    return float(min(first) == min(second))


def _at_places(first: Set, second: Set, orders: Orders) -> float:
    """Takes the orders for lists of elements."""
    inverse = [sorted(range(len(order)), key=lambda one: order[one]) for order in orders]
    return minhash_similarity(first, second, inverse)


def _of_minima(first: Set, second: Set, orders: Orders) -> float:
    return jaccard(*({min(order[one] for one in each) for order in orders} for each in (first, second)))


def _one_order(first: Set, second: Set, orders: Orders) -> float:
    return minhash_similarity(first, second, orders[:1])


MINHASH = Exercise(
    name="quality.minhash_similarity",
    title="MinHash",
    minutes=15,
    difficulty=3,
    importance=5,
    reference=minhash_similarity,
    cases=_minhash_cases,
    mistakes=[
        Mistake(_exact, "that is the Jaccard similarity itself: estimate it from the smallest ranks alone."),
        Mistake(_largest, "you compare the largest ranks: that would do as well, but MinHash takes the smallest."),
        Mistake(_count, "that is the number of orders that agree: divide by how many there are."),
        Mistake(_without_order, "the smallest elements are compared, not the smallest ranks: use order[element]."),
        Mistake(_one_order, "you return after the first order: go through all of them."),
        Mistake(
            _of_minima,
            "two sets of minima are compared, in any order: the two minima of the *same* order must agree.",
        ),
        Mistake(_at_places, "order[element] is the rank of an element, not the element at a rank."),
    ],
    hints=[
        "For one order: min(order[element] for element in first), and the same for second. Are they equal?",
        "The answer is the share of orders for which they are.",
    ],
)

# --- the S-curve


def _curve_cases() -> list[Case]:
    return [
        case(similarity, buckets, rows)
        for buckets, rows in ((14, 8), (2, 3), (20, 5), (1, 4), (6, 1))
        for similarity in (0.0, 0.3, 0.75, 0.9, 1.0)
    ]


CURVE = Exercise(
    name="quality.match_probability",
    title="The S-curve",
    minutes=10,
    difficulty=2,
    importance=4,
    reference=match_probability,
    cases=_curve_cases,
    mistakes=[
        Mistake(
            lambda similarity, buckets, rows: 1 - (1 - similarity**buckets) ** rows,
            "rows and buckets have changed places: all *rows* of a bucket must agree, and one *bucket* is enough.",
        ),
        Mistake(
            lambda similarity, buckets, rows: similarity ** (buckets * rows),
            "all buckets have to agree in your formula: one is enough.",
        ),
        Mistake(
            lambda similarity, buckets, rows: (1 - similarity**rows) ** buckets,
            "that is the probability that no bucket agrees: subtract it from 1.",
        ),
        Mistake(
            lambda similarity, buckets, rows: similarity**rows,
            "that is the probability for one bucket: there are several, and one of them is enough.",
        ),
        Mistake(
            lambda similarity, buckets, rows: buckets * similarity**rows,
            "probabilities of buckets that may agree together do not add up: 1 minus the probability that none agrees.",
        ),
        Mistake(
            lambda similarity, buckets, rows: 1 - (1 - similarity) ** (buckets * rows),
            "one row that agrees is enough in your formula: within a bucket all of them must.",
        ),
    ],
    hints=[
        "One row agrees with probability s. With what probability do all rows of one bucket?",
        "1 - s ** rows is the probability that a bucket does not agree. And that none of them does?",
    ],
)

EXERCISES = (SHARE, KEY, MINHASH, CURVE)
