"""The one training loop of the course: any model, any data set, one process or many; resumable bit for bit.

A step is: gather ``accumulate`` batches, add up their losses and gradients, divide by the number of targets, clip,
update. Everything that decides a step is a function of its number (which examples, which learning rate) or is kept in
the checkpoint (weights, AdamW's moments, the generators' states). So a run that was killed and resumed is the same run.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from course_utils import checkpoints
from course_utils.reporting import progress_bar

IGNORED = -100
"""The label that counts in no loss: padding, prompts."""
Batch = Any  # normally a mapping from field to tensor
Loss = Callable[[nn.Module, Batch], Tensor | tuple[Tensor, Tensor]]
Value = TypeVar("Value")


@dataclass
class History:
    """What happened in a training.

    Attributes:
        losses: mean loss of each step's targets, in nats for cross-entropies.
        learning_rates: learning rate of each step.
        gradient_norms: Euclidean norm of the whole gradient at each step, before clipping.
        validation: pairs of (step, mean validation loss).
        seconds: time spent, over all resumptions.
        interrupted: whether the training was interrupted (Ctrl-C, or the stop button of the notebook).
        stopped: why it ended before the last step; empty where it did not.
    """

    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False
    stopped: str = ""

    @property
    def steps(self) -> int:
        """Number of steps done."""
        return len(self.losses)


class Processes:
    """The processes that one training runs on: here one, alone. :mod:`course_utils.distributed` has those of several.

    What :func:`fit` would do differently on several processes it asks for here, so that there is one loop.

    Attributes:
        rank: number of this process, from 0. Rank 0 shows the progress and writes the checkpoints.
        world: number of processes.
        device: where this process computes; None where the model decides.
        asked: whether this process was asked to end after the step (a signal).
        checkpoint: file of the last checkpoint and its step.
    """

    rank: int = 0
    world: int = 1
    device: torch.device | None = None
    asked: bool = False
    checkpoint: tuple[Path, int] | None = None

    @contextlib.contextmanager
    def working(
        self, model: nn.Module, loss: Loss, device: torch.device, dtype: torch.dtype | None
    ) -> Iterator[tuple[nn.Module, Loss]]:
        """Give the model that is trained, and the loss of this process's rows; at the end ``model`` has the weights.

        Args:
            model: the model as it was given to :func:`fit`.
            loss: likewise.
            device: where to train.
            dtype: type of autocast.
        """
        model.to(device)
        yield model, loss

    def computing(self, key: tuple[int, int], last: bool) -> contextlib.AbstractContextManager[Any]:
        """Surround the forward and backward pass of one batch.

        Args:
            key: the training's seed and the number of the batch.
            last: whether the gradients are complete after it.
        """
        return contextlib.nullcontext()

    def rows(self, batch: Batch) -> tuple[Batch, float]:
        """Return this process's rows of a batch, and their share of it."""
        return batch, 1.0

    def total(self, *values: float) -> list[float]:
        """Return the sums of these numbers over all processes."""
        return list(values)

    def agreed(self, make: Callable[[], Value]) -> Value:
        """Return on every process what ``make`` returns on rank 0, or raise the error that it raises there."""
        return make()

    def placed(self, tensor: Tensor | None, form: tuple[list[int], torch.dtype], like: Tensor | None) -> Tensor | None:
        """Return this process's part of a tensor that rank 0 has.

        Args:
            tensor: the whole tensor; None except on rank 0.
            form: its shape and type.
            like: a tensor that lies on the processes as this one shall; None for a whole copy on each.
        """
        return tensor


def constant(step: int, steps: int, warmup: int = 0) -> float:
    """Share of the peak learning rate at a step: rises in a line for ``warmup`` steps, then stays at 1.

    Args:
        step: number of the step, 1 to steps.
        steps: number of steps in all.
        warmup: number of steps of the rise.
    """
    return min(1.0, step / warmup) if warmup else 1.0


def linear(step: int, steps: int, warmup: int = 0) -> float:
    """Share of the peak learning rate: a linear rise, then a linear fall that would reach 0 one step after the last."""
    return step / warmup if step <= warmup else (steps + 1 - step) / (steps - warmup)


def cosine(step: int, steps: int, warmup: int = 0) -> float:
    """Share of the peak learning rate: a linear rise, then half a cosine down to 0 (Loshchilov and Hutter, 2017)."""
    if step <= warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - 1 - warmup) / (steps - warmup)))


