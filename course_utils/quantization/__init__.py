"""Quantization from scratch: from the bits of a number to a model of which each weight takes four of them.

    formats     number formats, their bits, and rounding to them
    schemes     scales and codes of a matrix, packed
    layers      linear layers that hold codes; a whole model at once; files
    calibrated  what the inputs of a layer tell about its rounding: GPTQ, AWQ, SmoothQuant
    aware       training that knows that it will be rounded
    quality     what was lost: perplexity and answers, against the model as it was

What most callers need stands here as well; ``aware`` and ``calibrated`` are called by their module.
"""

from course_utils.quantization.formats import FORMATS, NF4, cast, from_bits, to_bits
from course_utils.quantization.layers import Report, bytes_of, load, quantize, save
from course_utils.quantization.schemes import Quantized, Scheme, encode

__all__ = [
    "FORMATS",
    "NF4",
    "Quantized",
    "Report",
    "Scheme",
    "bytes_of",
    "cast",
    "encode",
    "from_bits",
    "load",
    "quantize",
    "save",
    "to_bits",
]
