"""Prompting, measured: what stands in a prompt, how an answer is scored, and whether one way is better than another.

A :class:`Template` says how a question and an example are written, a :class:`Strategy` which examples stand before the
question (Brown et al., 2020: zero-, one- and few-shot), a :class:`Task` holds questions, answers and a pool of
examples. :func:`compare` runs strategies over the same questions. Where a question has labels, the model ranks them by
the probability of the whole label with what ends it, else it writes and its text is scored.

Also here: what the order of the examples decides (Lu et al., 2022), which labels a prompt prefers whatever the
question, and a correction for that (Zhao et al., 2021), examples with wrong labels (Min et al., 2022).
"""

import hashlib
import inspect
import itertools
import math
import random
import string
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from course_utils import generation, reporting
from course_utils.data import tasks
from course_utils.data.tasks import episodes
from course_utils.models import Loaded
from course_utils.recipes.decoder import NAMES, UNSEEN
from course_utils.recipes.seq2seq import rouge_l

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# --- what stands in a prompt


@dataclass(frozen=True)
class Example:
    """An input with its answer.

    Attributes:
        input: what is asked about.
        target: the right answer.
        reasoning: steps that lead to the answer, for templates that show them.
    """

    input: str
    target: str
    reasoning: str = ""


@dataclass(frozen=True)
class Item(Example):
    """A question to a model.

    Attributes:
        labels: the answers to choose from; none for free text.
        group: name of the pool that its examples are taken from.

    Raises:
        ValueError: a label is empty or stands there twice, or the target is none of them.
    """

    labels: tuple[str, ...] = ()
    group: str = ""

    def __post_init__(self) -> None:
        if len(set(self.labels)) < len(self.labels) or not all(label.strip() for label in self.labels):
            raise ValueError(f"labels={self.labels}: expected different labels, none of them empty")
        if self.labels and self.target not in self.labels:
            raise ValueError(f"target={self.target!r}: expected one of the labels {', '.join(self.labels)}")


@dataclass(frozen=True)
class Template:
    """How a prompt is written: plain text with names in braces.

    Attributes:
        question: the question, with ``{input}``; the prompt ends with it, and the answer goes on from there.
        answer: what follows, with ``{target}``, once: `` {target}`` and the line break that ends it. In an example it
            is written out, and of a label the whole is scored, so that ``pos`` is no beginning of ``positive``.
            Without an end of its own it is ended by the token that ends a text; in an encoder-decoder always.
        head: stands once at the beginning.

    ``{instruction}``, ``{prefix}`` (of the task) and ``{labels}`` may stand in head and question. With ``{reasoning}``
    in the answer (chain of thought, Wei et al., 2022) the model writes its steps before it answers.

    Raises:
        ValueError: a name in braces is unknown, or ``{target}`` does not stand in the answer once.
    """

    question: str = "Input: {input}\nOutput:"
    answer: str = " {target}\n\n"
    head: str = ""

    def __post_init__(self) -> None:
        shared = {"instruction", "prefix", "labels"}
        for name, allowed in (
            ("head", shared),
            ("question", shared | {"input"}),
            ("answer", {"target", "reasoning"}),
        ):
            text = getattr(self, name)
            try:
                found = [one for _, one, form, change in string.Formatter().parse(text) if one is not None or form]
                plain = not any(form or change for _, _, form, change in string.Formatter().parse(text))
            except ValueError:
                found, plain = [], False
            if not plain or not set(found) <= allowed:
                expected = ", ".join(f"{{{one}}}" for one in sorted(allowed))
                raise ValueError(f"{name}={text!r}: expected text with nothing in braces but {expected}")
        if self.answer.count("{target}") != 1:
            raise ValueError(f"answer={self.answer!r}: expected {{target}} in it, once")

    @property
    def reasons(self) -> bool:
        """Whether answers show their steps."""
        return "{reasoning}" in self.answer

    @property
    def end(self) -> str:
        """What ends an answer."""
        return self.answer.split("{target}")[1]

    def render(
        self,
        input: str,
        examples: Sequence[Example] = (),
        *,
        instruction: str = "",
        prefix: str = "",
        labels: Sequence[str] = (),
    ) -> str:
        """Return the prompt, exactly as the model sees it (its tokenizer may put a mark before or behind it).

        Args:
            input: what is asked about.
            examples: what stands before, in this order.
            instruction: what is to be done, in words.
            prefix: the same as the short beginning of an input.
            labels: the answers to choose from.

        Raises:
            ValueError: the template speaks of an instruction, a prefix, labels or a reasoning that is not given.
        """
        given = {"instruction": instruction, "prefix": prefix, "labels": ", ".join(labels)}
        missing = [name for name, text in given.items() if f"{{{name}}}" in self.head + self.question and not text]
        if self.reasons and not all(one.reasoning for one in examples):
            missing.append("reasoning")
        if missing:
            raise ValueError(f"the template writes {{{missing[0]}}}, and there is none: give one, or another template")
        lines = [self.head.format(**given)]
        for one in examples:
            lines.append(self.question.format(input=one.input, **given))
            lines.append(self.answer.format(target=one.target, reasoning=one.reasoning))
        return "".join([*lines, self.question.format(input=input, **given)])

    def read(self, text: str) -> str:
        """Return the answer that stands in a text of the model.

        Args:
            text: what the model wrote after the prompt. Where the template shows reasoning, the answer is what stands
                behind the last of the words that lead to it, else the last line.
        """
        if self.reasons:
            lead = self.answer.split("{target}")[0].split("{reasoning}")[-1].strip()
            text = text.rpartition(lead)[2].strip() if lead and lead in text else text.strip().rpartition("\n")[2]
        end = self.end.strip() or "\n"
        return text.strip().split(end)[0].strip()


TEMPLATES: dict[str, Template] = {
    "input": Template(),
    "question": Template("Q: {input}\nA:"),
    "instruction": Template(head="{instruction}\n\n"),
    "choice": Template(head="{instruction} Answer with one of: {labels}.\n\n"),
    "prefix": Template("{prefix}{input}", " {target}"),
    "chain of thought": Template(
        "Q: {input}\nA: Let's think step by step.", " {reasoning} The answer is {target}.\n\n"
    ),
}
"""Templates by name; ``prefix`` is how T5 and our instruct model are asked."""
FORMATS: dict[str, Template] = {
    name: Template(question, example.replace("{output}", "{target}").removeprefix(question))
    for name, (example, question) in episodes.FORMATS.items()
}
"""The formats in which our decoder was shown examples."""


