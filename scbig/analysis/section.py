"""What every part of the analysis returns: what was found in words, tables, and figures with their captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["Ask", "Figure", "NotHere", "Section"]


class NotHere(Exception):
    """A part does not apply to this run, such as pairs in a screen of singles; the page then says why.

    Raised by ``report`` alone, with a sentence for a reason. For a user's mistake there is
    :class:`scbig.errors.InputError`.
    """


@dataclass(frozen=True)
class Ask:
    """What is to be analysed, and with how much chance.

    Attributes:
        conditions: canonical conditions; empty: the part chooses, and says which.
        n_cells: predicted cells of each condition.
        draws: bootstrap draws behind an interval.
        permutations: of labels behind a null distribution.
        alpha: false discovery rate of what is called.
        seed: of all of them.
    """

    conditions: tuple[str, ...] = ()
    n_cells: int = 300
    draws: int = 200
    permutations: int = 200
    alpha: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class Figure:
    """A figure, drawn when it is wanted.

    Attributes:
        name: of its file, without ending.
        caption: what it shows, in which units, and what its intervals or bands are.
        draw: makes the drawing with :mod:`scbig.analysis.style`.
    """

    name: str
    caption: str
    draw: Callable[[], Drawing]


@dataclass(frozen=True)
class Section:
    """One part of the analysis.

    Attributes:
        title: a few words.
        text: what was found, and how far it can be trusted, in some sentences.
        tables: by file name without ending; a row per finding, units in the columns' names or in ``text``.
        figures: in the order shown.
    """

    title: str
    text: str
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    figures: Sequence[Figure] = ()
