"""Quantization-aware training: its gradients by hand, its training by the one loop, its end bit for bit."""

import copy
import math

import pytest
import torch
from torch import nn

from course_utils import training
from course_utils.data.packing import packed_corpus, windows
from course_utils.models import load
from course_utils.quantization import quality
from course_utils.quantization.aware import AwareLinear, aware, distillation, fake_quantize, freeze, reach, recovered
from course_utils.quantization.layers import QuantizedLinear, bytes_of, linear_maps, quantize
from course_utils.quantization.schemes import Scheme, encode, parameters
from course_utils.transformer import Transformer, TransformerConfig

SCHEMES = [
    Scheme(2, "group", 16, full=True),
    Scheme(2, "group", 16, symmetric=False),
    Scheme(3, "channel"),
    Scheme(4, "tensor", symmetric=False, scales="float32"),
    Scheme(4, "group", 16, codes="nf4", scales="bfloat16"),
    Scheme(8, "channel", codes="float8"),
]
each = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)


def weights(rows=12, columns=32, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / 6


def small():
    torch.manual_seed(3)
    return Transformer(TransformerConfig(40, width=32, layers=2, heads=2, mlp_width=64))


def text(number, rows=8):
    chance = torch.Generator().manual_seed(number)
    start = torch.randint(40, (rows, 1), generator=chance)
    return {"input_ids": (start + 3 * torch.arange(12)) % 40}  # counts in steps of three


# --- gradients


def test_rounding_has_no_slope_and_the_straight_through_estimator_has_one():
    scheme = Scheme(3, "channel", scales="float32")
    weight, scales = torch.tensor([[0.3, -0.4, 3.0]]), torch.tensor([[1.0]])
    by_torch = weight.clone().requires_grad_()
    (by_torch / scales).round().sum().backward()
    assert by_torch.grad.tolist() == [[0, 0, 0]]
    through = weight.clone().requires_grad_()
    arriving = torch.tensor([[2.0, -5.0, 0.5]])
    (fake_quantize(through, scales, None, scheme) * arriving).sum().backward()
    assert torch.equal(through.grad, arriving)


def test_lsqs_gradient_by_hand():
    """Esser et al. (2020), equation 3: round(v/s) - v/s within reach, -Qn or Qp beyond it; equation 5 for v."""
    scheme = Scheme(2, "channel", full=True, scales="float32")  # -2 to 1
    scale = torch.tensor([[0.5]], requires_grad=True)
    for v, of_scale, of_weight in ((0.15, -0.3, 1), (0.3, 0.4, 1), (-0.6, 0.2, 1), (-1.9, -2, 0), (0.8, 1, 0)):
        weight = torch.tensor([[v]], requires_grad=True)
        found = torch.autograd.grad(fake_quantize(weight, scale, None, scheme).sum(), (weight, scale))
        assert found[0].item() == of_weight
        assert found[1].item() == pytest.approx(of_scale, abs=1e-6)


@each
def test_gradients_equal_the_formula_for_whole_matrices(scheme):
    weight = weights().requires_grad_()
    scales, zeros = parameters(weights(), scheme)
    scales = (0.6 * scales).requires_grad_()  # so that some are out of reach
    arriving = weights(seed=5)
    decoded = fake_quantize(weight, scales, zeros, scheme)
    decoded.backward(arriving)
    wide = (*scales.shape, -1)
    v, q, g = (one.detach().view(wide).double() for one in (weight, decoded, arriving))
    s = scales.detach()[..., None].double()
    low, high = reach(None if zeros is None else zeros[..., None], scheme)
    low, high = (torch.as_tensor(one).expand_as(v) for one in (low, high))
    inside = (v / s > low) & (v / s < high)
    expected = torch.where(inside, q / s - v / s, torch.where(v / s < low, low, high).double())
    assert int((~inside).sum()) > 0 or scheme.codes == "float8"
    assert torch.allclose(scales.grad.double(), (expected * g).sum(-1), atol=1e-5)
    assert torch.allclose(weight.grad.view(wide).double(), g * inside)


def test_the_gradients_are_those_of_the_function_without_its_steps():
    """Hold the rounding errors fixed: what is left is smooth, and its slopes by finite differences are LSQ's."""
    scheme = Scheme(3, "group", 16, scales="float32")
    weight = weights()
    scales, _ = parameters(weight, scheme)
    scales = 0.7 * scales
    arriving, h = weights(seed=6).double(), 1e-6
    low, high = scheme.levels
    error = (weight / scales.repeat_interleave(16, 1)).double()
    error = error.clamp(low, high).round() - error.clamp(low, high)

    def smoothed(v, s):
        each = s.repeat_interleave(16, 1)
        return ((((v / each).clamp(low, high) + error) * each) * arriving).sum()

    v, s = weight.double(), scales.double()
    a, b = weight.clone().requires_grad_(), scales.clone().requires_grad_()
    fake_quantize(a, b, None, scheme).backward(arriving.float())
    for place in ((0, 0), (3, 17), (11, 31)):
        move = torch.zeros_like(v)
        move[place] = h
        slope = (smoothed(v + move, s) - smoothed(v - move, s)) / (2 * h)
        assert a.grad[place].item() == pytest.approx(slope.item(), abs=1e-4)
    for place in ((0, 0), (5, 1)):
        move = torch.zeros_like(s)
        move[place] = h
        slope = (smoothed(v, s + move) - smoothed(v, s - move)) / (2 * h)
        assert b.grad[place].item() == pytest.approx(slope.item(), abs=1e-4)


def test_learned_scales_get_the_papers_gradient_scale():
    """Section 2.2: 1 / sqrt(number of weights * Qp); through the logarithm times the scale itself."""
    scheme = Scheme(3, "channel", scales="float32")
    layer = AwareLinear(weights(), None, scheme)
    layer.rounded().backward(weights(seed=7))
    scales = layer.log_scales.detach().exp().view(-1, 1).requires_grad_()
    fake_quantize(layer.weight.detach(), scales, None, scheme).backward(weights(seed=7))
    expected = scales.grad * scales.detach() / math.sqrt(32 * 3)
    assert torch.allclose(layer.log_scales.grad, expected.flatten(), rtol=1e-4, atol=1e-7)


# --- the model


@each
@pytest.mark.parametrize("learned", [True, False])
def test_begins_as_rounding_to_nearest_and_freezes_to_what_it_computes(scheme, learned):
    layer = AwareLinear(weights(), torch.randn(12), scheme, learned)
    nearest = encode(weights(), scheme)
    assert torch.allclose(layer.rounded(), nearest.decode(), atol=1e-6)
    with torch.no_grad():
        layer.weight.add_(0.05 * weights(seed=8))
        if learned:
            layer.log_scales.add_(0.1)
    states = torch.randn(3, 5, 32)
    frozen = layer.frozen()
    assert torch.equal(frozen(states), layer(states))
    frozen.quantized.check()
    assert frozen.quantized.scheme == scheme
    assert frozen.quantized.bytes == scheme.bytes(12, 32)
    assert frozen.codes.dtype == torch.uint8


def test_groups_of_zeros_and_a_scale_that_shrinks_do_no_harm():
    weight = weights()
    weight[2, :16] = 0
    layer = AwareLinear(weight, None, SCHEMES[0])
    assert layer.rounded()[2, :16].abs().max() == 0
    with torch.no_grad():
        layer.log_scales.sub_(30)
    layer.rounded().sum().backward()
    assert all(one.grad.isfinite().all() for one in layer.parameters())
    assert torch.equal(layer.frozen().decode(), layer.rounded())


def test_training_recovers_what_two_bits_lost_and_freeze_keeps_it():
    model = small()
    training.fit(model, text, steps=150, learning_rate=3e-3, progress=False)
    test = text(10**6, rows=40)

    def loss(one):
        return training.evaluate(one, test)

    exact = loss(model)
    scheme = Scheme(2, "group", 16, full=True)
    rounded = copy.deepcopy(model)
    quantize(rounded, scheme)
    names = aware(model, scheme)
    assert names == [name for name, one in model.named_modules() if isinstance(one, AwareLinear)]
    before = loss(model)
    assert before == pytest.approx(loss(rounded), abs=1e-4)
    assert before > exact + 0.2
    training.fit(model, text, steps=60, learning_rate=3e-3, progress=False)
    trained = loss(model)
    assert trained < (before + exact) / 2
    logits = model.eval()(**test).logits
    assert freeze(model) == names
    assert torch.equal(model(**test).logits, logits)
    assert loss(model) == trained
    assert all(isinstance(model.get_submodule(name), QuantizedLinear) for name in names)
    assert sum(bytes_of(model).values()) == sum(bytes_of(rounded).values())


def test_training_resumes_bit_for_bit(tmp_path):
    scheme = Scheme(3, "group", 16, symmetric=False)
    settings = dict(steps=8, learning_rate=2e-3, progress=False)

    def prepared():
        model = small()
        aware(model, scheme)
        return model

    def stop(step, _model, _loss):
        if step == 5:
            raise KeyboardInterrupt

    whole, parted = prepared(), prepared()
    training.fit(whole, text, **settings)
    file = tmp_path / "state.safetensors"
    assert training.fit(parted, text, on_step=stop, checkpoint=file, **settings).interrupted
    resumed = prepared()
    assert training.fit(resumed, text, checkpoint=file, **settings).steps == 8
    start = prepared().state_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
        if name.endswith("log_scales"):
            assert not torch.equal(tensor, start[name])
    assert all(map(torch.equal, *(parameters_of(freeze_copy(one)) for one in (whole, resumed))))


def freeze_copy(model):
    one = copy.deepcopy(model)
    freeze(one)
    return one


def parameters_of(model):
    return [*model.state_dict().values()]


@pytest.mark.parametrize("which", ["decoder", "gpt2", "ours"])
def test_any_model_of_linear_maps(which):
    ids = torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(9))
    if which == "decoder":
        model = load("course-decoder", profile="laptop").model.float().eval()
    elif which == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=1, n_head=2)).eval()
    else:
        model = small().eval()
    scheme, rounded = Scheme(4, "group", 16), copy.deepcopy(model)
    quantize(rounded, scheme, skip=["layers.0"] if which == "decoder" else ())
    count = len(aware(model, scheme, skip=["layers.0"] if which == "decoder" else ()))
    assert count == {"decoder": 28, "gpt2": 4, "ours": 12}[which]

    def logits(one):
        with torch.no_grad():
            return one(input_ids=ids).logits

    assert torch.allclose(logits(model), logits(rounded), atol=1e-4)
    before = logits(model)
    freeze(model)
    assert torch.equal(logits(model), before)


