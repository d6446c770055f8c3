"""Two families side by side: their blocks as pictures, and the switches in which they differ."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from course_utils.widgets.base import Drawing, choice, explorer

if TYPE_CHECKING:
    from course_utils.transformer import TransformerConfig

Step = tuple[str, str]
"""What a box says, and what it is: ``attention``, ``network``, ``norm``, ``sum`` or ``edge``."""


def family_explorer(configs: "Mapping[str, TransformerConfig]", first: str = "", second: str = "") -> Any:
    """Display two families to choose, a block of each, and what they differ in.

    Args:
        configs: name of a family to its row of switches; two or more.
        first: the family shown on the left at the beginning; by default the first one.
        second: the one on the right; by default the second one.

    Returns:
        The widget that was displayed.

    Raises:
        ValueError: there are fewer than two families, or no such one.
    """
    names = list(configs)
    if len(names) < 2:
        raise ValueError(f"family_explorer() got {len(names)} families; expected 2 or more")
    for name in (first, second):
        if name and name not in configs:
            raise ValueError(f"there is no family {name!r}; there are: {', '.join(names)}")
    controls = {
        "left": choice("Left", names, first or names[0]),
        "right": choice("Right", names, second or names[1]),
    }
    return explorer(controls, lambda left, right: draw_families(configs, left, right))


def steps(config: "TransformerConfig") -> list[Step]:
    """Return what a token goes through, from below: embeddings, one block (of the decoder, where there is one), head.

    Args:
        config: the row of switches.
    """
    added = config.positions in ("learned", "sinusoidal")
    within = {"rotary": ", rotary", "alibi": ", ALiBi", "t5": ", T5 buckets"}.get(config.positions, "")
    mask = "" if config.kind == "encoder" else "causal "
    activation = {"silu": "SiLU", "relu": "ReLU"}.get(config.activation, "GELU")
    attention = (f"{mask}self-attention{within}", "attention")
    network = (f"feed-forward, {'gated ' if config.gated else ''}{activation}", "network")
    norm = ("RMSNorm" if config.norm == "rmsnorm" else "LayerNorm", "norm")
    found: list[Step] = [(f"embeddings{f' + {config.positions} positions' if added else ''}", "edge")]
    found += [norm] if config.embedding_norm else []
    if config.parallel:
        pair = f"{mask}attention{within}\n{network[0].replace('feed-forward', 'network')}"
        found += [norm, (pair, "attention"), ("add both", "sum")]
    else:
        cross = [("cross-attention to the encoder", "attention")] if config.kind == "encoder-decoder" else []
        for branch in (attention, *cross, network):
            add = ("add", "sum")
            found += [norm, branch, add] if config.norm_place == "pre" else [branch, add, norm]
    found += [norm] if config.ends_with_norm else []
    return [*found, ("scores of the vocabulary", "edge")]


def draw_families(configs: "Mapping[str, TransformerConfig]", left: str, right: str) -> Drawing:
    """Draw a block of each of two families, and say in which switches they differ.

    Args:
        configs: name of a family to its row of switches.
        left: one family.
        right: the other.

    Returns:
        Figure, alternative text, and lines of text.
    """
    from course_utils.families import switch_row
    from course_utils.figures.canvas import BLACK, BLUE, GREEN, GREY, ORANGE, arrow, box, sheet, write

    colors = {"attention": BLUE, "network": ORANGE, "norm": GREY, "sum": BLACK, "edge": GREEN}
    columns = [steps(configs[name]) for name in (left, right)]
    height = 34 * max(map(len, columns)) + 60
    fig, axes = sheet(800, height)
    for x, name, column in zip((210, 590), (left, right), columns, strict=True):
        write(axes, x, 18, name, 16, weight="bold")
        for number, (text, kind) in enumerate(column):
            y = height - 40 - 34 * number
            parts = text.split("\n")  # what works side by side stands side by side
            wide = 340 / len(parts)
            for place, part in enumerate(parts):
                box(axes, x - 170 + place * wide, y, wide - 4, 27, part, colors[kind], 12)
            if number:
                arrow(axes, (x, y + 34), (x, y + 28))
    rows = [switch_row(configs[name]) for name in (left, right)]
    lines = [
        f"{switch}: {left} {value}, {right} {rows[1][switch]}."
        for switch, value in rows[0].items()
        if value != rows[1][switch]
    ] or ["No switch in the table differs."]
    alt = "Two columns of boxes, read from below. " + " ".join(
        f"{name}: {', then '.join(text for text, _ in column)}."
        for name, column in zip((left, right), columns, strict=True)
    ).replace("\n", " beside ")
    return fig, alt, lines
