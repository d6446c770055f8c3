"""Greedy decoding equals the slow way without a cache, for single prompts and padded batches."""

import pytest
import torch

from course_utils.generation import greedy
from course_utils.transformer import Transformer, TransformerConfig


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
