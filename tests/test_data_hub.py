"""DialogSum and SST-2: from a folder in each format, from a hub on this machine, and what is refused."""

import csv
import json
import re
from pathlib import Path

import pytest

from course_utils import data
from course_utils.data.hub import HUB_SETS
from tests.hub_server import HubServer, Repository

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "dialogsum"
DIALOGUES = [
    {
        "id": f"d_{number}",
        "dialogue": f'#Person1#: "Hi", {number}!\n#Person2#: Hi.',
        "summary": f"They greet, {number}.",
    }
    for number in range(3)
]
REVIEWS = [("a gripping film ", 1), ('it says " nothing', 0), ("dull , dull", 0)]


def write(path, rows):
    """Write rows of a table in the format that the name of the file says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:  # as GLUE has it: no quoting
        lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def reviews(labelled=True):
    return [{"sentence": text, "label": label if labelled else -1} for text, label in REVIEWS]


@pytest.mark.parametrize("name", ["train.tsv", "sst2.train.jsonl", "train.csv", "data/train-00000-of-00001.parquet"])
def test_sst2_in_each_format(tmp_path, name):
    write(tmp_path / name, reviews())
    write(tmp_path / name.replace("train", "dev"), reviews()[:2])
    write(tmp_path / name.replace("train", "test"), reviews(labelled=False))  # no label is known: left out
    found = data.hub("sst2", tmp_path)
    assert {split: len(part) for split, part in found.items()} == {"train": 3, "validation": 2}
    assert found["train"].to_dict() == {
        "input": ["a gripping film", 'it says " nothing', "dull , dull"],
        "target": ["positive", "negative", "negative"],
        "task": ["sst2"] * 3,
    }


def test_glue_test_table_without_labels(tmp_path):
    write(tmp_path / "SST-2" / "train.tsv", reviews())
    write(tmp_path / "SST-2" / "test.tsv", [{"index": 0, "sentence": "secret"}])
    assert list(data.hub("sst2", str(tmp_path))) == ["train"]


@pytest.mark.parametrize("name", ["dialogsum.dev.jsonl", "validation.csv", "val.parquet", "valid-1.tsv"])
def test_dialogsum_in_each_format(tmp_path, name):
    rows = DIALOGUES if not name.endswith("tsv") else [{**row, "dialogue": "#Person1#: Hi."} for row in DIALOGUES]
    write(tmp_path / name, rows)
    found = data.hub("dialogsum", tmp_path)
    assert list(found) == ["validation"]
    assert found["validation"]["input"] == [row["dialogue"] for row in rows]
    assert found["validation"]["target"] == [row["summary"] for row in rows]
    assert set(found["validation"]["task"]) == {"dialogsum"}


def test_parts_of_one_split_and_three_summaries(tmp_path):
    for number in range(2):
        write(tmp_path / f"train-0000{number}-of-00002.parquet", DIALOGUES[number : number + 1])
    rows = [{"dialogue": row["dialogue"], "summary1": row["summary"], "summary2": "other"} for row in DIALOGUES]
    write(tmp_path / "dialogsum.test.jsonl", rows)
    found = data.hub("dialogsum", tmp_path)
    assert found["train"]["input"] == [row["dialogue"] for row in DIALOGUES[:2]]
    assert found["test"]["target"] == [row["summary"] for row in DIALOGUES]


@pytest.mark.skipif(not SHARED.is_dir(), reason="DialogSum is not bundled (its licence forbids it): no ../shared here")
def test_dialogsum_as_its_authors_give_it():
    found = data.hub("dialogsum", SHARED)["validation"]
    assert len(found) == 500 and found.column_names == ["input", "target", "task"]
    assert all("#Person1#:" in text and "\n" in text for text in found["input"])
    assert all(len(target) < len(text) for text, target in zip(found["input"], found["target"], strict=True))


class DataServer(HubServer):
    """Serves data sets under the paths that the hub has for them."""

    def answer(self, handler, body):
        handler.path = handler.path.replace("/api/datasets/", "/api/models/").replace("/datasets/", "/", 1)
        super().answer(handler, body)


@pytest.fixture
def server(tmp_path, monkeypatch):
    for split in ("train", "validation", "test"):
        write(tmp_path / "made" / f"{split}.csv", DIALOGUES)
    files = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    running = DataServer({HUB_SETS["dialogsum"].repository: Repository(files | {"dialogsum.py": b"raise SystemExit"})})
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield running
    running.close()


def test_from_the_hub_and_then_without_it(server, tmp_path):
    found = data.hub("dialogsum")
    assert {split: len(part) for split, part in found.items()} == {"train": 3, "validation": 3, "test": 3}
    assert found["test"]["input"] == [row["dialogue"] for row in DIALOGUES]
    assert not list((tmp_path / "cache").rglob("*.py"))  # no code is fetched
    server.break_with("500")
    assert data.hub("dialogsum")["train"].to_dict() == found["train"].to_dict()
    assert not server.requests
    server.break_with(None)
    damaged = next((tmp_path / "cache").rglob("train.csv"))
    damaged.write_bytes(b"\xff" + damaged.read_bytes())
    assert data.hub("dialogsum")["train"].to_dict() == found["train"].to_dict()


@pytest.mark.parametrize("fault", ["401", "403", "404", "500", "gated"])
def test_refuses_when_the_hub_does(server, fault):
    server.break_with(fault)
    with pytest.raises(ConnectionError) as caught:
        data.hub("dialogsum")
    line = str(caught.value)
    assert line.startswith("knkarthick/dialogsum cannot be had from the hub. Go online and try again, or give a folder")
    assert "\n" not in line and "data.hub('dialogsum', folder=...)" in line


def test_refuses_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for offline in (False, True):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        with pytest.raises(ConnectionError, match="stanfordnlp/sst2 cannot be had"):
            data.hub("sst2")


def test_refuses_a_hub_copy_in_parts(server):
    repository = server.repositories[HUB_SETS["dialogsum"].repository]
    del repository.files["validation.csv"]
    with pytest.raises(ConnectionError, match="only train, test in"):
        data.hub("dialogsum")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train.csv", b"id,text\n1,hello\n", "expected columns sentence and label, found id, text"),
        ("train.csv", b"", "expected one example a row"),
        ("train.csv", b"sentence,label\nfine,2\n", "train.csv, example 1: label='2', expected a number below 2"),
        ("train.csv", b"sentence,label\n ,1\n", "train.csv, example 1: sentence or label is empty"),
        ("train.tsv", b"sentence\tlabel\nfine\t1\nshort\n", "train.tsv, example 2: sentence or label is empty"),
        ("train.jsonl", b'{"sentence": "fine", "label": 1}\n{"sente', "train.jsonl cannot be read"),
        ("train.jsonl", b"[1, 2]\n", "expected one example a row, each with named fields"),
        ("train.jsonl", b'{"sentence": 5, "label": 1}\n', "example 1: sentence or label is empty or no text"),
        ("train.parquet", b"PAR1 and no more", "train.parquet cannot be read"),
        ("train.csv", b"sentence,label\n\xff\xfe,1\n", "train.csv cannot be read"),
        ("test.tsv", b"index\tsentence\n0\tfine\n", "sst2: no example with a target"),
    ],
)
def test_refuses_files_that_are_not_as_they_should_be(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        data.hub("sst2", tmp_path)
    assert "\n" not in str(caught.value)


def test_refuses_what_is_missing_or_ambiguous(tmp_path):
    with pytest.raises(ValueError, match="name='squad': expected one of dialogsum, sst2"):
        data.hub("squad")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        data.hub("sst2", tmp_path / "none")
    (tmp_path / "readme.txt").write_text("train", encoding="utf-8")
    (tmp_path / "training.csv").write_text("sentence,label\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"no file of sst2 in it; expected names such as sst2\.train\.jsonl"):
        data.hub("sst2", tmp_path)
    write(tmp_path / "train.csv", reviews())
    write(tmp_path / "train.tsv", reviews())
    with pytest.raises(ValueError, match=r"several train files, train\.csv, train\.tsv: keep one"):
        data.hub("sst2", tmp_path)
