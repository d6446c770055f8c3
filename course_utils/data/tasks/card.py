"""The data card of the tasks, written by code: ``python -m course_utils.data.tasks.card`` writes it again."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from course_utils.data.tasks import KINDS, SPLITS, TASKS, categories, name_pools, names, shortcut, word_forms
from course_utils.data.tasks.base import RESERVED_SHARE, Item, Task
from course_utils.reporting import approx

PATH = Path(__file__).resolve().parents[3] / "supplemental" / "cards" / "data-tasks.md"
DRAWS = 1000
POOLS = {
    "given names": name_pools.GIVEN,
    "family names": name_pools.SURNAMES,
    "towns": name_pools.TOWNS,
    "nouns": word_forms.REAL_NOUNS,
    "regular verbs": word_forms.REAL_VERBS,
    "invented nouns": word_forms.INVENTED_NOUNS,
    "invented verbs": word_forms.INVENTED_VERBS,
}
_TEXT = f"""# Data card: the generated tasks

`course_utils.data.tasks` makes these data sets from seeds, on every machine alike and without a network:
`tasks.load("sentiment", "train", items=1000, seed=0)` gives a `datasets.Dataset` with the fields `input`, `target` and
`task`. A prompt is the task's prefix and the input. All texts are made by this repository's code and come under its
licence; people, firms and most towns in them are invented.

## What is held out

- **Items**: an item of the `held_out` split contains a word, a name or a combination that no training item contains.
  The SHA-256 fingerprint of the content decides which ones, about one in {RESERVED_SHARE}, so the splits are apart
  for all seeds and all numbers of items.
- **Tasks**: no model of the course is trained on the tasks marked "held out". Most of them share their inputs with
  tasks that models are trained on (the column "inputs"): for the same seed the inputs are equal, and only the prefix
  tells what is asked.
- **Label mappings** that only the examples in a prompt define are in `course_utils.data.tasks.episodes`.

## What a shortcut gets

The last column is the share of 1,000 held-out items that a shortcut answers, trained on 2,000 others (seed 0). Where
the targets are labels, it is logistic regression on a bag of words; elsewhere it is the word at the best fixed place of
the input, or the most frequent target. "Distinct" counts the different inputs among {DRAWS:,} draws of each split
(train / held out), and "most frequent" is the largest share that one target has in training.
"""
_LIMITS = """
## Limits

- The sentences come from templates: a score says whether a model has learned these rules, not how it reads English.
- Rules have no exceptions: only regular verbs and nouns occur, in sentiment the clause after "but" always decides.
- A bag of words does name the category of a list, for most of its words belong to it; the other tasks on these lists
  need more.
- A held-out word of `word_category` occurs in training lists of other tasks: nothing else tells what it means.
- Names are of European spelling for the most part.
"""


def card(shortcuts: Mapping[str, float] | None = None) -> str:
    """Return the data card as Markdown.

    Args:
        shortcuts: the shortcut's score of each task, in 0 to 1; measured (some 20 s) if not given.
    """
    if shortcuts is None:
        shortcuts = {name: shortcut(name) for name in TASKS}
    sources = {task.source: task.draw for task in TASKS.values()}
    drawn = {source: {split: draw(split, DRAWS, 0) for split in SPLITS} for source, draw in sources.items()}
    text = _TEXT
    for kind in KINDS:
        trained, unseen = len(names(kind, held_out=False)), len(names(kind, held_out=True))
        text += f"\n## {kind.capitalize()}: {trained} to train on, {unseen} held out\n\n"
        text += _row("task", "prefix", "an input", "its target", "inputs", "distinct", "most frequent", "shortcut")
        text += _row(*["---"] * 8)
        text += "".join(_task(TASKS[name], drawn[TASKS[name].source], shortcuts[name]) for name in names(kind))
    text += "\n## Pools of words\n\n" + _row("pool", *SPLITS) + _row(*["---"] * 3)
    for pool, parts in POOLS.items():
        text += _row(pool, *(f"{len(parts[split]):,}" for split in SPLITS))
    members = categories.MEMBERS
    text += f"\nCategories: {len(members)}, with {sum(map(len, members.values()))} words; each task reserves its own.\n"
    return text + _LIMITS


def _task(task: Task, items: Mapping[str, list[Item]], score: float) -> str:
    distinct = [len({text for text, _ in items[split]}) for split in SPLITS]
    usual = Counter(answers[task.name] for _, answers in items["train"]).most_common(1)[0][1] / DRAWS
    example, answers = min(items["train"][:20], key=lambda item: len(item[0]))
    return _row(
        f"`{task.name}`, held out" if task.held_out else f"`{task.name}`",
        f"`{task.prefix}`",
        example.replace("\n", " / "),
        answers[task.name],
        task.source,
        f"{distinct[0]:,} / {distinct[1]:,}",
        f"{usual:.0%}",
        f"{approx(100 * score, 0)}%",
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def write(path: Path = PATH) -> None:
    """Write the card.

    Args:
        path: the file, by default that of the repository.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(card(), encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    write()
