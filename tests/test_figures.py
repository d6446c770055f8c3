"""The drawn images: readable, described, true to the formats, and the same as the files in images/."""

import functools
import importlib.metadata
import io
import math
import re
import struct
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from course_utils import figures
from course_utils.figures import FIGURES, attention, canvas, draw, numbers, render, render_all
from course_utils.figures.__main__ import main

IMAGES = Path(__file__).resolve().parent.parent / "images"
PINNED = re.search(r"^matplotlib==(\S+)", (IMAGES.parent / "constraints.txt").read_text("utf-8"), re.MULTILINE)
needs_pinned_matplotlib = pytest.mark.skipif(
    PINNED is None or importlib.metadata.version("matplotlib") != PINNED[1],
    reason="the images were drawn with the matplotlib of constraints.txt",
)
NAMES = list(FIGURES)


@pytest.fixture(scope="module")
def rendered():
    """Every file's bytes, drawn once."""
    return {(name, kind): render(name, kind) for name, picture in FIGURES.items() for kind in picture.formats}


@functools.cache
def texts_of(name):
    """The texts of a figure that say something, with their extents in pixels of the 800 wide drawing."""
    fig = draw(name)
    renderer = fig.canvas.get_renderer()
    return fig, [
        (text, text.get_window_extent(renderer)) for text in fig.findobj(matplotlib.text.Text) if text.get_text()
    ]


def test_the_images_of_the_notes_are_there():
    assert {"attention-map", "transformers", "pre-training-objectives", "fp16", "bfloat16"} <= set(FIGURES)


@pytest.mark.parametrize("name", NAMES)
def test_alt_text_and_caption_say_something(name):
    picture = FIGURES[name]
    assert len(picture.alt) >= 40
    assert picture.alt.endswith(".") and picture.caption.endswith(".")
    assert not re.search(r"\b(image|picture|figure) of\b", picture.alt, re.IGNORECASE)
    assert picture.alt != picture.caption


@pytest.mark.parametrize("name", NAMES)
def test_letters_are_large_enough_inside_and_apart(name):
    fig, texts = texts_of(name)
    width, height = fig.get_size_inches() * 100
    assert texts
    for text, extent in texts:
        assert text.get_fontsize() / 0.72 >= canvas.SMALLEST - 1e-9, text
        assert text.get_fontfamily() == ["DejaVu Sans"]
        assert extent.x0 >= 0 and extent.y0 >= 0 and extent.x1 <= width and extent.y1 <= height, text
    for number, (text, extent) in enumerate(texts):
        for other, elsewhere in texts[:number]:
            across = min(extent.x1, elsewhere.x1) - max(extent.x0, elsewhere.x0)
            along = min(extent.y1, elsewhere.y1) - max(extent.y0, elsewhere.y0)
            assert min(across, along) <= 1, f"{text.get_text()!r} lies on {other.get_text()!r}"


@pytest.mark.parametrize("name", NAMES)
def test_letters_stay_in_their_boxes(name):
    fig, texts = texts_of(name)
    boxes = [patch.get_window_extent() for patch in fig.findobj(matplotlib.patches.FancyBboxPatch)]
    for text, extent in texts:
        x, y = (extent.x0 + extent.x1) / 2, (extent.y0 + extent.y1) / 2
        around = [box for box in boxes if box.x0 < x < box.x1 and box.y0 < y < box.y1]
        if around:
            box = min(around, key=lambda box: box.width * box.height)
            assert extent.x0 > box.x0 and extent.x1 < box.x1, text
            assert extent.y0 > box.y0 - 1 and extent.y1 < box.y1 + 1, text


@pytest.mark.parametrize("name", [name for name in NAMES if "png" in FIGURES[name].formats])
def test_width_fits_a_readme(name, rendered):
    with Image.open(io.BytesIO(rendered[name, "png"])) as image:
        assert image.width == 1600
        assert np.asarray(image.convert("L")).std() > 10, "the picture is blank"


def test_drawing_again_gives_the_same_bytes(rendered):
    for name, kind in (("next-token", "png"), ("context-window", "svg"), ("open-in-colab", "svg")):
        assert render(name, kind) == rendered[name, kind], (name, kind)


def test_files_name_no_date_and_no_program(rendered):
    for (name, kind), data in rendered.items():
        assert b"Matplotlib" not in data and b"matplotlib" not in data, (name, kind)
        assert b"dc:date" not in data and b"tIME" not in data, (name, kind)
        assert b"/home/" not in data and b"/tmp/" not in data, (name, kind)


def test_svg_holds_the_alt_text(rendered):
    for name in NAMES:
        svg = rendered[name, "svg"].decode()
        assert f"<dc:title>{name}</dc:title>" in svg
        assert FIGURES[name].alt.split("“")[0].strip() in svg


def skeleton(svg):
    """Split an SVG into its text without ids and numbers, and its numbers."""
    bare = re.sub(rb'( (id|xlink:href|clip-path)="[^"]*"|url\(#[^)]*\)|clip-path: [^;"]*)', b"", svg)
    number = rb"-?\d+\.?\d*(?:e-?\d+)?"
    return re.sub(number, b"#", bare), np.array([float(found) for found in re.findall(number, bare)])


@needs_pinned_matplotlib
def test_committed_svg_is_what_the_code_draws(rendered):
    for name in NAMES:
        text, values = skeleton(rendered[name, "svg"])
        stored_text, stored = skeleton((IMAGES / f"{name}.svg").read_bytes())
        assert text == stored_text, f"images/{name}.svg is old: run `course figures`"
        assert np.abs(values - stored).max() < 0.1, f"images/{name}.svg is old: run `course figures`"


