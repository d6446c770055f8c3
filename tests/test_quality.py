"""Quality filters: every measure by hand, every step's removal, duplicates of known similarity, hostile files."""

import os
import random
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.data import quality
from course_utils.data.corpus import Document
from course_utils.data.quality import (
    PIPELINES,
    C4Lines,
    Contamination,
    Counts,
    ExactDuplicates,
    NearDuplicates,
    Pipeline,
    RepeatedLines,
    RepeatedSpans,
    Rule,
    Rules,
    duplicate_lines,
    duplicate_ngrams,
    exact_key,
    jaccard,
    language_score,
    language_scores,
    match_probability,
    raw_documents,
    shingles,
    top_ngram,
)

PROSE = (
    "The filters of a pipeline have to be read with care, and a learner should know what each of them removes. "
    "A rule that was written for pages of the web may be wrong for files of another kind. "
    "Most of what it throws away is noise, but some of it is the very text that one wanted to keep. "
    "So we look at examples, and count."
)
WEIRD = ["", " ", "\n\n\n", "\x07", "a", "{", "é", "日本語のテキスト", "😀 😀", "\ud800", "x" * 50_000]  # fmt: skip
WEIRD.append("! " * 500)
WEIRD.append("a" + "!" * 50_000 + "a")  # a pattern for punctuation at the end could take hours
STEPS = [step for pipeline in PIPELINES.values() for step in pipeline.steps]
MEASURES = [rule.measure for step in STEPS for rule in getattr(step, "rules", ())]


def docs(*texts):
    return [Document(text, f"d{number}") for number, text in enumerate(texts)]


def left(step, *texts):
    return [verdict.text for verdict in step.apply(docs(*texts))]


# --- measures


@pytest.mark.parametrize(
    "measure, text, value",
    [
        ("word_count", "one two\tthree\n four", 4),
        ("mean_word_length", "a bb cccc", 7 / 3),
        ("hash_ratio", "# a ## b", 3 / 4),
        ("ellipsis_ratio", "so... it goes… on", 2 / 4),
        ("bullet_lines", "- a\n  * b\n\nc\n• d", 3 / 4),
        ("ellipsis_lines", "a...\nb…  \nc\nd.", 2 / 4),
        ("alphabetic_words", "x1 = 22 + y", 2 / 5),
        ("stop_words", "The cat, the dog and (that) thing with-out", 3),
        ("punctuated_lines", 'Yes.\nno\nWhy?\n"Quote"\n', 3 / 4),
        ("short_lines", "x" * 29 + "\n" + "x" * 30 + "\n\n", 1 / 2),
        ("curly_brackets", "{ {a} }", 2),
        ("lorem_ipsum", "Lorem Ipsum dolor lorem ipsum", 2),
        ("sentence_count", 'One. Two!\nThree? "Four." 3.14 is five', 5),
    ],
)
def test_measures_by_hand(measure, text, value):
    assert getattr(quality, measure)(text) == pytest.approx(value)


def test_sentences():
    assert quality.sentences('He said "no." Then (at last.) he went.\nv1.2') == [
        'He said "no."',
        "Then (at last.)",
        "he went.",
        "v1.2",
    ]


def test_repeated_lines_and_paragraphs():
    text = "ab\ncdef\nab\n\nab\ncdef\nab"  # lines: ab cdef ab ab cdef ab; two equal paragraphs
    assert duplicate_lines(text) == pytest.approx(4 / 6)
    assert duplicate_lines(text, characters=True) == pytest.approx((2 + 2 + 4 + 2) / 16)
    assert duplicate_lines(text, paragraphs=True) == pytest.approx(1 / 2)
    assert duplicate_lines(text, characters=True, paragraphs=True) == pytest.approx(1 / 2)


