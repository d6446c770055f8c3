"""The packed corpus: lossless, without special tokens inside, kept on disk, and windows as a function of a text."""

import pytest
import torch

from course_utils.data import library_docs, packing
from course_utils.data.packing import pack, packed_corpus, text_starts, windows

TEXTS = ["The first text.", "Tokens such as <mask> and <eos> are plain here.", "größer\n  als 3"]


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<eos>", "<mask>"], initial_alphabet=alphabet
    )
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", mask_token="<mask>")


def test_texts_come_back_whole_and_only_their_ends_are_special(tokenizer):
    row = pack(tokenizer, TEXTS)
    ends = (row == 1).nonzero()[:, 0].tolist()
    assert row.dtype == torch.int32 and len(ends) == 3 and ends[-1] == len(row) - 1
    assert not torch.isin(row, torch.tensor([0, 2])).any()
    parts = [row[start:end] for start, end in zip(text_starts(row, 1).tolist(), ends, strict=True)]
    assert [tokenizer.decode(part) for part in parts] == TEXTS


def test_packing_leaves_the_tokenizer_as_it_was(tokenizer):
    tokenizer(TEXTS, truncation=True, max_length=4, padding=True)  # leaves its settings in the tokenizer's fast part
    state = tokenizer.backend_tokenizer.to_str()
    assert torch.equal(pack(tokenizer, TEXTS), torch.cat([pack(tokenizer, [text]) for text in TEXTS]))
    assert tokenizer.backend_tokenizer.to_str() == state
    assert tokenizer("<mask>", add_special_tokens=False).input_ids == [2]


def test_the_corpus_is_kept_and_made_again_where_damaged(tokenizer, tmp_path, monkeypatch):
    library_docs("small", progress=False)  # in the cache of all tests
    monkeypatch.setattr(packing, "cache_folder", lambda: tmp_path)
    first = packed_corpus(tokenizer, "small", "validation", progress=False)
    assert torch.equal(first, pack(tokenizer, library_docs("small", "validation", progress=False)["text"]))
    [path] = (tmp_path / "packed").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(packing, "pack", None)  # would fail if it were tokenized again
        assert torch.equal(packed_corpus(tokenizer, "small", "validation", progress=False), first)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert torch.equal(packed_corpus(tokenizer, "small", "validation", progress=False), first)
    other = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<mask>")
    packed_corpus(other, "small", "validation", progress=False)
    assert len(list((tmp_path / "packed").iterdir())) == 2


def test_windows_are_cut_from_the_row_by_the_seed_alone():
    row = torch.arange(1000, 1100, dtype=torch.int32)
    cut = windows(row, 500, 7, "a 1")
    assert cut.dtype == torch.int64 and torch.equal(cut, windows(row, 500, 7, "a 1"))
    assert not torch.equal(cut, windows(row, 500, 7, "a 2"))
    assert (cut.diff(dim=1) == 1).all()
    assert set(cut[:, 0].tolist()) <= set(range(1000, 1094)) and len(set(cut[:, 0].tolist())) > 80
    starts = torch.tensor([0, 10, 93, 94, 99])
    assert set(windows(row, 200, 7, "b", starts)[:, 0].tolist()) == {1000, 1010, 1093}


def test_refuses_rows_without_room_and_slow_tokenizers(tokenizer):
    with pytest.raises(ValueError, match="a row of 5 tokens has no room for windows of 6"):
        windows(torch.arange(5), 1, 6, "a")
    with pytest.raises(ValueError, match="a row of 9 tokens has no room for windows of 6"):
        windows(torch.arange(9), 1, 6, "a", torch.tensor([4, 8]))
    with pytest.raises(ValueError, match="expected a fast tokenizer of transformers with an eos_token, got str"):
        pack("tokenizer", TEXTS)
