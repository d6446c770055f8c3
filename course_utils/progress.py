"""The learner's own progress: which exercises passed, kept in one small file on this computer and nowhere else."""

import json
import os
import tempfile
from datetime import date
from pathlib import Path

from course_utils.environment import home_folder


def progress_file() -> Path:
    """Return the path of the progress file, ``progress.json`` in :func:`course_utils.environment.home_folder`."""
    return home_folder() / "progress.json"


def passed() -> dict[str, str]:
    """Return the exercises that passed so far: name to the day on which it first did.

    A file that cannot be read as such (cut off, edited) counts as empty; it is kept beside as ``progress.json.bad``.
    """
    path = progress_file()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["passed"]
        return {str(name): str(day) for name, day in found.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        os.replace(path, path.with_suffix(".json.bad"))
        return {}


def record(name: str) -> None:
    """Note that an exercise passed today; the first day stays.

    Where the file cannot be written (a read-only home), the course goes on without it.
    """
    try:
        known = passed()
        if name in known:
            return
        known[name] = date.today().isoformat()
        path = progress_file()
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            json.dump({"passed": known}, file, indent=1)
        os.replace(file.name, path)
    except OSError:
        return


def reset() -> None:
    """Forget all progress (the file is deleted)."""
    progress_file().unlink(missing_ok=True)


def summary() -> None:
    """Show a table of the exercises by notebook: how many there are, how many passed, which are left."""
    from course_utils.checks import by_notebook
    from course_utils.reporting import table

    done = passed()
    rows = []
    for notebook, exercises in by_notebook().items():
        left = [exercise.name for exercise in exercises if exercise.name not in done]
        rows.append((notebook, len(exercises), len(exercises) - len(left), ", ".join(left) or "none"))
    table(
        rows,
        ["notebook", "exercises", "passed", "still open"],
        caption="Your progress (kept on this computer only)",
    )
