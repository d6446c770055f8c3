"""Widgets: figures that answer when one moves something. Each shows its figure without a kernel too."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from course_utils.widgets.attention_view import AttentionView
    from course_utils.widgets.bits import BitFlipper
    from course_utils.widgets.decoding_explorer import DecodingExplorer
    from course_utils.widgets.memory_calculator import MemoryCalculator
    from course_utils.widgets.prompt_bench import PromptBench

__all__ = ["AttentionView", "BitFlipper", "DecodingExplorer", "MemoryCalculator", "PromptBench"]
_MODULES = {
    "AttentionView": "attention_view",
    "BitFlipper": "bits",
    "DecodingExplorer": "decoding_explorer",
    "MemoryCalculator": "memory_calculator",
    "PromptBench": "prompt_bench",
}


def __getattr__(name: str) -> Any:
    """Load the widgets of this list when they are asked for: they need torch."""
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
