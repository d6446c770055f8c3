"""The laptop corpus: what is read, how it is cleaned, split and cached."""

import ast
import inspect
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_utils.data import FoundationModel, corpus, foundation_models, library_docs, short_number
from course_utils.data.corpus import Document, clean_docstring, documents, split_of

LONG = "A text that is long enough to be kept by the rule on short ones."


@pytest.fixture(scope="module")
def cache():
    """The real cache of size small, filled where this is the first test to need it."""
    library_docs("small", progress=False)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A fake library that is the only one of size small, and an empty cache."""
    folder = tmp_path / "site" / "fake"
    (folder / "tests").mkdir(parents=True)
    (folder / "inner").mkdir()
    (folder / "__init__.py").write_text(f'"""{LONG} It is the package."""\n')
    (folder / "inner" / "__init__.py").write_text("")
    (folder / "inner" / "code.py").write_text(
        f'''"""{LONG} It is the module."""

def first():
    """{LONG} It is a function.

    \tIndented by a tab.
    """
    def nested():
        """{LONG} It is nested."""

class Thing:
    """{LONG} It is a class."""
    if True:
        async def method(self):
            """{LONG} It is a method."""

def again():
    """{LONG} It is a class."""

def short():
    """Too short."""

value = f"""{LONG} No docstring."""
'''
    )
    (folder / "latin.py").write_bytes(f'# -*- coding: latin-1 -*-\n"""{LONG} Größe."""\n'.encode("latin-1"))
    (folder / "broken.py").write_text(f'"""{LONG} Broken."""\ndef (:\n')
    (folder / "undecodable.py").write_bytes(b'"""\xff\xfe' + LONG.encode() + b'"""\n')
    (folder / "null.py").write_bytes(b'"""' + LONG.encode() + b'\x00"""\n')
    (folder / "control.py").write_text(f'"""{LONG} \\ud800\\x07Control."""\n')
    (folder / "tests" / "test_code.py").write_text(f'"""{LONG} A test."""\n')
    (folder / "_version.py").write_text(f'"""{LONG} A version."""\n')
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setitem(corpus.SIZES, "small", ("fake",))
    monkeypatch.setattr(corpus.importlib.metadata, "version", lambda name: "1.0")
    return folder


def test_small_corpus(cache):
    everything = library_docs("small", progress=False)
    training = library_docs("small", split="train", progress=False)
    validation = library_docs("small", split="validation", progress=False)
    assert everything.column_names == ["text", "source", "split"]
    assert len(training) + len(validation) == len(everything) > 5000
    assert set(training["split"]) == {"train"}
    assert set(validation["split"]) == {"validation"}
    assert 0.03 < len(validation) / len(everything) < 0.07
    texts = everything["text"]
    assert len(set(texts)) == len(texts)
    assert 4e6 < sum(map(len, texts)) < 9e6
    assert {source.split(".")[0] for source in everything["source"]} == {"matplotlib", "numpy", "pandas"}
    assert all(split_of(text) == "validation" for text in validation["text"])
    assert min(map(len, texts)) >= corpus.SMALLEST
    assert not any(text != text.strip() or " \n" in text or "\n\n\n" in text or "\t" in text for text in texts)


def test_reads_what_python_reads(cache):
    import numpy

    found = {one["source"]: one["text"] for one in library_docs("small", split="train", progress=False)}
    documented = inspect.getdoc(numpy.linalg.norm)
    assert found["numpy.linalg._linalg.norm"].split() == documented.split()


def test_second_call_reads_the_cache(cache, monkeypatch):
    monkeypatch.setattr(corpus, "_collect", None)  # reading again would call it
    assert len(library_docs("small", progress=False)) > 5000


def test_what_is_read_from_a_package(package):
    found = [(one.source, clean_docstring(one.text)) for one in documents(package, "fake")]
    assert [source for source, _ in found] == [
        "fake",
        "fake.control",
        "fake.inner.code",
        "fake.inner.code.first",
        "fake.inner.code.first.nested",
        "fake.inner.code.Thing",
        "fake.inner.code.Thing.method",
        "fake.inner.code.again",
        "fake.inner.code.short",
        "fake.latin",
    ]
    texts = dict(found)
    assert texts["fake.latin"].endswith("Größe.")
    assert texts["fake.control"].endswith(" Control.")
    assert texts["fake.inner.code.first"] == f"{LONG} It is a function.\n\nIndented by a tab."


def test_duplicates_and_short_texts_are_left_out(package):
    found = library_docs("small", progress=False)
    sources = sorted(found["source"])
    assert "fake.inner.code.again" not in sources
    assert "fake.inner.code.short" not in sources
    assert len(sources) == 8


def test_nothing_of_the_package_is_run(package):
    (package / "danger.py").write_text(f'"""{LONG} Danger."""\nraise SystemExit("was run")\n')
    assert "fake.danger" in library_docs("small", progress=False)["source"]
    assert "fake" not in sys.modules


def test_new_version_is_read_again(package, monkeypatch):
    before = len(library_docs("small", progress=False))
    (package / "added.py").write_text(f'"""{LONG} Added."""\n')
    assert len(library_docs("small", progress=False)) == before
    monkeypatch.setattr(corpus.importlib.metadata, "version", lambda name: "2.0")
    assert len(library_docs("small", progress=False)) == before + 1


@pytest.mark.parametrize(
    "damage", ["truncate", "flip", "delete data", "empty card", "wrong card", "odd card", "list card"]
)
def test_damaged_cache_is_made_again(package, damage):
    expected = library_docs("small", progress=False)[:]
    folder = corpus.cache_folder() / "corpus"
    (card,) = folder.glob("*.json")
    data = folder / json.loads(card.read_text())["file"]
    if damage == "truncate":
        data.write_bytes(data.read_bytes()[:-200])
    elif damage == "flip":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "delete data":
        data.unlink()
    else:
        wrong = json.dumps(json.loads(card.read_text()) | {"train": "many"})
        card.write_text({"empty card": "", "wrong card": '{"file": "x"}', "odd card": wrong, "list card": "[]"}[damage])
    assert library_docs("small", progress=False)[:] == expected
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


def test_a_stopped_build_leaves_nothing_behind(package, monkeypatch):
    def stopped(names, progress):
        yield Document(LONG, "fake.one")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_collect", stopped)
        with pytest.raises(KeyboardInterrupt):
            library_docs("small", progress=False)
    assert list((corpus.cache_folder() / "corpus").iterdir()) == []
    assert len(library_docs("small", progress=False)) == 8


def test_two_processes_at_once(package):
    code = (
        "import sys; from course_utils.data import corpus, library_docs; corpus.SIZES['small'] = ('fake',);"
        "corpus.importlib.metadata.version = lambda name: '1.0';"
        "sys.path.insert(0, sys.argv[1]); print(len(library_docs('small', progress=False)))"
    )
    command = [sys.executable, "-c", code, str(package.parent)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in running] == ["8", "8"]
    assert len(list((corpus.cache_folder() / "corpus").iterdir())) == 2


def test_missing_library_is_left_out_with_a_note(package, monkeypatch, capsys):
    monkeypatch.setitem(corpus.SIZES, "small", ("fake", "no_such_library"))
    assert len(library_docs("small", progress=False)) == 8
    assert "no_such_library is not installed" in capsys.readouterr().out


def test_refuses_what_it_does_not_know(package, monkeypatch):
    with pytest.raises(ValueError, match="expected one of small, medium, full"):
        library_docs("large")
    with pytest.raises(ValueError, match="expected one of train, validation, or None"):
        library_docs("small", split="test")
    monkeypatch.setitem(corpus.SIZES, "small", ("no_such_library",))
    with pytest.raises(RuntimeError, match="no documentation found"):
        library_docs("small", progress=False)


@given(st.text(alphabet=st.sampled_from(list(" \t\nabé.\r\x0b\x00")), max_size=60))
def test_cleaning_leaves_nothing_loose(text):
    cleaned = clean_docstring(text)
    assert cleaned == cleaned.strip()
    assert "\n\n\n" not in cleaned
    assert all(line == line.rstrip() and "\t" not in line for line in cleaned.split("\n"))


@given(st.lists(st.sampled_from(["", "    first", "        second", "\tthird", "    "]), min_size=1, max_size=8))
def test_text_dedented_by_the_compiler_gives_the_same(lines):
    """Python 3.13 takes the common indentation off docstrings when it compiles; earlier versions do not."""
    expanded = [line.expandtabs() for line in lines]
    margin = min((len(line) - len(line.lstrip()) for line in expanded if line.strip()), default=0)
    compiled = "Summary.\n" + "\n".join(line[margin:] for line in expanded)
    assert clean_docstring(compiled) == clean_docstring("Summary.\n" + "\n".join(lines))


@given(st.lists(st.sampled_from(["", "    first", "        second", "\tthird", "    "]), min_size=1, max_size=8))
def test_dedents_like_the_standard_library(lines):
    text = "Summary.\n" + "\n".join(lines)
    ours, theirs = clean_docstring(text), inspect.cleandoc(text)
    assert [line for line in ours.split("\n") if line] == [line.rstrip() for line in theirs.split("\n") if line.strip()]


def test_cleaning_by_hand():
    assert clean_docstring("\n    One\n      two  \n\n\n\n    three\x07\n  ") == "One\n  two\n\nthree"
    assert clean_docstring("One\r\n    two") == "One\ntwo"
    assert clean_docstring("") == ""


def test_split_is_fixed_for_ever():
    assert [number for number in range(60) if split_of(f"text {number}") == "validation"] == [24, 33, 47]


def test_sizes_grow():
    assert set(corpus.SIZES["small"]) < set(corpus.SIZES["medium"]) < set(corpus.SIZES["full"])
    assert corpus.PYTHON not in corpus.SIZES["small"]


def test_python_topics_are_found():
    topics = {one.source: one.text for one in corpus._topics()}
    assert "pydoc_data.topics.if" in topics
    assert len(topics) > 60


def test_deep_sources_do_not_stop_the_reading(tmp_path):
    (tmp_path / "deep.py").write_text("x = " + "-" * 5000 + "1\n")
    (tmp_path / "fine.py").write_text(f'"""{LONG}"""\n')
    assert [one.source for one in documents(tmp_path, "p")] == ["p.fine"]


def test_docstrings_of_the_course_itself_are_read():
    tree = ast.parse(inspect.getsource(corpus))
    found = {one.source for one in corpus._docstrings(tree, "m")}
    assert {"m", "m.library_docs", "m.Document"} <= found


def test_import_is_light():
    code = "import sys, course_utils.data; print(sorted({'datasets', 'pyarrow', 'torch', 'pandas'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_foundation_models():
    models = {model.name: model for model in foundation_models()}
    assert {"BERT", "GPT", "LLaMA", "FLAN-T5", "BLOOM", "PaLM", "T5", "BART", "RoBERTa", "BloombergGPT"} <= set(models)
    for model in models.values():
        assert isinstance(model, FoundationModel)
        assert model.family in corpus_families()
        assert model.arxiv is None or (model.arxiv[4] == "." and model.arxiv.replace(".", "").isdigit())
        assert model.reading.rsplit("-", 1)[1].isdigit()
        assert model.note
    assert [model.year for model in foundation_models()] == sorted(model.year for model in foundation_models())
    assert models["Chinchilla"].tokens_per_parameter == pytest.approx(20)
    assert models["GPT"].tokens_per_parameter is None


def corpus_families():
    from course_utils.data.foundation import FAMILIES

    return FAMILIES


def test_short_numbers():
    assert [short_number(n) for n in (65_200_000_000, 1.4e12, 340e6, 512, None)] == [
        "65.2 billion",
        "1.4 trillion",
        "340 million",
        "512",
        "not stated",
    ]
