"""The explorer of paths answers to its controls, and its counts are the ones that the exercise asks for."""

import pytest

from course_utils.rnn import key_value_cache_bytes, path_length
from course_utils.widgets import base
from course_utils.widgets.path_explorer import draw_paths, path_explorer


def test_it_answers_to_its_controls(monkeypatch):
    shown = []
    monkeypatch.setattr(base, "show_live", lambda *parts: shown.append(parts))
    panel = path_explorer()
    body = panel.children[-1]
    assert "recurrent: 10 steps" in body.value and "attention: 2 steps" in body.value
    assert shown[0][1] == body.value
    tokens, distance, layers, kept = (row.children[0] for row in panel.children[:-1])
    distance.value = 11
    assert "recurrent: 13 steps" in body.value and "attention: 2 steps" in body.value
    layers.value = 3
    assert "recurrent: 14 steps" in body.value and "attention: 3 steps" in body.value
    kept.value = 0.5
    assert "0.5 to the power of 3 = 0.125" in body.value
    tokens.value = 6
    assert "does not fit into 6 tokens" in body.value


def test_the_drawn_path_has_as_many_steps_as_the_count():
    for distance in (1, 5, 9):
        for layers in (1, 2, 4):
            fig, alt, lines = draw_paths(12, distance, layers, 0.8)
            for axes, architecture in zip(fig.axes, ("recurrent", "attention"), strict=True):
                (path,) = axes.lines
                assert len(path.get_xdata()) - 1 == path_length(architecture, distance, layers)
                assert path.get_xdata()[-1] - path.get_xdata()[0] == distance
            assert len(alt) > 20 and len(lines) == 2


def test_bad_numbers_refuses():
    with pytest.raises(ValueError, match="expected 2 to 24"):
        path_explorer(1)
    with pytest.raises(ValueError, match="does not fit"):
        draw_paths(5, 5, 1, 0.8)
    for bad in (("convolution", 1, 1), ("recurrent", -1, 1), ("attention", 1, 0)):
        with pytest.raises(ValueError, match="expected 'recurrent' or"):
            path_length(*bad)


def test_the_cache_of_a_real_model_has_the_bytes_of_the_formula():
    import torch

    from course_utils.transformer import Transformer, TransformerConfig

    config = TransformerConfig(vocabulary_size=9, width=24, layers=3, heads=6, key_value_heads=2)
    cache = Transformer(config).double()(torch.zeros(5, 7, dtype=torch.long), use_cache=True).cache
    held = sum(
        part.numel() * part.element_size() for layer in cache.layers for part in (layer.own.key, layer.own.value)
    )
    assert held == key_value_cache_bytes(7, 3, 2, 4, batch=5, bytes_per_number=8)
