"""The recipes of the embedded models: how each is trained, measured and described."""

from course_utils.recipes.base import Recipe, Result, card, evaluate, from_items, train, write_card

__all__ = ["Recipe", "Result", "card", "evaluate", "from_items", "recipes", "train", "write_card"]


def recipes() -> dict[str, Recipe]:
    """Return the recipes by the names of their models, in the order in which they are trained."""
    from course_utils.recipes import decoder, encoder, instruct, seq2seq

    return {recipe.name: recipe for recipe in (decoder.DECODER, encoder.ENCODER, seq2seq.BASE, instruct.INSTRUCT)}
