"""Quizzes: questions from a file, shown so that every option opens its own explanation, with no kernel needed."""

import html
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Option:
    """One answer to a question: its text, whether it is the right one, and why."""

    text: str
    correct: bool
    why: str


@dataclass(frozen=True)
class Question:
    """A question and its options, exactly one of which is right."""

    text: str
    options: tuple[Option, ...]


def quiz_names() -> list[str]:
    """Return the names of all quizzes, such as ``week1/02_attention_from_scratch``."""
    files = resources.files("course_utils").joinpath("quizzes").iterdir()
    return sorted(file.name.removesuffix(".toml").replace("_", "/", 1) for file in files if file.name.endswith(".toml"))


@cache
def questions(name: str) -> tuple[Question, ...]:
    """Return the questions of a quiz.

    Args:
        name: week and notebook, such as ``week1/02_attention_from_scratch``.

    Raises:
        ValueError: there is no such quiz, or a question has not exactly one right option.
    """
    if name not in quiz_names():
        raise ValueError(f"there is no quiz {name!r}; there are: {', '.join(quiz_names())}")
    file = resources.files("course_utils").joinpath("quizzes", name.replace("/", "_") + ".toml")
    found = []
    for entry in tomllib.loads(file.read_text(encoding="utf-8"))["question"]:
        options = tuple(Option(option["text"], option["correct"], option["why"]) for option in entry["option"])
        if sum(option.correct for option in options) != 1:
            raise ValueError(f"quiz {name}: the question {entry['text']!r} must have exactly one right option")
        found.append(Question(entry["text"], options))
    return tuple(found)


def quiz(name: str) -> None:
    """Display a quiz: open an option to read whether it is right and why.

    Args:
        name: week and notebook, such as ``week1/02_attention_from_scratch``.

    Raises:
        ValueError: there is no such quiz.
    """
    from IPython.display import display

    parts, lines = [], []
    for number, question in enumerate(questions(name), 1):
        parts.append(f"<p><strong>{number}. {html.escape(question.text)}</strong></p>")
        lines.append(f"{number}. {question.text}")
        for letter, option in zip("abcdef", question.options, strict=False):
            verdict = "Right." if option.correct else "No."
            parts.append(
                f"<details style='margin:0 0 .4em 1.2em'><summary>{letter}) {html.escape(option.text)}</summary>"
                f"<p style='margin:.2em 1.4em'><strong>{verdict}</strong> {html.escape(option.why)}</p></details>"
            )
            lines.append(f"   {letter}) {option.text}")
    intro = "<p>Choose an answer, then open it.</p>"
    display({"text/html": f"<div>{intro}{''.join(parts)}</div>", "text/plain": "\n".join(lines)}, raw=True)
