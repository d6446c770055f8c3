"""The quantization libraries of today side by side with ours: what runs where, found out by running it.

torchao and bitsandbytes are optional (the extra ``quantization``). What they did on machines that had them stands in
``measured.json``; ``python -m course_utils.quantization.libraries --write`` makes it anew for the devices of this one.
"""

import argparse
import contextlib
import copy
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.quantization import quality
from course_utils.quantization.layers import linear_maps, quantize, replace, weight_of
from course_utils.quantization.schemes import Scheme, encode

NF4_SCHEME = Scheme(4, "group", 64, codes="nf4", double=True)
"""QLoRA's storage of the base (Dettmers et al., 2023, section 3), which is also bitsandbytes' usual one."""
NAMES = ("torch", "transformers", "torchao", "bitsandbytes", "accelerate", "peft")
"""Packages whose versions are stated with the numbers."""
FILE = "measured.json"


# --- import and count


def optional(name: str) -> Any:
    """Import a library that need not be there.

    What torchao says of kernels for other machines is dropped by ``course_utils`` itself.

    Args:
        name: name of the module, such as ``torchao.quantization``.

    Returns:
        The module.

    Raises:
        ImportError: it is not installed; the message says how to get it.
    """
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        raise ImportError(f'{name} is not installed: pip install "course-utils[quantization]"')
    return importlib.import_module(name)


def installed(names: Sequence[str] = NAMES) -> dict[str, str]:
    """Return the versions of those packages that are installed, without the part after a plus.

    Args:
        names: the packages.
    """
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name).partition("+")[0]
    return found


def stored_bytes(*things: Any) -> int:
    """Return the bytes of all storages behind these things, each counted once: what a library really keeps.

    ``model.get_memory_footprint()`` multiplies numbers by the bytes that their type claims to have. A tensor of torchao
    claims to be float32 while it holds INT8 inside, and bitsandbytes keeps its scales beside the parameters: here the
    tensors inside of tensors are counted, and the scales too.

    Args:
        *things: modules and tensors.
    """
    found: dict[int, int] = {}
    seen: dict[int, Any] = {}
    waiting = list(things)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, Tensor):
            if hasattr(thing, "__tensor_flatten__"):
                waiting += [getattr(thing, name) for name in thing.__tensor_flatten__()[0]]
            else:
                storage = thing.untyped_storage()
                found[storage._cdata] = storage.nbytes()
            waiting += vars(thing).values()
        elif isinstance(thing, dict):
            waiting += thing.values()
        elif isinstance(thing, (list, tuple)):
            waiting += thing
        elif isinstance(thing, nn.Module) or type(thing).__module__.startswith("bitsandbytes"):
            waiting += vars(thing).values()
    return sum(found.values())


# --- the ways


@dataclass(frozen=True)
class Way:
    """One way to make a model smaller.

    Attributes:
        library: ``ours``, ``torch``, ``torchao``, ``bitsandbytes`` or ``transformers``.
        name: what one would write, in short.
        change: gets a model (which it may change) and returns the changed one; raises where it cannot.
        dtype: floating-point type that the rest of the model is brought to before.
    """

    library: str
    name: str
    change: Callable[[nn.Module], nn.Module]
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        """Library and name."""
        return f"{self.library}: {self.name}"


def _ours(scheme: Scheme, activations: str | None = None) -> Callable[[nn.Module], nn.Module]:
    def change(model: nn.Module) -> nn.Module:
        quantize(model, scheme, activations=activations)
        return model

    return change


def _torchao(config: str, **settings: Any) -> Callable[[nn.Module], nn.Module]:
    """The linear maps, without the output layer, by ``torchao.quantization.quantize_``."""

    def change(model: nn.Module) -> nn.Module:
        api = optional("torchao.quantization")
        made = _torchao_config(api, config, settings)
        wanted = set(linear_maps(model))

        def chosen(module: nn.Module, name: str) -> bool:
            return isinstance(module, nn.Linear) and name in wanted

        api.quantize_(model, made, chosen)
        return model

    return change


def _torchao_config(api: Any, name: str, settings: dict[str, Any]) -> Any:
    given = dict(settings)
    if "weight_dtype" in given:
        given["weight_dtype"] = getattr(torch, given["weight_dtype"])
    if "granularity" in given:
        given["granularity"] = api.PerGroup(given["granularity"])
    return getattr(api, name)(**given)


