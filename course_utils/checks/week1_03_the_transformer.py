"""Exercises of the notebook ``week1/03_the_transformer``."""

from collections.abc import Callable

import torch
from torch import Tensor

from course_utils.checks.framework import Case, Exercise, Mistake, case
from course_utils.data.tasks.translation import read_alignment, shift_right
from course_utils.positions import sinusoidal_positions
from course_utils.transformer import layer_norm, residual


def _normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


# --- sinusoidal positions


def _position_cases() -> list[Case]:
    return [
        case(torch.arange(5), 8),
        case(torch.tensor([3, 0, 77, 1000]), 6),
        case(torch.tensor([[1, 2], [40, 41]]), 10),
        case(torch.tensor([0, 1, 2]), 2),
    ]


def _waves(positions: Tensor, width: int, exponent: Tensor, base: float = 10000.0) -> Tensor:
    """Sine and cosine of the angles that the given exponents make."""
    angles = positions[..., None].double() / base**exponent
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2).float()


def _even(width: int) -> Tensor:
    return torch.arange(0, width, 2, dtype=torch.float64)


def _halves(positions: Tensor, width: int) -> Tensor:
    angles = positions[..., None].double() / 10000 ** (_even(width) / width)
    return torch.cat([angles.sin(), angles.cos()], -1).float()


def _cosine_first(positions: Tensor, width: int) -> Tensor:
    angles = positions[..., None].double() / 10000 ** (_even(width) / width)
    return torch.stack([angles.cos(), angles.sin()], -1).flatten(-2).float()


