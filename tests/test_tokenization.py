"""Byte-pair encoding: lossless, equal to the ``tokenizers`` library, and clear about bad input."""

import json
import random
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.tokenization import (
    BytePairEncoding,
    byte_alphabet,
    count_pairs,
    merge_pair,
    spell,
    split_pieces,
)

TEXTS = [
    "The cat sees the other cat, and they'll sleep. It's 2 o'clock (14:00)!",
    "def attention(query, key, value):\n    return softmax(query @ key.T) @ value\n\n\n",
    "Größe, naïve café, ελληνικά, русский, 中文字符, emoji 🙂🙃, tabs\t\tand   spaces  ",
    "aaaa aaaaa aaaaaa abababab",
]


@pytest.fixture(scope="module")
def tokenizer():
    return BytePairEncoding.train(TEXTS * 3, 340, ["<end>", "<pad>"], progress=False)


def library(texts, size, special=()):
    """The library's tokenizer, its merges and its vocabulary."""
    tokenizers = pytest.importorskip("tokenizers")
    found = tokenizers.Tokenizer(tokenizers.models.BPE())
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(texts, trainer)
    model = json.loads(found.to_str())["model"]
    return found, [tuple(merge) for merge in model["merges"]], model["vocab"]


def test_alphabet_is_gpt2s():
    alphabet = byte_alphabet()
    assert sorted(alphabet) == list(range(256))
    assert len(set(alphabet.values())) == 256
    assert (alphabet[ord(" ")], alphabet[ord("\n")], alphabet[ord("a")], alphabet[255]) == ("Ġ", "Ċ", "a", "ÿ")
    assert list(alphabet.values()) == sorted(alphabet.values())


@given(st.text(max_size=200))
def test_pieces_join_to_the_text(text):
    assert "".join(split_pieces(text)) == text
    assert "".join(spell(text)).count("Ġ") == text.encode().count(b" ")


def test_pieces_are_gpt2s():
    assert split_pieces("they'll see  12 rows!\n") == ["they", "'ll", " see", " ", " 12", " rows", "!", "\n"]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["<end>", "<pad>", "<en", "d>", " ", "cat", "é"]), max_size=12))
def test_special_tokens_are_one_id_and_come_back(tokenizer, parts):
    text = "".join(parts)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.vocabulary["<end>"]) == text.count("<end>")


@pytest.mark.parametrize("special", [(), ("<end>",), ("<a>", "<a> b", "[MASK]")])
@pytest.mark.parametrize("size", [270, 300, 420, 5000])
def test_same_merges_and_ids_as_the_library(size, special):
    found, merges, vocabulary = library(TEXTS * 2, size, special)
    ours = BytePairEncoding.train(TEXTS * 2, size, special, progress=False)
    assert ours.merges == merges
    assert ours.vocabulary == vocabulary
    for text in (*TEXTS, "unseen words: Zürich <a> b<end>!", "  \n \t x", ""):
        encoding = found.encode(text)
        assert ours.encode(text) == encoding.ids
        assert ours.tokens(text) == encoding.tokens
        assert ours.decode(encoding.ids) == text


def test_same_as_the_library_on_random_texts():
    for seed in range(60):
        chance = random.Random(seed)
        letters = chance.choice(["ab ", "aab", "abc \n", "é日1a !"])
        texts = ["".join(chance.choices(letters, k=chance.randint(1, 200))) for _ in range(3)]
        size = 257 + chance.randint(0, 300)
        found, merges, vocabulary = library(texts, size)
        ours = BytePairEncoding.train(texts, size, progress=False)
        assert (ours.merges, ours.vocabulary) == (merges, vocabulary), f"seed {seed}"
        probe = "".join(chance.choices(letters + "z", k=200))
        assert ours.encode(probe) == found.encode(probe).ids, f"seed {seed}"


def test_readable_algorithm_gives_the_same_merges():
    """The fast training equals the loop that a learner writes: count all pairs, merge the most frequent, repeat."""
    texts = TEXTS[:2] * 2
    tokenizer = BytePairEncoding.train(texts, 300, progress=False)
    vocabulary = {token: number for number, token in enumerate(byte_alphabet().values())}
    corpus = {}
    for text in texts:
        for piece in split_pieces(text):
            corpus[tuple(spell(piece))] = corpus.get(tuple(spell(piece)), 0) + 1
    merges = []
    while len(vocabulary) < 300:
        counts = count_pairs(corpus)
        pair = min(counts, key=lambda pair: (-counts[pair], vocabulary[pair[0]], vocabulary[pair[1]]))
        merged = "".join(pair)
        vocabulary.setdefault(merged, len(vocabulary))
        merges.append(pair)
        corpus = {tuple(merge_pair(symbols, pair, merged)): times for symbols, times in corpus.items()}
    assert tokenizer.merges == merges


