"""Fine-tuning: full or LoRA, of encoders, decoders and encoder-decoders; measured before and after on the same items.

``prepare`` makes examples of texts and targets, ``finetune`` trains on them by :func:`course_utils.training.fit`,
``measure`` lets a model answer held-out items, ``forgetting`` does so for other tasks, and ``with_trainer`` does the
same job with ``transformers.Trainer`` and ``peft``.
"""

from course_utils.finetuning.examples import KINDS, Prepared, prepare, with_head
from course_utils.finetuning.measures import Forgetting, Scores, forgetting, gain_share, measure, scores_table
from course_utils.finetuning.trainer import with_trainer
from course_utils.finetuning.tuning import METHODS, OutOfMemory, Tuned, finetune, loss

__all__ = [
    "KINDS",
    "METHODS",
    "Forgetting",
    "OutOfMemory",
    "Prepared",
    "Scores",
    "Tuned",
    "finetune",
    "forgetting",
    "gain_share",
    "loss",
    "measure",
    "prepare",
    "scores_table",
    "with_head",
    "with_trainer",
]
