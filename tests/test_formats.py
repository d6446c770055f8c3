"""Number formats: bit for bit what torch and bitsandbytes do, and rounding by chance that is right in the mean."""

import math

import pytest
import torch

from course_utils import quantization
from course_utils.quantization import FORMATS, NF4, cast, from_bits, to_bits
from course_utils.quantization.formats import (
    CodeFormat,
    FloatFormat,
    IntFormat,
    bit_string,
    decode,
    fields,
    find,
    kind,
    next_scale,
    normal_quantiles,
    spacing,
    stochastic_round,
    through,
    widths,
)

FLOATS = [name for name, each in FORMATS.items() if isinstance(each, FloatFormat)]
VIEWS = {8: torch.uint8, 16: torch.int16, 32: torch.int32}
EVERY16 = torch.arange(2**16).to(torch.int16)
SOURCES = {
    "all 65,536 patterns of float16": EVERY16.view(torch.float16),
    "all 65,536 patterns of bfloat16": EVERY16.view(torch.bfloat16),
    "all ties between two of bfloat16": (torch.arange(2**16) * 2**16 + 2**15).to(torch.int32).view(torch.float32),
}


def same(a, b):
    """Equal in value and sign, NaN where NaN."""
    return bool((torch.isnan(a) == torch.isnan(b)).all()) and bool(
        ((a == b) & (torch.signbit(a) == torch.signbit(b)) | torch.isnan(a)).all()
    )


def torch_bits(x, format):
    return x.to(format.dtype).view(VIEWS[format.bits]).long() % 2**format.bits


def million(format):
    """A million float32 numbers: any bits at all, and the format's own numbers, its ties, and what lies beside them."""
    source = torch.Generator().manual_seed(7)
    any_bits = torch.randint(-(2**31), 2**31, (400_000,), generator=source).to(torch.int32).view(torch.float32)
    ordinary = torch.randn(200_000, generator=source) * 10 ** torch.empty(200_000).uniform_(-9, 6, generator=source)
    codes = torch.randint(0, 2**format.bits, (100_000,), generator=source)
    own = from_bits(codes, format)
    ties = (own.double() + spacing(own, format) / 2).float()
    beside = torch.nextafter(ties, torch.full_like(ties, math.inf)), torch.nextafter(ties, torch.zeros_like(ties))
    smallest = format.smallest_subnormal * 4 * torch.randn(98_000, generator=source)
    edges = [format.largest, format.smallest_normal, format.smallest_subnormal, 0.0, math.inf, math.nan]
    edges = torch.tensor([sign * edge * factor for edge in edges for sign in (1, -1) for factor in (0.5, 1, 1.5, 2)])
    edges = edges.repeat(42)[:2000]
    return torch.cat([any_bits, ordinary, own, ties, *beside, smallest, edges])


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("source", SOURCES)
def test_cast_is_torchs_own_on_every_16_bit_pattern(name, source):
    x, format = SOURCES[source], FORMATS[name]
    assert same(cast(x, name), x.float().to(format.dtype).float())
    real = ~torch.isnan(x)
    assert torch.equal(to_bits(x, name)[real], torch_bits(x.float(), format)[real])


@pytest.mark.parametrize("name", FLOATS)
def test_cast_is_torchs_own_on_a_million_numbers(name):
    format = FORMATS[name]
    x = million(format)
    assert len(x) == 10**6 + 100_000 and x.isnan().any() and x.isinf().any() and x.isfinite().sum() > 900_000
    assert same(cast(x, name), x.to(format.dtype).float())
    real = ~torch.isnan(x)
    assert torch.equal(to_bits(x, name)[real], torch_bits(x, format)[real])


@pytest.mark.parametrize("name", FLOATS)
def test_bits_mean_what_torch_means_by_them(name):
    format = FORMATS[name]
    few = format.bits <= 16
    codes = torch.arange(2**format.bits) if few else torch.randint(0, 2**32, (100_000,))
    raw = codes.to(VIEWS[format.bits]) if few else codes.sub(2**31).to(torch.int32) ^ -(2**31)
    values = from_bits(codes, name)
    assert same(values, raw.view(format.dtype).float())
    real = ~torch.isnan(values)
    assert torch.equal(to_bits(values, name)[real], codes[real])  # there and back


