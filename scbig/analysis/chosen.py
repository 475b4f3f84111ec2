"""Which conditions an analysis looks at, in which context, and which real cells answer for them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scbig.data.conditions import CONTROL, genes_of, join
from scbig.errors import InputError, some
from scbig.rng import generator

if TYPE_CHECKING:
    from scbig.analysis.section import Ask
    from scbig.analysis.view import View

__all__ = ["Chosen", "checked", "choose", "measured", "rows_of", "thinned"]


class Chosen(NamedTuple):
    """A condition in a context.

    Attributes:
        condition: canonical.
        context: cell line or cell type.
        name: for figures; the context is in it where the run has several.
    """

    condition: str
    context: str
    name: str


def checked(view: View, conditions: Iterable[str]) -> tuple[str, ...]:
    """Conditions in canonical form, each once.

    Raises:
        InputError: naming those with a perturbation that neither the screen nor any source of the run knows, and names
            that are near.
    """
    conditions = list(conditions)
    if not conditions:
        return ()
    known = set(view.obs["condition"].astype(str).unique()) - {CONTROL}
    single = {gene for name in known for gene in genes_of(name)}
    vocabulary = view.predictor.vocabulary
    sources = list(vocabulary.genes)
    out, odd = [], []
    for given in conditions:
        name = join(genes_of(given))
        lacking = [
            gene for gene in genes_of(name)
            if gene not in single and all(vocabulary.place(source, gene) is None for source in sources)
        ]  # fmt: skip
        if lacking or not genes_of(name):
            odd += [(given, lacking[0] if lacking else given)]
        elif name not in out:
            out.append(name)
    if odd:
        pool = sorted(known | single)
        near = [each for _, gene in odd for each in difflib.get_close_matches(gene, pool, 3, 0.5)]
        hint = f"near are {some(dict.fromkeys(near), 5)}" if near else f"the screen has {some(sorted(known), 5)}"
        raise InputError(f"the run does not know {some(name for name, _ in odd)}; {hint}")
    return tuple(out)


def choose(view: View, ask: Ask, most: int, parts: Sequence[str] = ("test", "val", "train")) -> list[Chosen]:
    """The conditions that are asked for, else those that were held out; each in the contexts where it was measured.

    Args:
        view: the run.
        ask: conditions, or none.
        most: how many are looked at unless they are named; spread evenly over the sorted names.
        parts: the first with perturbed cells is chosen from.
    """
    names: Sequence[str] = ask.conditions
    if not names:
        names = next((found for part in parts if (found := view.conditions(part))), [])
    pairs = view.obs[["condition", "context"]].astype(str).drop_duplicates()
    contexts = sorted(pairs["context"].unique())
    chosen: list[Chosen] = []
    for name in names:
        where = sorted(pairs["context"][pairs["condition"] == name]) or contexts
        chosen += [Chosen(name, c, f"{name} in {c}" if len(contexts) > 1 else name) for c in where]
    if not ask.conditions and len(chosen) > most:
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, most).round().astype(int)]
    return chosen


def measured(view: View, one: Chosen) -> tuple[np.ndarray, str]:
    """Rows of the real cells that a prediction of a condition is compared with, and the part of the split they are in.

    Held-out cells where there are two at least, else whatever there is; none for a condition never measured.
    """
    rows = rows_of(view, one.condition, one.context)
    for part in ("test", "val", "train"):
        there = rows[view.part[rows] == part]
        if len(there) > 1:
            return there, part
    return rows[:0], ""


def rows_of(view: View, condition: str, context: str) -> np.ndarray:
    """Rows of the cells of a condition in a context."""
    obs = view.obs
    return np.flatnonzero((obs["condition"].astype(str) == condition) & (obs["context"].astype(str) == context))


def thinned(rows: np.ndarray, most: int, seed: int, purpose: str) -> np.ndarray:
    """At most so many of the rows, ascending."""
    if len(rows) <= most:
        return rows
    return np.sort(generator(seed, purpose).choice(rows, most, replace=False))
