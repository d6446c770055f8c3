"""Associative recall: the sequences are what they say, the curriculum moves on, the scores count what they should."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from course_utils.data.tasks.recall import (
    RecallCurriculum,
    recall_accuracy,
    recall_batch,
    recall_by_distance,
    recall_dataset,
    vocabulary_size,
)
from course_utils.training import aligned_loss, fit


@given(
    st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31), st.integers(6, 9), st.integers(1, 4), st.integers(0, 7)
)
def test_every_answer_is_the_value_of_its_key(pairs, batch_size, seed, keys, values, gap):
    batch = recall_batch(pairs, batch_size, seed, keys=keys, values=values, gap=gap)
    ids, labels, distances = batch["input_ids"], batch["labels"], batch["distances"]
    assert ids.shape == labels.shape == distances.shape == (batch_size, 3 * pairs + 1 + gap)
    for row in range(batch_size):
        shown = dict(zip(ids[row, 0 : 2 * pairs : 2].tolist(), ids[row, 1 : 2 * pairs : 2].tolist(), strict=True))
        assert len(shown) == pairs and max(shown) < keys
        assert all(keys <= value < keys + values for value in shown.values())
        middle = slice(2 * pairs, 2 * pairs + 1 + gap)
        assert (ids[row, middle] == vocabulary_size(keys, values) - 1).all()
        asked = range(2 * pairs + 1 + gap, ids.shape[1])
        assert sorted(ids[row, list(asked)].tolist()) == sorted(shown)
        for place in asked:
            key = int(ids[row, place])
            assert labels[row, place] == shown[key]
            answer = place - int(distances[row, place])
            assert ids[row, answer] == shown[key] and ids[row, answer - 1] == key
        assert (labels[row, : asked.start] == -100).all() and not distances[row, : asked.start].any()


def test_draws_are_seeded_and_even():
    first, again, other = (recall_batch(4, 500, seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["input_ids"], other["input_ids"])
    assert torch.bincount(first["labels"][first["labels"] >= 0]).max() < 1.3 * 2000 / 8
    state = torch.get_rng_state()
    recall_batch(2, 3, 0)
    assert torch.equal(state, torch.get_rng_state())


def test_the_data_set_is_the_batch():
    data = recall_dataset(3, 10, seed=5, keys=6)
    assert set(data.column_names) == {"input_ids", "labels", "distances"}
    assert data["input_ids"][:] == recall_batch(3, 10, 5, keys=6)["input_ids"].tolist()


def test_the_curriculum_moves_on_only_when_a_level_is_mastered():
    curriculum = RecallCurriculum([1, 2, 4], batch_size=3, seed=1, mastered=0.2, stop=True)
    model = nn.Identity()
    losses = [2.0, *[0.1] * 40]
    steps = []
    for step, loss in enumerate(losses, 1):
        assert curriculum(step)["input_ids"].shape == (3, 3 * curriculum.pairs + 1)
        steps.append(curriculum.pairs)
        if curriculum.on_step(step, model, loss):
            break
    # 2 * 0.9**n + 0.1 * (1 - 0.9**n) < 0.2 from n = 28 on, then one step for each level
    assert curriculum.passed == [29, 30, 31] and steps == [1] * 29 + [2, 4]
    assert torch.equal(curriculum(7)["input_ids"], curriculum(7)["input_ids"])
    without_stop = RecallCurriculum([1], mastered=0.2)
    assert without_stop.on_step(1, model, 0.0) is False and without_stop.passed == [1]
    assert without_stop.on_step(2, model, 0.0) is False and without_stop.passed == [1]


def test_it_trains_with_fit():
    model = nn.Sequential(nn.Embedding(vocabulary_size(8, 8), 9), nn.Linear(9, vocabulary_size(8, 8)))
    model.forward = lambda input_ids: model[1](model[0](input_ids))
    curriculum = RecallCurriculum([1, 2], batch_size=4)
    history = fit(model, curriculum, on_step=curriculum.on_step, loss=aligned_loss, steps=3, progress=False)
    assert history.steps == 3 and curriculum.level == 0


def test_scores_count_the_questions_only():
    batch = recall_batch(3, 50, 0, gap=2)
    right = nn.functional.one_hot(batch["labels"].clamp(min=0), 17).float()
    assert recall_accuracy(right, batch["labels"]) == 1.0
    assert recall_accuracy(-right, batch["labels"]) == 0.0
    near = batch["distances"] < 7
    mixed = torch.where(near[:, :, None], right, -right)
    edges = [1, 4, 7, 10, 99]
    scores = recall_by_distance(mixed, batch["labels"], batch["distances"], edges)
    assert scores[1:3] == [1.0, 0.0] and math.isnan(scores[0])
    share = float((batch["distances"][:, -3:] < 7).double().mean())
    assert recall_accuracy(mixed, batch["labels"]) == pytest.approx(share)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(pairs=9), "give keys=9 or more"),
        (dict(pairs=0), "pairs=0"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(values=0), "values=0"),
        (dict(gap=-1), "gap=-1"),
    ],
)
def test_bad_numbers_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        recall_batch(**(dict(pairs=2, batch_size=3, seed=0) | change))


def test_bad_levels_and_scores_refuses():
    for levels in ([], [2, 1], [1, 1]):
        with pytest.raises(ValueError, match="rising"):
            RecallCurriculum(levels)
    with pytest.raises(ValueError, match="nothing is asked"):
        recall_accuracy(torch.zeros(1, 2, 3), torch.full((1, 2), -100))
