"""Papalexi 2021 (THP-1, ECCITE-seq): 20,729 cells, 25 knockouts, a panel of 303 genes; can the model reproduce what it saw?

Command:  scbig run --config configs/papalexi.py --workdir runs/papalexi \
              --config.data.path=papalexi2021_thp1.h5ad --config.priors.dir=priors

A quarter of each condition's cells is held out (split ``cells``). The panel is a part of the transcriptome, so depth comes
from ``n_umis``, and the knocked-out genes need not be in it.

Time: 4 to 8 minutes on 2 cores, most of it pretraining. Scores (3 seeds, docs/results.md): pearson_delta of decoded cells
0.96 to 0.97 for STAT1, IFNGR1, IFNGR2 and JAK2, 0.89 for SMAD4, 0.83 for IRF1; e-distance 0.03 to 0.17 of control's.
"""

from scbig import config


def get_config():
    """Settings for Papalexi 2021."""
    c = config.default()
    c.name = "papalexi"
    c.data.condition = "perturbation"
    c.data.control = "control"
    c.data.batch = "bio_rep"
    c.data.size_factor = "n_umis"
    c.data.allow_missing_targets = True
    c.data.n_top_genes = 0
    c.split.rule = "cells"
    c.split.test_fraction = 0.25
    c.split.val_fraction = 0.0
    c.priors.aliases = "aliases.tsv.gz"
    c.priors.gene_ids = "gene_ids.tsv.gz"
    c.priors.semantic = ("emb_refseq_lsa256.npz", "emb_go_svd128.npz")
    c.priors.condition = ("emb_string_netmf128.npz", "emb_refseq_lsa256.npz", "identity")
    c.priors.ppi = "string_v11.5_min700.tsv.gz"
    c.priors.pathways = "ReactomePathways_2024-09-18.gmt"
    c.priors.gene_sets = ("hallmark_v7.0.gmt",)
    c.modules.n_modules = 16
    c.gcae.width = 64
    c.gcae.depth = 2
    c.gcae.heads = 4
    c.gcae.readout = "concat"
    c.gcae.dropout = 0.0
    c.pretrain.epochs = 24
    c.pretrain.learning_rate = 2e-3
    c.condition.width = 128
    c.velocity.width = 256
    c.flow.steps = 1000
    c.flow.learning_rate = 2e-4
    c.flow.coupling = "independent"
    return c
