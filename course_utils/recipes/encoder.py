"""The embedded encoder: a small BERT, trained to fill in hidden tokens of documentation and of the tasks' texts."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from course_utils import training
from course_utils.data import tasks
from course_utils.data.packing import generator, pack, packed_corpus, text_starts, windows
from course_utils.environment import seed_everything
from course_utils.objectives import Masked
from course_utils.recipes.base import Recipe, Result, from_items
from course_utils.training import IGNORED

TOKENS = 1024
"""Tokens a batch."""
LENGTHS = ((16, 800), (32, 2000), (64, 3500))
"""Tokens a row, and up to which batch: short rows first (Press, Smith and Lewis 2021).

With rows of 128 tokens from the start the loss stays for long where no order is needed: the model guesses from which
words the row holds. In a row of 16 each neighbour has a share of the attention that can be learned from.
"""
LONG, LONGEST, EVERY = 128, 512, 5
"""Tokens a row after that, and in every fifth batch: most of the cost is spared (Devlin et al. 2018, appendix A.2)."""
TASK_SHARE = 0.375
"""Share of the rows that hold texts of the tasks; the others hold documentation."""
TEXTS = {"sentiment": 20_000, "topic": 10_000, "entities": 20_000, "question": 10_000, "where_now": 10_000,
         "to_german": 5_000, "summary": 5_000}  # fmt: skip
"""How many inputs of which tasks are read, without prefix and answer."""
ENTITIES = ("person", "place", "firm")
"""Kinds of named entities; a token of none of them has the label 0, the others 1, 2 and 3."""
LABELLED = {"sentiment": 9600, "entities": 400}
"""Labelled texts that probe and fine-tuning learn from. The words of a review alone do not tell how it is meant."""
TESTED = 300
"""Held-out texts that they are tested on."""
FINE_TUNING = {"sentiment": 300, "entities": 150}
"""Updates of a fine-tuning, of 32 texts each: a minute of one core, or half."""


def build() -> Any:
    """Return the untrained model: BERT with 4 layers of 4 heads, width 160, 2.0 million parameters."""
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=4096,
            hidden_size=160,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=640,
            max_position_embeddings=512,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.04,
            pad_token_id=0,
        )
    )


def batches(tokenizer: Any, seed: int) -> Callable[[int], dict[str, Tensor]]:
    """Return the training batches as a function of their number.

    Args:
        tokenizer: the encoder's tokenizer.
        seed: seed of the tasks' texts and of all draws.

    Returns:
        Function of a number; a batch has ``input_ids`` and ``labels``, (rows, tokens), and no padding.
    """
    library = packed_corpus(tokenizer, "full", "train")
    row = task_texts(tokenizer, "train", seed)
    starts = text_starts(row, tokenizer.eos_token_id)
    objective = Masked.of(tokenizer)

    def batch(number: int) -> dict[str, Tensor]:
        key = f"encoder {seed} {number}"
        length = row_length(number)
        count = TOKENS // length
        told = round(count * TASK_SHARE)
        rows = [windows(library, count - told, length - 2, key), windows(row, told, length - 2, key, starts)]
        made = objective(framed(torch.cat(rows), tokenizer), generator(key + " masks"))
        return {name: made[name] for name in ("input_ids", "labels")}

    return batch


def row_length(number: int) -> int:
    """Return how many tokens the rows of a batch have.

    Args:
        number: number of the batch.
    """
    for length, end in LENGTHS:
        if number < end:
            return length
    return LONGEST if number % EVERY == EVERY - 1 else LONG


def task_texts(tokenizer: Any, split: str, seed: int, share: float = 1.0) -> Tensor:
    """Return inputs of the tasks as plain texts, shuffled and packed like the corpus.

    Args:
        tokenizer: the encoder's tokenizer.
        split: ``train`` or ``held_out``.
        seed: seed of the draw.
        share: share of the numbers in ``TEXTS``.
    """
    texts = [
        text
        for name, count in TEXTS.items()
        for text, _ in tasks.TASKS[name].generate(split, max(1, round(count * share)), seed)
    ]
    order = torch.randperm(len(texts), generator=generator(f"encoder {split} {seed}"))
    return pack(tokenizer, [texts[place] for place in order.tolist()])


def framed(rows: Tensor, tokenizer: Any) -> Tensor:
    """Put ``<bos>`` before and ``<eos>`` behind each row of tokens, as the tokenizer does with a text.

    Args:
        rows: token ids, (rows, tokens).
        tokenizer: the encoder's tokenizer.
    """
    return nn.functional.pad(
        nn.functional.pad(rows, (1, 0), value=tokenizer.bos_token_id), (0, 1), value=tokenizer.eos_token_id
    )


def masked_loss(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the hidden tokens; the head, a third of the cost, runs on these places alone.

    Args:
        model: a ``BertForMaskedLM``.
        batch: ``input_ids`` and ``labels``, and ``attention_mask`` where there is padding.

    Returns:
        Sum of the losses in nats, and the number of hidden tokens.
    """
    hidden = model.bert(batch["input_ids"], attention_mask=batch.get("attention_mask")).last_hidden_state
    chosen = batch["labels"] != IGNORED
    wanted = batch["labels"][chosen]
    logits = model.cls(hidden[chosen])
    return nn.functional.cross_entropy(logits.float(), wanted, reduction="sum"), chosen.sum()


