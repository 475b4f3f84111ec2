"""Cluster correlation and pathway transport, on and off: table 6c of the paper.

Command:  scbig ablate configs/ablations/losses.py
Paper:    chooses both, at 0.1. In the authors' code the second may be zero on real cells (docs/differences.md).
Here:     the anchor is off, but for the last row. All variants of a seed share one autoencoder.
Quick:    `--quick`: 10 runs on two screens, 2 autoencoders.
"""

from scbig import config

TITLE = "The alignment losses (table 6c)"
VARIANTS = {
    "both": [],
    "no cluster correlation": ["flow.lambda_corr=0.0"],
    "no pathway transport": ["flow.lambda_path=0.0"],
    "neither": ["flow.lambda_corr=0.0", "flow.lambda_path=0.0"],
    "both, anchored": ["anchor.method=auto"],
}


def get_config():
    """The demo without the anchor, which would hide the difference."""
    return config.ablation()
