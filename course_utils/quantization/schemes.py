"""Schemes: how a matrix of weights becomes small whole numbers (codes), scales, and packed bytes; and back.

A weight is divided by the scale of its group and rounded; the code is stored, and ``code * scale`` is used in its
place. Schemes differ in which weights share a scale, how the scale is chosen, and which values the codes mean.
Weights are (rows, columns) = (outputs, inputs) throughout.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from course_utils.quantization.formats import NF4

GRANULARITIES = ("tensor", "channel", "group")
CODES = ("int", "nf4", "float8")
CALIBRATIONS = ("minmax", "percentile", "mse")
SCALES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FLOAT8 = torch.float8_e4m3fn
SECOND = 256
"""Scales that share one second scale in double quantization (Dettmers et al., 2023, section 3)."""


@dataclass(frozen=True)
class Scheme:
    """What is stored in the place of a matrix of weights.

    Attributes:
        bits: bits of a code, 2 to 8.
        granularity: which weights share a scale: all (``tensor``), those of an output (``channel``), or ``group``
            neighbours in the row of an output (``group``).
        group: size of a group, a divisor of the number of columns.
        symmetric: whether 0 is the middle of the codes (absmax); else each scale has a zero point, which must lie
            between the smallest and the largest code.
        codes: ``int`` for evenly spaced values, ``nf4`` for the 16 of QLoRA, ``float8`` for E4M3.
        full: use the lowest integer as well, -8 to 7 instead of -7 to 7: the largest weight is then 7.5 steps away, as
            in torchao. Without, it is exactly a step, as in bitsandbytes.
        calibration: how the range is chosen that the codes span: from the smallest to the largest weight
            (``minmax``); without the outermost (``percentile``); or with the smallest squared error (``mse``).
        percentile: share of the weights, in percent, that ``percentile`` keeps in range.
        scales: type in which scales are stored; a scale too small for it is 0, and its weights are then read as 0.
        double: quantize the scales as well, to 8 bits (double quantization of QLoRA).

    Raises:
        ValueError: a value is out of range, or two of them contradict each other.
    """

    bits: int = 8
    granularity: str = "channel"
    group: int = 32
    symmetric: bool = True
    codes: str = "int"
    full: bool = False
    calibration: str = "minmax"
    percentile: float = 99.9
    scales: str = "float16"
    double: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for name, least, most in (("bits", 2, 8), ("group", 2, 2**20)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{name}={value!r}: expected a whole number from {least} to {most}")
        choices = (("granularity", GRANULARITIES), ("codes", CODES), ("calibration", CALIBRATIONS))
        for name, known in (*choices, ("scales", tuple(SCALES))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(known)}")
        if not 50 <= self.percentile <= 100:
            raise ValueError(f"percentile={self.percentile!r}: expected 50 to 100, for example 99.9")
        needed = {"nf4": 4, "float8": 8}.get(self.codes, self.bits)
        if self.bits != needed:
            raise ValueError(f"codes={self.codes!r} have {needed} bits: set bits={needed}, not {self.bits}")
        if self.codes != "int" and (self.full or not self.symmetric):
            raise ValueError(f"codes={self.codes!r} have no zero point and no lowest integer: leave symmetric and full")
        if self.full and not self.symmetric:
            raise ValueError("full=True with symmetric=False: codes with a zero point are all used anyway")
        if self.double and self.granularity != "group":
            raise ValueError(f"double=True needs granularity='group', not {self.granularity!r}: there are few scales")

    @property
    def name(self) -> str:
        """Short name, such as ``int4 group 32``."""
        kind = {"nf4": "nf4", "float8": "fp8"}.get(self.codes, f"int{self.bits}")
        parts = [kind, f"group {self.group}" if self.granularity == "group" else self.granularity]
        parts += ["full"] * self.full + ["zero-point"] * (not self.symmetric) + ["double"] * self.double
        return " ".join(parts + [self.calibration] * (self.calibration != "minmax"))

    @property
    def levels(self) -> tuple[int, int]:
        """The lowest and the highest whole number: around 0 in symmetric schemes, else from 0 on."""
        if not self.symmetric:
            return 0, 2**self.bits - 1
        top = 2 ** (self.bits - 1) - 1
        return (-top - 1 if self.full else -top), top

    def groups(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the shape of the scales of a matrix: rows, and scales a row.

        Args:
            rows: rows of the matrix.
            columns: its columns.
        """
        if self.granularity == "tensor":
            return 1, 1
        return rows, columns // self.group if self.granularity == "group" else 1

    def check(self, rows: int, columns: int, *, name: str = "the weight") -> None:
        """Refuse a matrix that cannot be cut into these groups.

        Args:
            rows: rows of the matrix.
            columns: its columns.
            name: what the message calls it.

        Raises:
            ValueError: the columns are no multiple of the group.
        """
        if self.granularity == "group" and columns % self.group:
            fits = [size for size in (256, 128, 64, 32, 16, 8) if columns % size == 0]
            advice = f"take group={fits[0]} or another divisor" if fits else "take granularity='channel'"
            raise ValueError(
                f"{name} has {columns} columns ({rows} rows), no multiple of group={self.group}: {advice}, or skip it"
            )

    def bytes(self, rows: int, columns: int) -> int:
        """Return the bytes that a matrix takes: packed codes, scales and zero points.

        Args:
            rows: rows of the matrix.
            columns: its columns.
        """
        scales = math.prod(self.groups(rows, columns))
        each = scales * (1 if self.double else SCALES[self.scales].itemsize)
        second = 4 * (math.ceil(scales / SECOND) + 1) if self.double else 0
        zeros = 0 if self.symmetric else scales
        return rows * math.ceil(columns * self.bits / 8) + each + second + zeros


