"""The film of week 4: where the memory of a training step goes, from 1 M to 175 B weights, against one GPU's.

Every number in it comes from :func:`course_utils.memory.needs`; captions, pictures and the transcript are made of the
same :class:`Scene`. ``course figures computational-challenges-of-training-llms`` draws it again.
"""

import functools
import io
import itertools
import os
import re
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils import memory
from course_utils.figures.canvas import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PINK,
    VERMILION,
    Number,
    box,
    sheet,
    write,
)
from course_utils.memory import GB, GPUS, SHAPES, Needs, Plan, needs, parameters
from course_utils.plotting import MARKERS
from course_utils.transformer import TransformerConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "computational-challenges-of-training-llms"
"""The film's name, and that of its files without their endings."""
WIDTH, HEIGHT, FPS = 1280, 720, 20
SMALLEST = 20
"""Height of the smallest letters, in pixels."""
ALT = (
    "Bars for one model in six ways of training, each cut into weights, gradients, optimizer states, activations and "
    "temporary memory, against the memory of a T4, an A100 and an H200: the fewer bits and the fewer trained weights, "
    "the shorter the bar."
)
"""What the still picture of :func:`show` shows."""
STILL = "One model, one GPU: what helps"
"""Title of the scene that :func:`show` takes its still picture from."""
CAPTION = "Where the memory of a training step goes, in two minutes; its transcript stands in supplemental."


@dataclass(frozen=True)
class Look:
    """How a part of the memory is drawn, so that no two parts differ by colour alone.

    Attributes:
        label: its name in the film.
        color: of edges and lines.
        hatch: pattern inside areas.
        marker: on lines.
        meaning: what it is, in a few words.
    """

    label: str
    color: str
    hatch: str
    marker: str
    meaning: str


PARTS = {
    "weights": Look("weights", BLUE, "", MARKERS[0], "the model itself"),
    "gradients": Look("gradients", ORANGE, "//", MARKERS[1], "how the loss changes with each weight"),
    "optimizer": Look("optimizer states", VERMILION, "xx", MARKERS[2], "Adam: two running means for each weight"),
    "activations": Look("activations", GREEN, "..", MARKERS[3], "what the backward pass needs of the forward pass"),
    "temporary": Look("temporary", PINK, "--", MARKERS[4], "logits, workspace: there for a moment"),
}
"""The parts of :class:`course_utils.memory.Needs` that training uses, from the bottom of a bar to its top."""
DEVICES = {"T4": GPUS["T4"], "A100": GPUS["A100 80"], "H200": GPUS["H200"]}
"""The GPUs of the film and their memory in GB."""
_GPT: dict[str, Any] = dict(positions="learned", context_window=1024, activation="gelu_tanh")
MODELS: dict[str, TransformerConfig | str] = {
    "1 M": TransformerConfig(2176, width=128, layers=3, heads=4, **_GPT),
    "10 M": TransformerConfig(8192, width=320, layers=6, heads=5, **_GPT),
    "GPT-2 124 M": "gpt2",
    "GPT-2 XL 1.6 B": "gpt2-xl",
    "GPT-3 6.7 B": "gpt3-6.7b",
    "LLaMA 65 B": "llama-65b",
    "GPT-3 175 B": "gpt3-175b",
}
"""The models of the film, small to large: two in the form of GPT-2, then published ones."""
FIRST, *_, LAST = MODELS
STEP = Plan(tokens=1024)
"""32-bit numbers, Adam, one text of 1024 tokens at a time."""
BATCH = replace(STEP, batch=4)
CHECKPOINTED = replace(BATCH, weights="bfloat16", checkpointing=True)
WAYS: dict[str, Plan] = {
    "32-bit": BATCH,
    "mixed 16/32-bit": replace(BATCH, weights="bfloat16", states="float32", master=True),
    "all 16-bit": replace(BATCH, weights="bfloat16"),
    "+ checkpointing": CHECKPOINTED,
    "+ LoRA, rank 8": replace(CHECKPOINTED, method="lora"),
    "+ 4-bit weights (QLoRA)": replace(CHECKPOINTED, method="qlora"),
}
"""Ways to train one model, each saving more than the one before."""
SHARDED: dict[str, Plan] = {
    "32-bit": replace(STEP, checkpointing=True),
    "all 16-bit": replace(STEP, weights="bfloat16", checkpointing=True),
    "LoRA, 16-bit": replace(STEP, weights="bfloat16", checkpointing=True, method="lora"),
    "QLoRA": replace(STEP, weights="bfloat16", checkpointing=True, method="qlora"),
}
"""Ways to train the largest model on several GPUs."""


@dataclass(frozen=True)
class Scene:
    """One scene of the film.

    Attributes:
        title: stands above the picture.
        seconds: how long it is seen.
        captions: texts below the picture, each with the second of the scene from which it stands there.
        moves: begin and length in seconds of each movement; outside them the picture stands still.
        draw: draws into axes of 1280 x 720 pixels, given how far each movement is (0 to 1).
        seen: what one sees, for the transcript.
        header: names of the columns of its numbers.
        rows: the numbers shown, as texts.
    """

    title: str
    seconds: float
    captions: tuple[tuple[float, str], ...]
    moves: tuple[tuple[float, float], ...]
    draw: Callable[["Axes", Sequence[float]], None]
    seen: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def caption(self, second: float) -> str:
        """Return the caption that stands at this second of the scene."""
        return [text for begin, text in self.captions if begin <= second + 1e-9][-1]

    def progress(self, second: float) -> tuple[float, ...]:
        """Return how far each movement is at this second of the scene, from 0 to 1, slow at both ends."""
        shares = [min(max((second - begin) / length, 0.0), 1.0) for begin, length in self.moves]
        return tuple(round(share * share * (3 - 2 * share), 4) for share in shares)


