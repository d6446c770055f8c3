"""Speed against torch and transformers as ratios, so that a busy machine is fair; heads that form; the head viewer.

Run by ``make bench``. Each pair is timed alternately, and the ratio of each pair kept; the median and the range of the
ratios are shown. With ``--write`` the tables go to ``supplemental/benchmarks.md``; parts that were not run stay there.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from course_utils.attention import MultiHeadAttention, fused_attention
from course_utils.interpretability import watch_heads_form
from course_utils.transformer import Transformer, TransformerConfig
from tests.benchmarks import decoding, finetuning, memory, quantization, viewer

Row = tuple[str, list[float], str]
ROOT = Path(__file__).parents[2]


def timed(function: Callable[[], object], repeat: int = 1) -> float:
    """Return the seconds that a call takes."""
    begun = time.perf_counter()
    for _ in range(repeat):
        function()
    return time.perf_counter() - begun


def ratios(name: str, ours: Callable[[], object], theirs: Callable[[], object], pairs: int) -> list[float]:
    """Time both alternately, in changing order, after one warm-up, and return ours / theirs for each pair."""
    repeat = max(1, int(0.02 / max(timed(theirs), timed(ours), timed(theirs), 1e-9)))
    found = []
    for pair in tqdm(range(pairs), desc=name, leave=False):
        if pair % 2:
            first, second = timed(ours, repeat), timed(theirs, repeat)
        else:
            second, first = timed(theirs, repeat), timed(ours, repeat)
        found.append(first / second)
    return found


def attention_rows(quick: bool) -> list[Row]:
    """Our fused path, forward and backward, and our explicit path, against torch's kernel, causal, 8 heads of 64."""
    rows: list[Row] = []
    for tokens in (128, 512, 1024) if quick else (128, 512, 1024, 2048):
        query, key, value = (torch.randn(1, 8, tokens, 64, requires_grad=True) for _ in range(3))
        layer, hidden = MultiHeadAttention(512, 8), torch.randn(1, tokens, 512)

        def plain(query=query, key=key, value=value) -> None:
            F.scaled_dot_product_attention(query, key, value, is_causal=True).sum().backward()

        def ours(query=query, key=key, value=value) -> None:
            fused_attention(query, key, value, causal=True).sum().backward()

        def by_hand(layer=layer, hidden=hidden) -> None:
            parts = [F.linear(hidden, part.weight, part.bias) for part in (layer.query, layer.key, layer.value)]
            heads = [part.view(1, hidden.shape[1], 8, 64).transpose(1, 2) for part in parts]
            mixed = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
            layer.output(mixed).sum().backward()

        def module(layer=layer, hidden=hidden) -> None:
            layer(hidden, causal=True)[0].sum().backward()

        def explicit(layer=layer, hidden=hidden) -> None:
            layer(hidden, causal=True, return_weights=True)[0].sum().backward()

        pairs = 15 if quick else 31
        what = f"{tokens} tokens"
        rows.append((f"`fused_attention` / torch's SDPA, {what}", ratios(what, ours, plain, pairs), "at most 1.05"))
        rows.append(
            (
                f"`MultiHeadAttention` / SDPA and linear maps by hand, {what}",
                ratios(what, module, by_hand, pairs),
                "at most 1.05",
            )
        )
        rows.append((f"explicit / fused `MultiHeadAttention`, {what}", ratios(what, explicit, module, pairs // 2), ""))
    return rows


def training_rows(quick: bool) -> list[Row]:
    """Forward, loss and backward of GPT-2's small shape at 256 tokens, against transformers' GPT-2 with SDPA."""
    from transformers import GPT2Config, GPT2LMHeadModel

    options = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa")
    theirs = GPT2LMHeadModel(GPT2Config(**options)).train()
    config = TransformerConfig(
        vocabulary_size=50257,
        width=768,
        layers=12,
        heads=12,
        context_window=1024,
        positions="learned",
        activation="gelu_tanh",
    )
    ours = Transformer(config).train()
    assert ours.parameter_count() == sum(parameter.numel() for parameter in theirs.parameters())
    ids = torch.randint(0, 50257, (1, 256))

    def step(model: torch.nn.Module, **switches: bool) -> None:
        logits = model(ids, **switches).logits
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        model.zero_grad(set_to_none=True)

    pairs = 5 if quick else 15
    cacheless = {"use_cache": False}
    rows: list[Row] = [
        (
            "training step, GPT-2 small, 256 tokens / `transformers`",
            ratios("training step", lambda: step(ours), lambda: step(theirs, **cacheless), pairs),
            "at most 1.00",
        ),
        (
            "the same with every attention map returned / without",
            ratios("with maps", lambda: step(ours, return_attentions=True), lambda: step(ours), max(3, pairs // 3)),
            "",
        ),
    ]
    return rows


def import_rows(quick: bool) -> list[Row]:
    """Seconds of CPU time that our imports add to ``import torch``, each in a fresh process."""

    def seconds(statement: str) -> float:
        code = f"import time; t = time.process_time(); {statement}; print(time.process_time() - t)"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return float(
            subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
        )

    modules = "course_utils.attention, course_utils.positions, course_utils.transformer, course_utils.families"
    found: dict[str, list[float]] = {"course_utils": [], modules: []}
    seconds("import torch")
    for _ in tqdm(range(3 if quick else 9), desc="imports", leave=False):
        for name, added in found.items():
            alone = seconds("import torch")
            added.append(seconds(f"import torch, {name}") - alone)
    return [
        ("`import course_utils` adds to `import torch`, seconds of CPU", found["course_utils"], "at most 0.3"),
        ("the modules of rows 1 and 2 add, seconds of CPU", found[modules], "at most 0.3"),
    ]


def heads_rows(quick: bool) -> list[Row]:
    """Train ``watch_heads_form`` over seeds: from which score to which, when, and in which time."""
    found: dict[tuple[str, str], list[float]] = {}
    for seed in tqdm(range(2 if quick else 5), desc="heads", leave=False):
        begun = time.process_time()
        forming = watch_heads_form(seed, progress=False)
        seconds = time.process_time() - begun
        first, last = forming.snapshots[0], forming.snapshots[-1]
        drop, rise = forming.steepest_drop(), forming.induction_rise()
        for what, target, value in (
            ("induction score of the best head, before training", "below 0.05", first.induction.max()),
            ("induction score of the best head, after it", "above 0.7", last.induction.max()),
            ("copy accuracy, after it", "above 0.95", last.copy_accuracy),
            ("previous-token score of the best head of layer 1, after it", "", last.previous_token[0].max()),
            ("loss on repeated tokens, nats, before training", "", first.repeated_loss),
            ("loss on repeated tokens, nats, after it", "", last.repeated_loss),
            ("step of the steepest drop of the training loss", "", drop),
            ("step at which the induction score crosses half", "", rise),
            ("the first of these steps / the second", "0.8 to 1.25", drop / rise),
            ("seconds of CPU, one thread", "below 60", seconds),
        ):
            found.setdefault((what, target), []).append(float(value))
    return [(what, values, target) for (what, target), values in found.items()]


def table(measure: Callable[[bool], list[Row]]) -> Callable[[bool], list[str]]:
    """Return a function that measures and gives the lines of a table."""

    def lines(quick: bool) -> list[str]:
        shown = ["| what | median | smallest to largest | target |", "| --- | --- | --- | --- |"]
        for label, values, target in measure(quick):
            spread = f"{min(values):.3f} to {max(values):.3f}"
            shown.append(f"| {label} | {statistics.median(values):.3f} | {spread} | {target} |")
        return shown

    return lines


def machine() -> str:
    """Describe the machine in general words."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    import transformers

    return (
        f"{model}, {os.cpu_count()} logical cores (one thread used), Python {platform.python_version()}, "
        f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    )


PAIRS = (
    "Ratios of times, ours over theirs: below 1 is faster. Each pair was timed alternately in one run, float32 on the "
    "CPU, forward and backward; median and range of the pairs."
)
PARTS: dict[str, tuple[str, str, Callable[[bool], list[str]]]] = {
    "attention": ("Attention", PAIRS, table(attention_rows)),
    "training": ("Training", PAIRS, table(training_rows)),
    "imports": ("Imports", "Each in a fresh process; median and range of the runs.", table(import_rows)),
    "heads": (
        "Heads that form",
        "`watch_heads_form`: two layers of attention alone, from random weights; median and range over the seeds 0 to "
        "4 (with `--quick` 0 and 1).",
        table(heads_rows),
    ),
    "decoding": ("Decoding", decoding.ABOUT, table(lambda quick: decoding.rows(quick, ratios))),
    "viewer": ("The head viewer", viewer.ABOUT, viewer.lines),
    "memory": ("Memory", memory.ABOUT, memory.lines),
    "finetuning": ("Fine-tuning", finetuning.ABOUT, table(finetuning.rows)),
    "quantization": ("Quantization", quantization.ABOUT, quantization.lines),
}
"""Name of a part to its title, what its numbers are, and what measures them."""
TARGET = ROOT / "supplemental" / "benchmarks.md"


def write(measured: dict[str, str]) -> None:
    """Put the sections, title to text, into the file, and leave the others as they are."""
    _, *before = TARGET.read_text(encoding="utf-8").split("\n## ") if TARGET.exists() else [""]
    sections = {title: text.strip() for title, text in (section.split("\n", 1) for section in before)} | measured
    shown = [f"## {title}\n\n{sections[title]}\n" for title, _, _ in PARTS.values() if title in sections]
    with tempfile.NamedTemporaryFile("w", dir=TARGET.parent, delete=False, encoding="utf-8") as file:
        file.write("\n".join(["# Benchmarks\n\nWritten by `make bench`.\n", *shown]))
    os.chmod(file.name, 0o644)
    os.replace(file.name, TARGET)
    print(f"written: {TARGET.relative_to(ROOT)}")


def main() -> None:
    """Run all, print the tables, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write supplemental/benchmarks.md")
    parser.add_argument("--quick", action="store_true", help="fewer pairs and seeds")
    parser.add_argument("--only", choices=list(PARTS), help="run one part")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measured = {}
    for name, (title, about, part) in PARTS.items():
        if arguments.only not in (None, name):
            continue
        print(f"\n{title}\n")
        lines = part(arguments.quick)
        print("\n".join(lines), flush=True)
        measured[title] = f"{about}\n\nMachine: {machine()}.\n\n" + "\n".join(lines)
    if arguments.write:
        write(measured)


if __name__ == "__main__":
    main()
