"""Head scores on constructed maps with known scores, on models of both kinds, and heads that form in training."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils import training
from course_utils.interpretability import (
    FormingHeads,
    Snapshot,
    ablated,
    ablation_effects,
    attention_maps,
    attention_rollout,
    duplicate_token_score,
    entropy,
    first_token_score,
    head_scores,
    induction_score,
    logit_lens,
    previous_token_score,
    repeated_tokens,
    watch_heads_form,
)
from course_utils.transformer import Transformer, TransformerConfig

LENGTH = 7
TOKENS = repeated_tokens(50, LENGTH, batch=3)
PLACES = torch.arange(2 * LENGTH)
PATTERNS = {
    "previous": (PLACES - 1).clamp(min=0),
    "first": torch.zeros(2 * LENGTH, dtype=torch.long),
    "induction": (PLACES - LENGTH + 1).clamp(min=0),
    "duplicate": (PLACES - LENGTH).clamp(min=0),
    "itself": PLACES,
}


def looking(targets, batch=3, share=1.0):
    """Maps of one head whose queries put this share on their target and spread the rest over what they see."""
    size = len(targets)
    uniform = torch.ones(size, size).tril() / torch.arange(1, size + 1)[:, None]
    return (share * torch.eye(size)[targets] + (1 - share) * uniform).expand(batch, 1, size, size)


def stacked(share=1.0):
    """One head for each pattern, and a last one that looks everywhere alike."""
    return torch.cat([looking(targets, share=share) for targets in [*PATTERNS.values(), PLACES * 0]], 1)


def uniform(targets=1, start=1, size=2 * LENGTH):
    """Mean weight that equal attention to the past puts on so many keys, over the queries from start on."""
    return sum(targets / (query + 1) for query in range(start, size)) / (size - start)


# --- scores of constructed maps


def test_each_pattern_scores_one_in_its_own_score_and_nothing_where_it_never_looks():
    maps = stacked()
    scores = torch.stack(
        [
            previous_token_score(maps),
            first_token_score(maps),
            induction_score(maps, TOKENS),
            duplicate_token_score(maps, TOKENS),
        ]
    )
    expected = torch.eye(4, 6)
    # The first token is also the previous one of the second, where "duplicate" and "induction" rest, and so on.
    expected[0, 1] = 1 / 13  # the second token's previous one is the first
    expected[0, 2] = expected[0, 3] = expected[0, 5] = 1 / 13
    expected[1, 0] = 1 / 13
    expected[1, 2] = 6 / 13  # places 1 to 6 have no earlier occurrence and rest on the first token
    expected[1, 3] = 7 / 13  # those, and the first repeated token
    expected[1, 5] = 1
    expected[3, 1] = expected[3, 5] = 1 / 7
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_scores_are_linear_in_the_weight(share):
    maps = stacked(share)
    assert previous_token_score(maps)[0].item() == pytest.approx(share + (1 - share) * uniform())
    assert first_token_score(maps)[1].item() == pytest.approx(share + (1 - share) * uniform())
    blind = uniform(start=LENGTH)
    assert induction_score(maps, TOKENS)[2].item() == pytest.approx(share + (1 - share) * blind)
    assert duplicate_token_score(maps, TOKENS)[3].item() == pytest.approx(share + (1 - share) * blind)


def test_entropy_of_certain_and_of_equal_rows():
    size = 2 * LENGTH
    equal = torch.full((2, 1, size, size), 1 / size)
    assert entropy(equal).item() == pytest.approx(math.log(size))
    assert torch.equal(entropy(stacked()), torch.zeros(6))
    past = looking(PLACES, share=0.0)
    assert entropy(past).item() == pytest.approx(sum(math.log(n) for n in range(1, size + 1)) / size, rel=1e-5)
    crossed = torch.tensor([[[[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]]])  # two queries, three keys
    assert entropy(crossed).item() == pytest.approx(0.75 * math.log(2))
    assert entropy(crossed, torch.tensor([[1, 0]])).item() == pytest.approx(1.5 * math.log(2))


def test_queries_to_which_a_score_does_not_apply_do_not_count():
    tokens = torch.tensor([[5, 6, 7, 5, 8, 8]])
    maps = torch.zeros(1, 1, 6, 6)
    maps[0, 0, 3, 1] = 0.75  # 5 looks at what followed 5
    maps[0, 0, 3, 0] = 0.25  # and at itself
    maps[0, 0, 5, 5] = 1.0  # 8 follows 8: only itself could be what followed it
    assert induction_score(maps, tokens).item() == 0.75
    assert duplicate_token_score(maps, tokens).item() == 0.125
    three = torch.tensor([[5, 6, 5, 7, 5]])  # two earlier occurrences: the weights on both successors add up
    maps = torch.zeros(1, 1, 5, 5)
    maps[0, 0, 4] = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.25])
    assert induction_score(maps, three).item() == pytest.approx(0.375)  # place 2 gives nothing to place 1
    maps[0, 0, 2, 1] = 1
    assert induction_score(maps, three).item() == pytest.approx(0.875)


def test_rows_count_by_their_queries_and_batches_are_pooled():
    tokens = torch.tensor([[1, 2, 3, 1], [1, 1, 1, 1]])
    maps = torch.zeros(2, 1, 4, 4)
    maps[0, 0, 3, 0] = 1
    assert duplicate_token_score(maps, tokens).item() == 0.25  # one query of the first row, three of the second


@settings(max_examples=30, deadline=None)
@given(
    left=st.integers(0, 3),
    right=st.integers(0, 3),
    seed=st.integers(0, 99),
    masked=st.sampled_from([int, bool, float]),
    nan=st.booleans(),
)
def test_padding_changes_no_score(left, right, seed, masked, nan):
    generator = torch.Generator().manual_seed(seed)
    size, heads = 8, 2
    tokens = torch.randint(0, 4, (1, size), generator=generator)
    maps = torch.rand(1, heads, size, size, generator=generator).tril()
    maps = maps / maps.sum(-1, keepdim=True)
    total = left + size + right
    padded = torch.rand(1, heads, total, total, generator=generator) / total  # whatever padding holds
    padded[:, :, :left] = math.nan if nan else 0.5
    padded[:, :, left : left + size] = 0
    padded[:, :, left : left + size, left : left + size] = maps
    ids = torch.full((1, total), 2)  # a padding id that also occurs as a token
    ids[:, left : left + size] = tokens
    mask = torch.tensor([[masked(left <= place < left + size) for place in range(total)]])
    for score, extra, padded_extra in (
        (previous_token_score, [], []),
        (first_token_score, [], []),
        (entropy, [], []),
        (induction_score, [tokens], [ids]),
        (duplicate_token_score, [tokens], [ids]),
    ):
        torch.testing.assert_close(score(padded, *padded_extra, mask), score(maps, *extra))


def test_half_precision_maps_are_scored():
    maps = stacked(0.8).to(torch.bfloat16)
    assert previous_token_score(maps).dtype == torch.bfloat16
    assert previous_token_score(maps)[0].item() == pytest.approx(previous_token_score(stacked(0.8))[0].item(), abs=0.01)


@pytest.mark.parametrize("score", [previous_token_score, first_token_score, entropy, induction_score])
def test_refuses_what_is_no_map(score):
    extra = [TOKENS] if score is induction_score else []
    good = stacked()
    for bad, message in (
        (good[0], "expected weights of one layer"),
        ((good, good), "got tuple"),
        (good.long(), "torch.int64"),
        (good * 2, "no attention weights"),
        (good.masked_fill(good > 0.5, math.nan), "no attention weights"),
        (-good, "no attention weights"),
    ):
        with pytest.raises(ValueError, match=message):
            score(bad, *extra)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(3, 13\), expected \(3, 14\)"):
        score(good, *extra, torch.ones(3, 13))
    with pytest.raises(ValueError, match="nothing to score"):
        score(good, *extra, torch.zeros(3, 14))
    if score is not entropy:
        with pytest.raises(ValueError, match="13 queries and 14 keys"):
            score(good[:, :, 1:], *extra)


def test_refuses_tokens_that_do_not_fit_or_do_not_repeat():
    maps = stacked()
    with pytest.raises(ValueError, match=r"tokens has shape \(3, 7\), expected \(3, 14\)"):
        induction_score(maps, TOKENS[:, :7])
    with pytest.raises(ValueError, match="no token occurs twice"):
        duplicate_token_score(maps, PLACES.repeat(3, 1))
    with pytest.raises(ValueError, match="with another one in between"):
        induction_score(maps, (PLACES // 2).repeat(3, 1))
    with pytest.raises(ValueError, match="no token has one before it"):
        previous_token_score(maps[:, :, :1, :1])


# --- repeated random tokens


def test_repeated_tokens_repeat_without_repetition_inside():
    tokens = repeated_tokens(20, 6, repeats=3, batch=40, seed=5, exclude={0, 1, 19})
    assert tokens.shape == (40, 18)
    assert torch.equal(tokens[:, :6], tokens[:, 6:12]) and torch.equal(tokens[:, :6], tokens[:, 12:])
    assert all(len(set(row[:6].tolist())) == 6 for row in tokens)
    assert set(tokens.flatten().tolist()) == set(range(2, 19))
    assert torch.equal(tokens, repeated_tokens(20, 6, repeats=3, batch=40, seed=5, exclude=[19, 0, 1]))
    assert not torch.equal(tokens, repeated_tokens(20, 6, repeats=3, batch=40, seed=6, exclude={0, 1, 19}))
    state = torch.get_rng_state()
    repeated_tokens(20, 6)
    assert torch.equal(state, torch.get_rng_state())


def test_refuses_more_tokens_than_there_are():
    with pytest.raises(ValueError, match="length=6: only 5 different tokens are left"):
        repeated_tokens(6, 6, exclude=[0])
    for change in (dict(repeats=0), dict(batch=0), dict(seed=-1)):
        with pytest.raises(ValueError, match=f"{next(iter(change))}="):
            repeated_tokens(6, 3, **change)


# --- models


def tiny(kind):
    """Small models of transformers with their default attention."""
    import transformers

    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=50, n_positions=32, n_embd=24, n_layer=2, n_head=3)
        return transformers.GPT2LMHeadModel(config)
    sizes = dict(vocab_size=50, hidden_size=24, num_hidden_layers=2, intermediate_size=30, max_position_embeddings=32)
    if kind == "llama":
        config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
        return transformers.LlamaForCausalLM(config)
    if kind == "bert":
        return transformers.BertForMaskedLM(transformers.BertConfig(**sizes, num_attention_heads=3))
    if kind == "bart":
        sizes = dict(encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=3)
        config = transformers.BartConfig(vocab_size=50, d_model=24, encoder_ffn_dim=30, decoder_ffn_dim=30, **sizes)
        return transformers.BartForConditionalGeneration(config)
    sizes = dict(d_kv=8, d_ff=30, num_layers=1, num_decoder_layers=2, num_heads=3, decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=50, d_model=24, **sizes))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_maps_of_transformers_models_and_attention_and_modes_put_back(kind):
    model = tiny(kind).train()
    model.base_model.eval()
    before = {name: module.training for name, module in model.named_modules()}
    implementation = model.config._attn_implementation
    assert implementation != "eager"
    with torch.no_grad():
        logits = model.eval()(TOKENS).logits
    model.train()
    model.base_model.eval()
    maps = attention_maps(model, TOKENS)["attentions"]
    assert model.config._attn_implementation == model.base_model.config._attn_implementation == implementation
    assert {name: module.training for name, module in model.named_modules()} == before
    assert len(maps) == 2 and not maps[0].requires_grad
    assert maps[0].shape[-2:] == (14, 14)
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(maps[0].shape[:3]))
    assert torch.equal(model.eval()(TOKENS).logits, logits)
    scores = head_scores(model, TOKENS)
    assert set(scores) == {"previous_token", "first_token", "induction", "duplicate_token", "entropy"}
    assert all(score.shape == (2, maps[0].shape[1]) for score in scores.values())
    for layer in range(2):
        assert torch.equal(scores["previous_token"][layer], previous_token_score(maps[layer]))
        assert torch.equal(scores["induction"][layer], induction_score(maps[layer], TOKENS))


def test_attention_is_put_back_after_an_error():
    model = tiny("gpt2")
    with pytest.raises(IndexError):
        attention_maps(model, TOKENS + 1000)
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    attention_maps(model, TOKENS)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_encoder_decoders_of_transformers(kind):
    model = tiny(kind)
    implementations = {id(module.config): module.config._attn_implementation
                       for module in model.modules() if hasattr(module, "config")}  # fmt: skip
    maps = attention_maps(model, TOKENS, decoder_input_ids=TOKENS[:, :5])
    assert {name: (len(layers), *layers[0].shape[2:]) for name, layers in maps.items()} == {
        "encoder_attentions": (1, 14, 14),
        "decoder_attentions": (2, 5, 5),
        "cross_attentions": (2, 5, 14),
    }
    for module in model.modules():
        if hasattr(module, "config"):
            assert module.config._attn_implementation == implementations[id(module.config)]
    assert head_scores(model, TOKENS, part="decoder_attentions")["induction"].shape == (2, 3)
    assert head_scores(model, TOKENS, part="encoder_attentions")["entropy"].shape[0] == 1


def test_our_models_and_those_of_transformers_get_the_same_scores():
    from course_utils.families import from_huggingface

    theirs = tiny("gpt2").eval()
    ours = from_huggingface(theirs)
    mask = torch.ones_like(TOKENS)
    mask[0, -3:] = mask[1, :2] = 0
    expected = head_scores(theirs, TOKENS, mask)
    for name, score in head_scores(ours, TOKENS, mask).items():
        torch.testing.assert_close(score, expected[name], atol=1e-5, rtol=1e-5)


def test_scores_that_need_a_repetition_are_left_out_without_one():
    model = Transformer(TransformerConfig(50, width=24, layers=2, heads=3))
    assert set(head_scores(model, PLACES[None])) == {"previous_token", "first_token", "entropy"}
    assert "induction" not in head_scores(model, (PLACES[None] // 2))
    mask = (PLACES < LENGTH).long().expand(3, -1)  # the repetition is padding
    assert "duplicate_token" not in head_scores(model, TOKENS, mask)


def test_refuses_a_part_that_the_model_does_not_have():
    both = Transformer(TransformerConfig(50, kind="encoder-decoder", width=24, layers=1, heads=3))
    with pytest.raises(ValueError, match="expected one of encoder_attentions, decoder_attentions"):
        head_scores(both, TOKENS, part="cross_attentions")
    decoder = Transformer(TransformerConfig(50, width=24, layers=1, heads=3))
    with pytest.raises(ValueError, match="part='decoder_attentions': of this model expected one of attentions"):
        head_scores(decoder, TOKENS, part="decoder_attentions")
    with pytest.raises(ValueError, match="returned no attention maps"):
        attention_maps(Silent(), TOKENS)


class Silent(torch.nn.Linear):
    """A model without attention."""

    def __init__(self):
        super().__init__(2, 2)

    def forward(self, **inputs):
        return None


# --- heads that form


@pytest.fixture(scope="module")
def forming():
    return watch_heads_form(seed=1, steps=350, progress=False)


def test_heads_form_at_the_drop_of_the_loss(forming):
    first, last = forming.snapshots[0], forming.snapshots[-1]
    assert 35_000 < forming.model.parameter_count() < 60_000
    assert first.step == 0 and first.induction.max() < 0.05 and first.copy_accuracy < 0.1
    assert first.loss == pytest.approx(math.log(64), abs=0.5)
    assert last.step == 350 and last.induction.max() > 0.7 and last.copy_accuracy > 0.95
    assert last.induction[1].max() > 0.7 > 0.1 > last.induction[0].max()  # in the second layer, upon the first
    assert last.previous_token[0].max() > 0.3
    assert last.repeated_loss < 0.5 < last.loss
    assert 0.8 < forming.steepest_drop() / forming.induction_rise() < 1.25
    before = [each for each in forming.snapshots if each.step < forming.induction_rise() / 2]
    assert len(before) > 10 and max(float(each.induction.max()) for each in before) < 0.2


def test_snapshots_hold_the_model_of_their_step(forming):
    steps = [snapshot.step for snapshot in forming.snapshots]
    assert steps == sorted(set(steps)) and steps[:4] == [0, 1, 2, 3] and 25 <= len(steps) <= 40
    later = [step for step in steps if step > 20]
    assert all(1.05 < b / a < 1.4 for a, b in itertools.pairwise(later))
    model = Transformer(forming.config).eval()
    assert forming.probe.shape == (48,) and torch.equal(forming.probe[:24], forming.probe[24:])
    for snapshot in (forming.snapshots[0], forming.snapshots[-5], forming.snapshots[-1]):
        model.load_state_dict(snapshot.weights)
        assert snapshot.tokens_seen == snapshot.step * 32 * 64
        maps = torch.stack(attention_maps(model, forming.probe[None])["attentions"])[:, 0]
        torch.testing.assert_close(maps, snapshot.maps, atol=1e-5, rtol=0)
        tests = torch.cat([forming.probe[None], repeated_tokens(64, 24, batch=63, seed=77)])
        scores = head_scores(model, tests)
        torch.testing.assert_close(scores["induction"], snapshot.induction, atol=0.05, rtol=0)
        torch.testing.assert_close(scores["previous_token"], snapshot.previous_token, atol=0.05, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), forming.model.state_dict().values(),
                                                 strict=True))  # fmt: skip
    assert not forming.model.training and forming.history.steps == 350


def test_one_layer_alone_forms_no_induction_head():
    forming = watch_heads_form(seed=1, layers=1, steps=200, progress=False)
    assert forming.snapshots[-1].induction.shape == (1, 4)
    assert forming.snapshots[-1].induction.max() < 0.3 and forming.snapshots[-1].copy_accuracy < 0.5


def test_the_same_seed_gives_the_same_training_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    short = dict(steps=6, snapshots=4, progress=False)
    one, two, other = (watch_heads_form(seed=seed, **short) for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    assert one.history.losses == two.history.losses != other.history.losses
    assert torch.equal(one.probe, two.probe) and not torch.equal(one.probe, other.probe)
    assert all(torch.equal(a, b) for a, b in zip(one.snapshots[-1].weights.values(),
                                                 two.snapshots[-1].weights.values(), strict=True))  # fmt: skip


def test_drawing_live_and_ending_early():
    seen = []
    whole = watch_heads_form(steps=8, heads=2, snapshots=5, progress=False, on_snapshot=seen.append)
    assert [each.step for each in seen] == [each.step for each in whole.snapshots]
    assert seen[0].step == 0 and seen[-1].step == 8 and seen[0].maps.shape == (2, 2, 48, 48)
    ended = watch_heads_form(steps=8, progress=False, on_snapshot=lambda snapshot: snapshot.step == 3)
    assert ended.history.steps == ended.snapshots[-1].step == 3 and not ended.history.interrupted
    at_once = watch_heads_form(steps=8, progress=False, on_snapshot=lambda snapshot: True)
    assert [each.step for each in at_once.snapshots] == [0] and at_once.history.steps == 0


def test_an_interruption_keeps_what_was_learned(monkeypatch):
    real = training.SCHEDULES["cosine"]

    def interrupted(step, steps, warmup):
        if step == 6:
            raise KeyboardInterrupt
        return real(step, steps, warmup)

    monkeypatch.setitem(training.SCHEDULES, "cosine", interrupted)
    forming = watch_heads_form(steps=40, snapshots=4, progress=False)
    assert forming.history.interrupted and forming.history.steps == 5
    assert forming.snapshots[-1].step == 5
    assert all(torch.equal(a, b) for a, b in zip(forming.snapshots[-1].weights.values(),
                                                 forming.model.state_dict().values(), strict=True))  # fmt: skip


def invented(losses, scores):
    snapshots = [
        Snapshot(step, 0, 0.0, 0.0, 0.0, torch.zeros(1, 2), torch.tensor([[0.0, score]]), torch.zeros(1), {})
        for step, score in scores
    ]
    return FormingHeads(None, None, torch.zeros(1), snapshots, training.History(losses=losses))


def test_where_the_loss_drops_and_the_score_rises_refuses_too_short_a_training():
    forming = invented([4.0] * 60 + [1.0] * 90, [(0, 0.0), (50, 0.2), (70, 0.6), (150, 0.8)])
    assert forming.steepest_drop() == 60
    assert forming.induction_rise() == pytest.approx(60)
    assert invented([1.0], [(0, 0.5), (1, 0.5)]).induction_rise() == 0
    assert invented([2.0, 1.0], [(0, 0.0)]).steepest_drop(window=1) == 1
    with pytest.raises(ValueError, match="window=25: the training has 49 steps, expected 50 or more"):
        invented([1.0] * 49, [(0, 0.0)]).steepest_drop()


@pytest.mark.parametrize(
    "change", [dict(seed=-1), dict(steps=0), dict(snapshots=1), dict(layers=0), dict(heads=5), dict(steps=2.0)]
)
def test_refuses_settings_out_of_range(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        watch_heads_form(progress=False, **change)


# --- what flows, what is lost, what is known


def test_rollout_of_known_maps():
    before, itself = looking(PATTERNS["previous"]), looking(PLACES)
    assert torch.equal(attention_rollout([itself, itself])[0], torch.eye(2 * LENGTH))
    found = attention_rollout([before, before])[1]
    assert found[5, 3:6].tolist() == [0.25, 0.5, 0.25] and found[5].sum() == 1
    first, everywhere = looking(PATTERNS["first"]), looking(PLACES * 0, share=0.0)
    found = attention_rollout([torch.cat([first, everywhere], 1)])[0]
    assert found[3].tolist()[:5] == pytest.approx([0.25 + 0.25 / 4, 0.25 / 4, 0.25 / 4, 0.5 + 0.25 / 4, 0])
    order = attention_rollout([first, before])[0]  # the layers do not commute: first at the bottom
    assert order[5].tolist()[:6] == [0.5, 0, 0, 0, 0.25, 0.25]


def test_rollout_does_without_padding():
    maps = [torch.rand(2, 3, 9, 9).softmax(-1) for _ in range(3)]
    mask = torch.ones(2, 9)
    mask[0, :4] = 0
    masked = attention_rollout(maps, mask)
    assert masked[0, :4].abs().max() == 0 and masked[0, :, :4].abs().max() == 0
    assert torch.allclose(masked.sum(-1), mask)
    alone = [layer[:1, :, 4:, 4:].mean(1, keepdim=True) for layer in maps]
    alone = [layer / layer.sum(-1, keepdim=True) for layer in alone]
    assert torch.allclose(masked[0, 4:, 4:], attention_rollout(alone)[0], atol=1e-6)
    with pytest.raises(ValueError, match="no layers"):
        attention_rollout([])


def small(kind="decoder", **switches):
    torch.manual_seed(1)
    return Transformer(TransformerConfig(31, kind=kind, width=12, layers=2, heads=3, **switches)).double().eval()


@pytest.mark.parametrize("part", ["attentions", "encoder_attentions", "decoder_attentions", "cross_attentions"])
def test_a_silent_head_is_one_whose_output_weights_are_nothing(part):
    model = small("decoder" if part == "attentions" else "encoder-decoder")
    ids = torch.randint(0, 31, (2, 8))
    inputs = {"input_ids": ids} if part == "attentions" else {"input_ids": ids, "decoder_input_ids": ids}
    whole = model(**inputs).logits
    with ablated(model, [(1, 0), (1, 2), (0, 1)], part) as same:
        assert same is model
        silent = model(**inputs).logits
    assert torch.equal(model(**inputs).logits, whole)
    home = model.encoder if part == "encoder_attentions" else model.decoder
    for layer, head in ((1, 0), (1, 2), (0, 1)):
        block = home.layers[layer]
        attention = block.cross_attention if part == "cross_attentions" else block.attention
        with torch.no_grad():
            attention.output.weight[:, 4 * head : 4 * head + 4] = 0
    assert (model(**inputs).logits - silent).abs().max() < 1e-12 < (silent - whole).abs().max()


def test_silenced_heads_speak_again_after_an_error():
    model, ids = small(), torch.randint(0, 31, (1, 6))
    whole = model(ids).logits
    with pytest.raises(RuntimeError, match="stop"), ablated(model, [(0, 0)]):
        raise RuntimeError("stop")
    assert torch.equal(model(ids).logits, whole)


@pytest.mark.parametrize(
    "heads, part, message",
    [
        ([(2, 0)], "attentions", "head 0 of layer 2: attentions has 2 layers of 3 heads"),
        ([(0, -1)], "attentions", "head -1 of layer 0"),
        ([(0, 0)], "cross_attentions", "of this model expected one of attentions"),
    ],
)
def test_refuses_heads_that_are_not_there(heads, part, message):
    with pytest.raises(ValueError, match=message), ablated(small(), heads, part):
        pass


def test_without_its_induction_heads_the_model_no_longer_repeats(forming):
    """The circuit, knocked out: each head alone is missed a little, for others do the same; all of them a lot."""
    tokens = repeated_tokens(64, 24, batch=8, seed=5)

    @torch.no_grad()
    def repeated_loss(model):
        logits = model(tokens).logits[:, 24:-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 25:].flatten()).item()

    effects, last = ablation_effects(forming.model, repeated_loss), forming.snapshots[-1]
    assert effects.shape == (2, 4)
    whole = repeated_loss(forming.model)
    assert whole < 0.5
    for layer, scores in ((0, last.previous_token[0]), (1, last.induction[1])):
        heads = [(layer, head) for head in range(4) if scores[head] > 0.2]
        with ablated(forming.model, heads):
            without = repeated_loss(forming.model)
        assert without > 3 and without - whole > 2 * float(effects[layer].max())
    assert effects[1].min() > 0.1  # every head of the second layer is one of induction


def test_effects_in_a_model_of_transformers_are_those_in_ours():
    from transformers import LlamaConfig, LlamaForCausalLM

    from course_utils.families import from_huggingface

    sizes = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3, intermediate_size=9)
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=31, **sizes, attn_implementation="eager")).eval()
    ids = torch.randint(0, 31, (2, 7))

    def surprise(model):
        return float(model(ids).logits.logsumexp(-1).mean())

    effects = ablation_effects(theirs, surprise)
    assert torch.equal(effects, ablation_effects(from_huggingface(theirs), surprise))
    with torch.no_grad():
        whole = float(theirs(ids).logits.logsumexp(-1).mean())
        theirs.model.layers[1].self_attn.o_proj.weight[:, 4:8] = 0
        assert effects[1, 1] == pytest.approx(float(theirs(ids).logits.logsumexp(-1).mean()) - whole, abs=1e-5)


@pytest.mark.parametrize("kind, place", [("decoder", "pre"), ("encoder", "post")])
def test_the_logit_lens_ends_with_the_model_s_own_logits(kind, place):
    model, ids = small(kind, norm_place=place), torch.randint(0, 31, (2, 6))
    found = logit_lens(model, ids)
    assert found.shape == (3, 2, 6, 31)
    assert torch.equal(found[-1], model(ids).logits)
    states = model(ids, return_hidden_states=True).hidden_states[1]
    norm = model.decoder.final_norm if kind == "decoder" else torch.nn.Identity()
    assert torch.allclose(found[1], norm(states) @ model.embeddings.weight.T)


def test_the_logit_lens_refuses_models_of_two_stacks_or_without_a_head():
    for model in (small("encoder-decoder"), small(head=False)):
        with pytest.raises(ValueError, match="a decoder or an encoder with a head"):
            logit_lens(model, torch.zeros(1, 3, dtype=torch.long))
