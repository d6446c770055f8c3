"""Pick a model, move number formats, batch, length and method, and see which GPU holds what part by part."""

from typing import TYPE_CHECKING, Any

from course_utils.plotting import COLORS, figure
from course_utils.widgets.base import Drawing, Live, choice, frame, slider, text

if TYPE_CHECKING:
    from course_utils.transformer import TransformerConfig

OWN = "sizes typed below"
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, layers in bfloat16 (autocast)": dict(activations="bfloat16"),
    "bfloat16, float32 copy and states": dict(weights="bfloat16", states="float32", master=True),
    "bfloat16 throughout": dict(weights="bfloat16"),
    "int8 weights (inference)": dict(weights="int8"),
}
"""What the formats are called, and the settings of :class:`course_utils.memory.Plan` that they stand for."""
SHOWN = ("T4", "A100 40", "A100 80", "H200")
"""The GPUs of ``memory.GPUS`` that are drawn."""
SHARDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
LARGEST = 10**7
NO_YES = ("no", "yes")


class MemoryCalculator(Live):
    """Bars of what training or inference holds, part by part, and how much of a T4, A100 or H200 that is.

    Display it as the last line of a cell.

    Args:
        model: a name of ``memory.SHAPES``, or ``OWN``.
        sizes: layers, width, heads and vocabulary, for ``OWN``.
        formats: one of ``FORMATS``.
        method: ``full``, ``lora``, ``qlora`` or ``inference``.
        batch: sequences at a time.
        tokens: length of each.

    Raises:
        ValueError: there is no such model, or a value is out of range.
    """

    def __init__(
        self,
        model: str = "llama-7b",
        sizes: str = "12, 768, 12, 50257",
        formats: str = "float32",
        method: str = "full",
        batch: int = 1,
        tokens: int = 2048,
    ):
        from course_utils.memory import METHODS, OPTIMIZERS, SHAPES

        draw_memory(model, sizes, formats, method, batch=batch, tokens=tokens)  # refuses what cannot be
        controls = {
            "model": choice("Model", (*SHAPES, OWN), model),
            "sizes": text("Layers, width, heads, vocabulary", sizes),
            "formats": choice("Number formats", tuple(FORMATS), formats),
            "method": choice("Method", METHODS, method),
            "batch": slider("Sequences at a time", batch, 1, 1024),
            "tokens": slider("Tokens a sequence", tokens, 1, 131072),
            "optimizer": choice("Optimizer", OPTIMIZERS, "adam"),
            "checkpointing": choice("Checkpointing", NO_YES),
            "fused": choice("Fused attention", NO_YES, "yes"),
            "rank": slider("Rank of LoRA", 8, 1, 256),
            "shards": choice("GPUs that share", SHARDS),
            "stage": choice("ZeRO stage", (1, 2, 3), 3),
        }
        super().__init__(*frame(controls, draw_memory))


def shape_from(model: str, sizes: str) -> "TransformerConfig | str":
    """Return the shape to compute with.

    Args:
        model: a name of ``memory.SHAPES``, or ``OWN``.
        sizes: layers, width, heads and vocabulary, for ``OWN``: a decoder like GPT-2, without learned positions.

    Raises:
        ValueError: what was typed are no four sizes that fit together.
    """
    from course_utils.transformer import TransformerConfig

    if model != OWN:
        return model
    typed = [part.strip() for part in sizes.split(",")]
    numbers = [int(part) if part.isdecimal() and len(part) <= len(str(LARGEST)) else 0 for part in typed]
    if len(numbers) != 4 or not all(1 <= number <= LARGEST for number in numbers):
        raise ValueError(
            f"sizes {sizes!r}: expected layers, width, heads and vocabulary, four whole numbers from 1 to {LARGEST:,}, "
            "for example 12, 768, 12, 50257"
        )
    layers, width, heads, words = numbers
    return TransformerConfig(words, width=width, layers=layers, heads=heads)


