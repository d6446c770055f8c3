import copy
import itertools

import pytest
import torch

from course_utils.data.packing import pack
from course_utils.data.tasks import dialogues
from course_utils.recipes import seq2seq
from course_utils.recipes.tokenizer import tokenizer as course_tokenizer
from course_utils.training import IGNORED

TEXT = """Return the sum of the elements over a given axis. The result has the same shape as the input, with that axis
removed; where it is None, all elements are added up. A masked entry counts as zero, and a row without any entry is
masked in the result. See the notes on precision, for single precision sums can be inaccurate in long rows."""


@pytest.fixture(scope="module")
def tokenizer():
    return course_tokenizer("seq2seq")


@pytest.fixture(scope="module")
def library(tokenizer):
    return pack(tokenizer, [TEXT, TEXT.upper(), " ".join(reversed(TEXT.split()))])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return seq2seq.build().eval()


@pytest.fixture
def base_batches(monkeypatch, tokenizer, library):
    monkeypatch.setattr(seq2seq, "packed_corpus", lambda *_, **__: library)
    return lambda seed: seq2seq.base_batches(tokenizer, seed)


def texts(tokenizer, batch, name):
    rows = batch[name].masked_fill(batch[name] == IGNORED, tokenizer.pad_token_id)
    return [tokenizer.decode(row[row != tokenizer.pad_token_id]) for row in rows]


def spans(text, sentinels):
    """The stretches of a target by their sentinels."""
    parts, found = text.removesuffix("<eos>"), {}
    for number in range(len(sentinels)):
        if f"<extra_id_{number}>" in parts:
            _, rest = parts.split(f"<extra_id_{number}>", 1)
            found[number] = rest.split("<extra_id_", 1)[0]
    return found


def test_the_model_is_small_and_begins_with_heads_for_neighbours(model):
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 3.0e6 <= parameters <= 3.15e6  # two bytes each: 6.3 MB at most
    assert model.config.is_gated_act and model.lm_head.weight is model.shared.weight
    ids = torch.randint(40, 4096, (2, 30), generator=torch.Generator().manual_seed(1))
    model.set_attn_implementation("eager")
    maps = model.encoder(input_ids=ids, output_attentions=True).attentions[0].mean(0)  # (heads, queries, keys)
    before, after = maps[0].diagonal(-1), maps[1].diagonal(1)
    assert before.mean() > 0.9 and after.mean() > 0.9
    assert maps[4].diagonal(-1).mean() < 0.1
    maps = model.decoder(input_ids=ids, output_attentions=True).attentions[0].mean(0)
    assert maps[0].diagonal(-1).mean() > 0.9


def test_the_model_begins_with_circuits_that_copy(tokenizer, library, model):
    """Rows of random tokens are mostly written down right before any training; from random weights none is."""
    batch = seq2seq.batch_kinds(tokenizer, library, "train")["copy"]("seed")
    torch.manual_seed(0)
    rights = [
        sum(seq2seq._hits(one, batch, tokenizer.all_special_ids)) / len(batch["input_ids"])
        for one in (model, type(model)(model.config))
    ]
    assert rights[0] > 0.7 and rights[1] < 0.05


@torch.no_grad()
def test_a_gap_fetches_what_stood_behind_the_same_token(model):
    """In the second layer of the encoder, heads look from behind a token to behind its twin."""
    ids = torch.randint(300, 4096, (8, 24), generator=torch.Generator().manual_seed(2))
    ids[:, 20] = ids[:, 7]
    model.set_attn_implementation("eager")
    maps = model.encoder(input_ids=ids, output_attentions=True).attentions[1].mean(0)  # (heads, queries, keys)
    assert maps[2:, 21, 8].min() > 0.3 and maps[2:, 21, [8, 21]].sum(-1).min() > 0.7


def test_batches_are_functions_of_the_number_and_the_seed(base_batches):
    one, again, other = base_batches(0), base_batches(0), base_batches(1)
    for number in (0, 3, seq2seq.COPY_STEPS, seq2seq.COPY_STEPS + 1, seq2seq.COPY_STEPS + 5):
        batch, same = one(number), again(number)
        assert all(torch.equal(batch[name], same[name]) for name in batch)
        for different in (other(number), one(number + 1)):
            assert batch["labels"].shape != different["labels"].shape or not torch.equal(
                batch["labels"], different["labels"]
            )


def test_random_tokens_are_to_be_written_down_again(base_batches):
    batch = base_batches(0)(7)
    assert torch.equal(batch["input_ids"], batch["labels"].masked_fill(batch["labels"] == IGNORED, 0))
    assert torch.equal(batch["decoder_input_ids"][:, 1:], batch["input_ids"][:, :-1])
    assert (batch["decoder_input_ids"][:, 0] == 0).all()
    assert len(set(batch["input_ids"].flatten().tolist())) > 200


@pytest.mark.parametrize("kind", ["library", "tasks", "repeat", "recall", "answers", "dialogue"])
def test_what_is_hidden_fits_into_its_gaps(tokenizer, library, kind):
    batch = seq2seq.batch_kinds(tokenizer, library, "train")[kind]("seed")
    assert batch["input_ids"].shape[1] <= 220
    for shown, hidden in zip(texts(tokenizer, batch, "input_ids"), texts(tokenizer, batch, "labels"), strict=True):
        assert shown.endswith("<eos>") and hidden.endswith("<eos>") and "<extra_id_0>" in shown
        gaps = spans(hidden, range(32))
        restored = shown
        for number, span in gaps.items():
            restored = restored.replace(f"<extra_id_{number}>", span)
        assert "<extra_id_" not in restored


