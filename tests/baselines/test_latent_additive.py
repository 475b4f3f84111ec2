"""Latent additive: combinations of seen genes, unseen genes through embeddings, and the mean where nothing is known."""

from itertools import combinations

import numpy as np
import pytest

from scbig.baselines import Embedding, TrainingData, latent_additive
from scbig.errors import InputError

GENES = tuple(f"x{i}" for i in range(40))
SINGLES = tuple(f"P{i}" for i in range(16))
PAIRS = tuple(f"{a}+{b}" for a, b in combinations(sorted(SINGLES), 2))
SMALL = {"width": 64, "latent": 16, "n_components": 30, "folds": 3, "seeds": 2}


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    """Effects saturate in the sum, so that adding them up overshoots."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(5, 40))
    loading = {g: rng.normal(size=5) for g in SINGLES}
    return {c: np.tanh(np.sum([loading[g] for g in c.split("+")], axis=0)) @ basis for c in (*SINGLES, *PAIRS)}


def data_of(truth, conditions, embeddings=None, contexts=None) -> TrainingData:
    return TrainingData(
        genes=GENES,
        conditions=tuple(conditions),
        contexts=contexts or ("all",) * len(conditions),
        effects=np.stack([truth[c] for c in conditions]).astype(np.float32),
        n_cells=np.ones(len(conditions), np.int64),
        embeddings=embeddings or {},
    )


def correlation(x, truth, conditions) -> float:
    return float(np.mean([np.corrcoef(p, truth[c])[0, 1] for p, c in zip(x, conditions, strict=True)]))


TRAIN, TEST = (*SINGLES, *PAIRS[::2]), PAIRS[1::2]


@pytest.fixture(scope="module")
def fitted(truth):
    return latent_additive.fit(data_of(truth, TRAIN), **SMALL)


def test_unseen_combinations_of_seen_genes_are_learned(fitted, truth):
    x = fitted.predict(TEST)
    mean = np.tile(np.mean([truth[c] for c in TRAIN], axis=0), (len(TEST), 1))
    assert correlation(x, truth, TEST) > max(0.8, correlation(mean, truth, TEST) + 0.2)
    total = np.stack([np.sum([truth[g] for g in c.split("+")], axis=0) for c in TEST])
    target = np.stack([truth[c] for c in TEST])
    assert np.square(x - target).mean() < np.square(total - target).mean()
    assert "identities of genes" in fitted.notes and not fitted.predict(["control"]).any()


def test_it_is_repeatable_whatever_the_order_of_rows_and_genes(fitted, truth):
    again = latent_additive.fit(data_of(truth, TRAIN[::-1]), **SMALL)
    np.testing.assert_allclose(again.predict(TEST), fitted.predict(TEST), atol=1e-4)
    other = latent_additive.fit(data_of(truth, TRAIN), **SMALL | {"seeds": 1, "seed": 5})
    assert np.abs(other.predict(TEST) - fitted.predict(TEST)).max() > 1e-4


def test_an_unseen_gene_is_predicted_from_its_embedding():
    rng = np.random.default_rng(1)
    names = tuple(f"Q{i}" for i in range(110))
    vectors = rng.normal(size=(110, 5))
    effects = vectors @ rng.normal(size=(5, 40)) + rng.normal(size=40)
    truth = dict(zip(names, effects, strict=True))
    mask = np.ones(110, bool)
    mask[[3, 109]] = False
    poisoned = np.where(mask[:, None], vectors, np.nan)
    data = data_of(truth, names[:80], {"text": Embedding(names, poisoned, mask)})
    model = latent_additive.fit(data, **SMALL)
    test = names[80:109]
    mean = np.tile(effects[:80].mean(axis=0), (len(test), 1))
    assert correlation(model.predict(test), truth, test) > correlation(mean, truth, test) + 0.2
    assert model.skipped(["Q1+Q109"])[0].reason == "no vector in text: Q109"
    noise = {"text": Embedding(names, rng.normal(size=(110, 5)), np.ones(110, bool))}
    useless = latent_additive.fit(data_of(truth, names[:80], noise), **SMALL)
    assert correlation(useless.predict(test), truth, test) > correlation(mean, truth, test) - 0.02


def test_contexts_shift_the_prediction(truth):
    shifted = {c: e + 1.0 for c, e in truth.items()}
    both = data_of(truth, TRAIN, contexts=("k",) * len(TRAIN))
    more = np.concatenate([both.effects, np.stack([shifted[c] for c in TRAIN])]).astype(np.float32)
    data = TrainingData(
        genes=GENES,
        conditions=TRAIN * 2,
        contexts=("k",) * len(TRAIN) + ("l",) * len(TRAIN),
        effects=more,
        n_cells=np.ones(2 * len(TRAIN), np.int64),
    )
    model = latent_additive.fit(data, **SMALL | {"epochs": 20, "seeds": 1})
    k, new = model.predict(TEST, ["k"] * len(TEST)), model.predict(TEST, ["new"] * len(TEST))
    assert (model.predict(TEST, ["l"] * len(TEST)) - k).mean() == pytest.approx(1.0, abs=0.2)
    assert (new - k).mean() == pytest.approx(0.5, abs=0.2)


def test_reasons_and_refusals(fitted, truth):
    assert fitted.skipped(["P1+Z"])[0].reason == "in no training condition: Z"
    singles = latent_additive.fit(data_of(truth, SINGLES), **SMALL | {"epochs": 3, "seeds": 1})
    assert "no training combinations" in singles.notes[0]
    few = latent_additive.fit(data_of(truth, SINGLES[:3]), **SMALL)
    assert "3 training conditions" in few.skipped(["P1"])[0].reason
    with pytest.raises(InputError, match="'go'"):
        latent_additive.fit(data_of(truth, TRAIN), "go", **SMALL)
