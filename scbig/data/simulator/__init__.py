"""The inner parts of the Perturb-seq simulator; its public face is ``scbig.data.simulate``."""
