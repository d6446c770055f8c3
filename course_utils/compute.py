"""What training costs in computing: FLOPs by formula and by torch's counter, utilisation, days, published runs.

One FLOP is one floating-point operation; a multiplication and the addition that follows it are two. Only matrix
products count, as in all papers cited here: norms, activations and softmax are left out. Peaks and published numbers
stand in ``compute_runs.toml``, each with its source.
"""

import dataclasses
import time
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch

from course_utils import reporting
from course_utils.memory import parameters, shape_of, weight_shapes
from course_utils.transformer import TransformerConfig

PETAFLOP_DAY = 1e15 * 24 * 60 * 60
"""FLOPs of one petaFLOP/s-day: 10^15 in each second of a day."""

# --- counting


@dataclass(frozen=True)
class Flops:
    """FLOPs of a pass, part by part.

    Attributes:
        projections: the maps to queries, keys and values, and the map behind the heads.
        scores: the two products of attention: queries with keys, weights with values. They alone grow with the square
            of the length; all pairs count, also those that a causal mask hides.
        feed_forward: the feed-forward networks; a gated one has three maps, a plain one two.
        head: the scores of the vocabulary. Looking up embeddings takes none.
    """

    projections: int = 0
    scores: int = 0
    feed_forward: int = 0
    head: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """Name of a part to its FLOPs."""
        return dataclasses.asdict(self)

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Step:
    """FLOPs of a training step; the optimizer's update, a few for each weight, is not counted.

    Attributes:
        forward: the forward pass.
        backward: the backward pass.
        recomputed: what is computed a second time to save memory.
    """

    forward: Flops
    backward: Flops
    recomputed: Flops

    @property
    def model(self) -> int:
        """FLOPs that the model asks for, however it is computed: those of model FLOPs utilisation."""
        return self.forward.total + self.backward.total

    @property
    def total(self) -> int:
        """FLOPs that the hardware computes."""
        return self.model + self.recomputed.total

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row for each part and the sum: name, forward, backward, recomputed, share of the total."""
        passes = (self.forward, self.backward, self.recomputed)
        lines = {name: [one.parts[name] for one in passes] for name in self.forward.parts}
        lines["total"] = [one.total for one in passes]
        return [
            (name.replace("_", "-"), *map(shown, numbers), f"{sum(numbers) / max(self.total, 1):.0%}")
            for name, numbers in lines.items()
        ]


def forward_flops(shape: TransformerConfig | str, batch: int, tokens: int, source: int | None = None) -> Flops:
    """Return the FLOPs of a forward pass: two for each weight of a matrix and token, and those of the scores.

    Kaplan et al. (2020), section 2.1 and table 1, here exact for every family of ``course_utils.families``.

    Args:
        shape: a configuration, or a name of ``memory.SHAPES``.
        batch: number of sequences.
        tokens: length of each, padding included; of an encoder-decoder that of the target.
        source: length of an encoder-decoder's source; by default ``tokens``.

    Raises:
        ValueError: a number is not whole and positive, or there is no such shape.
    """
    config = shape_of(shape)
    source = tokens if source is None else source
    for name, number in (("batch", batch), ("tokens", tokens), ("source", source)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"{name}={number!r}: expected a whole number of 1 or more")
    both = config.kind == "encoder-decoder"
    lengths = {"encoder": source if both else tokens, "decoder": tokens}
    found = dict.fromkeys(("projections", "scores", "feed_forward", "head"), 0)
    for weight in weight_shapes(config):
        place = weight.name.split(".")
        if place[0] == "transform" and len(weight.shape) == 2:
            found["head"] += 2 * weight.numbers * tokens
        if len(weight.shape) < 2 or place[1:2] != ["layers"]:
            continue
        queries, crossing = lengths[place[0]], place[2] == "cross_attention"
        keys = source if crossing else queries
        if place[2] == "feed_forward":
            found["feed_forward"] += 2 * weight.numbers * queries
            continue
        found["projections"] += 2 * weight.numbers * (keys if place[3] in ("key", "value") else queries)
        if place[3] == "query":  # its rows are the heads' sizes, all together
            found["scores"] += 4 * queries * keys * weight.shape[0] * weight.copies
    if config.head:
        found["head"] += 2 * config.width * config.vocabulary_size * tokens
    return Flops(**{part: batch * number for part, number in found.items()})


def training_flops(
    shape: TransformerConfig | str,
    batch: int,
    tokens: int,
    source: int | None = None,
    *,
    checkpointing: bool = False,
    fused: bool = False,
    frozen: bool = False,
) -> Step:
    """Return the FLOPs of a training step: each product of the forward pass has two in the backward pass.

    One of them gives the gradient of the product's weights (or second factor), the other that of its input.

    Args:
        shape: a configuration, or a name of ``memory.SHAPES``.
        batch: number of sequences.
        tokens: length of each; of an encoder-decoder that of the target.
        source: length of an encoder-decoder's source; by default ``tokens``.
        checkpointing: the blocks are computed again in the backward pass (Chen et al. 2016), a third more. Where no
            dropout follows a block's last map, torch leaves that one out.
        fused: attention in a kernel that keeps no weights and computes the scores again in the backward pass (Dao et
                al. 2022).
        frozen: the weights stay as they are and get no gradients (LoRA, whose own few FLOPs are left out): they pass
            the gradient on, and one of the two products falls away.

    Raises:
        ValueError: as :func:`forward_flops`.
    """
    forward = forward_flops(shape, batch, tokens, source)
    times = dict.fromkeys(forward.parts, 1 if frozen else 2) | {"scores": 2}
    backward = Flops(**{part: times[part] * number for part, number in forward.parts.items()})
    again = dataclasses.replace(forward, head=0) if checkpointing else Flops()
    if fused:
        again = dataclasses.replace(again, scores=again.scores + forward.scores // 2)
    return Step(forward, backward, again)


def counted(function: Callable[[], object]) -> dict[str, int]:
    """Return the FLOPs that torch's own counter sees in a call, by operation; their sum is what was computed.

    The counter leaves out the CPU's fused attention kernel; here it counts as the one for GPUs does.

    Args:
        function: what to run, called without arguments: a forward pass, a backward pass, a whole step.
    """
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    def forward(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
        return sdpa_backward_flop_count(gradient, query, key, value)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    its_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    counter: Any = FlopCounterMode(display=False, custom_mapping={kernel: forward, its_backward: backward})
    with counter:
        function()
    return {str(name).removeprefix("aten."): int(n) for name, n in counter.get_flop_counts().get("Global", {}).items()}


def six_nd(parameters: float, tokens: float) -> float:
    """Return the FLOPs of a training by the short rule, 6 for each parameter and token (Kaplan et al. 2020, 2.1).

    It leaves out the scores of attention, counts embedding tables as if they were multiplied, and assumes that nothing
    is computed twice.

    Args:
        parameters: number of parameters, N.
        tokens: number of tokens seen, D, repeated ones each time.
    """
    return 6 * parameters * tokens


def per_token(shape: TransformerConfig | str, tokens: int) -> float:
    """Return the model FLOPs of a token in training, ``6 N + 12 L H Q T`` (Chowdhery et al. 2022, appendix B).

    Args:
        shape: a configuration of an encoder or a decoder, or a name of ``memory.SHAPES``.
        tokens: length of the sequences, T; L are the layers, H the heads and Q their size.

    Raises:
        ValueError: the shape is an encoder-decoder, in which no token meets all weights.
    """
    config = shape_of(shape)
    if config.kind == "encoder-decoder":
        raise ValueError("kind='encoder-decoder': no token meets all weights; use training_flops(...).model")
    return 6 * parameters(config) + 12 * config.layers * config.heads * config.size_of_head * tokens


def shown(number: float) -> str:
    """Return FLOPs (or FLOP/s) in readable units of 1000: ``314 Z``, ``1.25 T``.

    Args:
        number: how many.
    """
    for unit in ("", "k", "M", "G", "T", "P", "E", "Z"):
        if abs(number) < 999.5:
            return f"{number:.3g} {unit}".rstrip()
        number /= 1000
    return f"{number:.3g} Y"


# --- speed


@dataclass(frozen=True)
class Device:
    """A processor and what its datasheet promises.

    Attributes:
        name: the processor.
        dense: FLOP/s of matrix products by dtype.
        sparse: the same for weights of which two in each four are zero.
        source: where it is stated.
        names: parts of the names under which torch knows it.
    """

    name: str
    dense: dict[str, float]
    sparse: dict[str, float]
    source: str
    names: tuple[str, ...] = ()

    def peak(self, dtype: str | None = None) -> float:
        """Return the FLOP/s of dense matrix products.

        Args:
            dtype: ``bfloat16``, ``float16``, ``float32``...; by default the 16-bit format that trains there.

        Raises:
            ValueError: the datasheet states none for that dtype.
        """
        dtype = dtype or ("bfloat16" if "bfloat16" in self.dense else "float16")
        if dtype not in self.dense:
            raise ValueError(f"dtype={dtype!r}: the {self.name} has peaks for {', '.join(self.dense)}")
        return self.dense[dtype]


def peak(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """Return the FLOP/s that a device can give: a known GPU's by its datasheet, else those of a square matrix product.

    On a CPU it is that of the threads' computing time: of one core, where torch has one thread.

    Args:
        device: where.
        dtype: number format of the factors.
        size: rows and columns of the measured product.

    Raises:
        ValueError: the GPU does not compute in that format.
    """
    device = torch.device(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = [one for one in DEVICES.values() if any(part in name for part in one.names)]
        if known:
            return known[0].peak(str(dtype).removeprefix("torch."))
    left = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / seconds(lambda: left @ left, device)


def seconds(function: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Return the seconds that a call takes, the shortest of a few: computing time on a CPU, the clock's elsewhere.

    Args:
        function: what to measure, called without arguments.
        device: where it computes; what was begun there is waited for.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return reporting.seconds(function)
    wait = getattr(torch, device.type).synchronize
    times = []
    for _ in range(5):
        wait()
        begin = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - begin)
    return min(times)


def utilisation(flops: float, seconds: float, peak: float) -> float:
    """Return the share of the peak that was reached (Chowdhery et al. 2022, appendix B).

    With the FLOPs that the model asks for, ``Step.model``, it is model FLOPs utilisation (MFU); with those that were
    computed, ``Step.total``, hardware FLOPs utilisation (HFU).

    Args:
        flops: FLOPs done.
        seconds: time they took.
        peak: FLOP/s of all devices together.

    Raises:
        ValueError: the time or the peak is not positive.
    """
    for name, number in (("seconds", seconds), ("peak", peak)):
        if not number > 0:
            raise ValueError(f"{name}={number!r}: expected a positive number")
    return flops / seconds / peak


def implied_utilisation(parameters: float, tokens: float, hours: float, peak: float) -> float:
    """Return the utilisation of a whole training, from what papers state: the short rule over what was possible.

    Whatever the hours hold counts against it, restarts and waiting too, so it is below that of a running step.

    Args:
        parameters: number of parameters.
        tokens: number of tokens seen.
        hours: hours of one device, all together.
        peak: FLOP/s of one device.

    Raises:
        ValueError: the hours or the peak are not positive.
    """
    return utilisation(six_nd(parameters, tokens), hours * 3600, peak)


# --- days and money


def petaflop_days(flops: float) -> float:
    """Return FLOPs in petaFLOP/s-days.

    Args:
        flops: number of FLOPs.
    """
    return flops / PETAFLOP_DAY


def device_days(flops: float, device: str, share: float, dtype: str | None = None) -> float:
    """Return the days that one device computes; n devices take an n-th of them, if the share stays.

    Args:
        flops: FLOPs of the training.
        device: a name of ``DEVICES``.
        share: utilisation, above 0 to 1; published trainings reach 0.2 to 0.55.
        dtype: number format of the peak; by default 16 bits.

    Raises:
        ValueError: there is no such device, or the share is out of range.
    """
    if device not in DEVICES:
        raise ValueError(f"device={device!r}: expected one of {', '.join(DEVICES)}")
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r}: expected a utilisation above 0 and at most 1, such as 0.4")
    return flops / (DEVICES[device].peak(dtype) * share) / (24 * 60 * 60)


def cost(flops: float, device: str, share: float, price: float, dtype: str | None = None) -> float:
    """Return what a training costs, in the price's currency; failed runs, storage and people come on top.

    Args:
        flops: FLOPs of the training.
        device: a name of ``DEVICES``.
        share: utilisation, above 0 to 1.
        price: of one device for an hour.
        dtype: number format of the peak; by default 16 bits.

    Raises:
        ValueError: as :func:`device_days`, or the price is negative.
    """
    if not price >= 0:
        raise ValueError(f"price={price!r}: expected what one device costs an hour, 0 or more")
    return device_days(flops, device, share, dtype) * 24 * price


# --- published runs


@dataclass(frozen=True)
class Run:
    """A published training as its paper states it; None is what the paper does not state.

    Attributes:
        name: the model.
        paper: who published it and when.
        parameters: number of parameters.
        tokens: number of tokens seen.
        counts: where these two are stated.
        device: name of the processor, of ``DEVICES``.
        devices: where processors and hours are stated, and what else is said of them.
        hours: hours of one device, all together.
        flops: FLOPs of the training.
        stated: where, and what was counted.
        utilisation: share of the peak.
        utilised: where.
    """

    name: str
    paper: str
    parameters: float
    tokens: float
    counts: str
    device: str
    devices: str
    hours: float | None = None
    flops: float | None = None
    stated: str = ""
    utilisation: float | None = None
    utilised: str = ""

    @property
    def computed(self) -> float:
        """FLOPs by the short rule."""
        return six_nd(self.parameters, self.tokens)

    @property
    def deviation(self) -> float | None:
        """By how much the short rule differs from what is stated, as a share of the latter."""
        return None if self.flops is None else self.computed / self.flops - 1

    @property
    def implied(self) -> float | None:
        """Utilisation that the stated hours imply."""
        if self.hours is None:
            return None
        return implied_utilisation(self.parameters, self.tokens, self.hours, DEVICES[self.device].peak())


RUN_COLUMNS = ("model", "N", "D", "6 N D", "stated", "deviation", "petaFLOP/s-days", "device hours", "MFU implied")


def run_rows(runs: Iterable[Run] | None = None) -> list[tuple[str, ...]]:
    """Return a row of texts for each published run, under ``RUN_COLUMNS``.

    Args:
        runs: the runs; by default all of ``RUNS``.
    """
    return [
        (
            run.name,
            f"{run.parameters / 1e9:,.4g} B",
            f"{run.tokens / 1e9:,.0f} B",
            f"{run.computed:.3g}",
            _or("{:.3g}", run.flops),
            _or("{:+.1%}", run.deviation, ""),
            f"{petaflop_days(run.computed):,.0f}",
            _or("{:,.0f} " + run.device, run.hours),
            _or("{:.0%}", run.implied, ""),
        )
        for run in (RUNS.values() if runs is None else runs)
    ]


def _or(form: str, value: float | None, missing: str = "not stated") -> str:
    return missing if value is None else form.format(value)


def _published() -> tuple[dict[str, Device], dict[str, Run]]:
    data = tomllib.loads(resources.files("course_utils").joinpath("compute_runs.toml").read_text(encoding="utf-8"))
    devices = {}
    for name, row in data["device"].items():
        peaks = {kind: {dtype: n * 1e12 for dtype, n in row.get(kind, {}).items()} for kind in ("dense", "sparse")}
        devices[name] = Device(name, source=row["source"], names=tuple(row["names"]), **peaks)
    return devices, {name: Run(name, **row) for name, row in data["run"].items()}


DEVICES, RUNS = _published()
"""Processors by name; published runs by name."""
