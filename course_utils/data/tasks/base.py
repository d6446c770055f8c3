"""What all tasks share: the Task itself, and the rule that keeps held-out items out of training.

A *source* draws inputs, each with its answers to all tasks of that source, so that one text under several prefixes asks
for different things, and only a model that reads the prefix can tell which. An item is held out by its content: one
fingerprint in six of a word, a name or a combination is reserved, and training items hold none of these. So the splits
are apart whatever the seeds are, and however many items are drawn.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

SPLITS = ("train", "held_out")
KINDS = ("sentiment", "topic", "entities", "questions", "summary", "translation", "conversion", "category")
RESERVED_SHARE = 6
"""One fingerprint in this many is reserved for the held-out split."""

Key = tuple[str, ...]
"""What an item is made of, as :func:`reserved` takes it: what it is used for, then words."""
Pairs = list[tuple[str, str]]
Item = tuple[str, Mapping[str, str]]
"""An input, and its target for each task of the source."""


@dataclass(frozen=True)
class Task:
    """One task: what to do with an input, said by its prefix as in T5 and FLAN (Raffel et al., 2020; Wei et al., 2022).

    Attributes:
        name: short name, unique.
        title: what is to be done, in words.
        kind: group of tasks, one of ``KINDS``.
        prefix: stands before the input in a prompt.
        source: name of what draws the inputs: tasks of one source get the same inputs for the same seed.
        draw: ``draw(split, items, seed)`` gives the items of the source.
        closed: there is one right answer, which exact match scores; a summary can be right in other words.
        labels: all possible targets, where they are few, else None.
        held_out: no model of the course is trained on this task.
    """

    name: str
    title: str
    kind: str
    prefix: str
    source: str
    draw: Callable[[str, int, int], list[Item]]
    closed: bool = True
    labels: tuple[str, ...] | None = None
    held_out: bool = False

    def generate(self, split: str = "train", items: int = 1000, seed: int = 0) -> Pairs:
        """Return (input, target) pairs, the input without the prefix.

        They are drawn independently: where the pool is small, some come more than once.

        Args:
            split: ``train`` or ``held_out``.
            items: number of pairs.
            seed: seed of the draw; the same seed gives the same pairs on every machine.

        Raises:
            ValueError: there is no such split, or the number is not in 1 to 1,000,000.
        """
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
        if not 1 <= items <= 1_000_000:
            raise ValueError(f"items={items}: expected a whole number from 1 to 1000000")
        return [(text, answers[self.name]) for text, answers in self.draw(split, items, seed)]


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text, for lists that are easier to read as one.

    Args:
        text: words with blanks between them.
    """
    return tuple(text.split())


@cache
def reserved(*content: str) -> bool:
    """Return whether this content, a word or a combination of words, is kept out of the training split.

    Args:
        content: the words; the first says what they are used for, so that each use has its own reserved ones.
    """
    digest = hashlib.sha256("\n".join(content).encode()).digest()
    return int.from_bytes(digest[:4], "big") % RESERVED_SHARE == 0


def pool(use: str, words: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Part words between the splits.

    Args:
        use: what they are used for.
        words: the words.

    Returns:
        The words of each split.
    """
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for word in dict.fromkeys(words):
        found[SPLITS[reserved(use, word)]].append(word)
    return {split: tuple(kept) for split, kept in found.items()}


def items_from(source: str, draw: Callable[[random.Random, str], Item | None]) -> Callable[[str, int, int], list[Item]]:
    """Return ``draw(split, items, seed)`` of a source that draws one item at a time.

    Args:
        source: name of the source, which goes into the seed.
        draw: draws an item of a split, or returns None to be asked once more.
    """

    def draw_items(split: str, items: int, seed: int) -> list[Item]:
        generator = random.Random(f"{source} {split} {seed}")
        found: list[Item] = []
        while len(found) < items:
            item = draw(generator, split)
            if item is not None:
                found.append(item)
        return found

    return draw_items


def fits(split: str, keys: Sequence[Key]) -> bool:
    """Return whether an item belongs to a split: held out if any of its keys is reserved, for training if none is.

    Args:
        split: ``train`` or ``held_out``.
        keys: what the item is made of, each as :func:`reserved` takes it.
    """
    return any(reserved(*key) for key in keys) == (split == "held_out")
