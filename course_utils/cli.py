"""The ``course`` command: what one would otherwise have to remember, under one name."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

    from course_utils.finetuning import Prepared, Scores
    from course_utils.models import Loaded
    from course_utils.recipes import Recipe
    from course_utils.training import History

app = typer.Typer(
    help="Open, check and run the course.", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
SAY_S = 5.0
"""How long a rank with an error waits for rank 0 to say it."""
Targets = Annotated[
    list[str] | None, typer.Argument(help="Weeks (week1 or 1), names or paths; all when none is named.")
]


def _fail(error: Exception | str) -> typer.Exit:
    typer.echo(f"course: {error}", err=True)
    return typer.Exit(1)


def _root() -> Path:
    from course_utils.notebooks import course_root

    try:
        return course_root()
    except FileNotFoundError as error:
        raise _fail(error) from None


def _found(targets: list[str] | None) -> list[Path]:
    from course_utils.notebooks import find

    try:
        return find(targets or [], _root())
    except ValueError as error:
        raise _fail(error) from None


@app.command(context_settings=PASS_ON)
def lab(context: typer.Context) -> None:
    """Open JupyterLab on the first notebook. Further options go to JupyterLab (--no-browser, --port 9000...)."""
    root = _root()
    if not _installed("jupyterlab"):
        raise _fail("JupyterLab is not installed here: pip install -e '.[dev]'")
    options = [
        f"--ServerApp.root_dir={root}",
        "--ServerApp.ip=127.0.0.1",
        "--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append(
            "--allow-root"
        )  # containers: the server still listens on this machine only, and asks for its token
    command = [sys.executable, "-m", "jupyterlab", *options, *context.args]
    try:
        code = subprocess.call(command, cwd=root, env=_lab_environment())
    except KeyboardInterrupt:
        code = 0
    raise typer.Exit(code)


def _lab_environment() -> dict[str, str]:
    """The environment of JupyterLab: no pop-up about news, which a learner offline cannot get anyway."""
    ours = str(Path(__file__).parent / "lab_settings")
    return {
        **os.environ,
        "JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, [ours, os.environ.get("JUPYTER_CONFIG_PATH")])),
    }


@app.command()
def doctor() -> None:
    """Say whether this machine is ready for the course, and what to do where it is not."""
    from course_utils.doctor import examine

    well = True
    for finding in examine():
        typer.echo(str(finding))
        well = well and finding.well
    raise typer.Exit(0 if well else 1)


@app.command()
def run(
    targets: Targets = None,
    output: Annotated[Path | None, typer.Option(help="Keep the executed copies in this folder.")] = None,
) -> None:
    """Run copies of notebooks and print a table: notebook, seconds, peak memory, verdict. The files stay untouched."""
    import nbformat

    from course_utils.notebooks import execute, write

    def one(path: Path, on_cell: object) -> object:
        notebook, result = execute(path, on_cell)  # type: ignore[arg-type]
        if output:
            output.mkdir(parents=True, exist_ok=True)
            write(output / path.name, nbformat.writes(notebook))
        return result

    _with_table(_found(targets), one)


@app.command()
def notebooks(targets: Targets = None) -> None:
    """Execute notebooks in the laptop profile and write them back, cleaned (for those who change them)."""
    from course_utils.notebooks import refresh

    _with_table(_found(targets), refresh)


def _with_table(paths: list[Path], work: object) -> None:
    """Run ``work(path, on_cell)`` for each notebook under a progress bar, then print the table."""
    import json

    from rich.console import Console
    from rich.table import Table
    from tqdm.auto import tqdm

    runs = []
    for path in paths:
        cells = len(json.loads(path.read_text(encoding="utf-8"))["cells"])
        with tqdm(total=cells, desc=path.stem, unit="cell") as bar:

            def on_cell(done: int, bar: tqdm = bar) -> None:
                bar.update(done - bar.n)

            try:
                runs.append(work(path, on_cell))  # type: ignore[operator]
            except KeyboardInterrupt:
                typer.echo("interrupted: what ran so far")
                break
    table = Table("notebook", "seconds", "peak RAM", "verdict")
    for result in runs:
        memory = f"{result.peak_bytes / 1e9:.2f} GB"
        table.add_row(result.path.stem, f"{result.seconds:.1f}", memory, result.error or "passed")
    Console().print(table)
    raise typer.Exit(1 if len(runs) < len(paths) or any(result.error for result in runs) else 0)


@app.command(context_settings=PASS_ON)
def test(context: typer.Context) -> None:
    """Run every test, the notebooks included. Further options go to pytest (-n 2, -k attention...)."""
    if not _installed("pytest"):
        raise _fail("pytest is not installed here: pip install -e '.[dev]'")
    raise typer.Exit(subprocess.call([sys.executable, "-m", "pytest", *context.args], cwd=_root()))


def _recipe(name: str) -> "Recipe":
    from course_utils.recipes import recipes

    if name not in recipes():
        raise _fail(f"there is no embedded model {name!r}; expected one of {', '.join(recipes())}")
    return recipes()[name]


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="course-decoder, course-encoder, course-seq2seq..., or tokenizer")],
    steps: Annotated[int | None, typer.Option(min=1, help="Fewer steps than the recipe's, for a trial.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the model; by default where it ships.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and data.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default CUDA where it is.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the CPU.")] = 1,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")] = 50,
) -> None:
    """Train an embedded model. Stopped or killed, it goes on from its last checkpoint when called again."""
    from course_utils.recipes import train as train_model
    from course_utils.recipes.tokenizer import train_tokenizer

    if name == "tokenizer":
        typer.echo(train_tokenizer())
        return
    try:
        folder = train_model(
            _recipe(name),
            output,
            steps=steps,
            seed=seed,
            device=device,
            threads=threads,
            checkpoint_every=checkpoint_every,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise _fail(error) from None
    typer.echo(folder)


@app.command()
def finetune(
    model: Annotated[str, typer.Option(help="Role (decoder, encoder...), embedded name, hub id or folder.")],
    data: Annotated[
        str, typer.Option(help="Task, dialogsum, sst2, or files: a folder, or one of which a tenth is held out.")
    ],
    method: Annotated[str, typer.Option(help="full or lora.")] = "full",
    output: Annotated[Path, typer.Option(help="Folder for what was learned, and for the training's state.")] = Path(
        "finetuned"
    ),
    merge: Annotated[bool, typer.Option("--merge", help="Of LoRA write the merged model, not the adapter.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Number of updates.")] = 200,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate; by default 1e-3, lora 3e-3. Large models want a tenth.")
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Steps in which the learning rate rises.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples an update, all processes together.")] = 16,
    accumulate: Annotated[int, typer.Option(min=1, help="Parts that a batch is cut into.")] = 1,
    rank: Annotated[int, typer.Option(min=1, help="Rank of LoRA's matrices.")] = 8,
    longest: Annotated[int | None, typer.Option(min=1, help="Leave out examples of more tokens than this.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16: type of autocast.")] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute blocks twice to save memory.")
    ] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the model (torch.compile).")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Out of memory, cut batches into more parts.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order, of new weights and of dropout.")] = 0,
    items: Annotated[int, typer.Option(min=1, help="Held-out items of the measures before and after.")] = 200,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")] = 50,
    strategy: Annotated[str | None, typer.Option(help="On several processes: ddp, zero2 or fsdp.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="How many there must be; else it refuses.")] = None,
) -> None:
    """Fine-tune a model and measure it before and after. Stopped or killed, it goes on when called again.

    On several processes: torchrun --standalone --nproc_per_node=2 -m course_utils.cli finetune ... or
    accelerate launch --multi_gpu --num_processes=2 -m course_utils.cli finetune ... (also where there is no GPU).
    """
    number = int(os.environ.get("RANK", "0"))
    if number:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from course_utils import distributed, finetuning, models

    try:
        kind = _autocast(dtype)
        ranks = distributed.start(strategy, processes=processes, timeout=3600)
        ranks.agreed(lambda: _room(output))
        loaded = models.load(model, device=ranks.device)
        train, held_out = _prepared(loaded, data, seed, items, longest)
        path = ranks.agreed(lambda: _state(output, repr((loaded.name, train.examples))))
        loaded = finetuning.with_head(loaded, train, seed)
        scores = {"before": finetuning.measure(loaded, held_out)} if number == 0 else {}
        tuned = finetuning.finetune(
            loaded, train, method=method, steps=steps, learning_rate=learning_rate, warmup=warmup,
            batch_size=batch_size, accumulate=accumulate, rank=rank, dtype=kind, checkpointing=checkpointing,
            compile=compile, retry=retry, seed=seed, checkpoint=path, checkpoint_every=checkpoint_every,
            processes=ranks, inplace=True,
        )  # fmt: skip
        history = tuned.history
        if history.stopped:
            if number:  # rank 0 says it
                time.sleep(SAY_S)
                _leave(1)
            goes_on = "; the same command goes on from there" if history.interrupted else ""
            raise ValueError(f"{history.stopped}{goes_on}")
        if number == 0:
            scores["after"] = finetuning.measure(tuned.loaded, held_out)
            finetuning.scores_table(scores)
            _results(output, history, scores)
            folder = tuned.save_merged(output) if merge else tuned.save(output)
            path.unlink(missing_ok=True)
            typer.echo(f"loss {history.losses[0]:.3f} at step 1, {history.losses[-1]:.3f} at step {history.steps}")
            typer.echo(
                f"trained {tuned.trained:,} of {tuned.parameters:,} parameters on {ranks.world} process(es): {folder}"
            )
    except distributed.RankLost as error:
        if error.first:
            typer.echo(f"course: {error}", err=True)
        _leave(1)
    except (ValueError, RuntimeError, OSError) as error:
        if number:  # a wrong setting is wrong on all ranks: one says so, after which the launcher ends the others
            time.sleep(SAY_S)
        typer.echo(f"course: {f'rank {number}: ' if number else ''}{error}", err=True)
        _leave(1)
    _leave(0)


def _room(output: Path) -> None:
    """Make the folder, and see that something can be written into it and nothing of worth is there."""
    if any(output.glob("*model*.safetensors")):
        raise ValueError(f"{output} holds a model already: name another folder with --output, or delete that one")
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ValueError(f"--output {output}: no folder that can be written to ({error.strerror})") from None


def _state(output: Path, job: str) -> Path:
    """Return the file for the training's state, which only the same job on the same examples has."""
    path = output / f"training-{hashlib.sha256(job.encode()).hexdigest()[:8]}.safetensors"
    for other in output.glob("training-*.safetensors"):
        if other != path:
            raise ValueError(
                f"{other} is the state of a training of another model, or on other data: name another folder with "
                f"--output, or delete that file"
            )
    return path


