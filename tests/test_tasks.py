"""The generated tasks: right answers, splits that share nothing, no shortcut, the same on every machine."""

import hashlib
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from datetime import datetime
from fractions import Fraction
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_utils.data.tasks import KINDS, TASKS, card, load, names, shortcut, translation, word_forms
from course_utils.data.tasks.base import SPLITS, Task, fits, items_from, pool, reserved
from course_utils.data.tasks.categories import MEMBERS
from course_utils.data.tasks.conversions import UNITS, clock_words, date_formats, number_words, ordinal
from course_utils.data.tasks.name_pools import FIRMS, GIVEN, SURNAMES, TOWNS
from course_utils.data.tasks.questions import FACTS
from course_utils.data.tasks.reviews import ASPECTS, BAD, GOOD, SUBJECTS
from course_utils.data.tasks.shortcuts import score
from course_utils.data.tasks.word_forms import INVENTED_NOUNS, INVENTED_VERBS, REAL_NOUNS, REAL_VERBS

NAMES = sorted(TASKS)
SOURCES = {task.source: name for name, task in TASKS.items()}
DIGEST = """
import hashlib
from course_utils.data.tasks import TASKS
rows = [TASKS[name].generate(split, 20, 3) for name in sorted(TASKS) for split in ("train", "held_out")]
print(hashlib.sha256(repr(rows).encode()).hexdigest())
"""


@cache
def drawn(name, split, items=450, seeds=(0, 1, 2)):
    return [pair for seed in seeds for pair in TASKS[name].generate(split, items, seed)]


def both(name):
    return drawn(name, "train") + drawn(name, "held_out")


def words_of(split, name):
    return {word for pair in drawn(name, split) for text in pair for word in re.findall(r"[\w-]+", text)}


def test_registry():
    for name, task in TASKS.items():
        assert name == task.name and task.title and task.kind in KINDS and task.prefix.endswith(": ")
        assert load(name, items=3).column_names == ["input", "target", "task"]
    assert len({task.prefix for task in TASKS.values()}) == len(TASKS)
    assert set(names(held_out=True)) | set(names(held_out=False)) == set(names()) == set(TASKS)
    assert not set(names(held_out=True)) & set(names(held_out=False))
    for kind in KINDS:
        assert names(kind, held_out=True) and names(kind, held_out=False)
        assert all(TASKS[name].kind == kind for name in names(kind))
    dataset = load("plural", "held_out", items=7, seed=4)
    assert list(zip(dataset["input"], dataset["target"], strict=True)) == TASKS["plural"].generate("held_out", 7, 4)
    assert set(dataset["task"]) == {"plural"}


@pytest.mark.parametrize("name", NAMES)
def test_items_are_texts_with_one_answer_and_short(name):
    answers = defaultdict(set)
    for text, target in both(name):
        assert text == text.strip() and target == target.strip() and text and target
        assert len(text.split()) <= (120 if name in ("summary", "speakers") else 60)
        answers[text].add(target)
    assert max(map(len, answers.values())) == 1


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_splits_share_no_input(source):
    train, held_out = (({text for text, _ in drawn(SOURCES[source], split)}) for split in SPLITS)
    assert len(train) > 300 and len(held_out) > 60
    assert not train & held_out


def test_held_out_names_are_nowhere_in_training():
    secret = {name for names_of in (GIVEN, SURNAMES, TOWNS) for name in names_of["held_out"]}
    assert not secret & {name for names_of in (GIVEN, SURNAMES, TOWNS) for name in names_of["train"]}
    assert not {*GIVEN["train"], *GIVEN["held_out"]} & {
        name for names_of in (SURNAMES, TOWNS) for split in SPLITS for name in names_of[split]
    }
    for name in ("entities", "question", "who", "summary"):
        assert not secret & words_of("train", name)
        assert len(secret & words_of("held_out", name)) > 30
    for text, _ in drawn("entities", "held_out"):  # all names of an item are held out, not only some
        assert not {*SURNAMES["train"], *TOWNS["train"], *GIVEN["train"]} & set(re.findall(r"\w+", text))


@pytest.mark.parametrize("forms", [("plural", "article"), ("past", "third_person", "ing")])
def test_held_out_words_are_nowhere_in_training(forms):
    train, held_out = ({text for name in forms for text, _ in drawn(name, split)} for split in SPLITS)
    assert not train & held_out and len(held_out) > 80
    assert len(train & {*word_forms.NOUNS, *word_forms.VERBS}) > 100  # real words
    assert len(train & {*INVENTED_NOUNS["train"], *INVENTED_VERBS["train"]}) > 100  # invented ones


