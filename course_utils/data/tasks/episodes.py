"""Episodes: tasks that only the examples in the prompt define.

An episode is a list of examples of one rule, drawn independently, and whatever comes last is the question. Kinds:

* ``labels``: a word of one of two (or more) categories, answered by the label word that stands for its category here.
* ``forms``: a function of one to three words, answered in an output format.
* ``picks``: three words of different categories, answered by the one of the category that is asked for here.
* ``recall``: pairs seen before, asked again in any order.

What a model may see in training and what it is tested on are kept apart by construction, see :func:`held_out`.
"""

import hashlib
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from course_utils.data.tasks.words import CATEGORIES, CATEGORY_OF

FORMATS: dict[str, tuple[str, str]] = {
    "plain": (" {input} {output} ;", " {input}"),
    "arrow": ("- {input} -> {output}\n", "- {input} ->"),
    "input": ("Input: {input} Output: {output}\n", "Input: {input} Output:"),
    "question": ("Q: {input} A: {output}\n", "Q: {input} A:"),
    "equals": ("* {input} = {output}\n", "* {input} ="),
    "colon": ("Word: {input} Label: {output}\n", "Word: {input} Label:"),
}
"""How an example, and the question after the last one, is written."""

FUNCTIONS: dict[str, tuple[int, Callable[[Sequence[str]], str]]] = {
    "copy": (1, lambda words: words[0]),
    "category": (1, lambda words: CATEGORY_OF[words[0]]),
    "first": (2, lambda words: words[0]),
    "second": (2, lambda words: words[1]),
    "swap": (2, lambda words: f"{words[1]} {words[0]}"),
    "middle": (3, lambda words: words[1]),
    "last": (3, lambda words: words[2]),
    "reverse": (3, lambda words: " ".join(reversed(words))),
}
"""Function to the number of its words and what it returns."""

SHAPES = (
    "{}", "{} !", "< {} >", "the {}", "{} , {}", "[ {} ]", "it is {}", "{} too",
    "( {} )", "so {}", "{} ?", "{} .", "* {} *", "a {}", "my {}", "{} here", "{} now", "this is {}", "say {}",
    "{} again", "yes , {}", "no , {}", "( {} ) !", "= {} =", "/ {} /", "{} and more", "only {}", "{} alone", "not {}",
    "we see {}", "{} for you", "{} , yes", "- {} -", "more {}", "that {}", "it was {}", "{} it is", "your {}", "{} /",
    "{} then",
)  # fmt: skip
"""Output formats of the functions."""
FEW_SHAPES = 8
"""So many of them are enough to begin with, and too few to learn functions and formats apart."""

KINDS = ("labels", "pairs", "forms", "picks", "recall")
WORDS = tuple(CATEGORY_OF)


@dataclass(frozen=True)
class Episode:
    """Examples of one rule; the last one is the question.

    Attributes:
        kind: ``labels``, ``pairs``, ``forms``, ``picks`` or ``recall``.
        rule: what the examples share, for example ``animal=blue, metal=seven``.
        examples: (input, output) pairs.
        candidates: the outputs that may be asked for, where they are few.
        style: key of :data:`FORMATS`.
    """

    kind: str
    rule: str
    examples: tuple[tuple[str, str], ...]
    candidates: tuple[str, ...]
    style: str

    @property
    def answer(self) -> str:
        """The answer to the question."""
        return self.examples[-1][1]

    def prompt(self, shots: int | None = None) -> str:
        """Return the prompt with this many examples (all by default), which ends where the answer begins."""
        given = self.examples[:-1] if shots is None else self.examples[:-1][:shots]
        example, question = FORMATS[self.style]
        lines = [example.format(input=one, output=other) for one, other in given]
        return "".join(lines) + question.format(input=self.examples[-1][0])

    def parts(self) -> list[tuple[str, str]]:
        """Return the text in pieces: for each example, the last one included, what asks and what answers."""
        example, question = FORMATS[self.style]
        pieces = []
        for one, other in self.examples:
            asked = question.format(input=one)
            pieces.append((asked, example.format(input=one, output=other)[len(asked) :]))
        return pieces


def held_out(what: str, *parts: str) -> bool:
    """Whether something is kept from training: one in five of everything, by the SHA-256 hash of its name.

    Args:
        what: ``label`` (a word as label), ``pair`` (two categories told apart by labels), ``form`` (a function with a
            shape) or ``pick`` (the category that is asked for).
        *parts: its names; the order of two categories does not matter.
    """
    if what == "form":  # a diagonal, so that every function and every shape is trained, only not together
        return (list(FUNCTIONS).index(parts[0]) + SHAPES.index(parts[1])) % 5 == 2
    name = " ".join([what, *sorted(parts)])
    return hashlib.sha256(name.encode()).digest()[0] % 5 == 0