@dataclass(frozen=True)
class Quantized:
    """A matrix of weights as it is stored.

    Attributes:
        codes: packed codes, (rows, bytes of a row).
        scales: (rows, groups), floating-point; with double quantization their codes of 8 bits.
        shape: rows and columns of the matrix.
        scheme: what the codes mean.
        zeros: zero points, one for each scale; None in symmetric schemes.
        second: with double quantization one float32 for 256 scales; else None.
        mean: with double quantization the mean of the scales, (1,); else None.
    """

    codes: Tensor
    scales: Tensor
    shape: tuple[int, int]
    scheme: Scheme
    zeros: Tensor | None = None
    second: Tensor | None = None
    mean: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored, by name."""
        names = ("codes", "scales", "zeros", "second", "mean")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def bytes(self) -> int:
        """Bytes of all of it."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors().values())

    def integers(self) -> UInt8[Tensor, "rows columns"]:
        """Return the codes, unpacked: 0 to 2**bits - 1, where the middle stands for 0 in symmetric schemes."""
        return unpack(self.codes, self.scheme.bits, self.shape[1])

    def plain_scales(self) -> Float[Tensor, "rows groups"]:
        """Return the scales in float32, double quantization undone."""
        if self.second is None or self.mean is None:
            return self.scales.float()
        return _from_second(self.scales, self.second) + self.mean

    def decode(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "rows columns"]:
        """Return the weights that the codes stand for.

        Args:
            dtype: type of the result; it is computed in float32.
        """
        return from_codes(self.integers(), self.plain_scales(), self.zeros, self.scheme).to(dtype)

    def check(self, name: str = "the weight") -> None:
        """Refuse parts that do not belong together, as in a damaged checkpoint.

        Args:
            name: what the message calls it.

        Raises:
            ValueError: a part is missing, has another shape or type than the scheme says, or holds NaN or infinity.
        """
        (rows, columns), scheme = self.shape, self.scheme
        scheme.check(rows, columns, name=name)
        groups = scheme.groups(rows, columns)
        expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        expected["codes"] = ((rows, math.ceil(columns * scheme.bits / 8)), torch.uint8)
        expected["scales"] = (groups, torch.uint8 if scheme.double else SCALES[scheme.scales])
        if not scheme.symmetric:
            expected["zeros"] = (groups, torch.uint8)
        if scheme.double:
            expected["second"] = ((math.ceil(math.prod(groups) / SECOND),), torch.float32)
            expected["mean"] = ((1,), torch.float32)
        found = {part: (tuple(tensor.shape), tensor.dtype) for part, tensor in self.tensors().items()}
        for part in expected | found:
            if found.get(part) != expected.get(part):
                has, needs = (_say(which.get(part)) for which in (found, expected))
                raise ValueError(
                    f"{part} of {name}: {has}, but {scheme.name} of {rows} x {columns} weights needs {needs}"
                )
        for part, tensor in self.tensors().items():
            refuse_not_finite(tensor, f"{part} of {name}")


