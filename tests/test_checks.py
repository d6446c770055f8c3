"""The exercise framework, and every check of the course: the reference passes, each mistake fails in its own words."""

import numpy as np
import pytest
import torch

from course_utils import checks, progress
from course_utils.checks import framework
from course_utils.checks.framework import Exercise, Mistake, case, judge

EXERCISES = list(checks.exercises().values())
each = pytest.mark.parametrize("exercise", EXERCISES, ids=[exercise.name for exercise in EXERCISES])


def double(x):
    """Return twice x."""
    return 2 * x


def sample(**changes):
    parts = {
        "name": "test.double",
        "title": "Doubling",
        "minutes": 1,
        "difficulty": 1,
        "importance": 1,
        "reference": double,
        "cases": lambda: [case(torch.tensor([1.0, -2.0, 3.5])), case(torch.tensor([[0.5], [4.0]]))],
        "mistakes": [Mistake(lambda x: x**2, "you squared")],
        "hints": ["one", "two"],
    }
    return Exercise(**(parts | changes))


@each
def test_reference_passes(exercise):
    verdict = judge(exercise, exercise.reference)
    assert verdict.state == "passed", verdict.message


@each
def test_stub_is_not_attempted(exercise):
    assert judge(exercise, lambda *args, **kwargs: ...).state == "not attempted"


@each
def test_each_mistake_fails_in_its_own_words(exercise):
    assert len(exercise.mistakes) >= 3
    messages = [mistake.message for mistake in exercise.mistakes]
    assert len(set(messages)) == len(messages)
    for mistake in exercise.mistakes:
        assert judge(exercise, mistake.function) == framework.Verdict("failed", mistake.message)


@each
def test_nonsense_fails(exercise):
    def perturbed(*args, **kwargs):
        return _perturb(exercise.reference(*args, **kwargs))

    for attempt in (lambda *a, **k: None, lambda *a, **k: 0, lambda *a, **k: torch.zeros(3), perturbed, 7):
        assert judge(exercise, attempt).state == "failed"


def _perturb(value):
    """A result that is off by a little: 1 % in a number, one item in a list."""
    if isinstance(value, torch.Tensor):
        return value * 1.01 + 0.01 if value.is_floating_point() else ~value if value.dtype == torch.bool else value + 1
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 1.01 + 0.01
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, dict):
        return {key: _perturb(item) for key, item in value.items()} or {"x": 1}
    if isinstance(value, (list, tuple)):
        return type(value)(_perturb(item) for item in value) if len(value) else [1]
    return "something else"


@each
def test_texts_are_complete(exercise):
    assert len(exercise.hints) >= 2
    assert 1 <= exercise.difficulty <= 5 and 1 <= exercise.importance <= 5 and exercise.minutes > 0
    assert exercise.reference.__doc__
    assert len(list(exercise.cases())) >= 2


def test_diagnoses():
    exercise = sample()
    assert judge(exercise, lambda x: x * x).message == "you squared"
    assert "shape" in judge(exercise, lambda x: (2 * x).sum()).message
    assert "return" in judge(exercise, lambda x: None).message
    assert "dtype" in judge(exercise, lambda x: (2 * x).double()).message
    assert "NaN" in judge(exercise, lambda x: x * float("nan")).message
    assert "ZeroDivisionError" in judge(exercise, lambda x: 1 / 0).message
    assert (
        "the first is at [1]: -4.1, expected -4"
        in judge(exercise, lambda x: torch.where(x < 0, x * 2.05, x * 2)).message
    )
    assert "changed its arguments" in judge(exercise, lambda x: x.mul_(2)).message
    assert "expected a function" in judge(exercise, torch.zeros(2)).message
    assert judge(exercise, ...).state == "not attempted"
    assert judge(exercise, lambda x: x + x).state == "passed"


def test_a_number_may_come_as_an_array_of_one_and_as_no_other():
    exercise = sample(reference=lambda x: 2.0 * x, cases=lambda: [case(3.0)], mistakes=())
    for right in (torch.tensor(6.0), torch.tensor([6.0]), np.float64(6), np.array([[6.0]])):
        assert judge(exercise, lambda x, right=right: right).state == "passed"
    for wrong in (torch.ones(2), np.ones(3), np.ones(0), "6"):
        assert "should be a number" in judge(exercise, lambda x, wrong=wrong: wrong).message


def test_right_on_one_case_only_fails():
    assert "case 2 of 2" in judge(sample(), lambda x: 2 * x if x.ndim == 1 else x).message


def test_tolerance_is_relative_above_one():
    exercise = sample(cases=lambda: [case(torch.tensor([1000.0, 1.0]))])
    assert judge(exercise, lambda x: 2 * x * (1 + 1e-6)).state == "passed"
    assert judge(exercise, lambda x: 2 * x * (1 + 1e-3)).state == "failed"


def test_expected_errors_are_compared():
    def root(x):
        """Return the root."""
        if x < 0:
            raise ValueError("no root")
        return x**0.5

    exercise = sample(reference=root, cases=lambda: [case(4.0), case(-1.0)], mistakes=[])
    assert judge(exercise, root).state == "passed"
    assert "must be refused with a ValueError" in judge(exercise, lambda x: abs(x) ** 0.5).message


def test_check_goes_on_with_the_right_function(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_HOME", str(tmp_path))
    monkeypatch.setattr(checks, "exercises", lambda: {"test.double": sample()})
    assert checks.check("test.double", lambda x: ...) is double
    assert "[not attempted yet] Doubling" in capsys.readouterr().out
    assert checks.check("test.double", lambda x: x) is double
    assert "[not yet right] Doubling" in capsys.readouterr().out
    assert progress.passed() == {}
    own = lambda x: x + x  # noqa: E731
    assert checks.check("test.double", own) is own
    assert "[passed]" in capsys.readouterr().out
    assert list(progress.passed()) == ["test.double"]


def test_hints_come_in_steps_and_the_solution_is_the_source(capsys, monkeypatch):
    monkeypatch.setattr(checks, "exercises", lambda: {"test.double": sample()})
    monkeypatch.setattr(framework, "_given", {})
    for _ in range(3):
        checks.hint("test.double")
    assert capsys.readouterr().out.splitlines() == ["Hint 1 of 2: one", "Hint 2 of 2: two", "Hint 2 of 2: two"]
    checks.solution("test.double")
    assert "return 2 * x" in capsys.readouterr().out


def test_unknown_exercise_is_refused():
    with pytest.raises(ValueError, match="no exercise 'nope'"):
        checks.check("nope", double)


def test_progress_survives_a_damaged_file(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_HOME", str(tmp_path))
    progress.record("a.b")
    assert list(progress.passed()) == ["a.b"]
    (tmp_path / "progress.json").write_text('{"passed": {"a.b"')
    assert progress.passed() == {}
    assert (tmp_path / "progress.json.bad").is_file()
    progress.record("c.d")
    assert list(progress.passed()) == ["c.d"]
    progress.reset()
    assert progress.passed() == {}
