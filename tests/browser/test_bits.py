"""The bits of a number in a live JupyterLab, by keyboard and mouse, with ipywidgets 8 and 7.7.1."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from test_lab import CHROMIUM, TOKEN, WAIT_MS, _enter, _keep_pictures, _run_all, _wait_for, browser, lab  # noqa: F401  (a fixture)
from test_viewer_live import SEVEN

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (set COURSE_CHROMIUM to its path)")
CELLS = [
    "import ipywidgets\nprint(ipywidgets.__version__)",
    'from course_utils.widgets.bits import BitFlipper\nBitFlipper(1.0, "fp16")',
]


@pytest.fixture(scope="module", params=["8", "7.7.1"])
def served(request, tmp_path_factory):
    """Address of a JupyterLab, the notebook in it, and the version of ipywidgets that is expected."""
    work, variables = tmp_path_factory.mktemp("bits"), {}
    if request.param == "7.7.1":
        folder = work / "seven"
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--retries",
            "0",
            "--target",
            str(folder),
        ]
        try:
            subprocess.run([*pip, *SEVEN], check=True, capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            pytest.skip("pip reaches no index, and ipywidgets 7.7.1 is not installed here")
        variables = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])),
            "JUPYTER_PATH": str(folder / "share" / "jupyter"),
        }
    (work / "course").mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, work / "course" / "bits.ipynb")
    with lab(work, **variables) as address:
        yield address, work / "course" / "bits.ipynb", request.param


def test_bits_flip_under_mouse_and_keyboard(served, browser):  # noqa: F811
    address, file, version = served
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    try:
        page.goto(f"{address}/lab/tree/bits.ipynb?token={TOKEN}&reset")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=WAIT_MS)
        page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for(timeout=WAIT_MS)
        _run_all(page, file)
        assert page.locator(".jp-OutputArea-output pre").first.inner_text().strip().startswith(version)
        area = page.locator(".jp-OutputArea-child:has(.jupyter-widgets)")
        bits, status, picture = (
            area.locator("button.course-bit"),
            area.locator("[role=status]"),
            area.locator("figure img"),
        )
        bits.nth(15).wait_for(timeout=WAIT_MS)
        assert bits.all_inner_texts() == list(f"{0x3C00:016b}")

        def is_now(pattern, width, said):
            _wait_for(lambda: said in status.inner_text() and said in picture.get_attribute("alt"), said)
            assert "".join(bits.all_inner_texts()) == f"{pattern:0{width}b}"

        bits.nth(0).click()
        is_now(0xBC00, 16, "-1.0")
        bits.nth(0).press("Space")
        is_now(0x3C00, 16, " 1.0")
        page.keyboard.press("Tab")  # the focus has stayed on the first bit; the next one follows
        assert "exponent bit 1 of 5" in page.evaluate("document.activeElement.title")
        page.keyboard.press("Enter")
        is_now(0x7C00, 16, "inf")
        colours = [bits.nth(place).evaluate("e => getComputedStyle(e).backgroundColor") for place in (0, 1, 15)]
        assert len(set(colours)) == 3
        assert area.get_by_text("exponent, 5 bits: 31").count() == 1

        area.get_by_label("Format").select_option("fp8_e4m3fn")
        is_now(0x7E, 8, "448.0")
        _enter(area, "Number", "0.1")
        is_now(0x1D, 8, "0.1015625")
        area.get_by_label("Go to").select_option("smallest subnormal")
        is_now(0x01, 8, "0.001953125")
        _enter(area, "Number", "<b>no number")
        _wait_for(lambda: "is no number" in area.locator("[role=alert]").inner_text(), "a line that refuses")
        assert area.locator("b").count() == 0 and len(bits.all_inner_texts()) == 8
        area.get_by_label("Format").select_option("fp32")
        bits.nth(31).wait_for(timeout=WAIT_MS)
        _keep_pictures(page, Path(f"bits-{version}.ipynb"))
    finally:
        page.close()
