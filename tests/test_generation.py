"""Decoding: equal to the slow way without a cache, to ``transformers``, and in distribution; texts, seeds, refusals."""

import copy
import dataclasses
import functools
import math
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils import generation, models
from course_utils.generation import (
    Decoding,
    choose,
    complete,
    context_window,
    explain_step,
    generate,
    greedy,
    min_p,
    repetition_penalty,
    stream,
    temperature,
    top_k,
    top_p,
)
from course_utils.transformer import Transformer, TransformerConfig


@pytest.fixture(scope="module")
def loaded():
    return functools.cache(lambda name: models.load(name, profile="laptop"))


def model(**switches):
    torch.manual_seed(1)
    return Transformer(TransformerConfig(**{**dict(vocabulary_size=29, width=24, layers=2, heads=3), **switches}))


def slowly(model, prompt, count, end_id=None):
    """Feed the whole text anew for each token."""
    tokens = prompt.clone()
    with torch.no_grad():
        for _ in range(count):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
            if end_id is not None and tokens[0, -1] == end_id:
                break
    return tokens[:, prompt.shape[1] :]


POSITIONS = [
    dict(positions="learned", context_window=32),
    *(dict(positions=kind) for kind in ("rotary", "alibi", "t5")),
]


@pytest.mark.parametrize("switches", POSITIONS)
def test_decoder_equals_the_slow_way(switches):
    decoder = model(**switches)
    prompt = torch.randint(0, 29, (1, 5))
    assert torch.equal(greedy(decoder, prompt, 12), slowly(decoder, prompt, 12))


@pytest.mark.parametrize("switches", [*POSITIONS, dict(positions="sinusoidal")])
def test_padded_batch_equals_single_prompts(switches):
    decoder = model(**switches)
    prompts = [torch.randint(0, 29, (1, length)) for length in (3, 7, 5)]
    batch = torch.cat([torch.nn.functional.pad(prompt, (7 - prompt.shape[1], 0)) for prompt in prompts])
    mask = torch.stack([torch.arange(7) >= 7 - prompt.shape[1] for prompt in prompts])
    together = greedy(decoder, batch, 9, attention_mask=mask)
    for row, prompt in zip(together, prompts, strict=True):
        assert torch.equal(row, slowly(decoder, prompt, 9)[0])


def test_rows_end_at_the_end_token():
    decoder = model(positions="rotary")
    prompts = torch.randint(0, 29, (6, 4))
    free = greedy(decoder, prompts, 10)
    end = int(free[0, 2])
    ended = greedy(decoder, prompts, 10, end_id=end)
    for row, whole in zip(ended, free, strict=True):
        place = next((i for i, token in enumerate(whole) if token == end), len(whole))
        assert torch.equal(row[: place + 1], whole[: min(place + 1, len(row))])
        assert (row[place + 1 :] == end).all()
    assert (greedy(decoder, prompts[:1], 10, end_id=end)[0] == end).sum() == 1  # stops as soon as all rows ended


