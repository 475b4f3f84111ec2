"""Latent arithmetic: exact where the latent loses nothing, and only training cells are ever encoded."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbig import baselines
from scbig.baselines import latent as latents
from scbig.baselines import scgen
from scbig.data.splits import Split
from scbig.errors import InputError

GENES = [f"g{i}" for i in range(20)]


def split_of(**parts: list[str]) -> Split:
    rows = [(c, part, "") for part, names in parts.items() for c in names]
    return Split("made", "file", 0, pd.DataFrame(rows, columns=["condition", "part", "stratum"]))


SPLIT = split_of(train=["g0", "g1", "g2"], test=["g3", "g0+g1"])


@pytest.fixture
def screen() -> ad.AnnData:
    """Two contexts; g2 is seen in the first only, and a third has controls alone."""
    rng = np.random.default_rng(0)
    keys = [(c, "k") for c in ("control", "g0", "g1", "g2", "g3", "g0+g1")]
    keys += [(c, "l") for c in ("control", "g0", "g1")] + [("control", "m")]
    obs = pd.DataFrame([key for key in keys for _ in range(15)], columns=["condition", "context"])
    obs.index = [f"cell{i}" for i in range(len(obs))]
    x = np.log1p(rng.poisson(1.0, size=(len(obs), len(GENES)))).astype(np.float32)
    return ad.AnnData(sp.csr_matrix(x), obs=obs, var=pd.DataFrame(index=GENES))


def mean(screen, condition, context):
    at = ((screen.obs["condition"] == condition) & (screen.obs["context"] == context)).to_numpy()
    return screen.X.toarray()[at].mean(axis=0)


def model_of(screen, **options):
    latent = latents.fit_latent(screen, SPLIT, **options)
    return scgen.fit(baselines.training_data(screen, SPLIT, latent=latent))


def test_a_latent_that_loses_nothing_gives_exact_sums(screen):
    model = model_of(screen, n_components=len(GENES))
    single = {g: mean(screen, g, "k") - mean(screen, "control", "k") for g in ("g0", "g1", "g2")}
    x = model.predict(["g0", "g0+g1", "control"], ["k"] * 3)
    np.testing.assert_allclose(x, [single["g0"], single["g0"] + single["g1"], np.zeros(20)], atol=1e-5)


def test_another_context_lends_its_shift(screen):
    model = model_of(screen, n_components=len(GENES))
    lent = mean(screen, "g2", "k") - mean(screen, "control", "k")
    np.testing.assert_allclose(model.predict(["g2"], ["l"])[0], lent, atol=1e-5)
    both = [mean(screen, "g0", k) - mean(screen, "control", k) for k in "kl"]
    np.testing.assert_allclose(model.predict(["g0"], ["m"])[0], np.mean(both, axis=0), atol=1e-5)
    np.testing.assert_allclose(model.predict(["g0"], ["l"])[0], both[1], atol=1e-5)


def test_reasons_name_the_gene_and_the_context(screen):
    model = model_of(screen)
    gene, context = model.skipped(["g0+g3", "g0"], ["k", "moon"])
    assert "g3" in gene.reason and "g0" not in gene.reason and "moon" in context.reason
    effects = baselines.training_data(screen, SPLIT)
    assert scgen.fit(effects).skipped(["g0"])[0].reason == "needs cells"


def test_only_training_cells_are_encoded(screen):
    seen = []

    def encode(x):
        assert np.isfinite(x).all()
        seen.append(len(x))
        return x[:, :3]

    test = screen.obs["condition"].isin(["g3", "g0+g1"]).to_numpy()
    poisoned = screen.copy()
    poisoned.X = np.where(test[:, None], np.nan, screen.X.toarray())
    latent = latents.latent_of(poisoned, SPLIT, encode, lambda z: z, n_controls=5)
    assert sum(seen) == (~test).sum()
    assert {len(x) for x in latent.controls.values()} == {5} and set(latent.controls) == {"k", "l", "m"}
    expected = (mean(screen, "g1", "l") - mean(screen, "control", "l"))[:3]
    np.testing.assert_allclose(latent.shifts["g1", "l"], expected, atol=1e-6)
    assert not {c for c, _ in latent.shifts} & {"g3", "g0+g1", "control"}
    axes = [latents.fit_latent(s, SPLIT, n_components=3).encode(np.eye(20)) for s in (screen, poisoned)]
    np.testing.assert_allclose(axes[0], axes[1], atol=1e-5)


def test_components_match_a_full_decomposition(screen, monkeypatch):
    x = screen.X.toarray()[(~screen.obs["condition"].isin(["g3", "g0+g1"])).to_numpy()].astype(float)
    vt = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2][:4]
    for most in (1_000, 5):
        monkeypatch.setattr(latents, "_DENSE", most)
        latent = latents.fit_latent(screen, SPLIT, n_components=4)
        z = latent.encode(x)
        np.testing.assert_allclose(np.abs(z), np.abs((x - x.mean(axis=0)) @ vt.T), atol=1e-4)
        np.testing.assert_allclose(latent.decode(z), (x - x.mean(axis=0)) @ vt.T @ vt + x.mean(axis=0), atol=1e-4)


def test_latents_refuse_bare_contexts_and_other_genes(screen):
    bare = screen[~((screen.obs["context"] == "l") & (screen.obs["condition"] == "control"))].copy()
    with pytest.raises(InputError, match="context l"):
        latents.fit_latent(bare, SPLIT)
    with pytest.raises(InputError, match="no perturbed cell"):
        latents.fit_latent(screen, split_of(test=["g0", "g1", "g2", "g3", "g0+g1"]))
    other = latents.fit_latent(screen[:, ::-1].copy(), SPLIT)
    with pytest.raises(InputError, match="other genes"):
        scgen.fit(baselines.training_data(screen, SPLIT, latent=other))