def evaluate(model: Any, tokenizer: Any, quick: bool = False, seeds: Sequence[int] = (0, 1, 2)) -> list[Result]:
    """Measure the encoder on held-out data: filling masks, and what its states hold for two tasks.

    Args:
        model: the trained model.
        tokenizer: its tokenizer.
        quick: a small part, without fine-tuning and without bounds on the tasks.
        seeds: seeds of the masks, the items and the random weights that the trained ones are held against.

    Returns:
        Top-1 accuracy on hidden tokens and how many times better than the best single guess it is, on documentation and
        on texts of the tasks; then, for sentiment (accuracy) and named entities (F1 over tokens), the linear probe on
        frozen states and the fine-tuned model, each against the same model from random weights.
    """
    rows = 24 if quick else 200
    library = packed_corpus(tokenizer, "small" if quick else "full", "validation")
    told = task_texts(tokenizer, "held_out", 0, share=0.01 if quick else 0.1)
    results = fill_mask(model, tokenizer, "documentation", library, seeds, rows)
    results += fill_mask(model, tokenizer, "texts of the tasks", told, seeds, rows)
    ways: dict[str, Callable[..., Classifier]] = (
        {"linear probe": probe} if quick else {"linear probe": probe, "fine-tuning": fine_tune}
    )
    tested = 40 if quick else TESTED
    for task, measure in (("sentiment", "accuracy"), ("entities", "F1 over tokens")):
        for way, learn in ways.items():
            more = {"steps": FINE_TUNING[task]} if learn is fine_tune else {}
            scores: dict[str, list[list[float]]] = {"trained": [], "random": []}
            for seed in seeds:
                seed_everything(seed)
                untrained = type(model)(model.config).to(model.device)
                train = labelled_texts(tokenizer, task, "train", 60 if quick else LABELLED[task], seed)
                test = labelled_texts(tokenizer, task, "held_out", tested, seed)
                for name, start in (("trained", model), ("random", untrained)):
                    scores[name].append(_scores(learn(start, train, seed, **more), test))
            ours, theirs = (
                from_items(f"{task}, {way}, {name} weights: {measure}", scores[name]) for name in ("trained", "random")
            )
            gap = ours.low - theirs.high
            bound = None if quick or (task, learn) == ("sentiment", probe) else 0.0
            results += [ours, theirs]
            results.append(
                Result(
                    f"{task}, {way}: gap between the intervals", gap, gap, gap, ours.items, ours.seeds, at_least=bound
                )
            )
    return results


