"""The head viewer beside BertViz in headless Chromium: how long it takes, how large it is, how fast it answers.

A part of ``make bench``. BertViz is installed for the benchmark alone, into a folder of the course's cache, and what
its pages ask of a CDN comes from there too, which is its best case: no request leaves the machine.
"""

import os
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm

from course_utils.environment import cache_folder
from course_utils.widgets import AttentionView
from tests.browser.test_lab import CHROMIUM, FLAGS

Build = Callable[[list[str], list[torch.Tensor]], str]
LAYERS, HEADS = 6, 12
TARGETS = {16: 25, 64: 180, 128: 480, 256: 1300}
"""Tokens to the KB (of 1000 bytes) that the page may have."""
FRAME = 1000 / 60
BERTVIZ = "bertviz==1.4.1"
FILES = {
    "require.min.js": ("requirejs@2.3.6", "package/require.js"),
    "d3.min.js": ("d3@5.7.0", "package/dist/d3.min.js"),
    "jquery.min.js": ("jquery@2.1.0", "package/dist/jquery.min.js"),
}
"""What BertViz's pages ask for, to the npm package and the file in it (npm holds no jQuery 2.0.0)."""
DRAWN = {
    "AttentionView": "document.querySelector('[data-live]')?.shadowRoot?.querySelector('.key span')",
    "BertViz head view": "document.querySelector('#vis #attention line')",
    "BertViz model view": "document.querySelector('#vis svg line')",
    "blank page": "document.readyState === 'complete'",
}
"""Viewer to what is on its page as soon as its script has run."""
CHANGE = {
    "AttentionView": "document.querySelector('[data-live]').shadowRoot.querySelectorAll('[role=gridcell]')[n].click()",
    "BertViz head view": "document.querySelectorAll('#vis svg > g:last-child > rect')[n % 12]"
    ".dispatchEvent(new MouseEvent('dblclick'))",
    "BertViz model view": "document.querySelectorAll('#vis svg > g > rect:last-child')[n]"
    ".dispatchEvent(new MouseEvent('click'))",
}
"""Viewer to what shows head n."""
WATCH = """window.drawn = new Promise(done => {
  const painted = () => { const gate = new MessageChannel(); gate.port1.onmessage = done; gate.port2.postMessage(0); };
  const look = () => requestAnimationFrame((%s) ? painted : look);
  look();
});"""
TIME = """async () => {
  const times = [], begun = performance.now();
  for (let n = 1; n < 24 && (n < 3 || performance.now() - begun < 10000); n++)
    times.push(await new Promise(done => requestAnimationFrame(() => {
      const clicked = performance.now(), gate = new MessageChannel();
      %s;
      gate.port1.onmessage = () => done(performance.now() - clicked);
      gate.port2.postMessage(0);
    })));
  return times;
}"""
ABOUT = (
    f"`AttentionView` beside BertViz 1.4.1: a model of {LAYERS} layers of {HEADS} heads, an encoder's maps (no mask), "
    "the softmax of scores drawn from a normal distribution with standard deviation 2. Headless Chromium, no network; "
    "what BertViz's pages ask of a CDN was served from a local folder, its best case. Median (smallest to largest).\n\n"
    "- Python: seconds of CPU from the maps to the HTML.\n"
    "- Size: KB of 1000 bytes, the page and all that it loads.\n"
    "- First picture: seconds of CPU of all processes of Chromium, from opening the page until the frame is painted in "
    "which the viewer stands; nothing is subtracted (the last row is an empty page).\n"
    "- Change of the head: milliseconds from the click, at the beginning of a frame, until that frame is painted. In "
    "BertViz's head view a double click shows one head; in its model view a click shows it large."
)


