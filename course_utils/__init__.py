"""The helper package of the course: what every notebook calls.

The package is a stack of rows; a module imports only from its own row or from the rows below it:

    6 faces         cli, doctor, notebooks, papers, widgets, figures
    5 teaching      checks, progress, quiz
    4 studies       interpretability, prompting, recipes, tools,
                    finetuning, distributed, memory, compute, scaling, quantization
    3 engines       generation, objectives, training, checkpoints, data, models
    2 architecture  transformer, families, rnn, lora
    1 mechanism     attention, ngrams, positions, tokenization, vectors
    0 ground        environment, reporting, plotting

Importing the package itself loads nothing heavy: ``from course_utils.attention import ...`` loads what it names.
"""

import logging

__version__ = "0.1.0"


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a message is more than what torchao says whenever transformers or peft import it."""
    return not record.getMessage().startswith("Failed to load ") and "is an Enum subclass" not in record.getMessage()


for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).addFilter(_is_news)
