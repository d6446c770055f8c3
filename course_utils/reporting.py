"""How a notebook shows numbers: exact ones plainly, measured ones marked and held to a range.

A number that comes from training, a clock or a memory counter differs from machine to machine. It is written with the
sign ``≈``; the stored outputs are compared without the digits behind that sign, but with the verdict on the range.
"""

import html
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def approx(value: float, digits: int = 2) -> str:
    """Return a measured number as text, marked with ``≈``.

    Args:
        value: the number.
        digits: decimals shown; 0 shows a whole number with thousands separated by commas.

    Returns:
        For example ``"≈0.98"``, or ``"≈nan"`` for what is not a number.
    """
    return f"≈{value:,.{digits}f}"


def measured(label: str, value: float, low: float, high: float, unit: str = "", digits: int = 2) -> None:
    """Print one measured number and whether it lies in the range that the text speaks of.

    Args:
        label: what was measured.
        value: the number that this machine got.
        low: smallest value for which the text beside it holds.
        high: largest such value; ``math.inf`` where there is none. Without either bound the number is shown alone.
        unit: unit, printed behind the number.
        digits: decimals shown.

    Raises:
        ValueError: the range is empty or not a number.
    """
    if not low <= high:
        raise ValueError(f"measured() got the range {low} to {high}; low must be a number not above high")
    inside = not math.isnan(value) and low <= value <= high
    shown = f"{label}: {approx(value, digits)}{' ' + unit if unit else ''}"
    if low == -math.inf and high == math.inf:
        print(shown)
        return
    expected = f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
    verdict = "yes" if inside else "NO: see 'A number is outside its range' in supplemental/troubleshooting.md"
    print(f"{shown} (expected {expected}: {verdict})")


def progress_bar(total: int, what: str, shown: bool = True, *, done: int = 0, unit: str = "it") -> Any:
    """Return a bar with the time left, to be used in a ``with`` statement; ``TQDM_DISABLE=1`` hides it.

    Args:
        total: units of work in all.
        what: what is being done.
        shown: False hides it.
        done: units that were done before.
        unit: one of them.
    """
    from tqdm.auto import tqdm

    # In notebooks tqdm does not look at its own variable.
    disable = not shown or os.environ.get("TQDM_DISABLE", "0").lower() not in ("", "0", "false")
    return tqdm(total=total, initial=done, desc=what, unit=unit, disable=disable, leave=False)


def table(rows: Iterable[Sequence[object]], header: Sequence[str], caption: str | None = None) -> None:
    """Display a small table that screen readers, GitHub and plain text all show.

    Args:
        rows: the cells, row by row; each is shown by ``str``, so numbers come already rounded.
        header: names of the columns.
        caption: one line above the table.

    Raises:
        ValueError: a row has not as many cells as the header.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    for number, row in enumerate(cells):
        if len(row) != len(header):
            raise ValueError(f"table() row {number} has {len(row)} cells, the header has {len(header)}: {row}")
    lines = [
        *([caption] if caption else []),
        " | ".join(map(str, header)),
        *(" | ".join(row) for row in cells),
    ]
    if not _in_notebook():
        print("\n".join(lines))
        return
    from IPython.display import display

    def columns(tag: str, attributes: str, row: Iterable[object]) -> str:
        return "".join(f"<{tag}{attributes}>{html.escape(str(cell))}</{tag}>" for cell in row)

    left = " style='text-align:left'"
    parts = [f"<caption>{html.escape(caption)}</caption>"] if caption else []
    parts.append(f"<thead><tr>{columns('th', ' scope=col' + left, header)}</tr></thead>")
    parts.append("<tbody>" + "".join(f"<tr>{columns('td', left, row)}</tr>" for row in cells) + "</tbody>")
    display({"text/html": f"<table>{''.join(parts)}</table>", "text/plain": "\n".join(lines)}, raw=True)


def seconds(function: Callable[[], object], repeats: int = 3, budget: float = 0.3) -> float:
    """Return the seconds of computing time that a call takes on the CPU, the shortest of a few tries.

    Waiting, and what other programs do meanwhile, does not count.

    Args:
        function: what to measure, called without arguments.
        repeats: smallest number of tries.
        budget: seconds of the clock for which a short call is tried on, so that one of the tries is undisturbed.
    """
    times: list[float] = []
    end = time.monotonic() + budget
    while len(times) < repeats or time.monotonic() < end:
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


def kept_for_backward(function: "Callable[..., torch.Tensor]", *inputs: "torch.Tensor") -> int:
    """Return the bytes that autograd keeps from the forward pass until the backward pass, inputs included.

    Args:
        function: called with the inputs.
        *inputs: tensors; gradients are asked for on copies of them.
    """
    import torch

    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        function(*(tensor.detach().clone().requires_grad_() for tensor in inputs))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _in_notebook() -> bool:
    """Whether a front end that renders HTML listens (not a terminal, not a plain script)."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None
