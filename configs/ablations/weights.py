"""Weights of the alignment losses, one at a time and both: table 6d of the paper.

Command:  scbig ablate configs/ablations/weights.py
Paper:    chooses 0.1 for both.
Here:     the anchor is off. All variants of a seed share one autoencoder.
Quick:    `--quick`: 14 runs on two screens, 2 autoencoders.
"""

from scbig import config

TITLE = "Weights of the alignment losses (table 6d)"
VARIANTS = {
    "both 0.1": ["flow.lambda_corr=0.1", "flow.lambda_path=0.1"],
    "both 0.01": ["flow.lambda_corr=0.01", "flow.lambda_path=0.01"],
    "both 1": ["flow.lambda_corr=1.0", "flow.lambda_path=1.0"],
    "correlation 0.01": ["flow.lambda_corr=0.01", "flow.lambda_path=0.1"],
    "correlation 1": ["flow.lambda_corr=1.0", "flow.lambda_path=0.1"],
    "pathway 0.01": ["flow.lambda_corr=0.1", "flow.lambda_path=0.01"],
    "pathway 1": ["flow.lambda_corr=0.1", "flow.lambda_path=1.0"],
}


def get_config():
    """The demo without the anchor, which would hide the difference."""
    return config.ablation()
