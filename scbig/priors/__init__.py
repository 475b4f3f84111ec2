"""Genes in: embeddings, interactions, pathways and aliases, laid over a gene list with mask and report."""

from scbig.priors.aliases import AliasTable, Match, read_aliases
from scbig.priors.alignment import Aligned, align, concatenate, load_semantic
from scbig.priors.compute import (
    coexpression,
    embed_gene_sets,
    embed_smiles,
    embed_texts,
    factorise_network,
    read_smiles,
    read_table_text,
    read_tissue,
    tissue_profile,
)
from scbig.priors.coverage import Coverage
from scbig.priors.embeddings import Embedding, read_embedding, save_embedding
from scbig.priors.network_kernels import membership_profiles, neighbour_profiles, walk_profiles
from scbig.priors.pathways import Pathways, membership, read_gene2go, read_gene_ids, read_gmt
from scbig.priors.ppi import PPI, Network, adjacency, read_ppi
from scbig.priors.unpickle import read_pickle, read_torch

__all__ = [
    "PPI",
    "AliasTable",
    "Aligned",
    "Coverage",
    "Embedding",
    "Match",
    "Network",
    "Pathways",
    "adjacency",
    "align",
    "coexpression",
    "concatenate",
    "embed_gene_sets",
    "embed_smiles",
    "embed_texts",
    "factorise_network",
    "load_semantic",
    "membership",
    "membership_profiles",
    "neighbour_profiles",
    "read_aliases",
    "read_embedding",
    "read_gene2go",
    "read_gene_ids",
    "read_gmt",
    "read_pickle",
    "read_ppi",
    "read_smiles",
    "read_table_text",
    "read_tissue",
    "read_torch",
    "save_embedding",
    "tissue_profile",
    "walk_profiles",
]
