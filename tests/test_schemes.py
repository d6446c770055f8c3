"""Schemes: codes, scales and bytes; against torchao and bitsandbytes where these are installed."""

import dataclasses
import math

import pytest
import torch

from course_utils.quantization.schemes import (
    Quantized,
    Scheme,
    assemble,
    dynamic_values,
    encode,
    from_codes,
    nf4_values,
    pack,
    parameters,
    to_codes,
    unpack,
)

SCHEMES = [
    Scheme(8, "tensor"),
    Scheme(8),
    Scheme(8, codes="float8"),
    Scheme(4, "group", 32),
    Scheme(4, "group", 64, scales="float32"),
    Scheme(4, "group", 32, symmetric=False),
    Scheme(4, "group", 64, codes="nf4", double=True),
    Scheme(4, "group", 32, double=True, symmetric=False),
    Scheme(3, "group", 32, full=True),
    Scheme(3),
    Scheme(2, "group", 16, symmetric=False),
    Scheme(5, "channel", scales="bfloat16"),
]


@pytest.fixture(scope="module")
def weight():
    return torch.randn(48, 192, generator=torch.Generator().manual_seed(0)) * 0.06


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("columns", [1, 7, 8, 37])
def test_codes_come_back_and_take_the_bits_that_they_have(bits, columns):
    codes = torch.randint(0, 2**bits, (5, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    assert packed.shape == (5, math.ceil(columns * bits / 8))
    assert torch.equal(unpack(packed, bits, columns), codes)


def test_the_first_code_stands_in_the_highest_bits():
    assert pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 4).tolist() == [[0x12, 0x30]]
    assert pack(torch.tensor([[1, 2, 3, 0]], dtype=torch.uint8), 2).tolist() == [[0b01_10_11_00]]
    eight = pack(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]], dtype=torch.uint8), 3)
    assert eight.tolist() == [[0b001_010_01, 0b1_100_101_1, 0b10_111_000]]


def test_absmax_and_zero_point_by_hand():
    row = torch.tensor([[0.7, -0.1, 0.26, -0.35]])
    absmax = encode(row, Scheme(4, "channel", scales="float32"))
    assert absmax.scales.item() == pytest.approx(0.1)
    assert (absmax.integers().int() - 8).tolist() == [[7, -1, 3, -4]] or (absmax.integers().int() - 8).tolist() == [
        [7, -1, 3, -3]
    ]  # -0.35 is a tie but for rounding
    shifted = encode(torch.tensor([[1.0, 0.0, -0.5, 0.24]]), Scheme(4, "channel", symmetric=False, scales="float32"))
    assert shifted.scales.item() == pytest.approx(0.1)
    assert shifted.zeros.tolist() == [[5]]
    assert shifted.integers().tolist() == [[15, 5, 0, 7]]
    assert torch.allclose(shifted.decode(), torch.tensor([[1.0, 0.0, -0.5, 0.2]]))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_bytes_are_as_predicted_and_errors_at_most_half_a_step(weight, scheme):
    stored = encode(weight, scheme)
    assert stored.bytes == scheme.bytes(*weight.shape)
    assert stored.bytes == sum(tensor.nbytes for tensor in stored.tensors().values())
    assert torch.equal(stored.integers(), unpack(stored.codes, scheme.bits, 192))
    error = (stored.decode() - weight).abs().reshape(*stored.scales.shape, -1)
    scales = stored.plain_scales()[..., None]
    widest = {"nf4": 0.1520, "float8": 16.0}.get(scheme.codes, 1.0 if scheme.full or not scheme.symmetric else 0.5)
    assert (error <= scales * widest * (1.05 if scheme.double else 1.002) + 1e-4).all()
    assert stored.decode(torch.bfloat16).dtype == torch.bfloat16


def test_four_bits_in_groups_are_six_and_a_half_times_smaller():
    for scheme in (Scheme(4, "group", 32), Scheme(4, "group", 32, symmetric=False), Scheme(4, "group", 64)):
        assert 4 * 192 * 512 / scheme.bytes(512, 192) > 6.5
    assert 4 * 192 * 512 / Scheme(4, "group", 32, scales="float32").bytes(512, 192) < 6.5  # why scales have 16 bits


def test_finer_granularity_and_chosen_ranges_lose_less(weight):
    def loss(**changes):
        return (encode(weight, Scheme(4, **changes)).decode() - weight).square().mean().item()

    assert loss(granularity="group") < loss(granularity="channel") < loss(granularity="tensor")
    assert loss(granularity="tensor", calibration="mse") < loss(granularity="tensor")
    assert loss(granularity="group", symmetric=False) < loss(granularity="group")
    spoiled = weight.clone()
    spoiled[3, 5] = 30.0
    plain, clipped = (encode(spoiled, Scheme(8, "tensor", calibration=how)) for how in ("minmax", "percentile"))
    assert clipped.scales < plain.scales / 50
    rest = torch.ones_like(weight, dtype=torch.bool)
    rest[3, 5] = False
    assert (clipped.decode() - spoiled)[rest].norm() < (plain.decode() - spoiled)[rest].norm() / 10