def test_ngrams_by_hand():
    text = "a bb a bb ccc dddd"  # 13 characters in words
    assert top_ngram(text, 2) == pytest.approx(6 / 13)  # "a bb" twice
    assert top_ngram("aa aa aa aa b", 2) == pytest.approx(8 / 9)  # overlapping: each character once
    assert top_ngram("a b c d", 2) == 0
    assert duplicate_ngrams("a bb ccc a bb ccc d", 3) == pytest.approx(12 / 13)
    assert duplicate_ngrams("a b c a b d", 2) == pytest.approx(4 / 6)
    assert duplicate_ngrams("x x x", 2) == 1
    assert top_ngram("e f e f gg hh gg hh", 2) == pytest.approx(8 / 12)  # as frequent, more characters
    assert [duplicate_ngrams("one two", 5), top_ngram("one", 2), top_ngram("", 2), duplicate_ngrams("", 5)] == [0] * 4


def slow_share(words, n, best=None):
    """The share of characters in n-grams that occur more than once, by the definition; or in one of them."""
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    inside = {
        start + place
        for start, gram in enumerate(grams)
        if (grams.count(gram) > 1 if best is None else gram == best)
        for place in range(n)
    }
    return sum(len(words[place]) for place in inside) / max(sum(map(len, words)), 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=25), st.integers(2, 6))
def test_ngrams_equal_the_definition(words, n):
    text = " ".join(words)
    assert duplicate_ngrams(text, n) == pytest.approx(slow_share(words, n))
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    most = max(map(grams.count, grams), default=0)
    best = [slow_share(words, n, gram) for gram in grams if grams.count(gram) == most > 1]
    assert top_ngram(text, n) == pytest.approx(max(best, default=0))


@pytest.mark.parametrize("text", WEIRD, ids=range(len(WEIRD)))
def test_measures_of_strange_texts_are_finite(text):
    for measure in MEASURES:
        assert np.isfinite(measure(text))
    assert set(language_scores(text)) == set(quality.FUNCTION_WORDS)
    assert len(exact_key(text)) == 16


SENTENCES = {
    "en": "This is a small house at the end of the road, and it has been there for more than a hundred years.",
    "de": "Das ist ein kleines Haus am Ende der Straße, und es steht dort schon seit mehr als hundert Jahren.",
    "fr": "C'est une petite maison au bout de la rue, et elle est là depuis plus de cent ans avec son jardin.",
    "es": "Esta es una casa pequeña al final de la calle, y está allí desde hace más de cien años con su jardín.",
    "it": "Questa è una piccola casa alla fine della strada, ed è lì da più di cento anni con il suo giardino.",
    "pt": "Esta é uma pequena casa no fim da rua, e está ali há mais de cem anos com o seu jardim.",
    "nl": "Dit is een klein huis aan het einde van de straat, en het staat er al meer dan honderd jaar.",
    "sv": "Det här är ett litet hus i slutet av gatan, och det har varit där i mer än hundra år.",
    "pl": "To jest mały dom na końcu ulicy i jest tam już od ponad stu lat, a przy nim ogród.",
    "fi": "Tämä on pieni talo kadun päässä, ja se on ollut siellä yli sata vuotta, mutta nyt sitä myydään.",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_languages_are_told_apart(language):
    scores = language_scores(SENTENCES[language])
    assert max(scores, key=scores.get) == language
    assert (scores["en"] >= 0.65) == (language == "en")
    assert sum(scores.values()) == pytest.approx(1)


def test_language_of_other_scripts_and_of_none():
    others = [
        "Это маленький дом в конце улицы.",
        "这是街道尽头的一座小房子。",
        "هذا بيت صغير في نهاية الشارع",
        "1 2 3 = 4 5 6",
    ]
    assert [language_score(text) for text in others] == [0] * 4
    # Votes by hand: "the" is English, "of" also Dutch, "in" also German, Italian and Dutch, "house" of none.
    assert language_score("the of in house") == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)
    assert language_score("the " + "x " * 19) == 1
    assert language_score("the " + "x " * 20) == 0
    mixed = language_scores(f"{SENTENCES['en']} {SENTENCES['fr']}")
    assert mixed["en"] < 0.65 > mixed["fr"]


