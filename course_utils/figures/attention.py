"""Pictures of attention: a map over a sentence, heads, and the steps of the computation."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course_utils.figures.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    arrow,
    box,
    matrix,
    sheet,
    write,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORDS = ["the", "dog", "chased", "the", "ball", "until", "it", "rolled", "away"]
FEATURES = ["article", "noun", "animate", "can roll", "verb", "pronoun", "other"]
"""What the hand-made word vectors say about a word."""
_VECTORS = {
    "the": [1, 0, 0, 0, 0, 0, 0],
    "dog": [0, 1, 1, 0, 0, 0, 0],
    "chased": [0, 0, 0, 0, 1, 0, 0],
    "ball": [0, 1, 0, 1, 0, 0, 0],
    "until": [0, 0, 0, 0, 0, 0, 1],
    "it": [0, 0, 0, 0, 0, 1, 0],
    "rolled": [0, 0, 0, 0, 1, 0, 0],
    "away": [0, 0, 0, 0, 0, 0, 1],
}
# What a word with a feature (row) seeks in others (column). The pronoun of this sentence seeks a noun that can roll.
_SEEKS = torch.tensor(
    [
        [0.0, 3, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 3, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 4, 0, 0, 0, 4, 0],
        [0, 3, 0, 2, 0, 0, 0],
        [0, 0, 0, 0, 4, 0, 1],
    ]
)


def _places(length: int) -> Tensor:
    """Return positions as points on a quarter of a circle, (length, 2): their dot product falls with the distance."""
    angle = torch.arange(length) * (torch.pi / 2 / length)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def _weights(query: Tensor, key: Tensor) -> Tensor:
    """Return the attention weights of :func:`course_utils.attention.scaled_dot_product_attention`."""
    from course_utils.attention import scaled_dot_product_attention

    return scaled_dot_product_attention(query, key, key)[1]


def sentence_weights(head: str = "refers to") -> Tensor:
    """Compute attention weights over :data:`WORDS` from vectors made by hand, not from a trained model.

    Each word is a vector of :data:`FEATURES` and its position is a point on a circle. A head is a choice of what to
    put into queries and keys; the weights are scaled dot-product attention of the two.

    Args:
        head: ``"refers to"`` (a word seeks what its kind needs, near words first), ``"word before"`` (positions alone)
            or ``"same kind"`` (queries and keys are the same features).

    Returns:
        (words, words): each row sums to 1.

    Raises:
        ValueError: there is no such head.
    """
    words = torch.tensor([_VECTORS[word] for word in WORDS], dtype=torch.float32)
    places = _places(len(WORDS))
    if head == "refers to":
        return _weights(torch.cat([2.2 * words @ _SEEKS, 24 * places], -1), torch.cat([words, places], -1))
    if head == "word before":
        before = _places(len(WORDS)).roll(1, 0)
        before[0] = places[0]
        return _weights(400 * before, places)
    if head == "same kind":
        return _weights(8 * words, words)
    raise ValueError(f"head={head!r}; expected 'refers to', 'word before' or 'same kind'")


def attention_map() -> "Figure":
    """Draw the attention of one head over a sentence, as lines and as a matrix (Vaswani et al. 2017, section 3.2)."""
    weights = sentence_weights()
    fig, axes = sheet(800, 420)
    chosen = WORDS.index("it")
    write(axes, 190, 24, "as lines: the thicker, the larger the weight", 14, weight="bold")
    write(axes, 92, 54, "this word ...", 12, color=GREY, ha="right")
    write(axes, 290, 54, "... attends to these", 12, color=GREY, ha="left")
    rows = [84 + 37 * number for number in range(len(WORDS))]
    for row, y in enumerate(rows):
        marked = row == chosen
        write(axes, 92, y, WORDS[row], 15, ha="right", weight="bold" if marked else "normal")
        write(axes, 290, y, WORDS[row], 15, ha="left")
        for column, other in enumerate(rows):
            weight = float(weights[row, column])
            if weight >= 0.05:
                line: dict[str, Any] = {
                    "color": VERMILION if marked else BLUE,
                    "linewidth": 8 * weight,
                    "zorder": 3 if marked else 1,
                }
                axes.plot(
                    [100, 282], [y, other], alpha=0.95 if marked else 0.5, solid_capstyle="butt", marker="", **line
                )
    write(axes, 586, 24, "as a matrix: in hundredths, from 10 up", 14, weight="bold")
    matrix(axes, 470, 122, weights, 31, WORDS, WORDS, numbers=True, size=13)
    from matplotlib.patches import Rectangle

    axes.add_artist(Rectangle((470, 122 + 31 * chosen), 31 * 9, 31, fill=False, edgecolor=VERMILION, linewidth=2.5))
    return fig


def self_attention_heads() -> "Figure":
    """Draw three heads that look at one sentence in three ways (Vaswani et al. 2017, section 3.2.2)."""
    fig, axes = sheet(800, 350)
    heads = [
        ("word before", "head 1", "looks at the word before"),
        ("same kind", "head 2", "looks at words of its kind"),
        ("refers to", "head 3", "looks at what it refers to"),
    ]
    for number, (head, title, what) in enumerate(heads):
        left = 66 + 262 * number
        write(axes, left + 92, 22, title, 15, weight="bold")
        write(axes, left + 92, 44, what, 13, color=GREY)
        matrix(axes, left, 118, sentence_weights(head), 20.5, WORDS, WORDS, size=12)
    write(axes, 400, 328, "rows attend to columns; the darker, the larger the weight; each row sums to 1", 13)
    return fig


def attention_steps() -> "Figure":
    """Draw the steps of scaled dot-product attention with their shapes (Vaswani et al. 2017, equation 1)."""
    fig, axes = sheet(800, 310)
    for top, name, what, color in ((40, "query", "what I look for", BLUE), (118, "key", "what I offer", GREEN)):
        box(axes, 20, top, 132, 58, f"{name}\n{what}", color, 13)
    box(axes, 20, 220, 132, 58, "value\nwhat I hand over", ORANGE, 13)
    write(axes, 86, 24, "(tokens, width)", 12, color=GREY)
    steps = [
        ("dot products", "query · key", SKY),
        ("scale", "÷ √width", SKY),
        ("mask", "hidden → -∞", SKY),
        ("softmax", "rows sum to 1", PINK),
    ]
    for number, (title, what, color) in enumerate(steps):
        left = 190 + 122 * number
        box(axes, left, 78, 104, 58, f"{title}\n{what}", color, 13)
        if number:
            arrow(axes, (left - 18, 107), (left - 1, 107))
    arrow(axes, (153, 72), (189, 96))
    arrow(axes, (153, 145), (189, 118))
    write(axes, 364, 56, "scores (tokens, tokens)", 12, color=GREY)
    write(axes, 608, 56, "weights", 12, color=GREY)
    box(axes, 684, 208, 100, 70, "output\nweights\n× value", VERMILION, 13)
    axes.plot([660, 734], [107, 107], color=GREY, linewidth=1.4, marker="")
    arrow(axes, (734, 107), (734, 207))
    arrow(axes, (153, 249), (683, 249))
    write(axes, 418, 235, "the values are averaged with the weights", 13)
    write(axes, 734, 293, "(tokens, width)", 12, color=GREY)
    return fig
