"""Responses beside embeddings: what they are, whose cells they come from, and what they do to a similarity."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbig import stages
from scbig.data.splits import Split
from scbig.errors import InputError
from scbig.modules import Modules, mean_effects, with_responses


@pytest.fixture
def screen():
    rng = np.random.default_rng(0)
    condition = np.array(["control"] * 8 + ["A"] * 5 + ["B"] * 4 + ["C"] * 3)
    context = np.array(["x", "y"] * 10)
    x = sp.random(20, 6, density=0.6, random_state=rng, format="csr", dtype=np.float32)
    obs = pd.DataFrame({"condition": pd.Categorical(condition), "context": pd.Categorical(context)})
    return x, obs, condition != "C"


def blocks(x, train, size):
    rows = x[np.flatnonzero(train)]
    return [rows[start : start + size] for start in range(0, rows.shape[0], size)]


@pytest.mark.parametrize("size", [3, 100])
def test_effects_are_means_of_training_conditions_less_controls_of_their_context(screen, size):
    x, obs, train = screen
    found = mean_effects(blocks(x, train, size), obs, train)
    dense = x.toarray().astype(np.float64)

    def mean(condition, context):
        return dense[(obs["condition"] == condition) & (obs["context"] == context)].mean(axis=0)

    wanted = [mean(c, k) - mean("control", k) for c in ("A", "B") for k in ("x", "y")]
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(wanted, axis=0), atol=1e-6)


def test_without_controls_there_are_no_effects(screen):
    x, obs, train = screen
    train = train & (obs["condition"] != "control").to_numpy()
    with pytest.raises(InputError, match="modules.response_weight needs training conditions with controls"):
        mean_effects(blocks(x, train, 100), obs, train)


def cosine(features):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit @ unit.T


def test_the_cosine_is_the_weighted_mean_of_both():
    rng = np.random.default_rng(1)
    vectors, effects = rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=(9, 7))
    features, mask = with_responses(vectors, np.ones(7, bool), effects, 0.3)
    wanted = 0.7 * cosine(vectors) + 0.3 * np.corrcoef(effects.T)
    np.testing.assert_allclose(cosine(features), wanted, atol=1e-5)
    assert mask.all()


def test_a_gene_is_known_by_whichever_part_there_is():
    rng = np.random.default_rng(2)
    vectors, effects = rng.normal(size=(4, 5)).astype(np.float32), rng.normal(size=(6, 4))
    vectors[0] = np.nan  # masked: not looked at
    effects[:, 1] = 0.0
    effects[:, 3] = 0.5
    features, mask = with_responses(vectors, np.array([False, True, True, False]), effects, 0.25)
    assert mask.tolist() == [True, True, True, False]
    np.testing.assert_allclose(np.linalg.norm(features, axis=1) ** 2, [0.25, 0.75, 1.0, 0.0], atol=1e-5)
    assert not features[0, :5].any() and not features[1, 5:].any()
    _, alone = with_responses(vectors, np.array([False, True, True, False]), effects, 1.0)
    assert alone.tolist() == [True, False, True, False]


def test_what_cannot_be_weighed_is_refused():
    vectors, mask = np.ones((3, 2), np.float32), np.ones(3, bool)
    with pytest.raises(InputError, match="response_weight=1.5 does not lie between 0 and 1"):
        with_responses(vectors, mask, np.ones((4, 3)), 1.5)
    with pytest.raises(InputError, match="two training conditions"):
        with_responses(vectors, mask, np.ones((1, 3)), 0.3)


def test_the_stage_clusters_by_responses_of_training_cells_alone(tiny_settings, tmp_path):
    settings = tiny_settings()
    plain = stages.execute(tmp_path / "plain", settings, ("prepare", "cluster"))
    settings.modules.response_weight = 0.5
    run = stages.execute(tmp_path / "run", settings, ("prepare", "cluster"))
    found = Modules.load(run.path("modules.csv"))
    assert found.genes != Modules.load(plain.path("modules.csv")).genes  # they stand by module and rank
    # Other cells of the held-out conditions change nothing.
    adata = ad.read_h5ad(run.path("prepared.h5ad"))
    held_out = Split.load(run.path("split.csv")).assign(adata.obs) != "train"
    adata.X = sp.csr_matrix(adata.X.multiply(np.where(held_out, 3.0, 1.0)[:, None]), dtype=np.float32)
    adata.write_h5ad(run.path("prepared.h5ad"))
    from scbig.stages.prepare import cluster

    before = run.path("modules.csv").read_bytes()
    cluster(run, settings, {"coverage": []})
    assert run.path("modules.csv").read_bytes() == before and held_out.any()
    adata.X = sp.csr_matrix(adata.X[:, np.random.default_rng(3).permutation(adata.n_vars)])
    adata.write_h5ad(run.path("prepared.h5ad"))
    cluster(run, settings, {"coverage": []})
    assert run.path("modules.csv").read_bytes() != before
