"""The training: full or LoRA on :func:`course_utils.training.fit`, with what to do when the memory does not suffice."""

import contextlib
import copy
import gc
import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from course_utils import checkpoints, families, lora, memory, training
from course_utils.environment import _half_type
from course_utils.finetuning.examples import Prepared, new_modules, prepare, with_head
from course_utils.models import Loaded
from course_utils.reporting import approx
from course_utils.training import IGNORED, Batch, History

METHODS = ("full", "lora")
RATES = {"full": 1e-3, "lora": 3e-3}
"""Peak learning rates for models of a few million weights; large ones want a tenth of it."""
SMOOTHED = 10
"""Steps whose mean loss is watched for divergence."""


class OutOfMemory(RuntimeError):
    """The memory does not suffice; the message says what needs it, and what to change."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """What came of a fine-tuning.

    Attributes:
        loaded: the tuned model, in evaluation mode, with its tokenizer.
        history: losses, learning rates, why it ended.
        method: ``full`` or ``lora``.
        trained: number of parameters that were trained.
        parameters: number of parameters in all.
        tokens: tokens that were read and written in all steps, without padding.
        accumulate: parts that the batches were cut into at the end.
    """

    loaded: Loaded
    history: History
    method: str
    trained: int
    parameters: int
    tokens: int
    accumulate: int

    @property
    def model(self) -> Any:
        """The tuned model."""
        return self.loaded.model

    @property
    def share(self) -> float:
        """Share of the parameters that were trained."""
        return self.trained / self.parameters

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second, without padding."""
        return self.tokens / self.history.seconds

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write what was learned as safetensors: the adapter in the format of ``peft``, or the whole model.

        Args:
            folder: where the files go; those of the same name are replaced once all are written.
        """
        return lora.save_adapter(self.model, folder) if self.method == "lora" else self.save_merged(folder)

    def save_merged(self, folder: str | os.PathLike[str]) -> Path:
        """Write an ordinary model and its tokenizer, which ``transformers`` and ``models.load`` read; LoRA is merged.

        Args:
            folder: where the files go; those of the same name are replaced once all are written.
        """
        model = merged(self.model)
        home = Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home, prefix=".new-") as temporary:
            model.save_pretrained(temporary)
            self.loaded.tokenizer.save_pretrained(temporary)
            for path in sorted(Path(temporary).iterdir()):
                os.replace(path, home / path.name)
        return home


def finetune(
    loaded: Loaded,
    data: Any,
    *,
    method: str = "full",
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 16,
    accumulate: int = 1,
    learning_rate: float | None = None,
    schedule: str = "linear",
    warmup: int = 0,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    clip: float | None = 1.0,
    seed: int = 0,
    rank: int = 8,
    alpha: float = 16,
    targets: str | Sequence[str] = "linear",
    dropout: float = 0.0,
    validation: Any = None,
    every: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    checkpointing: bool = False,
    compile: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    retry: bool = False,
    live: bool = False,
    progress: bool = True,
    on_step: Callable[[int, nn.Module, float], Any] | None = None,
    processes: training.Processes | None = None,
    inplace: bool = False,
) -> Tuned:
    """Fine-tune a model by :func:`course_utils.training.fit`: all of its weights, or LoRA's thin matrices alone.

    The examples of a step depend on the seed and the step alone; ``accumulate`` only cuts them into parts, short
    examples first, so that less is padding. An encoder gets an output layer for its labels. The training ends early
    where the loss is no longer a number or diverges; ``history.stopped`` says why.

    Args:
        loaded: the model; it is not changed, unless ``inplace``.
        data: what :func:`prepare` takes, or what it returned.
        method: ``full`` or ``lora``.
        steps: number of updates; or
        epochs: number of passes through the data.
        batch_size: examples an update, all parts and processes together.
        accumulate: parts that a batch is cut into; their gradients are added up, so that a part has to fit the memory.
        learning_rate: peak learning rate; by default 1e-3, with LoRA 3e-3, which suits models of a few million weights.
        schedule: as for ``fit``.
        warmup: likewise.
        weight_decay: likewise.
        betas: likewise.
        clip: likewise.
        seed: seed of the order, of new weights and of dropout.
        rank: LoRA's, as the next three: see :func:`course_utils.lora.add_lora`.
        alpha: the change is multiplied by alpha / rank.
        targets: which maps are adapted.
        dropout: share of LoRA's inputs that is set to 0.
        validation: data whose loss is measured after every ``every`` steps, and at the end.
        every: see validation.
        device: where to train; by default where the model is.
        dtype: type of autocast; by default float32 on a CPU, and on a GPU bfloat16 or float16, as the chip computes.
            Weights that are all trained are kept in float32.
        checkpointing: keep each block's input alone, and compute the block again for the gradients (Chen et al., 2016):
            less memory, a third more work.
        compile: compile the model (``torch.compile``): the first step of each shape takes long, the others may be
            faster. Of use on a GPU, for many steps.
        checkpoint: file of the training's state. Where it exists, the training goes on from it, bit for bit.
        checkpoint_every: steps between two checkpoints.
        retry: where the memory does not suffice, cut the batches into twice as many parts and go on.
        live: draw the loss while it falls, in a notebook.
        progress: show a progress bar.
        on_step: called after each step with its number, the model and the loss; returning True ends the training.
        processes: those that share the training, from :func:`course_utils.distributed.start`.
        inplace: train the model that was given, instead of a copy.

    Raises:
        ValueError: a setting is out of range, or the data do not go with the model.
        RuntimeError: ``compile`` is asked for, and there is no compiler.
        OutOfMemory: the memory does not suffice; with ``retry`` only where a part is one example already.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    if not 1 <= accumulate <= batch_size:
        raise ValueError(f"accumulate={accumulate}: expected a whole number from 1 to batch_size, {batch_size}")
    prepared = data if isinstance(data, Prepared) else prepare(loaded, data, seed=seed)
    if (steps is None) == (epochs is None):
        raise ValueError(f"give either steps= or epochs=, got steps={steps}, epochs={epochs}")
    steps = steps or math.ceil(len(prepared) * (epochs or 0) / batch_size)
    started = start(loaded, prepared, method, seed, rank, alpha, targets, dropout, inplace)
    model: Any = started.model
    home = torch.device(device or (processes.device if processes and processes.device else model.device))
    if dtype is None and home.type == "cuda":
        dtype = _half_type()
    begun = {name: one.detach().cpu().clone() for name, one in model.named_parameters() if retry and one.requires_grad}
    watch = _Watch(on_step, live and (processes is None or processes.rank == 0), method)
    path = Path(checkpoint) if checkpoint is not None else None
    order = Order(prepared, batch_size, seed)
    while True:
        settings: dict[str, Any] = dict(
            steps=steps, batch_size=batch_size, schedule=schedule,
            learning_rate=RATES[method] if learning_rate is None else learning_rate,
            warmup=warmup, weight_decay=weight_decay, betas=betas, clip=clip, accumulate=accumulate, seed=seed,
            every=every, device=home, dtype=dtype, progress=progress, checkpoint=path,
            checkpoint_every=checkpoint_every, processes=processes,
        )  # fmt: skip
        if validation is not None:
            held_out = validation if isinstance(validation, Prepared) else prepare(loaded, validation, split="held_out")
            settings |= dict(validation=held_out.examples, collate=prepared.collate)
        problem, watch.losses = "", _losses(path)
        try:
            with _switched(model, checkpointing, compile), _seeded(seed, home):
                history = training.fit(model, order.cut(accumulate), loss=loss, on_step=watch, **settings)
        except RuntimeError as error:  # torch.OutOfMemoryError is one, and that of a CPU has no name of its own
            if compile and _uncompiled(error):
                raise RuntimeError(
                    f"compile=True: torch.compile fails here ({str(error).splitlines()[0]}). It needs a C++ compiler, "
                    "on a GPU also Triton; the training runs without it, with compile=False"
                ) from None
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            problem = str(error).split(". ")[0]
        except OSError as error:
            if path is None:
                raise
            raise OSError(
                error.errno,
                f"{path} cannot be written ({error.strerror}); the state of step {len(_losses(path))} is whole in it. "
                "Make room and call finetune() again: it goes on from there",
            ) from error
        if not problem:
            break
        # Outside of the except block, whose traceback would keep the step's tensors alive.
        _free(model, home)
        many = 1 if processes is None else processes.world
        rows = math.ceil(batch_size / accumulate / many)
        if not retry or rows == 1 or many > 1:  # the other processes wait in the same step
            raise OutOfMemory(
                _explained(model, prepared, method, rank, rows, dtype, checkpointing, accumulate, problem)
            )
        accumulate = min(2 * accumulate, batch_size)
        print(f"out of memory with {rows} examples at a time: the same batches in {accumulate} parts")
        if path and path.exists():
            _recut(path, accumulate)
        else:
            with torch.no_grad():
                for name, one in model.named_parameters():
                    if name in begun:
                        one.copy_(begun[name])
    history.stopped = watch.diverged or diverged(history.losses) or history.stopped if history.stopped else ""
    trained, parameters = lora.trained(model)
    tokens = sum(sum(map(prepared.lengths.__getitem__, order.rows(step))) for step in range(history.steps))
    model.eval()
    return Tuned(started, history, method, trained, parameters, tokens, accumulate)


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the labels that count; the output layer runs on their places alone.

    In a decoder the state at a token is held against the label of the next one. With one label a text or a token this
    is :func:`course_utils.training.aligned_loss`.

    Args:
        model: a model of ``transformers``, as it is or wrapped for several processes.
        batch: from :meth:`.examples.Prepared.collate`.

    Returns:
        Sum of the losses in nats, and the number of targets.
    """
    inner: Any = getattr(model, "module", model)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    labels = batch["labels"]
    if head is None or labels.ndim < 2:
        return training.aligned_loss(model, batch)
    shifted = "decoder_input_ids" not in batch
    wanted = labels[:, 1:] if shifted else labels
    counts = wanted != IGNORED

    def pick(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return ((inputs[0][:, :-1] if shifted else inputs[0])[counts],)

    handle = head.register_forward_pre_hook(pick)
    try:
        logits = training._logits(model, batch)
    finally:
        handle.remove()
    return nn.functional.cross_entropy(logits.float(), wanted[counts], reduction="sum"), counts.sum()


def merged(model: Any) -> Any:
    """Return the model with its adapter merged into a copy, or the model itself where it has none.

    Args:
        model: any model.
    """
    if not any(isinstance(module, lora.LoRALinear) for module in model.modules()):
        return model
    return lora.merge(copy.deepcopy(model))


def diverged(losses: Sequence[float]) -> str:
    """Return why a training has diverged, or an empty text.

    It has where the mean of the last ten losses is above half a nat and twice the first loss, or twice the lowest such
    mean.

    Args:
        losses: loss of each step so far.
    """
    if len(losses) < SMOOTHED:
        return ""
    means = [statistics.fmean(losses[end - SMOOTHED : end]) for end in range(SMOOTHED, len(losses) + 1)]
    lowest = min(losses[0], *means)
    if means[-1] <= 2 * lowest + 0.5:
        return ""
    return (
        f"step {len(losses)}: the loss diverges, it was {approx(lowest)} and its mean over {SMOOTHED} steps is "
        f"{approx(means[-1])}: lower the learning rate, or let it rise for longer (warmup)"
    )


class Order:
    """Which examples each step has: a new permutation in every pass, one pass after the other, from the seed alone.

    Args:
        prepared: the examples.
        batch_size: examples a step.
        seed: seed of the permutations.
    """

    def __init__(self, prepared: Prepared, batch_size: int, seed: int):
        self.prepared, self.batch_size, self.lengths = prepared, batch_size, prepared.lengths
        count = len(prepared)
        self._epochs = training._Source(range(count), count, list, seed)
        self._known: dict[int, list[int]] = {}

    def rows(self, step: int) -> list[int]:
        """Return the places of the examples of a step, from 0, the short ones first."""
        count, found = len(self.lengths), []
        for place in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, inside = divmod(place, count)
            if epoch not in self._known:
                self._known = {old: self._known[old] for old in self._known if old == epoch - 1}
                self._known[epoch] = self._epochs.batch(epoch)
            found.append(self._known[epoch][inside])
        return sorted(found, key=self.lengths.__getitem__)

    def cut(self, parts: int) -> Callable[[int], Batch]:
        """Return the parts of the batches as a function of their number, for ``fit``.

        Args:
            parts: parts that each batch is cut into.
        """

        def batch(number: int) -> Batch:
            step, part = divmod(number, parts)
            rows = self.rows(step)
            begin, end = (one * len(rows) // parts for one in (part, part + 1))
            return self.prepared.collate([self.prepared.examples[place] for place in rows[begin:end]])

        return batch


def start(
    loaded: Loaded, prepared: Prepared, method: str, seed: int, rank: int, alpha: float, targets: Any, dropout: float,
    inplace: bool,
) -> Loaded:  # fmt: skip
    """Return the model as the training begins: with its output layer, with LoRA, or all in float32."""
    headed = with_head(loaded, prepared, seed)
    model: Any = headed.model if inplace or headed is not loaded else copy.deepcopy(headed.model)
    if method == "lora":
        lora.add_lora(model, rank, alpha, targets, dropout, seed, new_modules(model, prepared.kind))
    else:
        lora._refuse_adapted(model)
        model.float().requires_grad_(True)
    return replace(headed, model=model)


class _Watch:
    """What is done after each step: end where the training diverges, draw the loss, call what the caller wants."""

    def __init__(self, on_step: Callable[[int, nn.Module, float], Any] | None, live: bool, method: str):
        self.on_step, self.method = on_step, method
        self.losses: list[float] = []
        self.diverged = ""
        self.figure: Any = None
        if live:
            from course_utils.plotting import LiveFigure

            self.figure = LiveFigure(f"Loss of the {method} fine-tuning over its steps, mean of {SMOOTHED}, falling.")

    def __call__(self, step: int, model: nn.Module, value: float) -> bool:
        self.losses.append(value)
        if self.figure is not None and step % 30 == 0:
            from course_utils.plotting import figure

            fig, axes = figure(5.2, 2.6)
            means = [
                statistics.fmean(self.losses[max(0, end - SMOOTHED) : end]) for end in range(1, len(self.losses) + 1)
            ]
            axes.plot(range(1, step + 1), means, marker="")
            axes.set(
                xlabel="step",
                ylabel="loss (nats a token)",
                title=f"{'LoRA' if self.method == 'lora' else 'Full'} fine-tuning",
            )
            self.figure.draw(fig)
        self.diverged = diverged(self.losses)
        asked = self.on_step is not None and self.on_step(step, model, value) is True
        return bool(self.diverged) or asked


@contextlib.contextmanager
def _switched(model: Any, checkpointing: bool, compile: bool) -> Iterator[None]:
    """Let a model recompute, compile, and do without what a training does not need, for as long as it is trained.

    That is the cache of keys and values, and GELU's tanh form in eight operations where torch has it in one.
    """
    slow = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child).__name__ == "NewGELUActivation"
    ]
    for parent, name, _ in slow:
        setattr(parent, name, nn.GELU("tanh"))
    cached = getattr(model.config, "use_cache", None)
    if checkpointing:  # "gradient" checkpointing before transformers 5.16
        on, off = (
            getattr(model, f"activation_checkpointing_{way}", None) or getattr(model, f"gradient_checkpointing_{way}")
            for way in ("enable", "disable")
        )
        on({"use_reentrant": False})
    if cached is not None:
        model.config.use_cache = False
    if compile:
        model.compile(dynamic=True)
    try:
        yield
    finally:
        if checkpointing:
            off()
        if cached is not None:
            model.config.use_cache = cached
        if compile:
            model._compiled_call_impl = None
        for parent, name, child in slow:
            setattr(parent, name, child)


def _uncompiled(error: RuntimeError) -> bool:
    """Whether the model could not be compiled."""
    from torch._dynamo.exc import BackendCompilerFailed

    return isinstance(error, BackendCompilerFailed)


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw dropout from the seed, and put torch's generators back."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _free(model: nn.Module, device: torch.device) -> None:
    for parameter in model.parameters():
        parameter.grad = None
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _losses(path: Path | None) -> list[float]:
    """The losses of the steps before a checkpoint, from its header alone."""
    from safetensors import safe_open

    with contextlib.suppress(Exception), safe_open(path, "pt") as file:  # fit() speaks of a damaged one
        return json.loads(file.metadata()["state"])["history"]["losses"]
    return []


def _recut(path: Path, accumulate: int) -> None:
    """Let a checkpoint go on with its batches cut into another number of parts: what is learned is the same."""
    tensors, state = checkpoints.load(path)
    state["settings"]["accumulate"] = accumulate
    checkpoints.save(path, tensors, state)


def _explained(
    model: Any, prepared: Prepared, method: str, rank: int, rows: int, dtype: torch.dtype | None, checkpointing: bool,
    accumulate: int, problem: str,
) -> str:  # fmt: skip
    """Say what needs the memory, and what to change."""
    with torch.device("meta"):
        bare = type(model)(model.config)  # without the adapter: its shape
    lines = [f"out of memory with {rows} examples at a time, {method} fine-tuning ({problem})."]
    read, written = prepared.longest
    kinds = {one: str(one).removeprefix("torch.") for one in (model.dtype, dtype or torch.float32)}
    plan: dict[str, Any] = dict(
        method=method, batch=rows, tokens=max(1, read + written), weights=kinds[model.dtype], rank=rank,
        checkpointing=checkpointing, library="transformers", device="cpu" if model.device.type == "cpu" else "cuda",
    )  # fmt: skip
    if dtype not in (None, torch.float32, model.dtype):
        plan["activations"] = kinds[dtype]
    if prepared.kind == "seq2seq":
        plan |= dict(tokens=max(1, written), source=read)
    for one in (bare, bare.base_model):
        with contextlib.suppress(ValueError):  # not a family that we know
            table = memory.needs(families.config_from_huggingface(one), memory.Plan(**plan)).rows()
            lines += ["What a step needs by computation, with the longest examples:"]
            lines += [f"  {part:<12} {size:>9}  {share:>4}" for part, size, share in table]
            break
    advice = []
    if rows > 1:
        advice.append(f"accumulate={2 * accumulate} (the same batch in smaller parts; retry=True does so by itself)")
    if not checkpointing:
        advice.append("checkpointing=True (a third more work, a fraction of the activations)")
    if method == "full":
        advice.append('method="lora" (no gradients and optimizer states of the frozen weights)')
    advice.append(f"longest= of prepare() below {read + written} tokens, or a smaller model")
    return "\n".join([*lines, "What to change: " + "; ".join(advice) + "."])
