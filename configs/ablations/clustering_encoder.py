"""How genes are grouped, and the encoder over the groups: tables 6a and 15 of the paper.

Command:  scbig ablate configs/ablations/clustering_encoder.py
Paper:    chooses Gene-Relation Clustering with the induced encoder (32 modules, 8 inducing points).
Here:     the anchor is off. The MLP encoder reads genes without modules; its decoder still has them.
Quick:    `--quick`: 24 runs on two screens, 24 autoencoders.
"""

from scbig import config

TITLE = "Clustering of genes and encoder (tables 6a and 15)"
VARIANTS = {
    f"{method}, {encoder}": [f"modules.method={method}", f"gcae.encoder={encoder}"]
    for method in ("grc", "balanced_kmeans", "kmeans", "random")
    for encoder in ("induced", "transformer", "mlp")
}


def get_config():
    """The demo without the anchor, which would hide the difference."""
    return config.ablation()
