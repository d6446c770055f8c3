"""The one tokenizer of all embedded models: byte-level BPE (Radford et al., 2019) on the corpus and the tasks."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from course_utils.data import library_docs, tasks
from course_utils.data.tasks import episodes
from course_utils.data.tasks.words import CATEGORY_OF

ENTRIES = 4096
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(32))
SPECIAL = ("<pad>", "<bos>", "<eos>", "<mask>", "<sep>", *SENTINELS)
TEMPLATES = {
    "decoder": ("<bos> $A", "<bos> $A $B:1"),
    "encoder": ("<bos> $A <eos>", "<bos> $A <sep> $B:1 <eos>"),
    "seq2seq": ("$A <eos>", "$A $B:1 <eos>"),
}
"""How a text, and a pair of texts, is marked: BERT's and T5's ways, and a decoder's beginning."""
PATH = Path(__file__).parent.parent / "models" / "embedded" / "tokenizer.json"


def train_tokenizer(path: Path = PATH, size: str = "full", progress: bool = True) -> Path:
    """Train the tokenizer on training texts alone and write it; the words of the tasks become one token each.

    Args:
        path: where it goes.
        size: size of the library corpus.
        progress: show progress.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(  # Numbers digit by digit, so that they can be computed with.
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=progress,
    )
    inner.train_from_iterator(_texts(size, progress), trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    inner.save(str(temporary))
    os.replace(temporary, path)
    return path


def tokenizer(kind: str, path: Path = PATH) -> Any:
    """Return the tokenizer as ``transformers`` knows it.

    Args:
        kind: ``decoder``, ``encoder`` or ``seq2seq``: which marks are put around a text.
        path: file of the tokenizer.

    Raises:
        ValueError: there is no such kind, or no tokenizer yet.
    """
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    if kind not in TEMPLATES:
        raise ValueError(f"tokenizer({kind!r}): expected one of {', '.join(TEMPLATES)}")
    if not path.exists():
        raise ValueError(f"there is no tokenizer at {path}; `course train tokenizer` makes it")
    inner = Tokenizer.from_file(str(path))
    single, pair = TEMPLATES[kind]
    marks = [(name, inner.token_to_id(name)) for name in ("<bos>", "<eos>", "<sep>")]
    inner.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        mask_token="<mask>",
        cls_token="<bos>",
        sep_token="<sep>",
        additional_special_tokens=list(SENTINELS),
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _texts(size: str, progress: bool) -> Iterator[str]:
    yield from library_docs(size, "train", progress=progress)["text"]
    for name in tasks.names(held_out=False):
        task = tasks.TASKS[name]
        for text, target in task.generate("train", 1000, seed=0):
            yield f"{task.prefix}{text} {target}"
    generator = random.Random(0)
    for _ in range(3000):
        one = episodes.episode(generator.choice(episodes.KINDS), generator)
        yield f"{one.prompt()} {one.answer}"
    for word in CATEGORY_OF:
        yield f" {word}" * 5000
