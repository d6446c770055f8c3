"""Natural language to code: a phrase about a list, and the Python expression that computes it.

A phrase is composed of what is computed, of what is done to each element, and of which elements count; a combination
is held out as a whole, so that a model must compose. Apart from the registry of tasks: only the instruction-tuned model
reads it. An answer is scored by running it (:func:`course_utils.tools.run_expression`), as in Chen et al. (2021).
"""

import random

from course_utils.data.tasks.base import Item, Task, fits, items_from, words

NUMBERS = words("prices ages scores weights lengths heights points costs grades sizes")
STRINGS = words("names words cities colours fruits animals titles labels keys tags")
NUMBER_FILTERS = {
    "greater than {k}": "n > {k}",
    "less than {k}": "n < {k}",
    "of at least {k}": "n >= {k}",
    "of at most {k}": "n <= {k}",
    "equal to {k}": "n == {k}",
    "divisible by {k}": "n % {k} == 0",
    "": "",
}
STRING_FILTERS = {
    "that begin with {c}": "w.startswith('{c}')",
    "that end with {c}": "w.endswith('{c}')",
    "that contain {c}": "'{c}' in w",
    "longer than {k}": "len(w) > {k}",
    "shorter than {k}": "len(w) < {k}",
    "": "",
}
NUMBER_MAPS = {
    "": "n",
    "squares of the": "n * n",
    "doubles of the": "2 * n",
    "halves of the": "n / 2",
    "absolute values of the": "abs(n)",
}
STRING_MAPS = {
    "": "w",
    "lengths of the": "len(w)",
    "first letters of the": "w[0]",
    "last letters of the": "w[-1]",
    "capitals of the": "w.upper()",
}
NUMBER_WHOLES = {
    "the sum of the": "sum",
    "the largest of the": "max",
    "the smallest of the": "min",
    "the": "",
    "the number of the": "len",
    "in order, the": "sorted",
}
STRING_WHOLES = {"the": "", "the number of the": "len", "in order, the": "sorted", "the smallest of the": "min"}
"""Phrases and their code, in three layers: the whole, each element, which elements."""


def _draw(generator: random.Random, split: str) -> Item | None:
    numbers = generator.random() < 0.5
    name = generator.choice(NUMBERS if numbers else STRINGS)
    parts = (NUMBER_WHOLES, NUMBER_MAPS, NUMBER_FILTERS) if numbers else (STRING_WHOLES, STRING_MAPS, STRING_FILTERS)
    whole, each, which = (generator.choice(sorted(part)) for part in parts)
    if not fits(split, [("code", whole, each, which)]):
        return None
    variable, k, c = ("n" if numbers else "w"), generator.randint(2, 20), generator.choice("abcdefghiklmnoprstw")
    function, element, condition = (part[key] for part, key in zip(parts, (whole, each, which), strict=True))
    phrase = " ".join(f"{whole} {each} {'numbers' if numbers else 'words'} in {name} {which}".format(k=k, c=c).split())
    values = name
    if element != variable or condition:
        tail = f" if {condition.format(k=k, c=c)}" if condition else ""
        values = f"[{element} for {variable} in {name}{tail}]"
    return phrase, {"python": f"{function}({values})" if function else values}


PYTHON = Task(
    "python", "Write a Python expression.", "conversion", "python: ", "python phrases",
    items_from("python phrases", _draw),
)  # fmt: skip
