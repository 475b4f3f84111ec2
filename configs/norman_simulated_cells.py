"""Cells simulated around the real effects of Norman 2019, at the paper's size: 90,000 cells, 2,000 genes, 234 conditions.

Command:  scbig simulate --effects norman2019_effects.h5ad --n-cells 90000 --out data/norman_simulated
          scbig run --config configs/norman_simulated_cells.py --workdir runs/norman_simulated \
              --config.data.path=data/norman_simulated/screen.h5ad --config.priors.dir=priors
Holdout:  the same with --config.split.rule=holdout --config.split.n_test=21 --config.split.n_val=8

Real effects, simulated cells: results must be labelled so (``uns["simulated_cells"]``).
Time and scores: not measured yet.
"""

from pathlib import Path

from scbig import config


def get_config():
    """The paper's architecture with a training that two cores can finish."""
    c = config.load(str(Path(__file__).with_name("norman_paper.py")))
    c.name = "norman_simulated"
    c.data.condition = "condition"
    c.data.separator = "+"
    c.data.batch = ""
    c.data.n_top_genes = 0
    c.data.min_genes = 0
    c.data.min_cells_per_gene = 0
    c.gcae.width = 64
    c.gcae.depth = 2
    c.gcae.heads = 4
    c.gcae.readout = "concat"
    c.pretrain.epochs = 5
    c.pretrain.learning_rate = 5e-4  # at 2e-3 the induced encoder learns nothing
    c.pretrain.schedule = "cosine"
    c.pretrain.warmup = 300
    c.pretrain.clip = 1.0
    c.velocity.width = 512
    c.condition.width = 128
    c.flow.steps = 3000
    c.flow.conditions = 32
    c.flow.cells = 32
    c.flow.learning_rate = 3e-4
    c.flow.schedule = "cosine"
    c.flow.warmup = 200
    c.flow.sigma = 0.05
    c.flow.epsilon = 0.05
    c.flow.align_conditions = 1
    c.flow.align_cells = 32
    c.flow.align_every = 2
    c.flow.evaluate_every = 250
    return c