LABELS = {
    split: tuple(word for word in WORDS if held_out("label", word) == (split == "held_out"))
    for split in ("train", "held_out")
}
PAIRS = {
    split: tuple(
        pair for pair in itertools.combinations(CATEGORIES, 2) if held_out("pair", *pair) == (split == "held_out")
    )
    for split in ("train", "held_out")
}
PICKS = {
    split: tuple(name for name in CATEGORIES if held_out("pick", name) == (split == "held_out"))
    for split in ("train", "held_out")
}


@cache
def forms(split: str, shapes: int = len(SHAPES)) -> tuple[tuple[str, str], ...]:
    """Return the pairs of a function and an output format of a split.

    Args:
        split: ``train`` or ``held_out``.
        shapes: of so many of :data:`SHAPES`.
    """
    pairs = itertools.product(FUNCTIONS, SHAPES[:shapes])
    return tuple(pair for pair in pairs if held_out("form", *pair) == (split == "held_out"))


def episode(
    kind: str,
    generator: random.Random,
    examples: int = 9,
    split: str = "train",
    style: str | None = None,
    shapes: int = len(SHAPES),
) -> Episode:
    """Draw an episode.

    Args:
        kind: ``labels`` (held out: label words never used as labels), ``pairs`` (held out: categories never told
            apart, with labels of training), ``forms`` (held out: function and shape never seen together), ``picks``
            (held out: categories never asked for) or ``recall`` (held out: answers never used as answers).
        generator: source of randomness.
        examples: number of examples, the question included.
        split: ``train`` or ``held_out``.
        style: key of :data:`FORMATS`; drawn if None.
        shapes: of ``forms``, so many of :data:`SHAPES`.

    Raises:
        ValueError: there is no such kind or split, or fewer than one example.
    """
    if kind not in KINDS or split not in LABELS or examples < 1:
        raise ValueError(
            f"episode({kind!r}, examples={examples}, split={split!r}): expected a kind of {', '.join(KINDS)}, "
            f"at least 1 example, and the split train or held_out"
        )
    style = style or generator.choice(tuple(FORMATS))
    if kind in ("labels", "pairs"):
        return _labels(kind, generator, examples, split, style)
    if kind == "forms":
        return _forms(generator, examples, split, style, shapes)
    if kind == "picks":
        return _picks(generator, examples, split, style)
    return recall(generator, pairs=generator.randint(2, 6), examples=examples, style=style, split=split)


def recall(generator: random.Random, pairs: int, examples: int, style: str, split: str = "train") -> Episode:
    """Draw pairs of words that repeat: the answers of all but the first showings stand in the prompt.

    Args:
        generator: source of randomness.
        pairs: number of different pairs.
        examples: number of examples, the question included.
        style: key of :data:`FORMATS`.
        split: in ``held_out`` the answers are words that never are an answer in training, and the question has been
            answered before.
    """
    keys = generator.sample(WORDS, pairs)
    values = {key: generator.choice(LABELS[split]) for key in keys}
    drawn = [generator.choice(keys) for _ in range(examples)]
    if split == "held_out" and examples > 1:
        drawn[-1] = generator.choice(drawn[:-1])
    rule = ", ".join(f"{key}={value}" for key, value in values.items())
    return Episode("recall", rule, tuple((key, values[key]) for key in drawn), tuple(values.values()), style)


def _labels(kind: str, generator: random.Random, examples: int, split: str, style: str) -> Episode:
    classes = 2 if split == "held_out" else generator.choice((2, 2, 2, 3, 4))
    while True:
        categories = generator.sample(tuple(CATEGORIES), classes)
        if kind == "pairs" and split == "held_out":
            categories = list(generator.choice(PAIRS["held_out"]))
        new = [held_out("pair", *pair) for pair in itertools.combinations(categories, 2)]
        if (kind == "pairs" and split == "held_out") or not any(new):
            break
    labels = generator.sample(LABELS["held_out" if kind == "labels" and split == "held_out" else "train"], classes)
    shown = []
    for _ in range(examples):
        place = generator.randrange(classes)
        shown.append((generator.choice(CATEGORIES[categories[place]]), labels[place]))
    rule = ", ".join(f"{category}={label}" for category, label in zip(categories, labels, strict=True))
    return Episode(kind, rule, tuple(shown), tuple(labels), style)


def _forms(generator: random.Random, examples: int, split: str, style: str, shapes: int) -> Episode:
    function, shape = generator.choice(forms(split, shapes))
    count, apply = FUNCTIONS[function]
    shown = []
    for _ in range(examples):
        words = generator.sample(WORDS, count)
        shown.append((" ".join(words), shape.replace("{}", apply(words))))
    return Episode("forms", f"{function} {shape}", tuple(shown), (), style)


def _picks(generator: random.Random, examples: int, split: str, style: str) -> Episode:
    target = generator.choice(PICKS[split])
    others = [category for category in CATEGORIES if category != target]
    shown = []
    for _ in range(examples):
        words = [generator.choice(CATEGORIES[category]) for category in (target, *generator.sample(others, 2))]
        answer = words[0]
        generator.shuffle(words)
        shown.append((" ".join(words), answer))
    return Episode("picks", target, tuple(shown), (), style)
