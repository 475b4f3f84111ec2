"""Embeddings of perturbations, alone and together: table 6e of the paper.

Command:  scbig ablate configs/ablations/condition_embedding.py
Paper:    chooses ESM2, embeddings of proteins.
Here:     the anchor is off. The simulated screen has a good embedding (semantic), a poor one that lacks some genes (noisy),
          and one-hots of the trained perturbations (identity), which know all genes of its test pairs. On your own screen,
          copy the file and name your sources. All variants of a seed share one autoencoder.
Quick:    `--quick`: 12 runs on two screens, 2 autoencoders.
"""

from scbig import config

TITLE = "What is known of a perturbation (table 6e)"
VARIANTS = {
    "all": ["priors.condition=semantic.npz,noisy.npz,identity"],
    "semantic": ["priors.condition=semantic.npz"],
    "noisy": ["priors.condition=noisy.npz"],
    "identity": ["priors.condition=identity"],
    "semantic, identity": ["priors.condition=semantic.npz,identity"],
    "noisy, identity": ["priors.condition=noisy.npz,identity"],
}


def get_config():
    """The demo without the anchor, which would hide the difference."""
    return config.ablation()
