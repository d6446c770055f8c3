"""The exercise framework: an attempt passes, is diagnosed, or is "not attempted yet"; the notebook goes on either way.

An :class:`Exercise` holds the reference (a function of the package), seeded cases, and the *mistakes* that learners
plausibly make. A wrong attempt is compared with every mistake: where its results agree with one, the learner reads that
mistake's message. The same mistakes prove the check: the tests hold that each of them fails with its own message.
"""

import copy
import inspect
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from course_utils import progress


@dataclass(frozen=True)
class Case:
    """One call of the function under check: positional and keyword arguments."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def case(*args: Any, **kwargs: Any) -> Case:
    """Return a :class:`Case` with these arguments."""
    return Case(args, kwargs)


@dataclass(frozen=True)
class Mistake:
    """A plausible wrong answer, and what to tell a learner whose results look like it."""

    function: Callable[..., Any]
    message: str


@dataclass(frozen=True)
class Exercise:
    """An exercise and everything that its check needs.

    Attributes:
        name: ``topic.thing``, unique in the course.
        title: a few words.
        minutes: how long it takes.
        difficulty: 1 (fill in one line) to 5 (an afternoon).
        importance: 1 (a side path) to 5 (the rest builds on it).
        reference: the right function; its source is the solution that is shown.
        cases: function that makes the cases, the same ones on each call.
        mistakes: plausible wrong answers with their messages, the most specific first.
        hints: steps of help, from a nudge to nearly the answer.
        tolerance: largest difference, relative to max(1, |expected|), that still counts as equal.
    """

    name: str
    title: str
    minutes: int
    difficulty: int
    importance: int
    reference: Callable[..., Any]
    cases: Callable[[], Iterable[Case]]
    mistakes: tuple[Mistake, ...] | list[Mistake]
    hints: tuple[str, ...] | list[str]
    tolerance: float = 1e-5


@dataclass(frozen=True)
class Verdict:
    """The result of a check: ``passed``, ``failed`` or ``not attempted``, and what to tell the learner."""

    state: str
    message: str


@dataclass(frozen=True)
class _Raised:
    """The error that a call ended in, in place of its result."""

    error: Exception


def judge(exercise: Exercise, attempt: Any) -> Verdict:
    """Run an attempt on every case and say what came of it.

    Args:
        exercise: the exercise.
        attempt: the learner's function, or ``...``.

    Returns:
        The verdict; nothing is printed or recorded.
    """
    if attempt is ...:
        return Verdict("not attempted", "")
    if not callable(attempt):
        return Verdict(
            "failed",
            f"expected a function, got {type(attempt).__name__}: hand over the function's name, without calling it",
        )
    cases = list(exercise.cases())
    results, problem = [], ""
    for number, one in enumerate(cases, 1):
        expected = _call(exercise.reference, _copy(one))
        inputs = _copy(one)
        result = _call(attempt, inputs)
        if result is ...:
            return Verdict("not attempted", "")
        results.append(result)
        if not problem:
            problem = _difference(expected, result, exercise.tolerance)
            if not problem and _difference((one.args, dict(one.kwargs)), (inputs.args, dict(inputs.kwargs)), 0.0):
                problem = (
                    "the result is right, but your function changed its arguments: work on a copy "
                    "(no in-place operation such as x += 1 or x[...] = on them)"
                )
            if problem and len(cases) > 1:
                problem = f"case {number} of {len(cases)}: {problem}"
    if not problem:
        return Verdict("passed", "")
    for mistake in exercise.mistakes:
        if all(
            not _difference(_call(mistake.function, _copy(one)), result, exercise.tolerance)
            for one, result in zip(cases, results, strict=True)
        ):
            return Verdict("failed", mistake.message)
    return Verdict("failed", problem)


def check(name: str, attempt: Any) -> Callable[..., Any]:
    """Check an attempt, print the verdict, and return the function with which the notebook goes on.

    Args:
        name: name of the exercise.
        attempt: the learner's function.

    Returns:
        The attempt where it passed, else the package's own function.

    Raises:
        ValueError: there is no such exercise.
    """
    exercise = _find(name)
    verdict = judge(exercise, attempt)
    if verdict.state == "passed":
        print(f"[passed] {exercise.title}")
        progress.record(name)
        return attempt
    if verdict.state == "not attempted":
        print(f"[not attempted yet] {exercise.title}\nThe notebook goes on with the course's own version.")
    else:
        print(textwrap.fill(f"[not yet right] {exercise.title}: {verdict.message}", 100))
    print(f'Help: hint("{name}"), then solution("{name}").')
    return exercise.reference


_given: dict[str, int] = {}


def hint(name: str) -> None:
    """Print the next hint of an exercise; after the last one, the last again.

    Raises:
        ValueError: there is no such exercise.
    """
    exercise = _find(name)
    number = min(_given.get(name, 0), len(exercise.hints) - 1)
    _given[name] = number + 1
    print(textwrap.fill(f"Hint {number + 1} of {len(exercise.hints)}: {exercise.hints[number]}", 100))


def solution(name: str) -> None:
    """Print the solution of an exercise: the source of the package's own function.

    Raises:
        ValueError: there is no such exercise.
    """
    reference = _find(name).reference
    print(inspect.getsource(inspect.unwrap(reference)))


def _find(name: str) -> Exercise:
    from course_utils.checks import exercises

    known = exercises()
    if name not in known:
        raise ValueError(f"there is no exercise {name!r}; there are: {', '.join(sorted(known))}")
    return known[name]


def _copy(one: Case) -> Case:
    return copy.deepcopy(one)


def _call(function: Callable[..., Any], one: Case) -> Any:
    """Call a function on its own copy of the arguments, from fixed seeds; an error is returned, not raised."""
    from course_utils.environment import seed_everything

    seed_everything(0)
    try:
        return function(*one.args, **one.kwargs)
    except Exception as error:
        return _Raised(error)


def _difference(expected: Any, result: Any, tolerance: float, where: str = "your result") -> str:
    """Say how a result differs from the expected one, in words for the learner; empty where it does not."""
    import torch

    if isinstance(expected, _Raised):
        if isinstance(result, _Raised):
            same = isinstance(result.error, type(expected.error))
            return "" if same else f"expected {type(expected.error).__name__}, but {_error(result)}"
        kind = type(expected.error).__name__
        return f"this input must be refused with a {kind} ({expected.error}), but a result came back"
    if isinstance(result, _Raised):
        return f"your function stopped with an error: {_error(result)}"
    if result is None and expected is not None:
        return f"{where} is None: is the `return` missing?"
    if isinstance(expected, torch.Tensor):
        if not isinstance(result, torch.Tensor):
            return f"{where} should be a tensor, it is a {type(result).__name__}"
        return _tensor_difference(expected, result, tolerance, where)
    if isinstance(expected, (bool, str, bytes)) or expected is None:
        if isinstance(expected, bool) and isinstance(result, torch.Tensor) and result.ndim == 0:
            result = result.item()
        same = type(result) is type(expected) and result == expected
        return "" if same else f"{where} is {_short(result)}, expected {_short(expected)}"
    if isinstance(expected, (int, float)):
        if hasattr(result, "item") and math.prod(getattr(result, "shape", (0,))) == 1:  # a tensor or an array of one
            result = result.item()
        if isinstance(result, bool) or not isinstance(result, (int, float)):
            return f"{where} should be a number, it is a {type(result).__name__}"
        if (math.isnan(expected) and math.isnan(result)) or expected == result:
            return ""
        close = abs(expected - result) <= tolerance * max(1.0, abs(expected)) and not math.isinf(expected)
        return "" if close else f"{where} is {result:.6g}, expected {expected:.6g}"
    if isinstance(expected, Mapping):
        if not isinstance(result, Mapping):
            return f"{where} should be a dictionary, it is a {type(result).__name__}"
        if set(expected) != set(result):
            got, want = sorted(map(str, result)), sorted(map(str, expected))
            return f"{where} has the keys {_short(got)}, expected {_short(want)}"
        return _first(
            _difference(value, result[key], tolerance, f"{where}[{key!r}]") for key, value in expected.items()
        )
    if isinstance(expected, (list, tuple)):
        if not isinstance(result, (list, tuple)):
            return f"{where} should be a {type(expected).__name__}, it is a {type(result).__name__}"
        if len(expected) != len(result):
            return f"{where} has {len(result)} items, expected {len(expected)}"
        return _first(
            _difference(a, b, tolerance, f"{where}[{i}]") for i, (a, b) in enumerate(zip(expected, result, strict=True))
        )
    if type(expected) is type(result) and type(expected).__eq__ is object.__eq__:
        return ""  # an object without a notion of equality, such as a module handed over as an argument
    return "" if expected == result else f"{where} is {_short(result)}, expected {_short(expected)}"


def _tensor_difference(expected: Any, result: Any, tolerance: float, where: str) -> str:
    import torch

    if expected.shape != result.shape:
        return f"{where} has shape {tuple(result.shape)}, expected {tuple(expected.shape)}"
    if expected.dtype != result.dtype:
        return f"{where} has dtype {result.dtype}, expected {expected.dtype}"
    a, b = expected.detach(), result.detach()
    if not a.is_floating_point():
        wrong = a != b
    else:
        a, b = a.double(), b.double()
        if torch.isnan(b).any() and not torch.isnan(a).any():
            return f"{where} holds NaN (not a number): a division by zero, or the softmax of a row that is all -inf?"
        limit = tolerance * a.abs().clamp(min=1.0).masked_fill(a.isinf(), 0)  # an infinite number has no neighbours
        wrong = ~(((a - b).abs() <= limit) | (a == b) | (torch.isnan(a) & torch.isnan(b)))
    if not wrong.any():
        return ""
    index = tuple(int(i) for i in wrong.nonzero()[0])
    got, want = b[index].item(), a[index].item()
    share = f"{int(wrong.sum())} of {wrong.numel()} numbers"
    return f"{where} differs in {share}; the first is at {list(index)}: {got:.5g}, expected {want:.5g}"


def _first(problems: Iterable[str]) -> str:
    return next((problem for problem in problems if problem), "")


def _error(raised: _Raised) -> str:
    return f"{type(raised.error).__name__}: {raised.error}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