@pytest.mark.parametrize("name", FLOATS)
def test_what_a_format_says_of_itself_is_what_torch_says(name):
    format, info = FORMATS[name], torch.finfo(FORMATS[name].dtype)
    assert (format.bits, format.largest, format.lowest) == (info.bits, info.max, info.min)
    assert (format.smallest_normal, format.epsilon) == (info.smallest_normal, info.eps)
    values = from_bits(torch.arange(1, 3), name)
    assert values[0] == format.smallest_subnormal == spacing(torch.tensor(0.0), name)
    assert sum(widths(name).values()) == format.bits


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_whole_numbers_round_to_even_and_end_at_the_largest(name):
    format = FORMATS[name]
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 3.4, 1e9, -1e9, math.inf, -math.inf, 7.6])
    top, bottom = format.largest, format.lowest
    assert cast(x, name).tolist() == [0, 2, 2, 0, -2, 3, top, bottom, top, bottom, min(8.0, top)]
    codes = torch.arange(2**format.bits)
    assert torch.equal(to_bits(from_bits(codes, name), name), codes)
    if name == "int8":
        assert torch.equal(from_bits(codes, name), codes.to(torch.uint8).view(torch.int8).float())
    with pytest.raises(ValueError, match=f"NaN, which {name}"):
        cast(torch.tensor([1.0, math.nan]), name)


def test_nf4_is_made_of_normal_quantiles():
    made = torch.tensor(normal_quantiles())
    assert len(NF4) == 16 and (made - torch.tensor(NF4)).abs().max() < 2e-7
    assert made[7] == 0 and made[0] == -1 and made[15] == 1
    assert len(normal_quantiles(3)) == 8 and sorted(normal_quantiles(3)) == list(normal_quantiles(3))
    with pytest.raises(ValueError, match="bits=1"):
        normal_quantiles(1)


def test_nf4_rounds_to_the_nearest_value():
    x = torch.linspace(-1.3, 1.3, 4001)
    table = torch.tensor(NF4)
    distance = (x[:, None] - table).abs()
    assert torch.equal((cast(x, "nf4") - x).abs(), distance.min(1).values)
    middle = (table[1:] + table[:-1]) / 2
    assert torch.equal(to_bits(middle, "nf4"), torch.arange(15))  # of two equally near ones the lower
    assert torch.equal(from_bits(torch.arange(16), "nf4"), table)


def test_nf4_is_that_of_bitsandbytes_bit_for_bit():
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(512, 64, generator=torch.Generator().manual_seed(3)) * 0.02
    weight[0] = torch.tensor(NF4).repeat(4)
    weight[1, :15] = (torch.tensor(NF4)[1:] + torch.tensor(NF4)[:-1]) / 2
    weight[1, 15] = 1.0
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.equal(state.code.cpu(), torch.tensor(NF4))
    absmax = weight.abs().amax(1, keepdim=True)
    codes = to_bits(weight * (1 / absmax), "nf4")
    first, second = codes.flatten()[::2], codes.flatten()[1::2]
    assert torch.equal(packed.flatten().cpu().long(), first * 16 + second)
    ours = from_bits(codes, "nf4") * absmax
    assert torch.equal(ours, functional.dequantize_4bit(packed, state).cpu())


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp8_e4m3fn", "fp8_e5m2", "int8"])
def test_stochastic_rounding_is_unbiased(name):
    """Each mean lies within 5 standard errors, those of a two-valued draw; nearest rounding is far off."""
    format, count = FORMATS[name], 40_000
    largest = 100.0 if isinstance(format, IntFormat) else 3.0
    source = torch.Generator().manual_seed(1)
    x = torch.cat([torch.empty(20).uniform_(-largest, largest, generator=source), torch.tensor([0.1, -0.1, 0.7])])
    if isinstance(format, FloatFormat):
        x = torch.cat([x, format.smallest_subnormal * torch.tensor([0.1, -0.3, 2.7])])
    drawn = cast(x.expand(count, -1), name, "stochastic", source)
    gap = spacing(x, format)
    share = (x.double() / gap) % 1
    error = (drawn.double().mean(0) - x.double()).abs()
    assert (error <= 5 * gap * (share * (1 - share) / count).sqrt() + 1e-12 * gap).all()
    assert ((cast(x, name).double() - x.double()).abs() > 5 * gap / math.sqrt(count)).any()
    assert ((drawn - x).abs() <= gap).all() and drawn.unique(dim=0).shape[0] > 1
    assert torch.equal(drawn, cast(drawn, name))  # each is a number of the format


