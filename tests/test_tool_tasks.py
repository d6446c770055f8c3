"""The tasks beside the registry: the format of the tool loop, and phrases with their Python expressions."""

import ast
import re

import pytest

from course_utils.data.tasks.base import SPLITS
from course_utils.data.tasks.python_code import NUMBERS, PYTHON
from course_utils.data.tasks.tool_use import NOTHING, OPERATORS, TOOLS

CALL = re.compile(r"(search|calculate|answer)\((.+)\)")
SUM = re.compile(r"(\d+) ([-+*/]) (\d+)")


def drawn(task, split, items=600):
    return task.generate(split, items, seed=5)


def arithmetic(text):
    found = SUM.fullmatch(text)
    assert found, text
    first, operator, second = int(found[1]), found[2], int(found[3])
    exact = {"+": first + second, "-": first - second, "*": first * second, "/": first / second}[operator]
    assert exact == int(exact) >= 0
    return str(int(exact))


@pytest.mark.parametrize("split", SPLITS)
def test_every_target_is_one_call_and_every_line_a_call_with_its_result(split):
    names = set()
    for text, target in drawn(TOOLS, split):
        question, *lines = text.split("\n")
        assert question[-1] in "?." and CALL.fullmatch(target)
        names.add(CALL.fullmatch(target)[1])
        for line in lines:
            made, result = line.split(" -> ")
            name, argument = CALL.fullmatch(made).groups()
            assert name != "answer"
            if name == "calculate":
                assert result == arithmetic(argument)
    assert names == {"search", "calculate", "answer"}


@pytest.mark.parametrize("split", SPLITS)
def test_answers_stand_in_the_last_result_and_calls_are_made_of_what_was_read(split):
    unknown, steps = 0, set()
    for text, target in drawn(TOOLS, split):
        question, *lines = text.split("\n")
        name, argument = CALL.fullmatch(target).groups()
        last = lines[-1].split(" -> ")[1] if lines else question
        steps.add(len(lines))
        if last == NOTHING:
            assert target == "answer(unknown)"
            unknown += 1
        elif name == "answer":
            assert re.search(rf"\b{re.escape(argument)}\b", last)
            if lines[-1].startswith("search"):
                asked = re.search(r"search\((\S+)", lines[-1])[1]
                assert asked in question and asked in last
        elif name == "calculate":
            numbers = {one for one in re.findall(r"\d+", argument)}
            assert numbers <= set(re.findall(r"\d+", text))
        else:
            assert any(word in question for word in argument.split() if word[0].isupper()) or "price of" in argument
    assert unknown > 5 and steps == {0, 1, 2}


def test_the_words_of_a_calculation_say_its_operator():
    for text, target in drawn(TOOLS, "train"):
        question, *lines = text.split("\n")
        if not lines and target.startswith("calculate"):
            found = SUM.fullmatch(CALL.fullmatch(target)[2])
            forms = [form.format(a=found[1], b=found[3]) for form in OPERATORS[found[2]]]
            assert question in forms


NUMBER_LIST = [7, -3, 12, 20, 5, 5, 18, 4, 0, 9]
WORD_LIST = ["pear", "plum", "kiwi", "apple", "grapefruit", "fig", "dates", "banana", "strawberries", "nut"]


def meant(phrase):
    """What a phrase asks for, computed from its words by hand; None where it asks for an element of an empty list."""
    numbers = " numbers in " in phrase
    values = NUMBER_LIST if numbers else WORD_LIST
    found = re.search(r"(?:numbers|words) in (\w+) ?(.*)$", phrase)
    limit = re.search(r"\d+", found[2])
    letter = found[2][-1:]
    limit = int(limit[0]) if limit else 0
    if "greater" in found[2] or "longer" in found[2]:
        values = [one for one in values if (one if numbers else len(one)) > limit]
    elif "less" in found[2] or "shorter" in found[2]:
        values = [one for one in values if (one if numbers else len(one)) < limit]
    elif "at least" in found[2]:
        values = [one for one in values if one >= limit]
    elif "at most" in found[2]:
        values = [one for one in values if one <= limit]
    elif "equal" in found[2]:
        values = [one for one in values if one == limit]
    elif "divisible" in found[2]:
        values = [one for one in values if one % limit == 0]
    elif "begin" in found[2]:
        values = [one for one in values if one[0] == letter]
    elif "end" in found[2]:
        values = [one for one in values if one[-1] == letter]
    elif "contain" in found[2]:
        values = [one for one in values if letter in one]
    else:
        assert not found[2]
    start = phrase[: found.start()]
    for words, change in (
        ("squares", lambda one: one * one),
        ("doubles", lambda one: one + one),
        ("halves", lambda one: one / 2),
        ("absolute", abs),
        ("lengths", len),
        ("first letters", lambda one: one[0]),
        ("last letters", lambda one: one[-1]),
        ("capitals", str.upper),
    ):
        if words in start:
            values = [change(one) for one in values]
    if "the number of" in start:
        return len(values)
    if start.startswith("the sum"):
        return sum(values)
    if start.startswith(("the largest", "the smallest")):
        return (sorted(values)[-1 if "largest" in start else 0]) if values else None
    return sorted(values) if start.startswith("in order") else list(values)


@pytest.mark.parametrize("split", SPLITS)
def test_the_code_computes_what_the_phrase_says(split):
    for phrase, code in drawn(PYTHON, split):
        (name,) = re.search(r"(?:numbers|words) in (\w+)", phrase).groups()
        values = NUMBER_LIST if name in NUMBERS else WORD_LIST
        wanted = meant(phrase)
        compiled = compile(ast.parse(code, mode="eval"), "code", "eval")
        if wanted is None:
            with pytest.raises(ValueError):
                eval(compiled, {name: values})
        else:
            assert eval(compiled, {name: values}) == wanted, (phrase, code)


@pytest.mark.parametrize("task", [TOOLS, PYTHON], ids=lambda task: task.name)
def test_splits_share_nothing_and_inputs_have_one_target(task):
    train, held_out = (dict(drawn(task, split, 2000)) for split in SPLITS)
    every = {pair for split in SPLITS for pair in drawn(task, split, 2000)}
    assert not set(train) & set(held_out)
    assert len(every) == len({text for text, _ in every})
    assert len(train) > 1000 and len(held_out) > 500


def test_held_out_code_is_a_combination_and_no_new_word():
    """Names, numbers and letters differ; the frames of the phrases are apart, the words in them are not."""

    def frame(phrase):
        return re.sub(r" in \w+|\d+| \w$", "", phrase)

    train, held_out = ({frame(text) for text, _ in drawn(PYTHON, split, 4000)} for split in SPLITS)
    assert not train & held_out
    words = [{word for one in frames for word in one.split()} for frames in (train, held_out)]
    assert words[1] <= words[0]
