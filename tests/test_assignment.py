"""Hard assignments against scipy's optimum over slots."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from scbig import assignment, ot


@pytest.fixture
def rng():
    return np.random.default_rng(0)


class TestAssignment:
    def test_is_optimal(self, rng):
        cost = rng.uniform(size=(5, 5))
        columns = assignment.one_to_one(cost)
        best = min(sum(cost[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(5)))
        assert sorted(columns) == list(range(5))
        assert cost[np.arange(5), columns].sum() == pytest.approx(best)

    def test_refuses_more_rows_than_columns(self):
        with pytest.raises(ValueError, match="3 rows"):
            assignment.one_to_one(np.ones((3, 2)))


def slot_optimum(cost, capacities):
    slots = np.repeat(np.arange(len(capacities)), capacities)
    rows, columns = linear_sum_assignment(cost[:, slots])
    return cost[rows, slots[columns]].sum()


class TestCapacitatedAssignment:
    @pytest.mark.parametrize("trial", range(30))
    @pytest.mark.parametrize("kind", ["continuous", "ties", "constant rows", "one favourite"])
    def test_equals_assignment_to_slots(self, trial, kind):
        rng = np.random.default_rng(trial)
        n_modules = int(rng.integers(1, 7))
        capacities = rng.integers(0, 9, n_modules)
        capacities[0] += 1
        cost = rng.normal(size=(capacities.sum(), n_modules))
        if kind == "ties":
            cost = np.round(cost)
        elif kind == "constant rows":
            cost[::2] = 1.0
        elif kind == "one favourite":
            cost[:, -1] -= 10
        prices = rng.normal(size=n_modules) if trial % 2 else None
        labels = assignment.capacitated(cost, capacities, prices)
        np.testing.assert_array_equal(np.bincount(labels, minlength=n_modules), capacities)
        assert cost[np.arange(len(cost)), labels].sum() == pytest.approx(slot_optimum(cost, capacities), abs=1e-9)

    def test_larger_structured_problem(self, rng):
        x, centers = rng.normal(size=(600, 8)), rng.normal(size=(12, 8))
        cost = cdist(x, centers, "sqeuclidean")
        capacities = np.full(12, 50)
        labels = assignment.capacitated(cost, capacities)
        assert cost[np.arange(600), labels].sum() == pytest.approx(slot_optimum(cost, capacities), rel=1e-12)

    def test_refuses_wrong_capacities_and_costs(self):
        with pytest.raises(ValueError, match="add up to 5"):
            assignment.capacitated(np.ones((4, 2)), np.array([2, 3]))
        with pytest.raises(ValueError, match="finite"):
            assignment.capacitated(np.full((4, 2), np.nan), np.array([2, 2]))


class TestGreedyAssignment:
    def test_takes_pairs_by_transport_then_cost_then_number(self):
        plan = np.array([[0.6, 0.4], [0.9, 0.1], [0.5, 0.5], [0.5, 0.5]])
        cost = np.array([[0.0, 0.0], [0.0, 0.0], [0.2, 0.1], [0.2, 0.1]])
        # 1→0, 0→0 fill module 0; the others follow.
        np.testing.assert_array_equal(assignment.greedy(plan, cost, np.array([2, 2])), [0, 0, 1, 1])
        # Equal transport: the lower cost wins, so gene 2 takes module 1 and 3 what is left.
        tied = np.full((2, 2), 0.25)
        labels = assignment.greedy(tied, np.array([[0.2, 0.1], [0.2, 0.1]]), np.array([1, 1]))
        np.testing.assert_array_equal(labels, [1, 0])

    def test_sizes_are_exact_and_the_cost_is_near_the_optimum(self, rng):
        cost = rng.uniform(size=(300, 10)).astype(np.float32)
        capacities = np.full(10, 30)
        epsilon = 0.05 * float(cost.std())
        plan = ot.plan(cost, ot.sinkhorn(cost, epsilon, iterations=300), epsilon)
        greedy = assignment.greedy(plan, cost, capacities)
        exact = assignment.capacitated(cost, capacities)
        rows = np.arange(300)
        assert (np.bincount(greedy) == 30).all()
        assert cost[rows, exact].sum() <= cost[rows, greedy].sum() < 1.05 * cost[rows, exact].sum()