@torch.no_grad()
def fill_mask(model: Any, tokenizer: Any, name: str, row: Tensor, seeds: Sequence[int], count: int) -> list[Result]:
    """Hide 15 % of the tokens, all behind the mask token, and see how often the model's first guess is right.

    Args:
        model: a ``BertForMaskedLM``.
        tokenizer: its tokenizer.
        name: what the texts are called in the results.
        row: packed held-out texts.
        seeds: seeds of the windows and the masks.
        count: windows of 128 tokens a seed.

    Returns:
        The accuracy; that of guessing always the token that is most frequent in these very texts; and the first over
        the second, which the course counts on to be 3 or more. Intervals are over windows.
    """
    guess = torch.bincount(row).argmax()
    objective = Masked.of(tokenizer, masked=1.0, random=0.0)
    right: list[list[float]] = []
    guessed: list[list[float]] = []
    for seed in seeds:
        ids = framed(windows(row, count, LONG - 2, f"fill-mask {seed}"), tokenizer)
        batch = objective(ids, generator(f"fill-mask {seed} masks"))
        right.append([])
        guessed.append([])
        for shown, labels in zip(batch["input_ids"].split(1), batch["labels"].split(1), strict=True):
            hidden = labels != IGNORED
            if not hidden.any():
                continue
            states = model.bert(shown.to(model.device)).last_hidden_state[hidden.to(model.device)]
            wanted = labels[hidden]
            right[-1].append(float((model.cls(states).argmax(-1).cpu() == wanted).float().mean()))
            guessed[-1].append(float((wanted == guess).float().mean()))
    unigram = from_items(f"fill-mask on {name}: always the most frequent token", guessed)
    times = [[one / unigram.value for one in items] for items in right]
    return [
        from_items(f"fill-mask on {name}: first guess right", right),
        unigram,
        from_items(f"fill-mask on {name}: times better than the most frequent token", times, at_least=3.0),
    ]