def test_count_pairs_weighs_words():
    words = {("l", "o", "w"): 5, ("l", "o"): 2, ("w",): 9}
    assert count_pairs(words) == {("l", "o"): 7, ("o", "w"): 5}


def test_merge_pair_by_hand():
    assert merge_pair("aaab", ("a", "a"), "aa") == ["aa", "a", "b"]
    assert merge_pair(["ab", "c"], ("a", "bc"), "abc") == ["ab", "c"]
    assert merge_pair([1, 2, 1, 2], (1, 2), 3) == [3, 3]
    assert merge_pair([], (1, 2), 3) == []


def test_training_ends_where_the_text_ends():
    tokenizer = BytePairEncoding.train(["ab"], 1000, progress=False)
    assert tokenizer.merges == [("a", "b")]
    assert len(tokenizer) == 257
    assert len(BytePairEncoding.train([], 300, progress=False)) == 256


def test_merges_are_needed_in_their_order(tokenizer):
    again = BytePairEncoding(tokenizer.merges, tokenizer.special_tokens)
    assert again == tokenizer
    assert again != BytePairEncoding(tokenizer.merges[:-1], tokenizer.special_tokens)
    assert BytePairEncoding().encode("aé") == [64, 127, 102]


def test_more_merges_never_mean_more_tokens_here(tokenizer):
    lengths = [len(BytePairEncoding(tokenizer.merges[:count]).encode(TEXTS[1])) for count in (0, 20, 40, 82)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < lengths[0]


def test_long_pieces_take_no_quadratic_time(tokenizer):
    text = "a" * 30_000 + "b" * 30_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_save_and_load(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("old")
    tokenizer.save(path)
    loaded = BytePairEncoding.load(path)
    assert loaded == tokenizer
    assert loaded.vocabulary == tokenizer.vocabulary
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_failed_save_leaves_the_old_file(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError, match="disk full"):
        tokenizer.save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_half_a_character_decodes_to_a_mark(tokenizer):
    assert tokenizer.decode(BytePairEncoding().encode("é")[:1]) != "é"
    assert BytePairEncoding().decode(BytePairEncoding().encode("é")[:1]) == "�"


def test_decode_takes_tensors(tokenizer):
    ids = tokenizer.encode("the cat")
    assert tokenizer.decode(torch.tensor(ids)) == "the cat"


def test_import_is_light():
    code = "import sys, course_utils.tokenization; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_refuses_lone_surrogates(tokenizer, text):
    with pytest.raises(ValueError, match="lone surrogate U\\+D"):
        tokenizer.encode(text)
    with pytest.raises(ValueError, match="lone surrogate"):
        BytePairEncoding.train([text], 300, progress=False)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t.encode(3), TypeError, "expected text"),
        (lambda t: t.encode(None), TypeError, "expected text"),
        (lambda t: t.decode([len(t)]), ValueError, "not in the vocabulary"),
        (lambda t: t.decode([-1]), ValueError, "not in the vocabulary"),
        (lambda t: t.decode([1.5]), TypeError, "float"),
        (lambda t: BytePairEncoding.train("one text", 300), TypeError, "pass a list"),
        (lambda t: BytePairEncoding.train([b"bytes"], 300, progress=False), TypeError, "expected text"),
        (lambda t: BytePairEncoding.train(["a"], 256, ["<end>"]), ValueError, "ask for 257 or more"),
        (lambda t: BytePairEncoding.train(["a"], 300.5), TypeError, "float"),
        (lambda t: BytePairEncoding([("x", "yz")]), ValueError, "no earlier merge"),
        (lambda t: BytePairEncoding((), ["<a>", "<a>"]), ValueError, "repeated"),
        (lambda t: BytePairEncoding((), [""]), ValueError, "empty"),
        (lambda t: BytePairEncoding((), ["a"]), ValueError, "could be the spelling"),
        (lambda t: BytePairEncoding((), ["Ġx"]), ValueError, "could be the spelling"),
        (lambda t: BytePairEncoding((), [3]), TypeError, "int"),
        (lambda t: BytePairEncoding((), "<end>"), TypeError, "pass a list"),
        (lambda t: hash(t), TypeError, "unhashable"),
    ],
)
def test_refuses_bad_input(tokenizer, call, error, message):
    with pytest.raises(error, match=message):
        call(tokenizer)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": 1}',
        '{"format": 9, "merges": [], "special_tokens": []}',
        '{"format": 1, "merges": [1]}',
    ],
)
def test_refuses_other_files(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"x\.json is not a tokenizer"):
        BytePairEncoding.load(path)
    with pytest.raises(FileNotFoundError):
        BytePairEncoding.load(tmp_path / "none.json")
