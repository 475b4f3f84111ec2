"""What chooses epochs and amplitude agrees with scores computed the long way, and sees no left-out condition."""

import numpy as np
import pytest

from scbig.baselines import ensemble


@pytest.fixture
def task() -> ensemble.Task:
    rng = np.random.default_rng(0)
    names = tuple(f"P{i}" for i in range(24))
    effects = rng.normal(size=(24, 15)).astype(np.float32) + 0.5
    return ensemble.Task(names, np.arange(24, dtype=np.int32) % 2, np.zeros((24, 1)), effects)


def test_gains_equal_scores_computed_over_genes(task):
    rest, out = np.arange(16), np.arange(16, 24)
    target = ensemble._target(task, rest, ensemble.Recipe(n_components=6))
    found = np.random.default_rng(1).normal(size=(3, 8, 6))
    gains = ensemble._gains(found, target, task.effects[out], task.context[out])
    means = ensemble.context_means(task.effects[rest], task.context[rest], 2)
    for e in range(3):
        for a, amplitude in enumerate(ensemble.AMPLITUDES):
            for i, row in enumerate(out):
                mean, y = means[task.context[row]], task.effects[row]
                x = mean + amplitude * found[e, i] @ target.basis
                same = [r for r in out if task.context[r] == task.context[row] and r != row]
                farther = np.mean([((task.effects[r] - x) ** 2).sum() > ((y - x) ** 2).sum() for r in same])
                expected = np.corrcoef(x, y)[0, 1] - np.corrcoef(mean, y)[0, 1] + farther - 0.5
                assert gains[i, e, a] == pytest.approx(expected, abs=1e-5)


def test_components_are_those_of_the_rows_given(task):
    rest = np.arange(16)
    target = ensemble._target(task, rest, ensemble.Recipe(n_components=6))
    y = task.effects[rest] - target.means[task.context[rest]]
    vt = np.linalg.svd(y, full_matrices=False)[2][:6]
    np.testing.assert_allclose(np.abs(target.basis @ vt.T), np.eye(6), atol=1e-4)
    np.testing.assert_allclose(target.values[rest] * target.scale, y @ target.basis.T, atol=1e-4)
    assert not target.values[16:].any() and not target.weights[16:].any() and (target.weights[:16] > 0).all()
    changed = ensemble.Task(task.names, task.context, task.inputs, task.effects * (np.arange(24) < 16)[:, None])
    np.testing.assert_array_equal(ensemble._target(changed, rest, ensemble.Recipe(n_components=6)).basis, target.basis)


def test_a_context_without_rows_takes_the_mean_of_all():
    effects = np.arange(6, dtype=np.float32).reshape(3, 2)
    means = ensemble.context_means(effects, np.array([0, 0, 2]), 3)
    np.testing.assert_allclose(means, [[1, 2], [2, 3], [4, 5], [2, 3]])


def test_own_genes_move_as_in_the_other_conditions():
    effects = np.array([[9, 1, 1], [2, 8, 2], [3, 7, 3], [9, 9, 4]], np.float32)
    out = ensemble.without_own(effects, ["a", "b", "c", "a+b"], ["a", "b", "x"], np.zeros(4, np.int32))
    np.testing.assert_allclose(out, [[2.5, 1, 1], [2, 4, 2], [3, 7, 3], [2.5, 4, 4]])
    alone = ensemble.without_own(effects[:1], ["a"], ["a", "b", "x"], np.zeros(1, np.int32))
    np.testing.assert_allclose(alone, [[0, 1, 1]])


def test_amplitude_zero_trains_nothing_and_predicts_the_mean(task):
    def make(rngs):
        raise AssertionError("a network was built")

    choice = ensemble.Choice(3, 0.0, 0.0, 1.0)
    means, deviations = ensemble.fit_ensemble(make, task, ensemble.Recipe(n_components=6), choice)
    assert not deviations(np.zeros((2, 1))).any()
    np.testing.assert_allclose(means[0], task.effects[::2].mean(axis=0), atol=1e-6)
