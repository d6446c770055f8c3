"""What the notebook on the families takes from the package: patterns, gaps, rows of switches, and the explorer."""

import re

import pytest
import torch

from course_utils.data.gaps import CLUES, gaps
from course_utils.families import PALM, family_of, palm_block, switch_row
from course_utils.objectives import Masked, attention_pattern, hide
from course_utils.transformer import Transformer, TransformerConfig
from course_utils.widgets import base
from course_utils.widgets.family_explorer import draw_families, family_explorer, steps

CONFIGS = {
    "GPT-2": TransformerConfig(30, width=24, positions="learned", context_window=16),
    "PaLM": TransformerConfig(30, width=24, **PALM),
    "T5": TransformerConfig(30, kind="encoder-decoder", width=24, positions="t5", norm="rmsnorm", attention_bias=False),
}
TEXTS = [
    "The value of each item is read before the next item, and the value of the last item is kept. " * 3,
    "A reader opens the file and closes it; the writer waits until nobody reads from that file any more. " * 3,
    "Colours are given by name, as numbers between zero and one, or as short words that begin with a sign. " * 2,
    "Whoever changes an index has to sort it again, since searching relies on the order of its entries, always. ",
]


@torch.no_grad()
def looked_at(model, source, target):
    """Which outputs change when a token changes: rows are outputs, columns tokens of source and target."""
    kind = model.config.kind
    torch.manual_seed(1)
    ids = torch.randint(3, 30, (1, source + target))

    def states(row):
        if kind != "encoder-decoder":
            return model(row).last_hidden_state[0]
        output = model(row[:, :source], decoder_input_ids=row[:, source:])
        return torch.cat([output.encoder_last_hidden_state[0], output.last_hidden_state[0]])

    before, columns = states(ids), []
    for place in range(source + target):
        changed = ids.clone()
        changed[0, place] = (ids[0, place] + 1) % 30
        columns.append((states(changed) - before).abs().amax(-1) > 0)
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder-decoder"])
@pytest.mark.parametrize("sizes", [(4, 3), (1, 2), (2, 5)])
def test_attention_pattern_is_what_the_model_can_know(kind, sizes):
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(30, kind=kind, width=16, layers=2, heads=2, positions="sinusoidal")).double()
    assert torch.equal(looked_at(model.eval(), *sizes), attention_pattern(kind, *sizes))


def test_attention_pattern_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="kind='both'"):
        attention_pattern("both", 1, 2)
    with pytest.raises(ValueError, match="0 or more"):
        attention_pattern("encoder", -1, 2)


def test_hide_keeps_labels_and_shares():
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(10, 50, (4, 5000), generator=draw)
    chosen = torch.rand(tokens.shape, generator=draw) < 0.15
    anything = torch.full_like(tokens, 60)
    shown, labels = hide(tokens, chosen, torch.rand(tokens.shape, generator=draw), anything, mask=3)
    assert torch.equal(labels[chosen], tokens[chosen]) and (labels[~chosen] == -100).all()
    assert torch.equal(shown[~chosen], tokens[~chosen])
    for value, share in ((3, 0.8), (60, 0.1)):
        assert abs((shown[chosen] == value).float().mean() - share) < 0.03
    assert abs((shown == tokens)[chosen].float().mean() - 0.1) < 0.03
    batch = Masked(3, 70, masked=1.0, random=0.0)([tokens[0]])
    assert torch.equal(batch["input_ids"] == 3, batch["labels"] != -100)


def test_gaps_have_their_clue_where_they_say():
    found = gaps(TEXTS, each=2, before=70, behind=25, seed=3)
    assert [gap.clue for gap in found] == [clue for clue in CLUES for _ in range(2)]
    for gap in found:
        assert len(gap.before) == 70 and len(gap.behind) == 25
        assert any(f"{gap.before} {gap.word}{gap.behind}" in text for text in TEXTS)
        words = [re.findall("[a-z]+", side.lower()) for side in (gap.before, gap.behind)]
        assert [gap.word.lower() in side for side in words] == [gap.clue == "before", gap.clue == "behind"]
    assert gaps(TEXTS, 2, 3, 70, 25) == found != gaps(TEXTS, 2, 6, 70, 25)
    assert all(gap.word.islower() for gap in gaps(TEXTS, 2, 3, 70, 25, fits=str.islower))


def test_gaps_refuses_too_little_text():
    with pytest.raises(ValueError, match="only 0 of 3 gaps"):
        gaps(["a short text."], 3)
    with pytest.raises(ValueError, match="1 or more"):
        gaps(TEXTS, 0)


def test_rows_and_steps_follow_the_switches():
    assert family_of(palm_block(24, 4).config) == "PaLM"
    row = switch_row(CONFIGS["PaLM"])
    assert row["block"] == "side by side" and row["keys and values"] == "one for all" and row["biases"] == "no"
    assert row["feed-forward"] == "gated SiLU" and row["norm"] == "LayerNorm, no bias"
    assert switch_row(CONFIGS["T5"])["biases"] == "some"
    post = TransformerConfig(9, width=8, norm_place="post")
    kinds = [kind for _, kind in steps(post)]
    assert kinds == ["edge", "attention", "sum", "norm", "network", "sum", "norm", "edge"]
    assert [kind for _, kind in steps(CONFIGS["GPT-2"])].index("norm") == 1
    assert sum(kind == "attention" for _, kind in steps(CONFIGS["T5"])) == 2
    assert sum(kind == "network" for _, kind in steps(CONFIGS["PaLM"])) == 0


def test_explorer_answers_to_its_controls(monkeypatch):
    shown = []
    monkeypatch.setattr(base, "show_live", lambda *parts: shown.append(parts))
    panel = family_explorer(CONFIGS, "GPT-2", "PaLM")
    left, right, body = panel.children
    assert "block: GPT-2 one by one, PaLM side by side." in body.value and shown[0][1] == body.value
    right.value = "T5"
    assert "norm: GPT-2 LayerNorm, T5 RMSNorm." in body.value
    left.value = "T5"
    assert "No switch in the table differs." in body.value
    assert "beside" in draw_families(CONFIGS, "PaLM", "T5")[1]


def test_explorer_refuses_too_few_and_unknown():
    with pytest.raises(ValueError, match="expected 2 or more"):
        family_explorer({"GPT-2": CONFIGS["GPT-2"]})
    with pytest.raises(ValueError, match="no family 'GPT-9'"):
        family_explorer(CONFIGS, "GPT-9")
