"""The anchor: the best predictor of the mean effect, which the flow starts from."""

from scbig.anchor.anchor import Anchor, check_method, fitter, mean_skill, restricted, rounded, save_no_anchor
from scbig.anchor.crossfit import KINDS, OutOfFold, kind_of, out_of_fold
from scbig.anchor.gates import CLOSED, Evidence, Gate, as_records, fit_gates
from scbig.anchor.intervals import Intervals, fit_intervals
from scbig.anchor.move import MOVES, Plan, move, plan, thinned

__all__ = [
    "CLOSED",
    "KINDS",
    "MOVES",
    "Anchor",
    "Evidence",
    "Gate",
    "Intervals",
    "OutOfFold",
    "Plan",
    "as_records",
    "check_method",
    "fit_gates",
    "fit_intervals",
    "fitter",
    "kind_of",
    "mean_skill",
    "move",
    "out_of_fold",
    "plan",
    "restricted",
    "rounded",
    "save_no_anchor",
    "thinned",
]
