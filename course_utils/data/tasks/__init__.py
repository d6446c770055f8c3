"""Tasks from seeded generators: data sets with known answers, that need no network.

Every task takes an input and gives a target; its prefix says what is to be done (``prompt = task.prefix + input``).
Held-out *items* are apart from the training items by their content (:func:`course_utils.data.tasks.base.reserved`),
held-out *tasks* are marked so and no model of the course is trained on them.
"""

from typing import TYPE_CHECKING

from course_utils.data.tasks import (
    bilingual,
    categories,
    conversions,
    entities,
    questions,
    reviews,
    topics,
    word_forms,
)
from course_utils.data.tasks.base import KINDS, SPLITS, Item, Task

if TYPE_CHECKING:
    import datasets

__all__ = ["KINDS", "SPLITS", "TASKS", "Task", "load", "names", "shortcut"]


def _dialogues(split: str, items: int, seed: int) -> list[Item]:
    from course_utils.data.tasks import dialogues

    return [(text, {**answers, "speakers": _speakers(text)}) for text, answers in dialogues.draw(split, items, seed)]


def _speakers(text: str) -> str:
    """Return who speaks, in the order in which they begin to."""
    return ", ".join(dict.fromkeys(line.split(":")[0] for line in text.splitlines()))


_MODULES = (reviews, topics, entities, questions, bilingual, conversions, word_forms, categories)
TASKS = {task.name: task for module in _MODULES for task in module.TASKS}
"""Every task by its name."""
TASKS["summary"] = Task(
    "summary", "Summarise the dialogue.", "summary", "summarize: ", "dialogues", _dialogues, closed=False
)
TASKS["speakers"] = Task("speakers", "Who speaks?", "summary", "speakers: ", "dialogues", _dialogues, held_out=True)


def names(kind: str | None = None, held_out: bool | None = None) -> list[str]:
    """Return the names of tasks.

    Args:
        kind: only tasks of this kind.
        held_out: True for tasks that no model was trained on, False for the others, None for all.

    Raises:
        ValueError: there is no such kind.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
    return [name for name, task in TASKS.items() if kind in (None, task.kind) and held_out in (None, task.held_out)]


def _task(name: str) -> Task:
    if name not in TASKS:
        raise ValueError(f"name={name!r}: expected one of {', '.join(TASKS)}")
    return TASKS[name]


def shortcut(name: str, items: int = 2000, seed: int = 0) -> float:
    """Return the share of a task's held-out items that a shortcut answers: see :func:`.shortcuts.score`.

    Args:
        name: name of a task.
        items: number of training items, and half as many held-out ones.
        seed: seed of both.

    Raises:
        ValueError: there is no such task, or the number is out of range.
    """
    from course_utils.data.tasks.shortcuts import score

    return score(_task(name), items, seed)


def load(name: str, split: str = "train", items: int = 1000, seed: int = 0) -> "datasets.Dataset":
    """Return a task's examples as a data set with the fields ``input`` (without the prefix), ``target`` and ``task``.

    Args:
        name: name of a task, as :func:`names` lists them.
        split: ``train`` or ``held_out``: no held-out item can be drawn for training.
        items: number of examples.
        seed: seed of the draw.

    Raises:
        ValueError: there is no such task or split, or the number is out of range.
    """
    pairs = _task(name).generate(split, items, seed)
    from datasets import Dataset

    return Dataset.from_dict(
        {"input": [text for text, _ in pairs], "target": [target for _, target in pairs], "task": [name] * len(pairs)}
    )
