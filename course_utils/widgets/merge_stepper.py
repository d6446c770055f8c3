"""Move the number of merges, and watch how byte-pair encoding cuts a text."""

from typing import Any

from course_utils.plotting import COLORS, figure
from course_utils.tokenization import BytePairEncoding
from course_utils.widgets.base import Drawing, explorer, slider, text

SAMPLE = "Attention weights sum to 1."
LONGEST = 160


def merge_stepper(tokenizer: BytePairEncoding, sample: str = SAMPLE, merges: int = 0) -> Any:
    """Display how a text is cut after the first merges of a tokenizer, with controls for both.

    Args:
        tokenizer: a trained tokenizer.
        sample: text to begin with, at most 160 bytes in UTF-8.
        merges: number of merges to begin with.

    Returns:
        The widget that was displayed.

    Raises:
        ValueError: the text is empty or too long.
    """
    controls = {
        "sample": text("Text", sample),
        "merges": slider("Merges", merges, 0, len(tokenizer.merges)),
    }
    return explorer(controls, lambda sample, merges: draw_merges(tokenizer, sample, merges))


def draw_merges(tokenizer: BytePairEncoding, sample: str, merges: int) -> Drawing:
    """Draw a text as boxes, one for each token after the first ``merges`` merges.

    Args:
        tokenizer: a trained tokenizer.
        sample: the text.
        merges: how many of its merges are used.

    Returns:
        Figure, alternative text, and lines of text.

    Raises:
        ValueError: the text is empty or too long.
    """
    size = len(sample.encode(errors="replace"))
    if not 1 <= size <= LONGEST:
        raise ValueError(f"the text has {size} bytes; expected 1 to {LONGEST}")
    part = BytePairEncoding(tokenizer.merges[:merges], tokenizer.special_tokens)
    tokens = part.tokens(sample)
    rows, wide = [[]], 64  # type: list[list[tuple[float, float, str]]], int
    at = 0.0
    for token in tokens:
        width = len(token) + 0.9
        if at + width > wide and rows[-1]:
            rows.append([])
            at = 0.0
        rows[-1].append((at, width, token))
        at += width + 0.25
    fig, axes = figure(8.0, 0.5 + 0.42 * len(rows))
    number = 0
    for line, row in enumerate(rows):
        for left, width, token in row:
            axes.broken_barh(
                [(left, width)], (-line - 0.36, 0.72), color=COLORS[5] if number % 2 else COLORS[4], alpha=0.45
            )
            axes.text(left + width / 2, -line, token, ha="center", va="center", family="DejaVu Sans Mono", fontsize=9)
            number += 1
    axes.set(xlim=(-0.2, wide + 1), ylim=(-len(rows) + 0.4, 0.6))
    axes.axis("off")
    axes.set_title(f"{size} bytes, {merges} merges: {len(tokens)} tokens")
    last = "no merge yet: each byte is a token" if not merges else "newest merge: {} + {}".format(*part.merges[-1])
    lines = [" | ".join(tokens), f"{size / len(tokens):.2f} bytes a token; {last}"]
    alt = f"The text cut into {len(tokens)} boxes by {merges} merges, one box a token; Ġ stands for a space."
    return fig, alt, lines
