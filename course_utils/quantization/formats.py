"""Number formats: what 32, 16, 8 or 4 bits can hold, and how a number is rounded into them.

A float is a sign, an exponent and a mantissa (also called fraction): with ``bias = 2**(exponent bits - 1) - 1``,

    normal:     (-1)**sign * 2**(exponent - bias) * (1 + mantissa / 2**mantissa bits)
    subnormal:  (-1)**sign * 2**(1 - bias)        * (0 + mantissa / 2**mantissa bits)    where the exponent field is 0

The largest exponent field means infinity (mantissa 0) or NaN; E4M3fn (Micikevicius et al., 2022, table 1) uses it for
numbers too and has one NaN and no infinity. All arithmetic here is in float64, where each step but the rounding is
exact.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

NF4: tuple[float, ...] = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The values of NormalFloat4 (Dettmers et al., 2023, appendix E); :func:`normal_quantiles` makes them."""
ROUNDINGS = ("nearest", "stochastic")


@dataclass(frozen=True)
class FloatFormat:
    """A floating-point format: one sign bit, and bits of exponent and mantissa.

    Attributes:
        name: as in :data:`FORMATS`.
        exponent: number of exponent bits; they decide the range.
        mantissa: number of mantissa bits; they decide the resolution.
        dtype: torch's type of this format.
        finite_only: no infinities; of the largest exponent field, only the largest mantissa means NaN.
    """

    name: str
    exponent: int
    mantissa: int
    dtype: torch.dtype
    finite_only: bool = False

    @property
    def bits(self) -> int:
        """Bits of one number."""
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        """What is subtracted from the exponent field."""
        return 2 ** (self.exponent - 1) - 1

    @property
    def largest(self) -> float:
        """The largest finite number."""
        if self.finite_only:
            return (2 - 2 * 2.0**-self.mantissa) * 2.0 ** (self.bias + 1)
        return (2 - 2.0**-self.mantissa) * 2.0**self.bias

    @property
    def lowest(self) -> float:
        """The finite number furthest below 0."""
        return -self.largest

    @property
    def smallest_normal(self) -> float:
        """The smallest number above 0 with all bits of precision."""
        return 2.0 ** (1 - self.bias)

    @property
    def smallest_subnormal(self) -> float:
        """The smallest number above 0."""
        return self.smallest_normal * self.epsilon

    @property
    def epsilon(self) -> float:
        """The gap between 1 and the next number: the resolution, relative to the number."""
        return 2.0**-self.mantissa


@dataclass(frozen=True)
class IntFormat:
    """Whole numbers in two's complement.

    Attributes:
        name: as in :data:`FORMATS`.
        bits: bits of one number.
    """

    name: str
    bits: int

    @property
    def lowest(self) -> float:
        """The smallest number."""
        return -(2.0 ** (self.bits - 1))

    @property
    def largest(self) -> float:
        """The largest number."""
        return 2.0 ** (self.bits - 1) - 1


@dataclass(frozen=True)
class CodeFormat:
    """A list of values; a number is stored as its place in the list.

    Attributes:
        name: as in :data:`FORMATS`.
        values: the values, ascending, a power of two of them.
    """

    name: str
    values: tuple[float, ...]

    @property
    def bits(self) -> int:
        """Bits of one number."""
        return (len(self.values) - 1).bit_length()

    @property
    def lowest(self) -> float:
        """The smallest value."""
        return self.values[0]

    @property
    def largest(self) -> float:
        """The largest value."""
        return self.values[-1]


Format = FloatFormat | IntFormat | CodeFormat
FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        FloatFormat("fp32", 8, 23, torch.float32),
        FloatFormat("fp16", 5, 10, torch.float16),
        FloatFormat("bf16", 8, 7, torch.bfloat16),
        FloatFormat("fp8_e4m3fn", 4, 3, torch.float8_e4m3fn, finite_only=True),
        FloatFormat("fp8_e5m2", 5, 2, torch.float8_e5m2),
        IntFormat("int8", 8),
        IntFormat("int4", 4),
        CodeFormat("nf4", NF4),
    )
}
"""The formats of the course by their names."""


class Fields(NamedTuple):
    """The three parts of a float's bits as whole numbers."""

    sign: Any
    exponent: Any
    mantissa: Any


def find(format: str | Format) -> Format:
    """Return a format by its name; a format is returned as it is.

    Raises:
        ValueError: there is no such format.
    """
    if not isinstance(format, str):
        return format
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: expected one of {', '.join(FORMATS)}")
    return FORMATS[format]


