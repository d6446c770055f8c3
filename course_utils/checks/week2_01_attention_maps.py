"""Exercises of the notebook ``week2/01_attention_maps``."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from course_utils.checks.framework import Case, Exercise, Mistake, case


def previous_token(maps: Tensor) -> Tensor:
    """Mean weight of each head on the token just before the query. maps (heads, tokens, tokens) -> (heads)."""
    before = maps.diagonal(offset=-1, dim1=-2, dim2=-1)  # (heads, tokens - 1): row i, column i - 1
    return before.mean(-1)


def _maps(heads: int, queries: int, keys: int, seed: int, causal: bool = False) -> Tensor:
    scores = 2 * torch.randn(heads, queries, keys, generator=torch.Generator().manual_seed(seed))
    if causal:
        scores = scores.masked_fill(~torch.ones(queries, keys, dtype=torch.bool).tril(), -torch.inf)
    return scores.softmax(-1)


def _previous_cases() -> list[Case]:
    return [
        case(_maps(3, 6, 6, 0, causal=True)),
        case(_maps(2, 4, 4, 1)),
        case(_maps(5, 9, 9, 2, causal=True).double()),
    ]


def _of_diagonal(offset: int) -> Callable[[Tensor], Tensor]:
    return lambda maps: maps.diagonal(offset=offset, dim1=-2, dim2=-1).mean(-1)


def _first_counts(maps: Tensor) -> Tensor:
    return maps.diagonal(offset=-1, dim1=-2, dim2=-1).sum(-1) / maps.shape[-1]


def _over_heads(maps: Tensor) -> Tensor:
    return maps.diagonal(offset=-1, dim1=-2, dim2=-1).mean(0)


def _one_number(maps: Tensor) -> Tensor:
    return maps.diagonal(offset=-1, dim1=-2, dim2=-1).mean()


def _share_of_queries(maps: Tensor) -> Tensor:
    places = torch.arange(1, maps.shape[-1])
    return (maps[:, 1:].argmax(-1) == places - 1).to(maps.dtype).mean(-1)


# --- which source word each target word looks at


def alignment(weights: Tensor, query_words: Sequence[int | None], key_words: Sequence[int | None]) -> list[int]:
    """For each word that is written, the word of the text that gets most weight, summed over its tokens.

    weights (queries, keys) of one head. query_words, key_words: for each token the number of its word, None where it
    has none. A word that is written in several tokens looks with its first one.
    """
    found = []
    words = sorted({word for word in key_words if word is not None})
    for word in sorted({word for word in query_words if word is not None}):
        row = weights[query_words.index(word)]  # (keys): where the first token of the word looks
        sums = [row[[place for place, of in enumerate(key_words) if of == other]].sum() for other in words]
        found.append(words[int(torch.stack(sums).argmax())])
    return found


def _alignment_cases() -> list[Case]:
    words: list[tuple[list[int | None], list[int | None]]] = [
        ([0, 0, 1, 2, 2, 3, 4, 4, 5, None], [0, 1, 1, 1, 2, 3, 3, 4, 5, 5, 5, 5, None]),
        ([0, 1, 1, 1, 2, 3, 3, 4, 4], [None, 4, 4, 5, 6, 6, 6, 7, 8, 8, 9, None]),
        ([None, 0, 0, 1, 2, 3, 3, 4, 5, 5], [0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 5]),
    ]
    return [
        case(_maps(1, len(queries), len(keys), 10 + seed)[0], queries, keys)
        for seed, (queries, keys) in enumerate(words)
    ]


def _looks(
    weights: Tensor, queries: Sequence[Any], keys: Sequence[Any], pick: Callable[[list[int]], list[int]], reduce: str
) -> list[int]:
    """Align with a choice of the tokens that look, and of how the weights of a word's tokens are put together."""
    words = sorted({word for word in keys if word is not None})
    found = []
    for word in sorted({word for word in queries if word is not None}):
        rows = weights[pick([place for place, of in enumerate(queries) if of == word])].mean(0)
        parts = [rows[[place for place, of in enumerate(keys) if of == other]] for other in words]
        sums = torch.stack([getattr(part, reduce)() for part in parts])
        found.append(words[int(sums.argmax())])
    return found


def _with(pick: Callable[[list[int]], list[int]], reduce: str) -> Any:
    return lambda weights, queries, keys: _looks(weights, queries, keys, pick, reduce)


def _first(places: list[int]) -> list[int]:
    return places[:1]


def _tokens_not_words(weights: Tensor, queries: Sequence[Any], keys: Sequence[Any]) -> list[int]:
    firsts = [queries.index(word) for word in sorted({word for word in queries if word is not None})]
    return [int(weights[place].argmax()) for place in firsts]


def _each_token(weights: Tensor, queries: Sequence[Any], keys: Sequence[Any]) -> list[int]:
    rows = [_looks(weights[[place]], [0], keys, _first, "sum")[0] for place, of in enumerate(queries) if of is not None]
    return rows


def _other_way(weights: Tensor, queries: Sequence[Any], keys: Sequence[Any]) -> list[int]:
    return _looks(weights.T, keys, queries, _first, "sum")


def _least(weights: Tensor, queries: Sequence[Any], keys: Sequence[Any]) -> list[int]:
    return _looks(-weights, queries, keys, _first, "sum")


# --- rollout


