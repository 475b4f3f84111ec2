"""How many modules, and how many inducing points they speak through: figure 6 of the paper.

Command:  scbig ablate configs/ablations/modules_inducing.py
Paper:    32 modules and 8 inducing points do best on Norman 2019 (2,051 genes).
Here:     the anchor is off. The simulated screen has 400 genes in 16 true modules.
Quick:    `--quick`: 18 runs on two screens, 18 autoencoders; 160 genes in 8 true modules.
"""

from scbig import config

TITLE = "Number of modules and of inducing points (figure 6)"
VARIANTS = {
    f"{modules} modules, {inducing} points": [f"modules.n_modules={modules}", f"gcae.inducing={inducing}"]
    for modules in (16, 4, 64)
    for inducing in (8, 2, 16)
}


def get_config():
    """The demo without the anchor, which would hide the difference."""
    return config.ablation()