@dataclass(frozen=True)
class Strategy:
    """Which prompt is made for a question.

    Attributes:
        template: how it is written.
        shots: number of examples.
        selection: ``random``; ``balanced``: of each label as many; ``nearest``: those most like the question
            (:func:`similarities`), the most similar last (Liu et al., 2022); or for each example the place of its
            label among the item's, ``(0, 0, 1)``. Of random ones, fewer examples are the first of more.
        order: permutation of the chosen examples, ``(2, 0, 1)``; by default the seed's, or for ``nearest`` as above.
        wrong: share of the examples whose answer is replaced by a wrong one.
        calibrated: divide the probability of each label by that which it has for a question without content.
        name: what it is called in tables; by default made of the other settings.

    Raises:
        ValueError: a setting is out of range.
    """

    template: Template = field(default_factory=Template)
    shots: int = 0
    selection: str | tuple[int, ...] = "random"
    order: tuple[int, ...] | None = None
    wrong: float = 0.0
    calibrated: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.shots, bool) or not isinstance(self.shots, int) or self.shots < 0:
            raise ValueError(f"shots={self.shots!r}: expected a whole number of 0 or more")
        if isinstance(self.selection, str):
            if self.selection not in SELECTIONS:
                raise ValueError(
                    f"selection={self.selection!r}: expected {', '.join(SELECTIONS)} or the place of each label"
                )
        elif len(self.selection) != self.shots:
            raise ValueError(f"selection={self.selection}: expected the places of {self.shots} labels, one an example")
        if self.order is not None and sorted(self.order) != list(range(self.shots)):
            raise ValueError(f"order={self.order}: expected a permutation of 0 to {self.shots - 1}")
        if not 0 <= self.wrong <= 1:
            raise ValueError(f"wrong={self.wrong}: expected a share from 0 to 1")
        if self.calibrated and self.template.reasons:
            raise ValueError("calibrated=True: labels are not scored where the template shows reasoning")
        if not self.name:
            object.__setattr__(self, "name", self._default_name())

    def _default_name(self) -> str:
        parts = [f"{self.shots} example{'s' if self.shots != 1 else ''}"]
        if self.shots and not isinstance(self.selection, str):
            parts.append(f"labels {' '.join(str(place + 1) for place in self.selection)}")
        elif self.shots and self.selection != "random":
            parts.append(str(self.selection))
        if self.order is not None and len(self.order) > 1:
            parts.append(f"order {' '.join(str(place + 1) for place in self.order)}")
        if self.wrong:
            parts.append(f"{self.wrong:.0%} wrong")
        return ", ".join([*parts, *(["calibrated"] if self.calibrated else [])])


SELECTIONS = ("random", "balanced", "nearest")


# --- tasks


@dataclass(frozen=True)
class Task:
    """Questions, and the examples that a prompt may show.

    Attributes:
        name: what it is called.
        items: the questions.
        pool: for each group of items the examples to choose from, apart from the questions.
        instruction: what is to be done, in words.
        prefix: the same as the short beginning of an input.
        metric: of free text: ``exact`` match or ``rouge``, ROUGE-L.

    Raises:
        ValueError: there is no item, or no such metric.
    """

    name: str
    items: tuple[Item, ...]
    pool: Mapping[str, tuple[Example, ...]]
    instruction: str = ""
    prefix: str = ""
    metric: str = "exact"

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError(f"task {self.name!r}: expected at least one item")
        if self.metric not in ("exact", "rouge"):
            raise ValueError(f"metric={self.metric!r}: expected exact or rouge")


def unseen_task(kind: str, items: int = 200, pool: int = 48, seed: int = 0, split: str = "held_out") -> Task:
    """Return a task that only examples tell, of a kind that our decoder is measured on.

    Each item has a rule of its own (which label stands for which category, say) and a pool of examples of that rule;
    the pool never holds the question's input, but for ``recall``, where the answer is to be looked up.

    Args:
        kind: one of :data:`UNSEEN`.
        items: number of questions.
        pool: examples of each rule, drawn independently.
        seed: seed of the draw.
        split: ``held_out``: what no model of the course was trained on (:func:`.episodes.held_out`), or ``train``.

    Raises:
        ValueError: there is no such kind or split, or a number is out of range.
    """
    if kind not in UNSEEN or items < 1 or pool < 1:
        raise ValueError(
            f"unseen_task({kind!r}, items={items}, pool={pool}): expected a kind of {', '.join(UNSEEN)}, "
            "and whole numbers of 1 or more"
        )
    chance = random.Random(f"prompting {kind} {seed}")
    found: list[Item] = []
    pools: dict[str, tuple[Example, ...]] = {}
    while len(found) < items:
        one = episodes.episode(kind, chance, pool + 1, split, style="plain")
        if len(set(one.candidates)) == 1:  # of ``recall``, where answers are drawn independently: no choice
            continue
        (asked, answer), group = one.examples[-1], f"{len(found)}: {one.rule}"
        found.append(Item(asked, answer, labels=tuple(dict.fromkeys(one.candidates)), group=group))
        pools[group] = tuple(
            Example(other, reply) for other, reply in one.examples[:-1] if kind == "recall" or other != asked
        )
    which = "unseen" if split == "held_out" else "seen"
    return Task(f"{which} {NAMES[kind]}", tuple(found), pools)


def generated_task(name: str, items: int = 200, pool: int = 200, seed: int = 0) -> Task:
    """Return a task of :data:`course_utils.data.tasks.TASKS`: held-out items, and training items as examples.

    Args:
        name: name of the task.
        items: number of questions.
        pool: number of examples to choose from.
        seed: seed of both.

    Raises:
        ValueError: there is no such task, or a number is out of range.
    """
    if name not in tasks.TASKS:
        raise ValueError(f"name={name!r}: expected one of {', '.join(tasks.TASKS)}")
    task = tasks.TASKS[name]
    asked, shown = task.generate("held_out", items, seed), task.generate("train", pool, seed)
    return Task(
        name,
        tuple(Item(text, target, labels=task.labels or ()) for text, target in asked),
        {"": tuple(Example(text, target) for text, target in shown)},
        instruction=task.title,
        prefix=task.prefix,
        metric="exact" if task.closed else "rouge",
    )


def dataset_task(
    name: str,
    questions: Any,
    pool: Any = None,
    *,
    items: int = 200,
    labels: Sequence[str] = (),
    instruction: str = "",
    prefix: str = "",
    metric: str = "rouge",
    input: str = "input",
    target: str = "target",
    seed: int = 0,
) -> Task:
    """Return a task made of data sets, such as those of :func:`course_utils.data.hub`.

    Args:
        name: what it is called.
        questions: a ``datasets.Dataset``, or rows that are mappings; of more than ``items`` rows some are drawn.
        pool: the same for examples; those whose input is asked for are left out. None where no example is shown.
        items: largest number of questions.
        labels: the answers to choose from; none for free text.
        instruction: what is to be done, in words.
        prefix: the same as the short beginning of an input.
        metric: of free text, ``exact`` or ``rouge``.
        input: name of the field that holds the input.
        target: name of the field that holds the answer.
        seed: seed of the draw.

    Raises:
        ValueError: a field is missing or holds no text, or there is no row.
    """
    places = range(len(questions))
    if len(questions) > items:
        places = sorted(random.Random(f"prompting {name} {seed}").sample(places, items))  # type: ignore[assignment]

    def pairs(rows: Any, chosen: Sequence[int], what: str) -> Iterator[tuple[str, str]]:
        for place in chosen:
            text, answer = rows[place].get(input), rows[place].get(target)
            if not isinstance(text, str) or not isinstance(answer, str):
                fields = ", ".join(map(str, rows[place]))
                raise ValueError(
                    f"{name}, {what} {place}: expected text in the fields {input} and {target}, found {fields}"
                )
            yield text, answer

    asked = [Item(text, answer, labels=tuple(labels)) for text, answer in pairs(questions, places, "row")]
    known = {one.input for one in asked}
    shown = pairs(pool, range(len(pool)), "row of the pool") if pool is not None else ()
    examples = tuple(Example(text, answer) for text, answer in shown if text not in known)
    return Task(name, tuple(asked), {"": examples}, instruction, prefix, metric)


# --- which examples are shown