def _bitsandbytes(bits: int) -> Callable[[nn.Module], nn.Module]:
    """The linear maps as layers of bitsandbytes, which quantize when they are moved to their device."""

    def change(model: nn.Module) -> nn.Module:
        api = optional("bitsandbytes.nn")
        for name, module in linear_maps(model).items():
            if not isinstance(module, nn.Linear):
                continue
            weight, device, bias = module.weight.data, module.weight.device, module.bias is not None
            shape = (module.in_features, module.out_features)
            if bits == 8:
                new = api.Linear8bitLt(*shape, bias=bias, has_fp16_weights=False, threshold=6.0)
                new.weight = api.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
            else:
                new = api.Linear4bit(*shape, bias=bias, compute_dtype=weight.dtype, quant_type="nf4")
                new.weight = api.Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4")
            if bias:
                new.bias = module.bias
            replace(model, name, new.to(device))
        return model

    return change


def _config(make: Callable[[Any], Any]) -> Callable[[nn.Module], nn.Module]:
    """Saved, and loaded again by ``transformers`` with a ``quantization_config``."""

    def change(model: Any) -> nn.Module:
        import transformers

        config = make(transformers)
        kind: Any = type(model)
        like = next(model.parameters())
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            settings = dict(dtype=like.dtype, quantization_config=config, device_map={"": str(like.device)})
            return kind.from_pretrained(folder, **settings).eval()

    return change


def _torchao_int8(transformers: Any) -> Any:
    return transformers.TorchAoConfig(optional("torchao.quantization").Int8WeightOnlyConfig())


BF16 = torch.bfloat16
WAYS: tuple[Way, ...] = (
    Way("torch", "model.to(bfloat16)", lambda model: model.to(BF16)),
    Way("torch", "model.to(float16)", lambda model: model.to(torch.float16)),
    Way("ours", "int8 channel", _ours(Scheme(8))),
    Way("ours", "int8 channel, inputs dynamic", _ours(Scheme(8), "dynamic")),
    Way("ours", "int4 group 32", _ours(Scheme(4, "group", 32))),
    Way("ours", "nf4 group 64 double", _ours(NF4_SCHEME)),
    Way("torchao", "Int8WeightOnlyConfig", _torchao("Int8WeightOnlyConfig")),
    Way("torchao", "Int8DynamicActivationInt8WeightConfig", _torchao("Int8DynamicActivationInt8WeightConfig")),
    Way("torchao", "Int4WeightOnlyConfig, group 32", _torchao("Int4WeightOnlyConfig", group_size=32), BF16),
    Way(
        "torchao",
        "Int4WeightOnlyConfig, group 32, tile_packed_to_4d",
        _torchao("Int4WeightOnlyConfig", group_size=32, int4_packing_format="tile_packed_to_4d"),
        BF16,
    ),
    Way(
        "torchao",
        "IntxWeightOnlyConfig, int4 group 32",
        _torchao("IntxWeightOnlyConfig", weight_dtype="int4", granularity=32),
    ),
    Way("torchao", "Float8WeightOnlyConfig", _torchao("Float8WeightOnlyConfig")),
    Way(
        "torchao",
        "Float8DynamicActivationFloat8WeightConfig",
        _torchao("Float8DynamicActivationFloat8WeightConfig"),
        BF16,
    ),
    Way("bitsandbytes", "Linear8bitLt", _bitsandbytes(8)),
    Way("bitsandbytes", "Linear4bit, NF4, double", _bitsandbytes(4)),
    Way("transformers", "TorchAoConfig, INT8", _config(_torchao_int8)),
    Way(
        "transformers",
        "BitsAndBytesConfig, 8-bit",
        _config(lambda api: api.BitsAndBytesConfig(load_in_8bit=True)),
    ),
    Way(
        "transformers",
        "BitsAndBytesConfig, NF4, double",
        _config(
            lambda api: api.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.float32,
            )
        ),
    ),
    Way("transformers", "QuantoConfig, int8", _config(lambda api: api.QuantoConfig(weights="int8"))),
    Way("transformers", "HqqConfig, 4-bit", _config(lambda api: api.HqqConfig(nbits=4, group_size=64))),
    Way("transformers", "GPTQConfig, 4-bit", _config(lambda api: api.GPTQConfig(bits=4, dataset=["a b c"]))),
    Way("transformers", "AwqConfig, 4-bit", _config(lambda api: api.AwqConfig(bits=4))),
    Way("transformers", "FineGrainedFP8Config", _config(lambda api: api.FineGrainedFP8Config())),
)
"""What is tried, in the order of the table."""