def draw_memory(
    model: str,
    sizes: str = "",
    formats: str = "float32",
    method: str = "full",
    batch: int = 1,
    tokens: int = 2048,
    optimizer: str = "adam",
    checkpointing: str = "no",
    fused: str = "yes",
    rank: int = 8,
    shards: int = 1,
    stage: int = 3,
) -> Drawing:
    """Draw the parts as bars, and beside them what share of each GPU's memory they take.

    Args:
        model: a name of ``memory.SHAPES``, or ``OWN``.
        sizes: layers, width, heads and vocabulary, for ``OWN``.
        formats: one of ``FORMATS``.
        method: ``full``, ``lora``, ``qlora`` or ``inference``.
        batch: sequences at a time, on each GPU.
        tokens: length of each.
        optimizer: one of ``memory.OPTIMIZERS``.
        checkpointing: ``yes`` or ``no``.
        fused: attention that does not store its maps: ``yes`` or ``no``.
        rank: rank of LoRA.
        shards: GPUs that share what the stage says.
        stage: stage of ZeRO.

    Returns:
        Figure, alternative text, and lines of text.

    Raises:
        ValueError: the sizes or the settings do not fit together.
    """
    from course_utils import memory

    shape = shape_from(model, sizes)
    if formats not in FORMATS:
        raise ValueError(f"formats={formats!r}: expected one of {', '.join(FORMATS)}")
    plan = memory.Plan(
        method=method,
        batch=batch,
        tokens=tokens,
        optimizer=optimizer,
        checkpointing=checkpointing == "yes",
        fused=fused == "yes",
        rank=rank,
        shards=shards,
        stage=stage,
        **FORMATS[formats],
    )
    found = memory.needs(shape, plan)
    bars = {**found.parts, "at one time": found.peak}
    fig, (left, right) = figure(9.2, 1.3 + 0.36 * max(len(bars), len(SHOWN)), ncols=2)
    for place, (name, value) in enumerate(bars.items()):
        peak = name == "at one time"
        left.barh(place, value / memory.GB, color="white" if peak else COLORS[0], edgecolor=COLORS[7 if peak else 0])
        left.text(value / memory.GB, place, f" {memory.size(value)}", va="center", fontsize=9)
    left.set_yticks(range(len(bars)), list(bars))
    left.set(xlim=(0, 1.3 * max(bars.values()) / memory.GB), xlabel="GB (10⁹ bytes)" + " on each GPU" * (shards > 1))
    left.set_title("What is held")
    verdicts = []
    for place, name in enumerate(SHOWN):
        share = found.peak / (memory.GPUS[name] * memory.GB)
        verdicts.append(f"fits, {share:.0%} used" if share <= 1 else f"does not fit, {share:,.1f} times its memory")
        look = dict(color=COLORS[2]) if share <= 1 else dict(facecolor="white", edgecolor=COLORS[1], hatch="xxxx")
        right.barh(place, share, **look)
        right.text(max(share, 1), place, f" {verdicts[-1].split(',')[0]}", va="center", fontsize=9)
    largest = found.peak / (min(memory.GPUS[name] for name in SHOWN) * memory.GB)
    right.axvline(1, color=COLORS[7], linestyle="--", linewidth=1)
    right.set_yticks(range(len(SHOWN)), [f"{name}, {memory.GPUS[name]} GB" for name in SHOWN])
    right.set(xlim=(0, 1.35 * max(1.0, largest)), xlabel="at one time / memory of the GPU")
    right.set_title("Does it fit?")
    for axes in (left, right):
        axes.invert_yaxis()
    named = ", ".join(f"{name} {memory.size(value)}" for name, value in bars.items())
    fits = "; ".join(f"{name} {verdict}" for name, verdict in zip(SHOWN, verdicts, strict=True))
    trained, every = memory.trained_parameters(shape, plan)
    some = f"{trained:,} ({trained / every:.2%})" if trained else "none"
    lines = [
        f"{every:,} weights, {'all' if trained == every else some} of them trained.",
        f"At most {memory.size(found.peak)} at one time; {memory.size(found.total)} is the sum of the parts, which is "
        "held where gradients are added up over several batches.",
        f"{fits}.",
    ]
    if model != OWN:
        stated, source = memory.SOURCES[model]
        lines.append(f"Stated: {stated / memory.GB:,.3g} billion weights ({source}).")
    return fig, f"Two panels of bars. Held, by part: {named}. Against the memory of GPUs: {fits}.", lines
