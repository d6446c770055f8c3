"""Exercises of the notebook ``week5/03_quantization_aware_training``."""

import torch
from torch import Tensor

from course_utils.checks.framework import Case, Exercise, Mistake, case
from course_utils.quantization.aware import recovered, scale_gradient, weight_gradient
from course_utils.quantization.calibrated import hessian, output_error

# --- the error of the outputs


def _output_cases() -> list[Case]:
    chance = torch.Generator().manual_seed(0)
    found = []
    for rows, columns, tokens in ((3, 5, 9), (1, 4, 7), (6, 2, 20)):
        inputs = torch.randn(tokens, columns, generator=chance) @ torch.randn(columns, columns, generator=chance)
        weight = torch.randn(rows, columns, generator=chance)
        found.append(case(weight, weight + 0.3 * torch.randn(rows, columns, generator=chance), hessian(inputs)))
    return found


def _change(weight: Tensor, other: Tensor, H: Tensor) -> Tensor:
    """The squared output error of each row."""
    change = other - weight
    return ((change @ H) * change).sum(1)


OUTPUT_ERROR = Exercise(
    name="aware.output_error",
    title="The error of a layer's outputs",
    minutes=10,
    difficulty=3,
    importance=5,
    reference=output_error,
    cases=_output_cases,
    mistakes=[
        Mistake(
            lambda weight, other, hessian: float((other - weight).square().sum(1).mean()),
            "that is the error of the weights: the inputs do not occur in it. Put the Hessian between the change and "
            "itself.",
        ),
        Mistake(
            lambda weight, other, hessian: float(_change(weight, other, torch.diag(hessian.diagonal())).mean()),
            "you used the diagonal alone: then inputs that move together count as if they did not.",
        ),
        Mistake(
            lambda weight, other, hessian: float(_change(weight, other, hessian).sum()),
            "you added up the outputs. Here we ask for the mean over them: divide by the number of rows.",
        ),
        Mistake(
            lambda weight, other, hessian: float(_change(weight, other, hessian).sum() / weight.numel()),
            "you divided by the number of weights. The mean is over the outputs: divide by the number of rows.",
        ),
        Mistake(
            lambda weight, other, hessian: float(((other - weight) @ hessian).square().sum(1).mean()),
            "you squared change @ H. The error is change @ H times change itself, added up.",
        ),
        Mistake(
            lambda weight, other, hessian: float(_change(torch.zeros_like(weight), other, hessian).mean()),
            "that is the mean square of the new outputs. The error is about the *change*, other - weight.",
        ),
        Mistake(
            lambda weight, other, hessian: float(_change(weight, other, hessian).mean().sqrt()),
            "you took the root. We ask for the mean square.",
        ),
    ],
    hints=[
        "The change of one output is d @ x, where d is a row of other - weight. Its square is d @ x @ x.T @ d.",
        "The mean over the inputs touches x x.T alone: that is the Hessian. So each row gives d @ H @ d.",
        "For all rows at once: ((change @ hessian) * change).sum(), divided by the number of rows; as a float.",
    ],
)

# --- the gradients


def _gradient_cases() -> list[Case]:
    chance = torch.Generator().manual_seed(1)
    found = []
    for shape, low, high in (((3, 8), -2.0, 1.0), ((2, 3, 5), -1.0, 1.0), ((1, 12), 0.0, 3.0)):
        steps = 2.5 * torch.randn(shape, generator=chance) + (high + low) / 2
        found.append((steps, torch.randn(shape, generator=chance), low, high))
    return [case(*one) for one in found]


def _scale_cases() -> list[Case]:
    found = []
    for one in _gradient_cases():
        steps, gradient, low, high = one.args
        found.append(case(steps, steps.round().clamp(low, high), gradient, low, high))
    return found


def _inside(steps: Tensor, low: float, high: float) -> Tensor:
    return (steps > low) & (steps < high)


