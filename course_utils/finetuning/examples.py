"""Texts and targets as examples for a fine-tuning: tokens, and labels with -100 where nothing is learned."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from course_utils import generation, training
from course_utils.data import tasks
from course_utils.data.hub import HUB_SETS, _from_folder, hub
from course_utils.models import Loaded
from course_utils.objectives import shift_right
from course_utils.recipes.encoder import ENTITIES, labelled_texts
from course_utils.training import IGNORED, Batch

KINDS = ("causal", "seq2seq", "classes", "tags")
"""What is learned: to go on after a prompt, to write another text, one label a text, one label a token."""
PROMPTS = {"causal": "{prefix}{input}\nOutput:", "seq2seq": "{prefix}{input}", "classes": "{prefix}{input}"}
"""How an input is put; a target follows behind one blank."""
PREFIXES = {"dialogsum": "summarize: "}
"""Prefixes of the hub's data sets; the generated tasks have their own."""
INPUTS = ("input", "dialogue", "sentence", "text", "document", "question", "prompt")
TARGETS = ("target", "summary", "summary1", "label", "labels", "answer", "completion", "highlights")
"""Names of columns, the first that is there counts."""
WORDS, TAGS = ("tokens", "words"), ("ner_tags", "tags")
"""Columns of named entities: lists of words, and of one tag for each."""
ITEMS = 1000
"""Examples that are drawn of a generated task."""

