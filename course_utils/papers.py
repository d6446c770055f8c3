"""The papers of the reading guide, downloaded from arXiv by those who are online.

The list is read from ``supplemental/reading.md``: whatever has an arXiv link there can be downloaded here.
"""

import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ARXIV = "https://arxiv.org/pdf/"
_GUIDE = Path(__file__).resolve().parent.parent / "supplemental" / "reading.md"
_ENTRY = re.compile(
    r'<a id="(?P<key>[^"]+)"></a>\s+### (?P<title>[^\n]+)\n(?P<text>.*?)(?=\n<a id=|\n## |\Z)', re.DOTALL
)
_NUMBER = re.compile(r"https://arxiv\.org/abs/(\d{4}\.\d{4,5})")
_AGENT = "course-utils (a course on language models; downloads papers one at a time)"


@dataclass(frozen=True)
class Paper:
    """One paper of the reading guide.

    Attributes:
        key: its anchor there, such as ``"vaswani-2017"``.
        title: authors, year and title.
        arxiv: its number on arXiv, such as ``"1706.03762"``.
    """

    key: str
    title: str
    arxiv: str

    @property
    def file(self) -> str:
        """Name of the downloaded file."""
        return f"{self.key}.pdf"


@dataclass(frozen=True)
class Outcome:
    """What became of one download.

    Attributes:
        paper: the paper.
        ok: whether the whole file is there.
        message: one line for people.
    """

    paper: Paper
    ok: bool
    message: str


class _Unreachable(Exception):
    """The server cannot be reached at all, so the other papers need not be tried."""


class _Failed(Exception):
    """This paper could not be downloaded."""


def papers(guide: str | Path | None = None) -> list[Paper]:
    """Return the papers of the reading guide that are on arXiv, in its order.

    Args:
        guide: the Markdown file; by default ``supplemental/reading.md`` of the course's folder.

    Raises:
        ValueError: the file is missing or lists no arXiv paper.
    """
    path = Path(guide) if guide is not None else _GUIDE
    if not path.is_file():
        raise ValueError(f"there is no reading guide at {path}; run this in a clone of the course, or name the file")
    found = []
    for entry in _ENTRY.finditer(path.read_text(encoding="utf-8")):
        number = _NUMBER.search(entry["text"])
        if number:
            found.append(Paper(entry["key"], entry["title"].strip(), number[1]))
    if not found:
        raise ValueError(f"{path} lists no paper with an arXiv link under a heading with an anchor")
    return found


def _fetch(url: str, target: Path, timeout: int | float, tries: int, progress: bool) -> str:
    """Download one PDF next to its place and move it there once it is whole; return what was done."""
    part = target.with_name(target.name + ".part")
    resumed = False
    for _ in range(tries):
        start = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(url, headers={"User-Agent": _AGENT})
        if start:
            request.add_header("Range", f"bytes={start}-")
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                total = _receive(answer, part, start, target.stem, progress)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and start:  # What we hold does not fit the file there: begin again.
                part.unlink()
                continue
            raise _Failed(f"the server answered {error.code} ({error.reason})") from None
        except urllib.error.URLError as error:
            raise _Unreachable(str(error.reason)) from None
        except (TimeoutError, ConnectionError, http.client.HTTPException):
            continue  # The line broke: go on from where it did.
        size = part.stat().st_size
        if total is not None and size < total:
            resumed = True
            continue
        if total is not None and size > total:
            part.unlink()
            continue
        _check(part)
        os.replace(part, target)
        return f"{size / 1e6:.1f} MB" + (" (resumed)" if resumed or start else "")
    kept = part.stat().st_size / 1e6 if part.exists() else 0
    raise _Failed(f"broke off {tries} times; {kept:.1f} MB are kept, and the next run goes on from there")


def _receive(answer: http.client.HTTPResponse, part: Path, start: int, name: str, progress: bool) -> int | None:
    """Write the body of an answer behind what is there already; return the size of the whole file, if known."""
    from tqdm.auto import tqdm

    if start and answer.status != 206:  # The server sends the file from its beginning.
        start = 0
    length = answer.headers.get("Content-Length")
    total = start + int(length) if length is not None else None
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name, leave=False, disable=not progress)
    block = answer.read(1 << 16)
    if not start and block and not block.startswith(b"%PDF-"):
        raise _Failed("the server did not send a PDF")
    with bar, part.open("ab" if start else "wb") as stream:
        while block:
            stream.write(block)
            bar.update(len(block))
            block = answer.read(1 << 16)
    return total


