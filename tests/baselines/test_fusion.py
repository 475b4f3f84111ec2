"""Fusion: learns what is planted, falls back to the mean, and never reads a source that does not know the gene."""

from dataclasses import replace

import numpy as np
import pytest

from scbig.baselines import Embedding, TrainingData, fusion
from scbig.errors import InputError

N, SEEN, GENES = 120, 90, tuple(f"x{i}" for i in range(40))
NAMES = tuple(f"P{i}" for i in range(N))
SMALL = {"width": 32, "depth": 1, "epochs": 25, "n_components": 20, "folds": 2, "seeds": 2}


def world(sources: dict[str, np.ndarray], truth: np.ndarray, masks=None, rows=range(SEEN), **more) -> TrainingData:
    rows = list(rows)
    embeddings = {s: Embedding(NAMES, v, (masks or {}).get(s, np.ones(N, bool))) for s, v in sources.items()}
    return TrainingData(
        genes=GENES,
        conditions=tuple(NAMES[i] for i in rows),
        contexts=("all",) * len(rows),
        effects=truth[rows].astype(np.float32),
        n_cells=np.ones(len(rows), np.int64),
        embeddings=embeddings,
        **more,
    )


@pytest.fixture(scope="module")
def planted() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Two sources, each with half of what decides the effect; masks that lack some genes each but none in both."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, N, 6))
    truth = rng.normal(size=len(GENES)) + a @ rng.normal(size=(6, 40)) + b @ rng.normal(size=(6, 40))
    masks = {"a": np.arange(N) % 10 != 0, "b": np.arange(N) % 10 != 5}
    return {"a": a, "b": b}, truth + 0.3 * rng.normal(size=truth.shape), masks


@pytest.fixture(scope="module")
def fitted(planted):
    sources, truth, masks = planted
    return fusion.fit(world(sources, truth, masks), **SMALL)


def gain(model, truth, rows=range(SEEN, N)) -> tuple[float, float]:
    """Mean correlation with the truth of the model, and of the mean of the training effects."""
    rows, mean = list(rows), truth[:SEEN].mean(axis=0)
    x = model.predict([NAMES[i] for i in rows])
    return tuple(
        np.mean([np.corrcoef(p, truth[i])[0, 1] for p, i in zip(each, rows, strict=True)])
        for each in (x, np.tile(mean, (len(rows), 1)))
    )


def test_a_planted_map_is_learned_for_unseen_genes(fitted, planted):
    ours, mean = gain(fitted, planted[1])
    assert ours > mean + 0.2
    assert "90 training singles" in fitted.notes[-1] and "amplitude 1" in fitted.notes[-1]


def test_both_sources_say_more_than_one(fitted, planted):
    sources, truth, _ = planted
    # Noise in place of b, so that both networks are the same program.
    half = {"a": sources["a"], "b": np.random.default_rng(7).normal(size=(N, 6))}
    model = fusion.fit(world(half, truth), **SMALL | {"seeds": 1})
    assert gain(fitted, truth)[0] > gain(model, truth)[0] + 0.05


def test_random_embeddings_fall_back_to_the_mean(planted):
    a, b = np.random.default_rng(8).normal(size=(2, N, 6))
    model = fusion.fit(world({"a": a, "b": b}, planted[1]), **SMALL)
    ours, mean = gain(model, planted[1])
    assert ours > mean - 0.02


def test_a_masked_vector_is_never_read_and_nothing_depends_on_order(fitted, planted):
    sources, truth, masks = planted
    poisoned = {s: np.where(masks[s][:, None], v, np.nan) for s, v in sources.items()}
    order = np.random.default_rng(1).permutation(SEEN)
    backwards = dict(reversed(poisoned.items()))
    again = fusion.fit(world(backwards, truth, masks, rows=order), **SMALL)
    x, y = fitted.predict(NAMES[SEEN:]), again.predict(NAMES[SEEN:])
    assert np.isfinite(y).all()
    np.testing.assert_allclose(x, y, atol=1e-4)


