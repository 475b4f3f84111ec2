"""How the tokens of modules are brought together: table 10 of the paper.

Command:  scbig ablate configs/ablations/pooling.py
Paper:    the mean does best, then attention, then pooling by multi-head attention.
Here:     the anchor is off. "concat" is not in the paper: all tokens side by side, as in the demo.
Quick:    `--quick`: 8 runs on two screens, 8 autoencoders.
"""

from scbig import config

TITLE = "How module tokens become one latent (table 10)"
VARIANTS = {
    "mean": ["gcae.readout=mean"],
    "attention": ["gcae.readout=attention"],
    "pma": ["gcae.readout=pma"],
    "concat": ["gcae.readout=concat"],
}


def get_config():
    """The demo without the anchor, which would hide the difference."""
    return config.ablation()
