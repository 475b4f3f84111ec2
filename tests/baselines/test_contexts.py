"""An effect in a context where it was not measured: known answers, and no harm where other contexts say nothing."""

from dataclasses import replace

import numpy as np
import pytest

from scbig import baselines
from scbig.baselines import contexts
from scbig.baselines.base import TrainingData
from scbig.errors import InputError

GENES = tuple(f"g{i}" for i in range(200))


def data_of(effects: dict[tuple[str, str], np.ndarray], levels: dict[str, np.ndarray]) -> TrainingData:
    keys = list(effects)
    return TrainingData(
        GENES, tuple(c for c, _ in keys), tuple(k for _, k in keys),
        np.stack([effects[key] for key in keys]).astype(np.float32), np.full(len(keys), 50), control_mean=levels,
    )  # fmt: skip


@pytest.fixture
def levels() -> dict[str, np.ndarray]:
    """Six contexts; ``new`` is nearest to ``a`` and ``b``."""
    rng = np.random.default_rng(0)
    bases = [rng.gamma(2.0, 1.0, len(GENES)) for _ in range(2)]
    of = {"a": 0, "b": 0, "c": 0, "x": 1, "y": 1, "new": 0}
    return {k: np.abs(bases[i] + rng.normal(0, 0.3, len(GENES))) for k, i in of.items()}


def test_contexts_that_are_alike_count_more(levels):
    rng = np.random.default_rng(1)
    own = [rng.normal(size=len(GENES)) for _ in range(2)]
    effects = {("p", k): own[k in "xy"] + rng.normal(0, 0.1, len(GENES)) for k in "abcxy"}
    model = contexts.fit(data_of(effects, levels))
    assert model.settings["bandwidth"] < 1
    assert model.settings["kept"] > 0.9
    error = np.abs(model.predict(["p"], ["new"])[0] - own[0]).mean()
    assert error < 0.15
    assert error < 0.2 * np.abs(np.mean(list(effects.values()), axis=0) - own[0]).mean()


def test_what_falls_by_a_share_falls_by_that_share_of_the_level_it_starts_from(levels):
    share = np.linspace(0.1, 0.9, len(GENES))
    effects = {("p", k): -share * levels[k] for k in "abcxy"}
    model = contexts.fit(data_of(effects, levels))
    assert model.settings["falls"] == 1
    truth, plain = -share * levels["new"], np.mean(list(effects.values()), axis=0)
    error = np.square(model.predict(["p"], ["new"])[0] - truth).mean()
    assert error < 0.05 * np.square(plain - truth).mean()


def test_what_rises_to_a_level_rises_to_it_from_anywhere(levels):
    top = np.max(list(levels.values()), axis=0) + 1
    effects = {("p", k): top - levels[k] for k in "abcxy"}
    model = contexts.fit(data_of(effects, levels), bandwidth=100, falls=0, rises=1, kept=1)
    np.testing.assert_allclose(model.predict(["p"], ["new"])[0], top - levels["new"], rtol=1e-4)
    assert contexts.fit(data_of(effects, levels)).settings["rises"] == max(contexts.RISES)


def test_a_fall_never_takes_more_than_there_is(levels):
    effects = {("p", k): -0.9 * levels[k] for k in "abcxy"}
    empty = levels | {"new": np.zeros(len(GENES))}
    model = contexts.fit(data_of(effects, empty), bandwidth=100, falls=1, rises=0, kept=1)
    assert model.predict(["p"], ["new"])[0].min() > -contexts._FLOOR


@pytest.mark.parametrize("seed", range(5))
def test_where_contexts_do_not_tell_of_each_other_the_plain_mean_stays(levels, seed):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=len(GENES))
    effects = {(p, k): common + rng.normal(0, 1, len(GENES)) for k in "abcxy" for p in ("p", "q")}
    model = contexts.fit(data_of(effects, levels))
    plain = np.mean([effects["p", k] for k in "abcxy"], axis=0)
    found = model.predict(["p"], ["new"])[0]
    assert np.linalg.norm(found - plain) < 0.2 * np.linalg.norm(plain)


