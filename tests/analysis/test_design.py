"""The next screen: planted answers, batches that do not repeat themselves, and lists that say what they rest on."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from scbig.analysis import design, interaction_model
from scbig.analysis.interaction_predicted import left_out
from scbig.anchor import Anchor
from scbig.baselines import Embedding, TrainingData
from scbig.errors import InputError

GENES = tuple(f"G{i}" for i in range(60))
ALONE = GENES[:10]


@pytest.fixture(scope="module")
def truth():
    """Effects of singles, and of pairs that add up."""
    rng = np.random.default_rng(0)
    single = {g: np.where(np.arange(60) < 10, 0.0, rng.normal(size=60)) for g in ALONE}
    pair = {f"{a}+{b}": single[a] + single[b] for a, b in combinations(ALONE, 2)}
    return single | pair


@pytest.fixture(scope="module")
def anchor(truth):
    rng = np.random.default_rng(1)
    measured = [*ALONE, *[p for p in truth if "+" in p][:20]]
    x = np.stack([truth[c] for c in measured]) + 0.05 * rng.normal(size=(len(measured), 60))
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    known = np.arange(60) != 59
    data = TrainingData(
        GENES, tuple(measured), ("all",) * len(measured), x.astype(np.float32), np.full(len(measured), 80),
        {"all": np.ones(60)}, {"source": Embedding(GENES, vectors, known)},
    )  # fmt: skip
    return Anchor("additive", data, skill={"combination": 0.8})


def test_candidates_are_what_is_known_and_not_measured(anchor):
    names = design.pairs(anchor, set(anchor.data.conditions), "all")
    assert len(names) == 45 - 20
    assert not set(names) & set(anchor.data.conditions)
    singles = design.singles(anchor, set(anchor.data.conditions))
    assert singles == sorted(GENES[10:59])
    assert design.within(names, ("G9",)) == [n for n in names if "G9" in n.split("+")]
    assert all(set(n.split("+")) <= {"G7", "G8", "G9"} for n in design.within(names, ("G7", "G8", "G9")))
    with pytest.raises(InputError, match="NOSUCH"):
        design.within(names, ("G9", "NOSUCH"))
    with pytest.raises(InputError, match="these genes alone"):
        design.within(["G0+G1", "G2+G3"], ("G0", "G2"))


def test_a_planted_pair_reaches_its_target(anchor, truth):
    names = design.pairs(anchor, set(anchor.data.conditions), "all")
    planted = names[7]
    found = design.by_target(anchor, names, "all", 5, truth[planted].copy(), left_out(anchor))
    assert found["condition"].iloc[0] == planted
    assert found["score"].iloc[0] > 0.8
    assert found["best measured score"].iloc[0] < found["score"].iloc[0]
    assert found["conditions so far"].tolist() == [1, 2, 3, 4, 5]
    assert found["cells so far"].iloc[-1] == 400
    assert (found["low"] <= found["score"]).all()
    assert (found["score"] <= found["high"]).all()
    assert set(found["nearest measured"]) <= set(anchor.data.conditions)


def test_a_measured_condition_that_does_as_well_is_named(anchor, truth):
    names = design.pairs(anchor, set(anchor.data.conditions), "all")
    found = design.by_target(anchor, names, "all", 3, truth["G0"].copy(), left_out(anchor))
    assert found["best measured"].iloc[0] == "G0"
    assert "G0, already measured" in found["reason"].iloc[0]


def test_genes_that_the_target_lacks_do_not_count(anchor, truth):
    names = design.pairs(anchor, set(anchor.data.conditions), "all")
    goal = truth[names[3]].copy()
    wrong = goal.copy()
    goal[20:30] = np.nan
    wrong[20:30] = 50.0
    assert design.by_target(anchor, names, "all", 1, goal, left_out(anchor))["condition"].iloc[0] == names[3]
    far = design.by_target(anchor, names, "all", 1, wrong, left_out(anchor))
    assert far["score"].iloc[0] < 0.3


def test_a_batch_repeats_no_candidate_and_no_lookalike():
    rng = np.random.default_rng(2)
    kinds = rng.normal(size=(4, 50))
    effects = np.repeat(kinds, 5, axis=0) + 0.01 * rng.normal(size=(20, 50))
    worth = 1 + 0.01 * rng.random(20)
    chosen = design.choose_apart(worth, effects, [{f"g{i}"} for i in range(20)], 4)
    assert sorted(chosen // 5) == [0, 1, 2, 3]
    every = design.choose_apart(worth, effects, [{f"g{i}"} for i in range(20)], 50)
    assert sorted(every) == list(range(20))
    worth[7] = 3.0
    assert design.choose_apart(worth, effects, [{f"g{i}"} for i in range(20)], 1).tolist() == [7]


def test_greedy_choice_follows_the_conditional_variance():
    rng = np.random.default_rng(3)
    effects, genes, worth = rng.normal(size=(12, 3)), [{f"g{i % 4}"} for i in range(12)], rng.uniform(1, 2, 12)
    unit = effects / np.linalg.norm(effects, axis=1, keepdims=True)
    kernel = 0.5 * unit @ unit.T + 0.5 * np.array([[len(a & b) for b in genes] for a in genes])
    chosen: list[int] = []
    for _ in range(5):
        left = np.diag(kernel).copy()
        if chosen:
            inner = kernel[np.ix_(chosen, chosen)]
            left -= np.einsum("ij,ji->i", kernel[:, chosen], np.linalg.solve(inner, kernel[chosen]))
        value = worth**2 * left
        value[chosen] = -1
        chosen.append(int(value.argmax()))
    assert design.choose_apart(worth, effects, genes, 5).tolist() == chosen


def test_interactions_are_ranked_by_what_was_learned(anchor):
    names = design.pairs(anchor, set(anchor.data.conditions), "all")
    measured = [c for c in anchor.data.conditions if "+" in c]
    modules = {g: i % 5 for i, g in enumerate(GENES)}
    departs = {
        p: float(modules[p.split("+")[0]] == modules[p.split("+")[1]]) + 0.01 * i for i, p in enumerate(measured)
    }
    model = interaction_model.fit(departs, anchor.data, modules, "all")
    found = design.by_interaction(anchor, names, "all", 6, left_out(anchor), model)
    assert (found["score"].diff().dropna() <= 0).all()
    want = model.probability(found["condition"].tolist())["probability"]
    assert found["score"].tolist() == pytest.approx(want.tolist())
    assert "probability" in found["reason"].iloc[0]
    plain = design.by_interaction(anchor, names, "all", 6, left_out(anchor))
    assert "too few measured pairs" in design.weakness(plain, None, "interaction")
    assert (plain["departure high"] < 0.5).all()  # these pairs add up


def test_without_intervals_and_skill_uncertainty_is_refused(anchor):
    names = design.pairs(anchor, set(anchor.data.conditions), "all")
    found = design.by_uncertainty(anchor, names, "all", 4)
    assert found["score"].tolist() == pytest.approx([0.2] * 4)
    bare = Anchor("additive", anchor.data)
    with pytest.raises(InputError, match="neither intervals nor a skill"):
        design.by_uncertainty(bare, names, "all", 4)
    weak = design.by_target(bare, names, "all", 2, np.ones(60), left_out(bare))
    assert "was never measured" in design.weakness(weak, None, "target")


def test_batches_of_candidates_change_nothing(anchor, monkeypatch):
    names = design.pairs(anchor, set(anchor.data.conditions), "all")
    goal, crossed = np.random.default_rng(4).normal(size=60), left_out(anchor)
    whole = design.by_target(anchor, names, "all", 10, goal, crossed), design.by_uncertainty(anchor, names, "all", 10)
    monkeypatch.setattr(design, "_BATCH", 7)
    parts = design.by_target(anchor, names, "all", 10, goal, crossed), design.by_uncertainty(anchor, names, "all", 10)
    for one, other in zip(whole, parts, strict=True):
        pd.testing.assert_frame_equal(one, other)
