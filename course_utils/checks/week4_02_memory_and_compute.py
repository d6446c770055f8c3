"""Exercises of the notebook ``week4/02_memory_and_compute``."""

import dataclasses
from collections.abc import Callable
from typing import Any

from course_utils.checks.framework import Case, Exercise, Mistake, case
from course_utils.compute import DEVICES, device_days, implied_utilisation, per_token
from course_utils.memory import BYTES, SHAPES, Plan, cache_bytes, parameters
from course_utils.transformer import TransformerConfig

# --- key/value cache


def _cache_cases() -> list[Case]:
    wide = TransformerConfig(100, width=48, heads=4, head_size=20, key_value_heads=2, layers=3)
    return [
        case(SHAPES["gpt2"], Plan("inference", batch=2, tokens=1000)),
        case(SHAPES["llama2-70b"], Plan("inference", batch=3, tokens=4096, weights="bfloat16")),
        case(wide, Plan("inference", batch=5, tokens=70, weights="float16")),
    ]


def _cache(**changes: Any) -> Callable[[TransformerConfig, Plan], float]:
    """The right formula with some of its factors replaced."""

    def function(config: TransformerConfig, plan: Plan) -> float:
        factors: dict[str, float] = {
            "both": 2,
            "layers": config.layers,
            "batch": plan.batch,
            "tokens": plan.tokens,
            "numbers": config.groups * config.size_of_head,
            "bytes": BYTES[plan.weights],
        }
        result = 1.0
        for name, value in factors.items():
            result *= changes[name](config, plan) if name in changes else value
        return result

    return function


CACHE = Exercise(
    name="memory.cache",
    title="The key/value cache",
    minutes=8,
    difficulty=2,
    importance=4,
    reference=cache_bytes,
    cases=_cache_cases,
    mistakes=[
        Mistake(_cache(both=lambda config, plan: 1), "half of it: a token keeps a key and a value."),
        Mistake(
            _cache(layers=lambda config, plan: 1), "that is one layer's: each layer has keys and values of its own."
        ),
        Mistake(_cache(batch=lambda config, plan: 1), "that is one sequence's: multiply by plan.batch."),
        Mistake(
            _cache(numbers=lambda config, plan: config.heads * config.size_of_head),
            "you counted all heads: with grouped heads only config.groups of them have keys and values.",
        ),
        Mistake(
            _cache(numbers=lambda config, plan: config.width),
            "a key is not always as long as the width: it has config.groups heads of config.size_of_head numbers.",
        ),
        Mistake(
            _cache(bytes=lambda config, plan: 4),
            "you counted 4 bytes a number whatever the format: memory.BYTES[plan.weights] says how many.",
        ),
        Mistake(
            _cache(bytes=lambda config, plan: 1),
            "these are numbers, not bytes: multiply by memory.BYTES[plan.weights].",
        ),
        Mistake(
            _cache(tokens=lambda config, plan: plan.tokens**2),
            "it grows with the tokens, not with their square: each token adds its own key and value.",
        ),
    ],
    hints=[
        "How many numbers does one token leave behind in one layer?",
        "A key and a value, each of config.groups heads of config.size_of_head numbers.",
        "2 * layers * batch * tokens * groups * size_of_head * bytes of a number.",
    ],
    tolerance=1e-9,
)

# --- FLOPs of a token


def _token_cases() -> list[Case]:
    small = TransformerConfig(100, width=48, heads=4, head_size=20, key_value_heads=2, layers=3, gated=True)
    longer = dataclasses.replace(small, layers=5, tied_embeddings=False)
    return [case(SHAPES["gpt2"], 1024), case(small, 512), case(longer, 64), case(SHAPES["llama2-70b"], 4096)]


def _token(weights: float, scores: Callable[[TransformerConfig, int], float]) -> Callable[..., float]:
    return lambda config, tokens: weights * parameters(config) + scores(config, tokens)


