"""The rules that decide which conditions or cells are held out: pure functions from conditions to tables."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from scbig.data.conditions import CONTROL, genes_of
from scbig.data.split_draws import (
    amount,
    enough,
    genes_in,
    holdout_strata,
    order_of,
    perturbed,
    seen_strata,
    share_of,
    shuffled,
    tabulate,
)
from scbig.errors import InputError, some
from scbig.rng import generator

__all__ = ["additive", "cells", "context", "holdout", "random"]


def additive(
    conditions: Iterable[str],
    seed: int = 0,
    *,
    n_test: int | None = None,
    n_val: int | None = None,
    test_fraction: float | None = None,
    val_fraction: float | None = None,
) -> pd.DataFrame:
    """Holds out combinations all of whose single perturbations are in train.

    Combinations that lack one of their singles stay in train, where they cannot leak: nothing is asked
    about them.

    Args:
        conditions: canonical conditions; control and repeats are ignored.
        seed: seed of the draw.
        n_test: combinations in test; without it ``test_fraction`` (0.25) of the eligible ones.
        n_val: combinations in val; without it ``val_fraction`` (0.25) of the eligible ones.
        test_fraction: share of eligible combinations in test.
        val_fraction: share of eligible combinations in val.

    Returns:
        A table with columns condition, part and stratum (``double`` for what is held out).

    Raises:
        InputError: too few eligible combinations.
    """
    every = perturbed(conditions)
    singles = {c for c in every if len(genes_of(c)) == 1}
    eligible = [c for c in every if len(genes_of(c)) > 1 and all(g in singles for g in genes_of(c))]
    n_test = amount(len(eligible), n_test, test_fraction, 0.25, "test")
    n_val = amount(len(eligible), n_val, val_fraction, 0.25, "val")
    if not n_test or n_test + n_val > len(eligible):
        raise InputError(
            f"additive: {n_test} test and {n_val} val combinations are wanted, but {len(eligible)} of "
            f"{len(every)} conditions are combinations whose singles were all measured: lower n_test "
            "and n_val or use another rule"
        )
    drawn = shuffled(eligible, seed, "split.additive")
    part = dict.fromkeys(drawn[:n_test], "test") | dict.fromkeys(drawn[n_test : n_test + n_val], "val")
    return tabulate(every, part, {c: order_of(c) for c in part})


def holdout(
    conditions: Iterable[str],
    seed: int = 0,
    *,
    n_test: int | None = None,
    n_val: int | None = None,
    test_fraction: float | None = None,
    val_fraction: float | None = None,
) -> pd.DataFrame:
    """Holds out genes: no condition with a held-out gene, alone or combined, is in train.

    Test genes are drawn first and val genes from the rest. A condition with a test gene is test, even when
    its other gene is a val gene; else a condition with a val gene is val. So test genes occur neither in
    train nor in val, and val genes not in train. A stratum counts the genes that *train* has seen, for
    which a val gene is as unseen as a test gene.

    Args:
        conditions: canonical conditions; control and repeats are ignored.
        seed: seed of the draw.
        n_test: number of *genes* held out for test; without it ``test_fraction`` (0.2) of the genes.
        n_val: number of *genes* held out for val; without it ``val_fraction`` (0.1) of the genes.
        test_fraction: share of genes held out for test.
        val_fraction: share of genes held out for val.

    Returns:
        A table with columns condition, part and stratum (``single``, ``double_0_seen``, ``double_1_seen``).

    Raises:
        InputError: too few genes.
    """
    every = perturbed(conditions)
    # Genes with a single come first in question: only they fill the stratum `single`.
    genes = sorted({genes_of(c)[0] for c in every if len(genes_of(c)) == 1}) or genes_in(every)
    n_test = amount(len(genes), n_test, test_fraction, 0.2, "test")
    n_val = amount(len(genes), n_val, val_fraction, 0.1, "val")
    if not n_test or n_test + n_val >= len(genes):
        raise InputError(
            f"holdout: {n_test} test and {n_val} val genes are wanted of {len(genes)} perturbed genes, "
            "and at least one "
            "must stay in train: lower n_test and n_val, or more perturbations are needed"
        )
    drawn = shuffled(genes, seed, "split.holdout")
    test, val = set(drawn[:n_test]), set(drawn[n_test : n_test + n_val])
    part = {}
    for condition in every:
        members = set(genes_of(condition))
        if members & test:
            part[condition] = "test"
        elif members & val:
            part[condition] = "val"
    if len(part) == len(every):
        raise InputError("holdout: every condition contains a held-out gene, none is left to train on: lower n_test")
    strata = holdout_strata(part, (c for c in every if c not in part))
    return tabulate(every, part, strata)


def random(
    conditions: Iterable[str],
    seed: int = 0,
    *,
    n_test: int | None = None,
    n_val: int | None = None,
    test_fraction: float | None = None,
    val_fraction: float | None = None,
) -> pd.DataFrame:
    """Holds out conditions at random, whatever their genes.

    Args:
        conditions: canonical conditions; control and repeats are ignored.
        seed: seed of the draw.
        n_test: conditions in test; without it ``test_fraction`` (0.2) of all.
        n_val: conditions in val; without it ``val_fraction`` (0.1) of all.
        test_fraction: share of conditions in test.
        val_fraction: share of conditions in val.

    Returns:
        A table with columns condition, part and stratum (as ``seen_strata`` names them).

    Raises:
        InputError: too few conditions.
    """
    every = perturbed(conditions)
    n_test = amount(len(every), n_test, test_fraction, 0.2, "test")
    n_val = amount(len(every), n_val, val_fraction, 0.1, "val")
    enough("random", len(every), n_test, n_val)
    drawn = shuffled(every, seed, "split.random")
    part = dict.fromkeys(drawn[:n_test], "test") | dict.fromkeys(drawn[n_test : n_test + n_val], "val")
    return tabulate(every, part, seen_strata(part, (c for c in every if c not in part)))


def context(
    obs: pd.DataFrame,
    held_out_context: str,
    seed: int = 0,
    *,
    n_test: int | None = None,
    n_val: int | None = None,
    test_fraction: float | None = None,
    val_fraction: float | None = None,
) -> pd.DataFrame:
    """Holds whole perturbations out of one context (cell line or type); they are trained on in the others.

    Only perturbations measured in another context too are eligible. With one stimulus, that condition is
    held out.

    Args:
        obs: cells with columns condition and context.
        held_out_context: the context that perturbations are held out of.
        seed: seed of the draw.
        n_test: perturbations in test; without it ``test_fraction`` (0.5) of the eligible ones, at least one.
        n_val: perturbations in val; without it ``val_fraction`` (0.1) of the eligible ones, as far as
            there are any left.
        test_fraction: share of eligible perturbations in test.
        val_fraction: share of eligible perturbations in val.

    Returns:
        A table with columns condition, context, part and stratum (the held-out context).

    Raises:
        InputError: the context is not named or not there, or no perturbation is eligible.
    """
    pairs = obs[["condition", "context"]].astype(str).drop_duplicates()
    pairs = pairs[pairs["condition"] != CONTROL].sort_values(["condition", "context"], ignore_index=True)
    contexts = sorted(set(obs["context"].astype(str)))
    if held_out_context not in contexts:
        given = f"'{held_out_context}' is not one" if held_out_context else "none is named"
        raise InputError(
            f"context: of the contexts {some(contexts)} {given}: pass --config.split.held_out_context=NAME"
        )
    here = pairs["context"] == held_out_context
    elsewhere = set(pairs.loc[~here, "condition"])
    eligible = [c for c in pairs.loc[here, "condition"] if c in elsewhere]
    n_test = amount(len(eligible), n_test, test_fraction, 0.5, "test")
    spare = len(eligible) - n_test
    n_val = min(amount(spare, None, val_fraction, 0.1, "val"), spare) if n_val is None else n_val
    if not n_test or n_test + n_val > len(eligible):
        raise InputError(
            f"context: {n_test} test and {n_val} val perturbations are wanted of {len(eligible)} that "
            "were measured both "
            f"in '{held_out_context}' and elsewhere: lower n_test and n_val, or hold out another context"
        )
    drawn = shuffled(eligible, seed, "split.context")
    part = dict.fromkeys(drawn[:n_test], "test") | dict.fromkeys(drawn[n_test : n_test + n_val], "val")
    parts = pairs["condition"].map(part).where(here).fillna("train")
    return pairs.assign(part=parts, stratum=np.where(parts == "train", "", held_out_context))


def cells(
    obs: pd.DataFrame,
    seed: int = 0,
    *,
    test_fraction: float | None = None,
    val_fraction: float | None = None,
) -> pd.DataFrame:
    """Holds out cells of every condition, control included: can a model reproduce what it has seen?

    Args:
        obs: cells, with their names as index and a column condition (and context, within which cells are
            drawn too).
        seed: seed of the draw; it depends on cell names, not on their order.
        test_fraction: share of each condition's cells in test, 0.25 when not given.
        val_fraction: share of each condition's cells in val, 0 when not given.

    Returns:
        A table with columns cell, condition, part and stratum (``single``, ``double``; empty for control).

    Raises:
        InputError: conditions with too few cells to have some in every part.
    """
    test_share, val_share = share_of(test_fraction, 0.25, "test"), share_of(val_fraction, 0.0, "val")
    if not 0 < test_share + val_share < 1 or test_share == 0:
        raise InputError(
            f"cells: test_fraction={test_share} and val_fraction={val_share} must leave cells in train and test"
        )
    condition = obs["condition"].astype(str).to_numpy(dtype=object)
    where = " in " + obs["context"].astype(str).to_numpy(dtype=object) if "context" in obs else ""
    group = condition + where
    names = obs.index.astype(str).to_numpy(dtype=object)
    order = np.lexsort((pd.factorize(names, sort=True)[0], pd.factorize(group, sort=True)[0]))
    code, labels = pd.factorize(group[order], sort=True)
    size = np.bincount(code, minlength=len(labels))
    n_test = np.rint(size * test_share).astype(int)
    n_val = np.rint(size * val_share).astype(int)
    if val_share:
        n_val = np.maximum(n_val, 1)
    n_test = np.maximum(n_test, 1)
    few = labels[size - n_test - n_val < 1]
    if len(few):
        raise InputError(f"cells: too few cells to have some in every part: {some(few)}: drop these conditions")
    drawn = np.lexsort((generator(seed, "split.cells").random(len(order)), code))
    rank = np.empty(len(order), dtype=np.int64)
    rank[drawn] = np.arange(len(order)) - (np.cumsum(size) - size)[code[drawn]]
    part = np.where(rank < n_test[code], "test", np.where(rank < (n_test + n_val)[code], "val", "train"))
    kinds = {c: "" if c == CONTROL else order_of(c) for c in set(condition)}
    return pd.DataFrame(
        {
            "cell": names[order],
            "condition": condition[order],
            "part": part.astype(object),
            "stratum": [kinds[c] for c in condition[order]],
        }
    )
