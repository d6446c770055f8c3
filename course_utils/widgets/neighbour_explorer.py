"""Type a word, and see which words the corpus puts beside it."""

from typing import Any

from course_utils.plotting import COLORS, figure
from course_utils.vectors import WordVectors
from course_utils.widgets.base import Drawing, explorer, slider, text


def neighbour_explorer(vectors: WordVectors, word: str = "matrix", count: int = 8) -> Any:
    """Display the nearest words of a word, with controls for the word and their number.

    Args:
        vectors: word vectors.
        word: word to begin with.
        count: number of neighbours to begin with, 1 to 15.

    Returns:
        The widget that was displayed.

    Raises:
        ValueError: the word has no vector.
    """
    controls = {"word": text("Word", word), "count": slider("Neighbours", count, 1, 15)}
    return explorer(controls, lambda word, count: draw_neighbours(vectors, word, count))


def draw_neighbours(vectors: WordVectors, word: str, count: int) -> Drawing:
    """Draw the nearest words as bars as long as their cosines.

    Args:
        vectors: word vectors.
        word: a word, with or without spaces around it, in either case.
        count: how many neighbours.

    Returns:
        Figure, alternative text, and lines of text.

    Raises:
        ValueError: the word has no vector; the message proposes close spellings.
    """
    word = word.strip().lower()
    found = vectors.neighbours(word, count)
    fig, axes = figure(6.4, 0.9 + 0.27 * len(found))
    bars = axes.barh([name for name, _ in found][::-1], [score for _, score in found][::-1], color=COLORS[0])
    axes.bar_label(bars, [f"{score:.2f}" for _, score in found][::-1], padding=3)
    axes.set(xlim=(0, 1.08), xlabel="cosine similarity", title=f"Neighbours of {word!r}")
    lines = [", ".join(f"{name} {score:.2f}" for name, score in found)]
    return fig, f"Bars for the {len(found)} words nearest to {word}; the nearest is {found[0][0]}.", lines
