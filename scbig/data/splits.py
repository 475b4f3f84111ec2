"""Splits: which conditions (or cells) are trained on and which are held out, as files that prove themselves.

A split is a table with one row per key and the columns ``part`` (train, val or test) and ``stratum``. The
key is the condition; or condition and context; or the cell. Controls are never held out, except under a
key of cells.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from scbig.data import split_published, split_rules
from scbig.data.conditions import CONTROL, as_text, canonical, genes_of, join
from scbig.data.split_draws import genes_in, holdout_strata, seen_strata
from scbig.errors import InputError, some
from scbig.files import atomic

__all__ = ["PARTS", "RULES", "Split", "check", "from_file", "load", "make"]

PARTS = ("train", "val", "test")
RULES = (
    "additive",
    "holdout",
    "simulation",
    "simulation_single",
    "random",
    "scdfm",
    "context",
    "cells",
    "file",
)
_KEYS = (["condition"], ["condition", "context"], ["cell", "condition"])
_TITLE = "# scbig split v1"


@dataclass(frozen=True, eq=False)
class Split:
    """A split; making one proves that no key is in two parts and that no control is held out.

    Attributes:
        name: what people call it.
        rule: one of ``RULES``.
        seed: seed of the draw.
        table: the rows, sorted: key columns ``condition``, or ``condition`` and ``context``, or ``cell`` and
            ``condition``; then ``part`` and ``stratum`` (which may be empty).
    """

    name: str
    rule: str
    seed: int
    table: pd.DataFrame

    def __post_init__(self):
        if self.rule not in RULES:
            raise InputError(f"'{self.rule}' is not a split rule: use one of {', '.join(RULES)}")
        if "\n" in self.name:
            raise InputError(f"the name of a split is one line, not {self.name!r}")
        object.__setattr__(self, "table", _proven(self.table))

    @property
    def key(self) -> list[str]:
        """The columns that name what is held out."""
        return [c for c in self.table.columns if c not in ("part", "stratum")]

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the table's rows, as 64 hexadecimal digits; name, rule and seed do not enter."""
        return hashlib.sha256(_rows(self.table).encode()).hexdigest()

    def conditions(self, part: str, stratum: str | None = None) -> list[str]:
        """The perturbed conditions (never control) with rows in a part, sorted.

        Under a key of context or cell a condition may be in several parts.

        Args:
            part: train, val or test.
            stratum: only the rows of this stratum.
        """
        if part not in PARTS:
            raise InputError(f"'{part}' is not a part of a split: use one of {', '.join(PARTS)}")
        rows = self.table["part"] == part
        if stratum is not None:
            rows &= self.table["stratum"] == stratum
        return sorted(set(self.table.loc[rows, "condition"]) - {CONTROL})

    def assign(self, obs: pd.DataFrame) -> np.ndarray:
        """The part of every cell.

        Args:
            obs: n cells with canonical ``condition`` (and ``context``, or cell names as index, as the key
                asks).

        Returns:
            n strings, each train, val or test. Controls are train unless the key is the cell.

        Raises:
            InputError: a column is missing, or cells whose key is not in the table.
        """
        for column in set(self.key) - {"cell"}:
            if column not in obs:
                raise InputError(f"split '{self.name}' needs obs['{column}'], which is not there")
        if "cell" in self.table:
            return self._assign_cells(obs)
        frame = pd.DataFrame({column: as_text(obs[column]) for column in self.key})
        # Numbered in order of appearance, as drop_duplicates keeps them.
        code = frame.groupby(self.key, sort=False).ngroup().to_numpy()
        found = frame.drop_duplicates().merge(self.table, how="left", on=self.key)
        lost = found["part"].isna() & (found["condition"] != CONTROL)
        if lost.any():
            names = found.loc[lost, self.key].agg(" in ".join, axis=1)
            raise InputError(f"split '{self.name}' says nothing about {some(names)}: make or choose another split")
        return found["part"].fillna("train").to_numpy(dtype=str)[code]

    def _assign_cells(self, obs: pd.DataFrame) -> np.ndarray:
        place = pd.Index(self.table["cell"]).get_indexer(obs.index.astype(str))
        if (place < 0).any():
            lost = obs.index[place < 0]
            raise InputError(f"split '{self.name}' says nothing about the cells {some(lost)}: make another split")
        condition = as_text(obs["condition"]).to_numpy(dtype=object)
        other = condition != self.table["condition"].to_numpy(dtype=object)[place]
        if other.any():
            raise InputError(
                f"split '{self.name}' was made for other conditions of the cells {some(obs.index[other])}: "
                "make another split"
            )
        return self.table["part"].to_numpy(dtype=str)[place]

    @classmethod
    def load(cls, path: str | os.PathLike) -> Split:
        """The same as ``splits.load(path)``."""
        return load(path)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the split as CSV under a header with name, rule, seed and sha256, whole or not at all."""
        header = [_TITLE, f"# name: {self.name}", f"# rule: {self.rule}", f"# seed: {self.seed}"]
        with atomic(path) as temporary:
            text = "\n".join([*header, f"# sha256: {self.sha256}", _rows(self.table)])
            temporary.write_text(text, encoding="utf-8", newline="\n")


def load(path: str | os.PathLike) -> Split:
    """Reads a split that was saved and proves it anew: disjoint, unedited and free of leaks.

    Raises:
        InputError: the file is absent, not a split, was edited, holds a key twice or leaks.
    """
    header, rows = _parse(path)
    if not header or header[0] != _TITLE:
        raise InputError(
            f"{path} does not begin with '{_TITLE}': for a table of your own pass --config.split.rule=file"
        )
    fields = dict(line[2:].split(": ", 1) for line in header[1:] if ": " in line)
    try:
        name, rule, seed, sha256 = fields["name"], fields["rule"], int(fields["seed"]), fields["sha256"]
    except (KeyError, ValueError):
        raise InputError(
            f"the header of the split {path} lacks its name, rule, seed or sha256: make it again"
        ) from None
    if not rows or not {"condition", "part", "stratum"} <= set(rows[0]):
        raise InputError(f"the split {path} has no columns condition, part and stratum: make it again")
    wrong = [number for number, row in enumerate(rows) if len(row) != len(rows[0])]
    if wrong:
        raise InputError(f"the split {path} is cut short or damaged at row {wrong[0]}: make it again")
    try:
        split = Split(name, rule, seed, pd.DataFrame(rows[1:], columns=rows[0], dtype=object))
    except InputError as error:
        raise InputError(f"the split {path}: {error}") from None
    if split.sha256 != sha256:
        raise InputError(
            f"the split {path} was edited or damaged after it was made (its sha256 differs): to use it "
            "as it is, pass "
            f"--config.split.rule=file --config.split.path={path}"
        )
    check(split)
    return split


def from_file(path: str | os.PathLike, conditions: Iterable[str] | pd.DataFrame, name: str | None = None) -> Split:
    """Reads a user's own table of condition, part and, if wanted, stratum; a header line is not needed.

    With a header there may also be a column ``context`` or ``cell``. Conditions may be spelled as
    ``conditions.canonical`` accepts them. Without strata, ``seen_strata`` gives those of conditions held out.

    Args:
        path: a CSV or TSV file; lines that begin with ``#`` at the top are skipped.
        conditions: the data's canonical conditions, or its ``obs``.
        name: name of the split; the file's name without it.

    Returns:
        A split with rule ``file`` that covers all conditions.

    Raises:
        InputError: conditions that are missing, unknown or in two parts, or parts misspelled, all named.
    """
    _, rows = _parse(path)
    if not rows:
        raise InputError(f"the split {path} is empty")
    first = [cell.strip().lower() for cell in rows[0]]
    if "condition" in first and "part" in first:
        columns, rows = first, rows[1:]
    else:
        columns = ["condition", "part", "stratum"][: len(rows[0])]
    wrong = [number for number, row in enumerate(rows, start=1) if len(row) != len(columns)]
    if wrong or len(columns) < 2:
        raise InputError(f"the split {path} does not have two or three columns in row {wrong[0] if wrong else 1}")
    table = pd.DataFrame(rows, columns=columns, dtype=object)
    obs = conditions if isinstance(conditions, pd.DataFrame) else pd.DataFrame({"condition": list(conditions)})
    wanted = set(as_text(obs["condition"])) - {CONTROL}
    known = {gene for condition in wanted for gene in genes_of(condition)}
    try:
        table["condition"] = canonical(table["condition"], known=known)[0].astype(str).to_numpy(dtype=object)
        if "stratum" not in table:
            train = table.loc[table["part"] == "train", "condition"]
            strata = seen_strata(set(table["condition"]) - {CONTROL}, train)
            table["stratum"] = np.where(table["part"] == "train", "", table["condition"].map(strata).fillna(""))
        split = Split(name or Path(path).stem, "file", 0, table)
    except InputError as error:
        raise InputError(f"the split {path}: {error}") from None
    unknown = set(split.table["condition"]) - wanted - {CONTROL}
    if unknown:
        raise InputError(f"the split {path} names conditions that the data does not have: {some(sorted(unknown))}")
    missing = wanted - set(split.table["condition"])
    if missing:
        raise InputError(f"the split {path} says nothing about these conditions of the data: {some(sorted(missing))}")
    if isinstance(conditions, pd.DataFrame):
        split.assign(obs)
    check(split)
    return split


def make(
    rule: str,
    obs_or_conditions: pd.DataFrame | Iterable[str],
    config_split: Mapping[str, Any] | ConfigDict,
    seed: int = 0,
) -> Split:
    """Makes the split that a configuration asks for, and checks it.

    Args:
        rule: one of ``RULES``. With a path and another rule than ``file``, the saved split there is loaded
            instead; an empty rule takes that split whatever its rule.
        obs_or_conditions: the cells' table, or canonical conditions where the rule needs no more.
        config_split: ``name``, ``seed``, ``path``, ``test_fraction``, ``val_fraction``, ``n_test``,
            ``n_val`` and ``held_out_context``, all optional; None, "", a number of 0 and a negative fraction
            mean not given.
        seed: seed when ``config_split`` has none. For ``scdfm`` it is the fold.

    Returns:
        The split, which covers every condition (or cell) given.

    Raises:
        InputError: an unknown rule, too few conditions for it, or a setting that is missing or out of range.
    """
    setting = {name: _given(config_split, name) for name in ("name", "seed", "path", "held_out_context")}
    seed = seed if setting["seed"] is None else int(setting["seed"])
    obs = obs_or_conditions if isinstance(obs_or_conditions, pd.DataFrame) else None
    conditions = list(as_text(obs["condition"]).unique()) if obs is not None else list(obs_or_conditions)
    if rule == "file" and not setting["path"]:
        raise InputError("the split rule 'file' needs a table of condition and part: pass --config.split.path=FILE")
    if rule == "file":
        return from_file(setting["path"], conditions if obs is None else obs, setting["name"])
    if setting["path"]:
        split = load(setting["path"])
        if rule and rule != split.rule:
            raise InputError(f"the split {setting['path']} was made by the rule '{split.rule}', not '{rule}'")
        split.assign(pd.DataFrame({"condition": conditions}) if obs is None else obs)
        return split
    options = {
        k: float(v) for k in ("test_fraction", "val_fraction") if (v := _given(config_split, k)) is not None and v >= 0
    }
    if rule not in ("cells", "scdfm"):
        options |= {k: int(v) for k in ("n_test", "n_val") if (v := _given(config_split, k))}
    name = f"{rule}-{seed}"
    if rule in ("context", "cells") and obs is None:
        raise InputError(f"the split rule '{rule}' needs the cells' table, not only their conditions")
    if rule == "context":
        held_out = str(setting["held_out_context"] or "")
        table, name = split_rules.context(obs, held_out, seed, **options), f"{rule}-{held_out}-{seed}"
    elif rule == "cells":
        table = split_rules.cells(obs, seed, **options)
    elif rule == "scdfm":
        options.pop("val_fraction", None)
        table = split_published.scdfm(conditions, seed, **options)
    elif rule in ("simulation", "simulation_single"):
        table = getattr(split_published, rule)(conditions, seed, **options)
    elif rule in ("additive", "holdout", "random"):
        table = getattr(split_rules, rule)(conditions, seed, **options)
    else:
        raise InputError(f"'{rule}' is not a split rule: use one of {', '.join(RULES)}")
    split = Split(str(setting["name"] or name), rule, seed, table)
    check(split)
    return split


def check(split: Split) -> None:
    """Proves that a split does not leak, by the promise of its rule.

    All rules: train is not empty. ``holdout``, ``simulation``: a gene held out occurs in no training
    condition, genes of test in no val condition either, and strata count what train has seen.
    ``additive``: the singles of whatever is held out are in train. ``context``: what is held out is
    trained on in another context. ``cells``: every condition with cells held out has training cells.

    Raises:
        InputError: the split breaks the promise; the conditions are named.
    """
    table = split.table
    train = set(table.loc[table["part"] == "train", "condition"])
    held = table[table["part"] != "train"]
    if not train - {CONTROL}:
        raise InputError(f"split '{split.name}' leaves no condition to train on")
    bad: list[str] = []
    if split.rule == "additive":
        promise = "the single perturbations of what is held out must all be in train"
        bad = [c for c in held["condition"] if len(genes_of(c)) < 2 or not set(genes_of(c)) <= train]
    elif split.rule in ("holdout", "simulation", "simulation_single"):
        promise = "genes that are held out must occur nowhere in train, and those of test not in val"
        bad = _leaks(split, train)
    elif split.rule in ("context", "cells"):
        where = " in another context" if split.rule == "context" else ""
        promise = f"what is held out must also be in train{where}"
        bad = [c for c in held["condition"].unique() if c not in train]
    if bad:
        raise InputError(f"split '{split.name}' leaks: {some(bad)} are held out; under the rule {split.rule} {promise}")


def _leaks(split: Split, train: set[str]) -> list[str]:
    """Conditions held out whose genes training (or, for test genes, validation) knows beyond what is said."""
    rows = split.table[split.table["part"] != "train"]
    strata = holdout_strata if split.rule == "holdout" else seen_strata
    told = strata(rows["condition"], train)
    bad = [c for c, stratum in zip(rows["condition"], rows["stratum"], strict=True) if stratum != told[c]]
    if split.rule == "holdout":
        # Every condition of test must hold a gene that neither train nor val, where models are chosen, has
        # seen.
        before = set(genes_in(train)) | set(genes_in(split.conditions("val")))
        bad += [c for c in split.conditions("test") if set(genes_of(c)) <= before]
        bad += [c for c in split.conditions("val") if set(genes_of(c)) <= set(genes_in(train))]
    else:
        bad += [c for c in told if told[c] == "seen_single"]
    return sorted(set(bad))


def _given(settings: Mapping[str, Any] | ConfigDict, name: str) -> Any:
    value = settings.get(name)
    return None if value is None or (isinstance(value, str) and not value) else value


def _proven(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its columns as strings and its rows sorted, or a refusal."""
    key = [c for c in table.columns if c not in ("part", "stratum")]
    if sorted(key) not in _KEYS or not {"part", "stratum"} <= set(table.columns):
        raise InputError(
            f"a split's columns are condition (and context, or cell), part and stratum, not {some(table.columns)}"
        )
    key = sorted(key)
    table = table[[*key, "part", "stratum"]].astype(str).astype(object)
    odd = sorted(set(table["part"]) - set(PARTS))
    if odd:
        raise InputError(f"parts are spelled {', '.join(PARTS)}, not {some(map(repr, odd))}")
    unique = key[:1] if "cell" in key else key
    twice = table.duplicated(unique, keep=False)
    if twice.any():
        names = table.loc[twice, unique].agg(" in ".join, axis=1).unique()
        raise InputError(f"these are named more than once: {some(names)}: leave one row of each")
    odd = sorted(c for c in table["condition"].unique() if join(genes_of(c)) != c)
    if odd:
        raise InputError(f"conditions are not in canonical spelling (A+B, sorted): {some(odd)}")
    if "cell" not in key:
        control = table["condition"] == CONTROL
        if (control & (table["part"] != "train")).any():
            raise InputError(f"'{CONTROL}' is held out, which only a split of cells can do: give it to train")
        table = table[~control]
    return table.sort_values(key, ignore_index=True)


def _rows(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n")


def _parse(path: str | os.PathLike) -> tuple[list[str], list[list[str]]]:
    """The comment lines at the top of a file and its rows as text: a gene may be called NA."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"there is no split file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the split file {path} cannot be read: {error}") from None
    start = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    body = [line for line in lines[start:] if line.strip()]
    delimiter = "\t" if body and "\t" in body[0] else ","
    rows = csv.reader(StringIO("\n".join(body)), delimiter=delimiter)
    return lines[:start], [[cell.strip() for cell in row] for row in rows]
