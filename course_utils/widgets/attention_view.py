"""The head viewer: every attention map of a model on one text, as thumbnails, lines, a matrix and numbers.

What is displayed is one piece of HTML that needs no network, no kernel and no widget state: a picture and a summary in
words, which a small script turns into the viewer where scripts run. The weights travel as 8-bit numbers whose rows keep
their sums, packed by DEFLATE. Tokens are data: the script writes them as text, never as markup.
"""

import base64
import hashlib
import html
import io
import json
import os
import re
import unicodedata
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from course_utils import interpretability
from course_utils.plotting import SEQUENTIAL, figure, png

LEVELS = 255
"""A weight travels as a whole number of 255ths."""
NAMES = {
    "attentions": "self-attention",
    "encoder_attentions": "encoder",
    "decoder_attentions": "decoder",
    "cross_attentions": "cross-attention",
}
LOADER = (
    "(async()=>{const open=text=>{text=atob(text);const all=new Uint8Array(text.length);"
    "for(let at=text.length;at--;)all[at]=text.charCodeAt(at);"
    "return new Response(new Blob([all]).stream().pipeThrough(new DecompressionStream('deflate-raw')))};"
    "new Function('open','name',await open('%s').text())(open,'%s')})()"
)
"""The script that unpacks the script of the viewer and runs it."""
SCORES = ("previous_token", "first_token", "induction", "duplicate_token", "entropy")


@dataclass(frozen=True)
class Part:
    """Maps of one stack: its layers have as many heads each, and look from the same queries at the same keys.

    Attributes:
        name: what it is called.
        queries: the tokens that look.
        keys: the tokens that are looked at.
        levels: the weights in 255ths, (layers, heads, queries, keys); each row sums to that of the map.
        causal: no query looks at a later key.
        scores: name to one number a head, (layers, heads).
        second: number of the token with which the second text begins, None where there is one text.
    """

    name: str
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    levels: np.ndarray
    causal: bool
    scores: dict[str, np.ndarray]
    second: int | None = None


