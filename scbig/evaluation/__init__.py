"""The judge: metrics, distances between populations, the comparison and its report."""

from scbig.evaluation.distribution import Space, e_distance
from scbig.evaluation.figures import Curves
from scbig.evaluation.judge import Scores, evaluate
from scbig.evaluation.metrics import METRICS
from scbig.evaluation.record import load, save
from scbig.evaluation.report import console_table, render, write
from scbig.evaluation.statistics import Difference, compare

__all__ = [
    "METRICS",
    "Curves",
    "Difference",
    "Scores",
    "Space",
    "compare",
    "console_table",
    "e_distance",
    "evaluate",
    "load",
    "render",
    "save",
    "write",
]
