"""Baselines on embeddings: planted worlds they must recover, noise they must not believe, sources that are missing."""

import dataclasses

import numpy as np
import pytest

from scbig import baselines
from scbig.baselines import Embedding, TrainingData
from scbig.errors import InputError

GENES = tuple(f"m{i}" for i in range(60))
NAMES = tuple(f"P{i:03}" for i in range(80))
TRAIN, TEST = NAMES[:60], NAMES[60:]
ALL = ("knn", "kernel_ridge", "elastic_net")


def data_of(effects, conditions, embeddings, contexts=None) -> TrainingData:
    return TrainingData(
        genes=GENES,
        conditions=tuple(conditions),
        contexts=tuple(contexts or ("all",) * len(conditions)),
        effects=np.asarray(effects, np.float32),
        n_cells=np.ones(len(conditions), np.int64),
        embeddings=embeddings,
    )


def source(vectors, mask=None, genes=NAMES) -> Embedding:
    return Embedding(tuple(genes), vectors, np.ones(len(genes), bool) if mask is None else mask)


@pytest.fixture(scope="module")
def world():
    """Effects that are a smooth function of where a gene lies on a circle; on it all effects share a part."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, len(NAMES))
    place = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    effects = place @ rng.normal(size=(2, len(GENES))) + rng.normal(size=len(GENES))
    return place, effects


def error(model, truth, of):
    """Squared error relative to that of the mean of training effects."""
    x = model.predict(list(TEST))
    return np.square(x - truth).sum() / np.square(of - truth).sum()


@pytest.mark.parametrize("name", ALL)
def test_an_embedding_that_encodes_the_effects_is_used(world, name):
    place, effects = world
    data = data_of(effects[:60], TRAIN, {"good": source(place)})
    model = baselines.fit(name, data)
    assert error(model, effects[60:], effects[:60].mean(axis=0)) < {"knn": 0.05, "kernel_ridge": 1e-3}.get(name, 0.03)
    assert model.name == name and len(model.study) > 3
    tried = max(r["value"] for r in model.study)
    assert tried > 0.98


@pytest.mark.parametrize("name", ALL)
def test_an_embedding_of_noise_falls_back_to_the_mean(world, name):
    _, effects = world
    noise = source(np.random.default_rng(9).normal(size=(80, 12)))
    model = baselines.fit(name, data_of(effects[:60], TRAIN, {"noise": noise}), shrink=True)
    assert error(model, effects[60:], effects[:60].mean(axis=0)) < 1.15


def test_the_neighbours_and_weights_are_those_of_the_cosine(world):
    rng = np.random.default_rng(3)
    _, effects = world
    v = rng.normal(size=(80, 5))
    model = baselines.fit("knn", data_of(effects[:60], TRAIN, {"s": source(v)}), k=4, sharpness=2.0)
    unit = v / np.linalg.norm(v, axis=1, keepdims=True)
    for i in (60, 71):
        similarity = unit[:60] @ unit[i]
        near = np.argsort(-similarity)[:4]
        w = np.exp(2.0 * similarity[near])
        np.testing.assert_allclose(model.predict([NAMES[i]])[0], w @ effects[near] / w.sum(), atol=1e-5)


def test_kernel_ridge_is_the_closed_form(world):
    rng = np.random.default_rng(4)
    _, effects = world
    v = rng.normal(size=(80, 5))
    options = {"ridge": 0.5, "bandwidth": 1.0, "shrink": False}
    model = baselines.fit("kernel_ridge", data_of(effects[:60], TRAIN, {"s": source(v)}), **options)
    unit = v / np.linalg.norm(v, axis=1, keepdims=True)
    square = np.square(unit[:, None] - unit[None]).sum(axis=-1)
    middle = np.median(np.sqrt(square[:60, :60][np.triu_indices(60, 1)]))
    k = np.exp(-square / (2 * middle**2)) + 1
    mean = effects[:60].mean(axis=0)
    expected = mean + k[60:, :60] @ np.linalg.solve(k[:60, :60] + 0.5 * np.eye(60), effects[:60] - mean)
    np.testing.assert_allclose(model.predict(list(TEST)), expected, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_missing_sources_are_never_read_and_do_no_harm(world, name):
    place, effects = world
    rng = np.random.default_rng(5)
    half, rest = rng.random(80) < 0.5, np.zeros(80, bool)
    rest[:] = ~half
    poisoned = [np.where(mask[:, None], place, np.nan) for mask in (half, rest)]
    data = data_of(effects[:60], TRAIN, {"a": source(poisoned[0], half), "b": source(poisoned[1], rest)})
    model = baselines.fit(name, data)
    x = model.predict(list(TEST))
    assert np.isfinite(x).all()
    assert error(model, effects[60:], effects[:60].mean(axis=0)) < 0.35
    other = [np.where(mask[:, None], place, 1e6) for mask in (half, rest)]
    same = data_of(effects[:60], TRAIN, {"a": source(other[0], half), "b": source(other[1], rest)})
    np.testing.assert_array_equal(baselines.fit(name, same).predict(list(TEST)), x)


def test_masked_kernels_stay_positive_semidefinite():
    from scbig.baselines import kernel_ridge
    from scbig.baselines.sources import unit_sources

    rng = np.random.default_rng(6)
    masks = [rng.random(80) < p for p in (0.3, 0.6, 1.1)]
    given = {f"s{i}": source(rng.normal(size=(80, 3)), mask) for i, mask in enumerate(masks)}
    data = data_of(np.zeros((60, 60)), TRAIN, given)
    weigh = kernel_ridge._weigher(unit_sources(data, None, "x"), TRAIN)
    # With hardly any penalty the weights are the identity on a kernel that can be inverted, and never explode.
    w = weigh(TRAIN, (0.5, 1e-9))
    np.testing.assert_allclose(w, np.eye(60), atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_rows_does_not_matter_and_fits_repeat(world, name):
    place, effects = world
    noisy = place + 0.3 * np.random.default_rng(7).normal(size=place.shape)
    order = np.random.default_rng(8).permutation(60)
    given = {"s": source(noisy)}
    one = baselines.fit(name, data_of(effects[:60], TRAIN, given))
    two = baselines.fit(name, data_of(effects[:60][order], np.array(TRAIN)[order], given))
    assert one.notes == two.notes and one.study == two.study
    np.testing.assert_array_equal(one.predict(list(TEST)), two.predict(list(TEST)))


@pytest.mark.parametrize("name", ALL)
def test_combinations_add_what_was_seen_and_what_is_predicted(world, name):
    place, effects = world
    model = baselines.fit(name, data_of(effects[:60], TRAIN, {"s": source(place)}))
    a, b = NAMES[3], NAMES[4]
    np.testing.assert_allclose(model.predict([f"{a}+{b}"])[0], effects[3] + effects[4], atol=1e-5)
    mixed = model.predict([f"{a}+{TEST[0]}", TEST[0], f"{TEST[0]}+{TEST[1]}", TEST[1], "control"])
    np.testing.assert_allclose(mixed[0], effects[3] + mixed[1], atol=1e-4)
    np.testing.assert_allclose(mixed[2], mixed[1] + mixed[3], atol=1e-4)
    assert not mixed[4].any()


def test_a_conditions_own_gene_is_not_lent_to_its_neighbours(world):
    place, effects = world
    genes = ("P000", *GENES[1:])
    effects = effects.copy()
    effects[0, 0] = -50.0  # the knock-down of P000 itself
    twin = place.copy()
    twin[60] = place[0]
    data = data_of(effects[:60], TRAIN, {"s": source(twin)})
    data = dataclasses.replace(data, genes=genes)
    x = baselines.fit("knn", data, k=1).predict([TEST[0]])[0]
    assert x[0] == pytest.approx(effects[1:60, 0].mean(), abs=1e-4)
    np.testing.assert_allclose(x[1:], effects[0, 1:], atol=1e-5)
    # Asked for together with an unseen gene, the single is added as it was measured.
    pair = baselines.fit("knn", data, k=1).predict([f"P000+{TEST[0]}"])[0]
    assert pair[0] == pytest.approx(-50 + x[0], abs=1e-3)


def test_contexts_are_learned_apart_and_a_new_one_from_all(world):
    place, effects = world
    both = np.concatenate([effects[:60], -effects[:60]])
    data = data_of(both, TRAIN * 2, {"s": source(place)}, ["k"] * 60 + ["l"] * 60)
    model = baselines.fit("knn", data)
    here, there, new = (model.predict([TEST[0]], [c])[0] for c in ("k", "l", "m"))
    np.testing.assert_allclose(here, -there, atol=1e-4)
    assert np.abs(new).max() < 1e-4 < np.abs(here).max()
    assert len(model.notes) == 3 and "context k" in model.notes[0]
    assert {r["context"] for r in model.study} == {"", "k", "l"}


@pytest.mark.parametrize("name", ALL)
def test_what_is_not_known_is_named(world, name):
    place, effects = world
    mask = np.ones(80, bool)
    mask[61] = False
    data = data_of(effects[:60], TRAIN, {"text": source(place, mask)})
    model = baselines.fit(name, data)
    reasons = {s.condition: s.reason for s in model.skipped([TEST[0], TEST[1], "new"])}
    assert reasons == {TEST[1]: f"no vector in text: {TEST[1]}", "new": "no vector in text: new"}
    few = baselines.fit(name, data_of(effects[:4], TRAIN[:4], {"text": source(place)}))
    assert "4 training singles" in few.skipped([TEST[0]])[0].reason
    for wrong, told in ({"embedding": "go"}, "'go'.*text"), ({"embedding": ["text", "go"]}, "'go'"):
        with pytest.raises(InputError, match=f"{told}"):
            baselines.fit(name, data, **wrong)
    with pytest.raises(InputError, match=f"{name}; given: none"):
        baselines.fit(name, data_of(effects[:60], TRAIN, {}))
    with pytest.raises(InputError, match="know no gene"):
        baselines.fit(name, data_of(effects[:60], TRAIN, {"e": source(place, np.zeros(80, bool))}))


def test_knn_says_when_no_source_is_shared(world):
    place, effects = world
    train, test = np.arange(80) < 60, np.arange(80) >= 60
    data = data_of(effects[:60], TRAIN, {"a": source(place, train), "b": source(place, test)})
    (skipped,) = baselines.fit("knn", data).skipped([TEST[0]])
    assert skipped.reason == f"no training gene shares a source with {TEST[0]}"
    # The kernel is zero to all: the mean is what is left.
    x = baselines.fit("kernel_ridge", data, ridge=1.0).predict([TEST[0]])[0]
    np.testing.assert_allclose(x, effects[:60].mean(axis=0), atol=0.2)


def test_linear_takes_several_embeddings(world):
    place, effects = world
    mask = np.arange(80) % 3 > 0
    data = data_of(effects[:60], TRAIN, {"a": source(place, mask), "b": source(place)})
    model = baselines.fit("linear", data, embedding=["a", "b"], ridge=1e-4)
    assert error(model, effects[60:], effects[:60].mean(axis=0)) < 0.3
    alone = baselines.fit("linear", data, embedding="a")
    assert alone.skipped([TEST[0]])[0].reason == f"no vector in a: {TEST[0]}"


def test_elastic_net_by_optuna_keeps_its_study(world):
    place, effects = world
    data = data_of(effects[:60], TRAIN, {"s": source(place)})
    model = baselines.fit("elastic_net", data, trials=6, n_components=2)
    again = baselines.fit("elastic_net", data, trials=6, n_components=2)
    assert len(model.study) == 6 and {"trial", "alpha", "mixture", "value"} == set(model.study[0])
    assert model.study == again.study
    np.testing.assert_array_equal(model.predict(list(TEST)), again.predict(list(TEST)))


@pytest.mark.realdata
def test_neighbours_of_knockdowns_in_the_network(shared):
    """Replogle, one fold of five: about 0.23 for ten neighbours on the network embedding, more for all sources."""
    import anndata as ad

    from scbig import priors
    from scbig.baselines.validation import score

    table = ad.read_h5ad(shared / "data" / "replogle2022_k562_effects.h5ad")
    y = np.clip(table.X.toarray(), -5, 5)
    names, genes = list(table.obs["condition"].astype(str)), list(table.var_names)
    given = {}
    for name in ("string_netmf128", "refseq_lsa256", "go_svd128"):
        each = priors.align(priors.read_embedding(shared / "priors" / f"emb_{name}.npz"), names)
        given[name] = Embedding(each.genes, each.vectors, each.mask)
    test = np.random.default_rng(0).permutation(len(names))[::5]
    train = np.setdiff1d(np.arange(len(names)), test)
    data = TrainingData(
        genes=tuple(genes), conditions=tuple(names[i] for i in train), contexts=("all",) * len(train),
        effects=y[train], n_cells=np.zeros(len(train), np.int64), embeddings=given,
    )  # fmt: skip
    reference = y[train].mean(axis=0)
    keep = np.array([[g != names[i] for g in genes] for i in test])
    found = {}
    for label, options in {"network": {"embedding": "string_netmf128"}, "all": {}}.items():
        model = baselines.fit("knn", data, k=10, sharpness=0.0 if options else None, **options)
        x = model.predict([names[i] for i in test])
        found[label] = score(np.where(np.isnan(x), reference, x), y[test], reference, keep)
    assert found["network"] == pytest.approx(0.234, abs=0.03)
    assert found["all"] == pytest.approx(0.245, abs=0.03)
