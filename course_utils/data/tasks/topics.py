"""Notes that name several topics; how the sentence is built tells which one is meant, the words alone do not."""

import random

from course_utils.data.tasks.base import Item, Task, fits, items_from, words

WORDS = {
    "film": words("actor scene script camera screen director dialogue studio cinema hero"),
    "food": words("recipe sauce oven cheese bread pepper kitchen butter spice dessert"),
    "travel": words("luggage train airport map passport beach ticket harbour tour suitcase"),
    "sport": words("goal referee coach stadium team medal racket defender striker league"),
    "music": words("guitar violin drum chorus singer melody piano choir rhythm trumpet"),
}
TOPICS = tuple(WORDS)
FORMS = (
    "on the way to the {other} we talked only about the {main}.",
    "we spoke of the {main} all day, and the {other} did not come up.",
    "the {other} can wait; my question is about the {main}.",
    "my question is about the {main}; the {other} can wait.",
    "this is not a note about the {other} but about the {main}.",
    "this is a note about the {main}, not about the {other}.",
    "forget the {other}: what matters now is the {main}.",
    "what matters now is the {main}, so forget the {other}.",
    "i wanted to write about the {other}, but the {main} would not let me go.",
    "instead of the {other}, they explained the {main}.",
    "they explained the {main} instead of the {other}.",
    "the {main} kept us so busy that nobody thought of the {other}.",
    "nobody thought of the {other}, so busy were we with the {main}.",
)
"""Each names the main thing and another one, in both orders."""


def _draw(generator: random.Random, split: str) -> Item | None:
    topic, side = generator.sample(TOPICS, 2)
    main, other = (generator.sample(WORDS[which], generator.choice((1, 2))) for which in (topic, side))
    if not fits(split, [("topic", main[0], other[0])]):
        return None
    text = generator.choice(FORMS).format(main=" and the ".join(main), other=" and the ".join(other))
    return text, {"topic": topic, "side_topic": side}


_items = items_from("notes", _draw)
TASKS = (
    Task("topic", "What is the note about?", "topic", "topic: ", "notes", _items, labels=TOPICS),
    Task(
        "side_topic",
        "Which topic does the note name only in passing?",
        "topic",
        "side topic: ",
        "notes",
        _items,
        labels=TOPICS,
        held_out=True,
    ),
)
