"""How an embedded model is trained, measured and described: the same three steps for each of them."""

import json
import math
import os
import platform
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from course_utils import training
from course_utils.environment import cache_folder, seed_everything
from course_utils.models.registry import EMBEDDED, check_embedded, embedded_models, seal, sizes, write_text
from course_utils.recipes.tokenizer import tokenizer as tokenizer_of

SEEDS = (0, 1, 2)
"""Seeds of the evaluation's prompts and items."""
RESAMPLES = 2000
POINTS = 200
"""Points kept of a loss curve."""


@dataclass(frozen=True)
class Result:
    """One measured number with its 95 % interval.

    Attributes:
        name: what was measured.
        value: the mean.
        low: lower end of the interval; equal to ``value`` where there is only one measurement.
        high: upper end.
        items: number of items in all.
        seeds: number of seeds.
        unit: unit, empty for shares of 1.
        at_least: the smallest value that the course counts on, None for no such bound.
        at_most: the largest.
    """

    name: str
    value: float
    low: float
    high: float
    items: int = 1
    seeds: int = 1
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the value is within what the course counts on."""
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)


def from_items(name: str, scores: Sequence[Sequence[float]], **fields: Any) -> Result:
    """Mean score with a 95 % interval by the bootstrap (Efron, 1979), seeds drawn first, then items within a seed.

    Args:
        name: what was measured.
        scores: for each seed the score of every item.
        **fields: further fields of :class:`Result`.

    Raises:
        ValueError: there is no seed, or a seed without items.
    """
    if not scores or any(not len(items) for items in scores):
        raise ValueError(f"from_items({name!r}): expected at least one seed, each with items; got {scores!r}")
    import numpy

    generator = numpy.random.default_rng(0)
    arrays = [numpy.asarray(items, dtype=float) for items in scores]
    means = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(len(arrays), size=len(arrays))
        means.append(
            float(numpy.mean([generator.choice(arrays[seed], size=len(arrays[seed])).mean() for seed in drawn]))
        )
    low, high = numpy.percentile(means, [2.5, 97.5])
    value = float(numpy.mean([array.mean() for array in arrays]))
    count = sum(len(array) for array in arrays)
    return Result(name, value, float(low), float(high), items=count, seeds=len(arrays), **fields)


@dataclass(frozen=True)
class Recipe:
    """Everything that makes an embedded model, but its weights.

    Attributes:
        name: name of the model and of its folder.
        role: the role that it plays in the laptop profile.
        family: the published family whose architecture it has.
        about: what it is.
        data: what it was trained on.
        limits: what it cannot do.
        build: returns the untrained ``transformers`` model; the caller seeds.
        batches: ``batches(tokenizer, seed)`` returns a function of the number of a batch, alone, to that batch.
        loss: the loss, as for :func:`course_utils.training.fit`.
        evaluate: ``evaluate(model, tokenizer, quick, seeds)`` returns the results of the card.
        post_processor: name of the way in which the tokenizer marks beginning and end: ``decoder``, ``encoder`` or
            ``seq2seq``.
        steps: number of updates.
        learning_rate: peak learning rate.
        schedule: as for ``fit``.
        warmup: steps of the rise.
        weight_decay: AdamW's.
        betas: AdamW's.
        start_from: name of the embedded model whose weights it starts from, or the recipe of a first phase, which is
            then trained before this one, with the same seed, and kept in the cache.
    """

    name: str
    role: str
    family: str
    about: str
    data: str
    limits: str
    build: Callable[[], Any]
    batches: Callable[[Any, int], Callable[[int], Any]]
    loss: training.Loss
    evaluate: Callable[[Any, Any, bool, Sequence[int]], list[Result]]
    post_processor: str
    steps: int
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 100
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    start_from: "str | Recipe | None" = None


def train(
    recipe: Recipe,
    folder: Path | None = None,
    *,
    steps: int | None = None,
    seed: int = 0,
    device: str | None = None,
    threads: int = 1,
    checkpoint_every: int = 50,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> Path:
    """Train an embedded model and write it in the format of ``transformers``; a killed training goes on where it was.

    Args:
        recipe: what to train, and how.
        folder: where the model goes; by default where it ships. It appears there only when it is complete.
        steps: number of updates, by default the recipe's; fewer for a trial.
        seed: seed of the weights and the data.
        device: by default CUDA where it is, else the CPU.
        threads: threads of the CPU. One gives the same weights on every run.
        checkpoint_every: steps between two checkpoints.
        checkpoint: file of the checkpoint, which goes when the model is written; by default one in the cache, named
            after model, steps and seed.
        progress: show a progress bar with the time left.

    Returns:
        The folder.

    Raises:
        ValueError: a setting is out of range, the checkpoint belongs to other settings, or the model to start from is
            missing or damaged.
        RuntimeError: the training was interrupted or its loss was no longer a number; it can be gone on with.
    """
    folder = folder or EMBEDDED / recipe.name
    steps = steps or recipe.steps
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = checkpoint or cache_folder() / "training" / f"{recipe.name}-{steps}-{seed}.safetensors"
    tokenizer = tokenizer_of(recipe.post_processor)
    share = steps / recipe.steps  # a trial of few steps has a short first phase, too
    base = _start(recipe, share, seed=seed, device=device, threads=threads, checkpoint_every=checkpoint_every)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seed_everything(seed)
        model = recipe.build()
        if base:
            from safetensors.torch import load_file

            weights = load_file(base / "model.safetensors")
            model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
            model.tie_weights()
        batches = recipe.batches(tokenizer, seed)
        history = training.fit(
            model,
            batches,
            steps=steps,
            learning_rate=recipe.learning_rate,
            schedule=recipe.schedule,
            warmup=min(recipe.warmup, steps // 5),
            weight_decay=recipe.weight_decay,
            betas=recipe.betas,
            seed=seed,
            loss=recipe.loss,
            device=where,
            progress=progress,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
        )
    finally:
        torch.set_num_threads(before)
    if history.steps < steps:
        raise RuntimeError(
            f"the training of {recipe.name} ended early: {history.stopped}. The state after step {history.steps} is "
            f"in {checkpoint}; the same command goes on from there."
        )
    record = _record(recipe, batches, history, steps, seed, where, threads)
    if base and isinstance(recipe.start_from, Recipe):
        record["before"] = json.loads((base / "training.json").read_text(encoding="utf-8"))
    _write(recipe, model, tokenizer, folder, record)
    checkpoint.unlink()
    return folder


def _start(recipe: Recipe, share: float, *, seed: int, **settings: Any) -> Path | None:
    """The folder whose weights a training starts from; a first phase that is not in the cache is trained."""
    start = recipe.start_from
    if not isinstance(start, Recipe):
        if start:
            check_embedded(start)
        return EMBEDDED / start if start else None
    steps = math.ceil(share * start.steps)
    folder = cache_folder() / "training" / f"{start.name}-{steps}-{seed}"
    return folder if folder.exists() else train(start, folder, steps=steps, seed=seed, **settings)


def _record(
    recipe: Recipe, batches: Callable[[int], Any], history: training.History, steps: int, seed: int, device: str,
    threads: int,
) -> dict[str, Any]:  # fmt: skip
    """What the card says about the training."""
    sample = [batches(number) for number in range(0, steps, max(1, steps // 40))]
    tokens = statistics.mean(
        sum(value.numel() for key, value in batch.items() if key in ("input_ids", "decoder_input_ids", "ids"))
        for batch in sample
    )
    machine = f"{torch.cuda.get_device_name()}" if device == "cuda" else f"{threads} core of {platform.machine()}"
    size = max(1, steps // POINTS)
    return {
        "steps": steps,
        "seed": seed,
        "tokens": round(tokens * steps),
        "minutes": round(history.seconds / 60, 1),
        "machine": machine,
        "versions": {name: version(name).split("+")[0] for name in ("torch", "transformers", "tokenizers")},
        "settings": {
            name: getattr(recipe, name) for name in ("learning_rate", "schedule", "warmup", "weight_decay", "betas")
        }
        | {"start_from": recipe.start_from.name if isinstance(recipe.start_from, Recipe) else recipe.start_from},
        "losses": [
            [end, round(statistics.mean(history.losses[end - size : end]), 4)] for end in range(size, steps + 1, size)
        ],
    }


def _write(recipe: Recipe, model: Any, tokenizer: Any, folder: Path, record: dict[str, Any]) -> None:
    """Write the model beside its place, then exchange the folders."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to("cpu", torch.bfloat16).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    (temporary / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.parent == EMBEDDED:
        seal()


