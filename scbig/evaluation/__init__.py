"""The judge: metrics, distances between populations, the comparison and its report."""

from scbig.evaluation.calibration import calibrate
from scbig.evaluation.distribution import Space, e_distance
from scbig.evaluation.expression import rank_sum
from scbig.evaluation.figures import Curves
from scbig.evaluation.judge import Scores, evaluate
from scbig.evaluation.metrics import METRICS
from scbig.evaluation.populations import Population, Reference, Yardstick
from scbig.evaluation.record import load, save
from scbig.evaluation.report import console_table, render, write
from scbig.evaluation.statistics import Difference, compare, paired_tests

__all__ = [
    "METRICS",
    "Curves",
    "Difference",
    "Population",
    "Reference",
    "Scores",
    "Space",
    "Yardstick",
    "calibrate",
    "compare",
    "console_table",
    "e_distance",
    "evaluate",
    "load",
    "paired_tests",
    "rank_sum",
    "render",
    "save",
    "write",
]
