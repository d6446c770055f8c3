"""The head viewer in a live JupyterLab, with the ipywidgets installed here (8) and with 7.7.1, which Colab ships.

For 7.7.1 the kernel imports ipywidgets 7.7.1, and JupyterLab gets the front end that belongs to it
(``jupyterlab_widgets`` 1.1), both from a folder that pip fills; it is skipped where pip reaches no index. Colab's page
has a front end of its own, which no test here can run: what these tests hold is that the kernel's side works with 7.7.1
and that what it sends is understood by a front end of that version.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from test_lab import CHROMIUM, TOKEN, WAIT_MS, _keep_pictures, _move_a_widget, _run_all, browser, lab  # noqa: F401  (a fixture)
from test_viewer import HOSTILE, TRIPWIRE

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (set COURSE_CHROMIUM to its path)")
SEVEN = ["ipywidgets==7.7.1", "jupyterlab_widgets==1.1.*", "widgetsnbextension==3.6.*", "ipython_genutils"]
CELLS = [
    "import ipywidgets\nprint(ipywidgets.__version__)",
    "from course_utils.models import load\n"
    "from course_utils.widgets import AttentionView\n"
    'encoder = load("encoder")\n'
    'AttentionView.from_model(encoder.model, encoder.tokenizer, "one two three", "three two one")',
    f"import torch\nhostile = {HOSTILE!a}\nAttentionView(hostile, [torch.eye(len(hostile)).expand(3, -1, -1)])",
    "from course_utils.plotting import heatmap\n"
    "from course_utils.widgets.base import explorer, slider\n"
    "def draw(size):\n"
    '    return heatmap(torch.eye(size)), f"A square of {size} rows, its diagonal dark", ["ones where row is column"]\n'
    'panel = explorer({"size": slider("size", 2, 1, 5)}, draw)',
]


@pytest.fixture(scope="module", params=["8", "7.7.1"])
def served(request, tmp_path_factory):
    """Address of a JupyterLab, the folder it shows, and the version of ipywidgets that is expected."""
    work, variables = tmp_path_factory.mktemp("live"), {}
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
    nbformat.write(notebook, work / "course" / "views.ipynb")
    with lab(work, **variables) as address:
        yield address, work / "course", request.param


@pytest.fixture
def opened(browser, served):  # noqa: F811
    """Open a notebook, and hold that the page asks no other machine and trips no wire."""
    pages = []

    def opened(name, kernel=True):
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.asked, page.dialogs = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.accept()))
        page.add_init_script(TRIPWIRE)
        if not kernel:
            page.route(re.compile("/api/(kernels|sessions)"), lambda route: route.abort())
        page.goto(f"{served[0]}/lab/tree/{name}?token={TOKEN}&reset")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=WAIT_MS)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        assert not page.evaluate("tripped") and not page.dialogs
        assert not [url for url in page.asked if not re.match(r"(?:http|ws)://127\.0\.0\.1:|data:|blob:", url)]
        page.close()


def test_it_lives_in_a_notebook_and_stays_in_the_saved_one(served, opened):
    _, course, version = served
    page = opened("views.ipynb")
    page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for(timeout=WAIT_MS)
    _run_all(page, course / "views.ipynb")
    assert page.locator(".jp-OutputArea-output pre").first.inner_text().strip().startswith(version)
    viewers = page.get_by_role("group", name="Attention viewer")
    viewers.nth(1).wait_for(timeout=WAIT_MS)
    assert viewers.count() == 2
    first, second = (viewers.nth(number).locator("[aria-live]") for number in range(2))
    before = second.inner_text()
    assert first.inner_text().startswith("Layer 1, head 1: previous token")
    viewers.first.get_by_role("gridcell").nth(5).click()
    assert re.match(r"Layer \d+, head \d+: previous token", first.inner_text())
    assert not first.inner_text().startswith("Layer 1, head 1:") and second.inner_text() == before
    tokens = viewers.nth(1).get_by_role("listbox", name="Tokens that look").get_by_role("option")
    assert tokens.count() == len(HOSTILE) and tokens.first.inner_text() == HOSTILE[0]
    for number in range(len(HOSTILE)):
        tokens.nth(number).hover()
    _move_a_widget(page, course / "views.ipynb")
    _keep_pictures(page, Path(f"viewer-{version}.ipynb"))
    if version == "8":
        _reopen(course, opened)


def _reopen(course, opened):
    """Open the saved file where no kernel runs: as it is, then as it comes from elsewhere, which nobody has trusted."""
    shutil.copy(course / "views.ipynb", course / "trusted.ipynb")
    page = opened("trusted.ipynb", kernel=False)
    page.get_by_role("group", name="Attention viewer").nth(1).wait_for(timeout=WAIT_MS)

    saved = json.loads((course / "views.ipynb").read_text(encoding="utf-8"))
    saved["cells"][0]["source"] = "# from elsewhere"
    (course / "foreign.ipynb").write_text(json.dumps(saved), encoding="utf-8")
    page = opened("foreign.ipynb", kernel=False)
    page.get_by_role("img", name="Thumbnails of 1 layers of 3 heads").wait_for(timeout=WAIT_MS)
    assert page.get_by_role("group", name="Attention viewer").count() == 0
    assert page.get_by_text("Strongest weights: ").count() == 2
    sizes = page.locator(".jp-NotebookPanel img[alt^=Thumbnails]").evaluate_all(
        "all => all.map(one => one.naturalWidth)"
    )
    assert len(sizes) == 2 and all(sizes)
    _keep_pictures(page, Path("viewer-foreign.ipynb"))