def count(number: int) -> str:
    """Return a number of weights in short: ``124 M``, ``6.7 B``."""
    value, unit = (number / 1e9, "B") if number >= 0.9995e9 else (number / 1e6, "M")
    return f"{value:.0f} {unit}" if value >= 9.95 else f"{value:.2g} {unit}"


def devices(model: TransformerConfig | str, plan: Plan) -> tuple[str, int]:
    """Return the smallest GPU of :data:`DEVICES` that holds the sum of the parts, or how many of the largest do.

    Args:
        model: as for :func:`course_utils.memory.needs`.
        plan: what is done with it; its ``shards`` are chosen here.

    Returns:
        Name and number of the GPUs; the number is 0 where not even 1024 suffice, each with a batch of its own.
    """
    for name, gigabytes in DEVICES.items():
        if needs(model, plan).total <= gigabytes * GB:
            return name, 1
    for number in range(2, 1025):
        if needs(model, replace(plan, shards=number)).total <= gigabytes * GB:
            return name, number
    return name, 0


def _shown(name: str, number: int) -> str:
    """A cell of the last scene."""
    if number == 0:
        return "none"
    return name if number == 1 else f"{number} × {name}"


def _parts(need: Needs) -> dict[str, int]:
    return {part: getattr(need, part) for part in PARTS}


def _row(name: str, need: Needs) -> tuple[str, ...]:
    """A row of the transcript's tables: every part and the sum."""
    return (name, *(memory.size(value) if value else "0" for value in _parts(need).values()), memory.size(need.total))


_COLUMNS = (*(look.label for look in PARTS.values()), "sum")


def _look(part: str) -> dict[str, Any]:
    """Colours, pattern and edge of the areas of a part."""
    look = PARTS[part]
    return {"facecolor": PALE[look.color], "edgecolor": look.color, "hatch": look.hatch, "linewidth": 1.6}


def _between(axes: "Axes", xs: Any, low: Any, high: Any, part: str) -> None:
    """Fill what lies between two lines, where there is something."""
    import numpy as np

    xs, there = np.asarray(xs), np.abs(low - high) > 0.5
    for begin, end in np.flatnonzero(np.diff(there, prepend=False, append=False)).reshape(-1, 2):
        run = slice(max(begin - 1, 0), end + 1)  # where it begins or ends, the point on the line itself belongs to it
        axes.fill_between(xs[run], low[run], high[run], **_look(part))


def _rectangle(axes: "Axes", x: Number, y: Number, width: Number, height: Number, part: str) -> None:
    from matplotlib.patches import Rectangle

    axes.add_artist(Rectangle((x, y), width, height, **_look(part)))


def _text(axes: "Axes", x: Number, y: Number, text: str, size: Number = SMALLEST, **style: Any) -> None:
    """Write over patterns: with a white rim."""
    from matplotlib.patheffects import withStroke

    rim = {"path_effects": [withStroke(linewidth=4, foreground="white")]}
    write(axes, x, y, text, size, **(rim | style))


def _legend(axes: "Axes", x: Number, y: Number, widths: Sequence[Number] = (135, 150, 225, 160, 150)) -> None:
    """Draw a swatch and the name of each part in a row."""
    for part, width in zip(PARTS, widths, strict=True):
        _rectangle(axes, x, y - 13, 30, 26, part)
        write(axes, x + 38, y, PARTS[part].label, SMALLEST, ha="left")
        x += width


def _bar(
    axes: "Axes", x: Number, y: Number, height: Number, need: Needs, scale: float, labels: Callable[[int], str] | None
) -> float:
    """Draw the parts one after another from left to right; return where the bar ends."""
    for part, value in _parts(need).items():
        width = value * scale
        if width >= 0.5:
            _rectangle(axes, x, y, width, height, part)
        if labels and width >= 6 + 12.7 * len(labels(value)):
            _text(axes, x + width / 2, y + height / 2, labels(value))
        x += width
    return x


def _line(axes: "Axes", points: Sequence[tuple[Number, Number]], color: str = GREY, **style: Any) -> None:
    looks: dict[str, Any] = {"color": color, "linewidth": 1.6, "marker": ""} | style
    axes.plot(*zip(*points, strict=True), **looks)