def _say(form: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return f"shape {form[0]} in {str(form[1]).removeprefix('torch.')}" if form else "none"


def refuse_not_finite(tensor: Tensor, name: str) -> None:
    """Refuse NaN and infinity, which would spoil the scale of all their neighbours.

    Args:
        tensor: what is looked at.
        name: what the message calls it.

    Raises:
        ValueError: there is one; the message says where.
    """
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        wrong = (~tensor.isfinite()).nonzero()
        raise ValueError(
            f"{name} holds {len(wrong)} values that are no finite numbers, the first at {tuple(wrong[0].tolist())}: "
            "the weights are damaged, load them again"
        )


def encode(weight: Float[Tensor, "rows columns"], scheme: Scheme, name: str = "the weight") -> Quantized:
    """Quantize a matrix: choose scales, round to codes, pack.

    A group of zeros has the scale 0 and is read back as zeros.

    Args:
        weight: the weights, (outputs, inputs).
        scheme: how.
        name: what the messages call it.

    Returns:
        What is to be stored.

    Raises:
        ValueError: the matrix does not fit the scheme, holds NaN or infinity, or has scales too large for their type.
    """
    scheme.check(*weight.shape, name=name)
    refuse_not_finite(weight, name)
    weight = weight.detach().float()
    scales, zeros = parameters(weight, scheme)
    if not bool(scales.isfinite().all()):
        raise ValueError(f"{name} needs scales beyond {scheme.scales}: its weights are huge; take scales='float32'")
    return assemble(to_codes(weight, scales, zeros, scheme), scales, zeros, scheme)


def parameters(
    weight: Float[Tensor, "rows columns"], scheme: Scheme
) -> tuple[Float[Tensor, "scales groups"], Float[Tensor, "scales groups"] | None]:
    """Choose the scales and the zero points of a matrix.

    Args:
        weight: the weights in float32.
        scheme: how.

    Returns:
        The scales in float32, rounded to what the scheme stores, and the zero points, whole numbers from 0 to
        2**bits - 1 (None in symmetric schemes).
    """
    grouped = _grouped(weight, scheme)  # (scales, groups, weights that share one)
    low, high = _range(grouped, scheme)
    if scheme.calibration != "mse":
        return _scales(low, high, scheme)
    best, shares = torch.full_like(low, math.inf), torch.ones_like(low)
    for share in torch.linspace(1, 0.3, 36).tolist():
        scales, zeros = (None if one is None else one[..., None] for one in _scales(low * share, high * share, scheme))
        assert scales is not None
        error = (_decoded(_rounded(grouped, scales, zeros, scheme), scales, zeros, scheme) - grouped).square().sum(-1)
        best, shares = torch.minimum(error, best), torch.where(error < best, share, shares)
    return _scales(low * shares, high * shares, scheme)


def to_codes(
    weight: Float[Tensor, "rows columns"],
    scales: Float[Tensor, "scales groups"],
    zeros: Float[Tensor, "scales groups"] | None,
    scheme: Scheme,
) -> UInt8[Tensor, "rows columns"]:
    """Round weights to codes.

    Args:
        weight: the weights, or some of their columns.
        scales: the scales of these columns, each for an equal share of them; (rows, 1) or (1, 1) for all.
        zeros: likewise the zero points.
        scheme: what the codes mean.
    """
    grouped, beside, shifts = _beside(weight, scales, zeros)
    return _rounded(grouped, beside, shifts, scheme).view(weight.shape)


def from_codes(
    codes: UInt8[Tensor, "rows columns"],
    scales: Float[Tensor, "scales groups"],
    zeros: Tensor | None,
    scheme: Scheme,
) -> Float[Tensor, "rows columns"]:
    """Return the weights that codes stand for, in float32; the arguments as in :func:`to_codes`."""
    grouped, beside, shifts = _beside(codes, scales, zeros)
    return _decoded(grouped, beside, shifts, scheme).view(codes.shape)


def assemble(
    codes: UInt8[Tensor, "rows columns"],
    scales: Float[Tensor, "scales groups"],
    zeros: Float[Tensor, "scales groups"] | None,
    scheme: Scheme,
) -> Quantized:
    """Pack codes and store the scales as the scheme says.

    Args:
        codes: the codes, one a byte.
        scales: the scales that they were made with.
        zeros: likewise the zero points.
        scheme: what the codes mean.

    Raises:
        ValueError: a shape does not fit the scheme, or a scale is no finite number.
    """
    kept = zeros.to(torch.uint8) if zeros is not None else None
    second = mean = None
    if scheme.double:
        mean = scales.mean().view(1)
        scales, second = _to_second(scales - mean)
    else:
        scales = scales.to(SCALES[scheme.scales])
    shape = (codes.shape[0], codes.shape[1])
    made = Quantized(pack(codes, scheme.bits), scales, shape, scheme, kept, second, mean)
    made.check()
    return made


def pack(codes: UInt8[Tensor, "rows columns"], bits: int) -> UInt8[Tensor, "rows packed"]:
    """Put codes side by side: two of 4 bits in a byte, four of 2 bits, eight of 3 bits in three bytes.

    Each row is one stream of bits, the first code in the highest bits, filled up with zeros to whole bytes.

    Args:
        codes: codes below 2**bits, one a byte.
        bits: bits of a code, 1 to 8.
    """
    if bits == 8:
        return codes
    rows, columns = codes.shape
    eights = torch.nn.functional.pad(codes, (0, -columns % 8)).view(rows, -1, 8).int()
    packed = codes.new_zeros((rows, eights.shape[1], bits + 1), dtype=torch.int32)  # one byte to spare
    for number in range(8):
        byte, bit = divmod(number * bits, 8)
        wide = eights[..., number] << (16 - bits - bit)  # the code's place in two bytes
        packed[..., byte] |= wide >> 8
        packed[..., byte + 1] |= wide & 255
    return packed[..., :bits].reshape(rows, -1)[:, : math.ceil(columns * bits / 8)].to(torch.uint8).contiguous()


def unpack(packed: UInt8[Tensor, "rows packed"], bits: int, columns: int) -> UInt8[Tensor, "rows columns"]:
    """Undo :func:`pack`.

    Args:
        packed: the bytes.
        bits: bits of a code.
        columns: codes of a row.
    """
    if bits == 8:
        return packed
    rows, mask = packed.shape[0], 2**bits - 1
    if 8 % bits == 0:  # no code crosses a byte
        parts = [(packed >> shift) & mask for shift in range(8 - bits, -1, -bits)]
        return torch.stack(parts, -1).view(rows, -1)[:, :columns]
    filled = torch.nn.functional.pad(packed, (0, -packed.shape[1] % bits)).view(rows, -1, bits)
    wide = torch.nn.functional.pad(filled, (0, 1)).int()
    places = [divmod(number * bits, 8) for number in range(8)]
    parts = [(wide[..., byte] << 8 | wide[..., byte + 1]) >> (16 - bits - bit) & mask for byte, bit in places]
    return torch.stack(parts, -1).to(torch.uint8).view(rows, -1)[:, :columns]


def _grouped(weight: Tensor, scheme: Scheme) -> Tensor:
    """The weights that share a scale side by side: (scales, groups, weights)."""
    rows, columns = scheme.groups(*weight.shape)
    return weight.reshape(rows, columns, -1)


def _beside(weight: Tensor, scales: Tensor, zeros: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same, with the scales and zero points shaped to fit: (scales, groups, 1)."""
    return weight.reshape(*scales.shape, -1), scales[..., None], None if zeros is None else zeros[..., None]


def _range(grouped: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Smallest and largest value that the codes shall reach; 0 lies between them."""
    size = grouped.shape[-1]
    if scheme.calibration == "percentile":
        kept = max(1, math.ceil(size * scheme.percentile / 100))
        if scheme.symmetric:
            high = grouped.abs().kthvalue(kept).values
            return -high, high
        low, high = grouped.kthvalue(size + 1 - kept).values, grouped.kthvalue(kept).values
    else:
        low, high = grouped.amin(-1), grouped.amax(-1)
    if scheme.symmetric:
        high = torch.maximum(high, -low).clamp(min=0)
        return -high, high
    return low.clamp(max=0), high.clamp(min=0)


def _scales(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor | None]:
    """Scales as they will be stored, and zero points, for these ranges."""
    lowest, highest = scheme.levels
    if scheme.codes == "nf4":
        scales = high
    elif scheme.codes == "float8":
        scales = high / torch.finfo(FLOAT8).max
    else:
        scales = (high - low) / (highest - lowest)
    if not scheme.double:
        scales = scales.to(SCALES[scheme.scales]).float()
    if scheme.symmetric:
        return scales, None
    return scales, (-torch.round(low / torch.where(scales > 0, scales, 1))).clamp(lowest, highest)


def _rounded(grouped: Tensor, scales: Tensor, zeros: Tensor | None, scheme: Scheme) -> Tensor:
    """Codes of weights that lie beside their scales."""
    steps = grouped * torch.where(scales > 0, 1 / scales, 0)  # in units of the scale, as torchao and bitsandbytes
    if scheme.codes == "nf4":
        values = nf4_values(grouped.device)
        return torch.bucketize(steps.clamp(-1, 1), (values[:-1] + values[1:]) / 2).to(torch.uint8)
    if scheme.codes == "float8":
        top = torch.finfo(FLOAT8).max
        return steps.clamp(-top, top).to(FLOAT8).view(torch.uint8)
    lowest, highest = scheme.levels
    whole = (steps.round() + (0 if zeros is None else zeros)).clamp(lowest, highest)
    return (whole + _middle(scheme)).to(torch.uint8)


def _decoded(codes: Tensor, scales: Tensor, zeros: Tensor | None, scheme: Scheme) -> Tensor:
    """Weights of codes that lie beside their scales."""
    if scheme.codes == "nf4":
        return nf4_values(codes.device)[codes.int()] * scales
    if scheme.codes == "float8":
        return codes.view(FLOAT8).float() * scales
    return (codes.float() - (_middle(scheme) if zeros is None else zeros)) * scales


def _middle(scheme: Scheme) -> int:
    """The code that stands for 0 in a symmetric scheme."""
    return 2 ** (scheme.bits - 1) if scheme.symmetric else 0


@cache
def nf4_values(device: torch.device) -> Float[Tensor, "16"]:
    """Return the 16 values of NF4 in float32.

    Args:
        device: where.
    """
    return torch.as_tensor(NF4, dtype=torch.float32, device=device)


@cache
def dynamic_values(device: torch.device) -> Float[Tensor, "256"]:
    """Return the 256 values from -1 to 1 that double quantization gives the scales, dense near 0 (Dettmers, 2016).

    The first bits of such a code are a decimal exponent, and what is left is a fraction: seven decades, each with twice
    as many values as the one below, of either sign; besides 0 and 1.

    Args:
        device: where.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        middles = 10 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += middles.tolist() + (-middles).tolist()
    return torch.tensor(sorted(values), device=device)


def _to_second(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize scales to 8 bits, 256 of them sharing a second scale."""
    flat = torch.nn.functional.pad(scales.flatten(), (0, -scales.numel() % SECOND)).view(-1, SECOND)
    reach = flat.abs().amax(1)
    values = dynamic_values(scales.device)
    steps = (flat * (1 / reach.clamp(min=1e-38))[:, None]).clamp(-1, 1)
    codes = torch.bucketize(steps, (values[:-1] + values[1:]) / 2).to(torch.uint8)
    return codes.flatten()[: scales.numel()].view(scales.shape).clone(), reach


def _from_second(codes: Tensor, second: Tensor) -> Tensor:
    """Undo that, but for the mean."""
    each = second.repeat_interleave(SECOND)[: codes.numel()].view(codes.shape)
    return dynamic_values(codes.device)[codes.int()] * each
