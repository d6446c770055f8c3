"""Exercises of the notebook ``week4/05_scaling_out``."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.checks.framework import Case, Exercise, Mistake, case

# --- one turn of a ring


def ring_turn(parts: Tensor, turn: int) -> Tensor:
    """One adding turn of the ring: each rank sends its part (rank - turn) to the next rank, which adds it to its own.

    parts (ranks, parts, numbers): what each rank holds before; the result is what each holds afterwards.
    """
    after = parts.clone()
    ranks = len(parts)
    for rank in range(ranks):
        part = (rank - turn) % ranks
        after[(rank + 1) % ranks, part] += parts[rank, part]
    return after


def _turn_cases() -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 0, 2), (3, 1, 1), (4, 2, 3), (5, 3, 2), (2, 0, 3))
    return [case(torch.randint(-9, 10, (n, n, width), generator=generator).float(), turn) for n, turn, width in shapes]


def _ring(part: int = -1, to: int = 1, add: bool = True) -> Callable[[Tensor, int], Tensor]:
    """A turn with some of its conditions changed."""

    def turned(parts: Tensor, turn: int) -> Tensor:
        after, ranks = parts.clone(), len(parts)
        for rank in range(ranks):
            index, place = (rank + part * turn) % ranks, (rank + to) % ranks
            after[place, index] = parts[rank, index] + (parts[place, index] if add else 0)
        return after

    return turned


def _all_parts(parts: Tensor, turn: int) -> Tensor:
    return parts + parts.roll(1, 0)


def _receivers(parts: Tensor, turn: int) -> Tensor:
    after, ranks = parts.clone(), len(parts)
    for rank in range(ranks):
        after[rank, (rank - turn) % ranks] += parts[rank - 1, (rank - turn) % ranks]
    return after


RING = Exercise(
    name="distributed.ring_turn",
    title="One turn of the ring",
    minutes=12,
    difficulty=3,
    importance=3,
    reference=ring_turn,
    cases=_turn_cases,
    mistakes=[
        Mistake(_ring(add=False), "the receiver replaces its part: in these turns it adds what comes to what it has."),
        Mistake(_ring(to=-1), "you send to the rank before: the next one is (rank + 1) % ranks."),
        Mistake(_ring(part=0), "you send part number rank in every turn: it is (rank - turn) % ranks."),
        Mistake(_ring(part=1), "you send part rank + turn: it is (rank - turn) % ranks, which was added to last."),
        Mistake(
            _receivers, "you count the part by the receiver: it is the sender's number that goes into (rank - turn)."
        ),
        Mistake(_all_parts, "whole tensors are sent: a turn moves one part a rank, which is what makes a ring cheap."),
    ],
    hints=[
        "Begin with after = parts.clone(), and read from parts only: all ranks send at the same time.",
        "For each rank: part = (rank - turn) % ranks; after[(rank + 1) % ranks, part] += parts[rank, part]",
    ],
)

# --- the mean of unequal shares


def combine(means: Tensor, counts: Tensor) -> Tensor:
    """The gradient of the mean loss over all targets, from each rank's mean.

    means (ranks, numbers): gradient of each rank's own mean loss; counts (ranks): its number of targets.
    """
    return (means * counts[:, None]).sum(0) / counts.sum()


def _combine_cases() -> list[Case]:
    generator = torch.Generator().manual_seed(1)
    counts = ([1, 9], [7, 2, 3], [4, 0, 1, 11])
    return [case(torch.randn(len(n), 5, generator=generator), torch.tensor(n).float()) for n in counts]


COMBINE = Exercise(
    name="distributed.combine",
    title="The mean of unequal shares",
    minutes=6,
    difficulty=2,
    importance=5,
    reference=combine,
    cases=_combine_cases,
    mistakes=[
        Mistake(
            lambda means, counts: means.mean(0),
            "you average the ranks' means: a rank with few targets counts too much.",
        ),
        Mistake(
            lambda means, counts: means.sum(0),
            "you add means up: make sums of them first (times the counts), then divide by all targets.",
        ),
        Mistake(
            lambda means, counts: (means * counts[:, None]).mean(0) / counts.sum(),
            "divided twice: the sum over ranks goes over all targets once, not over the number of ranks too.",
        ),
        Mistake(
            lambda means, counts: means.sum(0) / counts.sum(),
            "means are added as if they were sums: multiply each by its count first.",
        ),
        Mistake(
            lambda means, counts: (means * counts[:, None]).sum(0),
            "that is the gradient of the sum of all losses: divide by the number of targets.",
        ),
        Mistake(
            lambda means, counts: (means * counts[:, None]).sum(0) / len(counts),
            "you divide by the number of ranks: divide by the number of targets on all of them.",
        ),
    ],
    hints=[
        "A mean times its count is a sum, and sums over ranks may be added up.",
        "return (means * counts[:, None]).sum(0) / counts.sum()",
    ],
)

# --- what a rank holds


def held_per_rank(parameters: int, ranks: int, stage: int) -> tuple[float, float, float]:
    """Bytes of weights, gradients and Adam's two states on one rank, all in float32.

    Stage 0 is DDP; ZeRO's stage 1 shares the states, 2 the gradients too, 3 (FSDP) the weights too.
    """
    weights, gradients, states = 4 * parameters, 4 * parameters, 8 * parameters
    return (
        weights / (ranks if stage >= 3 else 1),
        gradients / (ranks if stage >= 2 else 1),
        states / (ranks if stage >= 1 else 1),
    )


def _held_cases() -> list[Case]:
    return [case(n, ranks, stage) for n, ranks in ((1000, 4), (7_000_000_000, 64)) for stage in range(4)]


def _shared(at: tuple[int, int, int], bytes_: tuple[int, int, int] = (4, 4, 8)) -> Callable[..., tuple[float, ...]]:
    """Bytes a rank where weights, gradients and states are shared from these stages on."""

    def count(parameters: int, ranks: int, stage: int) -> tuple[float, ...]:
        return tuple(one * parameters / (ranks if stage >= from_ else 1) for one, from_ in zip(bytes_, at, strict=True))

    return count


def _at_its_stage_alone(parameters: int, ranks: int, stage: int) -> tuple[float, ...]:
    return tuple(one * parameters / (ranks if stage == at else 1) for one, at in zip((4, 4, 8), (3, 2, 1), strict=True))


HELD = Exercise(
    name="distributed.held_per_rank",
    title="What a rank holds",
    minutes=8,
    difficulty=2,
    importance=4,
    reference=held_per_rank,
    cases=_held_cases,
    mistakes=[
        Mistake(_shared((1, 2, 3)), "the order is the other way round: the states go first, the weights last."),
        Mistake(_shared((0, 0, 0)), "everything is divided at every stage: stage 0 (DDP) divides nothing."),
        Mistake(_shared((9, 9, 9)), "nothing is divided: from stage 1 on the states are."),
        Mistake(_shared((1, 1, 1)), "every stage divides all: 1 the states, 2 the gradients too, 3 the weights too."),
        Mistake(
            _shared((2, 1, 0)), "you are a stage early: stage 1 is the first that divides, and it divides the states."
        ),
        Mistake(_at_its_stage_alone, "a stage shares what the ones before it share, too: use >=, not ==."),
        Mistake(_shared((3, 2, 1), (4, 4, 4)), "Adam has two states of 4 bytes for each weight: 8 bytes."),
        Mistake(_shared((3, 2, 1), (2, 2, 8)), "in float32 a weight has 4 bytes, and so has its gradient."),
    ],
    hints=[
        "In float32: 4 bytes for a weight, 4 for its gradient, 8 for Adam's two states.",
        "Divide the states by ranks if stage >= 1, the gradients if stage >= 2, the weights if stage >= 3.",
    ],
)

# --- a feed-forward network on several ranks


def split_mlp(x: Tensor, up: Tensor, down: Tensor, ranks: int) -> Tensor:
    """What each rank adds to gelu(x @ up) @ down, when it has a share of the hidden units.

    x (tokens, width), up (width, hidden), down (hidden, width); the result is (ranks, tokens, width), and its sum over
    the ranks is the whole.
    """
    return torch.stack([F.gelu(x @ a) @ b for a, b in zip(up.chunk(ranks, 1), down.chunk(ranks, 0), strict=True)])


def _mlp_cases() -> list[Case]:
    generator = torch.Generator().manual_seed(2)
    cases = []
    for tokens, width, hidden, ranks in ((3, 4, 8, 2), (2, 6, 12, 3), (1, 4, 16, 4)):
        shapes = ((tokens, width), (width, hidden), (hidden, width))
        cases.append(case(*(torch.randn(*shape, generator=generator) for shape in shapes), ranks))
    return cases


def _parts(x: Tensor, up: Tensor, down: Tensor, ranks: int) -> Tensor:
    pieces = zip(x.chunk(ranks, 1), up.chunk(ranks, 0), strict=True)
    return torch.stack([F.gelu(rows @ part) @ down for rows, part in pieces])


def _mixed(x: Tensor, up: Tensor, down: Tensor, ranks: int) -> Tensor:
    return torch.stack([F.gelu(x @ up[:, rank::ranks]) @ b for rank, b in enumerate(down.chunk(ranks, 0))])


def _no_gelu(x: Tensor, up: Tensor, down: Tensor, ranks: int) -> Tensor:
    return torch.stack([x @ a @ b for a, b in zip(up.chunk(ranks, 1), down.chunk(ranks, 0), strict=True)])


SPLIT = Exercise(
    name="distributed.split_mlp",
    title="A feed-forward network on several ranks",
    minutes=12,
    difficulty=3,
    importance=4,
    reference=split_mlp,
    cases=_mlp_cases,
    mistakes=[
        Mistake(
            lambda x, up, down, ranks: split_mlp(x, up, down, ranks).sum(0),
            "you return the sum: that is what the all-reduce makes; here each rank's own part is asked for.",
        ),
        Mistake(_parts, "you split up by its rows: each rank then has a part of a sum, and GELU needs the sum."),
        Mistake(_mixed, "columns of up and rows of down do not fit: a rank keeps the same hidden units of both."),
        Mistake(_no_gelu, "the GELU is missing: each rank applies it to its own hidden units."),
        Mistake(
            lambda x, up, down, ranks: split_mlp(x, up, down, ranks) / ranks,
            "you divide by the number of ranks: the parts are added up, not averaged.",
        ),
    ],
    hints=[
        "A hidden unit is a column of up and the row of down with the same number; GELU works on each by itself.",
        "up.chunk(ranks, 1) and down.chunk(ranks, 0); for each pair: F.gelu(x @ a) @ b; then torch.stack",
    ],
)

EXERCISES = (RING, COMBINE, HELD, SPLIT)