def float_format(format: str | Format) -> FloatFormat:
    """Return a floating-point format by its name.

    Raises:
        ValueError: there is no such format, or it has no exponent.
    """
    found = find(format)
    if not isinstance(found, FloatFormat):
        floats = ", ".join(name for name, each in FORMATS.items() if isinstance(each, FloatFormat))
        raise ValueError(f"format={found.name!r} has no exponent and mantissa: expected one of {floats}")
    return found


def cast(
    x: Float[Tensor, "*shape"],
    format: str | Format,
    rounding: str = "nearest",
    generator: torch.Generator | None = None,
) -> Float32[Tensor, "*shape"]:
    """Return the numbers that are left of ``x`` in another format, as float32.

    Floats: what is too large becomes infinite, what is too small a subnormal number or 0; as ``x.to(dtype).float()``
    does. Whole numbers and E4M3fn: what is too large becomes the largest (torch 2.13 does so for E4M3fn, older
    versions give NaN). NF4: the nearest value, of two equally near ones the lower. No gradient passes; see
    :func:`through`.

    Args:
        x: numbers; float64 is rounded once, not by way of float32.
        format: a format or its name.
        rounding: ``nearest``, and of two equally near numbers the one whose last bit is 0; or ``stochastic``: up with a
            probability that is the share of the gap below ``x``, so that the mean is ``x`` (Gupta et al., 2015,
            section 3.1).
        generator: source of stochastic rounding; by default torch's own.

    Raises:
        ValueError: there is no such format or rounding, NF4 shall be rounded stochastically, or NaN has no number to
            become.
    """
    target, exact = find(format), x.detach().double()
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding={rounding!r}: expected one of {', '.join(ROUNDINGS)}")
    if isinstance(target, CodeFormat):
        if rounding == "stochastic":
            raise ValueError(f"rounding='stochastic' needs equal gaps, which {target.name} has not: use 'nearest'")
        return from_bits(to_bits(x, target), target)
    step = spacing(exact, target)
    if rounding == "nearest":
        rounded = torch.round(exact / step) * step
    else:
        rounded = stochastic_round(exact, step, _draws(exact, generator))
    if isinstance(target, IntFormat):
        _no_nan(exact, target)
        return rounded.clamp(target.lowest, target.largest).float()
    if target.finite_only:
        rounded = rounded.clamp(-target.largest, target.largest)
    else:
        rounded = torch.where(rounded.abs() > target.largest, torch.inf, rounded)
    return rounded.copysign(exact).float()  # keeps -0


def spacing(x: Float[Tensor, "*shape"], format: str | Format) -> Float[Tensor, "*shape"]:
    """Return the gap between the numbers of a format where ``x`` lies, in float64.

    It is ``2**(exponent - mantissa bits)``, and the same for all subnormal numbers. At a power of two it is the gap
    above. Beyond the largest number it goes on as if there were more.

    Args:
        x: numbers.
        format: a format or its name.

    Raises:
        ValueError: there is no such format, or its gaps follow no rule (NF4).
    """
    target = find(format)
    if isinstance(target, CodeFormat):
        raise ValueError(f"format={target.name!r} is a list of values: their gaps are the differences of FORMATS[...]")
    if isinstance(target, IntFormat):
        return torch.ones_like(x, dtype=torch.float64)
    finite = x.detach().double().nan_to_num(0.0, 0.0, 0.0)
    exponent = torch.frexp(finite).exponent - 1  # frexp's fraction is from 0.5 to 1, ours from 1 to 2
    exponent = torch.where(finite == 0, 1 - target.bias, exponent).clamp(min=1 - target.bias)
    return torch.exp2((exponent - target.mantissa).double())