def _check(part: Path) -> None:
    """Delete a file that is not a whole PDF and say so."""
    with part.open("rb") as stream:
        head = stream.read(5)
        stream.seek(max(0, part.stat().st_size - 2048))
        tail = stream.read()
    if head != b"%PDF-" or b"%%EOF" not in tail:
        part.unlink()
        raise _Failed("the server did not send a whole PDF")


def fetch(
    folder: str | Path = "supplemental/papers",
    only: Iterable[str] | str | None = None,
    base_url: str = ARXIV,
    guide: str | Path | None = None,
    delay: int | float = 3.0,
    timeout: int | float = 30.0,
    tries: int = 3,
    progress: bool = True,
) -> list[Outcome]:
    """Download papers as PDF files, one after another; those that are there already are left alone.

    A file appears under its name only when it is whole. A download that broke off stays beside it as ``.part`` and is
    gone on with. When the server cannot be reached the remaining papers are not tried.

    Args:
        folder: where to; it is created where it is missing.
        only: keys (``"vaswani-2017"``) or arXiv numbers; by default all.
        base_url: address to which the arXiv number is appended.
        guide: see :func:`papers`.
        delay: seconds to wait between two downloads, out of politeness.
        timeout: seconds without an answer after which a try is given up.
        tries: how often a broken download is gone on with.
        progress: show a progress bar for each file.

    Returns:
        One outcome for each paper, in order.

    Raises:
        ValueError: a key is not in the reading guide.
    """
    every = papers(guide)
    if only is not None:
        wanted = [only] if isinstance(only, str) else list(only)
        known = {paper.key: paper for paper in every} | {paper.arxiv: paper for paper in every}
        missing = [name for name in wanted if name not in known]
        if missing:
            raise ValueError(
                f"no arXiv paper {', '.join(map(repr, missing))} in the reading guide; use an anchor of"
                f" supplemental/reading.md such as {every[0].key!r}"
            )
        every = [known[name] for name in wanted]
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    asked = False
    for number, paper in enumerate(every):
        file = target / paper.file
        if file.exists():
            outcomes.append(Outcome(paper, True, "already there"))
            continue
        if asked:
            time.sleep(delay)
        asked = True
        try:
            outcomes.append(Outcome(paper, True, _fetch(base_url + paper.arxiv, file, timeout, tries, progress)))
        except _Failed as error:
            outcomes.append(Outcome(paper, False, str(error)))
        except _Unreachable as error:
            for left in every[number:]:
                there = (target / left.file).exists()
                outcomes.append(Outcome(left, there, "already there" if there else f"not reached: {error}"))
            break
    return outcomes


def download(
    folder: str | Path = "supplemental/papers",
    only: Iterable[str] | str | None = None,
    base_url: str = ARXIV,
    guide: str | Path | None = None,
    delay: int | float = 3.0,
    timeout: int | float = 30.0,
) -> int:
    """Download papers as :func:`fetch` does; print one line for each and a last line that says how it went.

    Args:
        folder: where to; it is created where it is missing.
        only: keys (``"vaswani-2017"``) or arXiv numbers; by default all.
        base_url: address to which the arXiv number is appended.
        guide: see :func:`papers`.
        delay: seconds to wait between two downloads.
        timeout: seconds without an answer after which a try is given up.

    Returns:
        The exit status: 0 when all papers are there, 1 when some are not, 2 when a key or the guide is wrong.
    """
    try:
        outcomes = fetch(folder, only, base_url, guide, delay, timeout, progress=sys.stderr.isatty())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    unreachable = [outcome for outcome in outcomes if outcome.message.startswith("not reached")]
    for outcome in outcomes:
        if outcome not in unreachable:
            print(f"[{'OK' if outcome.ok else 'FAIL'}] {outcome.paper.key}: {outcome.message}")
    if unreachable:
        reason = unreachable[0].message.removeprefix("not reached: ")
        print(f"The network is out of reach ({base_url.split('/')[2]}: {reason}). The course itself does not need it.")
    good = sum(outcome.ok for outcome in outcomes)
    print(f"{good} of {len(outcomes)} papers are in {folder}.")
    return 0 if good == len(outcomes) else 1