class AttentionView:
    """A view of attention maps: display it as the last line of a cell.

    Args:
        tokens: the tokens, as text, that look (and, in self-attention, are looked at).
        attentions: one tensor a layer, (heads, queries, keys) or, as ``transformers`` returns them, (1, heads, queries,
            keys).
        key_tokens: in cross-attention the tokens that are looked at; by default ``tokens``.
        second: number of the token with which a second text begins, to filter by text; by default there is one.
        name: what the maps are called.

    Raises:
        ValueError: there are no maps, they hold a batch, NaN or what are no weights, or the tokens do not fit them.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        attentions: Sequence[Any],
        *,
        key_tokens: Sequence[str] | None = None,
        second: int | None = None,
        name: str = "self-attention",
    ):
        self.parts = [_part(name, tokens, tokens if key_tokens is None else key_tokens, attentions, second, None)]

    @classmethod
    def from_model(
        cls, model: Any, tokenizer: Any, text: str, text_pair: str | None = None, *, target: str | None = None
    ) -> "AttentionView":
        """Run a model on a text and view all its maps.

        Args:
            model: ours or one of ``transformers``; it is left as it was.
            tokenizer: its tokenizer.
            text: what it reads.
            text_pair: a second text, which the tokenizer joins to the first.
            target: what the decoder of an encoder-decoder has written; by default what it writes to the text.

        Returns:
            The view; of an encoder-decoder with three parts: encoder, decoder and cross-attention.

        Raises:
            ValueError: the text has no token, the model returns no maps, or a target is given without a decoder for it.
        """
        import torch

        made = tokenizer(text, text_pair, return_tensors="pt")
        ids = made["input_ids"]
        if not ids.numel():
            raise ValueError(f"text={text!r} has no token: give at least one word")
        config: Any = getattr(model, "config", None)
        both = getattr(config, "is_encoder_decoder", getattr(config, "kind", "") == "encoder-decoder")
        if target is not None and not both:
            raise ValueError(
                "target= is what the decoder of an encoder-decoder has written; this model has no two stacks"
            )
        inputs = {name: made[name] for name in ("token_type_ids",) if name in made and not both}
        queries = ids
        if both:
            if target is None and not hasattr(model, "generate"):
                raise ValueError("this model cannot write by itself: give target=, what its decoder has written")
            if target is None:
                written = model.generate(ids.to(model.device), max_new_tokens=40, do_sample=False, num_beams=1)
                queries = written[:, : written.shape[1] - 1 if written.shape[1] > 1 else 1].cpu()
            else:
                begin = torch.tensor([[getattr(config, "decoder_start_token_id", 0) or 0]])
                queries = torch.cat([begin, tokenizer(text_target=target, return_tensors="pt")["input_ids"][:, :-1]], 1)
            inputs = {"decoder_input_ids": queries}
        maps = interpretability.attention_maps(model, ids, **inputs)
        view = cls.__new__(cls)
        source, wrote = _texts(tokenizer, ids[0]), _texts(tokenizer, queries[0])
        view.parts = []
        for part, layers in maps.items():
            rows, columns, tokens = {
                "decoder_attentions": (wrote, wrote, queries),
                "cross_attentions": (wrote, source, None),
            }.get(part, (source, source, ids))
            view.parts.append(_part(NAMES[part], rows, columns, layers, None if both else _second(made), tokens))
        return view

    def summary(self, layer: int = 0, head: int = 0, part: int = 0) -> str:
        """Say in words where a head looks: its scores, and the strongest weight of each of its first queries.

        Args:
            layer: number of the layer, from 0.
            head: number of the head, from 0.
            part: number of the part, from 0.
        """
        chosen = self._chosen(part, layer, head)
        scores = ", ".join(f"{_spoken(name)} ≈{values[layer, head]:.2f}" for name, values in chosen.scores.items())
        rows = chosen.levels[layer, head]
        looks = [
            f"{_visible(token)} at {_visible(chosen.keys[int(row.argmax())])} (≈{row.max() / LEVELS:.2f})"
            for token, row in list(zip(chosen.queries, rows, strict=True))[:8]
        ]
        more = f", and {len(chosen.queries) - 8} more" if len(chosen.queries) > 8 else ""
        return (
            f"{chosen.name}, layer {layer + 1}, head {head + 1}"
            + (f" ({scores})" if scores else "")
            + f". Strongest weights: {', '.join(looks)}{more}."
        )

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the viewer as a page of its own, and write it to a file.

        Args:
            path: the file; by default none is written.
        """
        page = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Attention</title>'
            '<meta name="viewport" content="width=device-width">'
            f"<body><main><h1>Attention</h1>{self._fragment()}</main></body></html>"
        )
        if path is not None:
            _write(Path(path), page.encode())
        return page

    def to_png(self, path: str | os.PathLike[str], layer: int | None = None, head: int = 0, part: int = 0) -> None:
        """Write a picture: all heads as thumbnails, or one head with its tokens.

        Args:
            path: the file.
            layer: number of the layer, from 0; by default all heads are drawn.
            head: number of the head, from 0.
            part: number of the part, from 0.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")
            _write(Path(path), png(self._figure(layer, head, part)))

    def to_svg(self, path: str | os.PathLike[str], layer: int | None = None, head: int = 0, part: int = 0) -> None:
        """Write the same as a vector picture; its letters are drawn as shapes, so that no token is text in it.

        Args:
            path: the file.
            layer: see :meth:`to_png`.
            head: see there.
            part: see there.
        """
        import matplotlib

        buffer = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "path"}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for it
            self._figure(layer, head, part).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        _write(Path(path), buffer.getvalue().encode())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """What Jupyter shows: the viewer, else the picture, else the words."""
        return {
            "text/html": self._fragment(),
            "image/png": base64.b64encode(self._still(24, 16)).decode(),
            "text/plain": self.summary(),
        }

    def _fragment(self) -> str:
        """The viewer as a piece of HTML: what stands there without a script, the data, and the script."""
        whole = b"".join(map(_payload, self.parts))
        levels = "." + _packed(_halved(whole), zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE)
        if len(whole) < 200_000:  # few tokens, whose weights are large
            levels = min(levels, _packed(whole, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE), key=len)
        described = json.dumps([_described(part) for part in self.parts], separators=(",", ":"))
        data = _packed(described.encode(), zlib.Z_DEFAULT_STRATEGY)
        name = "av" + hashlib.sha256((data + levels).encode()).hexdigest()[:10]
        layers, heads = self.parts[0].levels.shape[:2]
        size = 16 if len(self.parts[0].queries) >= 32 else min(16, max(4, int((1900 / layers / heads) ** 0.5) - 1))
        picture = base64.b64encode(self._still(size, 4)).decode()
        return (
            f"<div class='{name}' data-model='{data}' data-levels='{levels}'>"
            f"<img alt='Thumbnails of {layers} layers of {heads} heads' style='width:{24 * heads}px;"
            f"image-rendering:pixelated' src='data:image/png;base64,{picture}'>"
            f"<p>{html.escape(self.summary())}</p></div><script>{LOADER % (_script(), name)}</script>"
        )

    def _still(self, size: int, shades: int) -> bytes:
        """A picture of all heads of the first part, each at most so many pixels wide, in so many shades."""
        from PIL import Image

        strength = np.sqrt(_mosaic(self.parts[0].levels, size) / LEVELS) * (shades - 1)
        image = Image.fromarray(np.rint(strength).astype(np.uint8), mode="P")
        image.putpalette([round(part) for shade in range(shades) for part in _shade(shade / (shades - 1))])
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True, bits=2 if shades == 4 else 4)
        return buffer.getvalue()

    def _figure(self, layer: int | None, head: int, number: int) -> Any:
        part = self._chosen(number, layer or 0, head)
        layers, heads = part.levels.shape[:2]
        if layer is None:
            fig, axes = figure(1 + 0.6 * heads, 1 + 0.6 * layers)
            mosaic = _mosaic(part.levels, 40)
            axes.imshow(np.sqrt(mosaic / LEVELS), cmap=SEQUENTIAL, vmin=0, vmax=1)
            axes.set_xticks((np.arange(heads) + 0.5) * mosaic.shape[1] / heads, [str(one + 1) for one in range(heads)])
            axes.set_yticks(
                (np.arange(layers) + 0.5) * mosaic.shape[0] / layers, [str(one + 1) for one in range(layers)]
            )
            axes.set(xlabel="head", ylabel="layer", title=part.name)
            return fig
        weights = part.levels[layer, head] / LEVELS
        fig, axes = figure(2 + 0.28 * min(len(part.keys), 64), 1.6 + 0.28 * min(len(part.queries), 64))
        shown = axes.imshow(np.sqrt(weights), cmap=SEQUENTIAL, vmin=0, vmax=1)
        for names, axis in ((part.keys, axes.xaxis), (part.queries, axes.yaxis)):
            if len(names) <= 64:
                axis.set_ticks(range(len(names)), [_visible(name) for name in names], parse_math=False)
        axes.tick_params(axis="x", rotation=90)
        axes.set(xlabel="looked at (key)", ylabel="looks (query)")
        axes.set_title(f"{part.name}, layer {layer + 1}, head {head + 1}")
        bar = fig.colorbar(shown, ax=axes, shrink=0.8, ticks=np.sqrt([0, 0.05, 0.25, 0.5, 1]))
        bar.ax.set_yticklabels(["0", ".05", ".25", ".5", "1"])
        return fig

    def _chosen(self, part: int, layer: int, head: int) -> Part:
        if not 0 <= part < len(self.parts):
            raise ValueError(f"part={part}: the view has {len(self.parts)}, counted from 0")
        layers, heads = self.parts[part].levels.shape[:2]
        if not 0 <= layer < layers or not 0 <= head < heads:
            raise ValueError(f"layer={layer}, head={head}: there are {layers} layers of {heads} heads, counted from 0")
        return self.parts[part]


def in_levels(weights: np.ndarray) -> np.ndarray:
    """Round weights to 255ths so that each row keeps its sum.

    By largest remainder (the method of Hare and Niemeyer), but half a 255th is added to the remainder of a weight of a
    255th or more before they are compared: fewer of the many tiny weights are raised, and the maps pack far better.

    Args:
        weights: attention weights, (..., keys).

    Returns:
        Whole numbers from 0 to 255 of the same shape; each differs from 255 times its weight by less than 1.
    """
    scaled = weights.astype(np.float32) * np.float32(LEVELS)
    whole = np.floor(scaled)
    rest = scaled - whole
    missing = np.rint(weights.sum(-1, dtype=np.float64) * LEVELS) - whole.sum(-1, dtype=np.float64)
    missing = missing.clip(0, weights.shape[-1]).astype(np.int64)
    rest[(whole > 0) & (rest > 0)] += np.float32(0.5)
    least = np.take_along_axis(np.sort(rest, axis=-1), weights.shape[-1] - missing.clip(1)[..., None], -1)
    least[missing == 0] = 2  # above all of them: they are below 1.5
    raised = rest >= least
    excess = np.count_nonzero(raised, axis=-1) - missing
    rows = np.nonzero(excess)  # where remainders are equal, the last ones stay down
    ties = rest[rows] == least[rows]
    raised[rows] &= ~(ties & (np.cumsum(ties[:, ::-1], -1)[:, ::-1] <= excess[rows][:, None]))
    return (whole + raised).clip(0, LEVELS).astype(np.uint8)


def _part(
    name: str, queries: Sequence[str], keys: Sequence[str], attentions: Sequence[Any], second: int | None, ids: Any
) -> Part:
    import torch

    layers = list(attentions) if attentions is not None else []
    if not layers or any(layer is None for layer in layers):
        raise ValueError(
            "there are no attention maps: ask the model for them (output_attentions=True) and load it with "
            "attn_implementation='eager', whose kernels return them"
        )
    arrays: list[torch.Tensor] = []
    for number, layer in enumerate(layers):
        tensor = torch.as_tensor(layer).detach().cpu().float()
        if tensor.ndim == 4:
            if tensor.shape[0] != 1:
                raise ValueError(
                    f"the maps of layer {number} hold a batch of {tensor.shape[0]} texts: give one, for example "
                    "[layer[:1] for layer in attentions]"
                )
            tensor = tensor[0]
        if tensor.ndim != 3 or tensor.shape[1:] != (len(queries), len(keys)):
            raise ValueError(
                f"the maps of layer {number} have shape {tuple(tensor.shape)}, expected (heads, {len(queries)}, "
                f"{len(keys)}) for {len(queries)} tokens that look and {len(keys)} that are looked at"
            )
        if tensor.shape != (arrays or [tensor])[0].shape or not tensor.numel():
            raise ValueError(f"layer {number} has shape {tuple(tensor.shape)}, expected heads and tokens as in layer 0")
        arrays.append(tensor)
    stacked = torch.stack(arrays)
    if not bool(((stacked >= 0) & (stacked <= 1 + 1e-3)).all()) or not bool((stacked.sum(-1) <= 1 + 1e-2).all()):
        raise ValueError(
            "the maps hold numbers that are no attention weights (NaN, below 0, or rows that sum to more than 1): give "
            "the weights behind the softmax, of a model in evaluation mode"
        )
    if second is not None and not 0 < second < len(queries):
        raise ValueError(f"second={second}: expected the number of a token after the first, below {len(queries)}")
    square = tuple(queries) == tuple(keys)
    causal = square and not bool(stacked.triu(1).any())
    levels = in_levels(stacked.numpy())
    return Part(name, tuple(queries), tuple(keys), levels, causal, _scores(stacked, ids, square), second)


def _scores(maps: Any, ids: Any, square: bool) -> dict[str, np.ndarray]:
    """The scores of all heads, where they apply."""
    functions: dict[str, Any] = {"entropy": interpretability.entropy}
    if square and maps.shape[-1] > 1:
        functions["previous_token"] = interpretability.previous_token_score
        functions["first_token"] = interpretability.first_token_score
        if ids is not None:
            functions["induction"] = lambda layer: interpretability.induction_score(layer, ids)
            functions["duplicate_token"] = lambda layer: interpretability.duplicate_token_score(layer, ids)
    found = {}
    for name in SCORES:
        if name in functions:
            try:
                found[name] = np.stack([functions[name](layer[None]).numpy() for layer in maps])
            except ValueError:  # no token occurs twice
                continue
    return found


def _described(part: Part) -> dict[str, Any]:
    """What the script has to know about a part."""
    tokens = [_visible(token) for token in part.queries]
    return {
        "n": part.name,
        "q": tokens,
        "k": 0 if part.keys == part.queries else [_visible(token) for token in part.keys],
        "l": part.levels.shape[0],
        "h": part.levels.shape[1],
        "c": int(part.causal),
        "b": part.second or 0,
        "s": {
            _spoken(name): [round(100 * float(one)) for one in values.flatten()] for name, values in part.scores.items()
        },
    }


def _payload(part: Part) -> bytes:
    """The weights in the order in which the script reads them; of causal maps the lower triangles alone."""
    if not part.causal:
        return part.levels.tobytes()
    rows, columns = np.tril_indices(len(part.queries))
    return part.levels[:, :, rows, columns].tobytes()


def _mosaic(levels: np.ndarray, size: int) -> np.ndarray:
    """All heads side by side, a line of zeros between them, each at most ``size`` pixels wide (its largest weights)."""
    layers, heads, queries, keys = levels.shape
    for axis, length in ((2, queries), (3, keys)):
        if length > size:
            levels = np.maximum.reduceat(levels, np.arange(size) * length // size, axis=axis)
    padded = np.pad(levels, ((0, 0), (0, 0), (0, 1), (0, 1)))
    return padded.transpose(0, 2, 1, 3).reshape(layers * padded.shape[2], heads * padded.shape[3])


def _shade(value: float) -> tuple[float, float, float]:
    """Colour of a weight whose square root this is: from nearly white to dark blue, as in the script."""
    return 247 - 239 * value, 251 - 203 * value, 255 - 148 * value


def _second(made: Any) -> int | None:
    """Number of the first token of the second text."""
    sequence = made.sequence_ids(0) if hasattr(made, "sequence_ids") and made.is_fast else []
    return sequence.index(1) if 1 in sequence else None


def _texts(tokenizer: Any, ids: Any) -> list[str]:
    """The tokens as text; a token that is no whole text (a part of a letter) keeps its name."""
    found = []
    for one in ids.tolist():
        text, name = tokenizer.decode([one]), tokenizer.convert_ids_to_tokens(one)
        if name.startswith("▁") and not text.startswith(" "):
            text = " " + text
        found.append(name if "\ufffd" in text or not text else text)
    return found


def _visible(token: str) -> str:
    """The token with signs in place of what cannot be seen: spaces, line breaks, controls, marks of direction."""
    signs = {" ": "·", "\n": "⏎", "\t": "⇥"}
    shown = "".join(
        signs.get(sign)
        or (f"\\u{ord(sign):04x}" if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else sign)
        for sign in str(token)[:40]
    )
    return shown or "∅"


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _halved(levels: bytes) -> bytes:
    """Two levels a byte, four bits each; 15 stands for 15 and more, and what is more follows behind, a byte each.

    Most levels are near 0: a byte for two of them is what DEFLATE packs best.
    """
    all_levels = np.frombuffer(levels, np.uint8)
    low = np.minimum(all_levels, 15)
    if low.size % 2:
        low = np.append(low, np.uint8(0))
    return (low[::2] << 4 | low[1::2]).tobytes() + (all_levels[all_levels >= 15] - 15).tobytes()


def _packed(content: bytes, *strategies: int) -> str:
    """Raw DEFLATE, in base64, with the strategy that packs best."""
    found = []
    for strategy in strategies:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        found.append(packer.compress(content) + packer.flush())
    return base64.b64encode(min(found, key=len)).decode()


@cache
def _script() -> str:
    """The viewer's script with its style inside, packed, without indentation, comments and most spaces of the code."""
    parts = {}
    for kind in ("js", "css"):
        lines = Path(__file__).with_suffix(f".{kind}").read_text(encoding="utf-8").splitlines()
        parts[kind] = "\n".join(_tight(line.strip()) for line in lines if not line.strip().startswith("//"))
    return _packed(parts["js"].replace("__CSS__", parts["css"]).encode(), zlib.Z_DEFAULT_STRATEGY)


def _tight(line: str) -> str:
    """The line without spaces around signs, outside of strings; a line with a template stays as it is."""
    if "`" in line:
        return line
    pieces = re.split(r'("[^"]*")', line)
    return "".join(
        piece if place % 2 else re.sub(r" ?([=<>*/?:;,{}()|&]) ?", r"\1", piece) for place, piece in enumerate(pieces)
    )


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
