"""The format of a tool loop: a question, the calls so far with their results, and the next call as the target.

It is apart from the registry of tasks: no model but the instruction-tuned one reads it. One line of a prompt is one
call with its result, ``calculate(12 * 7) -> 84``, and every answer of the model is a call, the last one ``answer(84)``
(after Schick et al., 2023, Toolformer, and Yao et al., 2023, ReAct).
"""

import random
from collections.abc import Callable

from course_utils.data.tasks.base import Item, Task, fits, items_from, pool, words
from course_utils.data.tasks.name_pools import GIVEN, TOWNS
from course_utils.data.tasks.questions import COLOURS, DRINKS, FACTS, JOBS, PETS

OPERATORS = {
    "+": ("what is {a} plus {b}?", "add {b} to {a}.", "how much is {a} and {b} together?"),
    "-": ("what is {a} minus {b}?", "take {b} away from {a}.", "how much is left of {a} after {b} are gone?"),
    "*": ("what is {a} times {b}?", "multiply {a} by {b}.", "how many are {a} boxes of {b}?"),
    "/": ("what is {a} divided by {b}?", "divide {a} by {b}.", "how much does each of {b} get of {a}?"),
}
"""How a calculation is asked for."""
SEARCHED = {"town": "lives", "job": "works", "pet": "has", "car": "drives", "drink": "likes"}
"""The word behind the name in a search."""
NOTHING = "nothing found"
PRICES = "a ticket to {town} costs {price} euros."
WARES = pool(
    "ware",
    words("""
lamp chair table bottle carpet mirror guitar jacket umbrella pillow bicycle camera drum desk bench tent hammer torch
blouse trumpet candle basket drawer blanket ladder bucket clock kettle hat sofa"""),
)
"""Things with a price, of each split."""
_VALUES = {"job": JOBS, "pet": PETS, "car": COLOURS, "drink": DRINKS}
State = tuple[str, list[tuple[str, str]], str]
"""A question, the calls that answer it with their results, and the last call."""


def call(name: str, argument: object) -> str:
    """Return a call as the model writes it.

    Args:
        name: ``search``, ``calculate`` or ``answer``.
        argument: what stands in the brackets.
    """
    return f"{name}({argument})"


def transcript(question: str, steps: list[tuple[str, str]]) -> str:
    """Return what the model reads behind the prefix: the question, and a line for each call with its result.

    Args:
        question: the question.
        steps: calls and their results.
    """
    return "\n".join([question, *(f"{made} -> {result}" for made, result in steps)])


def _calculation(generator: random.Random, split: str) -> State | None:
    operator = generator.choice(sorted(OPERATORS))
    a, b = (int(10 ** (generator.random() * size)) + 1 for size in (3, 2))
    if operator == "/":
        a = a * b
    if operator == "-":
        a, b = max(a, b), min(a, b)
    if not fits(split, [("calculation", operator, str(a % 100), str(b))]):
        return None
    result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]
    question = generator.choice(OPERATORS[operator]).format(a=a, b=b)
    return question, [(call("calculate", f"{a} {operator} {b}"), str(result))], call("answer", result)


def fact(generator: random.Random, split: str) -> State:
    """What is said of one person; the result of the search also says other things, or nothing."""
    name, kind = generator.choice(GIVEN[split]), generator.choice(sorted(FACTS))
    question, made = FACTS[kind][1].format(name=name), call("search", f"{name} {SEARCHED[kind]}")
    if generator.random() < 0.1:
        return question, [(made, NOTHING)], call("answer", "unknown")
    values = {other: generator.choice(_VALUES.get(other, TOWNS[split])) for other in FACTS}
    others = generator.sample(sorted(set(FACTS) - {kind}), generator.randrange(3))
    said = generator.sample([kind, *others], 1 + len(others))
    result = " ".join(FACTS[one][0].format(name=name, value=values[one]) for one in said)
    return question, [(made, result)], call("answer", values[kind])


def _price(generator: random.Random, split: str) -> State:
    """A price is to be searched for, and to be multiplied."""
    count, price = generator.randint(2, 12), generator.randint(2, 200)
    if generator.random() < 0.5:
        thing, sentence = generator.choice(TOWNS[split]), PRICES.format(town="{}", price=price)
        question, made = f"how much are {count} tickets to {thing}?", call("search", f"ticket to {thing}")
    else:
        thing, sentence = generator.choice(WARES[split]), f"a {{}} costs {price} euros."
        question, made = f"how much are {count} pieces of the {thing}?", call("search", f"price of {thing}")
    if generator.random() < 0.1:
        return question, [(made, NOTHING)], call("answer", "unknown")
    steps = [(made, sentence.format(thing)), (call("calculate", f"{count} * {price}"), str(count * price))]
    return question, steps, call("answer", count * price)


KINDS: dict[str, Callable[[random.Random, str], State | None]] = {
    "calculation": _calculation,
    "fact": fact,
    "price": _price,
}
"""What is asked for; each function draws a whole run of the loop."""


def _draw(generator: random.Random, split: str) -> Item | None:
    """A run of the loop up to some step: what is read there, and the call that follows."""
    run = KINDS[generator.choice(sorted(KINDS))](generator, split)
    if run is None:
        return None
    question, steps, last = run
    done = generator.randrange(len(steps) + 1)
    following = [made for made, _ in steps] + [last]
    return transcript(question, steps[:done]), {"tools": following[done]}


TOOLS = Task(
    "tools", "Write the next call of a tool.", "questions", "tools: ", "tool runs", items_from("tool runs", _draw)
)
