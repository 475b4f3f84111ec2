"""What the flow adds is kept as far as it proved right on conditions it was not trained on."""

import numpy as np
import pytest

from scbig import anchor
from scbig.anchor import Evidence
from scbig.anchor.gates import FEWEST

DIMS = 6


def condition(seed, added, left, spread=1.0, flow_spread=1.0, kind="combination", trained=False):
    """Cells that the anchor puts at zero, the flow at ``added``, and that really are at ``left``."""
    random = np.random.default_rng(seed)
    start = random.normal(size=(120, DIMS))
    real = random.normal(size=(150, DIMS)) * spread + left
    return Evidence(start, (start - start.mean(0)) * flow_spread + start.mean(0) + added, real, kind, trained)


def directions(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, DIMS)) * 2


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_flow_that_is_right_by_a_share_is_kept_by_that_share(share):
    found = anchor.fit_gates([condition(i, d, share * d) for i, d in enumerate(directions(16))], ["combination"])
    assert share - 0.2 < found["combination"].mean <= share + 0.02
    assert found["combination"].n == 16


def test_a_flow_that_is_wrong_or_noise_is_not_kept():
    left = directions(12, seed=5)
    for added in (-left, directions(12, seed=6), np.zeros((12, DIMS))):
        found = anchor.fit_gates(
            [condition(i, a, b) for i, (a, b) in enumerate(zip(added, left, strict=True))], ["combination"]
        )
        assert found["combination"].mean == 0.0


def test_one_strong_condition_does_not_open_the_gate():
    left = directions(8, seed=7)
    added = directions(8, seed=8)
    left[0] = added[0] = 50.0
    found = anchor.fit_gates(
        [condition(i, a, b) for i, (a, b) in enumerate(zip(added, left, strict=True))], ["combination"]
    )
    assert found["combination"].mean == 0.0


def test_conditions_that_were_trained_on_prove_nothing_of_the_mean():
    seen = [condition(i, d, d, trained=True) for i, d in enumerate(directions(12))]
    assert anchor.fit_gates(seen, ["combination"])["combination"].mean == 0.0
    few = seen + [condition(50 + i, d, d) for i, d in enumerate(directions(FEWEST - 1))]
    assert anchor.fit_gates(few, ["combination"])["combination"].mean == 0.0


def test_measured_conditions_keep_their_measured_mean():
    known = [condition(i, d, d, kind="measured") for i, d in enumerate(directions(12))]
    assert anchor.fit_gates(known, ["measured"])["measured"].mean == 0.0


def test_the_shape_is_kept_where_it_comes_closer_and_not_where_it_does_not():
    zero = np.zeros(DIMS)
    wider = [condition(i, zero, zero, spread=2.0, flow_spread=2.0) for i in range(12)]
    assert anchor.fit_gates(wider, ["combination"])["combination"].shape == 1.0
    half = [condition(i, zero, zero, spread=1.5, flow_spread=2.0) for i in range(12)]
    assert anchor.fit_gates(half, ["combination"])["combination"].shape == 0.5
    wrong = [condition(i, zero, zero, spread=1.0, flow_spread=2.0) for i in range(12)]
    assert anchor.fit_gates(wrong, ["combination"])["combination"].shape == 0.0


def test_a_kind_without_conditions_asks_the_others_for_its_shape():
    zero = np.zeros(DIMS)
    wider = [condition(i, zero, zero, spread=2.0, flow_spread=2.0, trained=True) for i in range(12)]
    assert anchor.fit_gates(wider, ["unseen"])["unseen"] == anchor.Gate(0.0, 1.0, 0)
    assert anchor.fit_gates(wider[:3], ["unseen"])["unseen"] == anchor.Gate(0.0, 0.0, 0)
