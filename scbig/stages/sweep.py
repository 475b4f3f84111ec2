"""Many runs that differ in a few settings, on the workers of a Dask scheduler or of this machine.

Every run is a process of its own, so that one which runs out of memory, or fails in any other way, takes nothing with
it; the Dask worker only waits for it. A run lies in ``FOLDER/SETTING=VALUE,…`` and is a run like any other. Runs that
agree in the settings of their first stages share them: the first trains, the others take over what it wrote.
"""

from __future__ import annotations

import csv
import itertools
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scbig import config as configuration
from scbig import workers
from scbig.console import say, table
from scbig.errors import InputError, some
from scbig.files import atomic
from scbig.run import STAGES, Run
from scbig.stages import forks

__all__ = ["Member", "Outcome", "complete", "headline", "parse", "print_table", "sweep", "write_csv"]

Member = tuple[str, dict[str, str], ConfigDict]
"""A run that is asked for: the name of its folder, what was varied as text, and its settings."""

_METHOD = "scBIG"
_ASKED = "sweep.json"  # the settings that a run of a sweep is asked for
_LOOK = 0.5  # seconds between two looks whether a run that others wait for has finished what they share


@dataclass(frozen=True)
class Outcome:
    """How one run of a sweep ended.

    Attributes:
        name: of its folder.
        settings: what was varied, as text.
        state: ``done`` or ``failed``.
        seconds: of all its stages that are done, by whichever call.
        scores: headline scores of the method, by metric, where it is done.
        reason: why it failed, in one line.
    """

    name: str
    settings: dict[str, str]
    state: str
    seconds: float
    scores: dict[str, float] = field(default_factory=dict)
    reason: str = ""


def parse(varied: Sequence[str]) -> dict[str, list[str]]:
    """A grid from ``["flow.lambda_corr=0.0,0.1", "seed=0,1"]``; where there is a ``;`` it separates values instead.

    Raises:
        InputError: no values, a value given twice, or a setting given twice.
    """
    grid: dict[str, list[str]] = {}
    for each in varied:
        name, equals, text = each.partition("=")
        values = [value.strip() for value in text.split(";" if ";" in text else ",")]
        if not equals or not all(values):
            raise InputError(f"--vary {each} names no values; write --vary {name or 'SETTING'}=A,B")
        if len(set(values)) < len(values):
            raise InputError(f"--vary {each} names a value twice")
        if name in grid:
            raise InputError(f"--vary {name} is given twice; name all its values at once")
        grid[name] = values
    return grid


def sweep(
    config: ConfigDict, grid: Mapping[str, Sequence[Any]], folder: str | os.PathLike, jobs: int = 0
) -> list[Outcome]:
    """Makes a run for every combination of settings, those that are done excepted; one that fails stops no other.

    Args:
        config: the settings that all runs share.
        grid: values of each setting that varies, by its name such as ``flow.lambda_corr``.
        folder: where the runs lie; ``sweep.csv`` there tells of all of them, anew after each.
        jobs: runs at once; 0 is one on this machine, and one for each worker of a Dask scheduler
            (``scbig.workers.scheduler``, or a Dask client that is open).

    Returns:
        One outcome per combination, in the order of the grid.

    Raises:
        InputError: a setting or value that is not one, before anything is run; a scheduler that was lost.
    """
    members = list(_members(config, grid))
    return complete(members, folder, jobs, lambda outcomes: write_csv(Path(folder, "sweep.csv"), outcomes))


def headline(run: Run) -> dict[str, float]:
    """What the table at the end of a run shows of the method."""
    from scbig import evaluation
    from scbig.evaluation.reading import stratum_of_comparison

    scores = evaluation.load(run.path("evaluation"))
    stratum = stratum_of_comparison(scores)
    shown, known = evaluation.console_table(scores)[0], set(scores.summary["metric"])
    return {name: float(scores.value(_METHOD, name, stratum)) for name in shown if name in known}


def complete(
    members: Sequence[Member],
    folder: str | os.PathLike,
    jobs: int,
    write: Callable[[list[Outcome]], None],
    measure: Callable[[Run], dict[str, float]] = headline,
    name: str = "sweep",
) -> list[Outcome]:
    """Makes the runs that are not done; what some of them share is done once.

    Args:
        members: all runs.
        folder: where they lie.
        jobs: runs at once, as of ``sweep``.
        write: is given the outcomes so far after every run.
        measure: what is told of a run that is done.
        name: of the work, in what is printed.

    Returns:
        One outcome per member, in their order.

    Raises:
        InputError: a negative number of jobs; a scheduler that was lost.
    """
    if jobs < 0:
        raise InputError(f"--jobs {jobs} is negative; 0 takes what there is")
    folder, files = Path(folder), forks.Files()
    outcomes: dict[str, Outcome] = {}
    waiting = deque()
    for member in members:
        if forks.finished(Run(folder / member[0]), member[2], files) == len(STAGES):
            outcomes[member[0]] = _outcome(folder, member, measure)
            say(f"{name}: {member[0]}: done before")
        else:
            waiting.append(member)
    before = len(outcomes)
    for outcome in _carry_out(folder, members, waiting, jobs, measure, files, name):
        outcomes[outcome.name] = outcome
        told = f"done in {outcome.seconds:.0f} s" if outcome.state == "done" else f"failed: {outcome.reason}"
        say(f"{name}: {len(outcomes)} of {len(members)}: {outcome.name}: {told}")
        write([outcomes[each] for each, _, _ in members if each in outcomes])
    found = [outcomes[each] for each, _, _ in members]
    if before == len(found):
        write(found)
    return found


