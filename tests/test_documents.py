"""Every shell and Python block of README and docs is run, page by page, in a folder that holds what the pages assume.

Blocks of a page run in order, in one folder and one Python namespace, on simulated cells with few genes and small
networks. Only what is listed in ``NOT_RUN`` and ``PYTHON`` is not run; ``test_readme.py`` still checks its options.
"""

from __future__ import annotations

import gzip
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anndata as ad
import jax
import numpy as np
import pandas as pd
import pytest

from scbig import cli
from scbig.data.simulate import SimConfig, Simulation, save_priors, simulate

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(p for p in sorted((ROOT / "docs").rglob("*.md")) if not {"_build", "generated"} & set(p.parts)),
]

# Commands that are not run here, by their first words, and why. Each must occur.
NOT_RUN = {
    "make": "sets up an environment",
    ".venv/bin/python": "benchmarks take from minutes to hours; each prints what stands below it",
    "scbig ablate": "trains dozens of runs; tests of the command do so with few",
    "scbig bench": "measures for more than a minute; tests of the command measure less",
}
# Python blocks that are not run here, by their page and first call, and why.
PYTHON = {
    ("docs/data.md", 'public.fetch("papalexi2021")'): "a download",
}

# What makes training small: sizes, and no alignment losses, whose programs take long to compile and which other tests
# train with. Added to every command that can train, whatever else it says.
SMALL = {
    "gcae.decoder": "mlp", "flow.lambda_corr": 0.0, "flow.lambda_path": 0.0,
    "modules.n_modules": 8, "gcae.width": 16, "gcae.depth": 1, "gcae.heads": 2, "gcae.latent": 8, "gcae.inducing": 4,
    "pretrain.epochs": 2, "pretrain.batch": 128, "condition.width": 16, "velocity.width": 32, "velocity.depth": 1,
    "anchor.folds": 3, "anchor.pool": 32, "flow.steps": 50, "flow.chunk": 25, "flow.evaluate_every": 25,
    "flow.conditions": 8, "flow.cells": 8, "flow.watch_conditions": 6, "flow.watch_cells": 16,
    "flow.solver_steps": 4, "flow.shift_steps": 20, "sample.n_cells": 30, "priors.min_pathway": 3,
    "evaluation.n_cells": 30, "evaluation.ceiling_draws": 2,
}  # fmt: skip
TRAINS = ("run", "prepare", "cluster", "pretrain", "train", "sweep", "demo")
# Options whose numbers are cut to these, and options that are added.
AT_MOST = {"--n-cells": 300, "--trials": 2, "--cells": 40, "--jobs": 1}
ADDED = {"analyze": ["--quick"]}
# Every baseline, networks among them, takes minutes; where a page does not choose, these are fitted.
BASELINES = ["--only", "mean,shuffled,knn"]

# Perturbed genes of the screens that stand for real ones; the others keep their simulated names.
NAMES = (
    "STAT1", "IFNGR2", "JAK2", "CEBPA", "KLF1", "IFNGR1", "SMAD4", "IRF1", "CUL3", "BRD4", "STAT2", "SPI1",
)  # fmt: skip


def _fewer(seed: int = 0) -> SimConfig:
    """The world of the demo with fewer cells: the same genes, conditions and split."""
    return replace(SimConfig(), n_cells=1100, truth_cells=32, seed=seed)


def _renamed(simulation: Simulation) -> Simulation:
    """The screen with names of real genes, and priors and truth to match."""
    perturbed = simulation.modules.loc[simulation.modules["is_perturbed"], "gene"]
    names = dict(zip(perturbed, NAMES, strict=True))
    cells = simulation.adata.copy()
    cells.var_names = [names.get(gene, gene) for gene in cells.var_names]
    told = {
        label: "+".join(sorted(names.get(g, g) for g in label.split("+")))
        for label in cells.obs["condition"].cat.categories
    }
    cells.obs["condition"] = cells.obs["condition"].map(told).astype("category")
    priors = replace(
        simulation.priors,
        embeddings={
            name: (np.array([names.get(gene, gene) for gene in genes]), vectors)
            for name, (genes, vectors) in simulation.priors.embeddings.items()
        },
        ppi=simulation.priors.ppi.replace(names),
        pathways={
            name: tuple(names.get(gene, gene) for gene in genes) for name, genes in simulation.priors.pathways.items()
        },
    )
    truth = simulation.truth.copy()
    truth.var_names = cells.var_names
    truth.obs["condition"] = [told[label] for label in truth.obs["condition"]]
    truth.obs_names = truth.obs["condition"]
    truth.obs_names.name = None
    return replace(simulation, adata=cells, priors=priors, truth=truth)


