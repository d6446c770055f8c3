"""LoRA, low-rank adaptation (Hu et al., 2021): the weights stay as they are, and what is learned is a thin product.

A linear map ``W`` of shape (outputs, inputs) becomes ``W + (alpha / rank) * up @ down`` with ``down`` (rank, inputs)
and ``up`` (outputs, rank). ``up`` begins with zeros, so that the model begins as it was. Only the two thin matrices are
trained, need gradients and optimizer states, and are saved; merged, they cost nothing at inference. The files are those
of ``peft``, which calls the two ``lora_A`` and ``lora_B``.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""The two files of an adapter."""
_PREFIX = "base_model.model."
_PARTS = {"down": "lora_A", "up": "lora_B"}
_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}


class LoRALinear(nn.Module):
    """A frozen linear map, and beside it two thin trained ones whose product is added (Hu et al., 2021, section 4.1).

    Attributes:
        base: the frozen map, an ``nn.Linear`` or GPT-2's ``Conv1D``.
        down: the first thin matrix, (rank, inputs); ``lora_A`` in ``peft``.
        up: the second one, (outputs, rank), zero at the beginning; ``lora_B`` in ``peft``.
        scale: alpha / rank.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        inputs, outputs = _sizes(base)
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as nn.Linear and peft
        self.dropout = nn.Dropout(dropout)
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank
        self.to(base.weight.device)  # type: ignore[arg-type]

    def forward(self, states: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Return what the frozen map gives, and the change.

        Args:
            states: the vectors that are mapped.
        """
        as_it_was = self.base(states)
        seen = self.dropout(states.to(self.down.dtype))
        thin = self.scale * (seen @ self.down.T)  # (..., rank)
        return (as_it_was + thin @ self.up.T).to(as_it_was.dtype)

    def change(self) -> Float[Tensor, "outputs inputs"]:
        """Return what is added to the weights, a matrix of this rank at most."""
        return self.scale * self.up @ self.down

    @property
    def weight(self) -> Tensor:
        """The frozen weights (some models ask for their type)."""
        return self.base.weight  # type: ignore[return-value]

    def extra_repr(self) -> str:
        """Say what the parts do not show."""
        return f"rank={self.rank}, alpha={self.alpha:g}"


def add_lora(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16,
    targets: str | Sequence[str] = "linear",
    dropout: float = 0.0,
    seed: int = 0,
    train_too: Sequence[str] = (),
) -> list[str]:
    """Freeze a model and put a :class:`LoRALinear` in the place of its linear maps; the model itself is changed.

    Args:
        model: any module with ``nn.Linear`` or GPT-2's ``Conv1D`` in it.
        rank: width of the thin matrices.
        alpha: the change is multiplied by alpha / rank.
        targets: ``"linear"`` for every linear map but the output layer; or names of modules, whole or their ends
            (``"q_proj"``), each of which must be there.
        dropout: share of the inputs of the thin matrices that is set to 0 in training.
        seed: seed of the first thin matrices; torch's own generator is left alone.
        train_too: names of modules that are trained as they are, such as a new output layer.

    Returns:
        The names of the maps that were adapted, in the model's order.

    Raises:
        ValueError: a setting is out of range, a target is not there, is tied to another weight, or the model has an
            adapter already.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank={rank!r}: expected a whole number of 1 or more, for example 8")
    if not (0 < alpha < math.inf) or not 0 <= dropout < 1:
        raise ValueError(f"alpha={alpha!r}, dropout={dropout!r}: expected a number above 0, and a share from 0 to 1")
    _refuse_adapted(model)
    names = _chosen(model, targets, train_too)
    too = [_module(model, name) for name in train_too]
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            _replace(model, name, LoRALinear(_module(model, name), rank, alpha, dropout))
    for module in too:
        module.requires_grad_(True)
    return names


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Add each change to its weights and take the adapter out; the model then is an ordinary one again.

    Args:
        model: a model with an adapter; it is changed.

    Returns:
        The same model.

    Raises:
        ValueError: there is no adapter, or a base has no floating-point weights to add to.
    """
    for name, layer in _adapted(model):
        weight: Any = layer.base.weight
        if not weight.is_floating_point():
            raise ValueError(f"{name} holds {weight.dtype}: a change can only be merged into floating-point weights")
        change = layer.change()
        weight += (change if isinstance(layer.base, nn.Linear) else change.T).to(weight.dtype)
        _replace(model, name, layer.base)
    return model