# --- rules


def repeat(word, count):
    return " ".join([word] * count)


@pytest.mark.parametrize(
    "step, stays, goes, value",
    [
        ("words", repeat("be", 50), repeat("be", 49), 49),
        ("words", repeat("a", 100_000), repeat("a", 100_001), 100_001),
        ("mean word length", "abc abc", "ab ab", 2),
        ("mean word length", "a" * 10, "a" * 11, 11),
        ("# for each word", "# " + repeat("a", 9), "# " + repeat("a", 8), 1 / 9),
        ("ellipses for each word", "a... " + repeat("a", 9), "a... " + repeat("a", 8), 1 / 9),
        ("bullet lines", "- a\n" * 9 + "b", "- a\n" * 10 + "b", 10 / 11),
        ("ellipsis lines", "a...\n" * 3 + "b\n" * 7, "a...\n" * 4 + "b\n" * 9, 4 / 13),
        ("alphabetic words", "a a a a 1", "a a a 1", 3 / 4),
        ("stop words", "the and", "the the", 1),
    ],
)
def test_gopher_at_its_limits(step, stays, goes, value):
    (rule,) = [one for one in quality.GOPHER_QUALITY if one.name == step]
    assert rule.judge(stays).text == stays
    verdict = rule.judge(goes)
    assert (verdict.text, verdict.rule) == (None, step)
    assert verdict.value == pytest.approx(value)


def test_gopher_table_a1():
    limits = {rule.name: rule.most for rule in quality.GOPHER_REPETITION.rules}
    assert limits == {
        "duplicate lines": 0.3, "duplicate paragraphs": 0.3, "duplicate line characters": 0.2,
        "duplicate paragraph characters": 0.2, "top 2-gram": 0.2, "top 3-gram": 0.18, "top 4-gram": 0.16,
        "duplicate 5-grams": 0.15, "duplicate 6-grams": 0.14, "duplicate 7-grams": 0.13, "duplicate 8-grams": 0.12,
        "duplicate 9-grams": 0.11, "duplicate 10-grams": 0.1,
    }  # fmt: skip
    distinct = " ".join(f"w{number}" for number in range(100))
    assert quality.GOPHER_REPETITION.judge(distinct).text == distinct
    assert quality.GOPHER_REPETITION.judge(f"{distinct}\n{PROSE} {PROSE}").rule == "duplicate 5-grams"
    assert quality.GOPHER_REPETITION.judge("same\nsame\n").rule == "duplicate lines"


def test_fineweb_at_its_limits():
    punctuated, repeated, short = quality.FINEWEB_QUALITY
    assert punctuated.judge("a.\n" * 3 + "b\n" * 22).text is None  # 0.12 is removed
    assert punctuated.judge("a.\n" * 4 + "b\n" * 22).text is not None
    lines = "".join(f"{chr(97 + number) * 10}\n" for number in range(9))
    assert repeated.judge(f"{lines}{'a' * 10}").value == pytest.approx(0.1)
    assert repeated.judge(f"{lines}{'a' * 9}").text is not None
    assert short.judge("x\n" * 67 + "x" * 30 + "\n" + ("y" * 30 + "\n") * 32).text is None  # 67 of 100
    assert short.judge("x\n" * 2 + "x" * 30).text is not None  # 0.667


def test_rules_stop_at_the_first_that_fails():
    step = Rules("r", "s", (Rule("long", len, most=3), Rule("never", lambda text: 1 / 0)))
    assert step.judge("abcd") == (None, "long", 4.0, "")
    assert Rule("open", len, 1, 3, open=True).holds(2)
    assert not Rule("open", len, 1, 3, open=True).holds(1)


# --- steps that look at lines