def test_columns_can_be_rounded_one_by_one(weight):
    for scheme in (Scheme(4, "group", 32, symmetric=False), Scheme(3), Scheme(4, "group", 64, codes="nf4")):
        scales, zeros = parameters(weight, scheme)
        whole = to_codes(weight, scales, zeros, scheme)
        size = scheme.group if scheme.granularity == "group" else 192
        for column in (0, 40, 191):
            group = slice(column // size, column // size + 1)
            own = scales[:, group], None if zeros is None else zeros[:, group]
            part = to_codes(weight[:, column : column + 1], *own, scheme)
            assert torch.equal(part, whole[:, column : column + 1])
        stored = assemble(whole, scales, zeros, scheme)
        assert torch.equal(stored.decode(), from_codes(whole, scales, zeros, scheme))


def test_zeros_stay_zeros_in_every_scheme(weight):
    dead = weight.clone()
    dead[7] = 0
    for scheme in SCHEMES:
        again = encode(dead, scheme).decode()
        assert again.isfinite().all()
        if scheme.granularity != "tensor":
            assert (again[7] == 0).all(), scheme.name
    assert (encode(torch.zeros(8, 64), Scheme(4, "group", 32)).decode() == 0).all()
    assert (encode(torch.full((1, 64), 1e-9), Scheme(4, "group", 32)).decode() == 0).all()  # below float16's scales


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 1}, "bits=1: expected a whole number from 2 to 8"),
        ({"bits": 4.0}, "bits=4.0: expected a whole number"),
        ({"granularity": "row"}, "granularity='row': expected one of tensor, channel, group"),
        ({"codes": "nf4"}, "codes='nf4' have 4 bits: set bits=4, not 8"),
        ({"codes": "float8", "symmetric": False}, "no zero point"),
        ({"full": True, "symmetric": False}, "full=True with symmetric=False"),
        ({"double": True}, "double=True needs granularity='group'"),
        ({"scales": "int8"}, "scales='int8': expected one of float32"),
        ({"percentile": 10}, "percentile=10: expected 50 to 100"),
        ({"calibration": "best"}, "calibration='best'"),
    ],
)
def test_schemes_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Scheme(**change)


def test_weights_that_do_not_fit_are_refused_by_name(weight):
    with pytest.raises(ValueError, match=r"mlp.up has 192 columns \(48 rows\), no multiple of group=80: take group=64"):
        encode(weight, Scheme(4, "group", 80), "mlp.up")
    for bad in (math.nan, math.inf):
        spoiled = weight.clone()
        spoiled[3, 5] = bad
        with pytest.raises(
            ValueError, match=r"mlp.up holds 1 values that are no finite numbers, the first at \(3, 5\)"
        ):
            encode(spoiled, Scheme(8), "mlp.up")
    with pytest.raises(ValueError, match="needs scales beyond float16"):
        encode(weight * 1e9, Scheme(8))
    assert encode(weight * 1e9, Scheme(8, scales="float32")).scales.isfinite().all()


