"""Texts put together into one long row of token ids, from which training batches are cut."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import torch
from jaxtyping import Int
from torch import Tensor

from course_utils import checkpoints
from course_utils.data.corpus import library_docs
from course_utils.environment import cache_folder

FORMAT = 1
"""Raised whenever the rules below change, so that older caches are left aside."""


def packed_corpus(
    tokenizer: Any, size: str = "full", split: str = "train", progress: bool = True
) -> Int[Tensor, " tokens"]:
    """Return the library corpus as one row of token ids, each text followed by the end-of-text token.

    The row is kept under :func:`course_utils.environment.cache_folder`, named after the tokenizer and the corpus. It is
    made again where either has changed or the file is damaged, and several processes may ask for it at once.

    Args:
        tokenizer: a fast tokenizer of ``transformers`` with an ``eos_token``.
        size: ``small``, ``medium`` or ``full``, as for :func:`course_utils.data.corpus.library_docs`.
        split: ``train`` or ``validation``.
        progress: show a progress bar while tokenizing.

    Returns:
        Token ids, int32, in the order of the corpus.

    Raises:
        ValueError: there is no such size or split, or the tokenizer is not a fast one with an end-of-text token.
    """
    dataset = library_docs(size, split, progress=progress)
    plain = _plain(tokenizer)
    corpus = Path(dataset.cache_files[0]["filename"]).stem
    key = json.dumps([FORMAT, corpus, split, tokenizer.eos_token_id, plain.to_str()])
    path = cache_folder() / "packed" / f"{size}-{split}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    if path.exists():
        try:
            return checkpoints.load(path)[0]["tokens"]
        except ValueError:
            pass  # Damaged: made again below.
    tokens = pack(tokenizer, dataset["text"], progress=progress)
    mine = path.with_name(f"{path.name}.{os.getpid()}")
    checkpoints.save(mine, {"tokens": tokens}, {})
    os.replace(mine, path)
    return tokens


def pack(tokenizer: Any, texts: Iterable[str], progress: bool = False) -> Int[Tensor, " tokens"]:
    """Tokenize texts and put them one after the other, each followed by the end-of-text token.

    What looks like a special token in a text (the documentation of a tokenizer speaks of ``<mask>``) is read as plain
    text, so the only special token in the result is the end of text.

    Args:
        tokenizer: a fast tokenizer of ``transformers`` with an ``eos_token``.
        texts: the texts.
        progress: show a progress bar.

    Returns:
        Token ids, int32.

    Raises:
        ValueError: the tokenizer is not a fast one with an end-of-text token.
    """
    from tqdm.auto import tqdm

    plain, end = _plain(tokenizer), tokenizer.eos_token_id
    texts = list(texts)
    row: list[numpy.ndarray] = [numpy.zeros(0, dtype=numpy.int32)]
    with tqdm(total=len(texts), desc="tokenizing", unit=" texts", disable=not progress, leave=False) as bar:
        for start in range(0, len(texts), 1000):
            part = plain.encode_batch_fast(texts[start : start + 1000], add_special_tokens=False)
            row += [numpy.array([*encoding.ids, end], dtype=numpy.int32) for encoding in part]
            bar.update(len(part))
    return torch.from_numpy(numpy.concatenate(row))


def windows(
    row: Int[Tensor, " tokens"], count: int, length: int, seed: str, starts: Int[Tensor, " places"] | None = None
) -> Int[Tensor, "count length"]:
    """Cut windows at random places out of a row of tokens: a training batch as a function of its number.

    Args:
        row: token ids.
        count: number of windows.
        length: tokens a window.
        seed: any text, for example ``f"{seed} {number}"``: the same text gives the same windows.
        starts: places at which a window may begin, such as :func:`text_starts`; by default any.

    Returns:
        Token ids, int64.

    Raises:
        ValueError: the row has no room for a window.
    """
    room = len(row) - length + 1
    if starts is not None:
        starts = starts[starts < room]
    places = max(room, 0) if starts is None else len(starts)
    if not places:
        raise ValueError(
            f"a row of {len(row)} tokens has no room for windows of {length}; take shorter ones or more text"
        )
    drawn = torch.randint(places, (count,), generator=generator(seed))
    begin = drawn if starts is None else starts[drawn]
    return row[begin[:, None] + torch.arange(length)].long()


def text_starts(row: Int[Tensor, " tokens"], end: int) -> Int[Tensor, " texts"]:
    """Return the places at which the texts of a packed row begin.

    Args:
        row: token ids, each text followed by the end-of-text token.
        end: id of that token.
    """
    return torch.cat([torch.tensor([0]), (row[:-1] == end).nonzero()[:, 0] + 1])


def generator(seed: str) -> torch.Generator:
    """Return a torch generator (on the CPU) seeded by a text: the same on every machine and in every process."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1)


def _plain(tokenizer: Any) -> Any:
    """A copy of the tokenizer's fast part that adds nothing, cuts nothing and sees no special tokens in a text."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or getattr(tokenizer, "eos_token_id", None) is None:
        raise ValueError(
            f"expected a fast tokenizer of transformers with an eos_token, got {type(tokenizer).__name__}; "
            "load it with AutoTokenizer.from_pretrained"
        )
    parts = json.loads(backend.to_str()) | dict.fromkeys(("post_processor", "padding", "truncation"))
    plain = Tokenizer.from_str(json.dumps(parts))
    plain.encode_special_tokens = True
    return plain