Pairs = Sequence[tuple[Any, Any]]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Examples of one job for one model.

    Attributes:
        name: what the data are called.
        kind: one of ``KINDS``.
        examples: mappings with ``input_ids`` and ``labels``.
        prompts: the texts that the model reads.
        targets: what it shall answer: texts, or names of labels.
        labels: names of the labels, of ``classes`` and ``tags``.
        longest: tokens of the longest input, and of the longest target.
        left_out: number of examples that do not fit the model.
        start: token that begins a target in an encoder-decoder.
        pad: token that fills up what an encoder-decoder's decoder reads.
    """

    name: str
    kind: str
    examples: list[dict[str, Any]]
    prompts: tuple[str, ...]
    targets: tuple[Any, ...]
    labels: tuple[str, ...] = ()
    longest: tuple[int, int] = (0, 0)
    left_out: int = 0
    start: int = 0
    pad: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example that a model has to read or write; padding is not among them."""
        both = self.kind == "seq2seq"
        return [len(one["input_ids"]) + (len(one["labels"]) if both else 0) for one in self.examples]

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Put examples together into a batch, filled up to its longest one: labels with -100, which count in no loss.

        Args:
            rows: some of the examples.

        Returns:
            ``input_ids``, ``attention_mask`` (rows, tokens), ``labels`` (rows, tokens), (rows, targets) or (rows), and
            in an encoder-decoder ``decoder_input_ids``, the labels shifted to the right.
        """
        batch = training.collate(rows)
        batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
        batch["attention_mask"] = batch["attention_mask"].long()
        if self.kind == "seq2seq":
            batch["decoder_input_ids"] = shift_right(batch["labels"], self.start, self.pad)
        return batch


def prepare(
    loaded: Loaded,
    data: Any,
    *,
    split: str = "train",
    items: int | None = None,
    seed: int = 0,
    prefix: str | None = None,
    longest: int | None = None,
    labels: Sequence[str] | None = None,
) -> Prepared:
    """Make examples for a model of texts and targets.

    A decoder reads prompt and answer in one row, and learns the answer and its end alone: the prompt's labels are -100.
    An encoder-decoder reads the prompt and learns to write the target. An encoder learns one label a text, or one a
    token where the data are the task ``entities`` or have lists of words and tags.

    Args:
        loaded: what :func:`course_utils.models.load` returned, or :func:`with_head`.
        data: name of a generated task (:data:`course_utils.data.tasks.TASKS`); ``"dialogsum"`` or ``"sst2"``, from the
            hub; a folder with files (Parquet, CSV, TSV, JSON lines) whose names say their split; a
            ``datasets.Dataset``; or (input, target) pairs.
        split: ``train`` or ``held_out`` (of data sets ``validation``, else ``test``), or a split's own name; without
            meaning for the last two.
        items: number of examples; by default 1,000 of a generated task, and all of a data set. Of more, some are drawn.
        seed: seed of the draw.
        prefix: stands before each input; by default the task's, in an encoder none.
        longest: largest number of tokens an example; by default the model's context window. Longer examples are left
            out, and one line says how many.
        labels: names of the labels of an encoder's job; by default those of the task or the data, or else those that
            the model was given before.

    Raises:
        ValueError: there are no such data, or they do not go with the model.
        FileNotFoundError: a folder has no files.
        ConnectionError: the hub is out of reach.
    """
    if items is not None and (isinstance(items, bool) or not isinstance(items, int) or items < 1):
        raise ValueError(f"items={items!r}: expected a whole number of 1 or more")
    task = tasks.TASKS.get(data) if isinstance(data, str) else None
    name = data if isinstance(data, str) else Path(data).name if isinstance(data, Path) else "data"
    encoder = loaded.kind in ("masked", "base", "classes", "tags")
    if encoder and task is not None and task.name == "entities":
        made = labelled_texts(loaded.tokenizer, "entities", split, items or ITEMS, seed)
        texts = [text for text, _ in task.generate(split, items or ITEMS, seed)]
        return _fitting(loaded, _tags(name, made, texts, labels or ("outside", *ENTITIES)), longest)
    names: Sequence[str] = ()
    if task is not None:
        pairs: Pairs = task.generate(split, items or ITEMS, seed)
        names = task.labels or ()
    else:
        pairs, names = _pairs(data, split)
        if items is not None and len(pairs) > items:
            pairs = [pairs[place] for place in sorted(random.Random(f"{name} {seed}").sample(range(len(pairs)), items))]
    if encoder and not isinstance(pairs[0][0], str):
        return _fitting(loaded, _words(loaded, name, pairs, labels or names or _labels_of(loaded)), longest)
    if any(not isinstance(text, str) or not text.strip() for text, _ in pairs):
        raise ValueError(f"{name}: expected inputs that are texts, none of them empty")
    if any(target is None for _, target in pairs):
        raise ValueError(f"{name}: {sum(target is None for _, target in pairs)} of {len(pairs)} targets are missing")
    kind = "classes" if encoder else loaded.kind
    if prefix is None:
        prefix = "" if encoder else task.prefix if task else PREFIXES.get(name, "")
    prompts = tuple(PROMPTS[kind].format(prefix=prefix, input=text) for text, _ in pairs)
    if kind == "classes":
        made_labels = tuple(labels or names or _labels_of(loaded) or sorted({str(target) for _, target in pairs}))
        targets = tuple(made_labels[one] if isinstance(one, int) else str(one) for _, one in pairs)
        unknown = set(targets) - set(made_labels)
        if unknown or len(made_labels) > max(50, len(pairs) // 2):
            raise ValueError(
                f"{name}: {len(set(targets))} different targets ({', '.join(sorted(unknown or targets)[:3])}...) are "
                f"no labels of an encoder's job: expected a few, or one of {', '.join(made_labels[:5])}"
            )
        ids = loaded.tokenizer(list(prompts), verbose=False)["input_ids"]
        rows = [
            {"input_ids": row, "labels": made_labels.index(one)} for row, one in zip(ids, targets, strict=True)
        ]  # fmt: skip
        return _fitting(loaded, Prepared(name, kind, rows, prompts, targets, made_labels), longest)
    answers = tuple(str(names[one]) if names and isinstance(one, int) else str(one) for _, one in pairs)
    return _fitting(loaded, _written(loaded, name, kind, prompts, answers), longest)


def with_head(loaded: Loaded, prepared: Prepared, seed: int = 0) -> Loaded:
    """Give an encoder an output layer for labels, with random weights; all else it keeps.

    Args:
        loaded: an encoder; it is not changed.
        prepared: examples with labels.
        seed: seed of the new weights.

    Returns:
        A model of ``transformers`` for classes or tags; the same where it has such a layer already.

    Raises:
        ValueError: the library has no such model for this encoder.
    """
    if prepared.kind not in ("classes", "tags") or loaded.kind == prepared.kind:
        return loaded
    import transformers

    maker: Any = {
        "classes": transformers.AutoModelForSequenceClassification,
        "tags": transformers.AutoModelForTokenClassification,
    }[prepared.kind]
    old: Any = loaded.model
    config = type(old.config).from_dict(
        old.config.to_dict() | {"id2label": dict(enumerate(prepared.labels)), "label2id": None}
    )
    config.label2id = {name: place for place, name in enumerate(prepared.labels)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            new = maker.from_config(config)
        except ValueError as error:
            raise ValueError(f"{loaded.name}: no model with labels is known for it ({str(error)[:120]})") from None
    new.base_model.load_state_dict(old.base_model.state_dict(), strict=False)
    new.to(old.device, old.dtype)
    return replace(loaded, model=new.eval(), kind=prepared.kind)


def new_modules(model: Any, kind: str) -> list[str]:
    """Return the names of the modules that :func:`with_head` made: they are trained as they are, also beside LoRA.

    Args:
        model: the model.
        kind: one of ``KINDS``.
    """
    if kind not in ("classes", "tags"):
        return []
    inside = f"{model.base_model_prefix}."
    heads = {name.partition(".")[0] for name, _ in model.named_parameters() if not name.startswith(inside)}
    poolers = {name.rpartition(".")[0] for name, _ in model.named_parameters() if f"{inside}pooler." in name}
    return sorted(heads | poolers)


def _written(loaded: Loaded, name: str, kind: str, prompts: tuple[str, ...], answers: tuple[str, ...]) -> Prepared:
    """Examples whose targets are written."""
    tokenizer: Any = loaded.tokenizer
    read = tokenizer(list(prompts), verbose=False)["input_ids"]
    special = kind == "seq2seq"  # a decoder's tokenizer may put a mark before the text
    told = tokenizer([f" {one}" for one in answers], add_special_tokens=special, verbose=False)["input_ids"]
    if kind == "causal":
        ends = generation._ends(loaded)[:1]
        told = [[*row, *ends] for row in told]
        rows = [
            {"input_ids": [*before, *after], "labels": [IGNORED] * len(before) + after}
            for before, after in zip(read, told, strict=True)
        ]
    else:
        rows = [{"input_ids": before, "labels": after} for before, after in zip(read, told, strict=True)]
    start = generation._start(loaded.model, None) or 0
    longest = max(map(len, read)), max(map(len, told))
    return Prepared(name, kind, rows, prompts, answers, longest=longest, start=start, pad=tokenizer.pad_token_id or 0)


def _tags(name: str, rows: list[dict[str, Any]], texts: Sequence[str], labels: Sequence[str]) -> Prepared:
    targets = tuple(tuple(labels[one] for one in row["labels"] if one != IGNORED) for row in rows)
    return Prepared(name, "tags", rows, tuple(texts), targets, tuple(labels))


def _words(loaded: Loaded, name: str, pairs: Pairs, labels: Sequence[str]) -> Prepared:
    """Examples of lists of words and tags; a word's first token has its tag, the others have none."""
    names = list(labels) or sorted({str(tag) for _, tags in pairs for tag in tags})
    made: Any = loaded.tokenizer([list(words) for words, _ in pairs], is_split_into_words=True, verbose=False)
    rows = []
    for number, (_, tags) in enumerate(pairs):
        places = made.word_ids(number)
        row = [IGNORED] * len(places)
        for place, word in enumerate(places):
            if word is not None and word not in places[:place]:
                row[place] = tags[word] if isinstance(tags[word], int) else names.index(str(tags[word]))
        rows.append({"input_ids": made["input_ids"][number], "labels": row})
    return _tags(name, rows, [" ".join(words) for words, _ in pairs], names)


