"""The same job with the libraries: ``transformers.Trainer`` or ``Seq2SeqTrainer``, and ``peft``."""

import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from course_utils import lora, training
from course_utils.finetuning.examples import Prepared, prepare
from course_utils.finetuning.tuning import METHODS, RATES, Order, Tuned, start
from course_utils.models import Loaded


class _Fixed(torch.utils.data.Sampler[int]):
    """The examples in a given order."""

    def __init__(self, places: list[int]):
        self.places = places

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def with_trainer(
    loaded: Loaded,
    data: Any,
    *,
    method: str = "full",
    steps: int,
    batch_size: int = 16,
    accumulate: int = 1,
    learning_rate: float | None = None,
    schedule: str = "linear",
    warmup: int = 0,
    weight_decay: float = 0.0,
    clip: float | None = 1.0,
    seed: int = 0,
    rank: int = 8,
    alpha: float = 16,
    targets: str | Sequence[str] = "linear",
    dropout: float = 0.0,
    dtype: torch.dtype | None = None,
    checkpointing: bool = False,
    every: int = 1,
) -> Tuned:
    """Fine-tune with ``transformers.Trainer`` and ``peft``: the same examples in the same order as :func:`finetune`.

    Args:
        loaded: as of :func:`finetune`, as all others but the last.
        data: likewise.
        method: likewise.
        steps: likewise.
        batch_size: likewise.
        accumulate: likewise; it has to divide the batch size.
        learning_rate: likewise.
        schedule: ``linear``, ``cosine`` or ``constant``.
        warmup: likewise. (The library's first rate of a warm-up is 0.)
        weight_decay: likewise.
        clip: likewise.
        seed: likewise.
        rank: likewise.
        alpha: likewise.
        targets: likewise.
        dropout: likewise.
        dtype: ``torch.bfloat16`` or ``torch.float16`` for autocast.
        checkpointing: likewise.
        every: steps between two losses that the history keeps.

    Returns:
        The tuned model, with LoRA as an adapter of :mod:`course_utils.lora`; ``history.seconds`` are those of
        ``Trainer.train``.

    Raises:
        ValueError: a setting is out of range, or the data do not go with the model.
    """
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    if batch_size % accumulate:
        raise ValueError(f"accumulate={accumulate}: expected a divisor of batch_size, {batch_size}")
    prepared = data if isinstance(data, Prepared) else prepare(loaded, data, seed=seed)
    begun = start(loaded, prepared, method, seed, rank, alpha, targets, dropout, inplace=False)
    order = Order(prepared, batch_size, seed)
    places = [place for step in range(steps) for place in order.rows(step)]
    writes = prepared.kind == "seq2seq"
    library: Any = Seq2SeqTrainer if writes else Trainer

    class Ordered(library):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return _Fixed(places)

    model: Any = begun.model
    with tempfile.TemporaryDirectory() as folder:
        if method == "lora":
            from peft import PeftModel

            lora.save_adapter(model, folder)
            bare = replace(begun, model=_bare(model))
            model = PeftModel.from_pretrained(copy.deepcopy(bare.model), folder, is_trainable=True)
        settings: dict[str, Any] = dict(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=batch_size // accumulate,
            gradient_accumulation_steps=accumulate,
            learning_rate=RATES[method] if learning_rate is None else learning_rate,
            lr_scheduler_type=schedule, warmup_steps=warmup, weight_decay=weight_decay, max_grad_norm=clip or 0.0,
            seed=seed, bf16=dtype is torch.bfloat16, fp16=dtype is torch.float16,
            save_strategy="no", logging_steps=every, report_to=[],
            disable_tqdm=True, remove_unused_columns=False, use_cpu=begun.model.device.type == "cpu",
            label_names=["labels"], dataloader_pin_memory=False,
        )  # fmt: skip
        if checkpointing:
            settings["gradient_checkpointing"] = True
        arguments: Any = (Seq2SeqTrainingArguments if writes else TrainingArguments)(**settings)
        trainer = Ordered(model=model, args=arguments, train_dataset=prepared.examples, data_collator=prepared.collate)
        trainer.remove_callback(_printer())
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        if method == "lora":
            model.save_pretrained(folder)
            tuned = bare.model
            lora.load_adapter(tuned, folder)
        else:
            tuned = model
    logs = [one for one in trainer.state.log_history if "loss" in one]
    history = training.History(
        losses=[one["loss"] for one in logs],
        learning_rates=[one["learning_rate"] for one in logs],
        gradient_norms=[float(one["grad_norm"]) for one in logs],
        seconds=seconds,
    )
    tokens = sum(prepared.lengths[place] for place in places)
    return Tuned(replace(begun, model=tuned.eval()), history, method, *lora.trained(tuned), tokens, accumulate)


def _bare(model: Any) -> Any:
    """The model without its adapter, which has not changed anything yet."""
    return lora.merge(copy.deepcopy(model)).requires_grad_(True)


def _printer() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback
