"""PertAdapt's adaptive loss in stage 2: genes that a condition moves count more as training goes on (`flow.lambda_gene`).

Command:  scbig ablate configs/ablations/pertadapt.py
Paper:    none of its tables: the loss is another paper's (PertAdapt). On measured effects, with the adapter and its mask:
          python -m benchmarks.adapter --shared DIR
Here:     the anchor is off. All variants of a seed share one autoencoder.
Quick:    `--quick`: 8 runs on two screens, 2 autoencoders.
"""

from scbig import config

TITLE = "PertAdapt's adaptive loss among the alignment losses"
VARIANTS = {
    "without": [],
    "weight 0.1": ["flow.lambda_gene=0.1"],
    "weight 1": ["flow.lambda_gene=1.0"],
    "alone": ["flow.lambda_gene=0.1", "flow.lambda_corr=0.0", "flow.lambda_path=0.0"],
}


def get_config():
    """The demo without the anchor, which would hide the difference."""
    return config.ablation()
