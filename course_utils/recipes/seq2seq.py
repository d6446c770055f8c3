"""The embedded encoder-decoders: a small T5, first by span corruption, then a copy of it that follows instructions.

The base begins with circuits that copy, and first reads rows of random tokens and writes them down again; then parts
of texts are hidden whose words stand elsewhere in the same text, among them the names in dialogues. It never sees a
summary.
"""

import copy
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from course_utils import training
from course_utils.data import tasks
from course_utils.data.packing import generator, packed_corpus, windows
from course_utils.data.tasks import dialogues
from course_utils.data.tasks.words import CATEGORY_OF
from course_utils.environment import seed_everything
from course_utils.objectives import SpanCorruption, corrupt, shift_right
from course_utils.recipes.base import Recipe, Result, from_items
from course_utils.training import IGNORED

Batch = dict[str, Tensor]
Pairs = list[tuple[str, str]]

COPY_STEPS = 100
"""Batches of random tokens, before all others."""
CYCLE = ("dialogue", "recall", "library", "dialogue", "answers", "recall", "repeat", "dialogue", "tasks", "answers")
"""The kinds of the later batches, in turn."""
ANSWERED = ("question", "where_now", "people", "places", "odd_one_out")
"""Tasks whose answers stand in their inputs."""
REPEAT_LENGTH, LIBRARY_LENGTH = 40, 96
ROWS = 16
FINE_TUNING = {"steps": 400, "rows": 16, "learning_rate": 1e-3}
"""Two minutes of work on two cores; the same for the trained and the untrained model."""
ITEMS, QUICK_ITEMS = 200, 16


def build() -> Any:
    """Return the untrained model: T5 1.1 with 3 + 3 layers of 6 heads, width 192, 3.1 million parameters, wired.

    The weights are random but for the circuits of :func:`wire`. From random weights alone a model of this size learned
    in 5 million tokens neither to copy random tokens nor to find again what belongs to a name.
    """
    model = unwired()
    wire(model)
    return model


def unwired() -> Any:
    """Return the same model with random weights as the library draws them."""
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=4096,
            d_model=192,
            d_kv=32,
            d_ff=288,
            num_layers=3,
            num_decoder_layers=3,
            num_heads=6,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            decoder_start_token_id=0,  # type: ignore[call-arg]
            pad_token_id=0,
            eos_token_id=2,
        )
    )


NEIGHBOUR, MATCH, COPIED, SAME, QUIET = 8.0, 0.7, 3.0, 0.2, 0.1
"""Sizes of the wired weights; the first is a bias of attention, in nats."""


@torch.no_grad()
def wire(model: Any) -> None:
    """Begin with circuits that copy: induction (Elhage et al., 2021), in the shape that it has in T5.

    Encoder, first layer: two heads write sketches of the token before and of the token behind where no embedding
    reaches. Second layer: heads look where the token before is the same as here, and fetch what stands there, so that
    a gap after a name receives what belongs to the name. Decoder, first layer: three heads of the cross-attention look
    behind the tokens that are the present one, three look at those tokens themselves; both copy. All other parts begin
    quiet. Nothing of this is fixed: the training changes these weights as all others.

    Args:
        model: a ``T5ForConditionalGeneration`` with random weights, gated feed-forward layers and six heads.
    """
    config = model.config
    size, heads = config.d_kv, config.num_heads
    words = config.d_model - 2 * size  # dimensions of the words; the sketches have those behind
    for stack in (model.encoder, model.decoder):
        for block in stack.block:
            block.layer[-1].DenseReluDense.wo.weight.mul_(QUIET)
            for attention in (layer for part in block.layer[:-1] for layer in part.children()):
                if hasattr(attention, "o"):
                    attention.o.weight.mul_(QUIET)
        # T5's buckets: k stands for "k tokens before", in the encoder 16 + k for "k tokens after".
        bias = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.zero_()  # (buckets, heads)
        bias[1, 0] = NEIGHBOUR
        if stack is model.encoder:
            bias[17, 1] = NEIGHBOUR
    model.shared.weight[:, words:] = 0
    sketch, other = (nn.init.orthogonal_(torch.empty(size, words)) for _ in range(2))
    first, second = (model.encoder.block[layer].layer[0].SelfAttention for layer in (0, 1))
    cross = model.decoder.block[0].layer[1].EncDecAttention
    for weight in (first.o.weight, model.encoder.block[0].layer[-1].DenseReluDense.wo.weight):
        weight[words:] = 0
    for head in (0, 1):
        rows, written = slice(head * size, (head + 1) * size), slice(words + head * size, words + (head + 1) * size)
        for weight in (first.q.weight, first.k.weight, first.v.weight, first.o.weight.T):
            weight[rows] = 0
        first.v.weight[rows, :words] = sketch
        first.o.weight[written, rows] = torch.eye(size)
    before = slice(words, words + size)
    basis = nn.init.orthogonal_(torch.empty(words, words))
    for head in range(2, heads):
        rows, part = slice(head * size, (head + 1) * size), basis[(head - 2) * size : (head - 1) * size]
        for weight in (second.q.weight, second.k.weight, second.v.weight, second.o.weight.T):
            weight[rows] = 0
        second.q.weight[rows, before] = second.k.weight[rows, before] = MATCH * torch.eye(size)
        second.v.weight[rows, :words] = part
        second.o.weight[:words, rows] = COPIED * part.T
    for head in range(heads):
        rows, behind = slice(head * size, (head + 1) * size), head < heads // 2
        part = basis[(head % 3) * size : (head % 3 + 1) * size]
        for weight in (cross.q.weight, cross.k.weight, cross.v.weight, cross.o.weight.T):
            weight[rows] = 0
        cross.q.weight[rows, :words] = MATCH * (sketch if behind else other)
        cross.k.weight[rows, before if behind else slice(0, words)] = MATCH * (torch.eye(size) if behind else other)
        cross.v.weight[rows, :words] = part
        cross.o.weight[:words, rows] = COPIED * (1 if behind else SAME) * part.T


