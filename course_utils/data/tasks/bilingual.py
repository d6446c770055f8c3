"""The two grammars of :mod:`course_utils.data.tasks.translation` as tasks: both directions, and word order."""

import random

from course_utils.data.tasks.base import Item, Task, items_from
from course_utils.data.tasks.translation import Sentence, draw, reserved


def _sentence(generator: random.Random, split: str) -> Sentence:
    """Draw a sentence; those with a reserved pair of adjective and noun, and only those, are held out."""
    while True:
        sentence = draw(generator)
        if any(reserved(*pair) for pair in sentence.pairs) == (split == "held_out"):
            return sentence


def _english(generator: random.Random, split: str) -> Item:
    sentence = _sentence(generator, split)
    order = " ".join(sentence.source[place] for place in sentence.alignment if place >= 0)
    return " ".join(sentence.source), {"to_german": " ".join(sentence.target), "german_order": order}


def _german(generator: random.Random, split: str) -> Item:
    sentence = _sentence(generator, split)
    return " ".join(sentence.target), {"to_english": " ".join(sentence.source)}


_from_english, _from_german = items_from("english sentences", _english), items_from("german sentences", _german)
_KIND, _SOURCE = "translation", "english sentences"
TASKS = (
    Task("to_german", "Translate to German.", _KIND, "translate English to German: ", _SOURCE, _from_english),
    Task(
        "to_english", "Translate to English.", _KIND, "translate German to English: ", "german sentences", _from_german
    ),
    Task(
        "german_order",
        "Put the English words in German order.",
        _KIND,
        "german word order: ",
        _SOURCE,
        _from_english,
        held_out=True,
    ),
)
