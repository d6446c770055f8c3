"""Position encodings equal their papers' formulas and those of transformers, and refuse what cannot be."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.attention import MultiHeadAttention
from course_utils.positions import (
    LearnedPositions,
    RelativeBias,
    Rotary,
    SinusoidalPositions,
    alibi_bias,
    alibi_slopes,
    apply_rotary,
    relative_position_bucket,
    sinusoidal_positions,
)


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_sinusoidal_follows_the_formula(width):
    waves = sinusoidal_positions(torch.tensor([0, 1, 7, 1000]), width, dtype=torch.float64)
    assert waves.shape == (4, width)
    for row, position in enumerate([0, 1, 7, 1000]):
        for column in range(width):
            angle = position / 10000 ** ((column - column % 2) / width)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert waves[row, column].item() == pytest.approx(expected, abs=1e-12)


def test_sinusoidal_dot_product_depends_on_distance_alone():
    waves = sinusoidal_positions(torch.arange(40), 16, dtype=torch.float64)
    products = waves @ waves.T
    for distance in (0, 3, 20):
        diagonal = products.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-12)


def test_sinusoidal_module_grows_its_table():
    module = SinusoidalPositions(6)
    positions = torch.tensor([[0, 63, 64, 500]])
    assert torch.equal(module(positions), sinusoidal_positions(positions, 6))
    assert module.state_dict() == {}  # nothing to learn, nothing to save
    assert module.double()(torch.tensor([2000])).dtype == torch.float64


def test_learned_positions_look_up_rows_behind_the_offset():
    module = LearnedPositions(5, 3, offset=2)
    assert module.weight.shape == (7, 3)
    assert torch.equal(module(torch.tensor([[0, 4], [-2, 1]])), module.weight[torch.tensor([[2, 6], [0, 3]])])


def test_learned_positions_refuses_what_lies_outside():
    with pytest.raises(ValueError, match="position 5 lies outside the context window of 5"):
        LearnedPositions(5, 3)(torch.arange(6))


def test_rotary_equals_llama():
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(
        hidden_size=40, num_attention_heads=4, rope_parameters=dict(rope_type="default", rope_theta=500.0)
    )
    query, key = torch.randn(2, 4, 7, 10, dtype=torch.float64), torch.randn(2, 2, 7, 10, dtype=torch.float64)
    positions = torch.stack([torch.arange(7), torch.arange(100, 107)])
    expected = apply_rotary_pos_emb(query, key, *LlamaRotaryEmbedding(config)(query, positions))
    rotary = Rotary(10, base=500.0)
    for ours, theirs in zip((rotary(query, positions), rotary(key, positions)), expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-14


@settings(max_examples=30, deadline=None)
@given(shift=st.integers(0, 500), distance=st.integers(0, 50), half=st.integers(1, 6), rest=st.integers(0, 3))
def test_rotary_products_depend_on_distance_alone(shift, distance, half, rest):
    rotary = Rotary(2 * half)
    query, key = torch.randn(2, 1, 1, 2 * half + rest, dtype=torch.float64)

    def product(position):
        turned = rotary(query[None], torch.tensor([position + distance])) * rotary(key[None], torch.tensor([position]))
        return turned.sum().item()

    assert product(0) == pytest.approx(product(shift), abs=1e-3 * query.norm().item() * key.norm().item())
    assert rotary(query[None], torch.tensor([shift])).norm() == pytest.approx(query.norm().item(), rel=1e-6)


def test_partial_rotary_leaves_the_rest_alone():
    states = torch.randn(1, 2, 5, 8)
    turned = Rotary(4)(states, torch.arange(5))
    assert torch.equal(turned[..., 4:], states[..., 4:])
    assert not torch.allclose(turned[..., 1:, :4], states[..., 1:, :4])


def test_rotary_fits_attention_with_a_cache():
    from course_utils.attention import KeyValueCache

    attention, rotary, hidden = MultiHeadAttention(12, 3), Rotary(4), torch.randn(2, 6, 12)
    whole, _ = attention(hidden, causal=True, rotary=rotary)
    cache = KeyValueCache()
    steps = [attention(hidden[:, i : i + 1], causal=True, rotary=rotary, cache=cache)[0] for i in range(6)]
    assert (torch.cat(steps, 1) - whole).abs().max() < 1e-6


def test_apply_rotary_refuses_states_that_are_too_small():
    with pytest.raises(ValueError, match="size 8 or more; got 6"):
        apply_rotary(torch.randn(5, 6), torch.ones(5, 4), torch.zeros(5, 4))


@pytest.mark.parametrize("heads", [*range(1, 34), 40, 63, 64, 112])
def test_alibi_slopes_equal_bloom(heads):
    from transformers.models.bloom.modeling_bloom import _get_alibi_slopes

    assert torch.equal(alibi_slopes(heads), _get_alibi_slopes(heads, torch.device("cpu")))


@pytest.mark.parametrize("heads", [4, 6])
def test_alibi_bias_equals_bloom_and_its_own_distance_form(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    positions = torch.arange(9)
    expected = build_alibi_tensor(torch.ones(1, 9), heads, torch.float32).view(heads, 1, 9)
    short = alibi_bias(heads, positions)
    assert torch.equal(short, expected)
    full = alibi_bias(heads, positions, positions)
    assert torch.equal(full.diagonal(dim1=-2, dim2=-1), torch.zeros(heads, 9))
    assert full[0, 5, 2].item() == pytest.approx(-3 * alibi_slopes(heads)[0].item())
    future = torch.ones(9, 9).triu(1).bool()
    weights = [torch.softmax(bias.masked_fill(future, -math.inf), -1) for bias in (short.expand(-1, 9, -1), full)]
    assert (weights[0] - weights[1]).abs().max() < 1e-6


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets, longest", [(32, 128), (8, 20), (64, 256), (16, 33)])
def test_t5_buckets_equal_transformers(bidirectional, buckets, longest):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-600, 600).view(2, -1)
    expected = T5Attention._relative_position_bucket(distance, bidirectional, buckets, longest)
    assert torch.equal(relative_position_bucket(distance, bidirectional, buckets, longest), expected)


@pytest.mark.parametrize("is_decoder", [True, False])
def test_t5_bias_equals_transformers(is_decoder):
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    theirs = T5Attention(
        T5Config(d_model=24, d_kv=8, num_heads=3, is_decoder=is_decoder), has_relative_attention_bias=True, layer_idx=0
    )
    ours = RelativeBias(3, bidirectional=not is_decoder)
    with torch.no_grad():
        ours.weight.copy_(theirs.relative_attention_bias.weight)
    expected = theirs.compute_bias(5, 200, past_seen_tokens=195)[0]
    assert torch.equal(ours(torch.arange(195, 200), torch.arange(200)), expected)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: sinusoidal_positions(torch.arange(3), 0), "width=0"),
        (lambda: sinusoidal_positions(torch.arange(3), 4, base=0.0), "base=0.0"),
        (lambda: LearnedPositions(0, 4), "context_window=0"),
        (lambda: Rotary(5), "size=5.*even"),
        (lambda: alibi_slopes(0), "heads=0"),
        (lambda: relative_position_bucket(torch.arange(3), buckets=2), "buckets=2"),
        (lambda: relative_position_bucket(torch.arange(3), buckets=7), "buckets=7.*even"),
        (lambda: RelativeBias(2, buckets=32, max_distance=8), "max_distance=8"),
    ],
)
def test_refuses_sizes_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