def test_c4_lines():
    text = """
        A good line has five words.
        Too few words.
        No mark at the end of it
        Please enable JavaScript to see this page.
        By going on you accept our Privacy Policy today.
        It goes on and on and...
        He said that it was "done"
        A fact that is cited so often [12].
        """
    verdict = C4Lines().judge(text)
    assert verdict.text.split("\n") == [
        "A good line has five words.",
        'He said that it was "done"',
        "A fact that is cited so often .",
    ]
    assert verdict.value == pytest.approx(5 / 8)
    assert verdict.rule == "no punctuation at the end"  # 2 of 5
    assert "No mark at the end of it" in C4Lines(punctuation=False).judge(text).text
    assert C4Lines().judge("no\nnothing").text is None
    assert C4Lines().judge("").text is None


def test_c4_lines_by_paragraph():
    text = "import os\n\n    This sentence goes on\n    over two lines.\n\nreturn os\n"
    assert C4Lines(paragraphs=True).judge(text).text == "This sentence goes on\nover two lines."
    assert C4Lines().judge(text).text is None  # "over two lines." has three words


def test_repeated_lines():
    header = "Licensed under the Some License, Version 2."
    texts = [f"{header}\n\nOnly here: {chr(97 + number)}." for number in range(7)]
    assert left(RepeatedLines(), *texts) == [f"Only here: {chr(97 + number)}." for number in range(7)]
    assert left(RepeatedLines(), *texts[:6]) == texts[:6]  # six times may be
    verdict = RepeatedLines(most=1).apply(docs("Same.", "SAME"))[1]
    assert (verdict.text, verdict.rule, verdict.value) == (None, "repeated lines", 1.0)


def test_repeated_spans():
    span = "One is here. Two is here. Three is here."
    first, second, third = left(RepeatedSpans(), f"Begin. {span}", f"{span} The end.", "One is here. Two is here.")
    assert first == f"Begin. {span}"
    assert second == "The end."
    assert third == "One is here. Two is here."  # no three in a row


# --- duplicates


def test_exact_key():
    assert quality.normalized(" Café,\n\tNo. 12!") == "cafe no 00"
    assert exact_key("Café  No. 12!\n") == exact_key("cafe no 99")
    assert exact_key("a b") != exact_key("ab")
    assert exact_key("a") != exact_key("b")


def test_exact_duplicates_keep_the_first():
    verdicts = ExactDuplicates().apply(docs("One.", "two", "ONE", "one!"))
    assert [verdict.text for verdict in verdicts] == ["One.", "two", None, None]
    assert {verdict.detail for verdict in verdicts[2:]} == {"d0"}
    assert left(ExactDuplicates(key=len), "ab", "cd", "e") == ["ab", None, "e"]


def test_exact_duplicates_of_equal_sources():
    twice = [Document("a", "x"), Document("a", "x")]
    assert [verdict.text for verdict in ExactDuplicates().apply(twice)] == ["a", None]


def test_shingles_and_jaccard():
    assert shingles("The cat sat on", 2) == {"the cat", "cat sat", "sat on"}
    assert shingles("one", 3) == {"one"}
    assert shingles(" ", 3) == set()
    assert jaccard("abc", "bcd") == pytest.approx(2 / 4)
    assert jaccard([], []) == 1
    assert jaccard("a", []) == 0


def test_match_probability():
    assert match_probability(0.5, 1, 1) == 0.5
    assert match_probability(0.5, 2, 2) == pytest.approx(1 - 0.75**2)
    # Stated in the FineWeb report for 14 buckets of 8: 56 %, 77 %, 92 %, 98.8 %.
    stated = [match_probability(s, 14, 8) for s in (0.7, 0.75, 0.8, 0.85)]
    assert stated == pytest.approx([0.56, 0.77, 0.92, 0.988], abs=0.006)
    for wrong in ((1.1, 1, 1), (0.5, 0, 1), (0.5, 1, 0)):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            match_probability(*wrong)


