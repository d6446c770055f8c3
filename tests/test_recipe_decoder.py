import math
import random
from types import SimpleNamespace

import pytest
import torch

from course_utils.data.tasks import episodes
from course_utils.interpretability import head_scores, repeated_tokens
from course_utils.recipes import decoder
from course_utils.recipes.tokenizer import tokenizer

MARKS = tokenizer("decoder")


@pytest.fixture(scope="module")
def model() -> object:
    torch.manual_seed(0)
    return decoder.build().eval()


class Oracle:
    """Stands for a model whose likeliest next token is told by a table from prefix to token."""

    def __init__(self, table: dict[tuple[int, ...], int]) -> None:
        self.table = table
        self.lm_head = torch.nn.Identity()

    def model(self, input_ids: torch.Tensor) -> SimpleNamespace:
        states = torch.zeros(*input_ids.shape, 4096)
        for row, ids in enumerate(input_ids.tolist()):
            for place in range(len(ids)):
                if tuple(ids[: place + 1]) in self.table:
                    states[row, place, self.table[tuple(ids[: place + 1])]] = 9.0
        return SimpleNamespace(last_hidden_state=states)


def test_a_model_starts_at_the_loss_of_a_guess_and_reads_512_tokens(model: object) -> None:
    assert 2.5e6 < sum(weight.numel() for weight in model.parameters()) < 6e6
    batch = {"input_ids": torch.randint(300, 4096, (2, 512)), "labels": torch.randint(300, 4096, (2, 512))}
    total, count = decoder.answers_loss(model, batch)
    assert count == 2 * 511
    assert abs(float(total.detach()) / 1022 - math.log(4096)) < 1.0


def test_the_loss_counts_answers_alone(model: object) -> None:
    one = episodes.episode("forms", random.Random(1), 5)
    ids, labels = decoder.encoded(MARKS, one)
    assert MARKS.decode(ids[1:]) == "".join(asked + answer for asked, answer in one.parts())
    told = MARKS.decode([label for label in labels if label != -100])
    assert told == "".join(answer for _, answer in one.parts())
    batch = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
    total, count = decoder.answers_loss(model, batch)
    with torch.no_grad():
        whole = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    assert count == sum(label != -100 for label in labels)
    assert torch.allclose(total / count, whole, atol=1e-5)


def test_exact_answers_are_scored_token_by_token_to_the_end_of_the_line() -> None:
    one = episodes.Episode("forms", "reverse {}", (("dog red", "red dog"), ("iron two", "two iron")), (), "arrow")
    start = [MARKS.bos_token_id, *MARKS(one.prompt(), add_special_tokens=False).input_ids]
    answer = MARKS(" two iron\n", add_special_tokens=False).input_ids
    right = {(*start, *answer[:place]): token for place, token in enumerate(answer)}
    assert decoder._right(Oracle(right), MARKS, [one]) == [1.0]
    for place in range(len(answer)):
        wrong = right | {(*start, *answer[:place]): 300}
        assert decoder._right(Oracle(wrong), MARKS, [one]) == [0.0]


def test_few_answers_are_ranked() -> None:
    shown = (("dog", "seven"), ("iron", "two"), ("cat", "seven"))
    one = episodes.Episode("labels", "animal=seven, metal=two", shown, ("two", "seven"), "input")
    start = [MARKS.bos_token_id, *MARKS(one.prompt(), add_special_tokens=False).input_ids]
    for label, score in (("seven", 1.0), ("two", 0.0)):
        table = {tuple(start): MARKS(f" {label}", add_special_tokens=False).input_ids[0]}
        assert decoder._right(Oracle(table), MARKS, [one]) == [score]


def test_padding_and_order_do_not_change_a_score(model: object) -> None:
    generator = random.Random(0)
    drawn = [episodes.episode(kind, generator, shots, "held_out") for kind in decoder.UNSEEN for shots in (1, 4, 9)]
    together = decoder._right(model, MARKS, drawn)
    assert together == [decoder._right(model, MARKS, [one])[0] for one in drawn]


def test_an_untrained_model_is_at_chance(model: object) -> None:
    scores = decoder.shot_scores(model, MARKS, "labels", 4, 150, 0)
    assert 0.35 < sum(scores) / len(scores) < 0.65
    assert sum(decoder.shot_scores(model, MARKS, "forms", 4, 50, 0)) <= 1


