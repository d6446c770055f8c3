"""Quantization-aware training: the forward pass rounds the weights as they will be stored, the backward pass does not.

Rounding has no slope, so no gradient comes through it. The straight-through estimator (Bengio et al., 2013)
sends the gradient past the rounding, to weights in full precision that are kept for the training alone. The scales are
learned as well (LSQ; Esser et al., 2020). :func:`aware` prepares a model, :func:`course_utils.training.fit` trains it,
and :func:`freeze` leaves what is stored: packed codes and scales that compute exactly what was trained.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from course_utils.quantization.layers import QuantizedLinear, linear_maps, replace, weight_of
from course_utils.quantization.schemes import (
    FLOAT8,
    SCALES,
    Scheme,
    assemble,
    from_codes,
    parameters,
    refuse_not_finite,
    to_codes,
)
from course_utils.training import Batch, Loss, modes

SMALLEST = 2.0**-24
"""The smallest scale that is learned, float16's smallest number: a group of zeros begins with it."""


def reach(zeros: Tensor | None, scheme: Scheme) -> tuple[Tensor | float, Tensor | float]:
    """Return the smallest and the largest value that codes stand for, in units of the scale.

    Args:
        zeros: zero points, or None in symmetric schemes.
        scheme: what the codes mean.
    """
    if scheme.codes != "int":
        top = 1.0 if scheme.codes == "nf4" else torch.finfo(FLOAT8).max
        return -top, top
    low, high = scheme.levels
    return (low, high) if zeros is None else (low - zeros, high - zeros)


def weight_gradient(
    steps: Float[Tensor, "*groups weights"],
    gradient: Float[Tensor, "*groups weights"],
    low: Tensor | float,
    high: Tensor | float,
) -> Float[Tensor, "*groups weights"]:
    """Return the gradient of weights behind a rounding: it passes within reach of the codes, and ends beyond it.

    The straight-through estimator (Bengio et al., 2013), cut off as in Esser et al. (2020), equation 5.

    Args:
        steps: the weights in units of their scale, ``v / s``.
        gradient: the gradient of the rounded weights.
        low: smallest value of the codes, in units of the scale.
        high: largest value.
    """
    return gradient * ((steps > low) & (steps < high))


def scale_gradient(
    steps: Float[Tensor, "*groups weights"],
    values: Float[Tensor, "*groups weights"],
    gradient: Float[Tensor, "*groups weights"],
    low: Tensor | float,
    high: Tensor | float,
) -> Float[Tensor, "*groups"]:
    """Return the gradient of the scale of each group: LSQ's (Esser et al., 2020, equation 3).

    Args:
        steps: the weights in units of their scale, ``v / s``.
        values: what is in their place, in the same units: ``v / s`` rounded, or the end of the reach beyond it.
        gradient: the gradient of the rounded weights.
        low: smallest value of the codes, in units of the scale.
        high: largest value.
    """
    inside = (steps > low) & (steps < high)
    return (gradient * (values - steps * inside)).sum(-1)


