"""Exercises of the notebook ``week1/01_language_models_and_vectors``."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from course_utils.checks.framework import Case, Exercise, Mistake, case
from course_utils.ngrams import mean_loss, next_word_probabilities
from course_utils.tokenization import merge_pair
from course_utils.vectors import analogy_scores, ppmi

Sentences = Sequence[Sequence[str]]

# --- next word


def _sentence_cases() -> list[Case]:
    lines = ["the cat sees the dog and the cat sleeps", "a dog sees the cat", "cat and dog see the", "the the end"]
    pets = [line.split() for line in lines]
    return [
        case(pets, "the"),
        case(pets, "cat"),
        case(pets, "dog"),
        case(pets, "and"),
        case(pets, "end"),
        case(pets, "bird"),
        case([["go"], ["go", "go", "go", "stop"], []], "go"),
    ]


def _shares(counts: Counter[str], total: float | None = None) -> dict[str, float]:
    total = sum(counts.values()) if total is None else total
    return {word: count / total for word, count in counts.items()}


def _followers(sentences: Sentences, word: str) -> Counter[str]:
    return Counter(after for one in sentences for before, after in pairwise(one) if before == word)


def _counts_only(sentences: Sentences, word: str) -> dict[str, int]:
    return dict(_followers(sentences, word))


def _of_all_words(sentences: Sentences, word: str) -> dict[str, float]:
    return _shares(_followers(sentences, word), sum(map(len, sentences)))


def _of_all_pairs(sentences: Sentences, word: str) -> dict[str, float]:
    return _shares(_followers(sentences, word), sum(max(len(one) - 1, 0) for one in sentences))


def _of_occurrences(sentences: Sentences, word: str) -> dict[str, float]:
    return _shares(_followers(sentences, word), sum(list(one).count(word) for one in sentences))


def _across_sentences(sentences: Sentences, word: str) -> dict[str, float]:
    return _shares(_followers([[token for one in sentences for token in one]], word))


def _word_before(sentences: Sentences, word: str) -> dict[str, float]:
    return _shares(Counter(before for one in sentences for before, after in pairwise(one) if after == word))


def _words_alone(sentences: Sentences, word: str) -> dict[str, float]:
    return _shares(Counter(token for one in sentences for token in one))


NEXT_WORD = Exercise(
    name="language_models.next_word",
    title="Probability of the next word",
    minutes=8,
    difficulty=2,
    importance=5,
    reference=next_word_probabilities,
    cases=_sentence_cases,
    mistakes=[
        Mistake(_counts_only, "these are counts. Divide each by their sum, so that they add up to 1."),
        Mistake(
            _of_occurrences,
            "you divided by how often the word occurs. Where it ends a sentence nothing follows it: divide by the "
            "number of followers, so that the shares add up to 1.",
        ),
        Mistake(
            _across_sentences,
            "your pairs reach from the end of one sentence into the next. Count inside each sentence by itself.",
        ),
        Mistake(
            _word_before,
            "this is what stands before the word; the question is what comes after it. Swap the two in the pair.",
        ),
        Mistake(
            _of_all_words,
            "you divided by all words of the corpus: that is no probability given the word before. Divide by the "
            "number of followers of this word.",
        ),
        Mistake(
            _of_all_pairs,
            "you divided by all pairs of the corpus, which gives P(word and next). P(next given word) divides by the "
            "pairs that begin with this word.",
        ),
        Mistake(
            _words_alone,
            "these are the shares of all words, whatever stands before. Count only what comes right after the word.",
        ),
    ],
    hints=[
        "Which words stand right after `word`? Collect them first, sentence by sentence.",
        "zip(sentence, sentence[1:]) gives each pair of neighbours; collections.Counter counts.",
        "counts = Counter(b for s in sentences for a, b in zip(s, s[1:]) if a == word); then divide by the total.",
    ],
)

# --- loss


def _probability_cases() -> list[Case]:
    return [
        case([0.5, 0.25, 0.125]),
        case([0.9, 0.01, 0.3, 0.07, 0.6]),
        case([1.0, 1.0]),
        case([0.001]),
        case([0.2, 0.2, 0.2, 0.2, 0.2, 0.8]),
    ]


def _logs(probabilities: Sequence[float]) -> list[float]:
    return [math.log(one) for one in probabilities]


LOSS = Exercise(
    name="language_models.loss",
    title="Loss: mean negative log probability",
    minutes=5,
    difficulty=1,
    importance=5,
    reference=mean_loss,
    cases=_probability_cases,
    mistakes=[
        Mistake(
            lambda p: sum(_logs(p)) / len(p),
            "the sign is missing: logarithms of probabilities are negative, a loss is 0 or more.",
        ),
        Mistake(
            lambda p: -sum(_logs(p)),
            "you added up where the mean is wanted: a longer text would always have a larger loss.",
        ),
        Mistake(
            lambda p: -sum(math.log2(one) for one in p) / len(p),
            "this is in bits (log2). Use the natural logarithm, math.log, as PyTorch does: nats.",
        ),
        Mistake(
            lambda p: -math.log(sum(p) / len(p)),
            "you took the logarithm of the mean. Take the mean of the logarithms: one probability near 0 must hurt.",
        ),
        Mistake(
            lambda p: math.exp(-sum(_logs(p)) / len(p)),
            "this is the perplexity, exp(loss). Leave out the exponential.",
        ),
        Mistake(lambda p: 1 - sum(p) / len(p), "this is 1 minus the mean probability; the loss needs logarithms."),
        Mistake(
            lambda p: math.exp(sum(_logs(p)) / len(p)),
            "this is the geometric mean of the probabilities; its negative logarithm is the loss.",
        ),
    ],
    hints=[
        "One number for each token: 0 where the model was sure and right, large where it thought the token unlikely.",
        "-math.log(p) is that number. What is the mean of several?",
        "return sum(-math.log(p) for p in probabilities) / len(probabilities)",
    ],
)

# --- merges


def _merge_cases() -> list[Case]:
    return [
        case(list("aaab"), ("a", "a"), "aa"),
        case(list("lowerlow"), ("l", "o"), "lo"),
        case(["lo", "w", "e", "r"], ("lo", "w"), "low"),
        case(["ab", "c", "a", "bc", "a"], ("a", "bc"), "abc"),
        case(list("aaaaa"), ("a", "a"), "aa"),
        case(list("xyz"), ("z", "x"), "zx"),
        case(["b"], ("b", "a"), "ba"),
        case([7, 8, 8, 7, 8, 9], (7, 8), 256),
    ]


def _merge_first_only(symbols: list[Any], pair: tuple[Any, Any], merged: Any) -> list[Any]:
    for at, found in enumerate(pairwise(symbols)):
        if found == pair:
            return [*symbols[:at], merged, *symbols[at + 2 :]]
    return list(symbols)


def _merge_from_right(symbols: list[Any], pair: tuple[Any, Any], merged: Any) -> list[Any]:
    return merge_pair(symbols[::-1], pair[::-1], merged)[::-1]


def _merge_keeps_right(symbols: list[Any], pair: tuple[Any, Any], merged: Any) -> list[Any]:
    pairs = [*pairwise(symbols), None]
    return [merged if found == pair else symbol for symbol, found in zip(symbols, pairs, strict=False)]


def _merge_loses_last(symbols: list[Any], pair: tuple[Any, Any], merged: Any) -> list[Any]:
    result, at = [], 0
    while at < len(symbols) - 1:
        found = (symbols[at], symbols[at + 1]) == pair
        result.append(merged if found else symbols[at])
        at += 2 if found else 1
    return result


def _merge_either_order(symbols: list[Any], pair: tuple[Any, Any], merged: Any) -> list[Any]:
    result, at = [], 0
    while at < len(symbols):
        found = set(symbols[at : at + 2]) == set(pair) and len(symbols[at : at + 2]) == 2
        result.append(merged if found else symbols[at])
        at += 2 if found else 1
    return result


def _merge_by_letters(symbols: list[Any], pair: tuple[Any, Any], merged: Any) -> list[Any]:
    if not all(isinstance(symbol, str) for symbol in symbols):
        return merge_pair(symbols, pair, merged)
    parts = "".join(symbols).split("".join(pair))
    return [one for at, part in enumerate(parts) for one in ([merged] if at else []) + list(part)]


MERGE = Exercise(
    name="tokens.merge_pair",
    title="One merge of byte-pair encoding",
    minutes=10,
    difficulty=3,
    importance=4,
    reference=merge_pair,
    cases=_merge_cases,
    mistakes=[
        Mistake(_merge_first_only, "only the first occurrence was merged: go on to the end of the word."),
        Mistake(
            _merge_from_right,
            "your merges start at the right end: in a a a they give a aa, but the rule is left to right, aa a.",
        ),
        Mistake(
            _merge_keeps_right,
            "the right half of each pair is still there: after a merge step over both symbols (position += 2).",
        ),
        Mistake(
            _merge_loses_last,
            "the last symbol gets lost when it is not part of a pair: let the loop run to the end of the list.",
        ),
        Mistake(_merge_either_order, "the order counts: (a, b) is another pair than (b, a). Compare tuples, not sets."),
        Mistake(
            _merge_by_letters,
            "you joined the symbols and replaced text. That forgets where symbols end: ab c is not the pair a bc.",
        ),
    ],
    hints=[
        "Walk through the list with a position. What do you append, and how far do you step, in each of two cases?",
        "Compare (symbols[position], symbols[position + 1]) with pair, but mind the last symbol: no neighbour.",
        "If it is the pair: append merged and step by 2. Otherwise: append the symbol and step by 1.",
    ],
)

# --- PPMI


def _count_cases() -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    large = torch.randint(0, 30, (5, 7), generator=generator).double()
    sparse = torch.randint(0, 4, (6, 4), generator=generator).double() * torch.tensor([1.0, 9.0, 2.0, 5.0]).double()
    empty = torch.tensor([[3, 0, 1], [0, 0, 0], [2, 4, 0]], dtype=torch.float64)
    return [
        case(large + 1, smoothing=1.0),
        case(sparse, smoothing=0.75),
        case(large, smoothing=0.5),
        case(empty, smoothing=1.0),
    ]


def _pmi(
    counts: Tensor,
    smoothing: float = 0.75,
    *,
    clip: bool = True,
    word_power: float = 1.0,
    normalise: bool = True,
    log: Any = torch.log,
) -> Tensor:
    """Build PPMI from parts that mistakes leave out or change."""
    joint = counts / counts.sum()
    word = counts.sum(1, keepdim=True) ** word_power
    word = word / word.sum()
    context = counts.sum(0, keepdim=True) ** smoothing
    context = context / (context.sum() if normalise else counts.sum())
    score = torch.where(counts > 0, log(joint / (word * context)), torch.zeros_like(counts))
    return score.clamp(min=0) if clip else score


def _infinite(counts: Tensor, smoothing: float = 0.75) -> Tensor:
    joint = counts / counts.sum()
    context = counts.sum(0, keepdim=True) ** smoothing
    return torch.log(joint / (joint.sum(1, keepdim=True) * context / context.sum()))


def _row_shares(counts: Tensor, smoothing: float = 0.75) -> Tensor:
    return counts / counts.sum(1, keepdim=True).clamp(min=1)


def _logarithm_of_counts(counts: Tensor, smoothing: float = 0.75) -> Tensor:
    return torch.log1p(counts)


PPMI = Exercise(
    name="vectors.ppmi",
    title="Positive pointwise mutual information",
    minutes=12,
    difficulty=3,
    importance=4,
    reference=ppmi,
    cases=_count_cases,
    mistakes=[
        Mistake(
            _infinite,
            "pairs that never meet give log(0), minus infinity, and negative values stay. Set both to 0: torch.where "
            "for the zeros, clamp(min=0) for the rest.",
        ),
        Mistake(
            lambda counts, smoothing=0.75: _pmi(counts, smoothing, clip=False),
            "the P of PPMI is missing: negative values become 0, .clamp(min=0).",
        ),
        Mistake(
            lambda counts, smoothing=0.75: _pmi(counts, 1.0),
            "the contexts are not smoothed: raise the column sums to the power `smoothing` before you divide by their "
            "sum.",
        ),
        Mistake(
            lambda counts, smoothing=0.75: _pmi(counts, 1.0, word_power=smoothing),
            "you smoothed the words (rows); the power belongs to the contexts (columns).",
        ),
        Mistake(
            lambda counts, smoothing=0.75: _pmi(counts, smoothing, word_power=smoothing),
            "you smoothed words and contexts; the power belongs to the contexts (columns) alone.",
        ),
        Mistake(
            lambda counts, smoothing=0.75: _pmi(counts, smoothing, normalise=False),
            "after the power the contexts' probabilities no longer sum to 1: divide by the sum of the powers.",
        ),
        Mistake(
            lambda counts, smoothing=0.75: _pmi(counts, smoothing, log=torch.log2),
            "this is in bits (log2). Use the natural logarithm, torch.log.",
        ),
        Mistake(
            _row_shares,
            "this is P(context given word). Frequent contexts still win everywhere: divide by P(context) and take the "
            "logarithm.",
        ),
        Mistake(
            _logarithm_of_counts,
            "a logarithm alone tames large counts, but it does not ask what chance would give: divide by "
            "P(word) P(context).",
        ),
    ],
    hints=[
        "Three probabilities: of the pair, counts / counts.sum(); of the word, its row sum; of the context, its column "
        "sum to the power `smoothing`, divided by the sum of those.",
        "keepdim=True on both sums makes (words, 1) and (1, contexts), whose product has the shape of counts.",
        "torch.where(counts > 0, torch.log(joint / (word * context)), 0.0).clamp(min=0)",
    ],
)

# --- analogy


def _vector_cases() -> list[Case]:
    generator = torch.Generator().manual_seed(1)

    def vectors(words: int, size: int) -> Tensor:
        lengths = torch.rand(words, 1, generator=generator, dtype=torch.float64) * 4 + 0.2
        return torch.randn(words, size, generator=generator, dtype=torch.float64) * lengths

    return [case(vectors(9, 4), 0, 1, 2), case(vectors(12, 3), 7, 2, 5), case(vectors(6, 5).float(), 5, 3, 0)]


def _analogy(
    vectors: Tensor,
    signs: tuple[int, int, int],
    rows: tuple[int, int, int],
    *,
    hidden: Sequence[int],
    unit: bool = True,
    unit_target: bool = True,
) -> Tensor:
    """Build analogy scores from parts that mistakes leave out or change."""
    units = torch.nn.functional.normalize(vectors, dim=1) if unit else vectors
    target = sum((sign * units[row] for sign, row in zip(signs, rows, strict=True)), torch.zeros_like(units[0]))
    scores = units @ (torch.nn.functional.normalize(target, dim=0) if unit_target else target)
    scores[list(hidden)] = -math.inf
    return scores


ANALOGY = Exercise(
    name="vectors.analogy",
    title="Scores of an analogy",
    minutes=10,
    difficulty=3,
    importance=3,
    reference=analogy_scores,
    cases=_vector_cases,
    mistakes=[
        Mistake(
            lambda vectors, a, b, c: _analogy(vectors, (-1, 1, 1), (a, b, c), hidden=[]),
            "the words of the question are still among the answers, and c or b would nearly always win: give all three "
            "minus infinity.",
        ),
        Mistake(
            lambda vectors, a, b, c: _analogy(vectors, (-1, 1, 1), (a, b, c), hidden=[c]),
            "only c is excluded; a and b are no answers either.",
        ),
        Mistake(
            lambda vectors, a, b, c: _analogy(vectors, (1, -1, 1), (a, b, c), hidden=[a, b, c]),
            "the step goes the wrong way: from a to b is b - a, and that is added to c.",
        ),
        Mistake(
            lambda vectors, a, b, c: _analogy(vectors, (-1, 1, -1), (a, b, c), hidden=[a, b, c]),
            "c is subtracted; the step b - a starts at c, so c is added.",
        ),
        Mistake(
            lambda vectors, a, b, c: _analogy(
                vectors, (-1, 1, 1), (a, b, c), hidden=[a, b, c], unit=False, unit_target=False
            ),
            "these are plain dot products: long vectors win whatever they mean. Scale all vectors to length 1 first.",
        ),
        Mistake(
            lambda vectors, a, b, c: _analogy(vectors, (-1, 1, 1), (a, b, c), hidden=[a, b, c], unit_target=False),
            "nearly: b - a + c is not of length 1, so these are not cosines. Scale the target too.",
        ),
        Mistake(
            lambda vectors, a, b, c: _analogy(vectors, (0, 0, 1), (a, b, c), hidden=[a, b, c]),
            "these are the neighbours of c alone; a and b have no say. The target is b - a + c.",
        ),
    ],
    hints=[
        "Scale every row to length 1 (torch.nn.functional.normalize), then dot products are cosines.",
        "The step from a to b, taken from c: target = units[b] - units[a] + units[c]; scale it to length 1.",
        "scores = units @ target; then scores[[a, b, c]] = -math.inf.",
    ],
)

EXERCISES = (NEXT_WORD, LOSS, MERGE, PPMI, ANALOGY)