def pair_of(similarity, chance, size=120):
    """Two texts whose sets of words have this Jaccard similarity, as nearly as whole numbers allow."""
    common = round(2 * size * similarity / (1 + similarity))
    words = [f"w{chance.randrange(10**12)}" for _ in range(2 * size - common)]
    return " ".join(words[:size]), " ".join(words[:common] + words[size:])


@pytest.mark.parametrize("similarity", [0.6, 0.75, 0.9])
def test_near_duplicates_are_found_as_the_curve_predicts(similarity):
    chance = random.Random(similarity)
    pairs = [pair_of(similarity, chance) for _ in range(120)]
    true = np.mean([jaccard(shingles(first, 1), shingles(second, 1)) for first, second in pairs])
    assert true == pytest.approx(similarity, abs=0.01)
    verdicts = NearDuplicates(ngram=1).apply(docs(*(text for pair in pairs for text in pair)))
    found = [verdict for verdict in verdicts[1::2] if verdict.text is None]
    assert all(verdict.text for verdict in verdicts[::2])
    expected = match_probability(true, 14, 8)
    slack = 3.5 * (expected * (1 - expected) / len(pairs)) ** 0.5 + 0.02
    assert len(found) / len(pairs) == pytest.approx(expected, abs=slack)
    assert np.mean([verdict.value for verdict in found]) == pytest.approx(similarity, abs=0.09)


def test_near_duplicates_are_transitive_and_the_first_stays():
    words = [f"w{number}" for number in range(300)]
    first, last, middle = (" ".join(words[start : start + 200]) for start in (0, 44, 22))
    # The first two have 156 / 244 = 0.64 of their words in common: take hashes with which they share no bucket.
    steps = (NearDuplicates(ngram=1, seed=seed) for seed in range(100))
    step = next(one for one in steps if left(one, first, last) == [first, last])
    verdicts = step.apply(docs(first, last, middle))  # 178 / 222 = 0.80 of the middle one's with each
    assert [verdict.text for verdict in verdicts] == [first, None, None]
    assert verdicts[1].detail == "d2"
    assert verdicts[1].value == pytest.approx(0.8, abs=0.12)
    assert verdicts[2].detail in ("d0", "d1")


def test_near_duplicates_of_nothing():
    strict = NearDuplicates(ngram=1, buckets=2, rows=56)
    assert left(strict, "same text", "Same  text", "other", "", "") == ["same text", None, "other", "", ""]
    with pytest.raises(ValueError, match="ngram=5, buckets=1, rows=8: expected at least"):
        NearDuplicates(buckets=1)


def test_gopher_setting_is_that_of_datasketch():
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=0.8, num_perm=128)
    step = PIPELINES["gopher"].steps[-1]
    assert (step.buckets, step.rows) == (index.b, index.r)


def test_contamination():
    held = " ".join(f"h{number}" for number in range(20))
    thirteen, twelve = " ".join(held.split()[3:16]), " ".join(held.split()[3:15])
    step = Contamination((held, "short text"))
    verdicts = step.apply(docs(f"a {thirteen.upper()} b", f"a {twelve} b", "short text"))
    assert [verdict.text is None for verdict in verdicts] == [True, False, False]
    assert (verdicts[0].value, verdicts[0].detail) == (1.0, thirteen)


# --- the pipeline


