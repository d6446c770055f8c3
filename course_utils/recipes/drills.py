"""Items that drill one skill each: to copy any word, to know what a word is, to read a fact off a search.

A model that has never written some piece of a name does not copy that name, however well it knows what to list. So the
drills, and the words and names put into items of other tasks, are made of all pieces of the vocabulary. None is a name
that a task holds out for itself, and no word that the word forms hold out is inflected; it may be copied or spelled.
"""

import random
import re
from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

from course_utils.data.tasks import tool_use
from course_utils.data.tasks.base import reserved, words
from course_utils.data.tasks.categories import LABELS, MEMBERS
from course_utils.data.tasks.name_pools import FIRMS, GIVEN, SURNAMES, TOWNS
from course_utils.data.tasks.word_forms import NOUNS, VERBS, past, with_s

Pair = tuple[str, str]
FORMS: dict[str, Callable[[str], str]] = {
    "plural": with_s,
    "past": past,
    "third_person": lambda word: f"she {with_s(word)}",
}
"""The rule of each task of word forms."""
ONSETS = words("b c d f g h j k l m n p r s t v w bl br ch cl cr dr fl gr pl pr sc sh sk sl sn sp st str sw th tr wh")
ENDS = words("b d g m n p t r l ck nd st lt mp mb rk ll ss sh ch x sk ft")
PAIRS = words("ai ea ee oa oi oo ou")
HELD_OUT = frozenset(chain(GIVEN["held_out"], SURNAMES["held_out"], TOWNS["held_out"]))


class Pieces(NamedTuple):
    """What words and names are put together from.

    Attributes:
        begin: pieces of the vocabulary with which a word begins.
        go_on: pieces within a word.
    """

    begin: tuple[str, ...]
    go_on: tuple[str, ...]


def pieces(tokenizer: Any) -> Pieces:
    """Return the pieces of a byte-level vocabulary that consist of the letters a to z, those with a capital as small.

    Args:
        tokenizer: the tokenizer.
    """
    tokens = [token for token in tokenizer.get_vocab() if re.fullmatch(r"Ġ?[A-Za-z]?[a-z]*", token)]
    begin = {token[1:].lower() for token in tokens if token.startswith("Ġ") and len(token) > 1}
    go_on = {token for token in tokens if not token.startswith("Ġ") and token.islower()}
    return Pieces(tuple(sorted(begin)), tuple(sorted(go_on)))


def word(made_of: Pieces, chance: random.Random) -> str:
    """Draw a word of two to ten letters from one to three pieces.

    Args:
        made_of: the pieces.
        chance: the source of chance.
    """
    while True:
        found = chance.choice(made_of.begin) + "".join(
            chance.choices(made_of.go_on, k=chance.choice((0, 0, 0, 1, 1, 2)))
        )
        if 2 <= len(found) <= 10 and found.capitalize() not in HELD_OUT:
            return found


def form(task: str, made_of: Pieces, chance: random.Random) -> Pair:
    """Draw a word of three letters or more, and its form by the rule; no word that is held out of the word forms.

    Args:
        task: name of the task.
        made_of: the pieces.
        chance: the source of chance.
    """
    while True:
        found = word(made_of, chance)
        if len(found) > 2 and not re.search(r"([ofzc]|[ioy]e)$", found) and not reserved("word form", found):
            return found, FORMS[task](found)


def short_form(task: str, chance: random.Random) -> Pair:
    """Draw a word of one syllable, and its form: of one vowel or two, with or without an e behind the consonant.

    Which of these double their last letter before -ed the spelling alone tells: glap, but not glape, gloap or glamb.

    Args:
        task: name of the task.
        chance: the source of chance.
    """
    while True:
        onset, vowel = chance.choice(ONSETS), chance.choice("aeiou")
        ends = (
            chance.choice(ENDS),
            chance.choice("bdglmnprt"),
            chance.choice("bcdglmnprstv") + "e",
            chance.choice(ENDS),
        )
        kind = chance.randrange(4)
        found = onset + (chance.choice(PAIRS) if kind == 3 else vowel) + ends[kind]
        if not reserved("word form", found):
            return found, FORMS[task](found)


def renamed(text: str, target: str, made_of: Pieces, chance: random.Random) -> Pair:
    """Give every name in an item another one; the second words of firms stay.

    Args:
        text: the prompt.
        target: the names asked for.
        made_of: the pieces.
        chance: the source of chance.
    """
    new: dict[str, str] = {}

    def other(found: re.Match[str]) -> str:
        name = found[0]
        if name in FIRMS:
            return name
        while name not in new:
            drawn = word(made_of, chance).capitalize()
            if drawn not in FIRMS and drawn not in new.values():
                new[name] = drawn
        return new[name]

    return re.sub(r"[A-Z][a-z]+", other, text), re.sub(r"[A-Z][a-z]+", other, target)


def copy(made_of: Pieces, chance: random.Random) -> Pair:
    """Draw one to six words, to be written down again.

    Args:
        made_of: the pieces.
        chance: the source of chance.
    """
    listed = [word(made_of, chance) for _ in range(chance.randint(1, 6))]
    said = " ".join(one.capitalize() if chance.random() < 0.4 else one for one in listed)
    return f"copy: {said}", said


def letters(made_of: Pieces, chance: random.Random) -> Pair:
    """Draw a word, to be spelled: what a rule of spelling needs to know of a piece of the vocabulary.

    Args:
        made_of: the pieces.
        chance: the source of chance.
    """
    drawn = chance.choice((*NOUNS, *VERBS)) if chance.random() < 0.3 else word(made_of, chance)
    return f"letters: {drawn}", " ".join(drawn)


def pick(made_of: Pieces, chance: random.Random) -> Pair:
    """Draw a category and up to four words of different ones, of which one belongs to it.

    Args:
        made_of: not used.
        chance: the source of chance.
    """
    categories = chance.sample(LABELS, chance.randint(2, 4))
    listed = [chance.choice(MEMBERS[category]) for category in categories]
    said = ", ".join(chance.sample(listed, len(listed)))
    return f"pick the {categories[0]}: {said}", listed[0]


def kinds(made_of: Pieces, chance: random.Random) -> Pair:
    """Draw two to four words, each to be answered by its category.

    Args:
        made_of: not used.
        chance: the source of chance.
    """
    categories = chance.choices(LABELS, k=chance.randint(2, 4))
    return f"kinds: {', '.join(chance.choice(MEMBERS[one]) for one in categories)}", ", ".join(categories)


def kinds_of_list(made_of: Pieces, chance: random.Random) -> Pair:
    """Draw a list as those in which one word does not belong, each word to be answered by its category.

    Args:
        made_of: not used.
        chance: the source of chance.
    """
    category, other = chance.sample(LABELS, 2)
    listed = [(one, category) for one in chance.sample(MEMBERS[category], 3)] + [(chance.choice(MEMBERS[other]), other)]
    said, answered = zip(*chance.sample(listed, 4), strict=True)
    return f"kinds: {', '.join(said)}", ", ".join(answered)


def fact(made_of: Pieces, chance: random.Random) -> Pair:
    """Draw a run of tools that has searched for a fact and must now read it off the result.

    Args:
        made_of: not used.
        chance: the source of chance.
    """
    question, steps, last = tool_use.fact(chance, "train")
    return tool_use.TOOLS.prefix + tool_use.transcript(question, steps), last


DRILLS: dict[str, Callable[[Pieces, random.Random], Pair]] = {
    "copy": copy,
    "letters": letters,
    "pick": pick,
    "kinds": kinds,
    "kinds_of_list": kinds_of_list,
    "fact": fact,
}
