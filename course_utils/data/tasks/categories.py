"""Words and their categories: of one word, of a list in which one word does not belong, and that word itself."""

import random
from collections import Counter

from course_utils.data.tasks.base import Item, Task, fits, items_from
from course_utils.data.tasks.words import CATEGORIES

LABELS = tuple(CATEGORIES)
_times = Counter(word for words in CATEGORIES.values() for word in words)
MEMBERS = {category: tuple(word for word in words if _times[word] == 1) for category, words in CATEGORIES.items()}
"""The words of each category that belong to no other one."""


def _word(generator: random.Random, split: str) -> Item | None:
    category = generator.choice(LABELS)
    word = generator.choice(MEMBERS[category])
    return (word, {"word_category": category}) if fits(split, [("category of", word)]) else None


def _list(generator: random.Random, split: str) -> Item | None:
    """Three words of one category and one of another, in any order."""
    category, other = generator.sample(LABELS, 2)
    odd = generator.choice(MEMBERS[other])
    words = generator.sample([*generator.sample(MEMBERS[category], 3), odd], 4)
    if not fits(split, [("listed", word) for word in words]):
        return None
    return ", ".join(words), {"list_category": category, "odd_one_out": odd, "odd_category": other}


_words, _lists = items_from("words", _word), items_from("lists of words", _list)
_KIND, _SOURCE = "category", "lists of words"
TASKS = (
    Task("word_category", "Which category is the word of?", _KIND, "category: ", "words", _words, labels=LABELS),
    Task(
        "list_category",
        "Which category is the list of?",
        _KIND,
        "category of the list: ",
        _SOURCE,
        _lists,
        labels=LABELS,
    ),
    Task("odd_one_out", "Which word does not belong?", _KIND, "odd one out: ", _SOURCE, _lists),
    Task(
        "odd_category",
        "Which category is the odd one of?",
        _KIND,
        "category of the odd one: ",
        _SOURCE,
        _lists,
        labels=LABELS,
        held_out=True,
    ),
)
