"""Dialogues and what was agreed in them: the task of DialogSum (Chen et al., 2021) with answers known exactly.

Two or three people talk about a plan. Days, hours, places and prices are corrected, someone takes over, someone
refuses, and other people, things and days are mentioned that have nothing to do with it. The dialogue determines the
summary: who does what, when and where in the end. Few templates are behind the summaries, so ROUGE is high as soon as
these are known; the names, places and things have to be copied, and the held-out split has others than the training
split::

    - Anna: Ben, shall we meet at the harbour in Ulmford on Monday at six?
    - Ben: For me Monday is bad. What about Friday?
    - Anna: All right.

    Anna and Ben will meet at the harbour in Ulmford on Friday at six.
"""

import random
import re
from collections.abc import Sequence
from functools import cache

from course_utils.data.tasks.base import SPLITS, Item, Pairs, items_from, pool
from course_utils.data.tasks.name_pools import GIVEN, TOWNS


def _words(text: str) -> list[str]:
    return text.split()


DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HOURS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "noon")
PRICES = tuple(str(price) for price in range(15, 100, 5))
EVENTS = (
    "birthday party", "concert", "football match", "wedding", "chess evening", "picnic", "comedy night", "film night",
    "book fair", "garden party", "dance class", "farewell dinner", "village fair", "choir rehearsal", "boat trip",
)  # fmt: skip
VERBS = ("bring", "buy", "fetch", "repair", "clean", "paint", "wrap", "wash", "carry", "return", "measure", "move")
THINGS = pool("dialogue thing", _words("""
accordion anchor backpack banjo basket bench bicycle blanket blender bookcase broom bucket camera candle canoe carpet
cello chair chessboard clarinet clock coat compass cradle cupboard curtain desk dictionary doll drill drum easel fan
fiddle flag flute fridge globe grill guitar hammer hammock harp helmet jacket kayak kettle kite ladder lamp lantern
lawnmower magnet mattress microscope mirror motorbike oven paddle parasol piano pillow printer projector pump puppet
quilt radio raft rope rug saddle sander saucepan scarf scooter shelf shovel sledge sofa spade statue stool stove
suitcase sweater table teapot telescope tent toaster tractor tricycle trombone trumpet trunk tuba typewriter umbrella
vase violin wagon wardrobe wheelbarrow whisk wrench xylophone zither
"""))  # fmt: skip
"""Things of each split."""
PLACES = pool("dialogue place", _words("""
airport aquarium arcade bakery bank barn beach bistro boathouse bookshop bridge café campsite canteen casino castle
cathedral cemetery chapel church cinema circus clinic cottage courtyard embassy factory farm ferry florist fountain
gallery garage gate greenhouse gym harbour hospital hotel kiosk laboratory lake library lighthouse market mill monument
museum observatory office orchard palace park pharmacy pier playground pond pub quarry restaurant school shipyard square
stable stadium station studio temple theatre tower university vineyard warehouse workshop zoo
"""))  # fmt: skip
"""Places of each split; a town goes with each."""

_SMALL_TALK = (
    "By the way, {x} was in {u} on {e}.",
    "Did you know that {x} has a new {n}?",
    "I saw {x} at the {q} in {u} yesterday.",
    "{x} told me that the {q} in {u} is closed.",
    "{x} still looks for a {n}, you know.",
    "On {e} {x} lost a {n} in {u}.",
    "I am just on my way from {u} to {v}.",
    "It rained all day in {u}.",
    "{x} and {y} move to {u} soon.",
    "My {n} is broken again.",
)
_GREETINGS = ("Hi {o}!", "Hello {o}, how are you?", "Good morning, {o}.", "{o}, it is good to see you.", "Hey {o}!")
_ENDINGS = ("See you then.", "Bye!", "Thank you!", "Great.", "Take care.", "I will write it down.", "Good.")
_YES = ("All right.", "Yes, gladly.", "That suits me.", "Fine with me.", "Yes, let us do that.", "Good idea.")
_CORRECT = (
    "For me {old} is bad. What about {new}?",
    "Could we say {new} instead of {old}?",
    "Not {old}, please. Make it {new}.",
    "I would rather have {new} than {old}.",
    "Hm, {old}? I had {new} in mind.",
)
_SELF_CORRECT = (
    "Wait, I mean {new}, not {old}.",
    "No, make it {new}.",
    "Sorry, I said {old}, but it has to be {new}.",
    "I just see that {old} does not work, so take {new}.",
)
_KEEP = ("Sorry, I cannot change it.", "No, it has to stay as I said.", "Let us keep what I said first, please.")