def base_batches(tokenizer: Any, seed: int) -> Callable[[int], Batch]:
    """Return the batches of the span corruption as a function of their number; see :func:`batch_kinds` for the kinds.

    Args:
        tokenizer: the tokenizer with the sentinels.
        seed: seed of all draws.
    """
    library = packed_corpus(tokenizer, "full", "train")
    kinds = batch_kinds(tokenizer, library, "train")

    def batch(number: int) -> Batch:
        kind = "copy" if number < COPY_STEPS else CYCLE[number % len(CYCLE)]
        return kinds[kind](f"seq2seq {seed} {number}")

    return batch


def batch_kinds(tokenizer: Any, library: Tensor, split: str, rows: int = ROWS) -> dict[str, Callable[[str], Batch]]:
    """Return functions that draw a batch of each kind from a seed.

    ``copy``: rows of 6 to 17 random tokens, to be written down again. ``library``: documentation by T5's span
    corruption. ``tasks``: the same with inputs of tasks. ``repeat``: documentation with a segment that occurs twice,
    once with most of it hidden. ``recall``: one to six pairs of words or names, then their first members once more,
    each with a gap in place of what belongs to it. ``answers``: an input of a task, without prefix, and a gap in place
    of the answer, which stands in the input. ``dialogue``: dialogues without some of the names, places and things that
    stand elsewhere in the same dialogue, and without some other spans.

    Args:
        tokenizer: the tokenizer with the sentinels.
        library: token ids of the documentation.
        split: split of the dialogues and the inputs of tasks.
        rows: examples a batch.
    """
    objective = SpanCorruption.of(tokenizer)
    first = max(objective.sentinels) + 1  # of the tokens that are not special
    sources = {task.source: task for task in tasks.TASKS.values() if not task.held_out and task.source != "dialogues"}

    def copy(seed: str) -> Batch:
        draw = generator(seed)
        lengths = torch.randint(6, 18, (2 * rows,), generator=draw).tolist()
        texts = [torch.randint(first, len(tokenizer), (length,), generator=draw) for length in lengths]
        return _hidden([(row, None) for row in texts], objective)

    def documentation(seed: str) -> Batch:
        return objective(windows(library, rows, LIBRARY_LENGTH, seed), generator(seed))

    def inputs(seed: str) -> Batch:
        chance = random.Random(seed)
        texts = []
        for _ in range(rows):
            task = sources[chance.choice(sorted(sources))]
            texts += [" ".join(text for text, _ in task.generate(split, 40, chance.getrandbits(32)))]
        cut = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=LIBRARY_LENGTH)
        return objective(cut["input_ids"], generator(seed))

    def repeat(seed: str) -> Batch:
        chance = random.Random(seed)
        return _hidden([_repeated(row, chance) for row in windows(library, rows, REPEAT_LENGTH, seed)], objective)

    def recall(seed: str) -> Batch:
        chance = random.Random(seed)
        return _hidden([_pairs(tokenizer, split, chance) for _ in range(rows)], objective)

    def answered(seed: str) -> Batch:
        chance, hidden = random.Random(seed), []
        for name in chance.choices(ANSWERED, k=rows):
            (text, answer), *_ = tasks.TASKS[name].generate(split, 1, chance.getrandbits(32))
            ids = tokenizer([f"{text} :", f" {answer}"], add_special_tokens=False)["input_ids"]
            noise = [part is ids[1] for part in ids for _ in part]
            hidden += [(torch.tensor([token for part in ids for token in part]), torch.tensor(noise))]
        return _hidden(hidden, objective)

    def dialogue(seed: str) -> Batch:
        chance = random.Random(seed)
        texts = [text for text, _ in dialogues.generate(split, rows, chance.getrandbits(32))]
        encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        return _hidden(
            [
                (torch.tensor(ids), _recurring(text, places, chance))
                for text, ids, places in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
            ],
            objective,
        )

    return {
        "copy": copy,
        "library": documentation,
        "tasks": inputs,
        "repeat": repeat,
        "recall": recall,
        "answers": answered,
        "dialogue": dialogue,
    }


