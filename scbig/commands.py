"""What each command of the shell does: it finds the settings, calls the library and says where things are."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ml_collections import ConfigDict

from scbig import config as configuration
from scbig import devices, predict, stages, workers
from scbig.console import say
from scbig.errors import InputError, some
from scbig.run import Run

__all__ = ["dispatch"]


def dispatch(given: Namespace, changes: list[str]) -> None:
    """Runs the command that was parsed, with ``changes`` to the settings such as ``["flow.steps=100"]``."""
    if getattr(given, "distributed", False):
        devices.connect()
    with workers.scheduler(getattr(given, "scheduler", None)):
        if given.command in _OTHERS:
            _OTHERS[given.command](given, changes)
        elif given.command == "run":
            _finish(stages.execute(given.workdir, _settings(given, changes), force=given.force))
        else:
            stages.execute(given.workdir, _settings(given, changes), (given.command,), given.force)


def _settings(given: Namespace, changes: list[str]) -> ConfigDict:
    """The file given, else the settings kept with the run, else the defaults; changed as asked."""
    kept = Path(given.workdir or "", "config.json")
    if given.config:
        settings = configuration.load(given.config)
    elif kept.exists():
        settings = configuration.read_json(kept)
    else:
        settings = configuration.default()
    return configuration.override(settings, changes)


def _finish(run: Run) -> None:
    """Where everything is, and the table."""
    if not devices.is_first():
        return
    from scbig import evaluation
    from scbig.console import table

    say("")
    table(evaluation.console_table(evaluation.load(run.path("evaluation"))))
    say("")
    say(f"report   {run.path('report.html')}")
    say(f"cells    {run.path('predictions/test.h5ad')}")
    say(f"scores   {run.path('evaluation/per_condition.csv')}")


_FOR_CONDITIONS = {"n_cells": 500, "context": None, "dose": 0.0, "guidance": None, "seed": None, "out": None}


def _sample(given: Namespace, changes: list[str]) -> None:
    if given.conditions is None:
        if len(given.workdir) > 1:
            raise InputError("the stage sample works in one --workdir; several are for --conditions")
        ignored = [name for name, usual in _FOR_CONDITIONS.items() if getattr(given, name) != usual]
        if ignored:
            raise InputError(
                f"--{ignored[0].replace('_', '-')} goes with --conditions; the stage reads --config.sample"
            )
        given.workdir = given.workdir[0]
        stages.execute(given.workdir, _settings(given, changes), ("sample",), given.force)
        return
    _refuse_settings(changes, "a trained run is sampled as it is")
    if not given.out:
        raise InputError("where should the cells go? give --out FILE.h5ad")
    if Path(given.out).suffix not in (".h5ad", ".zarr"):
        raise InputError(f"--out {given.out} must end in .h5ad or .zarr")
    if Path(given.out).exists() and not given.force:
        raise InputError(f"{given.out} exists; choose another --out or replace it with --force")
    stages.announce_device("")
    names = _names(given.conditions)
    predictor = predict.load(given.workdir)
    n_cells = predictor.write(
        given.out, names, given.n_cells,
        context=given.context, dose=given.dose, seed=given.seed, guidance=given.guidance,
    )  # fmt: skip
    say(f"{n_cells:,} cells of {len(names)} conditions × {len(predictor.var):,} genes in {given.out}")


def _evaluate(given: Namespace, changes: list[str]) -> None:
    from scbig.console import table

    if not given.predictions:
        if not given.workdir:
            raise InputError("evaluate what? give --workdir of a run, or --predictions with --data, --split and --out")
        if given.data or given.split or given.out:
            raise InputError("--data, --split and --out go with --predictions; a run has its own")
        _finish(stages.execute(given.workdir, _settings(given, changes), ("evaluate", "report"), given.force))
        return
    missing = [name for name in ("data", "split", "out") if not getattr(given, name)]
    if missing:
        raise InputError(f"--predictions needs --{missing[0]} as well")
    if Path(given.out, "summary.json").exists() and not given.force:
        raise InputError(f"{given.out} holds an evaluation; choose another --out or replace it with --force")
    settings = configuration.load(given.config) if given.config else configuration.default()
    rows = stages.judge(
        given.predictions,
        given.data,
        given.split,
        given.out,
        configuration.override(settings, changes),
        given.effects,
        given.kind,
    )
    table(rows)
    say(f"report   {Path(given.out, 'report.html')}")


def _baselines(given: Namespace, changes: list[str]) -> None:
    settings = configuration.load(given.config) if given.config else configuration.default()
    settings = configuration.override(settings, changes)
    task = stages.Task(
        data=given.data, split=given.split, out=given.out, priors=given.priors, run=given.run,
        effects=given.effects,
        only=_names(given.only),
        trials=given.trials, cells=given.cells, force=given.force,
    )  # fmt: skip
    stages.announce_device(settings.device)
    record = stages.fit_baselines(task, settings)
    say(f"{len(record['baselines'])} baselines in {given.out}; to judge them:")
    say(stages.next_command(task, list(record["baselines"]), changes))


def _sweep(given: Namespace, changes: list[str]) -> None:
    from scbig.stages import sweep

    settings = configuration.load(given.config) if given.config else configuration.default()
    settings = configuration.override(settings, changes)
    outcomes = sweep.sweep(settings, sweep.parse(given.vary), given.workdir, given.jobs)
    say("")
    sweep.print_table(outcomes)
    say("")
    say(f"table    {Path(given.workdir, 'sweep.csv')}")
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if failed:
        raise InputError(
            f"{len(failed)} of {len(outcomes)} runs failed: {some((each.name for each in failed), 4)}; the reasons are "
            f"in {Path(given.workdir, 'sweep.csv')}, and the same command again runs these only"
        )


def _analyze(given: Namespace, changes: list[str]) -> None:
    from scbig.stages import analyze

    _refuse_settings(changes, "a trained run is analysed as it is")
    task = analyze.Task(
        workdir=given.workdir, out=given.out or "", only=_names(given.only), conditions=_names(given.conditions),
        quick=given.quick, seed=given.seed, force=given.force,
    )  # fmt: skip
    stages.announce_device("")
    say(f"page     {analyze.analyze(task)}")


def _design(given: Namespace, changes: list[str]) -> None:
    from scbig.stages import design

    _refuse_settings(changes, "a trained run is asked as it is")
    task = design.Task(
        workdir=given.workdir, by=given.by, out=given.out, candidates=given.candidates, genes=_names(given.genes),
        target=given.target, n=given.n, context=given.context, force=given.force,
    )  # fmt: skip
    stages.announce_device("")
    design.design(task)


def _ablate(given: Namespace, changes: list[str]) -> None:
    from scbig.stages import ablate

    task = ablate.Task(
        table=given.table, workdir=given.workdir or "", seeds=given.seeds, quick=given.quick, jobs=given.jobs,
        changes=tuple(changes),
    )  # fmt: skip
    ablate.ablate(task)


def _export(given: Namespace, changes: list[str]) -> None:
    from scbig.stages import export

    _refuse_settings(changes, "a trained run is exported as it is")
    export.export(export.Task(workdir=given.workdir, out=given.out, controls=given.controls, force=given.force))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _refuse_settings(changes: list[str], why: str) -> None:
    if changes:
        raise InputError(f"--config.{changes[0]} does not apply: {why}")


def _bench(given: Namespace, changes: list[str]) -> None:
    import contextlib
    import json
    import sys

    from scbig.stages import bench

    run = Run(given.workdir) if given.workdir else None
    if run and not run.path("config.json").exists():
        raise InputError(f"{given.workdir} is not a run directory (no config.json); prepare one with `scbig prepare`")
    settings = _settings(given, changes)
    wanted = {name: getattr(given, name) for name in ("cells", "genes", "conditions") if getattr(given, name)}
    if run and wanted:
        raise InputError(f"--{next(iter(wanted))} does not go with --workdir, whose screen has a size of its own")
    sizes = bench.Sizes(**wanted)
    # With --json nothing else is printed: a machine reads it.
    with contextlib.redirect_stdout(sys.stderr) if given.json else contextlib.nullcontext():
        stages.announce_device(settings.device, settings.n_devices, settings.compiled)
        report = bench.bench(settings, sizes, run, given.quick)
    if given.json:
        say(json.dumps(report, indent=1))
    else:
        bench.show(report)


def _demo(given: Namespace, changes: list[str]) -> None:
    from scbig.data.simulate import SimConfig, save, simulate

    settings = configuration.override(configuration.demo(given.workdir), changes)
    screen = Path(given.workdir, "simulated")
    if given.force:
        Run(given.workdir).forget("prepare")
    if given.force or not screen.exists():
        say("simulate: a screen with known truth")
        save(simulate(SimConfig.demo(settings.seed)), screen)
    run = stages.execute(given.workdir, settings)
    _finish(run)


def _simulate(given: Namespace, changes: list[str]) -> None:
    from dataclasses import replace

    from scbig.data.simulate import SimConfig, save, simulate

    if changes:
        raise InputError(f"--config.{changes[0]} does not apply to simulate; see --preset, --n-cells and --seed")
    if given.effects:
        from scbig import data
        from scbig.data.simulate_effects import simulate_from_effects

        target = Path(given.out, "screen.h5ad")
        if target.exists():
            raise InputError(f"{target} exists; choose another --out")
        cells = simulate_from_effects(data.effects_table(given.effects), given.n_cells or 20_000, given.seed)
        stages.write_cells(cells, target)
        say(f"{cells.n_obs:,} simulated cells around the effects of {given.effects} in {target}")
        return
    config = getattr(SimConfig, given.preset)(given.seed)
    if given.n_cells:
        config = replace(config, n_cells=given.n_cells)
    folder = save(simulate(config), given.out)
    say(f"screen   {folder}/screen.h5ad\npriors   {folder}/priors\ntruth    {folder}/truth.h5ad")


def _fetch(given: Namespace, changes: list[str]) -> None:
    from scbig.data import public

    if changes:
        raise InputError(f"--config.{changes[0]} does not apply to fetch")
    if given.name is None:
        for name in public.names():
            say(public.describe(name))
        return
    path = public.fetch(given.name, given.cache)
    say(f"{path}")


_OTHERS = {
    "sweep": _sweep,
    "sample": _sample,
    "evaluate": _evaluate,
    "baselines": _baselines,
    "analyze": _analyze,
    "design": _design,
    "ablate": _ablate,
    "export": _export,
    "bench": _bench,
    "demo": _demo,
    "simulate": _simulate,
    "fetch": _fetch,
}