def test_encoder_decoder_reads_the_padded_source_once():
    both = model(kind="encoder-decoder", positions="sinusoidal")
    sources = torch.randint(3, 29, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    together = greedy(both, sources, 7, start_id=1, attention_mask=mask)
    tokens = torch.ones(1, 1, dtype=torch.long)
    for _ in range(7):
        logits = both(sources[1:, :4], decoder_input_ids=tokens).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(together[1:], tokens[:, 1:])


def test_mode_is_put_back_and_dropout_is_off():
    decoder = model(positions="rotary", dropout=0.5).train()
    prompt = torch.randint(0, 29, (2, 4))
    assert torch.equal(greedy(decoder, prompt, 6), greedy(decoder, prompt, 6))
    assert decoder.training
    assert greedy(decoder, prompt, 0).shape == (2, 0)


def test_refuses_what_cannot_be_written():
    decoder = model(positions="learned", context_window=10)
    prompt = torch.randint(0, 29, (1, 6))
    with pytest.raises(ValueError, match=r"6 tokens and max_new_tokens=5 exceed the context window of 10.* at most 4"):
        greedy(decoder, prompt, 5)
    with pytest.raises(ValueError, match="padded on the right"):
        greedy(decoder, prompt, 2, attention_mask=torch.tensor([[1, 1, 1, 1, 1, 0]]))
    with pytest.raises(ValueError, match="prompt is empty"):
        greedy(decoder, prompt[:, :0], 2)
    with pytest.raises(ValueError, match="start_id=1"):
        greedy(decoder, prompt, 2, start_id=1)
    with pytest.raises(ValueError, match="max_new_tokens=-1"):
        greedy(decoder, prompt, -1)
    with pytest.raises(ValueError, match="same"):
        greedy(decoder, prompt, 2, attention_mask=torch.ones(1, 5))
    with pytest.raises(ValueError, match="start_id=None"):
        greedy(model(kind="encoder-decoder"), prompt, 2)
    with pytest.raises(ValueError, match="cannot write"):
        greedy(model(kind="encoder"), prompt, 2)


# --- the cached step


STEP_SWITCHES = [
    dict(positions="learned", context_window=20, segments=2, head_bias=True),
    dict(positions="rotary", key_value_heads=1, norm="rmsnorm", gated=True, activation="silu", attention_bias=False),
    dict(positions="rotary", rotary_size=4, norm_place="post", embedding_norm=True, tied_embeddings=False),
    dict(positions="alibi", key_value_heads=2, heads=4, embedding_norm=True, parallel=True),
    dict(positions="t5", relative_buckets=8, relative_max_distance=16, attention_scale=False, norm="rmsnorm"),
    dict(positions="sinusoidal", scaled_embeddings=True, mlp_width=0, scaled_logits=True),
    dict(kind="encoder-decoder", positions="t5", attention_scale=False, decoder_heads=2, decoder_layers=1),
    dict(
        kind="encoder-decoder", positions="learned", context_window=20, position_offset=2, norm_place="post",
        shared_embeddings=False, scaled_embeddings=True, head_transform=True,
    ),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("switches", STEP_SWITCHES)
@torch.no_grad()
def test_each_step_equals_the_whole_model(switches, dtype):
    """Scores after each token, in a padded batch whose rows are put into another order on the way."""
    net = model(**switches).to(dtype).eval()
    for weight in net.parameters():
        weight.normal_(std=0.3)
    both = net.config.kind == "encoder-decoder"
    ids, mask = torch.randint(0, 29, (3, 5)), torch.ones(3, 5, dtype=torch.bool)
    mask[1, :2] = mask[2, :4] = False
    run = generation._run(net, ids, mask, 1 if both else None, 6)
    target, found = torch.ones(3, 1, dtype=torch.long) if both else ids, run.first()
    for count in range(6):
        full = F.pad(mask, (0, 0 if both else target.shape[1] - 5), value=True)
        if both:
            expected = net(ids, full, target).logits
        else:
            expected = net(target, full, position_ids=(full.long().cumsum(-1) - 1).clamp(min=0)).logits
        torch.testing.assert_close(found, expected[:, -1], rtol=0, atol=1e-9 if dtype == torch.float64 else 2e-4)
        if count == 5:
            break
        tokens = torch.randint(0, 29, (len(target),))
        target = torch.cat([target, tokens[:, None]], dim=1)
        found = run.step(tokens)
        if count in (1, 3):
            rows = torch.tensor([2, 0, 0, 1] if count == 1 else [3, 1])
            run.reorder(rows)
            target, mask, ids, found = target[rows], mask[rows], ids[rows], found[rows]


# --- equal to transformers


SIZES = {
    "gpt2": dict(vocab_size=53, n_positions=40, n_embd=24, n_layer=2, n_head=3),
    "llama": dict(
        vocab_size=53, hidden_size=24, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
        intermediate_size=40, attn_implementation="sdpa",
    ),
    "bloom": dict(vocab_size=53, hidden_size=24, n_layer=2, n_head=3),
    "t5": dict(vocab_size=53, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3),
    "bart": dict(
        vocab_size=53, d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=3,
        decoder_attention_heads=3, encoder_ffn_dim=40, decoder_ffn_dim=40, max_position_embeddings=40,
        forced_eos_token_id=None,
    ),
}  # fmt: skip


def theirs(family, seed=3):
    """A tiny random model of ``transformers``, in float64 (BLOOM's masks overflow there), with clear scores."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(family, **SIZES[family])
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    net = kind.from_config(config, dtype=torch.float32 if family == "bloom" else torch.float64)
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(float(weight.ndim == 1), 0.3 if weight.ndim < 2 else 1.5 / weight.shape[-1] ** 0.5)
    if config.is_encoder_decoder:
        net.generation_config.decoder_start_token_id = 0
    return net.eval()


def reference(net, ids, mask, settings, ends):
    """What ``transformers`` writes, with -1 behind the end of a row."""
    options = dict(length_penalty=settings.length_penalty, early_stopping=False) if settings.beams > 1 else {}
    if settings.repetition_penalty != 1:
        options["repetition_penalty"] = settings.repetition_penalty
    written = net.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=settings.max_new_tokens, do_sample=False,
        num_beams=settings.beams, eos_token_id=list(ends) or None, pad_token_id=52, **options,
    )[:, 1 if net.config.is_encoder_decoder else ids.shape[1] :]  # fmt: skip
    return cut(written, ends)


def cut(written, ends):
    ended = torch.isin(written, torch.tensor(ends, dtype=torch.long)).long()
    return written.masked_fill(ended.cumsum(-1) - ended > 0, -1)


def equal(net, ids, mask, settings, ends):
    """Whether both ways, our Transformer with the same weights and the model itself, write what the library does."""
    expected = reference(net, ids, mask, settings, ends)
    hook = net.register_forward_hook(lambda *_: None)
    slow = generate(net, ids, settings, end_id=ends or None, attention_mask=mask)
    hook.remove()
    for found in (generate(net, ids, settings, end_id=ends or None, attention_mask=mask), slow):
        assert torch.equal(cut(found, ends), expected), (settings, ends)
    return expected


PENALTIES = [(2, 1.0), (3, 0.0), (4, 2.0), (3, -1.0)]


@pytest.mark.parametrize("family", SIZES)
def test_equals_generate(family):
    net = theirs(family)
    ids, mask = torch.randint(0, 50, (3, 6)), torch.ones(3, 6, dtype=torch.long)
    mask[1, :3] = mask[2, :1] = 0
    lengths = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        free = equal(net, ids, mask, Decoding(max_new_tokens=9), ())
        ends = (int(free[0, 3]), int(free[1, 5]))
        for end in ((), ends[:1], ends):
            equal(net, ids, mask, Decoding(max_new_tokens=9), end)
            for beams, penalty in PENALTIES:
                settings = Decoding(max_new_tokens=9, beams=beams, length_penalty=penalty)
                found = equal(net, ids, mask, settings, end)
                lengths |= set((found >= 0).sum(-1).tolist())
        whole = torch.ones_like(mask)  # the library counts padding as seen, we do not
        equal(net, ids, whole, Decoding(max_new_tokens=9, repetition_penalty=1.7), ends)
        equal(net, ids, whole, Decoding(max_new_tokens=9, repetition_penalty=1.7, beams=3), ends)
    assert len(lengths) > 1  # hypotheses that ended early took part


@pytest.mark.parametrize("name", ["course-decoder", "course-seq2seq", "course-instruct"])
def test_embedded_models_equal_generate(name, loaded):
    one = loaded(name)
    net = copy.deepcopy(one.model).double()
    texts = ["The function returns", "Convert a list of numbers to text, and", "x"]
    one.tokenizer.padding_side = "left"
    batch = one.tokenizer(texts, padding=True, return_tensors="pt")
    for beams in (1, 4):
        settings = Decoding(max_new_tokens=16, beams=beams)
        equal(net, batch["input_ids"], batch["attention_mask"], settings, (one.tokenizer.eos_token_id,))


# --- filters


def library(temperature=1.0, top_k=None, top_p=None, min_p=None, penalty=1.0):
    """The same filters of ``transformers``, in its order."""
    made = [transformers.RepetitionPenaltyLogitsProcessor(penalty)] if penalty != 1 else []
    made += [transformers.TemperatureLogitsWarper(temperature)] if temperature != 1 else []
    made += [transformers.TopKLogitsWarper(top_k)] if top_k else []
    made += [transformers.TopPLogitsWarper(top_p)] if top_p else []
    made += [transformers.MinPLogitsWarper(min_p)] if min_p else []
    return transformers.LogitsProcessorList(made)


FILTERS = [
    dict(temperature=0.6),
    dict(temperature=1.5),
    dict(top_k=7),
    dict(top_p=0.8),
    dict(min_p=0.1),
    dict(penalty=1.4),
    dict(temperature=1.3, top_k=12),
    dict(temperature=0.8, top_p=0.9),
    dict(penalty=1.3, temperature=1.2, top_k=20, top_p=0.95, min_p=0.02),
]


@pytest.mark.parametrize("options", FILTERS)
@pytest.mark.parametrize("source", ["random", "course-decoder", "course-instruct"])
def test_draws_have_the_library_s_distribution(options, source, loaded):
    """Chi-square over 20,000 draws; classes that are expected less than five times count as one."""
    if source == "random":
        seen = torch.tensor([[3, 5, 5, 9]])
        logits = 2 * torch.randn(1, 53, generator=torch.Generator().manual_seed(4))
    else:
        one = loaded(source)
        start, text = (None, " the number of elements in the") if source == "course-decoder" else (0, "")
        read = one.tokenizer(f"Return{text}", return_tensors="pt")["input_ids"]  # after which nothing is sure
        seen = read if start is None else torch.tensor([[0]])
        logits = generation._run(one.model, read, None, start, 1).first().detach()
        if not options.keys() & {"top_k", "top_p", "min_p"}:
            options = {**options, "top_k": 200}  # else thousands of classes
    expected = library(**options)(seen, logits.clone()).double().softmax(-1)[0]
    named = {{"penalty": "repetition_penalty"}.get(name, name): value for name, value in options.items()}
    for _, step in Decoding(**{"temperature": 1.0, **named}).filters(seen):
        logits = step(logits)
    assert torch.equal(logits[0] > -math.inf, expected > 0)
    kept = logits[:, expected > 0]
    assert kept.shape[1] > 3
    chance = torch.Generator().manual_seed(11)
    uniform = torch.rand(20_000, kept.shape[1], generator=chance, dtype=torch.float64)
    found = torch.bincount(choose(kept.expand(20_000, -1), uniform), minlength=kept.shape[1]).double()
    wanted = 20_000 * expected[expected > 0]
    rare = wanted < 5
    found = torch.cat([found[~rare], found[rare].sum()[None]])
    wanted = torch.cat([wanted[~rare], wanted[rare].sum()[None]])
    statistic = ((found - wanted)[wanted > 0] ** 2 / wanted[wanted > 0]).sum()
    freedom = torch.tensor(float((wanted > 0).sum() - 1), dtype=torch.float64)
    assert torch.special.gammaincc(freedom / 2, statistic / 2) > 0.001, (statistic, freedom)


def test_wrong_draws_fail_the_chi_square():
    """The power of the test above: temperature 1.1 for 1 would be seen."""
    shares = (2 * torch.randn(53, generator=torch.Generator().manual_seed(4), dtype=torch.float64)).softmax(-1)
    off = (shares.log() / 1.1).softmax(-1)
    assert 20_000 * ((off - shares) ** 2 / shares).sum() > 100  # 53 classes: 0.001 lies at 90


SCORES = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=30).map(lambda row: torch.tensor([row]))
SHARES = st.floats(0.01, 1)


@settings(max_examples=60, deadline=None)
@given(SCORES, st.integers(1, 40))
def test_top_k_keeps_k_and_what_equals_the_last(logits, k):
    kept = top_k(logits, k) > -math.inf
    number = min(k, logits.shape[-1])
    lowest = logits[0].sort(descending=True).values[number - 1]
    assert torch.equal(kept, logits >= lowest)
    assert int(kept.sum()) == number or (logits == lowest).sum() > 1


@settings(max_examples=60, deadline=None)
@given(SCORES, SHARES)
def test_top_p_keeps_the_smallest_set(logits, p):
    kept = top_p(logits, p)[0] > -math.inf
    shares = logits[0].double().softmax(-1)
    assert shares[kept].sum() >= p - 1e-9
    assert p == 1 or shares[kept].sum() - shares[kept].min() < p + 1e-9  # without the last one it is too small
    assert kept.all() or shares[kept].min() >= shares[~kept].max()


@settings(max_examples=60, deadline=None)
@given(SCORES, SHARES)
def test_min_p_keeps_what_is_probable_enough(logits, p):
    kept = min_p(logits, p)[0] > -math.inf
    shares = logits[0].double().softmax(-1) / logits[0].double().softmax(-1).max()
    assert (shares[kept] >= p * (1 - 1e-5)).all() and (shares[~kept] <= p * (1 + 1e-5)).all()


@settings(max_examples=60, deadline=None)
@given(SCORES, st.floats(0.1, 5), st.integers(1, 30), SHARES)
def test_filters_that_commute(logits, t, k, p):
    """Temperature keeps the order, so it may come before or after top-k; top-k and min-p look at the best alone."""

    def close(one, other):
        assert torch.equal(one > -math.inf, other > -math.inf)
        torch.testing.assert_close(one, other)

    halves = (logits * 64).round() / 64  # so that dividing makes no new ties
    close(temperature(top_k(halves, k), t), top_k(temperature(halves, t), k))
    close(min_p(top_k(logits, k), p), top_k(min_p(logits, p), k))


def test_the_order_matters_where_it_does():
    """Of 0.5, 0.3, 0.2 the share 0.7 needs two; at temperature 0.25 first one is enough."""
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert int((temperature(top_p(logits, 0.7), 0.25) > -math.inf).sum()) == 2
    assert int((top_p(temperature(logits, 0.25), 0.7) > -math.inf).sum()) == 1
    names = [name for name, _ in Decoding(1, 0.25, 3, 0.7, 0.1, 1.2).filters(torch.zeros(1, 1, dtype=torch.long))]
    assert names == ["repetition penalty 1.2", "temperature 0.25", "top-k 3", "top-p 0.7", "min-p 0.1"]


@settings(max_examples=60, deadline=None)
@given(SCORES)
def test_temperature_to_0_tends_to_greedy(logits):
    best = logits == logits.max()
    cold, limit = temperature(logits.double(), 1e-9), temperature(logits, 0.0)
    assert torch.equal(limit > -math.inf, best)
    if logits[~best].numel() == 0 or logits.max() - logits[~best].max() > 1e-6:
        torch.testing.assert_close(cold.softmax(-1), limit.double().softmax(-1))


def test_repetition_penalty_by_hand():
    found = repetition_penalty(torch.tensor([[2.0, -2.0, 3.0]]), torch.tensor([[0, 1, 0]]), 2.0)
    assert found.tolist() == [[1.0, -4.0, 3.0]]


def test_a_tiny_change_of_scores_hardly_changes_draws():
    """What another processor does to the last digits: of 10,000 draws from 1000 tokens at most one differs."""
    chance = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1, 1000, generator=chance)
    uniform = torch.rand(10_000, 1000, generator=chance)
    off = logits + 1e-5 * torch.randn(1, 1000, generator=chance)
    one, other = (choose(scores.expand(10_000, -1), uniform) for scores in (logits, off))
    assert int((one != other).sum()) <= 1


# --- seeds


def test_streams_are_the_same_on_every_machine():
    one, two, again = generation._streams(7, [[1, 2], [1, 2], [1, 2, 3]])
    drawn = [torch.rand(2, generator=each, dtype=torch.float64).tolist() for each in (one, two, again)]
    assert [[round(value, 9) for value in row] for row in drawn] == [
        [0.117232109, 0.787995132],
        [0.697284055, 0.817480454],
        [0.50531296, 0.803122181],
    ]


def test_a_row_s_text_does_not_depend_on_its_batch():
    net = theirs("gpt2")
    ids, mask = torch.randint(0, 50, (4, 6)), torch.ones(4, 6, dtype=torch.long)
    mask[1, :3] = mask[2, :1] = 0
    settings = Decoding(max_new_tokens=12, temperature=1.0, top_k=20, seed=5)
    together = generate(net, ids, settings, end_id=[1, 2, 3], attention_mask=mask)
    for row in range(4):
        alone = generate(net, ids[row : row + 1, mask[row] > 0], settings, end_id=[1, 2, 3])[0]
        assert torch.equal(together[row, : len(alone)], alone)
    twice = generate(net, ids[[0, 0]], settings)
    assert not torch.equal(twice[0], twice[1])  # equal prompts are drawn from anew
    other = generate(net, ids[:1], dataclasses.replace(settings, seed=6))
    assert torch.equal(twice[:1], generate(net, ids[:1], settings)) and not torch.equal(twice[:1], other)


# --- text


PROMPTS = ["The function returns", "Convert a list of numbers to text, and then", "x = [1, 2", "Il pleut é😀"]


@pytest.mark.parametrize("name", ["course-decoder", "course-instruct"])
@pytest.mark.parametrize(
    "settings",
    [
        Decoding(max_new_tokens=20),
        Decoding(max_new_tokens=20, temperature=1.3, seed=2),
        Decoding(max_new_tokens=20, temperature=1.0, stop=("\n", "the ", "s a")),
        Decoding(max_new_tokens=10, beams=2, stop=(".",)),
    ],
)
def test_completions_and_streams(name, settings, loaded):
    one = loaded(name)
    found = complete(one, PROMPTS, settings, rows=3)
    for prompt, completion in zip(PROMPTS, found, strict=True):
        pieces = list(stream(one, prompt, settings))
        assert "".join(pieces) == completion.text and all(pieces)
        assert complete(one, prompt, settings) == completion
        assert not any(stop in completion.text for stop in settings.stop)
        whole = one.tokenizer.decode(completion.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert whole.startswith(completion.text) and (completion.reason == "stop") == (whole != completion.text)
        assert completion.tokens_in == len(one.tokenizer(prompt)["input_ids"])
        assert (completion.reason == "length") <= (len(completion.ids) == settings.max_new_tokens)
    if not settings.stop:
        ids = one.tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
        ends = (one.tokenizer.eos_token_id,)
        row = generate(one.model, ids, settings, end_id=ends)[0].tolist()
        assert list(found[0].ids) == (row[: row.index(ends[0])] if ends[0] in row else row)


def test_streams_hold_back_half_characters_and_half_stops(loaded):
    """The model writes what it is told to: bytes of one character in several tokens, and a stop string's beginning."""
    one = loaded("course-decoder")
    text = "a é😀 stop! s stopping here"
    script = one.tokenizer(text, add_special_tokens=False)["input_ids"]

    def told(module, arguments, keywords, output):
        place = keywords["past_key_values"].get_seq_length() - start if keywords["past_key_values"] else 0
        output.logits = F.one_hot(torch.tensor([[script[place]]]), output.logits.shape[-1]).float()
        return output

    start = len(one.tokenizer("go")["input_ids"])
    hook = one.model.register_forward_hook(told, with_kwargs=True)
    try:
        settings = Decoding(max_new_tokens=len(script), stop=("stopping",))
        pieces = list(stream(one, "go", settings))
        assert "".join(pieces) == complete(one, "go", settings).text == "a é😀 stop! s "
        assert len(pieces) > 4 and not any("\ufffd" in piece for piece in pieces)
        assert complete(one, "go", settings).reason == "stop"
    finally:
        hook.remove()


@pytest.mark.parametrize("name", ["course-decoder", "course-instruct"])
def test_explain_step_shows_what_the_library_computes(name, loaded):
    one = loaded(name)
    settings = Decoding(temperature=0.7, top_k=30, top_p=0.9, min_p=0.02, repetition_penalty=1.3, seed=3)
    step = explain_step(one, PROMPTS[0], settings, top=6)
    read = one.tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    start = None if name == "course-decoder" else 0
    logits = generation._run(one.model, read, None, start, 1).first().detach()
    seen = read if start is None else torch.tensor([[0]])
    assert [stage for stage, _ in step.stages][1:] == [stage for stage, _ in settings.filters(seen)]
    options = [dict(penalty=1.3), dict(temperature=0.7), dict(top_k=30), dict(top_p=0.9), dict(min_p=0.02)]
    for count, (_, shares) in enumerate(step.stages):
        together = {name: value for one in options[:count] for name, value in one.items()}
        expected = library(**together)(seen, logits.clone()).softmax(-1)[0]
        assert shares == pytest.approx(expected[list(step.ids)].tolist(), abs=1e-5)
        assert step.kept[count] == int((expected > 0).sum())
    assert complete(one, PROMPTS[0], dataclasses.replace(settings, max_new_tokens=1)).text in ("", step.chosen)


def test_explain_step_s_table(loaded, capsys):
    explain_step(loaded("course-decoder"), PROMPTS[0], Decoding(temperature=0.5, top_k=2), top=3).table()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "token | model | temperature 0.5 | top-k 2"
    assert lines[3].endswith("| -") and lines[4] == "tokens left | 4096 | 4096 | 2"


def test_context_windows(loaded):
    assert context_window(loaded("course-decoder")) == context_window(loaded("course-decoder").model) == 512
    assert context_window(loaded("course-instruct")) == 512 and context_window(loaded("course-instruct").model) is None
    assert context_window(model(positions="learned", context_window=10)) == 10
    assert context_window(model(positions="rotary")) is None


def test_a_changed_weight_changes_the_text(loaded):
    """The copy that writes is made anew, also where a weight was set behind autograd's back."""
    net = copy.deepcopy(loaded("course-decoder").model)
    ids = torch.randint(50, 4000, (1, 8))
    before, weight = greedy(net, ids, 6), net.model.layers[0].mlp.down_proj.weight
    weight.data.mul_(-3)
    changed = greedy(net, ids, 6)
    expected = net.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(changed, expected[:, 8:]) and not torch.equal(changed, before)


def test_what_was_written_can_be_trained_on(loaded):
    net = model(positions="rotary")
    written = greedy(net, torch.randint(0, 29, (2, 4)), 6)
    net(written).logits.sum().backward()
    assert torch.is_grad_enabled()
    pieces = stream(loaded("course-decoder"), "x", Decoding(max_new_tokens=4))
    next(pieces)
    assert torch.is_grad_enabled()  # while the stream waits, too


# --- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(temperature=-0.1), "temperature=-0.1: expected a number of 0 or more"),
        (dict(temperature=math.nan), "temperature=nan"),
        (dict(top_k=0), "top_k=0: expected a whole number of 1 or more"),
        (dict(top_k=2.5), "top_k=2.5"),
        (dict(top_p=0.0), "top_p=0.0: expected a share above 0 and at most 1"),
        (dict(top_p=1.1), "top_p=1.1"),
        (dict(min_p=-0.5), "min_p=-0.5"),
        (dict(repetition_penalty=0), "repetition_penalty=0: expected a number above 0"),
        (dict(beams=0), "beams=0"),
        (dict(beams=2, temperature=0.5), "beams=2 with temperature=0.5: beam search"),
        (dict(beams=2, top_k=5), "beams=2 with top_k=5"),
        (dict(length_penalty=2.0), "length_penalty=2.0 with beams=1"),
        (dict(length_penalty=math.inf, beams=2), "length_penalty=inf"),
        (dict(max_new_tokens=-1), "max_new_tokens=-1"),
        (dict(stop="x"), "stop='x': expected a tuple"),
        (dict(stop=("",)), "stop="),
        (dict(seed=-1), "seed=-1"),
    ],
)
def test_refuses_wrong_settings(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Decoding(**options)


def test_refuses_wrong_filters():
    logits = torch.zeros(1, 4)
    for step, value in ((temperature, -1), (top_k, 0), (top_p, 0), (top_p, 1.5), (min_p, 0)):
        with pytest.raises(ValueError, match="expected"):
            step(logits, value)
    with pytest.raises(ValueError, match="penalty=0"):
        repetition_penalty(logits, torch.zeros(1, 1, dtype=torch.long), 0)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="scores are not numbers"):
            choose(torch.tensor([[0.0, bad, 1.0]]))
    with pytest.raises(ValueError, match="scores are not numbers"):
        choose(torch.full((1, 3), -math.inf))