def generate(split: str = "train", items: int = 1000, seed: int = 0) -> Pairs:
    """Return pairs of a dialogue (3 to 8 lines, "- Name: what they say") and its summary (one or two sentences).

    Args:
        split: ``train`` or ``held_out``, which share no given name, town, place or thing.
        items: number of pairs.
        seed: seed of the draw; the same seed gives the same pairs, and fewer items their beginning.

    Raises:
        ValueError: there is no such split, or there are no items.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    if items < 1:
        raise ValueError(f"items={items}: expected a whole number, 1 or more")
    return [(text, answers["summary"]) for text, answers in draw(split, items, seed)]


def entities(text: str) -> list[str]:
    """Return what a summary or a dialogue speaks of, in its order: names, towns, places, things, days, hours, prices.

    Args:
        text: the text, of a template of this module or in other words.
    """
    return [text[start:end] for start, end in mentions(text)]


def mentions(text: str) -> list[tuple[int, int]]:
    """Return where the entities of a text stand: place of the first character, and of the one after the last."""
    return [match.span() for match in _pattern().finditer(text)]


def entity_accuracy(prediction: str, target: str) -> float:
    """Return the share of entities that are right *and* at the right place in the order.

    The order matters: "Anna brings Ben's lamp" and "Ben brings Anna's lamp" name the same entities, and mean different
    things. Entities that are missing and entities too many both count as wrong.

    Args:
        prediction: a summary from a model.
        target: the right summary.
    """
    found, right = entities(prediction), entities(target)
    return sum(a == b for a, b in zip(found, right, strict=False)) / max(len(found), len(right), 1)


@cache
def _pattern() -> re.Pattern[str]:
    known = [*DAYS, *HOURS, *PRICES]
    for kind in (GIVEN, TOWNS, PLACES, THINGS):
        known += [word for split in SPLITS for word in kind[split]]
    return re.compile(rf"\b(?:{'|'.join(sorted(known, key=len, reverse=True))})\b")


class _Talk:
    """A dialogue in the making: its speakers, the values that the plan has now, and the lines so far."""

    def __init__(self, generator: random.Random, split: str):
        self.chance = generator
        people = generator.sample(GIVEN[split], 5)
        self.a, self.b, self.c = people[:3]
        towns, places = generator.sample(TOWNS[split], 4), generator.sample(PLACES[split], 3)
        things, days = generator.sample(THINGS[split], 3), generator.sample(DAYS, 3)
        self.day, self.hour = days[0], generator.choice(HOURS)
        self.town, self.thing, self.place = towns[0], things[0], places[0]
        self.event, self.price = generator.choice(EVENTS), generator.choice(PRICES)
        self.others = {"day": days[1], "town": towns[1], "place": places[1], "thing": things[1]}
        self.others |= {"hour": generator.choice([hour for hour in HOURS if hour != self.hour])}
        self.others |= {"price": generator.choice([price for price in PRICES if price != self.price])}
        self.noise = dict(
            x=people[3], y=people[4], u=towns[2], v=towns[3], n=things[2], q=places[2], e=days[2]
        )  # of the small talk, which never matters
        self.lines: list[tuple[str, str]] = []

    def maybe(self, probability: float) -> bool:
        return self.chance.random() < probability

    def say(self, who: str, *choices: str, **values: str) -> None:
        """Let someone say one of several sentences; what the same person says in a row stands on one line."""
        words = self.chance.choice(choices).format(**vars(self), **values)
        words = words[0].upper() + words[1:]
        if self.lines and self.lines[-1][0] == who:
            words = f"{self.lines.pop()[1]} {words}"
        self.lines.append((who, words))

    def small_talk(self, probability: float) -> None:
        """Perhaps speak of something else."""
        if self.maybe(probability):
            self.say(self.chance.choice([self.a, self.b]), *_SMALL_TALK, **self.noise)

    def begin(self) -> None:
        if self.maybe(0.4):
            self.say(self.a, *_GREETINGS, o=self.b)
            if self.maybe(0.5):
                self.say(self.b, *_GREETINGS, o=self.a)
        self.small_talk(0.35)

    def settle(self, asker: str, other: str, slots: Sequence[str]) -> None:
        """Change one of these values, or try to; end in agreement."""
        form = self.chance.choice(("plain", "correct", "correct", "keep", "self", "self and correct"))
        slot = self.chance.choice(slots)
        old, new = getattr(self, slot), self.others[slot]
        said = {"old": self._spoken(slot, old), "new": self._spoken(slot, new)}
        if form.startswith("self"):
            self.say(asker, *_SELF_CORRECT, **said)
            setattr(self, slot, new)
        if form == "self and correct" and len(slots) > 1:
            slot = self.chance.choice([one for one in slots if one != slot])
            old, new = getattr(self, slot), self.others[slot]
            said = {"old": self._spoken(slot, old), "new": self._spoken(slot, new)}
            form = "correct"
        if form in ("correct", "keep"):
            self.say(other, *_CORRECT, **said)
            self.small_talk(0.15)
            if form == "correct":
                setattr(self, slot, new)
                self.say(asker, *_YES)
                return
            self.say(asker, *_KEEP)
        self.say(other, *_YES)

    def _spoken(self, slot: str, value: str) -> str:
        return {"place": f"the {value}", "thing": f"the {value}", "price": f"{value} euros"}.get(slot, value)

    def end(self, summary: str) -> Item | None:
        self.small_talk(0.3)
        if self.maybe(0.5):
            self.say(self.chance.choice([self.a, self.b]), *_ENDINGS)
        if not 3 <= len(self.lines) <= 8:
            return None
        return "\n".join(f"- {who}: {words}" for who, words in self.lines), {"summary": summary.format(**vars(self))}


def _meet(talk: _Talk) -> str:
    talk.say(
        talk.a, "{b}, shall we meet at the {place} in {town} on {day} at {hour}?",
        "Do you have time on {day}? We could meet in {town}, at the {place}, at {hour}.",
        "Let us meet on {day} at {hour}, {b}, at the {place} in {town}.",
    )  # fmt: skip
    talk.small_talk(0.15)
    if talk.maybe(0.25):
        talk.say(talk.b, "Sorry, I have no time. Ask {c}.", "I cannot come, {a}. {c} would like to, I think.")
        talk.say(talk.a, "Then I ask {c}.", "A pity. {c} it is.")
        return "{b} has no time, so {a} wants to meet {c} at the {place} in {town} on {day} at {hour}."
    talk.settle(talk.a, talk.b, ("day", "hour", "place", "town"))
    if talk.maybe(0.25):
        talk.say(talk.a, "May I bring {c} with me?", "{c} would like to join us, is that fine?")
        if talk.maybe(0.6):
            talk.say(talk.b, "Of course.", "Yes, please.")
            return "{a}, {b} and {c} will meet at the {place} in {town} on {day} at {hour}."
        talk.say(talk.b, "Rather not this time.", "No, just the two of us, please.")
    return "{a} and {b} will meet at the {place} in {town} on {day} at {hour}."


def _chore(talk: _Talk) -> str:
    verb = talk.chance.choice(VERBS)
    talk.say(
        talk.a, "{b}, can you {verb} the {thing} on {day}?", "Somebody has to {verb} the {thing} on {day}. Will you?",
        "We need someone to {verb} the {thing}, {b}. Is {day} possible?", verb=verb,
    )  # fmt: skip
    form = talk.chance.choice(("b", "b", "a", "c", "c speaks"))
    if form == "b":
        talk.settle(talk.a, talk.b, ("day", "thing"))
        return "{b} will " + verb + " the {thing} for {a} on {day}."
    if form == "a":
        talk.say(talk.b, "I cannot, my back hurts.", "Could you do it yourself?", "You are so much better at that.")
        talk.small_talk(0.2)
        talk.say(talk.a, "All right, I will do it.", "Then I do it myself.")
        if talk.maybe(0.4):
            talk.say(talk.a, *_SELF_CORRECT, old=talk.day, new=talk.others["day"])
            talk.day = talk.others["day"]
        return "{a} will " + verb + " the {thing} on {day}, because {b} cannot."
    talk.say(talk.b, "No, I am away. What about {c}?", "I have no time, but {c} has.", "That is a job for {c}.")
    if form == "c speaks":
        talk.say(talk.c, *_YES)
    else:
        talk.say(talk.a, "{c} has said yes.", "Good, then {c} does it.", "Right, {c} has promised it to me.")
    if talk.maybe(0.5):
        talk.say(talk.a, *_SELF_CORRECT, old=talk.day, new=talk.others["day"])
        talk.day = talk.others["day"]
    return "{c} will " + verb + " the {thing} for {a} on {day}."


def _borrow(talk: _Talk) -> str:
    talk.say(
        talk.a, "Could you lend me your {thing} until {day}?",
        "{b}, may I borrow your {thing}? I bring it back on {day}.",
        "I need a {thing} until {day}. Can I have yours, {b}?",
    )  # fmt: skip
    talk.small_talk(0.2)
    if talk.maybe(0.35):
        talk.say(talk.b, "No, {c} has it.", "Sorry, I gave it to {c}.", "It is with {c} in {town}, I am afraid.")
        if talk.maybe(0.5):
            talk.say(talk.a, "Then I ask {c}.", "Good, {c} will lend it to me.")
            return "{a} will borrow the {thing} of {b} from {c}."
        talk.say(talk.a, "Never mind.", "Then I do without it.")
        return "{b} cannot lend {a} the {thing}, because {c} has it."
    talk.settle(talk.a, talk.b, ("day", "thing"))
    return "{b} lends {a} the {thing} until {day}."


def _sell(talk: _Talk) -> str:
    talk.say(
        talk.a, "Do you want to buy my {thing} for {price} euros, {b}?", "I sell my {thing}. It costs {price} euros.",
        "{b}, you can have my {thing} for {price} euros.",
    )  # fmt: skip
    talk.small_talk(0.2)
    if talk.maybe(0.3):
        talk.say(talk.b, "No, that is too much.", "No, thank you, I have one.", "I do not need it.")
        if talk.maybe(0.5):
            talk.say(talk.a, "Then I offer it to {c}.", "{c} will take it, I hope.")
            return "{b} does not want the {thing}, so {a} offers it to {c} for {price} euros."
        talk.say(talk.a, "Well, then I keep it.", "A pity. Then it stays with me.")
        return "{a} keeps the {thing}, because {b} does not want it for {price} euros."
    talk.settle(talk.a, talk.b, ("price",))
    return "{a} sells the {thing} to {b} for {price} euros."


def _invite(talk: _Talk) -> str:
    talk.say(
        talk.a, "{b}, will you come to the {event} in {town} on {day}?",
        "There is a {event} on {day} in {town}. Join me!",
        "I would like to invite you to the {event} in {town}, {b}. It is on {day}.",
    )  # fmt: skip
    if talk.maybe(0.35):
        talk.say(talk.a, *_SELF_CORRECT, old=talk.day, new=talk.others["day"])
        talk.day = talk.others["day"]
    talk.small_talk(0.15)
    if talk.maybe(0.35):
        talk.say(talk.b, "I have to visit {c}.", "No, I have promised to help {c}.", "I cannot, {c} comes to see me.")
        talk.say(talk.a, "A pity.", "Next time, then.")
        return "{a} invites {b} to the {event} in {town} on {day}. {b} declines because of {c}."
    talk.say(talk.b, *_YES)
    if talk.maybe(0.6):
        talk.say(talk.b, "Shall I bring a {thing}?", "Do you need my {thing}?")
        if talk.maybe(0.6):
            talk.say(talk.a, "Yes, please.", "That would be nice.")
            return "{a} invites {b} to the {event} in {town} on {day}. {b} will bring a {thing}."
        talk.say(talk.a, "No, {c} brings one.", "{c} does that already.")
        return "{a} invites {b} to the {event} in {town} on {day}. {c} will bring a {thing}."
    return "{a} invites {b} to the {event} in {town} on {day}. {b} accepts."


def _cancel(talk: _Talk) -> str:
    talk.say(
        talk.a, "I have to cancel the {event} on {day}, {b}.", "The {event} on {day} will not take place, {b}.",
        "{b}, I am ill and cannot come to the {event} on {day}.",
    )  # fmt: skip
    talk.small_talk(0.2)
    if talk.maybe(0.5):
        before, talk.day = talk.day, talk.others["day"]
        talk.say(talk.b, "Shall we move it to {day}?", "Is {day} better for you?")
        talk.others["day"] = next(day for day in DAYS if day not in (before, talk.day, talk.noise["e"]))
        talk.settle(talk.b, talk.a, ("day",))
        return "{a} and {b} move the {event} from " + before + " to {day}."
    if talk.maybe(0.5):
        talk.say(talk.b, "Then I go with {c}.", "I will take {c} with me instead.")
        return "{a} cannot come to the {event} on {day}. {b} will go with {c}."
    talk.say(talk.b, "A pity. I will tell {c}.", "Does {c} know? I will call.")
    return "{a} cancels the {event} on {day}. {b} will tell {c}."


def _travel(talk: _Talk) -> str:
    talk.say(
        talk.a, "{b}, can you take me from {town} to {goal} on {day}?", "I must get from {town} to {goal} on {day}.",
        "How do I get to {goal} from {town} on {day}, {b}?", goal=talk.others["town"],
    )  # fmt: skip
    goal = talk.others["town"]
    talk.small_talk(0.2)
    if talk.maybe(0.4):
        talk.say(talk.b, "My car is broken. Ask {c}.", "{c} drives there, I have to work.")
        talk.say(talk.a, "I will call {c}.", "Good, I go with {c}.")
        return "{c} will take {a} from {town} to " + goal + " on {day}."
    talk.settle(talk.a, talk.b, ("day",))
    talk.say(talk.b, "I pick you up at {hour}.", "Be ready at {hour}.")
    return "{b} will take {a} from {town} to " + goal + " on {day} at {hour}."


_PLANS = (_meet, _meet, _chore, _chore, _borrow, _sell, _invite, _cancel, _travel)


def _item(generator: random.Random, split: str) -> Item | None:
    talk = _Talk(generator, split)
    talk.begin()
    summary = generator.choice(_PLANS)(talk)
    return talk.end(summary)


draw = items_from("dialogues", _item)
"""Draw (dialogue, {"summary": summary}) of a split, as all sources of tasks do."""
