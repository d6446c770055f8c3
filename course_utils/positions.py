"""How a Transformer knows the order of its tokens: five answers, from added waves to biased scores.

Attention by itself sees a set of tokens. Order comes in at one of three places: vectors *added* to the embeddings
(sinusoidal, learned), queries and keys *rotated* by their positions (rotary), or a bias *added to the scores* that
depends on the distance between query and key (ALiBi, T5).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def sinusoidal_positions(
    positions: Int[Tensor, "*batch tokens"], width: int, base: float = 10000.0, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*batch tokens width"]:
    """Return the sine and cosine waves that stand for positions (Vaswani et al. 2017, section 3.5).

    Column ``2i`` is ``sin(position / base**(2i/width))``, column ``2i+1`` the cosine of the same angle. An odd width
    ends with a sine.

    Args:
        positions: positions, counted from 0.
        width: size of the vectors, 1 or more.
        base: the longest wave has ``2*pi*base`` tokens, nearly.
        dtype: floating-point type of the result; the angles are computed in float64.

    Returns:
        One vector per position.

    Raises:
        ValueError: the width is below 1, or the base is not positive.
    """
    _at_least("width", width, 1)
    _positive("base", base)
    even = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device)  # 0, 2, 4...
    angles = positions[..., None].double() * base ** (-even / width)  # (..., tokens, ceil(width / 2))
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)  # sin, cos, sin, cos...
    return waves[..., :width].to(dtype)


class SinusoidalPositions(nn.Module):
    """Fixed waves as position vectors, without a weight; any length (Vaswani et al. 2017, section 3.5).

    Args:
        width: size of the vectors, 1 or more.
        base: see :func:`sinusoidal_positions`.

    Raises:
        ValueError: the width is below 1, or the base is not positive.
    """

    table: Tensor

    def __init__(self, width: int, base: float = 10000.0):
        super().__init__()
        self.width, self.base = width, base
        waves = sinusoidal_positions(torch.arange(64), width, base, torch.float64)
        self.register_buffer("table", waves.to(torch.get_default_dtype()), persistent=False)

    def forward(self, positions: Int[Tensor, "*batch tokens"]) -> Float[Tensor, "*batch tokens width"]:
        """Return one vector per position; the table grows when a position lies behind its end.

        Args:
            positions: positions, counted from 0.
        """
        needed = int(positions.max()) + 1 if positions.numel() else 0
        if needed > len(self.table):
            rows = torch.arange(2 * needed, device=positions.device)
            self.table = sinusoidal_positions(rows, self.width, self.base, self.table.dtype)
        return self.table[positions]


class LearnedPositions(nn.Module):
    """A trained vector for each position up to the end of the context window (BERT, GPT-2).

    Args:
        context_window: number of positions, 1 or more.
        width: size of the vectors.
        offset: rows of the table before position 0 (2 in RoBERTa and BART, whose tables begin with unused rows).

    Raises:
        ValueError: a size is too small.
    """

    def __init__(self, context_window: int, width: int, offset: int = 0):
        super().__init__()
        _at_least("context_window", context_window, 1)
        _at_least("width", width, 1)
        _at_least("offset", offset, 0)
        self.context_window, self.offset = context_window, offset
        self.weight = nn.Parameter(torch.randn(context_window + offset, width) * 0.02)

    def forward(self, positions: Int[Tensor, "*batch tokens"]) -> Float[Tensor, "*batch tokens width"]:
        """Return one vector per position.

        Args:
            positions: positions, counted from 0 (from ``-offset`` for the unused rows, where padding sits).

        Raises:
            ValueError: a position lies behind the context window.
        """
        if positions.numel() and int(positions.max()) >= self.context_window:
            raise ValueError(
                f"position {int(positions.max())} lies outside the context window of {self.context_window} tokens: "
                "there is no learned vector for it. Shorten the input, or build the model with a larger context_window."
            )
        return nn.functional.embedding(positions + self.offset, self.weight)


def apply_rotary(
    states: Float[Tensor, "*batch tokens size"],
    cosine: Float[Tensor, "*#batch tokens half"],
    sine: Float[Tensor, "*#batch tokens half"],
) -> Float[Tensor, "*batch tokens size"]:
    """Rotate queries or keys by their positions (Su et al. 2021, in LLaMA's order of the dimensions).

    Dimension ``i`` and dimension ``i + half`` form a plane, which turns by the angle whose cosine and sine are given.
    Dimensions from ``2 * half`` on stay as they are (partial rotary).

    Args:
        states: queries or keys, usually (batch, heads, tokens, head size).
        cosine: cosines of the angles, from :class:`Rotary`.
        sine: their sines.

    Returns:
        The rotated states; lengths are unchanged, and the dot product of a query and a key now depends on the distance
        between their positions alone.

    Raises:
        ValueError: the angles have more planes than the states have pairs of dimensions.
    """
    half = cosine.shape[-1]
    if 2 * half > states.shape[-1]:
        raise ValueError(
            f"the angles turn {half} planes, which needs states of size {2 * half} or more; got {states.shape[-1]}"
        )
    first, second, rest = states.split([half, half, states.shape[-1] - 2 * half], dim=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat((*turned, rest) if rest.shape[-1] else turned, dim=-1)


class Rotary(nn.Module):
    """Angles of the rotary position embedding (RoFormer, Su et al. 2021, section 3.2).

    Plane ``i`` turns by ``position / base**(2i/size)``. The angles are computed in float32 whatever the dtype of the
    model, as in LLaMA's published code, so that positions stay exact in half precision.

    Args:
        size: number of dimensions that turn, even; the head size, or less for partial rotary.
        base: 10000 in RoFormer and LLaMA; larger for longer contexts.

    Raises:
        ValueError: the size is odd or too small, or the base is not positive.
    """

    def __init__(self, size: int, base: float = 10000.0):
        super().__init__()
        if size < 2 or size % 2:
            raise ValueError(f"size={size}: rotary positions turn pairs of dimensions; use an even size, 2 or more")
        _positive("base", base)
        self.size, self.base = size, base

    def angles(
        self, positions: Int[Tensor, "*batch tokens"], dtype: torch.dtype = torch.float32
    ) -> tuple[Float[Tensor, "*batch tokens half"], Float[Tensor, "*batch tokens half"]]:
        """Return cosine and sine of each position's angles, for :func:`apply_rotary`.

        Args:
            positions: positions, counted from 0; with a cache, those of the new tokens.
            dtype: floating-point type of the results.
        """
        even = torch.arange(0, self.size, 2, dtype=torch.int64, device=positions.device).float()
        angles = positions[..., None].float() * (1.0 / self.base ** (even / self.size))
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def forward(
        self, states: Float[Tensor, "*batch heads tokens size"], positions: Int[Tensor, "*batch_or_not tokens"]
    ) -> Float[Tensor, "*batch heads tokens size"]:
        """Rotate queries or keys; fits the argument ``rotary`` of :class:`course_utils.attention.MultiHeadAttention`.

        Args:
            states: queries or keys.
            positions: their positions, the same for the whole batch or one row for each of its items.
        """
        cosine, sine = self.angles(positions, states.dtype)
        return apply_rotary(states, cosine.unsqueeze(-3), sine.unsqueeze(-3))


def alibi_slopes(heads: int) -> Float[Tensor, "heads"]:
    """Return the slope of each head's linear bias (Press et al. 2022, section 3).

    For a power of two the slopes are the sequence ``2**(-8/heads), 2**(-16/heads), ..., 2**-8``. Otherwise, as in
    BLOOM, the slopes of the next smaller power of two come first, then every other one of the next larger power.

    Args:
        heads: number of heads, 1 or more.

    Returns:
        The slopes, positive, in float32.

    Raises:
        ValueError: there is no head.
    """
    _at_least("heads", heads, 1)
    power = 2 ** int(math.log2(heads))

    def sequence(count: int, exponents: Tensor) -> Tensor:
        return torch.tensor(2.0 ** (-8.0 / count), dtype=torch.float32) ** exponents

    first = sequence(power, torch.arange(1, power + 1))
    return torch.cat([first, sequence(2 * power, torch.arange(1, max(2 * (heads - power), 1), 2))])


def alibi_bias(
    heads: int,
    key_positions: Int[Tensor, "*batch keys"],
    query_positions: Int[Tensor, "*batch queries"] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*batch heads #queries keys"]:
    """Return the bias that ALiBi adds to the scores: each head loses its slope per token of distance.

    Args:
        heads: number of heads.
        key_positions: positions of the keys.
        query_positions: positions of the queries; the bias is then ``-slope * |query - key|``. Without them it is
            ``slope * key``, one row for all queries: under a causal mask the two differ by a constant in each row,
            which the softmax ignores (BLOOM's form, and the cheaper one).
        dtype: floating-point type of the result; computed in float32.

    Returns:
        The bias, to be added to the scores before the softmax.

    Raises:
        ValueError: there is no head.
    """
    slopes = alibi_slopes(heads).to(key_positions.device)[:, None, None]
    if query_positions is None:
        relative = key_positions[..., None, None, :]
    else:
        relative = -(query_positions[..., None, :, None] - key_positions[..., None, None, :]).abs()
    return (slopes * relative).to(dtype)


def relative_position_bucket(
    distance: Int[Tensor, "*shape"], bidirectional: bool = True, buckets: int = 32, max_distance: int = 128
) -> Int[Tensor, "*shape"]:
    """Sort distances into T5's buckets (Raffel et al. 2020, section 2.1).

    Half of the buckets (of each direction) hold one distance each, the others ever wider ranges, up to
    ``max_distance``, from which on all share the last one.

    Args:
        distance: position of the key minus position of the query.
        bidirectional: keep one half of the buckets for keys behind the query (encoder); else they all count as
            distance 0, since a causal mask hides them (decoder).
        buckets: number of buckets.
        max_distance: where the last bucket begins.

    Returns:
        The number of the bucket, 0 to ``buckets - 1``.

    Raises:
        ValueError: there are too few buckets (4, or 2 in one direction), an odd number of them in two directions, or
            ``max_distance`` lies within the exact ones.
    """
    _at_least("buckets", buckets, 4 if bidirectional else 2)
    if bidirectional and buckets % 2:
        raise ValueError(f"buckets={buckets}: two directions share them, so their number must be even")
    behind = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        behind = (distance > 0) * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    if max_distance <= exact:
        raise ValueError(f"max_distance={max_distance} must exceed the {exact} distances that have their own bucket")
    share = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    wide = (exact + (share * (buckets - exact)).long()).clamp(max=buckets - 1)
    return behind + torch.where(distance < exact, distance, wide)


class RelativeBias(nn.Module):
    """A trained bias for each head and bucket of distance, added to the scores (T5, Raffel et al. 2020, section 2.1).

    Args:
        heads: number of heads.
        buckets: see :func:`relative_position_bucket`.
        max_distance: see there.
        bidirectional: see there.

    Raises:
        ValueError: a size does not fit; see :func:`relative_position_bucket`.
    """

    def __init__(self, heads: int, buckets: int = 32, max_distance: int = 128, bidirectional: bool = True):
        super().__init__()
        _at_least("heads", heads, 1)
        relative_position_bucket(torch.zeros(1, dtype=torch.long), bidirectional, buckets, max_distance)
        self.buckets, self.max_distance, self.bidirectional = buckets, max_distance, bidirectional
        self.weight = nn.Parameter(torch.randn(buckets, heads) * 0.02)

    def forward(
        self, query_positions: Int[Tensor, "*batch queries"], key_positions: Int[Tensor, "*batch keys"]
    ) -> Float[Tensor, "*batch heads queries keys"]:
        """Return the bias of each head for each pair.

        Args:
            query_positions: positions of the queries.
            key_positions: positions of the keys.
        """
        distance = key_positions[..., None, :] - query_positions[..., :, None]  # (..., queries, keys)
        bucket = relative_position_bucket(distance, self.bidirectional, self.buckets, self.max_distance)
        return nn.functional.embedding(bucket, self.weight).movedim(-1, -3)


def _at_least(name: str, value: int, smallest: int) -> None:
    if value < smallest:
        raise ValueError(f"{name}={value}: expected a whole number, {smallest} or more")


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}={value}: expected a positive number, for example 10000.0")
