"""Quantized layers, and :func:`quantize`, which puts them into a model: ours, or one of ``transformers``.

The weights are kept as packed codes and become numbers again for the moment in which they are used. So memory falls
for real, while the product itself is computed in floating point; with ``activations``, the inputs are quantized as
well, and the product is one of whole numbers.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8
from torch import Tensor, nn

from course_utils import checkpoints
from course_utils.quantization.schemes import (
    Quantized,
    Scheme,
    encode,
    from_codes,
    parameters,
    refuse_not_finite,
    unpack,
)
from course_utils.reporting import table
from course_utils.training import modes
from course_utils.transformer import Transformer

ACTIVATIONS = (None, "dynamic", "static", "mixed")
PARTS = ("linear maps", "embeddings", "head", "all else")
SAMPLE = 4096
"""Inputs of a layer that are kept from each batch for the calibration of static scales."""


class _Stored(nn.Module):
    """Holds the tensors of a :class:`Quantized` as buffers."""

    def __init__(self, quantized: Quantized):
        super().__init__()
        self.scheme, self.shape = quantized.scheme, quantized.shape
        for name, tensor in quantized.tensors().items():
            self.register_buffer(name, tensor)

    @property
    def quantized(self) -> Quantized:
        """What is stored."""
        parts = {name: getattr(self, name, None) for name in ("codes", "scales", "zeros", "second", "mean")}
        return Quantized(shape=self.shape, scheme=self.scheme, **parts)  # type: ignore[arg-type]

    def decode(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "rows columns"]:
        """Return the weights in floating point.

        Args:
            dtype: type of the result.
        """
        return self.quantized.decode(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Stored":
        """Move the scales with the model, but keep ``model.to(dtype)`` from rounding them."""
        types = {name: one.dtype for name, one in self._buffers.items() if one is not None and one.is_floating_point()}
        for name in types:
            self._buffers[name] = self._buffers[name].view(torch.uint8)  # type: ignore[union-attr]
        super()._apply(fn, recurse)
        for name, dtype in types.items():
            self._buffers[name] = self._buffers[name].view(dtype)  # type: ignore[union-attr]
        return self

    def extra_repr(self) -> str:
        """Say what the buffers do not show."""
        return f"{self.shape[1]}, {self.shape[0]}, {self.scheme.name}"


class QuantizedLinear(_Stored):
    """A linear map with quantized weights.

    Args:
        quantized: the weights, (outputs, inputs).
        bias: the bias, in floating point.
        activations: None for inputs as they come; ``dynamic`` rounds each token's inputs to 8 bits by their own
            largest; ``static`` by one scale for all, ``input_scale``; ``mixed`` is dynamic but for the columns of
            outliers, which are multiplied in floating point (LLM.int8(), Dettmers et al., 2022, section 3.2).
        input_scale: scale of the inputs for ``static``, (1,).
        threshold: absolute value from which on an input makes its column one of outliers (``mixed``).

    Raises:
        ValueError: the settings contradict each other.
    """

    bias: nn.Parameter | None
    input_scale: Tensor | None

    def __init__(
        self,
        quantized: Quantized,
        bias: Tensor | None = None,
        activations: str | None = None,
        input_scale: Tensor | None = None,
        threshold: float = 6.0,
    ):
        super().__init__(quantized)
        if activations not in ACTIVATIONS:
            raise ValueError(f"activations={activations!r}: expected one of {', '.join(map(str, ACTIVATIONS))}")
        if (activations == "static") != (input_scale is not None):
            raise ValueError("an input_scale belongs to activations='static', and to no other")
        if not threshold > 0:
            raise ValueError(f"threshold={threshold!r}: expected a number above 0; LLM.int8() takes 6.0")
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.register_buffer("input_scale", input_scale)
        self.activations, self.threshold = activations, threshold

    @property
    def weight(self) -> Tensor:
        """The packed codes: some models ask their layers for the type and the place of their weights."""
        return self.codes.view(torch.int8)  # type: ignore[operator]

    def forward(self, states: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Return the mapped vectors.

        Args:
            states: the vectors that are mapped.
        """
        if self.activations is None:
            return F.linear(states, self.decode(states.dtype), self.bias)
        kept, outliers = states, None
        if self.activations == "mixed":
            outliers = (states.abs() >= self.threshold).flatten(0, -2).any(0)
            kept = states.masked_fill(outliers, 0)
        codes, scales = quantize_inputs(kept, self.input_scale)
        result = self._product(codes, scales)
        if outliers is not None and bool(outliers.any()):
            result += states[..., outliers].float() @ self.decode()[:, outliers].T
        return (result if self.bias is None else result + self.bias).to(states.dtype)

    def _product(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Multiply quantized inputs with the weights, as whole numbers where each output has one scale."""
        stored, scheme = self.quantized, self.scheme
        if scheme.codes != "int" or not scheme.symmetric or scheme.granularity == "group":
            return F.linear(codes.float() * scales, stored.decode())
        weights = (stored.integers().short() - 2 ** (scheme.bits - 1)).to(torch.int8)
        return whole_product(codes, weights) * scales * stored.plain_scales().T


class QuantizedEmbedding(_Stored):
    """A table of embeddings with quantized rows; only the rows that are looked up become numbers.

    Args:
        quantized: the table, (vocabulary, width).
        computed: type of what is looked up; it follows ``model.to(dtype)``.
    """

    def __init__(self, quantized: Quantized, computed: torch.dtype = torch.float32):
        super().__init__(quantized)
        self.computed = computed

    @property
    def weight(self) -> Tensor:
        """The whole table in floating point, for a head that shares it."""
        return self.decode(self.computed)

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch width"]:
        """Return the embeddings of tokens.

        Args:
            ids: the tokens.
        """
        stored, rows = self.quantized, ids.flatten()
        scales, zeros = stored.plain_scales(), stored.zeros
        if self.scheme.granularity != "tensor":
            scales, zeros = scales[rows], None if zeros is None else zeros[rows]
        codes = unpack(stored.codes[rows], self.scheme.bits, self.shape[1])
        return from_codes(codes, scales, zeros, self.scheme).to(self.computed).view(*ids.shape, -1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedEmbedding":
        self.computed = fn(torch.empty(0, dtype=self.computed)).dtype
        super()._apply(fn, recurse)
        return self


class TiedHead(nn.Module):
    """An output layer that uses the weights of quantized embeddings.

    Args:
        embeddings: the embeddings.
        bias: the head's bias.
    """

    def __init__(self, embeddings: QuantizedEmbedding, bias: nn.Parameter | None = None):
        super().__init__()
        self.embeddings, self.bias = embeddings, bias

    @property
    def weight(self) -> Tensor:
        """The packed codes, as :attr:`QuantizedLinear.weight`."""
        return self.embeddings.codes.view(torch.int8)  # type: ignore[operator]

    def forward(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocabulary"]:
        """Return the scores of the vocabulary.

        Args:
            states: the last states.
        """
        return F.linear(states, self.embeddings.decode(states.dtype), self.bias)


def quantize_inputs(
    states: Float[Tensor, "*batch inputs"], scale: Float[Tensor, "1"] | None = None
) -> tuple[Int8[Tensor, "*batch inputs"], Float[Tensor, "*batch_or_1 one"]]:
    """Round inputs to integers of 8 bits, -127 to 127.

    Args:
        states: the inputs.
        scale: one scale for all; by default each token's own, its largest absolute value / 127.

    Returns:
        The integers and their scales, (..., 1) or (1,).
    """
    states = states.float()
    if scale is None:
        scale = states.abs().amax(-1, keepdim=True) / 127
    return (states / scale.clamp(min=1e-30)).round().clamp(-127, 127).to(torch.int8), scale


def whole_product(inputs: Int8[Tensor, "*batch inputs"], weights: Int8[Tensor, "outputs inputs"]) -> Tensor:
    """Multiply integers of 8 bits and add up without rounding: ``inputs @ weights.T``.

    torch's product of integers is slow where the processor has none: there floating point computes the same whole
    numbers, which float32 holds exactly up to 2**24.

    Args:
        inputs: the inputs.
        weights: the weights.

    Returns:
        Whole numbers, in float32.
    """
    flat = inputs.reshape(-1, inputs.shape[-1])
    if flat.device.type == "cuda":
        native = len(flat) > 16 and not weights.shape[0] % 8 and not weights.shape[1] % 8
    else:
        native = flat.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
    if native:
        result = torch._int_mm(flat, weights.T)
    else:
        exact = torch.float32 if 127**2 * weights.shape[1] < 2**24 else torch.float64
        result = flat.to(exact) @ weights.to(exact).T
    return result.float().view(*inputs.shape[:-1], -1)


# --- which layers there are


def is_linear(module: Any) -> bool:
    """Whether a module is a linear map that can be replaced: ``nn.Linear`` itself or GPT-2's ``Conv1D``."""
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"


def weight_of(module: nn.Module) -> Float[Tensor, "outputs inputs"]:
    """Return the weights of a linear map or of embeddings as (outputs, inputs).

    Args:
        module: an ``nn.Linear``, a ``Conv1D`` (which keeps them the other way round), or an ``nn.Embedding``.
    """
    weight: Any = module.weight
    return weight.detach().T if type(module).__name__ == "Conv1D" else weight.detach()


def linear_maps(model: nn.Module, skip: Sequence[str] = (), only: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Return the linear maps of a model by their names, without the output layer.

    Args:
        model: the model.
        skip: names to leave out, whole or their ends (``"down_proj"``), or of modules that hold them (``"layers.0"``).
        only: likewise, names to take alone.

    Raises:
        ValueError: the model has nothing of such a name.
    """
    heads = {id(module) for module in _heads(model).values()}
    found = {name: one for name, one in model.named_modules() if is_linear(one) and id(one) not in heads}
    for kind, names in (("skip", skip), ("only", only)):
        for name in [names] if isinstance(names, str) else names:
            if not any(_means(name, one) for one, _ in model.named_modules()):
                ends = ", ".join(dict.fromkeys(one.rpartition(".")[2] for one in found))
                raise ValueError(f"{kind}={name!r}: the model has no layer of this name; ends of names are {ends}")
    return {name: one for name, one in found.items() if _chosen(name, skip, only)}


def _means(wanted: str, name: str) -> bool:
    """Whether a name is wanted: ``layers.0`` means ``model.layers.0.mlp.up`` too, ``up`` does as well."""
    return f".{wanted}." in f".{name}."


def _chosen(name: str, skip: Sequence[str], only: Sequence[str]) -> bool:
    skip, only = ([names] if isinstance(names, str) else names for names in (skip, only))
    return not any(_means(one, name) for one in skip) and (not only or any(_means(one, name) for one in only))


def _ask(model: nn.Module, method: str) -> nn.Module | None:
    """What a model of ``transformers`` answers; None for others."""
    try:
        return getattr(model, method, lambda: None)()
    except (NotImplementedError, AttributeError):
        return None


def _embeddings(model: nn.Module) -> dict[str, nn.Module]:
    """The tables of token embeddings by their names, each table that uses the same weights too."""
    asked = _ask(model, "get_input_embeddings")
    own = (
        [asked] if asked is not None else [getattr(model, name, None) for name in ("embeddings", "decoder_embeddings")]
    )
    tables = [one for one in own if isinstance(one, (nn.Embedding, QuantizedEmbedding))]
    shared = {id(one._parameters.get("weight")) for one in tables} - {id(None)}
    return {
        name: one
        for name, one in model.named_modules(remove_duplicate=False)
        if any(one is table for table in tables)
        or (isinstance(one, nn.Embedding) and id(one._parameters.get("weight")) in shared)
    }


def _heads(model: nn.Module) -> dict[str, nn.Module]:
    """The output layers by their names: what the model says, and what uses the embeddings' weights."""
    asked = _ask(model, "get_output_embeddings")
    shared = {id(one._parameters.get("weight")) for one in _embeddings(model).values()} - {id(None)}
    return {
        name: one
        for name, one in model.named_modules()
        if id(one) == id(asked)
        or isinstance(one, TiedHead)
        or (isinstance(one, nn.Linear) and id(one._parameters.get("weight")) in shared)
    }


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module into the place of another.

    Args:
        model: the model, which is changed.
        name: name of the old module.
        module: the new one; it gets the mode of its owner.
    """
    parent, _, last = name.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, last, module.train(owner.training))


def run(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch, without gradients.

    Args:
        model: the model.
        batch: token ids, or a mapping of the fields of its forward pass.
    """
    with torch.no_grad():
        return model(**batch) if isinstance(batch, Mapping) else model(input_ids=batch)


# --- the whole model


@dataclass(frozen=True)
class Layer:
    """What quantization did to one layer.

    Attributes:
        name: its name in the model.
        part: one of :data:`PARTS`.
        scheme: name of its scheme.
        before: bytes of its weights before.
        after: bytes of codes, scales and zero points.
        error: length of the change of the weights, relative to that of the weights.
    """

    name: str
    part: str
    scheme: str
    before: int
    after: int
    error: float


@dataclass(frozen=True)
class Report:
    """What :func:`quantize` did.

    Attributes:
        layers: one entry for each layer that was replaced.
        before: bytes of each part before, each storage counted once.
        after: the same afterwards.
    """

    layers: tuple[Layer, ...]
    before: dict[str, int]
    after: dict[str, int]

    @property
    def smaller(self) -> float:
        """How many times smaller the layers became that were replaced, scales included."""
        return sum(one.before for one in self.layers) / sum(one.after for one in self.layers)

    def table(self) -> None:
        """Display the bytes of each part, before and after."""
        rows = [
            (part, f"{self.before[part]:,}", f"{self.after[part]:,}", f"{self.before[part] / self.after[part]:.2f}")
            for part in PARTS
            if self.after[part]
        ]
        before, after = sum(self.before.values()), sum(self.after.values())
        rows.append(("all", f"{before:,}", f"{after:,}", f"{before / after:.2f}"))
        table(rows, ("part", "bytes before", "bytes after", "times smaller"))

    def layers_table(self, count: int | None = None) -> None:
        """Display the layers, those with the largest error first.

        Args:
            count: how many; by default all.
        """
        order = sorted(self.layers, key=lambda one: -one.error)[:count]
        rows = [(one.name, one.scheme, f"{one.before:,}", f"{one.after:,}", f"{one.error:.4f}") for one in order]
        table(rows, ("layer", "scheme", "bytes before", "bytes after", "relative error"))


@torch.no_grad()
def quantize(
    model: nn.Module,
    scheme: Scheme,
    *,
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
    embeddings: bool = False,
    head: bool = False,
    activations: str | None = None,
    calibration: Sequence[Any] | None = None,
    method: str = "nearest",
    threshold: float = 6.0,
) -> Report:
    """Quantize a model in place: each linear map becomes a :class:`QuantizedLinear`.

    Norms, biases and positions stay as they are. A second call treats what the first one left, so that layers can have
    different schemes. Where an error is raised, no layer has been replaced.

    Args:
        model: any module with ``nn.Linear`` or GPT-2's ``Conv1D`` in it.
        scheme: how to quantize the weights.
        skip: names of layers to leave, as in :func:`linear_maps`.
        only: names of layers to quantize alone.
        embeddings: quantize the token embeddings as well.
        head: quantize the output layer as well; where it is tied to the embeddings, both or none.
        activations: quantize the inputs of the linear maps to 8 bits too; see :class:`QuantizedLinear`.
        calibration: batches on which the model is run to see its inputs: token ids, or mappings of its forward's
            arguments. Needed for ``activations="static"`` and for methods other than ``nearest``.
        method: ``nearest`` rounds each weight by itself; ``gptq`` and ``awq`` round with regard to the inputs.
        threshold: see :class:`QuantizedLinear`.

    Returns:
        What was done.

    Raises:
        ValueError: a setting is wrong, the model has no layer to quantize, or a layer does not fit the scheme.
    """
    layers = linear_maps(model, skip, only)
    tables, heads = _chosen_tables(model, embeddings, head)
    if not layers and not tables and not heads:
        raise ValueError(
            f"there is nothing to quantize in this {type(model).__name__}: no nn.Linear or Conv1D is chosen that is "
            "not quantized already"
        )
    if activations not in ACTIVATIONS:
        raise ValueError(f"activations={activations!r}: expected one of {', '.join(map(str, ACTIVATIONS))}")
    batches = list(calibration) if calibration is not None else []
    if (activations == "static" or method != "nearest") and not batches:
        raise ValueError(
            f"method={method!r}, activations={activations!r}: give calibration=, some batches of real text"
        )
    parts, before = _parts(model), bytes_of(model)
    names = {"linear maps": layers, "embeddings": tables, "head": heads}
    for name, module in {**layers, **tables, **heads}.items():
        scheme.check(*weight_of(module).shape, name=name)
    if method == "nearest":
        made = {name: encode(weight_of(module), scheme, name) for name, module in layers.items()}
    else:
        from course_utils.quantization.calibrated import METHODS

        if method not in METHODS:
            raise ValueError(f"method={method!r}: expected one of nearest, {', '.join(METHODS)}")
        made = METHODS[method](model, layers, scheme, batches)
    shared: dict[int, Quantized] = {}
    for name, module in {**tables, **heads}.items():
        key = id(module.weight)
        if key not in shared:
            shared[key] = encode(weight_of(module), scheme, name)
        made[name] = shared[key]
    reaches = _input_scales(model, layers, batches, scheme) if activations == "static" else {}
    done, once = [], set[int]()
    for part, modules in names.items():
        for name, module in modules.items():
            weight = weight_of(module)
            if id(made[name]) not in once:
                error = float((made[name].decode() - weight.float()).norm() / weight.float().norm().clamp(min=1e-30))
                done.append(Layer(name, part, scheme.name, weight.nbytes, made[name].bytes, error))
            once.add(id(made[name]))
    for name, module in layers.items():
        bias: Any = module.bias
        inputs = dict(activations=activations, input_scale=reaches.get(name), threshold=threshold)
        replace(model, name, QuantizedLinear(made[name], bias, **inputs))  # type: ignore[arg-type]
    _replace_tables(model, tables, heads, made)
    after = bytes_of(model)
    return Report(tuple(done), _by_part(before, parts), _by_part(after, parts))


def _chosen_tables(model: nn.Module, embeddings: bool, head: bool) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """The embeddings and output layers that shall be quantized."""
    tables = {name: one for name, one in _embeddings(model).items() if not isinstance(one, QuantizedEmbedding)}
    heads = {name: one for name, one in _heads(model).items() if is_linear(one)}
    theirs = {id(one.weight) for one in tables.values()}
    tied = any(id(one.weight) in theirs for one in heads.values())
    ours = isinstance(model, Transformer) and model.config.head and model.config.tied_embeddings
    if embeddings != head and tables and (tied or ours):
        raise ValueError(
            f"embeddings={embeddings}, head={head}: they share their weights in this model, so that one alone saves "
            "nothing; give both or none"
        )
    if head and not heads and not ours:
        raise ValueError("head=True: this model has no output layer that is a module of its own; leave head=False")
    if embeddings and not tables:
        raise ValueError("embeddings=True: this model has no token embeddings that are not quantized already")
    strange = [f"{name} ({type(one).__name__})" for name, one in tables.items() if type(one) is not nn.Embedding]
    if embeddings and strange:
        raise ValueError(f"embeddings=True: {', '.join(strange)} does more than look up; leave embeddings=False")
    return (
        {name: one for name, one in tables.items() if embeddings},
        {name: one for name, one in heads.items() if head},
    )


def _replace_tables(
    model: nn.Module, tables: dict[str, nn.Module], heads: dict[str, nn.Module], made: Mapping[str, Quantized]
) -> None:
    """Put quantized embeddings and output layers in place, those with the same weights sharing them."""
    shared: dict[int, QuantizedEmbedding] = {}
    for name, module in tables.items():
        weight: Any = module.weight
        new = shared.setdefault(id(weight), QuantizedEmbedding(made[name], weight.dtype))
        replace(model, name, new)
    for name, module in heads.items():
        bias: Any = module.bias
        embedded = shared.get(id(module.weight))
        replace(model, name, TiedHead(embedded, bias) if embedded is not None else QuantizedLinear(made[name], bias))


def _input_scales(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Any], scheme: Scheme
) -> dict[str, Tensor]:
    """Run the model and choose one scale for the inputs of each layer, by the scheme's calibration."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    generator = torch.Generator().manual_seed(0)

    def watch(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach().float().flatten()
            drawn = torch.randint(len(values), (SAMPLE,), generator=generator).to(values.device)
            seen[name] += [values[drawn], values.abs().amax().view(1)]

        return note

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in layers.items()]
    try:
        with modes(model, training=False):
            for batch in batches:
                run(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    choice = Scheme(8, "tensor", calibration=scheme.calibration, percentile=scheme.percentile, scales="float32")
    missing = [name for name, values in seen.items() if not values]
    if missing:
        raise ValueError(
            f"calibration: the batches never reach {', '.join(missing)}; give batches that do, or skip them"
        )
    return {name: parameters(torch.cat(values)[None], choice)[0].view(1) for name, values in seen.items()}


# --- bytes


def bytes_of(
    model: nn.Module,
    scheme: Scheme | None = None,
    *,
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
    embeddings: bool = False,
    head: bool = False,
) -> dict[str, int]:
    """Return the bytes of each tensor's storage by the tensor's name, as they are or as they would be.

    Parameters and buffers count, and a storage that several share counts once.

    Args:
        model: the model; it stays as it is.
        scheme: predict the bytes after :func:`quantize` with this scheme; by default count what there is.
        skip: as in :func:`quantize`.
        only: likewise.
        embeddings: likewise.
        head: likewise.

    Returns:
        Bytes by name; ``sum(bytes_of(model).values())`` is the whole.

    Raises:
        ValueError: as in :func:`quantize`.
    """
    found: dict[str, int] = {}
    seen: set[int] = set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            found[name] = storage.nbytes()
    if scheme is None:
        return found
    tables, heads = _chosen_tables(model, embeddings, head)
    for name, module in {**linear_maps(model, skip, only), **tables, **heads}.items():
        if f"{name}.weight" in found:
            scheme.check(*weight_of(module).shape, name=name)
            found[f"{name}.weight"] = scheme.bytes(*weight_of(module).shape)
    return found


def _parts(model: nn.Module) -> dict[str, str]:
    """Which part a module's weights belong to, by its name."""
    parts = {
        name: "linear maps" for name, one in model.named_modules() if is_linear(one) or type(one) is QuantizedLinear
    }
    return parts | dict.fromkeys(_heads(model), "head") | dict.fromkeys(_embeddings(model), "embeddings")


def _by_part(found: Mapping[str, int], parts: Mapping[str, str]) -> dict[str, int]:
    totals = dict.fromkeys(PARTS, 0)
    for name, amount in found.items():
        owner, _, last = name.rpartition(".")
        totals["all else" if last == "bias" else parts.get(owner, "all else")] += amount
    return totals


# --- files


def save(model: nn.Module, path: str | Path) -> Path:
    """Write a quantized model as one safetensors file, packed as in memory, with a digest over all.

    Args:
        model: a model after :func:`quantize`.
        path: the file; it is written beside its place and moved there.

    Returns:
        The path.

    Raises:
        ValueError: nothing in the model is quantized.
    """
    schemes: list[Scheme] = []
    layers: dict[str, list[Any]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, (_Stored, TiedHead)) or any(_within(name, other) for other in layers):
            continue
        if isinstance(module, TiedHead):
            layers[name] = ["tied", next(one for one, other in model.named_modules() if other is module.embeddings)]
            continue
        if module.scheme not in schemes:
            schemes.append(module.scheme)
        layers[name] = [type(module).__name__, schemes.index(module.scheme), *module.shape]
        if isinstance(module, QuantizedLinear):
            layers[name] += [module.activations, module.threshold]
    if not schemes:
        raise ValueError(f"nothing in this {type(model).__name__} is quantized: call quantize(model, scheme) first")
    kept: dict[str, Tensor] = {}
    first: dict[tuple[int, int], str] = {}
    same: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        key = tensor.data_ptr(), tensor.nbytes
        if tensor.numel() and key in first:
            same[name] = first[key]
        else:
            first[key], kept[name] = name, tensor
    state = {"format": 1, "schemes": [dataclasses.asdict(one) for one in schemes], "layers": layers, "same": same}
    checkpoints.save(Path(path), kept, state)
    return Path(path)


def _within(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")


@torch.no_grad()
def load(model: nn.Module, path: str | Path) -> nn.Module:
    """Put a file of :func:`save` into a model of the same shape.

    Args:
        model: the model in floating point, weights of any values; it is changed, but not where an error is raised.
        path: the file.

    Returns:
        The same model.

    Raises:
        ValueError: the file is damaged, belongs to another model, or holds parts that do not fit or are not finite.
    """
    tensors, state = checkpoints.load(Path(path))
    if state.get("format") != 1 or "layers" not in state:
        raise ValueError(f"{path} holds no quantized model: expected a file that save(model, path) wrote")
    tensors |= {name: tensors[other] for name, other in state["same"].items()}
    for name, tensor in tensors.items():
        refuse_not_finite(tensor, f"{path}: {name}")
    schemes = [Scheme(**one) for one in state["schemes"]]
    new: dict[str, nn.Module] = {}
    places: dict[str, str] = {}
    for name, (kind, *rest) in sorted(state["layers"].items(), key=lambda item: item[1][0] == "tied"):
        try:
            old = model.get_submodule(name)
            shape = tuple(weight_of(old).shape)
        except (AttributeError, RuntimeError):
            raise ValueError(f"{path} has a quantized layer {name}, this model has none: another model's?") from None
        place: Any = old.weight
        if kind == "tied":
            bias: Any = old.bias
            new[name] = TiedHead(new[rest[0]], bias)  # type: ignore[arg-type]
            continue
        number, rows, columns, *settings = rest
        if shape != (rows, columns):
            raise ValueError(f"{path}: {name} has {rows} x {columns} weights, this model's {shape}: another model's?")
        parts = {
            part: tensors[f"{name}.{part}"].to(place.device)
            for part in ("codes", "scales", "zeros", "second", "mean")
            if f"{name}.{part}" in tensors
        }
        missing = [part for part in ("codes", "scales") if part not in parts]
        if missing:
            raise ValueError(f"{path}: {name} has no {' and no '.join(missing)}: the file is not whole")
        quantized = Quantized(shape=(rows, columns), scheme=schemes[number], **parts)
        quantized.check(f"{path}: {name}")
        if kind == "QuantizedLinear":
            scale = tensors.get(f"{name}.input_scale")
            new[name] = QuantizedLinear(quantized, getattr(old, "bias", None), settings[0], scale, settings[1])
        else:
            origin = places.setdefault(state["same"].get(f"{name}.codes", f"{name}.codes"), name)
            new[name] = new[origin] if origin != name else QuantizedEmbedding(quantized, place.dtype)
    _check_rest(model, tensors, new, path)
    for name, module in new.items():
        replace(model, name, module)
    model.load_state_dict(tensors)
    return model


def _check_rest(
    model: nn.Module, tensors: Mapping[str, Tensor], new: Mapping[str, nn.Module], path: str | Path
) -> None:
    """Refuse tensors beside the quantized layers that are not those of the model."""
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not any(_within(name, layer) for layer in new)
    }
    for layer, module in new.items():
        expected |= {f"{layer}.{name}": tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in expected | found:
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{path}: {name} has the shape {found.get(name)}, this model needs {expected.get(name)}: another's?"
            )


# --- outliers, and which layers hurt

_READERS: dict[str, dict[str, tuple[str, ...]]] = {
    "LlamaDecoderLayer": {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    },
    "GPT2Block": {"ln_1": ("attn.c_attn",), "ln_2": ("mlp.c_fc",)},
    "T5LayerSelfAttention": {"layer_norm": ("SelfAttention.q", "SelfAttention.k", "SelfAttention.v")},
    "T5LayerCrossAttention": {"layer_norm": ("EncDecAttention.q",)},
    "T5LayerFF": {
        "layer_norm": ("DenseReluDense.wi", "DenseReluDense.wi_0", "DenseReluDense.wi_1"),
    },
    "Block": {
        "attention_norm": ("attention.query", "attention.key", "attention.value"),
        "feed_forward_norm": ("feed_forward.up", "feed_forward.gate"),
    },
}
"""Norms of a block, by the name of its class, and the linear maps that alone read them."""


def norm_pairs(model: nn.Module) -> list[tuple[nn.Module, list[nn.Module]]]:
    """Return each norm whose output only linear maps read, with these maps.

    A factor can be moved from the norm's weights into the columns of the maps without changing what the model computes.

    Args:
        model: LLaMA, GPT-2 or T5 of ``transformers``, or our Transformer with norms inside the residual branches.

    Raises:
        ValueError: no such norm is known in this model (BERT, for example, adds the norm's output to the residual).
    """
    pairs = []
    for block in model.modules():
        readers = _READERS.get(type(block).__name__, {})
        if getattr(block, "pre", True) is False:
            continue
        for norm, names in readers.items():
            if getattr(block, "parallel", False) and norm == "attention_norm":
                names = (*names, *readers["feed_forward_norm"])
            found = [one for name in names if (one := _below(block, name)) is not None]
            owner = _below(block, norm)
            if owner is not None and found:
                pairs.append((owner, found))
    if not pairs:
        raise ValueError(
            f"in this {type(model).__name__} no norm is known that only linear maps read; known blocks are "
            f"{', '.join(_READERS)} (with norms inside the residual branch)"
        )
    return pairs


def _below(module: nn.Module, name: str) -> nn.Module | None:
    for part in name.split("."):
        module = getattr(module, part, None)  # type: ignore[assignment]
        if module is None:
            return None
    return module


@torch.no_grad()
def rescale(norm: nn.Module, maps: Sequence[nn.Module], factors: Float[Tensor, " width"]) -> None:
    """Multiply a norm's outputs by a factor for each column, and divide the columns of the maps that read them.

    In exact arithmetic the model computes the same as before.

    Args:
        norm: the norm, which is changed.
        maps: all maps that read it, in floating point; they are changed.
        factors: positive numbers; a value below 1 makes the inputs smaller and the weights larger.

    Raises:
        ValueError: a map is quantized already.
    """
    for module in maps:
        if not is_linear(module):
            raise ValueError(f"a {type(module).__name__} reads this norm: rescale before quantize(), not after")
    for parameter in norm.parameters():  # weight, and LayerNorm's bias
        parameter.mul_(factors.to(parameter))
    for module in maps:
        weight_of(module).div_(factors.to(module.weight))  # type: ignore[arg-type]


def inject_outliers(model: nn.Module, columns: int = 4, factor: float = 64.0, seed: int = 0) -> list[int]:
    """Give the inputs of the linear maps outlier features, as models of billions of parameters have by themselves.

    The same few columns behind each norm are multiplied by a factor, and the columns of the weights that read them are
    divided by it (:func:`rescale`): the function stays, and only its quantization becomes harder. In large models few
    columns, the same in all layers, are up to 20 times larger than the others (Dettmers et al., 2022, section 4).

    Args:
        model: a model in floating point, one that :func:`norm_pairs` knows; it is changed.
        columns: number of columns.
        factor: how much larger they become.
        seed: which columns.

    Returns:
        The columns.

    Raises:
        ValueError: a setting is out of range, or the model is none of those.
    """
    pairs = norm_pairs(model)
    width: int = pairs[0][0].weight.shape[0]  # type: ignore[index, assignment]
    if not 1 <= columns <= width or not 0 < factor < math.inf:
        raise ValueError(f"columns={columns}, factor={factor}: expected 1 to {width} columns, and a factor above 0")
    chosen = sorted(torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:columns].tolist())
    for norm, maps in pairs:
        factors = torch.ones(norm.weight.shape[0])  # type: ignore[index, arg-type]
        factors[chosen] = factor
        rescale(norm, maps, factors)
    return chosen