def test_refuses_models_that_are_broken_or_cannot_write(loaded):
    net = theirs("llama")
    with torch.no_grad():
        net.model.embed_tokens.weight[7, 0] = math.nan
    ids = torch.tensor([[5, 7]])
    for decoding in (Decoding(), Decoding(temperature=1.0, top_k=3, top_p=0.5), Decoding(beams=2)):
        with pytest.raises(ValueError, match="scores are not numbers"):
            generate(net, ids, decoding)
    with pytest.raises(ValueError, match="cannot write"):
        generate(loaded("course-encoder").model, ids, Decoding())
    with pytest.raises(ValueError, match="generate\\(\\) sees tokens only"):
        generate(net, ids, Decoding(stop=("x",)))


def test_refuses_prompts_that_are_empty_or_too_long(loaded):
    for name in ("course-decoder", "course-instruct"):
        one = loaded(name)
        for function in (complete, lambda *parts: list(stream(*parts)), explain_step):
            with pytest.raises(ValueError, match="prompt is empty"):
                function(one, "", Decoding())
            with pytest.raises(ValueError, match=r"a prompt of \d{5,} tokens exceeds the context window of 512"):
                function(one, "long " * 20_000, Decoding())
        with pytest.raises(ValueError, match="rows=0"):
            complete(one, "x", Decoding(), rows=0)
        with pytest.raises(ValueError, match="top=0"):
            explain_step(one, "x", Decoding(), top=0)
        with pytest.raises(ValueError, match="beams=2"):
            explain_step(one, "x", Decoding(beams=2))
    with pytest.raises(ValueError, match="write at most 510"):
        complete(loaded("course-decoder"), "x", Decoding(max_new_tokens=511))
    assert complete(loaded("course-decoder"), "\x00\x07\x1b[0m\u202e", Decoding(max_new_tokens=2)).reason == "length"
    assert complete(loaded("course-decoder"), [], Decoding()) == []
    with pytest.raises(ValueError, match="max_new_tokens=41 exceeds the context window of 40"):
        generate(theirs("bart"), torch.tensor([[3]]), Decoding(max_new_tokens=41))


def test_refuses_half_of_a_character(loaded):
    with pytest.raises(ValueError, match=r"holds '\\ud83d' at place 3, half of a character"):
        complete(loaded("course-decoder"), "ab \ud83d", Decoding(max_new_tokens=2))
    assert complete(loaded("course-decoder"), "ab \U0001f600", Decoding(max_new_tokens=2)).tokens_in > 3
