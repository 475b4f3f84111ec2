"""The anchor itself: what it answers, what it says of that, and that a loaded one answers the same."""

import numpy as np
import pytest

from scbig import anchor
from scbig.anchor import Anchor, Gate
from scbig.baselines import Embedding, TrainingData
from scbig.errors import InputError

GENES = tuple(f"g{i}" for i in range(20))


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    singles = [f"P{i}" for i in range(14)]
    pairs = [f"P{i}+P{i + 1}" for i in range(0, 12, 2)]
    vectors = random.normal(size=(18, 6)).astype(np.float32)
    loads = random.normal(size=(6, 20))
    effects = np.concatenate(
        [vectors[:14] @ loads, [(vectors[i] + vectors[i + 1]) @ loads for i in range(0, 12, 2)]]
    ) + 0.1 * random.normal(size=(20, 20))
    embedding = Embedding(tuple(f"P{i}" for i in range(18)), vectors, np.ones(18, bool))
    return TrainingData(
        genes=GENES, conditions=(*singles, *pairs), contexts=("k",) * 20, effects=effects.astype(np.float32),
        n_cells=np.full(20, 30), control_mean={"k": random.random(20)}, embeddings={"vectors": anchor.rounded(embedding)},
    )  # fmt: skip


@pytest.mark.parametrize("method", ["auto", "additive", "low_rank", "kernel_ridge"])
def test_a_loaded_anchor_answers_the_same(data, tmp_path, method):
    gates = {"combination": Gate(0.25, 0.5, 7)}
    first = Anchor(method, data, gates=gates, skill={"combination": 0.8}, move="shift", seed=3)
    asked = ["P0", "P0+P1", "P0+P3", "P15", "P3+P15", "Q", "control"]
    before = [first.effect(c, "k") for c in asked]
    first.save(tmp_path / "anchor.npz")
    second = Anchor.load(tmp_path / "anchor.npz")
    for condition, effect in zip(asked, before, strict=True):
        np.testing.assert_allclose(second.effect(condition, "k"), effect, atol=1e-5)
        assert second.account(condition, "k") == pytest.approx(first.account(condition, "k"), abs=1e-5)
    assert (second.gates, second.move, second.seed) == (gates, "shift", 3)


def test_what_it_has_no_answer_for_gets_the_mean_and_says_so(data):
    additive = Anchor("additive", data)
    np.testing.assert_allclose(additive.effect("Q", "k"), data.effects.mean(axis=0), atol=1e-6)
    told = additive.account("Q", "k")
    assert told["basis"] == "mean of the training effects" and "Q" in told["because"] and told["kept"] == 0.0
    assert additive.account("P0+P3", "k")["kind"] == "combination"


def test_control_is_not_moved_and_nothing_is_added_to_it(data):
    found = Anchor("auto", data, gates={"measured": Gate(1.0, 1.0)})
    np.testing.assert_array_equal(found.effect("control", "k"), np.zeros(20))
    assert found.gate("control", "k") == anchor.CLOSED
    assert found.gate("P0", "k") == Gate(1.0, 1.0) and found.gate("Q", "k") == anchor.CLOSED


def test_measured_conditions_have_their_measured_effect(data):
    found = Anchor("auto", data)
    for i, condition in enumerate(data.conditions):
        np.testing.assert_allclose(found.effect(condition, "k"), data.effects[i], atol=1e-6)
        assert found.account(condition, "k")["basis"] == "measured"


@pytest.mark.parametrize("method", ["nothing", "scgen"])
def test_what_cannot_be_an_anchor_is_refused(method):
    with pytest.raises(InputError, match=f"no anchor '{method}'; there are: control, mean"):
        anchor.check_method(method)


def test_a_run_without_anchor_says_so_and_a_damaged_file_is_refused(tmp_path):
    anchor.save_no_anchor(tmp_path / "none.npz")
    assert Anchor.load(tmp_path / "none.npz") is None
    (tmp_path / "bad.npz").write_bytes((tmp_path / "none.npz").read_bytes()[:40])
    with pytest.raises(InputError, match="bad.npz is damaged .*scbig train --force"):
        Anchor.load(tmp_path / "bad.npz")


def test_every_name_in_the_package_is_described():
    assert all(getattr(anchor, name).__doc__ for name in anchor.__all__ if callable(getattr(anchor, name)))


def test_intervals_cover_new_conditions_and_travel_with_the_anchor(tmp_path):
    random = np.random.default_rng(5)
    singles = [f"P{i}" for i in range(30)]
    alone = random.normal(size=(30, 40))
    pairs = [(i, j) for i in range(30) for j in range(i) if random.random() < 0.3]
    beyond = random.normal(size=(len(pairs), 40)) * 0.3
    both = np.stack([alone[i] + alone[j] for i, j in pairs]) + beyond
    held = np.arange(len(pairs)) % 3 == 0
    names = np.array([f"P{j}+P{i}" if f"P{j}" < f"P{i}" else f"P{i}+P{j}" for i, j in pairs])
    conditions = (*singles, *names[~held].tolist())
    genes = tuple(f"g{i}" for i in range(40))
    effects = np.concatenate([alone, both[~held]]).astype(np.float32)
    data = TrainingData(genes, conditions, ("k",) * len(conditions), effects, np.zeros(len(conditions), np.int64))
    crossed = anchor.out_of_fold(anchor.fitter("additive"), data, {"combination"}, 5, 0)
    modules = {g: str(i % 4) for i, g in enumerate(genes)}
    found = Anchor("additive", data, intervals=anchor.fit_intervals(data, crossed, modules))
    asked = names[held].tolist()
    low, high = found.interval(asked, ["k"] * len(asked))
    assert 0.85 < ((both[held] >= low) & (both[held] <= high)).mean() < 0.95
    few, many = (
        found.interval(asked, ["k"] * len(asked), level=0.5),
        found.interval(asked, ["k"] * len(asked), modules=True),
    )
    assert (few[1] - few[0] < high - low).all() and many[0].shape == (len(asked), 4)
    assert np.isnan(found.interval(["P0"], ["k"])[0]).all()
    found.save(tmp_path / "anchor.npz")
    again = Anchor.load(tmp_path / "anchor.npz").interval(asked, ["k"] * len(asked))
    np.testing.assert_allclose(again, (low, high), atol=1e-5)
