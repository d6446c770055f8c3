"""The embedded decoder: a small LLaMA that writes documentation and learns from the examples in its prompt.

In-context learning does not come by itself at this size. The model begins with the circuit that large models learn by
themselves (Olsson et al., 2022), trains it on what repeats, and then learns what to do with it from episodes of many
rules; and it reads documentation all along.
"""

import lzma
import math
import random
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from course_utils import training
from course_utils.data import library_docs, tasks
from course_utils.data.packing import packed_corpus, windows
from course_utils.data.tasks import episodes
from course_utils.interpretability import head_scores, repeated_tokens
from course_utils.recipes.base import Recipe, Result, from_items

WINDOW = 256
"""Tokens of a row of documentation; every tenth batch has rows twice as long."""
SHOTS = (0, 1, 2, 4, 8)
UNSEEN = ("labels", "pairs", "recall", "forms", "picks")
"""Kinds of episode, measured on their held-out halves."""


def build() -> Any:
    """Return the untrained model: LLaMA with 5 layers of 6 heads, width 192, 3.0 million parameters, wired by hand.

    The weights are random but for the circuit of :func:`wire`. From random weights alone a model of this size did not
    learn to recall pairs of its 4,096 tokens within 2 million tokens of any of our curricula.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096,
            hidden_size=192,
            num_hidden_layers=5,
            num_attention_heads=6,
            num_key_value_heads=6,
            intermediate_size=512,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.06,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    wire(model)
    return model


SHARED, TURNING, LOOK, WRITTEN, MATCH, COPIED, QUIET = 0.4, 5, 3.0, 0.12, 2.0, 0.24, 0.1
"""Sizes of the wired weights, chosen so that about half of random tokens that repeat are right before any training."""


@torch.no_grad()
def wire(model: Any) -> None:
    """Begin with the circuit that continues what repeats (Elhage et al., 2021, section on induction heads).

    In the first layer two heads look at the token before, by rotary position alone, and write a sketch of it where no
    embedding reaches. In the second layer every head looks where the sketch of the token before is that of the present
    token, and copies the token it finds there. All other parts begin quiet, so that the copy can be heard. Nothing of
    this is fixed: the training changes these weights as all others.

    Args:
        model: a ``LlamaForCausalLM`` with random weights and at least two layers.
    """
    config = model.config
    width, heads = config.hidden_size, config.num_attention_heads
    size, half = width // heads, width // heads // 2
    words = slice(1, width - 2 * size)  # of the width: 0 is equal for all tokens, then words, then two sketches
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(QUIET)
        layer.mlp.down_proj.weight.mul_(QUIET)
    embeddings = model.model.embed_tokens.weight
    embeddings[:, 0], embeddings[:, words.stop :] = SHARED, 0
    shared = SHARED * (width / embeddings.square().sum(1).mean()) ** 0.5  # after the norm
    angles = 10_000.0 ** (-torch.arange(TURNING) / half)  # between a token and the next; the dimensions that turn most
    slow = [place + offset for offset in (0, half) for place in range(TURNING, half)]
    first.o_proj.weight[words.stop :] = 0
    model.model.layers[0].mlp.down_proj.weight[words.stop :] = 0
    sketches = [nn.init.orthogonal_(torch.empty(size, words.stop - 1)) for _ in range(2)]
    for head, sketch in enumerate(sketches):
        rows, written = slice(head * size, (head + 1) * size), words.stop + head * size
        for weight in (first.q_proj.weight, first.k_proj.weight, first.v_proj.weight, first.o_proj.weight.T):
            weight[rows] = 0
        first.q_proj.weight[rows, 0][:TURNING] = LOOK / shared
        first.k_proj.weight[rows, 0][:TURNING] = LOOK / shared * angles.cos()
        first.k_proj.weight[rows, 0][half : half + TURNING] = LOOK / shared * angles.sin()
        first.v_proj.weight[rows, words] = sketch
        first.o_proj.weight[written : written + size, rows] = WRITTEN * torch.eye(size)
    second.q_proj.weight.zero_()
    second.k_proj.weight.zero_()
    for head in range(heads):
        written = words.stop + (head % 2) * size
        for place in slow:
            second.q_proj.weight[head * size + place, words] = MATCH * sketches[head % 2][place]
            second.k_proj.weight[head * size + place, written + place] = MATCH
    nn.init.orthogonal_(second.v_proj.weight)
    second.o_proj.weight.copy_(COPIED * second.v_proj.weight.T)


def encoded(tokenizer: Any, one: episodes.Episode) -> tuple[list[int], list[int]]:
    """Return the tokens of an episode and which of them are labels (those of the answers), else -100.

    In recall the first showing of a pair is no label: nothing tells it.
    """
    ids, labels, shown = [tokenizer.bos_token_id], [training.IGNORED], set()
    for (key, _), (asked, answer) in zip(one.examples, one.parts(), strict=True):
        question, reply = _ids(tokenizer, asked), _ids(tokenizer, answer)
        ids += [*question, *reply]
        told = one.kind != "recall" or key in shown
        labels += [training.IGNORED] * len(question) + (list(reply) if told else [training.IGNORED] * len(reply))
        shown.add(key)
    return ids, labels


class Curriculum:
    """The training batches, a function of their number: first only what repeats, then everything."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self.tokenizer, self.seed = tokenizer, seed
        self.library = packed_corpus(tokenizer, "full", "train", progress=False)

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Return a batch: ``input_ids`` and ``labels``, (rows, tokens)."""
        generator = random.Random(f"decoder {self.seed} {number}")
        shares = FIRST if number < FIRST_STEPS else MIX
        kind = generator.choices(list(shares), list(shares.values()))[0]
        if kind == "library":
            long = generator.random() < 0.1
            rows = windows(self.library, 4 if long else 8, 511 if long else WINDOW - 1, f"{self.seed} {number}")
            ids = torch.cat([torch.full((len(rows), 1), self.tokenizer.bos_token_id), rows], 1)
            return {"input_ids": ids, "labels": ids}
        if kind == "segments":
            return _padded([_segments(self.tokenizer, generator) for _ in range(24)])
        if kind == "episodes":
            return _padded([encoded(self.tokenizer, _episode(generator, number)) for _ in range(24)])
        if kind == "prompts":
            return _padded([encoded(self.tokenizer, _prompt(generator)) for _ in range(12)])
        return _padded([encoded(self.tokenizer, _recall(generator)) for _ in range(24)])


FIRST_STEPS = 300
"""Batches before all others."""
FIRST = {"recall": 0.5, "segments": 0.3, "library": 0.2}
MIX = {"episodes": 0.6, "library": 0.28, "prompts": 0.08, "segments": 0.04}
"""Shares of the kinds of batches, first and later."""
MANY_SHAPES = 3500
"""Number of the batch from which on functions have all output formats."""
EARLY, LATE = (0.22, 0.22, 0.22, 0.18, 0.16), (0.15, 0.15, 0.5, 0.12, 0.08)
"""Shares of the kinds of episodes, in the order of ``episodes.KINDS``, before and after that."""


def _recall(generator: random.Random) -> episodes.Episode:
    """Two to six pairs of words, easy and hard ones mixed: on hard ones alone nothing is learned for long."""
    return episodes.recall(generator, generator.randint(2, 6), 14, generator.choice(tuple(episodes.FORMATS)))


def _episode(generator: random.Random, number: int) -> episodes.Episode:
    """An episode of any kind; from ``MANY_SHAPES`` on mostly functions, in all output formats instead of few.

    With eight formats their combinations were learned by heart: of unseen ones .31 were right, of seen ones .73.
    """
    late = number >= MANY_SHAPES
    kind = generator.choices(episodes.KINDS, LATE if late else EARLY)[0]
    shapes = len(episodes.SHAPES) if late else episodes.FEW_SHAPES
    return episodes.episode(kind, generator, 10 if kind in ("forms", "picks") else 14, shapes=shapes)


def _prompt(generator: random.Random) -> episodes.Episode:
    """Examples of a training task of :mod:`course_utils.data.tasks`, after its prefix."""
    name = generator.choice([name for name in _task_pool() if name != "summary"])
    task, pairs = tasks.TASKS[name], _task_pool()[name]
    count = generator.randint(1, 6)
    shown = [pairs[generator.randrange(len(pairs))] for _ in range(count)]
    prefix = task.prefix if generator.random() < 0.6 else ""
    style = generator.choice(("input", "question"))
    return episodes.Episode("task", name, tuple((prefix + text, answer) for text, answer in shown), (), style)


@cache
def _task_pool() -> dict[str, list[tuple[str, str]]]:
    return {name: tasks.TASKS[name].generate("train", 3000, seed=0) for name in tasks.names(held_out=False)}


def _segments(tokenizer: Any, generator: random.Random, tokens: int = 64) -> tuple[list[int], list[int]]:
    """A segment of random tokens that repeats until the row is full; only what stood before is a label."""
    everything = range(len(tokenizer.all_special_ids) + 256, len(tokenizer))
    size = int(2 * 12 ** generator.random())  # as many short ones as long ones
    segment = generator.sample(everything, size)
    ids = [tokenizer.bos_token_id, *(segment * tokens)[: tokens - 1]]
    return ids, [training.IGNORED] * (size + 1) + ids[size + 1 :]


def _padded(rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    size = min(512, max(len(ids) for ids, _ in rows))
    made = {"input_ids": torch.zeros(len(rows), size, dtype=torch.long), "labels": torch.full((len(rows), size), -100)}
    for place, (ids, labels) in enumerate(rows):
        made["input_ids"][place, : len(ids)] = torch.tensor(ids[:size])
        made["labels"][place, : len(labels)] = torch.tensor(labels[:size])
    return made


@lru_cache(maxsize=100_000)
def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Tokens of a piece of text, without marks."""
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