def evaluate(recipe: Recipe, quick: bool = False, seeds: Sequence[int] = SEEDS) -> list[Result]:
    """Measure an embedded model as it ships, on one thread of the CPU.

    Args:
        recipe: which one.
        quick: a small part only, in seconds.
        seeds: seeds of prompts and items.

    Raises:
        ValueError: the model is missing or damaged.
    """
    from course_utils.models import load

    loaded = load(recipe.name, profile="laptop", device="cpu", dtype=torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seed_everything(0)
        return recipe.evaluate(loaded.model, loaded.tokenizer, quick, seeds)
    finally:
        torch.set_num_threads(before)


def write_card(recipe: Recipe, results: Sequence[Result], folder: Path) -> Path:
    """Write the card of an embedded model, and the picture of its loss curve beside it.

    Args:
        recipe: what it is and how it was trained.
        results: what was measured.
        folder: ``supplemental/cards`` of the course.

    Returns:
        The card, a Markdown file.
    """
    record = json.loads((EMBEDDED / recipe.name / "training.json").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{recipe.name}-loss.png"
    _draw(record["losses"], picture)
    path = folder / f"{recipe.name}.md"
    write_text(path, card(recipe, record, results))
    return path


def card(recipe: Recipe, record: dict[str, Any], results: Sequence[Result]) -> str:
    """Return the card as Markdown.

    Args:
        recipe: what it is and how it was trained.
        record: ``training.json`` of the model.
        results: what was measured.
    """
    parameters, megabytes = sizes(embedded_models()[recipe.name])
    settings = ", ".join(f"{name} {value}" for name, value in record["settings"].items() if value is not None)
    versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    first, last = record["losses"][0], record["losses"][-1]
    phases = [record]
    while "before" in phases[0]:
        phases.insert(0, phases[0]["before"])
    of_which = "last phase of the training" if len(phases) > 1 else "training"
    lines = [
        f"# {recipe.name}",
        "",
        recipe.about,
        "",
        "| | |",
        "| --- | --- |",
        f"| role | `{recipe.role}` in the laptop profile |",
        f"| architecture | {recipe.family} |",
        f"| parameters | {parameters} |",
        f"| file | {megabytes} MB, bfloat16, safetensors |",
        f"| data | {recipe.data} |",
        f"| tokens seen | about {sum(phase['tokens'] for phase in phases) / 1e6:.1f} M |",
        f"| steps | {' + '.join(format(phase['steps'], ',') for phase in phases)} |",
        f"| time | {' + '.join(format(phase['minutes'], 'g') for phase in phases)} minutes on {record['machine']} |",
        f"| settings | {settings}, seed {record['seed']} |",
        f"| versions | {versions} |",
        "| licence | Apache-2.0, as the code |",
        "",
        f"![Loss over the steps of the {of_which}: it begins at {first[1]:.2f} nats and ends at {last[1]:.2f}]"
        f"({recipe.name}-loss.png)",
        "",
        "## Measured",
        "",
        "Mean and 95 % interval (bootstrap over seeds, then items). The last column is what the course counts on.",
        "",
        "| what | value | 95 % interval | items x seeds | counted on |",
        "| --- | ---: | --- | --- | --- |",
    ]
    for result in results:
        bounds = [f"at least {result.at_least:g}"] if result.at_least is not None else []
        bounds += [f"at most {result.at_most:g}"] if result.at_most is not None else []
        verdict = f"{' and '.join(bounds)}: {'yes' if result.holds else 'NO'}" if bounds else ""
        unit = f" {result.unit}" if result.unit else ""
        interval = f"{result.low:.3f} to {result.high:.3f}" if result.low != result.high else ""
        count = f"{result.items // result.seeds} x {result.seeds}" if result.items > 1 else ""
        lines.append(f"| {result.name} | {result.value:.3f}{unit} | {interval} | {count} | {verdict} |")
    lines += [
        "",
        "## Limits",
        "",
        recipe.limits,
        "",
        f"`course train {recipe.name}` makes this model again, `course evaluate {recipe.name}` this page. Numbers of "
        "another machine, or of other versions of the libraries that the corpus is read from, differ a little: by up "
        "to half the width of the interval.",
    ]
    return "\n".join(lines) + "\n"


def _draw(losses: Sequence[Sequence[float]], path: Path) -> None:
    from course_utils.plotting import figure

    fig, axes = figure()
    axes.plot(*zip(*losses, strict=True), marker="")
    axes.set_xlabel("step")
    axes.set_ylabel("training loss (nats a target)")
    temporary = path.with_name(path.name + ".tmp")
    fig.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
    os.replace(temporary, path)