def _five_parts() -> Scene:
    """What the parts are, and how many bytes of each there are for one weight."""
    model, weights = "gpt2-xl", parameters("gpt2-xl")
    need = needs(model, STEP)
    a_weight = {part: getattr(need, part) / weights for part in ("weights", "gradients", "optimizer")}
    bytes_of = {part: f"{value:.0f} bytes a weight" for part, value in a_weight.items()}
    bytes_of |= {"activations": "grow with batch and tokens", "temporary": "grow with batch and tokens"}
    together = " + ".join(f"{value:.0f}" for value in a_weight.values())

    def draw(axes: "Axes", done: Sequence[float]) -> None:
        for number, (part, look) in enumerate(PARTS.items()):
            if done[number] <= 0:
                continue
            top = 100 + 94 * number
            _rectangle(axes, 60, top, 340 * done[number], 74, part)
            if done[number] > 0.95:
                _text(axes, 80, top + 37, look.label, 30, ha="left", weight="bold")
                write(axes, 430, top + 22, look.meaning, 26, ha="left")
                write(axes, 430, top + 57, bytes_of[part], 22, ha="left", color=GREY)

    return Scene(
        "Where does the memory of a training step go?",
        11,
        (
            (0, "Into five parts. Two of them grow with what the model reads."),
            (
                5.5,
                f"32-bit numbers and Adam: {together} = {sum(a_weight.values()):.0f} bytes for each weight, "
                "before the model reads a word.",
            ),
        ),
        tuple((0.3 + 0.9 * number, 0.8) for number in range(5)),
        draw,
        "Five boxes appear one below the other, each with a pattern of its own, a name and what it is.",
        ("part", "what it is", "how much, with 32-bit numbers and Adam"),
        tuple((look.label, look.meaning, bytes_of[part]) for part, look in PARTS.items()),
    )


def _one_step() -> Scene:
    """One step of GPT-2 XL in time: what is there all along, what comes and goes."""
    model = "gpt2-xl"
    need = needs(model, STEP)
    fixed, layers = need.weights + need.optimizer, SHAPES[model].layers
    # Where the loss is not the moment of the most memory, it is the end of the backward pass: embeddings that are also
    # the output's weights have two gradients for a moment.
    late = need.peak - fixed - need.gradients if need.peak > fixed + need.activations + need.temporary else 0
    left, right, bottom, height = 150, 1080, 530, 400
    scale = height / (1.04 * need.peak)
    # The ends of: before the step, forward pass, loss, backward pass, its last moment, update.
    ends = (0.1, 0.38, 0.46, 0.78, 0.82, 1.0)
    x = [0.0, ends[0], ends[1], ends[1], ends[2], ends[2], ends[3], ends[3], ends[4], ends[4], ends[5]]
    heights = {
        "weights": [need.weights] * len(x),
        "optimizer": [need.optimizer] * len(x),
        "gradients": [0] * 6 + [need.gradients] * 5,
        "activations": [0] * 2 + [need.activations] * 4 + [0] * 5,
        "temporary": [0, 0, 0, need.temporary, need.temporary, 0, 0, late, late, 0, 0],
    }

    def draw(axes: "Axes", done: Sequence[float]) -> None:
        import numpy as np

        stops = (0.0, ends[0], ends[2], ends[4], ends[5])
        now = sum((end - begin) * part for begin, end, part in zip(stops, stops[1:], done, strict=False))
        cut = [place for place in x if place < now] + [now]
        pixel = [left + (right - left) * place for place in cut]
        floor = np.zeros(len(cut))
        # Steps (two values at one place) stay steps: the later value is reached a hair after the earlier.
        places, at = (np.array(row) + 1e-9 * np.arange(len(row)) for row in (x, cut))
        for part, profile in heights.items():
            roof = floor + np.interp(at, places, profile)
            _between(axes, pixel, bottom - scale * floor, bottom - scale * roof, part)
            floor = roof
        for name, gigabytes in DEVICES.items():
            level = bottom - scale * gigabytes * GB
            if level > 95:
                _line(axes, [(left, level), (right + 5, level)], BLACK, linestyle="--")
                write(axes, right + 12, level, f"{name}\n{gigabytes} GB", 22, ha="left")
        _line(axes, [(left, bottom), (right, bottom)], BLACK)
        _line(axes, [(left, bottom), (left, bottom - height)], BLACK)
        passes = ("forward pass", "loss", "backward pass", "update")
        for name, begin, end in zip(passes, (ends[0], ends[1], ends[2], ends[4]), (*ends[1:3], *ends[4:]), strict=True):
            if now > begin:
                write(axes, left + (right - left) * (begin + end) / 2, bottom + 22, name, 22)
        middle = bottom - scale * need.weights / 2
        write(axes, left - 10, middle, f"weights\n{memory.size(need.weights)}", ha="right", size=SMALLEST)
        middle = bottom - scale * (need.weights + need.optimizer / 2)
        write(axes, left - 10, middle, f"Adam's\nstates\n{memory.size(need.optimizer)}", ha="right", size=SMALLEST)
        if now >= ends[2]:
            where = left + (right - left) * (ends[1] + ends[2]) / 2
            text = f"activations\n{memory.size(need.activations)}"
            _text(axes, where, bottom - scale * (fixed + 0.5 * need.activations), text, 22)
            top = bottom - scale * (fixed + need.activations + need.temporary / 2)
            text = f"temporary {memory.size(need.temporary)}"
            write(axes, left + (right - left) * ends[1] - 10, top, text, 22, ha="right")
        if now >= ends[4]:
            where = left + (right - left) * (ends[3] + ends[5]) / 2
            text = f"gradients\n{memory.size(need.gradients)}"
            _text(axes, where, bottom - scale * (fixed + need.gradients / 2), text, 22)

    t4 = DEVICES["T4"]
    return Scene(
        "One step of GPT-2 XL, from forward pass to update",
        18.5,
        (
            (
                0,
                f"{count(parameters(model))} weights, 32-bit, one text of {STEP.tokens:,} tokens. Weights and states: "
                f"{memory.size(fixed)} all the time.",
            ),
            (
                5,
                f"Forward pass: each of the {layers} layers keeps its activations, {memory.size(need.activations)} "
                "in all.",
            ),
            (9.5, f"Backward pass: activations go, gradients come, {memory.size(need.gradients)}."),
            (
                13.5,
                f"At most {memory.size(need.peak)} at one time, {memory.size(need.total)} where gradients are kept. "
                f"{'Too much for' if need.peak > t4 * GB else 'It fits'} a T4.",
            ),
        ),
        ((0.4, 1.2), (5.0, 4.0), (9.5, 3.0), (12.5, 1.0)),
        draw,
        "Memory against time, as layers of an area that grows from left to right. Weights and Adam's states lie at the "
        "bottom all along. The activations rise in the forward pass and fall in the backward pass, while the gradients "
        "rise. Temporary memory is there at the loss, and a little at the end of the backward pass, where the "
        "embeddings, which are also the output's weights, have two gradients. A dashed line marks the T4. The heights "
        "at the ends of the passes are computed; between them the film draws straight lines.",
        ("GPT-2 XL", *_COLUMNS, "most at one time"),
        ((*_row("one text of 1,024 tokens", need), memory.size(need.peak)),),
    )


