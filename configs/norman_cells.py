"""Norman 2019 (K562, CRISPR activation), a sample of 3,375 cells, 500 genes, 18 singles and 15 doubles.

Command:  scbig run --config configs/norman_cells.py --workdir runs/norman_cells \
              --config.data.path=norman2019_cells.h5ad --config.priors.dir=priors

A check of the whole path on real doubles, not a benchmark: only a few of the doubles have both singles in the sample.
Time: some minutes on 2 cores. No score is claimed: seven test conditions decide nothing.
"""

from scbig import config


def get_config():
    """Settings for the sample of Norman 2019."""
    c = config.default()
    c.name = "norman_cells"
    c.data.condition = "condition"
    c.data.normalized = True
    c.data.allow_missing_targets = True
    c.data.n_top_genes = 0
    c.split.rule = "random"
    c.split.test_fraction = 0.2
    c.split.val_fraction = 0.1
    c.priors.aliases = "aliases.tsv.gz"
    c.priors.gene_ids = "gene_ids.tsv.gz"
    c.priors.semantic = ("emb_refseq_lsa256.npz", "emb_go_svd128.npz")
    c.priors.condition = ("emb_string_netmf128.npz", "emb_refseq_lsa256.npz", "emb_go_svd128.npz")
    c.priors.ppi = "string_v11.5_min700.tsv.gz"
    c.priors.pathways = "ReactomePathways_2024-09-18.gmt"
    c.priors.gene_sets = ("hallmark_v7.0.gmt",)
    c.modules.n_modules = 16
    c.gcae.width = 64
    c.gcae.depth = 2
    c.gcae.heads = 4
    c.gcae.latent = 20
    c.gcae.readout = "concat"
    c.pretrain.epochs = 100
    c.pretrain.learning_rate = 1e-3
    c.condition.width = 128
    c.velocity.width = 256
    c.flow.steps = 2000
    c.flow.evaluate_every = 100
    c.flow.lambda_path = 0.0  # no pathway has ten of the 500 genes' expressed ones
    return c
