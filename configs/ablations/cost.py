"""Time and parameters by the number of modules, and what alignment adds to a step: tables 7 and 8 of the paper.

Command:  scbig ablate configs/ablations/cost.py
Paper:    on an RTX 3090 a step of the autoencoder takes 12 ms with 1 module, 30 with 32 and 65 with 128 (256 cells), one of
          the flow 83 ms (1,024 cells), with alignment 88. There alignment is a part of every thousandth step.
Here:     the anchor is off. Run it with nothing else on the machine and `--jobs 1`; times of runs that share an autoencoder
          are those of the one that trained it.
Quick:    `--quick`: 10 runs on two screens, 8 autoencoders.
"""

from scbig import config

TITLE = "Time and parameters (tables 7 and 8)"
VARIANTS = {
    "16 modules": ["modules.n_modules=16"],
    "16 modules, no alignment": ["modules.n_modules=16", "flow.lambda_corr=0.0", "flow.lambda_path=0.0"],
    "1 module": ["modules.n_modules=1"],
    "4 modules": ["modules.n_modules=4"],
    "64 modules": ["modules.n_modules=64"],
}
METRICS = ("pretrain_ms", "train_ms", "parameters_autoencoder", "pearson_delta", "e_distance_share")


def get_config():
    """The demo without the anchor, which would hide the difference."""
    return config.ablation()
