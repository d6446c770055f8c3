"""Heads that form: the curves of a training while it runs, and a way back through it with the maps of every head."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from course_utils.interpretability import FormingHeads, Snapshot
from course_utils.plotting import COLORS, SEQUENTIAL, figure
from course_utils.widgets.base import Drawing, explorer, slider

SCORES = ("previous_token", "induction")


def draw_forming(snapshots: Sequence[Snapshot], steps: int) -> Any:
    """Draw loss and head scores up to the last snapshot.

    Args:
        snapshots: the snapshots so far, in order.
        steps: number of steps of the whole training, for the axis.

    Returns:
        A figure of two panels over the steps: the losses, and the scores of each head.
    """
    fig, (left, right) = figure(9.0, 3.4, ncols=2)
    at = [snapshot.step for snapshot in snapshots]
    left.plot(at, [snapshot.loss for snapshot in snapshots], label="all tokens")
    left.plot(at, [snapshot.repeated_loss for snapshot in snapshots], label="repeated tokens")
    left.set(xlabel="step", ylabel="loss (nats a token)", xlim=(0, steps), ylim=(0, None), title="Loss")
    left.legend()
    layers, heads = snapshots[0].induction.shape
    for score, color, line in zip(SCORES, COLORS, ("--", "-"), strict=False):
        for layer in range(layers):
            for head in range(heads):
                values = [float(getattr(snapshot, score)[layer, head]) for snapshot in snapshots]
                named = layer == head == 0
                right.plot(
                    at, values, line, color=color, marker="", lw=1.5, label=score.replace("_", " ") if named else None
                )
    right.set(xlabel="step", ylabel="score", xlim=(0, steps), ylim=(0, 1), title=f"Each of the {layers * heads} heads")
    right.legend()
    return fig


def heads_explorer(forming: FormingHeads) -> Any:
    """Display every head's map at one moment of a training, with a slider over the snapshots.

    Args:
        forming: what :func:`course_utils.interpretability.watch_heads_form` returned.

    Returns:
        The widget that was displayed.
    """
    last = len(forming.snapshots) - 1
    return explorer(
        {"number": slider("Snapshot", last, 0, last)}, lambda number: draw_snapshot(forming.snapshots[number])
    )


def draw_snapshot(snapshot: Snapshot) -> Drawing:
    """Draw the maps of all heads, one row a layer, with their scores.

    Args:
        snapshot: the model at one step.

    Returns:
        Figure, alternative text, and lines of text.
    """
    layers, heads, tokens, _ = snapshot.maps.shape
    fig, panels = figure(1.9 * heads + 0.6, 2.1 * layers + 0.3, nrows=layers, ncols=heads, squeeze=False)
    for (layer, head), axes in np.ndenumerate(panels):
        shades = np.rint(15 * np.sqrt(snapshot.maps[layer, head].numpy())) / 15  # few shades make a small picture
        axes.imshow(shades, cmap=SEQUENTIAL, vmin=0, vmax=1, interpolation="nearest")
        previous, induction = (float(getattr(snapshot, score)[layer, head]) for score in SCORES)
        axes.set_title(f"previous {previous:.2f}\ninduction {induction:.2f}", fontsize=9)
        axes.set_xticks([0, tokens // 2], ["0", str(tokens // 2)], fontsize=8)
        axes.set_yticks([0, tokens // 2], ["0", str(tokens // 2)], fontsize=8)
        if head == 0:
            axes.set_ylabel(f"layer {layer + 1}\nquery", fontsize=9)
        if layer == layers - 1:
            axes.set_xlabel(f"key\nhead {head + 1}", fontsize=9)
    alt = (
        f"Attention maps of {layers} layers of {heads} heads on a segment of {tokens // 2} tokens that stands there "
        "twice. A previous-token head shows a line just below the diagonal, an induction head a line in the second "
        "half that points one place behind the earlier occurrence."
    )
    lines = [
        f"step {snapshot.step:,}, after {snapshot.tokens_seen:,} tokens",
        f"loss on repeated tokens: ≈{snapshot.repeated_loss:.2f} nats; copied: ≈{100 * snapshot.copy_accuracy:.0f} %",
    ]
    return fig, alt, lines
