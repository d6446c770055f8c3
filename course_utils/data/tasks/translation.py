"""Translation from English to German: a small grammar whose word order and endings differ between the languages.

Three things make it more than a dictionary. German puts the verb *last*; after an adverb or in a question the modal
verb comes *before* the subject, and in a subordinate clause after everything. Articles and adjectives take endings by
the *gender* of a noun that comes later, and by its *case* (subject or object).

    tomorrow the young queen will sell a red apple
    morgen wird die junge Königin einen roten Apfel verkaufen
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from datasets import Dataset

PEOPLE = {
    "king": ("König", "m"),
    "teacher": ("Lehrer", "m"),
    "dog": ("Hund", "m"),
    "queen": ("Königin", "f"),
    "woman": ("Frau", "f"),
    "cat": ("Katze", "f"),
    "child": ("Kind", "n"),
    "girl": ("Mädchen", "n"),
    "horse": ("Pferd", "n"),
}
"""Who acts: English noun to German noun and its gender."""
THINGS = {
    "apple": ("Apfel", "m"),
    "hat": ("Hut", "m"),
    "ball": ("Ball", "m"),
    "key": ("Schlüssel", "m"),
    "flower": ("Blume", "f"),
    "lamp": ("Lampe", "f"),
    "clock": ("Uhr", "f"),
    "cup": ("Tasse", "f"),
    "book": ("Buch", "n"),
    "picture": ("Bild", "n"),
    "boat": ("Boot", "n"),
    "house": ("Haus", "n"),
}
"""What is acted on."""
TRAITS = {
    "old": "alt",
    "young": "jung",
    "small": "klein",
    "clever": "klug",
    "hungry": "hungrig",
    "tired": "müd",
    "cheerful": "fröhlich",
    "famous": "berühmt",
}
"""Adjectives of those who act, in German without their ending."""
LOOKS = {
    "red": "rot",
    "blue": "blau",
    "green": "grün",
    "white": "weiß",
    "old": "alt",
    "new": "neu",
    "small": "klein",
    "big": "groß",
    "beautiful": "schön",
}
"""Adjectives of things, likewise."""
MODALS = {"will": "wird", "can": "kann", "must": "muss", "should": "soll"}
VERBS = {
    "see": "sehen",
    "find": "finden",
    "buy": "kaufen",
    "sell": "verkaufen",
    "paint": "malen",
    "bring": "bringen",
    "hide": "verstecken",
}
ADVERBS = {"today": "heute", "tomorrow": "morgen", "soon": "bald", "now": "jetzt", "perhaps": "vielleicht"}
OPENINGS = {"i know that": "ich weiß , dass", "she says that": "sie sagt , dass", "we hope that": "wir hoffen , dass"}
ARTICLES = {"the": {"m": "der", "f": "die", "n": "das"}, "a": {"m": "ein", "f": "eine", "n": "ein"}}
ARTICLES["my"] = {gender: f"m{article}" for gender, article in ARTICLES["a"].items()}
"""Articles of the subject; of the object only the masculine ones differ: den, einen, meinen."""
ENDINGS = {"the": {"m": "e", "f": "e", "n": "e"}, "a": {"m": "er", "f": "e", "n": "es"}}
ENDINGS["my"] = ENDINGS["a"]
"""Endings of the subject's adjective; of the object only the masculine one differs: -en."""
FORMS = ("plain", "adverb", "clause", "question")
SPLITS = ("train", "test")

PAD, START, END, UNKNOWN = 0, 1, 2, 3
Piece = tuple[list[str], list[tuple[str, int]]]
"""English words; German words, each with the place of the English word that it translates, or -1."""


