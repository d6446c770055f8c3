"""Paint who may look at whom, and see the attention weights follow."""

import math
from collections.abc import Sequence
from typing import Any

from course_utils.plotting import figure, heatmap
from course_utils.widgets.base import Drawing, choice, explorer

TOKENS = ("the", "cat", "sat", "down", "<pad>")
PRESETS = ("causal", "padding", "causal and padding", "window of 2", "everything", "nothing", "own painting")
PAD = "<pad>"

Painting = tuple[tuple[bool, ...], ...]
"""For each query, whether it may look at each key."""


def mask_painter(tokens: Sequence[str] = TOKENS, preset: str = "causal") -> Any:
    """Display check boxes, one for each pair of query and key, and the weights that the mask leaves.

    Choose a preset, or tick boxes one by one (Tab moves on, Space ticks). The scores under the mask stay the same.

    Args:
        tokens: 2 to 8 tokens; ``<pad>`` stands for padding.
        preset: the mask shown first.

    Returns:
        The widget that was displayed.

    Raises:
        ValueError: there are too few or too many tokens, or no such preset.
    """
    import ipywidgets
    import traitlets

    if not 2 <= len(tokens) <= 8:
        raise ValueError(f"mask_painter() got {len(tokens)} tokens; expected 2 to 8")
    preset_mask(preset, tokens)

    class Board(traitlets.HasTraits):
        """Check boxes that change together count as one change."""

        value = traitlets.Tuple()
        panel = traitlets.Any()

    layout = ipywidgets.Layout(width="150px")
    boxes = [
        [
            ipywidgets.Checkbox(description=f"{_plain(query)} → {_plain(key)}", indent=False, layout=layout)
            for key in tokens
        ]
        for query in tokens
    ]
    board, names, busy = Board(), choice("Mask", PRESETS, preset), [False]

    def read() -> Painting:
        return tuple(tuple(bool(box.value) for box in row) for row in boxes)

    def paint(_change: object = None) -> None:
        if names.value == "own painting":
            return
        busy[0] = True
        for row, wanted in zip(boxes, preset_mask(names.value, tokens), strict=True):
            for box, value in zip(row, wanted, strict=True):
                box.value = value
        busy[0] = False
        board.value = read()

    def ticked(_change: object) -> None:
        if not busy[0]:
            names.value = "own painting"
            board.value = read()

    paint()
    names.observe(paint, names="value")
    for row in boxes:
        for box in row:
            box.observe(ticked, names="value")
    hint = ipywidgets.HTML("<p style='margin:.4em 0'>A tick at “query → key” lets the query look at the key.</p>")
    board.panel = ipywidgets.VBox([names, hint, *(ipywidgets.HBox(row) for row in boxes)])
    return explorer({"mask": board}, lambda mask: draw_mask(mask, tokens))


def preset_mask(name: str, tokens: Sequence[str]) -> Painting:
    """Return one of the ready masks.

    Args:
        name: one of :data:`PRESETS`; ``own painting`` begins as ``everything``.
        tokens: the tokens; ``<pad>`` stands for padding.

    Raises:
        ValueError: there is no such mask.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no mask {name!r}; there are: {', '.join(PRESETS)}")

    def allowed(query: int, key: int) -> bool:
        real = tokens[key] != PAD
        return {
            "causal": key <= query,
            "padding": real,
            "causal and padding": key <= query and real,
            "window of 2": query - 2 < key <= query,
            "nothing": False,
        }.get(name, True)

    return tuple(tuple(allowed(query, key) for key in range(len(tokens))) for query in range(len(tokens)))


def fixed_scores(count: int) -> list[list[float]]:
    """Return scores that look like those of an attention head: (count, count), between -2 and 2."""
    return [
        [1.2 * math.cos(0.9 * (q - k)) + 0.8 * math.sin(1.7 * k + 0.4 * q) for k in range(count)] for q in range(count)
    ]


def draw_mask(mask: Painting, tokens: Sequence[str]) -> Drawing:
    """Draw a mask beside the weights that it leaves, and say what it means for each query.

    Args:
        mask: for each query, whether it may look at each key.
        tokens: the tokens.

    Returns:
        Figure, alternative text, and lines of text.
    """
    import torch

    from course_utils.attention import softmax

    allowed = torch.tensor(mask)
    weights = softmax(torch.tensor(fixed_scores(len(tokens))).masked_fill(~allowed, -math.inf))
    fig, (left, right) = figure(9.6, 1.3 + 0.42 * len(tokens), ncols=2)
    names = list(map(str, tokens))
    heatmap(
        allowed.int(), names, names, "Mask: 1 = may look", left, digits=0, ylabel="query", xlabel="key", limits=(0, 1.6)
    )
    heatmap(weights, names, names, "Attention weights", right, xlabel="key", limits=(0, 1))
    blind = [name for name, row in zip(names, mask, strict=True) if not any(row)]
    future = [name for q, name in enumerate(names) if any(mask[q][q + 1 :])]
    padded = any(row[key] for row in mask for key, name in enumerate(names) if name == PAD)
    lines = [
        f"{sum(map(sum, mask))} of {len(tokens) ** 2} pairs may look.",
        f"Looks into the future: {', '.join(future) or 'no token'}."
        + (" Not fit for predicting the next token." if future else " Fit for predicting the next token."),
    ]
    if PAD in names:
        lines.append(f"Padding is {'seen' if padded else 'hidden'}.")
    if blind:
        lines.append(f"May look at nothing, so all weights are 0: {', '.join(blind)}.")
    alt = (
        f"Two square tables for the tokens {' '.join(names)}. Left the mask, right the attention weights: wherever the "
        "mask holds 0 the weight is 0, and the others in the row share the sum of 1."
    )
    return fig, alt, lines


def _plain(token: str) -> str:
    """A token as a label; older ipywidgets read labels as HTML."""
    return token.replace("&", "+").replace("<", "‹").replace(">", "›")
