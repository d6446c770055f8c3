"""The drawn images of the course: each is a function here, and a PNG and an SVG in ``images/``.

``show("attention-map")`` draws one in a notebook with its alternative text; ``python -m course_utils.figures`` writes
all of them. Pictures are drawn with DejaVu Sans, which matplotlib brings along, in Okabe and Ito's colours, and never
say anything by colour alone.
"""

import io
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """One drawn image.

    Attributes:
        source: ``module:function`` inside this package.
        alt: what one sees and what it shows, for those who do not see it.
        caption: the line under the picture.
        formats: the kinds of file that :func:`render_all` writes.
    """

    source: str
    alt: str
    caption: str
    formats: tuple[str, ...] = ("png", "svg")

    @property
    def function(self) -> "Callable[[], Figure]":
        """The function that draws it."""
        module, name = self.source.split(":")
        return getattr(import_module(f"course_utils.figures.{module}"), name)


FIGURES: dict[str, Picture] = {
    "attention-map": Picture(
        "attention:attention_map",
        "The sentence “the dog chased the ball until it rolled away” stands in two columns, joined by lines as thick "
        "as the attention weights, with the same weights as a matrix beside it. The thickest line from “it” leads to "
        "“ball”: the word finds what it refers to, two places back.",
        "Computed by scaled dot-product attention from word features that were set by hand, not by a trained model. "
        "Lines of less than 0.05 are left out.",
    ),
    "self-attention-heads": Picture(
        "attention:self_attention_heads",
        "Three attention maps over one sentence, one for each head. The first has its dark cells just below the "
        "diagonal (the word before), the second where words are of one kind, the third where a word refers to another.",
        "Three heads made by hand: the same words, other queries and keys. Week 2 looks at those of trained models.",
    ),
    "attention-steps": Picture(
        "attention:attention_steps",
        "Scaled dot-product attention from left to right: dot products of queries and keys, division by the root of "
        "the width, mask, softmax; the weights then average the values into the output.",
        "softmax(query · key / √width) × value, with the shape at each step.",
    ),
    "transformers": Picture(
        "architecture:transformers",
        "The Transformer of 2017. On the left the encoder: embedding and positional encoding, then layers of "
        "self-attention and a feed-forward network. On the right the decoder: masked self-attention, cross-attention "
        "to the encoder's output and a feed-forward network, then linear layer and softmax. A residual connection and "
        "a norm stand around every sub-layer. From “le chat dort” and “the cat” it predicts “sleeps”.",
        "After Vaswani and others (2017); drawn anew. N is 6 in the paper.",
    ),
    "pre-training-objectives": Picture(
        "architecture:pre_training_objectives",
        "Three rows. An encoder sees “the cat [MASK] on the [MASK] mat” and predicts the masked words, each token "
        "seeing all. A decoder sees the sentence up to each token and predicts the next. An encoder-decoder sees the "
        "sentence with two spans replaced by marks and writes out what stood there.",
        "What the three kinds of model learn from in pre-training, and which tokens see which.",
    ),
    "rnn-vs-transformer": Picture(
        "architecture:rnn_vs_transformer",
        "Above, a recurrent network: six states in a chain, so that a link from the second word to the sixth passes "
        "four steps. Below, a Transformer layer: every output joined to every word, so that the same link is one step.",
        "A chain against all-to-all: steps that must wait for one another, and the price of n × n weights.",
    ),
    "context-window": Picture(
        "architecture:context_window",
        "A row of thirteen token boxes inside a dashed frame, the context window: seven of the prompt, five of the "
        "completion, one still free.",
        "Prompt and completion share the context window.",
    ),
    "next-token": Picture(
        "architecture:next_token",
        "A loop: the text “the cat sat on the” goes into a language model, which gives each possible next token a "
        "probability; one, “mat”, is chosen, appended to the text, and the loop starts again.",
        "All text generation is next-token prediction, repeated. The probabilities here are made up.",
    ),
    "fp16": Picture(
        "numbers:fp16",
        "The bits of pi in FP32 (1 sign, 8 exponent and 23 fraction bits) and in FP16 (1, 5 and 10). FP32 is off by "
        "about nine hundred-millionths, FP16 holds 3.140625 and is off by about one thousandth.",
        "Bits read from the formats themselves; error = value held minus π.",
    ),
    "bfloat16": Picture(
        "numbers:bfloat16",
        "The bits of pi in FP32 (1 sign, 8 exponent and 23 fraction bits) and in BFLOAT16 (1, 8 and 7): the exponent "
        "is the same and the fraction is cut short, so BFLOAT16 holds 3.140625, off by about one thousandth.",
        "Bits read from the formats themselves. FP16 holds the same value by chance: the next three bits of π are 0.",
    ),
    "number-formats": Picture(
        "numbers:number_formats",
        "A table of FP32, FP16, BFLOAT16 and INT8 with bars for their bits. They take 4, 2, 2 and 1 gigabytes for a "
        "billion weights; FP32 and BFLOAT16 reach about 3.4e38, FP16 65,504, INT8 127; BFLOAT16 has the coarsest steps "
        "of the three floating-point formats.",
        "Fewer bits: less memory, paid for in range or in digits.",
    ),
    "course-map": Picture(
        "course:course_map",
        "The five weeks of the course from left to right, with a box for each notebook: attention, heads, prompting, "
        "training and quantization.",
        "The five weeks.",
    ),
    "open-in-colab": Picture(
        "course:open_in_colab",
        "A small dark badge with a play sign and the words Open in Colab.",
        "The badge at the top of each notebook.",
        ("svg",),
    ),
}
"""Every image of the course by the name of its file."""


