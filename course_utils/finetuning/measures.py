"""What a model answers to held-out items: exact match, ROUGE, BLEU, F1, entities, each with a bootstrap interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from course_utils import generation, reporting, training
from course_utils.data.tasks import dialogues
from course_utils.finetuning.examples import Prepared, prepare
from course_utils.finetuning.tuning import merged
from course_utils.models import Loaded
from course_utils.recipes.base import Result, from_items
from course_utils.training import IGNORED

RESAMPLES = 400
"""Resamples where a measure is one of all items together (BLEU, F1), not a mean over items."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model answered to the items of a job, and how good that is.

    Attributes:
        name: name of the data.
        answers: what was answered: texts, names of labels, or a row of names.
        targets: what is right.
        items: name of a measure to its value for each item; a mean over these is the measure.
        together: name of a measure of all items together to its result.
    """

    name: str
    answers: tuple[Any, ...]
    targets: tuple[Any, ...]
    items: dict[str, tuple[float, ...]]
    together: dict[str, Result]

    @property
    def names(self) -> list[str]:
        """Names of the measures."""
        return [*self.items, *self.together]

    def __getitem__(self, name: str) -> Result:
        """Return a measure with its 95 % interval (bootstrap over the items; Efron, 1979).

        Raises:
            ValueError: there is no such measure.
        """
        if name in self.together:
            return self.together[name]
        if name not in self.items:
            raise ValueError(f"measure {name!r}: {self.name} has {', '.join(self.names)}")
        return from_items(name, [self.items[name]])


def measure(
    loaded: Loaded,
    data: Any,
    *,
    items: int = 200,
    seed: int = 0,
    longest: int | None = None,
    rows: int = 64,
    progress: bool = False,
) -> Scores:
    """Let a model answer held-out items, in evaluation mode, and score the answers; its modes are put back.

    The same data, items and seed give the same items for every model.

    Args:
        loaded: a model as it comes, or a tuned one (:attr:`.Tuned.loaded`).
        data: what :func:`prepare` takes, of which the held-out split is read; or what it returned.
        items: number of items.
        seed: seed of the items.
        longest: largest number of tokens an answer; by default half as many again as the longest right one has.
        rows: items at a time.
        progress: show a progress bar.

    Returns:
        For texts: exact match, ROUGE-1, ROUGE-2, ROUGE-L (``rouge-score``, F), BLEU (``sacrebleu``, 0 to 100) and,
        where every target names some, entity accuracy (:func:`course_utils.data.tasks.dialogues.entity_accuracy`). For
        classes: accuracy, and macro F1 (``scikit-learn``). For tags: accuracy, and the F1 of all tags but the first.

    Raises:
        ValueError: as of :func:`prepare`; or an encoder has no output layer yet.
    """
    prepared = data if isinstance(data, Prepared) else prepare(loaded, data, split="held_out", items=items, seed=seed)
    if prepared.kind in ("classes", "tags"):
        return _labelled(loaded, prepared, rows)
    small = sum(one.numel() for one in loaded.model.parameters()) <= generation.QUICK_PARAMETERS
    if small:  # merged, it writes several times as fast
        loaded = replace(loaded, model=merged(loaded.model))
    new = longest or math.ceil(1.5 * prepared.longest[1])
    window = generation.context_window(loaded)
    if prepared.kind == "causal" and window is not None:
        new = min(new, window - prepared.longest[0])
    with training.modes(loaded.model, training=False):
        written = generation.complete(
            loaded, list(prepared.prompts), generation.Decoding(max_new_tokens=new), rows, progress
        )
    return score_texts(prepared.name, [one.text.strip() for one in written], prepared.targets)


def score_texts(name: str, answers: Sequence[str], targets: Sequence[str]) -> Scores:
    """Score answers that are texts; see :func:`measure`.

    Args:
        name: name of the data.
        answers: what was answered.
        targets: what is right.
    """
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    both = list(zip(answers, targets, strict=True))
    kinds = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}
    scorer = RougeScorer(list(kinds.values()))
    found = [scorer.score(target, answer) for answer, target in both]
    items = {"exact match": tuple(float(answer == target.strip()) for answer, target in both)}
    items |= {shown: tuple(one[kind].fmeasure for one in found) for shown, kind in kinds.items()}
    if all(dialogues.entities(target) for target in targets):
        items["entity accuracy"] = tuple(dialogues.entity_accuracy(answer, target) for answer, target in both)
    bleu: Any = sacrebleu.BLEU(effective_order=True)
    score = bleu.corpus_score(list(answers), [list(targets)], n_bootstrap=RESAMPLES)
    result = Result("BLEU", score.score, score._mean - score._ci, score._mean + score._ci, len(both))
    return Scores(name, tuple(answers), tuple(targets), items, {"BLEU": result})


def scores_table(models: Mapping[str, Scores], measures: Sequence[str] | None = None, caption: str = "") -> None:
    """Display measures, one a row, of several models with their 95 % intervals.

    Args:
        models: name of a model to its scores.
        measures: names of measures; by default all.
        caption: one line above the table.
    """
    first = next(iter(models.values()))
    rows = []
    for name in measures or first.names:
        digits = 1 if name == "BLEU" else 2
        cells = []
        for scores in models.values():
            one = scores[name]
            low, high = (reporting.approx(end, digits) for end in (one.low, one.high))
            cells.append(f"{reporting.approx(one.value, digits)} ({low} to {high})")
        rows.append((name, *cells))
    count = f"{len(first.answers)} items of {first.name}, with 95 % intervals"
    reporting.table(rows, ("measure", *models), caption=f"{caption}: {count}" if caption else count)


def gain_share(before: Scores, part: Scores, whole: Scores, measure: str) -> Result:
    """Return which share of a gain another model has: (part - before) / (whole - before), on the same items.

    Args:
        before: scores of the model as it came.
        part: of the one whose share is asked for, such as LoRA.
        whole: of the one that sets the gain, such as full fine-tuning.
        measure: name of a measure that is a mean over items.

    Returns:
        The share, with a 95 % interval by the paired bootstrap: the same items are drawn for all three.

    Raises:
        ValueError: the scores are of different items, or nothing was gained.
    """
    if not before.targets == part.targets == whole.targets:
        raise ValueError("gain_share(): the scores are of different items; measure all models with the same settings")
    import numpy

    start, one, other = (numpy.array(scores.items[measure]) for scores in (before, part, whole))
    if other.mean() <= start.mean():
        raise ValueError(
            f"{measure}: nothing was gained ({start.mean():.3f} to {other.mean():.3f}), so there is no share"
        )
    drawn = numpy.random.default_rng(0).integers(len(start), size=(2000, len(start)))
    gains = (other - start)[drawn].mean(1)
    shares = (one - start)[drawn].mean(1)[gains > 0] / gains[gains > 0]
    low, high = numpy.percentile(shares, [2.5, 97.5])
    value = float((one - start).mean() / (other - start).mean())
    return Result(f"share of the gain in {measure}", value, float(low), float(high), len(start))


@dataclass(frozen=True)
class Forgetting:
    """How well several models do other tasks.

    Attributes:
        models: names of the models.
        tasks: name of a task to the results of the models, in their order.
    """

    models: tuple[str, ...]
    tasks: dict[str, tuple[Result, ...]]

    def mean(self, model: str) -> float:
        """Return the mean over the tasks.

        Args:
            model: name of a model.
        """
        place = self.models.index(model)
        return sum(results[place].value for results in self.tasks.values()) / len(self.tasks)

    def table(self) -> None:
        """Display a row for each task, the mean, and what was lost against the first model."""
        first = self.models[0]
        rows = [(name, *(reporting.approx(one.value) for one in found)) for name, found in self.tasks.items()]
        rows.append(("mean", *(reporting.approx(self.mean(one)) for one in self.models)))
        lost = (f"≈{self.mean(one) - self.mean(first):+.2f}" for one in self.models[1:])
        rows.append(("against " + first, "", *lost))
        items = next(iter(self.tasks.values()))[0].items
        reporting.table(rows, ("task", *self.models), caption=f"exact match on other tasks, {items} items each")


def forgetting(models: Mapping[str, Loaded], tasks: Sequence[Any], items: int = 50, seed: int = 0) -> Forgetting:
    """Measure on other tasks what a fine-tuning has cost: catastrophic forgetting (McCloskey and Cohen, 1989).

    Args:
        models: name of a model to the model, the untuned one first.
        tasks: what :func:`prepare` takes, such as names of generated tasks.
        items: number of held-out items of each.
        seed: seed of the items.

    Raises:
        ValueError: as of :func:`measure`, or there is no model or task.
    """
    if not models or not tasks:
        raise ValueError("forgetting(): expected one or more models, and one or more tasks")
    found: dict[str, tuple[Result, ...]] = {}
    for task in tasks:
        scores = [measure(one, task, items=items, seed=seed) for one in models.values()]
        name = "exact match" if "exact match" in scores[0].items else "accuracy"
        found[scores[0].name] = tuple(one[name] for one in scores)
    return Forgetting(tuple(models), found)


@torch.no_grad()
def _labelled(loaded: Loaded, prepared: Prepared, rows: int) -> Scores:
    """Score labels: one a text, or one a token."""
    if loaded.kind != prepared.kind:
        raise ValueError(
            f"{loaded.name} has no output layer for {prepared.kind} yet: finetune() or with_head() gives it one"
        )
    model: Any = loaded.model
    order = sorted(range(len(prepared)), key=prepared.lengths.__getitem__)
    chosen: dict[int, Any] = {}
    with training.modes(model, training=False):
        for begin in range(0, len(order), rows):
            places = order[begin : begin + rows]
            batch = training._to(prepared.collate([prepared.examples[place] for place in places]), model.device)
            best = training._logits(model, batch).argmax(-1).cpu()
            for place, one, labels in zip(places, best, batch["labels"].cpu(), strict=True):
                chosen[place] = one if one.ndim == 0 else one[labels != IGNORED]
    return _score_labels(prepared, [chosen[place] for place in range(len(prepared))])


def _score_labels(prepared: Prepared, found: Sequence[Tensor]) -> Scores:
    """Accuracy of each example, and F1 by ``scikit-learn``; its interval from the counts of each example."""
    import numpy
    from sklearn.metrics import f1_score

    names, tags = prepared.labels, prepared.kind == "tags"
    wanted = [torch.as_tensor(one["labels"]).reshape(-1) for one in prepared.examples]
    wanted = [one[one != IGNORED] for one in wanted]
    rows = [one.reshape(-1) for one in found]
    kept = torch.arange(1 if tags else 0, len(names))
    counts = numpy.stack(
        [
            [(one & other).sum(1), one.sum(1) + other.sum(1)]
            for one, other in ((a == kept[:, None], b == kept[:, None]) for a, b in zip(rows, wanted, strict=True))
        ]
    )  # (examples, 2, classes): hits, and how often each class was said or right
    drawn = numpy.random.default_rng(0).integers(len(rows), size=(RESAMPLES, len(rows)))
    hits, said = counts[drawn].sum(1).transpose(1, 0, 2)  # (resamples, classes) each
    if tags:
        hits, said = hits.sum(1, keepdims=True), said.sum(1, keepdims=True)
    low, high = numpy.percentile((2 * hits / numpy.maximum(said, 1)).mean(1), [2.5, 97.5])
    way = {"labels": kept.tolist(), "average": "micro" if tags else "macro", "zero_division": 0}
    value = float(f1_score(torch.cat(wanted), torch.cat(rows), **way))
    right = tuple(float((one == other).float().mean()) for one, other in zip(rows, wanted, strict=True))
    answers = tuple(names[int(one)] if one.ndim == 0 else tuple(names[each] for each in one.tolist()) for one in found)
    together = {"F1": Result("F1", value, float(low), float(high), len(rows))}
    return Scores(prepared.name, answers, prepared.targets, {"accuracy": right}, together)
