"""Exercises of the notebook ``week3/02_zero_one_few_shot``."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.checks.framework import Case, Exercise, Mistake, case
from course_utils.prompting import calibrate, mcnemar

Pairs = Sequence[tuple[str, str]]

# --- a prompt with examples


def few_shot(question: str, answer: str, examples: Pairs, text: str) -> str:
    """Return the prompt: each example as a question with its answer, then the question about the text.

    Args:
        question: how a question is written, with ``{input}``.
        answer: how an answer is written, with ``{target}`` and what ends it.
        examples: pairs of an input and its target.
        text: what is asked about.
    """
    shown = [question.format(input=one) + answer.format(target=target) for one, target in examples]
    return "".join(shown) + question.format(input=text)


def _few_shot_cases() -> list[Case]:
    animals = [("dog", "red"), ("oak", "nine"), ("cow", "red")]
    return [
        case("- {input} ->", " {target}\n", animals, "elm"),
        case("Q: {input}\nA:", " {target}\n\n", animals[:2], "pine"),
        case("Input: {input} Output:", " {target}\n", [], "cat"),
        case("* {input} =", " {target} ;\n", animals[1:2], "ash"),
    ]


def _shown(question: str, answer: str, examples: Pairs) -> str:
    return few_shot(question, answer, examples, "").removesuffix(question.format(input=""))


def _answered(question: str, answer: str, examples: Pairs, text: str) -> str:
    return few_shot(question, answer, examples, text) + answer.format(target="")


def _with_blank(question: str, answer: str, examples: Pairs, text: str) -> str:
    return few_shot(question, answer, examples, text) + " "


def _question_first(question: str, answer: str, examples: Pairs, text: str) -> str:
    return question.format(input=text) + _shown(question, answer, examples)


def _no_question(question: str, answer: str, examples: Pairs, text: str) -> str:
    return _shown(question, answer, examples) + text


def _more_breaks(question: str, answer: str, examples: Pairs, text: str) -> str:
    parts = [question.format(input=one) + answer.format(target=target) for one, target in examples]
    return "\n".join([*parts, question.format(input=text)])


def _stripped(question: str, answer: str, examples: Pairs, text: str) -> str:
    return few_shot(question, answer.strip(), examples, text)


def _swapped(question: str, answer: str, examples: Pairs, text: str) -> str:
    return few_shot(question, answer, [(target, one) for one, target in examples], text)


FEW_SHOT = Exercise(
    name="prompting.few_shot",
    title="Write a prompt with examples",
    minutes=5,
    difficulty=1,
    importance=5,
    reference=few_shot,
    cases=_few_shot_cases,
    mistakes=[
        Mistake(
            _answered, "your prompt ends with an empty answer: it must end with the question, for the model goes on."
        ),
        Mistake(
            _with_blank,
            "your prompt ends with a blank: the blank belongs to the answer's first token (` red` is one token), so "
            "the model would have to begin a word in a way that it has hardly ever seen.",
        ),
        Mistake(_question_first, "the question stands before the examples: it comes last."),
        Mistake(_no_question, "the last text is not written as a question: it needs the same form as in the examples."),
        Mistake(_more_breaks, "you put line breaks between the examples: what ends an answer stands in `answer`."),
        Mistake(
            _stripped, "you stripped the answers: the blank before and the line break behind are part of the form."
        ),
        Mistake(_swapped, "input and target of the examples have changed places."),
    ],
    hints=[
        "question.format(input=...) and answer.format(target=...) fill in the braces.",
        'Join for each pair its question and its answer with "".join, and add the last question, without an answer.',
    ],
)

# --- the score of a label


def label_score(logits: Float[Tensor, "tokens vocabulary"], ids: Int[Tensor, " tokens"], start: int) -> float:
    """Return the log-probability of the tokens from ``start`` on, each given all tokens before it, in nats.

    Args:
        logits: what the model says at each token about the next one.
        ids: the tokens of the prompt, the label and what ends it.
        start: number of tokens of the prompt, at least 1.
    """
    steps = logits[start - 1 : -1].log_softmax(-1)  # what was said before each token of the label
    return steps.gather(1, ids[start:, None]).sum().item()


def _label_score_cases() -> list[Case]:
    found = []
    for seed, (tokens, start) in enumerate([(6, 4), (9, 6), (3, 1), (5, 4)]):
        draw = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(tokens, 7, generator=draw)
        found.append(case(logits, torch.randint(7, (tokens,), generator=draw), start))
    return found


Score = Callable[[Tensor, Tensor, int], float]


def _from_rows(rows: Callable[[Tensor], Tensor]) -> Score:
    """The right rows and tokens, scored in another way."""

    def score(logits: Tensor, ids: Tensor, start: int) -> float:
        return rows(logits[start - 1 : -1]).gather(1, ids[start:, None]).sum().item()

    return score


def _own_row(logits: Tensor, ids: Tensor, start: int) -> float:
    return logits[start:].log_softmax(-1).gather(1, ids[start:, None]).sum().item()


def _mean(logits: Tensor, ids: Tensor, start: int) -> float:
    return label_score(logits, ids, start) / (len(ids) - start)


def _as_probability(logits: Tensor, ids: Tensor, start: int) -> float:
    return math.exp(label_score(logits, ids, start))


def _without_end(logits: Tensor, ids: Tensor, start: int) -> float:
    return label_score(logits[:-1], ids[:-1], start)


def _first_only(logits: Tensor, ids: Tensor, start: int) -> float:
    return label_score(logits[: start + 1], ids[: start + 1], start)


def _whole_text(logits: Tensor, ids: Tensor, start: int) -> float:
    return label_score(logits, ids, 1)


LABEL_SCORE = Exercise(
    name="prompting.label_score",
    title="Score a label by the sum of its log-probabilities",
    minutes=10,
    difficulty=3,
    importance=5,
    reference=label_score,
    cases=_label_score_cases,
    mistakes=[
        Mistake(
            _own_row,
            "you read each token's own row: row i speaks of token i + 1, so the rows begin one earlier and end one "
            "earlier.",
        ),
        Mistake(
            _mean, "you divided by the number of tokens: the probability of a text is the product of all its steps."
        ),
        Mistake(_as_probability, "this is the probability: return its logarithm, the sum itself."),
        Mistake(
            _without_end,
            "the last token is missing: it ends the label, and without it `pos` would never lose to `positive`.",
        ),
        Mistake(_first_only, "only the label's first token counts in your score: sum over all from `start` on."),
        Mistake(_whole_text, "the prompt is scored as well: only the tokens from `start` on are the label's."),
        Mistake(
            _from_rows(lambda rows: rows), "these are sums of logits: log_softmax makes log-probabilities of them."
        ),
        Mistake(_from_rows(lambda rows: rows.softmax(-1)), "you added up probabilities: add up their logarithms."),
    ],
    hints=[
        "Row i of the logits, made into log-probabilities, says how likely each token is at place i + 1.",
        "So token `start` is judged by row start - 1: take logits[start - 1 : -1].log_softmax(-1).",
        "gather(1, ids[start:, None]) picks one number of each row; sum them, and .item() makes a float of the sum.",
    ],
)

# --- who wins


def _mcnemar_cases() -> list[Case]:
    return [case(*pair) for pair in [(0, 0), (5, 5), (0, 5), (8, 2), (2, 8), (94, 65), (30, 3)]]


def _terms(counts: Sequence[int], total: int) -> float:
    return sum(math.comb(total, count) for count in counts) / 2**total


def _one_sided(won: int, lost: int) -> float:
    return _terms(range(min(won, lost) + 1), won + lost)


def _not_capped(won: int, lost: int) -> float:
    return 2 * _one_sided(won, lost)


def _exactly(won: int, lost: int) -> float:
    return min(1.0, 2 * _terms([won], won + lost))


def _below(won: int, lost: int) -> float:
    return min(1.0, 2 * _terms(range(min(won, lost)), won + lost))


def _only_won(won: int, lost: int) -> float:
    return min(1.0, 2 * _terms(range(won + 1), won + lost))


def _chi_square(won: int, lost: int) -> float:
    return math.erfc(abs(won - lost) / math.sqrt(2 * (won + lost))) if won + lost else 1.0


MCNEMAR = Exercise(
    name="prompting.mcnemar",
    title="Is it better, or was it luck?",
    minutes=12,
    difficulty=3,
    importance=4,
    reference=mcnemar,
    cases=_mcnemar_cases,
    mistakes=[
        Mistake(_one_sided, "this is one side only: luck could have favoured the other one as well, so take it twice."),
        Mistake(_not_capped, "with as many won as lost your p is above 1: no probability is, take min(1.0, ...)."),
        Mistake(_exactly, "you took the chance of exactly this result: what is at least as unequal counts too."),
        Mistake(_below, "the result itself is missing: sum from 0 up to the smaller number, and include it."),
        Mistake(_only_won, "you sum up to `won`: take the smaller of the two, so that the order does not matter."),
        Mistake(
            _chi_square,
            "this is the approximation by the normal distribution, which is off for few items: count the throws.",
        ),
    ],
    hints=[
        "Items that both have right, or both wrong, say nothing. Each of the won + lost others is a throw of a coin.",
        "math.comb(total, k) / 2**total is the chance of k heads. Sum it for k from 0 to min(won, lost).",
        "Twice that sum, for either side could have been the lucky one; at most 1.",
    ],
)

# --- contextual calibration


def _calibrate_cases() -> list[Case]:
    return [
        case([-1.0, -2.5], [-0.5, -4.0]),
        case([-3.0, -3.2, -7.0], [-2.0, -2.0, -2.0]),
        case([-0.1, -6.0], [-0.05, -3.5]),
        case([-12.0, -10.0, -11.0, -14.0], [-9.0, -13.0, -8.5, -16.0]),
    ]


def _share(values: Sequence[float]) -> list[float]:
    return calibrate(values, [0.0] * len(values))


def _untouched(scores: Sequence[float], empty: Sequence[float]) -> list[float]:
    return _share(scores)


def _multiplied(scores: Sequence[float], empty: Sequence[float]) -> list[float]:
    return calibrate(scores, [-one for one in empty])


def _turned(scores: Sequence[float], empty: Sequence[float]) -> list[float]:
    return calibrate(empty, scores)


def _log_ratios(scores: Sequence[float], empty: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(scores, empty, strict=True)]


def _ratios(scores: Sequence[float], empty: Sequence[float]) -> list[float]:
    return [math.exp(one) for one in _log_ratios(scores, empty)]


def _divided_logs(scores: Sequence[float], empty: Sequence[float]) -> list[float]:
    return _share([one / other for one, other in zip(scores, empty, strict=True)])


def _subtracted(scores: Sequence[float], empty: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(_share(scores), _share(empty), strict=True)]


CALIBRATE = Exercise(
    name="prompting.calibrate",
    title="Divide out what a prompt prefers",
    minutes=8,
    difficulty=2,
    importance=3,
    reference=calibrate,
    cases=_calibrate_cases,
    mistakes=[
        Mistake(_untouched, "the empty question is not used: these are the probabilities as they were."),
        Mistake(_multiplied, "you multiplied: a label that the prompt prefers must lose by it, so divide."),
        Mistake(_turned, "the two have changed places: the question's probability is divided by the empty one's."),
        Mistake(_log_ratios, "these are logarithms: exp makes ratios of them, and their shares have to sum to 1."),
        Mistake(_ratios, "these ratios do not sum to 1 yet: divide each by their sum."),
        Mistake(
            _divided_logs,
            "you divided the logarithms: dividing probabilities is subtracting their logarithms.",
        ),
        Mistake(_subtracted, "you subtracted probabilities, which can fall below 0: divide."),
    ],
    hints=[
        "The scores are logarithms, and log(a / b) = log a - log b.",
        "exp of each difference, each divided by the sum of all: that is the softmax of the differences.",
    ],
)

EXERCISES = [FEW_SHOT, LABEL_SCORE, MCNEMAR, CALIBRATE]