def _results(output: Path, history: "History", scores: "dict[str, Scores]") -> None:
    """Write the losses and the measures (value, low, high) into the folder."""
    import json

    measures = {
        when: {name: [found[name].value, found[name].low, found[name].high] for name in found.names}
        for when, found in scores.items()
    }
    temporary = output / "results.json.tmp"
    temporary.write_text(json.dumps({"history": dataclasses.asdict(history), "measures": measures}), encoding="utf-8")
    temporary.replace(output / "results.json")


def _leave(code: int) -> None:
    """End this process; one of several at once, since the farewells of the libraries would wait for the others."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise typer.Exit(code)


def _autocast(name: str | None) -> "torch.dtype | None":
    """The type of autocast: what is asked for here, else by ``accelerate launch --mixed_precision``."""
    import torch

    if name is None:
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        name = {"bf16": "bfloat16", "fp16": "float16"}.get(precision)
    if name not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"--dtype {name}: expected float32, bfloat16 or float16")
    return getattr(torch, name) if name else None


def _prepared(loaded: "Loaded", data: str, seed: int, items: int, longest: int | None) -> "tuple[Prepared, Prepared]":
    """Examples to train on, and held-out ones: of a single file a tenth, at most ``items``."""
    import random

    from course_utils.data.hub import KINDS, _read
    from course_utils.finetuning import prepare

    same: dict[str, Any] = dict(seed=seed, longest=longest)
    file = Path(data).expanduser()
    if not file.is_file():
        train = prepare(loaded, data, **same)
        if train.labels:  # the held-out part may have fewer
            same["labels"] = train.labels
        return train, prepare(loaded, data, split="held_out", items=items, **same)
    if file.suffix not in KINDS:
        raise ValueError(f"{data}: expected a file that ends in {', '.join(KINDS)}")
    whole = prepare(loaded, _read(file), **same)
    if len(whole) < 2:
        raise ValueError(f"{data}: one example; expected two or more, since a tenth is held out")
    order = random.Random(seed).sample(range(len(whole)), len(whole))
    held = max(1, min(items, len(whole) // 10))

    def part(places: list[int]) -> "Prepared":
        return dataclasses.replace(
            whole,
            name=file.name,
            examples=[whole.examples[place] for place in places],
            prompts=tuple(whole.prompts[place] for place in places),
            targets=tuple(whole.targets[place] for place in places),
        )

    return part(order[held:]), part(order[:held])


@app.command()
def evaluate(
    names: Annotated[list[str] | None, typer.Argument(help="Embedded models; all when none is named.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small part only, in seconds; no card is written.")] = False,
) -> None:
    """Measure embedded models on held-out data and write their cards into supplemental/cards."""
    from rich.console import Console
    from rich.table import Table

    from course_utils.recipes import evaluate as measure
    from course_utils.recipes import recipes, write_card

    well = True
    for recipe in [_recipe(name) for name in names or recipes()]:
        try:
            results = measure(recipe, quick=quick)
        except ValueError as error:
            raise _fail(error) from None
        table = Table("what", "value", "95 % interval", "counted on", title=recipe.name)
        for result in results:
            bounds = [f">= {result.at_least:g}"] if result.at_least is not None else []
            bounds += [f"<= {result.at_most:g}"] if result.at_most is not None else []
            verdict = f"{' '.join(bounds)} {'yes' if result.holds else 'NO'}" if bounds else ""
            interval = f"{result.low:.3f} to {result.high:.3f}"
            table.add_row(result.name, f"{result.value:.3f} {result.unit}".strip(), interval, verdict)
            well = well and (quick or result.holds)
        Console().print(table)
        if not quick:
            typer.echo(write_card(recipe, results, _root() / "supplemental" / "cards"))
    raise typer.Exit(0 if well else 1)


models_app = typer.Typer(help="List the course's models; fetch the hub's for use without a network; pin them.")
app.add_typer(models_app, name="models")


@models_app.callback(invoke_without_command=True)
def models_list(context: typer.Context) -> None:
    """List the models: which role they play, how large they are, and which hub models are on this machine."""
    if context.invoked_subcommand:
        return
    from rich.console import Console
    from rich.table import Table

    from course_utils.models import cached, embedded_models, hub_models
    from course_utils.models.registry import roles_of, sizes

    table = Table("model", "family", "role", "profile", "parameters", "MB", "licence", "notebooks", "here")
    for model in [*embedded_models().values(), *hub_models().values()]:
        if model.embedded:
            here = "embedded" if model.parameters else "missing"
        else:
            here = "cached" if cached(model.name) else "no"
        profile = "laptop" if model.embedded else "gpu"
        used = ", ".join(model.notebooks)
        table.add_row(model.name, model.family, roles_of(model.name), profile, *sizes(model), model.licence, used, here)
    Console().print(table)


@models_app.command("fetch")
def models_fetch(
    names: Annotated[
        list[str] | None, typer.Argument(help="Hub ids, or their last parts; all when none is named.")
    ] = None,
    week: Annotated[int | None, typer.Option(help="Only the models that this week uses.")] = None,
) -> None:
    """Fetch hub models, so that they load without a network. Run it again after an interruption: it goes on."""
    from course_utils.models import HubError, fetch, hub_models

    hub = {name: model for name, model in hub_models().items() if week is None or week in model.weeks}
    if not hub:
        typer.echo(f"week {week} uses no hub model")
    short = {name.split("/")[1]: name for name in hub}
    failed = False
    for name in [short.get(name, name) for name in names] if names else list(hub):
        try:
            snapshot = fetch(name)
            size = sum(size for size, _ in snapshot.files.values()) / 1e6
            typer.echo(f"{name}: {size:.1f} MB in {snapshot.folder}")
        except (HubError, ValueError) as error:
            failed = True
            typer.echo(f"course: {error}", err=True)
    raise typer.Exit(1 if failed else 0)


@models_app.command("pin")
def models_pin() -> None:
    """Write the newest revisions of the hub models into the lock file, and the README's table again."""
    from course_utils.models import HubError, pin

    results = pin()
    for name, result in results.items():
        if isinstance(result, HubError):
            typer.echo(f"course: {result}", err=True)
        else:
            typer.echo(f"{name}: {result}")
    models_table()
    raise typer.Exit(1 if any(isinstance(result, HubError) for result in results.values()) else 0)