def test_report_adds_up():
    step = Rules("short", "by hand", (Rule("words", quality.word_count, least=3),))
    cut = C4Lines(fewest_words=2)
    documents = docs("one two", "three four five.", "six é seven.\nno end", "eight")
    before = list(documents)
    report = Pipeline((step, cut)).run(documents, examples=1)
    assert documents == before
    assert report.before == Counts(4, 7 + 16 + 20 + 5, 2 + 3 + 5 + 1)
    assert report.steps[0].removed == Counts(2, 12, 3)
    assert report.steps[1].before == report.steps[0].after == Counts(2, 36, 8)
    assert report.steps[1].removed == Counts(0, 7, 2)
    assert report.after == Counts(2, 29, 6)
    assert report.kept == pytest.approx(6 / 11)
    assert [document.text for document in report.documents] == ["three four five.", "six é seven."]
    assert report.steps[0].rules == {"words": 2}
    assert report.steps[0].examples == (("d0", "words", 2.0, "", "one two"),)
    assert report.step("lines").examples == (("d2", "no punctuation at the end", 0.5, "", "no end"),)
    assert report.rows()[0] == ("short", "by hand", "50.0 %", "25.0 %", "27.3 %", "72.7 %")
    assert len(report.rows()[0]) == len(report.HEADER)
    with pytest.raises(ValueError, match="there is no step 'x'"):
        report.step("x")


def test_examples_are_spread():
    step = Rules("all", "", (Rule("none", len, most=-1),))
    shown = Pipeline((step,)).run(docs(*"abcdefghij"), examples=3).steps[0].examples
    assert [example.text for example in shown] == ["a", "d", "g"]
    assert len(Pipeline((step,)).run(docs("a"), examples=3).steps[0].examples) == 1
    assert Pipeline((step,)).run(docs("a"), examples=0).steps[0].examples == ()


def test_pipeline_refuses():
    with pytest.raises(ValueError, match="'English' is there twice"):
        Pipeline((quality.ENGLISH, quality.ENGLISH))
    with pytest.raises(ValueError, match="examples=-1"):
        Pipeline(()).run([], examples=-1)


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_run_on_anything(name):
    texts = [
        *WEIRD,
        PROSE,
        PROSE,
        f"def f(x):\n    return {{x}}\n\n{PROSE}",
        repeat("the same", 100),
        *SENTENCES.values(),
    ]
    report = PIPELINES[name].run(docs(*texts))
    assert report.before.documents == len(texts)
    tokens = [report.before.tokens, *(step.after.tokens for step in report.steps)]
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[-1] == report.after.tokens == sum(quality.word_count(document.text) for document in report.documents)
    assert report == PIPELINES[name].run(docs(*texts))
    assert sum(PROSE.split(". ")[0] in document.text for document in report.documents) >= 1
    empty = PIPELINES[name].run([])
    assert (empty.kept, empty.after) == (0, Counts(0, 0, 0))
    assert len(empty.rows()) == len(report.steps)


def test_one_document_dies_of_each_kind_of_rule():
    code = "def f(a):\n    return {a: a}\n" * 3
    reports = {name: PIPELINES[name].run(docs(PROSE, code)) for name in PIPELINES}
    assert all([document.source for document in report.documents] == ["d0"] for report in reports.values())
    assert [step.name for step in reports["c4"].steps if step.rules] == ["{"]


def test_tokens_are_those_of_a_tokenizer():
    from course_utils.models import load

    count = quality.token_counter(load("decoder").tokenizer)
    assert count([]) == []
    assert count(["", "a b", "a b\na b"])[0] == 0
    report = Pipeline((C4Lines(),)).run(docs("Five words are in here.\nnot here"), count)
    assert report.before.tokens == count(["Five words are in here.\nnot here"])[0]
    assert report.after.tokens == count(["Five words are in here."])[0]


# --- raw text


