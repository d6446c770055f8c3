"""Exercises of the notebook ``week3/03_tasks_data_and_tools``."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from course_utils.checks.framework import Case, Exercise, Mistake, case
from course_utils.tools import parse_call, run_expression

# --- code, scored by running it

Tests = Sequence[Mapping[str, Any]]


def same_result(code: str, target: str, tests: Tests) -> bool:
    """Whether two expressions give the same result in each test, a mapping of variables; a failing one gives None."""

    def result(expression: str, variables: Mapping[str, Any]) -> Any:
        try:
            return run_expression(expression, variables)
        except ValueError:
            return None

    return all(result(code, variables) == result(target, variables) for variables in tests)


def _same_cases() -> list[Case]:
    five = [{"prices": values} for values in ([3, 9, 7], [12], [-4, 8, 8, 15], [1, 1, 1], [])]
    pairs = [
        ("sum([n for n in prices if n > 6])", "sum([n for n in prices if n >= 7])"),
        ("len(prices)", "sum(prices)"),
        ("max(prices)", "max(prices)"),
        ("max(prices)", "max([n for n in prices])"),
        ("sum(price)", "sum(prices)"),
        ("sum(prices", "sum(prices)"),
        ("sorted(prices)", "prices"),
        ("prices[0]", "prices[1]"),
        ("[n / 2 for n in prices]", "[n / 2 for n in prices if n > 8]"),
    ]
    orders = (five, [five[3], five[1]], five[1:2], five[3:])
    return [case(*pair, tests) for pair in pairs for tests in orders]


Runs = list[tuple[Any, Any]]


def _outcome(expression: str, variables: Mapping[str, Any]) -> Any:
    try:
        return run_expression(expression, variables)
    except ValueError:
        return None


def _same(judge: Callable[[Runs], bool]) -> Callable[[str, str, Tests], bool]:
    """A verdict from the results of both expressions, test by test."""
    return lambda code, target, tests: judge([(_outcome(code, one), _outcome(target, one)) for one in tests])


def _same_text(code: str, target: str, tests: Tests) -> bool:
    return code == target


def _errors_escape(code: str, target: str, tests: Tests) -> bool:
    return all(run_expression(code, one) == run_expression(target, one) for one in tests)


def _target_escapes(code: str, target: str, tests: Tests) -> bool:
    try:
        return all(run_expression(code, one) == run_expression(target, one) for one in tests)
    except ValueError:
        return False


SAME = Exercise(
    name="tasks.same_result",
    title="Score code by running it",
    minutes=10,
    difficulty=2,
    importance=5,
    reference=same_result,
    cases=_same_cases,
    mistakes=[
        Mistake(_same_text, "you compare the texts: run both and compare what comes out."),
        Mistake(
            _same(lambda runs: runs[0][0] == runs[0][1]),
            "you look at the first test only: the results must agree in each of them.",
        ),
        Mistake(
            _same(lambda runs: any(a == b for a, b in runs)),
            "agreement in one test is enough for you: use all(...), not any(...).",
        ),
        Mistake(
            _errors_escape,
            "an expression that fails stops your function: catch the ValueError of run_expression; the result is None.",
        ),
        Mistake(
            _target_escapes,
            "any failure makes your answer False: where both expressions fail, both give None, and that is the same.",
        ),
        Mistake(
            _same(lambda runs: all(a == b for a, b in runs if a is not None)),
            "tests in which the code fails are left out: it gives None there, and the target a value, so they differ.",
        ),
        Mistake(
            _same(lambda runs: not all(a == b for a, b in runs)),
            "True and False have changed places.",
        ),
    ],
    hints=[
        "Write a small function result(expression, variables): try tools.run_expression, except ValueError: None.",
        "return all(result(code, variables) == result(target, variables) for variables in tests)",
    ],
)

# --- F1 of names

Names = Sequence[tuple[str, str]]


def entity_f1(found: Names, right: Names) -> float:
    """F1 of names: two lists of (kind, name), in any order. Where there is nothing to find and nothing found, 1."""
    hits = sum((Counter(found) & Counter(right)).values())
    names = len(found) + len(right)
    return 2 * hits / names if names else 1.0


def _f1_cases() -> list[Case]:
    ada, tom, oslo = ("person", "Ada Berg"), ("person", "Tom Ulmford"), ("place", "Oslo")
    ulm, bank = ("place", "Ulmford"), ("firm", "Oslo Bank")
    return [
        case([ada, ("place", "Tom Ulmford"), oslo], [ada, tom, oslo, ulm]),
        case([oslo, ada, tom], [ada, tom, oslo]),
        case([oslo, oslo, oslo, ada], [oslo, ada, bank]),
        case([oslo, ada], [oslo, oslo, ada]),
        case([bank], [ada, tom, bank, oslo]),
        case([ada, tom, bank, ulm], [ulm]),
        case([], [ada, oslo]),
        case([ulm], []),
        case([], []),
        case([ada], [tom]),
    ]


def _hits(found: Names, right: Names) -> int:
    return sum((Counter(found) & Counter(right)).values())


def _without_kinds(found: Names, right: Names) -> float:
    return entity_f1([("", name) for _, name in found], [("", name) for _, name in right])


def _as_sets(found: Names, right: Names) -> float:
    return entity_f1(list(dict.fromkeys(found)), list(dict.fromkeys(right)))


def _found_in(found: Names, right: Names) -> float:
    names = len(found) + len(right)
    return 2 * sum(one in right for one in found) / names if names else 1.0


def _precision(found: Names, right: Names) -> float:
    return _hits(found, right) / len(found) if found else float(not right)


def _recall(found: Names, right: Names) -> float:
    return _hits(found, right) / len(right) if right else float(not found)


def _overlap(found: Names, right: Names) -> float:
    union = len(found) + len(right) - _hits(found, right)
    return _hits(found, right) / union if union else 1.0


def _mean(found: Names, right: Names) -> float:
    return (_precision(found, right) + _recall(found, right)) / 2


def _by_place(found: Names, right: Names) -> float:
    names = len(found) + len(right)
    return 2 * sum(a == b for a, b in zip(found, right, strict=False)) / names if names else 1.0


def _empty_is_zero(found: Names, right: Names) -> float:
    return entity_f1(found, right) if found or right else 0.0


F1 = Exercise(
    name="tasks.entity_f1",
    title="F1 of names",
    minutes=10,
    difficulty=2,
    importance=4,
    reference=entity_f1,
    cases=_f1_cases,
    mistakes=[
        Mistake(_without_kinds, "a right name of the wrong kind counts as right: compare the whole pair."),
        Mistake(_as_sets, "a name that stands there twice counts once: a set forgets how often; Counter does not."),
        Mistake(
            _found_in,
            "a name that was found three times and stands there once counts three times: each right name can be found "
            "once only.",
        ),
        Mistake(_precision, "that is the precision: hits / found. A model that finds one sure name would get 1."),
        Mistake(_recall, "that is the recall: hits / right. A model that calls everything a name would get 1."),
        Mistake(_overlap, "that is hits over the union (Jaccard): F1 is 2 * hits / (found + right)."),
        Mistake(_mean, "that is the arithmetic mean of precision and recall: F1 is the harmonic one."),
        Mistake(_by_place, "names count only at the same place of the list: the order does not matter here."),
        Mistake(_empty_is_zero, "nothing to find and nothing found is right: 1, not 0."),
    ],
    hints=[
        "F1 = 2 * hits / (number found + number right). What is a hit, if a name stands there twice?",
        "collections.Counter counts pairs; Counter(found) & Counter(right) keeps the smaller count of each.",
        "hits = sum((Counter(found) & Counter(right)).values()); mind the case of two empty lists.",
    ],
)

# --- one term of BM25


def bm25_term(
    count: int, holders: int, passages: int, length: int, mean_length: float, k1: float = 1.2, b: float = 0.75
) -> float:
    """What a word of the query adds to a passage that holds it count times; so many of the passages are its holders."""
    rarity = math.log(1 + (passages - holders + 0.5) / (holders + 0.5))
    return rarity * count / (count + k1 * (1 - b + b * length / mean_length))


def _term_cases() -> list[Case]:
    rows = [
        (1, 2, 3, 3, 5.0),
        (2, 2, 3, 7, 5.0),
        (3, 40, 1000, 250, 90.5),
        (7, 900, 1000, 30, 90.5),
        (0, 5, 50, 20, 30.0),
    ]
    return [*(case(*row) for row in rows), case(4, 3, 80, 12, 40.0, k1=2.0, b=0.3)]


def _term(
    rarity: Callable[[int, int], float] | None = None,
    weight: Callable[[int, float, float, float], float] | None = None,
) -> Callable[..., float]:
    """A term with another rarity, of (holders, passages), or another weight, of (count, length / mean, k1, b)."""

    def term(
        count: int, holders: int, passages: int, length: int, mean_length: float, k1: float = 1.2, b: float = 0.75
    ) -> float:
        first = rarity or (lambda held, of: math.log(1 + (of - held + 0.5) / (held + 0.5)))
        second = weight or (lambda tf, share, k, part: tf / (tf + k * (1 - part + part * share)))
        return first(holders, passages) * second(count, length / mean_length, k1, b)

    return term


TERM = Exercise(
    name="tools.bm25_term",
    title="One term of BM25",
    minutes=10,
    difficulty=2,
    importance=3,
    reference=bm25_term,
    cases=_term_cases,
    mistakes=[
        Mistake(
            _term(rarity=lambda held, of: 1.0), "the rarity is missing: a word that all passages hold says nothing."
        ),
        Mistake(
            _term(rarity=lambda held, of: math.log((of - held + 0.5) / (held + 0.5))),
            "the 1 + in the logarithm is missing: a word that most passages hold would count against them.",
        ),
        Mistake(
            _term(rarity=lambda held, of: math.log(of / held)),
            "that is the plain idf, log(n / d): here it is log(1 + (n - d + 0.5) / (d + 0.5)).",
        ),
        Mistake(
            _term(rarity=lambda held, of: math.log10(1 + (of - held + 0.5) / (held + 0.5))),
            "that is the logarithm to the base 10: take the natural one, math.log.",
        ),
        Mistake(
            _term(weight=lambda tf, share, k, part: tf),
            "each occurrence counts as much as the first: divide by count + k1 * (...), so that the weight levels off.",
        ),
        Mistake(
            _term(weight=lambda tf, share, k, part: tf / (tf + k)), "the length of the passage plays no role: use b."
        ),
        Mistake(
            _term(weight=lambda tf, share, k, part: tf / (tf + k * (1 - part + part / share))),
            "long passages are favoured: it is length / mean_length, not the reverse.",
        ),
        Mistake(
            _term(weight=lambda tf, share, k, part: tf * (k + 1) / (tf + k * (1 - part + part * share))),
            "a factor k1 + 1 too much: some write it so, it changes all scores alike and no ranking; leave it out.",
        ),
        Mistake(
            _term(weight=lambda tf, share, k, part: tf / (tf + k * (part + (1 - part) * share))),
            "b and 1 - b have changed places: with b = 0 the length must not matter.",
        ),
    ],
    hints=[
        "Two factors: the rarity, from holders and passages, and the weight, from all the others.",
        "rarity = math.log(1 + (passages - holders + 0.5) / (holders + 0.5))",
        "return rarity * count / (count + k1 * (1 - b + b * length / mean_length))",
    ],
)

# --- a call, read strictly


def _call_cases() -> list[Case]:
    return [
        case(text)
        for text in (
            "calculate(12 * 7)",
            "  search( Clara lives )\n",
            "calculate((1 + 2) * (3 - 4))",
            "answer(unknown)",
            "search(Clara lives) and more",
            "I will call search(Clara lives)",
            "search(Clara lives) calculate(2 + 2)",
            "calculate(1) + (2)",
            "search(Clara lives",
            "calculate((1 + 2)",
            "calculate)1 + 2(",
            "calculate(1) + 2)",
            "search()",
            "search(   )",
            "search(Clara\nlives)",
            "Search(Clara lives)",
            "os.remove(thesis)",
            "(12 * 7)",
            "answer",
            "",
            f"search({'x' * 200})",
            f"search({'x' * 201})",
        )
    ]


def _in_order(argument: str) -> bool:
    depth = [0, *itertools.accumulate((sign == "(") - (sign == ")") for sign in argument)]
    return min(depth) == 0 == depth[-1]


def _as_many(argument: str) -> bool:
    return argument.count("(") == argument.count(")")


def _any(argument: str) -> bool:
    return True


def _reader(
    pattern: str = r"([a-z_]{1,30})\((.*)\)",
    how: Callable[..., re.Match[str] | None] = re.fullmatch,
    brackets: Callable[[str], bool] = _in_order,
    least: int = 1,
    most: int = 200,
    breaks: bool = False,
    strip: bool = True,
) -> Callable[[str], tuple[str, str]]:
    """A reader with some of its conditions changed."""

    def reader(text: str) -> tuple[str, str]:
        found = how(pattern, text.strip(), flags=re.S)
        if found is None or not brackets(found[2]):
            raise ValueError("no call")
        argument = found[2].strip()
        if not least <= len(argument) <= most or ("\n" in argument and not breaks):
            raise ValueError("no such argument")
        return found[1], argument if strip else found[2]

    return reader


def _none(text: str) -> tuple[str, str] | None:
    try:
        return parse_call(text)
    except ValueError:
        return None


def _cut(text: str) -> tuple[str, str]:
    name, argument = text.strip().split("(", 1)
    return name, argument.rstrip(")").strip()


CALL = Exercise(
    name="tools.parse_call",
    title="Read a call, strictly",
    minutes=15,
    difficulty=3,
    importance=4,
    reference=parse_call,
    cases=_call_cases,
    mistakes=[
        Mistake(
            _none, "you return None where the text is no call: raise a ValueError, so that nobody goes on with it."
        ),
        Mistake(
            _cut, "whatever holds a bracket is read as a call: check the whole text, with re.fullmatch for example."
        ),
        Mistake(
            _reader(how=re.match, brackets=_any),
            "text behind the call is ignored, and brackets are not checked: re.fullmatch, then count the brackets.",
        ),
        Mistake(
            _reader(how=re.match), "text behind the call is ignored: the whole text must be one call; re.fullmatch."
        ),
        Mistake(
            _reader(how=re.search, brackets=_any),
            "a call is found anywhere in the text: who talks about a call does not make it; re.fullmatch.",
        ),
        Mistake(
            _reader(how=re.search), "text before the call is ignored: the whole text must be one call; re.fullmatch."
        ),
        Mistake(
            _reader(brackets=_any),
            "'search(a) calculate(b)' is read as one call with the argument 'a) calculate(b': count the brackets.",
        ),
        Mistake(
            _reader(brackets=_as_many),
            "as many brackets open as close, but not in order: in 'a) calculate(b' one closes before it was opened.",
        ),
        Mistake(
            _reader(pattern=r"([a-z_]{1,30})\(([^()]*)\)"),
            "an argument with brackets in it is refused: calculate((1 + 2) * 3) is a call.",
        ),
        Mistake(_reader(least=0), "an empty argument is accepted: there is nothing to search for."),
        Mistake(
            _reader(breaks=True), "a line break in the argument is accepted: it would forge a line of the transcript."
        ),
        Mistake(_reader(most=10**6), "an argument of any length is accepted: at most 200 characters."),
        Mistake(_reader(strip=False), "the argument keeps its blanks: strip it."),
        Mistake(
            _reader(pattern=r"([A-Za-z_.]{1,30})\((.*)\)"),
            "the name may hold capitals or points: only small letters and _; 'os.remove' is no name of a tool.",
        ),
    ],
    hints=[
        "Three steps: the form by re.fullmatch, the argument's length and line breaks, the order of its brackets.",
        r"re.fullmatch(r'([a-z_]+)\((.*)\)', text.strip(), flags=re.S) gives the name and the argument, or None.",
        "Brackets: go through the argument with a depth that grows at ( and falls at ). It must never be below 0, and "
        "end at 0.",
    ],
)

EXERCISES = (SAME, F1, TERM, CALL)