def encode(tokenizer: Any, pairs: Pairs) -> Batch:
    """Return a batch of (prompt, target) pairs: ``input_ids``, ``attention_mask``, ``labels``, ``decoder_input_ids``.

    Args:
        tokenizer: the tokenizer, which ends a text with ``<eos>``.
        pairs: prompts and targets.
    """
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    targets = tokenizer([f" {target}" for _, target in pairs])["input_ids"]  # a word has one token, here as in prompts
    return _batch([torch.tensor(row) for row in prompts], [torch.tensor(row) for row in targets])


def loss(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the targets; the head runs on real targets alone.

    Args:
        model: a ``T5ForConditionalGeneration``.
        batch: ``input_ids`` and ``attention_mask`` (rows, tokens); ``labels`` and ``decoder_input_ids`` (rows,
            targets).

    Returns:
        Sum of the losses in nats, and the number of targets.
    """
    logits, wanted = _logits(model, batch)
    return nn.functional.cross_entropy(logits.float(), wanted, reduction="sum"), torch.tensor(len(wanted))


@torch.no_grad()
def answers(model: Any, tokenizer: Any, prompts: Sequence[str], longest: int = 48, rows: int = 100) -> list[str]:
    """Return what the model answers to each prompt, by greedy decoding.

    Args:
        model: a ``T5ForConditionalGeneration``.
        tokenizer: its tokenizer.
        prompts: the prompts.
        longest: tokens an answer at most.
        rows: prompts at a time.
    """
    model.eval()
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    found = [""] * len(prompts)
    for start in range(0, len(order), rows):
        places = order[start : start + rows]
        batch = tokenizer([prompts[place] for place in places], padding=True, return_tensors="pt").to(model.device)
        written = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=longest,
            do_sample=False, num_beams=1,
        )  # fmt: skip
        for place, text in zip(places, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            found[place] = text.strip()
    return found


def rouge_l(prediction: str, target: str) -> float:
    """Return ROUGE-L, the F1 score of the longest common subsequence of words (Lin, 2004, section 3).

    Words are runs of letters and digits in lower case, as in Google's implementation.

    Args:
        prediction: a text from a model.
        target: the right text.
    """
    found, right = (re.findall("[a-z0-9]+", text.lower()) for text in (prediction, target))
    row = [0] * (len(right) + 1)
    for word in found:
        before = 0
        for place, other in enumerate(right, start=1):
            before, row[place] = row[place], before + 1 if word == other else max(row[place], row[place - 1])
    return 2 * row[-1] / (len(found) + len(right)) if row[-1] else 0.0


def _logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    mask = batch["attention_mask"].long()
    read = model.encoder(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
    hidden = model.decoder(
        input_ids=batch["decoder_input_ids"], encoder_hidden_states=read, encoder_attention_mask=mask, use_cache=False
    ).last_hidden_state
    counts = batch["labels"] != IGNORED
    # T5 with tied embeddings scales what the head reads (Raffel et al. 2020, as released).
    return model.lm_head(hidden[counts] * model.config.d_model**-0.5), batch["labels"][counts]


def _batch(inputs: list[Tensor], targets: list[Tensor]) -> Batch:
    batch = training.collate([{"input_ids": row} for row in inputs])
    batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"], dtype=torch.bool))
    labels = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED)
    return {**batch, "labels": labels, "decoder_input_ids": shift_right(labels)}


def _hidden(rows: Sequence[tuple[Tensor, Tensor | None]], objective: SpanCorruption) -> Batch:
    """Texts and what is hidden of each, as a batch; None hides nothing, and the whole text is to be written."""
    end = torch.tensor([objective.eos])
    parts = [(ids, ids) if noise is None else corrupt(ids, noise, objective.sentinels) for ids, noise in rows]
    return _batch([torch.cat([shown, end]) for shown, _ in parts], [torch.cat([gone, end]) for _, gone in parts])


def _repeated(row: Tensor, chance: random.Random) -> tuple[Tensor, Tensor]:
    """A text with a segment that occurs twice; one of them is hidden but for its beginning, once with a gap."""
    size = chance.randint(6, 24)
    first = chance.randrange(len(row) - size)
    second = chance.randint(first + size, len(row))
    text = torch.cat([row[:second], row[first : first + size], row[second:]])
    place = chance.choice((first, second, second))
    kept = chance.randint(1, 3)
    noise = torch.zeros(len(text), dtype=torch.bool)
    noise[place + kept : place + size] = True
    if chance.random() < 0.5:
        noise[place + kept + (size - kept) // 2] = False
    return text, noise


def _pairs(tokenizer: Any, split: str, chance: random.Random) -> tuple[Tensor, Tensor]:
    """One to six pairs, then their first members in another order, with what belongs to them hidden.

    Easy and hard ones are mixed from the start: on six pairs of names alone nothing is learned for long.
    """
    count = int(7 ** chance.random())
    if chance.random() < 0.5:
        words = list(CATEGORY_OF)[: chance.choice((40, 160, None))]
        names, values = chance.sample(words, count), chance.sample(words, count)
    else:
        names = chance.sample(dialogues.GIVEN[split], count)
        values = chance.sample([*dialogues.THINGS[split], *dialogues.TOWNS[split]], count)
    told = list(zip(names, values, strict=True))
    asked = chance.sample(told, len(told))
    words = [f" {word}" for pair in told for word in pair] + ["."] + [f" {word}" for pair in asked for word in pair]
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    hidden = [place > 2 * len(told) and (place - 2 * len(told)) % 2 == 0 for place in range(len(words))]
    noise = [value for value, part in zip(hidden, ids, strict=True) for _ in part]
    return torch.tensor([token for part in ids for token in part]), torch.tensor(noise)


def _recurring(text: str, places: Sequence[tuple[int, int]], chance: random.Random) -> Tensor:
    """Which tokens of a dialogue are hidden: entities that stand elsewhere too, and other spans of one to three."""
    noise = torch.zeros(len(places), dtype=torch.bool)
    spans: dict[str, list[tuple[int, int]]] = {}
    for start, end in dialogues.mentions(text):
        spans.setdefault(text[start:end], []).append((start, end))
    for same in spans.values():
        kept = chance.randrange(len(same))
        for number, (start, end) in enumerate(same):
            if number != kept and chance.random() < 0.8:
                noise |= torch.tensor([begin < end and start < stop for begin, stop in places])
    for place in range(len(places)):
        if chance.random() < 0.02:
            noise[place : place + chance.randint(1, 3)] = True
    noise[0] = False
    noise[-1] |= not noise.any()
    return noise


def base_evaluate(model: Any, tokenizer: Any, quick: bool = False, seeds: Sequence[int] = (0, 1, 2)) -> list[Result]:
    """Measure the base: what it copies, and held-out summaries as it comes, fine-tuned, and learned from scratch.

    All fine-tunings are the same work on the same examples (``FINE_TUNING``): from the base's weights, from random
    ones, and, with one seed, from random ones with the circuits that the base began with, for what those alone buy.

    Args:
        model: the base.
        tokenizer: its tokenizer.
        quick: only a few items, and no fine-tuning.
        seeds: seeds of the items, of the fine-tuning's examples and of the random weights.
    """
    library = packed_corpus(tokenizer, "full", "validation")
    kinds = batch_kinds(tokenizer, library, "held_out", QUICK_ITEMS if quick else ITEMS)
    special = tokenizer.all_special_ids
    results = [
        from_items(name, [_hits(model, kinds[kind](f"evaluate {seed}"), special) for seed in seeds], at_least=bound)
        for name, kind, bound in (
            ("hidden tokens of unseen dialogues", "dialogue", 0.5),
            ("hidden segments of documentation that stand elsewhere", "repeat", 0.5),
            ("hidden tokens of documentation", "library", None),
        )
    ]
    starts: dict[str, Callable[[], Any]] = {
        "fine-tuned": lambda: copy.deepcopy(model),
        "from scratch": unwired,
        "from scratch, but wired": build,
    }
    scores = {"as it comes": [_summaries(model, tokenizer, seed, QUICK_ITEMS if quick else ITEMS) for seed in seeds]}
    for name, start in {} if quick else starts.items():
        tried = seeds[:1] if start is build else seeds
        scores[name] = [_summaries(fine_tune(start, tokenizer, seed), tokenizer, seed, ITEMS) for seed in tried]
    measures = ("exact match", "entity accuracy", "ROUGE-L")
    found = {
        (name, measure): from_items(
            f"{measure}, held-out summaries, {name}",
            [one[place] for one in arm],
            at_most=0.05 if (name, measure) == ("as it comes", "exact match") else None,
        )
        for name, arm in scores.items()
        for place, measure in enumerate(measures)
    }
    results += found.values()
    for measure in () if quick else measures:
        tuned, raw = found["fine-tuned", measure], found["from scratch", measure]
        gap, bound = tuned.low - raw.high, None if measure == "ROUGE-L" else 0.0
        name = f"{measure}, fine-tuned against from scratch: gap between the intervals"
        results.append(Result(name, gap, gap, gap, tuned.items, tuned.seeds, at_least=bound))
    return results


def fine_tune(start: Callable[[], Any], tokenizer: Any, seed: int, steps: int | None = None) -> Any:
    """Return a model that was trained on dialogues and their summaries.

    Args:
        start: returns the ``T5ForConditionalGeneration`` to begin with; called with the seed set.
        tokenizer: its tokenizer.
        seed: seed of the examples and of random weights.
        steps: number of updates; by default that of ``FINE_TUNING``.
    """
    seed_everything(seed)
    tuned = start()
    task = tasks.TASKS["summary"]

    def batch(number: int) -> Batch:
        pairs = task.generate("train", int(FINE_TUNING["rows"]), seed=1_000_000 * (seed + 1) + number)
        return encode(tokenizer, [(task.prefix + text, target) for text, target in pairs])

    training.fit(
        tuned,
        batch,
        steps=steps or int(FINE_TUNING["steps"]),
        learning_rate=FINE_TUNING["learning_rate"],
        warmup=20 if (steps or FINE_TUNING["steps"]) > 20 else 0,
        betas=(0.9, 0.98),
        loss=loss,
        progress=False,
    )
    return tuned.eval()


def _summaries(model: Any, tokenizer: Any, seed: int, items: int) -> tuple[list[float], list[float], list[float]]:
    """Exact match, entity accuracy and ROUGE-L of each of these held-out dialogues."""
    task = tasks.TASKS["summary"]
    pairs = task.generate("held_out", items, seed)
    found = answers(model, tokenizer, [task.prefix + text for text, _ in pairs])
    both = [(answer, target) for answer, (_, target) in zip(found, pairs, strict=True)]
    return (
        [float(answer == target) for answer, target in both],
        [dialogues.entity_accuracy(answer, target) for answer, target in both],
        [rouge_l(answer, target) for answer, target in both],
    )


@torch.no_grad()
def _hits(model: Any, batch: Batch, special: Sequence[int]) -> list[float]:
    """Share of the hidden tokens of each row that the model predicts right, given the ones before."""
    model.eval()
    logits, wanted = _logits(model, {name: value.to(model.device) for name, value in batch.items()})
    right = torch.zeros(batch["labels"].shape)
    right[batch["labels"] != IGNORED] = (logits.argmax(-1) == wanted).float().cpu()
    asked = ~torch.isin(batch["labels"], torch.tensor([IGNORED, *special]))
    return ((right * asked).sum(1) / asked.sum(1)).tolist()


BASE = Recipe(
    name="course-seq2seq",
    role="seq2seq",
    family="T5",
    about=(
        "An encoder-decoder in the shape of T5 1.1 (Raffel et al., 2020): 3 + 3 layers, width 192, 3.1 million "
        "parameters. It fills in what was cut out of a text, and copies. It is a base, to be fine-tuned. Some of its "
        "heads begin wired by hand, so that they look at neighbours and copy (course_utils.recipes.seq2seq.wire); most "
        "of what it gains on summaries comes from that."
    ),
    data=(
        "First rows of random tokens to be written down again; then documentation of the installed libraries, "
        "dialogues and inputs of the training tasks with spans, repeated segments and recurring names cut out. No "
        "summary and no answer of any task."
    ),
    limits=(
        "Without fine-tuning it follows no instruction. It knows the style of documentation and of the course's "
        "generated texts, and hardly any facts."
    ),
    build=build,
    batches=base_batches,
    loss=loss,
    evaluate=base_evaluate,
    post_processor="seq2seq",
    steps=5000,
    learning_rate=1e-3,
    warmup=100,
    weight_decay=0.01,
)
