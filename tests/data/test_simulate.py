import gzip
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from scbig.data.conditions import genes_of
from scbig.data.simulate import KIND_OF_RELATION, SimConfig, save, simulate
from scbig.data.simulator.cells import activity
from scbig.data.simulator.counts import ExpectedLog, depth_nodes, negative_binomial, tabulate
from scbig.data.simulator.world import build, relation
from scbig.errors import InputError

SMALL = SimConfig(n_cells=800, n_genes=80, n_modules=5, n_singles=10, n_doubles=12, truth_cells=64)


@pytest.fixture(scope="module")
def demo():
    return simulate(SimConfig.demo())


def world_of(config):
    return build(config, np.random.default_rng([config.seed, 0]))


def log_normalised(adata, target=None):
    total = np.asarray(adata.X.sum(1), dtype=float)
    return np.log1p(adata.X.toarray() / total * (target or np.median(total)))


# counts and their expectation


def test_counts_follow_the_negative_binomial():
    mean, alpha = np.array([0.3, 4.0, 60.0], np.float32), np.array([0.8, 0.2, 0.05])
    draws = negative_binomial(np.random.default_rng(0), np.tile(mean, (200_000, 1)), alpha)
    np.testing.assert_allclose(draws.mean(0), mean, rtol=0.01)
    np.testing.assert_allclose(draws.var(0), mean + alpha * mean**2, rtol=0.02)
    for g in range(2):
        edges = np.arange(6)
        expected = stats.nbinom.pmf(edges, 1 / alpha[g], 1 / (1 + alpha[g] * mean[g]))
        np.testing.assert_allclose([(draws[:, g] == n).mean() for n in edges], expected, atol=0.004)


def test_expected_log_against_exact_sums():
    alpha, depth, target = np.array([0.05, 0.3, 2.0]), 800.0, 900.0
    table = tabulate(alpha, np.array([depth]), np.array([1.0]), target)
    shares = np.array([1e-5, 3e-4, 0.004, 0.05, 0.3])
    got = table(np.tile(np.log(shares)[:, None], (1, 3)))
    counts = np.arange(30_000)
    for i, share in enumerate(shares):
        for g, a in enumerate(alpha):
            mass = stats.nbinom.pmf(counts, 1 / a, 1 / (1 + a * depth * share))
            assert got[i, g] == pytest.approx((mass * np.log1p(counts * target / depth)).sum(), abs=1e-3)


def test_expected_log_when_the_size_is_the_observed_total():
    rng = np.random.default_rng(1)
    profile = np.array([0.4, 0.2, *np.full(40, 0.01)])
    alpha = rng.uniform(0.05, 0.5, profile.size)
    config = (500.0, 0.4)
    table = tabulate(alpha, *depth_nodes(*config), 480.0, profile)
    depth = config[0] * np.exp(rng.normal(0, config[1], 200_000) - config[1] ** 2 / 2)
    counts = negative_binomial(rng, (depth[:, None] * profile).astype(np.float32), alpha)
    values = np.log1p(counts / counts.sum(1, keepdims=True) * 480.0)
    # A gene of 40% of the library is harsher than any simulated one: second order is not exact there.
    error = table(np.log(profile)[None, :])[0] - values.mean(0)
    assert np.abs(error[2:]).max() < 4 * (values.std(0) / np.sqrt(depth.size)).max()
    assert np.abs(error[:2]).max() < 0.03


def test_table_inverts_and_smooths():
    table = tabulate(np.array([0.1, 0.4]), *depth_nodes(5000.0, 0.3), 5000.0)
    level = np.array([[0.2, 1.0], [2.0, 4.0]])
    np.testing.assert_allclose(table(table.invert(level)), level, atol=2e-3)
    straight = ExpectedLog(np.tile(np.linspace(0, 1, 200), (2, 1)), np.linspace(-10, 10, 200))
    at = np.array([[0.5, -1.0]])
    np.testing.assert_allclose(straight.smoothed(np.array([0.5, 1.0]))(at), straight(at), atol=1e-5)
    square = ExpectedLog(np.tile(np.linspace(-10, 10, 2000) ** 2, (2, 1)), np.linspace(-10, 10, 2000))
    np.testing.assert_allclose(square.smoothed(np.array([0.5, 1.0]))(at), at**2 + [[0.25, 1.0]], atol=1e-3)


# the planted world


