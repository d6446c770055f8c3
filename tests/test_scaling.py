"""Fits on losses whose law is known, budgets against numeric minima and published figures, sweeps that are resumed."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from course_utils import scaling
from course_utils.scaling import CHINCHILLA, REPLICATED, Law, Recipe, Run, Sweep

LAW = Law(E=0.9, A=56.0, B=300.0, alpha=0.5, beta=0.45)
SIZES = np.repeat([9e3, 21e3, 37e3, 83e3, 148e3, 332e3], 5)
TOKENS = np.tile([1.5e5, 3e5, 6e5, 1.2e6, 2.4e6], 6)
BYTE_ROW = scaling.byte_row  # few_bytes replaces it
GOPHER = 5.76e23  # the budget of Gopher and Chinchilla: Hoffmann et al. 2022, table 3
TINY = Recipe(
    widths=(16, 24), tokens=(1280, 2560), seeds=(0, 1), repeated_to=1280, rates=(0.1, 0.4), tuned_at=1280,
    extra=(), held_out=((32, 2560),), context=16, batch=8, validated_on=512,
)  # fmt: skip


def losses(law=LAW, noise=0.0, seed=0):
    """Losses of the grid, with log-normal noise."""
    return law.loss(SIZES, TOKENS) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(SIZES)))


def constants(law):
    return np.array(dataclasses.astuple(law))


# --- fits


@pytest.mark.parametrize("law", [LAW, Law(1.7, 4.0, 400.0, 0.3, 0.6), Law(0.3, 900.0, 20.0, 0.8, 0.25)])
def test_the_constants_come_back_from_exact_losses(law):
    assert constants(scaling.fit(SIZES, TOKENS, losses(law))) == pytest.approx(constants(law), rel=1e-3)


def test_the_constants_come_back_from_noisy_losses():
    fitted = scaling.fit(SIZES, TOKENS, losses(noise=0.003))
    assert fitted.alpha == pytest.approx(LAW.alpha, abs=0.05)
    assert fitted.beta == pytest.approx(LAW.beta, abs=0.05)
    assert abs(fitted.E - LAW.E) < 0.15
    assert scaling.r_squared(fitted, SIZES, TOKENS, losses(noise=0.003)) > 0.998


def test_the_intervals_hold_the_constants_in_about_95_of_100_draws():
    """The delta is that of the noise here, so that few steps of the optimizer do."""
    inside = []
    for seed in range(20):
        fitted = scaling.bootstrap(SIZES, TOKENS, losses(noise=0.005, seed=seed), draws=30, delta=0.01, seed=seed)
        for name in ("E", "alpha", "beta"):
            low, high = fitted.interval(name)
            inside.append(low <= getattr(LAW, name) <= high)
    assert 0.85 <= np.mean(inside) <= 1
    assert not all(inside), "intervals that always hold the truth are too wide"


def test_robust_fit_shrugs_off_runs_that_went_wrong():
    spoiled = losses(noise=0.002)
    spoiled[[3, 11, 22]] *= 1.25
    robust, square = (scaling.fit(SIZES, TOKENS, spoiled, delta=delta) for delta in (1e-3, math.inf))
    where = np.ones(len(SIZES), dtype=bool)
    where[[3, 11, 22]] = False

    def error(law):
        return np.abs(np.log(law.loss(SIZES, TOKENS)) - np.log(losses()))[where].max()

    assert error(robust) < 0.01
    assert error(robust) < error(square) / 3


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6), st.floats(0.5, 4))
@settings(max_examples=3, deadline=None)
def test_units_do_not_matter(size, data, unit):
    """Counting parameters or tokens in millions, or losses in bits, changes the constants as the algebra says."""
    seen = losses(noise=0.002)
    law, other = scaling.fit(SIZES, TOKENS, seen), scaling.fit(size * SIZES, data * TOKENS, unit * seen)
    expected = Law(
        unit * law.E, unit * law.A * size**law.alpha, unit * law.B * data**law.beta, law.alpha, law.beta
    )  # fmt: skip
    assert other.loss(size * SIZES, data * TOKENS) == pytest.approx(unit * law.loss(SIZES, TOKENS), rel=1e-3)
    assert constants(other)[[0, 3, 4]] == pytest.approx(constants(expected)[[0, 3, 4]], rel=0.03)


def test_runs_of_one_size_and_data_are_drawn_together():
    """Each run written down twice is no new evidence: the intervals stay as wide."""
    seen = losses(noise=0.005)
    twice = [np.tile(column, 2) for column in (SIZES, TOKENS, seen)]
    once = scaling.bootstrap(SIZES, TOKENS, seen, draws=100).interval("alpha")
    double = scaling.bootstrap(*twice, draws=100).interval("alpha")
    assert np.ptp(double) == pytest.approx(np.ptp(once), rel=0.2)


def test_intervals_of_what_follows_from_the_constants_and_predictions():
    fitted = scaling.bootstrap(SIZES, TOKENS, losses(noise=0.003), draws=60)
    low, high = fitted.interval(lambda law: law.exponents[0])
    assert low < LAW.exponents[0] < high
    guess = fitted.predict(1.3e6, 4.9e6)
    assert guess.low < guess.value < guess.high
    error, inside = guess.score(float(LAW.loss(1.3e6, 4.9e6)))
    assert inside and abs(error) < 0.03
    assert not guess.score(2 * guess.high)[1]
    assert guess.score(guess.value + 0.5)[0] == pytest.approx(-0.5)
    narrow = fitted.predict(1.3e6, 4.9e6, level=0.5)
    assert narrow.high - narrow.low < guess.high - guess.low


@pytest.mark.parametrize(
    "columns, message",
    [
        ((SIZES, TOKENS, losses()[:-1]), "one of each for each run"),
        ((SIZES, TOKENS, -losses()), "finite numbers above 0"),
        ((SIZES, TOKENS, losses() * np.nan), "finite numbers above 0"),
        ((SIZES[:5], TOKENS[:5], losses()[:5]), "six runs or more"),
        ((SIZES, TOKENS * 0 + 1e6, losses()), "1 numbers of tokens"),
    ],
)
def test_bad_columns_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        scaling.fit(*columns)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="delta=0"):
        scaling.fit(SIZES, TOKENS, losses(), delta=0)
    with pytest.raises(ValueError, match="draws=0"):
        scaling.bootstrap(SIZES, TOKENS, losses(), draws=0)
    with pytest.raises(ValueError, match="level=95"):
        scaling.bootstrap(SIZES, TOKENS, losses(), draws=1).interval("E", level=95)


def test_huber_is_that_of_torch():
    residuals = torch.tensor([-3.0, -0.2, 0.0, 0.1, 0.5, 2.0], dtype=torch.float64)
    for delta in (0.3, 1.0):
        expected = torch.nn.functional.huber_loss(residuals, residuals * 0, reduction="sum", delta=delta)
        assert scaling.huber(residuals.tolist(), delta) == pytest.approx(expected.item())
    assert scaling.huber([3.0, -1.0], math.inf) == pytest.approx(5.0)


def test_power_law_and_frontier_come_back():
    x = np.geomspace(1e4, 1e8, 7)
    assert scaling.power_law(x, (8.8e13 / x) ** 0.076) == pytest.approx((0.076, 8.8e13))
    assert scaling.frontier(x, 0.2 * x**0.46) == pytest.approx((0.46, 0.2))
    with pytest.raises(ValueError, match="two or more"):
        scaling.power_law([5.0, 5.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="above 0"):
        scaling.power_law([0.0, 5.0], [1.0, 2.0])


# --- budgets


@given(st.floats(1e9, 1e26), st.sampled_from([LAW, CHINCHILLA, REPLICATED]))
@settings(max_examples=30, deadline=None)
def test_the_optimum_is_the_numeric_minimum(flops, law):
    parameters, tokens = law.optimum(flops)
    assert 6 * parameters * tokens == pytest.approx(flops)
    found = minimize_scalar(
        lambda log: law.loss(math.exp(log), flops / (6 * math.exp(log))),
        bracket=(math.log(parameters) - 3, math.log(parameters) + 2),
        options={"xtol": 1e-9},
    )
    assert math.exp(found.x) == pytest.approx(parameters, rel=1e-3)
    grown = law.optimum(100 * flops)
    assert math.log(grown[0] / parameters, 100) == pytest.approx(law.exponents[0])
    assert math.log(grown[1] / tokens, 100) == pytest.approx(law.exponents[1])


def test_published_constants_give_the_published_optima():
    parameters, tokens = CHINCHILLA.optimum(GOPHER)
    assert parameters == pytest.approx(40e9, rel=0.02)  # figure 4
    assert 40e9 <= parameters <= 70e9  # section 4
    assert CHINCHILLA.exponents == pytest.approx((0.46, 0.54), abs=0.005)  # table 2
    assert tokens / parameters > 55  # at odds with the 20 of table 3
    parameters, tokens = REPLICATED.optimum(GOPHER)
    assert 60e9 <= parameters <= 80e9
    assert 15 <= tokens / parameters <= 25  # Besiroglu et al. 2024, section 4
    assert REPLICATED.exponents[0] == pytest.approx(0.51, abs=0.005)


@pytest.mark.parametrize("flops, parameters, tokens", [(1.23e22, 10e9, 205.1e9), (GOPHER, 67e9, 1.5e12)])
def test_twenty_tokens_a_parameter_is_table_3(flops, parameters, tokens):
    assert scaling.chinchilla(flops) == pytest.approx((parameters, tokens), rel=0.1)


def test_kaplan_grows_the_model_faster():
    day = 1e15 * 86_400
    assert scaling.kaplan(day)[0] == pytest.approx(1.3e9)  # table 6: one petaFLOP/s-day
    assert math.log10(scaling.kaplan(10 * day)[0] / scaling.kaplan(day)[0]) == pytest.approx(0.73)
    assert scaling.kaplan(GOPHER)[0] > 10 * scaling.chinchilla(GOPHER)[0]
    for rule in (scaling.kaplan, scaling.chinchilla):
        parameters, tokens = rule(GOPHER)
        assert 6 * parameters * tokens == pytest.approx(GOPHER)
        with pytest.raises(ValueError, match="flops="):
            rule(0)


def test_vertex_is_that_of_the_parabola():
    sizes = np.geomspace(1e4, 1e6, 5)
    assert scaling.vertex(sizes, 2 + 0.1 * np.log(sizes / 7e4) ** 2) == pytest.approx(7e4)
    with pytest.raises(ValueError, match="bend downwards"):
        scaling.vertex(sizes, 2 - 0.1 * np.log(sizes / 7e4) ** 2)
    with pytest.raises(ValueError, match="three or more"):
        scaling.vertex(sizes[:2], [1.0, 2.0])


def test_isoflop_profiles_find_the_optimum_of_the_law():
    sizes, tokens = (axis.ravel() for axis in np.meshgrid(np.geomspace(3e3, 1e6, 12), np.geomspace(5e4, 3e7, 14)))
    budgets = np.geomspace(3e10, 3e12, 7)
    profiles = scaling.isoflop(sizes, tokens, LAW.loss(sizes, tokens), budgets)
    assert [profile.flops for profile in profiles] == pytest.approx(budgets)
    for profile in profiles:
        assert profile.best == pytest.approx(LAW.optimum(profile.flops)[0], rel=0.35)
        expected = LAW.loss(profile.sizes, profile.flops / (6 * np.array(profile.sizes)))
        assert profile.losses == pytest.approx(expected, rel=0.01)
        assert 6 * profile.best * profile.tokens == pytest.approx(profile.flops)
    exponent, _ = scaling.frontier([p.flops for p in profiles], [p.best for p in profiles])
    assert exponent == pytest.approx(LAW.exponents[0], abs=0.06)


def test_isoflop_reads_nothing_beyond_the_runs():
    profiles = scaling.isoflop(SIZES, TOKENS, losses(), np.geomspace(1e6, 1e16, 40))
    assert 2 <= len(profiles) < 12
    for profile in profiles:
        assert len(profile.sizes) >= 3
        for size in profile.sizes:
            assert 1.49e5 <= profile.flops / (6 * size) <= 2.41e6


def test_the_larger_part_is_the_bottleneck():
    of_size, of_data = LAW.parts(9e3, 2.4e6)
    assert of_size > of_data
    of_size, of_data = LAW.parts([3.3e5], [1.5e5])
    assert of_data[0] > of_size[0]
    assert LAW.E + of_size + of_data == pytest.approx(LAW.loss([3.3e5], [1.5e5]))


@given(st.floats(1e3, 1e6), st.floats(1e4, 1e8))
@settings(max_examples=20, deadline=None)
def test_a_share_of_the_flops_is_enough_for_the_same_loss(parameters, tokens):
    share = LAW.enough(parameters, tokens)
    assert 0 < share <= 1 + 1e-9
    assert LAW.loss(*LAW.optimum(share * 6 * parameters * tokens)) == pytest.approx(LAW.loss(parameters, tokens))
    assert LAW.enough(*LAW.optimum(1e11)) == pytest.approx(1)


# --- the published models


def test_published_models_are_on_their_side_of_twenty():
    rows = {row[0]: dict(zip(scaling.RATIO_COLUMNS, row, strict=True)) for row in scaling.ratio_rows()}
    trained = {name: row["trained"] for name, row in rows.items()}
    for name in ("GPT-3 175B", "Gopher 280B", "PaLM 540B", "BLOOM 176B"):
        assert trained[name] == "under"
    assert trained["Chinchilla 70B"] == "about right" and rows["Chinchilla 70B"]["tokens a parameter"] == "20.0"
    assert trained["LLaMA 7B"] == "over"
    assert rows["Chinchilla 70B"]["FLOPs enough"] == "100%"
    assert rows["Gopher 280B"]["FLOPs enough"] == f"{REPLICATED.enough(280e9, 300e9):.0%}"
    assert rows["Gopher 280B"]["source of N and D"].startswith("Rae et al. 2021, ")
    assert rows["Gopher 280B"]["best N for its FLOPs"] == f"{math.sqrt(6 * 280e9 * 300e9 / 120) / 1e9:.3g} G"


# --- sweeps


@pytest.fixture(scope="module")
def few_bytes():
    """A corpus of letters in which the next one depends on the last two."""
    letters = torch.randint(5, (4000,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for place in range(2, len(letters)):
        letters[place] = (letters[place] // 3 + letters[place - 1] + 2 * letters[place - 2]) % 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "byte_row", lambda corpus, split, progress=False: letters + 97)
        yield letters


@pytest.fixture(scope="module")
def whole(few_bytes):
    """The tiny sweep, undisturbed."""
    return scaling.sweep(TINY, progress=False)


def test_a_killed_sweep_goes_on_and_gives_the_same_losses(whole, tmp_path):
    assert [run.purpose for run in whole.runs] == ["tuning"] * 4 + ["sweep"] * 4 + ["held out"] + ["sweep"] * 2

    def killed(done):
        if len(done.runs) in (3, 7):
            raise KeyboardInterrupt

    seen = []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            scaling.sweep(TINY, tmp_path / "sweep.json", on_run=killed, progress=False)
    done = scaling.sweep(TINY, tmp_path / "sweep.json", on_run=seen.append, progress=False)
    assert len(seen) == 4
    assert [dataclasses.replace(run, seconds=0) for run in done.runs] == [
        dataclasses.replace(run, seconds=0) for run in whole.runs
    ]
    assert scaling.load(tmp_path / "sweep.json") == done
    assert [file.name for file in tmp_path.iterdir()] == ["sweep.json"]


def test_a_run_takes_the_best_learning_rate_of_its_width(whole):
    for run in whole.of("sweep"):
        tried = [other for other in whole.of("tuning") if other.width == run.width]
        assert len(tried) == 2
        assert run.learning_rate == min(tried, key=lambda other: other.loss).learning_rate
    (held_out,) = whole.of("held out")
    assert held_out.learning_rate == pytest.approx(whole.rate(24) * 24 / 32)
    assert held_out.flops == 6 * held_out.parameters * held_out.tokens
    assert [len(column) for column in whole.columns("held out")] == [1, 1, 1]


def test_more_seeds_for_the_short_runs_only(whole):
    runs = whole.of("sweep")
    assert sorted((run.tokens, run.seed) for run in runs if run.width == 16) == [(1280, 0), (1280, 1), (2560, 0)]
    assert len({run.loss for run in runs}) == len(runs)


def test_parameters_are_those_of_the_blocks():
    recipe = Recipe()
    for width in recipe.widths:
        model = recipe.model(width)
        inside = sum(p.numel() for name, p in model.named_parameters() if "embeddings" not in name)
        assert recipe.parameters(width) == inside
        assert inside == pytest.approx(12 * recipe.layers * width**2, rel=0.02)
    before = torch.random.get_rng_state()
    assert torch.equal(recipe.model(16, 3).embeddings.weight, recipe.model(16, 3).embeddings.weight)
    assert torch.equal(before, torch.random.get_rng_state())


def test_no_token_is_trained_on_twice(few_bytes):
    windows, held = scaling._windows(TINY, 2560, False)
    targets = windows[:, 1:].flatten()
    assert torch.equal(targets, few_bytes[1 : len(targets) + 1] + 97)
    assert held.numel() == 512 // 16 * 17


def test_bad_sweeps_are_refused(few_bytes, tmp_path):
    with pytest.raises(ValueError, match="has 3984"):
        scaling.sweep(dataclasses.replace(TINY, tokens=(128_000,)), progress=False)
    for change, message in (
        (dict(widths=()), "one entry or more"),
        (dict(widths=(20,)), "multiples of 8"),
        (dict(widths=(16, 56)), "widths hold 56"),
        (dict(tokens=(1000,)), "tokens=1000"),
        (dict(tokens=(640,)), "10 steps or more"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(TINY, **change)
    file = tmp_path / "sweep.json"
    scaling.save(Sweep(TINY), file)
    with pytest.raises(ValueError, match="another recipe"):
        scaling.sweep(dataclasses.replace(TINY, layers=2), file, progress=False)
    file.write_text(json.dumps({"recipe": {}}))
    with pytest.raises(ValueError, match="holds no sweep"):
        scaling.load(file)


def test_the_command_writes_its_file_and_prints_the_fit(few_bytes, tmp_path, monkeypatch, capsys):
    known = scaling.Fit(LAW, (LAW,) * 5, np.zeros(3), 0.99)
    monkeypatch.setattr(scaling, "bootstrap", lambda *columns: known)
    monkeypatch.setattr(scaling, "MINI", TINY)
    threads = torch.get_num_threads()
    scaling.main(["--mini", "--out", str(tmp_path / "mini.json")])
    torch.set_num_threads(threads)
    text = capsys.readouterr().out
    assert "R squared" in text and "alpha" in text and "predicted" in text
    assert len(scaling.load(tmp_path / "mini.json").of("sweep")) == 6


# --- the shipped sweep


@pytest.fixture(scope="module")
def shipped():
    return scaling.shipped()


def test_the_shipped_sweep_is_that_of_the_recipe(shipped):
    assert shipped.recipe == Recipe()
    assert shipped.machine["torch"]
    pairs = {(run.width, run.tokens) for run in shipped.of()}
    assert pairs == {(width, tokens) for width in shipped.recipe.widths for tokens in shipped.recipe.tokens} | set(
        shipped.recipe.extra
    )
    for run in shipped.runs:
        assert isinstance(run, Run)
        assert run.parameters == shipped.recipe.parameters(run.width)
        if run.purpose != "tuning":
            assert run.learning_rate == shipped.rate(run.width)


def test_the_learning_rate_of_each_size_was_tuned(shipped):
    for width in shipped.recipe.widths:
        tried = [run.learning_rate * width for run in shipped.of("tuning") if run.width == width]
        assert tried == pytest.approx(shipped.recipe.rates)
        best = shipped.rate(width) * width
        assert min(tried) < best < max(tried), "the best rate may lie beyond those that were tried"


def test_more_of_either_lowers_the_shipped_losses(shipped):
    loss = {(run.width, run.tokens): run.loss for run in shipped.of() if run.seed == 0}
    for width in shipped.recipe.widths:
        column = [loss[width, tokens] for tokens in shipped.recipe.tokens]
        assert column == sorted(column, reverse=True)


def test_the_law_explains_the_shipped_losses(shipped):
    columns = shipped.columns()
    assert scaling.r_squared(scaling.fit(*columns), *columns) > 0.98


def test_the_held_out_run_is_larger_than_all_that_were_fitted(shipped):
    largest = max(shipped.of("held out"), key=lambda run: run.flops)
    assert largest.flops > 3 * max(run.flops for run in shipped.of())
    assert largest.parameters > max(run.parameters for run in shipped.of())
    assert largest.tokens >= max(run.tokens for run in shipped.of())
    guess = scaling.bootstrap(*shipped.columns(), draws=60).predict(largest.parameters, largest.tokens)
    error, inside = guess.score(largest.loss)
    assert inside and abs(error) < 0.02, "the notebook says so"
    assert guess.high < min(run.loss for run in shipped.of()), "a guess that no run of the sweep would have given"


def test_a_shipped_run_comes_out_again(shipped, monkeypatch):
    """With the libraries of the lock the text is the same; others change the corpus a little."""
    monkeypatch.setattr(scaling, "byte_row", BYTE_ROW)
    run = shipped.of()[0]
    recipe = dataclasses.replace(
        shipped.recipe, widths=(run.width,), tokens=(run.tokens,), seeds=(run.seed,), extra=(), held_out=(),
        rates=(run.learning_rate * run.width,),
    )  # fmt: skip
    (again,) = scaling.sweep(recipe, progress=False).runs
    assert again.loss == pytest.approx(run.loss, abs=0.03)
    assert again.parameters == run.parameters
