"""The paper downloader, against a server on this machine."""

import http.server
import socket
import threading

import pytest

from course_utils import papers as module
from course_utils.papers import download, fetch, papers

PDF = b"%PDF-1.5\n" + bytes(range(256)) * 900 + b"\n%%EOF\n"
GUIDE = """# Reading guide

<a id="one-2001"></a>

### One (2001): First

Two sentences. Of text.

- **Link:** [arXiv:2001.00001](https://arxiv.org/abs/2001.00001)

<a id="page-2002"></a>

### A page without a paper

- **Link:** [example](https://example.org)

<a id="two-2002"></a>

### Two (2002): Second

- **Link:** [arXiv:2001.00002](https://arxiv.org/abs/2001.00002)

## Another section
"""


class Server:
    """A loopback server whose behaviour a test chooses; it records the Range header of every request."""

    def __init__(self):
        self.behaviour = "range"
        self.requests = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/pdf/"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler):
        asked = handler.headers.get("Range")
        self.requests.append((handler.path, asked))
        body, status, kind = PDF, 200, "application/pdf"
        if self.behaviour == "missing":
            handler.send_error(404)
            return
        if self.behaviour == "html":
            body, kind = b"<html>Please solve this riddle</html>", "text/html"
        if self.behaviour == "cut pdf":
            body = PDF[:5000]
        start = 0
        if asked and self.behaviour in ("range", "breaks", "always breaks"):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                handler.send_error(416)
                return
            status = 206
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body) - start))
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.end_headers()
        body = body[start:]
        if self.behaviour == "always breaks" or (self.behaviour == "breaks" and len(self.requests) == 1):
            body = body[: min(1000, len(body) // 2)]
        handler.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "*")
    made = Server()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def guide(tmp_path):
    file = tmp_path / "reading.md"
    file.write_text(GUIDE, encoding="utf-8")
    return file


@pytest.fixture
def get(server, guide, tmp_path):
    """Run a download of the guide's first paper, or of those named."""

    def run(only="one-2001", **options):
        settings = {"base_url": server.url, "guide": guide, "delay": 0, "timeout": 5, "progress": False} | options
        return fetch(tmp_path / "papers", only, **settings)

    return run


def test_the_list_comes_from_the_guide(guide):
    assert [(paper.key, paper.title, paper.arxiv) for paper in papers(guide)] == [
        ("one-2001", "One (2001): First", "2001.00001"),
        ("two-2002", "Two (2002): Second", "2001.00002"),
    ]


def test_the_real_guide_has_the_papers_of_the_notes():
    listed = {paper.arxiv: paper.key for paper in papers()}
    assert len(listed) == len(papers()), "a paper stands twice in the guide"
    named = "1706.03762 2211.05100 2001.08361 2204.05832 2302.13971 2005.14165 2203.15556 2303.17564"
    assert set(named.split()) <= set(listed)
    assert listed["1706.03762"] == "vaswani-2017"


def test_full_download(get, server, tmp_path):
    (outcome,) = get()
    assert outcome.ok and outcome.message == "0.2 MB"
    assert [file.name for file in (tmp_path / "papers").iterdir()] == ["one-2001.pdf"]
    assert (tmp_path / "papers" / "one-2001.pdf").read_bytes() == PDF
    assert server.requests == [("/pdf/2001.00001", None)]


def test_what_is_there_is_left_alone(get, server, tmp_path):
    get()
    (outcome,) = get()
    assert outcome.ok and outcome.message == "already there"
    assert len(server.requests) == 1


def test_partial_file_is_gone_on_with(get, server, tmp_path):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "one-2001.pdf.part").write_bytes(PDF[:70000])
    (outcome,) = get()
    assert outcome.ok and outcome.message.endswith("(resumed)")
    assert (tmp_path / "papers" / "one-2001.pdf").read_bytes() == PDF
    assert server.requests == [("/pdf/2001.00001", "bytes=70000-")]


