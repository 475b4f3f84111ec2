"""scBIG: predict the cells that an unseen perturbation would give, and judge such predictions."""

__version__ = "0.1.0"