def test_relation_of_modules_decides_the_kind():
    wiring = np.zeros((5, 5))
    wiring[0, 1] = 0.5  # 0 acts on 1
    wiring[0, 2] = wiring[3, 2] = -0.5  # 0 and 3 share 2
    assert relation(wiring, 1, 1) == "same"
    assert relation(wiring, 0, 1) == relation(wiring, 1, 0) == "upstream"
    assert relation(wiring, 0, 3) == relation(wiring, 3, 0) == "shared"
    assert relation(wiring, 1, 3) == relation(wiring, 4, 0) == "disjoint"
    assert set(KIND_OF_RELATION.values()) == {"additive", "synergistic", "buffering", "masking"}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("preset", [SimConfig.demo, SimConfig.benchmark])
def test_every_kind_has_pairs_and_follows_the_rule(preset, seed):
    config = preset(seed)
    world = world_of(config)
    kinds = pd.Series([pair.kind for pair in world.doubles]).value_counts(normalize=True)
    assert len(world.doubles) == config.n_doubles == len({(p.first, p.second) for p in world.doubles})
    assert set(kinds.index) == set(KIND_OF_RELATION.values()) and kinds.min() >= 0.1
    home = world.module[world.perturbed]
    for pair in world.doubles:
        how = relation(world.wiring, int(home[pair.first]), int(home[pair.second]))
        assert (pair.relation, pair.kind) == (how, KIND_OF_RELATION[how])
        if pair.kind == "masking":
            other = pair.first + pair.second - pair.epistatic
            assert world.wiring[home[other], home[pair.epistatic]] != 0
    # Acyclic: some power of the wiring vanishes.
    assert not np.linalg.matrix_power(np.abs(world.wiring), config.n_modules).any()
    sizes = np.bincount(world.module)
    assert sizes.size == config.n_modules and np.ptp(sizes) <= 1
    assert (world.regulator[world.perturbed] != 0).all()


def test_activity_of_pairs_by_kind():
    config = SimConfig.demo()
    world = world_of(config)

    def act(members, double, rho):
        rho = np.array([rho], dtype=float)
        return activity(world, members, double, rho, 0, config.synergy, config.buffering)[0]

    seen = set()
    for pair in world.doubles:
        members = (pair.first, pair.second)
        a, b = act(members[:1], None, [1.0]), act(members[1:], None, [1.0])
        both = act(members, pair, [1.0, 1.0])
        if pair.kind == "additive":
            np.testing.assert_allclose(both, a + b, atol=1e-12)
            np.testing.assert_allclose(act(members, pair, [0.5, 2.0]), 0.5 * a + 2 * b, atol=1e-12)
        elif pair.kind == "buffering":
            np.testing.assert_allclose(both, (1 - config.buffering) * (a + b), atol=1e-12)
        elif pair.kind == "masking":
            np.testing.assert_allclose(both, a if pair.epistatic == pair.first else b, atol=1e-12)
        else:
            home = world.module[world.perturbed[list(members)]]
            shared = (world.wiring[home] != 0).all(0)
            impulse = (both - a - b) @ np.linalg.inv(world.response[0])
            assert (np.abs(impulse[shared]) > 1e-3).all()
            np.testing.assert_allclose(impulse[~shared], 0, atol=1e-12)
        # Where one perturbation fails, the other acts alone whatever the kind.
        np.testing.assert_allclose(act(members, pair, [1.0, 0.0]), a, atol=1e-12)
        np.testing.assert_allclose(act(members, pair, [0.0, 1.0]), b, atol=1e-12)
        seen.add(pair.kind)
    assert len(seen) == 4


def test_knockdown_lowers_and_activation_raises_the_own_gene():
    for direction, sign in (("activation", 1), ("knockdown", -1)):
        truth = simulate(replace(SMALL, direction=direction)).truth
        singles = truth[truth.obs["kind"] == "single"]
        own = np.array([singles[c, c].X.item() for c in singles.obs["condition"]])
        assert (sign * own > 0).all()


# the screen


def test_demo_has_the_promised_form(demo):
    config, adata = demo.config, demo.adata
    assert adata.shape == (5000, 400)
    assert sp.issparse(adata.X) and adata.X.format == "csr" and adata.X.dtype == np.int32
    assert (adata.X.data > 0).all() and adata.X.has_canonical_format
    assert adata.var_names.is_unique and adata.obs_names.is_unique
    assert adata.uns["simulated_cells"] is True and adata.uns["scbig"]["simulated"] is True
    counts = adata.obs["condition"].value_counts()
    assert counts["control"] == round(config.control_share * 5000)
    assert len(counts) == 1 + 24 + 30 and counts.min() > 30
    singles = {c for c in counts.index if len(genes_of(c)) == 1}
    for name in counts.index:
        assert list(genes_of(name)) == sorted(genes_of(name))
        assert set(genes_of(name)) <= singles
    np.testing.assert_array_equal(adata.obs["n_umis"], np.asarray(adata.X.sum(1)).ravel())
    assert set(adata.obs["batch"]) == {"batch1", "batch2"} and set(adata.obs["context"]) == {"line1"}
    assert "module" not in adata.var