def test_an_effect_measured_there_is_the_answer_and_control_is_zero(levels):
    rng = np.random.default_rng(2)
    effects = {("p", k): rng.normal(size=len(GENES)) for k in "abcxy"}
    model = contexts.fit(data_of(effects, levels))
    predicted = model.predict(["p", "control"], ["x", "x"])
    np.testing.assert_array_equal(predicted[0], effects["p", "x"].astype(np.float32))
    assert not predicted[1].any()
    assert model.account("p", "x")["basis"] == "measured"
    assert model.account("control", "x") == {}


def test_without_controls_it_is_the_mean_over_contexts(levels):
    rng = np.random.default_rng(3)
    effects = {("p", k): rng.normal(size=len(GENES)) for k in "abcxy"}
    plain = np.mean(list(effects.values()), axis=0)
    no_controls = contexts.fit(data_of(effects, {}))
    np.testing.assert_allclose(no_controls.predict(["p"], ["new"])[0], plain, atol=1e-5)
    not_here = contexts.fit(data_of(effects, {k: v for k, v in levels.items() if k != "new"}), kept=1)
    np.testing.assert_allclose(not_here.predict(["p"], ["new"])[0], plain, atol=1e-5)
    assert not_here.account("p", "new")["kept"] == 0.0


def test_the_account_says_what_leaving_contexts_out_found(levels):
    rng = np.random.default_rng(4)
    own = [rng.normal(size=len(GENES)) for _ in range(2)]
    effects = {("p", k): own[k in "xy"] + rng.normal(0, 0.5, len(GENES)) for k in "abcxy"}
    model = contexts.fit(data_of(effects, levels))
    told = model.account("p", "new")
    assert told["basis"] == "other contexts"
    # Two noisy copies of one effect correlate at 1 / (1 + 0.25); the mean of two others with a third at more.
    assert 0.7 < told["skill"] < 0.95


def test_neither_the_order_of_rows_nor_a_second_fit_with_its_settings_changes_the_answer(levels):
    rng = np.random.default_rng(5)
    effects = {("p", k): rng.normal(k in "xy", 1, len(GENES)) for k in "abcxy"}
    data = data_of(effects, levels)
    model = contexts.fit(data)
    expected = model.predict(["p"], ["new"])
    order = [3, 1, 4, 0, 2]
    turned = replace(
        data, conditions=tuple(data.conditions[i] for i in order), contexts=tuple(data.contexts[i] for i in order),
        effects=data.effects[order],
    )  # fmt: skip
    np.testing.assert_allclose(contexts.fit(turned).predict(["p"], ["new"]), expected, atol=1e-6)
    again = contexts.fit(data, **model.settings)
    np.testing.assert_array_equal(again.predict(["p"], ["new"]), expected)
    assert again.account("p", "new") == model.account("p", "new")
    assert again.settings == model.settings


def test_what_was_measured_nowhere_has_a_reason(levels):
    model = baselines.fit("contexts", data_of({("p", "a"): np.ones(len(GENES))}, levels))
    (skipped,) = model.skipped(["q"], ["a"])
    assert "any context" in skipped.reason
    assert model.account("q", "a") == {}
    # A single other context cannot be validated: its effect stands as it is.
    np.testing.assert_array_equal(model.predict(["p"], ["new"])[0], np.ones(len(GENES), np.float32))


@pytest.mark.parametrize("wrong", [{"falls": 1.5}, {"rises": -0.1}, {"kept": 2}, {"bandwidth": 0}, {"folds": 1}])
def test_settings_out_of_range_are_refused(levels, wrong):
    with pytest.raises(InputError, match=f"contexts: {next(iter(wrong))}="):
        contexts.fit(data_of({("p", "a"): np.ones(len(GENES))}, levels), **wrong)
