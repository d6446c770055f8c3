"""Speed of fine-tuning: our loop against ``transformers.Trainer`` (and ``peft``), same model, examples and steps.

A part of ``make bench``. Both begin with the same weights and read the same examples in each step, and the losses stand
beside. With CUDA also a model of 124 million random weights, in bfloat16.
"""

import statistics
from typing import Any

import torch
from tqdm import tqdm

from course_utils import compute, models
from course_utils.families import config_from_huggingface
from course_utils.finetuning import Tuned, finetune, prepare, with_trainer
from course_utils.models import Loaded

ABOUT = (
    "Ratios of tokens per second, ours over `transformers.Trainer`'s (for LoRA with `peft`): above 1 is faster. Same "
    "weights, same 16 examples in each step, padding not counted, float32 on the CPU, one thread, the library's "
    "defaults; both were run alternately; median and range of the pairs. In two parts: our loop cuts each batch by "
    "length, so that less of it is padding; the batch, and with it the loss, is the same."
)
JOBS = (
    ("decoder, prompts masked", "course-decoder", "speakers", 1),
    ("encoder-decoder", "course-instruct", "speakers", 1),
    ("encoder-decoder, in two parts", "course-instruct", "speakers", 2),
    ("encoder, a label a text", "course-encoder", "sentiment", 1),
    ("encoder, a label a token", "course-encoder", "entities", 1),
)


def rows(quick: bool) -> list[tuple[str, list[float], str]]:
    """Measure tokens per second of both, alternately."""
    found, steps = [], 6 if quick else 10
    for name, model, task, parts in JOBS:
        loaded = models.load(model, profile="laptop", device="cpu")
        prepared = prepare(loaded, task, items=16 * steps)
        for method in ("full", "lora"):
            label = f"{name}, {method}"
            settings: dict[str, Any] = dict(method=method, steps=steps)
            speeds, gap = _pairs(loaded, prepared, settings, parts, 3, label)
            found.append((f"{label}: tokens per second / `Trainer`", speeds, "at least 1.1"))
            found.append((f"{label}: mean loss less that of `Trainer`, nats", gap, "-0.02 to 0.02"))
    return found + (gpu_rows(quick) if torch.cuda.is_available() else [])


def gpu_rows(quick: bool, width: int = 768, tokens: int = 512, batch: int = 64) -> list[tuple[str, list[float], str]]:
    """Measure the share of the GPU's peak that a training step reaches, and the speed against ``Trainer``."""
    from transformers import GPT2Config, GPT2LMHeadModel

    decoder = models.load("course-decoder", profile="laptop", device="cpu")
    torch.manual_seed(0)
    quiet = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    shape = dict(n_embd=width, n_head=width // 64, n_positions=1024, bos_token_id=1, eos_token_id=2)
    model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=50304, **shape, **quiet))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = Loaded(model.to(device).eval(), decoder.tokenizer, "GPT-2 small's shape", "folder", "", None, "causal")
    steps = 10 if quick else 40
    text = " ".join(decoder.tokenizer.decode([token]) for token in range(300, 300 + tokens))
    prepared = prepare(loaded, [("a", text[number:]) for number in range(steps)])
    for row in prepared.examples:
        row["input_ids"], row["labels"] = ((row[name] * 2)[:tokens] for name in ("input_ids", "labels"))
    settings: dict[str, Any] = dict(steps=steps, batch_size=batch, dtype=torch.bfloat16)
    speeds, gap = _pairs(loaded, prepared, settings, 1, 2 if quick else 5, "GPU")
    peak = compute.peak(device, torch.bfloat16)
    config = config_from_huggingface(model)
    shares = []
    for compiled in (False, True) if device.type == "cuda" else (False,):
        tuned = finetune(loaded, prepared, compile=compiled, progress=False, **settings)
        work = compute.training_flops(config, batch, tokens).model * steps
        shares.append(compute.utilisation(work, tuned.history.seconds, peak))
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    count = sum(one.numel() for one in model.parameters()) / 1e6
    what = f"{where}, {count:.0f} M weights, {batch} x {tokens} tokens, bfloat16"
    return [
        (f"{what}: tokens per second / `Trainer`", speeds, "at least 1.0"),
        (f"{what}: mean loss less that of `Trainer`, nats", gap, "-0.05 to 0.05"),
        (f"{what}: model FLOPs utilisation, as it is and compiled", shares, "at least 0.4"),
    ]


def _pairs(
    loaded: Loaded, prepared: Any, settings: dict[str, Any], parts: int, pairs: int, label: str
) -> tuple[list[float], list[float]]:
    """Run both alternately, in changing order, after one warm-up; ratios of speed, differences of the mean losses."""
    steps = settings["steps"]

    def ours() -> Tuned:
        return finetune(loaded, prepared, accumulate=parts, progress=False, **settings)

    def theirs() -> Tuned:
        return with_trainer(loaded, prepared, every=steps, **settings)

    ours(), theirs()
    speeds, gaps = [], []
    for pair in tqdm(range(pairs), desc=label, leave=False):
        first, second = (ours(), theirs()) if pair % 2 else reversed((theirs(), ours()))
        speeds.append(first.tokens_per_second / second.tokens_per_second)
        gaps.append(statistics.fmean(first.history.losses) - second.history.losses[-1])  # Trainer keeps the mean
    return speeds, gaps