def _apart(levels: Sequence[float], gap: float) -> list[float]:
    """Move labels apart, from the lowest of the picture upwards, so that none lies on another."""
    order = sorted(range(len(levels)), key=lambda number: -levels[number])
    placed = list(levels)
    for before, after in itertools.pairwise(order):
        placed[after] = min(placed[after], placed[before] - gap)
    return placed


def _from_small_to_large() -> Scene:
    """The parts against the number of weights, both on logarithmic axes."""
    import math

    table = {name: needs(model, STEP) for name, model in MODELS.items()}
    weights = {name: parameters(model) for name, model in MODELS.items()}
    smallest, largest = table[FIRST], table[LAST]
    holding = {device: [n for n in MODELS if table[n].total <= room * GB] for device, room in DEVICES.items()}
    left, right, top, bottom = 130, 930, 100, 515

    def across(number: float) -> float:
        return left + (right - left) * math.log(number / weights[FIRST]) / math.log(weights[LAST] / weights[FIRST])

    def up(amount: float) -> float:
        return bottom - (bottom - top) * (math.log10(max(amount, 1e6)) - 6) / 7

    def draw(axes: "Axes", done: Sequence[float]) -> None:
        import numpy as np

        for power, label in ((6, "1 MB"), (9, "1 GB"), (12, "1 TB")):
            _line(axes, [(left, up(10.0**power)), (right, up(10.0**power))], "#D0D0D0", linewidth=1)
            write(axes, left - 12, up(10.0**power), label, 22, ha="right")
        _line(axes, [(left, bottom), (right, bottom)], BLACK)
        _line(axes, [(left, bottom), (left, top - 10)], BLACK)
        for name in MODELS:
            write(axes, across(weights[name]), bottom + 22, count(weights[name]), SMALLEST)
        write(axes, (left + right) / 2, bottom + 52, "weights of the model (both axes logarithmic)", 22)
        for (name, room), shift in zip(DEVICES.items(), (13, 13, -13), strict=True):
            _line(axes, [(left, up(room * GB)), (right, up(room * GB))], BLACK, linestyle=(0, (2, 2)))
            write(axes, left + 12, up(room * GB) + shift, f"{name}, {room} GB", 20, ha="left", weight="bold")
        places = np.array([across(weights[name]) for name in MODELS])
        now = left + (right - left) * done[0]
        if not done[0]:
            return
        ends, names = [], []
        for part in [*PARTS, "sum"]:
            values = np.array([up(table[n].total if part == "sum" else getattr(table[n], part)) for n in MODELS])
            known = places <= now + 0.5
            xs, ys = [*places[known], now], [*values[known], float(np.interp(now, places, values))]
            color, marker = (BLACK, "P") if part == "sum" else (PARTS[part].color, PARTS[part].marker)
            # The gradients lie below the weights' line, and wider: mostly they are as many.
            width, under = {"sum": (4.0, 4), "gradients": (6.0, 2)}.get(part, (2.4, 3))
            size = 15 if part == "gradients" else 10
            points = list(zip(xs, ys, strict=True))
            _line(axes, points, color, linewidth=width, zorder=under)
            _line(axes, points[:-1], color, linestyle="", marker=marker, markersize=size, zorder=under)
            ends.append(ys[-1])
            names.append((part, color))
        if done[0] == 1:
            same = largest.weights == largest.gradients
            labels = {part: f"{look.label} {memory.size(getattr(largest, part))}" for part, look in PARTS.items()}
            labels["sum"] = f"sum {memory.size(largest.total)}"
            if same:
                labels["weights"] = f"weights, gradients {memory.size(largest.weights)}"
            shown = [n for n, (part, _) in enumerate(names) if not (same and part == "gradients")]
            for number, level in zip(shown, _apart([ends[n] for n in shown], 27), strict=True):
                part, color = names[number]
                _line(axes, [(right + 8, ends[number]), (right + 28, level)], color)
                write(axes, right + 34, level, labels[part], SMALLEST, ha="left")

    def largest_on(device: str) -> str:
        return holding[device][-1] if holding[device] else "none of them"

    return Scene(
        "From 1 million to 175 billion weights",
        19.5,
        (
            (
                0,
                f"32-bit, Adam, one text of {STEP.tokens:,} tokens. {count(weights[FIRST])} weights: "
                f"{memory.size(smallest.total)} in all.",
            ),
            (5, "Weights, gradients and states grow with the model; activations grow more slowly."),
            (
                10,
                f"{count(weights[LAST])} weights: {memory.size(largest.total)}, "
                f"{largest.total / (DEVICES['H200'] * GB):.0f} times the memory of an H200.",
            ),
            (
                14,
                "Largest on "
                + "; on ".join(
                    f"{'a' if device == 'T4' else 'an'} {device}: {largest_on(device)}" for device in DEVICES
                )
                + ".",
            ),
        ),
        ((1.5, 8.0),),
        draw,
        "A chart with two logarithmic axes, the number of weights across and memory upwards (marks at 1 MB, 1 GB and "
        "1 TB). From left to right one line for each part and a thick one for their sum grow over seven models; dotted "
        "lines mark the three GPUs. On such axes equal distances are equal factors, so lines that look close may be "
        "billions of bytes apart.",
        ("model", "weights of the model", *_COLUMNS),
        tuple((name, count(weights[name]), *_row(name, table[name])[1:]) for name in MODELS),
    )