def _pair_number(positions: Tensor, width: int) -> Tensor:
    return _waves(positions, width, torch.arange(width // 2) / width)


def _rising(positions: Tensor, width: int) -> Tensor:
    return _waves(positions, width, -_even(width) / width)


def _from_one(positions: Tensor, width: int) -> Tensor:
    return _waves(positions + 1, width, _even(width) / width)


def _own_angle(positions: Tensor, width: int) -> Tensor:
    column = torch.arange(width)
    angles = positions[..., None].double() / 10000 ** (column / width)
    return torch.where(column % 2 == 0, angles.sin(), angles.cos()).float()


def _sine_only(positions: Tensor, width: int) -> Tensor:
    angles = positions[..., None].double() / 10000 ** (_even(width) / width)
    return torch.stack([angles.sin(), angles.sin()], -1).flatten(-2).float()


def _no_exponent(positions: Tensor, width: int) -> Tensor:
    return _waves(positions, width, torch.ones(width // 2, dtype=torch.float64))


SINUSOIDAL = Exercise(
    name="transformer.sinusoidal",
    title="Sinusoidal positions",
    minutes=12,
    difficulty=3,
    importance=4,
    reference=sinusoidal_positions,
    cases=_position_cases,
    mistakes=[
        Mistake(
            _halves,
            "all sines stand first, then all cosines. In the paper they alternate: stack them in a new last "
            "dimension, then flatten(-2).",
        ),
        Mistake(_cosine_first, "sine and cosine have changed places: even columns hold the sine."),
        Mistake(
            _pair_number,
            "the exponent of pair i is 2i / width; yours is i / width: use torch.arange(0, width, 2) / width.",
        ),
        Mistake(_rising, "your waves get faster with the column: divide the position by the power, do not multiply."),
        Mistake(_from_one, "positions count from 0: use them as they come."),
        Mistake(
            _own_angle,
            "sine and cosine of a pair have different angles in yours: columns 2i and 2i+1 share one, that of 2i.",
        ),
        Mistake(_sine_only, "both columns of a pair hold the sine; the second is the cosine."),
        Mistake(_no_exponent, "all pairs have the same speed: the exponent must grow from pair to pair, 2i / width."),
    ],
    hints=[
        "One angle for each position and pair of columns: position / 10000 ** (2i / width). positions[..., None] makes "
        "room for the pairs.",
        "even = torch.arange(0, width, 2); angles = positions[..., None] / 10000 ** (even / width) has the shape "
        "(..., width / 2).",
        "torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2) puts sine and cosine of each pair side by side.",
    ],
    tolerance=1e-4,
)


# --- residual


class _Branch:
    """A stand-in for attention or feed-forward network: not linear, so that the order of the steps matters."""

    def __call__(self, hidden: Tensor) -> Tensor:
        return torch.tanh(2 * hidden.roll(1, -1)) + 0.3 * hidden


class _Norm:
    """A norm without weights."""

    def __call__(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(hidden, hidden.shape[-1:])


def _residual_cases() -> list[Case]:
    hidden = [3 * _normal(2, 4, 6, seed=seed) + 1 for seed in range(2)]
    return [case(hidden[0], _Branch(), _Norm(), "post"), case(hidden[1], _Branch(), _Norm(), "pre")]


Map = Callable[[Tensor], Tensor]


def _without_sum(hidden: Tensor, branch: Map, norm: Map, place: str = "post") -> Tensor:
    return branch(norm(hidden)) if place == "pre" else norm(branch(hidden))


def _normed_sum(hidden: Tensor, branch: Map, norm: Map, place: str = "post") -> Tensor:
    return norm(hidden) + branch(norm(hidden)) if place == "pre" else norm(hidden + branch(hidden))


def _always_post(hidden: Tensor, branch: Map, norm: Map, place: str = "post") -> Tensor:
    return norm(hidden + branch(hidden))


def _always_pre(hidden: Tensor, branch: Map, norm: Map, place: str = "post") -> Tensor:
    return hidden + branch(norm(hidden))


def _swapped(hidden: Tensor, branch: Map, norm: Map, place: str = "post") -> Tensor:
    return residual(hidden, branch, norm, "post" if place == "pre" else "pre")


def _norm_of_branch(hidden: Tensor, branch: Map, norm: Map, place: str = "post") -> Tensor:
    return hidden + branch(norm(hidden)) if place == "pre" else hidden + norm(branch(hidden))


def _no_norm(hidden: Tensor, branch: Map, norm: Map, place: str = "post") -> Tensor:
    return hidden + branch(hidden)


RESIDUAL = Exercise(
    name="transformer.residual",
    title="Residual connection with a norm",
    minutes=8,
    difficulty=2,
    importance=5,
    reference=residual,
    cases=_residual_cases,
    mistakes=[
        Mistake(_without_sum, "what came in is lost: add hidden to the result of the branch."),
        Mistake(
            _normed_sum,
            "pre: the norm belongs inside the branch. The path that goes by it adds hidden itself, not norm(hidden).",
        ),
        Mistake(_always_post, "right for place='post', but place='pre' normalises before the branch instead."),
        Mistake(_always_pre, "right for place='pre', but place='post' normalises after the sum instead."),
        Mistake(_swapped, "the two places are exchanged: 'post' normalises the sum, 'pre' what enters the branch."),
        Mistake(_norm_of_branch, "post: normalise the sum, norm(hidden + ...), not the result of the branch alone."),
        Mistake(_no_norm, "the norm is not used."),
    ],
    hints=[
        "In both places something is added to hidden itself. Only the place of the norm differs.",
        "post: norm( hidden + branch( hidden ) ). Where does the norm go in pre, so that hidden passes untouched?",
        "pre: hidden + branch(norm(hidden)).",
    ],
)


# --- layer norm


def _norm_cases() -> list[Case]:
    tiny = 1e-3 * _normal(2, 3, 4, seed=9)
    return [
        case(4 * _normal(3, 5, seed=0) + 2, _normal(5, seed=1), _normal(5, seed=2)),
        case(_normal(2, 3, 6, seed=3) - 5, _normal(6, seed=4), _normal(6, seed=5)),
        case(tiny, _normal(4, seed=6), _normal(4, seed=7)),
        case(_normal(4, 4, seed=8, dtype=torch.float32), torch.ones(4), torch.zeros(4)),
    ]


def _norm_over(hidden: Tensor, weight: Tensor, bias: Tensor, dims: tuple[int, ...], eps: float = 1e-5) -> Tensor:
    centred = hidden - hidden.mean(dims, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(dims, keepdim=True) + eps) * weight + bias


def _over_tokens(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _norm_over(hidden, weight, bias, (-2,))


def _over_all(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _norm_over(hidden, weight, bias, tuple(range(hidden.ndim)))


def _unbiased(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    variance = hidden.var(-1, keepdim=True)
    return (hidden - hidden.mean(-1, keepdim=True)) / torch.sqrt(variance + 1e-5) * weight + bias


def _eps_outside(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    spread = hidden.var(-1, keepdim=True, unbiased=False).sqrt()
    return (hidden - hidden.mean(-1, keepdim=True)) / (spread + 1e-5) * weight + bias


def _no_eps(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _norm_over(hidden, weight, bias, (-1,), 0.0)


def _no_root(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = hidden - hidden.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5) * weight + bias


def _no_mean(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return hidden / torch.sqrt(hidden.square().mean(-1, keepdim=True) + 1e-5) * weight + bias


def _no_affine(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _norm_over(hidden, torch.ones_like(weight), torch.zeros_like(bias), (-1,))


LAYER_NORM = Exercise(
    name="transformer.layer_norm",
    title="Layer normalization",
    minutes=8,
    difficulty=2,
    importance=4,
    reference=layer_norm,
    cases=_norm_cases,
    mistakes=[
        Mistake(
            _over_tokens, "you normalise each column over the tokens. Each vector is normalised by itself: dim=-1."
        ),
        Mistake(_over_all, "one mean for all numbers. Each vector has its own: mean(-1, keepdim=True)."),
        Mistake(
            _unbiased, "your variance divides by n - 1 (torch.var's default); layer norm divides by n: unbiased=False."
        ),
        Mistake(_eps_outside, "is your eps outside the root? It is added to the variance, under the root."),
        Mistake(_no_eps, "eps is missing: a vector whose numbers hardly differ would be divided by nearly 0."),
        Mistake(_no_root, "you divided by the variance; divide by its root, the spread."),
        Mistake(_no_mean, "the mean is not subtracted: that is RMS norm, LLaMA's, and not layer norm."),
        Mistake(_no_affine, "weight and bias are not used: multiply by weight at the end, then add bias."),
    ],
    hints=[
        "Four steps, all along the last dimension: subtract the mean; mean of the squares; divide by its root; stretch "
        "and shift.",
        "mean(-1, keepdim=True) keeps the shapes fit for subtracting.",
        "The divisor is torch.sqrt(variance + eps), the variance being centred.square().mean(-1, keepdim=True).",
    ],
)


# --- shift right


def _shift_cases() -> list[Case]:
    return [
        case(torch.tensor([[5, 6, 7, 2], [8, 2, -100, -100]]), 1),
        case(torch.tensor([[9, 4, 2, -100, -100]]), 3, 0),
        case(torch.tensor([[5, 2, -100, -100], [7, 8, 9, 2], [3, 3, 2, -100]]), 1, 6),
    ]


def _start(labels: Tensor, start_id: int) -> Tensor:
    return torch.full_like(labels[:, :1], start_id)


def _rolled(labels: Tensor, start_id: int, pad_id: int = 0) -> Tensor:
    rolled = labels.roll(1, 1)
    return rolled.masked_fill(rolled == -100, pad_id)


def _too_long(labels: Tensor, start_id: int, pad_id: int = 0) -> Tensor:
    longer = torch.cat([_start(labels, start_id), labels], 1)
    return longer.masked_fill(longer == -100, pad_id)


def _shifted_left(labels: Tensor, start_id: int, pad_id: int = 0) -> Tensor:
    shifted = torch.cat([labels[:, 1:], _start(labels, start_id)], 1)
    return shifted.masked_fill(shifted == -100, pad_id)


def _unshifted(labels: Tensor, start_id: int, pad_id: int = 0) -> Tensor:
    return labels.masked_fill(labels == -100, pad_id)


def _overwritten(labels: Tensor, start_id: int, pad_id: int = 0) -> Tensor:
    result = labels.masked_fill(labels == -100, pad_id)
    result[:, 0] = start_id
    return result


def _kept_ignored(labels: Tensor, start_id: int, pad_id: int = 0) -> Tensor:
    return torch.cat([_start(labels, start_id), labels[:, :-1]], 1)


def _padded_with_start(labels: Tensor, start_id: int, pad_id: int = 0) -> Tensor:
    return shift_right(labels, start_id, start_id)


SHIFT = Exercise(
    name="transformer.shift_right",
    title="What the decoder reads",
    minutes=6,
    difficulty=2,
    importance=5,
    reference=shift_right,
    cases=_shift_cases,
    mistakes=[
        Mistake(_rolled, "the last label has come round to the front: put start_id there instead."),
        Mistake(_too_long, "one token too many: drop the last label, nothing is asked after it."),
        Mistake(_shifted_left, "you shifted to the left: at each place the decoder would read the answer's successor."),
        Mistake(
            _unshifted,
            "the decoder would read at each place the very word it is asked for, and only learn to copy: shift by one.",
        ),
        Mistake(_overwritten, "the first label is lost: all of them move one place, none is replaced."),
        Mistake(_kept_ignored, "-100 is still there; no embedding has that number. Put pad_id in its place."),
        Mistake(_padded_with_start, "-100 became start_id: put pad_id there."),
    ],
    hints=[
        "A column of start_id, then the labels without their last column: torch.cat along dim=1.",
        "torch.full_like(labels[:, :1], start_id) is that column.",
        "masked_fill(shifted == -100, pad_id) on a copy does the rest.",
    ],
)


# --- alignment


def _alignment_cases() -> list[Case]:
    maps = [torch.softmax(2 * _normal(4, 5, 7, seed=20 + seed), -1) for seed in range(3)]
    split = torch.tensor(
        [
            [[0.6, 0.4, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]],
            [[0.0, 0.4, 0.6, 0.0], [0.1, 0.2, 0.3, 0.4]],
            [[0.3, 0.4, 0.0, 0.3], [0.9, 0.1, 0.0, 0.0]],
        ]
    )
    return [*map(case, maps), case(split)]


def _first_head(weights: Tensor) -> Tensor:
    return weights[0].argmax(-1)


def _vote(weights: Tensor) -> Tensor:
    return weights.argmax(-1).mode(0).values


def _strongest(weights: Tensor) -> Tensor:
    return weights.amax(0).argmax(-1)


def _over_targets(weights: Tensor) -> Tensor:
    return weights.mean(0).argmax(0)


def _each_head(weights: Tensor) -> Tensor:
    return weights.argmax(-1)


def _mean_of_places(weights: Tensor) -> Tensor:
    return weights.argmax(-1).double().mean(0).round().long()


def _least(weights: Tensor) -> Tensor:
    return weights.mean(0).argmin(-1)


def _largest_weight(weights: Tensor) -> Tensor:
    return weights.mean(0).amax(-1)


ALIGNMENT = Exercise(
    name="transformer.read_alignment",
    title="Reading a map as an alignment",
    minutes=5,
    difficulty=2,
    importance=3,
    reference=read_alignment,
    cases=_alignment_cases,
    mistakes=[
        Mistake(_first_head, "only the first head was asked: take the mean over the heads first, weights.mean(0)."),
        Mistake(_vote, "the heads voted. Take the mean of their weights first, so that a sure head counts for more."),
        Mistake(_strongest, "you took the largest weight of any head; take the mean over the heads."),
        Mistake(_over_targets, "you found a target for each source: the place is sought along the last dimension."),
        Mistake(_each_head, "you have one answer for each head: take the mean over the heads before the argmax."),
        Mistake(_mean_of_places, "a mean of places is no place: average the weights, not the numbers of the words."),
        Mistake(_least, "this is the word looked at least: argmax."),
        Mistake(_largest_weight, "these are the weights; asked is where they stand: argmax instead of amax."),
    ],
    hints=[
        "Two steps: one map out of several, then the best column of each row.",
        "weights.mean(0) has the shape (targets, sources).",
        ".argmax(-1) gives the place of the largest weight in each row.",
    ],
)

EXERCISES = [SINUSOIDAL, RESIDUAL, LAYER_NORM, SHIFT, ALIGNMENT]
