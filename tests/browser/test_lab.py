"""Every notebook in a real JupyterLab in a real browser: Run all, no error cell, and a widget that answers.

Skipped, with the reason, where no Chromium is found. ``COURSE_SCREENSHOTS=folder`` keeps pictures of every page.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from course_utils.cli import _lab_environment
from course_utils.notebooks import find

ROOT = Path(__file__).parents[2]
NOTEBOOKS = find(root=ROOT)
CHROMIUM = os.environ.get("COURSE_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TOKEN = "for-the-test-only"
RUN_MS, WAIT_MS = 240_000, 60_000
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (set COURSE_CHROMIUM to its path)")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A JupyterLab with its own empty settings, on copies of the notebooks."""
    work = tmp_path_factory.mktemp("lab")
    for folder in ("notebooks", "images", "supplemental"):
        shutil.copytree(ROOT / folder, work / "course" / folder, ignore=shutil.ignore_patterns(".ipynb*"))
    with lab(work) as address:
        yield address, work / "course"


@contextmanager
def lab(work, **variables):
    """Run a JupyterLab with its own empty settings on ``work/course``; gives its address."""
    settings = work / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **_lab_environment(),
        "JUPYTER_CONFIG_DIR": str(work / "config"),
        "JUPYTER_DATA_DIR": str(work / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(work / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(work / "workspaces"),
        **variables,
    }
    options = [f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", "--no-browser"]
    options += [f"--ServerApp.root_dir={work / 'course'}", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    options += ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    log = (work / "lab.log").open("w")
    process = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(f"{address}/api/status?token={TOKEN}", process, work / "lab.log")
        yield address
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def _wait_until_up(url, process, log):
    for _ in range(240):
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.25)
    raise AssertionError(f"JupyterLab did not come up: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_run_all_and_move_a_widget(path, server, browser):
    address, course = server
    name = path.relative_to(ROOT).as_posix()
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    addresses = []
    page.on("request", lambda request: addresses.append(request.url))
    try:
        page.goto(f"{address}/lab/tree/{name}?token={TOKEN}&reset")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=WAIT_MS)
        page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for(timeout=WAIT_MS)
        _run_all(page, course / name)
        broken = page.locator(".jp-NotebookPanel img").evaluate_all(
            "images => images.filter(image => !image.naturalWidth).map(image => image.alt)"
        )
        assert not broken, f"pictures that do not show: {broken}"
        _move_a_widget(page, path)
        _decode_and_prompt(page, path)
        _keep_pictures(page, path)
    finally:
        page.close()
    elsewhere = {url for url in addresses if not re.match(r"(?:http|ws)://127\.0\.0\.1:|data:|blob:", url)}
    assert not elsewhere, f"the page asked other machines: {elsewhere}"


def _run_all(page, file):
    """Run all cells, wait for the last one, save, and look into the saved file."""
    before = json.loads(file.read_text(encoding="utf-8"))
    cells = [cell for cell in before["cells"] if cell["cell_type"] == "code"]
    page.get_by_role("menuitem", name="Edit", exact=True).click()
    page.get_by_role("menuitem", name="Clear Outputs of All Cells").click()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    prompts = page.locator(".jp-NotebookPanel .jp-CodeCell .jp-InputPrompt")
    last = prompts.nth(len(cells) - 1)
    deadline = time.monotonic() + RUN_MS / 1000 * (3 if file.stem == "04_fine_tuning" else 1)  # it may take 4 minutes
    while last.inner_text().strip() != f"[{len(cells)}]:":
        assert time.monotonic() < deadline, f"not finished in time; prompts: {prompts.all_inner_texts()}"
        errors = page.locator(
            ".jp-NotebookPanel .jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']"
        )
        assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']").count() == 0, (
            errors.all_inner_texts()
        )
        time.sleep(0.2)
    page.keyboard.press("Control+s")
    for _ in range(100):
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError:  # read while it was being written
            time.sleep(0.1)
            continue
        ran = [cell for cell in saved["cells"] if cell["cell_type"] == "code"]
        if [cell["execution_count"] for cell in ran] == list(range(1, len(cells) + 1)) and saved != before:
            break
        time.sleep(0.1)
    assert [cell["execution_count"] for cell in ran] == list(range(1, len(cells) + 1))
    bad = [output for cell in ran for output in cell["outputs"] if output["output_type"] == "error"]
    assert not bad, bad


def _move_a_widget(page, path):
    """Change the first number box, list or text field of the notebook's widgets; its output must change."""
    areas = page.locator(".jp-NotebookPanel .jp-OutputArea-child:has(.jupyter-widgets)")
    text = path.read_text(encoding="utf-8")
    expected = "course_utils.widgets" in text
    assert (areas.count() > 0) == expected
    if not expected:
        return
    for number in range(areas.count()):
        area = areas.nth(number)
        before = area.inner_html()
        area.scroll_into_view_if_needed()
        _nudge(area)
        deadline = time.monotonic() + WAIT_MS / 1000
        while _looks(area.inner_html()) == _looks(before):
            assert time.monotonic() < deadline, f"widget {number + 1} of {path.stem} does not answer"
            time.sleep(0.1)
        assert "Error displaying widget" not in area.inner_text()


def _decode_and_prompt(page, path):
    """Use the widgets of week 3 as a learner does: every slider of a step; a prompt that is typed, and its score."""
    source, areas = path.read_text(encoding="utf-8"), page.locator(".jp-OutputArea-child:has(.jupyter-widgets)")
    write = page.get_by_role("button", name="Write")
    if "DecodingExplorer(" in source:
        _use_the_explorer(areas.filter(has=page.get_by_label("Top-k (0: all)")).filter(has_not=write).first)
    if "PromptBench(" in source:
        _use_the_bench(areas.filter(has=write).first)


def _use_the_explorer(area):
    picture = area.locator("figure img")
    for label, value, said in (
        ("Temperature (0: greedy)", "1.6", "temperature 1.6: "),
        ("Top-k (0: all)", "7", "top-k 7: 7 left"),
        ("Top-p (1: all)", "0.65", "top-p 0.65: "),
        ("Min-p (0: all)", "0.2", "min-p 0.2: "),
        ("Repetition penalty (1: none)", "1.5", "repetition penalty 1.5: "),
        ("Prompt", "the list is a list of the", "the list is a list of the"),
    ):
        before = picture.get_attribute("src")
        _enter(area, label, value)
        _wait_for(lambda said=said: said in picture.get_attribute("alt"), f"{label} {value}")
        assert picture.get_attribute("src") != before, label
    for number, said in enumerate(("temperature 1.65: ", "top-k 8: 8 left")):
        area.locator(".noUi-handle, .ui-slider-handle").nth(number).press("ArrowRight")
        _wait_for(lambda said=said: said in picture.get_attribute("alt"), said)
    assert "Next token: " in area.inner_text()


def _use_the_bench(area):
    status, prompt = area.locator("[role=status]"), area.get_by_label("Prompt", exact=True)
    area.get_by_label("Task").select_option(index=0)
    typed = prompt.input_value()
    _enter(area, "Examples in the prompt", "2")
    _wait_for(lambda: prompt.input_value() not in ("", typed) and "Press Write." in status.inner_text(), "examples")
    area.get_by_role("button", name="Write").click()
    _wait_for(lambda: "Done." in status.inner_text(), "an answer")
    assert "expected: " in area.inner_text() and "of 2 labels" in area.locator("figure img").get_attribute("alt")
    area.get_by_label("Task").select_option("my own prompt")
    _enter(area, "New tokens, at most", "60")
    _enter(area, "Prompt", "the list of", "Tab")
    _wait_for(lambda: "Press Write." in status.inner_text(), "a typed prompt")
    area.get_by_label("Expected answer").fill("no such answer")
    area.evaluate(
        """area => {
        window.texts = new Set();
        new MutationObserver(() => texts.add(area.querySelector('pre')?.textContent))
            .observe(area, {childList: true, subtree: true, characterData: true});
        }"""
    )
    area.get_by_role("button", name="Write").click()
    _wait_for(lambda: "Done." in status.inner_text(), "a completion")
    assert area.page.evaluate("texts.size") > 5, "the text does not come piece by piece"
    assert len(area.locator("pre").inner_text()) > 20
    assert "expected: 'no such answer'. Wrong." in area.inner_text()
    for text, said in (("", "the prompt is empty"), ("word " * 20_000, "too many for the context window")):
        _enter(area, "Prompt", text, "Tab")
        _wait_for(lambda said=said: said in area.locator("[role=alert]").inner_text(), said)


def _enter(area, label, value, key="Enter"):
    field = area.get_by_label(label, exact=True)
    field.fill(value)
    field.press(key)


def _wait_for(condition, what):
    deadline = time.monotonic() + WAIT_MS / 1000
    while not condition():
        assert time.monotonic() < deadline, f"no answer to: {what}"
        time.sleep(0.05)


def _nudge(area):
    numbers, choices, boxes = (
        area.locator("input[type=number]"),
        area.locator("select"),
        area.locator("input[type=checkbox]"),
    )
    if numbers.count():
        box = numbers.first
        value, step = float(box.input_value()), float(box.get_attribute("step") or 1)
        top = box.get_attribute("max")
        new = value + step if top is None or value + step <= float(top) else value - step
        box.fill(f"{new:g}")
        box.press("Enter")
    elif choices.count():
        options = choices.first.locator("option").all_inner_texts()
        choices.first.select_option(index=1 if len(options) > 1 else 0)
    elif boxes.count():
        boxes.first.click()
    elif area.locator("button.jupyter-button").count():
        area.locator("button.jupyter-button").first.click()
    else:
        field = area.locator("input[type=text]").first
        field.fill(field.input_value() + " again")
        field.press("Enter")


def _looks(html):
    """The pictures and words that a widget shows below its controls."""
    return re.findall(r"<img[^>]+src=\"([^\"]+)\"", html), re.findall(r"<(?:p|td)[^>]*>([^<]+)<", html)


def _keep_pictures(page, path):
    folder = os.environ.get("COURSE_SCREENSHOTS")
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    page.set_viewport_size({"width": 1180, "height": 1800})
    page.keyboard.press("Control+b")
    pane = page.locator(".jp-NotebookPanel .jp-WindowedPanel-outer").first
    height = pane.evaluate("e => e.scrollHeight")
    for number, top in enumerate(range(0, height, 1650)):
        pane.evaluate(f"e => e.scrollTop = {top}")
        time.sleep(0.4)
        page.screenshot(path=str(Path(folder) / f"{path.stem}-{number:02d}.png"))
