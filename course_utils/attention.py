"""Attention: softmax, scaled dot products, masks, heads, and the cache of keys and values.

The equations are those of Vaswani et al. (2017), section 3.2. Everything is written out once, so that the weights can
be looked at; where nobody looks, torch's fused kernel computes the same numbers without ever storing them.

Shapes are named in the signatures: ``queries`` and ``keys`` count tokens, ``size`` is the width of one head.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Mask = Bool[Tensor, "..."] | Float[Tensor, "..."]
RotaryHook = Callable[[Tensor, Tensor], Tensor]


def softmax(scores: Float[Tensor, "*shape"], dim: int = -1) -> Float[Tensor, "*shape"]:
    """Turn scores into weights that are at least 0 and sum to 1 along one dimension.

    The largest score is subtracted first, which changes nothing in the result and keeps ``exp`` from overflowing. Half
    precision is computed in float32 and rounded once at the end.

    Args:
        scores: any shape; ``-inf`` gets the weight 0.
        dim: the dimension along which the weights sum to 1: for attention the keys, the last one.

    Returns:
        Weights of the same shape and dtype. Where all scores are ``-inf`` they are all 0, and so is the gradient.

    Raises:
        TypeError: the scores are not a floating-point tensor.
        IndexError: there is no such dimension.
    """
    if not isinstance(scores, Tensor) or scores.dtype not in DTYPES:
        raise TypeError(f"softmax() got scores of type {_kind(scores)}; expected a floating-point tensor")
    if scores.shape[dim] == 0:
        return scores.clone()
    wide = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    peak = wide.detach().amax(dim, keepdim=True)
    exponentials = (wide - peak.masked_fill(peak == -math.inf, 0)).exp()
    total = exponentials.sum(dim, keepdim=True)
    return (exponentials / total.masked_fill(total == 0, 1)).to(scores.dtype)


def scaled_dot_product_attention(
    query: Float[Tensor, "*#batch queries size"],
    key: Float[Tensor, "*#batch keys size"],
    value: Float[Tensor, "*#batch keys value_size"],
    mask: Mask | None = None,
    *,
    scale: float | None = None,
    bias: Float[Tensor, "..."] | None = None,
) -> tuple[Float[Tensor, "*batch queries value_size"], Float[Tensor, "*batch queries keys"]]:
    """Compute ``softmax(query @ key.T * scale + bias) @ value`` and return the weights too.

    Vaswani et al. (2017), equation 1. Half precision is computed in float32 and rounded once at the end.

    Args:
        query: what each token looks for.
        key: what each token offers to be found by.
        value: what each token hands over.
        mask: broadcastable to (..., queries, keys). Bool: True = may attend. Float: added to the scores.
        scale: factor on the dot products; by default ``1 / sqrt(size)``. T5 uses 1.
        bias: added to the scores, such as ALiBi's or T5's position bias; broadcastable like the mask.

    Returns:
        Output and weights, in the query's dtype. A query that may attend to nothing gets zeros in both.

    Raises:
        TypeError: something is not a tensor of the right dtype.
        ValueError: shapes or devices do not fit.
    """
    shape = _check(query, key, value, mask, bias)
    weights = _weights(query, key, mask, scale, bias)
    output = weights @ value.to(weights.dtype)
    return output.to(query.dtype), weights.to(query.dtype).expand(shape)


def fused_attention(
    query: Float[Tensor, "batch heads queries size"],
    key: Float[Tensor, "batch key_value_heads keys size"],
    value: Float[Tensor, "batch key_value_heads keys value_size"],
    mask: Mask | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    bias: Float[Tensor, "..."] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads queries value_size"]:
    """Compute attention in torch's fused kernel, which never stores the weights (Dao et al., 2022).

    Args:
        query: queries.
        key: keys, with as many heads as the query or a divisor of them (grouped heads).
        value: values, like the keys.
        mask: see :func:`scaled_dot_product_attention`.
        causal: each query sees the keys up to its own place, the last query all of them.
        scale: see :func:`scaled_dot_product_attention`.
        bias: see :func:`scaled_dot_product_attention`.
        dropout: share of the weights set to 0, in training.

    Returns:
        The output alone. A query that may attend to nothing gets zeros.
    """
    queries, keys, groups = query.shape[-2], key.shape[-2], query.shape[-3] // key.shape[-3]
    plain = mask is None and bias is None and (queries == keys or queries == 1)
    if not plain:
        mask = _merged(query, keys, mask, causal, bias)
        if groups > 1 and query.device.type != "cpu":  # with a mask, only the CPU's fast kernel takes grouped heads
            key, value, groups = _repeated(key, groups), _repeated(value, groups), 1
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=plain and causal and queries > 1,  # torch aligns its own causal mask top-left: square only
        scale=scale,
        enable_gqa=groups > 1,
    )


def causal_mask(
    queries: int, keys: int | None = None, device: torch.device | str | None = None
) -> Bool[Tensor, "queries keys"]:
    """Return the mask that hides the future: True where the key is not later than the query.

    The last query stands at the last key (bottom-right), so with a cache the new tokens see all the old ones.

    Args:
        queries: number of new tokens.
        keys: number of all tokens, old and new; by default as many as queries. With fewer keys than queries the first
            queries see nothing.
        device: where the mask lives.

    Raises:
        ValueError: a number is negative or not whole.
    """
    keys = queries if keys is None else keys
    for name, number in (("queries", queries), ("keys", keys)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValueError(f"causal_mask({name}={number!r}): expected a whole number of 0 or more")
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def padding_mask(
    token_ids: Int[Tensor, "batch keys"] | None = None,
    pad_id: int | None = None,
    *,
    attention_mask: Num[Tensor, "batch keys"] | Bool[Tensor, "batch keys"] | None = None,
) -> Bool[Tensor, "batch 1 1 keys"]:
    """Return the mask that hides padding from every head and every query: True where the key is a real token.

    Give either the token ids and the id that fills them up, or a tokenizer's ``attention_mask``; that one is right also
    where the padding id is an ordinary token (GPT-2 pads with its end-of-text).

    Args:
        token_ids: ids of the tokens.
        pad_id: the id that stands for padding.
        attention_mask: 1 or True for a token, 0 or False for padding.

    Raises:
        TypeError: both or neither were given, or the ids are not whole numbers.
        ValueError: the shape is not (batch, keys), or the attention mask holds other values.
    """
    if (token_ids is None) == (attention_mask is None) or (token_ids is None) != (pad_id is None):
        raise TypeError("padding_mask() takes either token_ids and pad_id, or attention_mask=... alone")
    name, given = ("token_ids", token_ids) if attention_mask is None else ("attention_mask", attention_mask)
    if not isinstance(given, Tensor):
        raise TypeError(f"padding_mask() got {name} of type {_kind(given)}; expected a tensor (batch, keys)")
    if given.ndim != 2:
        raise ValueError(f"padding_mask() got {name} of shape {tuple(given.shape)}; expected (batch, keys)")
    if pad_id is not None:
        if given.is_floating_point() or given.dtype == torch.bool:
            raise TypeError(f"padding_mask() got token_ids of type {given.dtype}; expected whole numbers")
        return (given != pad_id)[:, None, None, :]
    keep = given != 0
    wrong = given[keep != given]
    if wrong.numel():
        raise ValueError(
            f"padding_mask() got attention_mask with the value {wrong[0]:g}; expected 1 for a token, 0 for padding"
        )
    return keep[:, None, None, :]


def split_heads(states: Float[Tensor, "batch tokens width"], heads: int) -> Float[Tensor, "batch heads tokens size"]:
    """Cut each token's vector into one piece per head; the first piece goes to the first head.

    Args:
        states: queries, keys or values of all heads, one after another.
        heads: number of heads, a divisor of the width.

    Returns:
        The same numbers, without a copy, with the heads in front of the tokens, as attention needs them.

    Raises:
        ValueError: the heads do not divide the width.
    """
    if states.shape[-1] % heads:
        raise ValueError(f"split_heads(heads={heads}) cannot cut vectors of width {states.shape[-1]} into equal pieces")
    return states.unflatten(-1, (heads, states.shape[-1] // heads)).transpose(1, 2)


def merge_heads(states: Float[Tensor, "batch heads tokens size"]) -> Float[Tensor, "batch tokens width"]:
    """Put the heads' pieces of each token's vector side by side again; undoes :func:`split_heads`."""
    return states.transpose(1, 2).flatten(2)


def attention_multiplications(tokens: int, width: int) -> tuple[int, int]:
    """Count the multiplications of one layer of multi-head self-attention, without mask, biases and softmax.

    Args:
        tokens: length of the sequence.
        width: width of the vectors; the heads share it, so their number does not matter.

    Returns:
        Those of the four linear maps (query, key, value, output), which grow with the tokens, and those of the two
        products (query with key, weights with value), which grow with their square.
    """
    return 4 * tokens * width**2, 2 * tokens**2 * width


class KeyValueCache:
    """Keys and values that one attention layer has computed, kept for the tokens still to come.

    In self-attention it grows with every step; in cross-attention it is filled once and read from then on. Without
    gradients it writes into a buffer that doubles when full, so that one step does not copy all the steps before.

    Attributes:
        length: number of tokens held.
    """

    def __init__(self) -> None:
        self.length = 0
        self._key: Tensor | None = None
        self._value: Tensor | None = None

    @property
    def key(self) -> Float[Tensor, "batch heads keys size"] | None:
        """The keys held, or None while empty."""
        return None if self._key is None else self._key[..., : self.length, :]

    @property
    def value(self) -> Float[Tensor, "batch heads keys value_size"] | None:
        """The values held, or None while empty."""
        return None if self._value is None else self._value[..., : self.length, :]

    def append(
        self,
        key: Float[Tensor, "batch heads new size"],
        value: Float[Tensor, "batch heads new value_size"],
    ) -> tuple[Float[Tensor, "batch heads keys size"], Float[Tensor, "batch heads keys value_size"]]:
        """Add the keys and values of new tokens, and return those of all tokens.

        Args:
            key: keys of the new tokens.
            value: values of the new tokens.

        Raises:
            ValueError: they do not fit what is held: other batch, heads, size, dtype or device.
        """
        if key.ndim != 4 or value.ndim != 4 or key.shape[:3] != value.shape[:3]:
            raise ValueError(
                f"the cache got keys of shape {tuple(key.shape)} and values of shape {tuple(value.shape)}; "
                "expected (batch, heads, tokens, size) with the first three equal"
            )
        self._key = _extended(self._key, key, self.length, "keys")
        self._value = _extended(self._value, value, self.length, "values")
        self.length += key.shape[2]
        return self._key[..., : self.length, :], self._value[..., : self.length, :]

    def reorder(self, rows: Int[Tensor, "new_batch"]) -> None:
        """Put the batch into a new order; rows may repeat or be left out (beam search).

        Args:
            rows: for each new row, the number of the old row that it continues.

        Raises:
            ValueError: a row is not there.
        """
        if self._key is None or self._value is None:
            return
        batch = self._key.shape[0]
        if rows.ndim != 1 or (rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < batch):
            raise ValueError(f"reorder() got the rows {rows.tolist()}; expected numbers from 0 to {batch - 1}")
        rows = rows.to(self._key.device)
        self._key = self._key[..., : self.length, :].index_select(0, rows)
        self._value = self._value[..., : self.length, :].index_select(0, rows)


class MultiHeadAttention(nn.Module):
    """Attention with several heads (Vaswani et al., 2017, section 3.2.2), for self- and cross-attention.

    Fewer key/value heads than heads make it grouped-query (Ainslie et al., 2023) or, with one, multi-query attention
    (Shazeer, 2019). The weights are four linear maps whose rows (columns, for ``output``) hold one head after another:
    BERT, LLaMA and T5 fit as they are; GPT-2's ``c_attn`` is split in three and transposed; BLOOM's ``query_key_value``
    is viewed as (heads, 3, head size, width) first.

    Attributes:
        query: ``Linear(width, heads * head_size)``.
        key: ``Linear(context_width, key_value_heads * head_size)``.
        value: ``Linear(context_width, key_value_heads * head_size)``.
        output: ``Linear(heads * head_size, width)``.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_value_heads: int | None = None,
        head_size: int | None = None,
        bias: bool = True,
        output_bias: bool | None = None,
        dropout: float = 0.0,
        scale: float | None = None,
        context_width: int | None = None,
        float32_softmax: bool = False,
    ) -> None:
        """Create the layer.

        Args:
            width: width of the tokens' vectors.
            heads: number of heads.
            key_value_heads: number of key/value heads, a divisor of ``heads``; by default ``heads``.
            head_size: width of one head; by default ``width / heads``.
            bias: whether query, key and value have biases.
            output_bias: whether the output has one; by default as ``bias``.
            dropout: share of the weights set to 0 in training.
            scale: factor on the dot products; by default ``1 / sqrt(head_size)``. T5 uses 1.
            context_width: width of the vectors that keys and values come from; by default ``width``.
            float32_softmax: where weights are returned, take torch's softmax in float32 even of float64 scores, as
                LLaMA's code in ``transformers`` does; only there can the two agree beyond eight digits.

        Raises:
            ValueError: the numbers do not fit one another.
        """
        super().__init__()
        key_value_heads = heads if key_value_heads is None else key_value_heads
        context_width = width if context_width is None else context_width
        for name, number in (
            ("width", width),
            ("heads", heads),
            ("key_value_heads", key_value_heads),
            ("head_size", 1 if head_size is None else head_size),
            ("context_width", context_width),
        ):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"MultiHeadAttention({name}={number!r}): expected a whole number of 1 or more")
        if head_size is None and width % heads:
            raise ValueError(
                f"MultiHeadAttention(width={width}, heads={heads}): the width must be a multiple of the heads; "
                "choose another number of heads, or give head_size"
            )
        if heads % key_value_heads:
            raise ValueError(
                f"MultiHeadAttention(heads={heads}, key_value_heads={key_value_heads}): each key/value head serves the "
                "same number of heads, so key_value_heads must divide heads"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"MultiHeadAttention(dropout={dropout}): expected a share from 0 to below 1")
        self.width, self.heads, self.key_value_heads, self.context_width = width, heads, key_value_heads, context_width
        self.head_size = width // heads if head_size is None else head_size
        self.dropout, self.scale, self.float32_softmax = dropout, scale, float32_softmax
        self.query = nn.Linear(width, heads * self.head_size, bias=bias)
        self.key = nn.Linear(context_width, key_value_heads * self.head_size, bias=bias)
        self.value = nn.Linear(context_width, key_value_heads * self.head_size, bias=bias)
        self.output = nn.Linear(heads * self.head_size, width, bias=bias if output_bias is None else output_bias)

    def forward(
        self,
        hidden: Float[Tensor, "batch queries width"],
        context: Float[Tensor, "batch context context_width"] | None = None,
        mask: Mask | None = None,
        *,
        causal: bool = False,
        bias: Float[Tensor, "..."] | None = None,
        rotary: RotaryHook | None = None,
        positions: Int[Tensor, "*batch_or_not queries"] | None = None,
        cache: KeyValueCache | None = None,
        return_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch queries width"], Float[Tensor, "batch heads queries keys"] | None]:
        """Let each token of ``hidden`` gather from itself and the others, or from the tokens of ``context``.

        Args:
            hidden: the tokens that ask.
            context: the tokens that are asked (cross-attention); by default ``hidden`` (self-attention).
            mask: broadcastable to (batch, heads, queries, keys), keys being old and new ones. Bool: True = may attend.
                Float: added to the scores.
            causal: hide later tokens; joined with the mask.
            bias: added to the scores (ALiBi, T5), broadcastable like the mask.
            rotary: called as ``rotary(states, positions)`` on queries and keys, (batch, heads, tokens, head_size).
            positions: places of the tokens of ``hidden``, for ``rotary``; by default they go on from the cache.
            cache: keys and values so far. Self-attention appends to it; cross-attention fills it the first time, and
                then reads it without looking at the context's vectors again.
            return_weights: compute the weights explicitly and return them; else torch's fused kernel runs.

        Returns:
            The output, and the weights (as before dropout, each row sums to 1 or is all 0) or None.

        Raises:
            TypeError: something has the wrong dtype.
            ValueError: shapes or devices do not fit, or causal or rotary was asked of cross-attention.
        """
        self._check(hidden, context, causal, rotary)
        query = split_heads(self.query(hidden), self.heads)
        if context is not None and cache is not None and cache.key is not None and cache.value is not None:
            if cache.length != context.shape[1]:
                raise ValueError(
                    f"the cache holds {cache.length} tokens of context, but the context has {context.shape[1]}: "
                    "use a new KeyValueCache for a new context"
                )
            key, value = cache.key, cache.value
        else:
            source = hidden if context is None else context
            key = split_heads(self.key(source), self.key_value_heads)
            value = split_heads(self.value(source), self.key_value_heads)
            if rotary is not None:
                if positions is None:
                    start = 0 if cache is None else cache.length
                    positions = torch.arange(start, start + hidden.shape[1], device=hidden.device)
                query, key = rotary(query, positions), rotary(key, positions)
            if cache is not None:
                key, value = cache.append(key, value)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if return_weights:
            groups = self.heads // self.key_value_heads
            key, value = _repeated(key, groups), _repeated(value, groups)
            _check(query, key, value, mask, bias)
            merged = _merged(query, key.shape[-2], mask, causal, bias)
            weights = _weights(query, key, merged, self.scale, None, self.float32_softmax)
            mixed = (F.dropout(weights, dropout) @ value.to(weights.dtype)).to(query.dtype)
            weights = weights.to(query.dtype)
        else:
            if mask is not None or bias is not None:
                _check_masks((*query.shape[:-1], key.shape[-2]), query.device, mask, bias)
            mixed = fused_attention(
                query, key, value, mask, causal=causal, scale=self.scale, bias=bias, dropout=dropout
            )
        return self.output(merge_heads(mixed)), weights

    def extra_repr(self) -> str:
        """Say what the linear maps do not show."""
        return f"heads={self.heads}, key_value_heads={self.key_value_heads}, head_size={self.head_size}"

    def _check(self, hidden: Tensor, context: Tensor | None, causal: bool, rotary: RotaryHook | None) -> None:
        for name, tensor, width in (("hidden", hidden, self.width), ("context", context, self.context_width)):
            if tensor is not None and (tensor.ndim != 3 or tensor.shape[-1] != width):
                raise ValueError(
                    f"MultiHeadAttention got {name} of shape {tuple(tensor.shape)}; expected (batch, tokens, {width})"
                )
            weight = self.query.weight
            if tensor is not None and tensor.device != weight.device:
                raise ValueError(f"{name} is on {tensor.device}, the weights are on {weight.device}: use .to(device)")
            if tensor is None or tensor.dtype == weight.dtype or not weight.is_floating_point():
                continue
            if not torch.is_autocast_enabled(tensor.device.type):
                raise TypeError(f"{name} is {tensor.dtype}, the weights are {weight.dtype}: use .to(dtype)")
        if context is None:
            if self.context_width != self.width:
                raise ValueError(f"MultiHeadAttention(context_width={self.context_width}) needs a context")
            return
        if context.shape[0] != hidden.shape[0]:
            raise ValueError(
                f"MultiHeadAttention got a batch of {hidden.shape[0]} in hidden and of {context.shape[0]} in context"
            )
        if causal or rotary is not None:
            raise ValueError("causal and rotary speak of one sequence; with a context, leave them out")


def _weights(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scale: float | None,
    bias: Tensor | None,
    float32_softmax: bool = False,
) -> Tensor:
    """Return the attention weights, in float32 where the inputs are half precision."""
    if query.dtype in (torch.float16, torch.bfloat16):
        query, key = query.float(), key.float()
    scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)
    if not float32_softmax:
        return softmax(scores, dim=-1)
    empty = (scores == -math.inf).all(-1, keepdim=True)
    narrow = torch.softmax(scores.float().masked_fill(empty, 0), dim=-1)
    return narrow.masked_fill(empty, 0).to(scores.dtype)


