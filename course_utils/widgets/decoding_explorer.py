"""Move temperature, top-k and top-p, and watch what each does to the candidates for the next token."""

from typing import Any

from course_utils.generation import Decoding, Step, explain_step
from course_utils.models import Loaded
from course_utils.plotting import COLORS, figure
from course_utils.widgets.base import Drawing, Live, frame, slider, text

SHOWN = 10
"""Candidates that are drawn."""


class DecodingExplorer(Live):
    """The distribution of the first new token behind a prompt, before and after each filter.

    Display it as the last line of a cell.

    Args:
        loaded: a model that writes, from :func:`course_utils.models.load`.
        prompt: the prompt at first.
        temperature: temperature at first, 0 to 2.
        top_k: top-k at first, 0 to 50; 0 keeps all.
        top_p: top-p at first, 0.05 to 1; 1 keeps all.

    Raises:
        ValueError: the prompt is empty or does not fit, or the model cannot write.
    """

    def __init__(
        self,
        loaded: Loaded,
        prompt: str = "the quick brown",
        temperature: float = 0.8,
        top_k: int = 8,
        top_p: float = 0.9,
    ):
        controls = {"prompt": text("Prompt", prompt), **decoding_controls(temperature, top_k, top_p)}
        super().__init__(*frame(controls, lambda prompt, **rest: draw_step(loaded, prompt, decoding(**rest))))


def decoding_controls(temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0) -> dict[str, Any]:
    """Return a slider for each setting of one step; their values go into :func:`decoding`.

    Args:
        temperature: first value.
        top_k: first value; 0 keeps all.
        top_p: first value; 1 keeps all.
    """
    return {
        "temperature": slider("Temperature (0: greedy)", temperature, 0, 2, 0.05),
        "top_k": slider("Top-k (0: all)", top_k, 0, 50),
        "top_p": slider("Top-p (1: all)", top_p, 0.05, 1, 0.05),
        "min_p": slider("Min-p (0: all)", 0, 0, 1, 0.05),
        "repetition_penalty": slider("Repetition penalty (1: none)", 1, 1, 2, 0.05),
    }


def decoding(top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, **settings: Any) -> Decoding:
    """Return the settings that sliders stand at, where the end that keeps all tokens stands for no filter.

    Args:
        top_k: 0 keeps all.
        top_p: 1 keeps all.
        min_p: 0 keeps all.
        **settings: further settings.
    """
    return Decoding(top_k=top_k or None, top_p=top_p if top_p < 1 else None, min_p=min_p or None, **settings)


def draw_step(loaded: Loaded, prompt: str, settings: Decoding) -> Drawing:
    """Draw one step: a column of bars for each filter.

    Args:
        loaded: the model.
        prompt: the prompt.
        settings: how to decode.

    Returns:
        Figure, alternative text, and lines of text.

    Raises:
        ValueError: the prompt is empty, does not fit or is no text, or the model cannot write.
    """
    step = explain_step(loaded, prompt, settings, top=SHOWN)
    names = [repr(token) if len(token) <= 16 else repr(token[:15]) + "…" for token in step.tokens]
    fig, panels = figure(1.3 + 1.6 * len(step.stages), 1.0 + 0.28 * len(names), ncols=len(step.stages), sharey=True)
    largest = max(max(values) for _, values in step.stages)
    before = step.stages[0][1]
    for axes, (name, after), kept in zip(_row(panels), step.stages, step.kept, strict=True):
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            cut = old > 0 and new == 0
            axes.barh(place, new, color=COLORS[0])
            axes.barh(place, old, fill=False, edgecolor=COLORS[7], linewidth=1, hatch="xxxx" if cut else "")
            label = "cut" if cut else f"{new:.2f}" if new else "–"
            axes.text(max(old, new) + 0.03 * largest, place, label, va="center", fontsize=9)
        axes.set(xlim=(0, 1.35 * largest), xlabel="probability")
        axes.set_title(f"{name}\n{kept:,} left", fontsize=10)
        before = after
    first = _row(panels)[0]
    first.set_yticks(range(len(names)), names, family="DejaVu Sans Mono", parse_math=False)
    first.invert_yaxis()
    return fig, _alt(step, prompt), _lines(loaded, step, prompt, settings)


def _row(panels: Any) -> list[Any]:
    return list(panels) if hasattr(panels, "__len__") else [panels]


def _alt(step: Step, prompt: str) -> str:
    stages = "; ".join(
        f"{name}: {kept:,} left, the likeliest shown {step.tokens[values.index(max(values))]!r} with {max(values):.2f}"
        for (name, values), kept in zip(step.stages, step.kept, strict=True)
    )
    end = f"…{prompt[-40:]}" if len(prompt) > 40 else prompt
    return (
        f"Bars of the probability of {len(step.tokens)} candidates for the token behind {end!r}, a column for each "
        f"stage. {stages}."
    )


def _lines(loaded: Loaded, step: Step, prompt: str, settings: Decoding) -> list[str]:
    model = step.stages[0][1]
    lines = [
        "Filled: probability behind the stage. Outline: before it. Crossed out: cut by this stage. Dash: cut before.",
        f"To the {len(model)} candidates shown the model gives {sum(model):.2f} of the probability.",
    ]
    if settings.repetition_penalty != 1 and not loaded.model.config.is_encoder_decoder:
        seen = set(loaded.tokenizer(prompt, verbose=False)["input_ids"])
        there = [repr(token) for token, number in zip(step.tokens, step.ids, strict=True) if number in seen]
        lines.append(f"Of them, in the prompt already, so made less likely: {', '.join(there) or 'none'}.")
    how = f"drawn with seed {settings.seed}" if settings.temperature else "the most probable"
    return [*lines, f"Next token: {step.chosen!r}, {how}."]
