"""The language model that only counts: the next token's probability is its share after the same few tokens before.

Shannon (1948, section 3) drew text from such counts; Jurafsky and Martin (chapter 3) tell the rest. It plays the same
game as every model of this course, so it shows the game before any network is built.
"""

import heapq
import math
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise
from typing import Any, Generic, TypeVar

Token = TypeVar("Token", bound=Hashable)

START, END = "<start>", "<end>"


def next_word_probabilities(sentences: Sequence[Sequence[str]], word: str) -> dict[str, float]:
    """Return the probability of each word to follow a given one, by counting.

    Args:
        sentences: lists of words; a pair never reaches from one sentence into the next.
        word: the word before.

    Returns:
        For each word that was seen right after ``word``, its share of all that were; empty where none was.
    """
    counts = Counter(after for sentence in sentences for before, after in pairwise(sentence) if before == word)
    total = sum(counts.values())
    return {after: count / total for after, count in counts.items()}


def mean_loss(probabilities: Sequence[float]) -> float:
    """Return the mean negative natural logarithm of the probabilities that a model gave to what came, in nats a token.

    Args:
        probabilities: one number above 0 and at most 1 for each token; a 0 makes the loss infinite.

    Raises:
        ValueError: there are none, or one is not a probability.
    """
    if not probabilities or not all(0 <= probability <= 1 for probability in probabilities):
        raise ValueError("expected one probability from 0 to 1 for each token, and at least one token")
    return math.fsum(-math.log(one) if one > 0 else math.inf for one in probabilities) / len(probabilities)


class NGramModel(Generic[Token]):
    """A language model made of counts.

    ``P(token | context) = (count(context, token) + strength P') / (count(context) + strength)``: where the context was
    seen often its counts decide, where it was not the distribution P' does. With ``fall_back`` P' is the same formula
    for a context shorter by one token (a Dirichlet prior; MacKay and Peto 1995), without it all tokens are alike.

    Attributes:
        context: how many tokens before the next one the model sees.
        vocabulary: the tokens seen in training, and the end mark.
    """

    def __init__(
        self,
        sequences: Iterable[Sequence[Token]],
        context: int,
        strength: float = 1.0,
        fall_back: bool = True,
        vocabulary: Iterable[Token] = (),
    ) -> None:
        """Count.

        Args:
            sequences: texts as lists of tokens (words, ids...); each is given a start and an end.
            context: how many tokens before the next one are seen, 0 or more.
            strength: how many observations P' is worth.
            fall_back: whether shorter contexts stand in where the longer one was seen rarely or never.
            vocabulary: tokens to know beyond those that occur.

        Raises:
            ValueError: the context is negative, the strength is not above 0, or there is no text.
        """
        if context < 0:
            raise ValueError(f"context={context}: expected 0 or more tokens")
        if not strength > 0:
            raise ValueError(f"strength={strength}: expected a number above 0")
        self.context, self.strength, self.fall_back = context, strength, fall_back
        self._lengths = range(context + 1) if fall_back else range(context, context + 1)
        self._pairs: Counter[tuple[Hashable, ...]] = Counter()  # context and token
        self._contexts: Counter[tuple[Hashable, ...]] = Counter()
        known: set[Hashable] = {END, *vocabulary}
        for sequence in sequences:
            marked = self._marked(sequence)
            known.update(sequence)
            for length in self._lengths:
                shifted = [marked[context - length + shift :] for shift in range(length + 1)]
                grams = list(zip(*shifted, strict=False))
                self._pairs.update(grams)
                self._contexts.update(gram[:-1] for gram in grams)
        if not self._pairs:
            raise ValueError("there is no text to count")
        self.vocabulary: list[Any] = sorted(known, key=lambda token: (isinstance(token, str), token))
        self._followers: dict[tuple[Hashable, ...], list[Hashable]] | None = None

    def probability(self, before: Sequence[Token], token: Token) -> float:
        """Return the probability of a token after some others, of which the last ``context`` are seen."""
        return self._probability(self._seen(before), token)

    def most_likely(self, before: Sequence[Token], count: int = 5) -> list[tuple[Token, float]]:
        """Return the most probable next tokens and their probabilities; ties go in the order of the vocabulary."""
        chances = self._distribution(self._seen(before))
        best = heapq.nsmallest(count, range(len(chances)), key=lambda number: (-chances[number], number))
        return [(self.vocabulary[number], chances[number]) for number in best]

    def token_probabilities(self, sequence: Sequence[Token]) -> list[float]:
        """Return the probability that the model gave to each token of a text and to its end."""
        marked, width = self._marked(sequence), self.context
        return [self._probability(tuple(marked[at - width : at]), marked[at]) for at in range(width, len(marked))]

    def loss(self, sequences: Iterable[Sequence[Token]]) -> float:
        """Return the mean negative log probability of the tokens of texts and their ends, in nats a token.

        Raises:
            ValueError: there is no text.
        """
        return mean_loss([one for sequence in sequences for one in self.token_probabilities(sequence)])

    def unseen(self, sequences: Iterable[Sequence[Token]]) -> float:
        """Return the share of predictions, 0 to 1, whose full context never occurred in training."""
        new = total = 0
        for sequence in sequences:
            marked = self._marked(sequence)
            for at in range(self.context, len(marked)):
                total += 1
                new += tuple(marked[at - self.context : at]) not in self._contexts
        return new / max(total, 1)

    def complete(self, prompt: Sequence[Token], max_new_tokens: int = 20, seed: int | None = None) -> list[Token]:
        """Generate: choose a next token, append it, and again, until the text ends or enough tokens were made.

        Args:
            prompt: the tokens to go on from.
            max_new_tokens: most tokens to add.
            seed: without one the most probable token is chosen (greedy decoding), with one tokens are drawn at random
                according to their probabilities.

        Returns:
            The completion: the prompt and what was generated, without the end mark.
        """
        text, chance = list(prompt), random.Random(seed)
        for _ in range(max_new_tokens):
            if seed is None:
                token = self.most_likely(text, 1)[0][0]
            else:
                token = chance.choices(self.vocabulary, self._distribution(self._seen(text)))[0]
            if token == END:
                break
            text.append(token)
        return text

    def _marked(self, sequence: Sequence[Token]) -> list[Hashable]:
        return [*[START] * self.context, *sequence, END]

    def _seen(self, before: Sequence[Token]) -> tuple[Hashable, ...]:
        return tuple([*[START] * self.context, *before][len(before) :]) if self.context else ()

    def _probability(self, seen: tuple[Hashable, ...], token: Hashable) -> float:
        result = 1 / len(self.vocabulary)
        for length in self._lengths:
            context = seen[len(seen) - length :]
            result = (self._pairs[(*context, token)] + self.strength * result) / (
                self._contexts[context] + self.strength
            )
        return result

    def _distribution(self, seen: tuple[Hashable, ...]) -> list[float]:
        """Return the probability of every token of the vocabulary, as :meth:`_probability` does for one."""
        if self._followers is None:  # needed for generating only
            self._number = {token: number for number, token in enumerate(self.vocabulary)}
            self._followers = {}
            for pair in self._pairs:
                self._followers.setdefault(pair[:-1], []).append(pair[-1])
        chances = [1 / len(self.vocabulary)] * len(self.vocabulary)
        for length in self._lengths:
            context = seen[len(seen) - length :]
            total = self._contexts[context] + self.strength
            chances = [self.strength * chance / total for chance in chances]
            for token in self._followers.get(context, ()):
                chances[self._number[token]] += self._pairs[(*context, token)] / total
        return chances
