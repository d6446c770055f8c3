"""environment, reporting, plotting, quiz, and the frame of the widgets."""

import html
import math
import random
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
import torch

from course_utils import environment, plotting, quiz, reporting
from course_utils.environment import start
from course_utils.widgets import base

HOSTILE = "<img src=x onerror=\"alert(1)\"> & 'quoted' </figure>"


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch):
    """start() sets process-wide things: put them back."""
    threads, filters = torch.get_num_threads(), warnings.filters[:]
    yield
    torch.set_num_threads(threads)
    warnings.filters[:] = filters


@pytest.fixture
def displayed(monkeypatch):
    """What would be displayed in a notebook, as a list of bundles."""
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda bundle, raw=False: shown.append(bundle))
    return shown


# --- environment ---


def test_start_in_the_laptop_profile(capsys):
    lab = start(seed=3)
    assert (lab.profile, lab.device.type, lab.dtype, lab.seed, lab.threads) == ("laptop", "cpu", torch.float32, 3, 1)
    assert torch.get_num_threads() == 1
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines()] == [
        ["profile", "laptop"],
        ["device", "cpu"],
        ["dtype", "float32"],
        ["seed", "3"],
        ["threads", "1"],
    ]


def test_the_same_seed_gives_the_same_numbers():
    def draw():
        return random.random(), float(numpy.random.rand()), torch.rand(3).tolist()

    start(seed=5)
    first = draw()
    start(seed=5)
    assert draw() == first
    start(seed=6)
    assert draw() != first


def test_profile_comes_from_argument_then_variable_then_hardware(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "gpu")
    assert start().profile == "gpu"
    assert start(profile="laptop").profile == "laptop"
    monkeypatch.delenv("COURSE_PROFILE")
    assert start().profile == ("gpu" if torch.cuda.is_available() else "laptop")


def test_threads_come_from_argument_then_variable(monkeypatch):
    monkeypatch.setenv("COURSE_THREADS", "2")
    assert start().threads == 2
    assert start(threads=1).threads == torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"profile": "cloud"}, "'cloud'; expected one of laptop, gpu"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"seed": True}, "seed=True"),
        ({"seed": "0"}, "seed='0'"),
        ({"threads": 0}, "is 0; expected a whole number of 1 or more"),
        ({"device": "tpu9"}, "device='tpu9'"),
        ({"device": "meta"}, "device='meta'"),
        ({"dtype": torch.int8}, "torch.int8"),
    ],
)
def test_start_refuses(arguments, what):
    with pytest.raises(ValueError, match=re.escape(what)):
        start(**arguments)


def test_start_refuses_wrong_variables(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "phone")
    with pytest.raises(ValueError, match="COURSE_PROFILE is 'phone'"):
        start()
    monkeypatch.delenv("COURSE_PROFILE")
    monkeypatch.setenv("COURSE_THREADS", "many")
    with pytest.raises(ValueError, match="COURSE_THREADS is 'many'"):
        start()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_start_refuses_a_gpu_that_is_not_there():
    with pytest.raises(RuntimeError, match="no such device"):
        start(device="cuda")


def test_folders_follow_their_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "a" / "b"))
    assert environment.cache_folder() == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(OSError, match="Set COURSE_CACHE"):
        environment.cache_folder()


# --- reporting ---


