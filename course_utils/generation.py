"""Decoding: from scores of the next token to text. Here the simplest rule, the most probable token at each step."""

import torch
from jaxtyping import Bool, Int, Num
from torch import Tensor

from course_utils.transformer import Cache, Transformer


@torch.no_grad()
def greedy(
    model: Transformer,
    input_ids: Int[Tensor, "batch tokens"],
    max_new_tokens: int,
    *,
    end_id: int | None = None,
    start_id: int | None = None,
    attention_mask: Num[Tensor, "batch tokens"] | Bool[Tensor, "batch tokens"] | None = None,
) -> Int[Tensor, "batch new"]:
    """Let a model write: at each step the token with the highest score is taken and read back in.

    Keys and values of earlier tokens are cached, so a step computes one token. The model runs in evaluation mode, and
    gets its mode back.

    Args:
        model: a decoder (continues ``input_ids``) or an encoder-decoder (reads them as the source).
        input_ids: the prompts, padded on the left, or the sources, padded on either side.
        max_new_tokens: largest number of tokens to write.
        end_id: the token that ends a text; what follows it in its row is filled up with it. By default no text ends
            early.
        start_id: the token that begins a target; needed by an encoder-decoder.
        attention_mask: 1 for real tokens, 0 for padding; by default all are real.

    Returns:
        The new tokens, at most ``max_new_tokens`` of each row, without the prompt or the start token.

    Raises:
        ValueError: the model cannot write, the prompt and the new tokens exceed the context window, a decoder's prompt
            is empty or padded on the right, or ``start_id`` is missing or needless.
    """
    both = model.config.kind == "encoder-decoder"
    _check(model, input_ids, attention_mask, max_new_tokens, start_id)
    tokens = torch.full_like(input_ids[:, :1], start_id) if both and start_id is not None else input_ids
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
    finished = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    cache: Cache | None = None
    written: list[Tensor] = []
    training = model.training
    model.eval()
    try:
        while len(written) < max_new_tokens and not finished.all():
            if both:
                output = model(input_ids, attention_mask, decoder_input_ids=tokens, cache=cache, use_cache=True)
            else:
                places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]  # real tokens count from 0
                output = model(tokens, mask, position_ids=places, cache=cache, use_cache=True)
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            cache = output.cache
            best = output.logits[:, -1].argmax(-1)  # (batch,)
            if end_id is not None:
                best = best.masked_fill(finished, end_id)
                finished = finished | (best == end_id)
            written.append(best)
            tokens = best[:, None]
    finally:
        model.train(training)
    return torch.stack(written, dim=1) if written else input_ids[:, :0]


def _check(
    model: Transformer, input_ids: Tensor, attention_mask: Tensor | None, max_new_tokens: int, start_id: int | None
) -> None:
    kind, window = model.config.kind, model.config.context_window
    if kind == "encoder" or not model.config.head:
        raise ValueError("this model cannot write: it needs a decoder and a head (kind 'decoder' or 'encoder-decoder')")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens}: expected a whole number, 0 or more")
    if (start_id is not None) != (kind == "encoder-decoder"):
        raise ValueError(
            f"start_id={start_id} with kind={kind!r}: an encoder-decoder needs the token that begins a target, a "
            "decoder goes on from its prompt and takes none"
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids has {tuple(input_ids.shape)}: they "
            "must be the same"
        )
    length = 1
    if kind == "decoder":
        length = input_ids.shape[1]
        if length == 0:
            raise ValueError("the prompt is empty: give at least one token, for example the one that begins a text")
        if attention_mask is not None:
            if not bool((attention_mask[:, -1] != 0).all()):
                raise ValueError("a prompt is padded on the right, where the new tokens must follow: pad on the left")
            length = int((attention_mask != 0).sum(-1).max())
    if window is not None and length + max_new_tokens > window:
        raise ValueError(
            f"a prompt of {length} tokens and max_new_tokens={max_new_tokens} exceed the context window of {window}: "
            f"shorten the prompt, or write at most {max(window - length, 0)} tokens"
        )
