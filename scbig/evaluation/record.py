"""Scores on disk: tables for people and machines, and back."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scbig.errors import InputError
from scbig.evaluation.judge import Scores
from scbig.files import atomic

__all__ = ["FILES", "load", "save"]

FILES = ("per_condition.csv", "summary.json", "effects.npz", "ceilings.csv")
"""What ``save`` writes and ``load`` reads."""

_SCHEMA = 2
_SINCE_2 = ("ceilings.csv",)  # files that the first schema did not have

_TEXT = {"method": str, "condition": str, "context": str, "stratum": str, "metric": str, "kind": str}

# Columns of numbers in the tables of summary.json: an empty or missing entry is not a number.
_NUMBERS = {
    "summary": ("mean", "low", "high", "seed_sd"),
    "calibrated": ("score", "negative", "positive", "calibrated", "low", "high", "closed", "range"),
    "tests": ("mean", "low", "high", "p", "p_holm"),
    "seeds": ("mean",),
}


def save(scores: Scores, folder: str | os.PathLike) -> None:
    """Writes ``FILES``, each whole or not at all.

    ``per_condition.csv`` and ``ceilings.csv`` are tidy; ``summary.json`` holds every other table as a list of rows, with
    ``null`` for missing numbers.
    """
    folder = Path(folder)
    with atomic(folder / FILES[0]) as path:
        scores.per_condition.to_csv(path, index=False)
    with atomic(folder / FILES[3]) as path:
        scores.ceiling.to_csv(path, index=False)
    document = {
        "schema": _SCHEMA,
        "methods": scores.methods,
        "provenance": scores.provenance,
        "summary": _records(scores.summary),
        "calibrated": _records(scores.calibrated),
        "tests": _records(scores.tests),
        "seeds": _records(scores.seeds),
        "conditions": _records(scores.conditions),
        "excluded": _records(scores.excluded),
    }
    with atomic(folder / FILES[1]) as path:
        path.write_text(_as_text(document), encoding="utf-8")
    arrays = {f"predicted_{i}": scores.predicted[name] for i, name in enumerate(scores.methods)}
    with atomic(folder / FILES[2]) as path:
        np.savez_compressed(path, genes=np.array(scores.genes), observed=scores.observed, **arrays)


def load(folder: str | os.PathLike) -> Scores:
    """Reads what ``save`` wrote, now or by an earlier version, which knew no ceilings.

    Raises:
        InputError: a file is missing or damaged.
    """
    folder = Path(folder)
    absent = [name for name in FILES if not (folder / name).is_file()]
    if [name for name in absent if name not in _SINCE_2]:
        raise _absent(folder, absent)
    try:
        document = json.loads((folder / FILES[1]).read_text(encoding="utf-8"))
        if document["schema"] >= _SCHEMA and absent:
            raise _absent(folder, absent)
        table = _tidy(folder / FILES[0])
        with np.load(folder / FILES[2], allow_pickle=False) as arrays:
            genes, observed = tuple(map(str, arrays["genes"])), arrays["observed"]
            predicted = {name: arrays[f"predicted_{i}"] for i, name in enumerate(document["methods"])}
        return Scores(
            per_condition=table,
            summary=_frame(document["summary"], _NUMBERS["summary"]),
            excluded=pd.DataFrame(document["excluded"], columns=["method", "condition", "context", "metric", "reason"]),
            conditions=pd.DataFrame(document["conditions"]),
            provenance=document["provenance"],
            genes=genes,
            observed=observed,
            predicted=predicted,
            **_further(folder, document),
        )
    except (ValueError, KeyError, TypeError, OSError, EOFError) as error:
        raise InputError(f"the scores in {folder} are damaged ({error}): run evaluate again") from None


def _absent(folder: Path, names: list[str]) -> InputError:
    return InputError(f"{folder} holds no scores ({', '.join(names)} missing): run evaluate first")


def _further(folder: Path, document: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The tables that may be empty; an empty one is left to ``Scores``, which knows its columns."""
    found = {
        name: _frame(document[name], numbers)
        for name, numbers in _NUMBERS.items()
        if name != "summary" and document.get(name)
    }
    if (folder / FILES[3]).is_file():
        ceiling = _tidy(folder / FILES[3])
        if len(ceiling):
            found["ceiling"] = ceiling
    return found


def _tidy(path: Path) -> pd.DataFrame:
    # Genes and conditions may be called NA: nothing but an empty number is missing.
    # Read as text and made numbers by NumPy: to the last digit under every version of pandas.
    table = pd.read_csv(path, dtype=_TEXT | {"value": str, "sd": str}, keep_default_na=False)
    for name in ("value", "sd"):
        if name in table or name == "value":
            table[name] = table[name].replace("", "nan").to_numpy(dtype=object).astype(np.float64)
    return table


def _as_text(document: Mapping[str, Any]) -> str:
    """JSON with one line per row of a table."""

    def dump(value: Any) -> str:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)

    def block(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n  " + ",\n  ".join(map(dump, value)) + "\n ]"
        return dump(value)

    return "{\n" + ",\n".join(f" {dump(k)}: {block(v)}" for k, v in document.items()) + "\n}\n"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{k: _plain(v) for k, v in row.items()} for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def _frame(rows: list[dict[str, Any]], numbers: tuple[str, ...]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    return table.astype({name: np.float64 for name in numbers if name in table})