def _write_resources(folder: Path, simulation: Simulation) -> None:
    """Priors under the names that the pages use, and raw resources to make some from."""
    save_priors(simulation.priors, folder / "priors")
    priors = folder / "priors"
    for name in ("emb_string_netmf128", "emb_refseq_lsa256", "text", "go", "network"):
        shutil.copy(priors / "semantic.npz", priors / f"{name}.npz")
    shutil.copy(priors / "noisy.npz", priors / "emb_go_svd128.npz")
    (folder / "embeddings").mkdir()
    shutil.copy(priors / "semantic.npz", folder / "embeddings" / "string_netmf128.npz")
    for name in ("ReactomePathways_2024-09-18.gmt", "ReactomePathways.gmt", "hallmark_v7.0.gmt"):
        shutil.copy(priors / "pathways.gmt", priors / name)
    shutil.copy(priors / "ppi.tsv.gz", priors / "string_v11.5_min700.tsv.gz")
    genes = simulation.adata.var_names
    aliases = pd.DataFrame({"alias": [f"{gene}-old" for gene in genes], "symbol": genes})
    ids = pd.DataFrame(
        {"symbol": genes, "ensgene": [f"ENSG{i:011d}" for i in range(len(genes))], "entrez": range(1, len(genes) + 1)}
    )
    for place in (folder, priors):
        aliases.to_csv(place / "aliases.tsv.gz", sep="\t", index=False)
        aliases.to_csv(place / "aliases.tsv", sep="\t", index=False)
        ids.to_csv(place / "gene_ids.tsv.gz", sep="\t", index=False)
    edges = simulation.priors.ppi
    number = {gene: f"9606.ENSP{i:011d}" for i, gene in enumerate(genes)}
    links = pd.DataFrame(
        {
            "protein1": edges.iloc[:, 0].map(number),
            "protein2": edges.iloc[:, 1].map(number),
            "combined_score": edges.iloc[:, 2],
        }
    )
    info = pd.DataFrame(
        {"#string_protein_id": number.values(), "preferred_name": number.keys(), "protein_size": 1, "annotation": ""}
    )
    for place in (folder, priors):
        links.to_csv(place / "9606.protein.links.v12.0.txt.gz", sep=" ", index=False)
        info.to_csv(place / "9606.protein.info.v12.0.txt.gz", sep="\t", index=False)
    rng = np.random.default_rng(0)
    with gzip.open(folder / "gene2go.gz", "wt") as handle:
        handle.write("#tax_id\tGeneID\tGO_ID\tEvidence\tQualifier\tGO_term\tPubMed\tCategory\n")
        for gene in range(1, len(genes) + 1):
            for term in rng.choice(200, 8, replace=False):
                handle.write(f"9606\t{gene}\tGO:{term:07d}\tIEA\tinvolved_in\tsimulated\t-\tProcess\n")
    words = np.array([f"word{i}" for i in range(600)])
    texts = [" ".join(rng.choice(words, 30)) for _ in genes]
    pd.DataFrame({"symbol": genes, "text": texts}).to_csv(folder / "gene_summaries.tsv.gz", sep="\t", index=False)


def _write_screens(folder: Path, simulation: Simulation) -> None:
    """Screens under the names that the pages use."""
    simulation.adata.write_h5ad(folder / "screen.h5ad")
    knockouts = simulation.adata[~simulation.adata.obs["condition"].str.contains("+", regex=False)].copy()
    knockouts.obs = knockouts.obs.rename(columns={"condition": "perturbation", "batch": "bio_rep"}).drop(
        columns="context"
    )
    knockouts.write_h5ad(folder / "papalexi2021_thp1.h5ad")
    effects = simulation.truth.copy()
    effects.uns["scbig"] = {"kind": "effects"}
    effects.write_h5ad(folder / "norman2019_effects.h5ad")


def _run_line(words: list[str]) -> None:
    """One call of scbig as the page has it, made small."""
    name, words = words[1], words[1:]
    for option, most in AT_MOST.items():
        if option in words:
            place = words.index(option) + 1
            words[place] = str(min(int(words[place]), most))
    varied = [place + 1 for place, word in enumerate(words) if word == "--vary"]
    for left, place in enumerate(varied):
        words[place] = ",".join(words[place].split(",")[: 1 if left else 2])
    if name in TRAINS:
        words += [f"--config.{field}={value}" for field, value in SMALL.items()]
    words += [option for option in ADDED.get(name, ()) if option not in words]
    if name == "baselines" and "--only" not in words:
        words += BASELINES
    assert cli.main(words) == 0, shlex.join(words)


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled() -> Iterator[None]:
    """Programs that run for a second are not worth a minute of optimisation; processes that are started do the same."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        if compiled := jax.config.jax_compilation_cache_dir:
            patch.setenv("JAX_COMPILATION_CACHE_DIR", compiled)
        yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """What the pages assume: screens, priors, configurations, and runs that are trained."""
    folder = tmp_path_factory.mktemp("documents") / "workspace"
    with pytest.MonkeyPatch.context() as patch:
        _furnish(folder, patch)
    return folder


def _furnish(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Fills a new folder, with the commands of the README where there are some."""
    folder.mkdir()
    real = _renamed(simulate(SimConfig(n_cells=1500, n_singles=len(NAMES), n_doubles=14, truth_cells=32)))
    _write_resources(folder, real)
    _write_screens(folder, real)
    shutil.copytree(ROOT / "configs", folder / "configs")
    _enter(folder, patch)
    _run_line(["scbig", "demo"])
    training = next(words for words in _lines(ROOT / "README.md") if words[:2] == ["scbig", "run"])
    _run_line(training)
    _write_results(folder, real)


