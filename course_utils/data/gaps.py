"""Gaps in running text: a word to be guessed, with what stands before and behind it."""

import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

CLUES = ("before", "behind", "nowhere")
"""Where in a gap's surroundings its word stands a second time."""
WORD = re.compile(r"(?<=[\w,.;:)`] )[A-Za-z]{3,}(?=[ .,;:\n])")


class Gap(NamedTuple):
    """A word that is hidden.

    Attributes:
        before: the text before it, without the space between them.
        word: the word.
        behind: the text behind it.
        clue: one of :data:`CLUES`.
    """

    before: str
    word: str
    behind: str
    clue: str


def gaps(
    texts: Sequence[str],
    each: int,
    seed: int = 0,
    before: int = 160,
    behind: int = 120,
    fits: Callable[[str], bool] = lambda word: True,
) -> list[Gap]:
    """Draw gaps, as many of each clue: the word stands again before, again behind, or nowhere else.

    Words that stand on both sides are left out.

    Args:
        texts: running texts.
        each: number of gaps for each clue.
        seed: seed of the draw.
        before: letters of context before the gap.
        behind: letters of context behind it.
        fits: whether a word may be hidden, for example because it is one token.

    Returns:
        The gaps, clue by clue.

    Raises:
        ValueError: the texts have too few gaps.
    """
    if each < 1:
        raise ValueError(f"each={each}: expected 1 or more")
    found: dict[str, list[Gap]] = {clue: [] for clue in CLUES}
    chance = random.Random(seed)
    places = [
        (text, match)
        for text in texts
        for match in WORD.finditer(text)
        if match.start() > before and match.end() + behind < len(text)
    ]
    for text, match in chance.sample(places, len(places)):
        left, word = text[match.start() - 1 - before : match.start() - 1], match[0]
        right = text[match.end() : match.end() + behind]
        again = [bool(re.search(rf"\b{word}\b", side, re.IGNORECASE)) for side in (left, right)]
        clue = "before" if again[0] else "behind" if again[1] else "nowhere"
        if len(found[clue]) < each and not all(again) and fits(word):
            found[clue].append(Gap(left, word, right, clue))
        if all(len(some) == each for some in found.values()):
            break
    for clue, some in found.items():
        if len(some) < each:
            raise ValueError(
                f"only {len(some)} of {each} gaps with a clue {clue} were found: give more or longer texts"
            )
    return [gap for some in found.values() for gap in some]
