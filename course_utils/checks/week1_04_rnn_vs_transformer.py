"""Exercises of the notebook ``week1/04_rnn_vs_transformer``."""

from typing import Any

import torch
from torch import Tensor

from course_utils.checks.framework import Case, Exercise, Mistake, case
from course_utils.data.tasks.recall import recall_accuracy
from course_utils.rnn import key_value_cache_bytes, lstm_step, path_length
from course_utils.training import IGNORED

# --- one step of an LSTM


def _lstm_cases() -> list[Case]:
    found = []
    for seed, (batch, inputs, width) in enumerate([(3, 5, 4), (1, 2, 6), (4, 7, 3)]):
        generator = torch.Generator().manual_seed(seed)
        dtype = torch.float64 if seed == 2 else torch.float32
        shapes = [
            (batch, inputs),
            (batch, width),
            (batch, width),
            (4 * width, inputs),
            (4 * width, width),
            (4 * width,),
        ]
        found.append(case(*(torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes)))
    return found


def _gates(inputs: Tensor, hidden: Tensor, w: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    return (inputs @ w.T + hidden @ u.T + b).chunk(4, dim=-1)


def _gates_swapped(inputs: Tensor, hidden: Tensor, cell: Tensor, w: Tensor, u: Tensor, b: Tensor) -> Any:
    keep, write, candidate, show = _gates(inputs, hidden, w, u, b)
    cell = keep.sigmoid() * cell + write.sigmoid() * candidate.tanh()
    return show.sigmoid() * cell.tanh(), cell


def _output_third(inputs: Tensor, hidden: Tensor, cell: Tensor, w: Tensor, u: Tensor, b: Tensor) -> Any:
    write, keep, show, candidate = _gates(inputs, hidden, w, u, b)
    cell = keep.sigmoid() * cell + write.sigmoid() * candidate.tanh()
    return show.sigmoid() * cell.tanh(), cell


def _candidate_sigmoid(inputs: Tensor, hidden: Tensor, cell: Tensor, w: Tensor, u: Tensor, b: Tensor) -> Any:
    write, keep, candidate, show = _gates(inputs, hidden, w, u, b)
    cell = keep.sigmoid() * cell + write.sigmoid() * candidate.sigmoid()
    return show.sigmoid() * cell.tanh(), cell


def _no_last_tanh(inputs: Tensor, hidden: Tensor, cell: Tensor, w: Tensor, u: Tensor, b: Tensor) -> Any:
    write, keep, candidate, show = _gates(inputs, hidden, w, u, b)
    cell = keep.sigmoid() * cell + write.sigmoid() * candidate.tanh()
    return show.sigmoid() * cell, cell


def _old_memory(inputs: Tensor, hidden: Tensor, cell: Tensor, w: Tensor, u: Tensor, b: Tensor) -> Any:
    write, keep, candidate, show = _gates(inputs, hidden, w, u, b)
    return show.sigmoid() * cell.tanh(), keep.sigmoid() * cell + write.sigmoid() * candidate.tanh()


def _no_forgetting(inputs: Tensor, hidden: Tensor, cell: Tensor, w: Tensor, u: Tensor, b: Tensor) -> Any:
    write, _, candidate, show = _gates(inputs, hidden, w, u, b)
    cell = cell + write.sigmoid() * candidate.tanh()
    return show.sigmoid() * cell.tanh(), cell


def _results_swapped(inputs: Tensor, hidden: Tensor, cell: Tensor, w: Tensor, u: Tensor, b: Tensor) -> Any:
    hidden, cell = lstm_step(inputs, hidden, cell, w, u, b)
    return cell, hidden


# --- accuracy of the answers


def _accuracy_cases() -> list[Case]:
    found = []
    for seed, (batch, tokens, vocabulary) in enumerate([(5, 7, 4), (3, 4, 3), (1, 6, 5)]):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(batch, tokens, vocabulary, generator=generator) - 2
        labels = torch.randint(vocabulary, (batch, tokens), generator=generator)
        right = torch.rand(batch, tokens, generator=generator) < 0.5
        labels = torch.where(right, logits.argmax(-1), labels)
        labels[torch.rand(batch, tokens, generator=generator) < 0.45] = IGNORED
        labels[0, -1], labels[:, 0] = logits[0, -1].argmax(), IGNORED
        found.append(case(logits, labels))
    return found


def _all_tokens(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(-1) == labels).double().mean())


