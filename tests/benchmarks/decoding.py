"""Speed of decoding: our cached greedy loop against ``transformers.generate``, and the cache against none.

A part of ``make bench``. Both write the same tokens with the same weights, which is checked before the clock runs.
"""

from collections.abc import Callable

import torch

from course_utils import models
from course_utils.families import from_huggingface
from course_utils.generation import Decoding, _laid_out, generate, greedy

Ratios = Callable[[str, Callable[[], object], Callable[[], object], int], list[float]]
ABOUT = (
    "Ratios of times, ours over theirs: below 1 is faster (1.5 times the tokens per second is 0.67). Each pair was "
    "timed alternately in one run, float32 on the CPU, greedy, no end token; prompts of 24 tokens, where padded "
    "of 9 to 24 with padding on the left; ours is our Transformer with the same weights; median and range of the pairs."
)


def rows(quick: bool, ratios: Ratios) -> list[tuple[str, list[float], str]]:
    """Measure; ``ratios`` times two functions alternately."""
    from transformers import GPT2Config, GPT2LMHeadModel

    chance = torch.Generator().manual_seed(0)
    embedded = models.load("course-decoder", profile="laptop").model
    found = []

    def pair(name, ours, theirs, batch, new, pairs, target, padded=False):
        lengths = torch.arange(9, 25)[:, None] if padded else torch.full((batch, 1), 24)
        mask = (torch.arange(24) >= 24 - lengths).long()
        ids = torch.randint(50, 4000, mask.shape, generator=chance)

        def mine():
            return greedy(ours, ids, new, attention_mask=mask)

        def library():
            return theirs.generate(
                ids, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
            )

        assert torch.equal(library()[:, 24:], mine())
        what = f"batch {batch}{', padded' if padded else ''}, {new} tokens"
        label = f"{name}, {what} / `transformers.generate`"
        found.append((label, ratios(label, mine, library, pairs), target))

    for batch, padded in ((1, False), (16, False), (16, True)):
        pair("course-decoder", embedded, embedded, batch, 128, 5 if quick else 11, "at most 0.67", padded)
    torch.manual_seed(0)
    large = GPT2LMHeadModel(GPT2Config(attn_implementation="sdpa")).eval()
    ours = _laid_out(large)
    for batch in (1, 16):
        pair("GPT-2 small's shape", ours, large, batch, 32 if batch == 1 else 12, 3 if quick else 7, "at most 1.00")
    del large, ours

    plain, ids = from_huggingface(embedded), torch.randint(50, 4000, (1, 16), generator=chance)
    for new in (32, 128) if quick else (32, 64, 128, 256):

        @torch.no_grad()
        def uncached(new=new):
            text = ids
            for _ in range(new):
                text = torch.cat([text, plain(text, logits_to_keep=1).logits[:, -1:].argmax(-1)], dim=1)
            return text

        assert torch.equal(uncached()[:, 16:], greedy(plain, ids, new))
        label = f"with the cache, {new} tokens / without"
        shown = "smaller, the more tokens" if new > 32 else ""
        found.append(
            (label, ratios(label, lambda new=new: greedy(plain, ids, new), uncached, 3 if quick else 5), shown)
        )
    many, drawn = ids.expand(16, -1), Decoding(max_new_tokens=32, temperature=0.8, top_k=50, top_p=0.9)
    label = "drawn with temperature, top-k and top-p, batch 16 / greedy"
    sampled, best = lambda: generate(embedded, many, drawn), lambda: greedy(embedded, many, 32)
    found.append((label, ratios(label, sampled, best, 3 if quick else 7), ""))
    return found