@pytest.fixture
def site(tmp_path):
    """A folder with good files and with everything that must not stop the reading."""
    folder = tmp_path / "site"
    (folder / "good").mkdir(parents=True)
    (folder / "good-1.0.dist-info").mkdir()
    (folder / "other" / "__pycache__").mkdir(parents=True)
    (folder / "good" / "a.py").write_bytes("x = 'é'\r\ny\rz\n".encode())
    (folder / "good" / "bom.txt").write_bytes(b"\xef\xbb\xbfhello")
    (folder / "good-1.0.dist-info" / "LICENSE").write_text("Do as you like.")
    (folder / "other" / "b.MD").write_text("# b")
    (folder / "other" / "empty.txt").write_text("")
    (folder / "other" / "binary.py").write_bytes(b"x\x00y")
    (folder / "other" / "latin.py").write_bytes(b"\xe9")
    (folder / "other" / "picture.png").write_bytes(b"PNG")
    (folder / "other" / "line.json").write_text("[" + "1," * 90_000 + "1]")
    (folder / "other" / "huge.json").write_text("1" * (quality.LARGEST_FILE + 1))
    (folder / "other" / "__pycache__" / "c.py").write_text("cached")
    (folder / "six.py").write_text("six")
    return folder


def sources(*args, **kwargs):
    return [document.source for document in raw_documents(*args, **kwargs)]


def test_raw_documents_are_the_readable_ones(site):
    expected = ["good-1.0.dist-info/LICENSE", "good/a.py", "good/bom.txt", "other/b.MD", "other/line.json", "six.py"]
    assert sources("full", folders=[("", site)]) == expected
    texts = {document.source: document.text for document in raw_documents("full", folders=[("", site)])}
    assert texts["good/a.py"] == "x = 'é'\ny\nz\n"
    assert texts["good/bom.txt"] == "hello"
    assert sources("full", ("good", "six"), [("", site)]) == ["other/b.MD", "other/line.json"]
    assert sources("full", ("p",), [("p", site), ("q", site)]) == [f"q/{name}" for name in expected]


def test_raw_documents_take_links_pipes_and_locked_files_in_their_stride(site):
    expected = sources("full", folders=[("", site)])
    (site / "loop").symlink_to(site, target_is_directory=True)
    (site / "link.py").symlink_to(site / "good" / "a.py")
    (site / "dangling.py").symlink_to(site / "nothing.py")
    if hasattr(os, "mkfifo"):
        os.mkfifo(site / "pipe.py")  # opening it would wait for ever
    assert sources("full", folders=[("", site)]) == expected
    if sys.platform == "linux":
        with open(os.path.join(os.fsencode(site), b"\xff.py"), "w") as file:
            file.write("odd name")
        assert "?.py" in sources("full", folders=[("", site)])
    locked = site / "good" / "a.py"
    locked.chmod(0)
    if not os.access(locked, os.R_OK):
        assert "good/a.py" not in sources("full", folders=[("", site)])


def test_samples_are_nested_and_fixed(tmp_path):
    for number in range(60):
        (tmp_path / f"{number}.txt").write_text("x" * 100)
    small, large = (sources(size, folders=[("", tmp_path)]) for size in (1000, 3000))
    assert (len(small), len(large)) == (10, 30)
    assert set(small) < set(large)
    assert small == sources(1000, folders=[("", tmp_path)]) == sorted(small)
    assert small != sources(1000, folders=[("", tmp_path)], seed=1)


@pytest.mark.parametrize("size", ["huge", 0, -1, True, ""])
def test_raw_documents_refuse_sizes(size, tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"size={size!r}: expected one of small, medium, full")):
        raw_documents(size, folders=[("", tmp_path)])


def test_raw_documents_refuse_nothing_and_a_bare_name(tmp_path):
    with pytest.raises(ValueError, match="no text file found in"):
        raw_documents(folders=[("here", tmp_path)])
    with pytest.raises(ValueError, match=r"expected several names, for example \('numpy',\)"):
        raw_documents(without="numpy")


def test_raw_text_of_this_machine():
    documents = raw_documents(300_000, without=("torch", "python"))
    assert 300_000 <= sum(len(document.text.encode()) for document in documents) < 600_000
    assert not [document.source for document in documents if document.source.split("/")[0] in ("torch", "python")]
    report = PIPELINES["c4"].run(documents)
    assert 0 <= report.kept < 0.2
    assert report.step("{").rules
