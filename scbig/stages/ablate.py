"""Tables of variants: every variant of a file of ``configs/ablations/`` over several seeds, compared with the first.

Runs lie in ``WORKDIR/VARIANT/seedN`` and are runs like any other. They are made as those of a sweep are: each a process
of its own, what agrees in its first stages made once, and what is done skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from scbig import config as configuration
from scbig import evaluation
from scbig.console import say
from scbig.errors import InputError, some
from scbig.run import STAGES, Run
from scbig.stages import _chosen, ablation_table, forks, sweep
from scbig.stages.ablation_measures import MEASURES, METRICS, measure

__all__ = ["Table", "Task", "ablate", "expand", "read", "shrink"]

_SEEDS, _QUICK_SEEDS = 3, 2
_SCREENS = "simulated"  # the folder of simulated screens


@dataclass(frozen=True)
class Task:
    """What ``scbig ablate`` is asked for.

    Attributes:
        table: the file.
        workdir: of the runs and the table; empty: ``runs/ablations/NAME``, and ``NAME-quick`` where it is to be quick.
        seeds: of each variant; 0: what the file says.
        quick: small networks, short training and a small simulated screen.
        jobs: runs at once; 0: one, or one per worker of a Dask scheduler.
        changes: settings of all variants, as on the command line.
    """

    table: str
    workdir: str = ""
    seeds: int = 0
    quick: bool = False
    jobs: int = 0
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """What a file asks for.

    Attributes:
        name: of the file.
        title: of the table.
        config: the settings that all variants start from.
        variants: changes of settings by variant; the others are compared with the first.
        seeds: runs of each variant.
        metrics: columns, of the judge or of ``MEASURES``.
        quick: makes the settings small; None for ``shrink``.
    """

    name: str
    title: str
    config: ConfigDict
    variants: dict[str, tuple[str, ...]]
    seeds: int
    metrics: tuple[str, ...]
    quick: Callable[[ConfigDict], ConfigDict] | None


def read(path: str) -> Table:
    """The table that a Python file defines: ``get_config()``, ``TITLE``, ``VARIANTS`` or ``variants()``.

    ``SEEDS``, ``METRICS`` and ``quick(config)`` are optional.

    Raises:
        InputError: what is missing or of another kind, in one line.
    """
    given = configuration.execute_file(path)
    config = configuration.checked(given, path)
    variants = given.variants() if callable(getattr(given, "variants", None)) else getattr(given, "VARIANTS", None)
    if variants is None:
        raise InputError(
            f"{path} has neither VARIANTS nor a function variants(): name what is compared, as in docs/ablations.md"
        )
    if not isinstance(variants, Mapping) or not all(
        isinstance(changes, list | tuple) and all(isinstance(each, str) for each in changes)
        for changes in variants.values()
    ):
        raise InputError(
            f'{path}: VARIANTS must hold lists of changes by name, such as {{"mlp": ["gcae.encoder=mlp"]}}'
        )
    if not variants:
        raise InputError(f"{path}: VARIANTS is empty; name at least two variants")
    metrics = tuple(getattr(given, "METRICS", METRICS))
    if unknown := [name for name in metrics if name not in evaluation.METRICS and name not in MEASURES]:
        raise InputError(
            f"{path}: METRICS names {some(unknown)}; there are the metrics of the judge and {', '.join(MEASURES)}"
        )
    seeds = getattr(given, "SEEDS", _SEEDS)
    if not isinstance(seeds, int) or seeds < 1:
        raise InputError(f"{path}: SEEDS = {seeds!r} must be a whole number, 1 or more")
    title = getattr(given, "TITLE", Path(path).stem)
    variants = {str(name): tuple(changes) for name, changes in variants.items()}
    return Table(Path(path).stem, title, config, variants, seeds, metrics, getattr(given, "quick", None))


def shrink(config: ConfigDict) -> ConfigDict:
    """Settings for a look in minutes: small networks, short training, few cells."""
    c = config.copy_and_resolve_references()
    c.modules.n_modules = min(c.modules.n_modules, 8)
    c.gcae.width, c.gcae.depth, c.gcae.heads, c.gcae.latent, c.gcae.inducing = 32, 1, 4, 16, 4
    c.pretrain.epochs, c.pretrain.batch, c.pretrain.warmup, c.pretrain.learning_rate = 30, 64, 20, 4e-3
    c.condition.width, c.velocity.width = 32, 64
    c.flow.steps, c.flow.chunk, c.flow.evaluate_every, c.flow.warmup, c.flow.shift_steps = 300, 50, 100, 20, 200
    c.flow.conditions, c.flow.cells, c.flow.align_cells, c.flow.learning_rate = 16, 16, 16, 1e-3
    c.flow.watch_conditions, c.flow.watch_cells, c.flow.solver_steps, c.flow.ema = 12, 32, 5, 0.99
    c.sample.n_cells = c.evaluation.n_cells = 100
    return c


def expand(
    table: Table, workdir: Path, seeds: int = 0, quick: bool = False, changes: Sequence[str] = ()
) -> list[sweep.Member]:
    """Every run of a table, variant by variant; nothing is written.

    Args:
        table: from ``read``.
        workdir: where simulated screens are to lie.
        seeds: of each variant; 0: what the table says.
        quick: with small settings.
        changes: settings of all variants.

    Raises:
        InputError: a setting that is not one or a wrong value, with its variant; variants that cannot be told apart.
    """
    base = configuration.override((table.quick or shrink)(table.config) if quick else table.config, list(changes))
    given = {each.partition("=")[0] for each in changes}
    members, folders, known = [], {}, []
    for variant, varied in table.variants.items():
        names = [each.partition("=")[0] for each in varied]
        if clash := [name for name in names if name in given]:
            raise InputError(
                f"--config.{clash[0]} is what variant {variant} sets: change {table.name}.py, or a copy of it"
            )
        if clash := [name for name in names if name in ("seed", "split.seed")]:
            raise InputError(f"variant {variant} sets {clash[0]}: seeds are counted by SEEDS or --seeds")
        try:
            settings = configuration.override(base, list(varied))
        except InputError as problem:
            raise InputError(f"variant {variant} of {table.name}: {problem}") from problem
        if twin := [other for other, theirs in known if theirs == settings.to_dict()]:
            raise InputError(f"variants {twin[0]} and {variant} of {table.name} are the same settings: leave one out")
        known.append((variant, settings.to_dict()))
        folder = re.sub(r"[^\w.,=+-]+", "_", variant, flags=re.ASCII).strip("_.")
        if not folder or folder == _SCREENS or folder in folders or len(folder) > 100:
            other = folders.get(folder, "another folder")
            raise InputError(f"variant {variant} of {table.name} cannot be told from {other} by the name of its folder")
        folders[folder] = variant
        for number in range(seeds or (_QUICK_SEEDS if quick else table.seeds)):
            own = settings.copy_and_resolve_references()
            own.seed, own.split.seed = settings.seed + number, settings.split.seed + number
            own.name = f"{table.name}: {variant}"
            if not own.data.path:
                screen = _screen(workdir, own.seed, quick)
                own.data.path = str(screen / "screen.h5ad")
                own.priors.dir = own.priors.dir or str(screen / "priors")
            members.append((f"{folder}/seed{own.seed}", {"variant": variant, "seed": str(own.seed)}, own))
    return members


def ablate(task: Task) -> Path:
    """Makes the runs that are not done, and the table of all: ``ablation.csv`` and ``ablation.md``.

    Returns:
        The file of the table.

    Raises:
        InputError: a bad file or setting, a folder with other runs; or that runs failed, after the table was written.
    """
    if task.seeds < 0:
        raise InputError(f"--seeds {task.seeds} is negative; 0 takes what the file says")
    table = read(task.table)
    folder = Path(task.workdir or Path("runs", "ablations", table.name + ("-quick" if task.quick else "")))
    members = expand(table, folder, task.seeds, task.quick, task.changes)
    _simulate(members, folder, task.quick)
    _refuse_others(members, folder)
    say(f"ablate: {table.title}")
    counts = len(table.variants), len(members) // len(table.variants)
    say(f"ablate: {counts[0]} variants × {counts[1]} seed{'s' if counts[1] > 1 else ''}, in {folder}")
    metrics = partial(measure, metrics=table.metrics)
    write = partial(sweep.write_csv, folder / "ablation.csv")
    outcomes = sweep.complete(members, folder, task.jobs, write, metrics, "ablate")
    results = ablation_table.compare(outcomes, folder, table.metrics)
    target = ablation_table.write(folder / "ablation.md", table.title, _command(task), results, outcomes)
    say("")
    ablation_table.show(results)
    say("")
    say(f"table    {target}, with every run in {folder / 'ablation.csv'}")
    if failed := [outcome for outcome in outcomes if outcome.state == "failed"]:
        raise InputError(
            f"{len(failed)} of {len(outcomes)} runs failed: {some((each.name for each in failed), 4)}; the reasons are in "
            f"{folder / 'ablation.csv'}, and the same command again runs these only"
        )
    return target


def _screen(workdir: Path, seed: int, quick: bool) -> Path:
    return workdir / _SCREENS / f"{'quick' if quick else 'seed'}{seed}"


def _simulate(members: Sequence[sweep.Member], folder: Path, quick: bool) -> None:
    """The simulated screens that members name and that are not there."""
    from scbig.data.simulate import SimConfig, save, simulate

    for seed in sorted({settings.seed for _, _, settings in members}):
        screen = _screen(folder, seed, quick)
        wanted = any(settings.data.path == str(screen / "screen.h5ad") for _, _, settings in members)
        if wanted and not screen.exists():
            size = SimConfig.demo(seed)
            if quick:
                size = SimConfig(
                    n_cells=1600, n_genes=160, n_modules=8, n_singles=16, n_doubles=20, embedding_dim=32,
                    ppi_density=0.04, control_share=0.2, truth_cells=64, seed=seed,
                )  # fmt: skip
            save(simulate(size), screen)
            say(f"ablate: simulated {size.n_cells:,} cells × {size.n_genes} genes in {screen}")


def _refuse_others(members: Sequence[sweep.Member], folder: Path) -> None:
    """Refuses to go on in runs that were made with other settings, before anything is trained."""
    files = forks.Files()
    for name, _, settings in members:
        run = Run(folder / name)
        for stage in STAGES.values():
            done = run.is_done(stage.name)
            inputs = run.outputs_of(stage.reads) | files.read_by(stage.name, settings)
            try:
                run.state_of(stage, _chosen(stage, settings), inputs)
            except InputError as problem:
                reason = str(problem).split("; rerun")[0]
                told = f"{reason}; delete {run.folder}, rename the variant, or take another --workdir"
                raise InputError(told) from problem
            if not done:
                break


def _command(task: Task) -> str:
    words = ["scbig ablate", task.table]
    words += [f"--workdir {task.workdir}"] if task.workdir else []
    words += [f"--seeds {task.seeds}"] if task.seeds else []
    words += ["--quick"] if task.quick else []
    return " ".join([*words, *(f"--config.{each}" for each in task.changes)])