@models_app.command("table")
def models_table() -> None:
    """Write the table of models into the README."""
    from course_utils.models import write_table

    try:
        changed = write_table(_root() / "README.md")
    except ValueError as error:
        raise _fail(error) from None
    typer.echo(f"README.md {'changed' if changed else 'has this table already'}")


@app.command()
def colab(repository: Annotated[str, typer.Argument(help="OWNER/REPO on GitHub")]) -> None:
    """Write the repository's address into pyproject.toml, and from there into every badge and first cell."""
    from course_utils.notebooks import stamp

    root = _root()
    try:
        changed = stamp(repository, root)
    except ValueError as error:
        raise _fail(error) from None
    for path in changed:
        typer.echo(f"stamped {path.relative_to(root).as_posix()}")
    typer.echo(f"{len(changed)} files changed")


@app.command()
def papers(
    only: Annotated[
        list[str] | None, typer.Argument(help="Names such as vaswani-2017; all when none is named.")
    ] = None,
) -> None:
    """Download the papers that the course cites from arXiv into supplemental/papers (kept out of git)."""
    from course_utils.papers import download

    raise typer.Exit(download(_root() / "supplemental" / "papers", only=only or None))


@app.command()
def figures(only: Annotated[list[str] | None, typer.Argument(help="Names; all when none is named.")] = None) -> None:
    """Draw the pictures in images/ again from their code."""
    from course_utils.figures import render_all

    try:
        for path in render_all(_root() / "images", only=only or None):
            typer.echo(path.name)
    except ValueError as error:
        raise _fail(error) from None


def _installed(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


if __name__ == "__main__":
    app(prog_name="course")