def test_the_control_shows_examples_of_another_rule(model: object, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[bool, list[episodes.Episode]] = {}
    for control in (False, True):
        monkeypatch.setattr(
            decoder, "_right", lambda *arguments, control=control: seen.setdefault(control, arguments[2])
        )
        decoder.shot_scores(model, MARKS, "picks", 8, 30, 0, control=control)
    for one, other in zip(seen[False], seen[True], strict=True):
        assert one.examples[-1] == other.examples[-1]
        assert one.style == other.style
        categories = {episodes.CATEGORY_OF[answer] for _, answer in other.examples[:-1]}
        assert one.rule not in categories
        assert len(categories) == 1


def test_bits_per_byte_of_a_uniform_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token costs 12 bits then, so bits per byte is 12 over the mean bytes of a token."""

    class Uniform:
        def __call__(self, input_ids: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 4096))

    mine, packed = decoder.compression(Uniform(), MARKS, True, (0, 1))
    assert 2.0 < mine.value < 5.0
    assert 1.0 < packed.value < 3.0
    assert mine.at_most == packed.value
    assert not mine.holds


def test_segments_repeat_and_only_the_repetition_is_asked_for() -> None:
    for seed in range(20):
        ids, labels = decoder._segments(MARKS, random.Random(seed), 64)
        asked = [place for place, label in enumerate(labels) if label != -100]
        size = asked[0] - 1
        assert 2 <= size <= 24
        assert asked == list(range(size + 1, 64))
        assert all(ids[place] == labels[place] == ids[place - size] for place in asked)


def test_recall_asks_only_for_what_was_shown() -> None:
    shown = (("dog", "two"), ("cat", "red"), ("dog", "two"))
    _, labels = decoder.encoded(MARKS, episodes.Episode("recall", "recall", shown, ("two", "red"), "plain"))
    assert MARKS.decode([label for label in labels if label != -100]) == " two ;"


def test_first_comes_what_repeats_then_everything() -> None:
    """Kinds are told apart by what is asked for, over enough batches to see all of them."""
    make = decoder.Curriculum(MARKS, 0)
    kinds = {True: set(), False: set()}
    for number in (*range(40), *range(decoder.FIRST_STEPS, decoder.FIRST_STEPS + 60)):
        batch = make(number)
        asked = batch["labels"] != -100
        if asked.all():
            kind = "library"
        elif batch["input_ids"].shape == (24, 64) and asked[:, -30:].all():
            kind = "segments"
        else:
            kind = {12: "prompts", 24: "episodes or recall"}[len(asked)]
        kinds[number < decoder.FIRST_STEPS].add(kind)
    assert kinds[True] == {"library", "segments", "episodes or recall"}
    assert kinds[False] == {"library", "segments", "prompts", "episodes or recall"}


def test_the_model_begins_with_the_circuit_of_induction(model: object) -> None:
    """Heads of its first two layers look where they are wired to look, and repeated tokens are continued."""
    tokens = repeated_tokens(4096, 20, batch=8, exclude=range(300), seed=1)
    scores = head_scores(model, tokens)
    assert scores["previous_token"][0, :2].min() > 0.5
    assert scores["induction"][1].min() > 0.5
    assert scores["previous_token"][1:].max() < 0.2 and scores["induction"][[0, 2, 3, 4]].max() < 0.2
    torch.manual_seed(0)
    random_model = type(model)(model.config).eval()
    right = {}
    for name, one in (("wired", model), ("random", random_model)):
        with torch.no_grad():
            found = one(input_ids=tokens).logits.argmax(-1)
        right[name] = float((found[:, 20:-1] == tokens[:, 21:]).float().mean())
    assert right["wired"] > 0.4 and right["random"] < 0.05
    wired = dict(model.named_parameters())
    assert all(weight.requires_grad for weight in wired.values())


def test_functions_get_all_output_formats_late() -> None:
    def formats(number: int) -> set[str]:
        generator = random.Random(0)
        drawn = [decoder._episode(generator, number) for _ in range(1500)]
        return {one.rule.split(" ", 1)[1] for one in drawn if one.kind == "forms"}

    assert formats(decoder.MANY_SHAPES - 1) == set(episodes.SHAPES[: episodes.FEW_SHAPES])
    assert formats(decoder.MANY_SHAPES) == set(episodes.SHAPES)
