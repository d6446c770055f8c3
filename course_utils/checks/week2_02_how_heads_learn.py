"""Exercises of the notebook ``week2/02_how_heads_learn``."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.checks.framework import Case, Exercise, Mistake, case
from course_utils.interpretability import induction_targets, repeated_loss, silenced

# --- the loss of the tokens that repeat


def _loss_cases() -> list[Case]:
    found = []
    for seed, (batch, tokens, vocabulary, first) in enumerate([(3, 9, 5, 5), (1, 6, 4, 1), (4, 12, 7, 8)]):
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(batch, tokens, vocabulary, generator=generator)
        found.append(case(logits, torch.randint(vocabulary, (batch, tokens), generator=generator), first))
    return found


def _loss_of(shift: int = 1, whole: bool = False, first_half: bool = False, reduce: str = "mean") -> Any:
    """Return the loss of some places: logits ``shift`` before their targets, all targets or those before ``first``."""

    def loss(logits: Tensor, tokens: Tensor, first: int) -> float:
        begin, end = (1, tokens.shape[1]) if whole else (1, first + 1) if first_half else (first, tokens.shape[1])
        places = torch.arange(begin, end)
        scores, targets = logits[:, places - shift], tokens[:, places]
        return float(F.cross_entropy(scores.transpose(1, 2), targets, reduction=reduce))

    return loss


def _too_late(logits: Tensor, tokens: Tensor, first: int) -> float:
    return float(F.cross_entropy(logits[:, first:-1].flatten(0, 1), tokens[:, first + 1 :].flatten()))


def _in_bits(logits: Tensor, tokens: Tensor, first: int) -> float:
    return repeated_loss(logits, tokens, first) / float(torch.tensor(2.0).log())


def _probability(logits: Tensor, tokens: Tensor, first: int) -> float:
    chances = logits.softmax(-1)[:, first - 1 : -1].gather(-1, tokens[:, first:, None])
    return float(chances.mean())


def _log_of_mean(logits: Tensor, tokens: Tensor, first: int) -> float:
    return -float(torch.tensor(_probability(logits, tokens, first)).log())


# --- where an induction head looks


def _target_cases() -> list[Case]:
    rows = [
        [[5, 2, 7, 5, 2, 7]],
        [[1, 1, 1, 4], [4, 1, 4, 1]],
        [[3, 0, 3, 9, 3, 8, 0, 3]],
    ]
    generator = torch.Generator().manual_seed(1)
    return [case(torch.tensor(row)) for row in rows] + [case(torch.randint(4, (2, 11), generator=generator))]


def _same(tokens: Tensor) -> Tensor:
    return tokens[:, :, None] == tokens[:, None, :]


def _duplicates(tokens: Tensor) -> Tensor:
    return _same(tokens).tril(-1)


def _predecessors(tokens: Tensor) -> Tensor:
    return F.pad(_same(tokens).tril(-1)[:, :, 1:], (0, 1))


def _sees_ahead(tokens: Tensor) -> Tensor:
    other = _same(tokens) & ~torch.eye(tokens.shape[1], dtype=torch.bool)
    return F.pad(other[:, :, :-1], (1, 0))


def _with_itself(tokens: Tensor) -> Tensor:
    return F.pad(_same(tokens).tril(-1)[:, :, :-1], (1, 0))


def _swapped(tokens: Tensor) -> Tensor:
    return induction_targets(tokens).transpose(1, 2)


def _previous(tokens: Tensor) -> Tensor:
    rows, length = tokens.shape
    return torch.eye(length, dtype=torch.bool).roll(1, 0).tril(-1).expand(rows, length, length).clone()


def _latest_only(tokens: Tensor) -> Tensor:
    found = induction_targets(tokens)
    places = torch.arange(tokens.shape[1])
    latest = (found * (places + 1)).amax(-1, keepdim=True)
    return found & (places + 1 == latest)


def _next_is_same(tokens: Tensor) -> Tensor:
    """Keys that hold the token which comes next: what the head hopes to find, but it cannot know that."""
    coming = F.pad(tokens[:, 1:], (0, 1), value=-1)
    return (coming[:, :, None] == tokens[:, None, :]).tril(-1)


# --- silence heads


def _silence_cases() -> list[Case]:
    found = []
    for seed, (shape, heads) in enumerate([((2, 3, 4, 5), [1]), ((1, 6, 3, 2), [0, 2]), ((3, 2, 5, 4), [])]):
        generator = torch.Generator().manual_seed(seed)
        found.append(case(torch.randn(*shape, generator=generator) + 1, heads))
    return found


def _zero(states: Tensor, *places: Any) -> Tensor:
    kept = states.clone()
    kept[places] = 0
    return kept


def _dropped(states: Tensor, heads: list[int]) -> Tensor:
    return states[:, :, [head for head in range(states.shape[2]) if head not in heads]]


def _others(states: Tensor, heads: list[int]) -> Tensor:
    return _zero(states, slice(None), slice(None), [head for head in range(states.shape[2]) if head not in heads])


def _mean_instead(states: Tensor, heads: list[int]) -> Tensor:
    kept = states.clone()
    kept[:, :, heads] = states.mean((0, 1))[heads]
    return kept


def _last_token(states: Tensor, heads: list[int]) -> Tensor:
    return _zero(states, slice(None), -1, heads)


def _only_first(states: Tensor, heads: list[int]) -> Tensor:
    return _zero(states, slice(None), slice(None), heads[:1])


def _wrong_axis(states: Tensor, heads: list[int]) -> Tensor:
    return _zero(states, slice(None), slice(None), slice(None), heads)


EXERCISES = [
    Exercise(
        name="heads.repeated_loss",
        title="The loss of the tokens that repeat",
        minutes=10,
        difficulty=2,
        importance=4,
        reference=repeated_loss,
        cases=_loss_cases,
        mistakes=[
            Mistake(
                _loss_of(shift=0),
                "you compare each prediction with the token that was just read: logits[:, i] speak of token i + 1, so "
                "the target at place p has its logits at p - 1",
            ),
            Mistake(
                _loss_of(whole=True),
                "that is the loss of the whole text: leave out the targets before the place `first`",
            ),
            Mistake(
                _loss_of(first_half=True),
                "that is the part which nobody can foresee: take the targets from the place `first` on",
            ),
            Mistake(
                _too_late,
                "the first target is missing: token number `first` itself counts; its logits stand one place before",
            ),
            Mistake(_loss_of(reduce="sum"), "that is the sum over all tokens: take the mean, the loss of one token"),
            Mistake(_in_bits, "that is in bits: the course gives losses in nats, so take the natural logarithm"),
            Mistake(_probability, "that is the mean probability of the right tokens: the loss is minus its logarithm"),
            Mistake(
                _log_of_mean,
                "you take the logarithm of a mean: first the logarithm of each token's probability, then the mean",
            ),
        ],
        hints=[
            "Which places count as targets? tokens[:, first:]. Where are the predictions of these?",
            "logits[:, first - 1 : -1] are as many as the targets, and each speaks of its own.",
            "F.cross_entropy wants the vocabulary in the second dimension: logits.transpose(1, 2), then targets.",
        ],
    ),
    Exercise(
        name="heads.induction_targets",
        title="Where an induction head looks",
        minutes=15,
        difficulty=3,
        importance=4,
        reference=induction_targets,
        cases=_target_cases,
        mistakes=[
            Mistake(
                _duplicates,
                "you look at the earlier occurrences themselves: that is a duplicate-token head. The key of induction "
                "is one place to the right of them",
            ),
            Mistake(
                _predecessors,
                "you look at what came *before* the earlier occurrence: shift the other way, to what followed",
            ),
            Mistake(
                _sees_ahead,
                "you let a query look at later tokens: only earlier occurrences count (.tril(-1))",
            ),
            Mistake(
                _with_itself,
                "where a token follows itself, you let the query look at itself: the key must stand before the query",
            ),
            Mistake(_swapped, "queries and keys are swapped: (batch, queries, keys), each query is a row"),
            Mistake(_previous, "that is the previous token of each query, whatever it says: compare the tokens"),
            Mistake(
                _latest_only,
                "you keep the latest occurrence only: each earlier one has something behind it, so mark all",
            ),
            Mistake(
                _next_is_same,
                "you use the token that comes next: the head cannot know it. Compare with the query's own token",
            ),
        ],
        hints=[
            "Begin with a table of which tokens are the same: tokens[:, :, None] == tokens[:, None, :].",
            "Keep earlier occurrences only, .tril(-1), then move the marks one place along the keys.",
            "F.pad(earlier[:, :, :-1], (1, 0)) moves them; a last .tril(-1) keeps a query from looking at itself.",
        ],
    ),
    Exercise(
        name="heads.silenced",
        title="Silence a head",
        minutes=5,
        difficulty=1,
        importance=4,
        reference=silenced,
        cases=_silence_cases,
        mistakes=[
            Mistake(
                _dropped,
                "you took the heads out: the layer's output matrix expects all of them. Put 0 in their place",
            ),
            Mistake(_others, "you silenced all the others: the numbers say who is to be silent"),
            Mistake(
                _mean_instead,
                "you put the mean in their place: that is mean ablation, a good variant; here we ask for 0",
            ),
            Mistake(_last_token, "you silenced them at the last token only: take all tokens"),
            Mistake(_only_first, "you silenced the first of them only: several numbers may be given"),
            Mistake(_wrong_axis, "you zeroed numbers *within* every head: heads are the third dimension"),
        ],
        hints=[
            "Copy first, so that the caller's tensor stays as it is.",
            "The dimensions are (batch, tokens, heads, size): which one do the numbers index?",
            "kept = states.clone(), then kept[:, :, list(heads)] = 0.",
        ],
    ),
]