def _merged(query: Tensor, keys: int, mask: Tensor | None, causal: bool, bias: Tensor | None) -> Tensor | None:
    """Join mask, causal mask and bias into one mask, Bool where it can be, else in the query's dtype."""
    if mask is not None and mask.dtype != torch.bool:
        bias, mask = (mask if bias is None else bias + mask), None
    if causal and query.shape[-2] > 1:
        future = causal_mask(query.shape[-2], keys, query.device)
        mask = future if mask is None else mask & future
    if bias is None:
        return mask
    bias = bias.to(query.dtype)
    return bias if mask is None else bias.masked_fill(~mask, -math.inf)


def _repeated(states: Tensor, groups: int) -> Tensor:
    """Give each of the grouped heads its copy of the key/value head that it shares."""
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def _extended(held: Tensor | None, new: Tensor, length: int, name: str) -> Tensor:
    """Return storage whose first ``length + new`` tokens are the held and the new ones."""
    if held is None:
        return new
    same = held.shape[:2] == new.shape[:2] and held.shape[3] == new.shape[3]
    if not same or held.dtype != new.dtype or held.device != new.device:
        raise ValueError(
            f"the cache holds {name} for (batch, heads, size) = {(*held.shape[:2], held.shape[3])} in {held.dtype} on "
            f"{held.device}; got {(*new.shape[:2], new.shape[3])} in {new.dtype} on {new.device}"
        )
    needed = length + new.shape[2]
    if torch.is_grad_enabled() and (held.requires_grad or new.requires_grad):
        return torch.cat((held[..., :length, :], new), dim=2)
    if needed > held.shape[2]:
        larger = held.new_empty((*held.shape[:2], max(needed, 2 * length), held.shape[3]))
        larger[..., :length, :] = held.detach()[..., :length, :]
        held = larger
    held[..., length:needed, :] = new
    return held


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None) -> torch.Size:
    """Refuse what does not fit, with one clear error, and return the shape of the weights."""
    named = {"query": query, "key": key, "value": value}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
            raise TypeError(f"{name} is {_kind(tensor)}; expected a tensor of float16, bfloat16, float32 or float64")
        if tensor.ndim < 2:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected (..., tokens, size)")
        if tensor.dtype != query.dtype:
            raise TypeError(f"{name} is {tensor.dtype}, query is {query.dtype}; convert one with .to(dtype)")
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device}, query is on {query.device}; move one with .to(device)")
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in named.items())
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key differ in their last dimension, over which the dot product runs: {shapes}")
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"key and value differ in their number of tokens, the last dimension but one: {shapes}")
    try:
        leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    except RuntimeError:
        raise ValueError(f"the leading dimensions cannot be broadcast together: {shapes}") from None
    shape = torch.Size((*leading, query.shape[-2], key.shape[-2]))
    _check_masks(tuple(shape), query.device, mask, bias)
    return shape


def _check_masks(shape: tuple[int, ...], device: torch.device, mask: Tensor | None, bias: Tensor | None) -> None:
    for name, tensor in (("mask", mask), ("bias", bias)):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor) or not (
            tensor.dtype in DTYPES or (name == "mask" and tensor.dtype == torch.bool)
        ):
            expected = "Bool (True = may attend; use .bool() on 0 and 1) or" if name == "mask" else "a tensor of"
            raise TypeError(
                f"{name} is {_kind(tensor)}; expected {expected} floating-point numbers added to the scores"
            )
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, query is on {device}; move one with .to(device)")
        try:
            fits = torch.broadcast_shapes(tensor.shape, shape) == shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; expected one that broadcasts to {shape} (..., queries, keys)"
            )