@dataclass(frozen=True)
class Sentence:
    """A sentence in both languages.

    Attributes:
        source: the English words.
        target: the German words.
        alignment: for each German word the place of the English word that it translates, -1 for none (the comma).
        pairs: the (adjective, noun) pairs of the English sentence.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    alignment: tuple[int, ...]
    pairs: tuple[tuple[str, str], ...]


def reserved(adjective: str, noun: str) -> bool:
    """Return whether an (adjective, noun) pair, such as (red, apple), is kept out of the training split.

    One pair in seven is, spread evenly: each adjective and each noun loses one or two partners.

    Args:
        adjective: English adjective.
        noun: English noun.
    """
    adjectives, nouns = (TRAITS, PEOPLE) if noun in PEOPLE else (LOOKS, THINGS)
    return (list(adjectives).index(adjective) + list(nouns).index(noun)) % 7 == 0


def translation(split: str = "train", size: int = 5000, seed: int = 0) -> "Dataset":
    """Return distinct sentences of the grammar, drawn at random.

    No test sentence can stand in the training split: each contains at least one :func:`reserved` pair of adjective and
    noun, and training sentences contain none. So a model must have learned endings and order, not phrases.

    Args:
        split: ``train`` or ``test``.
        size: number of sentences.
        seed: seed of the draw; the same seed gives the same sentences.

    Returns:
        Data set with the fields ``input`` (English), ``target`` (German), ``task`` ("translation") and ``alignment``
        (for each German word the place of its English word, or -1).

    Raises:
        ValueError: there is no such split, or the size is not in 1 to 100,000.
    """
    from datasets import Dataset

    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    if not 1 <= size <= 100_000:
        raise ValueError(f"size={size}: expected a whole number from 1 to 100000")
    generator = random.Random(f"translation {split} {seed}")
    found: dict[tuple[str, ...], Sentence] = {}
    while len(found) < size:
        sentence = draw(generator)
        if any(reserved(*pair) for pair in sentence.pairs) == (split == "test"):
            found.setdefault(sentence.source, sentence)
    return Dataset.from_dict(
        {
            "input": [" ".join(sentence.source) for sentence in found.values()],
            "target": [" ".join(sentence.target) for sentence in found.values()],
            "task": ["translation"] * size,
            "alignment": [list(sentence.alignment) for sentence in found.values()],
        }
    )


def draw(generator: random.Random, form: str | None = None) -> Sentence:
    """Draw one sentence.

    Args:
        generator: the source of chance.
        form: ``plain``, ``adverb``, ``clause`` or ``question``; by default any of them.

    Raises:
        ValueError: there is no such form.
    """
    form = form or generator.choice(FORMS)
    if form not in FORMS:
        raise ValueError(f"form={form!r}: expected one of {', '.join(FORMS)}")
    subject, first_pairs = _noun_phrase(generator, PEOPLE, TRAITS, "subject")
    thing, second_pairs = _noun_phrase(generator, THINGS, LOOKS, "object")
    modal, verb = _word(generator, MODALS), _word(generator, VERBS)
    adverb, mark = _word(generator, ADVERBS), (["?"], [("?", 0)])
    english = generator.choice(list(OPENINGS))
    places = iter(range(3))
    opening: Piece = (
        english.split(),
        [(word, -1 if word == "," else next(places)) for word in OPENINGS[english].split()],
    )
    orders: dict[str, tuple[list[Piece], list[Piece]]] = {
        "plain": ([subject, modal, verb, thing], [subject, modal, thing, verb]),
        "adverb": ([adverb, subject, modal, verb, thing], [adverb, modal, subject, thing, verb]),
        "clause": ([opening, subject, modal, verb, thing], [opening, subject, thing, verb, modal]),
        "question": ([modal, subject, verb, thing, mark], [modal, subject, thing, verb, mark]),
    }
    source_order, target_order = orders[form]
    source: list[str] = []
    begins: dict[int, int] = {}
    for piece in source_order:
        begins[id(piece)] = len(source)
        source += piece[0]
    target = [
        (word, -1 if place < 0 else begins[id(piece)] + place) for piece in target_order for word, place in piece[1]
    ]
    words, alignment = zip(*target, strict=True)
    return Sentence(tuple(source), words, alignment, (*first_pairs, *second_pairs))


def _word(generator: random.Random, words: Mapping[str, str]) -> Piece:
    english = generator.choice(list(words))
    return [english], [(words[english], 0)]


def _noun_phrase(
    generator: random.Random, nouns: Mapping[str, tuple[str, str]], adjectives: Mapping[str, str], case: str
) -> tuple[Piece, list[tuple[str, str]]]:
    """Draw article, adjective (3 times in 4) and noun; German articles and adjectives agree in gender and case."""
    noun, article = generator.choice(list(nouns)), generator.choice(list(ARTICLES))
    german, gender = nouns[noun]
    masculine_object = case == "object" and gender == "m"
    german_article = ARTICLES[article][gender]
    if masculine_object:
        german_article = "den" if article == "the" else f"{german_article}en"
    english, translated = [article, noun], [german_article, german]
    pairs = []
    if generator.random() < 0.75:
        adjective = generator.choice(list(adjectives))
        ending = "en" if masculine_object else ENDINGS[article][gender]
        english.insert(1, adjective)
        translated.insert(1, adjectives[adjective] + ending)
        pairs = [(adjective, noun)]
    if article == "a" and english[1][0] in "aeiou":
        english[0] = "an"
    return (english, [(word, place) for place, word in enumerate(translated)]), pairs


def words() -> list[str]:
    """Return every word of both languages, sorted; some, such as "?", belong to both."""
    found = {"an", "?", "den", "einen", "meinen", *ARTICLES}
    for table in (TRAITS, LOOKS, MODALS, VERBS, ADVERBS):
        found.update(table)
    for table in (MODALS, VERBS, ADVERBS):
        found.update(table.values())
    for nouns in (PEOPLE, THINGS):
        found.update(nouns, (german for german, _ in nouns.values()))
    for articles in ARTICLES.values():
        found.update(articles.values())
    for english, german in OPENINGS.items():
        found.update(english.split(), german.split())
    found.update(stem + ending for stem in (*TRAITS.values(), *LOOKS.values()) for ending in ("e", "en", "er", "es"))
    return sorted(found)


class WordVocabulary:
    """Words as tokens, with one id for each; ids 0 to 3 are padding, start, end and "unknown".

    Args:
        words: the words; by default those of the grammar.
    """

    def __init__(self, words: Iterable[str]):
        self.words = ["<pad>", "<start>", "<end>", "<unknown>", *words]
        self.ids = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text's words, without start and end.

        Args:
            text: words with blanks between them.
        """
        return [self.ids.get(word, UNKNOWN) for word in text.split()]

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """Return the words of ids up to the end token, without start and padding.

        Args:
            ids: ids, or a tensor of one dimension.
        """
        found = []
        for number in map(int, ids):
            if number == END:
                break
            if number not in (PAD, START):
                found.append(self.words[number])
        return " ".join(found)

    def batch(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the ids of several texts, filled up at the end, and the mask of the real ones.

        Args:
            texts: texts to encode.

        Returns:
            ids and attention mask, both (batch, tokens).

        Raises:
            ValueError: there is no text.
        """
        if isinstance(texts, str) or not len(texts):
            raise ValueError("batch() expects a list of texts with at least one text in it")
        rows = [torch.tensor(self.encode(text)) for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(ids.shape[1]) < lengths[:, None]


def shift_right(labels: Int[Tensor, "batch tokens"], start_id: int, pad_id: int = 0) -> Int[Tensor, "batch tokens"]:
    """Return what a decoder reads while it learns to answer the labels: the start token, then all labels but the last.

    So at each place it has seen the right words up to there, and is asked for the next one (teacher forcing).

    Args:
        labels: the answers; -100 where none is asked for.
        start_id: the token that begins a target.
        pad_id: stands in the result where a label was -100.
    """
    start = torch.full_like(labels[:, :1], start_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == -100, pad_id)


def read_alignment(weights: Float[Tensor, "heads targets sources"]) -> Int[Tensor, "targets"]:
    """Return, for each target token, the place of the source token that all heads together look at most.

    Args:
        weights: one cross-attention map for each head.
    """
    return weights.mean(0).argmax(-1)


def to_tensors(dataset: "Dataset | Mapping[str, Any]", vocabulary: WordVocabulary) -> dict[str, Tensor]:
    """Turn pairs of input and target into the tensors that train an encoder-decoder.

    The decoder reads ``<start> w1 w2 ...`` and is to answer ``w1 w2 ... <end>``: at each place the next word.

    Args:
        dataset: with the fields ``input`` and ``target``.
        vocabulary: words to ids.

    Returns:
        ``input_ids``, ``attention_mask``, ``decoder_input_ids`` and ``labels`` (-100 at the padding), each
        (examples, tokens).
    """
    source, mask = vocabulary.batch(list(dataset["input"]))
    target, keep = vocabulary.batch([f"{text} <end>" for text in dataset["target"]])
    labels = target.masked_fill(~keep, -100)
    return {
        "input_ids": source,
        "attention_mask": mask,
        "decoder_input_ids": shift_right(labels, START, PAD),
        "labels": labels,
    }