PER_TOKEN = Exercise(
    name="compute.per_token",
    title="FLOPs of a token",
    minutes=10,
    difficulty=3,
    importance=4,
    reference=per_token,
    cases=_token_cases,
    mistakes=[
        Mistake(
            _token(2, lambda config, tokens: 4 * config.layers * config.heads * config.size_of_head * tokens),
            "that is the forward pass alone: the backward pass takes twice as many on top.",
        ),
        Mistake(
            _token(6, lambda config, tokens: 0),
            "the short rule: add the scores of attention, 12 for each layer, head, number of a head and earlier token.",
        ),
        Mistake(
            _token(6, lambda config, tokens: 6 * config.layers * config.heads * config.size_of_head * tokens),
            "attention has two products, queries with keys and weights with values: 12, not 6.",
        ),
        Mistake(
            _token(6, lambda config, tokens: 12 * config.layers * config.width * tokens),
            "heads times head size is not always the width: use config.heads * config.size_of_head.",
        ),
        Mistake(
            _token(6, lambda config, tokens: 12 * config.layers * config.groups * config.size_of_head * tokens),
            "each of the config.heads query heads has scores of its own, also where they share keys.",
        ),
        Mistake(
            _token(6, lambda config, tokens: 12 * config.layers * config.size_of_head * tokens),
            "that is one head a layer: multiply by config.heads.",
        ),
        Mistake(
            _token(6, lambda config, tokens: 12 * config.layers * config.heads * config.size_of_head * tokens**2),
            "asked is one token, which looks at T others: the square is that of a whole sequence.",
        ),
        Mistake(
            lambda config, tokens: per_token(config, tokens) * tokens,
            "that is a whole sequence: asked is one token of it.",
        ),
    ],
    hints=[
        "memory.parameters(config) is N. Each weight takes 2 FLOPs in the forward pass and 4 in the backward pass.",
        "Scores of a token in one head: Q multiply-adds for each of T keys, as many with the values. Times 3 passes.",
        "6 * N + 12 * layers * heads * size_of_head * tokens.",
    ],
    tolerance=1e-9,
)

# --- days of a device


def _days_cases() -> list[Case]:
    return [case(8.64e19, "A100", 0.4), case(3.14e23, "V100", 0.213), case(5e22, "H200", 1.0), case(2e20, "T4", 0.3)]


def _days(peak: Callable[[Any], float]) -> Callable[[float, str, float], float]:
    return lambda flops, device, share: flops / (peak(DEVICES[device]) * share) / 86400


DAYS = Exercise(
    name="compute.device_days",
    title="Days of a device",
    minutes=5,
    difficulty=1,
    importance=4,
    reference=device_days,
    cases=_days_cases,
    mistakes=[
        Mistake(lambda flops, device, share: device_days(flops, device, share) * 24, "these are hours: a day has 24."),
        Mistake(lambda flops, device, share: device_days(flops, device, share) * 86400, "these are seconds."),
        Mistake(
            lambda flops, device, share: device_days(flops, device, 1.0) * share,
            "you multiplied by the share: a device that reaches 40 % of its peak takes longer, not shorter.",
        ),
        Mistake(
            lambda flops, device, share: device_days(flops, device, 1.0),
            "that is at full efficiency: only the given share of the peak is reached.",
        ),
        Mistake(
            _days(lambda device: device.dense["float32"]),
            "that is the peak in float32: training computes in 16 bits, DEVICES[device].peak().",
        ),
        Mistake(
            _days(lambda device: device.sparse.get("bfloat16", device.peak())),
            "that is the peak for sparse weights, twice as high: training multiplies all of them.",
        ),
    ],
    hints=[
        "DEVICES[device].peak() are the FLOP/s of its datasheet. How many of them are reached?",
        "Seconds = FLOPs / FLOP/s; a day has 24 * 60 * 60 of them.",
        "flops / (DEVICES[device].peak() * share) / 86400.",
    ],
)

# --- utilisation of a published run


def _implied_cases() -> list[Case]:
    return [
        case(6.7e9, 1.0e12, 82_432, 312e12),
        case(176.2e9, 366e9, 1_082_990, 312e12),
        case(405e9, 15.6e12, 30.84e6, 989.5e12),
    ]


IMPLIED = Exercise(
    name="compute.implied_utilisation",
    title="Utilisation of a published training",
    minutes=6,
    difficulty=2,
    importance=3,
    reference=implied_utilisation,
    cases=_implied_cases,
    mistakes=[
        Mistake(
            lambda parameters, tokens, hours, peak: 6 * parameters * tokens / hours / peak,
            "the peak is in FLOPs a second: turn the hours into seconds.",
        ),
        Mistake(
            lambda parameters, tokens, hours, peak: 2 * parameters * tokens / (hours * 3600) / peak,
            "2 N D is the forward pass alone: training takes 6 N D.",
        ),
        Mistake(
            lambda parameters, tokens, hours, peak: 8 * parameters * tokens / (hours * 3600) / peak,
            "8 N D counts the recomputation of checkpointing: model FLOPs utilisation leaves it out.",
        ),
        Mistake(
            lambda parameters, tokens, hours, peak: hours * 3600 * peak / (6 * parameters * tokens),
            "upside down: what was done over what could have been done.",
        ),
        Mistake(
            lambda parameters, tokens, hours, peak: 100 * implied_utilisation(parameters, tokens, hours, peak),
            "that is in per cent: return the share, at most 1.",
        ),
    ],
    hints=[
        "What was done: 6 N D. What could have been done in that time?",
        "hours * 3600 seconds, each with `peak` FLOPs.",
        "6 * parameters * tokens / (hours * 3600 * peak).",
    ],
)

EXERCISES = (CACHE, PER_TOKEN, DAYS, IMPLIED)
