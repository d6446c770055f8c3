"""The translation task: right German, right alignments, and no test sentence that training could have seen."""

import random
from itertools import pairwise

import pytest
import torch

from course_utils.data.tasks.translation import (
    END,
    FORMS,
    LOOKS,
    PEOPLE,
    START,
    THINGS,
    TRAITS,
    UNKNOWN,
    WordVocabulary,
    draw,
    read_alignment,
    reserved,
    shift_right,
    to_tensors,
    translation,
    words,
)

TRAIN, TEST = translation("train", 3000), translation("test", 500)
GENDER = {german: gender for nouns in (PEOPLE, THINGS) for german, gender in nouns.values()}


def pairs(sentence):
    tokens = sentence.split()
    adjectives = {*TRAITS, *LOOKS}
    return {(a, b) for a, b in pairwise(tokens) if a in adjectives and b in {*PEOPLE, *THINGS}}


def test_splits_share_no_sentence_and_no_reserved_pair():
    seen = set().union(*(pairs(sentence) for sentence in TRAIN["input"]))
    assert not [pair for pair in seen if reserved(*pair)]
    assert all(pairs(sentence) - seen for sentence in TEST["input"])
    assert not set(TRAIN["input"]) & set(TEST["input"])
    both = [(a, n) for adjectives, nouns in ((TRAITS, PEOPLE), (LOOKS, THINGS)) for a in adjectives for n in nouns]
    share = sum(reserved(*pair) for pair in both) / len(both)
    assert 0.1 < share < 0.3
    assert seen == {pair for pair in both if not reserved(*pair)}  # all others do occur


def test_sentences_are_distinct_and_seeded():
    assert len(set(TRAIN["input"])) == 3000
    assert translation("train", 50, seed=7).to_dict() == translation("train", 50, seed=7).to_dict()
    assert translation("train", 50, seed=7)["input"] != translation("train", 50, seed=8)["input"]
    assert set(TRAIN["task"]) == {"translation"}


class Script(random.Random):
    """Chooses what is written down for it: subject, object, modal verb, verb, adverb, opening."""

    def __init__(self, choices):
        super().__init__(0)
        self.choices = choices.split()

    def choice(self, options):
        wanted = self.choices.pop(0).replace("_", " ")
        assert wanted in options
        return wanted

    def random(self):
        return 0.0  # always an adjective


@pytest.mark.parametrize(
    "form, choices, english, german",
    [
        (
            "adverb",
            "horse the old hat my red can hide tomorrow i_know_that",
            "tomorrow the old horse can hide my red hat",
            "morgen kann das alte Pferd meinen roten Hut verstecken",
        ),
        (
            "plain",
            "queen a clever clock a old will sell now i_know_that",
            "a clever queen will sell an old clock",
            "eine kluge Königin wird eine alte Uhr verkaufen",
        ),
        (
            "question",
            "dog a hungry ball the white must find soon i_know_that",
            "must a hungry dog find the white ball ?",
            "muss ein hungriger Hund den weißen Ball finden ?",
        ),
        (
            "clause",
            "teacher my famous house a new should paint now we_hope_that",
            "we hope that my famous teacher should paint a new house",
            "wir hoffen , dass mein berühmter Lehrer ein neues Haus malen soll",
        ),
    ],
)
def test_known_sentences_come_out_of_the_grammar(form, choices, english, german):
    sentence = draw(Script(choices), form)
    assert " ".join(sentence.source) == english
    assert " ".join(sentence.target) == german


@pytest.mark.parametrize("form", FORMS)
def test_german_agrees_and_is_aligned(form):
    generator = random.Random(form)
    for _ in range(200):
        sentence = draw(generator, form)
        aligned = [place for place in sentence.alignment if place >= 0]
        assert sorted(aligned) == list(range(len(sentence.source)))  # each English word exactly once
        for german, place in zip(sentence.target, sentence.alignment, strict=True):
            assert (german == ",") == (place < 0)
            english = sentence.source[place] if place >= 0 else ","
            for table in (PEOPLE, THINGS):
                if english in table:
                    assert german == table[english][0]
        nouns = [i for i, word in enumerate(sentence.target) if word in GENDER]
        assert len(nouns) == 2
        for case, noun in zip(("subject", "object"), nouns, strict=True):
            before = sentence.target[noun - 1]
            has_adjective = not before.startswith(("der", "die", "das", "den", "ein", "mein"))
            article = sentence.target[noun - 2] if has_adjective else before
            gender, masculine_object = GENDER[sentence.target[noun]], case == "object"
            assert article.endswith("en") == (masculine_object and gender == "m"), sentence
            if has_adjective:
                strong = article in ("ein", "mein")
                ending = {"m": "er" if strong else "e", "f": "e", "n": "es" if strong else "e"}[gender]
                if masculine_object and gender == "m":
                    ending = "en"
                assert before.endswith(ending), sentence


def test_vocabulary_holds_every_word_and_reads_it_back():
    vocabulary = WordVocabulary(words())
    assert len(vocabulary) == len(set(vocabulary.words))
    for row in (*TRAIN, *TEST):
        for text in (row["input"], row["target"]):
            assert UNKNOWN not in vocabulary.encode(text)
            assert vocabulary.decode([START, *vocabulary.encode(text), END, 9]) == text
    assert vocabulary.encode("zebra") == [UNKNOWN]


def test_tensors_ask_for_the_next_word():
    vocabulary = WordVocabulary(words())
    batch = to_tensors(TRAIN.select(range(5)), vocabulary)
    for row in range(5):
        answer = batch["labels"][row]
        length = int((answer != -100).sum())
        assert answer[length - 1] == END
        assert vocabulary.decode(answer[:length]) == TRAIN["target"][row]
        assert batch["decoder_input_ids"][row, 0] == START
        assert torch.equal(batch["decoder_input_ids"][row, 1:length], answer[: length - 1])
        kept = batch["input_ids"][row][batch["attention_mask"][row]]
        assert vocabulary.decode(kept) == TRAIN["input"][row]


def test_shift_right_and_alignment_on_small_tensors():
    labels = torch.tensor([[5, 6, 2], [7, 2, -100]])
    assert shift_right(labels, 1).tolist() == [[1, 5, 6], [1, 7, 2]]
    assert shift_right(torch.tensor([[7, -100, -100]]), 1, pad_id=9).tolist() == [[1, 7, 9]]
    weights = torch.tensor([[[0.6, 0.4, 0.0]], [[0.0, 0.4, 0.6]], [[0.3, 0.4, 0.3]]])  # no head prefers 1 but the last
    assert read_alignment(weights).tolist() == [1]


def test_refuses_splits_and_sizes_that_do_not_exist():
    with pytest.raises(ValueError, match="split='valid': expected one of train, test"):
        translation("valid")
    with pytest.raises(ValueError, match="size=0"):
        translation(size=0)
    with pytest.raises(ValueError, match="form='song'"):
        draw(random.Random(0), "song")
    with pytest.raises(ValueError, match="at least one text"):
        WordVocabulary(words()).batch([])
