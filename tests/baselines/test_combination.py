"""The combination model: sums stay sums, planted interactions are found, and nothing depends on order or on the test."""

from itertools import combinations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scbig import baselines, evaluation
from scbig.baselines import TrainingData
from scbig.baselines.combination import FEWEST
from scbig.baselines.combination_terms import row_noise
from scbig.data import effects_table
from scbig.data.conditions import genes_of
from scbig.data.splits import Split
from scbig.errors import InputError

GENES = tuple("ABCDEFGHIJKLMNOP") + tuple(f"g{i}" for i in range(104))
SINGLES = GENES[:16]
PAIRS = tuple(f"{a}+{b}" for a, b in combinations(SINGLES, 2))


def data_of(effects: dict[str, np.ndarray], context: str = "all") -> TrainingData:
    x = np.stack(list(effects.values())).astype(np.float32)
    return TrainingData(GENES, tuple(effects), (context,) * len(effects), x, np.ones(len(effects), np.int64))


def screen(kind: str, noise: float, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What is measured, and the truth: five programs, and pairs that add up, or that drive a sixth between classes."""
    rng = np.random.default_rng(seed)
    program, sixth = rng.normal(size=(5, len(GENES))), rng.normal(size=len(GENES))
    own = {g: rng.normal(size=5) @ program for g in SINGLES}
    # A class is told by its own program, so that genes of one class are alike.
    first = {g: i % 2 == 0 for i, g in enumerate(SINGLES)}
    own = {g: e + (3.0 if first[g] else -3.0) * program[0] for g, e in own.items()}
    truth = dict(own)
    for pair in PAIRS:
        a, b = pair.split("+")
        truth[pair] = own[a] + own[b]
        if kind == "synergy" and first[a] and first[b]:
            truth[pair] = truth[pair] + 4.0 * sixth
        if kind == "weaker":
            truth[pair] = 0.6 * truth[pair]
    return {c: e + noise * rng.normal(size=len(GENES)) for c, e in truth.items()}, truth


def fit(data: TrainingData, **options):
    """Two folds are enough here, and quick."""
    return baselines.fit("combination", data, **{"folds": 2, **options})


def halves(seed: int = 0) -> tuple[list[str], list[str]]:
    order = np.random.default_rng(seed).permutation(len(PAIRS))
    return sorted(PAIRS[i] for i in order[:60]), sorted(PAIRS[i] for i in order[60:])


def split_of(names: list[str], held: list[str]) -> Split:
    rows = [(c, "test" if c in held else "train", "") for c in names]
    return Split("made", "file", 0, pd.DataFrame(rows, columns=["condition", "part", "stratum"]))


def without(effects: dict[str, np.ndarray], held: list[str]) -> dict[str, np.ndarray]:
    return {c: e for c, e in effects.items() if c not in held}


def error(model, truth: dict[str, np.ndarray], held: list[str]) -> float:
    return float(np.square(model.predict(held) - np.stack([truth[c] for c in held])).mean())


def test_effects_that_add_up_are_left_to_add_up():
    measured, truth = screen("additive", 0.0)
    _, held = halves()
    model = fit(data_of(without(measured, held)))
    np.testing.assert_allclose(model.predict(held), np.stack([truth[c] for c in held]), atol=1e-3)
    assert model.account(held[0], "all")["kept"] == 0


def test_noisy_sums_are_denoised_and_nothing_else():
    measured, truth = screen("additive", 1.0)
    _, held = halves()
    data = data_of(without(measured, held))
    model = fit(data)
    assert error(model, truth, held) < 0.5 * error(baselines.fit("additive", data), truth, held)


@pytest.mark.parametrize("kind", ["synergy", "weaker"])
def test_what_pairs_do_beyond_their_sum_is_found(kind):
    measured, truth = screen(kind, 0.5)
    _, held = halves()
    data = data_of(without(measured, held))
    model = fit(data)
    for other in ("additive", "low_rank"):
        assert error(model, truth, held) < 0.35 * error(baselines.fit(other, data), truth, held)
    term = {"synergy": "interactions", "weaker": "attenuation"}[kind]
    some_terms = tuple(t for t in baselines.combination.TERMS if t != term)
    assert error(model, truth, held) < 0.85 * error(fit(data, terms=some_terms), truth, held)
    told = model.account(held[0], "all")
    assert told["basis"] == "pair of measured singles" and told["kept"] > 0.8 and told["skill"] > 0.7


def test_pairs_that_say_nothing_change_nothing():
    rng = np.random.default_rng(5)
    measured, _ = screen("additive", 0.0)
    noise = {c: e if "+" not in c else 3.0 * rng.normal(size=len(GENES)) for c, e in measured.items()}
    _, held = halves()
    data = data_of({c: e for c, e in noise.items() if c not in held})
    model, sums = fit(data), baselines.fit("additive", data)
    # Nothing of such pairs can be told, so the best answer is none: the sum, weaker.
    away = model.predict(held) - sums.predict(held)
    assert not (away * sums.predict(held)).sum() > 0
    assert np.square(model.predict(held)).sum() <= np.square(sums.predict(held)).sum()


def test_a_gene_that_only_one_perturbation_moves_is_kept():
    measured, _ = screen("weaker", 0.3)
    _, held = halves()
    pair = held[0]
    gene, column = pair.split("+")[0], GENES.index("g7")
    measured = {c: e.copy() for c, e in measured.items()}
    for name, effect in measured.items():
        if gene in name.split("+"):
            effect[column] += 12.0
    data = data_of(without(measured, held))
    (kept,), (lost,) = (fit(data, terms=t).predict([pair]) for t in (
        baselines.combination.TERMS, ("noise", "attenuation")))  # fmt: skip
    expected = measured[pair][column]
    assert abs(kept[column] - expected) < min(3.0, abs(lost[column] - expected))


def test_order_of_rows_and_of_genes_does_not_matter():
    measured, _ = screen("synergy", 0.5)
    _, held = halves()
    names = list(without(measured, held))
    mixed = [names[i] for i in np.random.default_rng(1).permutation(len(names))]
    one, two = (fit(data_of({c: measured[c] for c in each})) for each in (names, mixed))
    np.testing.assert_allclose(one.predict(held), two.predict(held), atol=1e-4)
    assert one.notes == two.notes
    turned = ["+".join(reversed(c.split("+"))) for c in held]
    np.testing.assert_allclose(one.predict(turned), one.predict(held), atol=1e-5)


def test_what_is_held_out_influences_nothing():
    measured, _ = screen("synergy", 0.5)
    _, held = halves()
    split = split_of(list(measured), held)
    told = []
    for factor in (1.0, -7.0):
        table = ad.AnnData(
            np.stack([factor * e if c in held else e for c, e in measured.items()]).astype(np.float32),
            obs=pd.DataFrame({"condition": list(measured)}, index=list(measured)),
            var=pd.DataFrame(index=list(GENES)),
        )
        told.append(fit(baselines.training_data_from_effects(table, split)).predict(held))
    np.testing.assert_array_equal(*told)


def test_settings_give_the_same_model_again():
    measured, _ = screen("synergy", 0.5)
    _, held = halves()
    data = data_of(without(measured, held))
    model = fit(data)
    again = fit(data, **model.settings)
    np.testing.assert_array_equal(again.predict(held), model.predict(held))
    assert again.account(held[0], "all") == model.account(held[0], "all")
    assert model.study and not again.study
    with pytest.raises(InputError, match="context 'all'"):
        fit(data, chosen={"elsewhere": {}})


def test_few_pairs_add_up():
    measured, _ = screen("weaker", 0.5)
    few = list(PAIRS[: FEWEST - 1])
    data = data_of(without(measured, [p for p in PAIRS if p not in few]))
    model = fit(data)
    held = [p for p in PAIRS if p not in few][:5]
    np.testing.assert_allclose(model.predict(held), baselines.fit("additive", data).predict(held), atol=1e-6)
    assert "needed" in model.notes[0] and model.account(held[0], "all")["kept"] == 0


def test_what_was_not_measured_alone_is_named():
    measured, _ = screen("weaker", 0.5)
    data = data_of(without(measured, ["A", "A+B"]))
    model = fit(data)
    (reason,) = model.skipped(["A+B", "C+D"])
    assert reason.condition == "A+B" and "A" in reason.reason
    assert model.account("A+B", "all") == {} and not model.predict(["control"]).any()
    np.testing.assert_allclose(model.predict(["C"])[0], measured["C"], atol=1e-5)
    assert model.account("C", "all")["basis"] == "measured"
    assert np.isfinite(model.predict(["C+D+E"])).all()
    assert model.account("C+D+E", "all")["basis"] == "measured singles"


def test_contexts_are_learned_apart():
    strong, _ = screen("additive", 0.3, seed=1)
    weak, _ = screen("weaker", 0.3, seed=2)
    _, held = halves()
    one, two = data_of(without(strong, held), "k"), data_of(without(weak, held), "l")
    both = TrainingData(
        GENES,
        one.conditions + two.conditions,
        one.contexts + two.contexts,
        np.concatenate([one.effects, two.effects]),
        np.concatenate([one.n_cells, two.n_cells]),
    )
    model = fit(both)
    for data, context in ((one, "k"), (two, "l")):
        alone = fit(data).predict(held)
        np.testing.assert_allclose(model.predict(held, [context] * len(held)), alone, atol=1e-5)
    assert np.isfinite(model.predict(held[:1], ["elsewhere"])).all()
    again = fit(both, **model.settings)
    np.testing.assert_array_equal(again.predict(held, ["l"] * len(held)), model.predict(held, ["l"] * len(held)))


def test_genes_may_be_compared_by_modules():
    measured, truth = screen("synergy", 0.5)
    _, held = halves()
    data = data_of(without(measured, held))
    model = fit(data, modules={g: i % 20 for i, g in enumerate(GENES)})
    assert error(model, truth, held) < 0.5 * error(baselines.fit("additive", data), truth, held)
    with pytest.raises(InputError, match="modules"):
        fit(data, modules={"elsewhere": 0})
    with pytest.raises(InputError, match="no term"):
        fit(data, terms=("magic",))


def test_noise_of_rows_is_measured_beside_the_signal():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(120, 4)) @ rng.normal(size=(4, 500))
    spread = np.exp(rng.normal(size=120) * 0.7)
    found = row_noise(10 * signal + spread[:, None] * rng.normal(size=(120, 500)))
    assert np.corrcoef(np.log(found), 2 * np.log(spread))[0, 1] > 0.85
    assert np.log(found).mean() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_flat_effects_are_answered(value):
    measured = {c: np.full(len(GENES), value) for c in (*SINGLES, *PAIRS[:20])}
    assert np.isfinite(fit(data_of(measured)).predict(list(PAIRS[20:22]))).all()


@pytest.mark.realdata
def test_pairs_of_norman(shared):
    """One draw of 32 doubles: better than the sum, raw or of low rank, in all three of what counts."""
    table = effects_table(shared / "data" / "norman2019_effects.h5ad")
    names = list(table.obs["condition"].astype(str))
    doubles = sorted(c for c in names if len(genes_of(c)) == 2 and set(genes_of(c)) <= set(names))
    held = list(np.random.default_rng(0).choice(doubles, 32, replace=False))
    split = split_of(names, held)
    data = baselines.training_data_from_effects(table, split)
    predicted = {
        n: baselines.as_effects(baselines.fit(n, data), held)[0] for n in ("additive", "low_rank", "combination")
    }
    scores = evaluation.evaluate(predicted, table, split, draws=2, references=()).per_condition
    mean = scores.groupby(["metric", "method"])["value"].mean()
    pearson, top, mse = (mean[m] for m in ("pearson_delta", "pearson_delta_top20", "mse"))
    assert pearson["combination"] > max(pearson["additive"] + 0.04, pearson["low_rank"] + 0.015)
    assert top["combination"] > max(top["additive"] + 0.01, top["low_rank"] + 0.03)
    assert mse["combination"] < 0.85 * min(mse["additive"], mse["low_rank"])