def answers_loss(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the labels; the logits are computed where there is one only.

    Args:
        model: a ``LlamaForCausalLM``.
        batch: ``input_ids`` and ``labels``, (rows, tokens); the label of a token is predicted by the one before.

    Returns:
        Sum of the losses in nats, and the number of labels.
    """
    states = model.model(input_ids=batch["input_ids"]).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    chosen = labels != training.IGNORED
    loss = nn.functional.cross_entropy(model.lm_head(states[chosen]), labels[chosen], reduction="sum")
    return loss, chosen.sum()


def evaluate(model: Any, tokenizer: Any, quick: bool = False, seeds: Sequence[int] = (0, 1, 2)) -> list[Result]:
    """Measure the decoder: compression of held-out text, its heads, and learning from examples of unseen tasks.

    Args:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
        quick: few items.
        seeds: seeds of the prompts.
    """
    count = 20 if quick else 200
    results = [*compression(model, tokenizer, quick, seeds), *heads(model, tokenizer)]
    for kind in UNSEEN:
        name, found = f"unseen {NAMES[kind]}", {}
        for shots in SHOTS:
            scores = [shot_scores(model, tokenizer, kind, shots, count, seed) for seed in seeds]
            least = COUNTED_ON.get(kind) if shots == SHOTS[-1] and not quick else None
            found[shots] = from_items(f"{name}, {shots} examples", scores, at_least=least)
        scores = [shot_scores(model, tokenizer, kind, SHOTS[-1], count, seed, control=True) for seed in seeds]
        control = from_items(f"{name}, {SHOTS[-1]} examples of another task (control)", scores)
        results += [*found.values(), control]
        for what, other in (("no example", found[0]), ("control", control)):
            gap = found[SHOTS[-1]].low - other.high
            label = f"{name}: gap between the intervals of {SHOTS[-1]} examples and {what}"
            results.append(Result(label, gap, gap, gap, other.items, other.seeds, at_least=None if quick else 0.0))
    for shots in (0, 4):
        scores = [task_scores(model, tokenizer, shots, count, seed) for seed in seeds]
        results.append(from_items(f"training tasks after their prefix, held-out items, {shots} examples", scores))
    return results


COUNTED_ON = {"labels": 0.85, "pairs": 0.75, "recall": 0.75}
"""Shares of right answers after eight examples; the other kinds are shown, and remain hard for a model of this size."""
NAMES = {
    "labels": "label words",
    "pairs": "pairs of categories",
    "recall": "answers to look up",
    "forms": "functions in an output format",
    "picks": "categories to pick",
}


def compression(model: Any, tokenizer: Any, quick: bool, seeds: Sequence[int]) -> list[Result]:
    """Bits per byte of held-out documentation, by the model and by ``xz -9``.

    The model reads windows of its context length and is charged for the second half of each, given the first. xz gets
    the whole held-out text at once, which helps it.

    Args:
        model: the decoder.
        tokenizer: its tokenizer.
        quick: less text.
        seeds: seeds of the places where the text is sampled.
    """
    whole = "\n".join(library_docs("full", "validation", progress=False)["text"]).encode()
    sample = whole[: len(whole) // 10] if quick else whole
    packed = 8 * len(lzma.compress(sample, preset=9)) / len(sample)
    row = packed_corpus(tokenizer, "full", "validation", progress=False)
    length, count = 512, 2 if quick else 24
    scores = []
    for seed in seeds:
        ids = windows(row, count, length - 1, f"compression {seed}")
        ids = torch.cat([torch.full((count, 1), tokenizer.bos_token_id), ids], 1)
        bits = []
        for part in ids.split(4):
            losses = _log_likelihoods(model, part)[:, length // 2 - 1 :] / -math.log(2)
            for loss, tokens in zip(losses, part[:, length // 2 :].tolist(), strict=True):
                texts = tokenizer.convert_ids_to_tokens(tokens, skip_special_tokens=True)
                bits.append(float(loss.sum()) / sum(map(len, texts)))  # A byte is one character of a token's name.
        scores.append(bits)
    mine = from_items("held-out documentation", scores, unit="bits per byte", at_most=packed)
    return [mine, Result("the same by xz -9", packed, packed, packed, unit="bits per byte")]


def heads(model: Any, tokenizer: Any) -> list[Result]:
    """The best previous-token and the best induction head on random tokens that repeat (Olsson et al., 2022)."""
    special = range(len(tokenizer.all_special_ids) + 256)
    tokens = repeated_tokens(len(tokenizer), 40, exclude=special, seed=0)
    scores = head_scores(model, nn.functional.pad(tokens, (1, 0), value=tokenizer.bos_token_id))
    found = []
    for name, least in (("previous_token", 0.7), ("induction", 0.5)):
        best = float(scores[name].max())
        layer, head = divmod(int(scores[name].argmax()), scores[name].shape[1])
        label = f"best {name.replace('_', '-')} head (layer {layer + 1}, head {head + 1})"
        found.append(Result(label, best, best, best, at_least=least))
    return found


def shot_scores(
    model: Any, tokenizer: Any, kind: str, shots: int, items: int, seed: int, control: bool = False
) -> list[float]:
    """Score held-out episodes: 1 for each right answer.

    Where the answers are few (``labels``, ``pairs``), the model ranks them by likelihood; else each token of the
    answer, and the end of the line, has to be the likeliest one.

    Args:
        model: the decoder.
        tokenizer: its tokenizer.
        kind: one of :data:`UNSEEN`.
        shots: examples before the question.
        items: number of episodes.
        seed: their seed.
        control: take the examples from another episode of the same kind, with another rule.
    """
    generator = random.Random(f"evaluation {kind} {seed}")
    drawn = []
    for _ in range(items):
        one = episodes.episode(kind, generator, SHOTS[-1] + 1, "held_out")
        other = episodes.episode(kind, generator, SHOTS[-1] + 1, "held_out", one.style)
        while other.rule == one.rule:
            other = episodes.episode(kind, generator, SHOTS[-1] + 1, "held_out", one.style)
        examples = (*(other if control else one).examples[:shots], one.examples[-1])
        drawn.append(episodes.Episode(kind, one.rule, examples, one.candidates, one.style))
    return _right(model, tokenizer, drawn)


def task_scores(model: Any, tokenizer: Any, shots: int, items: int, seed: int) -> list[float]:
    """Score prompts of the training tasks with held-out questions (examples from the training split)."""
    generator = random.Random(f"evaluation tasks {seed}")
    names = [name for name in tasks.names(held_out=False) if name != "summary"]
    drawn = []
    for _ in range(items):
        name = generator.choice(names)
        task = tasks.TASKS[name]
        examples = task.generate("train", shots, generator.randrange(10**6)) if shots else []
        question = task.generate("held_out", 1, generator.randrange(10**6))
        shown = tuple((task.prefix + text, target) for text, target in examples + question)
        drawn.append(episodes.Episode("task", name, shown, (), "input"))
    return _right(model, tokenizer, drawn)


def _right(model: Any, tokenizer: Any, drawn: Sequence[episodes.Episode]) -> list[float]:
    """1 for each episode whose question is answered rightly, else 0."""
    rows, owners = [], []
    for place, one in enumerate(drawn):
        start = [tokenizer.bos_token_id, *_ids(tokenizer, one.prompt())]
        end = one.parts()[-1][1].replace(one.answer, "{}", 1)
        for choice in one.candidates or (one.answer,):
            rows.append((start, _ids(tokenizer, end.replace("{}", choice))))
            owners.append((place, choice))
    order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]) + len(rows[row][1]))
    sums, greedy = [0.0] * len(rows), [False] * len(rows)
    for begin in range(0, len(order), 64):
        chosen = order[begin : begin + 64]
        size = max(len(rows[row][0]) + len(rows[row][1]) for row in chosen)
        ids = torch.zeros(len(chosen), size, dtype=torch.long)
        for place, row in enumerate(chosen):
            ids[place, : len(rows[row][0]) + len(rows[row][1])] = torch.tensor([*rows[row][0], *rows[row][1]])
        with torch.no_grad():
            states = model.model(input_ids=ids).last_hidden_state
            for place, row in enumerate(chosen):
                start, reply = rows[row]
                at = len(start) - 1
                logits = model.lm_head(states[place, at : at + len(reply)])
                target = torch.tensor(reply)
                sums[row] = float(logits.log_softmax(-1).gather(1, target[:, None]).sum())
                greedy[row] = bool((logits.argmax(-1) == target).all())
    best: dict[int, int] = {}
    for row, (place, _) in enumerate(owners):
        if place not in best or sums[row] > sums[best[place]]:
            best[place] = row
    return [
        float(owners[best[place]][1] == one.answer if one.candidates else greedy[best[place]])
        for place, one in enumerate(drawn)
    ]


def _log_likelihoods(model: Any, ids: Tensor) -> Tensor:
    """Log-probability of each token but the first given those before it, (rows, tokens - 1)."""
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]


DECODER = Recipe(
    name="course-decoder",
    role="decoder",
    family="LLaMA",
    about=(
        "A causal language model in the shape of LLaMA (Touvron et al., 2023): 5 layers of 6 heads, width 192, rotary "
        "positions, SwiGLU, 512 tokens of context. It writes documentation, and learns a task from the examples in "
        "its prompt. Its first two layers begin with a previous-token head and heads of induction that were wired by "
        "hand (course_utils.recipes.decoder.wire) and then trained like all the rest: they did not form from random "
        "weights in the time that a laptop has. interpretability.watch_heads_form shows how they do."
    ),
    data=(
        "Documentation of the installed libraries and of Python; generated episodes whose rule only their examples "
        "give; examples of the training tasks of course_utils.data.tasks; segments of tokens that repeat."
    ),
    limits=(
        "It knows the 520 words of course_utils.data.tasks.words and what documentation sounds like; it knows no "
        "facts, follows no instruction in free words, and its longer texts wander. It was trained on prompts of up to "
        "14 examples in six formats."
    ),
    build=build,
    batches=Curriculum,
    loss=answers_loss,
    evaluate=evaluate,
    post_processor="decoder",
    steps=5000,
    learning_rate=1.5e-3,
    warmup=100,
)
