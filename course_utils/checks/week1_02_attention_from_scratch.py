"""Exercises of the notebook ``week1/02_attention_from_scratch``."""

import math
from typing import Any

import torch
from torch import Tensor

from course_utils.attention import (
    attention_multiplications,
    causal_mask,
    scaled_dot_product_attention,
    softmax,
    split_heads,
)
from course_utils.checks.framework import Case, Exercise, Mistake, case


def _normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


# --- softmax


def _softmax_cases() -> list[Case]:
    apart = torch.tensor([[900.0, 901.0, 899.5], [-900.0, -902.0, -901.0]])
    hidden = torch.tensor([[0.5, -math.inf, 1.5, -1.0], [-math.inf] * 4])
    return [
        case(_normal(3, 4, seed=0)),
        case(2 * _normal(2, 3, 5, seed=1, dtype=torch.float64)),
        case(_normal(4, 3, seed=2), dim=0),
        case(2 * _normal(2, 4, 3, seed=3), dim=1),
        case(_normal(5, seed=4) - 3),
        case(apart),
        case(hidden),
    ]


def _exponentials(scores: Tensor, dim: int) -> Tensor:
    """A right numerator, for mistakes that lie elsewhere."""
    peak = scores.amax(dim, keepdim=True)
    return (scores - peak.masked_fill(peak == -math.inf, 0)).exp()


def _safe(numerator: Tensor, total: Tensor) -> Tensor:
    return numerator / total.masked_fill(total == 0, 1)


def _no_exponential(scores: Tensor, dim: int = -1) -> Tensor:
    return scores / scores.sum(dim, keepdim=True)


def _no_peak(scores: Tensor, dim: int = -1) -> Tensor:
    return scores.exp() / scores.exp().sum(dim, keepdim=True)


def _one_peak(scores: Tensor, dim: int = -1) -> Tensor:
    numerator = (scores - scores.max()).exp()
    return numerator / numerator.sum(dim, keepdim=True)


def _wrong_dimension(scores: Tensor, dim: int = -1) -> Tensor:
    numerator = _exponentials(scores, -1)
    return _safe(numerator, numerator.sum(-1, keepdim=True))


def _all_numbers(scores: Tensor, dim: int = -1) -> Tensor:
    numerator = _exponentials(scores, dim)
    return _safe(numerator, numerator.sum())


def _first_dimension(scores: Tensor, dim: int = -1) -> Tensor:
    return softmax(scores, 0)


def _flipped(scores: Tensor, dim: int = -1) -> Tensor:
    return torch.softmax(-scores, dim)


def _base_two(scores: Tensor, dim: int = -1) -> Tensor:
    return softmax(scores * math.log(2), dim)


def _not_normalised(scores: Tensor, dim: int = -1) -> Tensor:
    return _exponentials(scores, dim)


def _logarithm(scores: Tensor, dim: int = -1) -> Tensor:
    return torch.log_softmax(scores, dim)


def _not_a_number(scores: Tensor, dim: int = -1) -> Tensor:
    return torch.softmax(scores, dim)


SOFTMAX = Exercise(
    name="attention.softmax",
    title="Softmax that cannot overflow",
    minutes=8,
    difficulty=2,
    importance=5,
    reference=softmax,
    cases=_softmax_cases,
    mistakes=[
        Mistake(
            _not_a_number,
            "all is right but for a row that is all -inf: there 0/0 gives NaN. Give such a row zeros: replace its "
            "largest score by 0 before you subtract it, and its sum by 1 before you divide.",
        ),
        Mistake(
            _no_peak,
            "right for small scores, but exp(900) is infinite, and inf/inf is NaN. Subtract the largest score along "
            "dim first; the result stays the same.",
        ),
        Mistake(
            _one_peak,
            "you subtracted one maximum from the whole tensor. A row far below it underflows to 0/0: take the maximum "
            "of each row, scores.amax(dim, keepdim=True).",
        ),
        Mistake(_wrong_dimension, "you always normalise along the last dimension: use the argument dim."),
        Mistake(_first_dimension, "you always normalise along the first dimension: use the argument dim."),
        Mistake(
            _all_numbers,
            "all the numbers together sum to 1; each row by itself should. Pass dim to the sum, with keepdim=True.",
        ),
        Mistake(
            _no_exponential,
            "you divided the scores by their sum. Scores may be negative: take exp first, which makes them positive.",
        ),
        Mistake(_flipped, "your weights fall as the score grows: it is exp(score), with a plus."),
        Mistake(_base_two, "you raised 2 to the scores; softmax raises e: use exp."),
        Mistake(_not_normalised, "your rows do not sum to 1: divide by the sum of the exponentials along dim."),
        Mistake(_logarithm, "these are logarithms of the weights (log_softmax); return the weights themselves."),
    ],
    hints=[
        "Three steps: exp of every score; their sum along dim; divide. keepdim=True keeps the shapes fit for dividing.",
        "exp(1000) overflows, but softmax(scores) equals softmax(scores - c) for any c. Which c makes the largest "
        "exponent 0 in each row? See scores.amax(dim, keepdim=True).",
        "In a row that is all -inf the maximum is -inf, and -inf - (-inf) is NaN: use "
        "peak.masked_fill(peak == -math.inf, 0), and total.masked_fill(total == 0, 1) for the sum.",
    ],
)


