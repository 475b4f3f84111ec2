"""Replogle 2022, RPE1 essential genes, with the settings of the paper, for users who have the cells.

Command:  scbig fetch replogle2022_rpe1
          scbig run --config configs/rpe1_paper.py --workdir runs/rpe1 --config.data.path=FILE --config.priors.dir=priors

Split as in GEARS: 75% of the perturbations for training, a tenth of those for validation, the rest for the test. Needs a
GPU. Not measured here: the cells are not at hand.
"""

from pathlib import Path

from scbig import config


def get_config():
    """The paper's settings for RPE1."""
    c = config.load(str(Path(__file__).with_name("norman_paper.py")))
    c.name = "rpe1"
    c.data.separator = ""
    c.data.batch = "batch"
    c.data.min_cells = 30
    c.split.rule = "simulation_single"
    c.split.test_fraction = 0.25
    c.split.val_fraction = 0.1
    c.split.n_test = 0
    c.split.n_val = 0
    return c
