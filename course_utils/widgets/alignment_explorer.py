"""Choose a sentence and a head, and see which source word each word of the translation was taken from."""

from collections.abc import Sequence
from typing import Any

from course_utils.plotting import COLORS, figure, heatmap
from course_utils.widgets.base import Drawing, choice, explorer


def alignment_explorer(
    model: Any, vocabulary: Any, examples: Sequence[tuple[str, str]], layer: int = -1, head: str = "mean"
) -> Any:
    """Display the cross-attention of an encoder-decoder as a map, and as lines between the two sentences.

    Args:
        model: the encoder-decoder.
        vocabulary: what turns its words into ids, with ``encode``.
        examples: pairs of source and target to choose from.
        layer: the decoder's block whose map is shown.
        head: ``mean``, or the number of a head, from 1, shown first.

    Returns:
        The widget that was displayed.

    Raises:
        ValueError: there are no examples.
    """
    if not examples:
        raise ValueError("alignment_explorer() needs at least one pair of source and target")
    heads = ["mean", *map(str, range(1, model.config.heads + 1))]
    targets = dict(examples)

    def draw(source: str, head: str) -> Drawing:
        weights = cross_attention(model, vocabulary, source, targets[source], layer)
        chosen = weights if head == "mean" else weights[int(head) - 1 : int(head)]
        return draw_alignment(chosen, source.split(), [*targets[source].split(), "<end>"])

    return explorer({"source": choice("Sentence", list(targets)), "head": choice("Head", heads, head)}, draw)


def cross_attention(model: Any, vocabulary: Any, source: str, target: str, layer: int = -1) -> Any:
    """Return a cross-attention map for one pair, (heads, target words and end, source words).

    The row of a word is the map of the step that *answers* with it.

    Args:
        model: the encoder-decoder.
        vocabulary: what turns its words into ids, with ``encode``.
        source: words of the source.
        target: words of the target.
        layer: the decoder's block.
    """
    import torch

    from course_utils.data.tasks.translation import START

    ids = torch.tensor([vocabulary.encode(source)])
    read = torch.tensor([[START, *vocabulary.encode(target)]])
    device, training = next(model.parameters()).device, model.training
    with torch.no_grad():
        output = model.eval()(ids.to(device), decoder_input_ids=read.to(device), return_attentions=True)
    model.train(training)
    return output.cross_attentions[layer][0].cpu()


def draw_alignment(weights: Any, source: Sequence[str], target: Sequence[str]) -> Drawing:
    """Draw the mean of some maps, and each target word's strongest source word as a line.

    Args:
        weights: (heads, targets, sources).
        source: the source words.
        target: the target words.

    Returns:
        Figure, alternative text, and no further lines.
    """
    from course_utils.data.tasks.translation import read_alignment

    places = read_alignment(weights).tolist()
    fig, (left, right) = figure(11.0, 1.6 + 0.3 * len(target), ncols=2)
    heatmap(weights.mean(0), target, source, "Cross-attention", left, numbers=False, limits=(0.0, 1.0), xlabel="source")
    alignment_lines(right, source, target, places)
    alt = (
        f"Left, the map: rows are the German words of “{' '.join(target)}”, columns the English ones of "
        f"“{' '.join(source)}”. Right, both sentences, one above the other, and a line from each German word to the "
        "English word it looks at most; lines cross where the order differs."
    )
    return fig, alt, []


def alignment_lines(axes: Any, source: Sequence[str], target: Sequence[str], places: Sequence[int]) -> None:
    """Draw two sentences above one another and a line for each aligned pair; those that cross another are coloured.

    Args:
        axes: where to draw.
        source: words of the upper sentence.
        target: words of the lower sentence.
        places: for each target word the place of its source word, or -1.
    """
    width = max(len(source), len(target), 2) - 1
    upper = [width * place / max(len(source) - 1, 1) for place in range(len(source))]
    lower = [width * place / max(len(target) - 1, 1) for place in range(len(target))]
    pairs = [(row, place) for row, place in enumerate(places) if place >= 0 and target[row] != "<end>"]
    for row, place in pairs:
        crosses = any((row - other) * (place - there) < 0 for other, there in pairs)
        axes.plot(
            [upper[place], lower[row]],
            [0.86, 0.14],
            color=COLORS[1] if crosses else COLORS[0],
            linestyle="-" if crosses else "--",
            marker="",
        )
    for words, where, height, align in ((source, upper, 0.9, "bottom"), (target, lower, 0.1, "top")):
        for word, x in zip(words, where, strict=True):
            axes.text(x, height, word, ha="center", va=align, rotation=30, fontsize=10)
    axes.set(xlim=(-0.6, width + 0.6), ylim=(-0.25, 1.25))
    axes.axis("off")
