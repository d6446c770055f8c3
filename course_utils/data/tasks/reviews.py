"""Reviews: short texts in which the single words do not tell whether the reviewer was pleased, nor what is reviewed.

Praise and blame use the same words: negation turns them round ("was not dull"), in a contrast only one side counts
("the price was awful, but ..."), a comparison depends on which side the thing reviewed stands, and what others said
may be wrong. Every review names a second thing, and only the sentence tells which of the two is reviewed.
"""

import random

from course_utils.data.tasks.base import Item, Key, Task, fits, items_from, words

SUBJECTS = {
    "film": words("film movie comedy thriller documentary cartoon"),
    "food": words("soup pizza salad curry sandwich pancake"),
    "travel": words("hotel flight cruise hostel camp ferry"),
    "sport": words("match race final tournament marathon derby"),
    "music": words("concert album song opera duet symphony"),
}
"""What is reviewed: topic to words for it."""
TOPICS = tuple(SUBJECTS)
ASPECTS = words("beginning ending price staff atmosphere design pace style mood sound idea team light quality")
GOOD = words("wonderful brilliant superb charming excellent delightful splendid lovely great pleasant perfect clever")
BAD = words("awful dreadful terrible dull boring poor weak horrible bland clumsy tedious unpleasant")
NEGATIONS = ("not", "never", "hardly", "far from", "anything but")
OPENINGS = (
    ("we chose the {main} and not the {other}.", "we did not choose the {other} but the {main}."),
    ("after the {other} we tried the {main}.", "we tried the {main} after the {other}."),
    ("this is about the {main}, not about the {other}.", "this is not about the {other} but about the {main}."),
    ("instead of the {other} i took the {main}.", "i took the {main} instead of the {other}."),
    ("a friend praised the {other}, i went for the {main}.", "i went for the {main}, a friend praised the {other}."),
    ("before the {other} i tried the {main}.", "i tried the {main} before the {other}."),
)
"""How a review begins: one form names the thing reviewed first, the other one last."""
FORMS = ("agree", "but", "but", "although", "although", "saved", "others", "expected", "compared")
"""How a verdict is put, the contrasts twice as often as the rest."""
LABELS = ("negative", "positive")


def _clause(generator: random.Random, aspect: str, good: bool) -> tuple[str, Key]:
    """Say something good or bad of an aspect, half of the time by negation; also returns (aspect, adjective)."""
    said, adjective = _opinion(generator, good)
    return f"the {aspect} was {said}", ("aspect", aspect, adjective)


def _opinion(generator: random.Random, good: bool) -> tuple[str, str]:
    negated = generator.random() < 0.5
    adjective = generator.choice(GOOD if good != negated else BAD)
    return (f"{generator.choice(NEGATIONS)} {adjective}" if negated else adjective), adjective


def _verdict(generator: random.Random, good: bool, main: str, other: str) -> tuple[str, dict[str, bool], list[Key]]:
    """Draw a verdict: its words, whether each aspect is good (in the order of the text), reserved combinations."""
    first, second = generator.sample(ASPECTS, 2)
    form = generator.choice(FORMS)
    if form in ("agree", "but", "although"):
        side = good if form == "agree" else not good  # of the clause that does not decide
        weak, weak_key = _clause(generator, first, side)
        strong, strong_key = _clause(generator, second, good)
        keys = [weak_key, strong_key]
        if form == "although" and generator.random() < 0.5:
            return f"{strong}, although {weak}.", {second: good, first: side}, keys
        texts = {"agree": f"{weak} and {strong}.", "but": f"{weak}, but {strong}."}
        return texts.get(form, f"although {weak}, {strong}."), {first: side, second: good}, keys
    if form == "saved":
        saves = generator.random() < 0.5
        happened = saves == good
        clause, key = _clause(generator, first, not saves)
        did = "did in the end" if happened else "did not in the end"
        text = f"{clause}, and the {second} {did} {'save' if saves else 'ruin'} the {main}."
        return text, {first: not saves} | ({second: saves} if happened else {}), [key]
    if form == "others":
        right = generator.random() < 0.5
        adjective = generator.choice(GOOD if good == right else BAD)
        who = generator.choice(("the papers", "the critics", "my friends", "my parents"))
        return (
            f"{who} called the {first} {adjective}, and they were {'right' if right else 'wrong'}.",
            {first: good},
            [("aspect", first, adjective)],
        )
    if form == "expected":
        before, _ = _opinion(generator, not good)
        after, adjective = _opinion(generator, good)
        keys = [("aspect", first, adjective)]
        if generator.random() < 0.5:
            return f"the {first} was {after}, and i had expected it to be {before}.", {first: good}, keys
        return f"i had expected the {first} to be {before}, and it was {after}.", {first: good}, keys
    rival = generator.choice((f"the {other}", f"the last {main}", "the one before"))
    this = generator.choice(("this one", f"this {main}"))
    better = generator.random() < 0.5
    sides = (this, rival) if better == good else (rival, this)
    return f"{sides[0]} was {'better' if better else 'worse'} than {sides[1]}.", {}, []


def _draw(generator: random.Random, split: str) -> Item | None:
    good = generator.random() < 0.5
    topic, other_topic = generator.sample(TOPICS, 2)
    main, other = generator.choice(SUBJECTS[topic]), generator.choice(SUBJECTS[other_topic])
    opening = generator.choice(generator.choice(OPENINGS)).format(main=main, other=other)
    verdict, aspects, keys = _verdict(generator, good, main, other)
    if not fits(split, [("reviewed", main, other), *keys]):
        return None
    return f"{opening} {verdict}", {
        "sentiment": LABELS[good],
        "recommend": "yes" if good else "no",
        "reviewed": topic,
        "praised": ", ".join(aspect for aspect, liked in aspects.items() if liked) or "nothing",
        "criticised": ", ".join(aspect for aspect, liked in aspects.items() if not liked) or "nothing",
    }


_items = items_from("reviews", _draw)
TASKS = (
    Task(
        "sentiment", "Is the review positive or negative?", "sentiment", "sentiment: ", "reviews", _items, labels=LABELS
    ),
    Task("praised", "Which aspects does the review praise?", "sentiment", "praised: ", "reviews", _items),
    Task("reviewed", "What kind of thing is reviewed?", "topic", "reviewed: ", "reviews", _items, labels=TOPICS),
    Task(
        "recommend",
        "Does the reviewer recommend it?",
        "sentiment",
        "recommend: ",
        "reviews",
        _items,
        labels=("no", "yes"),
        held_out=True,
    ),
    Task(
        "criticised",
        "Which aspects does the review criticise?",
        "sentiment",
        "criticised: ",
        "reviews",
        _items,
        held_out=True,
    ),
)
