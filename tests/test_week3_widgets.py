"""What week 3 moves and types: one step of decoding, and a bench for prompts."""

import asyncio
import re
import subprocess
import sys
import threading
import time

import pytest
import torch

from course_utils import generation, prompting
from course_utils.generation import Decoding, complete, explain_step
from course_utils.models import load
from course_utils.plotting import figure, png
from course_utils.prompting import FORMATS, TEMPLATES, Item, Strategy, Task
from course_utils.widgets import DecodingExplorer, PromptBench, prompt_bench
from course_utils.widgets.base import choice, frame
from course_utils.widgets.decoding_explorer import decoding, draw_step
from course_utils.widgets.prompt_bench import OWN, draw_labels

HOSTILE = "<img src=x onerror=alert(1)> & $\\frac"


@pytest.fixture(scope="module")
def decoder():
    return load("decoder", "laptop")


@pytest.fixture(scope="module")
def instruct():
    return load("instruct", "laptop")


@pytest.fixture
def bench(decoder, instruct):
    return PromptBench((decoder, instruct))


def explorer_parts(explorer):
    *rows, body = explorer.panel.children
    return [getattr(row, "children", [row])[0] for row in rows], body


def alts(html):
    return re.findall(r'alt="([^"]*)"', html)


# --- one step


def test_without_a_kernel_the_first_step_is_shown(decoder):
    explorer = DecodingExplorer(decoder, "the quick brown")
    bundle = explorer._repr_mimebundle_()
    _, body = explorer_parts(explorer)
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.panel.model_id
    assert bundle["text/html"] == body.value and bundle["text/plain"].startswith(
        "Figure: Bars of the probability of 10"
    )
    (alt,) = alts(body.value)
    step = explain_step(decoder, "the quick brown", decoding(8, 0.9, temperature=0.8))
    for (name, _), kept in zip(step.stages, step.kept, strict=True):
        assert f"{name}: {kept:,} left" in alt
    assert [name for name, _ in step.stages] == ["model", "temperature 0.8", "top-k 8", "top-p 0.9"]


def test_each_slider_changes_the_step(decoder):
    explorer = DecodingExplorer(decoder)
    (prompt, *sliders), body = explorer_parts(explorer)
    seen = [body.value]
    changes = [(1.5, "temperature 1.5"), (3, "top-k 3"), (0.5, "top-p 0.5"), (0.4, "min-p 0.4"), (1.7, "repetition")]
    for slider, (value, said) in zip(sliders, changes, strict=True):
        slider.value = value
        assert said in body.value and body.value not in seen
        seen.append(body.value)
    prompt.value = "the list is a list of the"
    assert "in the prompt already" in body.value and "&#x27; list&#x27;" not in seen[-1]


def test_the_bars_are_the_probabilities_and_what_is_cut_is_hatched_and_marked(decoder):
    settings = decoding(4, 0.8, temperature=0.7)
    fig, _, _ = draw_step(decoder, "the quick brown", settings)
    step = explain_step(decoder, "the quick brown", settings)
    assert len(fig.axes) == len(step.stages) == 4
    before = step.stages[0][1]
    for axes, (name, after), kept in zip(fig.axes, step.stages, step.kept, strict=True):
        filled = [bar.get_width() for bar in axes.patches[0::2]]
        outlined = [bar.get_width() for bar in axes.patches[1::2]]
        assert filled == pytest.approx(after) and outlined == pytest.approx(before)
        cut = [old > 0 and new == 0 for old, new in zip(before, after, strict=True)]
        assert [bool(bar.get_hatch()) for bar in axes.patches[1::2]] == cut
        assert [text.get_text() == "cut" for text in axes.texts] == cut
        assert axes.get_title(loc="left") == f"{name}\n{kept:,} left"
        before = after
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == list(map(repr, step.tokens))


def test_one_stage_alone_is_drawn(decoder):
    fig, _, lines = draw_step(decoder, "the", decoding(temperature=1.0))
    assert len(fig.axes) == 1 and "cut" not in [text.get_text() for text in fig.axes[0].texts]
    assert "drawn with seed 0" in lines[-1]
    fig, alt, lines = draw_step(decoder, "the", decoding())
    assert [text.get_text() for text in fig.axes[1].texts] == ["1.00"] + ["cut"] * 9
    assert "temperature 0: 1 left" in alt and "the most probable" in lines[-1]