def select(task: Task, item: Item, strategy: Strategy, seed: int = 0) -> tuple[Example, ...]:
    """Return the examples that a strategy shows before a question; the same for all items of a group, but ``nearest``.

    Args:
        task: the task.
        item: the question.
        strategy: number, selection, order and share of wrong answers.
        seed: seed of all that is random.

    Raises:
        ValueError: the pool holds too few examples, or the item has no labels and the selection needs them.
    """
    pool, how = task.pool.get(item.group, ()), strategy.selection
    if strategy.shots > len(pool):
        raise ValueError(f"shots={strategy.shots}: the pool of {task.name!r} holds {len(pool)} examples")
    if not strategy.shots:
        return ()
    if how == "nearest":
        alike = similarities(item.input, tuple(one.input for one in pool))
        best = sorted(range(len(pool)), key=lambda place: (-alike[place], place))[: strategy.shots]
        chosen = [pool[place] for place in reversed(best)]
    else:
        chosen = _drawn(pool, item, strategy, seed)
    chance = random.Random(f"wrong {seed} {item.group}")
    for place in chance.sample(range(len(chosen)), round(strategy.wrong * len(chosen))):
        right = chosen[place].target
        others = [label for label in item.labels or dict.fromkeys(one.target for one in pool) if label != right]
        if not others:
            raise ValueError(f"wrong={strategy.wrong}: the pool of {task.name!r} holds no other answer than {right!r}")
        chosen[place] = replace(chosen[place], target=chance.choice(others))
    if strategy.order is not None:
        chosen = [chosen[place] for place in strategy.order]
    elif how not in ("nearest", "random"):
        random.Random(f"order {seed} {item.group}").shuffle(chosen)
    return tuple(chosen)


def _drawn(pool: Sequence[Example], item: Item, strategy: Strategy, seed: int) -> list[Example]:
    """Examples in an order that the seed draws: any, of each label alike, or of the labels asked for."""
    chance, how = random.Random(f"select {seed} {item.group}"), strategy.selection
    shuffled = chance.sample(pool, len(pool))
    if how == "random":
        return shuffled[: strategy.shots]
    if not item.labels:
        raise ValueError(f"selection={how!r}: the item {item.input[:40]!r} has no labels; choose random or nearest")
    if isinstance(how, str):
        labels = chance.sample(item.labels, len(item.labels))
        wanted = [labels[place % len(labels)] for place in range(strategy.shots)]
    else:
        if not set(how) <= set(range(len(item.labels))):
            raise ValueError(f"selection={how}: the item has {len(item.labels)} labels, numbered from 0")
        wanted = [item.labels[place] for place in how]
    chosen = []
    for label in wanted:
        found = next((one for one in shuffled if one.target == label), None)
        if found is None:
            raise ValueError(f"selection={how!r}: the pool holds too few examples of {label!r}; make it larger")
        shuffled.remove(found)
        chosen.append(found)
    return chosen


def similarities(text: str, others: Sequence[str]) -> list[float]:
    """Return how alike a text is to each of some others: the cosine of their TF-IDF vectors of letter trigrams.

    Salton and Buckley (1988), on texts in lower case with a blank at both ends: 0 where nothing is shared, 1 for equal
    texts.

    Args:
        text: the text.
        others: the texts that it is compared with, which also tell how rare a trigram is.
    """
    where, weights = _trigram_index(tuple(others))
    own = {gram: count * weights.get(gram, 0.0) for gram, count in _trigrams(text).items()}
    norm = math.sqrt(sum(value * value for value in own.values())) or 1.0
    found = [0.0] * len(others)
    for gram in sorted(own):
        for place, value in where.get(gram, ()):
            found[place] += own[gram] * value / norm
    return found


def _trigrams(text: str) -> Counter[str]:
    padded = f" {' '.join(text.lower().split())} "
    return Counter(padded[place : place + 3] for place in range(max(1, len(padded) - 2)))


@lru_cache(maxsize=512)
def _trigram_index(texts: tuple[str, ...]) -> tuple[dict[str, list[tuple[int, float]]], dict[str, float]]:
    """For each trigram the texts that hold it, with its weight in each (vectors of length 1), and its rareness."""
    counts = [_trigrams(text) for text in texts]
    holders = Counter(gram for one in counts for gram in one)
    weights = {gram: math.log((1 + len(texts)) / (1 + number)) + 1 for gram, number in holders.items()}
    where: dict[str, list[tuple[int, float]]] = {}
    for place, one in enumerate(counts):
        norm = math.sqrt(sum((count * weights[gram]) ** 2 for gram, count in one.items())) or 1.0
        for gram, count in one.items():
            where.setdefault(gram, []).append((place, count * weights[gram] / norm))
    return where, weights


def prompt(task: Task, item: Item, strategy: Strategy, seed: int = 0) -> str:
    """Return the prompt that a strategy makes for a question of a task.

    Args:
        task: the task.
        item: the question.
        strategy: the strategy.
        seed: seed of the examples.

    Raises:
        ValueError: the examples cannot be chosen, or the template needs what the task does not have.
    """
    return _render(task, item, item.input, strategy, select(task, item, strategy, seed))


def _render(task: Task, item: Item, text: str, strategy: Strategy, shown: Sequence[Example]) -> str:
    return strategy.template.render(text, shown, instruction=task.instruction, prefix=task.prefix, labels=item.labels)


# --- the guard


def count_tokens(loaded: Loaded, prompt: str) -> int:
    """Return how many tokens the model reads for a prompt, marks included.

    Args:
        loaded: what :func:`course_utils.models.load` returned.
        prompt: the prompt.
    """
    return len(_prompt_ids(loaded, [prompt])[0])


def fits(loaded: Loaded, prompt: str, new_tokens: int = 0) -> bool:
    """Return whether a prompt, and so many tokens behind it, have place in the context window.

    The tokens that an encoder-decoder writes take no place beside the prompt, which its encoder reads.

    Args:
        loaded: what :func:`course_utils.models.load` returned.
        prompt: the prompt.
        new_tokens: tokens of the answer.
    """
    window = generation.context_window(loaded)
    return window is None or _needed(loaded, count_tokens(loaded, prompt), new_tokens) <= window


def _needed(loaded: Loaded, tokens: int, new_tokens: int) -> int:
    return max(tokens, new_tokens) if _encodes(loaded) else tokens + new_tokens


def _guard(loaded: Loaded, sizes: Sequence[tuple[int, int]], names: Sequence[str]) -> None:
    """Refuse (prompt, answer) tokens that exceed the window; the names say whose they are."""
    window = generation.context_window(loaded)
    if window is None:
        return
    over = [place for place, (tokens, new) in enumerate(sizes) if _needed(loaded, tokens, new) > window]
    if over:
        place = max(over, key=lambda one: sum(sizes[one]))
        tokens, new = sizes[place]
        of = f"{len(over)} of {len(sizes)} prompts do" if len(sizes) > 1 else "it does"
        raise ValueError(
            f"a prompt of {tokens} tokens and up to {new} of its answer ({names[place]}) exceed the context window of "
            f"{window} tokens of {loaded.name}, {of} not fit: show fewer or shorter examples, or shorten the input"
        )


# --- scoring of labels


