"""Methods that look at a layer's inputs before they round its weights: GPTQ, AWQ and SmoothQuant.

Rounding to nearest makes the error of each weight small. What counts is the error of the layer's *outputs*, and that
depends on its inputs x through the mean of ``x xT`` alone (the Hessian of the squared error, up to a factor of 2): GPTQ
lets the weights that are not rounded yet make up for those that are. AWQ and SmoothQuant change the task instead: they
move factors from a layer's inputs into its weights, where the model computes the same and rounding does less harm.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from course_utils.quantization.layers import norm_pairs, rescale, run, weight_of
from course_utils.quantization.schemes import Quantized, Scheme, assemble, encode, from_codes, parameters, to_codes
from course_utils.training import modes

Value = TypeVar("Value")
Method = Callable[[nn.Module, Mapping[str, nn.Module], Scheme, Sequence[Any]], dict[str, Quantized]]
"""Model, its linear maps by name, the scheme and calibration batches to the quantized weights by name."""


def hessian(inputs: Float[Tensor, "*batch columns"]) -> Float[Tensor, "columns columns"]:
    """Return the mean of ``x xT`` over a layer's inputs: half the Hessian of its squared output error.

    Args:
        inputs: the inputs x, one for each token.
    """
    flat = inputs.detach().flatten(0, -2).float()
    return flat.T @ flat / len(flat)


def output_error(
    weight: Float[Tensor, "rows columns"],
    other: Float[Tensor, "rows columns"],
    hessian: Float[Tensor, "columns columns"],
) -> float:
    """Return the mean squared difference of a layer's outputs with these weights and with others.

    Args:
        weight: the weights, (outputs, inputs).
        other: the others.
        hessian: of the layer's inputs, by :func:`hessian`.
    """
    change = other - weight
    return float(((change @ hessian) * change).sum() / len(change))


@torch.no_grad()
def gptq_matrix(
    weight: Float[Tensor, "rows columns"],
    hessian: Float[Tensor, "columns columns"],
    scheme: Scheme,
    damping: float = 0.01,
    name: str = "the weight",
) -> Quantized:
    """Quantize a matrix column by column, each time changing the columns to the right to make up for the error.

    Frantar et al. (2023), GPTQ, algorithm 1, without its blocks (which only save time). A group's scales are chosen
    when its first column is reached, from the weights as they are by then. Where the Hessian is diagonal no column can
    make up for another, and this is rounding to nearest.

    Args:
        weight: the weights, (outputs, inputs); they stay as they are.
        hessian: of the inputs, by :func:`hessian`.
        scheme: how the weights are stored.
        damping: added to the diagonal, as a share of its mean.
        name: what the messages call it.

    Raises:
        ValueError: the matrix does not fit the scheme, or the damping is not above 0.
    """
    if not damping > 0:
        raise ValueError(f"damping={damping}: expected a share above 0, such as 0.01")
    scheme.check(*weight.shape, name=name)
    weight = weight.detach().float().clone()
    columns = weight.shape[1]
    curvature = hessian.double()
    mean = curvature.diagonal().mean()
    curvature = curvature + damping * (mean if mean > 0 else 1) * torch.eye(columns).to(curvature)
    upper = torch.linalg.cholesky(torch.linalg.inv(curvature), upper=True).float()
    scales, zeros = parameters(weight, scheme)
    size = columns // scales.shape[1]  # columns that share scales
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    for column in range(columns):
        group = slice(column // size, column // size + 1)
        if column % size == 0:
            scale, zero = parameters(weight[:, column : column + size], scheme)
            scales[:, group] = scale
            if zeros is not None and zero is not None:
                zeros[:, group] = zero
        each = scales[:, group], None if zeros is None else zeros[:, group]
        exact = weight[:, column : column + 1]  # (rows, 1)
        codes[:, column : column + 1] = to_codes(exact, *each, scheme)
        missed = exact - from_codes(codes[:, column : column + 1], *each, scheme)
        weight[:, column:] -= missed / upper[column, column] * upper[column, column:]
    return assemble(codes, scales, zeros, scheme)


@torch.no_grad()
def gptq(
    model: nn.Module, layers: Mapping[str, nn.Module], scheme: Scheme, calibration: Sequence[Any]
) -> dict[str, Quantized]:
    """Quantize linear maps with GPTQ in one forward pass: each when its inputs arrive, through those before it.

    So a layer is fitted to inputs that already carry the errors of the layers below (Frantar et al., 2023, section 4).

    Args:
        model: the model; its weights are put back before this returns.
        layers: the linear maps by name.
        scheme: how to store them.
        calibration: batches of real text, without padding; they are run together as one.

    Returns:
        What is to be stored, by name.

    Raises:
        ValueError: the batches do not fit together, or do not reach a layer.
    """
    made: dict[str, Quantized] = {}
    before: dict[str, Tensor] = {}

    def fit(name: str, inputs: Tensor) -> None:
        weight = weight_of(layers[name])
        made[name] = gptq_matrix(weight, hessian(inputs), scheme, name=name)
        before[name] = weight.clone()
        weight.copy_(made[name].decode())

    try:
        with _inputs_of(layers, fit), modes(model, training=False):
            run(model, _together(calibration))
    finally:
        for name, weight in before.items():
            weight_of(layers[name]).copy_(weight)
    _refuse_missing(layers, made)
    return made


@torch.no_grad()
def awq_factors(
    weights: Sequence[Float[Tensor, "_ columns"]],
    size: Float[Tensor, " columns"],
    hessian: Float[Tensor, "columns columns"],
    scheme: Scheme,
    steps: int = 20,
) -> Float[Tensor, " columns"]:
    """Return the factors of the columns with which rounding to nearest changes the outputs least.

    They are ``size**alpha`` for one alpha from 0 to 1, found by trying (Lin et al., 2024, AWQ, equations 4 and 5), with
    the geometric mean of the largest and the smallest of them at 1. Columns with large inputs get large weights, which
    are rounded more finely for their size.

    Args:
        weights: of all maps that read these inputs.
        size: mean absolute value of each input.
        hessian: of the inputs.
        scheme: how the weights will be stored.
        steps: values of alpha that are tried.
    """
    best, chosen = float("inf"), torch.ones_like(size)
    for step in range(steps):
        factors = size.clamp(min=1e-4) ** (step / steps)
        factors = factors / (factors.max() * factors.min()).sqrt()
        error = 0.0
        for weight in weights:
            larger = weight.float() * factors
            each = parameters(larger, scheme)
            error += output_error(
                weight.float(), from_codes(to_codes(larger, *each, scheme), *each, scheme) / factors, hessian
            )
        if error < best:
            best, chosen = error, factors
    return chosen


@torch.no_grad()
def awq(
    model: nn.Module, layers: Mapping[str, nn.Module], scheme: Scheme, calibration: Sequence[Any]
) -> dict[str, Quantized]:
    """Quantize linear maps with AWQ: scale the columns behind each norm by how large their inputs are, then round.

    Lin et al. (2024), section 3.2. The norm divides by the same factors, so the model in floating point computes the
    same. Maps that read no norm (those after attention or an activation function) are rounded to nearest.

    Args:
        model: one that :func:`.layers.norm_pairs` knows; its norms and weights are rescaled in place.
        layers: the linear maps by name.
        scheme: how to store them.
        calibration: batches of real text, without padding; they are run together as one.

    Returns:
        What is to be stored, by name.

    Raises:
        ValueError: the model's norms are not known, or the batches do not fit together or do not reach a layer.
    """

    def measure(inputs: Tensor) -> tuple[Tensor, Tensor]:
        return inputs.detach().abs().flatten(0, -2).float().mean(0), hessian(inputs)

    chosen = {id(module) for module in layers.values()}
    for norm, maps, (size, curvature) in _behind_norms(model, calibration, measure):
        weights = [weight_of(module) for module in maps if id(module) in chosen]
        if weights:
            rescale(norm, maps, 1 / awq_factors(weights, size, curvature, scheme))
    return {name: encode(weight_of(module), scheme, name) for name, module in layers.items()}


@torch.no_grad()
def smooth(model: nn.Module, calibration: Sequence[Any], alpha: float = 0.5) -> list[Tensor]:
    """Move outliers from the inputs of linear maps into their weights (SmoothQuant), so that both can be quantized.

    Input j is divided by ``max|x_j|**alpha / max|w_j|**(1 - alpha)`` and its column multiplied by it (Xiao et al.,
    2023, equation 4); the norm before does the dividing, so the model computes the same.

    Args:
        model: one that :func:`.layers.norm_pairs` knows; its norms and weights are changed in place.
        calibration: batches of real text, without padding; they are run together as one.
        alpha: how much of the difficulty goes into the weights, 0 to 1.

    Returns:
        The factors behind each norm, in the model's order.

    Raises:
        ValueError: alpha is out of range, or as :func:`awq`.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"alpha={alpha}: expected 0 (all difficulty stays in the inputs) to 1 (all goes into the weights)"
        )
    found = []

    def measure(inputs: Tensor) -> Tensor:
        return inputs.detach().abs().flatten(0, -2).float().amax(0)

    for norm, maps, largest in _behind_norms(model, calibration, measure):
        of_weights = torch.stack([weight_of(module).float().abs().amax(0) for module in maps]).amax(0)
        factors = (largest.clamp(min=1e-5) ** alpha / of_weights.clamp(min=1e-5) ** (1 - alpha)).clamp(min=1e-5)
        rescale(norm, maps, 1 / factors)
        found.append(factors)
    return found