def _shares() -> Scene:
    """Which part takes most, from small to large models."""
    table = {name: needs(model, STEP) for name, model in MODELS.items()}
    left, right, height, gap = 290, 1240, 48, 60

    def draw(axes: "Axes", done: Sequence[float]) -> None:
        _legend(axes, left, 105)
        for number, (name, need) in enumerate(table.items()):
            grown = min(max(len(table) * done[0] - number, 0.0), 1.0)
            y = 138 + gap * number
            write(axes, left - 14, y + height / 2, name, 22, ha="right")
            if grown:
                whole = need.total
                labels = (lambda value, whole=whole: f"{value / whole:.0%}") if grown == 1 else None
                _bar(axes, left, y, height, need, grown * (right - left) / whole, labels)

    def share(name: str, part: str) -> str:
        return f"{getattr(table[name], part) / table[name].total:.0%}"

    def moving(name: str) -> str:
        return f"{(table[name].activations + table[name].temporary) / table[name].total:.0%}"

    return Scene(
        "Which part is the largest?",
        11.5,
        (
            (0, f"Each bar is one step as a whole: 32-bit, Adam, one text of {STEP.tokens:,} tokens."),
            (
                5.5,
                f"{count(parameters(MODELS[FIRST]))} weights: activations and temporary are {moving(FIRST)}, states "
                f"{share(FIRST, 'optimizer')}. {count(parameters(MODELS[LAST]))}: {moving(LAST)} and "
                f"{share(LAST, 'optimizer')}.",
            ),
        ),
        ((0.8, 4.5),),
        draw,
        "Seven bars of equal length, one for each model, cut into the shares of the five parts. With more texts at a "
        "time activations and temporary grow, the other three do not.",
        ("model", *(look.label for look in PARTS.values())),
        tuple((name, *(share(name, part) for part in PARTS)) for name in MODELS),
    )


def _one_gpu() -> Scene:
    """One model on one GPU: what each measure saves."""
    model = "llama-7b"
    table = {way: needs(model, plan) for way, plan in WAYS.items()}
    found = {way: devices(model, plan) for way, plan in WAYS.items()}
    smallest = {way: name if number == 1 else "none" for way, (name, number) in found.items()}
    left, right, height, gap = 320, 1030, 44, 68
    scale = (right - left) / max(max(need.total for need in table.values()), 1.04 * DEVICES["H200"] * GB)

    def draw(axes: "Axes", done: Sequence[float]) -> None:
        _legend(axes, left, 100)
        for number, (way, need) in enumerate(table.items()):
            if not done[number]:
                continue
            y = 158 + gap * number
            write(axes, left - 14, y + height / 2, way, 22, ha="right")
            labels = (lambda value: f"{value / GB:.3g}") if done[number] == 1 else None
            end = _bar(axes, left, y, height, need, scale * done[number], labels)
            if done[number] == 1:
                text = f"{memory.size(need.total)}: {smallest[way]}"
                over = {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 2}, "zorder": 4}
                write(axes, end + 12, y + height / 2, text, 23, ha="left", weight="bold", **over)
        for name, room in DEVICES.items():
            x = left + scale * room * GB
            _line(axes, [(x, 146), (x, 560)], BLACK, linestyle="--")
            write(axes, x, 130, f"{name} {room} GB", 20, weight="bold")
        write(axes, left - 14, 130, "GB", 20, ha="right")

    plain, mixed, half, checkpointed, lora, qlora = table.values()
    a_weight = (mixed.weights + mixed.gradients + mixed.optimizer) / parameters(model)
    before, after = (memory.size(need.gradients + need.optimizer) for need in (checkpointed, lora))
    texts = (
        f"LLaMA 7B, {BATCH.batch} texts of {BATCH.tokens:,} tokens, 32-bit: {memory.size(plain.total)}. "
        + (f"Smallest GPU: {smallest['32-bit']}." if found["32-bit"][1] == 1 else "No GPU here holds that."),
        f"Mixed: with a 32-bit copy still {a_weight:.0f} bytes a weight, but activations "
        f"{memory.size(plain.activations)} → {memory.size(mixed.activations)}.",
        f"All in 16 bit: {memory.size(half.total)}. But small updates may round to nothing.",
        f"Checkpointing keeps each layer's input, computes the rest again: {memory.size(half.activations)} → "
        f"{memory.size(checkpointed.activations)}.",
        f"LoRA trains small added matrices: gradients and states {before} → {after}.",
        f"QLoRA: frozen weights in 4 bit. In all {memory.size(plain.total)} → {memory.size(qlora.total)}. Smallest "
        f"GPU: {list(smallest.values())[-1]}.",
    )
    times = (0.0, 4.5, 10.5, 14.5, 19.5, 24.0)
    return Scene(
        STILL,
        29,
        tuple(zip(times, texts, strict=True)),
        tuple((begin + 0.4, 1.2) for begin in times),
        draw,
        "Six bars appear one below the other, one for each way to train the same model, each cut into the five parts. "
        "Dashed lines mark the memory of the three GPUs: a bar that ends before the line fits. "
        "The sum stands at its end, with the smallest GPU that holds it. In mixed precision the 32-bit copy of the "
        "weights counts as an optimizer state.",
        ("LLaMA 7B", *_COLUMNS, "smallest GPU"),
        tuple((*_row(way, need), smallest[way]) for way, need in table.items()),
    )


