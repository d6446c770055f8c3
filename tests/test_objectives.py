"""The pretraining objectives: rates, places of the loss, round trips, and agreement with the library's collators."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.objectives import Causal, Masked, SpanCorruption, corrupt, noise_mask, shift_right

SPECIAL = ("<pad>", "<bos>", "<eos>", "<mask>", "<sep>", *(f"<extra_id_{number}>" for number in range(32)))
VOCABULARY = 200
MASKED = Masked(mask=3, vocabulary=VOCABULARY, special=tuple(range(37)))
SPANS = SpanCorruption(sentinels=tuple(range(5, 37)), eos=2)


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of transformers with the special tokens of the course and single words else."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {token: number for number, token in enumerate([*SPECIAL, *(f"w{n}" for n in range(37, VOCABULARY))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="w37"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(SPECIAL))
    names = {"pad": "<pad>", "bos": "<bos>", "eos": "<eos>", "mask": "<mask>", "sep": "<sep>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{name}_token": token for name, token in names.items()}
    )


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def text(length, seed=0):
    return torch.randint(37, VOCABULARY, (length,), generator=seeded(seed))


def within(count, total, probability, sigmas=4.5):
    """Whether a count is what a binomial gives: with 4.5 standard deviations, all but 7 in a million fall inside."""
    return abs(count - total * probability) < sigmas * math.sqrt(total * probability * (1 - probability))


def chi_square(observed, expected):
    """Chi-square over its degrees of freedom, as standard deviations from its mean."""
    degrees = len(expected) - 1
    value = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    return (value - degrees) / math.sqrt(2 * degrees)


def test_causal_labels_are_the_tokens_and_nothing_is_lost_on_padding():
    batch = Causal()([[1, 40, 41], {"input_ids": [1, 42]}, torch.tensor([1, 0, 44, 45])])
    assert batch["input_ids"].tolist() == [[1, 40, 41, 0], [1, 42, 0, 0], [1, 0, 44, 45]]
    assert batch["labels"].tolist() == [[1, 40, 41, -100], [1, 42, -100, -100], [1, 0, 44, 45]]
    assert batch["attention_mask"].tolist() == [[True] * 3 + [False], [True] * 2 + [False] * 2, [True] * 4]


def test_causal_is_the_library_s(tokenizer):
    from transformers import DataCollatorForLanguageModeling

    examples = [text(5, 1).tolist(), text(9, 2).tolist()]
    theirs = DataCollatorForLanguageModeling(tokenizer, mlm=False)(examples)
    ours = Causal()(examples)
    assert all(torch.equal(ours[name], theirs[name]) for name in ("input_ids", "labels"))


def test_masked_rates():
    """15 % chosen; of these 80 % masked, 10 % drawn from the whole vocabulary alike, 10 % left."""
    rows = torch.randint(37, VOCABULARY, (4000, 100), generator=seeded(0))
    batch = MASKED(rows, seeded(1))
    chosen = batch["labels"] != -100
    total, count = rows.numel(), int(chosen.sum())
    assert within(count, total, 0.15)
    shown, wanted = batch["input_ids"][chosen], batch["labels"][chosen]
    drawn = shown[(shown != wanted) & (shown != 3)]
    assert within(int((shown == 3).sum()), count, 0.8 + 0.1 / VOCABULARY)
    assert within(int((shown == wanted).sum()), count, 0.1 + 0.1 / VOCABULARY)
    assert within(len(drawn), count, 0.1 * (1 - 2 / VOCABULARY))
    # A drawn entry that happens to be the mask or the right one is not seen as drawn; the right ones are uniform here.
    seen = torch.bincount(drawn, minlength=VOCABULARY).double()
    weights = torch.where(torch.arange(VOCABULARY) < 37, 1.0, 1 - 1 / (VOCABULARY - 37))
    weights[3] = 0
    keep = [number for number in range(VOCABULARY) if number != 3]
    expected = weights[keep] / weights.sum() * len(drawn)
    assert abs(chi_square(seen[keep].tolist(), expected.tolist())) < 4
    # Chosen independently: the number in a row is binomial, and neighbours are no more often chosen together.
    assert chosen.sum(1).double().var().item() == pytest.approx(100 * 0.15 * 0.85, rel=0.08)
    pairs = int((chosen[:, 1:] & chosen[:, :-1]).sum())
    assert within(pairs, 4000 * 99, 0.15**2)
    assert abs(chi_square(chosen.sum(0).tolist(), [count / 100] * 100)) < 4  # No place is preferred.


def test_masked_is_the_library_s_in_distribution(tokenizer):
    """The same rates of what happens to a token, over the same examples, special tokens and padding included."""
    from transformers import DataCollatorForLanguageModeling

    examples = [[1, *text(20 + n % 30, n).tolist(), 4, *text(5, n).tolist(), 2] for n in range(2000)]
    torch.manual_seed(0)
    theirs = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)([{"input_ids": e} for e in examples])
    ours = Masked.of(tokenizer)(examples, seeded(3))
    assert torch.equal(ours["attention_mask"], theirs["attention_mask"].bool())

    def fates(batch):
        chosen = batch["labels"] != -100
        shown, wanted = batch["input_ids"][chosen], batch["labels"][chosen]
        masked, kept = int((shown == 3).sum()), int((shown == wanted).sum())
        return [masked, kept, len(wanted) - masked - kept, int((~chosen & batch["attention_mask"].bool()).sum())]

    for mine, other in zip(fates(ours), fates(theirs), strict=True):
        assert abs(mine - other) < 4.5 * math.sqrt(mine + other)


def test_masked_leaves_special_tokens_and_padding_alone():
    rows = [[1, *text(n, n).tolist(), 4, *text(3, n).tolist(), 2] for n in range(3, 60)]
    for seed in range(20):
        batch = MASKED(rows, seeded(seed))
        original = Causal()(rows)["input_ids"]
        untouchable = (original < 37) | ~batch["attention_mask"]
        assert torch.equal(batch["input_ids"][untouchable], original[untouchable])
        assert (batch["labels"][untouchable] == -100).all()
        chosen = batch["labels"] != -100
        assert torch.equal(batch["labels"][chosen], original[chosen])
        assert torch.equal(batch["input_ids"][~chosen], original[~chosen])


def test_masked_takes_its_ids_from_a_tokenizer(tokenizer):
    assert Masked.of(tokenizer) == MASKED
    assert Masked.of(tokenizer, rate=0.3).rate == 0.3


def test_masked_shares_are_settings():
    everything = Masked(mask=3, vocabulary=VOCABULARY, rate=1.0, masked=1.0, random=0.0)([[40, 41, 42]])
    assert everything["input_ids"].tolist() == [[3, 3, 3]] and everything["labels"].tolist() == [[40, 41, 42]]
    kept = Masked(mask=3, vocabulary=VOCABULARY, rate=1.0, masked=0.0, random=0.0)([[40, 41, 42]])
    assert kept["input_ids"].tolist() == [[40, 41, 42]] and kept["labels"].tolist() == [[40, 41, 42]]


def test_figure_2_of_the_paper():
    """Thank you <X> me to your party <Y> week. -> <X> for inviting <Y> last <Z>."""
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
    ids = torch.arange(100, 100 + len(words))
    noise = torch.tensor([word in ("for", "inviting", "last") for word in words])
    shown, hidden = corrupt(ids, noise, [5, 6, 7])
    names = {5: "<X>", 6: "<Y>", 7: "<Z>", **dict(zip(ids.tolist(), words, strict=True))}
    assert " ".join(names[token] for token in shown.tolist()) == "Thank you <X> me to your party <Y> week ."
    assert " ".join(names[token] for token in hidden.tolist()) == "<X> for inviting <Y> last <Z>"


def rebuilt(shown, hidden, sentinels):
    """Put the spans back: what a reader of the paper would do by hand."""
    spans, current = {}, None
    for token in hidden:
        if token in sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return [token for piece in shown for token in (spans[piece] if piece in sentinels else [piece])]


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 90), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
    density=st.floats(0.05, 0.5),
    span=st.floats(1, 6),
)
def test_span_corruption_round_trip(lengths, seed, density, span):
    many = tuple(range(5, 5 + 100))
    objective = SpanCorruption(many, eos=2, density=density, span=span)
    rows = [(text(length, seed + n) + 100).tolist() for n, length in enumerate(lengths)]
    batch = objective(rows, seeded(seed))
    for number, row in enumerate(rows):
        shown = batch["input_ids"][number][batch["attention_mask"][number]].tolist()
        hidden = batch["labels"][number][batch["labels"][number] != -100].tolist()
        assert shown.pop() == 2 and hidden.pop() == 2
        assert rebuilt(shown, hidden, many) == row
        used = [token for token in shown if token < 105]
        assert used == list(many[: len(used)]) == [token for token in hidden if token < 105]
        removed = len(hidden) - len(used)
        assert removed == min(max(round(len(row) * density), 1), len(row) - 1)
        assert len(used) == min(max(round(removed / span), 1), removed, len(row) - removed)
    # Nothing but padding follows the end, and the decoder reads the labels one place later.
    assert (batch["input_ids"][~batch["attention_mask"]] == 0).all()
    expected = batch["labels"].clamp(min=0)[:, :-1]
    assert torch.equal(batch["decoder_input_ids"][:, 1:], expected) and (batch["decoder_input_ids"][:, 0] == 0).all()


def test_span_corruption_rates():
    """15 % of the tokens in spans of 3 on average; at 512 tokens as in T5: 77 tokens in 26 spans, 114 targets + eos."""
    masks = torch.stack([noise_mask(512, generator=seeded(seed)) for seed in range(300)])
    starts = masks[:, 1:] & ~masks[:, :-1]
    assert (masks.sum(1) == 77).all() and (starts.sum(1) == 26).all()
    assert not masks[:, 0].any() and masks[:, -1].all()
    batch = SPANS([text(512)], seeded(0))
    assert batch["input_ids"].shape == (1, 512 - 77 + 26 + 1) and batch["labels"].shape == (1, 77 + 26 + 1)


def test_all_ways_to_cut_spans_are_equally_likely():
    """Every mask of 12 tokens with 6 cut out in 3 spans, counted: 100 of them, chi-square."""
    masks = [mask for mask in itertools.product((0, 1), repeat=12) if sum(mask) == 6 and mask[0] == 0 and mask[-1] == 1]
    possible = [mask for mask in masks if sum(a < b for a, b in itertools.pairwise(mask)) == 3]
    assert len(possible) == math.comb(5, 2) ** 2
    seen, draws, generator = dict.fromkeys(possible, 0), 4_000, seeded(0)
    for _ in range(draws):
        seen[tuple(noise_mask(12, 0.5, 2.0, generator).int().tolist())] += 1
    assert abs(chi_square(list(seen.values()), [draws / 100] * 100)) < 4


def test_spans_are_those_of_the_authors_code():
    """Against the published algorithm written out once more: shuffled first-in-segment marks, in plain Python."""

    def segments(items, count, rng):
        marks = [n < count - 1 for n in range(items - 1)]
        rng.shuffle(marks)
        lengths = [1]
        for mark in marks:
            if mark:
                lengths.append(1)
            else:
                lengths[-1] += 1
        return lengths

    rng, generator, length, draws = random.Random(0), seeded(0), 60, 1500
    counts = torch.zeros(2, length)
    for _ in range(draws):
        noisy, count = 9, 3
        text_lengths, noise_lengths = segments(length - noisy, count, rng), segments(noisy, count, rng)
        parts = [[0] * a + [1] * b for a, b in zip(text_lengths, noise_lengths, strict=True)]
        counts[0] += torch.tensor(list(itertools.chain.from_iterable(parts)))
        counts[1] += noise_mask(length, generator=generator)
    difference = (counts[0] - counts[1]).abs()
    assert (difference <= 4.5 * (counts.sum(0)).sqrt()).all()


def test_span_corruption_is_what_t5_is_trained_on(tokenizer):
    """transformers shifts the labels itself where it is not given the decoder's input: the same loss either way."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    config.decoder_start_token_id = 0
    model = T5ForConditionalGeneration(config).eval()
    objective = SpanCorruption.of(tokenizer)
    assert objective == SPANS
    batch = objective([text(30, 1), text(17, 2)], seeded(0))
    alone = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        assert model(**batch).loss.item() == pytest.approx(model(**alone).loss.item(), abs=1e-6)
    assert torch.equal(batch["decoder_input_ids"], model._shift_right(batch["labels"]))