def _next_token(logits: Tensor, labels: Tensor) -> float:
    asked = labels[:, 1:] != IGNORED
    return float((logits[:, :-1].argmax(-1) == labels[:, 1:])[asked].double().mean())


def _mean_of_rows(logits: Tensor, labels: Tensor) -> float:
    asked = labels != IGNORED
    right = (logits.argmax(-1) == labels) & asked
    return float((right.sum(1) / asked.sum(1).clamp(min=1)).double().mean())


def _number_right(logits: Tensor, labels: Tensor) -> float:
    return float(((logits.argmax(-1) == labels) & (labels != IGNORED)).sum())


def _whole_rows(logits: Tensor, labels: Tensor) -> float:
    return float(((logits.argmax(-1) == labels) | (labels == IGNORED)).all(1).double().mean())


def _least_likely(logits: Tensor, labels: Tensor) -> float:
    return recall_accuracy(-logits, labels)


# --- the length of a path


def _path_cases() -> list[Case]:
    numbers = [(1, 1), (7, 1), (12, 3), (100, 2), (0, 4), (1024, 6)]
    return [case(architecture, *pair) for architecture in ("recurrent", "attention") for pair in numbers]


def _path(recurrent: Any, attention: Any) -> Any:
    def path(architecture: str, distance: int, layers: int) -> int:
        return (recurrent if architecture == "recurrent" else attention)(distance, layers)

    return path


# --- bytes of a key/value cache


def _cache_cases() -> list[Case]:
    return [
        case(100, 2, 4, 16),
        case(1024, 12, 12, 64, 3, 2),
        case(7, 3, 1, 5, batch=2),
        case(33, 1, 2, 8, bytes_per_number=2),
    ]


def _cache_factor(values: int = 2, over: str = "", squared: bool = False) -> Any:
    def bytes_of(
        tokens: int, layers: int, key_value_heads: int, head_size: int, batch: int = 1, bytes_per_number: int = 4
    ) -> int:
        sizes = dict(layers=layers, heads=key_value_heads, size=head_size, batch=batch, bytes=bytes_per_number)
        result = values * tokens * (tokens if squared else 1)
        for name, size in sizes.items():
            result *= 1 if name == over else size
        return result

    return bytes_of


