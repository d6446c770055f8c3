"""LoRA: equal to peft in outputs, gradients, training and files; merged; and what it refuses."""

import copy
import errno
import json
import os

import pytest
import torch
from torch import nn

from course_utils import lora
from course_utils.lora import LoRALinear, add_lora, load_adapter, merge, save_adapter, trained
from course_utils.transformer import Transformer, TransformerConfig

WIDTH, WORDS = 32, 60


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    quiet = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_positions=16, n_embd=WIDTH, n_layer=2, n_head=2, **quiet))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    return LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, num_key_value_heads=2, **sizes))


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = dict(hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    quiet = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return BertForSequenceClassification(BertConfig(vocab_size=WORDS, max_position_embeddings=16, **sizes, **quiet))


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = dict(d_model=WIDTH, d_kv=16, d_ff=48, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    return T5ForConditionalGeneration(
        T5Config(vocab_size=WORDS, dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **sizes)
    )


def ours():
    return Transformer(TransformerConfig(vocabulary_size=WORDS, width=WIDTH, layers=2, heads=2, gated=True))


MODELS = {"gpt2": gpt2, "llama": llama, "bert": bert, "t5": t5, "ours": ours}
TOO = {"bert": ("classifier", "bert.pooler.dense")}
IDS = torch.randint(2, WORDS, (3, 9), generator=torch.Generator().manual_seed(1))


def output(model):
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return model(input_ids=IDS, **({"decoder_input_ids": IDS[:, :5]} if encoder_decoder else {})).logits


def near(one, other, to=1e-6):
    """Equal, relative to the largest value: float32 holds seven digits."""
    return float((one - other).abs().max()) <= to * max(1.0, float(other.abs().max()))


def adapted(name, seed=0, rank=4, **changes):
    """A tiny model with an adapter that changes something."""
    torch.manual_seed(seed)
    model = MODELS[name]().eval()
    plain = copy.deepcopy(model)
    names = add_lora(model, rank=rank, alpha=12, train_too=TOO.get(name, ()), **changes)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.up, std=0.2)
    return model, plain, names


def ours_by_peft(theirs):
    """Our names of the parameters that peft trains."""
    found = {}
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            name = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
            name = name.replace(".lora_A.default.weight", ".down").replace(".lora_B.default.weight", ".up")
            found[name] = parameter
    return found


@pytest.mark.parametrize("name", MODELS)
def test_equals_peft(name, tmp_path):
    from peft import PeftModel

    mine, plain, names = adapted(name)
    assert (output(mine) - output(plain)).abs().max() > 1e-2  # the adapter does something
    save_adapter(mine, tmp_path)
    theirs = PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path), is_trainable=True).eval()
    assert near(output(mine), output(theirs))

    mine.double(), theirs.double()  # so that what AdamW makes of rounding does not hide what the formulas make
    both = {key: (one, ours_by_peft(theirs)[key]) for key, one in mine.named_parameters() if one.requires_grad}
    assert len(both) == len(ours_by_peft(theirs)) == 2 * len(names) + 2 * len(TOO.get(name, ()))
    steps = [torch.optim.AdamW([pair[place] for pair in both.values()], lr=1e-3) for place in (0, 1)]
    for step in range(4):
        losses = [output(model).float().square().mean() for model in (mine, theirs)]
        for loss in losses:
            loss.backward()
        for key, (one, other) in both.items():
            assert near(one.grad, other.grad), (step, key)
        for optimizer in steps:
            optimizer.step()
            optimizer.zero_grad()
    assert near(output(mine), output(theirs), 2e-6)

    before = output(mine)
    merged, theirs_merged = merge(mine), theirs.merge_and_unload()
    assert not any(isinstance(module, LoRALinear) for module in merged.modules())
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert near(output(merged), before, 2e-6)
    for key, weight in merged.state_dict().items():
        other = theirs_merged.state_dict()[key]
        assert near(weight, other), key


@pytest.mark.parametrize("name", MODELS)
def test_is_the_same_formula(name, tmp_path):
    from peft import PeftModel

    mine, plain, _ = adapted(name)
    save_adapter(mine, tmp_path)
    theirs = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    assert near(output(mine.double()), output(theirs.double()), 1e-13)


@pytest.mark.parametrize("name", MODELS)
def test_reads_what_peft_saves(name, tmp_path):
    from peft import LoraConfig, get_peft_model

    _, plain, names = adapted(name)
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=names, modules_to_save=list(TOO.get(name, ())), init_lora_weights=False
    )
    theirs = get_peft_model(copy.deepcopy(plain), config).eval()
    theirs.save_pretrained(str(tmp_path))
    mine = copy.deepcopy(plain)
    assert set(load_adapter(mine, tmp_path)) == set(names)
    assert near(output(mine), output(theirs))
    assert not mine.training
    layer = next(module for module in mine.modules() if isinstance(module, LoRALinear))
    assert (layer.rank, layer.alpha, layer.scale) == (3, 5, 5 / 3)
    assert trained(mine)[0] == sum(one.numel() for one in theirs.parameters() if one.requires_grad)


def test_begins_as_it_was_and_draws_alone():
    for name in MODELS:
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        before, state = output(model), torch.get_rng_state()
        names = add_lora(model, rank=2, train_too=TOO.get(name, ()))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.allclose(output(model), before, atol=1e-6)
        assert not any("lm_head" in one for one in names)  # "linear" means all but the output layer
    downs = [
        [layer.down for layer in adapted("t5", seed=0)[0].modules() if isinstance(layer, LoRALinear)] for _ in "ab"
    ]
    assert all(torch.equal(one, other) for one, other in zip(*downs, strict=True))
    other = adapted("gpt2", seed=0)[0].transformer.h[0].mlp.c_fc.down
    fresh = gpt2()
    add_lora(fresh, rank=4, seed=9)
    assert not torch.equal(fresh.transformer.h[0].mlp.c_fc.down, other)


