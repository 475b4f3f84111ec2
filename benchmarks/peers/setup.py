"""Makes the peers' own environments, ``.peers/cellflow`` and ``.peers/gears``.

python -m benchmarks.peers.setup            # both
python -m benchmarks.peers.setup cellflow   # one
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from importlib.metadata import Distribution, distributions
from pathlib import Path

__all__ = ["PEERS", "interpreter", "version"]

PEERS = {
    # cellflow imports requests without naming it among what it needs.
    "cellflow": [["cellflow-tools", "requests"]],
    # Torch comes first and alone, so that what follows finds it and does not choose another build. GEARS indexes sparse
    # matrices with pandas series, which later versions of scipy refuse.
    "gears": [["torch"], ["torch_geometric", "cell-gears", "scipy<1.15"]],
}
_PACKAGE = {"cellflow": "cellflow-tools", "gears": "cell-gears"}
_HOME = Path(__file__).resolve().parents[2] / ".peers"


def interpreter(peer: str) -> Path:
    """The Python of a peer's environment.

    Raises:
        SystemExit: where it has not been made.
    """
    python = _HOME / peer / "bin" / "python"
    if not (_HOME / peer / "ready").exists():
        raise SystemExit(f"{peer} is not installed: python -m benchmarks.peers.setup {peer}")
    return python


def version(peer: str) -> str:
    """Name and version of the peer's package."""
    found: list[Distribution] = list(
        distributions(name=_PACKAGE[peer], path=[str(p) for p in (_HOME / peer).glob("lib/python*/site-packages")])
    )
    return f"{_PACKAGE[peer]} {found[0].version}"


def install(peer: str, torch: str) -> None:
    """Makes the environment and installs the peer in it."""
    folder = _HOME / peer
    venv.create(folder, with_pip=True, clear=True)
    for packages in PEERS[peer]:
        wanted = [torch if package == "torch" else package for package in packages]
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *wanted], check=True)
    (folder / "ready").touch()
    print(f"{version(peer)} in {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help="cellflow, gears; both by default")
    parser.add_argument("--torch", default="torch", help="what pip is asked for, such as a version or the wheel's file")
    given = parser.parse_args()
    if unknown := set(given.peers) - set(PEERS):
        sys.exit(f"no peer called {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    for peer in given.peers or PEERS:
        install(peer, given.torch)


if __name__ == "__main__":
    main()
