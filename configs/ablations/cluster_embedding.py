"""The embeddings of genes that modules are made from: figure 5 of the paper.

Command:  scbig ablate configs/ablations/cluster_embedding.py
Paper:    chooses GeneCompass.
Here:     the anchor is off. The simulated screen has a good embedding (semantic) and a poor one (noisy); without any,
          co-expression in training controls is used. Interactions are the same in all but the random modules. On your own
          screen, copy the file and name your sources.
Quick:    `--quick`: 10 runs on two screens, 10 autoencoders.
"""

from scbig import config

TITLE = "Embeddings that genes are clustered by (figure 5)"
VARIANTS = {
    "semantic": ["priors.semantic=semantic.npz"],
    "noisy": ["priors.semantic=noisy.npz"],
    "both": ["priors.semantic=semantic.npz,noisy.npz"],
    "co-expression": ["priors.semantic="],
    "random modules": ["modules.method=random"],
}


def get_config():
    """The demo without the anchor, which would hide the difference."""
    return config.ablation()
