"""Type a sentence, choose a model, a layer and a head, and read the map in numbers."""

from collections.abc import Mapping
from typing import Any

import torch

from course_utils.interpretability import attention_maps
from course_utils.plotting import heatmap
from course_utils.widgets.base import Drawing, choice, explorer, slider, text

LONGEST = 24
"""Tokens of a sentence that are drawn, at most."""


def map_explorer(models: Mapping[str, tuple[Any, Any]], sentence: str) -> Any:
    """Display one attention map of one of some models on a sentence.

    Args:
        models: name to model and tokenizer; models with one stack (an encoder, a decoder).
        sentence: the sentence at first.

    Returns:
        The widget that was displayed.
    """
    sizes = [
        (config.num_hidden_layers, config.num_attention_heads) for config in (m.config for m, _ in models.values())
    ]
    controls = {
        "name": choice("Model", list(models)),
        "sentence": text("Sentence", sentence),
        "layer": slider("Layer", 1, 1, max(layers for layers, _ in sizes)),
        "head": slider("Head", 1, 1, max(heads for _, heads in sizes)),
    }
    return explorer(controls, lambda name, **rest: draw_map(*models[name], name=name, **rest))


def draw_map(model: Any, tokenizer: Any, name: str, sentence: str, layer: int, head: int) -> Drawing:
    """Draw one map as a matrix with its tokens.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        name: what it is called.
        sentence: what it reads.
        layer: number of the layer, from 1.
        head: number of the head, from 1.

    Returns:
        Figure, alternative text, and lines of text.

    Raises:
        ValueError: there is no such layer or head, or the sentence has no token or too many.
    """
    ids = torch.as_tensor(tokenizer(sentence)["input_ids"])[None]
    tokens = [tokenizer.decode([number]).strip() or "␣" for number in ids[0].tolist()]
    if not 2 <= len(tokens) <= LONGEST:
        raise ValueError(f"the sentence has {len(tokens)} tokens: type one of 2 to {LONGEST}")
    maps = attention_maps(model, ids)["attentions"]
    if layer > len(maps) or head > maps[0].shape[1]:
        raise ValueError(f"the {name} has {len(maps)} layers of {maps[0].shape[1]} heads")
    weights = maps[layer - 1][0, head - 1].float().cpu()  # (queries, keys)
    title = f"{name}, layer {layer}, head {head}"
    fig = heatmap(weights, tokens, tokens, title, xlabel="key", ylabel="query", numbers=False, limits=(0, 1))
    strongest = weights.flatten().topk(3).indices.tolist()
    pairs = [divmod(place, len(tokens)) for place in strongest]
    looks = "; ".join(f"{tokens[i]} at {tokens[j]}: ≈{weights[i, j]:.2f}" for i, j in pairs)
    return fig, f"Attention map of the {title}, on: {sentence}", [f"strongest weights: {looks}"]
