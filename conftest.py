"""What holds for every test and every notebook cell; kept at the top so that ``pytest notebooks/...`` obeys it too.

nbval compares stored and fresh outputs strictly. What is added here: the kernels' environment, a dead kernel fails in
seconds, a cell may think before it prints, and each notebook is held to its resource card.
"""

import os
import tempfile
import time
from pathlib import Path
from queue import Empty

import psutil
import pytest

from course_utils.notebooks import card, kernel_environment

ROOT = Path(__file__).parent
os.environ.update(kernel_environment(tempfile.mkdtemp(prefix="course-home-")))
OUTPUT_WAIT_S = 60
KERNEL_LOOK_S = 1.0


def pytest_configure(config):
    """Point nbval to the sanitising file and mend its handling of kernels."""
    from nbval import kernel, plugin

    if config.option.nbval_sanitize_with is None:
        config.option.nbval_sanitize_with = str(ROOT / "tests" / "sanitize.cfg")
    kernel.RunningKernel.execute_cell_input = _execute_cell_input
    kernel.RunningKernel.get_message = _watch_for_death(kernel.RunningKernel.get_message)
    plugin.IPyNbFile.teardown = _hold_to_card(plugin.IPyNbFile.teardown)


def pytest_collectstart(collector):
    """Leave out of the comparison what the machine decides: drawings as SVG, and warnings on stderr."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr", "image/svg+xml", "application/javascript")


def pytest_itemcollected(item):
    """Give a cell time to produce its output (nbval fixes 5 seconds)."""
    if hasattr(item, "output_timeout"):
        item.output_timeout = OUTPUT_WAIT_S


@pytest.fixture
def shown(monkeypatch):
    """What widgets displayed, as (widget, html, text)."""
    from course_utils.widgets import base

    seen = []
    monkeypatch.setattr(base, "show_live", lambda *parts: seen.append(parts))
    return seen


def _execute_cell_input(self, source, allow_stdin=None):
    """Run a cell as a front end does, so that a trailing semicolon keeps its meaning."""
    return self.kc.execute(source, store_history=True, allow_stdin=allow_stdin, stop_on_error=False)


def _watch_for_death(get_message):
    if getattr(get_message, "watches", False):
        return get_message

    def watched(self, stream, timeout=None):
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = KERNEL_LOOK_S if end is None else min(KERNEL_LOOK_S, max(0.0, end - time.monotonic()))
            try:
                return get_message(self, stream, timeout=left)
            except Empty:
                if not self.is_alive():
                    raise RuntimeError("the kernel died") from None
                if end is not None and time.monotonic() >= end:
                    raise

    watched.watches = True
    return watched


def _hold_to_card(teardown):
    if getattr(teardown, "holds", False):
        return teardown

    def held(self):
        used = _used(self.kernel)
        ran_whole = {item.parent for item in self.session.items} and _ran_whole(self)
        teardown(self)
        if used is None or not ran_whole:
            return
        seconds, gigabytes = used
        stated = card(self.nb)
        if seconds > stated.seconds:
            pytest.fail(
                f"{self.name} took {seconds:.1f} s of one core; its card says under {stated.seconds:g} s", pytrace=False
            )
        if gigabytes > stated.gigabytes:
            pytest.fail(
                f"{self.name} took {gigabytes:.2f} GB; its card says under {stated.gigabytes:g} GB", pytrace=False
            )

    held.holds = True
    return held


def _ran_whole(file):
    """Whether every cell of the notebook was selected (``-k`` may pick a few)."""
    cells = sum(cell.cell_type == "code" for cell in file.nb.cells)
    return sum(item.parent is file for item in file.session.items) == cells


def _used(kernel):
    """CPU seconds and peak gigabytes of a live kernel; None where it is gone."""
    try:
        process = psutil.Process(kernel.km.provisioner.pid)
        times, memory = process.cpu_times(), process.memory_info()
    except (AttributeError, psutil.Error):
        return None
    peak = getattr(memory, "peak_wset", memory.rss)
    status = Path(f"/proc/{process.pid}/status")
    if status.exists():
        peak = 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    return times.user + times.system, peak / 1e9