METHODS: dict[str, Method] = {"gptq": gptq, "awq": awq}
"""What :func:`.layers.quantize` knows besides rounding to nearest."""


def _behind_norms(
    model: nn.Module, calibration: Sequence[Any], measure: Callable[[Tensor], Value]
) -> list[tuple[nn.Module, list[nn.Module], Value]]:
    """Run the model; return each norm that only linear maps read, these maps, and what was measured of their inputs."""
    pairs, seen = norm_pairs(model), dict[str, Value]()
    names = {module: name for name, module in model.named_modules()}
    readers = {names[maps[0]]: maps[0] for _, maps in pairs}

    def note(name: str, inputs: Tensor) -> None:
        seen[name] = measure(inputs)

    with _inputs_of(readers, note), modes(model, training=False):
        run(model, _together(calibration))
    _refuse_missing(readers, seen)
    return [(norm, maps, seen[names[maps[0]]]) for norm, maps in pairs]


@contextmanager
def _inputs_of(layers: Mapping[str, nn.Module], note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call a function with a layer's name and inputs, the first time that the layer is run."""
    done: set[str] = set()

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if name not in done:
                done.add(name)
                note(name, arguments[0])

        return hook

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _together(calibration: Sequence[Any]) -> Any:
    """The calibration batches as one."""
    if not len(calibration):
        raise ValueError("calibration is empty: give at least one batch of real text")
    if len(calibration) == 1:
        return calibration[0]
    try:
        if isinstance(calibration[0], Mapping):
            return {name: torch.cat([batch[name] for batch in calibration]) for name in calibration[0]}
        return torch.cat(list(calibration))
    except (RuntimeError, KeyError, TypeError) as error:
        raise ValueError(
            f"calibration: the batches do not fit together ({error}): they are run as one, so all need the same fields "
            "and the same number of tokens a row"
        ) from None


def _refuse_missing(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(
            f"calibration: the batches never reach {', '.join(missing)}; give batches that do, or skip them"
        )