def label_scores(
    loaded: Loaded,
    prompts: Sequence[str],
    labels: Sequence[Sequence[str]],
    answer: str = Template.answer,
    *,
    rows: int = 64,
    progress: bool = False,
) -> list[list[float]]:
    """Return the log-probability of each label after its prompt, in nats, with what ends it.

    It is the sum over all tokens behind those that the prompt has in common with prompt and label together, so that
    tokens which reach over the boundary count in full. Labels are not divided by their length: the end makes them
    complete texts, and the probabilities of complete texts can be compared.

    A prompt is read once for all its labels; prompts that were scored before are not read again, unless the weights
    have changed.

    Args:
        loaded: what :func:`course_utils.models.load` returned: a decoder, or an encoder-decoder, which reads the prompt
            in its encoder and scores the label in its decoder.
        prompts: the prompts.
        labels: for each prompt its labels.
        answer: how a label is written, as in :class:`Template`.
        rows: prompts in a batch, and a quarter of its labels, at most.
        progress: show a progress bar.

    Raises:
        ValueError: a prompt has no labels or exceeds the context window, or the model cannot write.
    """
    if len(prompts) != len(labels) or not all(labels):
        raise ValueError(f"labels of {len(labels)} prompts: expected at least one label for each of {len(prompts)}")
    encoded = _encoded(loaded, prompts, labels, [answer] * len(prompts))
    _guard(loaded, [_size(one) for one in encoded], [f"prompt {number}" for number in range(len(prompts))])
    return [list(scores) for scores, _ in _scored(loaded, encoded, rows, progress)]


Encoded = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]
"""Tokens of a prompt, and for each label those that follow."""
_CACHE: dict[tuple[Any, ...], tuple[Any, float]] = {}
"""What was computed: model and prompt to result and seconds."""
CACHED = 200_000


def _size(one: Encoded) -> tuple[int, int]:
    return len(one[0]), max(map(len, one[1]))


def _encodes(loaded: Loaded) -> bool:
    """Whether it is an encoder-decoder."""
    if loaded.kind not in ("causal", "seq2seq"):
        raise ValueError(f"{loaded.name} of kind {loaded.kind!r} writes no text: expected a causal or a seq2seq model")
    return bool(loaded.model.config.is_encoder_decoder)


def _prompt_ids(loaded: Loaded, prompts: Sequence[str]) -> list[list[int]]:
    """Tokens of the prompts as the model reads them."""
    for prompt in prompts:
        generation.check_text(prompt)
    if not prompts or _encodes(loaded):
        return list(loaded.tokenizer(list(prompts), verbose=False)["input_ids"]) if prompts else []
    start = _start(loaded.tokenizer)
    found = loaded.tokenizer(list(prompts), add_special_tokens=False, verbose=False)["input_ids"]
    return [[*start, *ids] if ids else _begun(loaded.tokenizer, start) for ids in found]


def _start(tokenizer: Any) -> list[int]:
    """The token that a decoder's tokenizer puts before a text, if any."""
    marks = list(tokenizer("")["input_ids"][:1])
    return marks if marks and marks[0] == tokenizer.bos_token_id else []


def _begun(tokenizer: Any, start: list[int]) -> list[int]:
    """What stands before a text that begins with nothing: a token to go on from there must be."""
    first = [one for one in (tokenizer.bos_token_id, tokenizer.eos_token_id) if one is not None]
    if not start and not first:
        raise ValueError("the prompt is empty, and the tokenizer has no token that begins a text: write something")
    return start or first[:1]


