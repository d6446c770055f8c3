"""The memory calculator: what it draws is what is computed, and what cannot be is said in a line."""

import re

import pytest

from course_utils import memory
from course_utils.memory import GB, GPUS, Plan, needs
from course_utils.plotting import png
from course_utils.widgets.memory_calculator import FORMATS, OWN, SHOWN, MemoryCalculator, draw_memory, shape_from

HOSTILE = "<img src=x onerror=alert(1)>"


def parts(calculator):
    *rows, body = calculator.panel.children
    controls = [getattr(row, "children", [row])[0] for row in rows]
    return {control.description: control for control in controls}, body


def alt(html):
    (found,) = re.findall(r'alt="([^"]*)"', html)
    return found


def test_without_a_kernel_the_first_state_is_shown():
    calculator = MemoryCalculator("gpt2", tokens=1024)
    bundle = calculator._repr_mimebundle_()
    _, body = parts(calculator)
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == calculator.panel.model_id
    assert bundle["text/html"] == body.value and bundle["text/plain"].startswith("Figure: Two panels of bars. Held")
    found = needs("gpt2", Plan(tokens=1024))
    for name, value in found.parts.items():
        assert f"{name} {memory.size(value)}" in alt(body.value)
    assert f"At most {memory.size(found.peak)} at one time" in bundle["text/plain"]
    assert "124,439,808 weights" in bundle["text/plain"] and "Radford" in bundle["text/plain"]


def test_each_control_changes_what_is_shown():
    controls, body = parts(MemoryCalculator("gpt2", tokens=512))
    seen = [body.value]
    for description, value in (
        ("Number formats", "bfloat16 throughout"),
        ("Sequences at a time", 16),
        ("Tokens a sequence", 1000),
        ("Optimizer", "adafactor"),
        ("Fused attention", "no"),
        ("Checkpointing", "yes"),
        ("GPUs that share", 8),
        ("ZeRO stage", 1),
        ("Method", "lora"),
        ("Rank of LoRA", 64),
        ("Model", OWN),
        ("Layers, width, heads, vocabulary", "2, 64, 4, 1000"),
    ):
        controls[description].value = value
        assert body.value not in seen, description
        seen.append(body.value)
    assert controls.keys() >= {"Model", "Method"} and len(controls) == 12
    assert all(control.description for control in controls.values())


def test_fits_is_said_in_words_and_by_more_than_colour():
    fig, text, lines = draw_memory("llama-7b", tokens=1024)
    _, right = fig.axes
    found = needs("llama-7b", Plan(tokens=1024))
    for place, name in enumerate(SHOWN):
        fits = found.peak <= GPUS[name] * GB
        said = right.texts[place].get_text().strip()
        assert said == ("fits" if fits else "does not fit")
        assert bool(right.patches[place].get_hatch()) is not fits
        assert right.patches[place].get_width() == pytest.approx(found.peak / GPUS[name] / GB)
        assert f"{name} {said}" in text and f"{name} {said}" in lines[2]
    assert found.peak > GPUS["A100 80"] * GB > 0 and png(fig).startswith(b"\x89PNG")
    small = needs("llama-7b", Plan(method="inference", weights="int8", tokens=1024))
    assert "T4 fits" in draw_memory("llama-7b", formats="int8 weights (inference)", method="inference", tokens=1024)[1]
    assert small.peak < GPUS["T4"] * GB


def test_bars_are_the_parts_and_the_peak():
    fig, _, lines = draw_memory("gpt2", method="lora", tokens=256, rank=4)
    found = needs("gpt2", Plan(method="lora", tokens=256, rank=4))
    widths = [bar.get_width() * GB for bar in fig.axes[0].patches]
    assert widths == pytest.approx([*found.parts.values(), found.peak])
    trained, every = memory.trained_parameters("gpt2", Plan(method="lora", rank=4))
    assert f"{every:,} weights, {trained:,} ({trained / every:.2%}) of them trained." == lines[0]


def test_every_model_format_and_method_is_drawn_or_refused_in_a_line():
    for model in memory.SHAPES:
        assert draw_memory(model, tokens=128)[1]
    for formats in FORMATS:
        for method in memory.METHODS:
            if formats == "int8 weights (inference)" and method != "inference":
                with pytest.raises(ValueError, match="weights='int8'"):
                    draw_memory("gpt2", formats=formats, method=method, tokens=128)
            else:
                assert draw_memory("gpt2", formats=formats, method=method, tokens=128)[1]


def test_what_cannot_be_gives_a_line_and_goes_away():
    controls, body = parts(MemoryCalculator("gpt2", tokens=1024))
    good = body.value
    controls["Tokens a sequence"].value = 4000
    assert "role='alert'" in body.value and "context window ends at 1024" in body.value
    controls["Tokens a sequence"].value = 1024
    assert body.value == good
    controls["Model"].value = OWN
    for typed in (HOSTILE, "", "12, 768", "12, 768, 12, 0", "12, 768, 12, 9" + "9" * 5000, "1, 2, 3, -4", "a, b, c, d"):
        controls["Layers, width, heads, vocabulary"].value = typed
        assert "role='alert'" in body.value and "for example 12, 768, 12, 50257" in body.value, typed
        assert "<img src=x" not in body.value
    controls["Layers, width, heads, vocabulary"].value = "2, 65, 4, 1000"
    assert "no multiple of heads" in body.value
    controls["Layers, width, heads, vocabulary"].value = "2, 64, 4, 1000"
    assert (
        "alert" not in body.value and f"{memory.parameters(shape_from(OWN, '2, 64, 4, 1000')):,} weights" in body.value
    )
    for wrong, says in ((dict(model="gpt9"), "gpt9"), (dict(formats="int3"), "int3"), (dict(method="tune"), "tune")):
        with pytest.raises(ValueError, match=says):
            MemoryCalculator(**wrong)
    with pytest.raises(ValueError, match="batch=0"):
        MemoryCalculator(batch=0)


def test_shares_are_named():
    _, _, whole = draw_memory("gpt2", tokens=128)
    fig, _, shared = draw_memory("gpt2", tokens=128, shards=8)
    assert fig.axes[0].get_xlabel().endswith("on each GPU") and whole != shared