def test_only_the_thin_matrices_learn():
    model, _, names = adapted("gpt2", targets=["c_attn"])
    assert names == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    count, every = trained(model)
    assert count == 2 * 4 * (WIDTH + 3 * WIDTH)
    assert every == sum(parameter.numel() for parameter in gpt2().parameters()) + count
    before = {name: one.clone() for name, one in model.state_dict().items()}
    output(model).square().mean().backward()
    torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1.0).step()
    moved = {name for name, one in model.state_dict().items() if not torch.equal(one, before[name])}
    assert moved == {f"{name}.{part}" for name in names for part in ("down", "up")}


def test_dropout_is_of_the_training_alone():
    layer = LoRALinear(nn.Linear(6, 5), rank=2, alpha=2, dropout=0.5)
    nn.init.normal_(layer.up)
    states = torch.randn(2, 3, 6)
    layer.eval()
    assert torch.equal(layer(states), layer(states))
    assert torch.allclose(layer(states), layer.base(states) + states @ layer.change().T, atol=1e-6)
    layer.train()
    assert not torch.equal(layer(states), layer(states))


def test_half_precision_base_keeps_float32_adapters():
    model = gpt2().to(torch.bfloat16)
    add_lora(model, rank=2)
    layer = model.transformer.h[0].mlp.c_fc
    assert layer.down.dtype is torch.float32 and layer.base.weight.dtype is torch.bfloat16
    assert output(model).dtype is torch.bfloat16
    nn.init.normal_(layer.up)
    expected = (layer.base.weight.float() + layer.change().T).to(torch.bfloat16)
    merge(model)
    assert (model.transformer.h[0].mlp.c_fc.weight.float() - expected.float()).abs().max() < 0.05


def test_merged_model_is_read_by_transformers(tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    model, _, _ = adapted("t5")
    before = output(model)
    merge(model).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert torch.allclose(output(AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()), before, atol=2e-5)


def test_refuses():
    model = gpt2()
    for rank in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match=r"rank=.*whole number of 1 or more"):
            add_lora(model, rank=rank)
    with pytest.raises(ValueError, match="dropout"):
        add_lora(model, dropout=1.0)
    with pytest.raises(ValueError, match="alpha"):
        add_lora(model, alpha=0)
    with pytest.raises(ValueError, match=r"no linear map q_proj; it has c_attn, c_proj, c_fc, lm_head"):
        add_lora(model, targets=["c_attn", "q_proj"])
    with pytest.raises(ValueError, match=r"target lm_head: its weights are tied \(transformer.wte.weight"):
        add_lora(model, targets=["lm_head"])
    with pytest.raises(ValueError, match="no linear map"):
        add_lora(nn.LayerNorm(3))
    with pytest.raises(ValueError, match="train_too='classifier'"):
        add_lora(model, train_too=["classifier"])
    with pytest.raises(ValueError, match="no adapter"):
        merge(model)
    with pytest.raises(ValueError, match="no adapter"):
        save_adapter(model, "nowhere")
    assert all(parameter.requires_grad for parameter in model.parameters())  # nothing of this changed the model
    add_lora(model)
    with pytest.raises(ValueError, match=r"has an adapter already \(at transformer.h.0.attn.c_attn\)"):
        add_lora(model)


def test_refuses_a_model_of_peft():
    from peft import LoraConfig, get_peft_model

    with pytest.raises(ValueError, match="adapter already"):
        add_lora(get_peft_model(gpt2(), LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"r": 5}, r"has the shape \(4, 32\), this model needs \(5, 32\)"),
        ({"use_dora": True}, "use_dora=True: only plain LoRA"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"bias": "all"}, "bias='all'"),
        ({"rank_pattern": {"c_fc": 2}}, "rank_pattern"),
        ({"lora_alpha": None}, "no r and lora_alpha"),
    ],
)
def test_refuses_another_kind_of_adapter(tmp_path, change, message):
    model, plain, _ = adapted("gpt2")
    save_adapter(model, tmp_path)
    path = tmp_path / lora.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    before = {name: one.clone() for name, one in plain.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_adapter(plain, tmp_path)
    assert {name for name, one in plain.state_dict().items() if torch.equal(one, before[name])} == set(before)
    assert all(parameter.requires_grad for parameter in plain.parameters())


def test_refuses_an_adapter_of_another_model(tmp_path):
    model, _, _ = adapted("gpt2")
    save_adapter(model, tmp_path)
    with pytest.raises(ValueError, match="no linear map of that name"):
        load_adapter(llama(), tmp_path)
    with pytest.raises(ValueError, match="adapter already"):
        load_adapter(model, tmp_path)
    classifier, _, _ = adapted("bert")
    save_adapter(classifier, tmp_path / "bert")
    from transformers import BertForTokenClassification

    with pytest.raises(ValueError, match=r"bert\.pooler"):
        load_adapter(BertForTokenClassification(classifier.config), tmp_path / "bert")
    with pytest.raises(ValueError, match="holds no adapter that can be read"):
        load_adapter(gpt2(), tmp_path / "nothing")
    (tmp_path / lora.WEIGHTS).write_bytes(b"cut off")
    with pytest.raises(ValueError, match="holds no adapter that can be read"):
        load_adapter(gpt2(), tmp_path)


def test_a_full_disk_leaves_the_old_adapter_whole(tmp_path, monkeypatch):
    import safetensors.torch

    model, plain, _ = adapted("gpt2")
    save_adapter(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    nn.init.normal_(model.transformer.h[0].mlp.c_fc.up)

    def full(tensors, path):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    load_adapter(plain, tmp_path)