def test_held_out_categories():
    train, held_out = ({text for text, _ in drawn("word_category", split)} for split in SPLITS)
    assert not train & held_out and train | held_out <= {word for words in MEMBERS.values() for word in words}
    secret = {word for words in MEMBERS.values() for word in words if reserved("listed", word)}
    assert not secret & words_of("train", "list_category")
    for text, _ in drawn("list_category", "held_out"):
        assert secret & set(text.split(", "))
    seen = words_of("train", "list_category")
    assert len(held_out & seen) > 0.6 * len(held_out)  # else nothing would tell what they are


def test_the_two_directions_of_a_conversion_hold_out_the_same():
    for there, back in (("date_long", "date_iso"), ("number_words", "number_digits"), ("smaller_unit", "larger_unit")):
        assert not {text for text, _ in drawn(there, "train")} & {target for _, target in drawn(back, "held_out")}
        assert not {text for text, _ in drawn(there, "held_out")} & {target for _, target in drawn(back, "train")}
    assert not {text for text, _ in drawn("to_german", "train")} & {text for _, text in drawn("to_english", "held_out")}


def test_training_reviews_hold_no_reserved_pair():
    aspect, adjective = "|".join(ASPECTS), "|".join(GOOD + BAD)
    pairs = {split: set() for split in SPLITS}
    for split in SPLITS:
        for text, _ in drawn("sentiment", split):
            # Of what one expected and was surprised by, the surprise counts; it stands right behind "was".
            pairs[split] |= set(re.findall(rf"the ({aspect}) was (?:[a-z ]+? )??({adjective})\b", text))
    assert not [pair for pair in pairs["train"] if reserved("aspect", *pair)]
    assert len([pair for pair in pairs["held_out"] if reserved("aspect", *pair)]) > 30
    assert pairs["train"] >= {
        (one, two) for one in ASPECTS for two in GOOD + BAD if not reserved("aspect", one, two)
    }  # and all others do occur


def test_reserved_is_about_one_in_six_and_the_same_everywhere():
    assert [word for word in "abcdefghijklmnopqrstuvwxyz" if reserved("letter", word)] == [
        word
        for word in "abcdefghijklmnopqrstuvwxyz"
        if int(hashlib.sha256(f"letter\n{word}".encode()).hexdigest()[:8], 16) % 6 == 0
    ]
    share = sum(reserved("number", str(number)) for number in range(6000)) / 6000
    assert 0.15 < share < 0.18
    parts = pool("use", ["a", "b", "c", "a"])
    assert sorted(parts["train"] + parts["held_out"]) == ["a", "b", "c"]
    secret = next(str(number) for number in range(100) if reserved("x", str(number)))
    open_ = next(str(number) for number in range(100) if not reserved("x", str(number)))
    assert fits("held_out", [("x", open_), ("x", secret)]) and not fits("train", [("x", open_), ("x", secret)])
    assert fits("train", [("x", open_)]) and fits("train", []) and not fits("held_out", [])


