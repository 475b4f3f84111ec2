"""How long a quick look at each ablation takes, from nothing: `scbig ablate FILE --quick` for every file, one at a time.

python -m benchmarks.ablations                     # all of configs/ablations, more than an hour on two cores
python -m benchmarks.ablations --only losses genes
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from benchmarks.common import write

FOLDER = Path("configs/ablations")


def timed(file: Path, workdir: Path) -> tuple[pd.DataFrame, float]:
    """The runs of one table, made in a folder that was not there, and the seconds of the whole command."""
    shutil.rmtree(workdir, ignore_errors=True)
    begun = time.perf_counter()
    command = [sys.executable, "-m", "scbig.cli", "ablate", str(file), "--quick", "--workdir", str(workdir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    if not (workdir / "ablation.md").exists():  # what is written last, also where runs failed
        raise RuntimeError(f"{file} made no table: {done.stderr.strip()}")
    return pd.read_csv(workdir / "ablation.csv"), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="files by name, without .py; all where none is given")
    parser.add_argument("--workdir", default="runs/bench_ablations", help="for the runs")
    parser.add_argument("--out", default="benchmarks/results/ablations_quick")
    given = parser.parse_args()
    known = {each.stem: each for each in sorted(FOLDER.glob("*.py"))}
    if unknown := set(given.only or ()) - set(known):
        parser.error(f"{', '.join(sorted(unknown))} not in {FOLDER}; there are {', '.join(known)}")
    rows, record = [["table", "runs", "failed", "minutes", "seconds a run"]], {}
    for name in given.only or known:
        runs, seconds = timed(known[name], Path(given.workdir) / name)
        failed = int((runs["state"] == "failed").sum())
        record[name] = {"runs": len(runs), "failed": failed, "seconds": seconds}
        rows.append([f"`{name}`", str(len(runs)), str(failed), f"{seconds / 60:.1f}", f"{seconds / len(runs):.0f}"])
        print(" ".join(rows[-1]), flush=True)
    total = sum(each["seconds"] for each in record.values())
    notes = [
        f"The whole command, processes and compilation included; runs that share a stage make it once. "
        f"Together {total / 60:.0f} minutes for {sum(each['runs'] for each in record.values())} runs."
    ]
    command = " ".join(["python -m benchmarks.ablations", *(("--only", *given.only) if given.only else ())])
    write(given.out, "A quick look at each ablation", command, rows, notes, record)


if __name__ == "__main__":
    main()
