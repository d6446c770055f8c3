"""Our Transformer with the weights of transformers' GPT-2, BERT and LLaMA gives their logits, states and maps."""

import copy

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
)

from course_utils.families import config_from_huggingface, from_huggingface
from course_utils.generation import greedy

COMMON = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0, attn_implementation="eager")


def gpt2(**options):
    return GPT2Config(**{**dict(vocab_size=53, n_positions=19, n_embd=35, n_layer=3, n_head=5), **COMMON, **options})


def bert(**options):
    sizes = dict(vocab_size=53, max_position_embeddings=19, hidden_size=35, num_hidden_layers=3, num_attention_heads=5)
    return BertConfig(**{**sizes, "intermediate_size": 51, **COMMON, **options})


def llama(**options):
    sizes = dict(vocab_size=53, max_position_embeddings=19, hidden_size=36, num_hidden_layers=3, num_attention_heads=6)
    return LlamaConfig(**{**sizes, "num_key_value_heads": 2, "intermediate_size": 51, **COMMON, **options})


CASES = {
    "gpt2": lambda: GPT2LMHeadModel(gpt2()),
    "gpt2, untied, narrow MLP, ReLU, unscaled": lambda: GPT2LMHeadModel(
        gpt2(tie_word_embeddings=False, n_inner=21, activation_function="relu", scale_attn_weights=False)
    ),
    "gpt2, no head": lambda: GPT2Model(gpt2()),
    "bert": lambda: BertForMaskedLM(bert()),
    "bert, untied, 3 segments": lambda: BertForMaskedLM(bert(tie_word_embeddings=False, type_vocab_size=3)),
    "bert, no head": lambda: BertModel(bert()),
    "llama, grouped heads": lambda: LlamaForCausalLM(llama()),
    "llama, multi-query, tied, biases, wide heads": lambda: LlamaForCausalLM(
        llama(
            num_key_value_heads=1,
            tie_word_embeddings=True,
            attention_bias=True,
            mlp_bias=True,
            head_dim=10,
            rope_parameters=dict(rope_type="default", rope_theta=777.0),
        )
    ),
    "llama, no head": lambda: LlamaModel(llama(num_key_value_heads=6)),
}


def randomised(make, dtype=torch.float32):
    """Return the model with every weight random: norms and biases too."""
    torch.manual_seed(3)
    model = make()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name.lower() or "ln_" in name), std=0.15)
    return model.to(dtype).eval()


def largest_difference(ours, theirs, real):
    """Compare only the places of real tokens: (batch, tokens, ...)."""
    return (ours - theirs)[real].abs().max().item()


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case, dtype, tolerance, padding):
    theirs = randomised(CASES[case], dtype)
    ours = from_huggingface(theirs)
    ids, mask = torch.randint(1, 53, (3, 13)), torch.ones(3, 13, dtype=torch.long)
    if padding == "right":
        mask[1, 6:] = mask[2, 12:] = 0
    elif padding == "left":
        mask[1, :7] = mask[2, :1] = 0
    kinds = {"token_type_ids": torch.randint(0, 2, (3, 13))} if case.startswith("bert") else {}
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, output_attentions=True, output_hidden_states=True, **kinds)
        output = ours(ids, mask, return_attentions=True, return_hidden_states=True, **kinds)
        theirs.set_attn_implementation("sdpa")
        fused, expected_fused = ours(ids, mask, **kinds), theirs(ids, attention_mask=mask, **kinds)
    real = mask.bool()
    if "no head" not in case:
        assert largest_difference(fused.logits, expected_fused.logits, real) < tolerance
    if case.startswith("llama") and dtype is torch.float64 and padding == "left":
        assert expected.hidden_states[-1].isnan().any()  # their float64 mask overflows in their float32 softmax
        return
    assert len(output.hidden_states) == len(expected.hidden_states) == 4
    assert len(output.attentions) == len(expected.attentions) == 3
    for state, other in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert largest_difference(state, other, real) < tolerance
    for weights, other in zip(output.attentions, expected.attentions, strict=True):
        assert weights.shape == other.shape
        assert largest_difference(weights.transpose(1, 2), other.transpose(1, 2), real) < tolerance
    if "no head" in case:
        assert output.logits is None
    else:
        assert largest_difference(output.logits, expected.logits, real) < tolerance
    assert largest_difference(output.last_hidden_state, expected.hidden_states[-1], real) < tolerance


