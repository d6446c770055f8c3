import hashlib
import itertools
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.data.tasks import dialogues
from course_utils.data.tasks.dialogues import DAYS, PLACES, THINGS, entities, entity_accuracy, generate
from course_utils.data.tasks.name_pools import GIVEN, TOWNS

TRAIN, HELD_OUT = generate("train", 1000, 0), generate("held_out", 600, 0)


@pytest.mark.parametrize(("split", "pairs"), [("train", TRAIN), ("held_out", HELD_OUT)])
def test_dialogues_have_three_to_eight_lines_of_their_speakers(split, pairs):
    for text, summary in pairs:
        lines = text.split("\n")
        speakers = [line.removeprefix("- ").split(": ", 1)[0] for line in lines]
        assert all(line.startswith("- ") for line in lines)
        assert 3 <= len(lines) <= 8 and 2 <= len(set(speakers)) <= 3
        assert set(speakers) <= set(GIVEN[split])
        assert all(one != other for one, other in itertools.pairwise(speakers))
        assert len(text.split()) <= 110 and len(summary.split()) <= 25
        assert "{" not in text + summary


@pytest.mark.parametrize("pairs", [TRAIN, HELD_OUT])
def test_a_summary_names_only_what_stands_in_its_dialogue(pairs):
    for text, summary in pairs:
        assert len(entities(summary)) >= 2
        assert {one.lower() for one in entities(summary)} <= {one.lower() for one in re.findall(r"\w+", text)}


def test_the_splits_share_no_name_town_place_or_thing():
    for kind in (GIVEN, TOWNS, PLACES, THINGS):
        assert kind["train"] and kind["held_out"] and not set(kind["train"]) & set(kind["held_out"])
    names = [
        {word for text, summary in pairs for word in entities(text + " " + summary)} - {*DAYS}
        for pairs in (TRAIN, HELD_OUT)
    ]
    both = names[0] & names[1]
    assert both <= {*dialogues.HOURS, *dialogues.PRICES}
    assert len(names[0]) > 500


def test_an_answer_is_determined_and_items_are_many():
    assert len({text for text, _ in TRAIN}) == len(TRAIN)
    answers = dict(TRAIN)
    assert all(answers[text] == summary for text, summary in TRAIN)
    shapes = {re.sub(dialogues._pattern(), "_", summary) for _, summary in TRAIN}
    assert len(shapes) > 25


def test_the_value_that_was_said_last_is_not_always_the_right_one():
    """Neither the first nor the last day of a dialogue is a rule that gives the day of its summary."""
    shares = {}
    for name, place in (("first", 0), ("last", -1)):
        hits = []
        for text, summary in TRAIN:
            said = [word for word in entities(text) if word in DAYS]
            wanted = [word for word in entities(summary) if word in DAYS]
            if len(set(said)) > 1 and len(wanted) == 1:
                hits.append(said[place] == wanted[0])
        assert len(hits) > 200
        shares[name] = sum(hits) / len(hits)
    assert max(shares.values()) < 0.75, shares


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Anna will bring the ladder for Felix on Friday.", ["Anna", "ladder", "Felix", "Friday"]),
        ("On Friday, Felix gets Anna's ladder.", ["Friday", "Felix", "Anna", "ladder"]),
        ("It is Anna who brings the ladder, and Felix waits until Friday.", ["Anna", "ladder", "Felix", "Friday"]),
        ("Anna sells it for 25 euros at noon.", ["Anna", "25", "noon"]),
        ("Nobody came.", []),
    ],
)
def test_entities_are_found_in_any_wording(text, wanted):
    assert entities(text) == wanted
    assert [text[start:end] for start, end in dialogues.mentions(text)] == wanted


def test_entity_accuracy_sees_swapped_missing_and_needless_entities():
    target = "Anna lends Felix the ladder until Friday."
    assert entity_accuracy(target, target) == 1
    assert entity_accuracy("Felix lends Anna the ladder until Friday.", target) == 0.5
    assert entity_accuracy("Anna lends Felix the ladder until Monday.", target) == 0.75
    assert entity_accuracy("Anna lends Felix the ladder.", target) == 0.75
    assert entity_accuracy(target + " Tom agrees.", target) == 0.8
    assert entity_accuracy("", target) == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8))
def test_items_are_a_function_of_the_seed_and_fewer_are_their_beginning(seed, items):
    more = generate("train", items + 3, seed)
    assert more[:items] == generate("train", items, seed)
    assert more != generate("train", items + 3, seed + 1)


def test_items_are_the_same_in_another_process():
    code = (
        "import hashlib; from course_utils.data.tasks.dialogues import generate; "
        "print(hashlib.sha256(repr(generate('held_out', 50, 3)).encode()).hexdigest())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == hashlib.sha256(repr(generate("held_out", 50, 3)).encode()).hexdigest()


@pytest.mark.parametrize("wrong", [{"split": "test"}, {"items": 0}])
def test_generate_refuses(wrong):
    with pytest.raises(ValueError, match="expected"):
        generate(**wrong)
