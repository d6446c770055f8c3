"""Pictures of the course itself: the map of the weeks and the badge."""

from typing import TYPE_CHECKING

from course_utils.figures.canvas import BLUE, GREEN, GREY, ORANGE, PINK, VERMILION, arrow, box, sheet, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEEKS = [
    (
        "1 · Attention",
        BLUE,
        ["language models,\nword vectors", "attention\nfrom scratch", "the Transformer", "RNN against\nTransformer"],
    ),
    ("2 · Heads", GREEN, ["attention maps of\ntrained models", "how heads learn", "three families,\neight models"]),
    (
        "3 · Prompting",
        ORANGE,
        ["decoding", "zero-, one- and\nfew-shot, measured", "tasks, data\nand tools"],
    ),
    (
        "4 · Training",
        VERMILION,
        ["data and its filter", "memory, compute", "scaling laws", "fine-tuning", "scaling out"],
    ),
    (
        "5 · Quantization",
        PINK,
        ["number formats", "quantization\nfrom scratch", "quantization-\naware training", "the libraries,\nQLoRA"],
    ),
]
"""Title, colour and topics of each week."""


def course_map() -> "Figure":
    """Draw the five weeks of the course and their topics, from left to right."""
    fig, axes = sheet(800, 360)
    for number, (title, color, topics) in enumerate(WEEKS):
        left = 14 + 157 * number
        box(axes, left, 18, 144, 40, title, color, 14.5, weight="bold")
        if number:
            arrow(axes, (left - 12, 38), (left - 1, 38))
        height = 42
        for place, topic in enumerate(topics):
            top = 74 + place * (height + 8)
            box(axes, left, top, 144, height, topic, color, 12.5, fill="white")
    write(axes, 400, 340, "Each box is a notebook; each week uses what the weeks before it built.", 13.5, color=GREY)
    return fig


def open_in_colab() -> "Figure":
    """Draw the badge that opens a notebook in Google Colab."""
    fig, axes = sheet(118, 20)
    box(axes, 0.5, 0.5, 117, 19, "", "#333333", fill="#333333", rounding=4)
    axes.fill([9, 9, 17], [5, 15, 10], color="#FFB347")
    write(axes, 67, 10, "Open in Colab", 11.5, color="white")
    return fig