def _fitting(loaded: Loaded, made: Prepared, longest: int | None) -> Prepared:
    """Leave out what does not fit, and say so."""
    window = longest or generation.context_window(loaded) or math.inf
    kept = [place for place, row in enumerate(made.examples) if len(row["input_ids"]) <= window]
    if not kept:
        raise ValueError(f"{made.name}: no example fits {window} tokens")
    gone = len(made.examples) - len(kept)
    if gone:
        print(f"{made.name}: {gone} of {len(made.examples)} examples have more than {window} tokens and are left out")
    rows = [made.examples[place] for place in kept]
    if made.kind in ("causal", "seq2seq"):
        written = [sum(one != IGNORED for one in row["labels"]) for row in rows]
        read = [
            len(row["input_ids"]) - (many if made.kind == "causal" else 0)
            for row, many in zip(rows, written, strict=True)
        ]
    else:
        read, written = [len(row["input_ids"]) for row in rows], [0]
    return replace(
        made,
        examples=rows,
        prompts=tuple(made.prompts[place] for place in kept),
        targets=tuple(made.targets[place] for place in kept),
        longest=(max(read), max(written)),
        left_out=gone,
    )


def _pairs(data: Any, split: str) -> tuple[Pairs, Sequence[str]]:
    """Inputs and targets of a data set, and the names of its labels where it knows them."""
    names: Sequence[str] = ()
    if isinstance(data, (str, Path)):
        found: Any = None
        if data in HUB_SETS:
            found = hub(str(data))
            columns_of = dict(found)
        elif str(data).strip() and Path(data).expanduser().is_dir():
            columns_of = {name: table for name, (_, table) in _from_folder(str(data), Path(data).expanduser()).items()}
        else:
            raise ValueError(
                f"data={str(data)!r}: expected a task ({', '.join(list(tasks.TASKS)[:4])}...), "
                f"{', '.join(HUB_SETS)}, a folder with files, a data set or (input, target) pairs"
            )
        wanted = ("validation", "test") if split == "held_out" else (split,)
        split = next((one for one in wanted if one in columns_of), "")
        if not split:
            raise ValueError(f"{data}: no split {' or '.join(wanted)}, it has {', '.join(columns_of) or 'none'}")
        data = columns_of[split]
    if isinstance(data, Mapping) or hasattr(data, "column_names"):
        columns = list(data) if isinstance(data, Mapping) else list(data.column_names)
        for inputs, targets in ((WORDS, TAGS), (INPUTS, TARGETS)):
            read, told = (next((one for one in many if one in columns), None) for many in (inputs, targets))
            if read and told:
                feature: Any = getattr(data, "features", {}).get(told)
                feature = getattr(feature, "feature", feature)  # of lists
                names = getattr(feature, "names", None) or ()
                pairs = list(zip(data[read], data[told], strict=True))
                return _some(pairs), names
        raise ValueError(f"expected columns such as input and target, or tokens and tags; found {', '.join(columns)}")
    try:
        pairs = [(text, target) for text, target in data]
    except (TypeError, ValueError):
        raise ValueError(f"expected (input, target) pairs or a data set, got {type(data).__name__}") from None
    return _some(pairs), names


def _labels_of(loaded: Loaded) -> tuple[str, ...]:
    """The labels of a model that has an output layer for them; none where nobody named them."""
    known = getattr(loaded.model.config, "id2label", None) or {}
    names = tuple(str(known[place]) for place in sorted(known))
    named = loaded.kind in ("classes", "tags") and any(not name.startswith("LABEL_") for name in names)
    return names if named else ()


def _some(pairs: Pairs) -> Pairs:
    if not pairs:
        raise ValueError("there are no examples: expected one or more")
    return pairs