def inverse_sqrt(step: int, steps: int, warmup: int = 0) -> float:
    """Share of the peak learning rate: a linear rise, then 1 / sqrt(step) (Vaswani et al., 2017, section 5.3).

    The paper's rate, ``width**-0.5 * min(step**-0.5, step * warmup**-1.5)``, is this with the peak
    ``(width * warmup)**-0.5``.
    """
    warmup = max(warmup, 1)
    return min(step / warmup, math.sqrt(warmup / step))


def trapezoid(step: int, steps: int, warmup: int = 0) -> float:
    """Share of the peak learning rate: a rise, a constant part, and a fall over the last fifth (Hu et al., 2024, 4).

    So that most of a training may go on for longer than was planned.
    """
    return min(1.0, step / max(warmup, 1), 5 * (steps - step + 1) / (steps + 1))


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "inverse_sqrt": inverse_sqrt,
    "trapezoid": trapezoid,
}


def collate(examples: Sequence[Mapping[str, Any]]) -> Batch:
    """Put examples together into a batch; shorter sequences are filled up at the end.

    ``labels`` are filled up with -100 (counts in no loss), everything else with 0; where ``input_ids`` were filled up
    and there is no ``attention_mask``, one is added (True for real tokens). Fields that are not numbers are left out.

    Args:
        examples: mappings from field to number, list, array or tensor, all with the same fields.

    Returns:
        Mapping from field to tensor, (batch, ...).

    Raises:
        ValueError: the examples differ in their fields, or hold no numbers.
    """
    batch: Batch = {}
    for name in examples[0]:
        if any(name not in example for example in examples):
            raise ValueError(f"the field {name!r} is missing in some examples; all examples need the same fields")
        values = [example[name] for example in examples]
        if values[0] is None or isinstance(values[0], (str, bytes, Mapping)):
            continue
        tensors = [torch.as_tensor(value) for value in values]
        if len({tensor.shape for tensor in tensors}) == 1:
            batch[name] = torch.stack(tensors)
            continue
        fill = IGNORED if name == "labels" else 0
        batch[name] = nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)
        if name == "input_ids" and "attention_mask" not in examples[0]:
            lengths = torch.tensor([len(tensor) for tensor in tensors])
            batch["attention_mask"] = torch.arange(batch[name].shape[1]) < lengths[:, None]
    if not batch:
        raise ValueError(f"no field holds numbers, found {sorted(examples[0])}; tokenize the data set first")
    return batch


def next_token_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each token given those before it: the logits at position t are held against the label at t + 1.

    Args:
        model: called with the fields of the batch that its ``forward`` knows, all but ``labels``.
        batch: ``input_ids`` (batch, tokens); ``labels`` of the same shape, by default the input itself without
            what ``attention_mask`` leaves out. Labels of -100 do not count.

    Returns:
        Sum of the losses in nats, and the number of targets.
    """
    labels = batch.get("labels")
    if labels is None:
        labels = batch["input_ids"]
        if batch.get("attention_mask") is not None:
            labels = labels.masked_fill(~batch["attention_mask"].bool(), IGNORED)
    return _cross_entropy(_logits(model, batch)[:, :-1], labels[:, 1:])


def aligned_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of labels that stand where they are predicted: encoder-decoders, masked tokens, classes.

    Args:
        model: called with the fields of the batch that its ``forward`` knows, all but ``labels``.
        batch: the inputs, and ``labels`` (batch, tokens) or (batch); labels of -100 do not count.

    Returns:
        Sum of the losses in nats, and the number of targets.
    """
    return _cross_entropy(_logits(model, batch), batch["labels"])