@needs_pinned_matplotlib
def test_committed_png_is_what_the_code_draws(rendered):
    for name, kind in rendered:
        if kind == "png":
            with Image.open(IMAGES / f"{name}.png") as old, Image.open(io.BytesIO(rendered[name, kind])) as new:
                assert old.size == new.size, name
                stored, drawn = (np.asarray(image.convert("RGB"), dtype=int) for image in (old, new))
            changed = (np.abs(stored - drawn).max(axis=2) > 64).mean()
            assert changed < 2e-4, f"images/{name}.png is old: run `course figures`"


def test_all_files_are_committed_and_small():
    expected = {f"{name}.{kind}" for name, picture in FIGURES.items() for kind in picture.formats}
    files = {file.name: file.stat().st_size for file in IMAGES.iterdir()}
    assert set(files) == expected
    assert sum(files.values()) < 1_500_000
    assert max(files.values()) < 200_000


@pytest.mark.parametrize("value", [math.pi, -0.1, 1.0, 65504.0, 1e-5, 3e38])
@pytest.mark.parametrize(("dtype", "code"), [(torch.float32, ">f"), (torch.float16, ">e"), (torch.bfloat16, ">f")])
def test_bits_are_those_of_the_formats(value, dtype, code):
    held = numbers.bits(value, dtype)
    assert held.value == torch.tensor(value, dtype=torch.float64).to(dtype).item()
    word = held.sign + held.exponent + held.fraction
    assert len(word) == 8 * dtype.itemsize
    # struct knows nothing of bfloat16, which is the upper half of a float32.
    packed = struct.pack(code, held.value) if math.isfinite(held.value) else None
    if packed:
        assert word == "".join(f"{byte:08b}" for byte in packed)[: len(word)]
    fraction = int(held.fraction, 2) / 2 ** len(held.fraction)
    biased, bias = int(held.exponent, 2), 2 ** (len(held.exponent) - 1) - 1
    if 0 < biased < 2 * bias + 1:
        assert (-1) ** int(held.sign) * (1 + fraction) * 2.0 ** (biased - bias) == held.value


def test_what_the_pictures_say_of_pi():
    assert numbers.bits(math.pi, torch.float16).value == 3.140625 == numbers.bits(math.pi, torch.bfloat16).value
    words = " ".join(text.get_text() for text, _ in texts_of("fp16")[1])
    assert "holds 3.140625" in words and "holds 3.141592741012573" in words
    assert "error −9.68 × 10⁻⁴" in words and "error +8.74 × 10⁻⁸" in words and "65,504" in words
    words = " ".join(text.get_text() for text, _ in texts_of("bfloat16")[1])
    assert "3.4 × 10³⁸" in words and "7 bits" in words


def test_refuses_other_formats():
    with pytest.raises(ValueError, match="float64"):
        numbers.bits(1.0, torch.float64)


@pytest.mark.parametrize("head", ["refers to", "word before", "same kind"])
def test_weights_of_the_sentence_are_weights(head):
    weights = attention.sentence_weights(head)
    assert weights.shape == (9, 9)
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones(9))


def test_the_heads_do_what_their_titles_say():
    words = attention.WORDS
    refers = attention.sentence_weights()
    assert words[int(refers[words.index("it")].argmax())] == "ball"
    assert words[int(refers[words.index("away")].argmax())] == "rolled"
    before = attention.sentence_weights("word before")
    assert before.argmax(-1).tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7]
    kind = attention.sentence_weights("same kind")
    verbs = [words.index("chased"), words.index("rolled")]
    assert set(kind[verbs[0]].topk(2).indices.tolist()) == set(verbs)


def test_refuses_unknown_heads():
    with pytest.raises(ValueError, match="'word after'"):
        attention.sentence_weights("word after")


def test_refuses_letters_too_small_to_read():
    _, axes = canvas.sheet()
    with pytest.raises(ValueError, match="cannot be read"):
        canvas.write(axes, 0, 0, "tiny", size=8)


def test_render_all_writes_what_was_asked(tmp_path):
    files = render_all(tmp_path / "new", ["next-token", "open-in-colab"])
    assert [file.name for file in files] == ["next-token.png", "next-token.svg", "open-in-colab.svg"]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == sorted(file.name for file in files)


def test_refuses_unknown_figures(tmp_path, capsys):
    with pytest.raises(ValueError, match="the figures are: attention-map"):
        draw("cat")
    with pytest.raises(ValueError, match="'cat'"):
        render_all(tmp_path / "none", ["fp16", "cat"])
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="'gif'"):
        render("fp16", "gif")
    assert main(["cat", "--folder", str(tmp_path)]) == 2
    assert "cat" in capsys.readouterr().err


def test_command_line(tmp_path, capsys):
    assert main(["open-in-colab", "--folder", str(tmp_path)]) == 0
    assert "open-in-colab.svg" in capsys.readouterr().out


def test_show_gives_alt_text_to_every_front_end(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    before = dict(matplotlib.rcParams)
    figures.show("next-token")
    assert FIGURES["next-token"].alt in shown[0]["text/plain"]
    assert "<figcaption>" in shown[0]["text/html"]
    changed = {key for key in before if before[key] != matplotlib.rcParams[key]}
    assert not changed, "drawing must leave matplotlib's settings alone"