def test_server_without_range_sends_it_all_again(get, server, tmp_path):
    server.behaviour = "plain"
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "one-2001.pdf.part").write_bytes(PDF[:70000])
    (outcome,) = get()
    assert outcome.ok
    assert (tmp_path / "papers" / "one-2001.pdf").read_bytes() == PDF


def test_partial_file_longer_than_the_paper_is_thrown_away(get, server, tmp_path):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "one-2001.pdf.part").write_bytes(PDF + b"more")
    (outcome,) = get()
    assert outcome.ok
    assert (tmp_path / "papers" / "one-2001.pdf").read_bytes() == PDF
    assert [asked for _, asked in server.requests] == [f"bytes={len(PDF) + 4}-", None]


def test_broken_line_is_mended_at_once(get, server, tmp_path):
    server.behaviour = "breaks"
    (outcome,) = get()
    assert outcome.ok
    assert (tmp_path / "papers" / "one-2001.pdf").read_bytes() == PDF
    assert [asked for _, asked in server.requests] == [None, "bytes=1000-"]


def test_line_that_always_breaks_fails_and_keeps_what_came(get, server, tmp_path):
    server.behaviour = "always breaks"
    (outcome,) = get()
    assert not outcome.ok and "goes on from there" in outcome.message
    assert [file.name for file in (tmp_path / "papers").iterdir()] == ["one-2001.pdf.part"]
    assert (tmp_path / "papers" / "one-2001.pdf.part").read_bytes() == PDF[:3000]
    server.behaviour = "range"
    (outcome,) = get()
    assert outcome.ok
    assert (tmp_path / "papers" / "one-2001.pdf").read_bytes() == PDF


@pytest.mark.parametrize(
    ("behaviour", "says"), [("missing", "404"), ("html", "did not send a PDF"), ("cut pdf", "a whole PDF")]
)
def test_what_is_no_paper_leaves_no_file(get, server, tmp_path, behaviour, says):
    server.behaviour = behaviour
    outcomes = get(None)
    assert [outcome.ok for outcome in outcomes] == [False, False]
    assert says in outcomes[0].message
    assert not list((tmp_path / "papers").iterdir())
    assert len(server.requests) == 2, "one bad paper must not stop the others"


def test_out_of_reach_is_said_once(guide, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    status = download(tmp_path / "papers", None, f"http://127.0.0.1:{port}/pdf/", guide, delay=0)
    lines = capsys.readouterr().out.splitlines()
    assert status == 1
    assert len(lines) == 2
    assert lines[0].startswith(f"The network is out of reach (127.0.0.1:{port}")
    assert lines[1].startswith("0 of 2 papers")


def test_status_and_lines(server, guide, tmp_path, capsys):
    assert download(tmp_path / "papers", None, server.url, guide, delay=0) == 0
    assert capsys.readouterr().out.splitlines() == [
        "[OK] one-2001: 0.2 MB",
        "[OK] two-2002: 0.2 MB",
        f"2 of 2 papers are in {tmp_path / 'papers'}.",
    ]
    server.behaviour = "missing"
    assert download(tmp_path / "others", ["two-2002"], server.url, guide, delay=0) == 1
    assert "[FAIL] two-2002: the server answered 404" in capsys.readouterr().out


def test_it_waits_between_papers_only(server, guide, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    fetch(tmp_path / "papers", None, server.url, guide, delay=7, progress=False)
    assert waits == [7]


def test_the_arxiv_number_names_a_paper_too(get):
    assert get("2001.00002")[0].paper.key == "two-2002"


def test_refuses_unknown_papers(get, guide, tmp_path, capsys):
    with pytest.raises(ValueError, match="'three-2003'"):
        get(["one-2001", "three-2003"])
    assert download(tmp_path / "papers", "three-2003", guide=guide) == 2
    assert "three-2003" in capsys.readouterr().err


def test_refuses_guides_that_are_missing_or_empty(tmp_path):
    with pytest.raises(ValueError, match="no reading guide"):
        papers(tmp_path / "none.md")
    (tmp_path / "empty.md").write_text("# Nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no paper"):
        papers(tmp_path / "empty.md")
