"""Pictures of models: the Transformer of 2017, its training objectives, the RNN beside it, generation."""

from typing import TYPE_CHECKING, Any

from course_utils.figures.canvas import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    Number,
    arrow,
    box,
    matrix,
    path,
    sheet,
    tokens,
    write,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _sublayer(axes: "Axes", x: Number, y: Number, text: str, color: str, side: int) -> None:
    """Draw a sub-layer, the norm above it and the residual line around it; (x, y) is the middle of its lower edge."""
    box(axes, x - 85, y - 46, 170, 46, text, color, 13)
    box(axes, x - 85, y - 84, 170, 24, "add & norm", GREY, 12, fill="#EDEDED")
    arrow(axes, (x, y - 46), (x, y - 59))
    path(axes, [(x, y + 9), (x + side * 102, y + 9), (x + side * 102, y - 72), (x + side * 86, y - 72)])


def transformers() -> "Figure":
    """Draw the encoder-decoder of 2017 as blocks (Vaswani et al. 2017, section 3.1)."""
    fig, axes = sheet(800, 690)
    left, right = 250, 550
    for x, top, bottom, name in ((left, 284, 528, "encoder layer"), (right, 171, 528, "decoder layer")):
        box(axes, x - 116, top, 232, bottom - top, "", GREY, fill="#FAFAFA", dashed=True)
        outside = x - 126 if x == left else x + 126
        write(axes, outside, top + 24, f"N ×\n{name}", 13, ha="right" if x == left else "left", weight="bold")
    for x, words, start in ((left, "le chat dort", "input tokens"), (right, "<s> the cat", "output so far")):
        for word, middle in zip(words.split(), (x - 66, x, x + 66), strict=True):
            box(axes, middle - 30, 632, 60, 26, word, BLACK, 13, fill="white", rounding=4)
        write(axes, x, 674, start, 12, color=GREY)
        arrow(axes, (x, 632), (x, 617))
        box(axes, x - 85, 588, 170, 28, "token embedding", GREEN, 13)
        arrow(axes, (x, 588), (x, 571))
        box(axes, x - 85, 542, 170, 28, "+ positional encoding", GREEN, 13)
        arrow(axes, (x, 542), (x, 504))
    _sublayer(axes, left, 504, "multi-head\nself-attention", BLUE, -1)
    arrow(axes, (left, 420), (left, 391))
    _sublayer(axes, left, 391, "feed-forward network", ORANGE, -1)
    _sublayer(axes, right, 504, "masked multi-head\nself-attention", VERMILION, 1)
    arrow(axes, (right, 420), (right, 391))
    _sublayer(axes, right, 391, "multi-head\ncross-attention", PINK, 1)
    arrow(axes, (right, 307), (right, 278))
    _sublayer(axes, right, 278, "feed-forward network", ORANGE, 1)
    axes.plot([left, left, 400, 400], [307, 262, 262, 368], color=PINK, linewidth=2.2, marker="")
    arrow(axes, (400, 368), (right - 86, 368), PINK, width=2.2)
    write(axes, 322, 248, "keys and values", 13)
    write(axes, right - 10, 407, "queries", 12, ha="right")
    arrow(axes, (right, 194), (right, 137))
    box(axes, right - 85, 108, 170, 28, "linear", GREEN, 13)
    arrow(axes, (right, 108), (right, 93))
    box(axes, right - 85, 64, 170, 28, "softmax", GREEN, 13)
    arrow(axes, (right, 64), (right, 49))
    box(axes, right - 44, 20, 88, 28, "sleeps", BLACK, 14, fill="white", rounding=4, weight="bold")
    write(axes, right + 56, 34, "next token", 12, color=GREY, ha="left")
    write(axes, 20, 48, "The encoder reads\nall input at once.", 14, ha="left")
    write(axes, 20, 114, "The decoder writes one\ntoken after another and\nlooks back at the encoder.", 14, ha="left")
    write(axes, 20, 180, "The lines around the blocks\nare residual connections.", 14, ha="left")
    return fig