def test_measured_says_whether_the_range_holds(capsys):
    reporting.measured("accuracy", 0.9871, 0.95, 1.0)
    reporting.measured("time", 3.2, 0, 2, unit="s", digits=1)
    reporting.measured("ratio", 7.0, 2, math.inf, digits=0)
    reporting.measured("of another model", 7.0, -math.inf, math.inf)
    reporting.measured("loss", math.nan, 0, 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "accuracy: ≈0.99 (expected 0.95 to 1: yes)"
    assert lines[1].startswith("time: ≈3.2 s (expected 0 to 2: NO")
    assert lines[2] == "ratio: ≈7 (expected at least 2: yes)"
    assert lines[3] == "of another model: ≈7.00"
    assert lines[4].startswith("loss: ≈nan (expected 0 to 1: NO")


def test_measured_refuses_an_empty_range():
    with pytest.raises(ValueError, match="2 to 1"):
        reporting.measured("x", 1, 2, 1)


def test_measured_numbers_are_sanitised_and_verdicts_are_not():
    from nbval.plugin import get_sanitize_patterns

    patterns = list(get_sanitize_patterns((Path(__file__).parent / "sanitize.cfg").read_text(encoding="ascii")))

    def sanitise(text):
        for pattern, replacement in patterns:
            text = re.sub(pattern, replacement, text)
        return text

    for value in ("≈0.99", "≈-12", "≈1,234.5", "≈1.2e-05", "≈nan", "≈inf"):
        assert sanitise(f"a: {value} (yes)") == "a: MEASURED (yes)"
    assert sanitise("a: ≈1 (yes)") != sanitise("a: ≈1 (NO)")
    assert sanitise("exactly 0.99") == "exactly 0.99"
    assert sanitise('<img src="data:image/png;base64,AAb+/=" alt="A">') == '<img src="PNG" alt="A">'


def test_table_in_a_terminal(capsys):
    reporting.table([("a", 1), ("b", 2)], ["name", "number"], caption="Two")
    assert capsys.readouterr().out == "Two\nname | number\na | 1\nb | 2\n"


def test_table_in_a_notebook_escapes_and_names_its_columns(displayed, monkeypatch):
    monkeypatch.setattr(reporting, "_in_notebook", lambda: True)
    reporting.table([(HOSTILE,)], ["x"], caption=HOSTILE)
    (bundle,) = displayed
    assert "<img" not in bundle["text/html"]
    assert html.escape(HOSTILE) in bundle["text/html"]
    assert "<th scope=col style='text-align:left'>x</th>" in bundle["text/html"]
    assert HOSTILE in bundle["text/plain"]


def test_table_refuses_a_ragged_row():
    with pytest.raises(ValueError, match="row 1 has 1 cells, the header has 2"):
        reporting.table([(1, 2), (3,)], ["a", "b"])


# --- plotting ---


def test_show_puts_the_text_into_the_output(displayed):
    fig, axes = plotting.figure()
    axes.plot([1, 2])
    plotting.show(fig, alt='A line that rises from 1 to 2, "steadily"', caption="Rising")
    (bundle,) = displayed
    assert bundle["text/plain"] == 'Figure: A line that rises from 1 to 2, "steadily"'
    assert 'alt="A line that rises from 1 to 2, &quot;steadily&quot;"' in bundle["text/html"]
    assert "<figcaption>Rising</figcaption>" in bundle["text/html"]
    assert set(bundle) == {"text/html", "text/plain"}


def test_show_refuses_a_text_that_says_nothing():
    fig, _ = plotting.figure()
    with pytest.raises(ValueError, match="alt='plot' says too little"):
        plotting.show(fig, alt="plot")


def test_the_same_figure_gives_the_same_bytes():
    def draw():
        return plotting.png(plotting.heatmap([[0.1, 0.9], [0.5, 0.5]], ["a", "b"], ["c", "d"]))

    assert draw() == draw()


def test_heatmap_writes_its_numbers_in_a_readable_colour():
    fig = plotting.heatmap(torch.tensor([[0.0, 1.0], [-math.inf, 0.4]]), ["a", "b"], ["c", "d"])
    texts = {text.get_text(): text.get_color() for text in fig.axes[0].texts}
    assert texts == {"0.00": "black", "1.00": "white", "-∞": "black", "0.40": "black"}


def test_heatmap_takes_empty_and_constant_matrices():
    for values in ([[0.0, 0.0]], [[-1.0]], [[math.nan]], [[-math.inf]]):
        assert plotting.png(plotting.heatmap(values))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (([1, 2, 3],), r"shape \(3,\)"),
        (([[1, 2]], ["a", "b"]), "2 names for 1 rows"),
        (([[1, 2]], None, ["a"]), "1 names for 2"),
    ],
)
def test_heatmap_refuses(arguments, what):
    with pytest.raises(ValueError, match=what):
        plotting.heatmap(*arguments)


def test_colours_stay_apart_without_red_and_green():
    """Simulated deuteranopia and protanopia (Machado et al. 2009): every two of the first six colours stay distinct."""
    from matplotlib.colors import to_rgb

    deuteranopia = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    protanopia = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    for matrix in (deuteranopia, protanopia):
        seen = [numpy.array(matrix) @ _linear(to_rgb(color)) for color in plotting.COLORS[:6]]
        for i, one in enumerate(seen):
            for other in seen[i + 1 :]:
                assert numpy.abs(one - other).max() > 0.05


def _linear(rgb):
    return numpy.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb])


# --- quizzes ---


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", quiz.quiz_names())
def test_quiz_is_complete_and_shown(name, displayed):
    asked = quiz.questions(name)
    assert 4 <= len(asked) <= 8
    for question in asked:
        assert question.text.endswith(("?", ":", ".", "…"))
        assert 3 <= len(question.options) <= 5
        assert len({option.text for option in question.options}) == len(question.options)
        assert all(len(option.why) >= 20 for option in question.options)
    places = [[option.correct for option in question.options].index(True) for question in asked]
    assert len(set(places)) > 1, "the right answer always stands at the same place"
    lengths = [max(question.options, key=lambda option: len(option.text)).correct for question in asked]
    assert not all(lengths), "the right answer is always the longest"
    quiz.quiz(name)
    (bundle,) = displayed
    parser = Tags()
    parser.feed(bundle["text/html"])
    assert parser.open == []
    assert parser.seen.count("details") == sum(len(question.options) for question in asked)
    assert not any(option.why in bundle["text/plain"] for question in asked for option in question.options)


def test_quiz_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="no quiz 'week9/99'"):
        quiz.quiz("week9/99")


# --- the frame of the widgets ---


def test_explorer_shows_a_figure_with_and_without_a_kernel(displayed):
    def draw(power, title):
        if power > 4:
            raise ValueError(f"{HOSTILE}: too high")
        fig, axes = plotting.figure()
        axes.plot([x**power for x in range(5)])
        return fig, f"A curve of power {power} named {HOSTILE}", [f"power {power}", HOSTILE]

    controls = {"power": base.slider("power", 2, 1, 5), "title": base.choice("title", ["a", "b"])}
    panel = base.explorer(controls, draw)
    (bundle,) = displayed
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.model_id
    body = panel.children[-1]
    assert bundle["text/html"] == body.value
    assert bundle["text/plain"].startswith("Figure: A curve of power 2")
    assert "<img src=x" not in body.value
    before = body.value
    controls["power"].value = 3
    assert body.value != before and "power 3" in body.value
    controls["power"].value = 5
    assert "Not possible" in body.value and "<img" not in body.value
    controls["power"].value = 2
    assert body.value == before


def test_slider_and_its_box_move_together():
    box = base.slider("t", 0.5, 0.0, 2.0, step=0.1)
    knob = box.panel.children[1]
    knob.value = 1.5
    assert box.value == 1.5
    box.value = 0.2
    assert knob.value == 0.2
    assert box.description == "t"
