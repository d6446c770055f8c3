"""Exercises of the notebook ``week2/03_three_families_eight_models``."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from course_utils.checks.framework import Case, Exercise, Mistake, case
from course_utils.families import PALM, family_of
from course_utils.objectives import attention_pattern, corrupt, hide
from course_utils.training import IGNORED
from course_utils.transformer import TransformerConfig

# --- who may look at whom


def _pattern_cases() -> list[Case]:
    sizes = [(4, 3), (2, 5), (1, 1), (6, 0), (0, 4)]
    return [case(kind, *pair) for kind in ("encoder", "decoder", "encoder-decoder") for pair in sizes]


def _pattern(change: Callable[[Tensor, int], None]) -> Callable[[str, int, int], Tensor]:
    """The right pattern of the encoder-decoder with a change; the other two stay right."""

    def pattern(kind: str, source: int, target: int) -> Tensor:
        allowed = attention_pattern(kind, source, target)
        if kind == "encoder-decoder":
            change(allowed, source)
        return allowed

    return pattern


def _no_cross(allowed: Tensor, source: int) -> None:
    allowed[source:, :source] = False


def _source_sees_target(allowed: Tensor, source: int) -> None:
    allowed[:source] = True


def _target_sees_all(allowed: Tensor, source: int) -> None:
    allowed[source:] = True


def _causal_source(allowed: Tensor, source: int) -> None:
    allowed.tril_()


def _transposed(kind: str, source: int, target: int) -> Tensor:
    return attention_pattern(kind, source, target).T


def _not_itself(kind: str, source: int, target: int) -> Tensor:
    allowed = attention_pattern(kind, source, target)
    return allowed if kind == "encoder" else allowed & ~torch.eye(len(allowed), dtype=torch.bool)


def _prefix_decoder(kind: str, source: int, target: int) -> Tensor:
    return attention_pattern("encoder-decoder" if kind == "decoder" else kind, source, target)


def _encoder_decoder_swapped(kind: str, source: int, target: int) -> Tensor:
    swapped = {"encoder": "decoder", "decoder": "encoder"}
    return attention_pattern(swapped.get(kind, kind), source, target)


PATTERN = Exercise(
    name="families.attention_pattern",
    title="Who may look at whom",
    minutes=8,
    difficulty=2,
    importance=5,
    reference=attention_pattern,
    cases=_pattern_cases,
    mistakes=[
        Mistake(_pattern(_no_cross), "the target does not see the source: that is what cross-attention is for."),
        Mistake(
            _pattern(_source_sees_target),
            "the source looks at the target: the encoder has read the source before the first token is written.",
        ),
        Mistake(
            _pattern(_target_sees_all),
            "the target sees its own future: each of its tokens may look at itself and those before it only.",
        ),
        Mistake(
            _pattern(_causal_source),
            "the source of your encoder-decoder is causal: in its encoder each token sees all of the source.",
        ),
        Mistake(_transposed, "rows and columns have changed places: the row is the query, who looks."),
        Mistake(_not_itself, "a token does not see itself: the diagonal is allowed, the token has been read."),
        Mistake(_prefix_decoder, "your decoder reads the source from both sides: it is causal from the first token."),
        Mistake(_encoder_decoder_swapped, "encoder and decoder have changed places: it is the encoder that sees all."),
    ],
    hints=[
        "Begin with n = source + target and torch.ones(n, n, dtype=torch.bool): that is the encoder already.",
        "The decoder keeps the lower triangle, diagonal included: .tril().",
        "The encoder-decoder is the decoder's triangle in which allowed[:source, :source] has become True.",
    ],
)

# --- hiding tokens


def _hide_cases() -> list[Case]:
    found = []
    for seed, shape in enumerate([(40,), (3, 25), (2, 2, 9)]):
        draw = torch.Generator().manual_seed(seed)
        tokens, anything = (torch.randint(5, 90, shape, generator=draw) for _ in range(2))
        chosen, fate = (torch.rand(shape, generator=draw) for _ in range(2))
        found.append(case(tokens, chosen < 0.5, fate, anything, 3 + seed))
    found.append(case(*found[0].args, masked=0.3, random=0.5))
    return found


Shown = tuple[Tensor, Tensor]


def _all_masked(
    tokens: Tensor, chosen: Tensor, fate: Tensor, anything: Tensor, mask: int, masked: float = 0.8, random: float = 0.1
) -> Shown:
    return torch.where(chosen, mask, tokens), torch.where(chosen, tokens, IGNORED)


def _labels_everywhere(tokens: Tensor, *others: Any, **shares: Any) -> Shown:
    return hide(tokens, *others, **shares)[0], tokens


def _labels_of_mask_only(
    tokens: Tensor, chosen: Tensor, fate: Tensor, anything: Tensor, mask: int, masked: float = 0.8, random: float = 0.1
) -> Shown:
    shown, labels = hide(tokens, chosen, fate, anything, mask, masked, random)
    return shown, labels.masked_fill(fate >= masked, IGNORED)


def _labels_turned_round(tokens: Tensor, chosen: Tensor, *others: Any, **shares: Any) -> Shown:
    return hide(tokens, chosen, *others, **shares)[0], torch.where(chosen, IGNORED, tokens)


def _labels_of_what_is_shown(tokens: Tensor, chosen: Tensor, *others: Any, **shares: Any) -> Shown:
    shown, _ = hide(tokens, chosen, *others, **shares)
    return shown, torch.where(chosen, shown, IGNORED)


def _everywhere(tokens: Tensor, chosen: Tensor, *others: Any, **shares: Any) -> Shown:
    return hide(tokens, torch.ones_like(chosen), *others, **shares)[0], torch.where(chosen, tokens, IGNORED)


def _never_stays(
    tokens: Tensor, chosen: Tensor, fate: Tensor, anything: Tensor, mask: int, masked: float = 0.8, random: float = 0.1
) -> Shown:
    return hide(tokens, chosen, fate, anything, mask, masked, 1 - masked)


def _random_alone(
    tokens: Tensor, chosen: Tensor, fate: Tensor, anything: Tensor, mask: int, masked: float = 0.8, random: float = 0.1
) -> Shown:
    """Compares with the share itself, instead of the share on top of the masked ones: nothing becomes random."""
    shown = torch.where(chosen & (fate < random), anything, tokens)
    return torch.where(chosen & (fate < masked), mask, shown), torch.where(chosen, tokens, IGNORED)


def _zeros(tokens: Tensor, chosen: Tensor, *others: Any, **shares: Any) -> Shown:
    return hide(tokens, chosen, *others, **shares)[0], torch.where(chosen, tokens, 0)


HIDE = Exercise(
    name="families.hide",
    title="Hide tokens as BERT does",
    minutes=10,
    difficulty=3,
    importance=4,
    reference=hide,
    cases=_hide_cases,
    mistakes=[
        Mistake(
            _all_masked,
            "all chosen tokens became the mask: fate decides; only those below `masked` do, the next become any token, "
            "the last stay.",
        ),
        Mistake(_labels_everywhere, "every token has a label: where nothing was chosen it must be -100."),
        Mistake(
            _labels_of_mask_only,
            "only masked tokens have a label: those that were replaced or stayed were chosen too, and count.",
        ),
        Mistake(_labels_turned_round, "the labels stand at the tokens that were *not* chosen."),
        Mistake(_labels_of_what_is_shown, "the labels are what the model reads: they must be the original tokens."),
        Mistake(_everywhere, "tokens that were not chosen have changed: combine each condition with `chosen &`."),
        Mistake(_never_stays, "no chosen token stays as it was: above masked + random nothing is replaced."),
        Mistake(_random_alone, "no token became a random one: they are those from `masked` up to `masked + random`."),
        Mistake(_zeros, "where nothing was chosen the label must be -100, which the loss leaves out; 0 is a token."),
    ],
    hints=[
        "Three torch.where: one for each of the two replacements, one for the labels.",
        "First put `anything` where chosen & (fate < masked + random); then the mask over it where chosen & (fate < "
        "masked).",
        "Labels: torch.where(chosen, tokens, -100). Return (shown, labels).",
    ],
)

# --- span corruption


def _corrupt_cases() -> list[Case]:
    texts = ["00110001", "0100101110", "011", "0001", "0111101011"]
    found = []
    for seed, pattern in enumerate(texts):
        draw = torch.Generator().manual_seed(seed)
        tokens = torch.randint(40, 90, (len(pattern),), generator=draw)
        noise = torch.tensor([letter == "1" for letter in pattern])
        found.append(case(tokens, noise, [7, 3, 12, 5, 9, 30]))
    return found


Spans = tuple[Tensor, Tensor]


def _replaced(
    tokens: Tensor, gone: Tensor, sentinels: Sequence[int], every: bool = False, same: bool = False
) -> Tensor:
    row: list[int] = []
    used = -1
    for place, token in enumerate(tokens.tolist()):
        if not gone[place]:
            row.append(token)
        elif every or place == 0 or not gone[place - 1]:
            used += 1
            row.append(sentinels[0 if same else used % len(sentinels)])
    return torch.tensor(row, dtype=tokens.dtype)


def _one_each(tokens: Tensor, noise: Tensor, sentinels: Sequence[int]) -> Spans:
    return _replaced(tokens, noise, sentinels, every=True), _replaced(tokens, ~noise, sentinels)


def _one_for_all(tokens: Tensor, noise: Tensor, sentinels: Sequence[int]) -> Spans:
    return _replaced(tokens, noise, sentinels, same=True), _replaced(tokens, ~noise, sentinels, same=True)


def _without_marks(tokens: Tensor, noise: Tensor, sentinels: Sequence[int]) -> Spans:
    return _replaced(tokens, noise, sentinels), tokens[noise]


def _dropped(tokens: Tensor, noise: Tensor, sentinels: Sequence[int]) -> Spans:
    return tokens[~noise], _replaced(tokens, ~noise, sentinels)


def _whole_text(tokens: Tensor, noise: Tensor, sentinels: Sequence[int]) -> Spans:
    return _replaced(tokens, noise, sentinels), tokens


def _swapped(tokens: Tensor, noise: Tensor, sentinels: Sequence[int]) -> Spans:
    shown, hidden = corrupt(tokens, noise, sentinels)
    return hidden, shown


def _mark_behind(tokens: Tensor, noise: Tensor, sentinels: Sequence[int]) -> Spans:
    """Each span before its sentinel."""
    row: list[int] = []
    used = 0
    for place in range(len(tokens)):
        if noise[place]:
            row.append(int(tokens[place]))
            if place + 1 == len(tokens) or not noise[place + 1]:
                row.append(sentinels[used])
                used += 1
    return _replaced(tokens, noise, sentinels), torch.tensor(row)


def _no_last(tokens: Tensor, noise: Tensor, sentinels: Sequence[int]) -> Spans:
    shown, hidden = corrupt(tokens, noise, sentinels)
    return shown, hidden if noise[-1] else hidden[:-1]


CORRUPT = Exercise(
    name="families.corrupt",
    title="Cut spans out of a text",
    minutes=15,
    difficulty=3,
    importance=4,
    reference=corrupt,
    cases=_corrupt_cases,
    mistakes=[
        Mistake(_one_each, "every hidden token left a sentinel: a span leaves one, however long it is."),
        Mistake(_one_for_all, "all spans have the same sentinel: the k-th span takes sentinels[k]."),
        Mistake(_without_marks, "the targets lack the sentinels: each span stands behind its own."),
        Mistake(_dropped, "the input does not show where something is missing: put the span's sentinel there."),
        Mistake(_whole_text, "the targets are the whole text: only what was cut out is to be written."),
        Mistake(_swapped, "input and targets have changed places."),
        Mistake(
            _mark_behind, "in your targets the sentinel stands behind its span: it comes first, it says which gap."
        ),
        Mistake(
            _no_last,
            "a text that goes on behind its last span has one more sentinel at the end of the targets.",
        ),
    ],
    hints=[
        "The targets are made like the input, with `~noise` in place of `noise`: what stayed leaves a sentinel there.",
        "Walk through the tokens. One that is kept goes into the row. One that is gone puts a sentinel there if the "
        "token before it was not gone.",
        "Write a helper replaced(tokens, gone) that does so with a counter of used sentinels; return (replaced(tokens, "
        "noise), replaced(tokens, ~noise)) as tensors.",
    ],
)

# --- families by their switches


def _config_cases() -> list[Case]:
    base = TransformerConfig(50, width=24, heads=4, context_window=30)
    bert = replace(base, kind="encoder", positions="learned", norm_place="post", embedding_norm=True, segments=2)
    llama = replace(base, positions="rotary", norm="rmsnorm", activation="silu", gated=True, attention_bias=False)
    t5 = replace(base, kind="encoder-decoder", positions="t5", norm="rmsnorm", attention_bias=False, mlp_bias=False)
    bart = replace(t5, positions="learned", norm="layernorm", norm_place="post", attention_bias=True, mlp_bias=True)
    palm = TransformerConfig(50, width=24, heads=4, **PALM)
    rows = [
        bert,
        replace(bert, segments=1),
        replace(bert, segments=1, position_offset=2, padding_id=1),
        replace(base, positions="learned"),
        replace(base, positions="learned", activation="silu"),
        llama,
        replace(llama, key_value_heads=1),
        replace(llama, key_value_heads=2, attention_bias=True),
        palm,
        replace(palm, key_value_heads=4),
        replace(base, positions="alibi", embedding_norm=True),
        replace(t5, activation="relu"),
        replace(t5, activation="gelu", gated=True),
        replace(t5, activation="silu", gated=True),
        replace(bart, position_offset=2, embedding_norm=True),
    ]
    return [case(row) for row in rows]


def _confused(condition: Callable[[TransformerConfig], bool], answer: str) -> Callable[[TransformerConfig], str]:
    return lambda config: answer if condition(config) else family_of(config)


def _palm_by_sharing(config: TransformerConfig) -> str:
    if config.kind != "decoder" or config.positions != "rotary":
        return family_of(config)
    return "PaLM" if config.groups == 1 else "LLaMA"


def _gated_by_activation(config: TransformerConfig) -> str:
    if config.kind != "encoder-decoder" or config.positions == "learned":
        return family_of(config)
    return "T5" if config.activation == "relu" else "T5 1.1"


def _roberta_by_segments(config: TransformerConfig) -> str:
    if config.kind != "encoder":
        return family_of(config)
    return "RoBERTa" if config.segments < 2 else "BERT"


def _gated_decoder(config: TransformerConfig) -> str:
    return "LLaMA" if config.kind == "decoder" and config.gated else family_of(config)


FAMILY = Exercise(
    name="families.family_of",
    title="Tell a family by its switches",
    minutes=10,
    difficulty=2,
    importance=4,
    reference=family_of,
    cases=_config_cases,
    mistakes=[
        Mistake(
            _palm_by_sharing,
            "you tell PaLM by its one key/value head: a LLaMA may have one too. What does PaLM's block do that no "
            "other does?",
        ),
        Mistake(_gated_decoder, "every gated decoder is a LLaMA to you: PaLM is gated as well, but side by side."),
        Mistake(
            _roberta_by_segments,
            "you tell RoBERTa by its segments: a BERT may have one. RoBERTa counts positions without the padding: "
            "padding_id is set.",
        ),
        Mistake(
            _confused(lambda config: config.kind == "encoder", "BERT"),
            "RoBERTa is missing: it is an encoder whose padding has no position, so padding_id is not None.",
        ),
        Mistake(
            _confused(lambda config: config.positions == "t5", "T5"),
            "T5 1.1 is missing: its feed-forward network is gated.",
        ),
        Mistake(
            _confused(lambda config: config.positions == "learned" and config.kind != "encoder", "GPT-2"),
            "a BART has learned positions too, but it is an encoder-decoder: ask for the kind first.",
        ),
        Mistake(
            _confused(lambda config: config.embedding_norm and config.kind == "decoder", "GPT-2"),
            "BLOOM is missing: a decoder with ALiBi positions.",
        ),
    ],
    hints=[
        "Ask for config.kind first. That leaves two encoders, three encoder-decoders and four decoders.",
        "Among the decoders the positions tell: learned, alibi, rotary. Two have rotary; config.parallel parts them.",
        "Encoders: padding_id is None or not. Encoder-decoders: learned positions, else gated or not.",
    ],
)

EXERCISES = [PATTERN, HIDE, CORRUPT, FAMILY]
