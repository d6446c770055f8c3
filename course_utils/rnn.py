"""Recurrent language models, with the interface of :class:`course_utils.transformer.Transformer`.

A recurrent network reads one token after the other and carries a state of fixed size from each to the next. The cells
are torch's own; :func:`rnn_step`, :func:`lstm_step` and :func:`gru_step` are their equations, written out.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from course_utils.transformer import ModelOutput

CELLS: dict[str, type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def rnn_step(
    inputs: Float[Tensor, "batch inputs"],
    hidden: Float[Tensor, "batch width"],
    input_weight: Float[Tensor, "width inputs"],
    hidden_weight: Float[Tensor, "width width"],
    bias: Float[Tensor, "width"],
) -> Float[Tensor, "batch width"]:
    """One step of a plain recurrent network (Elman, 1990): ``tanh(W x + U h + b)``.

    Args:
        inputs: the token's vector.
        hidden: the state before.
        input_weight: W.
        hidden_weight: U.
        bias: b.

    Returns:
        The state after.
    """
    return torch.tanh(inputs @ input_weight.T + hidden @ hidden_weight.T + bias)


def lstm_step(
    inputs: Float[Tensor, "batch inputs"],
    hidden: Float[Tensor, "batch width"],
    cell: Float[Tensor, "batch width"],
    input_weight: Float[Tensor, "four_widths inputs"],
    hidden_weight: Float[Tensor, "four_widths width"],
    bias: Float[Tensor, "four_widths"],
) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch width"]]:
    """One step of a long short-term memory (Hochreiter and Schmidhuber, 1997; forget gate: Gers et al., 2000).

    Args:
        inputs: the token's vector.
        hidden: the output of the step before.
        cell: the memory after the step before.
        input_weight: four matrices one below the other, in torch's order: input gate, forget gate, candidate, output
            gate.
        hidden_weight: the same for the hidden state.
        bias: the same for the biases.

    Returns:
        Output and memory after this step.
    """
    scores = inputs @ input_weight.T + hidden @ hidden_weight.T + bias
    write, keep, candidate, show = scores.chunk(4, dim=-1)
    cell = torch.sigmoid(keep) * cell + torch.sigmoid(write) * torch.tanh(candidate)
    return torch.sigmoid(show) * torch.tanh(cell), cell


def gru_step(
    inputs: Float[Tensor, "batch inputs"],
    hidden: Float[Tensor, "batch width"],
    input_weight: Float[Tensor, "three_widths inputs"],
    hidden_weight: Float[Tensor, "three_widths width"],
    input_bias: Float[Tensor, "three_widths"],
    hidden_bias: Float[Tensor, "three_widths"],
) -> Float[Tensor, "batch width"]:
    """One step of a gated recurrent unit (Cho et al., 2014), with the reset gate behind the matrix, as in torch.

    Args:
        inputs: the token's vector.
        hidden: the state before.
        input_weight: three matrices one below the other, in torch's order: reset gate, update gate, candidate.
        hidden_weight: the same for the state.
        input_bias: the same for the first biases.
        hidden_bias: the same for the second ones.

    Returns:
        The state after.
    """
    from_input = (inputs @ input_weight.T + input_bias).chunk(3, dim=-1)
    from_hidden = (hidden @ hidden_weight.T + hidden_bias).chunk(3, dim=-1)
    reset = torch.sigmoid(from_input[0] + from_hidden[0])
    keep = torch.sigmoid(from_input[1] + from_hidden[1])
    candidate = torch.tanh(from_input[2] + reset * from_hidden[2])
    return keep * hidden + (1 - keep) * candidate


@dataclass(frozen=True)
class RecurrentConfig:
    """What makes a recurrent language model.

    Attributes:
        vocabulary_size: number of different tokens.
        cell: ``rnn``, ``gru`` or ``lstm``.
        width: size of a layer's state.
        layers: number of layers, one on top of the other.
        embedding_width: size of the vector that stands for a token; by default ``width``.
        tied_embeddings: the logits use the embeddings' weights; needs ``embedding_width == width``.
        dropout: share of the values between layers set to 0 in training.
        forget_bias: what an LSTM's forget gates begin with: at 1 it remembers before it has learned to (Jozefowicz et
            al., 2015, section 2.2).

    Raises:
        ValueError: a value is out of range, or two of them contradict each other.
    """

    vocabulary_size: int
    cell: str = "lstm"
    width: int = 128
    layers: int = 1
    embedding_width: int | None = None
    tied_embeddings: bool = True
    dropout: float = 0.0
    forget_bias: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.cell not in CELLS:
            raise ValueError(f"cell={self.cell!r}: expected one of {', '.join(CELLS)}")
        for name in ("vocabulary_size", "width", "layers", "embedding_width"):
            value = getattr(self, name)
            if name == "embedding_width" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}: expected a whole number, 1 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r}: expected a share from 0 to below 1")
        if not math.isfinite(self.forget_bias):
            raise ValueError(f"forget_bias={self.forget_bias!r}: expected a number, for example 1.0")
        if self.tied_embeddings and self.size_of_embedding != self.width:
            raise ValueError(
                f"tied_embeddings=True needs embedding_width={self.embedding_width} to equal width={self.width}: the "
                "logits are dot products of states and embeddings; set one of the two"
            )

    @property
    def size_of_embedding(self) -> int:
        """Size of the vector that stands for a token."""
        return self.width if self.embedding_width is None else self.embedding_width


@dataclass
class RecurrentCache:
    """What a recurrent model keeps between steps: its state, whose size does not depend on how much was read.

    Attributes:
        states: for each layer its tensors (batch, width): the hidden state, and an LSTM's memory.
        length: number of tokens read, padding included.
    """

    states: list[tuple[Tensor, ...]]
    length: int

    def reorder(self, rows: Int[Tensor, "new_batch"]) -> None:
        """Put the batch into a new order; rows may repeat or be left out (beam search).

        Args:
            rows: for each new row, the number of the old row that it continues.
        """
        self.states = [tuple(part[rows] for part in layer) for layer in self.states]


class RecurrentLanguageModel(nn.Module):
    """Embeddings, recurrent layers, and logits of the next token.

    Args:
        config: its sizes.
    """

    def __init__(self, config: RecurrentConfig):
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocabulary_size, config.size_of_embedding)
        widths = [config.size_of_embedding, *[config.width] * (config.layers - 1)]
        self.layers = nn.ModuleList(CELLS[config.cell](size, config.width, batch_first=True) for size in widths)
        self.dropout = nn.Dropout(config.dropout)
        self.head_weight = (
            None if config.tied_embeddings else nn.Parameter(torch.empty(config.vocabulary_size, config.width))
        )
        nn.init.normal_(self.embeddings.weight, std=config.size_of_embedding**-0.5)
        if self.head_weight is not None:
            nn.init.normal_(self.head_weight, std=config.width**-0.5)
        if config.cell == "lstm":
            for layer in self.layers:
                with torch.no_grad():
                    layer.get_parameter("bias_ih_l0")[config.width : 2 * config.width] = config.forget_bias
                    layer.get_parameter("bias_hh_l0")[config.width : 2 * config.width] = 0.0

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Num[Tensor, "batch seen"] | Bool[Tensor, "batch seen"] | None = None,
        *,
        cache: RecurrentCache | None = None,
        use_cache: bool = False,
        return_attentions: bool = False,
        return_hidden_states: bool = False,
    ) -> ModelOutput:
        """Run the model.

        Args:
            input_ids: the tokens, or with a cache the new ones.
            attention_mask: 1 for real tokens, 0 for padding, which leaves the state as it is; with a cache, for all
                tokens, read and new.
            cache: the cache that the last step returned; it is not changed.
            use_cache: return a cache, for the next step.
            return_attentions: for the interface; there are none, so ``attentions`` is then empty.
            return_hidden_states: return the embeddings and the states behind every layer.

        Returns:
            The output; states of padding are 0.

        Raises:
            TypeError: the ids are not whole numbers.
            ValueError: a shape does not fit, an id is not in the vocabulary, or the cache is another model's.
        """
        past = 0 if cache is None else cache.length
        keep = self._check(input_ids, attention_mask, cache, past)
        hidden = self.embeddings(input_ids)
        states, after = [hidden], []
        for number, layer in enumerate(self.layers):
            before = None if cache is None else cache.states[number]
            hidden, state = _run(layer, self.dropout(hidden) if number else hidden, before, keep)
            states.append(hidden)
            after.append(state)
        weight = self.embeddings.weight if self.head_weight is None else self.head_weight
        return ModelOutput(
            logits=hidden @ weight.T,
            last_hidden_state=hidden,
            hidden_states=tuple(states) if return_hidden_states else None,
            attentions=() if return_attentions else None,
            cache=RecurrentCache(after, past + input_ids.shape[1]) if use_cache or cache is not None else None,
        )

    def parameter_count(self) -> int:
        """Return the number of weights; tied ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _check(
        self, input_ids: Tensor, mask: Tensor | None, cache: RecurrentCache | None, past: int
    ) -> Bool[Tensor, "batch tokens"] | None:
        """Return the mask of the new tokens, or None where all of them are real."""
        if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
            raise TypeError(f"input_ids is {input_ids.dtype}; expected whole numbers (torch.long)")
        if input_ids.ndim != 2 or not input_ids.shape[1]:
            raise ValueError(
                f"input_ids has shape {tuple(input_ids.shape)}; expected (batch, tokens) with at least one token, for "
                "one text ids[None, :]"
            )
        low, high = int(input_ids.min()), int(input_ids.max())
        if not 0 <= low <= high < self.config.vocabulary_size:
            last = self.config.vocabulary_size - 1
            raise ValueError(f"input_ids holds ids from {low} to {high}, but the vocabulary ends at {last}")
        if cache is not None:
            shape = (input_ids.shape[0], self.config.width)
            parts = 2 if self.config.cell == "lstm" else 1
            found = [tuple(part.shape) for layer in cache.states for part in layer]
            if found != [shape] * (parts * self.config.layers):
                raise ValueError(
                    f"the cache holds states of the shapes {found}, expected {parts} of {shape} in each of "
                    f"{self.config.layers} layers: it is another model's or another batch's"
                )
        if mask is None:
            return None
        expected = (input_ids.shape[0], past + input_ids.shape[1])
        if tuple(mask.shape) != expected:
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}, expected {expected}: 1 or 0 for each token, read or new"
            )
        keep = mask[:, past:] != 0
        return None if bool(keep.all()) else keep