def rollout(maps: Sequence[Tensor]) -> Tensor:
    """Follow attention through the layers (Abnar and Zuidema, 2020, section 3).

    maps: one tensor (heads, tokens, tokens) a layer, the first layer first -> (tokens, tokens); rows sum to 1.
    """
    flow = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype)
    for layer in maps:
        mixed = (layer.mean(0) + torch.eye(len(flow), dtype=flow.dtype)) / 2  # half attention, half the token itself
        flow = mixed @ flow
    return flow


def _rollout_cases() -> list[Case]:
    sizes = [(2, 4, 3, True), (3, 5, 2, False), (1, 6, 4, True)]  # heads, tokens, layers
    return [
        case([_maps(heads, tokens, tokens, 20 + 5 * number + layer, causal) for layer in range(layers)])
        for number, (heads, tokens, layers, causal) in enumerate(sizes)
    ]


def _rolled(own: float = 0.5, before: bool = False, reduce: str = "mean", both: bool = False) -> Any:
    def roll(maps: Sequence[Tensor]) -> Tensor:
        eye = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype)
        flow = eye
        for layer in maps:
            joined = layer.amax(0) if reduce == "max" else getattr(layer, reduce)(0)
            mixed = joined + eye if both else (1 - own) * joined + own * eye
            flow = flow @ mixed if before else mixed @ flow
        return flow

    return roll


def _last_only(maps: Sequence[Tensor]) -> Tensor:
    return _rolled()(maps[-1:])


def _mean_of_layers(maps: Sequence[Tensor]) -> Tensor:
    return torch.stack([_rolled()([layer]) for layer in maps]).mean(0)


EXERCISES = [
    Exercise(
        name="maps.previous_token",
        title="Score a previous-token head",
        minutes=10,
        difficulty=2,
        importance=5,
        reference=previous_token,
        cases=_previous_cases,
        mistakes=[
            Mistake(_of_diagonal(1), "you read above the diagonal: that is the *next* token. Row i, column i - 1"),
            Mistake(_of_diagonal(0), "you read the diagonal: that is the token itself. One place to the left of it"),
            Mistake(_of_diagonal(-2), "you read two places back: one is asked for"),
            Mistake(
                _first_counts,
                "you divide by all tokens: the first one has none before it, so it is no query of this score",
            ),
            Mistake(_over_heads, "you took the mean over the heads: each head has a score of its own; average queries"),
            Mistake(_one_number, "you took one mean over everything: one number for each head is asked for"),
            Mistake(
                _share_of_queries,
                "you count how often the token before has the largest weight: take the mean of the weight itself",
            ),
        ],
        hints=[
            "In a matrix of queries and keys, the token before query i stands in row i and column i - 1.",
            "Those places are a diagonal, one below the main one: maps.diagonal(offset=-1, dim1=-2, dim2=-1).",
            "It has one number less than there are tokens; take .mean(-1).",
        ],
    ),
    Exercise(
        name="maps.alignment",
        title="From a map to an alignment of words",
        minutes=15,
        difficulty=3,
        importance=3,
        reference=alignment,
        cases=_alignment_cases,
        mistakes=[
            Mistake(_with(_first, "max"), "you take a word's strongest token: add up the weights of all its tokens"),
            Mistake(
                _with(_first, "mean"),
                "you take the mean over a word's tokens: that punishes long words. Add the weights up",
            ),
            Mistake(
                _with(lambda places: places[-1:], "sum"),
                "you look with the last token of each written word: by then the model knows the word. Take its first",
            ),
            Mistake(
                _with(lambda places: places, "sum"),
                "you average over all tokens of each written word: take the first, with which the word is chosen",
            ),
            Mistake(_tokens_not_words, "that is the number of a *token*: say which word it belongs to"),
            Mistake(_each_token, "that is one answer a token: give one for each word that is written"),
            Mistake(_other_way, "rows and columns are swapped: a row is what is written, a column what was read"),
            Mistake(_least, "that is the word with the *least* weight"),
        ],
        hints=[
            "query_words.index(word) is the place of a word's first token; that row of the map is all you need.",
            "For each word of the text, add up the row at the tokens whose key_words is that word.",
            "The word with the largest sum is the answer; words are numbers from key_words, None is no word.",
        ],
    ),
    Exercise(
        name="maps.rollout",
        title="Roll attention out through the layers",
        minutes=15,
        difficulty=3,
        importance=2,
        reference=rollout,
        cases=_rollout_cases,
        mistakes=[
            Mistake(
                _rolled(own=0.0),
                "the residual connection is missing: half of each layer is the token itself, (mean + identity) / 2",
            ),
            Mistake(_rolled(both=True), "rows no longer sum to 1: halve the sum of mean and identity"),
            Mistake(
                _rolled(before=True),
                "the layers are in the wrong order: a later layer reads what earlier ones made: mixed @ flow",
            ),
            Mistake(_rolled(reduce="max"), "you take the strongest head: Abnar and Zuidema take the mean of the heads"),
            Mistake(_rolled(reduce="sum"), "you add the heads up: take their mean, so that rows sum to 1"),
            Mistake(_last_only, "that is the last layer alone: multiply all layers"),
            Mistake(_mean_of_layers, "you average the layers: they come one after the other, so multiply them"),
        ],
        hints=[
            "Begin with the identity: before any layer, each token is made of itself alone.",
            "In a layer: the mean over the heads, then half of that and half of the identity.",
            "flow = mixed @ flow, from the first layer to the last.",
        ],
    ),
]