def _write_results(folder: Path, simulation: Simulation) -> None:
    """Predictions, a split and further runs, under the names that the pages use."""
    cells = folder / "runs" / "papalexi" / "predictions" / "test.h5ad"
    for name in ("theirs", "ours", "a", "b"):
        shutil.copy(cells, folder / f"{name}.h5ad")
    for name in ("a", "b"):
        shutil.copytree(folder / "runs" / "papalexi", folder / "runs" / name)
    conditions = [name for name in simulation.adata.obs["condition"].cat.categories if name != "control"]
    parts = ["test" if "+" in name and i % 3 == 0 else "train" for i, name in enumerate(conditions)]
    pd.DataFrame({"condition": conditions, "part": parts}).to_csv(folder / "my_split.csv", index=False)
    # The run of the demo under another name, and cells on its scale, of one condition.
    shutil.copytree(folder / "runs" / "demo", folder / "RUN")
    prepared = ad.read_h5ad(folder / "runs" / "demo" / "prepared.h5ad")
    state = prepared[prepared.obs["condition"] == "G0057+G0282"].copy()
    for name in ("target", "wanted"):
        state.write_h5ad(folder / f"{name}.h5ad")
    prepared = ad.read_h5ad(folder / "runs" / "papalexi" / "prepared.h5ad")
    prepared[prepared.obs["condition"].isin(["control", "STAT1"])].copy().write_h5ad(folder / "sorted.h5ad")
    controls = simulation.adata[simulation.adata.obs["condition"] == "control"].copy()
    controls.obs = controls.obs[["condition"]]
    controls.write_h5ad(folder / "my_controls.h5ad")


def _enter(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Works in the folder, where the demo is a small one."""
    patch.chdir(folder)
    patch.setattr(SimConfig, "demo", staticmethod(_fewer))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The command lines of shell text, continued lines joined, comments off, as lists of words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def _lines(page: Path) -> list[list[str]]:
    return [words for block in blocks(page.read_text(encoding="utf-8"), "bash") for words in commands(block)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
@pytest.mark.filterwarnings("ignore::FutureWarning:(?!scbig)")
def test_the_page_runs(page, workspace, tmp_path, monkeypatch):
    wanted = _wanted(page)
    if wanted:
        _enter(shutil.copytree(workspace, tmp_path / "workspace"), monkeypatch)
        _run_blocks(page, wanted)


def _wanted(page: Path) -> list[tuple[str, str]]:
    """The blocks of a page of which anything is to be run."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^```(bash|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(kind, code) for kind, code in found if _runs(page, kind, code)]


def _run_blocks(page: Path, wanted: list[tuple[str, str]]) -> None:
    space: dict = {"__name__": "page"}
    for kind, code in wanted:
        if kind == "python":
            exec(compile(code, str(page), "exec"), space)
            continue
        for words in commands(code):
            if words[0] == "scbig" and not _left_out(words):
                _run_line(words)
            elif not _left_out(words):
                subprocess.run(words, check=True, timeout=60)


def _left_out(words: list[str]) -> bool:
    return any(words[: len(first.split())] == first.split() for first in NOT_RUN)


def _runs(page: Path, kind: str, code: str) -> bool:
    """Whether anything of the block is to be run."""
    if kind == "bash":
        return not all(_left_out(words) for words in commands(code))
    name = page.relative_to(ROOT).as_posix()
    return not any(name == there and call in code for there, call in PYTHON)


def test_nothing_is_left_out_that_is_no_longer_there():
    lines = [words for page in PAGES for words in _lines(page)]
    for first in NOT_RUN:
        assert any(words[: len(first.split())] == first.split() for words in lines), first
    for name, call in PYTHON:
        assert any(call in block for block in blocks((ROOT / name).read_text(), "python")), (name, call)


def test_a_block_that_fails_is_noticed():
    with pytest.raises(AssertionError):
        _run_line(["scbig", "sample", "--workdir", "absent", "--conditions", "A", "--out", "x.h5ad"])