def trained(model: nn.Module) -> tuple[int, int]:
    """Return how many parameters a training would change, and how many there are; tied ones count once.

    Args:
        model: any model.
    """
    parameters = list(model.parameters())
    return sum(one.numel() for one in parameters if one.requires_grad), sum(one.numel() for one in parameters)


def save_adapter(model: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write the adapter, and what else is trained, in the format of ``peft``: safetensors, and a JSON file beside.

    Both files are written beside their places and then moved there.

    Args:
        model: a model with an adapter.
        folder: where the files go; it is created.

    Returns:
        The folder.

    Raises:
        ValueError: there is no adapter.
    """
    from safetensors.torch import save_file

    layers, home = list(_adapted(model)), Path(folder)
    first, kept = layers[0][1], {}
    for name, layer in layers:
        for part, theirs in _PARTS.items():
            kept[f"{_PREFIX}{name}.{theirs}.weight"] = getattr(layer, part)
    ours = {f"{name}.{part}" for name, _ in layers for part in _PARTS}
    others = {name: one for name, one in model.named_parameters() if one.requires_grad and name not in ours}
    kept |= {_PREFIX + name: one for name, one in others.items()}
    config = getattr(model, "config", None)
    text = json.dumps(
        {
            "peft_type": "LORA",
            "task_type": next((task for end, task in _TASKS.items() if type(model).__name__.endswith(end)), None),
            "base_model_name_or_path": getattr(config, "_name_or_path", None) or None,
            "r": first.rank,
            "lora_alpha": first.alpha,
            "lora_dropout": first.dropout.p,
            "target_modules": [name for name, _ in layers],
            "modules_to_save": sorted({name.rpartition(".")[0] for name in others}) or None,
            "fan_in_fan_out": not isinstance(first.base, nn.Linear),
            "bias": "none",
            "inference_mode": True,
        },
        indent=1,
    )
    home.mkdir(parents=True, exist_ok=True)
    temporary = [home / f"{name}.tmp" for name in (WEIGHTS, CONFIG)]
    try:
        save_file({name: one.detach().cpu().contiguous().clone() for name, one in kept.items()}, temporary[0])
        temporary[1].write_text(text + "\n", encoding="utf-8")
        for path in temporary:
            os.replace(path, path.with_suffix(""))
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
    return home


@torch.no_grad()
def load_adapter(model: nn.Module, folder: str | os.PathLike[str]) -> list[str]:
    """Put an adapter of :func:`save_adapter` or of ``peft`` into a model; it can then be used, merged, trained on.

    Args:
        model: the model that it was made for, without an adapter; it is changed, but not where an error is raised.
        folder: the folder with the two files.

    Returns:
        The names of the maps that were adapted.

    Raises:
        ValueError: the model has an adapter already, the files are missing or damaged, the adapter is of another kind
            than LoRA, or it does not fit the model.
    """
    from safetensors.torch import load_file

    _refuse_adapted(model)
    home = Path(folder)
    try:
        config = json.loads((home / CONFIG).read_text(encoding="utf-8"))
        tensors = {name.removeprefix(_PREFIX): one for name, one in load_file(home / WEIGHTS).items()}
    except Exception as error:
        raise ValueError(f"{home} holds no adapter that can be read ({error}): expected {WEIGHTS}, {CONFIG}") from None
    _check_config(config, home)
    ends = tuple(f".{theirs}.weight" for theirs in _PARTS.values())
    names = list(dict.fromkeys(name.removesuffix(end) for name in tensors for end in ends if name.endswith(end)))
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    expected: dict[str, tuple[int, ...]] = {}
    for name in names:
        if not _linear(modules.get(name)):
            raise ValueError(f"{home} adapts {name}, and this model has no linear map of that name: another model's?")
        inputs, outputs = _sizes(modules[name])
        expected |= {name + ends[0]: (config["r"], inputs), name + ends[1]: (outputs, config["r"])}
    others = [name for name in tensors if name not in expected]
    for name in others:
        if name not in parameters:
            raise ValueError(f"{home} holds {name}, and this model has none: another model's, or another output layer?")
        expected[name] = tuple(parameters[name].shape)
    for name, shape in expected.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            raise ValueError(
                f"{home}: {name} has the shape {found}, this model needs {shape}: another model's adapter?"
            )
    owners = sorted({name.rpartition(".")[0] for name in others})
    add_lora(model, config["r"], config["lora_alpha"], names, config.get("lora_dropout") or 0.0, train_too=owners)
    for name, layer in _adapted(model):
        for part, theirs in _PARTS.items():
            getattr(layer, part).copy_(tensors[f"{name}.{theirs}.weight"])
    for name in others:
        parameters[name].copy_(tensors[name])
    return names


def _check_config(config: dict[str, Any], home: Path) -> None:
    """Refuse what is no plain LoRA."""
    plain: dict[str, Any] = {"peft_type": "LORA", "bias": "none"}
    plain |= dict.fromkeys(("use_dora", "use_rslora", "lora_bias", "rank_pattern", "alpha_pattern"))
    for name, usual in plain.items():
        value = config.get(name, usual)
        if value != usual and value:
            raise ValueError(f"{home}: {name}={value!r}: only plain LoRA is read here. Load it with peft")
    if not isinstance(config.get("r"), int) or not isinstance(config.get("lora_alpha"), (int, float)):
        raise ValueError(f"{home}: {CONFIG} gives no r and lora_alpha that are numbers")


def _linear(module: Any) -> bool:
    """Whether a module is a linear map that can be adapted."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _sizes(base: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear map; GPT-2's ``Conv1D`` keeps its weights the other way round."""
    return (base.in_features, base.out_features) if isinstance(base, nn.Linear) else (base.nx, base.nf)


def _chosen(model: nn.Module, targets: str | Sequence[str], train_too: Sequence[str]) -> list[str]:
    """Names of the maps that targets mean; without those inside of what is trained as it is."""
    linear = {name: module for name, module in model.named_modules() if _linear(module)}
    if targets == "linear":
        ask = getattr(model, "get_output_embeddings", lambda: None)
        try:
            head = ask()
        except (NotImplementedError, AttributeError):
            head = None
        found = [name for name, module in linear.items() if module is not head]
    else:
        wanted = [targets] if isinstance(targets, str) else list(targets)
        matching = {end: [name for name in linear if name == end or name.endswith(f".{end}")] for end in wanted}
        missing = [end for end, names in matching.items() if not names]
        if missing or not wanted:
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear)) or "none"
            raise ValueError(
                f"targets={targets!r}: this model has no linear map {', '.join(missing)}; it has {known} "
                'at the ends of its names. "linear" means all but the output layer'
            )
        found = [name for name in linear if any(name in names for names in matching.values())]
    found = [name for name in found if not any(f"{name}.".startswith(f"{other}.") for other in train_too)]
    if not found:
        raise ValueError(f"targets={targets!r}: there is no linear map in {type(model).__name__} to adapt")
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name)
    for name in found:
        same = users[id(linear[name].weight)]
        if len(same) > 1:
            raise ValueError(f"target {name}: its weights are tied ({', '.join(same)}), a merge would change them all")
    return found


def _adapted(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    if not found:
        raise ValueError(f"this {type(model).__name__} has no adapter: add_lora(model) or load_adapter(model, folder)")
    return iter(found)


def _refuse_adapted(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear) or hasattr(module, "lora_A"):
            raise ValueError(f"the model has an adapter already (at {name}): merge(model) it, or load the model again")


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"train_too={name!r}: {type(model).__name__} has no module of this name") from None


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, last, module.train(owner.training))
