"""Exercises of the notebook ``week3/01_decoding``."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from course_utils.checks.framework import Case, Exercise, Mistake, case
from course_utils.generation import choose, repetition_penalty, temperature, top_p


def _logits(seed: int, *shape: int) -> Tensor:
    """Scores on both sides of 0."""
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- temperature


def _temperature_cases() -> list[Case]:
    found = [case(_logits(seed, 3, 7), t) for seed, t in enumerate((0.5, 2.0, 1.3, 0))]
    tied = torch.tensor([[1.5, -0.5, 1.5], [-3.0, -1.0, -2.0]])  # row 0 has two highest scores
    return [*found, case(tied, 0), case(_logits(9, 2, 5).double(), 0.7)]


def _at_zero(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, float], Tensor]:
    """Right but for the limit at 0."""
    return lambda logits, t: temperature(logits, t) if t else change(logits)


def _first_highest(logits: Tensor) -> Tensor:
    best = logits.argmax(-1, keepdim=True)
    return torch.full_like(logits, -math.inf).scatter(-1, best, logits.gather(-1, best))


TEMPERATURE = Exercise(
    name="decoding.temperature",
    title="Temperature",
    minutes=5,
    difficulty=2,
    importance=5,
    reference=temperature,
    cases=_temperature_cases,
    mistakes=[
        Mistake(
            lambda logits, t: logits / t,
            "right above 0; at 0 you divide by 0. Keep the highest score of each row there, -math.inf for the others.",
        ),
        Mistake(
            lambda logits, t: logits * t,
            "you multiplied: a low temperature must drive the scores apart, so divide by it.",
        ),
        Mistake(
            lambda logits, t: temperature(logits, t).softmax(-1),
            "these are probabilities: return the scores, so that further filters can follow.",
        ),
        Mistake(
            lambda logits, t: temperature(logits.softmax(-1), t),
            "you divided the probabilities: the temperature belongs to the scores, before the softmax.",
        ),
        Mistake(
            _at_zero(lambda logits: logits), "at 0 nothing changed: only the highest score of each row may be left."
        ),
        Mistake(
            _at_zero(lambda logits: logits.masked_fill(logits < logits.max(), -math.inf)),
            "at 0 you keep the highest score of all rows together: each row has its own, .amax(-1, keepdim=True).",
        ),
        Mistake(
            _at_zero(lambda logits: logits.masked_fill(logits < logits.amax(-1, keepdim=True), 0.0)),
            "at 0 the others have the score 0, which is a score like any other: use -math.inf.",
        ),
        Mistake(
            _at_zero(_first_highest),
            "at 0 a row with two highest scores keeps both: compare with the maximum instead of using argmax.",
        ),
    ],
    hints=[
        "For t above 0 it is one division.",
        "At 0: best = logits.amax(-1, keepdim=True) is the highest score of each row.",
        "if t == 0: return logits.masked_fill(logits < best, -math.inf).",
    ],
)

# --- top-p


def _top_p_cases() -> list[Case]:
    found = [case(_logits(seed, 3, 8), p) for seed, p in enumerate((0.5, 0.8, 0.9, 0.3, 1.0))]
    return [*found, case(torch.tensor([[2.0, 1.5, 0.7, -0.3, -2.0], [-1.0, 4.0, -2.0, 0.5, 0.0]]), 0.4)]


def _kept(rule: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
    """Keep what a rule on the sorted probabilities, likeliest first, says."""

    def kept(logits: Tensor, p: float) -> Tensor:
        shares, ids = logits.double().softmax(-1).sort(descending=True)
        return logits.masked_fill(
            ~torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, rule(shares, p)), -math.inf
        )

    return kept


def _ascending(logits: Tensor, p: float) -> Tensor:
    """Fill the share up with the least likely tokens."""
    shares, ids = logits.double().softmax(-1).sort()
    keep = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, shares.cumsum(-1) - shares < p)
    return logits.masked_fill(~keep, -math.inf)


def _unsorted(logits: Tensor, p: float) -> Tensor:
    shares = logits.double().softmax(-1)
    return logits.masked_fill(shares.cumsum(-1) - shares >= p, -math.inf)


def _sorted_result(logits: Tensor, p: float) -> Tensor:
    return top_p(logits, p).sort(descending=True).values


def _not_back(logits: Tensor, p: float) -> Tensor:
    """The mask stays in the order of the sorted scores."""
    shares = logits.double().softmax(-1).sort(descending=True).values
    return logits.masked_fill(shares.cumsum(-1) - shares >= p, -math.inf)


TOP_P = Exercise(
    name="decoding.top_p",
    title="Top-p",
    minutes=15,
    difficulty=3,
    importance=5,
    reference=top_p,
    cases=_top_p_cases,
    mistakes=[
        Mistake(
            _kept(lambda shares, p: (shares.cumsum(-1) <= p) | (p == 1)),
            "the token that crosses p is out, and where the first token crosses it nothing is left: keep a token if "
            "those *before* it hold less than p.",
        ),
        Mistake(
            _kept(lambda shares, p: ((shares.cumsum(-1) <= p) | (p == 1)).index_fill(-1, torch.tensor([0]), True)),
            "the token that crosses p is out (you keep the first one in any case): it belongs to the set, which has to "
            "hold at least p.",
        ),
        Mistake(
            _kept(lambda shares, p: (shares.cumsum(-1) - shares).roll(1, -1).index_fill(-1, torch.tensor([0]), 0) < p),
            "one token too many is left: the set must be the smallest one that holds p.",
        ),
        Mistake(
            _unsorted,
            "you added up in the order of the vocabulary: sort first, the likeliest token comes first.",
        ),
        Mistake(_ascending, "you filled the share up from the least likely end: sort with descending=True."),
        Mistake(
            _not_back,
            "what to keep was found for the sorted tokens, and applied to the unsorted: take it back to their places "
            "with scatter(-1, ids, keep).",
        ),
        Mistake(
            _sorted_result, "the right tokens are left, but sorted: each must stay at its place in the vocabulary."
        ),
        Mistake(
            lambda logits, p: logits.masked_fill(logits.softmax(-1) < p, -math.inf) if p < 1 else logits,
            "you compare each token's own probability with p: it is the sum of the likeliest ones that has to reach p.",
        ),
        Mistake(
            lambda logits, p: top_p(logits, p).softmax(-1),
            "these are probabilities: return the scores, with -math.inf for what is out.",
        ),
        Mistake(
            lambda logits, p: top_p(logits, p).nan_to_num(neginf=0.0),
            "what is out has the score 0, which is a score like any other: use -math.inf.",
        ),
    ],
    hints=[
        "shares, ids = logits.softmax(-1).sort(descending=True): probabilities, likeliest first, and whose they are.",
        "A token stays if those before it hold less than p: keep = shares.cumsum(-1) - shares < p.",
        "Back to their places: out = torch.ones_like(logits, dtype=torch.bool).scatter(-1, ids, ~keep); then "
        "logits.masked_fill(out, -math.inf).",
    ],
)

# --- repetition penalty


def _penalty_cases() -> list[Case]:
    found = []
    for seed, (penalty, shape) in enumerate([(1.5, (2, 5)), (1.2, (3, 4)), (2.0, (1, 6)), (0.8, (2, 3))]):
        draw = torch.Generator().manual_seed(seed)
        found.append(case(_logits(seed, shape[0], 9), torch.randint(0, 9, shape, generator=draw), penalty))
    return [*found, case(torch.tensor([[2.0, 1.5, 0.7, -0.3, -2.0]]), torch.tensor([[0, 4, 0]]), 1.5)]


def _all_of_them(logits: Tensor, seen_ids: Tensor, penalty: float) -> Tensor:
    every = torch.arange(logits.shape[-1]).expand(len(logits), -1)
    return repetition_penalty(logits, every, penalty)


def _every_time(logits: Tensor, seen_ids: Tensor, penalty: float) -> Tensor:
    for place in range(seen_ids.shape[1]):
        logits = repetition_penalty(logits, seen_ids[:, place : place + 1], penalty)
    return logits


def _all_rows(logits: Tensor, seen_ids: Tensor, penalty: float) -> Tensor:
    return repetition_penalty(logits, seen_ids.flatten().expand(len(logits), -1), penalty)


def _at_seen(change: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, Tensor, float], Tensor]:
    return lambda logits, ids, penalty: logits.scatter(-1, ids, change(logits.gather(-1, ids), penalty))


PENALTY = Exercise(
    name="decoding.repetition_penalty",
    title="Repetition penalty",
    minutes=8,
    difficulty=2,
    importance=3,
    reference=repetition_penalty,
    cases=_penalty_cases,
    mistakes=[
        Mistake(
            _at_seen(lambda score, penalty: score / penalty),
            "you divide negative scores too, which raises them: multiply those.",
        ),
        Mistake(
            _at_seen(lambda score, penalty: torch.where(score < 0, score / penalty, score * penalty)),
            "multiplication and division have changed places: seen tokens became *more* likely.",
        ),
        Mistake(
            _at_seen(lambda score, penalty: score - penalty),
            "you subtract the penalty: it divides a positive score and multiplies a negative one.",
        ),
        Mistake(
            _at_seen(lambda score, penalty: torch.full_like(score, -math.inf)),
            "seen tokens are forbidden altogether: a penalty lowers their scores only.",
        ),
        Mistake(_every_time, "a token that was seen twice is penalised twice: once is all."),
        Mistake(_all_of_them, "every token is penalised: only those in seen_ids are."),
        Mistake(_all_rows, "a row is penalised for what another row has seen: each row has its own seen_ids."),
    ],
    hints=[
        "score = logits.gather(-1, seen_ids) are the scores of the seen tokens, (batch, tokens).",
        "torch.where(score < 0, score * penalty, score / penalty) lowers both kinds.",
        "logits.scatter(-1, seen_ids, lowered) puts them back; a token that occurs twice gets the same value twice.",
    ],
)

# --- the Gumbel-max trick


def _choose_cases() -> list[Case]:
    found = []
    for seed, shape in enumerate([(8, 6), (1, 5), (30, 4), (12, 9)]):
        uniform = torch.rand(shape, generator=torch.Generator().manual_seed(100 + seed), dtype=torch.float64)
        found.append(case(_logits(seed, *shape), uniform))
    cut = top_p(_logits(7, 20, 6), 0.7)  # with tokens that are out
    return [*found, case(cut, torch.rand(cut.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64))]


def _inverse_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    ends = logits.double().softmax(-1).cumsum(-1)
    return (ends < uniform[:, :1]).sum(-1).clamp(max=logits.shape[-1] - 1)


CHOOSE = Exercise(
    name="decoding.choose",
    title="Draw by the highest score",
    minutes=5,
    difficulty=2,
    importance=2,
    reference=choose,
    cases=_choose_cases,
    mistakes=[
        Mistake(
            lambda logits, uniform: logits.argmax(-1), "you take the highest score without any luck: that is greedy."
        ),
        Mistake(lambda logits, uniform: (logits + uniform).argmax(-1), "you add u itself: add -log(-log(u))."),
        Mistake(
            lambda logits, uniform: (logits + (-uniform.log()).log()).argmax(-1),
            "the outer sign is wrong: it is -log(-log(u)), so that a high u is good luck.",
        ),
        Mistake(
            lambda logits, uniform: (logits + uniform.log()).argmax(-1),
            "one logarithm is missing: it is -log(-log(u)). (This is probability times u: likely ones win too often.)",
        ),
        Mistake(
            lambda logits, uniform: (logits.softmax(-1) - (-uniform.log()).log()).argmax(-1),
            "you add the luck to probabilities: it belongs to the scores.",
        ),
        Mistake(
            lambda logits, uniform: (-(-uniform.log()).log()).argmax(-1),
            "the scores play no part: add the luck to them.",
        ),
        Mistake(
            lambda logits, uniform: (logits - (-uniform.log()).log()).amax(-1),
            "you return the highest score: return whose it is, argmax.",
        ),
        Mistake(
            _inverse_cdf,
            "this draws rightly, by adding up probabilities as far as the first uniform number. Asked for is the "
            "highest of score plus -log(-log(u)), with a number for each token.",
        ),
    ],
    hints=[
        "luck = -torch.log(-torch.log(uniform)), one for each token.",
        "(logits + luck).argmax(-1).",
    ],
)

EXERCISES = [TEMPERATURE, TOP_P, PENALTY, CHOOSE]
