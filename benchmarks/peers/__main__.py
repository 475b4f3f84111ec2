"""scBIG beside CellFlow and GEARS in one run: by turns, in separate processes, on the data of one finished run.

python -m benchmarks.peers.setup
python -m benchmarks.peers --run runs/bench_papalexi/0 --shared SHARED            # everything
python -m benchmarks.peers --run runs/bench_papalexi/0 --shared SHARED --speed    # a part
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import write
from benchmarks.peers import measures
from benchmarks.peers.screen import Screen
from benchmarks.peers.setup import interpreter

_PARTS = {
    "speed": "Peers: steps of stage 2",
    "quality": "Peers: time to quality",
    "sampling": "Peers: sampling",
    "gears": "Peers before the judge",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a finished run directory")
    parser.add_argument("--shared", default="../shared")
    parser.add_argument("--out", default="benchmarks/results", help="folder of the tables")
    parser.add_argument("--work", default=".peers/work", help="folder of what the sides hand each other")
    parser.add_argument("--rounds", type=int, default=5, help="turns of speed and sampling")
    parser.add_argument("--steps", type=int, default=20, help="training steps in a turn")
    parser.add_argument("--iterations", type=int, default=2000, help="of CellFlow in time to quality")
    parser.add_argument("--evaluations", type=int, default=20, help="of each side in time to quality")
    parser.add_argument(
        "--rate", type=float, default=measures.RATE, help="learning rate of CellFlow in time to quality"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the networks and draws in time to quality")
    parser.add_argument("--cells", type=int, default=500, help="sampled for a condition")
    parser.add_argument("--few", type=int, default=16, help="the same for CellFlow's own, slow sampling")
    parser.add_argument("--trained", type=int, default=300, help="steps of training before sampling is measured")
    parser.add_argument("--epochs", type=int, default=10, help="of GEARS")
    parser.add_argument("--most", type=int, default=0, help="cells of a condition that GEARS trains on; 0: all")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of our training")
    for part in ("--speed", "--quality", "--sampling", "--gears"):
        parser.add_argument(part, action="store_true", help=_PARTS[part.removeprefix("--")])
    given = parser.parse_args()
    parts = [part for part in _PARTS if getattr(given, part)] or list(_PARTS)
    for peer in {"gears" if part == "gears" else "cellflow" for part in parts}:
        interpreter(peer)  # before an hour is spent on the others
    # One folder for each run: the judge reads all predictions that it finds there.
    work = Path(given.work, *Path(given.run).resolve().parts[-2:])
    work.mkdir(parents=True, exist_ok=True)
    screen = Screen(given.run, given.set)
    options = {
        "speed": (given.rounds, given.steps),
        "quality": (given.iterations, given.evaluations, given.rate, given.seed),
        "sampling": (given.rounds, given.cells, given.few, given.trained),
        "gears": (given.epochs, given.most),
    }
    for part in parts:
        rows, notes, record = getattr(measures, part)(screen, given.shared, work, *options[part])
        record["changed"] = given.set
        data = f"{screen.settings.name}, {screen.prepared.n_obs} cells"
        notes = [f"{record['versions']}. Data: {data}. Settings changed: {', '.join(given.set) or 'none'}.", *notes]
        command = f"python -m benchmarks.peers --run {given.run} --shared SHARED --{part}"
        write(f"{given.out}/peers_{part}", _PARTS[part], command, rows, notes, record)


if __name__ == "__main__":
    main()