@pytest.mark.parametrize("prompt", ["$x$ $", HOSTILE, "\0\x1b[31m\u202e", "日本語 🙂", "<b>" * 30])
def test_any_text_is_read_and_escaped(decoder, prompt, recwarn):
    explorer = DecodingExplorer(decoder)
    (field, *_), body = explorer_parts(explorer)
    field.value = prompt
    assert "Not possible" not in body.value and len(alts(body.value)[0]) > 20
    assert set(re.findall(r"<(\w+)", body.value)) == {"figure", "img", "p"}
    assert not re.search("[\0\x1b\u202e]", body.value)
    assert not [one for one in recwarn if "Glyph" in str(one.message)]


def test_a_token_of_dollar_signs_is_no_formula(decoder, monkeypatch):
    from course_utils.widgets import decoding_explorer

    stages = (("model", (0.5, 0.3)), ("top-k 1", (1.0, 0.0)))
    made = generation.Step(("$\\nothing{$", "$$"), (1, 2), stages, (2, 1), "$$")
    monkeypatch.setattr(decoding_explorer, "explain_step", lambda *_, **__: made)
    fig, _, _ = draw_step(decoder, "the", Decoding())
    assert png(fig).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "prompt, said",
    [
        ("", "prompt is empty"),
        ("word " * 20_000, "exceeds the context window of 512"),
        ("\ud800", "half of a character"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_one_line(decoder, prompt, said):
    explorer = DecodingExplorer(decoder)
    (field, *_), body = explorer_parts(explorer)
    before = body.value
    field.value = prompt
    assert re.fullmatch("<p role='alert'>.*</p>", body.value) and said in body.value and len(body.value) < 300
    field.value = "the quick brown"
    assert body.value == before


def test_an_encoder_decoder_is_explained_too(instruct):
    settings = decoding(temperature=1.0, repetition_penalty=1.5)
    fig, _, lines = draw_step(instruct, "odd or even: 950", settings)
    assert len(fig.axes) == 2 and not any("in the prompt already" in line for line in lines)
    step = explain_step(instruct, "odd or even: 950", settings)
    assert lines[-1] == f"Next token: {step.chosen!r}, drawn with seed 0."


def test_the_ends_of_the_sliders_are_no_filter():
    assert decoding(0, 1.0, 0.0, temperature=0.5) == Decoding(temperature=0.5)
    assert decoding(3, 0.5, 0.1) == Decoding(top_k=3, top_p=0.5, min_p=0.1)


def test_of_two_changes_in_two_threads_the_last_is_shown():
    """JupyterLab hands over changes of widgets in a kernel's subshells, beside its main thread."""

    def draw(pace, size):
        time.sleep(0.3 if pace == "slow" else 0)
        fig, _ = figure()
        return fig, f"An empty picture, {pace}, of the size {size}", []

    controls = {"pace": choice("pace", ["quick", "slow"]), "size": choice("size", [1, 2])}
    panel, *_ = frame(controls, draw)
    other = threading.Thread(target=lambda: setattr(controls["pace"], "value", "slow"))
    other.start()
    time.sleep(0.1)
    controls["pace"].unobserve_all()
    controls["pace"].value = "quick"
    controls["size"].value = 2
    other.join()
    assert "quick, of the size 2" in panel.children[-1].value


# --- the bench


def test_the_example_is_there_without_a_kernel(bench, decoder):
    bundle = bench._repr_mimebundle_()
    made = bench.fields["prompt"].value
    task = prompting.unseen_task("labels", prompt_bench.QUESTIONS)
    item, strategy = task.items[0], Strategy(FORMATS["plain"], 4)
    assert made == prompting.prompt(task, item, strategy)
    written = complete(decoder, made, Decoding(max_new_tokens=16, stop=(" ;",))).text
    assert f"\n{made}</pre>" in bundle["text/html"] and f"\n{written}</pre>" in bundle["text/html"]
    (alt,) = alts(bundle["text/html"])
    (scores,) = prompting.label_scores(decoder, [made], [item.labels], " {target} ;")
    for label, share in zip(item.labels, torch.tensor(scores).softmax(0).tolist(), strict=True):
        assert f"{label} {share:.2f}" in alt
    assert bundle["text/plain"].startswith(f"Prompt: {made}\n") and f"Figure: {alt}" in bundle["text/plain"]
    right = FORMATS["plain"].read(written) == item.target
    assert f"expected: {item.target!r}. {'Right' if right else 'Wrong'}." in bundle["text/plain"]


def test_every_choice_makes_the_prompt_anew(bench):
    seen = [bench.fields["prompt"].value]
    changes = {"shots": 2, "question": 3, "template": "arrow", "seed": 5, "selection": "balanced", "task": "topic"}
    for name, value in changes.items():
        bench.strategy[name].value = value
        assert bench.fields["prompt"].value not in seen
        seen.append(bench.fields["prompt"].value)
        size = prompting.count_tokens(bench._loaded(), seen[-1])
        assert f"{size} tokens, the answer at most 16; {512 - 16 - size} of the 512 tokens" in bench.body.value
        assert "Press Write" in bench.body.value and "<figure" not in bench.body.value
    task = prompting.generated_task("topic", prompt_bench.QUESTIONS)
    wanted = Strategy(FORMATS["arrow"], 2, "balanced")
    assert seen[-1] == prompting.prompt(task, task.items[2], wanted, 5)
    assert bench.fields["expected"].value == task.items[2].target
    assert bench.fields["labels"].value == " | ".join(task.items[2].labels)


def test_the_instruct_model_answers_and_the_score_follows_the_expected_answer(bench, instruct):
    for name, value in {"task": "sentiment", "template": "prefix", "shots": 0}.items():
        bench.strategy[name].value = value
    bench.settings["model"].value = instruct.name
    size = prompting.count_tokens(instruct, bench.fields["prompt"].value)
    assert f"The prompt has {size} tokens; {512 - size} of the 512" in bench.body.value
    bench.write.click()
    answer = complete(instruct, bench.fields["prompt"].value, Decoding(max_new_tokens=16)).text.strip()
    assert answer in ("negative", "positive")
    for expected in ("negative", "positive"):
        bench.fields["expected"].value = expected
        assert "Press Write" in bench.body.value
        bench.write.click()
        assert f"Answer: &#x27;{answer}&#x27;; expected: &#x27;{expected}&#x27;." in bench.body.value
        assert ("Right." if answer == expected else "Wrong.") in bench.body.value


def test_a_typed_prompt_is_written_on_and_scored(bench, decoder):
    bench.strategy["task"].value = OWN
    assert bench.fields["expected"].value == bench.fields["labels"].value == ""
    for name in ("shots", "template"):  # belong to tasks; an own prompt stays
        bench.fields["prompt"].value = "the quick <b>brown"
        bench.strategy[name].value = {"shots": 7, "template": "question"}[name]
        assert bench.fields["prompt"].value == "the quick <b>brown"
    bench.write.click()
    written = complete(decoder, "the quick <b>brown", Decoding(max_new_tokens=16)).text
    assert prompt_bench._literal(written) in bench.body.value and "no expected answer" in bench.body.value
    bench.fields["expected"].value = written.strip().split("\n")[0].strip()
    bench.fields["labels"].value = f"fox | dog || fox | {HOSTILE}"
    bench.write.click()
    assert "Right." in bench.body.value and "of 3 of 3 labels" in bench.body.value
    assert "<img src=x" not in bench.body.value


def test_summaries_are_scored_by_rouge(bench, instruct):
    for name, value in {"task": "summary", "template": "prefix", "shots": 0}.items():
        bench.strategy[name].value = value
    bench.settings["model"].value, bench.settings["new"].value = instruct.name, 60
    bench.write.click()
    answer = complete(instruct, bench.fields["prompt"].value, Decoding(max_new_tokens=60)).text
    score = prompting.rouge_l(answer, bench.fields["expected"].value)
    assert score > 0.3 and f": {score:.2f}." in bench.body.value and "ROUGE-L" in bench.body.value


def test_decoding_follows_its_sliders(bench, decoder):
    for name, value in {"temperature": 1.3, "top_k": 20, "new": 30}.items():
        bench.settings[name].value = value
    bench.strategy["task"].value, bench.fields["prompt"].value = OWN, "the list"
    texts = []
    for seed in (0, 1):
        bench.strategy["seed"].value = seed
        bench.write.click()
        texts.append(complete(decoder, "the list", Decoding(30, 1.3, 20, seed=seed)).text)
        assert prompt_bench._literal(texts[-1]) in bench.body.value
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    "prompt, said",
    [
        ("", "the prompt is empty"),
        ("a" * 100_000, "too many for the context window of 512 of course-decoder"),
        ("\ud800", "half of a character"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_writes_nothing(bench, prompt, said):
    for act in (lambda: setattr(bench.fields["prompt"], "value", prompt), bench.write.click):
        act()
        assert re.fullmatch("<p role='alert'>.*</p>", bench.body.value) and said in bench.body.value
        assert len(bench.body.value) < 400
    bench.fields["prompt"].value = "the"
    assert "Press Write" in bench.body.value


@pytest.mark.parametrize("prompt", ["\0\x1b[31m\a", "   ", "\n", HOSTILE, "\u202e🙂"])
def test_odd_characters_are_a_prompt_like_others(bench, prompt):
    bench.fields["prompt"].value = prompt
    bench.write.click()
    assert "Completion:" in bench.body.value and "alert" not in bench.body.value
    assert set(re.findall(r"<(\w+)", bench.body.value)) == {"figure", "img", "p", "pre"}


def test_a_strategy_that_cannot_be_made_says_why(bench):
    bench.strategy["template"].value = "chain of thought"
    assert "the template writes {reasoning}" in bench.body.value and bench.fields["prompt"].value == ""
    bench.strategy["shots"].value = 0
    assert "Press Write" in bench.body.value and bench.fields["prompt"].value.endswith("step by step.")
    bench.strategy["task"].value = "entities"
    bench.strategy["shots"].value, bench.strategy["selection"].value = 2, "nearest"
    bench.strategy["template"].value, bench.strategy["selection"].value = "plain", "balanced"
    assert "has no labels" in bench.body.value


def test_a_prompt_with_too_many_examples_says_so(bench):
    for name, value in {"task": "question", "template": "instruction", "shots": 16}.items():
        bench.strategy[name].value = value
    assert "too many for the context window" in bench.body.value


def test_models_are_loaded_when_they_are_needed(decoder, instruct, monkeypatch):
    asked = []

    def loading(name):
        asked.append((name, bench.body.value if asked else ""))
        if name == "seq2seq":
            raise OSError("seq2seq cannot be had here")
        return {"decoder": decoder, "instruct": instruct}[name]

    monkeypatch.setattr(prompt_bench, "load", loading)
    bench = PromptBench(("decoder", "instruct", "seq2seq"))
    assert [name for name, _ in asked] == ["decoder"]
    for name in ("instruct", "decoder", "instruct"):
        bench.settings["model"].value = name
    assert len(asked) == 2 and "loading instruct…" in asked[1][1]
    bench.settings["model"].value = "seq2seq"
    assert "cannot be had here" in bench.body.value and "alert" in bench.body.value


def test_in_a_notebook_it_streams_and_stop_is_heard(bench, decoder):
    """With a loop running, as in a kernel, the text comes in pieces, and what comes between them counts."""
    bench.strategy["task"].value, bench.fields["prompt"].value = OWN, "the list of"
    bench.settings["new"].value = 120
    whole = complete(decoder, "the list of", Decoding(max_new_tokens=120)).text

    async def write(stop_after, stop):
        seen = []
        bench.write.click()
        while not bench._running.done():
            seen.append(bench.body.value)
            if len(seen) == stop_after:
                stop()
            await asyncio.sleep(0)
        return seen

    seen = asyncio.run(write(0, None))
    assert len(set(seen)) > 20 and "Writing…" in seen[5]
    assert "Done." in bench.body.value and prompt_bench._literal(whole) in bench.body.value
    asyncio.run(write(20, bench.stop.click))
    assert "Stopped." in bench.body.value and "Answer" not in bench.body.value
    assert 0 < len(bench._written) < len(whole) and whole.startswith(bench._written)
    asyncio.run(write(20, lambda: setattr(bench.fields["prompt"], "value", "another")))
    assert "Press Write" in bench.body.value and "Completion" not in bench.body.value
    bench.stop.click()
    assert "Press Write" in bench.body.value


def test_an_own_task_can_be_given(decoder):
    items = (Item("4", "even", labels=("odd", "even")),)
    bench = PromptBench((decoder,), (Task("mine <i>", items, {}),), "input", shots=0)
    assert bench.fields["prompt"].value == TEMPLATES["input"].render("4")
    bench.strategy["question"].value = 2
    assert "mine &lt;i&gt; has 1 question" in bench.body.value


def test_wrong_names_are_refused(decoder):
    for bad in ({"tasks": ("sentimnt",)}, {"template": "no such"}, {"models": ()}, {"tasks": ()}):
        with pytest.raises(ValueError, match="expected models"):
            PromptBench(**{"models": (decoder,), **bad})


def test_labels_are_drawn_the_likeliest_first_the_expected_hatched():
    shares = {"$a$": 0.1, "b": 0.6, **{f"c{number}": 0.03 for number in range(10)}}
    fig, alt, lines = draw_labels(shares, "$a$")
    (axes,) = fig.axes
    assert [bar.get_width() for bar in axes.patches] == [0.6, 0.1] + [0.03] * 6
    assert [bool(bar.get_hatch()) for bar in axes.patches] == [False, True] + [False] * 6
    assert axes.texts[1].get_text() == "0.10 expected" and "8 of 12 labels: b 0.60, $a$ 0.10" in alt
    assert lines == ["Most probable label: 'b'; expected: '$a$'. Wrong."] and png(fig).startswith(b"\x89PNG")


def test_the_list_of_widgets_is_light():
    code = "import sys, course_utils.widgets as widgets; assert not {'torch', 'ipywidgets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
