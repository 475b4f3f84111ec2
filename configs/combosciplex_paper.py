"""ComboSciPlex (A549, drugs singly and in pairs) with the settings of the paper, for users who have the cells.

Command:  scbig fetch combosciplex
          scbig run --config configs/combosciplex_paper.py --workdir runs/combosciplex --config.data.path=FILE \
              --config.priors.dir=DIR --config.priors.condition=drugs.npz --config.split.path=split.csv

``drugs.npz`` holds ``genes`` (names of the drugs) and ``vectors`` (ChemBERTa or Morgan fingerprints); ``split.csv`` the
seven test conditions of the paper and of CellFlow's tutorial. Needs a GPU. Not measured here: the cells are not at hand.
"""

from pathlib import Path

from scbig import config


def get_config():
    """The paper's settings for ComboSciPlex."""
    c = config.load(str(Path(__file__).with_name("norman_paper.py")))
    c.name = "combosciplex"
    c.data.condition = "condition"
    c.data.separator = "+"
    c.data.batch = ""
    c.data.targets = "none"
    c.split.rule = "file"
    c.split.n_test = 0
    c.split.n_val = 0
    return c
