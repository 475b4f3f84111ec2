"""Cells in: reading and checking, conditions, preprocessing, splits, the simulator and public data sets."""

# Imported here and now: `read` and `simulate` are also names of modules, and the functions must win.
from scbig.data.conditions import CONTROL, canonical, find_condition_column, genes_of, join
from scbig.data.preprocess import filter_knockdown, normalize, prepare, qc, read_as_told, select_genes
from scbig.data.public import DATASETS, PublicDataset, fetch
from scbig.data.read import effects_table, is_effects, read, report_lines
from scbig.data.simulate import SimConfig, Simulation, simulate
from scbig.data.simulate_effects import simulate_from_effects
from scbig.data.splits import Split

__all__ = [
    "CONTROL",
    "DATASETS",
    "PublicDataset",
    "SimConfig",
    "Simulation",
    "Split",
    "canonical",
    "effects_table",
    "fetch",
    "filter_knockdown",
    "find_condition_column",
    "genes_of",
    "is_effects",
    "join",
    "normalize",
    "prepare",
    "qc",
    "read",
    "read_as_told",
    "report_lines",
    "select_genes",
    "simulate",
    "simulate_from_effects",
]
