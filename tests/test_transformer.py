"""The Transformer equals torch's layers in the 2017 layout, its cache equals no cache, and bad input is refused."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_utils.transformer import Block, RMSNorm, Transformer, TransformerConfig

BASE = dict(vocabulary_size=31, width=24, layers=2, heads=4)
LEARNED = dict(positions="learned", context_window=20)


def model(seed=0, dtype=torch.float64, **switches):
    torch.manual_seed(seed)
    built = Transformer(TransformerConfig(**{**BASE, **switches})).to(dtype).eval()
    for name, parameter in built.named_parameters():  # every weight random, so that each one matters
        nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.2)
    return built


def ids(batch=2, tokens=9, seed=0):
    return torch.randint(1, 31, (batch, tokens), generator=torch.Generator().manual_seed(seed))


# --- equality with torch


def copy_attention(ours, theirs):
    parts = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
    theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.out_proj.load_state_dict(ours.output.state_dict())


@pytest.mark.parametrize("place", ["post", "pre"])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_block_equals_torch(place, cross, dtype, tolerance):
    torch.manual_seed(0)
    config = TransformerConfig(**{**BASE, "norm_place": place, "activation": "relu", "mlp_width": 37})
    ours = Block(config, causal=cross, cross=cross).to(dtype).eval()
    kind = nn.TransformerDecoderLayer if cross else nn.TransformerEncoderLayer
    theirs = kind(24, 4, 37, activation="relu", batch_first=True, norm_first=place == "pre").to(dtype).eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    norms = [ours.attention_norm, *([ours.cross_norm] if cross else []), ours.feed_forward_norm]
    with torch.no_grad():
        copy_attention(ours.attention, theirs.self_attn)
        if cross:
            copy_attention(ours.cross_attention, theirs.multihead_attn)
        theirs.linear1.load_state_dict(ours.feed_forward.up.state_dict())
        theirs.linear2.load_state_dict(ours.feed_forward.down.state_dict())
        for norm, other in zip(norms, (theirs.norm1, theirs.norm2, *([theirs.norm3] if cross else [])), strict=True):
            other.load_state_dict(norm.state_dict())
        hidden, context = torch.randn(3, 7, 24, dtype=dtype), torch.randn(3, 5, 24, dtype=dtype)
        keep = torch.tensor([5, 3, 4])[:, None] > torch.arange(5)
        own_keep = torch.tensor([7, 6, 2])[:, None] > torch.arange(7)
        if cross:
            future = torch.ones(7, 7, dtype=torch.bool).triu(1)
            expected = theirs(hidden, context, tgt_mask=future, memory_key_padding_mask=~keep)
            arguments = dict(context=context, context_mask=keep[:, None, None, :])
        else:
            expected = theirs(hidden, src_key_padding_mask=~own_keep)
            arguments = dict(mask=own_keep[:, None, None, :])
        for return_weights in (False, True):
            result, weights, cross_weights = ours(hidden, **arguments, return_weights=return_weights)
            real = torch.ones_like(own_keep) if cross else own_keep  # torch's fast path zeroes padded places
            assert (result - expected)[real].abs().max() < tolerance
            assert (weights is not None) == return_weights
            assert (cross_weights is not None) == (return_weights and cross)


def test_the_whole_2017_model_equals_torch():
    ours = model(kind="encoder-decoder", norm_place="post", activation="relu", positions="none", final_norm=True)
    theirs = nn.Transformer(24, 4, 2, 2, 96, batch_first=True).double().eval()
    with torch.no_grad():
        stacks = ((ours.encoder, theirs.encoder), (ours.decoder, theirs.decoder))
        for stack, other_stack in stacks:
            other_stack.norm.load_state_dict(stack.final_norm.state_dict())
            for layer, other in zip(stack.layers, other_stack.layers, strict=True):
                copy_attention(layer.attention, other.self_attn)
                norms = [layer.attention_norm, layer.feed_forward_norm]
                if layer.cross_attention is not None:
                    copy_attention(layer.cross_attention, other.multihead_attn)
                    norms.insert(1, layer.cross_norm)
                for norm, name in zip(norms, ("norm1", "norm2", "norm3"), strict=False):
                    getattr(other, name).load_state_dict(norm.state_dict())
                other.linear1.load_state_dict(layer.feed_forward.up.state_dict())
                other.linear2.load_state_dict(layer.feed_forward.down.state_dict())
        source, target = ids(tokens=6), ids(tokens=8, seed=1)
        output = ours(source, decoder_input_ids=target)
        expected = theirs(ours.embeddings(source), ours.embeddings(target), tgt_is_causal=True,
                          tgt_mask=nn.Transformer.generate_square_subsequent_mask(8, dtype=torch.float64))  # fmt: skip
    assert (output.last_hidden_state - expected).abs().max() < 1e-10


def test_rms_norm_equals_torch():
    norm, theirs, hidden = RMSNorm(7, 1e-6), nn.RMSNorm(7, 1e-6), torch.randn(3, 7)
    with torch.no_grad():
        norm.weight.normal_()
        theirs.weight.copy_(norm.weight)
    assert (norm(hidden) - theirs(hidden)).abs().max() < 1e-6


# --- switches

SWITCHES = [
    dict(LEARNED),
    dict(positions="sinusoidal", width=25, heads=5, scaled_embeddings=True),
    dict(positions="rotary", rotary_size=4, norm="rmsnorm", gated=True, activation="silu", key_value_heads=2),
    dict(positions="alibi", embedding_norm=True, heads=6, activation="gelu_tanh"),
    dict(positions="t5", head_size=5, attention_bias=False, attention_scale=False, norm="rmsnorm", scaled_logits=True),
    dict(positions="rotary", parallel=True, key_value_heads=1, gated=True, norm_bias=False, mlp_bias=False),
    dict(positions="none", norm_place="post", head_bias=True, head_transform=True, tied_embeddings=False),
    dict(positions="rotary", mlp_width=0),
]


@pytest.mark.parametrize("switches", SWITCHES)
def test_decoder_step_by_step_equals_at_once(switches):
    decoder, tokens = model(**switches), ids()
    whole = decoder(tokens, return_attentions=True).logits
    assert (decoder(tokens).logits - whole).abs().max() < (1e-6 if switches.get("norm") == "rmsnorm" else 1e-10)
    output = decoder(tokens[:, :3], use_cache=True)
    steps = [output.logits]
    for place in range(3, 9):
        output = decoder(tokens[:, place : place + 1], cache=output.cache)
        steps.append(output.logits)
    assert output.cache.length == 9
    assert (torch.cat(steps, 1) - whole).abs().max() < (1e-6 if switches.get("norm") == "rmsnorm" else 1e-10)


@pytest.mark.parametrize("switches", [s for s in SWITCHES if not s.get("parallel")])
def test_encoder_decoder_step_by_step_equals_at_once(switches):
    both, source, target = model(kind="encoder-decoder", decoder_layers=3, **switches), ids(tokens=6), ids(seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    tolerance = 1e-6 if switches.get("norm") == "rmsnorm" else 1e-10
    whole = both(source, mask, target, return_attentions=True, return_hidden_states=True)
    assert [len(maps) for maps in (whole.encoder_attentions, whole.decoder_attentions, whole.cross_attentions)] == [
        2,
        3,
        3,
    ]
    assert [len(states) for states in (whole.encoder_hidden_states, whole.decoder_hidden_states)] == [3, 4]
    assert whole.cross_attentions[0].shape == (2, both.config.heads, 9, 6)
    assert (whole.cross_attentions[0][1, :, :, 4:] == 0).all()
    output = both(source, mask, target[:, :1], use_cache=True)
    steps = [output.logits]
    for place in range(1, 9):
        output = both(decoder_input_ids=target[:, place : place + 1], cache=output.cache)
        steps.append(output.logits)
    assert (torch.cat(steps, 1) - whole.logits).abs().max() < tolerance


@pytest.mark.parametrize("switches", SWITCHES)
def test_padding_changes_nothing_for_real_tokens(switches):
    decoder, tokens = model(**switches), ids(1)
    alone = decoder(tokens[:, 2:7]).logits
    tolerance = 1e-6 if {"rmsnorm"} & set(map(str, switches.values())) or switches["positions"] == "rotary" else 1e-10
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 0, 0]])
    places = torch.tensor([[0, 0, 0, 1, 2, 3, 4, 5, 6]])
    padded = decoder(tokens, mask, position_ids=places).logits[:, 2:7]
    assert (padded - alone).abs().max() < tolerance
    encoder = model(kind="encoder", **switches)
    padded = encoder(tokens, mask, position_ids=places).logits[:, 2:7]
    assert (padded - encoder(tokens[:, 2:7]).logits).abs().max() < tolerance


def test_positions_that_skip_padding_need_no_position_ids():
    encoder, tokens = model(kind="encoder", **LEARNED, position_offset=2, padding_id=30), ids(1) % 30
    alone = encoder(tokens[:, 3:]).logits
    tokens[:, :3] = 30
    padded = encoder(tokens, torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])).logits[:, 3:]
    assert (padded - alone).abs().max() < 1e-10


@settings(max_examples=25, deadline=None)
@given(place=st.integers(1, 8), switches=st.sampled_from(SWITCHES), seed=st.integers(0, 1000))
def test_a_decoder_never_sees_the_future(place, switches, seed):
    decoder, tokens = model(**switches), ids(1, seed=seed)
    changed = tokens.clone()
    changed[:, place:] = (changed[:, place:] + 1) % 31
    before, after = decoder(tokens).logits, decoder(changed).logits
    assert torch.equal(before[:, :place], after[:, :place])
    assert not torch.equal(before[:, place:], after[:, place:])


def test_without_positions_an_encoder_cannot_tell_the_order():
    encoder, tokens, order = model(kind="encoder", positions="none"), ids(1), torch.randperm(9)
    assert (encoder(tokens[:, order]).logits - encoder(tokens).logits[:, order]).abs().max() < 1e-12
    waves = model(kind="encoder", positions="sinusoidal")
    assert (waves(tokens[:, order]).logits - waves(tokens).logits[:, order]).abs().max() > 0.1


def test_parts_that_are_switched_off_have_no_weights():
    names = set(dict(model(attention_bias=False, mlp_bias=False, norm_bias=False, **LEARNED).named_parameters()))
    assert not [name for name in names if name.endswith("bias")]
    parallel = dict(model(parallel=True, head=False).named_parameters())
    assert not [name for name in parallel if "feed_forward_norm" in name or "head" in name]
    assert model(head=False)(ids()).logits is None
    only_output = dict(model(attention_bias=False, attention_output_bias=True).named_parameters())
    assert "decoder.layers.0.attention.output.bias" in only_output
    assert "decoder.layers.0.attention.query.bias" not in only_output


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("place", ["post", "pre"])
def test_attention_alone_equals_a_block_whose_feed_forward_network_adds_nothing(place, cross):
    config = TransformerConfig(**{**BASE, "norm_place": place, "mlp_width": 0})
    ours = Block(config, causal=False, cross=cross).double().eval()
    theirs = Block(dataclasses.replace(config, mlp_width=7), causal=False, cross=cross).double().eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    assert not [name for name in ours.state_dict() if "feed_forward" in name]
    theirs.load_state_dict(ours.state_dict(), strict=False)
    for parameter in theirs.feed_forward.down.parameters():
        nn.init.zeros_(parameter)
    hidden, context = torch.randn(3, 7, 24).double(), torch.randn(3, 5, 24).double()
    states = [block(hidden, context if cross else None, return_weights=True) for block in (ours, theirs)]
    result = states[0][0] if place == "pre" else theirs.feed_forward_norm(states[0][0])  # of the sum with nothing
    assert (result - states[1][0]).abs().max() < 1e-12
    for weights, other in list(zip(*states, strict=True))[1 : 2 + cross]:  # the maps
        assert torch.equal(weights, other)


def test_tied_weights_count_once():
    tied, untied = model(), model(tied_embeddings=False)
    assert untied.parameter_count() - tied.parameter_count() == 31 * 24
    assert len(tied.state_dict()) == len({tensor.data_ptr() for tensor in tied.state_dict().values()})


def test_scales_multiply_what_they_say():
    plain = model(kind="encoder", positions="none", layers=1)
    scaled = Transformer(dataclasses.replace(plain.config, scaled_logits=True)).double()
    scaled.load_state_dict(plain.state_dict())
    assert torch.allclose(scaled(ids()).logits * 24**0.5, plain(ids()).logits)
    louder = Transformer(dataclasses.replace(plain.config, scaled_embeddings=True)).double()
    louder.load_state_dict(plain.state_dict())
    states = [each(ids(), return_hidden_states=True).hidden_states[0] for each in (louder, plain)]
    assert torch.allclose(states[0], states[1] * 24**0.5)


def test_segments_are_added():
    encoder, segments = model(kind="encoder", segments=2), torch.tensor([[0] * 4 + [1] * 5] * 2)
    assert torch.equal(encoder(ids()).logits, encoder(ids(), token_type_ids=torch.zeros_like(segments)).logits)
    assert not torch.allclose(encoder(ids()).logits, encoder(ids(), token_type_ids=segments).logits)


def test_reordered_cache_continues_the_chosen_rows():
    both = model(kind="encoder-decoder", positions="rotary")
    source, target, rows = ids(3, 6), ids(3, 5, seed=1), torch.tensor([2, 0, 0, 1])
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]])
    cache = both(source, mask, target[:, :4], use_cache=True).cache
    cache.reorder(rows)
    step = both(decoder_input_ids=target[rows][:, 4:], cache=cache).logits
    whole = both(source[rows], mask[rows], target[rows]).logits[:, 4:]
    assert (step - whole).abs().max() < 1e-6


def test_initial_loss_is_that_of_a_guess_and_training_lowers_it():
    torch.manual_seed(0)
    decoder = Transformer(TransformerConfig(vocabulary_size=31, width=32, layers=2, heads=4, positions="rotary"))
    tokens = torch.arange(24).repeat(4, 1) + torch.arange(4)[:, None]
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(decoder(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(31.0).log().item(), abs=0.5)
    assert losses[-1] < 0.1


def test_half_precision_runs_on_both_paths():
    decoder = model(dtype=torch.bfloat16, positions="rotary", norm="rmsnorm")
    explicit, fused = decoder(ids(), return_attentions=True), decoder(ids())
    assert explicit.logits.dtype == explicit.attentions[0].dtype == fused.logits.dtype == torch.bfloat16
    assert (explicit.logits - fused.logits).float().abs().max() < 0.5


def test_describe_lists_what_differs_from_the_defaults():
    rows = TransformerConfig(vocabulary_size=31, layers=7, norm="rmsnorm").describe()
    assert rows == [("vocabulary_size", "31"), ("layers", "7"), ("norm", "rmsnorm")]


# --- refusals


@pytest.mark.parametrize(
    "switches, message",
    [
        (dict(kind="both"), "kind='both': expected one of encoder, decoder, encoder-decoder"),
        (dict(positions="cosine"), "positions='cosine'"),
        (dict(norm="batchnorm"), "norm='batchnorm'"),
        (dict(norm_place="middle"), "norm_place='middle'"),
        (dict(activation="swiglu"), "activation='swiglu'"),
        (dict(width=0), "width=0"),
        (dict(layers=2.0), "layers=2.0"),
        (dict(mlp_width=-1), "mlp_width=-1"),
        (dict(mlp_width=0, gated=True), "gated=True with mlp_width=0: there is no feed-forward network"),
        (dict(mlp_width=0, parallel=True), "parallel=True with mlp_width=0"),
        (dict(segments=-1), "segments=-1"),
        (dict(width=25), "width=25 is no multiple of heads=4"),
        (dict(key_value_heads=3), "key_value_heads=3 does not divide heads=4"),
        (dict(positions="learned"), "needs context_window"),
        (dict(position_offset=2), "position_offset=2"),
        (dict(positions="rotary", head_size=5), "turns 5 of the 5 dimensions"),
        (dict(positions="rotary", rotary_size=8), "turns 8 of the 6 dimensions"),
        (dict(rotary_size=4), "rotary_size=4 needs positions='rotary'"),
        (dict(positions="t5", relative_buckets=1), "relative_buckets=1"),
        (dict(positions="t5", kind="encoder", relative_buckets=9), "relative_buckets=9"),
        (dict(decoder_layers=2), "decoder_layers=2 with kind='decoder'"),
        (dict(parallel=True, norm_place="post"), "parallel=True"),
        (dict(parallel=True, kind="encoder-decoder"), "parallel=True"),
        (dict(head=False, head_bias=True), "head_bias=True with head=False"),
        (dict(dropout=1.0), "dropout=1.0"),
        (dict(norm_eps=0.0), "norm_eps=0.0"),
    ],
)
def test_refuses_a_configuration_with_the_reason(switches, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{**BASE, **switches})


def test_refuses_input_that_does_not_fit():
    decoder, encoder, both = model(**LEARNED), model(kind="encoder"), model(kind="encoder-decoder")
    cases = [
        (lambda: decoder(ids(tokens=21)), "21 tokens do not fit into the context window of 20"),
        (lambda: decoder(ids(), position_ids=torch.arange(12, 21)), "21 tokens do not fit"),
        (lambda: decoder(ids() + 20), "ids from .* but the vocabulary ends at 30"),
        (lambda: decoder(ids()[0]), r"shape \(9,\); expected \(batch, tokens\)"),
        (lambda: decoder(ids(), torch.ones(2, 8)), r"attention_mask has shape \(2, 8\), expected \(2, 9\)"),
        (lambda: decoder(), "input_ids is missing"),
        (lambda: decoder(ids(), token_type_ids=ids()), "no segment embeddings"),
        (lambda: decoder(ids(), decoder_input_ids=ids()), "belong to an encoder-decoder"),
        (lambda: encoder(ids(), use_cache=True), "an encoder has no cache"),
        (lambda: both(ids()), "decoder_input_ids is missing"),
        (lambda: both(decoder_input_ids=ids()), "input_ids is missing"),
        (lambda: model(kind="encoder", segments=2)(ids(), token_type_ids=ids()), "the segments ends? at 1"),
        (lambda: model(layers=3)(ids(), cache=decoder(ids(), use_cache=True).cache), "another model's"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="whole numbers"):
        decoder(torch.ones(2, 3))
    cache = decoder(ids(tokens=15), use_cache=True).cache
    with pytest.raises(ValueError, match="21 tokens do not fit"):
        decoder(ids(tokens=6), cache=cache)
    with pytest.raises(ValueError, match=r"expected \(2, 17\).*15 cached and 2 new"):
        decoder(ids(tokens=2), torch.ones(2, 2), cache=cache)