def _encoded(
    loaded: Loaded, prompts: Sequence[str], labels: Sequence[Sequence[str]], answers: Sequence[str]
) -> list[Encoded]:
    """Tokens of each prompt and of its labels, parted where all of them agree with the prompt alone."""
    tokenizer, read = loaded.tokenizer, _prompt_ids(loaded, prompts)
    end = tokenizer.eos_token_id
    if end is None and (_encodes(loaded) or any(one.endswith("{target}") for one in answers)):
        raise ValueError(f"the tokenizer of {loaded.name} has no token that ends a text: end the template's answer")
    texts = [[answer.replace("{target}", label) for label in own] for own, answer in zip(labels, answers, strict=True)]
    if _encodes(loaded):
        every = list(dict.fromkeys(text.rstrip() for own in texts for text in own))
        written = tokenizer(text_target=every, verbose=False)["input_ids"] if every else []
        tails = {text: (*ids, *(() if ids[-1:] == [end] else (end,))) for text, ids in zip(every, written, strict=True)}
        return [(tuple(ids), tuple(tails[text.rstrip()] for text in own)) for ids, own in zip(read, texts, strict=True)]
    whole = [text + tail for text, own in zip(prompts, texts, strict=True) for tail in own]
    joined = iter(tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"] if whole else [])
    start, found = _start(tokenizer), []
    for ids, own, answer in zip(read, texts, answers, strict=True):
        last = (end,) if answer.endswith("{target}") else ()
        rows = [[*start, *next(joined), *last] for _ in own]
        shared = min(_common(ids, row) for row in rows)
        if not shared:  # Nothing stands before the first token of the answer, or that token reaches over the boundary.
            rows, shared = [[*_begun(tokenizer, start), *row] for row in rows], 1
        found.append((tuple(rows[0][:shared]), tuple(tuple(row[shared:]) for row in rows)))
    return found


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _fingerprint(model: Any) -> str | None:
    """A digest of the weights; None for a model that hooks change, or whose weights are no plain tensors."""
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return None
    digest = hashlib.sha256(repr(model.config).encode())
    for name, value in model.state_dict().items():
        if type(value) is not Tensor:
            return None
        digest.update(f"{name} {value.dtype} {value.device.type}".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _scored(
    loaded: Loaded, encoded: Sequence[Encoded], rows: int, progress: bool
) -> list[tuple[tuple[float, ...], float]]:
    """The log-probabilities of the labels of each prompt, and the seconds that it took when it was computed."""
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ValueError(f"rows={rows!r}: expected a whole number of 1 or more")
    model, print_ = loaded.model, _fingerprint(loaded.model)
    cache = _CACHE if print_ is not None else {}
    if len(cache) > CACHED:
        cache.clear()
    pending = [one for one in dict.fromkeys(encoded) if (print_, one) not in cache]
    pending.sort(key=lambda one: (len(one[0]), *_size(one)))  # little padding, and a bar whose end is not far too early
    score = _score_decoder if not _encodes(loaded) else _score_both
    training = model.training
    model.eval()
    try:
        with reporting.progress_bar(len(pending), "prompts", progress) as bar, torch.no_grad():
            for batch in _batches(pending, rows):
                begin = time.perf_counter()
                found = score(model, batch)
                each = (time.perf_counter() - begin) / len(batch)
                if not all(map(math.isfinite, itertools.chain(*found))):
                    raise ValueError(
                        f"{loaded.name} gives labels no probability: its weights hold no numbers, or what it computes "
                        f"exceeds {model.dtype}; load it with dtype=torch.float32"
                    )
                for one, scores in zip(batch, found, strict=True):
                    cache[(print_, one)] = (tuple(scores), each)
                bar.update(len(batch))
    finally:
        model.train(training)
    return [cache[(print_, one)] for one in encoded]


def _batches(pending: Sequence[Encoded], rows: int) -> Iterator[list[Encoded]]:
    """Batches of at most so many prompts, and four times as many labels."""
    batch: list[Encoded] = []
    for one in pending:
        if batch and (len(batch) == rows or sum(len(tails) for _, tails in [*batch, one]) > 4 * rows):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _padded(rows: Sequence[Sequence[int]], device: Any, left: bool = False) -> tuple[Tensor, Tensor]:
    """Tokens of rows as a rectangle, and its mask."""
    size = max(map(len, rows))
    ids, mask = (torch.zeros(len(rows), size, dtype=torch.long) for _ in range(2))
    for place, row in enumerate(rows):
        where = slice(size - len(row), size) if left else slice(0, len(row))
        ids[place, where], mask[place, where] = torch.tensor(row, dtype=torch.long), 1
    return ids.to(device), mask.to(device)


def _score_decoder(model: Any, batch: Sequence[Encoded]) -> list[list[float]]:
    """Read the prompts, then from the kept keys and values go on with each label."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = inspect.signature(inner.forward).parameters
    ids, mask = _padded([context for context, _ in batch], model.device, left=True)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    settings = {"position_ids": places, "logits_to_keep": 1}
    settings = {name: value for name, value in settings.items() if name in known}
    output = model(input_ids=ids, attention_mask=mask, use_cache=True, **settings)
    owners = [(place, tail) for place, (_, tails) in enumerate(batch) for tail in tails]
    chosen = torch.tensor([place for place, _ in owners], device=model.device)
    first = torch.tensor([tail[0] for _, tail in owners], device=model.device)
    sums = _log_softmax(output.logits[:, -1])[chosen, first]
    if max(len(tail) for _, tail in owners) > 1:
        new, real = _padded([tail[:-1] for _, tail in owners], model.device)
        cache = output.past_key_values
        cache.batch_select_indices(chosen)
        if "position_ids" in known:
            settings["position_ids"] = places[chosen, -1:] + 1 + torch.arange(new.shape[1], device=model.device)
        settings.pop("logits_to_keep", None)
        both = torch.cat([mask[chosen], real], 1)
        output = model(input_ids=new, attention_mask=both, past_key_values=cache, use_cache=True, **settings)
        sums = sums + _tails(output.logits, [tail[1:] for _, tail in owners])
    values = iter(sums.tolist())
    return [[next(values) for _ in tails] for _, tails in batch]


def _score_both(model: Any, batch: Sequence[Encoded]) -> list[list[float]]:
    """Read the prompts in the encoder, then each label in the decoder."""
    from transformers.modeling_outputs import BaseModelOutput

    ids, mask = _padded([context for context, _ in batch], model.device)
    states = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    owners = [(place, tail) for place, (_, tails) in enumerate(batch) for tail in tails]
    chosen = torch.tensor([place for place, _ in owners], device=model.device)
    start = model.config.decoder_start_token_id
    new, _ = _padded([(start, *tail[:-1]) for _, tail in owners], model.device)
    output = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states[chosen]), attention_mask=mask[chosen],
        decoder_input_ids=new, use_cache=False,
    )  # fmt: skip
    values = iter(_tails(output.logits, [tail for _, tail in owners]).tolist())
    return [[next(values) for _ in tails] for _, tails in batch]


def _tails(logits: Float[Tensor, "rows tokens vocabulary"], tails: Sequence[Sequence[int]]) -> Float[Tensor, "rows"]:
    """Sum of the log-probabilities of each row's tokens, which the row's first logits predict."""
    ids, mask = _padded(tails, logits.device)
    values = _log_softmax(logits).gather(2, ids[..., None])[..., 0]
    return (values * mask).sum(1)


def _log_softmax(logits: Tensor) -> Tensor:
    """In float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


# --- comparing strategies

CONTENT_FREE = "N/A"
"""A question without content (Zhao et al., 2021, section 4)."""
RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of one strategy.

    Attributes:
        strategy: the strategy.
        scores: of each question under each seed: 1 for a right answer and 0 for a wrong one, or ROUGE-L.
        answers: what was answered, seed by seed.
        probabilities: the probabilities of the item's labels, seed by seed; None where text was written.
        tokens: tokens read in all prompts.
        seconds: seconds of the computation of all prompts, one that was computed before included with what it took.
    """

    strategy: Strategy
    scores: Float[Tensor, "seeds items"]
    answers: tuple[tuple[str, ...], ...]
    probabilities: tuple[tuple[tuple[float, ...], ...], ...] | None
    tokens: int
    seconds: float

    @property
    def accuracy(self) -> float:
        """Mean score."""
        return float(self.scores.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean: bootstrap over seeds and items (Owen, 2007: both are drawn, crossed)."""
        return _interval(_resampled(self.scores))

    @property
    def calibration_error(self) -> float | None:
        """Expected calibration error of the chosen labels' probabilities (Guo et al., 2017); None for written text."""
        if self.probabilities is None:
            return None
        sure = [max(one) for row in self.probabilities for one in row]
        return calibration_error(sure, self.scores.flatten().tolist())

    @property
    def first_label(self) -> float:
        """Share of the questions that were answered with the first of their labels."""
        if self.probabilities is None:
            raise ValueError(f"{self.strategy.name}: text was written, there are no labels")
        firsts = [one[0] == max(one) for row in self.probabilities for one in row]
        return sum(firsts) / len(firsts)


@dataclass(frozen=True)
class Paired:
    """Two strategies on the same questions.

    Attributes:
        first: name of the one.
        second: name of the other.
        difference: mean score of the second less that of the first.
        low: lower end of its 95 % interval, by the paired bootstrap over seeds and items.
        high: upper end.
        p: two-sided p of that bootstrap.
        mcnemar: p of the exact test of McNemar (1947): of the items that one of them answers better (in more seeds),
            are as many won by each?
        won: items that the second answers better.
        lost: items that the first answers better.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    mcnemar: float
    won: int
    lost: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """Strategies on the questions of a task.

    Attributes:
        task: name of the task.
        items: the questions.
        seeds: seeds of the examples.
        outcomes: one for each strategy, in the order in which they were given.
    """

    task: str
    items: tuple[Item, ...]
    seeds: tuple[int, ...]
    outcomes: tuple[Outcome, ...]

    def __getitem__(self, name: str) -> Outcome:
        """Return the outcome of the strategy of this name.

        Raises:
            ValueError: there is none.
        """
        found = {one.strategy.name: one for one in self.outcomes}
        if name not in found:
            raise ValueError(f"strategy {name!r}: expected one of {', '.join(map(repr, found))}")
        return found[name]

    def table(self) -> None:
        """Display accuracy (or ROUGE-L), its interval, calibration error, tokens and seconds of each strategy."""
        rows = []
        for one in self.outcomes:
            (low, high), error = one.interval, one.calibration_error
            rows.append(
                (
                    one.strategy.name,
                    reporting.approx(one.accuracy, 3),
                    f"{reporting.approx(low, 3)} to {reporting.approx(high, 3)}",
                    "" if error is None else reporting.approx(error, 3),
                    f"{one.tokens:,}",
                    reporting.approx(one.seconds, 1),
                )
            )
        count = f"{len(self.items)} items x {len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}"
        header = ("strategy", "score", "95 % interval", "calibration error", "tokens read", "seconds")
        reporting.table(rows, header, caption=f"{self.task}, {count}")

    def paired(self, first: str, second: str) -> Paired:
        """Return whether the second strategy is better than the first, on the same questions and seeds.

        Args:
            first: name of a strategy.
            second: name of another one.

        Raises:
            ValueError: there is no such strategy.
        """
        gap = self[second].scores - self[first].scores
        means = _resampled(gap)
        low, high = _interval(means)
        tail = min(sum(mean <= 0 for mean in means), sum(mean >= 0 for mean in means))
        each = gap.sum(0)
        won, lost = int((each > 1e-9).sum()), int((each < -1e-9).sum())
        p = min(1.0, 2 * (tail + 1) / (len(means) + 1))
        return Paired(first, second, float(gap.mean()), low, high, p, mcnemar(won, lost), won, lost)

    def tests(self) -> None:
        """Display each strategy against the one before it, with p times the number of tests (Bonferroni)."""
        names = [one.strategy.name for one in self.outcomes]
        rows = []
        for first, second in itertools.pairwise(names):
            one = self.paired(first, second)
            p, exact = (min(1.0, value * (len(names) - 1)) for value in (one.p, one.mcnemar))
            rows.append(
                (
                    f"{second} against {first}",
                    f"≈{one.difference:+.3f}",
                    f"≈{one.low:+.3f} to ≈{one.high:+.3f}",
                    f"≈{p:.1g}",
                    f"≈{one.won} : ≈{one.lost}",
                    f"≈{exact:.1g}",
                )
            )
        header = ("strategies", "difference", "95 % interval", "p, bootstrap", "items won : lost", "p, McNemar")
        reporting.table(rows, header, caption=self.task)

    def plot(self) -> "Figure":
        """Draw the score of each strategy with its interval, and what a guess among the labels is right."""
        from course_utils.plotting import COLORS, figure

        fig, axes = figure(6.4, 1.2 + 0.36 * len(self.outcomes))
        for place, one in enumerate(self.outcomes):
            low, high = one.interval
            axes.plot([low, high], [place, place], color=COLORS[0], marker="")
            axes.plot([one.accuracy], [place], color=COLORS[0], marker="o")
        if all(item.labels for item in self.items):
            guess = sum(1 / len(item.labels) for item in self.items) / len(self.items)
            axes.axvline(guess, color=COLORS[7], linestyle=":", linewidth=1, label="guess")
            axes.legend()
        axes.set_yticks(range(len(self.outcomes)), [one.strategy.name for one in self.outcomes])
        axes.set_ylim(len(self.outcomes) - 0.5, -0.5)
        axes.set(xlabel="score, with 95 % interval", xlim=(-0.02, 1.02), title=self.task)
        return fig


def compare(
    loaded: Loaded,
    task: Task,
    strategies: Sequence[Strategy],
    n: int | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    *,
    settings: generation.Decoding | None = None,
    rows: int = 64,
    progress: bool = True,
) -> Comparison:
    """Run strategies on the same questions of a task, with examples drawn anew for each seed.

    All prompts are made and counted before the first one runs.

    Args:
        loaded: what :func:`course_utils.models.load` returned: a decoder or an encoder-decoder.
        task: the task.
        strategies: what to compare.
        n: number of questions, the first ones of the task; by default all.
        seeds: seeds of the examples.
        settings: a :class:`.generation.Decoding` for text that is written; by default greedy, as long as the longest
            answer of the pool and a half, to what ends an answer in the template.
        rows: prompts in a batch.
        progress: show a progress bar.

    Raises:
        ValueError: two strategies have one name, a number is out of range, examples cannot be chosen, or a prompt
            exceeds the context window.
    """
    names = [one.name for one in strategies]
    if not names or len(set(names)) < len(names) or not seeds:
        raise ValueError(f"strategies={names}, seeds={list(seeds)}: expected one or more of each, with different names")
    if n is not None and not 1 <= n <= len(task.items):
        raise ValueError(f"n={n}: expected a whole number from 1 to {len(task.items)}, the items of {task.name!r}")
    items = task.items[:n]
    ranked = [bool(item.labels) for item in items]
    if any(ranked) != all(ranked):
        raise ValueError(f"task {task.name!r}: some items have labels and some do not; make two tasks of it")
    plans = [_plan(task, items, one, seeds) for one in strategies]
    chosen = [place for place, one in enumerate(strategies) if ranked[0] and not one.template.reasons]
    outcomes: dict[int, Outcome] = {}
    if chosen:
        ranked_ones = [strategies[place] for place in chosen]
        found = _ranked(loaded, items, ranked_ones, [plans[place] for place in chosen], len(seeds), rows, progress)
        outcomes.update(zip(chosen, found, strict=True))
    usual: dict[Template, generation.Decoding] = {}
    for place, one in enumerate(strategies):
        if place not in outcomes:
            if one.template not in usual:
                usual[one.template] = settings or _settings(loaded, task, one.template)
            how = usual[one.template]
            outcomes[place] = _written(loaded, task, items, one, plans[place], len(seeds), how, rows, progress)
    return Comparison(task.name, items, tuple(seeds), tuple(outcomes[place] for place in range(len(strategies))))


@dataclass(frozen=True)
class _Plan:
    """The prompts of a strategy, all items of one seed after the other; and those without content, if it needs them."""

    prompts: list[str]
    empty: list[str]


def _plan(task: Task, items: Sequence[Item], strategy: Strategy, seeds: Sequence[int]) -> _Plan:
    prompts, empty = [], []
    for seed in seeds:
        shown: dict[str, tuple[Example, ...]] = {}
        for item in items:
            key = item.input if strategy.selection == "nearest" else item.group
            if strategy.selection == "nearest" or key not in shown:
                shown[key] = select(task, item, strategy, seed)
            prompts.append(_render(task, item, item.input, strategy, shown[key]))
            if strategy.calibrated:
                empty.append(_render(task, item, CONTENT_FREE, strategy, shown[key]))
    return _Plan(prompts, empty)


def _ranked(
    loaded: Loaded,
    items: Sequence[Item],
    strategies: Sequence[Strategy],
    plans: Sequence[_Plan],
    seeds: int,
    rows: int,
    progress: bool,
) -> list[Outcome]:
    """Score the labels of all strategies together, so that batches hold prompts of like length."""
    prompts, labels, answers, names = [], [], [], []
    for strategy, plan in zip(strategies, plans, strict=True):
        for part in (plan.prompts, plan.empty):
            prompts += part
            labels += [item.labels for _ in range(seeds) for item in items] if part else []
            answers += [strategy.template.answer] * len(part)
            names += [strategy.name] * len(part)
    encoded = _encoded(loaded, prompts, labels, answers)
    _guard(loaded, [_size(one) for one in encoded], names)
    results = iter(zip(encoded, _scored(loaded, encoded, rows, progress), strict=True))
    outcomes = []
    for strategy, plan in zip(strategies, plans, strict=True):
        found = [next(results) for _ in plan.prompts]
        without = [next(results) for _ in plan.empty]
        probabilities = []
        for place, (_, (scores, _)) in enumerate(found):
            empty = without[place][1][0] if without else [0.0] * len(scores)
            probabilities.append(tuple(calibrate(scores, empty)))
        said = [item.labels[one.index(max(one))] for one, item in zip(probabilities, [*items] * seeds, strict=True)]
        outcomes.append(
            Outcome(
                strategy,
                torch.tensor([one == item.target for one, item in zip(said, [*items] * seeds, strict=True)])
                .double()
                .view(seeds, -1),
                _rows(said, seeds),
                _rows(probabilities, seeds),
                sum(len(one[0]) for one, _ in found + without),
                sum(seconds for _, (_, seconds) in found + without),
            )
        )
    return outcomes


def _written(
    loaded: Loaded,
    task: Task,
    items: Sequence[Item],
    strategy: Strategy,
    plan: _Plan,
    seeds: int,
    settings: generation.Decoding,
    rows: int,
    progress: bool,
) -> Outcome:
    """Let the model write the answers, and score the texts."""
    if strategy.calibrated:
        raise ValueError(f"strategy {strategy.name!r}: only the probabilities of labels can be calibrated")
    template = strategy.template
    sizes = [len(ids) for ids in _prompt_ids(loaded, plan.prompts)]
    _guard(loaded, [(size, settings.max_new_tokens) for size in sizes], [strategy.name] * len(sizes))
    print_ = _fingerprint(loaded.model)
    cache = _CACHE if print_ is not None else {}
    length = dict(zip(plan.prompts, sizes, strict=True))
    pending = sorted((one for one in length if (print_, one, settings) not in cache), key=lambda one: length[one])
    with reporting.progress_bar(len(pending), strategy.name, progress) as bar:
        for place in range(0, len(pending), rows):
            batch = pending[place : place + rows]
            begin = time.perf_counter()
            found = generation.complete(loaded, batch, settings, rows=rows)
            each = (time.perf_counter() - begin) / len(batch)
            for one, completion in zip(batch, found, strict=True):
                cache[(print_, one, settings)] = (completion.text, each)
            bar.update(len(batch))
    results = [cache[(print_, one, settings)] for one in plan.prompts]
    said = [template.read(text) for text, _ in results]
    rate = rouge_l if task.metric == "rouge" and not items[0].labels else _same
    scores = [rate(one, item.target) for one, item in zip(said, [*items] * seeds, strict=True)]
    return Outcome(
        strategy,
        torch.tensor(scores, dtype=torch.float64).view(seeds, -1),
        _rows(said, seeds),
        None,
        sum(sizes),
        sum(seconds for _, seconds in results),
    )


def _settings(loaded: Loaded, task: Task, template: Template) -> generation.Decoding:
    """Greedy, to what ends an answer, and at most as long as the pool's longest one and half as long again."""
    shown = {one for part in task.pool.values() for one in part}
    texts = {template.answer.format(target=one.target, reasoning=one.reasoning) for one in shown}
    ids = loaded.tokenizer(sorted(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    longest = math.ceil(1.5 * max(map(len, ids), default=UNKNOWN_LENGTH / 1.5))
    stops = not _encodes(loaded) and bool(template.end)
    return generation.Decoding(max_new_tokens=longest, stop=(template.end,) if stops else ())


UNKNOWN_LENGTH = 64
"""Tokens that are written where no example tells how long an answer is."""


def _same(answer: str, target: str) -> float:
    return float(answer == target)


def _rows(values: Sequence[Any], seeds: int) -> tuple[tuple[Any, ...], ...]:
    """One row for each seed."""
    size = len(values) // seeds
    return tuple(tuple(values[seed * size : (seed + 1) * size]) for seed in range(seeds))


def fitting(
    loaded: Loaded,
    task: Task,
    strategies: Sequence[Strategy],
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    *,
    settings: generation.Decoding | None = None,
) -> Task:
    """Return the task with those items alone whose prompts fit the context window; its name says how many they are.

    Args:
        loaded: what :func:`course_utils.models.load` returned.
        task: the task.
        strategies: the strategies whose prompts have to fit, all of them.
        seeds: seeds of their examples.
        settings: as for :func:`compare`.

    Raises:
        ValueError: no item fits, or examples cannot be chosen.
    """
    window = generation.context_window(loaded)
    if window is None:
        return task
    kept = set(range(len(task.items)))
    for strategy in strategies:
        plan, template = _plan(task, task.items, strategy, seeds), strategy.template
        for part in (plan.prompts, plan.empty):
            if all(item.labels for item in task.items) and not template.reasons:
                labels = [item.labels for item in task.items] * (len(part) // len(task.items))
                sizes = [_size(one) for one in _encoded(loaded, part, labels, [template.answer] * len(part))]
            else:
                new = (settings or _settings(loaded, task, template)).max_new_tokens
                sizes = [(len(ids), new) for ids in _prompt_ids(loaded, part)]
            for number, (tokens, new) in enumerate(sizes):
                if _needed(loaded, tokens, new) > window:
                    kept.discard(number % len(task.items))
    if not kept:
        raise ValueError(f"no item of {task.name!r} fits the context window of {window} tokens of {loaded.name}")
    if len(kept) == len(task.items):
        return task
    name = f"{task.name} ({len(kept)} of {len(task.items)} items, which fit {window} tokens)"
    return replace(task, name=name, items=tuple(task.items[place] for place in sorted(kept)))


def pooled(name: str, comparisons: Sequence[Comparison]) -> Comparison:
    """Return the comparisons of several tasks as one of all their items.

    Args:
        name: what it is called.
        comparisons: of strategies with the same names, under the same seeds.

    Raises:
        ValueError: there is none, or strategies or seeds differ.
    """
    kinds = {(one.seeds, tuple(outcome.strategy.name for outcome in one.outcomes)) for one in comparisons}
    if len(kinds) != 1:
        raise ValueError(f"pooled({name!r}): expected comparisons with the same strategies and seeds, got {len(kinds)}")
    outcomes = []
    for parts in zip(*(one.outcomes for one in comparisons), strict=True):
        shares = [one.probabilities for one in parts if one.probabilities is not None]
        outcomes.append(
            Outcome(
                parts[0].strategy,
                torch.cat([one.scores for one in parts], 1),
                _joined([one.answers for one in parts]),
                _joined(shares) if len(shares) == len(parts) else None,
                sum(one.tokens for one in parts),
                sum(one.seconds for one in parts),
            )
        )
    items = tuple(item for one in comparisons for item in one.items)
    return Comparison(name, items, comparisons[0].seeds, tuple(outcomes))


def _joined(parts: Sequence[Sequence[tuple[Any, ...]]]) -> tuple[tuple[Any, ...], ...]:
    """The rows of several tables, each seed's rows joined."""
    return tuple(tuple(itertools.chain(*rows)) for rows in zip(*parts, strict=True))


# --- studies


def order_study(
    loaded: Loaded,
    task: Task,
    strategy: Strategy,
    orders: int = 24,
    n: int | None = None,
    seeds: Sequence[int] = (0,),
    **settings: Any,
) -> Comparison:
    """Show the same examples in different orders (Lu et al., 2022).

    Args:
        loaded: what :func:`course_utils.models.load` returned.
        task: the task.
        strategy: which examples; at least two.
        orders: number of orders; where there are more, some are drawn.
        n: number of questions.
        seeds: seeds of the examples.
        **settings: further arguments of :func:`compare`.

    Returns:
        A comparison with one strategy for each order; :func:`unchanged` says how many answers the order leaves alone.

    Raises:
        ValueError: there are fewer than two examples, or as for :func:`compare`.
    """
    if strategy.shots < 2 or orders < 2:
        raise ValueError(f"order_study of {strategy.shots} examples in {orders} orders: expected 2 or more of each")
    if strategy.shots <= 6:
        every = list(itertools.permutations(range(strategy.shots)))
        chosen = every if len(every) <= orders else random.Random(0).sample(every, orders)
    else:
        chance, drawn = random.Random(0), dict[tuple[int, ...], None]()
        while len(drawn) < orders:
            drawn[tuple(chance.sample(range(strategy.shots), strategy.shots))] = None
        chosen = list(drawn)
    variants = [replace(strategy, order=order, name="") for order in sorted(chosen)]
    return compare(loaded, task, variants, n, seeds, **settings)


def unchanged(comparison: Comparison) -> float:
    """Return the share of the questions that all strategies of a comparison answer alike, right or wrong.

    Args:
        comparison: for example an :func:`order_study`.
    """
    said = [[one for row in outcome.answers for one in row] for outcome in comparison.outcomes]
    return sum(len(set(answers)) == 1 for answers in zip(*said, strict=True)) / len(said[0])


@dataclass(frozen=True, eq=False)
class LabelBias:
    """How the labels of the examples draw the answers towards them, whatever is asked (Zhao et al., 2021, section 3).

    Attributes:
        comparison: one strategy for each sequence of labels in the examples, of two labels: ``1 1 2 1``.
        truth: share of the questions whose right answer is the first label.
    """

    comparison: Comparison
    truth: float

    @property
    def majority(self) -> dict[int, float]:
        """Number of examples with the first label, to the share of the answers that are the first label."""
        return self._mean(lambda places: sum(place == 0 for place in places))

    @property
    def recency(self) -> dict[int, float]:
        """Which label stands last, 1 or 2, to the same share; of sequences with both labels equally often."""
        shots = self.comparison.outcomes[0].strategy.shots
        return self._mean(lambda places: places[-1] + 1 if 2 * sum(places) == shots else None)

    def _mean(self, key: Callable[[tuple[int, ...]], int | None]) -> dict[int, float]:
        found: dict[int, list[float]] = {}
        for one in self.comparison.outcomes:
            places = one.strategy.selection
            value = key(places) if not isinstance(places, str) else None
            if value is not None:
                found.setdefault(value, []).append(one.first_label)
        return {value: sum(shares) / len(shares) for value, shares in sorted(found.items())}

    def plot(self) -> "Figure":
        """Draw the share of answers with the first label, for each sequence of labels in the examples."""
        from course_utils.plotting import COLORS, figure

        fig, axes = figure(7.2, 3.6)
        ranked = sorted(self.comparison.outcomes, key=lambda one: (-one.strategy.name.count("1"), one.strategy.name))
        for place, one in enumerate(ranked):
            last = one.strategy.selection[-1]
            axes.bar([place], [one.first_label], color=COLORS[int(last)], hatch="//" if last else "")
        axes.axhline(self.truth, color=COLORS[7], linestyle=":", linewidth=1)
        axes.set_xticks(range(len(ranked)), [one.strategy.name for one in ranked], rotation=60)
        axes.set(ylim=(0, 1), ylabel="share answered with label 1", xlabel="labels of the examples, in their order")
        axes.set_title("Dotted: share that is right; hatched: label 2 stands last")
        return fig


def label_bias(
    loaded: Loaded,
    task: Task,
    strategy: Strategy,
    n: int | None = None,
    seeds: Sequence[int] = (0,),
    **settings: Any,
) -> LabelBias:
    """Show examples with every sequence of two labels: more of one label than of the other, one of them last.

    Args:
        loaded: what :func:`course_utils.models.load` returned.
        task: a task whose items have two labels.
        strategy: template, number of examples (1 to 6), and whether calibrated.
        n: number of questions.
        seeds: seeds of the examples.
        **settings: further arguments of :func:`compare`.

    Raises:
        ValueError: an item has not two labels, the number of examples is out of range, or as for :func:`compare`.
    """
    if not 1 <= strategy.shots <= 6:
        raise ValueError(f"label_bias of {strategy.shots} examples: expected 1 to 6, for there are 2**shots sequences")
    few = next((item for item in task.items[:n] if len(item.labels) != 2), None)
    if few is not None:
        raise ValueError(f"label_bias: expected items with two labels, {few.input[:40]!r} has {len(few.labels)}")
    variants = [
        replace(
            strategy,
            selection=places,
            order=tuple(range(strategy.shots)),
            name=" ".join(str(place + 1) for place in places),
        )
        for places in itertools.product((0, 1), repeat=strategy.shots)
    ]
    comparison = compare(loaded, task, variants, n, seeds, **settings)
    truth = sum(item.target == item.labels[0] for item in comparison.items) / len(comparison.items)
    return LabelBias(comparison, truth)


def plot_shots(comparisons: Sequence[Comparison]) -> "Figure":
    """Draw the score over the number of examples, one line a task, with 95 % intervals.

    Args:
        comparisons: of strategies that differ in their number of examples.
    """
    from course_utils.plotting import figure

    fig, axes = figure(8.4, 3.8)
    for comparison in comparisons:
        ranked = sorted(comparison.outcomes, key=lambda one: one.strategy.shots)
        x, y = [one.strategy.shots for one in ranked], [one.accuracy for one in ranked]
        (line,) = axes.plot(range(len(x)), y, label=comparison.task)
        axes.set_xticks(range(len(x)), list(map(str, x)))
        lows, highs = zip(*(one.interval for one in ranked), strict=True)
        axes.fill_between(range(len(x)), lows, highs, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="examples in the prompt", ylabel="score, with 95 % interval", ylim=(0, 1.02))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return fig


# --- statistics


def calibrate(scores: Sequence[float], empty: Sequence[float]) -> list[float]:
    """Return the probabilities of labels, each divided by that which it has for a question without content.

    They sum to 1 (Zhao et al., 2021, section 5; the label that wins is the same as there).

    Args:
        scores: log-probability of each label for the question, in nats.
        empty: the same for a question without content; all alike where nothing is to be divided.
    """
    ratios = torch.tensor(scores, dtype=torch.float64) - torch.tensor(empty, dtype=torch.float64)
    return list(ratios.softmax(0).tolist())


def calibration_error(confidences: Sequence[float], right: Sequence[float], bins: int = 10) -> float:
    """Return the expected calibration error: how far confidence and accuracy lie apart (Guo et al., 2017, eq. 3).

    Args:
        confidences: probability that the model gives to its answer, 0 to 1.
        right: 1 where the answer is right, else 0.
        bins: number of bins of equal width.

    Raises:
        ValueError: there are none, or not as many of one as of the other.
    """
    if len(confidences) != len(right) or not len(right) or bins < 1:
        raise ValueError(f"{len(confidences)} confidences and {len(right)} answers in {bins} bins: expected 1 or more")
    groups: dict[int, list[tuple[float, float]]] = {}
    for sure, one in zip(confidences, right, strict=True):
        groups.setdefault(min(bins - 1, int(sure * bins)), []).append((sure, one))
    gaps = (abs(sum(sure - one for sure, one in group)) for group in groups.values())
    return sum(gaps) / len(right)


def mcnemar(won: int, lost: int) -> float:
    """Return the two-sided p of McNemar's exact test: a fair coin, thrown for each item that one side wins.

    Args:
        won: items that one side wins.
        lost: items that the other side wins.

    Raises:
        ValueError: a number is below 0.
    """
    if won < 0 or lost < 0:
        raise ValueError(f"mcnemar({won}, {lost}): expected whole numbers of 0 or more")
    total = won + lost
    tail = sum(math.comb(total, count) for count in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2**total)


def _resampled(scores: Float[Tensor, "seeds items"]) -> list[float]:
    """Means of scores whose seeds and items are drawn again, crossed: an item drawn counts under all seeds drawn."""
    values = scores.numpy()
    seeds, items = _draws(*values.shape)
    return list(((seeds @ values) * items).sum(1).tolist())


@lru_cache(maxsize=4)
def _draws(seeds: int, items: int) -> tuple[Any, Any]:
    """How often each seed and each item is drawn in each resample, as shares."""
    import numpy

    draw = numpy.random.default_rng(0)
    first, second = (draw.multinomial(size, [1 / size] * size, RESAMPLES) / size for size in (seeds, items))
    return first, second


def _interval(means: Sequence[float]) -> tuple[float, float]:
    import numpy

    low, high = numpy.percentile(means, [2.5, 97.5])
    return float(low), float(high)