def _many_gpus() -> Scene:
    """GPT-3 over many GPUs."""
    model = "gpt3-175b"
    device, room = "H200", DEVICES["H200"]
    numbers = {way: devices(model, plan)[1] for way, plan in SHARDED.items()}
    table = {way: needs(model, replace(plan, shards=numbers[way])) for way, plan in SHARDED.items()}
    alone = {way: needs(model, plan) for way, plan in SHARDED.items()}
    left, height, gap = 240, 84, 112
    cell = min(46.0, 800 / max(numbers.values()))

    def draw(axes: "Axes", done: Sequence[float]) -> None:
        _legend(axes, left, 100)
        for row, (way, need) in enumerate(table.items()):
            if not done[row]:
                continue
            y = 132 + gap * row
            write(axes, left - 14, y + height / 2, way, 24, ha="right")
            for number in range(numbers[way]):
                x = left + cell * number
                grown = min(max(numbers[way] * done[row] - number, 0.0), 1.0)
                level: float = y + height
                for part, value in _parts(need).items():
                    amount = grown * height * value / (room * GB)
                    if amount >= 0.3:
                        _rectangle(axes, x, level - amount, cell - 6, amount, part)
                    level -= amount
                _line(axes, [(x, y), (x, y + height), (x + cell - 6, y + height), (x + cell - 6, y), (x, y)], BLACK)
            if done[row] == 1:
                x = left + cell * numbers[way] + 10
                text = f"{numbers[way]} × {device}\n{memory.size(need.total)} on each"
                write(axes, x, y + height / 2, text, 24, ha="left", weight="bold")

    way = list(SHARDED)
    return Scene(
        f"GPT-3 175 B over GPUs of {room} GB: sharding",
        18,
        (
            (
                0,
                f"32-bit, checkpointing: {memory.size(alone[way[0]].total)}, cut into {numbers[way[0]]} shards (ZeRO, "
                "FSDP), one on each GPU.",
            ),
            (
                6,
                f"Activations are not shared out: each GPU reads its own texts. 16-bit: {numbers[way[1]]} GPUs.",
            ),
            (11, f"LoRA, 16-bit: {numbers[way[2]]} GPUs, filled with weights that are not trained."),
            (15, f"QLoRA, weights in 4 bit: {memory.size(alone[way[3]].total)}. GPUs: {numbers[way[3]]}."),
        ),
        ((0.6, 4.0), (6.4, 2.0), (11.4, 1.0), (15.3, 0.7)),
        draw,
        "Rows of boxes, each box one GPU, filled from the bottom with what it holds. Each row needs fewer boxes than "
        "the one above.",
        ("GPT-3, on each GPU", *_COLUMNS, "GPUs", "on one GPU it would be"),
        tuple((*_row(way, table[way]), str(numbers[way]), memory.size(alone[way].total)) for way in SHARDED),
    )