def test_parts_that_do_not_belong_together_are_refused(weight):
    good = encode(weight, Scheme(4, "group", 32, symmetric=False))
    good.check()
    for change, message in (
        (
            {"scales": good.scales[:, :3]},
            r"scales of up: shape \(48, 3\) in float16, but int4 group 32 zero-point of 48",
        ),
        ({"scales": good.scales.float()}, r"scales of up: shape \(48, 6\) in float32"),
        ({"scales": good.scales * math.nan}, "scales of up holds 288 values"),
        ({"zeros": None}, "zeros of up: none"),
        ({"codes": good.codes[:, 1:]}, r"codes of up: shape \(48, 95\)"),
        ({"mean": torch.zeros(1)}, "mean of up: shape .* needs none"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(good, **change).check("up")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_integers_are_those_of_torchao(bits, symmetric, granularity, weight):
    primitives = pytest.importorskip("torchao.quantization.quant_primitives")
    mapping = primitives.MappingType.SYMMETRIC if symmetric else primitives.MappingType.ASYMMETRIC
    block = {"tensor": (48, 192), "channel": (1, 192), "group": (1, 32)}[granularity]
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    types = dict(scale_dtype=torch.float32, zero_point_dtype=torch.int32)
    scale, zero = primitives.choose_qparams_affine(weight, mapping, block, torch.int8, low, high, **types)
    theirs = primitives.quantize_affine(weight, block, scale, zero, torch.int8, low, high)
    ours = encode(weight, Scheme(bits, granularity, 32, symmetric=symmetric, full=symmetric, scales="float32"))
    assert torch.equal(ours.integers().int() + low, theirs.int())
    assert torch.equal(ours.scales.flatten(), scale.flatten())
    assert torch.equal(ours.decode(), primitives.dequantize_affine(theirs, block, scale, zero, torch.int8, low, high))


def test_layers_of_torchao_hold_the_same_integers(weight):
    api = pytest.importorskip("torchao.quantization")
    linear = torch.nn.Linear(192, 48, bias=False)
    linear.weight.data = weight.clone()
    api.quantize_(linear, api.Int8WeightOnlyConfig())
    ours = encode(weight, Scheme(8, full=True, scales="float32"))
    assert torch.equal(ours.integers().int() - 128, linear.weight.qdata.int())


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nf4_is_that_of_bitsandbytes_bit_for_bit(size, dtype):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = (torch.randn(256, 384, generator=torch.Generator().manual_seed(1)) * 0.05).to(dtype)
    weight[3, :size] = 0
    theirs, state = functional.quantize_4bit(weight, blocksize=size, quant_type="nf4")
    ours = encode(weight, Scheme(4, "group", size, codes="nf4", scales="float32"))
    assert torch.equal(ours.codes.flatten(), theirs.flatten())
    assert torch.equal(ours.scales.flatten(), state.absmax)
    assert torch.equal(ours.decode(dtype), functional.dequantize_4bit(theirs, state))


def test_double_quantization_is_that_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(512, 768, generator=torch.Generator().manual_seed(2)) * 0.05
    theirs, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    ours = encode(weight, Scheme(4, "group", 64, codes="nf4", double=True))
    values = dynamic_values(weight.device)
    assert torch.equal(values, state.state2.code)
    assert torch.equal(ours.codes.flatten(), theirs.flatten())
    assert torch.equal(ours.second, state.state2.absmax)
    assert ours.mean.item() == state.offset.item()
    # Its kernel for CPUs may take the farther of two values where a scale lies within 2**-16 of the middle of both.
    mine, other = ours.scales.flatten().int(), state.absmax.int()
    away = (mine != other).nonzero()[:, 0]
    scales = weight.view(-1, 64).abs().amax(1) - ours.mean
    steps = scales / ours.second.repeat_interleave(256)
    middle = (values[mine[away]] + values[other[away]]) / 2
    assert ((steps[away] - middle).abs() < 2**-16).all()
    assert len(away) < 20 and ((mine - other).abs() <= 1).all()
    as_theirs = dataclasses.replace(ours, scales=state.absmax.view_as(ours.scales))
    assert torch.equal(as_theirs.decode(), functional.dequantize_4bit(theirs, state))


def test_int8_rows_are_those_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = (torch.randn(64, 256, generator=torch.Generator().manual_seed(3)) * 0.05).half()
    theirs, absmax, _ = functional.int8_vectorwise_quant(weight)
    ours = encode(weight, Scheme(8, scales="float32"))
    assert torch.allclose(ours.scales[:, 0], absmax / 127, rtol=1e-7, atol=0)
    mine = ours.integers().int() - 128
    exact = weight.double() * 127 / absmax.double()[:, None]
    tie = ((exact - exact.floor()) - 0.5).abs() < 1e-5  # decided by the last bit of the scale
    assert torch.equal(mine[~tie], theirs.int()[~tie])
    assert ((mine - theirs.int()).abs() <= 1).all() and tie.float().mean() < 0.01


def test_the_values_of_nf4_and_of_double_quantization():
    values, dynamic = nf4_values(torch.device("cpu")), dynamic_values(torch.device("cpu"))
    assert len(values) == 16 and values[7] == 0 and values[0] == -1 and values[15] == 1
    assert len(dynamic) == 256 and (dynamic.diff() > 0).all() and dynamic[-1] == 1 and (dynamic == 0).sum() == 1
    weight = values[None].repeat(2, 4) * torch.tensor([[0.5], [2.0]])
    assert torch.equal(encode(weight, Scheme(4, "group", 64, codes="nf4")).decode(), weight)


def test_names_say_what_differs():
    names = [scheme.name for scheme in SCHEMES]
    assert len(set(names)) == len(names)
    assert Scheme(4, "group", 32).name == "int4 group 32"
    assert Scheme(4, "group", 64, codes="nf4", double=True, calibration="mse").name == "nf4 group 64 double mse"
    assert isinstance(encode(torch.ones(2, 32), Scheme(4, "group", 32)), Quantized)
