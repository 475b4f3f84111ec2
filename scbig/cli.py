"""The command ``scbig``."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from scbig import __version__
from scbig.errors import InputError

__all__ = ["main"]

_STAGES = {
    "prepare": "read, check, split and normalise the screen",
    "cluster": "group genes into balanced modules",
    "pretrain": "train the autoencoder",
    "train": "train the flow",
    "report": "write report.html and model_card.md",
}
_SCHEDULER = "a running Dask scheduler; its workers must see the same paths"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scbig", description="Predict the cells that a perturbation would give, and judge predictions."
    )
    parser.add_argument("-V", "--version", action="version", version=f"scbig {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str, run: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if run:
            command.add_argument("--config", metavar="FILE", help="a file of configs/; kept with the run afterwards")
            command.add_argument("--workdir", metavar="DIR", required=True, help="the run directory")
            command.add_argument("--force", action="store_true", help="run again, and forget what depended on it")
            command.epilog = "--config.GROUP.FIELD=VALUE changes any setting."
        return command

    trains = [add("run", "all stages, skipping what is done")]
    for name, text in _STAGES.items():
        command = add(name, text)
        trains += [command] if name in ("pretrain", "train") else []
    for command in trains:
        command.add_argument("--distributed", action="store_true", help="one of several processes, as srun starts them")

    for name in ("run", "prepare"):
        commands.choices[name].add_argument("--scheduler", metavar="ADDRESS", help=_SCHEDULER)

    sweep = add("sweep", "a run for every combination of settings", run=False)
    sweep.add_argument("--config", metavar="FILE", help="a file of configs/, shared by all runs")
    sweep.add_argument("--workdir", metavar="DIR", required=True, help="the folder of the run directories")
    sweep.add_argument(
        "--vary", metavar="SETTING=A,B", required=True, action="append", help="such as seed=0,1,2; repeats; A;B too"
    )
    sweep.add_argument("--jobs", type=int, default=0, metavar="N", help="runs at once (1; with Dask one per worker)")
    sweep.add_argument("--scheduler", metavar="ADDRESS", help=_SCHEDULER)
    sweep.epilog = "--config.GROUP.FIELD=VALUE changes any setting. Runs that are done are skipped."

    sample = add("sample", "sample cells of the test conditions, or of --conditions", run=False)
    sample.add_argument("--config", metavar="FILE", help=argparse.SUPPRESS)
    sample.add_argument(
        "--workdir", metavar="DIR", required=True, action="append", help="repeat for runs of other seeds"
    )
    sample.add_argument("--conditions", metavar="A,B+C", help="any perturbations that an embedding knows")
    sample.add_argument("--n-cells", type=int, default=500, metavar="N", help="per condition (500)")
    sample.add_argument("--context", metavar="NAME", help="cell line or cell type, where there are several")
    sample.add_argument("--dose", type=float, default=0.0, help="of drugs")
    sample.add_argument("--guidance", type=float, metavar="X", help="above 1 overstates the condition")
    sample.add_argument("--seed", type=int, metavar="N", help="of the control cells drawn")
    sample.add_argument("--out", metavar="FILE", help="the .h5ad or .zarr to write, with --conditions")
    sample.add_argument("--force", action="store_true", help="replace what is there")

    evaluate = add("evaluate", "score a run, or any --predictions, against baselines", run=False)
    evaluate.add_argument("--config", metavar="FILE", help=argparse.SUPPRESS)
    evaluate.add_argument("--workdir", metavar="DIR", help="the run directory")
    evaluate.add_argument(
        "--predictions",
        metavar="FILE",
        action="append",
        help="[NAME=]FILE.h5ad of any tool; repeats; one NAME for seeds",
    )
    evaluate.add_argument(
        "--kind", choices=("cells", "effects"), default="", help="of --predictions that do not say which they are"
    )
    evaluate.add_argument("--data", metavar="FILE", help="the screen or a table of effects, with --predictions")
    evaluate.add_argument("--effects", action="store_true", help="--data is a table of effects and does not say so")
    evaluate.add_argument("--split", metavar="FILE", help="the split file, with --predictions")
    evaluate.add_argument("--out", metavar="DIR", help="where scores and report go, with --predictions")
    evaluate.add_argument("--force", action="store_true", help="score again")

    baselines = add("baselines", "fit every baseline on one split and write its predictions", run=False)
    baselines.add_argument("--config", metavar="FILE", help=argparse.SUPPRESS)
    baselines.add_argument("--data", metavar="FILE", required=True, help="a screen, or a table of effects")
    baselines.add_argument("--effects", action="store_true", help="--data is a table of effects and does not say so")
    baselines.add_argument("--split", metavar="SPLIT", required=True, help="a split file, or a rule such as additive")
    baselines.add_argument("--out", metavar="DIR", required=True, help="where predictions, split and record go")
    baselines.add_argument("--only", metavar="A,B", default="", help="these only, such as additive,knn or knn-all")
    baselines.add_argument("--priors", metavar="DIR", default="", help="every embedding in this folder is used")
    baselines.add_argument("--run", metavar="DIR", default="", help="use this run's autoencoder for scgen and knockout")
    baselines.add_argument("--trials", type=int, default=0, metavar="N", help="settings that Optuna tries (0: a grid)")
    baselines.add_argument("--cells", type=int, default=0, metavar="N", help="write N cells per condition, not effects")
    baselines.add_argument("--force", action="store_true", help="replace what an earlier call wrote")
    baselines.epilog = "--config.split.FIELD=VALUE and --config.data.FIELD=VALUE change split and reading."

    analyze = add("analyze", "one page on what moved: modules, mechanisms, pairs", run=False)
    analyze.add_argument("--workdir", metavar="DIR", required=True, help="a trained run")
    analyze.add_argument("--out", metavar="DIR", help="where page, tables and figures go (WORKDIR/analysis)")
    analyze.add_argument("--only", metavar="A,B", default="", help="these parts only, such as modules,interactions")
    analyze.add_argument(
        "--conditions", metavar="A,B+C", default="", help="look at these; without it the run's test part"
    )
    analyze.add_argument("--quick", action="store_true", help="fewer draws and permutations")
    analyze.add_argument("--seed", type=int, default=0, metavar="N", help="of draws and permutations")
    analyze.add_argument("--force", action="store_true", help="replace an earlier analysis")

    design = add("design", "choose perturbations for the next screen", run=False)
    design.add_argument("--workdir", metavar="DIR", required=True, help="a trained run")
    design.add_argument("--by", choices=("interaction", "target", "uncertainty"), required=True, help="what to rank by")
    design.add_argument("--out", metavar="FILE", required=True, help="the .csv to write")
    design.add_argument("--candidates", metavar="WHAT", default="pairs", help="pairs, singles or a file (pairs)")
    design.add_argument("--genes", metavar="A,B", default="", help="candidates of these genes only")
    design.add_argument("--target", metavar="FILE", default="", help="cells of the wanted state, with --by target")
    design.add_argument("--n", type=int, default=24, metavar="N", help="conditions to choose (24)")
    design.add_argument("--context", metavar="NAME", default="", help="cell line or cell type, where there are several")
    design.add_argument("--force", action="store_true", help="replace the file")

    ablate = add("ablate", "a table of variants, such as those of the paper", run=False)
    ablate.add_argument("table", metavar="FILE", help="a file of configs/ablations/")
    ablate.add_argument("--workdir", metavar="DIR", help="the folder of the runs (runs/ablations/NAME)")
    ablate.add_argument("--seeds", type=int, default=0, metavar="N", help="of each variant (what the file says)")
    ablate.add_argument("--quick", action="store_true", help="small networks on the simulated screen, in minutes")
    ablate.add_argument("--jobs", type=int, default=0, metavar="N", help="runs at once (1; with Dask one per worker)")
    ablate.add_argument("--scheduler", metavar="ADDRESS", help=_SCHEDULER)
    ablate.epilog = "--config.GROUP.FIELD=VALUE changes any setting of all variants. Runs that are done are skipped."

    export = add("export", "one file to sample from on another machine", run=False)
    export.add_argument("--workdir", metavar="DIR", required=True, help="a trained run")
    export.add_argument("--out", metavar="FILE", required=True, help="the .scbig to write")
    export.add_argument("--controls", type=int, default=2000, metavar="N", help="control cells that go along (2000)")
    export.add_argument("--force", action="store_true", help="replace the file")

    bench = add("bench", "what training and sampling cost on this machine", run=False)
    bench.add_argument("--config", metavar="FILE", help="networks, batches and steps of this file of configs/")
    bench.add_argument("--workdir", metavar="DIR", help="a prepared run: its settings and its cells")
    bench.add_argument("--cells", type=int, metavar="N", help="of a screen, without --workdir (10000)")
    bench.add_argument("--genes", type=int, metavar="N", help="(2000)")
    bench.add_argument("--conditions", type=int, metavar="N", help="(100)")
    bench.add_argument("--quick", action="store_true", help="fewer repetitions, and without the alignment losses")
    bench.add_argument("--json", action="store_true", help="for machines: nothing else on standard output")
    bench.epilog = "--config.GROUP.FIELD=VALUE changes any setting."

    demo = add("demo", "the whole path on a simulated screen", run=False)
    demo.add_argument("--workdir", metavar="DIR", default="runs/demo", help="the run directory (runs/demo)")
    demo.add_argument("--force", action="store_true", help="start over")

    simulate = add("simulate", "make a screen with known truth, with priors to match", run=False)
    simulate.add_argument("--out", metavar="DIR", required=True)
    simulate.add_argument("--preset", choices=("demo", "benchmark"), default="demo", help="size (demo)")
    simulate.add_argument("--effects", metavar="FILE", help="draw cells around this table of effects instead")
    simulate.add_argument("--n-cells", type=int, metavar="N", help="cells in all")
    simulate.add_argument("--seed", type=int, default=0)

    fetch = add("fetch", "download a public screen by name", run=False)
    fetch.add_argument("name", nargs="?", help="without it, the names are listed")
    fetch.add_argument("--cache", metavar="DIR", help="where to keep it")
    return parser


def _settings_from(rest: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """The ``--config.group.field=value`` arguments; anything else that is left over is refused."""
    for argument in rest:
        if not argument.startswith("--config."):
            parser.error(f"unrecognized argument {argument}")
    return [argument.removeprefix("--config.") for argument in rest]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0; or 2 for a mistake in the input or the settings, which is told in one line.
    """
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    changes = _settings_from(rest, parser)
    try:
        # Here, because JAX and AnnData take a second to import and --help should not wait for them.
        from scbig import commands

        commands.dispatch(known, changes)
    except InputError as mistake:
        return _end(f"error: {mistake}", 2, mistake)
    except KeyboardInterrupt:
        return _end("\ninterrupted; run the same command again to continue", 130)
    except BrokenPipeError:
        return 0
    except Exception as problem:
        from scbig.files import full

        if reason := full(problem):
            told = " ".join(str(problem).split())
            return _end(f"error: {reason} ({told}); free some and run the same command again", 2, problem)
        if known.__dict__.get("distributed"):
            return _end("".join(traceback.format_exception(problem)), 1)
        raise
    return 0


def _end(said: str, code: int, problem: BaseException | None = None) -> int:
    """Says why the command ends; returns the exit code."""
    print(said, file=sys.stderr, flush=True)
    devices, files = sys.modules.get("scbig.devices"), sys.modules.get("scbig.files")
    # At an ordinary exit JAX would wait for the other processes, which wait for this one; and HDF5 would try once
    # more to write what the disk has no room for, and crash.
    if (devices and devices.n_processes() > 1) or (files and files.full(problem)):
        sys.stdout.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