def lines(quick: bool) -> list[str]:
    """Measure all viewers at all sizes; return the table."""
    if CHROMIUM is None:
        return ["Not measured: there is no Chromium here (set COURSE_CHROMIUM to its path)."]
    from playwright.sync_api import Error, sync_playwright

    viewers: dict[str, Build] = {"AttentionView": lambda tokens, maps: AttentionView(tokens, maps).to_html()}
    notes, files = [], Path()
    try:
        files = bertviz()
        viewers |= bertviz_viewers(files)
    except (OSError, subprocess.SubprocessError, ImportError) as error:
        notes = ["", f"BertViz is left out: pip or npm could not bring it ({type(error).__name__})."]
    rows: dict[tuple[str, str], dict[str, list[float]]] = {}
    runs = 2 if quick else 5
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        for tokens in [16, 64] if quick else TARGETS:
            names, maps = [f"word{number}" for number in range(tokens)], random_maps(tokens, 2.0)
            seconds = "0.5" if tokens == 256 else ""
            for name, build in tqdm(viewers.items(), desc=f"{tokens} tokens", leave=False):
                build(names[:4], [layer[..., :4, :4] for layer in maps])  # loads what is loaded once
                begun = time.monotonic()
                for run in range(runs):
                    if run and time.monotonic() - begun > 40:
                        break
                    spent = time.process_time()
                    html = build(names, maps)
                    spent = time.process_time() - spent
                    page.write_text(html, encoding="utf-8")
                    first, changes, loaded = [], [], 0.0
                    try:
                        first, changes, loaded = opened(playwright, name, page, files)
                    except Error:  # Chromium gave up
                        notes += ["", f"{name} at {tokens} tokens: the page died."]
                    for what, target, values in (
                        ("Python, s", seconds, [spent]),
                        ("size, KB", f"{TARGETS[tokens]}", [page.stat().st_size / 1000 + loaded]),
                        ("first picture, s", seconds, first),
                        ("change of the head, ms", f"{FRAME:.1f}", changes),
                    ):
                        rows.setdefault((f"{tokens} tokens: {what}", target), {}).setdefault(name, []).extend(values)
            flat = viewers["AttentionView"](names, random_maps(tokens, 1.0))
            rows[f"{tokens} tokens: size of flatter maps (deviation 1), KB", ""] = {"AttentionView": [len(flat) / 1000]}
        page.write_text("<!doctype html><title>Blank</title>", encoding="utf-8")
        blank = [one for _ in range(runs) for one in opened(playwright, "blank page", page, files)[0]]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        version = chromium.version
        chromium.close()
    small = {name: build(["a"], [torch.ones(1, 1, 1, 1)]) for name, build in viewers.items()}
    scripts = {
        name: [sum(map(len, re.findall("<script.*?</script>", html, re.S))) / 1000] for name, html in small.items()
    }
    for name in scripts:
        if name != "AttentionView":
            scripts[name][0] += sum((files / file).stat().st_size for file in FILES) / 1000
    rows["JavaScript and CSS in it, KB", "20"] = scripts
    rows["addresses of other machines in it", "0"] = {
        name: [float(len(set(re.findall(r"https?://[^'\"\s]+", html))))] for name, html in small.items()
    }
    rows["blank page: first picture, s", ""] = {"AttentionView": blank}
    return [
        f"| what | {' | '.join(viewers)} | target, at most |",
        "| --- |" + " --- |" * (len(viewers) + 1),
        *(
            f"| {what} | {' | '.join(shown(found.get(name, [])) for name in viewers)} | {target} |"
            for (what, target), found in rows.items()
        ),
        *notes,
        "",
        f"Chromium {version}.",
    ]


def random_maps(tokens: int, deviation: float) -> list[torch.Tensor]:
    """One tensor a layer, (1, heads, tokens, tokens)."""
    scores = torch.randn(LAYERS, 1, HEADS, tokens, tokens, generator=torch.Generator().manual_seed(0))
    return list((deviation * scores).softmax(-1))


def shown(values: list[float]) -> str:
    """Median (smallest to largest), three digits of each."""
    if not values:
        return ""
    middle = statistics.median(values)
    digits = (
        0
        if middle >= 100 or all(value == int(value) for value in values)
        else 1
        if middle >= 10
        else 2
        if middle >= 1
        else 3
    )
    median, low, high = (f"{value:.{digits}f}" for value in (middle, min(values), max(values)))
    return median if low == high else f"{median} ({low} to {high})"


def opened(playwright: Any, name: str, file: Path, files: Path) -> tuple[list[float], list[float], float]:
    """Open a page in a Chromium of its own.

    Returns:
        Seconds of CPU until the first picture, milliseconds of each change of the head, KB that the page loaded.

    Raises:
        RuntimeError: the page asks another machine for what it is not known to need.
    """
    before = {process.pid for process in psutil.Process().children(recursive=True)}

    def spent() -> float:
        total = 0.0
        for process in psutil.Process().children(recursive=True):
            if process.pid not in before:
                times = process.cpu_times()
                total += times.user + times.system
        return total

    loaded: list[float] = []
    unknown: list[str] = []

    def serve(route: Any) -> None:
        found = Path(route.request.url).name
        if not name.startswith("BertViz") or found not in FILES:
            unknown.append(route.request.url)
            return route.abort()
        loaded.append((files / found).stat().st_size / 1000)
        route.fulfill(path=files / found, content_type="text/javascript")

    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    try:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(600_000)
        page.route(re.compile("^https?:"), serve)
        page.add_init_script(WATCH % DRAWN[name])
        time.sleep(1)  # Chromium's own start is over
        begun = spent()
        page.goto(file.as_uri(), wait_until="commit")
        page.evaluate("drawn.then(() => 0)")
        first = spent() - begun
        changes = page.evaluate(TIME % CHANGE[name]) if name in CHANGE else []
        if unknown:
            raise RuntimeError(f"{name} asks other machines: {unknown}")
        return [first], changes, sum(loaded)
    finally:
        browser.close()


def bertviz() -> Path:
    """Bring BertViz and the files that its pages load into the cache, once; return the folder."""
    folder = cache_folder() / "benchmarks" / BERTVIZ.replace("==", "-")
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        made = Path(name) / "made"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(made), BERTVIZ]
        subprocess.run(pip, check=True, capture_output=True, timeout=120)
        for file, (package, member) in FILES.items():
            command = ["npm", "pack", "--silent", package]
            packed = subprocess.run(command, cwd=name, check=True, capture_output=True, text=True, timeout=120)
            with tarfile.open(Path(name) / packed.stdout.strip().splitlines()[-1]) as archive:
                content = archive.extractfile(member)
                assert content is not None
                (made / file).write_bytes(content.read())
        os.replace(made, folder)
    return folder


def bertviz_viewers(folder: Path) -> dict[str, Build]:
    """The two views of BertViz that show a whole model, as functions from tokens and maps to HTML."""
    sys.path.append(str(folder))
    from bertviz import head_view, model_view

    def built(view: Callable[..., Any]) -> Build:
        return lambda tokens, maps: view(attention=maps, tokens=tokens, html_action="return").data

    return {"BertViz head view": built(head_view), "BertViz model view": built(model_view)}
