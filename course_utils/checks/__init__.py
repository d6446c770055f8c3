"""Exercises of the notebooks: check an attempt, ask for a hint, see the solution.

The exercises of a notebook stand in the module of this package that is named after it; see :mod:`.framework`.
"""

import importlib
import pkgutil
from functools import cache

from course_utils.checks.framework import Exercise, check, hint, judge, solution

__all__ = ["by_notebook", "check", "exercises", "hint", "judge", "solution"]


@cache
def by_notebook() -> dict[str, tuple[Exercise, ...]]:
    """Return the exercises of each notebook, under the names of the modules that hold them, in the course's order."""
    found = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        if module.name.startswith("week"):
            found[module.name] = tuple(importlib.import_module(f"{__name__}.{module.name}").EXERCISES)
    return found


def exercises() -> dict[str, Exercise]:
    """Return every exercise of the course by its name."""
    return {exercise.name: exercise for group in by_notebook().values() for exercise in group}
