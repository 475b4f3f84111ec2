"""Kang 2018 (PBMC, interferon beta): 1,975 cells of seven cell types; one cell type's response is predicted from the others.

Command:  scbig run --config configs/kang.py --workdir runs/kang \
              --config.data.path=kang2018_pbmc.h5ad --config.priors.dir=priors

Leave-one-cell-type-out (split ``context``): stimulated CD4 T cells are held out; another type is chosen with
--config.split.held_out_context=NAME. The stimulus is not a gene, so only its identity is known of it.
Time: some minutes on 2 cores. No score is claimed yet.
"""

from scbig import config


def get_config():
    """Settings for Kang 2018."""
    c = config.default()
    c.name = "kang"
    c.data.condition = "condition"
    c.data.control = "control"
    c.data.context = "cell_type"
    c.data.normalized = True
    c.data.targets = "none"
    c.data.n_top_genes = 1000
    c.split.rule = "context"
    c.split.held_out_context = "CD4T"
    c.priors.aliases = "aliases.tsv.gz"
    c.priors.gene_ids = "gene_ids.tsv.gz"
    c.priors.semantic = ("emb_refseq_lsa256.npz", "emb_go_svd128.npz")
    c.priors.condition = ("identity",)
    c.priors.ppi = "string_v11.5_min700.tsv.gz"
    c.priors.pathways = "ReactomePathways_2024-09-18.gmt"
    c.priors.gene_sets = ("hallmark_v7.0.gmt",)
    c.modules.n_modules = 20
    c.gcae.width = 64
    c.gcae.depth = 2
    c.gcae.heads = 4
    c.gcae.latent = 20
    c.gcae.readout = "concat"
    c.pretrain.epochs = 100
    c.pretrain.learning_rate = 1e-3
    c.condition.width = 64
    c.velocity.width = 256
    c.flow.steps = 1000
    c.flow.evaluate_every = 50
    return c