def _what_fits() -> Scene:
    """For each model and way the GPUs that hold it."""
    ways = {
        "32-bit": STEP,
        "all 16-bit": replace(STEP, weights="bfloat16"),
        "16-bit,\ncheckpointing": SHARDED["all 16-bit"],
        "LoRA, 16-bit,\ncheckpointing": SHARDED["LoRA, 16-bit"],
        "QLoRA,\ncheckpointing": SHARDED["QLoRA"],
    }
    models = {name: model for name, model in MODELS.items() if isinstance(model, str)}
    cells = {name: [devices(model, plan) for plan in ways.values()] for name, model in models.items()}
    rooms = ", ".join(f"{name}: {room} GB" for name, room in DEVICES.items())
    shades = {"T4": "white", "A100": "#D6E8F4", "H200": "#9CC8E6"}
    left, top, width, height = 224, 170, 204, 76

    def draw(axes: "Axes", done: Sequence[float]) -> None:
        for column, way in enumerate(ways):
            write(axes, left + width * (column + 0.5), 122, way, 22, weight="bold")
        for row, name in enumerate(models):
            write(axes, left - 14, top + height * (row + 0.5), name, 22, ha="right")
            for column, (device, number) in enumerate(cells[name]):
                if len(ways) * len(models) * done[0] > column * len(models) + row:
                    x, y = left + width * column, top + height * row
                    several = number != 1
                    box(
                        axes,
                        x + 4,
                        y + 4,
                        width - 8,
                        height - 8,
                        color=BLACK,
                        fill="#333333" if several else shades[device],
                    )
                    color = "white" if several else "black"
                    write(axes, x + width / 2, y + height / 2, _shown(device, number), 26, color=color, weight="bold")

    return Scene(
        "Which GPU is enough, or how many?",
        12,
        (
            (0, f"One text of {STEP.tokens:,} tokens on each GPU. {rooms}."),
            (7, "Fewer bits, fewer trained weights, more GPUs: count your own case in notebook 02."),
        ),
        ((0.8, 4.5),),
        draw,
        "A table with a row for each model and a column for each way to train it fills up column by column. Where one "
        "GPU is enough, its name stands on a light ground; where several are needed, their number on a dark one.",
        ("model", *(way.replace("\n", " ") for way in ways)),
        tuple((name, *(_shown(*cell) for cell in row)) for name, row in cells.items()),
    )


@functools.cache
def scenes() -> tuple[Scene, ...]:
    """Return the scenes of the film in their order, with the numbers of :func:`course_utils.memory.needs`."""
    return (
        _five_parts(),
        _one_step(),
        _from_small_to_large(),
        _shares(),
        _one_gpu(),
        _many_gpus(),
        _what_fits(),
    )


def begins() -> list[float]:
    """Return the second at which each scene begins, and at the end that at which the film ends."""
    return list(itertools.accumulate((scene.seconds for scene in scenes()), initial=0.0))


def _two_lines(text: str, longest: int = 68) -> str:
    """Break a caption into one or two lines of about the same length, never between a number and its unit."""
    joined = re.sub(r"(?<=\d) (?=(?:[kMGT]?B|[MB]|bytes|times|GPUs|tokens)\b)", "\N{NO-BREAK SPACE}", text)
    if len(text) > longest:
        for width in range(len(text) // 2, longest + 1):
            lines = textwrap.wrap(joined, width, break_on_hyphens=False, break_long_words=False)
            if len(lines) == 2:
                joined = "\n".join(lines)
                break
        else:
            raise ValueError(f"text={text!r}: it does not fit two lines of {longest} letters; shorten it")
    return joined.replace("\N{NO-BREAK SPACE}", " ")


def picture(number: int, second: float, dpi: float = 100) -> "Figure":
    """Draw one frame of the film.

    Args:
        number: of the scene, from 0.
        second: of the scene.
        dpi: 100 gives 1280 x 720 pixels.

    Raises:
        ValueError: there is no such scene or second.
    """
    if not 0 <= number < len(scenes()):
        raise ValueError(f"number={number}: expected a scene from 0 to {len(scenes()) - 1}")
    scene = scenes()[number]
    if not 0 <= second <= scene.seconds:
        raise ValueError(f"second={second}: scene {number} lasts from 0 to {scene.seconds:g}")
    fig, axes = sheet(WIDTH, HEIGHT)
    fig.set_dpi(dpi)
    write(axes, 40, 42, scene.title, 34, ha="left", weight="bold")
    write(axes, WIDTH - 40, 42, f"{number + 1} of {len(scenes())}", 22, ha="right", color=GREY)
    axes.fill([0, WIDTH, WIDTH, 0], [606, 606, HEIGHT, HEIGHT], color="#1A1A1A")
    write(axes, WIDTH / 2, 663, _two_lines(scene.caption(second)), 31, color="white")
    scene.draw(axes, scene.progress(second))
    return fig


def _pixels(fig: "Figure") -> bytes:
    """The colours of a figure, three bytes a pixel."""
    import numpy as np

    canvas: Any = fig.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].tobytes()


def frames(fps: int = FPS, dpi: float = 100) -> Iterator[bytes]:
    """Yield the frames of the film, three bytes a pixel; what stands still is drawn once.

    Args:
        fps: frames a second.
        dpi: 100 gives 1280 x 720 pixels.
    """
    from course_utils import figures

    for number, scene in enumerate(scenes()):
        before: tuple[object, ...] | None = None
        for frame in range(round(scene.seconds * fps)):
            state = (scene.caption(frame / fps), scene.progress(frame / fps))
            if state != before:
                with figures.style():
                    data = _pixels(picture(number, frame / fps, dpi))
            before = state
            yield data