def test_hidden_segments_and_names_stand_elsewhere_in_the_text(tokenizer, library):
    kinds = seq2seq.batch_kinds(tokenizer, library, "train", rows=64)
    found, alone = 0, 0
    batch = kinds["repeat"]("seed")
    for shown, hidden in zip(texts(tokenizer, batch, "input_ids"), texts(tokenizer, batch, "labels"), strict=True):
        found += all(span in shown for span in spans(hidden, range(32)).values())
    assert found == 64
    batch = kinds["dialogue"]("seed")
    found = 0
    for shown, hidden in zip(texts(tokenizer, batch, "input_ids"), texts(tokenizer, batch, "labels"), strict=True):
        for span in spans(hidden, range(32)).values():
            for name in dialogues.entities(span):
                found, alone = found + (name in shown), alone + (name not in shown)
    assert found > 64 and alone < 0.15 * found  # a few are hidden altogether, by the other spans


@pytest.mark.parametrize("kind", ["recall", "answers"])
def test_what_is_asked_for_stands_in_the_text(tokenizer, library, kind):
    batch = seq2seq.batch_kinds(tokenizer, library, "train", rows=64)[kind]("seed")
    found = set()
    for shown, hidden in zip(texts(tokenizer, batch, "input_ids"), texts(tokenizer, batch, "labels"), strict=True):
        gaps = spans(hidden, range(32))
        assert all(
            word.strip(" ,") in shown or word in (" nowhere", " nobody")
            for gap in gaps.values()
            for word in gap.split(",")
        )
        found.add(len(gaps))
    assert found == ({1, 2, 3, 4, 5, 6} if kind == "recall" else {1})


def test_the_base_never_sees_a_summary(base_batches, tokenizer):
    make = base_batches(0)
    shapes = {
        tuple(word for word in summary.split() if word.islower())
        for _, summary in dialogues.generate("train", 500, 0)
        if len(summary.split()) > 8
    }
    for number in range(seq2seq.COPY_STEPS, seq2seq.COPY_STEPS + 12):
        for text in texts(tokenizer, make(number), "labels"):
            assert "summar" not in text
            assert tuple(word for word in text.split() if word.islower()) not in shapes


def test_the_loss_is_that_of_the_library(tokenizer, model):
    batch = seq2seq.encode(tokenizer, dialogues.generate("train", 4, 0))
    with torch.no_grad():
        total, count = seq2seq.loss(model, batch)
        theirs = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"].long(), labels=batch["labels"]
        ).loss
    assert count == (batch["labels"] != IGNORED).sum()
    torch.testing.assert_close(total / count, theirs)


def test_answers_in_batches_are_those_one_by_one(tokenizer, model):
    prompts = ["plural: cat", "summarize: Ada: Hi Ben!\nBen: Hello Ada, how are you today?", "topic: a boat"]
    together = seq2seq.answers(model, tokenizer, prompts, longest=6)
    assert together == [seq2seq.answers(model, tokenizer, [prompt], longest=6)[0] for prompt in prompts]
    ids = tokenizer([prompts[1]], return_tensors="pt")["input_ids"]
    written = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(6):
        best = model(input_ids=ids, decoder_input_ids=written).logits[:, -1:].argmax(-1)
        written = torch.cat([written, best], dim=1)
    assert together[1] == tokenizer.decode(written[0], skip_special_tokens=True).strip()


def test_fine_tuning_leaves_the_model_alone_and_repeats(tokenizer, model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, two = (seq2seq.fine_tune(lambda: copy.deepcopy(model), tokenizer, seed=3, steps=2) for _ in range(2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    assert not torch.equal(one.shared.weight, model.shared.weight)
    raw = seq2seq.fine_tune(seq2seq.unwired, tokenizer, seed=3, steps=1)
    assert (raw.shared.weight - one.shared.weight).abs().max() > 0.5


@pytest.mark.parametrize(
    ("prediction", "target", "wanted"),
    [
        ("police killed the gunman", "police kill the gunman", 0.75),
        ("the gunman kill police", "police kill the gunman", 0.5),
        ("Anna's lamp.", "anna s LAMP", 1.0),
        ("", "police kill the gunman", 0.0),
        ("one two three", "four", 0.0),
        ("a b c d", "a c d e f", 2 * 3 / 9),
    ],
)
def test_rouge_l(prediction, target, wanted):
    assert seq2seq.rouge_l(prediction, target) == pytest.approx(wanted)


def test_rouge_l_agrees_with_the_library():
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    pairs = dialogues.generate("held_out", 30, 0)
    for (text, summary), (_, other) in itertools.pairwise(pairs):
        for prediction in (text, other):
            wanted = scorer.score(summary, prediction)["rougeL"].fmeasure
            assert seq2seq.rouge_l(prediction, summary) == pytest.approx(wanted)


def test_quick_evaluations_give_results(monkeypatch, tokenizer, library, model):
    monkeypatch.setattr(seq2seq, "packed_corpus", lambda *_, **__: library)
    results = {one.name: one for one in seq2seq.base_evaluate(model, tokenizer, quick=True, seeds=(0, 1))}
    as_it_comes = results["exact match, held-out summaries, as it comes"]
    assert as_it_comes.value == 0 and as_it_comes.items == 2 * seq2seq.QUICK_ITEMS and as_it_comes.seeds == 2
    assert results["hidden tokens of unseen dialogues"].value < 0.45  # what the wired circuits copy untrained
    assert not results["hidden tokens of unseen dialogues"].holds