class _FakeQuantize(torch.autograd.Function):
    """Decoded codes forward; backward the straight-through estimator, and LSQ's gradient of the scales."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scales: Tensor, zeros: Tensor | None, scheme: Scheme) -> Tensor:
        decoded = from_codes(to_codes(weight, scales, zeros, scheme), scales, zeros, scheme)
        ctx.save_for_backward(weight, scales, zeros, decoded)
        ctx.scheme = scheme
        return decoded

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        if not ctx.needs_input_grad[1]:
            return gradient, None, None, None
        weight, scales, zeros, decoded = ctx.saved_tensors
        each = torch.where(scales > 0, scales, 1)[..., None]
        ends = reach(None if zeros is None else zeros[..., None], ctx.scheme)
        arriving, steps, values = (one.reshape(*scales.shape, -1) for one in (gradient, weight, decoded))
        steps, values = steps / each, values / each
        for_weight = weight_gradient(steps, arriving, *ends)
        return for_weight.view(weight.shape), scale_gradient(steps, values, arriving, *ends), None, None


def fake_quantize(
    weight: Float[Tensor, "rows columns"],
    scales: Float[Tensor, "scales groups"],
    zeros: Float[Tensor, "scales groups"] | None,
    scheme: Scheme,
) -> Float[Tensor, "rows columns"]:
    """Return the values that the weights have after rounding, with gradients as if it were none.

    The gradient of a weight passes where it lies within reach of the codes, and is 0 where it is cut off. That of a
    scale s is the sum over its weights v of ``round(v / s) - v / s`` within reach, and of the end of the reach beyond
    it, each times the gradient that arrives (Esser et al., 2020, equations 3 and 5). Where no gradient of the scales is
    asked for, they are taken to follow the weights, and the gradient of every weight passes.

    Args:
        weight: the weights.
        scales: one for each group, as in :func:`.schemes.to_codes`.
        zeros: zero points, or None in symmetric schemes; they get no gradient.
        scheme: what the codes mean.
    """
    return _FakeQuantize.apply(weight, scales, zeros, scheme)


class AwareLinear(nn.Module):
    """A linear map in training: weights in full precision, of which the forward pass uses the rounded values.

    Attributes:
        weight: the weights that are trained, (outputs, inputs).
        bias: added as it is, or None.
        log_scales: natural logarithms of the learned scales, in one row (Adam then changes all scales by the same
            factor at most, and weight decay leaves them alone); None where the scales follow the weights.
        zeros: zero points, as chosen at the start; None in symmetric schemes.
        scheme: how the weights will be stored.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, scheme: Scheme, learned: bool = True):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().float().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.scheme = scheme
        scales, zeros = parameters(self.weight.detach(), scheme)
        self.groups = tuple(scales.shape)
        self.log_scales = nn.Parameter(scales.clamp(min=SMALLEST).log().flatten()) if learned else None
        self.zeros: Tensor | None
        self.register_buffer("zeros", zeros)

    def scales_and_zeros(self) -> tuple[Tensor, Tensor | None]:
        """Return the scales as they will be stored, and the zero points."""
        if self.log_scales is None:
            return parameters(self.weight.detach(), self.scheme)
        scales = self.log_scales.exp().view(self.groups)
        stored = scales.detach().to(SCALES[self.scheme.scales]).float()
        return _Stored.apply(
            scales, stored, _gradient_scale(self.weight.numel() / scales.numel(), self.scheme)
        ), self.zeros

    def rounded(self) -> Float[Tensor, "outputs inputs"]:
        """Return the weights that the forward pass uses."""
        return fake_quantize(self.weight, *self.scales_and_zeros(), self.scheme)

    def forward(self, states: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Map with the rounded weights.

        Args:
            states: the vectors that are mapped.
        """
        return nn.functional.linear(states, self.rounded().to(states.dtype), self.bias)

    @torch.no_grad()
    def frozen(self) -> QuantizedLinear:
        """Return the layer that stores the codes; it computes the same."""
        scales, zeros = self.scales_and_zeros()
        codes = to_codes(self.weight.detach(), scales, zeros, self.scheme)
        return QuantizedLinear(assemble(codes, scales, zeros, self.scheme), self.bias)

    def extra_repr(self) -> str:
        """Say what the parameters do not show."""
        learned = "learned scales" if self.log_scales is not None else "scales follow the weights"
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, {self.scheme.name}, {learned}"


def aware(
    model: nn.Module, scheme: Scheme, *, skip: Sequence[str] = (), only: Sequence[str] = (), learned: bool = True
) -> list[str]:
    """Prepare a trained model for quantization-aware training: each linear map becomes an :class:`AwareLinear`.

    It then computes what the model quantized by rounding to nearest does, and can be trained as any other, by
    :func:`course_utils.training.fit`; :func:`freeze` ends it.

    Args:
        model: a model in floating point; it is changed. Weights of the layers become float32.
        scheme: how the weights will be stored.
        skip: names of layers to leave, as in :func:`.layers.linear_maps`.
        only: names of layers to take alone.
        learned: learn the scales as well (LSQ); else they follow the weights by the scheme's calibration.

    Returns:
        The names of the layers.

    Raises:
        ValueError: a layer does not fit the scheme or is tied to another, the scales would be quantized themselves, or
            there is nothing to prepare.
    """
    if scheme.double:
        raise ValueError("double=True: the scales are learned as they are stored, in floating point; take double=False")
    layers = linear_maps(model, skip, only)
    if not layers:
        raise ValueError(f"this {type(model).__name__} has no linear map to prepare: quantized or prepared already?")
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name)
    for name, module in layers.items():
        scheme.check(*weight_of(module).shape, name=name)
        refuse_not_finite(weight_of(module), name)
        same = users[id(module.weight)]
        if len(same) > 1:
            raise ValueError(f"{name}: its weights are tied ({', '.join(same)}), training would part them; skip it")
    for name, module in layers.items():
        bias: Any = module.bias
        replace(model, name, AwareLinear(weight_of(module), bias, scheme, learned))
    return list(layers)


def distillation(teacher: nn.Module) -> Loss:
    """Return a loss for :func:`course_utils.training.fit`: how far a model's probabilities are from the teacher's.

    The Kullback-Leibler divergence of the next token's probabilities, in nats, summed over the tokens, and their number
    (Hinton et al., 2015; for quantization-aware training of language models Liu et al., 2024). The model
    before rounding is its own teacher: the text then brings nothing new, and only the damage can be undone.

    Args:
        teacher: called with the fields of the batch without ``labels``; it is not trained.
    """

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad(), modes(teacher, training=False):
            wanted = _log_probabilities(teacher, inputs)
        given = _log_probabilities(model, inputs)
        each = (wanted.exp() * (wanted - given)).sum(-1)  # (rows, tokens)
        mask = inputs.get("attention_mask")
        counted = torch.ones_like(each) if mask is None else mask.to(each)
        return (each * counted).sum(), counted.sum()

    return loss


def _log_probabilities(model: nn.Module, inputs: Batch) -> Tensor:
    output = model(**inputs)
    return (output if isinstance(output, Tensor) else output.logits).float().log_softmax(-1)


def freeze(model: nn.Module) -> list[str]:
    """End quantization-aware training: each :class:`AwareLinear` becomes packed codes that compute the same.

    Args:
        model: a model after :func:`aware`; it is changed.

    Returns:
        The names of the layers.

    Raises:
        ValueError: nothing in the model was prepared, or a layer's weights are not finite.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, AwareLinear)}
    if not layers:
        raise ValueError(
            f"nothing in this {type(model).__name__} was prepared: call aware(model, scheme) and train first"
        )
    for name, module in layers.items():
        refuse_not_finite(module.weight.detach(), name)
    made = {name: module.frozen() for name, module in layers.items()}
    for name, stored in made.items():
        replace(model, name, stored)
    return list(made)


def recovered(exact: float, rounded: float, trained: float) -> float:
    """Return which share of the loss that rounding cost is won back by training: 0 for none, 1 for all of it.

    Args:
        exact: loss in full precision.
        rounded: loss after rounding to nearest.
        trained: loss after quantization-aware training.

    Raises:
        ValueError: rounding cost nothing.
    """
    if not rounded > exact:
        raise ValueError(f"rounded={rounded}, exact={exact}: rounding cost nothing, so there is nothing to win back")
    return (rounded - trained) / (rounded - exact)


class _Stored(torch.autograd.Function):
    """The value that is stored, with the gradient of the one that is learned."""

    @staticmethod
    def forward(ctx: Any, learned: Tensor, stored: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return stored

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        return gradients[0] * ctx.factor, None, None


def _gradient_scale(weights: float, scheme: Scheme) -> float:
    """LSQ's factor for the gradient of a scale, 1 / sqrt(weights * largest level) (Esser et al., 2020, section 2.2)."""
    return 1 / math.sqrt(weights * max(1, scheme.levels[1]))