def way(name: str) -> Way:
    """Return one of :data:`WAYS`.

    Args:
        name: ``"library: name"``.

    Raises:
        ValueError: there is none of this name.
    """
    for one in WAYS:
        if str(one) == name:
            return one
    raise ValueError(f"way={name!r}: expected one of {'; '.join(map(str, WAYS))}")


# --- try them


@dataclass(frozen=True)
class Result:
    """What one way did to one model.

    Attributes:
        way: which.
        model: what kind of layers the model has: ``nn.Linear`` or ``Conv1D``.
        verdict: ``runs``, ``nothing`` (no error, but no map is stored in another way) or ``fails``.
        changed: linear maps that are stored in another way than before.
        maps: linear maps in all.
        smaller: bytes of the maps in float32 divided by those stored now; 0 where it failed.
        error: length of the change of the logits, relative to that of the logits in float32; None where it failed.
        perplexity: divided by that in float32; None where it failed or has no text to be measured on.
        whole: bytes of the whole model, before divided by after, storages counted.
        claimed: the same by ``get_memory_footprint()``.
        reason: the error, on one line.
    """

    way: str
    model: str
    verdict: str
    changed: int
    maps: int
    smaller: float = 0.0
    error: float | None = None
    perplexity: float | None = None
    whole: float = 0.0
    claimed: float = 0.0
    reason: str = ""


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """No warnings, and none of the loggers of transformers, while ways are tried whose warnings are not ours."""
    from transformers.utils import logging as theirs

    before, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(theirs.CRITICAL)
    theirs.disable_progress_bar()
    root = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(root)
        theirs.set_verbosity(before)
        if bars:
            theirs.enable_progress_bar()


@torch.no_grad()
def attempt(one: Way, model: nn.Module, ids: Tensor, text: bool = True) -> Result:
    """Try a way on a copy of a model, guarded: an error becomes the reason.

    Args:
        one: the way.
        model: a causal model in float32 that :func:`course_utils.quantization.layers.linear_maps` knows.
        ids: token ids, (rows, tokens).
        text: ``ids`` is real text, so that perplexity means something.
    """
    originals = linear_maps(model)
    kind = type(next(iter(originals.values()))).__name__
    kind = "nn.Linear" if kind == "Linear" else kind
    exact = model(input_ids=ids[:2]).logits.float()
    try:
        with _hushed():
            changed = one.change(copy.deepcopy(model).to(one.dtype))
            logits = changed(input_ids=ids[:2]).logits.float()
            if text:
                losses = quality.token_losses(changed, ids).mean() - quality.token_losses(model, ids).mean()
    except Exception as problem:  # whatever a library raises is the result
        reason = f"{type(problem).__name__}: {' '.join(str(problem).split())}"
        return Result(str(one), kind, "fails", 0, len(originals), reason=_short(reason))
    count = {name: weight_of(module).numel() for name, module in originals.items()}
    now = {name: _weights(changed.get_submodule(name)) for name in originals}
    touched = sum(now[name] != one.dtype.itemsize * count[name] for name in originals)
    error = float((logits - exact).norm() / exact.norm())
    finite = math.isfinite(error)
    return Result(
        str(one),
        kind,
        "fails" if not finite else "runs" if touched else "nothing",
        touched,
        len(originals),
        4 * sum(count.values()) / sum(now.values()),
        error if finite else None,
        math.exp(losses) if text and finite else None,
        stored_bytes(model) / stored_bytes(changed),
        _footprint(model) / _footprint(changed),
        "" if finite else "the logits are not finite",
    )


def _footprint(model: Any) -> int:
    return int(model.get_memory_footprint())


def _weights(module: nn.Module) -> int:
    """Bytes that a map stores without its bias."""
    return stored_bytes(module) - stored_bytes(module._parameters.get("bias"))


def _short(reason: str, most: int = 150) -> str:
    return reason if len(reason) <= most else reason[: most - 4].rstrip() + " ..."