def write_film(file: str | Path, fps: int = FPS) -> Path:
    """Draw the film and write it as H.264 that browsers play; the same ffmpeg always writes the same bytes.

    Args:
        file: name of an ``.mp4`` file.
        fps: frames a second.

    Returns:
        The file.

    Raises:
        ValueError: imageio-ffmpeg is not installed.
    """
    try:
        from imageio_ffmpeg import write_frames
    except ImportError:
        raise ValueError("a film is written by imageio-ffmpeg, which is not here: pip install imageio-ffmpeg") from None

    from course_utils.reporting import progress_bar

    target = Path(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    exact = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1", "-threads", "1"]
    coding = ["-crf", "24", "-preset", "slow", "-tune", "animation", "-g", str(10 * fps), "-movflags", "+faststart"]
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        part = Path(folder) / target.name
        stream = write_frames(
            str(part),
            (WIDTH, HEIGHT),
            fps=fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            quality=None,
            output_params=[*coding, *exact],
        )
        stream.send(None)
        with progress_bar(round(begins()[-1] * fps), "frames") as bar:
            for frame in frames(fps):
                stream.send(frame)
                bar.update()
        stream.close()
        os.replace(part, target)
    return target


def stills() -> bytes:
    """Return the last picture of each scene, side by side, as a PNG of 1600 pixels' width."""
    from PIL import Image

    from course_utils import figures

    size = (800, 450)
    rows = -(-len(scenes()) // 2)
    page = Image.new("RGB", (2 * size[0] + 10, rows * (size[1] + 10) - 10), "white")
    for number, scene in enumerate(scenes()):
        with figures.style():
            data = _pixels(picture(number, scene.seconds))
        still = Image.frombytes("RGB", (WIDTH, HEIGHT), data).resize(size, Image.Resampling.LANCZOS)
        page.paste(still, ((number % 2) * (size[0] + 10), (number // 2) * (size[1] + 10)))
    buffer = io.BytesIO()
    flat = page.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    flat.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _clock(second: float) -> str:
    return f"{int(second) // 60}:{int(second) % 60:02d}"


def transcript() -> str:
    """Return the film in words, as Markdown: scene by scene what one sees, the captions, every number, the sources."""
    models = {model for model in [*MODELS.values(), "llama-7b"] if isinstance(model, str)}
    lines = [
        "# Computational challenges of training LLMs",
        "",
        f"What the film [{NAME}.mp4]({NAME}.mp4) shows in {_clock(begins()[-1])} minutes, without sound: scene by "
        f"scene, with all captions and numbers. [{NAME}.png]({NAME}.png) shows the last picture of each scene.",
        "",
        "All numbers are computed by `course_utils.memory.needs`; 1 GB is 10⁹ bytes. They say what a training step "
        "holds, not what a certain program reserves. *Sum* is the sum of the parts, each at its largest; as they are "
        "not all at their largest at once, a step that frees its gradients holds less at any one time. A GPU counts as "
        "large enough where the sum is at most its whole memory; a few per cent of that belong to the driver.",
    ]
    for scene, begin, end in zip(scenes(), begins(), begins()[1:], strict=False):
        lines += ["", f"## {_clock(begin)} to {_clock(end)}: {scene.title}", "", scene.seen, "", "Captions:", ""]
        lines += [f"- {_clock(begin + second)} {text}" for second, text in scene.captions]
        lines += ["", f"| {' | '.join(scene.header)} |", f"|{' --- |' * len(scene.header)}"]
        lines += [f"| {' | '.join(row)} |" for row in scene.rows]
    lines += [
        "",
        "## Sources",
        "",
        "Shapes of the models, with the number of weights that the course counts from them:",
        "",
    ]
    lines += [
        f"- `{model}`, {count(parameters(model))}: {memory.SOURCES[model][1]}"
        for model in sorted(models, key=lambda model: parameters(model))
    ]
    lines += [
        f"- {name}: no published model; in the form of GPT-2, {model.layers} layers, width {model.width}, "
        f"{model.vocabulary_size:,} different tokens"
        for name, model in MODELS.items()
        if isinstance(model, TransformerConfig)
    ]
    lines += [
        "",
        "Memory of the GPUs: "
        + ", ".join(f"{name} {room} GB" for name, room in DEVICES.items())
        + ", from NVIDIA's datasheets. Optimizer: Kingma and Ba 2015. Mixed precision: Micikevicius et al. 2018. "
        "Checkpointing: Chen et al. 2016. Sharding: Rajbhandari et al. 2020. LoRA: Hu et al. 2022. QLoRA: Dettmers et "
        "al. 2023. Attention that never stores its maps: Dao et al. 2022.",
        "",
    ]
    return "\n".join(lines)


def write_all(folder: str | Path) -> list[Path]:
    """Draw the film and write it, its stills and its transcript.

    Args:
        folder: where to.

    Returns:
        The files written.
    """
    from course_utils import figures

    target = Path(folder)
    film = write_film(target / f"{NAME}.mp4")
    return [
        film,
        figures.write_file(target / f"{NAME}.png", stills()),
        figures.write_file(target / f"{NAME}.md", transcript().encode()),
    ]


def show() -> None:
    """Display the film: a still picture everywhere, and the video where its folder lies above the working folder."""
    from IPython.display import display

    from course_utils import figures, plotting

    number = [scene.title for scene in scenes()].index(STILL)
    with figures.style():
        still = plotting.figure_html(picture(number, scenes()[number].seconds), ALT, CAPTION, dpi=62)
    files = [folder / "supplemental" / f"{NAME}.mp4" for folder in (Path.cwd(), *Path.cwd().parents)]
    file = next((file for file in files if file.is_file()), None)
    video = ""
    if file is not None:
        source = Path(os.path.relpath(file)).as_posix()
        look = 'controls preload="metadata" width="800" style="max-width:100%"'
        video = f'<video {look} src="{source}" aria-label="{CAPTION}"></video>'
    display({"text/html": video + still, "text/plain": f"Film: {CAPTION} Figure: {ALT}"}, raw=True)