def test_marginals_are_those_asked_for(demo):
    config, adata = demo.config, demo.adata
    umis = adata.obs["n_umis"]
    assert umis.mean() == pytest.approx(config.depth, rel=0.03)
    assert np.log(umis).std() == pytest.approx(config.depth_sigma, abs=0.05)
    cycle = adata.obs["cell_cycle"].value_counts(normalize=True)
    assert [cycle["G1"], cycle["S"], cycle["G2M"]] == pytest.approx([0.5, 0.25, 0.25], abs=0.03)
    # Genes of the cycle follow it in control cells; the two batches differ by about batch_sigma.
    control = adata[adata.obs["condition"] == "control"]
    values = log_normalised(control)
    phases = [values[(control.obs["cell_cycle"] == p).to_numpy()].mean(0) for p in ("G1", "S", "G2M")]
    swing = pd.Series(np.ptp(phases, axis=0)).groupby(demo.modules["module"].to_numpy()).mean().sort_values()
    assert swing.iloc[-2] > 1.5 * swing.iloc[-3]


def test_truth_is_what_many_cells_converge_to():
    config = SimConfig(
        n_cells=24_000,
        n_genes=60,
        n_modules=5,
        n_singles=5,
        n_doubles=5,
        n_contexts=2,
        control_share=0.2,
        seed=3,
    )
    sim = simulate(config)
    values = log_normalised(sim.adata)
    z, got, expected = [], [], []
    for row, (name, context) in enumerate(zip(sim.truth.obs["condition"], sim.truth.obs["context"], strict=True)):
        cells = ((sim.adata.obs["condition"] == name) & (sim.adata.obs["context"] == context)).to_numpy()
        mean, error = values[cells].mean(0), values[cells].std(0) / np.sqrt(cells.sum())
        z.append((mean - sim.truth.layers["mean"][row]) / np.maximum(error, 1e-3))
        if name == "control":
            rest = mean
        else:
            got.append(mean - rest)
            expected.append(sim.truth.X[row])
    # Standard scores of empirical means around the truth: spread one, and no bias beyond what the depth and
    # the phase of the drawn cells, which all genes share, leave.
    assert abs(np.mean(z)) < 0.3
    assert 0.85 < np.std(z) < 1.15
    pearson = [np.corrcoef(a, b)[0, 1] for a, b in zip(got, expected, strict=True) if np.abs(b).max() > 0.3]
    assert len(pearson) > 15 and min(pearson) > 0.98


def test_truth_is_labelled_and_starts_from_control(demo):
    truth = demo.truth
    assert truth.uns["scbig"]["kind"] == "effects" and truth.uns["simulated_cells"] is True
    assert truth.uns["scbig"]["target_sum"] == np.median(demo.adata.obs["n_umis"])
    assert set(truth.obs["condition"]) == set(demo.adata.obs["condition"])
    assert truth.obs["kind"].value_counts()["single"] == 24
    control = (truth.obs["kind"] == "control").to_numpy()
    assert not truth.X[control].any() and truth.layers["mean"][control].all()
    np.testing.assert_allclose(truth.X, truth.layers["mean"] - truth.layers["mean"][control], atol=1e-6)


def test_interactions_leave_the_sum_and_additive_pairs_do_not(demo):
    truth = demo.truth
    off = {}
    for name, kind in zip(truth.obs["condition"], truth.obs["kind"], strict=True):
        if len(genes_of(name)) == 2:
            a, b = genes_of(name)
            total = truth[a].X[0] + truth[b].X[0]
            off.setdefault(kind, []).append(np.linalg.norm(truth[name].X[0] - total) / np.linalg.norm(total))
    assert np.median(off["additive"]) < 0.1
    assert all(np.median(off[kind]) > 0.25 for kind in ("synergistic", "buffering", "masking"))


def test_cells_of_one_condition_are_more_than_a_shift(demo):
    truth, adata = demo.truth, demo.adata
    strongest = truth.obs_names[np.abs(truth.X).mean(1).argmax()]
    genes = np.argsort(-np.abs(truth[strongest].X[0]))[:15]
    score = log_normalised(adata)[:, genes] @ truth[strongest].X[0][genes]
    spread = [score[(adata.obs["condition"] == c).to_numpy()].std() for c in (strongest, "control")]
    assert spread[0] > 1.2 * spread[1]


