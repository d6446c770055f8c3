"""Questions over a short passage; the answer is a span of it, and other sentences hold wrong ones like it."""

import random

from course_utils.data.tasks.base import Item, Task, fits, items_from, words
from course_utils.data.tasks.name_pools import GIVEN, TOWNS

JOBS = words("""
baker pilot nurse painter farmer lawyer singer driver teacher dentist plumber waiter sailor tailor barber
gardener judge librarian butcher carpenter""")
PETS = words("dog cat parrot rabbit hamster turtle pony goat canary lizard snake duck")
COLOURS = words("red blue green black white yellow brown grey purple golden pink silver")
DRINKS = words("tea coffee milk water juice lemonade cocoa cider soda wine")
FACTS = {
    "town": ("{name} lives in {value}.", "where does {name} live?", "who lives in {value}?"),
    "job": ("{name} works as a {value}.", "what is the job of {name}?", "who works as a {value}?"),
    "pet": ("{name} has a {value}.", "which pet does {name} have?", "who has a {value}?"),
    "car": ("{name} drives a {value} car.", "which colour is the car of {name}?", "who drives a {value} car?"),
    "drink": ("{name} likes to drink {value}.", "what does {name} like to drink?", "who likes to drink {value}?"),
}
"""What can be said of a person: sentence, question for the value, question for the name."""
_VALUES = {"job": JOBS, "pet": PETS, "car": COLOURS, "drink": DRINKS}


def _people(generator: random.Random, split: str) -> Item | None:
    kinds = generator.sample(sorted(FACTS), 2)
    number = generator.choice((2, 3))
    names = generator.sample(GIVEN[split], number)
    values = {kind: generator.sample(_VALUES.get(kind, TOWNS[split]), number) for kind in kinds}
    facts = [(kind, name, value) for kind in kinds for name, value in zip(names, values[kind], strict=True)]
    generator.shuffle(facts)
    passage = " ".join(FACTS[kind][0].format(name=name, value=value) for kind, name, value in facts)
    kind, name, value = generator.choice(facts)
    return passage, {"kind": kind, "name": name, "value": value}


def _question(generator: random.Random, split: str) -> Item | None:
    passage, fact = _people(generator, split) or ("", {})
    text = FACTS[fact["kind"]][1].format(name=fact["name"])
    return f"{text} {passage}", {"question": fact["value"]}


def _who(generator: random.Random, split: str) -> Item | None:
    passage, fact = _people(generator, split) or ("", {})
    text = FACTS[fact["kind"]][2].format(value=fact["value"])
    return f"{text} {passage}", {"who": fact["name"]}


THINGS = words("key ring letter coin ticket photo watch pen spoon candle needle button stamp map glove")
SPOTS = words("box drawer basket bag bottle jar pocket cupboard chest bucket tin suitcase barrel crate vase")


def _moves(generator: random.Random, split: str) -> Item | None:
    """Two things are put somewhere and moved on; a task of bAbI's kind (Weston et al., 2016)."""
    things, places = generator.sample(THINGS, 2), generator.sample(SPOTS, 4)
    stories = [
        [f"the {things[0]} was put in the {places[0]}.", f"then the {things[0]} went into the {places[1]}."],
        [f"the {things[1]} was put in the {places[2]}.", f"then the {things[1]} went into the {places[3]}."],
    ]
    asked = generator.choice((0, 1))
    if not fits(split, [("moves", things[asked], places[2 * asked]), ("moves", things[asked], places[2 * asked + 1])]):
        return None
    order = generator.sample((0, 0, 1, 1), 4)
    told = " ".join(stories[number].pop(0) for number in order)
    first, last = places[2 * asked], places[2 * asked + 1]
    return f"the {things[asked]}? {told}", {"where_now": last, "where_first": first}


_moved = items_from("moves", _moves)
TASKS = (
    Task(
        "question",
        "Answer a question on a passage.",
        "questions",
        "question: ",
        "facts",
        items_from("facts", _question),
    ),
    Task("where_now", "Where is the thing now?", "questions", "where is it now: ", "moves", _moved),
    Task(
        "who",
        "Answer a question for a person.",
        "questions",
        "who is it: ",
        "facts about somebody",
        items_from("facts about somebody", _who),
        held_out=True,
    ),
    Task(
        "where_first",
        "Where was the thing first?",
        "questions",
        "where was it first: ",
        "moves",
        _moved,
        held_out=True,
    ),
)