def pre_training_objectives() -> "Figure":
    """Draw what encoders, decoders and encoder-decoders learn to predict (Devlin 2019, Radford 2018, Raffel 2020)."""
    fig, axes = sheet(800, 560)
    hidden = [[1.0 if column <= row else 0.0 for column in range(7)] for row in range(7)]
    seen = [[1.0] * 7 for _ in range(7)]
    rows = [
        (
            "Encoder only · autoencoding · masked language modeling (MLM)",
            "BERT, RoBERTa",
            ["the", "cat", "[MASK]", "on", "the", "[MASK]", "mat"],
            ["", "", "sleeps", "", "", "warm", ""],
            seen,
            "each token\nsees every\ntoken",
        ),
        (
            "Decoder only · autoregressive · causal language modeling (CLM)",
            "GPT, BLOOM, LLaMA, PaLM",
            ["<s>", "the", "cat", "sleeps", "on", "the", "warm"],
            ["the", "cat", "sleeps", "on", "the", "warm", "mat"],
            hidden,
            "each token\nsees itself\nand those\nbefore it",
        ),
        (
            "Encoder-decoder · sequence to sequence · span corruption",
            "T5 (BART: a relative)",
            ["the", "<X>", "on", "the", "warm", "<Y>"],
            ["<X>", "cat", "sleeps", "<Y>", "mat", "<Z>"],
            None,
            "",
        ),
    ]
    for number, (title, models, given, target, pattern, says) in enumerate(rows):
        top = 10 + 186 * number
        if number:
            axes.plot([20, 780], [top - 5, top - 5], color="#C4C4C4", linewidth=1, marker="")
        write(axes, 20, top + 17, title, 14.5, ha="left", weight="bold")
        write(axes, 20, top + 40, f"for example {models}", 12.5, ha="left", color=GREY)
        write(axes, 72, top + 74, "input", 13, ha="right")
        write(axes, 72, top + 144, "target", 13, ha="right")
        special = {"[MASK]", "<X>", "<Y>", "<Z>", "<s>"}
        colors = [VERMILION if word in special else BLUE for word in given]
        middles = tokens(axes, 82, top + 60, given, 62, colors=colors, size=12.5)
        if pattern is None:
            tokens(
                axes,
                82,
                top + 130,
                target,
                62,
                size=12.5,
                colors=[VERMILION if w in special else GREEN for w in target],
            )
            arrow(axes, (middles[1], top + 89), (middles[1], top + 129))
            write(axes, middles[1] + 14, top + 109, "the decoder writes what stood at the marks", 12.5, ha="left")
            matrix(axes, 604, top + 54, [[1.0] * 6] * 6, 9)
            matrix(axes, 686, top + 54, [[1.0 if c <= r else 0.0 for c in range(6)] for r in range(6)], 9)
            write(axes, 631, top + 120, "encoder", 12.5)
            write(axes, 713, top + 120, "decoder", 12.5)
            write(axes, 604, top + 148, "The decoder also sees\nall of the encoder.", 12.5, ha="left")
        else:
            chosen = [GREEN if word else None for word in target]
            tokens(axes, 82, top + 130, target, 62, colors=chosen, size=12.5)
            for word, middle in zip(target, middles, strict=True):
                if word:
                    arrow(axes, (middle, top + 89), (middle, top + 129))
            matrix(axes, 604, top + 64, pattern, 13)
            write(axes, 705, top + 109, says, 12.5, ha="left")
    return fig