def test_same_seed_same_bits_and_more_cells_same_world():
    one, two = simulate(SMALL), simulate(SMALL)
    assert (one.adata.X != two.adata.X).nnz == 0
    pd.testing.assert_frame_equal(one.adata.obs, two.adata.obs)
    np.testing.assert_array_equal(one.truth.X, two.truth.X)
    np.testing.assert_array_equal(one.priors.embeddings["noisy"][1], two.priors.embeddings["noisy"][1])
    larger, other = simulate(replace(SMALL, n_cells=900)), simulate(replace(SMALL, seed=1))
    pd.testing.assert_frame_equal(one.modules, larger.modules)
    pd.testing.assert_frame_equal(one.priors.ppi, larger.priors.ppi)
    assert list(one.truth.obs_names) == list(larger.truth.obs_names)
    assert not one.modules.equals(other.modules)


def test_two_contexts_differ_in_baseline_and_partly_in_response():
    sim = simulate(replace(SMALL, n_contexts=2, n_cells=1000))
    assert len(sim.truth) == 2 * (1 + 10 + 12) and sim.truth.obs_names.is_unique
    table = pd.crosstab(sim.adata.obs["condition"], sim.adata.obs["context"])
    assert table.shape == (23, 2) and table.to_numpy().min() > 3
    first, second = (sim.truth[sim.truth.obs["context"] == line] for line in ("line1", "line2"))
    base = np.corrcoef(first.layers["mean"][0], second.layers["mean"][0])[0, 1]
    assert 0.4 < base < 0.97
    strong = np.abs(first.X).max(1) > 0.5
    alike = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(first.X[strong], second.X[strong], strict=True)])
    assert 0.4 < alike < 0.98


# the priors


def neighbours_in_module(genes, vectors, modules, k=5):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    close = unit @ unit.T
    np.fill_diagonal(close, -2)
    label = modules.set_index("gene")["module"].loc[genes].to_numpy()
    return (label[np.argsort(-close, 1)[:, :k]] == label[:, None]).mean()


def test_embeddings_know_the_modules_as_well_as_asked(demo):
    shares = {n: neighbours_in_module(*e, demo.modules) for n, e in demo.priors.embeddings.items()}
    chance = 1 / demo.config.n_modules
    assert shares["semantic"] > 0.8
    assert 4 * chance < shares["noisy"] < shares["semantic"]
    blank = simulate(replace(SMALL, semantic_noise=100.0))
    assert neighbours_in_module(*blank.priors.embeddings["semantic"], blank.modules) < 0.35
    genes, vectors = demo.priors.embeddings["semantic"]
    assert vectors.dtype == np.float32 and list(genes) == list(demo.adata.var_names)
    noisy_genes = set(demo.priors.embeddings["noisy"][0])
    assert len(noisy_genes) == round(0.85 * 400) and noisy_genes < set(genes)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_default_noise_leaves_modules_recoverable(seed):
    sim = simulate(replace(SimConfig.demo(seed), n_cells=500, truth_cells=2))
    vectors = sim.priors.embeddings["semantic"][1]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = KMeans(16, n_init=5, random_state=0).fit_predict(unit)
    assert adjusted_rand_score(sim.modules["module"], found) > 0.8


def test_network_has_its_density_and_modules(demo):
    ppi, config = demo.priors.ppi, demo.config
    assert list(ppi.columns) == ["gene_a", "gene_b", "combined_score"]
    assert (ppi["gene_a"] < ppi["gene_b"]).all() and not ppi.duplicated(["gene_a", "gene_b"]).any()
    strong = ppi[ppi["combined_score"] > 700]
    n = len(set(ppi["gene_a"]) | set(ppi["gene_b"]))
    assert len(strong) == pytest.approx(config.ppi_density * n * (n - 1) / 2, rel=0.03)
    assert (ppi["combined_score"] < 700).mean() == pytest.approx(1 / 6, abs=0.01)
    module = demo.modules.set_index("gene")["module"]
    within = (module[strong["gene_a"]].to_numpy() == module[strong["gene_b"]].to_numpy()).mean()
    assert within == pytest.approx(config.ppi_within, abs=0.01)
    absent = set(demo.adata.var_names) - set(ppi["gene_a"]) - set(ppi["gene_b"])
    assert 0.02 * 400 < len(absent) < 0.15 * 400


