"""What week 2 moves and redraws: curves of heads that form, maps over a training, one map of a sentence."""

import pytest
import torch

from course_utils import plotting
from course_utils.checks.week2_01_attention_maps import alignment, previous_token, rollout
from course_utils.interpretability import (
    attention_maps,
    attention_rollout,
    induction_targets,
    previous_token_score,
    repeated_loss,
    silenced,
    watch_heads_form,
)
from course_utils.models import load
from course_utils.widgets import map_explorer as maps_module
from course_utils.widgets.heads_explorer import draw_forming, draw_snapshot, heads_explorer
from course_utils.widgets.map_explorer import draw_map, map_explorer


@pytest.fixture(scope="module")
def forming():
    return watch_heads_form(0, steps=6, snapshots=4, progress=False)


def test_a_live_figure_stays_in_its_place(monkeypatch):
    calls = []

    class Handle:
        def update(self, bundle, raw):
            calls.append(("update", bundle))

    def display(bundle, raw, display_id):
        calls.append(("display", bundle))
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    live = plotting.LiveFigure("A line that grows from frame to frame")
    for length in (1, 2, 3):
        fig, axes = plotting.figure()
        axes.plot(range(length + 1))
        live.draw(fig)
    assert [kind for kind, _ in calls] == ["display", "update", "update"]
    assert {bundle["text/plain"] for _, bundle in calls} == {"Figure: A line that grows from frame to frame"}
    assert len({bundle["text/html"] for _, bundle in calls}) == 3


def test_the_curves_show_every_head_up_to_now(forming):
    for count in (1, len(forming.snapshots)):
        fig = draw_forming(forming.snapshots[:count], 6)
        losses, scores = fig.axes
        assert [len(line.get_xdata()) for line in losses.lines] == [count, count]
        assert len(scores.lines) == 2 * 8
        assert losses.get_xlim() == scores.get_xlim() == (0, 6)
    last = forming.snapshots[-1]
    ends = [float(line.get_ydata()[-1]) for line in scores.lines]
    assert ends == pytest.approx([*last.previous_token.flatten().tolist(), *last.induction.flatten().tolist()])


def test_the_slider_goes_back_over_the_training(forming, shown):
    panel = heads_explorer(forming)
    box, body = panel.children[0].children[0], panel.children[-1]
    assert box.value == len(forming.snapshots) - 1 and "step 6," in body.value and "step 6," in shown[0][1]
    box.value = 0
    assert "step 0, after 0 tokens" in body.value


def test_a_snapshot_is_drawn_with_its_maps_and_scores(forming):
    snapshot = forming.snapshots[-1]
    fig, alt, lines = draw_snapshot(snapshot)
    assert len(fig.axes) == 8 and len(alt) > 20 and "step 6" in lines[0]
    for axes, maps, score in zip(fig.axes, snapshot.maps.flatten(0, 1), snapshot.induction.flatten(), strict=True):
        assert torch.allclose(torch.as_tensor(axes.images[0].get_array().data), maps.sqrt(), atol=0.034)
        assert f"induction {score:.2f}" in axes.get_title(loc="left")


def test_a_sentence_is_drawn_as_the_models_map(shown):
    encoder, decoder = load("encoder", "laptop"), load("decoder", "laptop")
    models = {one.kind: (one.model, one.tokenizer) for one in (encoder, decoder)}
    panel = map_explorer(models, "the key is the name of the file")
    name, sentence, layer, head = (getattr(row, "children", [row])[0] for row in panel.children[:-1])
    body = panel.children[-1]
    assert "masked, layer 1, head 1" in body.value
    name.value, layer.value, head.value = "causal", 2, 5
    assert "causal, layer 2, head 5" in body.value
    sentence.value = "<b>list & dict</b>"
    assert "<b>" not in body.value and "&lt;b&gt;" in body.value
    name.value = "masked"
    assert "Not possible" in body.value and "layers of 4 heads" in body.value
    head.value = 4
    sentence.value = "word " * 40
    assert f"type one of 2 to {maps_module.LONGEST}" in body.value


def test_the_drawn_map_is_the_models():
    decoder = load("decoder", "laptop")
    fig, _, _ = draw_map(decoder.model, decoder.tokenizer, "decoder", "the list is a list", layer=2, head=1)
    ids = decoder.tokenizer("the list is a list", return_tensors="pt")["input_ids"]
    wanted = attention_maps(decoder.model, ids)["attentions"][1][0, 0]
    assert torch.allclose(torch.as_tensor(fig.axes[0].images[0].get_array().data), wanted.double(), atol=1e-6)


def test_what_the_exercises_build_is_what_the_package_computes():
    maps = [torch.randn(1, 3, 7, 7).softmax(-1) for _ in range(3)]
    assert torch.allclose(previous_token(maps[0][0]), previous_token_score(maps[0]))
    assert torch.allclose(rollout([layer[0] for layer in maps]), attention_rollout(maps)[0], atol=1e-6)


def test_alignment_by_hand():
    weights = torch.tensor([[0.4, 0.3, 0.3, 0.0], [0.0, 0.1, 0.1, 0.8], [0.9, 0.0, 0.0, 0.1]])
    assert alignment(weights, [0, 1, 1], [5, 6, 6, None]) == [6, 6]


def test_targets_losses_and_silence_by_hand():
    tokens = torch.tensor([[3, 5, 3, 3]])
    wanted = torch.zeros(1, 4, 4, dtype=torch.bool)
    wanted[0, 2, 1] = wanted[0, 3, 1] = True  # behind the 3 at place 2 stands the query itself
    assert torch.equal(induction_targets(tokens), wanted)
    logits = torch.zeros(1, 4, 8)
    logits[0, 2, 3] = 100.0
    assert repeated_loss(logits, tokens, 3) == pytest.approx(0, abs=1e-6)
    assert repeated_loss(logits, tokens, 1) == pytest.approx(2 / 3 * torch.tensor(8.0).log().item())
    states = torch.ones(1, 2, 3, 4)
    assert silenced(states, [1]).sum((0, 1, 3)).tolist() == [8, 0, 8] and states.sum() == 24