FILMS: dict[str, str] = {"computational-challenges-of-training-llms": "film"}
"""Name of each film to the module that draws it; that takes minutes, so :func:`render_all` does it only by name."""


def style() -> AbstractContextManager[Any]:
    """Return a context with the course's style and settings under which the same code writes the same bytes."""
    import matplotlib

    from course_utils.plotting import STYLE

    wanted = {**matplotlib.rcParamsDefault, **STYLE, "svg.fonttype": "path"}
    now = matplotlib.rcParams
    return matplotlib.rc_context(
        {key: value for key, value in wanted.items() if not key.startswith("backend") and now[key] != value}
    )


def _picture(name: str) -> Picture:
    if name not in FIGURES:
        raise ValueError(f"there is no figure {name!r}; the figures are: {', '.join([*FIGURES, *FILMS])}")
    return FIGURES[name]


def draw(name: str) -> "Figure":
    """Draw one image of the course.

    Args:
        name: a key of :data:`FIGURES`, such as ``"attention-map"``.

    Returns:
        The matplotlib figure, 800 pixels wide at 100 dots an inch.

    Raises:
        ValueError: there is no such figure.
    """
    picture = _picture(name)
    with style():
        return picture.function()


def show(name: str) -> None:
    """Display one image of the course in a notebook, with its alternative text and caption.

    Args:
        name: a key of :data:`FIGURES`.

    Raises:
        ValueError: there is no such figure.
    """
    from course_utils import plotting

    picture = _picture(name)
    with style():
        plotting.show(picture.function(), alt=picture.alt, caption=picture.caption)


def render(name: str, kind: str = "png") -> bytes:
    """Return one image as the bytes of a file; the same machine always gives the same bytes.

    Args:
        name: a key of :data:`FIGURES`.
        kind: ``"png"`` (1600 pixels wide) or ``"svg"`` (letters as outlines, so that no font is needed).

    Raises:
        ValueError: there is no such figure or kind.
    """
    picture = _picture(name)
    if kind not in ("png", "svg"):
        raise ValueError(f"kind={kind!r}; expected 'png' or 'svg'")
    buffer = io.BytesIO()
    with style():
        fig = picture.function()
        if kind == "png":
            fig.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
        else:
            about = {"Date": None, "Creator": None, "Title": name, "Description": picture.alt}
            fig.savefig(buffer, format="svg", metadata=about)
    data = buffer.getvalue()
    if kind == "png":
        return _flat_colors(data)
    return b"\n".join(line.rstrip() for line in data.splitlines()) + b"\n"


def _flat_colors(data: bytes) -> bytes:
    """Return a PNG with a palette of 256 colours: flat drawings look the same at a third of the size."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        flat = image.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    flat.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def render_all(folder: str | Path = "images", only: Iterable[str] | None = None) -> list[Path]:
    """Write images as files NAME.png and NAME.svg, and films where they are named.

    Args:
        folder: where images go; it is created where it is missing. Films go into ``supplemental`` beside it.
        only: names of figures or films; by default all figures.

    Returns:
        The files written, in the order of the names.

    Raises:
        ValueError: a name is not that of a figure.
    """
    if isinstance(only, str):
        only = [only]
    names = list(FIGURES) if only is None else list(only)
    pictures = {name: _picture(name) for name in names if name not in FILMS}
    target = Path(folder)
    written = []
    for name in names:
        if name in FILMS:
            module = import_module(f"course_utils.figures.{FILMS[name]}")
            written += module.write_all(target.parent / "supplemental")
        else:
            written += [write_file(target / f"{name}.{kind}", render(name, kind)) for kind in pictures[name].formats]
    return written


def write_file(file: Path, data: bytes) -> Path:
    """Write a file as a whole or not at all, and return it; its folder is created where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem}-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        os.chmod(part, 0o644)
        os.replace(part, file)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return file
