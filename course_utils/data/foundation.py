"""The foundation models that the course speaks of, with the numbers that their papers give."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

FAMILIES = ("encoder", "decoder", "encoder-decoder")


@dataclass(frozen=True)
class FoundationModel:
    """One model as its paper describes it; None stands for a number that the paper does not give as such.

    Attributes:
        name: usual name.
        year: year of the first version of the paper.
        family: ``encoder``, ``decoder`` or ``encoder-decoder``.
        parameters: number of weights of the largest model of the paper.
        tokens: number of tokens that it was trained on.
        context: longest input in tokens.
        arxiv: number of the paper on arXiv, None where it is not there.
        reading: anchor of the paper in the reading guide.
        note: what else to know, and where the numbers stand.
    """

    name: str
    year: int
    family: str
    reading: str
    note: str
    parameters: int | None = None
    tokens: int | None = None
    context: int | None = None
    arxiv: str | None = None

    @property
    def tokens_per_parameter(self) -> float | None:
        """Training tokens for each parameter, or None where one of the two is not stated."""
        return self.tokens / self.parameters if self.tokens and self.parameters else None


@cache
def foundation_models() -> tuple[FoundationModel, ...]:
    """Return the models, the oldest first."""
    file = resources.files("course_utils").joinpath("data", "foundation_models.toml")
    return tuple(FoundationModel(**entry) for entry in tomllib.loads(file.read_text(encoding="utf-8"))["model"])


def short_number(number: int | float | None) -> str:
    """Return a large number in the way that one says it: 65.2 billion, 1.4 trillion; ``not stated`` for None."""
    if number is None:
        return "not stated"
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,.0f}"
