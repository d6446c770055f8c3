"""The recurrent language models: their cells are the equations, their state is all they need, padding is nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.rnn import (
    RecurrentConfig,
    RecurrentLanguageModel,
    gradient_by_distance,
    gru_step,
    lstm_step,
    rnn_step,
)
from course_utils.transformer import ModelOutput, Transformer, TransformerConfig


def build(cell="lstm", seed=0, **changes):
    torch.manual_seed(seed)
    return RecurrentLanguageModel(RecurrentConfig(**(dict(vocabulary_size=13, cell=cell, width=7) | changes))).double()


CELLS = ["rnn", "gru", "lstm"]


@pytest.mark.parametrize("cell", CELLS)
def test_torchs_cells_are_the_equations(cell):
    torch.manual_seed(0)
    inputs, hidden, memory = (torch.randn(3, size, dtype=torch.double) for size in (5, 7, 7))
    theirs = {"rnn": torch.nn.RNNCell, "gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell}[cell](5, 7).double()
    w, u, b, c = theirs.weight_ih, theirs.weight_hh, theirs.bias_ih, theirs.bias_hh
    if cell == "rnn":
        torch.testing.assert_close(rnn_step(inputs, hidden, w, u, b + c), theirs(inputs, hidden))
    elif cell == "gru":
        torch.testing.assert_close(gru_step(inputs, hidden, w, u, b, c), theirs(inputs, hidden))
    else:
        torch.testing.assert_close(lstm_step(inputs, hidden, memory, w, u, b + c), theirs(inputs, (hidden, memory)))


def test_the_whole_model_is_the_equations_token_by_token():
    model = build("lstm", layers=2)
    ids = torch.tensor([[3, 1, 12, 0, 5]])
    expected = []
    states = [(torch.zeros(1, 7).double(), torch.zeros(1, 7).double()) for _ in range(2)]
    for token in ids[0]:
        vector = model.embeddings.weight[token][None]
        for number, layer in enumerate(model.layers):
            bias = layer.bias_ih_l0 + layer.bias_hh_l0
            states[number] = lstm_step(vector, *states[number], layer.weight_ih_l0, layer.weight_hh_l0, bias)
            vector = states[number][0]
        expected.append(vector @ model.embeddings.weight.T)
    torch.testing.assert_close(model(ids).logits, torch.stack(expected, 1))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(CELLS), st.integers(1, 3), st.lists(st.integers(1, 4), min_size=1, max_size=5), st.booleans())
def test_step_by_step_with_the_state_equals_all_at_once(cell, layers, chunks, masked):
    model = build(cell, layers=layers)
    ids = torch.randint(13, (3, sum(chunks)), generator=torch.Generator().manual_seed(sum(chunks)))
    mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.6 if masked else None
    full = model(ids, mask, use_cache=True)
    cache, logits, start = None, [], 0
    for size in chunks:
        seen = None if mask is None else mask[:, : start + size]
        output = model(ids[:, start : start + size], seen, cache=cache, use_cache=True)
        cache = output.cache
        logits.append(output.logits)
        start += size
    torch.testing.assert_close(torch.cat(logits, 1), full.logits)
    assert cache.length == full.cache.length == ids.shape[1]
    for layer, other in zip(cache.states, full.cache.states, strict=True):
        for a, b in zip(layer, other, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_padding_changes_nothing(cell, side):
    model = build(cell, layers=2)
    ids = torch.tensor([[4, 8, 2]])
    places = {"left": [2, 3, 4], "right": [0, 1, 2], "middle": [0, 2, 4]}[side]
    padded, mask = torch.full((1, 5), 9), torch.zeros(1, 5, dtype=torch.long)
    padded[:, places], mask[:, places] = ids, 1
    plain = model(ids, use_cache=True)
    other = model(padded.repeat(2, 1), torch.cat([mask, torch.zeros_like(mask)]), use_cache=True)
    torch.testing.assert_close(other.logits[:1, places], plain.logits)
    for a, b in zip(other.cache.states[1], plain.cache.states[1], strict=True):
        torch.testing.assert_close(a[:1], b)
        assert not a[1].any()  # a row of nothing but padding keeps its state


@pytest.mark.parametrize("cell", CELLS)
def test_the_interface_is_that_of_the_transformer(cell):
    ids = torch.randint(13, (2, 6))
    recurrent = build(cell, layers=3).eval()
    attention = Transformer(TransformerConfig(vocabulary_size=13, width=8, layers=3, heads=2)).double().eval()
    for model in (recurrent, attention):
        output = model(ids, torch.ones(2, 6), use_cache=True, return_attentions=True, return_hidden_states=True)
        assert isinstance(output, ModelOutput)
        assert output.logits.shape == (2, 6, 13) and len(output.hidden_states) == 4 and output.cache.length == 6
        assert len(output.attentions) == (0 if model is recurrent else 3)
        assert torch.equal(output.last_hidden_state, output.hidden_states[-1])
        rows = torch.tensor([1, 1, 0])
        output.cache.reorder(rows)
        again = model(ids[rows][:, -1:], cache=output.cache)
        assert again.cache.length == 7
        torch.testing.assert_close(again.logits[0], again.logits[1])
        plain = model(ids)
        assert plain.cache is None and plain.attentions is None and plain.hidden_states is None
        assert model.parameter_count() == sum(p.numel() for p in model.parameters())


def test_the_state_does_not_grow_and_the_given_one_is_not_changed():
    model = build("lstm")
    first = model(torch.randint(13, (1, 3)), use_cache=True).cache
    kept = [part.clone() for part in first.states[0]]
    later = model(torch.randint(13, (1, 500)), cache=first).cache
    assert [p.shape for p in later.states[0]] == [p.shape for p in first.states[0]]
    assert all(torch.equal(a, b) for a, b in zip(kept, first.states[0], strict=True))


def test_a_token_sees_only_those_before_it():
    model, ids = build("gru", layers=2), torch.randint(13, (1, 8))
    changed = ids.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 13
    difference = (model(ids).logits - model(changed).logits).abs().sum(-1)[0]
    assert not difference[:5].any() and difference[5:].all()


def test_forget_gates_begin_open_and_sizes_are_counted():
    model = build("lstm", width=6, forget_bias=2.5, embedding_width=4, tied_embeddings=False)
    layer = model.layers[0]
    assert ((layer.bias_ih_l0 + layer.bias_hh_l0)[6:12] == 2.5).all()
    assert model.parameter_count() == 13 * 4 + 4 * 6 * (4 + 6 + 2) + 13 * 6
    assert model(torch.zeros(2, 3, dtype=torch.long)).logits.shape == (2, 3, 13)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_reach_everything(cell):
    model = build(cell, layers=2)
    model(torch.randint(13, (2, 5)), torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]])).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_gradient_by_distance_is_the_gradient_by_hand():
    model = build("rnn", width=13)
    with (
        torch.no_grad()
    ):  # h_t = tanh(x_t + h_{t-1} / 2), so that the gradient falls by half and the tanh's slope a step
        layer = model.layers[0]
        layer.weight_ih_l0.copy_(torch.eye(13))
        layer.weight_hh_l0.copy_(torch.eye(13) / 2)
        layer.bias_ih_l0.zero_()
        layer.bias_hh_l0.zero_()
        model.embeddings.weight.mul_(1e-4)  # small enough that tanh is the identity
    reach = gradient_by_distance(model, torch.randint(13, (3, 9)))
    torch.testing.assert_close(reach, 0.5 ** torch.arange(9).double(), rtol=1e-3, atol=0)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(cell="LSTM"), "expected one of rnn, gru, lstm"),
        (dict(width=0), "width=0"),
        (dict(layers=1.5), "layers=1.5"),
        (dict(vocabulary_size=True), "vocabulary_size=True"),
        (dict(dropout=1.0), "dropout"),
        (dict(embedding_width=3), "tied_embeddings=True needs"),
        (dict(forget_bias=float("nan")), "forget_bias"),
    ],
)
def test_bad_configurations_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        RecurrentConfig(**(dict(vocabulary_size=13, width=7) | change))


def test_bad_input_refuses():
    model, ids = build(), torch.zeros(2, 3, dtype=torch.long)
    for bad, message in (
        (ids + 13, "vocabulary ends at 12"),
        (ids - 1, "from -1"),
        (ids[0], "batch, tokens"),
        (ids[:, :0], "at least one token"),
    ):
        with pytest.raises(ValueError, match=message):
            model(bad)
    with pytest.raises(TypeError, match="whole numbers"):
        model(ids.float())
    with pytest.raises(ValueError, match=r"expected \(2, 3\)"):
        model(ids, torch.ones(2, 4))
    cache = model(ids, use_cache=True).cache
    with pytest.raises(ValueError, match=r"expected \(2, 6\)"):
        model(ids, torch.ones(2, 3), cache=cache)
    with pytest.raises(ValueError, match="another model's"):
        model(ids[:1], cache=cache)
    with pytest.raises(ValueError, match="another model's"):
        build("gru")(ids, cache=cache)
    with pytest.raises(ValueError, match="one token"):
        gradient_by_distance(model, ids[:, :0])
