"""The encoder's recipe: its batches, its loss, and what its evaluation measures."""

from types import SimpleNamespace

import pytest
import torch

from course_utils import training
from course_utils.data import tasks
from course_utils.data.packing import pack, packed_corpus
from course_utils.recipes import encoder
from course_utils.recipes.tokenizer import tokenizer as course_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return course_tokenizer("encoder")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return encoder.build().eval()


@pytest.fixture
def small(monkeypatch):
    """Small data in place of the whole."""
    monkeypatch.setattr(
        encoder, "packed_corpus", lambda tokenizer, size, split: packed_corpus(tokenizer, "small", split)
    )
    monkeypatch.setattr(encoder, "TEXTS", {name: 200 for name in encoder.TEXTS})


def test_the_model_is_a_bert_of_2_to_3_million_parameters(model):
    assert 2e6 < sum(parameter.numel() for parameter in model.parameters()) < 3e6
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    with torch.no_grad():
        assert model(torch.ones(1, 512, dtype=torch.long)).logits.shape == (1, 512, 4096)


def test_batches_are_a_function_of_their_number(tokenizer, small):
    made, again = encoder.batches(tokenizer, 0), encoder.batches(tokenizer, 0)
    shapes = {3504: (2, 512), 0: (64, 16), 799: (64, 16), 800: (32, 32), 3499: (16, 64), 3500: (8, 128)}
    for number, shape in shapes.items():
        one, other = made(number), again(number)
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert one["input_ids"].shape == one["labels"].shape == shape
        assert (one["input_ids"][:, 0] == tokenizer.bos_token_id).all()
        assert (one["input_ids"][:, -1] == tokenizer.eos_token_id).all()
    labels = torch.cat([made(number)["labels"].flatten() for number in range(40)])
    assert (labels != -100).float().mean().item() == pytest.approx(0.15 * 14 / 16, abs=0.01)
    assert not torch.isin(labels, torch.tensor(tokenizer.all_special_ids)).any()
    assert not torch.equal(made(0)["input_ids"], encoder.batches(tokenizer, 1)(0)["input_ids"])


def test_the_loss_is_the_library_s(tokenizer, model, small):
    batch = encoder.batches(tokenizer, 0)(0)
    with torch.no_grad():
        total, count = encoder.masked_loss(model, batch)
        assert (total / count).item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    assert int(count) == int((batch["labels"] != -100).sum())


def test_a_short_training_learns(tokenizer, small):
    torch.manual_seed(0)
    history = training.fit(
        encoder.build(), encoder.batches(tokenizer, 0), steps=15, loss=encoder.masked_loss, progress=False
    )
    assert history.losses[0] == pytest.approx(8.3, abs=0.3)
    assert sum(history.losses[-3:]) / 3 < history.losses[0] - 0.7


def test_labels_of_entities_spell_the_names(tokenizer):
    examples = encoder.labelled_texts(tokenizer, "entities", "train", 50, 0)
    for example, (_, target) in zip(examples, tasks.TASKS["entities"].generate("train", 50, 0), strict=True):
        ids, labels = torch.tensor(example["input_ids"]), torch.tensor(example["labels"])
        assert labels[0] == labels[-1] == -100 and (labels[1:-1] >= 0).all()
        spelled = {kind: tokenizer.decode(ids[labels == 1 + n]) for n, kind in enumerate(encoder.ENTITIES)}
        for kind in encoder.ENTITIES:
            names = [entry.split(": ")[1] for entry in target.split("; ") if entry.startswith(kind)]
            assert spelled[kind].replace(" ", "") == "".join(names).replace(" ", "")


def test_labels_of_sentiment(tokenizer):
    examples = encoder.labelled_texts(tokenizer, "sentiment", "held_out", 30, 1)
    for example, (text, target) in zip(examples, tasks.TASKS["sentiment"].generate("held_out", 30, 1), strict=True):
        assert example["input_ids"] == tokenizer(text).input_ids
        assert example["labels"] == ("negative", "positive").index(target)


def test_fill_mask_of_a_model_that_guesses_the_most_frequent_token(tokenizer):
    """Its accuracy is the unigram's, its ratio 1; nothing but real tokens is asked for."""
    row = pack(tokenizer, [text for text, _ in tasks.TASKS["sentiment"].generate("held_out", 100, 0)])
    asked = []

    def states(ids):
        asked.append(ids)
        return SimpleNamespace(last_hidden_state=torch.zeros(*ids.shape, 1))

    def guess(hidden):
        return torch.nn.functional.one_hot(torch.bincount(row).argmax(), 4096).expand(len(hidden), -1)

    fake = SimpleNamespace(bert=states, cls=guess, device=torch.device("cpu"))
    accuracy, unigram, times = encoder.fill_mask(fake, tokenizer, "x", row, (0, 1), 10)
    assert accuracy.value == unigram.value > 0.03 and times.value == pytest.approx(1) and not times.holds
    assert len(asked) == 20 == times.items and all((ids == tokenizer.mask_token_id).any() for ids in asked)


@pytest.mark.parametrize("learn", [encoder.probe, lambda *args: encoder.fine_tune(*args, steps=25)])
def test_what_learns_from_labels_learns_and_leaves_the_model_alone(model, learn):
    """Texts are told apart by one token, tokens by their ids."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = torch.randint(100, 200, (120, 6), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [{"input_ids": [1, 50 + n % 2, *row[: 3 + n % 3], 2], "labels": n % 2} for n, row in enumerate(rows)]
    for pooled in (True, False):
        examples = texts
        if not pooled:
            examples = [
                {**one, "labels": [-100, 1 + one["labels"], *[0] * (len(one["input_ids"]) - 3), -100]} for one in texts
            ]
        scores = encoder._scores(learn(model, examples[:80], 0), examples[80:])
        assert len(scores) == 40 and sum(scores) / 40 > 0.95
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_scores_are_f1_over_the_tokens_of_names():
    class Fixed(encoder.Classifier):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.head, self.pooled = torch.nn.Linear(1, 1), False

        def forward(self, input_ids, attention_mask=None):
            return torch.nn.functional.one_hot(torch.tensor([[0, 1, 2, 0, 3, 0]]), 4).float()

    # Found 1, 2, 3 at places 1, 2, 4; wanted 1, 1, 0, 3 at places 1 to 4: two hits, three found, three wanted.
    example = {"input_ids": [1, 50, 51, 52, 53, 2], "labels": [-100, 1, 1, 0, 3, -100]}
    assert encoder._scores(Fixed(), [example]) == [pytest.approx(4 / 6)]


def test_the_shipped_model_fills_masks_and_its_states_hold_entities(tokenizer):
    """A quick evaluation: the bounds hold on a small part too."""
    from course_utils import models

    results = encoder.evaluate(models.load("course-encoder", profile="laptop").model, tokenizer, quick=True)
    named = {result.name: result for result in results}
    assert len(named) == len(results) == 12 and all(result.holds for result in results)
    assert named["fill-mask on documentation: times better than the most frequent token"].value > 3
    assert named["entities, linear probe: gap between the intervals"].value > 0
