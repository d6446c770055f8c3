"""Attention equals torch's, keeps its promises on masks and caches, and refuses what does not fit."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.attention import (
    KeyValueCache,
    MultiHeadAttention,
    attention_multiplications,
    causal_mask,
    fused_attention,
    merge_heads,
    padding_mask,
    scaled_dot_product_attention,
    softmax,
    split_heads,
)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
small = st.integers(1, 6)
seeds = st.integers(0, 2**31)


def normal(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def close(a, b, tolerance):
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    assert (a - b).abs().max().item() <= tolerance if a.numel() else True


def layer(width=24, heads=4, dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    return MultiHeadAttention(width, heads, **options).to(dtype).eval()


# --- softmax


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_softmax_equals_torch(dtype, dim):
    scores = normal(3, 4, 5, dtype=dtype) * 20
    close(softmax(scores, dim), torch.softmax(scores, dim), TOLERANCE[dtype] / 10)


def test_softmax_survives_large_scores():
    assert softmax(torch.tensor([1e4, 1e4, -1e4])).tolist() == [0.5, 0.5, 0.0]
    half = softmax(torch.tensor([6e4, 6e4], dtype=torch.float16))
    assert half.tolist() == [0.5, 0.5]


def test_softmax_of_nothing_is_zero_with_zero_gradient():
    scores = torch.tensor([[-math.inf, -math.inf], [-math.inf, 2.0]], requires_grad=True)
    weights = softmax(scores)
    assert weights.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    (weights * torch.tensor([[3.0, 5.0], [7.0, 11.0]])).sum().backward()
    assert scores.grad.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert softmax(torch.zeros(2, 0)).shape == (2, 0)


def test_softmax_gradient():
    scores = normal(2, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(softmax, (scores,))


def test_softmax_shift_changes_nothing():
    scores = normal(3, 7, dtype=torch.float64)
    close(softmax(scores), softmax(scores + 1000.0), 1e-12)


@pytest.mark.parametrize("wrong", [torch.tensor([1, 2]), [1.0, 2.0], torch.tensor([True])])
def test_softmax_refuses(wrong):
    with pytest.raises(TypeError, match="softmax"):
        softmax(wrong)


# --- scaled dot products


@settings(max_examples=60, deadline=None)
@given(
    batch=st.lists(small, max_size=3),
    queries=small,
    keys=small,
    size=small,
    value_size=small,
    dtype=st.sampled_from(list(TOLERANCE)),
    masking=st.sampled_from(["none", "bool", "float"]),
    scale=st.sampled_from([None, 1.0, 0.3]),
    seed=seeds,
)
def test_equals_torch(batch, queries, keys, size, value_size, dtype, masking, scale, seed):
    query = normal(*batch, queries, size, dtype=dtype, seed=seed)
    key = normal(*batch, keys, size, dtype=dtype, seed=seed + 1)
    value = normal(*batch, keys, value_size, dtype=dtype, seed=seed + 2)
    mask = None
    if masking == "bool":
        mask = normal(queries, keys, seed=seed + 3) > -0.3
    elif masking == "float":
        mask = normal(queries, keys, dtype=dtype, seed=seed + 3)
    output, weights = scaled_dot_product_attention(query, key, value, mask, scale=scale)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    additive = mask.to(wide) if masking == "float" else mask
    expected = F.scaled_dot_product_attention(query.to(wide), key.to(wide), value.to(wide), additive, scale=scale)
    close(output, expected.to(dtype), TOLERANCE[dtype] * 4)
    sums = weights.double().sum(-1)
    seen = torch.ones(queries, dtype=torch.bool) if masking != "bool" else mask.any(-1)
    assert (sums - seen.double()).abs().max() < 8 * TOLERANCE[dtype]
    assert weights.shape == (*batch, queries, keys)
    assert weights.dtype == dtype


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("additive", [False, True])
def test_fully_masked_row_gives_zeros_and_finite_gradients(dtype, additive):
    query, key, value = (normal(2, 3, 4, seed=s).to(dtype).requires_grad_() for s in range(3))
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    if additive:
        mask = torch.zeros(3, 3, dtype=dtype).masked_fill(~mask, -math.inf)
    output, weights = scaled_dot_product_attention(query, key, value, mask)
    assert output[:, 1].abs().max() == 0
    assert weights[:, 1].abs().max() == 0
    assert weights[:, 0, 1].abs().max() == 0
    (output.sum() + (weights**2).sum()).backward()
    for tensor in (query, key, value):
        assert tensor.grad.isfinite().all()
    assert query.grad[:, 1].abs().max() == 0
    assert query.grad[:, 2].abs().max() > 0


def test_half_precision_does_not_overflow():
    query = torch.full((2, 64), 60.0, dtype=torch.float16)  # the dot product, 230400, is beyond float16
    output, weights = scaled_dot_product_attention(query, query, query, scale=1.0)
    assert weights.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert (output == 60).all()


def test_leading_dimensions_broadcast():
    query, key = normal(2, 3, 4, 5, dtype=torch.float64), normal(1, 6, 5, dtype=torch.float64, seed=1)
    value = normal(2, 1, 6, 7, dtype=torch.float64, seed=2)
    mask = normal(2, 1, 1, 6, seed=3) > 0
    output, weights = scaled_dot_product_attention(query, key, value, mask)
    full = [t.expand(2, 3, *t.shape[-2:]) for t in (query, key, value)]
    close(output, F.scaled_dot_product_attention(*full, mask), 1e-12)
    assert weights.shape == (2, 3, 4, 6)


def test_no_keys_gives_zeros():
    output, weights = scaled_dot_product_attention(torch.randn(3, 4), torch.randn(0, 4), torch.randn(0, 2))
    assert output.tolist() == [[0.0, 0.0]] * 3
    assert weights.shape == (3, 0)


def test_bias_is_added_before_the_softmax():
    query, key, value = (normal(2, 4, 4, dtype=torch.float64, seed=s) for s in range(3))
    bias, mask = normal(4, 4, dtype=torch.float64, seed=4), causal_mask(4)
    output, _ = scaled_dot_product_attention(query, key, value, mask, bias=bias)
    joined = bias.masked_fill(~mask, -math.inf)
    close(output, F.scaled_dot_product_attention(query, key, value, joined), 1e-12)


def test_gradients():
    tensors = [normal(2, 3, 4, dtype=torch.float64, seed=s).requires_grad_() for s in range(3)]
    bias = normal(3, 3, dtype=torch.float64, seed=3).requires_grad_()
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    assert torch.autograd.gradcheck(
        lambda q, k, v, b: scaled_dot_product_attention(q, k, v, mask, bias=b), (*tensors, bias)
    )


@settings(max_examples=25, deadline=None)
@given(queries=small, keys=small, seed=seeds)
def test_order_of_keys_does_not_matter_and_queries_stay_apart(queries, keys, seed):
    query, key, value = (normal(n, 4, dtype=torch.float64, seed=seed + i) for i, n in enumerate((queries, keys, keys)))
    output, weights = scaled_dot_product_attention(query, key, value)
    order, other = torch.randperm(keys), torch.randperm(queries)
    shuffled, shuffled_weights = scaled_dot_product_attention(query[other], key[order], value[order])
    close(shuffled, output[other], 1e-12)
    close(shuffled_weights, weights[other][:, order], 1e-12)


def test_inputs_stay_unchanged():
    tensors = [normal(2, 3, 3, seed=s) for s in range(3)]
    mask = normal(3, 3, seed=4)
    before = [t.clone() for t in (*tensors, mask)]
    scaled_dot_product_attention(*tensors, mask)
    assert all(torch.equal(a, b) for a, b in zip(before, (*tensors, mask), strict=True))


GOOD = {"query": torch.zeros(2, 3, 4), "key": torch.zeros(2, 5, 4), "value": torch.zeros(2, 5, 6)}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"query": torch.zeros(2, 3, 9)}, ValueError, r"query and key .*\(2, 3, 9\)"),
        ({"value": torch.zeros(2, 4, 6)}, ValueError, r"key and value .*\(2, 4, 6\)"),
        ({"key": torch.zeros(3, 5, 4)}, ValueError, r"leading dimensions .*\(3, 5, 4\)"),
        ({"query": torch.zeros(4)}, ValueError, r"query has shape \(4,\)"),
        ({"key": torch.zeros(2, 5, 4).double()}, TypeError, r"key is torch.float64, query is torch.float32"),
        ({"query": torch.zeros(2, 3, 4).long()}, TypeError, r"query is torch.int64"),
        ({"value": [[1.0]]}, TypeError, r"value is list"),
        ({"value": torch.zeros(2, 5, 6, device="meta")}, ValueError, r"value is on meta, query is on cpu"),
        ({"mask": torch.ones(3, 4, dtype=torch.bool)}, ValueError, r"mask has shape \(3, 4\).*\(2, 3, 5\)"),
        ({"mask": torch.ones(7, 2, 3, 5, dtype=torch.bool)}, ValueError, r"mask has shape \(7, 2, 3, 5\)"),
        ({"mask": torch.ones(3, 5, dtype=torch.long)}, TypeError, r"mask is torch.int64.*bool\(\)"),
        ({"mask": torch.ones(3, 5, dtype=torch.bool, device="meta")}, ValueError, r"mask is on meta"),
        ({"bias": torch.ones(3, 5, dtype=torch.bool)}, TypeError, r"bias is torch.bool"),
        ({"bias": torch.ones(5, 3)}, ValueError, r"bias has shape \(5, 3\)"),
    ],
)
def test_attention_refuses(change, error, words):
    with pytest.raises(error, match=words):
        scaled_dot_product_attention(**{**GOOD, **change})


# --- masks


def test_causal_mask():
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]
    assert causal_mask(3, 1).tolist() == [[False], [False], [True]]
    assert causal_mask(0, 3).shape == (0, 3)
    assert causal_mask(2, device="meta").device.type == "meta"


@pytest.mark.parametrize("wrong", [(-1,), (2, -1), (2.0,), (True,)])
def test_causal_mask_refuses(wrong):
    with pytest.raises(ValueError, match="causal_mask"):
        causal_mask(*wrong)


@pytest.mark.parametrize("dtype", [torch.long, torch.int32, torch.float32, torch.bool])
def test_padding_mask(dtype):
    ids = torch.tensor([[5, 7, 0, 0], [3, 4, 9, 2]])
    expected = [[[[True, True, False, False]]], [[[True, True, True, True]]]]
    assert padding_mask(ids, 0).tolist() == expected
    given_mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).to(dtype)
    result = padding_mask(attention_mask=given_mask)
    assert result.dtype == torch.bool
    assert result.tolist() == expected


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, TypeError, "either"),
        ({"token_ids": torch.ones(1, 2).long()}, TypeError, "either"),
        ({"token_ids": torch.ones(1, 2).long(), "pad_id": 0, "attention_mask": torch.ones(1, 2)}, TypeError, "either"),
        ({"attention_mask": torch.ones(1, 2), "pad_id": 0}, TypeError, "either"),
        ({"token_ids": torch.ones(2).long(), "pad_id": 0}, ValueError, r"shape \(2,\)"),
        ({"token_ids": torch.ones(1, 2), "pad_id": 0}, TypeError, "float32"),
        ({"token_ids": [[1, 2]], "pad_id": 0}, TypeError, "list"),
        ({"attention_mask": torch.tensor([[1, 2]])}, ValueError, "value 2"),
        ({"attention_mask": torch.tensor([[0.0, -10000.0]])}, ValueError, "value -10000"),
    ],
)
def test_padding_mask_refuses(options, error, words):
    with pytest.raises(error, match=words):
        padding_mask(**options)


# --- cache


def test_cache_holds_what_was_appended_and_does_not_touch_it():
    cache, parts = KeyValueCache(), [normal(2, 3, n, 4, seed=n) for n in (3, 1, 1, 0, 2, 1, 1, 1)]
    copies = [p.clone() for p in parts]
    assert cache.key is None
    assert cache.length == 0
    for i, part in enumerate(parts):
        key, value = cache.append(part, part * 2)
        assert torch.equal(key, torch.cat(copies[: i + 1], dim=2))
        assert torch.equal(value, 2 * key)
        assert cache.length == key.shape[2]
    assert torch.equal(cache.key, key)
    assert torch.equal(cache.value, value)
    assert all(torch.equal(a, b) for a, b in zip(parts, copies, strict=True))


def test_cache_does_not_copy_the_past_at_every_step():
    cache, one = KeyValueCache(), torch.zeros(1, 1, 1, 2)
    places = {cache.append(one, one)[0].data_ptr() for _ in range(64)}
    assert len(places) <= 8  # 1, 2, 4 ... 64


def test_cache_reorder():
    cache = KeyValueCache()
    cache.reorder(torch.tensor([0]))
    start = normal(3, 2, 4, 5)
    cache.append(start, -start)
    cache.append(start[:, :, :1], -start[:, :, :1])
    before = cache.key.clone()
    cache.reorder(torch.tensor([2, 2, 0, 1]))
    assert torch.equal(cache.key, before[[2, 2, 0, 1]])
    assert torch.equal(cache.value, -before[[2, 2, 0, 1]])
    new = normal(4, 2, 1, 5, seed=1)
    key, _ = cache.append(new, new)
    assert torch.equal(key, torch.cat([before[[2, 2, 0, 1]], new], dim=2))


def test_gradients_flow_through_the_cache():
    attention = layer()
    hidden = normal(2, 5, 24, dtype=torch.float64).requires_grad_()
    cache = KeyValueCache()
    steps = [attention(hidden[:, i : i + 1], causal=True, cache=cache)[0] for i in range(5)]
    stepwise = torch.autograd.grad((torch.cat(steps, 1) ** 2).sum(), hidden)[0]
    whole = torch.autograd.grad((attention(hidden, causal=True)[0] ** 2).sum(), hidden)[0]
    close(stepwise, whole, 1e-12)


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(3, 3, 1, 4), torch.zeros(2, 1, 1, 4), torch.zeros(2, 3, 1, 5), torch.zeros(2, 3, 1, 4).double()],
)
def test_cache_refuses_what_does_not_fit(wrong):
    cache = KeyValueCache()
    cache.append(torch.zeros(2, 3, 2, 4), torch.zeros(2, 3, 2, 4))
    with pytest.raises(ValueError, match="the cache holds keys"):
        cache.append(wrong, wrong)
    assert cache.length == 2


def test_cache_refuses_wrong_calls():
    cache = KeyValueCache()
    with pytest.raises(ValueError, match=r"expected \(batch, heads, tokens, size\)"):
        cache.append(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
    cache.append(torch.zeros(2, 3, 2, 4), torch.zeros(2, 3, 2, 4))
    with pytest.raises(ValueError, match=r"rows \[0, 2\]"):
        cache.reorder(torch.tensor([0, 2]))


# --- heads


@settings(max_examples=30, deadline=None)
@given(
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    head_size=small,
    batch=small,
    tokens=small,
    context=st.one_of(st.none(), small),
    causal=st.booleans(),
    masking=st.sampled_from(["none", "padding", "bool", "float"]),
    biased=st.booleans(),
    scale=st.sampled_from([None, 1.0, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=seeds,
)
def test_fused_equals_explicit(heads, head_size, batch, tokens, context, causal, masking, biased, scale, dtype, seed):
    attention = layer(8, heads[0], dtype, seed, key_value_heads=heads[1], head_size=head_size, scale=scale)
    hidden = normal(batch, tokens, 8, dtype=dtype, seed=seed)
    other = None if context is None else normal(batch, context, 8, dtype=dtype, seed=seed + 1)
    keys, causal = context or tokens, causal and context is None
    mask = {
        "none": None,
        "padding": normal(batch, 1, 1, keys, seed=seed + 2) > 0,  # some rows see nothing at all
        "bool": normal(batch, heads[0], tokens, keys, seed=seed + 2) > 0,
        "float": normal(tokens, keys, seed=seed + 2, dtype=dtype),
    }[masking]
    bias = normal(heads[0], tokens, keys, dtype=dtype, seed=seed + 3) if biased else None
    fused, nothing = attention(hidden, other, mask, causal=causal, bias=bias)
    explicit, weights = attention(hidden, other, mask, causal=causal, bias=bias, return_weights=True)
    close(fused, explicit, TOLERANCE[dtype])
    assert nothing is None
    assert weights.shape == (batch, heads[0], tokens, keys)
    sums = weights.sum(-1)
    assert (((sums - 1).abs() < 1e-6) | (sums == 0)).all()


@pytest.mark.parametrize("return_weights", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_torch_multi_head_attention(return_weights, dtype, cross, bias):
    torch.manual_seed(1)
    theirs = torch.nn.MultiheadAttention(24, 4, bias=bias, batch_first=True, dtype=dtype).eval()
    ours = layer(24, 4, dtype, bias=bias)
    with torch.no_grad():
        if bias:
            theirs.in_proj_bias.normal_()
            theirs.out_proj.bias.normal_()
        for part, weight in zip((ours.query, ours.key, ours.value), theirs.in_proj_weight.chunk(3), strict=True):
            part.weight.copy_(weight)
        if bias:
            for part, vector in zip((ours.query, ours.key, ours.value), theirs.in_proj_bias.chunk(3), strict=True):
                part.bias.copy_(vector)
        ours.output.load_state_dict(theirs.out_proj.state_dict())
    hidden, context = normal(3, 5, 24, dtype=dtype), normal(3, 7, 24, dtype=dtype, seed=1)
    source = context if cross else hidden
    lengths = torch.tensor([5, 3, 1])
    keep = torch.arange(source.shape[1])[None] < lengths[:, None]
    expected, expected_weights = theirs(
        hidden,
        source,
        source,
        key_padding_mask=~keep,
        attn_mask=None if cross else ~causal_mask(5),
        average_attn_weights=False,
    )
    output, weights = ours(
        hidden,
        context if cross else None,
        padding_mask(attention_mask=keep),
        causal=not cross,
        return_weights=return_weights,
    )
    close(output, expected, TOLERANCE[dtype])
    if return_weights:
        close(weights, expected_weights, TOLERANCE[dtype])


@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
def test_grouped_heads_equal_repeated_heads(key_value_heads):
    grouped, full = layer(24, 4, key_value_heads=key_value_heads), layer(24, 4, seed=1)
    repeat = lambda t: t.unflatten(0, (key_value_heads, -1)).repeat_interleave(4 // key_value_heads, 0).flatten(0, 1)  # noqa: E731
    full.load_state_dict(
        {name: repeat(t) if name.startswith(("key.", "value.")) else t for name, t in grouped.state_dict().items()}
    )
    hidden = normal(2, 5, 24, dtype=torch.float64)
    for return_weights in (False, True):
        close(grouped(hidden, return_weights=return_weights)[0], full(hidden, return_weights=return_weights)[0], 1e-12)


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(1, 9), cuts=st.lists(st.integers(1, 8), max_size=4), explicit=st.booleans(), seed=seeds)
def test_steps_with_a_cache_equal_one_pass(tokens, cuts, explicit, seed):
    attention = layer(24, 4, seed=seed, key_value_heads=2)
    hidden = normal(2, tokens, 24, dtype=torch.float64, seed=seed)
    turn = lambda states, positions: states * (1 + positions[:, None] * 0.1)  # noqa: E731
    bias = normal(4, tokens, tokens, dtype=torch.float64, seed=seed + 1)
    whole, whole_weights = attention(hidden, causal=True, rotary=turn, bias=bias, return_weights=True)
    edges = sorted({0, tokens, *(c for c in cuts if c < tokens)})
    cache, pieces = KeyValueCache(), []
    with torch.no_grad():
        for start, end in itertools.pairwise(edges):
            output, weights = attention(
                hidden[:, start:end],
                causal=True,
                rotary=turn,
                bias=bias[:, start:end, :end],
                cache=cache,
                return_weights=explicit,
            )
            pieces.append(output)
            if explicit:
                close(weights, whole_weights[:, :, start:end, :end].detach(), 1e-12)
    assert cache.length == tokens
    close(torch.cat(pieces, 1), whole.detach(), 1e-12)


def test_cross_attention_computes_the_context_once():
    attention = layer(24, 4, context_width=10)
    hidden, context, cache = (
        normal(2, 5, 24, dtype=torch.float64),
        normal(2, 7, 10, dtype=torch.float64),
        KeyValueCache(),
    )
    expected = attention(hidden, context)[0]
    calls = []
    attention.key.register_forward_hook(lambda *_: calls.append(1))
    steps = [attention(hidden[:, i : i + 1], context, cache=cache)[0] for i in range(5)]
    close(torch.cat(steps, 1), expected, 1e-12)
    assert len(calls) == 1
    assert cache.length == 7


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(2, 8), cut=st.integers(1, 7), explicit=st.booleans(), seed=seeds)
def test_the_future_does_not_matter(tokens, cut, explicit, seed):
    cut = min(cut, tokens - 1)
    attention = layer(seed=seed)
    hidden = normal(2, tokens, 24, dtype=torch.float64, seed=seed)
    other = hidden.clone()
    other[:, cut:] = normal(2, tokens - cut, 24, dtype=torch.float64, seed=seed + 1)
    a, b = (attention(h, causal=True, return_weights=explicit)[0] for h in (hidden, other))
    assert torch.equal(a[:, :cut], b[:, :cut]) or (a[:, :cut] - b[:, :cut]).abs().max() < 1e-12
    assert (a[:, cut:] - b[:, cut:]).abs().max() > 1e-6
    free, changed = (attention(h, return_weights=explicit)[0] for h in (hidden, other))
    assert (free[:, :cut] - changed[:, :cut]).abs().max() > 1e-9


def test_order_of_tokens_does_not_matter_without_a_mask():
    attention, hidden = layer(), normal(2, 6, 24, dtype=torch.float64)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    close(attention(hidden[:, order])[0], attention(hidden)[0][:, order], 1e-12)


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("explicit", [False, True])
def test_mask_bias_and_causal_flag_are_joined(additive, explicit):
    attention, hidden = layer(), normal(2, 5, 24, dtype=torch.float64)
    bias = normal(4, 5, 5, dtype=torch.float64, seed=1)
    mask = normal(5, 5, dtype=torch.float64, seed=2) if additive else normal(5, 5, seed=2) > -0.5
    joined = (bias + mask if additive else bias.masked_fill(~mask, -math.inf)).masked_fill(~causal_mask(5), -math.inf)
    parts = (split_heads(part(hidden), 4) for part in (attention.query, attention.key, attention.value))
    expected = attention.output(merge_heads(F.scaled_dot_product_attention(*parts, attn_mask=joined)))
    close(attention(hidden, None, mask, causal=True, bias=bias, return_weights=explicit)[0], expected, 1e-12)


@pytest.mark.parametrize("explicit", [False, True])
def test_heads_that_see_nothing_have_finite_gradients(explicit):
    attention = layer(dtype=torch.float32)
    hidden = normal(2, 4, 24).requires_grad_()
    bias = torch.zeros(4, 4, 4, requires_grad=True)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[1] = False
    output, _ = attention(hidden, None, mask, bias=bias, return_weights=explicit)
    close(output[:, 1], attention.output.bias.expand(2, 24), 1e-7)
    (output**2).sum().backward()
    for tensor in (hidden, bias, *attention.parameters()):
        assert tensor.grad.isfinite().all()
    assert bias.grad[:, 1].abs().max() == 0


def test_gradients_of_both_paths_agree():
    attention = layer(24, 4, key_value_heads=2)
    bias = normal(4, 5, 5, dtype=torch.float64, seed=2).requires_grad_()
    hidden = normal(2, 5, 24, dtype=torch.float64).requires_grad_()
    found = []
    for explicit in (False, True):
        output, _ = attention(hidden, causal=True, bias=bias, return_weights=explicit)
        found.append(torch.autograd.grad((output**2).sum(), [hidden, bias, *attention.parameters()]))
    for a, b in zip(*found, strict=True):
        close(a, b, 1e-11)


def test_dropout_is_for_training_only():
    attention = layer(dtype=torch.float32, dropout=0.5)
    hidden = normal(2, 6, 24)
    for explicit in (False, True):
        attention.eval()
        assert torch.equal(attention(hidden, return_weights=explicit)[0], attention(hidden, return_weights=explicit)[0])
        attention.train()
        first, second = (attention(hidden, return_weights=explicit)[0] for _ in range(2))
        assert (first - second).abs().max() > 1e-3
    weights = attention(hidden, return_weights=True)[1]
    close(weights.sum(-1), torch.ones(2, 4, 6), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_layer(dtype):
    attention = layer(dtype=dtype)
    exact = layer(dtype=torch.float64)
    exact.load_state_dict(attention.state_dict())
    hidden = normal(2, 5, 24, dtype=dtype)
    expected = exact(hidden.double(), causal=True)[0]
    for explicit in (False, True):
        output, _ = attention(hidden, causal=True, return_weights=explicit)
        assert output.dtype == dtype
        assert (output.double() - expected).abs().max() < 2 * TOLERANCE[dtype]


def test_scale_and_head_size():
    attention = layer(24, 3, head_size=5, scale=1.0, output_bias=False)
    assert attention.output.weight.shape == (24, 15)
    assert attention.output.bias is None
    assert attention.query.bias is not None
    hidden = normal(1, 4, 24, dtype=torch.float64)
    query, key = (part(hidden).view(1, 4, 3, 5).transpose(1, 2) for part in (attention.query, attention.key))
    expected = torch.softmax(query @ key.transpose(-2, -1), -1)
    close(attention(hidden, return_weights=True)[1], expected, 1e-12)


def test_heads_are_split_in_order_and_merged_back():
    states = torch.arange(24.0).view(1, 3, 8)
    split = split_heads(states, 2)
    assert split[0, :, 1].tolist() == [[8.0, 9.0, 10.0, 11.0], [12.0, 13.0, 14.0, 15.0]]
    assert torch.equal(merge_heads(split), states)
    assert attention_multiplications(3, 8) == (4 * 3 * 64, 2 * 9 * 8)


def test_split_heads_refuses_a_remainder():
    with pytest.raises(ValueError, match="width 8"):
        split_heads(torch.zeros(1, 2, 8), 3)


def test_equals_gpt2_attention():
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

    torch.manual_seed(0)
    config = GPT2Config(n_embd=24, n_head=4, attn_implementation="eager")
    theirs = GPT2Attention(config, layer_idx=0).double().eval()
    ours = layer()
    with torch.no_grad():
        theirs.c_attn.bias.normal_()
        weights, biases = theirs.c_attn.weight.T.chunk(3), theirs.c_attn.bias.chunk(3)
        for part, weight, bias in zip((ours.query, ours.key, ours.value), weights, biases, strict=True):
            part.weight.copy_(weight)
            part.bias.copy_(bias)
        ours.output.weight.copy_(theirs.c_proj.weight.T)
        ours.output.bias.copy_(theirs.c_proj.bias)
    hidden = normal(2, 7, 24, dtype=torch.float64)
    additive = torch.zeros(7, 7, dtype=torch.float64).masked_fill(~causal_mask(7), torch.finfo(torch.float64).min)
    expected, maps = theirs(hidden, attention_mask=additive[None, None])
    output, weights = ours(hidden, causal=True, return_weights=True)
    close(output, expected, 1e-12)
    close(weights, maps, 1e-12)


def test_fused_kernel_runs_unless_weights_are_asked_for(monkeypatch):
    seen = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: seen.append(k) or real(*a, **k))
    attention, hidden = layer(), normal(2, 5, 24, dtype=torch.float64)
    attention(hidden, causal=True, return_weights=True)
    assert not seen
    attention(hidden, causal=True)
    assert seen[0]["is_causal"]
    assert seen[0]["attn_mask"] is None


def test_fused_attention_needs_no_square():
    query, key = normal(2, 4, 3, 8, dtype=torch.float64), normal(2, 2, 6, 8, dtype=torch.float64, seed=1)
    output = fused_attention(query, key, key, causal=True)
    twice = key.repeat_interleave(2, 1)
    close(output, scaled_dot_product_attention(query, twice, twice, causal_mask(3, 6))[0], 1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 10, "heads": 4}, "width=10, heads=4"),
        ({"width": 8, "heads": 4, "key_value_heads": 3}, "key_value_heads=3"),
        ({"width": 8, "heads": 0}, "heads=0"),
        ({"width": 8.0, "heads": 2}, "width=8.0"),
        ({"width": 8, "heads": 2, "head_size": 0}, "head_size=0"),
        ({"width": 8, "heads": 2, "dropout": 1.0}, "dropout=1.0"),
    ],
)
def test_heads_refuses_sizes(options, words):
    with pytest.raises(ValueError, match=words):
        MultiHeadAttention(**options)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((torch.zeros(2, 3, 9),), {}, ValueError, r"hidden of shape \(2, 3, 9\)"),
        ((torch.zeros(3, 8),), {}, ValueError, r"hidden of shape \(3, 8\)"),
        ((torch.zeros(2, 3, 8).double(),), {}, TypeError, "hidden is torch.float64, the weights are torch.float32"),
        ((torch.zeros(2, 3, 8, device="meta"),), {}, ValueError, "hidden is on meta"),
        ((torch.zeros(2, 3, 8), torch.zeros(1, 3, 8)), {}, ValueError, "batch of 2 in hidden and of 1"),
        ((torch.zeros(2, 3, 8), torch.zeros(2, 3, 8)), {"causal": True}, ValueError, "causal"),
        ((torch.zeros(2, 3, 8), None, torch.ones(2, 3).bool()), {}, ValueError, r"mask has shape \(2, 3\)"),
        ((torch.zeros(2, 3, 8), None, torch.ones(2, 1, 1, 3).long()), {}, TypeError, "mask is torch.int64"),
        ((torch.zeros(2, 3, 8),), {"bias": torch.zeros(4, 3, 3)}, ValueError, r"bias has shape \(4, 3, 3\)"),
    ],
)
@pytest.mark.parametrize("explicit", [False, True])
def test_heads_refuses_inputs(arguments, options, error, words, explicit):
    with pytest.raises(error, match=words):
        MultiHeadAttention(8, 2)(*arguments, **options, return_weights=explicit)


def test_heads_refuses_a_cache_of_another_context():
    attention, cache = MultiHeadAttention(8, 2), KeyValueCache()
    attention(torch.zeros(1, 2, 8), torch.zeros(1, 5, 8), cache=cache)
    with pytest.raises(ValueError, match="holds 5 tokens of context, but the context has 4"):
        attention(torch.zeros(1, 2, 8), torch.zeros(1, 4, 8), cache=cache)
    with pytest.raises(ValueError, match=r"context_width=4.*needs a context"):
        MultiHeadAttention(8, 2, context_width=4)(torch.zeros(1, 2, 8))