def rnn_vs_transformer() -> "Figure":
    """Draw a recurrent chain and all-to-all attention over the same words (Vaswani et al. 2017, table 1)."""
    fig, axes = sheet(800, 420)
    words = ["the", "keys", "that", "we", "lost", "are"]
    middles = [70 + 92 * number for number in range(6)]
    write(axes, 20, 24, "Recurrent network: a chain", 15, ha="left", weight="bold")
    for number, (word, x) in enumerate(zip(words, middles, strict=True)):
        box(axes, x - 32, 130, 64, 28, word, BLACK, 13, fill="white", rounding=4)
        arrow(axes, (x, 130), (x, 101))
        box(axes, x - 26, 58, 52, 42, f"state\n{number + 1}", ORANGE, 12)
        if number:
            arrow(axes, (middles[number - 1] + 27, 79), (x - 27, 79), VERMILION, width=2.2)
    write(axes, 590, 79, "6 steps, one after another.\nFrom “keys” to “are”:\n4 hops through the state.", 13, ha="left")
    axes.plot([20, 780], [184, 184], color="#C4C4C4", linewidth=1, marker="")
    write(axes, 20, 208, "Transformer encoder: every word looks at every word", 15, ha="left", weight="bold")
    for number, (word, x) in enumerate(zip(words, middles, strict=True)):
        box(axes, x - 32, 378, 64, 28, word, BLACK, 13, fill="white", rounding=4)
        box(axes, x - 26, 238, 52, 34, f"out {number + 1}", BLUE, 12)
        for source in middles:
            strong = x == middles[5] and source == middles[1]
            style: dict[str, Any] = (
                {"color": VERMILION, "linewidth": 2.6, "zorder": 4}
                if strong
                else {"color": "#9DB9CC", "linewidth": 0.9}
            )
            axes.plot([source, x], [377, 273], marker="", **style)
    write(
        axes,
        590,
        322,
        "All positions at once.\nFrom “keys” to “are”:\n1 hop, at any distance.\nPrice: n × n weights\nfor n words.",
        13,
        ha="left",
    )
    return fig


def context_window() -> "Figure":
    """Draw prompt and completion sharing the context window."""
    fig, axes = sheet(800, 246)
    prompt = ["Once", "upon", "a", "time", "there", "was", "a"]
    completion = ["small", "dragon", "who", "liked", "tea"]
    width, gap, left = 53, 3, 37
    box(axes, left - 10, 46, 13 * (width + gap) - gap + 20, 60, "", BLACK, fill="white", dashed=True)
    write(axes, 400, 24, "context window of this model: 13 tokens, prompt and completion together", 14, weight="bold")
    tokens(axes, left, 62, prompt, width, gap=gap, colors=BLUE, size=12)
    start = left + 7 * (width + gap)
    tokens(axes, start, 62, completion, width, gap=gap, colors=ORANGE, size=12)
    free = start + 5 * (width + gap)
    box(axes, free, 62, width, 28, "free", GREY, 12, fill="white", rounding=4, dashed=True)
    for first, last, text in (
        (left, start - gap, "prompt\nwhat the user gives: 7 tokens"),
        (start, free - gap, "completion\nwhat the model adds: 5 tokens"),
    ):
        axes.plot([first, first, last, last], [114, 122, 122, 114], color=GREY, linewidth=1.4, marker="")
        write(axes, (first + last) / 2, 147, text, 13)
    arrow(axes, (start + 10, 196), (free - 10, 196))
    write(axes, start, 196, "inference: one token at a time", 13, ha="right")
    write(axes, 400, 228, "A text longer than the window must be cut: what falls out of it is not seen.", 13)
    return fig


def next_token() -> "Figure":
    """Draw the loop of generation: predict, choose, append, repeat."""
    fig, axes = sheet(800, 250)
    box(axes, 20, 70, 160, 64, "prompt so far\n“the cat sat on the”", BLUE, 13)
    arrow(axes, (181, 102), (217, 102))
    box(axes, 218, 70, 130, 64, "language\nmodel", GREEN, 14, weight="bold")
    arrow(axes, (349, 102), (385, 102))
    write(axes, 482, 24, "a probability for every token", 13, weight="bold")
    for number, (word, share) in enumerate(
        (("mat", 0.46), ("floor", 0.21), ("sofa", 0.17), ("moon", 0.02), ("others", 0.14))
    ):
        y = 46 + 25 * number
        write(axes, 440, y + 9, word, 13, ha="right")
        box(axes, 448, y, 4 + 190 * share, 18, "", SKY, rounding=2, fill="#56B4E9")
        write(axes, 460 + 190 * share, y + 9, f"{share:.2f}", 12, ha="left")
    arrow(axes, (584, 102), (628, 102))
    box(axes, 629, 70, 150, 64, "choose one\n“mat”", ORANGE, 13)
    axes.plot([704, 704, 100], [135, 208, 208], color=GREY, linewidth=1.4, marker="")
    arrow(axes, (100, 208), (100, 136))
    write(axes, 402, 226, "append it to the text and repeat, until an end token or a limit is reached", 13)
    return fig