def test_shift_right():
    assert shift_right(torch.tensor([[7, 8, 2], [9, 2, -100]])).tolist() == [[0, 7, 8], [0, 9, 2]]
    assert shift_right(torch.tensor([[7, 8, -100, -100]]), start=1, pad=6).tolist() == [[1, 7, 8, 6]]


@pytest.mark.parametrize("objective", [MASKED, SPANS])
def test_the_same_seed_gives_the_same_batch(objective):
    rows = [text(60, n) for n in range(8)]
    first, again, other = (objective(rows, seeded(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(first[name].shape != other[name].shape or not torch.equal(first[name], other[name]) for name in first)
    torch.manual_seed(5)
    without = objective(rows)
    assert all(torch.equal(first[name], without[name]) for name in first)


@pytest.mark.parametrize("objective", [Causal(), MASKED, SPANS])
@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "there is no example"),
        ([[40, 41], []], "example 1 has 0 tokens"),
        ([[40, 41], [[40], [41]]], "example 1 has the shape"),
        ([[0.5, 0.25]], "example 0 holds torch.float32 values"),
    ],
)
def test_refuses_examples_that_hold_no_tokens(objective, examples, message):
    with pytest.raises(ValueError, match=message):
        objective(examples)


def test_refuses_what_is_too_short_or_too_long():
    for objective in (Causal(), SPANS):
        with pytest.raises(ValueError, match=r"example 1 has 1 tokens: expected a row of 2 or more"):
            objective([[40, 41], [40]])
    with pytest.raises(ValueError, match="example 1 holds special tokens only"):
        MASKED([[1, 40, 2], [1, 2]])
    with pytest.raises(ValueError, match="51 spans need as many sentinels, there are 32"):
        SPANS([text(1024)])
    with pytest.raises(ValueError, match="a text of 1 tokens is too short"):
        noise_mask(1)
    with pytest.raises(ValueError, match="has to begin with a token that stays"):
        corrupt(text(3), torch.tensor([True, False, True]), [5, 6])


def test_refuses_settings_out_of_range(tokenizer):
    for wrong in ({"rate": 0.0}, {"rate": 1.5}, {"masked": 0.95}, {"random": -0.1}):
        with pytest.raises(ValueError, match="expected a rate above 0"):
            Masked(mask=3, vocabulary=VOCABULARY, **wrong)
    with pytest.raises(ValueError, match="mask=300 is no entry"):
        Masked(mask=300, vocabulary=VOCABULARY)
    for wrong in ({"density": 0.0}, {"density": 1.0}, {"span": 0.5}):
        with pytest.raises(ValueError, match="expected a density between 0 and 1"):
            SpanCorruption((5,), eos=2, **wrong)
    from copy import copy

    bare = copy(tokenizer)
    bare.mask_token = bare.eos_token = None
    with pytest.raises(ValueError, match="has no mask token"):
        Masked.of(bare)
    with pytest.raises(ValueError, match="needs the tokens <extra_id_0>"):
        SpanCorruption.of(bare)