def test_same_in_every_process():
    rows = [TASKS[name].generate(split, 20, 3) for name in NAMES for split in SPLITS]
    random.seed(5)
    assert rows[:6] == [TASKS[name].generate(split, 20, 3) for name in NAMES[:3] for split in SPLITS]
    environment = {**os.environ, "PYTHONHASHSEED": "4242"}
    output = subprocess.run(
        [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert output.stdout.strip() == hashlib.sha256(repr(rows).encode()).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_sizes(name):
    task = TASKS[name]
    assert len(task.generate("held_out", 13, 0)) == 13
    assert task.generate("train", 20, 0) != task.generate("train", 20, 1)
    assert task.generate("train", 20, 0)[:5] == task.generate("train", 5, 0)


def test_only_the_prefix_tells_the_tasks_of_a_source_apart():
    shared = [[name for name in NAMES if TASKS[name].source == source] for source in SOURCES]
    shared = [group for group in shared if len(group) > 1]
    assert len(shared) >= 10 and sum(not TASKS[name].held_out for group in shared for name in group) >= 15
    for group in shared:
        for split in SPLITS:
            pairs = [TASKS[name].generate(split, 200, 9) for name in group]
            assert len({tuple(text for text, _ in part) for part in pairs}) == 1
            for number, part in enumerate(pairs):
                for other in pairs[number + 1 :]:
                    different = sum(one[1] != two[1] for one, two in zip(part, other, strict=True))
                    assert different > 60  # of 200


@pytest.mark.parametrize("name", [name for name in NAMES if TASKS[name].labels])
def test_labels_are_balanced(name):
    labels = TASKS[name].labels
    for split in SPLITS:
        counts = Counter(target for _, target in drawn(name, split))
        assert set(counts) <= set(labels)
        if name != "word_category":  # there, each word counts, and its held-out words are few
            shares = [counts[label] / counts.total() * len(labels) for label in labels]
            assert min(shares) > 0.4 and max(shares) < 1.8


# Right answers, by other means than those that made them.


def opinion(text):
    """Whether "anything but dull" praises."""
    *negation, adjective = text.split()
    assert adjective in GOOD + BAD
    return (adjective in GOOD) != bool(negation)


def judge(review):
    """Whether a review is positive, by rules of its own; None for what they do not know."""
    text = review.split(". ", 1)[1].rstrip(".")
    if found := re.fullmatch(r"(.+) was (better|worse) than (.+)", text):
        opening = re.search(
            r"this is about the (\w+)|but (?:about )?the (\w+)\.|chose the (\w+)|i took the (\w+)", review
        )
        opening = opening or re.search(r"tried the (\w+)|went for the (\w+)", review)
        main = next(word for word in opening.groups() if word)
        first_is_main = found[1] in ("this one", f"this {main}")
        assert first_is_main != (found[3] in ("this one", f"this {main}"))
        return first_is_main == (found[2] == "better")
    if found := re.fullmatch(r".+ called the \w+ (.+), and they were (right|wrong)", text):
        return opinion(found[1]) == (found[2] == "right")
    if found := re.fullmatch(r"i had expected the \w+ to be (.+), and it was (.+)", text):
        assert opinion(found[1]) != opinion(found[2])
        return opinion(found[2])
    if found := re.fullmatch(r"the \w+ was (.+), and i had expected it to be (.+)", text):
        assert opinion(found[1]) != opinion(found[2])
        return opinion(found[1])
    if found := re.fullmatch(r"the \w+ was .+, and the \w+ did (not )?in the end (save|ruin) the \w+", text):
        return (found[1] is None) == (found[2] == "save")
    decides = re.fullmatch(r"although .+?, (.+)", text) or re.fullmatch(r".+, but (.+)", text)
    decides = decides or re.fullmatch(r"(.+), although .+", text)
    if decides:
        return opinion(re.fullmatch(r"the \w+ was (.+)", decides[1])[1])
    found = re.fullmatch(r"the \w+ was (.+) and the \w+ was (.+)", text)
    assert opinion(found[1]) == opinion(found[2])
    return opinion(found[1])


def test_sentiment_is_what_the_review_says():
    for (text, sentiment), (_, recommend) in zip(both("sentiment"), both("recommend"), strict=True):
        assert sentiment == ("positive" if judge(text) else "negative")
        assert recommend == ("yes" if judge(text) else "no")


def test_praised_and_criticised_are_aspects_of_the_text_in_its_order():
    for (text, praised), (_, criticised) in zip(both("praised"), both("criticised"), strict=True):
        good, bad = ([] if target == "nothing" else target.split(", ") for target in (praised, criticised))
        assert not set(good) & set(bad) and {*good, *bad} <= set(ASPECTS)
        places = [text.index(f"the {aspect} ") for aspect in good], [text.index(f"the {aspect} ") for aspect in bad]
        assert all(list(part) == sorted(part) for part in places)
        for aspect, said in re.findall(r"the (\w+) was ([a-z ]+?)(?=,|\.| and the)", text):
            if aspect in ASPECTS:
                assert aspect in (good if opinion(said) else bad)


def test_reviews_and_notes_name_two_topics():
    kind = {word: topic for topic, words in SUBJECTS.items() for word in words}
    for text, topic in both("reviewed"):
        found = {kind[word] for word in re.findall(r"\w+", text) if word in kind}
        assert topic in found and len(found) == 2
    for (_, topic), (_, side) in zip(both("topic"), both("side_topic"), strict=True):
        assert topic != side


def test_entities_are_in_the_text_in_order():
    for position, (text, target) in enumerate(both("entities")):
        place, kinds = 0, defaultdict(list)
        for entity in target.split("; "):
            kind, name = entity.split(": ")
            place = text.index(name, place) + len(name)
            kinds[kind].append(name)
            assert (name.split()[-1] in FIRMS) == (kind == "firm") and (len(name.split()) == 1) == (kind == "place")
        capitals = re.findall(r"[A-Z]\w+(?: [A-Z]\w+)*", text)
        assert capitals == [entity.split(": ")[1] for entity in target.split("; ")]  # none is missing
        for name, kind, none in (
            ("people", "person", "nobody"),
            ("places", "place", "nowhere"),
            ("firms", "firm", "none"),
        ):
            assert both(name)[position] == (text, ", ".join(kinds[kind]) or none)


def test_towns_and_families_cannot_be_told_apart_by_name():
    assert len(set(TOWNS["train"]) & set(SURNAMES["train"])) > 200


@pytest.mark.parametrize(("name", "asks", "answer"), [("question", 1, 1), ("who", 2, 0)])
def test_questions_have_the_answer_in_the_passage(name, asks, answer):
    for text, target in both(name):
        question, passage = re.fullmatch(r"(.+?\?) (.+)", text).groups()
        found = []
        for sentence in re.findall(r"[^.]+\.", passage):
            for forms in FACTS.values():
                pattern = re.escape(forms[0]).replace(r"\{name\}", "(.+)").replace(r"\{value\}", "(.+)")
                if match := re.fullmatch(pattern, sentence.strip()):
                    found += [match.groups()] if forms[asks].format(name=match[1], value=match[2]) == question else []
        assert [fact[answer] for fact in found] == [target]


def test_moves():
    for (text, now), (_, first) in zip(both("where_now"), both("where_first"), strict=True):
        thing = re.match(r"the (\w+)\?", text)[1]
        spots = re.findall(rf"the {thing} (?:was put in|went into) the (\w+)", text)
        assert spots == [first, now] and len(set(re.findall(r"in(?:to)? the (\w+)", text))) == 4


def test_translations_go_back():
    german = {}
    for text, target in both("to_german"):
        assert german.setdefault(target, text) == text  # no two sentences have the same translation
    english = dict(both("to_english"))
    assert all(english[target] == text for target, text in german.items() if target in english)
    for text, target in both("german_order"):
        assert sorted(text.split()) == sorted(target.split())
    for text, target in drawn("german_order", "train")[:200]:
        if text.startswith("i know that"):
            assert target.split()[-1] in translation.MODALS


def test_every_date_reads_back():
    formats = {"date_long": "%d %B %Y", "date_dots": "%d.%m.%Y", "date_american": "%B %d, %Y"}
    for name, form in formats.items():
        for text, target in both(name):
            assert datetime.strptime(target, form) == datetime.strptime(text, "%Y-%m-%d")
    assert date_formats(2005, 3, 7) == {
        "iso": "2005-03-07",
        "long": "7 March 2005",
        "dots": "07.03.2005",
        "american": "March 7, 2005",
    }
    for text, target in both("date_iso"):
        form = formats["date_dots" if "." in text else "date_long"]
        assert datetime.strptime(text, form) == datetime.strptime(target, "%Y-%m-%d")


@given(st.dates(datetime(1950, 1, 1).date(), datetime(2049, 12, 31).date()))
def test_date_formats_agree(day):
    found = date_formats(day.year, day.month, day.day)
    assert found["iso"] == day.isoformat() and found["dots"] == day.strftime("%d.%m.%Y")
    assert datetime.strptime(found["long"], "%d %B %Y").date() == day
    assert datetime.strptime(found["american"], "%B %d, %Y").date() == day


ONES = "zero one two three four five six seven eight nine ten eleven twelve"
TEENS = "thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
VALUES = {word: number for number, word in enumerate([*ONES.split(), *TEENS.split()])}
VALUES |= {word: 10 * number for number, word in enumerate(TENS.split(), 2)}


def value(words):
    """Read a number in words: what came before hundred or thousand is multiplied, all else added."""
    total = 0
    for word in words.replace("-", " ").split():
        if word in ("hundred", "thousand"):
            size = 100 if word == "hundred" else 1000
            total = total // 1000 * 1000 + total % 1000 * size if size == 100 else total * size
        elif word != "and":
            total += VALUES[word]
    return total


def test_every_number_in_words_reads_back():
    assert [value(number_words(number)) for number in range(10_000)] == list(range(10_000))
    assert number_words(342) == "three hundred and forty-two" and number_words(1000) == "one thousand"
    assert number_words(7019) == "seven thousand and nineteen" and number_words(0) == "zero"
    assert number_words(5100) == "five thousand one hundred" and number_words(115) == "one hundred and fifteen"


def test_number_tasks():
    for (text, target), (back, digits) in zip(both("number_words"), both("number_digits"), strict=True):
        assert value(target) == int(text) and value(back) == int(digits)
    for text, target in both("digit_names"):
        assert "".join(str(VALUES[word]) for word in target.split()) == text
    for text, target in both("parity"):
        assert target == ("even" if text[-1] in "02468" else "odd")


def test_ordinals():
    wanted = (
        "0th 1st 2nd 3rd 4th 9th 10th 11th 12th 13th 14th 20th 21st 22nd 23rd 24th 100th 101st 111th 112th 113th 1002nd"
    )
    assert [ordinal(int(text[:-2])) for text in wanted.split()] == wanted.split()
    assert all(ordinal(number)[:-2] == str(number) for number in range(2000))


def test_every_time_reads_back():
    for hour in range(24):
        for minute in range(60):
            words = clock_words(hour, minute)
            if words.endswith("o'clock"):
                found = 60 * value(words.split()[0])
            else:
                part, side, named = re.fullmatch(r"(.+) (past|to) (\w+)", words).groups()
                minutes = {"quarter": 15, "half": 30}.get(part) or value(part)
                found = 60 * value(named) + (minutes if side == "past" else -minutes)
                assert 1 <= minutes <= 30
            assert (found - 60 * hour - minute) % 720 == 0
    for text, target in both("clock_12"):
        assert datetime.strptime(target, "%I:%M %p") == datetime.strptime(text, "%H:%M") and target[0] != "0"
    for text, target in both("clock_french"):
        assert target == f"{int(text[:2])} h {text[3:]}"
    assert clock_words(0, 30) == "half past twelve" and clock_words(12, 45) == "quarter to one"
    assert clock_words(23, 57) == "three to twelve" and clock_words(1, 0) == "one o'clock"


def test_units():
    for name, (many, few) in {"smaller_unit": (1, 0), "larger_unit": (0, 1)}.items():
        for pair in both(name):
            small, small_unit = pair[many].split()
            large, large_unit = pair[few].split()
            assert UNITS[large_unit][0] == small_unit
            assert Fraction(small) == Fraction(large) * UNITS[large_unit][1] and small.isdigit()


PLURALS = """box boxes bus buses dish dishes church churches baby babies toy toys key keys day days lady ladies bee bees
cake cakes horse horses glass glasses fox foxes witch witches monkey monkeys army armies moth moths girl girls"""
PASTS = """
stop stopped stopping bake baked baking carry carried carrying play played playing visit visited visiting open
opened opening fix fixed fixing snow snowed snowing agree agreed agreeing clean cleaned cleaning knot knotted
knotting beg begged begging listen listened listening enjoy enjoyed enjoying answer answered answering hop hopped
hopping hope hoped hoping end ended ending rub rubbed rubbing use used using add added adding cry cried crying jump
jumped jumping
"""


def test_word_forms_against_a_grammar_book():
    words = PLURALS.split()
    assert [word_forms.with_s(word) for word in words[::2]] == words[1::2]
    words = PASTS.split()
    assert [word_forms.past(word) for word in words[::3]] == words[1::3]
    assert [word_forms.ing(word) for word in words[::3]] == words[2::3]


@given(
    st.sampled_from(
        [word for pool in (REAL_VERBS, INVENTED_VERBS, REAL_NOUNS) for split in SPLITS for word in pool[split]]
    )
)
def test_spelling_rules(word):
    vowels, last = "aeiou", word[-1]
    plural, past, ing = word_forms.with_s(word), word_forms.past(word), word_forms.ing(word)
    hissing = word.endswith(("s", "x", "z", "sh", "ch"))
    if last == "y" and word[-2] not in vowels:
        assert (plural, past, ing) == (word[:-1] + "ies", word[:-1] + "ied", word + "ing")
        return
    assert plural == word + ("es" if hissing else "s")
    syllables = len(re.findall(r"[aeiouy]+", word))
    double = syllables == 1 and last not in "aeiouwxy" and word[-2] in vowels and (word[-3:-2] or "b") not in vowels
    if last == "e":
        assert past == word + "d" and ing == (word if word[-2] == "e" else word[:-1]) + "ing"
    else:
        assert past == word + double * last + "ed" and ing == word + double * last + "ing"


def test_word_tasks_use_the_rules():
    for name, rule in (("plural", word_forms.with_s), ("past", word_forms.past), ("ing", word_forms.ing)):
        assert all(target == rule(text) for text, target in both(name))
    assert all(target == f"she {word_forms.with_s(text)}" for text, target in both("third_person"))
    articles = Counter(target.split()[0] for _, target in both("article"))
    assert all((target.split()[0] == "an") == (text[0] in "aeiou") for text, target in both("article"))
    assert min(articles.values()) > 0.25 * articles.total()
    used = {text[-1] for text, _ in drawn("past", "held_out")}
    assert "e" in used and "y" in used and len(used) > 8  # each rule occurs


def test_lists_have_one_word_that_does_not_belong():
    category = {word: name for name, words in MEMBERS.items() for word in words}
    assert len(category) == sum(map(len, MEMBERS.values()))
    rows = zip(both("list_category"), both("odd_one_out"), both("odd_category"), strict=True)
    for (text, kind), (_, odd), (_, other) in rows:
        words = text.split(", ")
        assert len(set(words)) == 4 and sorted(category[word] for word in words) == sorted([kind] * 3 + [other])
        assert category[odd] == other != kind
    assert all(category[text] == target for text, target in both("word_category"))


def test_speakers():
    for (text, target), (again, summary) in zip(drawn("speakers", "train"), drawn("summary", "train"), strict=True):
        assert text == again and target != summary
        assert set(target.split(", ")) == {line.split(": ")[0] for line in text.split("\n")}


# Shortcuts.


@pytest.mark.parametrize(
    ("name", "most"),
    [("sentiment", 0.6), ("recommend", 0.6), ("topic", 0.6), ("reviewed", 0.65), ("side_topic", 0.6), ("parity", 0.65)],
)
def test_a_bag_of_words_does_not_solve_it(name, most):
    assert shortcut(name, 1000, seed=1) < most


@pytest.mark.parametrize(("name", "most"), [("where_now", 0.55), ("question", 0.3), ("praised", 0.4), ("who", 0.35)])
def test_no_place_in_the_text_has_the_answer(name, most):
    assert 0.1 < shortcut(name, 500, seed=1) < most


def test_the_shortcut_finds_what_single_words_tell():
    def draw(generator, split):
        words = generator.sample(["red", "blue", "green", "old", "new", "big"], 3)
        return " ".join(words), {"planted": "warm" if "red" in words else "cold", "second": words[1]}

    draw_items = items_from("planted", draw)
    planted = Task("planted", "", "topic", "planted: ", "planted", draw_items, labels=("cold", "warm"))
    assert score(planted, 300) == 1
    assert score(Task("second", "", "topic", "second: ", "planted", draw_items), 300) == 1
    assert shortcut("list_category", 1000) > 0.7  # most words of a list do name its category


def test_card_is_current():
    """All of it but the measured shortcuts to the letter; some of those measured again, to 4 points."""
    text = card.PATH.read_text(encoding="utf-8")
    stated = {name: int(score) / 100 for name, score in re.findall(r"^\| `(\w+)`.*≈(\d+)% \|$", text, re.MULTILINE)}
    assert set(stated) == set(TASKS)
    assert text == card.card(stated), "run python -m course_utils.data.tasks.card"
    for name in ("topic", "where_now", "people"):
        assert abs(shortcut(name) - stated[name]) < 0.04


def test_card_is_written_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(card, "shortcut", lambda name: 0.5)
    monkeypatch.setattr(card, "DRAWS", 20)
    card.write(tmp_path / "new" / "card.md")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["card.md"]
    text = (tmp_path / "new" / "card.md").read_text(encoding="utf-8")
    assert text.count("≈50%") == len(TASKS) and "None" not in text


def test_refuses_what_is_not_there():
    for call, message in (
        (lambda: load("nonsense"), "name='nonsense': expected one of sentiment"),
        (lambda: shortcut("nonsense"), "name='nonsense'"),
        (lambda: names("nonsense"), "kind='nonsense': expected one of"),
        (lambda: load("plural", "test"), "split='test': expected one of train, held_out"),
        (lambda: load("summary", items=0), "items=0: expected a whole number"),
        (lambda: TASKS["plural"].generate("train", 10**7), "items=10000000"),
        (lambda: number_words(10_000), "number=10000"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
