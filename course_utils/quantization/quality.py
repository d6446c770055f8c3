"""How well a quantized model still works: perplexity of held-out text, and answers that it has to look up."""

import math
import random
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_utils.data import library_docs
from course_utils.data.packing import pack, windows
from course_utils.data.tasks import episodes
from course_utils.training import modes

DRAWS = 2000
"""Resamples of the bootstrap."""


def held_out(tokenizer: Any, count: int = 24, length: int = 256, seed: str = "quality") -> Int[Tensor, "count length"]:
    """Return windows of held-out library documentation, each after the token that begins a text.

    Args:
        tokenizer: a fast tokenizer of ``transformers``.
        count: number of windows.
        length: tokens of each.
        seed: which ones.

    Returns:
        Token ids.
    """
    texts = library_docs("small", "validation", progress=False)["text"]
    begin = tokenizer.bos_token_id
    ids = windows(pack(tokenizer, texts), count, length - (begin is not None), f"{seed} held out")
    return ids if begin is None else torch.cat([torch.full((count, 1), begin), ids], 1)


def token_losses(model: nn.Module, ids: Int[Tensor, "count length"], rows: int = 8) -> Float[Tensor, "count targets"]:
    """Return the cross-entropy of each token but the first, in nats.

    Args:
        model: a causal language model, ours or one of ``transformers``.
        ids: the tokens.
        rows: windows that are read at once.
    """
    device = next((one.device for one in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    losses = []
    with modes(model, training=False), torch.no_grad():
        for part in ids.to(device).split(rows):
            logits: Tensor = model(input_ids=part).logits[:, :-1].float()
            flat = nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none")
            losses.append(flat.view(len(part), -1).cpu())
    return torch.cat(losses)


def perplexity(model: nn.Module, ids: Int[Tensor, "count length"]) -> float:
    """Return e to the mean cross-entropy: among how many equally likely tokens the model chooses, on average.

    Args:
        model: as in :func:`token_losses`.
        ids: the tokens.
    """
    return math.exp(token_losses(model, ids).mean())


def recalls(
    model: nn.Module, tokenizer: Any, items: int = 60, pairs: int = 8, seed: int = 0
) -> Float[Tensor, " items"]:
    """Return 1 for each prompt whose answer the model finds, else 0: pairs of words are shown, then one is asked for.

    An answer is right where each of its tokens is the likeliest one, to the end of the line.

    Args:
        model: as in :func:`token_losses`.
        tokenizer: its tokenizer.
        items: number of prompts, of the held-out half of the episodes.
        pairs: pairs in each.
        seed: which prompts.
    """
    chance = random.Random(f"recall {seed}")
    prompts, answers = [], []
    for _ in range(items):
        one = episodes.episode("recall", chance, pairs + 1, "held_out")
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        prompts.append(begin + tokenizer(one.prompt(), add_special_tokens=False).input_ids)
        answers.append(tokenizer(one.parts()[-1][1], add_special_tokens=False).input_ids)
    device = next(one.device for one in (*model.parameters(), *model.buffers()))
    rows = [torch.tensor(prompt + answer) for prompt, answer in zip(prompts, answers, strict=True)]
    right = []
    with modes(model, training=False), torch.no_grad():
        for first in range(0, items, 20):
            ids = nn.utils.rnn.pad_sequence(rows[first : first + 20], batch_first=True).to(device)
            likeliest = model(input_ids=ids).logits.argmax(-1).cpu()
            for row, prompt, answer in zip(likeliest, prompts[first:], answers[first:], strict=False):
                at = len(prompt) - 1
                right.append(float(row[at : at + len(answer)].tolist() == answer))
    return torch.tensor(right)


def relative(
    losses: Float[Tensor, "count targets"], baseline: Float[Tensor, "count targets"], seed: int = 0
) -> tuple[float, float, float]:
    """Return the perplexity divided by that of the baseline, with its 95 % interval.

    The interval is that of the paired bootstrap (Efron, 1979): whole windows are drawn, the same ones for both models,
    so that hard texts do not count as noise.

    Args:
        losses: of the model, from :func:`token_losses`.
        baseline: of the untouched model on the same tokens.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the two are not of the same tokens.
    """
    if losses.shape != baseline.shape:
        raise ValueError(
            f"losses of shape {tuple(losses.shape)} and {tuple(baseline.shape)}: expected two models on the same tokens"
        )
    difference = (losses - baseline).double().mean(1)  # one number a window
    drawn = torch.randint(len(difference), (DRAWS, len(difference)), generator=torch.Generator().manual_seed(seed))
    low, high = difference[drawn].mean(1).exp().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return math.exp(difference.mean()), low, high
