"""The film: its numbers are memory.needs', its pictures can be read, and the files are what the code draws."""

import functools
import importlib.metadata
import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import imageio_ffmpeg
import matplotlib
import numpy as np
import pytest
from PIL import Image

from course_utils import figures, memory
from course_utils.figures import film
from course_utils.memory import Plan, needs, size
from course_utils.plotting import COLORS

ROOT = Path(__file__).resolve().parent.parent
FILM, STILLS, TRANSCRIPT = (ROOT / "supplemental" / f"{film.NAME}.{kind}" for kind in ("mp4", "png", "md"))
OLD = f"is old: run `course figures {film.NAME}`"
PINNED = re.search(r"^matplotlib==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
needs_pinned_matplotlib = pytest.mark.skipif(
    PINNED is None or importlib.metadata.version("matplotlib") != PINNED[1],
    reason="the film was drawn with the matplotlib of constraints.txt",
)
LIMIT = 3e-5
"""Largest share of a picture in which film and drawing may differ: one changed digit is more."""
SCENES = range(len(film.scenes()))
ENDS = [
    (number, end - 0.05)
    for number, scene in enumerate(film.scenes())
    for end in [*(begin for begin, _ in scene.captions[1:]), scene.seconds]
]
"""Scene and second of the last moment of each caption."""


@functools.cache
def drawn(number, second, dpi=100):
    with figures.style():
        return film.picture(number, second, dpi)


@functools.cache
def pixels(number, second, dpi=100):
    fig = drawn(number, second, dpi)
    fig.canvas.draw()
    return np.asarray(fig.canvas.buffer_rgba())[..., :3]


def last(number):
    """The last frame of a scene."""
    return pixels(number, film.scenes()[number].seconds - 0.05)


def unlike(one, other):
    """Share of the places, two by two pixels large, where two pictures differ clearly in lightness."""
    grey = [np.asarray(Image.fromarray(picture).convert("L").reduce(2), dtype=int) for picture in (one, other)]
    return (np.abs(grey[0] - grey[1]) > 48).mean()


def texts(number, second):
    return [text for text in drawn(number, second).findobj(matplotlib.text.Text) if text.get_text()]


def words(number):
    """All captions of a scene and all texts of its last picture."""
    scene = film.scenes()[number]
    seen = [text.get_text().replace("\n", " ") for text in texts(number, scene.seconds - 0.05)]
    return " ".join([*(text for _, text in scene.captions), *seen])


def test_parts_differ_by_more_than_colour():
    assert set(film.PARTS) == set(needs("gpt2", Plan()).parts)
    for look in ("label", "color", "hatch", "marker", "meaning"):
        assert len({getattr(part, look) for part in film.PARTS.values()}) == len(film.PARTS)
    assert {part.color for part in film.PARTS.values()} <= set(COLORS)


def test_one_to_two_minutes_with_time_to_read():
    assert 60 <= film.begins()[-1] <= 120
    for scene in film.scenes():
        assert scene.captions[0][0] == 0
        times = [*(begin for begin, _ in scene.captions), scene.seconds]
        for (_, text), (begin, end) in zip(scene.captions, pairwise(times), strict=True):
            assert len(text) / (end - begin) <= 20, f"{text!r}: {len(text)} letters in {end - begin} s"
        assert all(begin + length <= scene.seconds - 1 for begin, length in scene.moves)


def test_models_reach_from_1_million_to_175_billion():
    counts = [memory.parameters(model) for model in film.MODELS.values()]
    assert counts == sorted(counts)
    assert counts[0] == pytest.approx(1e6, rel=0.02) and counts[-1] == pytest.approx(175e9, rel=0.01)
    for name, number in zip(film.MODELS, counts, strict=True):
        assert name.endswith(film.count(number)), name
    assert film.DEVICES == {"T4": 16, "A100": 80, "H200": 141}


@pytest.mark.parametrize(
    ("number", "shown"),
    [(999_400_000, "999 M"), (999_600_000, "1 B"), (1_557_611_200, "1.6 B"), (9_960_000, "10 M"), (9_940_000, "9.9 M")],
)
def test_counts_in_short(number, shown):
    assert film.count(number) == shown


def test_scene_1_bytes_of_a_weight():
    need, weights = needs("gpt2-xl", Plan(tokens=1024)), memory.parameters("gpt2-xl")
    each = [round(part / weights, 3) for part in (need.weights, need.gradients, need.optimizer)]
    assert each == [4, 4, 8]
    assert "4 + 4 + 8 = 16 bytes" in words(0)
    assert [row[2][0] for row in film.scenes()[0].rows[:3]] == ["4", "4", "8"]
    more = needs("gpt2-xl", Plan(tokens=1024, batch=2))
    assert more.activations > need.activations and more.temporary > need.temporary


def test_scene_2_one_step():
    need, text = needs("gpt2-xl", Plan(tokens=1024)), words(1)
    for value in (need.weights + need.optimizer, need.activations, need.gradients, need.peak, need.total):
        assert size(value) in text
    assert need.peak > 16e9 and "Too much for a T4" in text
    # The highest point that is drawn is the peak, on the scale of the weights at the bottom.
    areas = drawn(1, film.scenes()[1].seconds).findobj(matplotlib.collections.PolyCollection)
    ys = [path.vertices[:, 1] for area in areas for path in area.get_paths()]
    bottom = max(y.max() for y in ys)
    weights = next(bottom - y.min() for y in ys if y.max() == bottom)
    assert (bottom - min(y.min() for y in ys)) / weights == pytest.approx(need.peak / need.weights, rel=0.01)


def test_scene_3_all_sizes():
    text, table = words(2), [needs(model, Plan(tokens=1024)) for model in film.MODELS.values()]
    for value in (table[0].total, *(table[-1].parts[part] for part in film.PARTS), table[-1].total):
        assert size(value) in text
    assert f"{table[-1].total / 141e9:.0f} times the memory of an H200" in text
    for device, room in {"T4": 16e9, "A100": 80e9, "H200": 141e9}.items():
        largest = [name for name, need in zip(film.MODELS, table, strict=True) if need.total <= room][-1]
        assert f"{device}: {largest}" in text
    growth = {part: table[-1].parts[part] / table[0].parts[part] for part in film.PARTS}
    assert growth["activations"] < min(growth["weights"], growth["gradients"], growth["optimizer"])
    for row, need in zip(film.scenes()[2].rows, table, strict=True):
        assert list(row[2:]) == [size(value) for value in (*(need.parts[part] for part in film.PARTS), need.total)]


def test_scene_4_shares():
    text = words(3)
    for model in ("gpt3-175b", film.MODELS["1 M"]):
        need = needs(model, Plan(tokens=1024))
        assert f"{(need.activations + need.temporary) / need.total:.0%}" in text
        assert f"{need.optimizer / need.total:.0%}" in text


def test_scene_5_what_helps():
    plans = [
        Plan(tokens=1024, batch=4),
        Plan(tokens=1024, batch=4, weights="bfloat16", states="float32", master=True),
        Plan(tokens=1024, batch=4, weights="bfloat16"),
        Plan(tokens=1024, batch=4, weights="bfloat16", checkpointing=True),
        Plan(tokens=1024, batch=4, weights="bfloat16", checkpointing=True, method="lora", rank=8),
        Plan(tokens=1024, batch=4, weights="bfloat16", checkpointing=True, method="qlora", rank=8),
    ]
    text, table = words(4), [needs("llama-7b", plan) for plan in plans]
    for need, row in zip(table, film.scenes()[4].rows, strict=True):
        gpu = next((name for name, room in film.DEVICES.items() if need.total <= room * 1e9), "none")
        assert f"{size(need.total)}: {gpu}" in text
        assert row[-2:] == (size(need.total), gpu)
    assert [before.total > after.total for before, after in pairwise(table)] == [True] * 5
    plain, mixed, half, checkpointed, lora, qlora = table
    assert f"activations {size(plain.activations)} → {size(mixed.activations)}" in text
    states = mixed.weights + mixed.gradients + mixed.optimizer
    assert round(states / memory.parameters("llama-7b"), 2) == 16 and "still 16 bytes a weight" in text
    assert f"{size(half.activations)} → {size(checkpointed.activations)}" in text
    changed = [size(need.gradients + need.optimizer) for need in (checkpointed, lora)]
    assert " → ".join(changed) in text
    assert f"{size(plain.total)} → {size(qlora.total)}" in text
    assert qlora.weights < lora.weights < half.weights * 1.02


def test_scene_6_sharding():
    plan = Plan(tokens=1024, checkpointing=True)
    half = replace(plan, weights="bfloat16")
    plans = [plan, half, replace(half, method="lora"), replace(half, method="qlora")]
    text, numbers = words(5), []
    for plan in plans:
        number = 1
        while needs("gpt3-175b", replace(plan, shards=number)).total > 141e9:
            number += 1
        numbers.append(number)
        shown = size(needs("gpt3-175b", replace(plan, shards=number)).total)
        assert f"{number} × H200 {shown} on each" in text
    assert numbers == sorted(numbers, reverse=True)
    assert f"{size(needs('gpt3-175b', plans[0]).total)}, cut into {numbers[0]} shards" in text
    assert f"16-bit: {numbers[1]} GPUs" in text and f"LoRA, 16-bit: {numbers[2]} GPUs" in text
    assert f"{size(needs('gpt3-175b', plans[3]).total)}. GPUs: {numbers[3]}" in text
    alone, shared = needs("gpt3-175b", plans[1]), needs("gpt3-175b", replace(plans[1], shards=numbers[1]))
    assert alone.activations == shared.activations and alone.weights > shared.weights


def test_scene_7_what_is_enough():
    rows = {row[0]: row[1:] for row in film.scenes()[6].rows}
    assert list(rows) == [name for name, model in film.MODELS.items() if isinstance(model, str)]
    half = Plan(tokens=1024, weights="bfloat16")
    kept = replace(half, checkpointing=True)
    plans = [Plan(tokens=1024), half, kept, replace(kept, method="lora"), replace(kept, method="qlora")]
    for name, cells in rows.items():
        for plan, cell in zip(plans, cells, strict=True):
            number, device = re.fullmatch(r"(?:(\d+) × )?(T4|A100|H200)", cell).groups()
            number, room = int(number or 1), film.DEVICES[device] * 1e9
            assert needs(film.MODELS[name], replace(plan, shards=number)).total <= room
            less = replace(plan, shards=max(number - 1, 1))
            smaller = {"T4": 0, "A100": 16e9, "H200": 80e9}[device] if number == 1 else room
            assert needs(film.MODELS[name], less).total > smaller
    assert [text.get_text() for text in texts(6, 11.9)].count("T4") == sum(row.count("T4") for row in rows.values())


def test_says_so_where_no_number_of_gpus_is_enough():
    assert film.devices("gpt3-175b", Plan(batch=64, tokens=2048)) == ("H200", 0)


@pytest.mark.parametrize(("number", "second"), ENDS)
def test_letters_are_large_enough_inside_and_apart(number, second):
    found = texts(number, second)
    renderer = drawn(number, second).canvas.get_renderer()
    extents = [text.get_window_extent(renderer) for text in found]
    for text, extent in zip(found, extents, strict=True):
        assert text.get_fontsize() / 0.72 >= film.SMALLEST - 1e-9, text
        assert extent.x0 >= 10 and extent.y0 >= 5 and extent.x1 <= film.WIDTH - 10 and extent.y1 <= film.HEIGHT, text
    for place, extent in enumerate(extents):
        for other, elsewhere in zip(found[:place], extents[:place], strict=True):
            across = min(extent.x1, elsewhere.x1) - max(extent.x0, elsewhere.x0)
            along = min(extent.y1, elsewhere.y1) - max(extent.y0, elsewhere.y0)
            assert min(across, along) <= 1, f"{found[place].get_text()!r} lies on {other.get_text()!r}"


def test_captions_break_between_words_and_never_between_number_and_unit():
    assert film._two_lines("short") == "short"
    assert film._two_lines("a 16-bit number of " + "x" * 30 + " takes 5 GB and more than that") == (
        "a 16-bit number of " + "x" * 30 + "\ntakes 5 GB and more than that"
    )
    for scene in film.scenes():
        for _, text in scene.captions:
            lines = film._two_lines(text).split("\n")
            assert len(lines) <= 2 and " ".join(lines) == text
            assert not re.search(r"\d\n(GB|MB|TB|B|M|GPUs|bytes)\b", "\n".join(lines))
    with pytest.raises(ValueError, match="two lines"):
        film._two_lines("word " * 40)


def test_frames_are_not_blank_and_scenes_differ():
    above = [last(number)[:600] for number in SCENES]
    for number, frame in enumerate(above):
        assert frame.shape == (600, film.WIDTH, 3)
        assert frame.std() > 15, f"scene {number} is blank"
        for other in above[:number]:
            assert unlike(frame, other) > 0.02


@pytest.mark.parametrize("number", SCENES)
def test_pictures_move(number):
    moves = film.scenes()[number].moves
    for begin, length in {moves[0], moves[-1]}:
        before, after = (pixels(number, second, 25) for second in (begin, begin + length / 2))
        assert (np.abs(before[:150].astype(int) - after[:150]) > 32).any()


def test_the_file_is_the_transcript_of_the_film():
    assert TRANSCRIPT.read_text("utf-8") == film.transcript(), f"{TRANSCRIPT.name} {OLD}"


@pytest.mark.parametrize("number", SCENES)
def test_transcript_names_every_caption_and_number(number):
    scene, text = film.scenes()[number], TRANSCRIPT.read_text("utf-8")
    section = text.split("\n## ")[number + 1]
    assert section.startswith(f"{film._clock(film.begins()[number])} to {film._clock(film.begins()[number + 1])}: ")
    assert scene.title in section
    for begin, caption in scene.captions:
        assert f"- {film._clock(film.begins()[number] + begin)} {caption}" in section
    amount = r"\d[\d.,]*(?: [kMGT]?B\b| M\b|%)|\d+ × \w+"
    for found in re.findall(amount, words(number)):
        inside = found if "×" not in found or number == 6 else found.split(" × ")[0]
        assert inside in text, f"{found!r} is seen in scene {number + 1} and not in its transcript"


def test_shipped_film_plays_in_browsers():
    stream = imageio_ffmpeg.read_frames(str(FILM))
    about = next(stream)
    stream.close()
    assert about["codec"] == "h264" and about["pix_fmt"].startswith("yuv420p")
    assert about["size"] == (1280, 720) and about["fps"] == film.FPS
    assert about["duration"] == pytest.approx(film.begins()[-1], abs=0.1), f"{FILM.name} {OLD}"
    assert "audio_codec" not in about
    data = FILM.read_bytes()
    assert len(data) < 4_000_000
    assert 0 < data.index(b"moov") < data.index(b"mdat"), "its index must come first"
    assert FILM.stat().st_size + STILLS.stat().st_size < 5_000_000 and STILLS.stat().st_size < 1_000_000


@needs_pinned_matplotlib
@pytest.mark.parametrize("number", SCENES)
def test_shipped_film_is_what_the_code_draws(number):
    options = {"input_params": ["-ss", f"{film.begins()[number + 1] - 0.06:.3f}"], "output_params": ["-frames:v", "1"]}
    stream = imageio_ffmpeg.read_frames(str(FILM), **options)
    next(stream)
    shipped = np.frombuffer(next(stream), np.uint8).reshape(film.HEIGHT, film.WIDTH, 3)
    stream.close()
    assert unlike(shipped, last(number)) < LIMIT, f"{FILM.name} {OLD}"
    assert unlike(shipped, last((number + 1) % len(SCENES))) > 0.02


@needs_pinned_matplotlib
def test_shipped_stills_are_what_the_code_draws():
    with Image.open(STILLS) as image:
        page = image.convert("RGB")
    assert page.size == (1610, 1830)
    for number in SCENES:
        corner = (number % 2 * 810, number // 2 * 460)
        shipped = np.asarray(page.crop((*corner, corner[0] + 800, corner[1] + 450)))
        fresh = np.asarray(Image.fromarray(last(number)).resize((800, 450), Image.Resampling.LANCZOS))
        assert unlike(shipped, fresh) < LIMIT, f"{STILLS.name} {OLD}"


def test_only_its_name_draws_it_and_always_the_same(tmp_path, monkeypatch):
    short = replace(film.scenes()[0], seconds=0.5)
    monkeypatch.setattr(film, "scenes", lambda: (short,))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    files = figures.render_all(tmp_path / "images", film.NAME)
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        f"supplemental/{film.NAME}.{kind}" for kind in ("mp4", "png", "md")
    ]
    assert sorted(file.name for file in (tmp_path / "supplemental").iterdir()) == sorted(file.name for file in files)
    assert film.write_film(tmp_path / "again.mp4").read_bytes() == files[0].read_bytes()
    assert imageio_ffmpeg.count_frames_and_secs(str(files[0])) == (10, 0.5)
    assert film.NAME not in figures.FIGURES, "`course figures` without a name leaves the film alone"


def test_what_stands_still_is_drawn_once(monkeypatch):
    calls = []
    monkeypatch.setattr(film, "picture", lambda number, second, dpi: calls.append((number, second)))
    monkeypatch.setattr(film, "_pixels", lambda fig: bytes(3))
    moving = sum(length for scene in film.scenes() for _, length in scene.moves)
    frames = list(film.frames(fps=10))
    assert len(frames) == round(10 * film.begins()[-1])
    assert len(calls) <= 10 * moving + 3 * len(ENDS) < len(frames) / 2


def test_refuses_what_is_not_in_the_film(monkeypatch):
    with pytest.raises(ValueError, match="scene from 0 to 6"):
        film.picture(7, 0)
    with pytest.raises(ValueError, match="second=99"):
        film.picture(0, 99)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match="pip install imageio-ffmpeg"):
        film.write_film("never.mp4")


def test_show_gives_film_picture_and_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    monkeypatch.chdir(ROOT / "notebooks" / "week1_attention")
    before = dict(matplotlib.rcParams)
    film.show()
    monkeypatch.setattr(film, "NAME", "not-here")
    film.show()
    assert before == dict(matplotlib.rcParams), "drawing must leave matplotlib's settings alone"
    assert f'src="../../supplemental/{FILM.name}"' in shown[0]["text/html"]
    assert "<video" not in shown[1]["text/html"]
    for data in shown:
        assert film.ALT in data["text/plain"] and f'alt="{film.ALT}"' in data["text/html"]
        assert len(data["text/html"]) < 150_000
        assert str(ROOT) not in data["text/html"]