class Classifier(nn.Module):
    """An encoder with a linear layer on its states: one label a token, or one a text from the mean of its states.

    Attributes:
        encoder: a ``BertModel``.
        head: the linear layer.
        pooled: whether there is one label a text.
    """

    def __init__(self, encoder: Any, classes: int, pooled: bool):
        super().__init__()
        self.encoder, self.pooled = encoder, pooled
        self.head = nn.Linear(encoder.config.hidden_size, classes)

    def states(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return what the linear layer reads: (batch, tokens, width), or (batch, width) where the states are pooled.

        Args:
            input_ids: token ids, (batch, tokens).
            attention_mask: True for real tokens.
        """
        states = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        if not self.pooled:
            return states
        if attention_mask is None:
            return states.mean(1)
        return (states * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the logits, (batch, tokens, classes) or (batch, classes).

        Args:
            input_ids: token ids, (batch, tokens).
            attention_mask: True for real tokens.
        """
        return self.head(self.states(input_ids, attention_mask))


def labelled_texts(tokenizer: Any, task: str, split: str, items: int, seed: int) -> list[dict[str, Any]]:
    """Return texts with labels: one a text for ``sentiment``, one a token for ``entities``.

    Args:
        tokenizer: the encoder's tokenizer.
        task: ``sentiment`` or ``entities``.
        split: ``train`` or ``held_out``.
        items: number of texts.
        seed: seed of the draw.

    Returns:
        ``input_ids`` and ``labels``. Special tokens have no label (-100), tokens outside of names the label 0.
    """
    found = []
    for text, target in tasks.TASKS[task].generate(split, items, seed):
        made = tokenizer(text, return_offsets_mapping=True)
        labels: Any = (tasks.TASKS[task].labels or ()).index(target) if task == "sentiment" else []
        if task == "entities":
            spans, after = [], 0
            for entry in target.split("; "):
                kind, name = entry.split(": ")
                after = text.index(name, after) + len(name)
                spans.append((after - len(name), after, 1 + ENTITIES.index(kind)))
            for start, end in made["offset_mapping"]:
                inside = [label for begin, stop, label in spans if start < stop and end > begin]
                labels.append(IGNORED if start == end else (inside or [0])[0])
        found.append({"input_ids": made["input_ids"], "labels": labels})
    return found


def probe(model: Any, train: list[dict[str, Any]], seed: int) -> Classifier:
    """Train a linear layer on the frozen states of an encoder (Alain and Bengio 2016), standardised.

    Args:
        model: a ``BertForMaskedLM``; it is not changed.
        train: labelled texts.
        seed: seed of the training.
    """
    classifier = _classifier(model, train)
    with torch.no_grad():
        states, labels = [], []
        for example in train:
            made = classifier.states(torch.tensor([example["input_ids"]], device=model.device))[0]
            wanted = torch.as_tensor(example["labels"], device=model.device)
            keep = wanted != IGNORED
            states.append(made[keep].reshape(-1, made.shape[-1]))
            labels.append(wanted[keep].reshape(-1))
        inputs = torch.cat(states)
        mean, spread = inputs.mean(0), inputs.std(0) + 1e-6
    layer = classifier.head
    training.fit(
        layer,
        {"input": (inputs - mean) / spread, "labels": torch.cat(labels)},
        epochs=max(1, 1000 * 128 // len(inputs)),
        batch_size=128,
        learning_rate=1e-2,
        seed=seed,
        loss=training.aligned_loss,
        progress=False,
    )
    with torch.no_grad():  # The standardisation goes into the layer, so that it reads the states as they are.
        layer.weight.div_(spread)
        layer.bias.sub_(layer.weight @ mean)
    return classifier


def fine_tune(model: Any, train: list[dict[str, Any]], seed: int, steps: int) -> Classifier:
    """Train a copy of the whole encoder, with a linear layer on it.

    Args:
        model: a ``BertForMaskedLM``; it is not changed.
        train: labelled texts.
        seed: seed of the training.
        steps: updates of 32 texts each.
    """
    classifier = _classifier(model, train)
    training.fit(
        classifier,
        train,
        steps=steps,
        learning_rate=1e-3,
        warmup=steps // 10,
        seed=seed,
        loss=training.aligned_loss,
        progress=False,
    )
    return classifier


def _classifier(model: Any, train: list[dict[str, Any]]) -> Classifier:
    pooled = isinstance(train[0]["labels"], int)
    return Classifier(deepcopy(model.bert), 2 if pooled else 1 + len(ENTITIES), pooled).to(model.device).eval()


@torch.no_grad()
def _scores(classifier: Classifier, test: list[dict[str, Any]]) -> list[float]:
    """For each text whether its label is right, or the F1 of its tokens in names (a text has some)."""
    scores = []
    for example in test:
        ids = torch.tensor([example["input_ids"]], device=classifier.head.weight.device)
        wanted = torch.as_tensor(example["labels"])
        found = classifier(ids)[0].argmax(-1).cpu()
        if classifier.pooled:
            scores.append(float(found == wanted))
            continue
        keep = wanted != IGNORED
        found, wanted = found[keep], wanted[keep]
        hits = int(((found == wanted) & (wanted > 0)).sum())
        scores.append(2 * hits / int((found > 0).sum() + (wanted > 0).sum()))
    return scores


ENCODER = Recipe(
    name="course-encoder",
    role="encoder",
    family="BERT",
    about="A BERT with 4 layers of 4 heads, width 160, context 512 and 2.0 million parameters; its output layer is "
    "tied to its embeddings. It fills in hidden tokens and gives states to build classifiers on.",
    data="Masked language modelling (15 % of the tokens, 80/10/10) on windows of the documentation of the installed "
    "libraries and, for three rows in eight, on inputs of the training tasks as plain text, without prefix or answer. "
    "The rows grow from 16 to 128 tokens; at the end one batch in five has rows of 512.",
    limits="It knows the language of Python's documentation and the small worlds of the tasks, in English, and hardly "
    "anything about the world. It does not generate text, and it was not trained on pairs of sentences.",
    build=build,
    batches=batches,
    loss=masked_loss,
    evaluate=evaluate,
    post_processor="encoder",
    steps=9000,
    learning_rate=1e-3,
    warmup=100,
)
