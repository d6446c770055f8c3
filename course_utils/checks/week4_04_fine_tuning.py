"""Exercises of the notebook ``week4/04_fine_tuning``."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from course_utils.checks.framework import Case, Exercise, Mistake, case

IGNORED = -100

# --- labels


def masked_labels(prompt: Sequence[int], answer: Sequence[int], length: int, pad: int) -> tuple[list[int], list[int]]:
    """Return the input ids and the labels of one row of a decoder: prompt, answer, then padding up to the length.

    Args:
        prompt: token ids of the prompt.
        answer: token ids of the answer, with the token that ends it.
        length: number of tokens of the row, at least that of both together.
        pad: token id of the padding. It may be the one that ends a text, too.
    """
    rest = length - len(prompt) - len(answer)
    ids = [*prompt, *answer, *[pad] * rest]
    labels = [*[IGNORED] * len(prompt), *answer, *[IGNORED] * rest]
    return ids, labels


def _masked_cases() -> list[Case]:
    return [case([5, 8, 2], [7, 1], 8, 0), case([4], [9, 3, 1], 6, 1), case([6, 6], [6, 1], 4, 0)]


def _all_labels(prompt: Sequence[int], answer: Sequence[int], length: int, pad: int) -> tuple[list[int], list[int]]:
    ids, _ = masked_labels(prompt, answer, length, pad)
    return ids, list(ids)


def _prompt_counts(prompt: Sequence[int], answer: Sequence[int], length: int, pad: int) -> tuple[list[int], list[int]]:
    ids, labels = masked_labels(prompt, answer, length, pad)
    return ids, [*prompt, *labels[len(prompt) :]]


def _padding_counts(prompt: Sequence[int], answer: Sequence[int], length: int, pad: int) -> tuple[list[int], list[int]]:
    ids, labels = masked_labels(prompt, answer, length, pad)
    end = len(prompt) + len(answer)
    return ids, [*labels[:end], *ids[end:]]


def _by_value(prompt: Sequence[int], answer: Sequence[int], length: int, pad: int) -> tuple[list[int], list[int]]:
    ids, labels = masked_labels(prompt, answer, length, pad)
    return ids, [IGNORED if one == pad else label for one, label in zip(ids, labels, strict=True)]


def _shifted(prompt: Sequence[int], answer: Sequence[int], length: int, pad: int) -> tuple[list[int], list[int]]:
    ids, labels = masked_labels(prompt, answer, length, pad)
    return ids, [*labels[1:], IGNORED]


def _zeros(prompt: Sequence[int], answer: Sequence[int], length: int, pad: int) -> tuple[list[int], list[int]]:
    ids, labels = masked_labels(prompt, answer, length, pad)
    return ids, [0 if one == IGNORED else one for one in labels]


def _end_hidden(prompt: Sequence[int], answer: Sequence[int], length: int, pad: int) -> tuple[list[int], list[int]]:
    ids, labels = masked_labels(prompt, answer, length, pad)
    end = len(prompt) + len(answer)
    return ids, [*labels[: end - 1], *[IGNORED] * (length - end + 1)]


def _in_front(prompt: Sequence[int], answer: Sequence[int], length: int, pad: int) -> tuple[list[int], list[int]]:
    rest = length - len(prompt) - len(answer)
    return [*[pad] * rest, *prompt, *answer], [*[IGNORED] * (rest + len(prompt)), *answer]


MASKED_LABELS = Exercise(
    name="finetuning.masked_labels",
    title="Labels of the answer alone",
    minutes=8,
    difficulty=2,
    importance=5,
    reference=masked_labels,
    cases=_masked_cases,
    mistakes=[
        Mistake(_all_labels, "every token has itself as its label: prompt and padding must have -100."),
        Mistake(_prompt_counts, "the prompt counts in your loss: nobody asks the model to write the prompt. Use -100."),
        Mistake(_padding_counts, "the padding counts in your loss: what fills a row up must have -100."),
        Mistake(
            _by_value,
            "you hide every token that equals the padding: where padding and end are the same token, the answer's end "
            "is hidden too, and the model never learns to stop. Decide by the place.",
        ),
        Mistake(_end_hidden, "the answer's last token, its end, has -100: without it the model never learns to stop."),
        Mistake(
            _shifted,
            "your labels are shifted: a label stands at its own token, and the loss does the shift (a model that gets "
            "labels, and next_token_loss).",
        ),
        Mistake(_zeros, "you hide tokens with 0, which is a token like any other: it must be -100."),
        Mistake(_in_front, "the padding stands in front: in training it stands behind (in front is for writing)."),
    ],
    hints=[
        "Three parts: the prompt, the answer, and length - both of padding. Write each list as a sum of three.",
        "labels = [-100] * len(prompt) + answer + [-100] * rest",
    ],
)

# --- LoRA


def lora_forward(
    states: Float[Tensor, "tokens inputs"],
    weight: Float[Tensor, "outputs inputs"],
    down: Float[Tensor, "rank inputs"],
    up: Float[Tensor, "outputs rank"],
    alpha: float,
) -> Float[Tensor, "tokens outputs"]:
    """Return what a linear map with a low-rank change gives, without ever making a matrix of the size of the weight.

    Args:
        states: the vectors that are mapped.
        weight: the frozen weights.
        down: the first thin matrix.
        up: the second one.
        alpha: the change is multiplied by alpha / rank.
    """
    return states @ weight.T + alpha / len(down) * (states @ down.T @ up.T)


def _tensors(seed: int, tokens: int, inputs: int, outputs: int, rank: int, alpha: float) -> Case:
    draw = torch.Generator().manual_seed(seed)
    sizes = ((tokens, inputs), (outputs, inputs), (rank, inputs), (outputs, rank))
    return case(*(torch.randn(size, generator=draw) for size in sizes), alpha)


def _forward_cases() -> list[Case]:
    return [_tensors(1, 3, 5, 4, 2, 6.0), _tensors(2, 1, 4, 7, 3, 1.5), _tensors(3, 2, 6, 6, 1, 8.0)]


def _unscaled(states: Tensor, weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    return states @ weight.T + states @ down.T @ up.T


def _alpha_alone(states: Tensor, weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    return states @ weight.T + alpha * (states @ down.T @ up.T)


def _change_alone(states: Tensor, weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    return alpha / len(down) * (states @ down.T @ up.T)


def _scaled_all(states: Tensor, weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    return alpha / len(down) * (states @ weight.T + states @ down.T @ up.T)


def _by_inputs(states: Tensor, weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    return states @ weight.T + alpha / down.shape[1] * (states @ down.T @ up.T)


def _by_outputs(states: Tensor, weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    return states @ weight.T + alpha / len(up) * (states @ down.T @ up.T)


LORA_FORWARD = Exercise(
    name="lora.lora_forward",
    title="The forward pass of LoRA",
    minutes=10,
    difficulty=2,
    importance=5,
    reference=lora_forward,
    cases=_forward_cases,
    mistakes=[
        Mistake(_unscaled, "the factor alpha / rank is missing in front of the change."),
        Mistake(_alpha_alone, "you multiply the change by alpha: it is alpha / rank, and the rank is down's rows."),
        Mistake(_change_alone, "that is the change alone: what the frozen weight gives has to be added."),
        Mistake(_scaled_all, "you scale the frozen part, too: alpha / rank belongs to the change alone."),
        Mistake(_by_inputs, "you divide by the number of inputs: the rank is the other size of down, its rows."),
        Mistake(_by_outputs, "you divide by the number of outputs: the rank is the other size of up, its columns."),
    ],
    hints=[
        "A linear map without bias is states @ weight.T. The change is such a map twice: first down, then up.",
        "states @ down.T has the shape (tokens, rank); times up.T it is (tokens, outputs). Scale, then add.",
    ],
)


def trained_share(shapes: Sequence[tuple[int, int]], rank: int, others: int) -> float:
    """Return the share of all parameters that LoRA trains, its own counted among them.

    Args:
        shapes: (outputs, inputs) of each matrix that is adapted.
        rank: LoRA's.
        others: number of the model's other parameters, which are frozen and not adapted.
    """
    added = sum(rank * (outputs + inputs) for outputs, inputs in shapes)
    frozen = others + sum(outputs * inputs for outputs, inputs in shapes)
    return added / (frozen + added)


def _share_cases() -> list[Case]:
    return [case([(12, 8)], 2, 0), case([(192, 192), (288, 192), (192, 288)], 4, 1000), case([(64, 16)] * 3, 1, 777)]


def _without_added(shapes: Sequence[tuple[int, int]], rank: int, others: int) -> float:
    added = sum(rank * (outputs + inputs) for outputs, inputs in shapes)
    return added / (others + sum(outputs * inputs for outputs, inputs in shapes))


def _of_the_adapted(shapes: Sequence[tuple[int, int]], rank: int, others: int) -> float:
    return trained_share(shapes, rank, 0)


def _one_matrix(shapes: Sequence[tuple[int, int]], rank: int, others: int) -> float:
    added = sum(rank * inputs for _, inputs in shapes)
    return added / (others + sum(outputs * inputs for outputs, inputs in shapes) + added)


def _squares(shapes: Sequence[tuple[int, int]], rank: int, others: int) -> float:
    added = len(shapes) * rank * rank
    return added / (others + sum(outputs * inputs for outputs, inputs in shapes) + added)


def _number(shapes: Sequence[tuple[int, int]], rank: int, others: int) -> float:
    return sum(rank * (outputs + inputs) for outputs, inputs in shapes)


def _per_cent(shapes: Sequence[tuple[int, int]], rank: int, others: int) -> float:
    return 100 * trained_share(shapes, rank, others)


TRAINED_SHARE = Exercise(
    name="lora.trained_share",
    title="How much LoRA trains",
    minutes=8,
    difficulty=2,
    importance=4,
    reference=trained_share,
    cases=_share_cases,
    mistakes=[
        Mistake(
            _without_added, "you divide by the frozen parameters alone: LoRA's own are parameters of the model, too."
        ),
        Mistake(_of_the_adapted, "the other parameters, embeddings for example, are missing in the whole."),
        Mistake(_one_matrix, "each adapted matrix has two thin ones: rank * inputs and rank * outputs."),
        Mistake(_squares, "a thin matrix is not (rank, rank): it is (rank, inputs), the other one (outputs, rank)."),
        Mistake(_number, "that is the number of LoRA's parameters: divide it by the number of all parameters."),
        Mistake(_per_cent, "that is in per cent: return a share, such as 0.05."),
    ],
    hints=[
        "For one matrix LoRA adds rank * inputs + rank * outputs numbers.",
        "added / (others + sum of outputs * inputs + added)",
    ],
)


def merge_weights(
    weight: Float[Tensor, "outputs inputs"],
    down: Float[Tensor, "rank inputs"],
    up: Float[Tensor, "outputs rank"],
    alpha: float,
) -> Float[Tensor, "outputs inputs"]:
    """Return one matrix that does what the frozen weight and the two thin ones do together.

    Args:
        weight: the frozen weights; they are not changed.
        down: the first thin matrix.
        up: the second one.
        alpha: the change is multiplied by alpha / rank.
    """
    return weight + alpha / len(down) * (up @ down)


def _merge_cases() -> list[Case]:
    return [case(*one.args[1:]) for one in (_tensors(4, 1, 5, 4, 2, 6.0), _tensors(5, 1, 4, 7, 3, 1.5))] + [
        case(*_tensors(6, 1, 5, 5, 2, 3.0).args[1:])
    ]


def _merged_unscaled(weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    return weight + up @ down


def _merged_alpha(weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    return weight + alpha * (up @ down)


def _taken_away(weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    return weight - alpha / len(down) * (up @ down)


def _replaced(weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    return alpha / len(down) * (up @ down)


MERGE_WEIGHTS = Exercise(
    name="lora.merge_weights",
    title="Merge the change into the weight",
    minutes=5,
    difficulty=1,
    importance=4,
    reference=merge_weights,
    cases=_merge_cases,
    mistakes=[
        Mistake(_merged_unscaled, "the factor alpha / rank is missing in front of the product."),
        Mistake(_merged_alpha, "you multiply by alpha: it is alpha / rank, and the rank is down's rows."),
        Mistake(_taken_away, "you subtract the change: that takes a merged one out again."),
        Mistake(_replaced, "that is the change alone: merging adds it to the weight."),
    ],
    hints=[
        "The forward pass is states @ weight.T + scale * states @ down.T @ up.T. Take states out of the sum.",
        "down.T @ up.T is (up @ down).T, so the matrix is weight + alpha / rank * up @ down.",
    ],
)

EXERCISES = (MASKED_LABELS, LORA_FORWARD, TRAINED_SHARE, MERGE_WEIGHTS)
