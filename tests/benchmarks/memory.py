"""Predicted and measured memory of training steps and of caches, part by part, over a grid of settings."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from course_utils import families, memory, training
from course_utils.lora import add_lora
from course_utils.memory import Measured, Needs, Plan
from course_utils.transformer import Transformer, TransformerConfig

ABOUT = (
    "`memory.needs` against what `memory.measure_training` and `measure_generation` count: measured bytes, and in "
    "brackets how far the prediction is off. Random weights, sequences x tokens; gradients are freed after a step; "
    "this course's Transformer unless `transformers` is named. 8-bit Adam and NF4 are computed only."
)
LIMITS = {"weights": 0.1, "gradients": 0.1, "optimizer": 0.1, "cache": 0.1, "activations": 0.2, "peak": 0.2}
"""Largest deviation of a part that the course promises."""
SIZES: dict[str, dict[str, int]] = {
    "small": dict(width=64, layers=3, heads=4, mlp_width=256, vocabulary_size=500),
    "deep": dict(width=256, layers=8, heads=8, mlp_width=1024, vocabulary_size=300),
    "large": dict(width=256, layers=6, heads=8, mlp_width=1024, vocabulary_size=4000),
}
FAMILIES: dict[str, str] = {
    "gpt2": "gpt2",
    "llama": "llama2-70b",
    "bert": "bert-base",
    "t5": "t5-base",
    "bloom": "bloom-560m",
}
"""Name of a family to a published shape of it, whose switches it gets."""


@dataclass(frozen=True)
class Setting:
    """A model and what is done with it.

    Attributes:
        family: one of ``FAMILIES``.
        plan: what is done.
        size: one of ``SIZES``.
        dropout: keep the family's dropout.
    """

    family: str
    plan: Plan
    size: str = "small"
    dropout: bool = False

    def __str__(self) -> str:
        plan = self.plan
        said = [f"{self.family} {self.size}", f"{plan.batch} x {plan.tokens}"]
        said += ["transformers"] if plan.library == "transformers" else []
        said += [plan.weights] if plan.activations is None else [f"{plan.activations} autocast"]
        said += [plan.method] if plan.method != "full" else []
        said += [plan.optimizer] if plan.trains else []
        said += [] if plan.fused else ["maps stored"]
        said += ["checkpointed"] if plan.checkpointing else []
        return ", ".join([*said, *(["dropout"] if self.dropout else [])])


def settings(device: str = "cpu") -> list[Setting]:
    """Return the grid: families, sizes, batch and tokens, number formats, optimizers, methods."""

    def plan(batch: int = 4, tokens: int = 64, **switches: Any) -> Plan:
        return Plan(batch=batch, tokens=tokens, device=device, **switches)

    half: dict[str, Any] = dict(weights="bfloat16")
    mixed: dict[str, Any] = dict(activations="bfloat16")
    hub: dict[str, Any] = dict(library="transformers")
    return [
        Setting("gpt2", plan()),
        Setting("gpt2", plan(2, 128), "large"),
        Setting("gpt2", plan(8, 32, optimizer="momentum", fused=False)),
        Setting("gpt2", plan(**half, optimizer="adafactor")),
        Setting("gpt2", plan(**mixed), "large"),
        Setting("gpt2", plan(), dropout=True),
        Setting("gpt2", plan(checkpointing=True), "large"),
        Setting("gpt2", plan(method="lora"), "large"),
        Setting("gpt2", plan(method="inference")),
        Setting("llama", plan()),
        Setting("llama", plan(2, 128, **half), "large"),
        Setting("llama", plan(fused=False, optimizer="sgd")),
        Setting("llama", plan(**mixed, checkpointing=True), "large"),
        Setting("llama", plan(method="lora", targets=("query", "value"), **half)),
        Setting("llama", plan(1, 256, method="inference", **half), "large"),
        Setting("bert", plan()),
        Setting("bert", plan(2, 128, optimizer="adafactor"), "large", dropout=True),
        Setting("bert", plan(**mixed, fused=False)),
        Setting("t5", plan(source=96)),
        Setting("t5", plan(2, 64, **half, optimizer="sgd"), "large"),
        Setting("t5", plan(method="lora")),
        Setting("t5", plan(method="inference", source=96)),
        Setting("bloom", plan(optimizer="momentum")),
        Setting("gpt2", plan(1, 16), "deep"),
        Setting("gpt2", plan(), "deep"),
        Setting("gpt2", plan(checkpointing=True), "deep"),
        Setting("gpt2", plan(2, 128, fused=False), "deep"),
        Setting("gpt2", plan(**mixed, checkpointing=True), "deep"),
        Setting("llama", plan(2, 128, **half, checkpointing=True), "deep"),
        Setting("gpt2", plan(**hub)),
        Setting("gpt2", plan(2, 128, **hub, fused=False, **half), "large"),
        Setting("gpt2", plan(**hub, checkpointing=True), "large"),
        Setting("gpt2", plan(**hub, method="lora", targets=("query_key_value", "output", "up", "down"))),
        Setting("gpt2", plan(**hub, method="inference")),
        Setting("llama", plan(**hub)),
        Setting("llama", plan(2, 128, **hub, **mixed, optimizer="adafactor"), "large"),
        Setting("llama", plan(**hub, method="lora", targets=("query", "value"), **half)),
        Setting("llama", plan(**hub, method="inference", **half)),
        Setting("bert", plan(**hub, optimizer="sgd")),
        Setting("t5", plan(**hub, source=96)),
    ]


def run(setting: Setting) -> tuple[Needs, Measured]:
    """Predict and measure one setting."""
    torch.manual_seed(0)
    plan, model = setting.plan, build(setting)
    config = model.config if isinstance(model, Transformer) else families.config_from_huggingface(model)
    model.to(plan.device, getattr(torch, plan.weights)).train(plan.trains)
    if plan.method == "lora":
        add_lora(model, plan.rank, targets=_names(model, plan))
    ids = torch.randint(0, config.vocabulary_size, (plan.batch, plan.tokens), device=plan.device)
    batch: dict[str, Any] = dict(input_ids=ids, labels=ids)
    if config.kind == "encoder-decoder":
        source = plan.tokens if plan.source is None else plan.source
        batch["decoder_input_ids"] = ids
        batch["input_ids"] = torch.randint(0, config.vocabulary_size, (plan.batch, source), device=plan.device)
    if not plan.trains:
        del batch["labels"]
        return memory.needs(config, plan), memory.measure_generation(model, batch)
    if not plan.fused and plan.library == "course":
        batch["return_attentions"] = True
    if plan.library == "transformers" and config.kind != "encoder":
        batch["use_cache"] = False
    found = memory.measure_training(
        model,
        batch,
        optimizer=plan.optimizer,
        loss=training.next_token_loss if config.kind == "decoder" else training.aligned_loss,
        dtype=None if plan.activations is None else getattr(torch, plan.activations),
        checkpointing=plan.checkpointing,
    )
    return memory.needs(config, plan), found


def build(setting: Setting) -> nn.Module:
    """Return the model, of random weights."""
    sizes = SIZES[setting.size]
    shape = memory.SHAPES[FAMILIES[setting.family]]
    grouped = dict(key_value_heads=2) if shape.key_value_heads else {}
    config = dataclasses.replace(shape, head_size=None, **(sizes | grouped))
    if not setting.dropout:
        config = dataclasses.replace(config, dropout=0.0, attention_dropout=0.0)
    if setting.plan.library == "course":
        return Transformer(config)
    return _hub(config, setting)


def _hub(config: TransformerConfig, setting: Setting) -> nn.Module:
    """The same sizes as a model of ``transformers``."""
    import transformers

    kind = "sdpa" if setting.plan.fused else "eager"
    ids = dict(vocab_size=config.vocabulary_size, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    usual = dict(
        hidden_size=config.width, num_hidden_layers=config.layers, num_attention_heads=config.heads,
        intermediate_size=config.size_of_mlp,
    )  # fmt: skip
    share = config.dropout
    if setting.family == "gpt2":
        theirs: Any = transformers.GPT2Config(
            n_embd=config.width, n_layer=config.layers, n_head=config.heads, resid_pdrop=share, embd_pdrop=share,
            attn_pdrop=share, attn_implementation=kind, **ids,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(theirs)
    if setting.family == "llama":
        theirs = transformers.LlamaConfig(num_key_value_heads=config.groups, attn_implementation=kind, **usual, **ids)
        return transformers.LlamaForCausalLM(theirs)
    if setting.family == "bert":
        theirs = transformers.BertConfig(
            hidden_dropout_prob=share, attention_probs_dropout_prob=share, attn_implementation=kind, **usual, **ids
        )
        return transformers.BertForMaskedLM(theirs)
    theirs = transformers.T5Config(
        d_model=config.width, num_layers=config.layers, num_heads=config.heads, d_kv=config.size_of_head,
        d_ff=config.size_of_mlp, dropout_rate=share, decoder_start_token_id=0, attn_implementation=kind, **ids,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(theirs)


HUB_NAMES = {
    "gpt2": dict(query_key_value="c_attn", output="attn.c_proj", up="c_fc", down="mlp.c_proj"),
    "llama": dict(
        query="q_proj", key="k_proj", value="v_proj", output="o_proj", gate="gate_proj", up="up_proj", down="down_proj"
    ),
}


def _names(model: nn.Module, plan: Plan) -> list[str]:
    """The names of the plan's maps in this model."""
    if isinstance(model, Transformer):
        return [name for name in plan.targets if name != "gate" or model.config.gated]
    names = HUB_NAMES[model.config.model_type]
    return [names[target] for target in plan.targets if target in names]


def lines(quick: bool) -> list[str]:
    """Measure the grid on the CPU, and on CUDA where it is there; a row for each setting."""
    parts = ("weights", "gradients", "optimizer", "activations", "cache", "peak")
    shown: list[str] = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
        shown += ["", f"| {name} | {' | '.join(parts)} |", f"| --- |{' --- |' * len(parts)}"][not shown :]
        worst = dict.fromkeys(parts, 0.0)
        chosen = settings(device)[:: 3 if quick else 1]
        for setting in tqdm(chosen, desc=name, leave=False):
            cells = dict.fromkeys(parts, "")
            for part, _, measured, deviation in memory.compare(*run(setting)):
                cells[part] = f"{memory.size(measured)} ({deviation:+.1%})"
                worst[part] = max(worst[part], abs(deviation))
            shown.append(f"| {setting} | {' | '.join(cells.values())} |")
        said = (f"{value:.1%} of {LIMITS[part]:.0%}" for part, value in worst.items())
        shown.append(f"| largest deviation of {len(chosen)} settings, and the limit | {' | '.join(said)} |")
    return shown
