"""The head viewer without a browser: what it packs, what it says, what it refuses, how large it is."""

import base64
import html.parser
import json
import re
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertForMaskedLM

from course_utils.interpretability import attention_maps, head_scores
from course_utils.models import load
from course_utils.recipes.tokenizer import tokenizer
from course_utils.widgets.attention_view import LEVELS, AttentionView, _script, in_levels

HOSTILE = [
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\"'`", "javascript:alert(1)", "a\0b",
    "\u202egnp.exe", "👩‍👩‍👧", "&lt;b&gt;", "</div>", "<!--", "]]>", "$x_1$", "${alert(1)}", "\u2028", "\ud800",
]  # fmt: skip


def maps(layers=2, heads=3, queries=7, keys=7, causal=False, sharp=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(layers):
        scores = torch.randn(heads, queries, keys, generator=generator) * sharp
        if causal:
            scores = scores.masked_fill(~torch.ones(queries, keys, dtype=torch.bool).tril(), -torch.inf)
        found.append(scores.softmax(-1))
    return found


class Elements(html.parser.HTMLParser):
    """All elements of a piece of HTML with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def unpacked(view):
    """What the script would read: the parts, and the levels of each."""
    (attributes,) = (each for tag, each in Elements(view._fragment()).found if tag == "div")
    parts = json.loads(zlib.decompress(base64.b64decode(attributes["data-model"]), -15))
    halved = attributes["data-levels"].startswith(".")
    packed = np.frombuffer(zlib.decompress(base64.b64decode(attributes["data-levels"][halved:]), -15), np.uint8)
    sizes = [(len(part["q"]), len(part["k"] or part["q"]), part["l"] * part["h"]) for part in parts]
    total = sum(
        heads * (rows * (rows + 1) // 2 if part["c"] else rows * columns)
        for part, (rows, columns, heads) in zip(parts, sizes, strict=True)
    )
    content = packed
    if halved:
        halves, more = np.split(packed, [(total + 1) // 2])
        content = np.stack([halves >> 4, halves & 15], 1).flatten()[:total]
        content[content == 15] += more
    levels, place = [], 0
    for part in parts:
        rows, columns = len(part["q"]), len(part["k"] or part["q"])
        size = rows * (rows + 1) // 2 if part["c"] else rows * columns
        flat = content[place : place + part["l"] * part["h"] * size].reshape(part["l"], part["h"], size)
        place += flat.size
        whole = np.zeros((part["l"], part["h"], rows, columns), np.uint8)
        where = np.tril_indices(rows) if part["c"] else np.indices((rows, columns)).reshape(2, -1)
        whole[:, :, where[0], where[1]] = flat
        levels.append(whole)
    assert place == content.size
    return parts, levels


# --- numbers


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(0, 1000), st.sampled_from((0.0, 0.3, 1.0, 4.0, 30.0)))
def test_levels_keep_the_sum_of_each_row_and_are_off_by_less_than_one(keys, seed, sharp):
    weights = maps(1, 2, 5, keys, sharp=sharp, seed=seed)[0].numpy()
    levels = in_levels(weights)
    assert levels.dtype == np.uint8
    assert (levels.sum(-1, dtype=int) == LEVELS).all()
    assert np.abs(levels - weights.astype(float) * LEVELS).max() < 1


def test_levels_of_equal_weights_and_of_rows_that_see_nothing():
    assert in_levels(np.full((1, 4), 0.25)).tolist() == [[64, 64, 64, 63]]
    assert in_levels(np.array([[0.0, 0.0], [0.5, 0.5], [1.0, 0.0]])).tolist() == [[0, 0], [128, 127], [255, 0]]


@pytest.mark.parametrize("causal", [False, True])
def test_what_is_packed_are_the_maps(causal):
    given_maps = maps(causal=causal)
    parts, levels = unpacked(AttentionView(list("abcdefg"), given_maps))
    assert parts[0]["c"] == causal and parts[0]["q"] == list("abcdefg")
    exact = torch.stack(given_maps).numpy() * LEVELS
    assert np.abs(levels[0] - exact).max() < 1 and (levels[0].sum(-1, dtype=int) == LEVELS).all()


def test_cross_attention_has_other_keys_and_batches_of_one_are_taken():
    view = AttentionView(["a", "b"], [layer[None] for layer in maps(queries=2, keys=5)], key_tokens=list("vwxyz"))
    parts, levels = unpacked(view)
    assert parts[0]["k"] == list("vwxyz") and not parts[0]["c"] and levels[0].shape == (2, 3, 2, 5)
    assert list(parts[0]["s"]) == ["entropy"]


# --- models


def test_an_encoder_with_two_texts():
    torch.manual_seed(0)
    sizes = dict(vocab_size=4096, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=9)
    model, marks = BertForMaskedLM(BertConfig(**sizes)).train(), tokenizer("encoder")
    view = AttentionView.from_model(model, marks, "the cat sat", "the dog ran")
    assert model.training and model.config._attn_implementation == "sdpa"
    made = marks("the cat sat", "the dog ran", return_tensors="pt")
    exact = attention_maps(model, **{name: made[name] for name in ("input_ids", "token_type_ids") if name in made})
    parts, levels = unpacked(view)
    assert np.abs(levels[0] / LEVELS - torch.cat(exact["attentions"]).numpy()).max() < 1 / LEVELS
    assert parts[0]["b"] == made.sequence_ids(0).index(1) > 1
    assert "".join(parts[0]["q"]).count("·cat") == 1
    scores = head_scores(model, made["input_ids"])
    assert parts[0]["s"]["induction"] == pytest.approx((100 * scores["induction"]).flatten().tolist(), abs=0.6)


def test_an_encoder_decoder_has_three_parts():
    torch.manual_seed(0)
    sizes = dict(vocab_size=4096, d_model=12, encoder_layers=1, decoder_layers=2, max_position_embeddings=64)
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=3, encoder_ffn_dim=9, decoder_ffn_dim=9)
    marks = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=0)
    model = BartForConditionalGeneration(BartConfig(**sizes, **heads, **marks)).eval()
    text = tokenizer("seq2seq")
    view = AttentionView.from_model(model, text, "one two three", target="two")
    parts, levels = unpacked(view)
    assert [part["n"] for part in parts] == ["encoder", "decoder", "cross-attention"]
    assert [each.shape[:2] for each in levels] == [(1, 2), (2, 3), (2, 3)]
    assert [part["c"] for part in parts] == [0, 1, 0]
    assert parts[2]["q"] == parts[1]["q"] and parts[2]["k"] == parts[0]["q"]
    assert len(AttentionView.from_model(model, text, "one two three").parts) == 3  # it writes by itself


@pytest.mark.parametrize("name", ["course-decoder", "course-encoder", "course-instruct"])
def test_embedded_models_are_viewed(name):
    loaded = load(name, profile="laptop")
    view = AttentionView.from_model(loaded.model, loaded.tokenizer, "summarize: the array is not the matrix")
    assert len(view._fragment()) < 60_000
    assert "layer 1, head 1" in view.summary()


# --- safety


@pytest.mark.parametrize("where", ["queries", "keys"])
def test_hostile_tokens_are_data(where):
    size = len(HOSTILE)
    names = [f"t{number}" for number in range(size)]
    tokens, keys = (HOSTILE, names) if where == "queries" else (names, HOSTILE)
    view = AttentionView(tokens, maps(queries=size, keys=size), key_tokens=keys)
    found = Elements(view._fragment()).found
    assert [tag for tag, _ in found] == ["div", "img", "p", "script"]
    assert not [name for _, attributes in found for name in attributes if name.startswith("on")]
    parts, _ = unpacked(view)
    shown = parts[0]["q" if where == "queries" else "k"]
    assert shown[0] == HOSTILE[0][:40] and shown[4] == "a\\u0000b" and shown[5].startswith("\\u202e")
    assert "\\ud800" in shown[14]
    view._fragment().encode("utf-8")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=2, max_size=2))
def test_fuzzed_tokens_leave_the_page_whole(tokens):
    found = Elements(AttentionView(tokens, maps(queries=2, keys=2)).to_html()).found
    assert [tag for tag, _ in found] == [
        "html",
        "meta",
        "title",
        "meta",
        "body",
        "main",
        "h1",
        "div",
        "img",
        "p",
        "script",
    ]


def test_no_address_of_any_machine_is_in_it():
    view = AttentionView(list("abcdefg"), maps())
    script = zlib.decompress(base64.b64decode(_script()), -15).decode()
    assert not re.search(r"https?:|[\"'(]//\w|import\(|fetch\(|XMLHttp|WebSocket", view.to_html() + script)


# --- size


@pytest.mark.parametrize("tokens, most", [(16, 25_000), (64, 180_000), (128, 480_000), (256, 1_300_000)])
def test_six_layers_of_twelve_heads_are_small(tokens, most):
    names = [f"·word{number}"[:7] for number in range(tokens)]
    for causal, sharp in ((False, 2.0), (False, 3.0), (True, 1.0)):
        view = AttentionView(names, maps(6, 12, tokens, tokens, causal, sharp))
        assert len(view._fragment().encode()) < most
        assert np.array_equal(unpacked(view)[1][0], view.parts[0].levels)
    assert len(_script()) < 20_000


# --- what else it gives


def test_an_output_has_html_a_picture_and_words(tmp_path):
    view = AttentionView(list("abcdefg"), maps())
    bundle = view._repr_mimebundle_()
    assert bundle.keys() == {"text/html", "image/png", "text/plain"}
    assert base64.b64decode(bundle["image/png"])[:4] == b"\x89PNG"
    assert bundle["text/plain"].startswith("self-attention, layer 1, head 1 (previous token ≈0.")
    assert view._fragment() == AttentionView(list("abcdefg"), maps())._fragment()
    view.to_html(tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text() == view.to_html()
    for name, options in (("all", {}), ("one", {"layer": 1, "head": 2})):
        view.to_png(tmp_path / f"{name}.png", **options)
        view.to_svg(tmp_path / f"{name}.svg", **options)
        assert Image.open(tmp_path / f"{name}.png").width > 150
        assert "<text" not in (tmp_path / f"{name}.svg").read_text()
    assert len(list(tmp_path.iterdir())) == 5


def test_pictures_of_hostile_tokens_are_drawn(tmp_path):
    view = AttentionView(HOSTILE, maps(queries=len(HOSTILE), keys=len(HOSTILE)))
    view.to_svg(tmp_path / "a.svg", 0, 0)
    content = (tmp_path / "a.svg").read_text()
    assert "<script" not in content and "onerror" not in content.split("<!--")[0]


def test_the_summary_says_where_a_head_looks():
    sure = torch.eye(3)[torch.tensor([0, 0, 1])][None]
    said = AttentionView(["a", " b", "c"], [sure]).summary()
    assert "previous token ≈1.00" in said and said.endswith("a at a (≈1.00), ·b at a (≈1.00), c at ·b (≈1.00).")


@pytest.mark.parametrize(
    "tokens, attentions, message",
    [
        (["a"], [], "no attention maps: .*attn_implementation='eager'"),
        (["a"], None, "no attention maps"),
        (["a"], [None], "no attention maps"),
        (["a", "b"], [torch.ones(2, 1, 2, 2) / 2], "batch of 2 texts"),
        (["a", "b", "c"], maps(queries=2, keys=2), r"shape \(3, 2, 2\), expected \(heads, 3, 3\) for 3 tokens"),
        (list("abcdefg"), [maps()[0], maps(heads=2)[0]], "layer 1 has shape"),
        (["a", "b"], [torch.full((1, 2, 2), torch.nan)], "no attention weights"),
        (["a", "b"], [torch.ones(1, 2, 2)], "no attention weights"),
        (["a", "b"], [torch.tensor([[[2.0, -1.0], [0.5, 0.5]]])], "no attention weights"),
    ],
)
def test_refuses_what_cannot_be_shown(tokens, attentions, message):
    with pytest.raises(ValueError, match=message):
        AttentionView(tokens, attentions)


def test_refuses_places_that_are_not_there():
    view = AttentionView(list("abcdefg"), maps())
    for arguments in ((2, 0), (0, 3), (-1, 0), (0, 0, 1)):
        with pytest.raises(ValueError, match="counted from 0"):
            view.summary(*arguments)
    with pytest.raises(ValueError, match="second=7"):
        AttentionView(list("abcdefg"), maps(), second=7)