def groups_of(model: nn.Module, by: str = "kind") -> dict[str, list[str]]:
    """Return the names of the linear maps in groups.

    Args:
        model: the model.
        by: ``kind`` (the last part of the name), ``block`` (its number) or ``layer`` (each alone).

    Raises:
        ValueError: there is no such grouping.
    """
    ways: dict[str, Callable[[str], str]] = {
        "kind": lambda name: name.rpartition(".")[2],
        "block": lambda name: next(iter(re.findall(r"\.(\d+)\.", name)), "none"),
        "layer": lambda name: name,
    }
    if by not in ways:
        raise ValueError(f"by={by!r}: expected one of {', '.join(ways)}")
    groups: dict[str, list[str]] = {}
    for name in linear_maps(model):
        groups.setdefault(ways[by](name), []).append(name)
    return groups


@torch.no_grad()
def sensitivity(
    model: nn.Module, scheme: Scheme, measure: Callable[[nn.Module], Any], groups: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Measure a model with one group of its layers quantized at a time, all others as they are.

    Args:
        model: the model in floating point; its weights are put back.
        scheme: how to quantize.
        measure: called with the model.
        groups: names of layers by the name of their group, as from :func:`groups_of`.

    Returns:
        What ``measure`` returned, by the name of the group.
    """
    found = {}
    for label, names in groups.items():
        with _simulated(model, scheme, names):
            found[label] = measure(model)
    return found


class _simulated:
    """The weights of some layers are what their codes would stand for, for a while."""

    def __init__(self, model: nn.Module, scheme: Scheme, names: Sequence[str]):
        self.weights = [(name, weight_of(model.get_submodule(name))) for name in names]
        self.scheme = scheme
        self.before: list[Tensor] = []

    def __enter__(self) -> None:
        changed = [encode(weight, self.scheme, name).decode(weight.dtype) for name, weight in self.weights]
        self.before = [weight.clone() for _, weight in self.weights]
        for (_, weight), one in zip(self.weights, changed, strict=True):
            weight.copy_(one)

    def __exit__(self, *_problem: Any) -> None:
        for (_, weight), one in zip(self.weights, self.before, strict=True):
            weight.copy_(one)
