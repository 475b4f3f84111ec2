"""Makes a simulated screen of any number of cells in bounded memory, with priors as ``scbig simulate`` writes them.

Command: .venv/bin/python -m benchmarks.scale_data --cells 1000000 --out FOLDER
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.common import peak_gigabytes
from scbig.data.rows import RowWriter
from scbig.data.simulate import SimConfig, in_blocks, save_priors
from scbig.errors import InputError
from scbig.files import atomic

_ROWS = 8192


def settings(cells: int, genes: int, conditions: int, depth: float, seed: int) -> SimConfig:
    """A world with so many perturbed conditions: up to a twentieth of the genes alone, pairs of them beyond."""
    singles = min(conditions, max(2, genes // 20))
    return SimConfig(
        n_cells=cells, n_genes=genes, n_modules=32 if genes >= 1000 else 8, n_singles=singles,
        n_doubles=conditions - singles, depth=depth * genes, seed=seed,
    )  # fmt: skip


def make(config: SimConfig, out: Path) -> None:
    """Writes ``screen.h5ad`` and ``priors/`` into a folder that appears whole."""
    import pandas as pd

    priors, blocks = in_blocks(config, _ROWS)
    with atomic(out) as folder:
        folder.mkdir()
        save_priors(priors, folder / "priors")
        tables, uns = [], {}
        with RowWriter(
            folder / "screen.h5ad", config.n_genes, config.n_cells * config.n_genes, dtype="int32"
        ) as writer:
            for block in blocks:
                writer.append(block.X)
                tables.append(block.obs)
                uns, var = block.uns, block.var
            writer.finish(pd.concat(tables), var, uns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, required=True)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--conditions", type=int, default=200, help="perturbed ones")
    parser.add_argument("--depth", type=float, default=1.0, help="mean counts per gene")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.out.exists():
        raise SystemExit(f"error: {given.out} exists; choose another --out")
    begun = time.perf_counter()
    try:
        make(settings(given.cells, given.genes, given.conditions, given.depth, given.seed), given.out)
    except InputError as mistake:
        raise SystemExit(f"error: {mistake}") from mistake
    size = (given.out / "screen.h5ad").stat().st_size / 1e9
    print(
        f"{given.cells:,} cells × {given.genes:,} genes, {given.conditions} conditions in {given.out}: {size:.2f} GB, "
        f"{time.perf_counter() - begun:.0f} s, peak memory {peak_gigabytes():.2f} GB"
    )


if __name__ == "__main__":
    main()