EXERCISES = [
    Exercise(
        name="rnn.lstm_step",
        title="One step of an LSTM",
        minutes=10,
        difficulty=2,
        importance=3,
        reference=lstm_step,
        cases=_lstm_cases,
        mistakes=[
            Mistake(
                _gates_swapped,
                "input gate and forget gate are swapped: in torch's order the first quarter writes, the second keeps",
            ),
            Mistake(
                _output_third,
                "candidate and output gate are swapped: in torch's order the third quarter is the candidate, the "
                "fourth the output gate",
            ),
            Mistake(
                _candidate_sigmoid,
                "the candidate went through a sigmoid: only the three gates do. What is written goes through tanh, so "
                "that it can be negative",
            ),
            Mistake(
                _no_last_tanh,
                "the memory must go through tanh on its way out: sigmoid(output gate) * tanh(cell)",
            ),
            Mistake(
                _old_memory,
                "the output shows the memory of before: compute the new cell first, then the output from it",
            ),
            Mistake(
                _no_forgetting,
                "nothing is ever forgotten: multiply the old cell by sigmoid(forget gate) before adding to it",
            ),
            Mistake(_results_swapped, "the results are in the wrong order: return the output first, then the cell"),
        ],
        hints=[
            "All four scores at once: inputs @ input_weight.T + hidden @ hidden_weight.T + bias, (batch, 4 * width).",
            "Cut them with .chunk(4, dim=-1): input gate, forget gate, candidate, output gate. Gates go through "
            "sigmoid, the candidate through tanh.",
            "cell = forget * cell + write * candidate; the output is output_gate * tanh(cell). Return both.",
        ],
    ),
    Exercise(
        name="rnn.path_length",
        title="Steps between two tokens",
        minutes=5,
        difficulty=1,
        importance=5,
        reference=path_length,
        cases=_path_cases,
        mistakes=[
            Mistake(
                _path(lambda distance, layers: distance * layers, lambda distance, layers: layers),
                "you climb through all layers at each token: the shortest path goes right in one layer, and up once",
            ),
            Mistake(
                _path(lambda distance, layers: distance, lambda distance, layers: layers),
                "the layers are missing in the recurrent path: from the token up to the last layer takes one step each",
            ),
            Mistake(
                _path(lambda distance, layers: distance + layers, lambda distance, layers: distance + layers),
                "attention does not pass through the tokens between: it looks at any distance in one step",
            ),
            Mistake(
                _path(lambda distance, layers: distance + layers, lambda distance, layers: 1),
                "one step of attention for each layer: the output is that of the last one",
            ),
            Mistake(
                _path(lambda distance, layers: layers, lambda distance, layers: distance + layers),
                "the two architectures are swapped: it is the recurrent network that goes token by token",
            ),
        ],
        hints=[
            "Use the explorer: set the distance, count the lines of the coloured path; change one control at a time.",
            "Recurrent: how many steps to the right, and how many up? Attention: does the distance matter?",
            "distance + layers for the one, layers for the other.",
        ],
    ),
    Exercise(
        name="rnn.recall_accuracy",
        title="Accuracy of the answers",
        minutes=10,
        difficulty=2,
        importance=4,
        reference=recall_accuracy,
        cases=_accuracy_cases,
        mistakes=[
            Mistake(
                _all_tokens,
                "you divide by all tokens: where the label is -100 nothing was asked, so leave these out of the mean",
            ),
            Mistake(
                _next_token,
                "you compare each output with the label one place further on: here an answer is read at its question, "
                "so logits and labels stand at the same place",
            ),
            Mistake(
                _mean_of_rows,
                "you take the mean within each sequence first: those with few questions then count too much. Select "
                "all questions of the batch, then take one mean",
            ),
            Mistake(_number_right, "that is how many answers are right: divide by how many were asked"),
            Mistake(
                _whole_rows,
                "you count sequences whose answers are all right: count the single answers",
            ),
            Mistake(_least_likely, "you take the smallest score: the answer is the token with the largest, argmax"),
        ],
        hints=[
            "Three lines: the token with the largest score at each place; where something is asked; the mean there.",
            "predicted = logits.argmax(-1), and asked = labels != -100, both (batch, tokens).",
            "(predicted == labels)[asked] is one True or False for each question: .double().mean(), as a float.",
        ],
    ),
    Exercise(
        name="rnn.cache_bytes",
        title="Bytes of a key/value cache",
        minutes=5,
        difficulty=1,
        importance=4,
        reference=key_value_cache_bytes,
        cases=_cache_cases,
        mistakes=[
            Mistake(_cache_factor(values=1), "half is missing: each token leaves a key *and* a value"),
            Mistake(_cache_factor(over="bytes"), "that is how many numbers: multiply by the bytes of one"),
            Mistake(_cache_factor(over="layers"), "that is one layer's: every layer keeps keys and values of its own"),
            Mistake(_cache_factor(over="batch"), "that is one text's: every text of the batch has a cache"),
            Mistake(
                _cache_factor(squared=True),
                "that grows with the square of the tokens: the attention map does, but the cache holds one key and one "
                "value a token",
            ),
        ],
        hints=[
            "How many numbers does one token leave in one layer? Then count tokens, layers, texts, and bytes.",
            "One token, one layer: 2 * key_value_heads * head_size numbers.",
            "The product of 2 and all six arguments.",
        ],
    ),
]
