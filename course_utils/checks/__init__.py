"""Exercises of the notebooks: check an attempt, ask for a hint, see the solution.

The exercises of a notebook stand in the module that is named after its week and itself; see :mod:`.framework`.
"""

import importlib
import pkgutil
from functools import cache

from course_utils.checks.framework import Exercise, check, hint, judge, solution

__all__ = ["by_notebook", "check", "exercises", "hint", "judge", "solution"]


@cache
def by_notebook() -> dict[str, tuple[Exercise, ...]]:
    """Return the exercises of each notebook in order, under names such as ``02_attention_from_scratch``."""
    found = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        if module.name.startswith("week"):
            notebook = module.name.split("_", 1)[1]
            found[notebook] = tuple(importlib.import_module(f"{__name__}.{module.name}").EXERCISES)
    return found


def exercises() -> dict[str, Exercise]:
    """Return every exercise of the course by its name."""
    return {exercise.name: exercise for group in by_notebook().values() for exercise in group}