def _run(
    layer: Any, inputs: Tensor, before: tuple[Tensor, ...] | None, keep: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer from a state over the real tokens; return its outputs and the state behind the last of them."""
    batch, tokens, _ = inputs.shape
    if before is None:
        zeros = inputs.new_zeros(batch, layer.hidden_size)
        before = (zeros, zeros) if isinstance(layer, nn.LSTM) else (zeros,)
    given = tuple(part.unsqueeze(0).contiguous() for part in before)
    state = given if isinstance(layer, nn.LSTM) else given[0]
    if keep is None:
        outputs, state = layer(inputs, state)
        return outputs, tuple(part.squeeze(0) for part in (state if isinstance(state, tuple) else (state,)))
    # Move the real tokens to the front, run them alone, and put the outputs back where their tokens stood.
    order = keep.long().argsort(dim=1, descending=True, stable=True)
    lengths = keep.sum(1)
    moved = inputs.take_along_dim(order[:, :, None], 1)
    packed = nn.utils.rnn.pack_padded_sequence(
        moved, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
    )
    packed, state = layer(packed, state)
    outputs = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True, total_length=tokens)[0]
    outputs = outputs.take_along_dim(order.argsort(1)[:, :, None], 1) * keep[:, :, None]
    parts = state if isinstance(state, tuple) else (state,)
    read = (lengths > 0)[:, None]
    return outputs, tuple(torch.where(read, new.squeeze(0), old) for new, old in zip(parts, before, strict=True))


def path_length(architecture: str, distance: int, layers: int) -> int:
    """Count the steps from a token to an output ``distance`` tokens later (Vaswani et al., 2017, table 1).

    Each is one application of a layer at one position, and none can begin before the one before it is done. So with
    ``distance = tokens - 1`` this is also how many steps a text takes at least, on a machine that does everything
    else at the same time.

    Args:
        architecture: ``recurrent``: one step to the right for each token, and one for each layer; or ``attention``:
            one for each layer, at any distance.
        distance: tokens between the two, 0 or more.
        layers: number of layers.

    Raises:
        ValueError: there is no such architecture, or a number is out of range.
    """
    if architecture not in ("recurrent", "attention") or distance < 0 or layers < 1:
        raise ValueError(
            f"path_length({architecture!r}, distance={distance}, layers={layers}): expected 'recurrent' or "
            "'attention', a distance of 0 or more and 1 layer or more"
        )
    return distance + layers if architecture == "recurrent" else layers


def key_value_cache_bytes(
    tokens: int, layers: int, key_value_heads: int, head_size: int, batch: int = 1, bytes_per_number: int = 4
) -> int:
    """Return the bytes of a Transformer's key/value cache: a key and a value for each token, head and layer.

    Args:
        tokens: number of tokens held.
        layers: number of blocks.
        key_value_heads: number of heads that have keys and values of their own.
        head_size: width of one head.
        batch: number of texts.
        bytes_per_number: 4 in float32, 2 in bfloat16.
    """
    return 2 * tokens * layers * key_value_heads * head_size * batch * bytes_per_number


def gradient_by_distance(model: nn.Module, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "tokens"]:
    """Measure how far back the gradient reaches: from the last output to the vector of the token d steps before it.

    A random direction of the last state is followed back to all embeddings (Bengio et al., 1994; Pascanu et al., 2013,
    section 2.1): where the norm is 0, no token that far back can teach the model anything.

    Args:
        model: a language model of this package, recurrent or not; its modes and gradients stay as they are.
        input_ids: the tokens.

    Returns:
        For each distance d = 0, 1, ..., the norm of the gradient, averaged over the batch (geometric mean), as a
        share of that at distance 0.

    Raises:
        ValueError: there is not even one token.
    """
    if input_ids.ndim != 2 or not input_ids.shape[1]:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; expected (batch, tokens), at least one token")
    output = model(input_ids, return_hidden_states=True)
    last = output.last_hidden_state[:, -1]
    direction = torch.randn(last.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((last * direction.to(last)).sum(), output.hidden_states[0])
    norms = gradient.norm(dim=-1).flip(1).clamp(min=torch.finfo(gradient.dtype).tiny)
    return (norms / norms[:, :1]).log().mean(0).exp()
