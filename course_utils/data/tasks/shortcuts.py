"""What a shortcut gets on a task: a guess from the single words, or from one place in the text, without reading it."""

import re
from collections import Counter

import torch
from torch import Tensor

from course_utils.data.tasks.base import Pairs, Task


def score(task: Task, items: int = 2000, seed: int = 0) -> float:
    """Return the share of held-out items that a shortcut answers exactly.

    Where the targets are labels, it is logistic regression on a bag of words: how often each word and mark is in the
    input, whatever the order. Elsewhere it is the word at one place of the input, counted from the beginning or the
    end, at the place that is right most often in training, or the most frequent target, whichever is better there.

    Args:
        task: the task.
        items: number of training items, and half as many held-out ones.
        seed: seed of both.
    """
    train, test = task.generate("train", items, seed), task.generate("held_out", max(items // 2, 1), seed)
    return _bag_of_words(train, test, task.labels) if task.labels else _place(train, test)


def _tokens(text: str) -> list[str]:
    return re.findall(r"[\w'-]+|[^\w\s]", text.lower())


def _bag_of_words(train: Pairs, test: Pairs, labels: tuple[str, ...]) -> float:
    """Train logistic regression on counts of words (float64, full batches); return its accuracy."""
    places = {word: place for place, word in enumerate(sorted({word for text, _ in train for word in _tokens(text)}))}

    def counts(pairs: Pairs) -> tuple[Tensor, Tensor]:
        found = [
            row * len(places) + places[word]
            for row, (text, _) in enumerate(pairs)
            for word in _tokens(text)
            if word in places
        ]
        table = torch.bincount(torch.tensor(found, dtype=torch.long), minlength=len(pairs) * len(places)).reshape(
            len(pairs), -1
        )
        return table.double(), torch.tensor([labels.index(target) for _, target in pairs])

    words, wanted = counts(train)
    weights = torch.zeros(len(places), len(labels), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(labels), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights, bias], lr=0.1)
    for _ in range(100):
        loss = torch.nn.functional.cross_entropy(words @ weights + bias, wanted) + 1e-3 * weights.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    words, wanted = counts(test)
    return float(((words @ weights + bias).argmax(-1) == wanted).double().mean())


def _place(train: Pairs, test: Pairs) -> float:
    """Return the accuracy of the best fixed place, or of the most frequent target."""
    usual = Counter(target for _, target in train).most_common(1)[0][0]

    def guess(text: str, place: int | None) -> str:
        if place is None:
            return usual
        found = text.split()
        return found[place].strip(".,;:?") if -len(found) <= place < len(found) else ""

    def accuracy(pairs: Pairs, place: int | None) -> float:
        return sum(guess(text, place).lower() == target.lower() for text, target in pairs) / len(pairs)

    return accuracy(test, max([None, *range(-30, 30)], key=lambda place: accuracy(train, place)))