def test_test_genes_do_not_shape_the_fit(planted):
    """Vectors of genes that are not in training change no other prediction."""
    sources, truth, _ = planted
    quick = SMALL | {"epochs": 3, "seeds": 1}
    changed = {s: np.where(np.arange(N)[:, None] > SEEN, 100.0, v) for s, v in sources.items()}
    x, y = (fusion.fit(world(s, truth), **quick).predict([NAMES[SEEN]]) for s in (sources, changed))
    np.testing.assert_allclose(x, y, atol=1e-5)


def test_combinations_add_up_with_what_was_measured(fitted, planted):
    truth = planted[1]
    x = fitted.predict(["P3+P95", "P95", "P3+P4", "control"])
    np.testing.assert_allclose(x[0], truth[3] + x[1], atol=1e-4)
    np.testing.assert_allclose(x[2], truth[3] + truth[4], atol=1e-4)
    assert not x[3].any()


def test_a_perturbations_own_gene_teaches_nothing(planted):
    """A huge response of each training gene itself, measured or not, leaves other predictions alone."""
    sources, truth, _ = planted
    quick = SMALL | {"epochs": 4, "seeds": 1}
    data = world(sources, truth)
    data = replace(data, genes=NAMES[:40])
    changed = data.effects.copy()
    changed[np.arange(40), np.arange(40)] = -50.0
    x, y = (fusion.fit(d, **quick).predict(NAMES[SEEN:]) for d in (data, replace(data, effects=changed)))
    np.testing.assert_allclose(x, y, atol=1e-3)


def test_contexts_are_trained_together(planted):
    sources, truth, _ = planted
    data = world(sources, truth)
    other = replace(
        data,
        conditions=data.conditions * 2,
        contexts=("k",) * SEEN + ("l",) * SEEN,
        effects=np.concatenate([data.effects, data.effects + 2.0]).astype(np.float32),
        n_cells=np.ones(2 * SEEN, np.int64),
    )
    model = fusion.fit(other, **SMALL | {"seeds": 1, "epochs": 8})
    x = {k: model.predict(NAMES[SEEN:], [k] * (N - SEEN)) for k in ("k", "l", "new")}
    assert (x["l"] - x["k"]).mean() == pytest.approx(2.0, abs=0.2)
    assert (x["new"] - x["k"]).mean() == pytest.approx(1.0, abs=0.3)


def test_trials_search_inside_the_training_set_and_are_recorded(planted, monkeypatch):
    pytest.importorskip("optuna")
    # The architecture stays as it is, so that no other program is compiled; the rates vary.
    fixed = {"head_width": (8.0, 8.0, "log"), "dropout": (0.2, 0.2, "linear")}
    monkeypatch.setattr(fusion, "SPACE", fusion.SPACE | fixed)
    sources, truth, _ = planted
    quick = SMALL | {"epochs": 4, "seeds": 1, "trials": 3}
    model = fusion.fit(world(sources, truth), **quick)
    assert len(model.study) == 3 and set(fusion.SPACE) <= set(model.study[0])
    best = max(model.study, key=lambda record: record["value"])
    assert f"learning_rate {best['learning_rate']:.3g}" in model.notes[0]
    assert np.isfinite(model.predict([NAMES[-1]])).all()


def test_reasons_and_refusals(fitted, planted):
    sources, truth, _ = planted
    (skipped,) = fitted.skipped(["P1+Z"])
    assert skipped.reason == "no vector in a or b: Z"
    few = fusion.fit(world(sources, truth, rows=range(3)), **SMALL)
    assert "3 training singles" in few.skipped(["P99"])[0].reason
    with pytest.raises(InputError, match=r"'go'.*a, b"):
        fusion.fit(world(sources, truth), "go")
    with pytest.raises(InputError, match="none"):
        fusion.fit(world({}, truth))