# --- scaled dot-product attention


def _attention_cases() -> list[Case]:
    cases = []
    for seed, (leading, queries, keys, size, value_size, masked, dtype) in enumerate(
        [
            ((), 3, 4, 5, 2, False, torch.float64),
            ((2,), 4, 3, 9, 6, False, torch.float32),
            ((2,), 3, 5, 4, 7, True, torch.float64),
            ((2, 3), 4, 2, 6, 3, True, torch.float32),
        ]
    ):
        query, key, value = (
            _normal(*leading, *shape, seed=10 * seed + i, dtype=dtype)
            for i, shape in enumerate([(queries, size), (keys, size), (keys, value_size)])
        )
        mask = None
        if masked:
            mask = _normal(queries, keys, seed=10 * seed + 3) > -0.2
            mask[0], mask[1], mask[2] = True, False, torch.arange(keys) == 0
        cases.append(case(query, key, value, mask))
    return cases


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    dim: int = -1,
    fill: float = -math.inf,
) -> tuple[Tensor, Tensor]:
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, fill)
    weights = softmax(scores, dim)
    return weights @ value, weights


def _no_scale(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Any:
    return _attend(query, key, value, mask, scale=1.0)


def _scale_without_root(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Any:
    return _attend(query, key, value, mask, scale=1 / query.shape[-1])


def _scale_times(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Any:
    return _attend(query, key, value, mask, scale=query.shape[-1] ** 0.5)


def _scale_of_values(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Any:
    return _attend(query, key, value, mask, scale=value.shape[-1] ** -0.5)


def _scale_of_tokens(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Any:
    return _attend(query, key, value, mask, scale=key.shape[-2] ** -0.5)


def _scale_after(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Any:
    _, weights = _attend(query, key, value, mask, scale=1.0)
    weights = weights * query.shape[-1] ** -0.5
    return weights @ value, weights


def _over_queries(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Any:
    return _attend(query, key, value, mask, dim=-2)


def _mask_flipped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Any:
    return _attend(query, key, value, None if mask is None else ~mask)


def _mask_unused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Any:
    return _attend(query, key, value)


def _mask_zero_scores(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Any:
    return _attend(query, key, value, mask, fill=0.0)


def _mask_large_number(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Any:
    return _attend(query, key, value, mask, fill=-1e9)


def _mask_after(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Any:
    _, weights = _attend(query, key, value)
    weights = weights if mask is None else weights * mask
    return weights @ value, weights


def _mask_not_a_number(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Any:
    scores = query @ key.mT * query.shape[-1] ** -0.5
    weights = torch.softmax(scores if mask is None else scores.masked_fill(~mask, -math.inf), -1)
    return weights @ value, weights


def _output_alone(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Any:
    return _attend(query, key, value, mask)[0]


ATTENTION = Exercise(
    name="attention.scaled_dot_product",
    title="Scaled dot-product attention with a mask",
    minutes=12,
    difficulty=3,
    importance=5,
    reference=scaled_dot_product_attention,
    cases=_attention_cases,
    mistakes=[
        Mistake(
            _mask_not_a_number,
            "all is right but for a query that may see nothing: its row is NaN. Use the course's softmax, which gives "
            "such a row zeros.",
        ),
        Mistake(
            _mask_large_number,
            "a query that may see nothing got equal weights, because all its scores are the same large negative "
            "number. Use -math.inf and the course's softmax.",
        ),
        Mistake(_mask_unused, "right without a mask, but the mask is not used."),
        Mistake(_mask_flipped, "your mask works the other way round: True means that the query may look there."),
        Mistake(
            _mask_zero_scores,
            "you set the hidden scores to 0, but exp(0) is 1: a hidden key then still gets weight. Its score must be "
            "-inf, so that exp gives 0.",
        ),
        Mistake(
            _mask_after,
            "you put weights to 0 after the softmax, so the rows no longer sum to 1. Mask the scores, before it.",
        ),
        Mistake(_no_scale, "the scores are not scaled: divide them by the square root of the size of query and key."),
        Mistake(_scale_without_root, "you divided by the size itself; divide by its square root."),
        Mistake(_scale_times, "you multiplied by the square root of the size; divide by it."),
        Mistake(_scale_of_values, "you scaled by the size of the values; the dot product runs over query and key."),
        Mistake(
            _scale_of_tokens, "you scaled by the number of keys; the dot product sums over query.shape[-1] products."
        ),
        Mistake(_scale_after, "you scaled the weights, after the softmax; scale the scores, before it."),
        Mistake(_over_queries, "your columns sum to 1, your rows do not: softmax runs over the keys, dim=-1."),
        Mistake(_output_alone, "the output is right; return the weights too, as (output, weights)."),
    ],
    hints=[
        "Four lines: scores, mask, weights, output. key.transpose(-2, -1) swaps the last two dimensions only, so that "
        "batches stay where they are.",
        "scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]) has the shape (..., queries, keys).",
        "Where the mask is False the score becomes -inf: scores.masked_fill(~mask, -math.inf), if there is a mask. "
        "Then softmax(scores, dim=-1).",
    ],
)


# --- causal mask


def _causal_cases() -> list[Case]:
    return [case(4), case(3, 3), case(2, 5), case(1, 4), case(3, 7), case(1)]


def _top_left(queries: int, keys: int | None = None) -> Tensor:
    return torch.ones(queries, keys or queries, dtype=torch.bool).tril()


def _past_hidden(queries: int, keys: int | None = None) -> Tensor:
    keys = keys or queries
    return torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries)


def _future_only(queries: int, keys: int | None = None) -> Tensor:
    return ~causal_mask(queries, keys)


def _not_itself(queries: int, keys: int | None = None) -> Tensor:
    keys = keys or queries
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries - 1)


def _one_ahead(queries: int, keys: int | None = None) -> Tensor:
    keys = keys or queries
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries + 1)


def _square(queries: int, keys: int | None = None) -> Tensor:
    return causal_mask(queries, queries)


def _ones_and_zeros(queries: int, keys: int | None = None) -> Tensor:
    return causal_mask(queries, keys).float()


def _added(queries: int, keys: int | None = None) -> Tensor:
    return torch.zeros(queries, keys or queries).masked_fill(~causal_mask(queries, keys), -math.inf)


CAUSAL = Exercise(
    name="attention.causal_mask",
    title="The causal mask, also for a few new tokens after many old ones",
    minutes=6,
    difficulty=2,
    importance=4,
    reference=causal_mask,
    cases=_causal_cases,
    mistakes=[
        Mistake(
            _top_left,
            "right for as many queries as keys. With more keys, the queries are the last tokens: the last query must "
            "see all keys. Move the diagonal: tril(keys - queries).",
        ),
        Mistake(_square, "right for as many queries as keys; with more keys the shape is (queries, keys)."),
        Mistake(_past_hidden, "this hides the past and shows the future: keep the lower triangle, tril, not triu."),
        Mistake(_future_only, "True and False are swapped: True means that the query may look there."),
        Mistake(_not_itself, "a token may look at itself: the diagonal belongs to the mask."),
        Mistake(_one_ahead, "each query sees one token of the future: the diagonal is one too high."),
        Mistake(_ones_and_zeros, "the pattern is right; return Bool instead of 1.0 and 0.0 (dtype=torch.bool)."),
        Mistake(_added, "this is the form that is added to scores; return Bool: True = may look."),
    ],
    hints=[
        "Query i may look at key j where j is not later than i. torch.ones(..., dtype=torch.bool).tril() keeps the "
        "lower triangle.",
        "With 2 queries and 5 keys the queries are tokens 3 and 4: query 0 sees keys 0 to 3, query 1 all five. "
        "tril(diagonal) moves the edge to the right.",
    ],
)


# --- heads


def _heads_cases() -> list[Case]:
    shapes = [(2, 3, 8, 2), (1, 5, 6, 3), (3, 4, 12, 4), (2, 2, 10, 5), (2, 4, 5, 1)]
    return [case(_normal(b, t, w, seed=i), heads) for i, (b, t, w, heads) in enumerate(shapes)]


def _no_swap(states: Tensor, heads: int) -> Tensor:
    batch, tokens, width = states.shape
    return states.reshape(batch, heads, tokens, width // heads)


def _heads_last(states: Tensor, heads: int) -> Tensor:
    batch, tokens, width = states.shape
    return states.reshape(batch, tokens, heads, width // heads)


def _interleaved(states: Tensor, heads: int) -> Tensor:
    batch, tokens, width = states.shape
    return states.reshape(batch, tokens, width // heads, heads).permute(0, 3, 1, 2)


def _heads_first(states: Tensor, heads: int) -> Tensor:
    return torch.stack(states.chunk(heads, dim=-1))


def _turned(states: Tensor, heads: int) -> Tensor:
    return split_heads(states, heads).transpose(-2, -1)


HEADS = Exercise(
    name="attention.split_heads",
    title="One vector, several heads",
    minutes=6,
    difficulty=2,
    importance=4,
    reference=split_heads,
    cases=_heads_cases,
    mistakes=[
        Mistake(
            _no_swap,
            "the shape is right, but the numbers are mixed up: reshaping straight to (batch, heads, tokens, size) "
            "gives one head pieces of different tokens. First (batch, tokens, heads, size), then swap dimensions 1 and "
            "2.",
        ),
        Mistake(_heads_last, "nearly: the heads must stand before the tokens; swap dimensions 1 and 2."),
        Mistake(
            _interleaved,
            "you dealt the numbers out one by one, like cards. Each head gets one piece of neighbours: split the width "
            "into (heads, size), in this order.",
        ),
        Mistake(_heads_first, "the heads stand before the batch; expected (batch, heads, tokens, size)."),
        Mistake(_turned, "the last two dimensions are swapped; expected (batch, heads, tokens, size)."),
    ],
    hints=[
        "The width is heads * size. Cut it in two dimensions first: .view(batch, tokens, heads, size).",
        "Then bring the heads to the front: .transpose(1, 2).",
    ],
)


# --- cost


def _cost_cases() -> list[Case]:
    return [case(128, 768), case(2048, 512), case(7, 3), case(1, 10), case(10, 1)]


COST = Exercise(
    name="attention.multiplications",
    title="What one layer multiplies",
    minutes=8,
    difficulty=3,
    importance=3,
    reference=attention_multiplications,
    cases=_cost_cases,
    mistakes=[
        Mistake(
            lambda tokens, width: (3 * tokens * width**2, 2 * tokens**2 * width),
            "the second number is right. The first counts three linear maps: the output map comes after query, key and "
            "value.",
        ),
        Mistake(
            lambda tokens, width: (4 * tokens * width**2, tokens**2 * width),
            "the first number is right. The second counts one product: after query with key comes weights with value.",
        ),
        Mistake(
            lambda tokens, width: (4 * width**2, 2 * tokens**2 * width),
            "the second number is right. The linear maps run once for every token.",
        ),
        Mistake(
            lambda tokens, width: (4 * tokens * width, 2 * tokens**2 * width),
            "the second number is right. Each of the width outputs of a linear map sums over width inputs.",
        ),
        Mistake(
            lambda tokens, width: (4 * tokens * width**2, 2 * tokens**2),
            "the first number is right. Each score sums over width products, the heads taken together.",
        ),
        Mistake(
            lambda tokens, width: (4 * tokens * width**2, 2 * tokens * width**2),
            "the first number is right. The two products pair every token with every token: tokens squared.",
        ),
        Mistake(
            lambda tokens, width: (2 * tokens**2 * width, 4 * tokens * width**2),
            "both numbers are right, but swapped: linear maps first.",
        ),
        Mistake(
            lambda tokens, width: (8 * tokens * width**2, 4 * tokens**2 * width),
            "you counted additions too; count multiplications alone, half of it.",
        ),
    ],
    hints=[
        "A product of matrices (a, b) @ (b, c) takes a * b * c multiplications.",
        "One linear map is (tokens, width) @ (width, width), and there are four of them.",
        "query @ key.T is, all heads together, (tokens, width) @ (width, tokens); then weights @ value.",
    ],
)

EXERCISES = [SOFTMAX, ATTENTION, CAUSAL, HEADS, COST]
