"""Speed and quality of Gene-Relation Clustering on the real priors.

python benchmarks/modules.py --shared DIR [--out benchmarks/results/modules.json] [--commit ID]

DIR holds data/ and priors/. Two sizes: the Norman panel (2,000 genes, 32 modules; must stay under 15 s) and
10,000 genes with the most interactions among those with a text embedding (128 modules; under 120 s).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import time
from pathlib import Path

import anndata
import jax
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbig.modules import audit, balanced_kmeans, cluster, kmeans, random

SOURCES = ("emb_refseq_lsa256.npz", "emb_go_svd128.npz")


def semantic(priors: Path, genes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Text and annotation vectors side by side, each of unit length, zero where a source lacks the gene."""
    blocks = []
    for name in SOURCES:
        with np.load(priors / name) as file:
            table = pd.DataFrame(file["vectors"].astype(np.float32), index=file["genes"])
        block = table.reindex(genes).fillna(0).to_numpy(np.float32)
        length = np.linalg.norm(block, axis=1, keepdims=True)
        blocks.append(block / np.where(length > 0, length, 1))
    vectors = np.concatenate(blocks, axis=1)
    return vectors, vectors.any(axis=1)


def interactions(priors: Path, genes: list[str]) -> sp.csr_matrix:
    edges = pd.read_csv(priors / "string_v11.5_min700.tsv.gz", sep="\t")
    place = pd.Series(np.arange(len(genes)), index=genes)
    ends = edges.iloc[:, :2].apply(lambda column: column.map(place)).dropna().to_numpy(int)
    ends = ends[ends[:, 0] != ends[:, 1]]
    both = np.concatenate([ends, ends[:, ::-1]])
    graph = sp.coo_matrix((np.ones(len(both), np.float32), both.T), shape=(len(genes),) * 2).tocsr()
    graph.data[:] = 1
    return graph


def large_panel(priors: Path, n_genes: int) -> list[str]:
    edges = pd.read_csv(priors / "string_v11.5_min700.tsv.gz", sep="\t")
    with np.load(priors / SOURCES[0]) as file:
        known = set(file["genes"].tolist())
    degree = pd.concat([edges.iloc[:, 0], edges.iloc[:, 1]]).value_counts()
    return sorted([gene for gene in degree.index if gene in known][:n_genes])


def hallmark(priors: Path) -> dict[str, list[str]]:
    lines = (priors / "hallmark_v7.0.gmt").read_text().splitlines()
    return {fields[0]: fields[2:] for fields in (line.split("\t") for line in lines)}


def measure(name: str, genes: list[str], n_modules: int, priors: Path, methods: dict) -> list[dict]:
    vectors, mask = semantic(priors, genes)
    graph = interactions(priors, genes)
    rows = []
    for method, make in methods.items():
        start = time.perf_counter()
        modules = make(vectors, mask, graph, genes, n_modules)
        seconds = time.perf_counter() - start
        report = audit(modules, graph, {"hallmark": hallmark(priors)}, vectors=vectors, mask=mask)
        rows.append(
            {
                "panel": name,
                "genes": len(genes),
                "embedded": int(mask.sum()),
                "edges": int(graph.nnz // 2),
                "modules": n_modules,
                "method": method,
                "seconds": round(seconds, 2),
                "rounds": len(modules.history),
                "ppi_density": report["ppi"]["density"],
                "ppi_fold": report["ppi"]["fold"],
                "ppi_z": report["ppi"]["z"],
                "ppi_z_connected": report["ppi"]["connected"]["z"],
                "hallmark_significant": report["enrichment"]["hallmark"]["n_significant"],
                "silhouette": report["silhouette"],
            }
        )
    return rows


def head() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def machine(commit: str) -> dict:
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit or head(),
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "device": str(jax.devices()[0].device_kind),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True, help="folder that holds data/ and priors/")
    parser.add_argument("--out", type=Path, help="where the JSON goes; printed only if not given")
    parser.add_argument("--commit", default="", help="recorded as the commit; asks git if not given")
    arguments = parser.parse_args()
    priors = arguments.shared / "priors"
    methods = {
        "grc": lambda v, m, a, g, k: cluster(v, m, a, g, n_modules=k),
        "grc, greedy": lambda v, m, a, g, k: cluster(v, m, a, g, n_modules=k, rounding="greedy"),
        "grc, not standardised": lambda v, m, a, g, k: cluster(v, m, a, g, n_modules=k, standardize=False),
        "balanced k-means": lambda v, m, a, g, k: balanced_kmeans(v, m, g, n_modules=k),
        "k-means": lambda v, m, a, g, k: kmeans(v, m, g, n_modules=k),
        "random": lambda v, m, a, g, k: random(v, m, g, n_modules=k),
    }
    norman = list(anndata.read_h5ad(arguments.shared / "data" / "norman2019_effects.h5ad").var_names)
    rows = measure("norman", norman, 32, priors, methods)
    few = {name: methods[name] for name in ("grc", "grc, greedy", "balanced k-means")}
    rows += measure("large", large_panel(priors, 10_000), 128, priors, few)
    result = {"provenance": machine(arguments.commit), "rows": rows}
    text = json.dumps(result, indent=1)
    print(text)
    print("| panel | genes × modules | method | s | rounds | PPI z | fold | hallmark | silhouette |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['panel']} | {row['genes']} × {row['modules']} | {row['method']} | {row['seconds']} "
            f"| {row['rounds']} | {row['ppi_z']:.1f} | {row['ppi_fold']:.2f} | {row['hallmark_significant']} "
            f"| {row['silhouette']:.3f} |"
        )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