def test_distillation_is_the_divergence_from_the_teacher_and_nothing_for_itself():
    model, batch = small().eval(), text(2)
    loss = distillation(model)
    total, count = loss(model, batch)
    assert count == batch["input_ids"].numel()
    assert abs(float(total.detach())) < 1e-3
    total.backward()
    assert max(one.grad.abs().max() for one in model.parameters()) < 1e-4
    torch.manual_seed(8)
    other = copy.deepcopy(model)
    aware(other, Scheme(2, "channel"))
    wanted, given = (one(**batch).logits.double().log_softmax(-1) for one in (model, other))
    expected = (wanted.exp() * (wanted - given)).sum()
    assert float(loss(other, batch)[0].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    mask = torch.ones_like(batch["input_ids"])
    mask[:, 6:] = 0
    assert loss(model, batch | {"attention_mask": mask})[1] == mask.sum()


def test_training_wins_half_of_two_bits_back_on_the_embedded_decoder():
    loaded = load("course-decoder", profile="laptop")
    model, scheme = loaded.model.float().eval(), Scheme(2, "group", 32, symmetric=False)
    library = packed_corpus(loaded.tokenizer, "small", "train", progress=False)
    ids = quality.held_out(loaded.tokenizer, 12, 192)
    student = copy.deepcopy(model)
    aware(student, scheme)
    exact, rounded = (float(quality.token_losses(one, ids).mean()) for one in (model, student))
    training.fit(
        student, lambda number: {"input_ids": windows(library, 4, 112, f"{number}")}, steps=30, learning_rate=5e-4,
        warmup=3, loss=distillation(model), progress=False,
    )  # fmt: skip
    freeze(student)
    assert recovered(exact, rounded, float(quality.token_losses(student, ids).mean())) > 0.5


def test_recovered_is_a_share_of_what_was_lost():
    assert recovered(3.0, 4.0, 3.25) == 0.75
    assert recovered(3.0, 4.0, 4.5) == -0.5
    assert recovered(3.0, 4.0, 2.9) == pytest.approx(1.1)
    with pytest.raises(ValueError, match="cost nothing"):
        recovered(3.0, 3.0, 2.0)


def test_errors_name_what_is_wrong():
    model = small()
    with pytest.raises(ValueError, match="double=True"):
        aware(model, Scheme(4, "group", 16, double=True))
    with pytest.raises(ValueError, match="was prepared"):
        freeze(model)
    with pytest.raises(ValueError, match="no multiple of group=24"):
        aware(model, Scheme(4, "group", 24))
    assert len(linear_maps(model)) == 12  # nothing was changed
    tied = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="tied"):
        aware(tied, Scheme(4, "channel"))
    aware(model, Scheme(4, "channel"))
    with pytest.raises(ValueError, match="no linear map"):
        aware(model, Scheme(4, "channel"))
    with torch.no_grad():
        next(one for one in model.modules() if isinstance(one, AwareLinear)).weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="no finite numbers"):
        freeze(model)
    assert any(isinstance(one, AwareLinear) for one in model.modules())
