"""Named entities: people, places and firms in short reports, listed in the order of the text.

Families and towns have names of the same kind, and a firm may be called after either, so that the words around a name
must be read. Names of the held-out split are in no training item.
"""

import random
import re

from course_utils.data.tasks.base import Item, Task, items_from
from course_utils.data.tasks.name_pools import TOWNS, firm, person

FORMS = (
    "{person} moved from {place} to {place}.",
    "last year {person} met {person} in {place}.",
    "{firm} opened an office in {place}.",
    "{person} left {firm} and went to {place}.",
    "in {place}, {person} works for {firm}.",
    "{firm} has bought {firm}, said {person}.",
    "a train from {place} to {place} was late.",
    "{person} wrote to {person} about {firm}.",
    "the mayor of {place} thanked {person}.",
    "{person} was born in {place}.",
    "{firm} is looking for {person}.",
    "it rained in {place} when {person} arrived.",
)
"""Sentences with a slot for each entity."""
OPENINGS = ("", "", "yesterday we heard this: ", "a short report: ", "the news of the day: ")


def _draw(generator: random.Random, split: str) -> Item:
    makers = {
        "person": lambda: person(generator, split),
        "place": lambda: generator.choice(TOWNS[split]),
        "firm": lambda: firm(generator, split),
    }
    found: list[tuple[str, str]] = []

    def fill(slot: re.Match[str]) -> str:
        name = makers[slot[1]]()
        while name in (taken for _, taken in found):
            name = makers[slot[1]]()
        found.append((slot[1], name))
        return name

    sentences = " ".join(generator.sample(FORMS, generator.choice((1, 2))))
    text = generator.choice(OPENINGS) + re.sub(r"\{(\w+)\}", fill, sentences)
    listed = {kind: ", ".join(name for of, name in found if of == kind) or "nobody" for kind in makers}
    return text, {
        "entities": "; ".join(f"{kind}: {name}" for kind, name in found),
        "people": listed["person"],
        "places": listed["place"].replace("nobody", "nowhere"),
        "firms": listed["firm"].replace("nobody", "none"),
    }


_items = items_from("reports", _draw)
TASKS = (
    Task("entities", "List people, places and firms with their kind.", "entities", "entities: ", "reports", _items),
    Task("people", "List the people.", "entities", "people: ", "reports", _items),
    Task("places", "List the places.", "entities", "places: ", "reports", _items),
    Task("firms", "List the firms.", "entities", "firms: ", "reports", _items, held_out=True),
)
