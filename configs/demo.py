"""The built-in simulated screen: 5,000 cells, 400 genes, 24 single and 30 double perturbations with known truth.

Command:  make demo        (or: scbig demo --workdir runs/demo)
"""

from scbig import config


def get_config():
    """The settings of ``scbig demo`` in its default directory."""
    return config.demo("runs/demo")
