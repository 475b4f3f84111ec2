"""Energy distance and the fixed space against plain loops, scipy and sklearn."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA

from scbig.errors import InputError
from scbig.evaluation import Space, distribution, e_distance
from scbig.evaluation.distribution import mean_distance


def looped(x, y):
    def mean(a, b, same):
        pairs = [np.linalg.norm(p - q) for i, p in enumerate(a) for j, q in enumerate(b) if not (same and i == j)]
        return np.mean(pairs)

    return 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)


def test_e_distance_matches_a_double_loop(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(13, 4)), rng.normal(0.5, 2.0, size=(9, 4))
    assert e_distance(x, y) == pytest.approx(looped(x, y), abs=1e-10)
    assert e_distance(x + 1e4, y + 1e4) == pytest.approx(looped(x, y), abs=1e-6)
    assert e_distance(x, y, mean_distance(x), mean_distance(y)) == pytest.approx(looped(x, y), abs=1e-10)
    monkeypatch.setattr(distribution, "_CHUNK", 20)
    assert e_distance(x, y) == pytest.approx(looped(x, y), abs=1e-10)


def test_e_distance_is_unbiased():
    rng = np.random.default_rng(1)
    values = [e_distance(rng.normal(size=(10, 3)), rng.normal(size=(10, 3))) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20
    assert min(values) < 0  # a biased estimate never is


def test_e_distance_of_duplicates_and_single_cells():
    x = np.zeros((5, 3))
    assert e_distance(x, x) == 0.0
    assert np.isnan(e_distance(x[:1], x))


def test_memory_does_not_grow_with_pairs():
    x = np.random.default_rng(0).normal(size=(8_000, 5))
    tracemalloc.start()
    e_distance(x, x[::2])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6  # 8,000 × 8,000 distances alone would be 512 MB


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csr_array])
def test_space_matches_sklearn(form):
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(300, 5)) @ rng.normal(size=(5, 40)) + 0.1 * rng.normal(size=(300, 40))).astype(np.float32)
    space = Space.fit(form(x), 5, genes=[f"g{i}" for i in range(40)])
    reference = PCA(5, svd_solver="full").fit(x.astype(np.float64))
    np.testing.assert_allclose(space.explained, reference.explained_variance_ratio_, rtol=1e-5)
    np.testing.assert_allclose(
        np.abs(space.project(form(x))), np.abs(reference.transform(x.astype(np.float64))), atol=1e-4
    )


def test_space_of_many_genes_agrees_with_the_exact_one(monkeypatch):
    rng = np.random.default_rng(3)
    x = sp.csr_matrix(rng.normal(size=(200, 4)) @ rng.normal(size=(4, 30)) + 0.01 * rng.normal(size=(200, 30)))
    exact = Space.fit(x, 4)
    monkeypatch.setattr(distribution, "_EXACT", 10)
    np.testing.assert_allclose(Space.fit(x, 4).project(x), exact.project(x), atol=1e-6)


def test_a_gene_left_out_does_not_count():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(50, 6))
    space = Space.fit(x, 3, genes=list("abcdef"))
    changed = x.copy()
    changed[:, 2] = 100 * rng.normal(size=50)
    np.testing.assert_allclose(space.project(changed, without=["c"]), space.project(x, without=["c", "zz"]))
    at_mean = x.copy()
    at_mean[:, 2] = space.mean[2]
    np.testing.assert_allclose(space.project(x, without=["c"]), space.project(at_mean))


def test_space_follows_genes_by_name():
    x = np.random.default_rng(5).normal(size=(50, 6))
    space = Space.fit(x, 3, genes=list("abcdef"))
    turned = space.aligned(list("fedcba"))
    np.testing.assert_allclose(turned.project(x[:, ::-1]), space.project(x))
    with pytest.raises(InputError, match="differ in a, z"):
        space.aligned(list("zbcdef"))
    with pytest.raises(InputError, match="does not name its genes"):
        Space.fit(x, 3).aligned(list("abcdef"))
    with pytest.raises(InputError, match="5 genes do not fit a space of 6"):
        space.project(x[:, :5])
    with pytest.raises(InputError, match="at least two"):
        Space.fit(x[:1], 3)