def language_model_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The default: :func:`aligned_loss` for encoder-decoders and encoders, else :func:`next_token_loss`."""
    encoder = getattr(getattr(model, "config", None), "kind", "") == "encoder"
    return (aligned_loss if encoder or "decoder_input_ids" in batch else next_token_loss)(model, batch)


def evaluate(
    model: nn.Module,
    dataset: Any,
    *,
    batch_size: int = 64,
    collate: Callable[[list[Any]], Batch] = collate,
    loss: Loss = language_model_loss,
    dtype: torch.dtype | None = None,
    processes: Processes | None = None,
) -> float:
    """Return the mean loss over a whole data set, each target counted once.

    Runs in evaluation mode, without gradients; the modes of the modules and the generators' states are put back.

    Args:
        model: the model.
        dataset: as in :func:`fit`, but not a callable: it has to end.
        batch_size: examples a batch.
        collate: examples to batch.
        loss: model and batch to loss.
        dtype: type of autocast.
        processes: as for :func:`fit`; they share the rows of each batch.

    Raises:
        ValueError: the data set is empty or endless.
    """
    if callable(dataset):
        raise ValueError("a callable has no end: validate on a data set or a dict of tensors, for example one batch")
    device = next(model.parameters()).device
    ranks = processes or Processes()
    source = _Source(dataset, batch_size, collate, seed=None)
    total, count = 0.0, 0.0
    devices = [device] if device.type == "cuda" else []
    with modes(model, training=False), torch.no_grad(), torch.random.fork_rng(devices):
        for number in range(source.per_epoch or 0):
            rows, share = ranks.rows(source.batch(number))
            with _autocast(device, dtype):
                part, targets = _pair(loss(model, _to(rows, device)), share)
            total, count = total + float(part), count + float(targets)
    total, count = ranks.total(total, count)
    return total / count if count else math.nan


def fit(
    model: nn.Module,
    dataset: Any,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    schedule: str = "cosine",
    warmup: int = 0,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    clip: float | None = 1.0,
    accumulate: int = 1,
    seed: int = 0,
    collate: Callable[[list[Any]], Batch] = collate,
    loss: Loss = language_model_loss,
    validation: Any = None,
    every: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    on_step: Callable[[int, nn.Module, float], Any] | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    processes: Processes | None = None,
) -> History:
    """Train a model in place with AdamW (Loshchilov and Hutter, 2019) and return what happened.

    Args:
        model: any module; parameters that do not require gradients stay as they are.
        dataset: what to learn from: a ``datasets.Dataset``, any map-style data set or list of examples (mappings of
            fields, shuffled anew in each epoch by ``seed``); a dict of tensors whose first dimension counts the
            examples (it goes round ``collate``); or a function from the number of a batch (0, 1, ...) to a batch.
        steps: number of updates; or
        epochs: number of passes through the data.
        batch_size: examples a batch.
        learning_rate: peak learning rate.
        schedule: ``cosine``, ``linear``, ``constant``, ``inverse_sqrt`` or ``trapezoid``: the functions of this module.
        warmup: number of steps in which the learning rate rises from 0 to its peak.
        weight_decay: AdamW's; matrices decay, vectors (biases, the weights of norms) do not.
        betas: AdamW's two decay rates.
        clip: largest Euclidean norm of the gradient (Pascanu et al., 2013); None for no limit.
        accumulate: batches a step; their gradients are added up before the update.
        seed: seed of the order of the examples, independent of torch's own generator.
        collate: list of examples to batch.
        loss: function of model and batch that returns the mean loss, or (sum of losses, number of targets).
        validation: data set on which the loss is measured, as for :func:`evaluate`.
        every: steps between two validations; by default only after the last step.
        device: where to train; by default where the model is. The model is moved there.
        dtype: ``torch.bfloat16`` or ``torch.float16`` for autocast (with loss scaling in float16); None for none.
        on_step: called after each step with its number (from 1), the model and the loss; returning True ends.
        progress: show a progress bar with the loss and the time left (``TQDM_DISABLE=1`` hides all of them).
        checkpoint: file for the state of the training. Where it exists, the training goes on from it.
        checkpoint_every: steps between two checkpoints; by default only at the end and on interruption.
        processes: those that share the training, from :func:`course_utils.distributed.start`; by default this one. Each
            calls ``fit`` with the same arguments, computes its rows of each batch (so the first dimension of every
            tensor must count the examples), and has the same history and the same weights afterwards: those of one
            process, to rounding. Only dropout draws differently: by ``seed``, batch and rank.

    Returns:
        The history. An interruption keeps what was learned and sets ``interrupted``. A loss or a gradient that is not
        a finite number ends the training before it reaches the weights; ``stopped`` then says where, and a warning.

    Raises:
        ValueError: a setting is out of range, the model has nothing to train, or the checkpoint is damaged or belongs
            to another configuration.
    """
    settings: dict[str, Any] = dict(batch_size=batch_size, accumulate=accumulate, warmup=warmup, seed=seed)
    _check_settings(steps, epochs, every, checkpoint_every, learning_rate, schedule, clip, **settings)
    ranks = processes or Processes()
    home = torch.device(device) if device is not None else ranks.device or _device(model)
    source = _Source(dataset, batch_size, collate, seed)
    if steps is None:
        if source.per_epoch is None:
            raise ValueError("a callable has no epochs: give steps=")
        steps = math.ceil(source.per_epoch * (epochs or 0) / accumulate)
    if warmup >= steps and schedule in ("cosine", "linear"):
        raise ValueError(f"warmup={warmup} must be below the number of steps, {steps}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("the model has no parameter that requires a gradient: there is nothing to train")
    path = Path(checkpoint) if checkpoint is not None else None
    settings |= dict(steps=steps, learning_rate=learning_rate, schedule=schedule, weight_decay=weight_decay, clip=clip)
    settings |= dict(betas=list(betas), dtype=str(dtype), examples=source.examples)
    settings["parameters"] = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    with ranks.working(model, loss, home, dtype) as (working, compute):
        groups = _parameter_groups(working, weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=home.type in ("cpu", "cuda"))
        scaler = torch.amp.GradScaler(home.type, enabled=dtype is torch.float16)
        optimizer.zero_grad()
        parameters = [parameter for group in groups for parameter in group["params"]]
        parts = (working, optimizer, scaler, settings)
        history = (_load(path, ranks, *parts, home) if path else None) or History()
        begun = time.perf_counter() - history.seconds
        states, updating = None, False
        bar = progress_bar(steps, "training", progress and ranks.rank == 0, done=history.steps, unit="step")
        with modes(working, training=True), bar:
            try:
                while history.steps < steps and not history.stopped:
                    step = history.steps + 1
                    states = checkpoints.generator_states(home) if path else None
                    working.train()
                    numbers = range((step - 1) * accumulate, step * accumulate)
                    batches = [(number, source.batch(number)) for number in numbers]
                    value, end = _gradients(working, batches, compute, optimizer, scaler, home, dtype, ranks, seed)
                    norm = float(whole(nn.utils.clip_grad_norm_(parameters, clip or math.inf)))
                    problem = _problem(value, 0.0 if scaler.is_enabled() else norm)
                    if problem:
                        optimizer.zero_grad()
                        history.stopped = f"step {step}: {problem}; the weights are those of step {step - 1}"
                        if ranks.rank == 0:
                            warnings.warn(f"training stopped at {history.stopped}", RuntimeWarning, stacklevel=2)
                        break
                    rate = learning_rate * SCHEDULES[schedule](step, steps, warmup)
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    updating = True
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
                    history.losses.append(value)
                    history.learning_rates.append(rate)
                    history.gradient_norms.append(norm)
                    updating = False
                    bar.set_postfix(loss=f"{value:.3f}", refresh=False)
                    bar.update()
                    if end:  # a signal, of which all processes learn at the same step
                        raise KeyboardInterrupt
                    if on_step is not None and any(ranks.total(float(on_step(step, working, value) is True))):
                        history.stopped = f"on_step ended it after step {step}"
                    last = step == steps or bool(history.stopped)
                    if validation is not None and (last or (every and step % every == 0)):
                        held_out = evaluate(
                            working, validation, batch_size=batch_size, collate=collate, loss=loss, dtype=dtype,
                            processes=ranks,
                        )  # fmt: skip
                        history.validation.append((step, held_out))
                    history.seconds = time.perf_counter() - begun
                    if path and (last or (checkpoint_every and step % checkpoint_every == 0)):
                        _save(path, ranks, *parts, history, checkpoints.generator_states(home))
            except KeyboardInterrupt:
                history.interrupted = True
                history.stopped = f"interrupted after step {history.steps}"
                optimizer.zero_grad()
                history.seconds = time.perf_counter() - begun
                if path and states is not None and not updating:  # never a half-made update
                    states = states if history.steps < step else checkpoints.generator_states(home)
                    _save(path, ranks, *parts, history, states)
    return history


class _Source:
    """Batches by their number: the order of each epoch is a function of the seed and the epoch alone."""

    def __init__(self, dataset: Any, batch_size: int, collate: Callable[[list[Any]], Batch], seed: int | None):
        self.dataset, self.batch_size, self.collate, self.seed = dataset, batch_size, collate, seed
        self.examples: int | None = None
        self.per_epoch: int | None = None
        self._order: tuple[int, list[int]] = (-1, [])
        if callable(dataset):
            return
        self.tensors = isinstance(dataset, Mapping)
        if self.tensors:
            lengths = {name: len(values) for name, values in dataset.items()}
            if len(set(lengths.values())) != 1:
                raise ValueError(f"a dict of tensors needs the same number of examples in each, got {lengths}")
            self.examples = next(iter(lengths.values()))
        elif hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
            self.examples = len(dataset)
        else:
            raise ValueError(
                f"expected a map-style data set, a dict of tensors or a function of the batch's number, got "
                f"{type(dataset).__name__}; an iterable can be wrapped: lambda number: next(iterator)"
            )
        if not self.examples:
            raise ValueError("the data set is empty")
        self.per_epoch = math.ceil(self.examples / batch_size)

    def batch(self, number: int) -> Batch:
        if self.per_epoch is None or self.examples is None:
            return self.dataset(number)
        epoch, place = divmod(number, self.per_epoch)
        if self._order[0] != epoch:
            if self.seed is None:
                order = torch.arange(self.examples)
            else:
                mixed = int.from_bytes(hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()[:8], "big") >> 1
                order = torch.randperm(self.examples, generator=torch.Generator().manual_seed(mixed))
            self._order = (epoch, order.tolist())
        chosen = self._order[1][place * self.batch_size : (place + 1) * self.batch_size]
        if self.tensors:
            return {name: values[chosen] for name, values in self.dataset.items()}
        many = getattr(self.dataset, "__getitems__", None)
        examples = many(chosen) if many else [self.dataset[index] for index in chosen]
        if self.collate is collate and not isinstance(examples[0], Mapping):
            return torch.utils.data.default_collate(examples)
        return self.collate(examples)


def _gradients(
    model: nn.Module, batches: list[tuple[int, Batch]], loss: Loss, optimizer: Any, scaler: Any, device: torch.device,
    dtype: Any, ranks: Processes, seed: int,
) -> tuple[float, bool]:  # fmt: skip
    """Leave the gradient of the mean loss over all targets of these batches in the parameters.

    Returns:
        That mean, and whether a process was asked to end.
    """
    total, count = 0.0, 0.0
    for number, batch in batches:
        rows, share = ranks.rows(batch)
        with ranks.computing((seed, number), last=number == batches[-1][0]):
            with _autocast(device, dtype):
                part, targets = _pair(loss(model, _to(rows, device)), share)
            scaler.scale(part).backward()
        total, count = total + float(part.detach()), count + float(targets)
    total, count, end = ranks.total(total, count, float(ranks.asked))
    scaler.unscale_(optimizer)
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if gradients and count not in (0, 1):
        torch._foreach_div_(gradients, count)
    return (total / count if count else math.nan), bool(end)


def _problem(loss: float, norm: float) -> str:
    """Why a step cannot be taken; empty where it can."""
    if math.isfinite(loss) and math.isfinite(norm):
        return ""
    what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
    return f"{what} (a lower learning_rate or more warmup may help; or does no label count in this batch?)"


def _save(
    path: Path, ranks: Processes, model: nn.Module, optimizer: Any, scaler: Any, settings: dict[str, Any],
    history: History, states: Any,
) -> None:  # fmt: skip
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
    for name, tensor in tensors.items():  # one after the other, so that no process but the writer holds all
        full = whole(tensor)
        tensors[name] = full.cpu() if ranks.rank == 0 else tensor
    if ranks.rank == 0:
        kept = {"settings": settings, "history": dataclasses.asdict(history), "generators": states}
        checkpoints.save(path, tensors, {**kept, "scaler": scaler.state_dict()})
    ranks.checkpoint = (path, history.steps)


def _load(
    path: Path, ranks: Processes, model: nn.Module, optimizer: Any, scaler: Any, settings: dict[str, Any],
    device: torch.device,
) -> History | None:  # fmt: skip
    """Put everything back into the state of the checkpoint; None where there is no file."""
    tensors: dict[str, Tensor] = {}

    def read() -> Any:
        if not path.exists():
            return None
        found, kept = checkpoints.load(path)
        before = kept.get("settings", {})
        differing = [
            name if name == "parameters" else f"{name} was {before.get(name)}, is now {value}"
            for name, value in settings.items()
            if value != before.get(name)
        ]
        if differing:
            raise ValueError(
                f"the checkpoint {path} belongs to another training ({'; '.join(differing)}). "
                f"Set these back, name another file, or delete this one."
            )
        tensors.update(found)
        return kept, {name: (list(tensor.shape), tensor.dtype) for name, tensor in found.items()}

    read_first = ranks.agreed(read)
    if read_first is None:
        return None
    kept, forms = read_first
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    weights, restored = model.state_dict(), dict[str, Any]()
    state: dict[int, dict[str, Any]] = {}
    for name, form in forms.items():
        kind, _, rest = name.partition(".")
        if kind == "model":
            restored[rest] = ranks.placed(tensors.pop(name, None), form, weights.get(rest))
        else:
            number, _, part = rest.partition(".")
            like = parameters[int(number)]
            like = like if form[0] == list(like.shape) else None
            state.setdefault(int(number), {})[part] = ranks.placed(tensors.pop(name, None), form, like)
    model.load_state_dict(restored)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    scaler.load_state_dict(kept["scaler"])
    checkpoints.set_generator_states(kept["generators"], device)
    validation = [(int(step), float(value)) for step, value in kept["history"].pop("validation")]
    history = History(**kept["history"], validation=validation)
    if history.interrupted:
        history.interrupted, history.stopped = False, ""
    ranks.checkpoint = (path, history.steps)
    return history


def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"the logits {tuple(logits.shape)} need labels {tuple(logits.shape[:-1])}, got {tuple(labels.shape)}"
        )
    logits, labels = logits.flatten(0, -2), labels.flatten().long()
    total = nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total, (labels != IGNORED).sum()


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    known = inspect.signature(model.forward).parameters
    every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    inputs = {name: value for name, value in batch.items() if name != "labels" and (every or name in known)}
    output = model(**inputs) if inputs else model(batch["input_ids"])
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]


def _pair(result: Any, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """A loss as (sum, number of targets); a plain mean counts as one target, or as its share of the batch."""
    if isinstance(result, tuple):
        total, targets, weight = result[0], torch.as_tensor(result[1]), float(share > 0)
    elif not isinstance(result, Tensor) or result.numel() != 1:
        raise ValueError(f"loss() must return one number as a tensor, or (sum, count); got {type(result).__name__}")
    else:
        total, targets, weight = result, torch.tensor(1), share
    return (total, targets) if weight == 1 else (total * weight, targets * weight)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def _check_settings(
    steps: int | None, epochs: int | None, every: int | None, checkpoint_every: int | None,
    learning_rate: float, schedule: str, clip: float | None, **whole: int,
) -> None:  # fmt: skip
    if (steps is None) == (epochs is None):
        raise ValueError(f"give either steps= or epochs=, got steps={steps}, epochs={epochs}")
    counts = {"steps": steps, "epochs": epochs, "every": every, "checkpoint_every": checkpoint_every, **whole}
    for name, value in counts.items():
        least = 0 if name in ("warmup", "seed") else 1
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ValueError(f"{name}={value!r}: expected a whole number of {least} or more")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: expected one of {', '.join(SCHEDULES)}")
    if not learning_rate > 0 or not math.isfinite(learning_rate):
        raise ValueError(f"learning_rate={learning_rate!r}: expected a number above 0, for example 1e-3")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip={clip!r}: expected a number above 0, or None for no clipping")


@contextlib.contextmanager
def modes(model: nn.Module, training: bool) -> Any:
    """Training or evaluation mode for a while; then each module is put back into its own.

    Args:
        model: the model.
        training: whether the mode is that of training.
    """
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def _autocast(device: torch.device, dtype: torch.dtype | None) -> Any:
    used = dtype not in (None, torch.float32)
    return torch.autocast(device.type, dtype) if used else contextlib.nullcontext()


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return parameter.device if parameter is not None else torch.device("cpu")


def _to(batch: Any, device: torch.device) -> Any:
    return each_tensor(batch, lambda tensor: tensor.to(device, non_blocking=True))


def each_tensor(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Return a batch with each of its tensors changed; mappings, tuples and lists may be nested.

    Args:
        batch: the batch.
        change: from tensor to tensor.
    """
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: each_tensor(value, change) for name, value in batch.items()}
    return type(batch)(each_tensor(value, change) for value in batch) if isinstance(batch, (tuple, list)) else batch


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that lies in parts on several processes (each has to ask); any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor
