import itertools
import random
import subprocess
import sys

import pytest

from course_utils.data.tasks import episodes
from course_utils.data.tasks.words import CATEGORIES, CATEGORY_OF


def drawn(kind: str, split: str, count: int = 1500, examples: int = 6) -> list[episodes.Episode]:
    generator = random.Random(f"test {kind} {split}")
    return [episodes.episode(kind, generator, examples, split) for _ in range(count)]


def test_every_word_stands_in_one_category() -> None:
    assert len(CATEGORY_OF) == sum(len(words) for words in CATEGORIES.values()) == 520
    assert not set(CATEGORIES) & set(CATEGORY_OF)


def test_label_words_of_the_held_out_split_are_never_labels_in_training() -> None:
    used = {
        answer for kind in ("labels", "pairs", "recall") for one in drawn(kind, "train") for _, answer in one.examples
    }
    kept = {answer for one in drawn("labels", "held_out") for _, answer in one.examples}
    assert not used & kept
    assert used <= set(episodes.LABELS["train"])
    assert len(kept) > 80
    assert kept <= set(episodes.LABELS["held_out"])


def contrasted(one: episodes.Episode) -> set[tuple[str, ...]]:
    categories = {part.split("=")[0] for part in one.rule.split(", ")}
    return {tuple(sorted(pair)) for pair in itertools.combinations(categories, 2)}


def test_pairs_of_categories_of_the_held_out_split_are_never_told_apart_in_training() -> None:
    trained = set().union(*(contrasted(one) for kind in ("labels", "pairs") for one in drawn(kind, "train")))
    kept = set().union(*(contrasted(one) for one in drawn("pairs", "held_out")))
    assert not trained & kept
    assert len(kept) > 40
    known = set().union(*(contrasted(one) for one in drawn("labels", "held_out")))
    assert not known & kept, "new label words are tested on known pairs, so that one thing is new at a time"


def test_answers_to_look_up_in_the_held_out_split_are_never_answers_in_training() -> None:
    trained = {answer for one in drawn("recall", "train") for _, answer in one.examples}
    for one in drawn("recall", "held_out"):
        assert not trained & {answer for _, answer in one.examples}
        assert one.examples[-1] in one.examples[:-1]
        assert one.answer in one.candidates


@pytest.mark.parametrize("shapes", [episodes.FEW_SHAPES, len(episodes.SHAPES)])
def test_functions_and_shapes_of_the_held_out_split_are_never_trained_together(shapes: int) -> None:
    trained, kept = set(episodes.forms("train", shapes)), set(episodes.forms("held_out", shapes))
    assert not trained & kept
    assert trained | kept == set(itertools.product(episodes.FUNCTIONS, episodes.SHAPES[:shapes]))
    assert {function for function, _ in trained} == set(episodes.FUNCTIONS)
    assert {shape for _, shape in trained} == set(episodes.SHAPES[:shapes])
    assert len(kept) == pytest.approx(len(trained) / 4, rel=0.15)
    for split, allowed in (("train", trained), ("held_out", kept)):
        generator = random.Random(0)
        rules = {episodes.episode("forms", generator, 2, split, shapes=shapes).rule for _ in range(2000)}
        assert rules <= {f"{function} {shape}" for function, shape in allowed}
        assert len(rules) > 0.95 * len(allowed)


def test_formats_of_answers_use_no_word_of_the_world() -> None:
    assert len(set(episodes.SHAPES)) == len(episodes.SHAPES) == 40
    assert not {piece for shape in episodes.SHAPES for piece in shape.split()} & set(episodes.WORDS)


def test_categories_of_the_held_out_split_are_never_asked_for_in_training() -> None:
    trained = {CATEGORY_OF[answer] for one in drawn("picks", "train") for _, answer in one.examples}
    kept = {CATEGORY_OF[answer] for one in drawn("picks", "held_out") for _, answer in one.examples}
    assert not trained & kept
    assert trained | kept == set(CATEGORIES)


@pytest.mark.parametrize("kind", episodes.KINDS)
def test_answers_follow_from_the_rule(kind: str) -> None:
    for one in drawn(kind, "train", 300):
        if kind in ("labels", "pairs"):
            rule = dict(part.split("=") for part in one.rule.split(", "))
            assert all(rule[CATEGORY_OF[word]] == answer for word, answer in one.examples)
            assert one.answer in one.candidates
        elif kind == "picks":
            for words, answer in one.examples:
                assert [word for word in words.split() if CATEGORY_OF[word] == one.rule] == [answer]
        elif kind == "recall":
            assert all(dict(one.examples)[key] == value for key, value in one.examples)


def test_a_label_alone_and_a_place_alone_do_not_give_the_answer_away() -> None:
    answers = [one.candidates.index(one.answer) for one in drawn("labels", "held_out")]
    assert 0.45 < sum(answers) / len(answers) < 0.55
    places = [text.split().index(answer) for one in drawn("picks", "held_out") for text, answer in one.examples]
    assert all(0.3 < places.count(place) / len(places) < 0.37 for place in range(3))


def test_prompts_are_the_examples_and_the_question() -> None:
    one = episodes.Episode(
        "labels", "animal=red, metal=two", (("dog", "red"), ("iron", "two"), ("cat", "red")), ("red", "two"), "input"
    )
    assert one.prompt() == "Input: dog Output: red\nInput: iron Output: two\nInput: cat Output:"
    assert one.prompt(0) == "Input: cat Output:"
    assert one.prompt(1) == "Input: dog Output: red\nInput: cat Output:"
    assert "".join(asked + answer for asked, answer in one.parts()).startswith(one.prompt())
    assert one.parts()[-1] == ("Input: cat Output:", " red\n")
    assert one.answer == "red"


def test_episodes_are_the_same_in_every_process() -> None:
    code = (
        "import random;from course_utils.data.tasks.episodes import episode;print(episode('labels',random.Random(3)))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1")
    }
    assert len(seen) == 1


@pytest.mark.parametrize("wrong", [dict(kind="rhymes"), dict(split="test"), dict(examples=0)])
def test_episode_refuses(wrong: dict) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        episodes.episode(**({"kind": "labels", "generator": random.Random(0)} | wrong))