def print_table(outcomes: Sequence[Outcome]) -> None:
    """The runs with their headline scores, one line each."""
    columns = _columns(outcomes)
    rows = [["run", "state", "seconds", *columns]]
    for each in outcomes:
        scores = [f"{each.scores[name]:.3f}" if name in each.scores else "–" for name in columns]
        rows.append([each.name, each.state, f"{each.seconds:.0f}", *scores])
    table(rows)


def _members(config: ConfigDict, grid: Mapping[str, Sequence[Any]]) -> Iterator[Member]:
    """Name, varied settings and whole settings of every run; all are checked before the first is given."""
    texts = {name: [_text(value) for value in values] for name, values in grid.items()}
    members, names = [], set()
    for values in itertools.product(*texts.values()):
        varied = dict(zip(texts, values, strict=True))
        changes = [f"{name}={value}" for name, value in varied.items()]
        # Letters, digits and a few marks only: the name is that of a folder.
        name = re.sub(r"[^\w.,=+-]", "_", ",".join(changes), flags=re.ASCII)
        if name in names or len(name) > 200:
            raise InputError(f"the runs of {some(changes)} and another cannot be told apart by name; vary less at once")
        names.add(name)
        members.append((name, varied, configuration.override(config, changes)))
    yield from members


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _carry_out(
    folder: Path,
    members: Sequence[Member],
    waiting: deque[Member],
    jobs: int,
    measure: Callable[[Run], dict[str, float]],
    files: forks.Files,
    work: str,
) -> Iterator[Outcome]:
    """Runs what is waiting, so many at once, and tells of each as it ends."""
    if not waiting:
        return
    from distributed import as_completed

    given = workers.current() is not None
    with workers.local(jobs or 1) as client, workers.told_loss("while runs were under way"):
        slots = deque(sorted(client.nthreads()))
        at_once = min(jobs or (len(slots) if given else 1), len(waiting))
        under_way: dict[Any, tuple[Member, str]] = {}
        ended = as_completed()

        def start(member: Member) -> None:
            name, _, settings = member
            others = [(folder / other, theirs) for other, _, theirs in members if other != name]
            if taken := forks.share(folder / name, settings, others, files):
                say(f"{work}: {name} takes {', '.join(taken[1])} from {taken[0].relative_to(folder)}")
            slots.rotate(-1)
            # A hint only: where that worker is lost, another one continues the run.
            future = client.submit(
                _run, str((folder / name).resolve()), configuration.as_json(settings), os.getcwd(),
                workers=[slots[0]], allow_other_workers=True, pure=False,
            )  # fmt: skip
            under_way[future] = (member, slots[0])
            ended.add(future)

        def fill() -> None:
            for member in list(waiting):
                if len(under_way) >= at_once:
                    return
                if not _held(folder, member, [other for other, _ in under_way.values()], files):
                    waiting.remove(member)
                    start(member)

        fill()
        while under_way:
            # Where places are free, only runs that others wait for can be under way: those are looked at.
            looking = bool(waiting) and len(under_way) < at_once
            found = ended.next_batch(block=not looking)
            for future in found:
                member, worker = under_way.pop(future)
                try:
                    with workers.told_loss(f"in {member[0]}"):
                        reason = future.result()
                except workers.DeadWorkers as dead:
                    reason = str(dead)
                # The worker that has become free comes next.
                if worker in slots:
                    slots.remove(worker)
                    slots.insert(1, worker)
                yield _outcome(folder, member, measure, reason)
            if looking and not found:
                time.sleep(_LOOK)
            fill()


def _held(folder: Path, member: Member, under_way: Sequence[Member], files: forks.Files) -> bool:
    """Whether a run that is under way is still at what this one shares with it."""
    name, _, settings = member
    own = forks.finished(Run(folder / name), settings, files)
    for other, _, theirs in under_way:
        shared = forks.common(settings, theirs)
        if shared > own and forks.finished(Run(folder / other), theirs, files) < shared:
            return True
    return False


def _run(folder: str, settings: str, place: str) -> str:
    """On a worker: one run in a process of its own.

    Returns:
        Why it failed, in one line; empty where it did not.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    log = Path(folder, "log.txt")
    with atomic(Path(folder, _ASKED)) as temporary:
        temporary.write_text(settings, encoding="utf-8")
    with open(log, "w", encoding="utf-8") as out:
        command = [sys.executable, "-m", "scbig.stages.sweep", folder]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=place, check=False)
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}, as when memory runs out; see {log}"
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()] or ["no output"]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return told[-1] if told else f"{lines[-1]}; see {log}"


def _outcome(folder: Path, member: Member, measure: Callable[[Run], dict[str, float]], reason: str = "") -> Outcome:
    name, varied, _ = member
    run = Run(folder / name)
    stages = run.provenance["stages"]
    seconds = sum(stage["seconds"] for stage in stages.values())
    if reason:
        return Outcome(name, varied, "failed", seconds, reason=reason)
    return Outcome(name, varied, "done", seconds, measure(run))


def _columns(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(name for each in outcomes for name in each.scores))


def write_csv(file: Path, outcomes: Sequence[Outcome]) -> None:
    """One row per run: what was varied, how it ended and what is told of it."""
    columns = _columns(outcomes)
    varied = list(outcomes[0].settings) if outcomes else []
    with atomic(file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *varied, "state", "seconds", *columns, "reason"])
        for each in outcomes:
            scores = [each.scores.get(name, "") for name in columns]
            writer.writerow([each.name, *each.settings.values(), each.state, each.seconds, *scores, each.reason])


def _main() -> int:
    """One run of a sweep, in the folder that is the argument."""
    from scbig import stages

    try:
        stages.execute(sys.argv[1], configuration.read_json(Path(sys.argv[1], _ASKED)))
    except InputError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())
