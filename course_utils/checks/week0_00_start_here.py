"""The practice exercise of ``00_start_here``."""

import torch
from jaxtyping import Float
from torch import Tensor

from course_utils.checks.framework import Exercise, Mistake, case


def shares(counts: Float[Tensor, " words"]) -> Float[Tensor, " words"]:
    """Turn counts into shares that sum to 1.

    Args:
        counts: how often each word was seen, not all zero.

    Returns:
        Each count divided by the sum of all counts.
    """
    return counts / counts.sum()


EXERCISES = [
    Exercise(
        name="start.shares",
        title="Shares of a whole",
        minutes=1,
        difficulty=1,
        importance=1,
        reference=shares,
        cases=lambda: [case(torch.tensor([6.0, 3.0, 1.0])), case(torch.tensor([0.0, 2.0, 5.0, 1.0]))],
        mistakes=[
            Mistake(
                lambda counts: counts / counts.max(),
                "your largest share is 1 whatever the others are: you divided by the largest count, not by their sum.",
            ),
            Mistake(
                lambda counts: counts / len(counts),
                "your shares do not sum to 1: you divided by how many words there are, not by the sum of their counts.",
            ),
            Mistake(
                lambda counts: torch.softmax(counts, dim=0),
                "your shares sum to 1, but large counts swallow small ones: a softmax. No exponential is needed.",
            ),
        ],
        hints=[
            "The shares of 6, 3 and 1 are 0.6, 0.3 and 0.1. What was each count divided by?",
            "counts.sum() gives the sum of all entries as a tensor; a tensor divided by it is divided entry by entry.",
        ],
    )
]
