"""Overlap: equal populations reach the ceiling, copies of control the floor, and a picture puts cells where they are."""

import numpy as np
import pytest

from scbig.analysis.overlap import overlap
from scbig.errors import InputError


def cells(n, shift=0.0, spread=1.0, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 8)) * spread + shift


def test_equal_populations_are_at_the_ceiling():
    found = overlap(cells(120, 1.0), cells(150, 1.0, seed=1), cells(200, seed=2))
    assert found["way"] == pytest.approx(1.0, abs=0.06)
    assert found["way_low"] < 1.0 < found["way_high"]
    for name in ("mixing", "mixing_back", "mixing_ceiling"):
        assert found[name] == pytest.approx(1.0, abs=0.08)
    assert found["mixing_control"] < 0.5


def test_a_copy_of_control_is_at_the_floor():
    found = overlap(cells(120, 1.0), cells(150, seed=1), cells(200, seed=2))
    assert found["way"] == pytest.approx(0.0, abs=0.06)
    assert found["mixing"] == pytest.approx(found["mixing_control"], abs=0.06)
    assert found["mixing_ceiling"] == pytest.approx(1.0, abs=0.08)


def test_half_the_way_is_between_and_beyond_is_negative():
    half = overlap(cells(120, 1.0), cells(150, 0.5, seed=1), cells(200, seed=2))
    assert 0.5 < half["way"] < 0.9  # near zero energy distance falls with the square of the shift
    away = overlap(cells(120, 1.0), cells(150, -1.0, seed=1), cells(200, seed=2))
    assert away["way_high"] < 0


def test_predictions_that_spread_too_little_mix_one_way_only():
    found = overlap(cells(120, 1.0), cells(150, 1.0, 0.2, seed=1), cells(200, seed=2))
    assert found["mixing"] > 1.3
    assert found["mixing_back"] < 0.5


def test_the_order_of_cells_does_not_matter_beyond_the_draws():
    real, told, control = cells(60, 1.0), cells(60, 0.7, seed=1), cells(60, seed=2)
    a, b = overlap(real, told, control, draws=300), overlap(real[::-1], told[::-1], control[::-1], draws=300)
    assert a["way"] == pytest.approx(b["way"], abs=0.03)
    assert overlap(real, told, control, draws=20) == overlap(real, told, control, draws=20)


def test_too_few_cells_are_refused():
    with pytest.raises(InputError, match="12 real"):
        overlap(cells(12), cells(50), cells(50))