def two_models(device: torch.device | str = "cpu") -> tuple[tuple[nn.Module, Tensor, bool], ...]:
    """Return the models of the table, with tokens, and whether these are text: course-decoder, and a GPT-2.

    The decoder's layers are ``nn.Linear``, GPT-2's are ``Conv1D``; this one is small and has random weights.

    Args:
        device: where they are put.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    from course_utils import models

    loaded = models.load("course-decoder", profile="laptop", device=device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = dict(n_embd=192, n_layer=2, n_head=6, n_positions=256, bos_token_id=1, eos_token_id=2)
        other = GPT2LMHeadModel(GPT2Config(vocab_size=4096, **shape)).to(device).eval()  # type: ignore[arg-type]
        ids = torch.randint(4096, (2, 64)).to(device)
    return (loaded.model, quality.held_out(loaded.tokenizer, 4, 192).to(device), True), (other, ids, False)


def what_runs(
    ways: Sequence[Way] = WAYS, device: torch.device | str = "cpu", progress: bool = True
) -> tuple[Result, ...]:
    """Try each way on both models of :func:`two_models`.

    Args:
        ways: which.
        device: where.
        progress: show a bar.
    """
    from course_utils.reporting import progress_bar

    found = []
    with progress_bar(2 * len(ways), f"ways on {device}", progress) as bar:
        for model, ids, text in two_models(device):
            for one in ways:
                found.append(attempt(one, model, ids, text))
                gc.collect()
                bar.update()
    return tuple(found)


# --- the same codes


@dataclass(frozen=True)
class Agreement:
    """How many codes of a library are those of ours, over all linear maps of a model.

    Attributes:
        library: whose.
        what: which of its functions.
        ours: name of our scheme.
        equal: codes that are the same.
        codes: all codes.
    """

    library: str
    what: str
    ours: str
    equal: int
    codes: int


@torch.no_grad()
def agreements(model: nn.Module) -> tuple[Agreement, ...]:
    """Quantize each linear map by ours and by those libraries that are installed, and count equal codes.

    Args:
        model: a model with ``nn.Linear`` maps in float32, on the CPU.
    """
    found = []
    weights = [weight_of(module) for module in linear_maps(model).values()]
    pairs: list[tuple[str, str, Scheme, Callable[[Tensor], Tensor]]] = []
    if "torchao" in (there := installed()):
        api = optional("torchao.quantization")

        def codes(weight: Tensor, config: Any) -> Tensor:
            layer: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
            api.quantize_(layer, config)
            return layer.weight.qdata.int()

        group: dict[str, Any] = dict(weight_dtype="int4", granularity=32)
        pairs += [
            ("torchao", "Int8WeightOnlyConfig", Scheme(8, full=True, scales="float32"),
             lambda weight: codes(weight, api.Int8WeightOnlyConfig()) + 128),
            ("torchao", "IntxWeightOnlyConfig, int4 group 32", Scheme(4, "group", 32, full=True, scales="float32"),
             lambda weight: codes(weight, _torchao_config(api, "IntxWeightOnlyConfig", group)) + 8),
        ]  # fmt: skip
    if "bitsandbytes" in there:
        functional = optional("bitsandbytes.functional")

        def nf4(weight: Tensor) -> Tensor:
            packed = functional.quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4")[0].flatten()
            return torch.stack([packed >> 4, packed & 15], 1).view(weight.shape)

        def rows(weight: Tensor) -> Tensor:
            return functional.int8_vectorwise_quant(weight.half())[0].int() + 128

        pairs += [
            ("bitsandbytes", "quantize_4bit, NF4", Scheme(4, "group", 64, codes="nf4", scales="float32"), nf4),
            ("bitsandbytes", "int8_vectorwise_quant", Scheme(8, scales="float32"), rows),
        ]
    for library, what, scheme, theirs in pairs:
        equal = 0
        for weight in weights:
            given = weight.half().float() if what == "int8_vectorwise_quant" else weight
            equal += int((encode(given, scheme).integers().int() == theirs(weight).int()).sum())
        found.append(Agreement(library, what, scheme.name, equal, sum(weight.numel() for weight in weights)))
    return tuple(found)


# --- what was measured elsewhere


@dataclass(frozen=True)
class Run:
    """The results of one device.

    Attributes:
        device: ``cpu`` or ``cuda``.
        machine: in general words.
        versions: of the packages.
        results: a row for each way and model.
        codes: how many codes are ours; on the CPU alone.
    """

    device: str
    machine: str
    versions: dict[str, str]
    results: tuple[Result, ...]
    codes: tuple[Agreement, ...] = ()

    def of(self, name: str, model: str = "nn.Linear") -> Result:
        """Return the result of a way.

        Args:
            name: ``"library: name"``.
            model: ``nn.Linear`` or ``Conv1D``.

        Raises:
            ValueError: there is none.
        """
        for one in self.results:
            if (one.way, one.model) == (name, model):
                return one
        raise ValueError(f"way={name!r}, model={model!r}: {FILE} has no such row for {self.device}")


def measured_runs(path: str | Path | None = None) -> dict[str, Run]:
    """Return what was measured, by device; the package ships the file.

    Args:
        path: another file.

    Raises:
        ValueError: the file is none of these.
    """
    file = resources.files("course_utils.quantization").joinpath(FILE) if path is None else Path(path)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return {
            name: Run(
                name,
                one["machine"],
                one["versions"],
                tuple(Result(**row) for row in one["results"]),
                tuple(Agreement(**row) for row in one["codes"]),
            )
            for name, one in data.items()
        }
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file} cannot be read ({error}): make it with python -m course_utils.quantization.libraries --write"
        ) from None


def write_runs(runs: dict[str, Run], path: str | Path) -> None:
    """Write results; those of devices that are not in ``runs`` stay.

    Args:
        runs: by device.
        path: the file.
    """
    target = Path(path)
    kept = measured_runs(target) if target.exists() else {}
    data = {}
    for name, run in sorted((kept | runs).items()):
        rows = [
            {key: round(value, 5) if isinstance(value, float) else value for key, value in asdict(row).items()}
            for row in run.results
        ]
        codes = [asdict(row) for row in run.codes]
        data[name] = {"machine": run.machine, "versions": run.versions, "results": rows, "codes": codes}
    with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False, encoding="utf-8") as file:
        file.write(json.dumps(data, indent=1) + "\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, target)


def _machine(device: str) -> str:
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    info, model = Path("/proc/cpuinfo"), platform.machine()
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line[:10] == "model name"]
        model = names[0] if names else model
    return f"{model} ({torch.backends.cpu.get_cpu_capability()}), Python {platform.python_version()}"


def here(ways: Sequence[str], device: torch.device | str = "cpu") -> tuple[list[Result], int]:
    """Return what ways do to course-decoder: run here where the library is installed, else the shipped numbers.

    Args:
        ways: ``"library: name"`` of each; the library's own name says what has to be installed.
        device: where.

    Returns:
        A result for each way, and how many of them were run here.

    Raises:
        ValueError: there is no such way, or no shipped number for this device.
    """
    kind = torch.device(device).type
    shipped = measured_runs()
    model, ids, text = two_models(device)[0]
    found, live = [], 0
    for name in ways:
        one = way(name)
        if one.library in ("ours", "torch") or one.library in installed():
            found.append(attempt(one, model, ids, text))
            live += 1
        elif kind in shipped:
            found.append(shipped[kind].of(name))
        else:
            raise ValueError(f"device={kind}: {one.library} is not installed, and {FILE} has no run on this device")
    return found, live


def rows_of(run: Run, model: str = "nn.Linear") -> list[tuple[str, ...]]:
    """Return the rows of a table: way, verdict, maps changed, times smaller, error, perplexity or the reason.

    Args:
        run: the results.
        model: of which model.
    """
    rows = []
    for one in run.results:
        if one.model != model:
            continue
        numbers = ["" if value is None else f"{value:.3f}" for value in (one.error, one.perplexity)]
        smaller = f"{one.smaller:.2f}" if one.smaller else ""
        rows.append((one.way, one.verdict, f"{one.changed} of {one.maps}", smaller, *numbers, one.reason))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Try all ways on the devices of this machine, and write the file where asked.

    Args:
        arguments: of the command line.
    """
    from course_utils.reporting import table

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {FILE} of the package")
    parser.add_argument("--only", help="ways whose names hold this text (not with --write)")
    chosen = parser.parse_args(arguments)
    if chosen.write and chosen.only:
        parser.error("--write wants all ways: leave --only out")
    ways = [one for one in WAYS if (chosen.only or "") in str(one)]
    if not ways:
        parser.error(f"--only {chosen.only!r}: no way has this in its name")
    runs = {}
    header = ("way", "verdict", "maps", "smaller", "error", "perplexity", "reason")
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        codes = agreements(two_models()[0][0]) if device == "cpu" else ()
        runs[device] = Run(device, _machine(device), installed(), what_runs(ways, device), codes)
        for model in ("nn.Linear", "Conv1D"):
            table(rows_of(runs[device], model), header, f"{device}, {model}")
    if chosen.write:
        write_runs(runs, Path(__file__).with_name(FILE))


if __name__ == "__main__":
    main()
