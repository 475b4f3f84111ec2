"""Split rules of published methods, for comparison: GEARS and scDFM."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pandas as pd

from scbig.data.conditions import canonical, genes_of
from scbig.data.split_draws import (
    amount,
    enough,
    genes_in,
    order_of,
    perturbed,
    seen_strata,
    share_of,
    shuffled,
    tabulate,
)
from scbig.errors import InputError, some

__all__ = ["scdfm", "simulation", "simulation_single"]


def simulation(
    conditions: Iterable[str],
    seed: int = 0,
    *,
    n_test: int | None = None,
    n_val: int | None = None,
    test_fraction: float | None = None,
    val_fraction: float | None = None,
) -> pd.DataFrame:
    """The rule of GEARS (Roohani et al. 2023): a quarter of genes held out, and of other pairs.

    Test: every condition with a held-out gene, and ``test_fraction`` of the combinations of seen genes.
    Val: the same rule once more on what is left, with ``val_fraction``. Strata say what *train* has seen of a
    condition, which for a pair of a test gene and a val gene is nothing (GEARS counts the val gene as seen).

    Args:
        conditions: canonical conditions; control and repeats are ignored.
        seed: seed of the draw; the draws are not those of GEARS at the same seed.
        n_test: number of *genes* held out for test; without it ``test_fraction`` (0.25) of the genes.
        n_val: number of *genes* held out for val; without it ``val_fraction`` (0.1) of the remaining genes.
        test_fraction: share of genes, and of combinations of seen genes, in test.
        val_fraction: share of remaining genes, and of remaining combinations of seen genes, in val.

    Returns:
        A table with columns condition, part and stratum (``unseen_single``, ``combo_seen0``, ``combo_seen1``,
        ``combo_seen2``).

    Raises:
        InputError: too few genes.
    """
    every = perturbed(conditions)
    test_share, val_share = share_of(test_fraction, 0.25, "test"), share_of(val_fraction, 0.1, "val")
    test = _held(every, seed, "split.simulation.test", n_test, test_share)
    rest = [c for c in every if c not in test]
    no_val = n_val == 0 or (n_val is None and val_share == 0)
    val = set() if no_val else _held(rest, seed, "split.simulation.val", n_val, val_share)
    part = dict.fromkeys(test, "test") | dict.fromkeys(val, "val")
    return tabulate(every, part, seen_strata(part, (c for c in every if c not in part)))


def simulation_single(
    conditions: Iterable[str],
    seed: int = 0,
    *,
    n_test: int | None = None,
    n_val: int | None = None,
    test_fraction: float | None = None,
    val_fraction: float | None = None,
) -> pd.DataFrame:
    """The rule of GEARS for single perturbations: 75% for training, a tenth of which is val.

    Args:
        conditions: canonical single perturbations; control and repeats are ignored.
        seed: seed of the draw; the draws are not those of GEARS at the same seed.
        n_test: conditions in test; without it ``test_fraction`` (0.25) of all, rounded up.
        n_val: conditions in val; without it ``val_fraction`` (0.1) of those not in test, rounded down.
        test_fraction: share of conditions in test.
        val_fraction: share of the others in val.

    Returns:
        A table with columns condition, part and stratum (``unseen_single``).

    Raises:
        InputError: combinations among the conditions, or too few conditions.
    """
    every = perturbed(conditions)
    combined = [c for c in every if len(genes_of(c)) > 1]
    if combined:
        raise InputError(
            f"simulation_single: combinations among the conditions ({some(combined)}): use rule=simulation"
        )
    if n_test is None:
        n_test = len(every) - int(len(every) * (1 - share_of(test_fraction, 0.25, "test")))
    if n_val is None:
        n_val = int((len(every) - n_test) * share_of(val_fraction, 0.1, "val"))
    enough("simulation_single", len(every), n_test, n_val)
    drawn = shuffled(every, seed, "split.simulation_single")
    part = dict.fromkeys(drawn[:n_test], "test") | dict.fromkeys(drawn[n_test : n_test + n_val], "val")
    return tabulate(every, part, dict.fromkeys(part, "unseen_single"))


def scdfm(labels: Sequence[str], fold: int = 0, *, test_fraction: float | None = None) -> pd.DataFrame:
    """The folds of scDFM on Norman's pairs: 30% of all combinations in test, the rest in train, no val.

    Combinations are sorted as ``labels`` spells them (the original draws from ``np.unique`` of its own
    file) and shuffled by the legacy generator seeded with 42 + fold; canonical names sort pairs
    differently from a file that does not order the genes of a pair, so give the original labels to repeat
    the original folds.

    Args:
        labels: conditions in any spelling of ``conditions.canonical``.
        fold: 0 to 4 in the original.
        test_fraction: share of combinations in test, rounded down; 0.3 when not given.

    Returns:
        A table with columns condition, part and stratum (``double``).

    Raises:
        InputError: too few combinations.
    """
    unique = np.unique(np.asarray(list(labels), dtype=str))
    names = dict(zip(unique.tolist(), canonical(unique)[0].tolist(), strict=True))
    doubles = np.array([label for label in unique.tolist() if len(genes_of(names[label])) > 1], dtype=object)
    n_test = int(share_of(test_fraction, 0.3, "test") * len(doubles))
    if not n_test:
        raise InputError(f"scdfm: {len(doubles)} combinations are too few to hold any out")
    np.random.RandomState(42 + fold).shuffle(doubles)
    part = {names[label]: "test" for label in doubles[:n_test]}
    return tabulate(perturbed(names.values()), part, {c: order_of(c) for c in part})


def _held(every: Collection[str], seed: int, purpose: str, count: int | None, share: float) -> set[str]:
    """Conditions with a drawn gene, and ``share`` of the combinations without one."""
    genes = genes_in(every)
    count = amount(len(genes), count, share, share, purpose.rsplit(".", 1)[1])
    if not 1 <= count < len(genes):
        raise InputError(
            f"simulation: {count} genes are to be held out of {len(genes)}, and at least one must stay "
            "in train: change n_test and n_val (or the fractions), or more perturbations are needed"
        )
    drawn = set(shuffled(genes, seed, purpose)[:count])
    held = {c for c in every if drawn & set(genes_of(c))}
    pairs = [c for c in every if c not in held and len(genes_of(c)) > 1]
    held |= set(shuffled(pairs, seed, purpose + ".pairs")[: round(share * len(pairs))])
    if len(held) == len(every):
        raise InputError("simulation: no condition is left to train on: lower test_fraction and val_fraction")
    return held
