"""Gene-Relation Clustering: genes to balanced modules, the baselines it is compared with, and an audit."""

from scbig.modules.audit import audit
from scbig.modules.baselines import balanced_kmeans, kmeans, random, soft_top2
from scbig.modules.clustering import cluster
from scbig.modules.module import Modules
from scbig.modules.responses import mean_effects, with_responses

__all__ = [
    "Modules",
    "audit",
    "balanced_kmeans",
    "cluster",
    "kmeans",
    "mean_effects",
    "random",
    "soft_top2",
    "with_responses",
]
