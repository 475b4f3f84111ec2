"""Scores on disk: tables for people and machines, and back."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scbig.errors import InputError
from scbig.evaluation.judge import Scores
from scbig.files import atomic

__all__ = ["FILES", "load", "save"]

FILES = ("per_condition.csv", "summary.json", "effects.npz")
"""What ``save`` writes and ``load`` reads."""

_TEXT = {"method": str, "condition": str, "context": str, "stratum": str, "metric": str}


def save(scores: Scores, folder: str | os.PathLike) -> None:
    """Writes ``per_condition.csv`` (tidy), ``summary.json`` and ``effects.npz``, each whole or not at all.

    Missing numbers are ``null`` in the JSON file.
    """
    folder = Path(folder)
    with atomic(folder / FILES[0]) as path:
        scores.per_condition.to_csv(path, index=False)
    document = {
        "schema": 1,
        "methods": scores.methods,
        "provenance": scores.provenance,
        "summary": _records(scores.summary),
        "conditions": _records(scores.conditions),
        "excluded": _records(scores.excluded),
    }
    with atomic(folder / FILES[1]) as path:
        path.write_text(json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False), encoding="utf-8")
    arrays = {f"predicted_{i}": scores.predicted[name] for i, name in enumerate(scores.methods)}
    with atomic(folder / FILES[2]) as path:
        np.savez_compressed(path, genes=np.array(scores.genes), observed=scores.observed, **arrays)


def load(folder: str | os.PathLike) -> Scores:
    """Reads what ``save`` wrote.

    Raises:
        InputError: a file is missing or damaged.
    """
    folder = Path(folder)
    absent = [name for name in FILES if not (folder / name).is_file()]
    if absent:
        raise InputError(f"{folder} holds no scores ({', '.join(absent)} missing): run evaluate first")
    try:
        document = json.loads((folder / FILES[1]).read_text(encoding="utf-8"))
        # Genes and conditions may be called NA: nothing but an empty value is missing.
        table = pd.read_csv(folder / FILES[0], dtype=_TEXT, keep_default_na=False, float_precision="round_trip")
        with np.load(folder / FILES[2], allow_pickle=False) as arrays:
            genes, observed = tuple(map(str, arrays["genes"])), arrays["observed"]
            predicted = {name: arrays[f"predicted_{i}"] for i, name in enumerate(document["methods"])}
        return Scores(
            per_condition=table.astype({"value": np.float64}),
            summary=_frame(document["summary"], numbers=("mean", "low", "high")),
            excluded=pd.DataFrame(document["excluded"], columns=["method", "condition", "context", "metric", "reason"]),
            conditions=pd.DataFrame(document["conditions"]),
            provenance=document["provenance"],
            genes=genes,
            observed=observed,
            predicted=predicted,
        )
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise InputError(f"the scores in {folder} are damaged ({error}): run evaluate again") from None


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{k: _plain(v) for k, v in row.items()} for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def _frame(rows: list[dict[str, Any]], numbers: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame(rows).astype(dict.fromkeys(numbers, np.float64))
