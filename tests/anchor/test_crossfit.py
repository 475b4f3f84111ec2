"""Out-of-fold predictions: what is left out, and that nothing of it comes back."""

from dataclasses import replace

import numpy as np
import pytest

from scbig import anchor, baselines
from scbig.anchor.crossfit import without
from scbig.baselines import Model, TrainingData

GENES = tuple(f"g{i}" for i in range(12))


def data_of(keys, seed=0):
    random = np.random.default_rng(seed)
    return TrainingData(
        genes=GENES,
        conditions=tuple(c for c, _ in keys),
        contexts=tuple(k for _, k in keys),
        effects=random.normal(size=(len(keys), len(GENES))).astype(np.float32),
        n_cells=np.full(len(keys), 50),
    )


SINGLES = ["A", "B", "C", "D"]
PAIRS = ["A+B", "A+C", "B+D", "C+X"]


@pytest.fixture
def data():
    return data_of([(c, "k") for c in [*SINGLES, *PAIRS]])


@pytest.mark.parametrize(
    ("condition", "context", "kind"),
    [
        ("A", "k", "measured"), ("A", "other", "context"), ("A+B", "k", "measured"), ("A+D", "k", "combination"),
        ("A+Z", "k", "partly"), ("Z", "k", "unseen"), ("Y+Z", "k", "unseen"), ("control", "k", "measured"),
        ("X", "k", "unseen"), ("A+B+C", "k", "combination"),
    ],
)  # fmt: skip
def test_kinds_say_what_is_known(data, condition, context, kind):
    measured = set(zip(data.conditions, data.contexts, strict=True))
    assert anchor.kind_of(measured, condition, context) == kind


class Spy:
    """Fits the additive baseline and remembers what it was given."""

    def __init__(self):
        self.seen = []

    def __call__(self, data: TrainingData) -> Model:
        self.seen.append(set(zip(data.conditions, data.contexts, strict=True)))
        return baselines.fit("additive", data)


def test_only_combinations_are_left_out_where_no_unseen_gene_will_be_asked(data):
    spy = Spy()
    crossed = anchor.out_of_fold(spy, data, {"combination"}, 5, 0)
    of = dict(zip(data.conditions, crossed.kind, strict=True))
    assert of == dict.fromkeys(SINGLES, "measured") | dict.fromkeys(PAIRS[:3], "combination") | {"C+X": "measured"}
    row = {c: i for i, c in enumerate(data.conditions)}
    for pair in PAIRS[:3]:
        a, b = pair.split("+")
        np.testing.assert_allclose(crossed.effects[row[pair]], data.effects[row[a]] + data.effects[row[b]], rtol=1e-5)
    for single in SINGLES:
        np.testing.assert_array_equal(crossed.effects[row[single]], data.effects[row[single]])
    assert all({(s, "k") for s in SINGLES} <= seen for seen in spy.seen)


def test_a_single_goes_with_every_combination_that_has_its_gene(data):
    spy = Spy()
    crossed = anchor.out_of_fold(spy, data, {"unseen"}, 4, 0)
    kind = dict(zip(data.conditions, crossed.kind, strict=True))
    assert all(kind[s] == "unseen" for s in SINGLES)
    for seen in spy.seen:
        names = {c for c, _ in seen}
        gone = set(SINGLES) - names
        assert not any(gone & set(c.split("+")) for c in names)
    # The sum of singles has no answer for a single that it has not seen.
    assert set(crossed.reasons) == {i for i, c in enumerate(data.conditions) if c in SINGLES}
    assert np.isfinite(crossed.effects).all()


def test_what_is_left_out_does_not_reach_its_own_prediction(data):
    first = anchor.out_of_fold(Spy(), data, {"combination", "unseen"}, 4, 0)
    changed = data.effects.copy()
    changed[4] += 100.0  # A+B
    second = anchor.out_of_fold(Spy(), replace(data, effects=changed), {"combination", "unseen"}, 4, 0)
    np.testing.assert_array_equal(first.effects[4], second.effects[4])
    assert first.kind == second.kind


def test_a_context_is_left_out_whole():
    data = data_of([(c, k) for k in ("x", "y", "z") for c in ("A", "B")] + [("C", "x")])
    spy = Spy()
    crossed = anchor.out_of_fold(spy, data, {"context"}, 5, 0)
    of = dict(zip(zip(data.conditions, data.contexts, strict=True), crossed.kind, strict=True))
    assert of.pop(("C", "x")) == "measured" and set(of.values()) == {"context"}
    for seen in spy.seen:
        assert len({k for _, k in seen}) == 2
    # Additive takes a single from the mean over the contexts that have it.
    np.testing.assert_allclose(crossed.effects[0], data.effects[[2, 4]].mean(axis=0), rtol=1e-5)


def test_skill_is_the_correlation_beyond_the_mean_of_what_was_left():
    keys = [(c, "k") for c in [*SINGLES, "A+B", "A+C", "A+D", "B+C", "B+D", "C+D"]]
    data = data_of(keys)
    effects = data.effects.copy()
    for i, (c, _) in enumerate(keys[4:], start=4):
        a, b = (SINGLES.index(g) for g in c.split("+"))
        effects[i] = effects[a] + effects[b]
    crossed = anchor.out_of_fold(Spy(), replace(data, effects=effects), {"combination"}, 3, 0)
    np.testing.assert_allclose(crossed.skill[4:], 1.0, atol=1e-6)
    assert np.isnan(crossed.skill[:4]).all()
    assert anchor.mean_skill(crossed.kind, crossed.skill) == pytest.approx({"combination": 1.0})


def test_the_order_of_rows_does_not_matter(data):
    order = np.random.default_rng(1).permutation(len(data.conditions))
    shuffled = replace(
        data,
        conditions=tuple(data.conditions[i] for i in order),
        effects=data.effects[order],
    )
    one, other = (anchor.out_of_fold(Spy(), d, {"combination", "unseen"}, 3, 0) for d in (data, shuffled))
    np.testing.assert_allclose(one.effects[order], other.effects, rtol=1e-5)
    assert [one.kind[i] for i in order] == list(other.kind)


def test_without_drops_rows_and_keeps_controls(data):
    out = np.zeros(len(data.conditions), bool)
    out[[0, 5]] = True
    rest = without(replace(data, control_mean={"k": np.ones(len(GENES))}), out)
    assert rest.conditions == ("B", "C", "D", "A+B", "B+D", "C+X") and "k" in rest.control_mean
    np.testing.assert_array_equal(rest.effects, data.effects[~out])
