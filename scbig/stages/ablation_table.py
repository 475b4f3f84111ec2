"""The table of an ablation: means over seeds with intervals, and differences to the first variant."""

from __future__ import annotations

import datetime
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from scbig import evaluation
from scbig.console import say
from scbig.console import table as print_rows
from scbig.evaluation.statistics import compare as paired
from scbig.files import atomic
from scbig.run import Run
from scbig.stages.ablation_measures import ALWAYS, MEASURES
from scbig.stages.sweep import Outcome

__all__ = ["Estimate", "Results", "compare", "over_seeds", "show", "write"]

_METHOD = "scBIG"
_WHOLE = {"e_distance_share": "e_distance"}  # a share has no mean over conditions: the distance it is made of has
_COSTS = tuple(name for name in MEASURES if name not in ("explained", "held_out_score"))


@dataclass(frozen=True)
class Estimate:
    """A mean with the ends of its 95% interval, NaN where none can be stated, and what it is a mean over."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def real(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Results:
    """What is told of every variant.

    Attributes:
        columns: metrics and measures.
        done: runs that are done and asked for, by variant.
        values: over seeds, by variant and column.
        differences: to the first variant, seed by seed, by variant and column.
        conditions: to the first variant, condition by condition over all seeds; of what the judge gives per condition.
    """

    columns: tuple[str, ...]
    done: dict[str, tuple[int, int]]
    values: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Estimate]]
    conditions: dict[str, dict[str, Estimate]]


def over_seeds(values: Float[np.ndarray, " seeds"]) -> Estimate:
    """Mean over seeds with Student's 95% interval; values that are not finite do not count."""
    from scipy.stats import t

    values = values[np.isfinite(values)]
    n = len(values)
    if not n:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    mean = float(values.mean())
    if n == 1:
        return Estimate(mean, float("nan"), float("nan"), 1)
    half = float(t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


def compare(outcomes: Sequence[Outcome], folder: Path, metrics: Sequence[str]) -> Results:
    """Estimates of all variants.

    Args:
        outcomes: of all runs, with ``variant`` and ``seed`` among their settings.
        folder: where they lie.
        metrics: the columns before those of ``ALWAYS``.
    """
    by = {(each.settings["variant"], each.settings["seed"]): each for each in outcomes}
    variants = list(dict.fromkeys(variant for variant, _ in by))
    seeds = list(dict.fromkeys(seed for _, seed in by))
    present = {name for each in outcomes for name in each.scores}
    columns = tuple(name for name in dict.fromkeys([*metrics, *ALWAYS]) if name in present)

    def found(variant: str, column: str) -> np.ndarray:
        return np.array([by[variant, seed].scores.get(column, np.nan) for seed in seeds], np.float64)

    first = variants[0]
    values = {v: {c: over_seeds(found(v, c)) for c in columns} for v in variants}
    differences = {v: {c: over_seeds(found(v, c) - found(first, c)) for c in columns} for v in variants[1:]}
    done = {v: (sum(by[v, seed].state == "done" for seed in seeds), len(seeds)) for v in variants}
    return Results(columns, done, values, differences, _by_condition(outcomes, folder, first, columns))


def _by_condition(
    outcomes: Sequence[Outcome], folder: Path, first: str, columns: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    wanted = {_WHOLE.get(name, name): name for name in columns if name not in MEASURES}
    parts = []
    for each in outcomes:
        if each.state == "done":
            rows = evaluation.load(Run(folder / each.name).path("evaluation")).per_condition
            rows = rows[(rows["method"] == _METHOD) & rows["metric"].isin(list(wanted))]
            # The same condition under another seed is another draw, of the screen or of the split.
            context = rows["context"].astype(str) + f" seed {each.settings['seed']}"
            parts.append(rows.assign(method=each.settings["variant"], context=context))
    if not parts:
        return {}
    together = pd.concat(parts, ignore_index=True)
    result: dict[str, dict[str, Estimate]] = {}
    for variant in dict.fromkeys(each.settings["variant"] for each in outcomes):
        if variant != first:
            gaps = {column: paired(together, variant, first, metric) for metric, column in wanted.items()}
            result[variant] = {c: Estimate(gap.mean, gap.low, gap.high, gap.n) for c, gap in gaps.items() if gap.n}
    return result


def show(results: Results) -> None:
    """Prints means, and differences to the first variant."""
    seeds = max(n for _, n in results.done.values())
    several = seeds > 1
    print_rows(_rows(results, results.values, _short))
    say(f"  mean over {seeds} seeds ± half of its 95% interval" if several else "  one seed: no interval can be stated")
    if results.differences:
        say("")
        say(f"  difference to {next(iter(results.values))}, seed by seed")
        columns = [name for name in results.columns if name not in _COSTS]
        print_rows(_rows(results, results.differences, _signed_short, columns))
        if several:
            say("  * its 95% interval over seeds excludes zero; no correction for the number of comparisons")


def write(target: Path, title: str, command: str, results: Results, outcomes: Sequence[Outcome]) -> Path:
    """Writes the table as Markdown, with the command, the machine, the date, the versions and the commit."""
    first, seeds = next(iter(results.values)), max(n for _, n in results.done.values())
    judged = [name for name in results.columns if name not in _COSTS]
    n = max((e.n for row in results.conditions.values() for e in row.values()), default=0)
    parts = [
        f"# {title}",
        f"Command: `{command}`",
        f"Made on: {_about()}.",
        _markdown(_rows(results, results.values, _long)),
        f"Means over {seeds} seeds with Student's 95% intervals. Every seed has its own split, weights and draws, and its "
        "own screen where screens are simulated."
        if seeds > 1
        else "One seed: no interval can be stated, and differences may be chance. Give `--seeds 3` or more.",
    ]
    if results.differences:
        parts += [
            f"## Difference to {first}",
            "Seed by seed, with Student's 95% interval over seeds; a star where it excludes zero."
            if seeds > 1
            else "Of one seed.",
            _markdown(_rows(results, results.differences, _signed_long, judged)),
        ]
    if results.conditions:
        columns = [c for c in judged if any(c in row for row in results.conditions.values())]
        shares = [f"`{c}` is compared as `{_WHOLE[c]}`" for c in columns if c in _WHOLE]
        parts += [
            f"Condition by condition over all seeds ({n} pairs), with the bootstrap 95% interval over pairs; a star where it "
            "excludes zero. It holds for these seeds: what another training would give is in the table above. "
            + "".join(f"{each}. " for each in shares),
            _markdown(_rows(results, results.conditions, _signed_long, columns)),
        ]
    told = [f"`{name}`: {MEASURES[name]}" for name in results.columns if name in MEASURES]
    parts.append(
        "; ".join(told) + ". Stages that runs share count for each of them. Stars are not corrected for the number of "
        "comparisons. Metrics are explained in docs/evaluation.md."
    )
    failed = [f"- `{each.name}`: {each.reason}" for each in outcomes if each.state == "failed"]
    parts += ["## Failed", "\n".join(failed)] if failed else []
    with atomic(target) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return target


def _rows(results: Results, estimates, form, columns: Sequence[str] | None = None) -> list[list[str]]:
    columns = results.columns if columns is None else columns
    partial = any(done < asked for done, asked in results.done.values())
    rows = [["variant", *columns, *(["runs done"] if partial else [])]]
    for variant, found in estimates.items():
        cells = [form(found[c], c) if c in found and found[c].n else "–" for c in columns]
        rows.append([variant, *cells, *(["{} of {}".format(*results.done[variant])] if partial else [])])
    return rows


def _number(value: float, column: str) -> str:
    if not math.isfinite(value):
        return "–"
    if column in _COSTS:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:.3f}"


def _short(e: Estimate, column: str) -> str:
    if column in _COSTS or not math.isfinite(e.low):
        return _number(e.mean, column)
    return f"{_number(e.mean, column)} ±{_number((e.high - e.low) / 2, column)}"


def _long(e: Estimate, column: str) -> str:
    if column in ("parameters", "parameters_autoencoder") or not math.isfinite(e.low):
        return _number(e.mean, column)
    return f"{_number(e.mean, column)} [{_number(e.low, column)}, {_number(e.high, column)}]"


def _signed(value: float) -> str:
    # Differences are small beside what they are differences of.
    text = f"{value:+.4f}" if math.isfinite(value) else "–"
    return "0.0000" if text in ("+0.0000", "-0.0000") else text


def _signed_short(e: Estimate, column: str) -> str:
    if not math.isfinite(e.low):
        return _signed(e.mean)
    return f"{_signed(e.mean)} ±{(e.high - e.low) / 2:.4f}{'*' if e.real else ' '}"


def _signed_long(e: Estimate, column: str) -> str:
    if not math.isfinite(e.low):
        return _signed(e.mean)
    star = "\\*" if e.real else ""
    return f"{_signed(e.mean)}{star} [{_signed(e.low)}, {_signed(e.high)}]"


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _about() -> str:
    commit = _commit()
    parts = [
        f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        datetime.date.today().isoformat(),
        f"python {platform.python_version()}",
        *(f"{name} {metadata.version(name)}" for name in ("scbig", "jax")),
        *([f"commit {commit}"] if commit else []),
    ]
    return ", ".join(parts)


def _commit() -> str:
    """The commit of the checkout that the package lies in; empty where it is installed elsewhere, or git is not there."""

    def git(*words: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(Path(__file__).parent), *words], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    # A package that is installed into an environment within another checkout is not part of it.
    if not git("ls-files", "--", Path(__file__).name):
        return ""
    return git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")
