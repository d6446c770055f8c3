"""Move two tokens apart, and watch the path between them in a recurrent network and in attention."""

from typing import Any

from course_utils.plotting import COLORS, figure
from course_utils.rnn import path_length
from course_utils.widgets.base import Drawing, explorer, slider


def path_explorer(tokens: int = 12) -> Any:
    """Display the way of a signal from a token to an output, with controls for length, distance, layers and loss.

    Args:
        tokens: number of tokens at first, 2 to 24.

    Returns:
        The widget that was displayed.

    Raises:
        ValueError: the number of tokens is out of range.
    """
    if not 2 <= tokens <= 24:
        raise ValueError(f"path_explorer(tokens={tokens}): expected 2 to 24")
    controls = {
        "tokens": slider("Tokens", tokens, 2, 24),
        "distance": slider("Distance", min(8, tokens - 1), 1, 23),
        "layers": slider("Layers", 2, 1, 4),
        "kept": slider("Share of the gradient that one step keeps", 0.8, 0.1, 1.2, 0.05),
    }
    return explorer(controls, draw_paths)


def draw_paths(tokens: int, distance: int, layers: int, kept: float) -> Drawing:
    """Draw both paths on the grid of tokens and layers.

    Args:
        tokens: number of tokens.
        distance: how far before the last token the signal begins.
        layers: number of layers.
        kept: share of the gradient that one step keeps, above 0.

    Returns:
        Figure, alternative text, and lines of text.

    Raises:
        ValueError: the distance does not fit into the tokens.
    """
    if not 1 <= distance < tokens:
        raise ValueError(f"a distance of {distance} does not fit into {tokens} tokens: choose at most {tokens - 1}")
    fig, panels = figure(9.0, 2.4 + 0.35 * layers, ncols=2)
    start, end = tokens - 1 - distance, tokens - 1
    lines = []
    for axes, architecture in zip(panels, ("recurrent", "attention"), strict=True):
        steps = path_length(architecture, distance, layers)
        for layer in range(layers + 1):
            axes.scatter(range(tokens), [layer] * tokens, s=24, color="#cccccc", zorder=2)
        if architecture == "recurrent":
            places = [(start, 0), *((place, 1) for place in range(start, end + 1))]
            places += [(end, layer) for layer in range(2, layers + 1)]
        else:
            places = [(start, 0), *((end, layer) for layer in range(1, layers + 1))]
        color = COLORS[1] if architecture == "recurrent" else COLORS[0]
        axes.plot(*zip(*places, strict=True), color=color, marker="o", zorder=3)
        axes.set_yticks(range(layers + 1), ["token", *(f"layer {layer}" for layer in range(1, layers + 1))])
        axes.set(xlabel="position", title=f"{architecture}: {steps} steps", ylim=(-0.4, layers + 0.4))
        share = kept**steps
        lines.append(
            f"{architecture}: {steps} steps; {kept:g} to the power of {steps} = {share:.3g} of the gradient is left"
        )
    alt = (
        f"Two grids of {tokens} positions and {layers} layers. From the token {distance} before the last, the "
        "recurrent path goes through every position between; that of attention goes straight to the last position."
    )
    return fig, alt, lines
