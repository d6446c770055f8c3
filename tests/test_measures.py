"""What the notebooks measure with: computing time, memory kept for the backward pass, and the chart of both."""

import time

import pytest
import torch

from course_utils.plotting import curves, figure
from course_utils.reporting import kept_for_backward, seconds


def test_seconds_counts_computing_and_not_waiting():
    assert seconds(lambda: time.sleep(0.2), repeats=1) < 0.1
    calls = []
    assert seconds(lambda: calls.append(sum(range(300_000))), budget=0) > 0.001
    assert len(calls) == 3


def test_seconds_tries_short_calls_until_the_budget_is_spent():
    calls = []
    begin = time.monotonic()
    assert seconds(lambda: calls.append(1), budget=0.1) < 0.05
    assert len(calls) > 3
    assert 0.1 <= time.monotonic() - begin < 5


def test_kept_for_backward_counts_each_storage_once():
    x = torch.randn(100, 10)
    assert kept_for_backward(lambda x: x * 2.0, x) == 0
    assert kept_for_backward(lambda x: x * x, x) == 4000
    assert kept_for_backward(lambda x: x * x.view(-1).view(100, 10), x) == 4000
    assert kept_for_backward(lambda x, y: x @ y, x, torch.randn(10, 5)) == 4000 + 200
    assert kept_for_backward(lambda x: x.exp().exp(), x) == 8000
    assert not x.requires_grad


def test_curves_draws_every_line():
    fig = curves([1, 10, 100], {"a": [1, 2, 3], "b": [3, 2, 1]}, "tokens", "ms", log="xy")
    (axes,) = fig.axes
    assert [line.get_label() for line in axes.lines] == ["a", "b"]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "10", "100"]
    _, panel = figure()
    assert curves([1, 2], {"a": [1, 2]}, axes=panel) is panel.figure


def test_curves_refuses_lines_of_another_length():
    with pytest.raises(ValueError, match="2 values for 'a' and 3 for x"):
        curves([1, 2, 3], {"a": [1, 2]})
