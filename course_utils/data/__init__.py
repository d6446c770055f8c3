"""Data that needs no network: the corpus of library documentation, sourced facts, and generated tasks."""

from course_utils.data.corpus import library_docs
from course_utils.data.foundation import FoundationModel, foundation_models, short_number
from course_utils.data.hub import hub

__all__ = ["FoundationModel", "foundation_models", "hub", "library_docs", "short_number"]
