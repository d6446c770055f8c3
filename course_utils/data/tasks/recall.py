"""Associative recall: pairs of key and value, then the keys once more, each to be answered with its value.

The task comes from Graves et al. (2014), section 4.3, and probes what a language model can look up in its own context
(Arora et al., 2023). The pairs are drawn anew for each sequence, so nothing can be learned by heart::

    tokens    k7 v2 k1 v9 k4 v4 |  k1 k7 k4
    answers                        v9 v2 v4     at each question, what the model should say next

Many pairs are hardly ever learned from scratch. A curriculum (Bengio et al., 2009) begins with few, and adds more
whenever the last number was mastered.
"""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_utils.training import IGNORED

if TYPE_CHECKING:
    import datasets


def vocabulary_size(keys: int, values: int) -> int:
    """Return the number of tokens: keys are 0 to keys - 1, values follow, and the bar is the last."""
    return keys + values + 1


def recall_batch(
    pairs: int, batch_size: int, seed: int, *, keys: int = 8, values: int = 8, gap: int = 0
) -> dict[str, Tensor]:
    """Draw a batch of recall sequences of ``3 * pairs + 1 + gap`` tokens.

    Args:
        pairs: number of pairs, and of questions: each key is asked once, in random order.
        batch_size: number of sequences.
        seed: seed of the draw; the same seed gives the same batch.
        keys: number of different keys; those of a sequence differ.
        values: number of different values.
        gap: number of bars between the pairs and the questions, beyond the one that is always there.

    Returns:
        ``input_ids`` (batch, tokens); ``labels`` of the same shape, the answer at each question and -100 elsewhere (for
        :func:`course_utils.training.aligned_loss`); ``distances`` of the same shape: at each question, how many tokens
        back the answer stands, else 0.

    Raises:
        ValueError: a number is out of range.
    """
    for name, number, least in (
        ("pairs", pairs, 1),
        ("batch_size", batch_size, 1),
        ("values", values, 1),
        ("gap", gap, 0),
    ):
        if number < least:
            raise ValueError(f"{name}={number}: expected a whole number of {least} or more")
    if pairs > keys:
        raise ValueError(f"pairs={pairs} needs as many different keys, there are {keys}: give keys={pairs} or more")
    generator = torch.Generator().manual_seed(seed)
    key = torch.rand(batch_size, keys, generator=generator).argsort(-1)[:, :pairs]
    value = keys + torch.randint(values, (batch_size, pairs), generator=generator)
    asked = torch.rand(batch_size, pairs, generator=generator).argsort(-1)
    bars = torch.full((batch_size, 1 + gap), keys + values)
    input_ids = torch.cat([torch.stack([key, value], -1).flatten(1), bars, key.gather(1, asked)], 1)
    labels, distances = torch.full_like(input_ids, IGNORED), torch.zeros_like(input_ids)
    labels[:, -pairs:] = value.gather(1, asked)
    distances[:, -pairs:] = torch.arange(2 * pairs + 1 + gap, 3 * pairs + 1 + gap) - (2 * asked + 1)
    return {"input_ids": input_ids, "labels": labels, "distances": distances}


def recall_dataset(pairs: int, examples: int, seed: int, **sizes: Any) -> "datasets.Dataset":
    """Return :func:`recall_batch` as a ``datasets.Dataset`` with ``input_ids``, ``labels`` and ``distances``.

    Args:
        pairs: number of pairs.
        examples: number of sequences.
        seed: seed of the draw.
        sizes: ``keys``, ``values`` and ``gap``, as for :func:`recall_batch`.

    Raises:
        ValueError: a number is out of range.
    """
    import datasets

    batch = recall_batch(pairs, examples, seed, **sizes)
    return datasets.Dataset.from_dict({name: tensor.tolist() for name, tensor in batch.items()})


class RecallCurriculum:
    """Recall batches that become longer as the model learns; made for :func:`course_utils.training.fit`.

    ``fit(model, curriculum, on_step=curriculum.on_step, loss=aligned_loss, steps=...)``: the curriculum is the function
    that makes batch number i, and its hook watches the loss. The same seed and the same losses give the same batches.

    Args:
        levels: numbers of pairs, level by level.
        batch_size: number of sequences a batch.
        seed: seed of the batches.
        mastered: mean loss in nats, smoothed over some ten steps, below which the next level begins.
        stop: end the training when the last level is mastered.
        sizes: ``keys``, ``values`` and ``gap``, as for :func:`recall_batch`.

    Attributes:
        level: number of the level, from 0.
        passed: the step at which each level was mastered.

    Raises:
        ValueError: the levels are empty or do not rise.
    """

    def __init__(
        self,
        levels: Sequence[int],
        batch_size: int = 64,
        seed: int = 0,
        mastered: float = 0.2,
        stop: bool = False,
        **sizes: Any,
    ):
        if not levels or list(levels) != sorted(set(levels)):
            raise ValueError(f"levels={list(levels)}: expected rising numbers of pairs, for example [1, 2, 4, 8]")
        self.levels, self.batch_size, self.seed, self.mastered = list(levels), batch_size, seed, mastered
        self.stop, self.sizes = stop, sizes
        self.level = 0
        self.passed: list[int] = []
        self._smooth = math.inf

    @property
    def pairs(self) -> int:
        """Number of pairs in the batches of now."""
        return self.levels[self.level]

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Return batch ``number``, of as many pairs as the level says."""
        batch = recall_batch(self.pairs, self.batch_size, self.seed * 1_000_003 + number, **self.sizes)
        return {name: batch[name] for name in ("input_ids", "labels")}

    def on_step(self, step: int, model: nn.Module, loss: float) -> bool:
        """Watch the loss; begin the next level when this one is mastered. Returns whether the training should end."""
        self._smooth = loss if math.isinf(self._smooth) else 0.9 * self._smooth + 0.1 * loss
        if self._smooth >= self.mastered or len(self.passed) == len(self.levels):
            return False
        self.passed.append(step)
        if self.level + 1 < len(self.levels):
            self.level += 1
            self._smooth = math.inf
            return False
        return self.stop


def recall_accuracy(logits: Float[Tensor, "batch tokens vocabulary"], labels: Int[Tensor, "batch tokens"]) -> float:
    """Return the share of questions whose answer the model ranks first.

    Args:
        logits: the model's scores; at a question they are about its answer.
        labels: the answers; -100 where nothing is asked.

    Raises:
        ValueError: nothing is asked.
    """
    asked = labels != IGNORED
    if not asked.any():
        raise ValueError("all labels are -100: nothing is asked, so there is no accuracy")
    return float((logits.argmax(-1) == labels)[asked].double().mean())


def recall_by_distance(
    logits: Float[Tensor, "batch tokens vocabulary"],
    labels: Int[Tensor, "batch tokens"],
    distances: Int[Tensor, "batch tokens"],
    edges: Sequence[int],
) -> list[float]:
    """Return the accuracy by how many tokens back the answer stands: ``edges[i]`` to ``edges[i + 1] - 1``, for each i.

    Args:
        logits: the model's scores.
        labels: the answers; -100 where nothing is asked.
        distances: as :func:`recall_batch` gives them.
        edges: rising bounds of the groups.

    Returns:
        One share for each group; NaN for a group without questions.
    """
    asked = labels != IGNORED
    right, far = (logits.argmax(-1) == labels)[asked].double(), distances[asked]
    groups = [(far >= low) & (far < high) for low, high in itertools.pairwise(edges)]
    return [float(right[group].mean()) if group.any() else math.nan for group in groups]