WEIGHT_GRADIENT = Exercise(
    name="aware.weight_gradient",
    title="The straight-through gradient",
    minutes=6,
    difficulty=2,
    importance=5,
    reference=weight_gradient,
    cases=_gradient_cases,
    mistakes=[
        Mistake(
            lambda steps, gradient, low, high: torch.zeros_like(gradient),
            "that is the true slope of rounding: zero, and nothing would be learned. Let the gradient pass.",
        ),
        Mistake(
            lambda steps, gradient, low, high: gradient.clone(),
            "the gradient passes everywhere. Beyond the reach of the codes the value is cut off: moving such a weight "
            "a little changes nothing, so its gradient is 0.",
        ),
        Mistake(
            lambda steps, gradient, low, high: gradient.clamp(low, high),
            "you cut off the gradient. What is compared with low and high are the steps.",
        ),
        Mistake(
            lambda steps, gradient, low, high: gradient * ~_inside(steps, low, high),
            "the other way round: it passes within reach, and is 0 beyond.",
        ),
        Mistake(
            lambda steps, gradient, low, high: gradient * steps,
            "a gradient does not grow with the weight: it passes as it is (times 1) or not at all (times 0).",
        ),
        Mistake(
            lambda steps, gradient, low, high: gradient * (steps < high),
            "you look at the upper end alone: the codes have a lower end, too.",
        ),
    ],
    hints=[
        "Where does moving the weight a little move clamp(steps, low, high)?",
        "inside = (steps > low) & (steps < high) is True there.",
        "gradient * inside.",
    ],
)

SCALE_GRADIENT = Exercise(
    name="aware.scale_gradient",
    title="The gradient of a learned scale",
    minutes=12,
    difficulty=3,
    importance=4,
    reference=scale_gradient,
    cases=_scale_cases,
    mistakes=[
        Mistake(
            lambda steps, values, gradient, low, high: (gradient * values).sum(-1),
            "that is the slope of s * value with the codes held fixed. Within reach v / s changes with s as well: "
            "subtract it.",
        ),
        Mistake(
            lambda steps, values, gradient, low, high: (gradient * (values - steps)).sum(-1),
            "within reach that is right. Beyond it the value is s * low or s * high: its slope is low or high alone.",
        ),
        Mistake(
            lambda steps, values, gradient, low, high: (gradient * (values - steps) * _inside(steps, low, high)).sum(
                -1
            ),
            "beyond reach you give 0. There the value is s * low or s * high, and its slope in s is low or high.",
        ),
        Mistake(
            lambda steps, values, gradient, low, high: (gradient * (steps * _inside(steps, low, high) - values)).sum(
                -1
            ),
            "the sign is the other way round: round(v / s) - v / s.",
        ),
        Mistake(
            lambda steps, values, gradient, low, high: (values - steps * _inside(steps, low, high)).sum(-1),
            "the gradient that arrives is missing: each weight's slope is multiplied by its own (chain rule).",
        ),
        Mistake(
            lambda steps, values, gradient, low, high: (gradient * (values - steps * _inside(steps, low, high))).mean(
                -1
            ),
            "you took the mean. One scale moves all weights of its group, so their gradients add up.",
        ),
        Mistake(
            lambda steps, values, gradient, low, high: (gradient * (values - steps * _inside(steps, low, high))).sum(),
            "you added up all groups. Each group (the last dimension) has a scale of its own.",
        ),
    ],
    hints=[
        "The value is s * clamp(round(v / s), low, high). Product rule: the clamp's value, plus s times its slope.",
        "Straight through, round(v / s) has the slope of v / s, which is -v / s**2. Times s: -v / s = -steps.",
        "Beyond reach the clamp does not move: only values is left.",
        "(gradient * (values - steps * inside)).sum(-1), with inside = (steps > low) & (steps < high).",
    ],
)

# --- what was won back


def _recovered_cases() -> list[Case]:
    return [case(3.66, 4.36, 3.9), case(2.0, 2.5, 2.75), case(3.1, 5.4, 3.0)]


RECOVERED = Exercise(
    name="aware.recovered",
    title="The share that is won back",
    minutes=5,
    difficulty=1,
    importance=4,
    reference=recovered,
    cases=_recovered_cases,
    mistakes=[
        Mistake(
            lambda exact, rounded, trained: (trained - exact) / (rounded - exact),
            "that is the share that is still lost. What was won back is 1 minus it.",
        ),
        Mistake(
            lambda exact, rounded, trained: (rounded - trained) / rounded,
            "you divide by the whole loss. Measure against what rounding cost: rounded - exact.",
        ),
        Mistake(
            lambda exact, rounded, trained: rounded - trained,
            "that is what was won back in nats. As a share, divide it by what rounding cost.",
        ),
        Mistake(
            lambda exact, rounded, trained: (rounded - trained) / (rounded - min(exact, trained)),
            "do not cut off at 1: a share above 1 says that training did more than undo the rounding.",
        ),
        Mistake(
            lambda exact, rounded, trained: max(0.0, recovered(exact, rounded, trained)),
            "do not cut off at 0: training can make it worse, and then the share is negative.",
        ),
    ],
    hints=[
        "Two differences: what rounding cost, and what training won.",
        "(rounded - trained) / (rounded - exact).",
    ],
)

EXERCISES = [OUTPUT_ERROR, WEIGHT_GRADIENT, SCALE_GRADIENT, RECOVERED]
