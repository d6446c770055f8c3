"""Widgets: figures that answer when one moves something. Each shows its figure without a kernel too."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from course_utils.widgets.attention_view import AttentionView

__all__ = ["AttentionView"]


def __getattr__(name: str) -> Any:
    """Load the head viewer when it is asked for: it needs torch."""
    if name == "AttentionView":
        from course_utils.widgets.attention_view import AttentionView

        return AttentionView
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