def test_stochastic_rounding_is_that_of_its_generator():
    x = torch.randn(1000)
    first, again, other = (cast(x, "bf16", "stochastic", torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    state = torch.get_rng_state()
    cast(x, "bf16", "stochastic", torch.Generator().manual_seed(5))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16", "int8"])
def test_stochastic_rounding_leaves_what_fits(name):
    x = from_bits(torch.arange(256) * (2 ** FORMATS[name].bits // 256), name)
    x = x[x.isfinite()]
    assert same(cast(x, name, "stochastic"), x)
    assert torch.isnan(cast(torch.tensor(math.nan), "bf16", "stochastic"))
    assert cast(torch.tensor(-math.inf), "fp16", "stochastic") == -math.inf


def test_one_step_of_stochastic_rounding():
    x, draws = torch.tensor([0.3, 0.3, -0.3, -0.3, 0.5]), torch.tensor([0.1, 0.9, 0.1, 0.9, 0.3])
    assert stochastic_round(x, 0.5, draws).tolist() == [0.5, 0.0, 0.0, -0.5, 0.5]


def test_float64_is_rounded_once():
    """By way of float32 a number just above a tie falls onto it, and from there to even."""
    x = torch.tensor(1 + 2.0**-8 + 2.0**-40, dtype=torch.float64)
    assert cast(x, "bf16") == 1 + 2.0**-7 and cast(x.float(), "bf16") == 1


def test_parts_and_texts():
    pi = {name: int(to_bits(torch.tensor(math.pi), name)) for name in FORMATS}
    assert bit_string(pi["fp32"], "fp32") == "0 10000000 10010010000111111011011"
    assert bit_string(pi["fp16"], "fp16") == "0 10000 1001001000"
    assert bit_string(pi["bf16"], "bf16") == "0 10000000 1001001"
    assert bit_string(pi["int8"], "int8") == "0 0000011" and bit_string(15, "nf4") == "1111"
    assert fields(pi["bf16"], "bf16") == (0, 128, 73)
    assert [kind(bits, "fp16") for bits in (0, 1, 0x400, 0x7C00, 0x7C01, 0xFC00)] == [
        "zero", "subnormal", "normal", "infinity", "NaN", "infinity",
    ]  # fmt: skip
    assert [kind(bits, "fp8_e4m3fn") for bits in (0x78, 0x7E, 0x7F, 0x80)] == ["normal", "normal", "NaN", "zero"]
    parts = torch.tensor([1]), torch.tensor([0]), torch.tensor([3])
    assert decode(*parts, find("fp16")).item() == -3 * 2.0**-24


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: cast(torch.ones(1), "fp64"), "format='fp64': expected one of fp32"),
        (lambda: cast(torch.ones(1), "bf16", "up"), "rounding='up': expected one of nearest, stochastic"),
        (lambda: cast(torch.ones(1), "nf4", "stochastic"), "nf4"),
        (lambda: from_bits(torch.tensor([256]), "int8"), "bits=256: int8 has 8 bits"),
        (lambda: from_bits(torch.tensor([-1]), "bf16"), "bits=-1: bf16 has 16 bits"),
        (lambda: fields(3, "int8"), "'int8' has no exponent"),
        (lambda: spacing(torch.ones(1), "nf4"), "list of values"),
        (lambda: to_bits(torch.tensor(math.nan), "nf4"), "nf4 has no bits for"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(call, said):
    with pytest.raises(ValueError) as caught:
        call()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_gradients_are_rounded_on_the_way_back():
    x = torch.tensor([1.0001, 2.0, 3.0], requires_grad=True)
    y = through(x, "fp16")
    assert torch.equal(y, x.detach().half().float())
    y.backward(torch.tensor([1e-8, 1e-7, 1 / 3]))
    assert torch.equal(x.grad, torch.tensor([1e-8, 1e-7, 1 / 3]).half().float()) and x.grad[0] == 0


def test_dynamic_loss_scaling_is_that_of_torch():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scale, good = 2.0**10, 0
    for bad in (False, False, True, False, False, False, True, True, False):
        scaler.scale(weight.sum() * (math.inf if bad else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scale, good = next_scale(scale, bad, good, interval=3)
        assert scaler.get_scale() == scale


def test_the_package_hands_on_what_its_modules_have():
    assert all(hasattr(quantization, name) for name in quantization.__all__)
    assert isinstance(FORMATS["nf4"], CodeFormat) and FORMATS["nf4"].bits == 4
