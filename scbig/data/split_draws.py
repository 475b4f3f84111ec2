"""What the split rules share: drawing names, counting genes, writing tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import InputError
from scbig.rng import generator

__all__ = [
    "amount",
    "enough",
    "genes_in",
    "holdout_strata",
    "order_of",
    "perturbed",
    "seen_strata",
    "share_of",
    "shuffled",
    "tabulate",
]


def seen_strata(conditions: Iterable[str], train: Iterable[str]) -> dict[str, str]:
    """What training has seen of each condition.

    Args:
        conditions: canonical conditions to be named.
        train: canonical training conditions.

    Returns:
        For each condition ``unseen_single``, ``seen_single`` (its gene occurs in a training combination) or
        ``combo_seenN`` with N the number of its genes that occur in training.
    """
    seen = set(genes_in(train))
    names = {}
    for condition in conditions:
        members = genes_of(condition)
        count = sum(g in seen for g in members)
        names[condition] = f"combo_seen{count}" if len(members) > 1 else ("seen" if count else "unseen") + "_single"
    return names


def holdout_strata(conditions: Iterable[str], train: Iterable[str]) -> dict[str, str]:
    """``single``, or ``double_N_seen`` (``triple_…``) with N the number of genes that occur in training."""
    seen = set(genes_in(train))
    names = {}
    for condition in conditions:
        members = genes_of(condition)
        count = sum(g in seen for g in members)
        names[condition] = "single" if len(members) == 1 else f"{order_of(condition)}_{count}_seen"
    return names


def perturbed(conditions: Iterable[str]) -> list[str]:
    """The conditions other than control, each once, sorted: a draw must not depend on the order of cells."""
    return sorted({str(c) for c in conditions} - {CONTROL})


def genes_in(conditions: Iterable[str]) -> list[str]:
    """The genes of some conditions, each once, sorted."""
    return sorted({gene for condition in conditions for gene in genes_of(condition)})


def order_of(condition: str) -> str:
    """``single``, ``double``, ``triple`` or ``multiple``, by the number of perturbations."""
    return {1: "single", 2: "double", 3: "triple"}.get(len(genes_of(condition)), "multiple")


def shuffled(names: Sequence[str], seed: int, purpose: str) -> list[str]:
    """The names in an order drawn for this seed and purpose."""
    return [names[i] for i in generator(seed, purpose).permutation(len(names))]


def share_of(fraction: float | None, default: float, what: str) -> float:
    """The fraction given, or the default; refused outside [0, 1]."""
    share = default if fraction is None else float(fraction)
    if not 0 <= share <= 1:
        raise InputError(f"--config.split.{what}_fraction={share} is not between 0 and 1")
    return share


def amount(total: int, count: int | None, fraction: float | None, default: float, what: str) -> int:
    """How many of ``total``: the count if given, else the share, at least one if that is not zero."""
    if count is not None:
        if count < 0:
            raise InputError(f"--config.split.n_{what}={count} is negative")
        return int(count)
    share = share_of(fraction, default, what)
    return max(1, round(total * share)) if share else 0


def enough(rule: str, total: int, n_test: int, n_val: int) -> None:
    """Refuses to hold out nothing or everything."""
    if n_test < 1 or n_val < 0 or n_test + n_val >= total:
        raise InputError(
            f"{rule}: {n_test} test and {n_val} val conditions are wanted of {total}, and at least one "
            "must stay in train: "
            "change n_test and n_val (or the fractions), or more conditions are needed"
        )


def tabulate(every: Sequence[str], part: dict[str, str], strata: dict[str, str]) -> pd.DataFrame:
    """One row per condition; whatever ``part`` leaves out is in train."""
    return pd.DataFrame(
        {
            "condition": list(every),
            "part": [part.get(c, "train") for c in every],
            "stratum": [strata.get(c, "") for c in every],
        }
    )
