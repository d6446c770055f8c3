"""Scaling laws: a sweep of small trainings, the curves through its losses, and what they say about a budget.

``sweep`` trains one model for each pair of a size and a number of tokens, each with its own full decay of the learning
rate, so that its loss is the final one there. ``fit`` puts Chinchilla's form through the losses,

    L(N, D) = E + A / N**alpha + B / D**beta                  (Hoffmann et al. 2022, section 3.3)

with N parameters and D tokens, and ``bootstrap`` says how far to trust it. The shipped sweep (:func:`shipped`) was made
by ``python -m course_utils.scaling``; its file holds the recipe and the machine.

N counts the weights of the blocks, without the embeddings (Kaplan et al. 2020, section 2.1); a training takes 6 N D
floating-point operations, FLOPs (their section 2.1; :mod:`course_utils.compute` counts more closely).
"""

import argparse
import dataclasses
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from course_utils import compute, training
from course_utils.data import library_docs
from course_utils.data.packing import generator
from course_utils.reporting import progress_bar
from course_utils.transformer import Transformer, TransformerConfig

Numbers = Sequence[float] | Sequence[int] | np.ndarray
"""Numbers in a row."""

# --- the sweep


@dataclass(frozen=True)
class Recipe:
    """What decides a sweep. Sizes differ in width alone; tokens are bytes, so there is no tokenizer to train.

    Attributes:
        corpus: size of :func:`course_utils.data.library_docs`; its training split is read at most once in each run.
        widths: one model for each width, ``12 * layers * width**2`` weights and a few.
        layers: blocks of each model.
        tokens: tokens of the runs of each size.
        seeds: seeds of weights and order of the data; each pair of a width and a number of tokens runs with all.
        repeated_to: runs of more tokens than that take the first seed alone, as do the extra and the held-out ones.
        rates: peak learning rates that are tried, times width: for AdamW the best one goes about as 1 / width
            (Yang et al. 2022, table 3).
        tuned_at: tokens of the runs that choose among them, once for each width, with the first seed.
        extra: pairs (width, tokens) beside those, so that small models too have runs of larger budgets.
        held_out: pairs (width, tokens) that are trained and left out of the fits.
        context: tokens of a window.
        batch: windows of a step.
        warmup: share of the steps in which the learning rate rises; then it falls as half a cosine to 0.
        weight_decay: AdamW's.
        betas: AdamW's.
        validated_on: tokens of the validation split on which each loss is measured, the same for all.
    """

    corpus: str = "small"
    widths: tuple[int, ...] = (16, 24, 32, 48, 64, 96)
    layers: int = 3
    tokens: tuple[int, ...] = (153_600, 307_200, 614_400, 1_228_800)
    seeds: tuple[int, ...] = (0, 1)
    repeated_to: int = 614_400
    rates: tuple[float, ...] = (0.2, 0.35, 0.6, 1.0)
    tuned_at: int = 307_200
    extra: tuple[tuple[int, int], ...] = ((16, 2_457_600), (24, 2_457_600), (32, 2_457_600), (48, 2_457_600))
    held_out: tuple[tuple[int, int], ...] = ((128, 2_457_600),)
    context: int = 64
    batch: int = 8
    warmup: float = 0.05
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    validated_on: int = 65_536

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        for name in ("widths", "tokens", "seeds", "rates"):
            if not getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one entry or more")
        for width in [*self.widths, *(width for width, _ in (*self.extra, *self.held_out))]:
            if width < 16 or width % 8 or width % (width // 16):
                raise ValueError(
                    f"widths hold {width}: expected multiples of 8 from 16 on that width // 16 heads divide"
                )
        step = self.context * self.batch
        for count in [*self.tokens, self.tuned_at, *(tokens for _, tokens in (*self.extra, *self.held_out))]:
            if count < 10 * step or count % step:
                raise ValueError(f"tokens={count}: expected 10 steps or more of {step} tokens each (context x batch)")

    def model(self, width: int, seed: int = 0) -> Transformer:
        """Return the untrained model of a width: a decoder of LLaMA's kind with a plain feed-forward network."""
        config = TransformerConfig(
            256, width=width, layers=self.layers, heads=width // 16, positions="rotary", norm="rmsnorm",
            attention_bias=False, mlp_bias=False, activation="gelu_tanh",
        )  # fmt: skip
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return Transformer(config)

    def parameters(self, width: int) -> int:
        """Return the number of weights of a width's model, without the embeddings."""
        with torch.device("meta"):
            return self.model(width).parameter_count() - 256 * width


MINI = Recipe(
    widths=(16, 32, 64),
    tokens=(30_720, 61_440, 122_880),
    seeds=(0,),
    rates=(0.35,),
    extra=(),
    held_out=(),
    validated_on=32_768,
)
"""A sweep of some 20 seconds, for watching."""


@dataclass(frozen=True)
class Run:
    """One training and its final loss.

    Attributes:
        width: width of the model.
        parameters: its weights without the embeddings, N.
        tokens: tokens that it was trained on, D.
        seed: seed of weights and order.
        learning_rate: peak learning rate.
        loss: loss on the validation tokens behind the last step, in nats a token.
        seconds: time of the training.
        purpose: ``tuning``, ``sweep`` or ``held out``.
    """

    width: int
    parameters: int
    tokens: int
    seed: int
    learning_rate: float
    loss: float
    seconds: float
    purpose: str = "sweep"

    @property
    def flops(self) -> float:
        """Floating-point operations of the training, 6 N D."""
        return compute.six_nd(self.parameters, self.tokens)


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, in the order in which they were done, with their recipe and machine."""

    recipe: Recipe
    runs: tuple[Run, ...] = ()
    machine: dict[str, Any] = field(default_factory=dict)

    def of(self, purpose: str = "sweep") -> tuple[Run, ...]:
        """Return the runs of one purpose: ``tuning``, ``sweep`` or ``held out``."""
        return tuple(run for run in self.runs if run.purpose == purpose)

    def columns(self, purpose: str = "sweep") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return parameters, tokens and losses of the runs of one purpose, as :func:`fit` takes them."""
        runs = self.of(purpose)
        parameters, tokens, losses = (
            np.array([getattr(run, name) for run in runs], dtype=float) for name in ("parameters", "tokens", "loss")
        )
        return parameters, tokens, losses

    def rate(self, width: int) -> float:
        """Return the learning rate of a width: the best one that was tried there.

        A width at which none was tried takes that of the next smaller one that was tuned, over its own width.
        """
        tried = [run for run in self.of("tuning") if run.width <= width]
        if not tried:
            return self.recipe.rates[0] / width
        best = min((run for run in tried if run.width == tried[-1].width), key=lambda run: run.loss)
        return best.learning_rate * best.width / width


def byte_row(corpus: str, split: str, progress: bool = False) -> UInt8[Tensor, " tokens"]:
    """Return the library corpus as one row of bytes, a zero byte behind each text.

    Args:
        corpus: size of :func:`course_utils.data.library_docs`.
        split: ``train`` or ``validation``.
        progress: show a progress bar where the corpus is read for the first time.
    """
    texts = library_docs(corpus, split, progress=progress)["text"]
    return torch.frombuffer(bytearray("".join(f"{text}\0" for text in texts).encode()), dtype=torch.uint8)


def sweep(
    recipe: Recipe | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    on_run: Callable[[Sweep], Any] | None = None,
    progress: bool = True,
) -> Sweep:
    """Train all models of a recipe; what is there already is not done again.

    First, for each width, the learning rates are tried where there are several; then come the runs of the sweep with
    the first seed, few tokens first, so that a part of it is of use; the held-out ones; the other seeds.

    Args:
        recipe: what to train; by default the recipe of the shipped sweep.
        path: JSON file that is read where it exists, and written after each run. A long run that was interrupted goes
            on from a checkpoint beside it.
        on_run: called after each run with the sweep so far.
        progress: show a progress bar over the FLOPs.

    Returns:
        All runs.

    Raises:
        ValueError: the file belongs to another recipe, the corpus is too small for the tokens, or a loss is not a
            finite number.
    """
    recipe = recipe or Recipe()
    done = Sweep(recipe, machine=_machine())
    file, first = Path(path) if path is not None else None, recipe.seeds[0]
    if file is not None and file.exists():
        done = load(file)
        if done.recipe != recipe:
            raise ValueError(f"{file} holds the sweep of another recipe, {done.recipe}: name another file")
    plan = [("tuning", width, recipe.tuned_at, first, rate) for width in recipe.widths for rate in recipe.rates]
    plan = plan if len(recipe.rates) > 1 else []
    pairs = [(width, tokens) for tokens in recipe.tokens for width in recipe.widths]
    plan += [("sweep", width, tokens, first, 0) for width, tokens in (*pairs, *recipe.extra)]
    plan += [("held out", width, tokens, first, 0) for width, tokens in recipe.held_out]
    again = [(width, tokens) for width, tokens in pairs if tokens <= recipe.repeated_to]
    plan += [("sweep", width, tokens, seed, 0) for seed in recipe.seeds[1:] for width, tokens in again]
    known = {(run.purpose, run.width, run.tokens, run.seed, run.learning_rate) for run in done.runs}
    sizes = {width: recipe.parameters(width) for _, width, *_ in plan}
    costs = [round(6e-9 * sizes[width] * tokens) for _, width, tokens, *_ in plan]
    windows, held = _windows(recipe, max(tokens for _, _, tokens, *_ in plan), progress)
    with progress_bar(sum(costs), "sweep", progress, unit="GFLOP") as bar:
        for (purpose, width, tokens, seed, factor), cost in zip(plan, costs, strict=True):
            rate = factor / width or done.rate(width)
            if (purpose, width, tokens, seed, rate) not in known:
                part = file and file.with_name(f"{file.name}.{width}-{tokens}-{seed}.part")
                loss, seconds = _train(recipe, windows, held, width, tokens, seed, rate, part)
                run = Run(width, sizes[width], tokens, seed, rate, loss, seconds, purpose)
                done = dataclasses.replace(done, runs=(*done.runs, run))
                if file is not None:
                    save(done, file)
                if part is not None:
                    part.unlink(missing_ok=True)
                if on_run is not None:
                    on_run(done)
            bar.update(cost)
    return done


def save(done: Sweep, path: str | os.PathLike[str]) -> None:
    """Write a sweep as JSON, under a temporary name first.

    Args:
        done: the sweep.
        path: the file.
    """
    runs = ",\n  ".join(json.dumps(dataclasses.asdict(run)) for run in done.runs)
    head = json.dumps({"recipe": dataclasses.asdict(done.recipe), "machine": done.machine})
    mine = Path(f"{os.fspath(path)}.{os.getpid()}")
    mine.write_text(f'{head[:-1]}, "runs": [\n  {runs}\n]}}\n', encoding="utf-8")
    os.replace(mine, path)


def load(path: str | os.PathLike[str]) -> Sweep:
    """Read a sweep that :func:`save` wrote.

    Args:
        path: the file.

    Raises:
        ValueError: it holds no sweep.
    """
    return _parsed(Path(path).read_text(encoding="utf-8"), os.fspath(path))


def shipped() -> Sweep:
    """Return the sweep that ships with the course: see its ``recipe`` and ``machine``."""
    file = resources.files("course_utils").joinpath("scaling_sweep.json")
    return _parsed(file.read_text(encoding="utf-8"), "scaling_sweep.json")


def _parsed(text: str, name: str) -> Sweep:
    try:
        content = json.loads(text)
        recipe = {key: _tuples(value) for key, value in content["recipe"].items()}
        return Sweep(Recipe(**recipe), tuple(Run(**run) for run in content["runs"]), content["machine"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{name} holds no sweep ({error}): delete it, or name another file") from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _machine() -> dict[str, Any]:
    """What the times were measured on; on another machine the losses differ in their last digits."""
    versions = dict(python=platform.python_version(), torch=torch.__version__.split("+")[0])
    return dict(system=platform.system(), processor=platform.machine(), threads=torch.get_num_threads(), **versions)


def _windows(recipe: Recipe, most: int, progress: bool) -> tuple[Tensor, Tensor]:
    """Windows of the training and of the validation split, each of context + 1 tokens, (windows, context + 1)."""
    length = recipe.context
    rows = [byte_row(recipe.corpus, split, progress) for split in ("train", "validation")]
    train, held = (row.unfold(0, length + 1, length) for row in rows)  # each token is a target once
    for windows, tokens, split in ((train, most, "train"), (held, recipe.validated_on, "validation")):
        if tokens > len(windows) * length:
            raise ValueError(
                f"{tokens} tokens were asked for, but the {split} split of library_docs({recipe.corpus!r}) has "
                f"{len(windows) * length}: take fewer tokens or a larger corpus"
            )
    chosen = torch.randperm(len(held), generator=generator("scaling validation"))[: recipe.validated_on // length]
    return train, held[chosen]


def _train(
    recipe: Recipe, windows: Tensor, held: Tensor, width: int, tokens: int, seed: int, rate: float, part: Path | None
) -> tuple[float, float]:
    """Train one model; return its final loss on the validation windows, and the seconds of the training."""
    model, steps = recipe.model(width, seed), tokens // (recipe.context * recipe.batch)
    warmup = max(1, round(recipe.warmup * steps))
    settings: dict[str, Any] = dict(schedule="cosine", warmup=warmup, weight_decay=recipe.weight_decay)
    history = training.fit(
        model, {"input_ids": windows}, steps=steps, batch_size=recipe.batch, learning_rate=rate, betas=recipe.betas,
        seed=seed, loss=_loss, progress=False, checkpoint=part, checkpoint_every=2000, **settings,
    )  # fmt: skip
    loss = training.evaluate(model, {"input_ids": held}, batch_size=256, loss=_loss)
    if history.interrupted:
        raise KeyboardInterrupt
    if history.stopped or not math.isfinite(loss):
        raise ValueError(f"width {width}, learning rate {rate:.3g}: {history.stopped or 'the loss is ' + str(loss)}")
    return round(loss, 5), round(history.seconds, 1)


def _loss(model: torch.nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return training.next_token_loss(model, {"input_ids": batch["input_ids"].long()})


# --- power laws and Chinchilla's form


def power_law(x: Numbers, losses: Numbers) -> tuple[float, float]:
    """Fit ``loss = (scale / x)**exponent``: a straight line through the logarithms, by least squares.

    The form of Kaplan et al. (2020), equations 1.1 and 1.2, for parameters alone and for tokens alone. It has no floor:
    the loss goes to 0. It holds where neither of the others is a bottleneck.

    Args:
        x: parameters, tokens or FLOPs.
        losses: one for each x.

    Returns:
        Exponent and scale.

    Raises:
        ValueError: there are fewer than two different x, or a number is not above 0.
    """
    points = _positive(x=x, losses=losses)
    if len(set(points[0])) < 2:
        raise ValueError(f"x={list(points[0])}: expected two or more different values, a line needs them")
    slope, height = np.polyfit(np.log(points[0]), np.log(points[1]), 1)
    return float(-slope), float(np.exp(-height / slope))


def huber(residuals: Numbers, delta: float = 1e-3) -> float:
    """Sum of the Huber losses: squares, halved, up to ``delta``, and straight lines beyond (Huber 1964).

    Under least squares a point pulls the harder the further off it lies; here its pull stays that at ``delta``.

    Args:
        residuals: what was predicted less what was seen.
        delta: where the line begins; ``math.inf`` gives least squares.
    """
    size = np.abs(np.asarray(residuals, dtype=float))
    inside = np.minimum(size, delta)
    return float(np.sum(inside * (size - inside / 2)))


def allocation(flops: float, A: float, B: float, alpha: float, beta: float) -> tuple[float, float]:
    """Return the parameters and tokens with the lowest loss that a budget of FLOPs can buy.

    The minimum of ``A / N**alpha + B / D**beta`` where ``6 N D = flops`` (Hoffmann et al. 2022, equation 4).

    Args:
        flops: the budget.
        A: constant of the term of the parameters.
        B: constant of the term of the tokens.
        alpha: exponent of the parameters.
        beta: exponent of the tokens.

    Returns:
        N and D.

    Raises:
        ValueError: a number is not above 0.
    """
    _positive(flops=flops, A=A, B=B, alpha=alpha, beta=beta)
    parameters = (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (flops / 6) ** (beta / (alpha + beta))
    return parameters, flops / (6 * parameters)


@dataclass(frozen=True)
class Law:
    """The form ``L(N, D) = E + A / N**alpha + B / D**beta`` with its five constants.

    Attributes:
        E: loss that no size and no data take away: the entropy of the text, as far as the form is right.
        A: how much is lost for want of parameters: ``A / N**alpha`` nats.
        B: how much is lost for want of tokens: ``B / D**beta`` nats.
        alpha: exponent of the parameters.
        beta: exponent of the tokens.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def parts(self, parameters: Numbers | float, tokens: Numbers | float) -> tuple[Any, Any]:
        """Return what is lost for want of parameters, and for want of tokens. The larger part is the bottleneck."""
        of_size = self.A / np.asarray(parameters, dtype=float) ** self.alpha
        return of_size, self.B / np.asarray(tokens, dtype=float) ** self.beta

    def loss(self, parameters: Numbers | float, tokens: Numbers | float) -> Any:
        """Return the loss that the law states, one for each pair."""
        of_size, of_data = self.parts(parameters, tokens)
        return self.E + of_size + of_data

    def optimum(self, flops: float) -> tuple[float, float]:
        """Return the best parameters and tokens for a budget; see :func:`allocation`."""
        return allocation(flops, self.A, self.B, self.alpha, self.beta)

    def enough(self, parameters: float, tokens: float) -> float:
        """Return which share of a training's FLOPs reaches the same loss if they are divided as :meth:`optimum` says.

        On the best divisions the loss above E falls as ``C**-(alpha * beta / (alpha + beta))``.

        Args:
            parameters: N of the training.
            tokens: D of the training.
        """
        best = self.loss(*self.optimum(compute.six_nd(parameters, tokens)))
        ratio = (best - self.E) / (self.loss(parameters, tokens) - self.E)
        return float(ratio ** ((self.alpha + self.beta) / (self.alpha * self.beta)))

    @property
    def exponents(self) -> tuple[float, float]:
        """How the best parameters and tokens grow with the FLOPs: a and b of ``N ~ C**a`` and ``D ~ C**b``."""
        return self.beta / (self.alpha + self.beta), self.alpha / (self.alpha + self.beta)


CHINCHILLA = Law(1.69337368, 406.401018, 410.722827, 0.33917084, 0.2849083)
"""Hoffmann et al. (2022), equation 10; the digits behind those printed stand in the source of the paper's text (quoted
by Besiroglu et al. 2024): with the constants as printed, the optimum moves by a fifth."""
REPLICATED = Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658)
"""Besiroglu et al. (2024), table 1: the same form, fitted anew to the points of the paper's figure 4. They find the
published constants at odds with the paper's two other approaches, and their intervals too narrow to be true."""


def fit(parameters: Numbers, tokens: Numbers, losses: Numbers, *, delta: float = 1e-3) -> Law:
    """Fit Chinchilla's form: the Huber loss of the log-losses' residuals, by L-BFGS from a grid of starts.

    Hoffmann et al. (2022), section 3.3 and appendix D.2. Two things are done for the optimizer's sake: the logarithms
    are centred, and the sum is divided by ``delta**2``. Where it is too small, L-BFGS ends early: so it did for the
    published constants, because the losses were averaged, as one of the authors confirmed (Besiroglu et al. 2024).

    Args:
        parameters: N of each run.
        tokens: D of each run.
        losses: final loss of each run, in nats.
        delta: where the Huber loss turns from squares to lines; ``math.inf`` gives least squares.

    Returns:
        The law.

    Raises:
        ValueError: the columns differ in length, hold numbers that are not above 0, or there are fewer than six runs,
            three sizes or three numbers of tokens: five constants need them.
    """
    points = _checked(parameters, tokens, losses, delta)
    spread = np.log(points[2])
    starts = []
    for alpha in (0.2, 0.5, 1.0):
        for beta in (0.2, 0.5, 1.0):
            for share in (0.3, 0.6, 0.9):  # of the mean loss that is E; the rest is halved between the two terms
                rest = math.log((1 - share) / 2)
                starts.append(
                    [spread.mean() + rest, spread.mean() + rest, spread.mean() + math.log(share), alpha, beta]
                )
    return _minimised(points, np.array(starts), delta)


def _checked(parameters: Numbers, tokens: Numbers, losses: Numbers, delta: float) -> np.ndarray:
    """The columns as one array, (3, runs)."""
    points = _positive(parameters=parameters, tokens=tokens, losses=losses)
    sizes, counts = len(set(points[0])), len(set(points[1]))
    if points.shape[1] < 6 or sizes < 3 or counts < 3:
        raise ValueError(
            f"{points.shape[1]} runs of {sizes} sizes and {counts} numbers of tokens: expected six runs or more, and "
            "three or more of each, to fit five constants"
        )
    if not delta > 0:
        raise ValueError(f"delta={delta}: expected a number above 0, such as 1e-3")
    return points


def _minimised(points: np.ndarray, starts: np.ndarray, delta: float) -> Law:
    """The best of the minima that L-BFGS finds from the starts, each (a, b, log E, alpha, beta) on centred logs."""
    from scipy.optimize import minimize

    logs = np.log(points)
    middle_n, middle_d, _ = logs.mean(1)
    runs, scale = points.shape[1], 1 / min(delta, 1e-3) ** 2
    terms_of = np.zeros((5, 3, runs))  # the three terms' logarithms are linear in theta
    terms_of[[0, 1, 2], [0, 1, 2]] = 1
    terms_of[3, 0], terms_of[4, 1] = middle_n - logs[0], middle_d - logs[1]
    flat = terms_of.reshape(5, -1)

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        terms = (theta @ flat).reshape(3, runs)
        top = terms.max(0)
        terms = np.exp(terms - top)
        total = terms.sum(0)
        residuals = top + np.log(total) - logs[2]
        pull = np.clip(residuals, -delta, delta) / total  # slope of the Huber loss
        return scale * huber(residuals, delta), scale * (flat @ (terms * pull).ravel())

    limits = [(None, None)] * 3 + [(0, 5)] * 2
    found = [
        minimize(objective, start, jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": 500, "ftol": 1e-12})
        for start in starts
    ]
    a, b, e, alpha, beta = min(found, key=lambda one: one.fun).x
    return Law(*map(float, (np.exp(e), np.exp(a + alpha * middle_n), np.exp(b + beta * middle_d), alpha, beta)))


def _positive(**columns: Numbers | float) -> np.ndarray:
    """The columns as one array; numbers above 0, all columns alike long."""
    arrays = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    if len({array.shape for array in arrays.values()}) > 1:
        lengths = ", ".join(f"{array.size} {name}" for name, array in arrays.items())
        raise ValueError(f"got {lengths}: expected one of each for each run")
    for name, array in arrays.items():
        if not (np.isfinite(array) & (array > 0)).all():
            raise ValueError(f"{name}={array.tolist()}: expected finite numbers above 0")
    return np.stack(list(arrays.values()))


# --- how far to trust a fit


@dataclass(frozen=True)
class Fit:
    """A law, and the laws that resampled runs give: their spread says how far to trust it.

    Attributes:
        law: fitted to all runs.
        draws: one law for each resampling.
        residuals: log-loss of the law less that of each run.
        r_squared: share of the variance of the losses that the law explains.
    """

    law: Law
    draws: tuple[Law, ...]
    residuals: Float[np.ndarray, " runs"]
    r_squared: float

    def interval(self, of: str | Callable[[Law], float], level: float = 0.95) -> tuple[float, float]:
        """Return the bootstrap interval of a constant, or of any number that follows from a law.

        Args:
            of: ``E``, ``A``, ``B``, ``alpha``, ``beta``, or a function of the law.
            level: share of the draws inside.
        """
        number = (lambda law: getattr(law, of)) if isinstance(of, str) else of
        return _percentiles([number(law) for law in self.draws], level)

    def predict(self, parameters: float, tokens: float, level: float = 0.95, seed: int = 0) -> "Prediction":
        """Predict the loss of a run that was not fitted.

        Its interval holds what the constants leave open (the draws) and what one run differs from any law (a residual,
        drawn with each). It knows nothing of a law that stops holding outside the sweep.

        Args:
            parameters: N of the run.
            tokens: D of the run.
            level: share of the draws inside.
            seed: seed of the draw of residuals.
        """
        misses = np.random.default_rng(seed).choice(self.residuals, len(self.draws))
        values = [law.loss(parameters, tokens) * math.exp(-miss) for law, miss in zip(self.draws, misses, strict=True)]
        return Prediction(float(self.law.loss(parameters, tokens)), *_percentiles(values, level))


@dataclass(frozen=True)
class Prediction:
    """A predicted loss with its interval, in nats."""

    value: float
    low: float
    high: float

    def score(self, seen: float) -> tuple[float, bool]:
        """Return the error, predicted less seen, and whether what was seen lies inside the interval."""
        return self.value - seen, self.low <= seen <= self.high


def bootstrap(
    parameters: Numbers,
    tokens: Numbers,
    losses: Numbers,
    *,
    draws: int = 200,
    delta: float = 1e-3,
    seed: int = 0,
    progress: bool = False,
) -> Fit:
    """Fit the law, and again to runs drawn with replacement.

    Runs with the same parameters and tokens are drawn together: they miss the law in the same direction, so they are
    not as good as independent. A draw with too few sizes or numbers of tokens for a fit is drawn again.

    Args:
        parameters: N of each run.
        tokens: D of each run.
        losses: final loss of each run.
        draws: number of resamplings.
        delta: as for :func:`fit`.
        seed: seed of the draws.
        progress: show a progress bar.

    Returns:
        The fit.

    Raises:
        ValueError: as for :func:`fit`, or there are no draws.
    """
    if draws < 1:
        raise ValueError(f"draws={draws}: expected 1 or more, 200 for a 95 % interval")
    points = _checked(parameters, tokens, losses, delta)
    law = fit(parameters, tokens, losses, delta=delta)
    cells, place = np.unique(points[:2], axis=1, return_inverse=True)
    members = [np.flatnonzero(place == cell) for cell in range(cells.shape[1])]
    chance = np.random.default_rng(seed)
    laws: list[Law] = []
    with progress_bar(draws, "bootstrap", progress, unit="fit") as bar:
        while len(laws) < draws:
            picked = [members[cell] for cell in chance.integers(len(members), size=len(members))]
            drawn = points[:, np.concatenate(picked)]
            if min(len(set(drawn[0])), len(set(drawn[1]))) >= 3:
                laws.append(_minimised(drawn, _start(law, drawn), delta))
                bar.update()
    residuals = np.log(law.loss(points[0], points[1])) - np.log(points[2])
    return Fit(law, tuple(laws), residuals, r_squared(law, *points))


def r_squared(law: Law, parameters: Numbers, tokens: Numbers, losses: Numbers) -> float:
    """Return the share of the variance of the losses that a law explains: 1 for all of it.

    Args:
        law: the law.
        parameters: N of each run.
        tokens: D of each run.
        losses: final loss of each run.
    """
    seen = np.asarray(losses, dtype=float)
    return float(1 - np.sum((seen - law.loss(parameters, tokens)) ** 2) / np.sum((seen - seen.mean()) ** 2))


def _start(law: Law, points: np.ndarray) -> np.ndarray:
    """A law as a start on the centred logarithms of these points."""
    middle_n, middle_d = np.log(points[:2]).mean(1)
    a, b = math.log(law.A) - law.alpha * middle_n, math.log(law.B) - law.beta * middle_d
    return np.array([[a, b, math.log(law.E), law.alpha, law.beta]])


def _percentiles(values: Sequence[float], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a share between 0 and 1, such as 0.95")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# --- budgets


def vertex(sizes: Numbers, losses: Numbers) -> float:
    """Return the size at the lowest point of a parabola through losses over the logarithms of sizes.

    Approach 2 of Hoffmann et al. (2022), section 3.2.

    Args:
        sizes: parameters of models that cost the same FLOPs.
        losses: one for each.

    Raises:
        ValueError: there are fewer than three different sizes, or the parabola has no lowest point.
    """
    points = _positive(sizes=sizes, losses=losses)
    if len(set(points[0])) < 3:
        raise ValueError(f"sizes={list(points[0])}: expected three or more different ones, a parabola needs them")
    logs = np.log(points[0])
    square, slope, _ = np.polyfit(logs - logs.mean(), points[1], 2)
    if square <= 0:
        raise ValueError(
            f"losses={list(points[1])}: these bend downwards, so no size is best; take more or other sizes"
        )
    return float(np.exp(logs.mean() - slope / (2 * square)))


@dataclass(frozen=True)
class Profile:
    """Losses of models of several sizes that cost the same.

    Attributes:
        flops: the budget.
        sizes: parameters of the models.
        losses: loss of each, where ``6 N D`` is the budget.
        best: parameters at the lowest point of the parabola through them.
    """

    flops: float
    sizes: tuple[float, ...]
    losses: tuple[float, ...]
    best: float

    @property
    def tokens(self) -> float:
        """Tokens of the best size."""
        return self.flops / (6 * self.best)


def isoflop(parameters: Numbers, tokens: Numbers, losses: Numbers, budgets: Numbers) -> list[Profile]:
    """Cut a sweep along lines of equal FLOPs and find the best size on each (Hoffmann et al. 2022, section 3.2).

    The loss of a size at the tokens that a budget buys is read between its own runs, on straight lines between the
    logarithms; never beyond them. Runs with the same parameters and tokens are averaged.

    Args:
        parameters: N of each run.
        tokens: D of each run.
        losses: final loss of each run.
        budgets: FLOPs.

    Returns:
        A profile for each budget whose best size lies between the smallest and the largest that the sweep has there.
    """
    points = _positive(parameters=parameters, tokens=tokens, losses=losses)
    profiles = []
    for flops in budgets:
        sizes, found = [], []
        for size in np.unique(points[0]):
            own = points[:, points[0] == size]
            counts = np.unique(own[1])
            means = [np.log(own[2][own[1] == count]).mean() for count in counts]
            wanted = flops / (6 * size)
            if counts[0] <= wanted * (1 + 1e-9) and wanted <= counts[-1] * (1 + 1e-9):
                sizes.append(float(size))
                found.append(float(np.exp(np.interp(np.log(wanted), np.log(counts), means))))
        try:
            best = vertex(sizes, found)
        except ValueError:
            continue
        if sizes[0] <= best <= sizes[-1]:
            profiles.append(Profile(float(flops), tuple(sizes), tuple(found), best))
    return profiles


def frontier(budgets: Numbers, best: Numbers) -> tuple[float, float]:
    """Fit ``best = factor * flops**exponent``, as for the best sizes of :func:`isoflop`'s profiles.

    Args:
        budgets: FLOPs.
        best: parameters, or tokens, that are best for each.

    Returns:
        Exponent and factor.

    Raises:
        ValueError: as for :func:`power_law`.
    """
    exponent, scale = power_law(budgets, best)
    return -exponent, scale**exponent


def chinchilla(flops: float) -> tuple[float, float]:
    """Return parameters and tokens by the rule of 20 tokens a parameter.

    The rule is no sentence of Hoffmann et al. (2022): it is read off table 3, where 1 billion parameters go with 20.2
    billion tokens and 67 billion with 1.5 trillion. Both then grow as ``flops**0.5``.

    Args:
        flops: the budget, 6 N D.
    """
    _positive(flops=flops)
    parameters = math.sqrt(flops / (6 * 20))
    return parameters, 20 * parameters


def kaplan(flops: float) -> tuple[float, float]:
    """Return parameters and tokens by the advice of 2020: most of a larger budget goes into parameters.

    ``N = 1.3e9 * C**0.73`` with C in petaFLOP/s-days and N without embeddings (Kaplan et al. 2020, appendix A, table
    6); the tokens are what the budget then pays, ``C / 6 N``. Their C is that of a training with small batches.

    Args:
        flops: the budget, 6 N D.
    """
    _positive(flops=flops)
    parameters = 1.3e9 * compute.petaflop_days(flops) ** 0.73
    return parameters, flops / (6 * parameters)


RATIO_COLUMNS = (
    "model", "N", "D", "tokens a parameter", "trained", "best N for its FLOPs", "FLOPs enough", "source of N and D"
)  # fmt: skip


def ratio_rows(runs: Iterable[compute.Run] | None = None, law: Law = REPLICATED) -> list[tuple[str, ...]]:
    """Return a row of texts for each published training, under ``RATIO_COLUMNS``: is it under- or over-trained?

    Measured by the rule of 20 tokens a parameter, with a factor of 2 left open on either side. Over-trained is no
    blame: a smaller model than the best one for its training costs less each time that it is used.

    Args:
        runs: published trainings, each with its source; by default all of ``compute.RUNS``.
        law: law that says which share of the FLOPs would have been enough for the same loss, see :meth:`Law.enough`;
            its constants are those of one text and one tokenizer, so this is a rough guide.
    """
    rows: list[tuple[str, ...]] = []
    for run in compute.RUNS.values() if runs is None else runs:
        ratio, flops = run.tokens / run.parameters, compute.six_nd(run.parameters, run.tokens)
        verdict = "under" if ratio < 10 else "over" if ratio > 40 else "about right"
        best = compute.shown(chinchilla(flops)[0])
        counts = compute.shown(run.parameters), compute.shown(run.tokens)
        share, source = f"{law.enough(run.parameters, run.tokens):.0%}", f"{run.paper}, {run.counts}"
        rows.append((run.name, *counts, f"{ratio:,.1f}", verdict, best, share, source))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m course_utils.scaling``: run the sweep, or go on with it, and print the fit.

    Args:
        arguments: those of the command line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m course_utils.scaling", description="Train a sweep and fit its losses."
    )
    parser.add_argument(
        "--out", default="scaling_sweep.json", help="file of the sweep; where it exists, it is gone on with"
    )
    parser.add_argument("--mini", action="store_true", help="the sweep of some 20 seconds in place of that of an hour")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    def tell(done: Sweep) -> None:
        run = done.runs[-1]
        print(
            f"{run.purpose:9} N={run.parameters:>9,} D={run.tokens:>9,} seed {run.seed} "
            f"rate {run.learning_rate:.4f} loss {run.loss:.4f} {run.seconds:7.1f} s",
            flush=True,
        )

    done = sweep(MINI if options.mini else Recipe(), options.out, on_run=tell)
    fitted = bootstrap(*done.columns())
    print(f"R squared {fitted.r_squared:.4f}")
    for name in ("E", "A", "B", "alpha", "beta"):
        low, high = fitted.interval(name)
        print(f"{name:5} {getattr(fitted.law, name):10.4g}   95 %: {low:.4g} to {high:.4g}")
    for run in done.of("held out"):
        guess = fitted.predict(run.parameters, run.tokens)
        what = f"N={run.parameters:,} D={run.tokens:,}: predicted {guess.value:.4f}"
        print(f"{what} ({guess.low:.4f} to {guess.high:.4f}), seen {run.loss:.4f}")


if __name__ == "__main__":
    main()
