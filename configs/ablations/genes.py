"""How many of the most variable genes are modelled: table 9 of the paper.

Command:  scbig ablate configs/ablations/genes.py
Paper:    with more genes (2,000, 5,000, 10,000) Pearson falls over all of them (0.85, 0.79, 0.77), and rises over those
          that respond most.
Here:     the anchor is off. Every variant is judged on its own genes, so that differences are partly those of the question.
          Perturbed genes are always kept.
Quick:    `--quick`: 6 runs on two screens, 6 autoencoders; 160 genes in all.
"""

from scbig import config

TITLE = "Number of genes (table 9)"
VARIANTS = {
    "all": ["data.n_top_genes=0"],
    "120 most variable": ["data.n_top_genes=120"],
    "60 most variable": ["data.n_top_genes=60"],
}


def get_config():
    """The demo without the anchor, which would hide the difference."""
    return config.ablation()