def stochastic_round(
    x: Float[Tensor, "*shape"], step: Float[Tensor, "*step"] | float, draws: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Round to a multiple of ``step``, up or down by chance, so that the expected result is ``x``.

    Args:
        x: numbers.
        step: the gap, above 0; one for all, or one for each.
        draws: random numbers, uniform from 0 to below 1.
    """
    below = torch.floor(x / step)
    return (below + (draws < x / step - below)) * step


def to_bits(x: Float[Tensor, "*shape"], format: str | Format) -> Int64[Tensor, "*shape"]:
    """Round to the nearest number of a format and return its bits as a whole number, 0 to ``2**bits - 1``.

    Whole numbers are in two's complement; NaN has its highest mantissa bit set (all of them in E4M3fn).

    Args:
        x: numbers.
        format: a format or its name.

    Raises:
        ValueError: there is no such format, or it has no NaN.
    """
    target = find(format)
    if isinstance(target, CodeFormat):
        _no_nan(x, target)
        values = torch.tensor(target.values, dtype=torch.float32, device=x.device)
        return torch.bucketize(x.detach().double(), ((values[1:] + values[:-1]) / 2).double())
    value = cast(x, target).double()
    if isinstance(target, IntFormat):
        return value.long() % 2**target.bits
    sign, size = torch.signbit(value).long(), value.abs()
    step = spacing(value, target)
    # The hidden one of a normal number adds 1 to the exponent field, which a subnormal number has not.
    exponent = torch.frexp(step).exponent.long() + target.mantissa + target.bias - 2
    pattern = (exponent << target.mantissa) + (size / step).nan_to_num(0.0, 0.0, 0.0).long()
    top = (2**target.exponent - 1) << target.mantissa
    pattern = torch.where(size.isinf(), top, pattern)
    nan = top + (2**target.mantissa - 1 if target.finite_only else 2 ** (target.mantissa - 1))
    pattern = torch.where(size.isnan(), nan, pattern)
    return (sign << (target.bits - 1)) + pattern


def from_bits(bits: Int[Tensor, "*shape"], format: str | Format) -> Float32[Tensor, "*shape"]:
    """Return the numbers that bits mean in a format.

    Args:
        bits: bits as whole numbers, 0 to ``2**bits - 1``.
        format: a format or its name.

    Raises:
        ValueError: there is no such format, or it has not so many bits.
    """
    target, pattern = find(format), _checked(bits, find(format))
    if isinstance(target, CodeFormat):
        return torch.tensor(target.values, dtype=torch.float32, device=bits.device)[pattern]
    if isinstance(target, IntFormat):
        return torch.where(pattern >= 2 ** (target.bits - 1), pattern - 2**target.bits, pattern).float()
    return decode(*fields(pattern, target), target).float()


def decode(
    sign: Int[Tensor, "*shape"], exponent: Int[Tensor, "*shape"], mantissa: Int[Tensor, "*shape"], format: FloatFormat
) -> Float[Tensor, "*shape"]:
    """Return the number that three fields mean.

    Args:
        sign: 0 or 1.
        exponent: the exponent field, 0 to ``2**exponent bits - 1``.
        mantissa: the mantissa field, 0 to ``2**mantissa bits - 1``.
        format: the format.

    Returns:
        The number in float64.
    """
    normal = exponent > 0
    fraction = normal.double() + mantissa / 2.0**format.mantissa
    size = fraction * torch.exp2((torch.where(normal, exponent, 1) - format.bias).double())
    top = exponent == 2**format.exponent - 1
    if format.finite_only:
        size = torch.where(top & (mantissa == 2**format.mantissa - 1), torch.nan, size)
    else:
        size = torch.where(top, torch.where(mantissa == 0, torch.inf, torch.nan), size)
    return torch.where(sign == 1, -size, size)


def fields(bits: Int[Tensor, "*shape"] | int, format: str | Format) -> Fields:
    """Take the bits of floats apart.

    Args:
        bits: bits as whole numbers.
        format: a floating-point format or its name.

    Returns:
        Sign, exponent and mantissa as whole numbers, tensors where ``bits`` is one.

    Raises:
        ValueError: it is no floating-point format, or has not so many bits.
    """
    target = float_format(format)
    pattern = _checked(bits, target)
    below = target.exponent + target.mantissa
    return Fields(
        pattern >> below,
        (pattern >> target.mantissa) & (2**target.exponent - 1),
        pattern & (2**target.mantissa - 1),
    )


def widths(format: str | Format) -> dict[str, int]:
    """Return the fields of a format from left to right, and the bits of each: sign, exponent, mantissa; or what it has.

    Args:
        format: a format or its name.

    Raises:
        ValueError: there is no such format.
    """
    target = find(format)
    if isinstance(target, FloatFormat):
        return {"sign": 1, "exponent": target.exponent, "mantissa": target.mantissa}
    return {"sign": 1, "value": target.bits - 1} if isinstance(target, IntFormat) else {"place": target.bits}


def bit_string(bits: int, format: str | Format) -> str:
    """Return bits as text, a space between two fields: ``0 10000 1001001000``.

    Args:
        bits: bits as a whole number.
        format: a format or its name.

    Raises:
        ValueError: there is no such format, or it has not so many bits.
    """
    target = find(format)
    text = f"{_checked(int(bits), target):0{target.bits}b}"
    parts, start = [], 0
    for width in widths(target).values():
        parts.append(text[start : start + width])
        start += width
    return " ".join(parts)


def kind(bits: int, format: str | Format) -> str:
    """Return what bits mean: ``zero``, ``subnormal``, ``normal``, ``infinity`` or ``NaN``.

    Args:
        bits: bits as a whole number.
        format: a floating-point format or its name.

    Raises:
        ValueError: it is no floating-point format, or has not so many bits.
    """
    target = float_format(format)
    _, exponent, mantissa = fields(int(bits), target)
    value = float(from_bits(torch.tensor(int(bits)), target))
    if value != value:
        return "NaN"
    if abs(value) == torch.inf:
        return "infinity"
    if exponent:
        return "normal"
    return "subnormal" if mantissa else "zero"


def normal_quantiles(bits: int = 4) -> tuple[float, ...]:
    """Make the values of a NormalFloat format: quantiles of the normal distribution, scaled to -1 ... 1, and a true 0.

    Half of the values are negative and half positive; 0 comes once, so one side has a value more (Dettmers et al.,
    2023, section 3). The outermost probability is the mean of ``1 - 1 / (2 * n)`` for ``n = 2**bits - 1`` and
    ``n = 2**bits``, as in its authors' code.

    Args:
        bits: 2 to 8.

    Returns:
        The values, ascending.

    Raises:
        ValueError: too few or too many bits.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits={bits}: expected 2 to 8")
    half, many = 2 ** (bits - 1), 2**bits
    outermost = 1 - (1 / (2 * (many - 1)) + 1 / (2 * many)) / 2
    above = torch.special.ndtri(torch.linspace(0.5, outermost, half + 1, dtype=torch.float64))
    below = -torch.special.ndtri(torch.linspace(0.5, outermost, half, dtype=torch.float64))
    values = torch.cat([below.flip(0)[:-1], above]) / above[-1]
    return tuple(values.tolist())


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        context.dtype = dtype
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(context.dtype).to(gradients[0].dtype), None


def through(x: Float[Tensor, "*shape"], format: str | Format) -> Float[Tensor, "*shape"]:
    """Round values on their way forward and their gradients on the way back, as a network that computes in ``format``.

    By torch's own conversions, which are quick and the same as :func:`cast`. Sums inside a matrix product are not
    rounded; nor does a GPU round them.

    Args:
        x: values, float32.
        format: a floating-point format or its name.

    Raises:
        ValueError: it is no floating-point format.
    """
    return _Through.apply(x, float_format(format).dtype)


def next_scale(scale: float, overflowed: bool, good: int, interval: int = 2000) -> tuple[float, int]:
    """Return the loss scale of the next step, as dynamic loss scaling sets it (as ``torch.amp.GradScaler``).

    Halved after a step whose gradients overflowed (that step is left out); doubled after ``interval`` good steps in a
    row.

    Args:
        scale: the scale of this step.
        overflowed: whether a gradient of this step is infinite or NaN.
        good: good steps in a row before this one.
        interval: good steps in a row until the scale is doubled.

    Returns:
        The next scale, and the good steps in a row by then (0 after a change).
    """
    if overflowed:
        return scale / 2, 0
    return (scale * 2, 0) if good + 1 == interval else (scale, good + 1)


def _draws(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers of x's shape, the same on every device."""
    home = generator.device if generator is not None else x.device
    return torch.rand(x.shape, generator=generator, dtype=torch.float64, device=home).to(x.device)


def _no_nan(x: Tensor, format: Format) -> None:
    if torch.isnan(x).any():
        raise ValueError(f"x holds NaN, which {format.name} has no bits for: find where it comes from first")


def _checked(bits: Any, format: Format) -> Any:
    """The bits as int or int64, if the format has so many."""
    pattern = bits.long() if isinstance(bits, Tensor) else int(bits)
    low, high = (pattern, pattern) if isinstance(pattern, int) else (0, 0)
    if isinstance(pattern, Tensor) and pattern.numel():
        low, high = int(pattern.min()), int(pattern.max())
    if low < 0 or high >= 2**format.bits:
        outside = low if low < 0 else high
        raise ValueError(f"bits={outside}: {format.name} has {format.bits} bits, expected 0 to {2**format.bits - 1}")
    return pattern