@pytest.mark.parametrize("case", ["gpt2", "llama, grouped heads"])
def test_greedy_equals_generate_on_a_left_padded_batch(case):
    theirs = randomised(CASES[case])
    ids, mask = torch.randint(3, 53, (3, 6)), torch.ones(3, 6, dtype=torch.long)
    mask[1, :3] = mask[2, :1] = 0
    expected = theirs.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert torch.equal(greedy(from_huggingface(theirs), ids, 8, attention_mask=mask), expected[:, 6:])


def test_weights_are_copies_in_dtype_and_mode_of_the_original():
    theirs = randomised(CASES["gpt2"], torch.bfloat16).train()
    before = copy.deepcopy(theirs.state_dict())
    ours = from_huggingface(theirs)
    assert ours.training
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}
    assert all(parameter.requires_grad for parameter in ours.parameters())
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in theirs.state_dict().items())


def test_gradients_equal_transformers():
    theirs = randomised(CASES["gpt2"], torch.float64)
    ours, ids = from_huggingface(theirs), torch.randint(0, 53, (2, 9))
    theirs(ids).logits.logsumexp(-1).sum().backward()
    ours(ids).logits.logsumexp(-1).sum().backward()
    pairs = [
        (ours.embeddings.weight, theirs.transformer.wte.weight),
        (ours.decoder.positions.weight, theirs.transformer.wpe.weight),
        (ours.decoder.layers[1].feed_forward.up.weight.T, theirs.transformer.h[1].mlp.c_fc.weight),
    ]
    gradients = [(ours.embeddings.weight.grad, theirs.transformer.wte.weight.grad)]
    gradients += [(ours.decoder.positions.weight.grad, theirs.transformer.wpe.weight.grad)]
    up = ours.decoder.layers[1].feed_forward.up.weight.grad
    gradients += [(up.T, theirs.transformer.h[1].mlp.c_fc.weight.grad)]
    assert all(torch.equal(mine, other) for mine, other in pairs)
    assert all((mine - other).abs().max() < 1e-10 for mine, other in gradients)


def test_a_family_is_a_row_of_switches():
    switches = dict(config_from_huggingface(CASES["llama, grouped heads"]()).describe())
    assert switches["positions"] == "rotary"
    assert switches["norm"] == "rmsnorm"
    assert switches["gated"] == "True"
    assert switches["key_value_heads"] == "2"
    assert "norm_place" not in switches  # as by default


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: torch.nn.Linear(2, 2), "Linear .* not a supported family; supported: bert, gpt2, llama"),
        (
            lambda: MistralForCausalLM(
                MistralConfig(
                    vocab_size=9,
                    hidden_size=8,
                    intermediate_size=8,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    num_key_value_heads=2,
                )
            ),
            "mistral",
        ),
        (lambda: BertForSequenceClassification(bert()), "BertForSequenceClassification .*BertModel, BertForMaskedLM"),
        (lambda: BertForMaskedLM(bert(is_decoder=True)), "is_decoder=True"),
        (lambda: GPT2LMHeadModel(gpt2(scale_attn_by_inverse_layer_idx=True)), "scale_attn_by_inverse_layer_idx=True"),
        (lambda: GPT2LMHeadModel(gpt2(add_cross_attention=True)), "add_cross_attention=True"),
        (lambda: GPT2LMHeadModel(gpt2(activation_function="tanh")), "activation 'tanh' is not supported"),
        (
            lambda: LlamaForCausalLM(llama(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=1e4))),
            "rope_parameters=.*linear",
        ),
    ],
)
def test_refuses_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        from_huggingface(make())


def test_refuses_a_weight_that_has_no_place():
    theirs = CASES["gpt2"]()
    theirs.transformer.h[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"transformer\.h\.0\.extra\.weight"):
        from_huggingface(theirs)
