"""What Gene-Relation Clustering reads, and how genes are assigned: table 6b of the paper.

Command:  scbig ablate configs/ablations/clustering_priors.py
Paper:    chooses the full clustering, embeddings and interactions at equal weight; updating it by perturbation does worse.
Here:     the anchor is off, but for the last row. Soft assignment starts from balanced k-means on the embeddings alone, so
          it is to be compared with "no PPI". Every gene is then read in its two nearest modules, and written by the first.
Quick:    `--quick`: 12 runs on two screens, 10 autoencoders.
"""

from scbig import config

TITLE = "What genes are clustered by (table 6b)"
VARIANTS = {
    "full": [],
    "soft assignment": ["modules.method=soft"],
    "update by perturbation": ["modules.response_weight=0.3"],
    "no PPI": ["modules.w_ppi=0.0"],
    "no embedding": ["modules.w_sem=0.0"],
    "full, anchored": ["anchor.method=auto"],
}


def get_config():
    """The demo without the anchor, which would hide the difference."""
    return config.ablation()