def test_pathways_are_modules_with_noise(demo):
    module = demo.modules.set_index("gene")["module"]
    pathways = demo.priors.pathways
    assert len(pathways) == 2 * 16 + 4
    for name, genes in pathways.items():
        assert len(set(genes)) == len(genes) and 10 <= len(genes) <= 500
        purity = module[list(genes)].value_counts(normalize=True).iloc[0]
        assert purity == pytest.approx(1 / 1.15, abs=0.06) if name.startswith("MODULE") else purity < 0.4
    covered = {g for name, genes in pathways.items() if name.startswith("MODULE") for g in genes}
    assert covered == set(demo.adata.var_names)
    assert set(pathways["MODULE_00_A"]) & set(pathways["MODULE_00_B"])


# files and refusals


def test_saved_folder_reads_back(tmp_path):
    sim = simulate(SMALL)
    out = save(sim, tmp_path / "sim")
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    files = ["noisy.npz", "pathways.gmt", "ppi.tsv.gz", "semantic.npz"]
    assert names == ["modules.csv", *(f"priors/{name}" for name in files), "screen.h5ad", "truth.h5ad"]
    screen, truth = ad.read_h5ad(out / "screen.h5ad"), ad.read_h5ad(out / "truth.h5ad")
    assert (screen.X != sim.adata.X).nnz == 0 and bool(screen.uns["simulated_cells"])
    assert screen.uns["simulation"]["seed"] == 0
    np.testing.assert_array_equal(truth.X, sim.truth.X)
    np.testing.assert_array_equal(truth.obsm["module_activity"], sim.truth.obsm["module_activity"])
    assert pd.read_csv(out / "modules.csv")["gene"].tolist() == list(screen.var_names)
    with np.load(out / "priors" / "noisy.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["vectors"], sim.priors.embeddings["noisy"][1])
        assert list(file["genes"]) == list(sim.priors.embeddings["noisy"][0])
    with gzip.open(out / "priors" / "ppi.tsv.gz", "rt") as handle:
        pd.testing.assert_frame_equal(pd.read_csv(handle, sep="\t"), sim.priors.ppi)
    rows = [line.split("\t") for line in (out / "priors" / "pathways.gmt").read_text().splitlines()]
    assert {row[0]: tuple(row[2:]) for row in rows} == sim.priors.pathways
    # Again at the same place: replaced. Over something else: refused and untouched.
    save(sim, out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match=r"mine exists and holds something else"):
        save(sim, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"n_singles": 60, "n_cells": 5000}, r"n_singles=60 is more than the \d+ regulators"),
        ({"n_doubles": 99}, "n_doubles=99 is more than 10"),
        ({"n_cells": 50}, "n_cells=50"),
        ({"n_modules": 40}, "80 genes in 40 modules"),
        ({"n_contexts": 3}, "n_contexts=3"),
        ({"direction": "knockout"}, "direction='knockout'"),
        ({"control_share": 1.2}, r"control_share=1\.2"),
        ({"module_noise": -1.0}, r"module_noise=-1\.0 is negative"),
        ({"escape": (0.5, 0.1)}, r"escape=\(0\.5, 0\.1\)"),
        ({"dispersion": 0.0}, "dispersion"),
        ({"ppi_density": 0.5}, "ppi_density"),
        ({"n_batches": 0}, "n_batches"),
        ({"control_share": 0.0}, r"control_share=0\.0 of 800 cells"),
        ({"noisy_missing": 1.0}, r"noisy_missing=1\.0"),
        ({"embedding_dim": 1}, "embedding_dim"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, named):
    with pytest.raises(InputError, match=named):
        simulate(replace(SMALL, **settings))


def test_cells_in_blocks_are_from_the_same_world():
    from scbig.data.simulate import SimConfig, in_blocks, simulate

    config = SimConfig(n_cells=900, n_genes=60, n_modules=5, n_singles=6, n_doubles=4, truth_cells=64)
    whole = simulate(config)
    priors, blocks = in_blocks(config, 400)
    blocks = list(blocks)
    assert [block.n_obs for block in blocks] == [400, 400, 100] and priors.pathways == whole.priors.pathways
    obs = pd.concat([block.obs for block in blocks])
    assert list(obs.index) == list(whole.adata.obs_names)
    assert (obs["condition"] == whole.adata.obs["condition"]).all()
    means = [np.log1p(np.asarray(x.sum(axis=0)).ravel()) for x in (whole.adata.X, sum(b.X.sum(axis=0) for b in blocks))]
    assert np.corrcoef(*means)[0, 1] > 0.99
