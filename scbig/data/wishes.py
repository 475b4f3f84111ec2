"""What a configuration asks of preparation, read and checked once for both ways to do it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from ml_collections import ConfigDict

from scbig.data.splits import Split, make
from scbig.errors import InputError

__all__ = ["Wishes", "reading", "split_of"]


def reading(data: ConfigDict) -> dict[str, Any]:
    """The arguments of ``read`` that ``config.data`` gives, but for the floors."""
    control = _given(data, "control")
    columns = ("condition", "separator", "context", "batch", "dose", "size_factor", "layer")
    return {
        **{k: _given(data, k) for k in columns},
        "control": [c.strip() for c in control.split(",")] if isinstance(control, str) else control,
        "normalized": bool(_given(data, "normalized", False)),
        "make_unique": bool(_given(data, "make_unique", False)),
    }


@dataclass(frozen=True)
class Wishes:
    """What ``config`` asks of preparation, checked: see the groups ``data`` and ``split`` of ``scbig.config``."""

    source: Any
    targets: Literal["genes", "none"]
    floors: dict[str, int]
    min_cells: int
    size_factor: str | None
    target_sum: Any
    knockdown: str
    min_change: float
    n_top_genes: int
    allow_missing_targets: bool
    dose: str | None

    @classmethod
    def of(cls, path_or_adata: Any, data: ConfigDict) -> Wishes:
        """Reads them from ``config.data``.

        Raises:
            InputError: no screen is named, or targets that are neither genes nor none.
        """
        source = path_or_adata if path_or_adata is not None else _given(data, "path")
        if source is None:
            raise InputError("no screen is named: pass --config.data.path=FILE.h5ad or FILE.zarr")
        targets = _given(data, "targets", "genes")
        if targets not in ("genes", "none"):
            raise InputError(f"--config.data.targets={targets} is neither 'genes' nor 'none'")
        dose = _given(data, "dose")
        return cls(
            source=source,
            targets=targets,
            floors={k: int(_given(data, k, 0)) for k in ("min_genes", "min_cells_per_gene")},
            min_cells=int(_given(data, "min_cells", 1)),
            size_factor=_given(data, "size_factor"),
            target_sum=_given(data, "target_sum", "median"),
            knockdown=_given(data, "knockdown", ""),
            min_change=float(_given(data, "knockdown_min_change", 0.0)),
            n_top_genes=int(_given(data, "n_top_genes", 0)),
            allow_missing_targets=bool(_given(data, "allow_missing_targets", False)),
            dose=dose,
        )

    def refuse_prepared(self, marks: Mapping[str, Any]) -> None:
        """Refuses a screen that was prepared before.

        Raises:
            InputError: it was.
        """
        if "genes_chosen_on" in marks:
            raise InputError(
                f"{self.source if isinstance(self.source, str | os.PathLike) else 'the AnnData'} is already "
                f"prepared, for the split '{marks.get('split', '')}': give what it was made from, so that genes "
                "are chosen on the training cells of this split"
            )

    def needs_qc(self, marks: Mapping[str, Any]) -> bool:
        """Whether the limits on cells and genes were not applied while reading: canonical input comes back as it is."""
        return any(marks.get("read", {}).get(k, 0) != floor for k, floor in self.floors.items())

    def depth_column(self, marks: Mapping[str, Any]) -> str | None:
        """The column of depths, where it is not the one that was read."""
        return None if self.size_factor == marks["size_factor"] else self.size_factor

    @property
    def gene_targets(self) -> Literal["genes", "none"]:
        """Whether conditions name genes that must be measured."""
        return "none" if self.dose else self.targets


def split_of(obs: pd.DataFrame, config: ConfigDict) -> Split:
    """The split that ``config.split`` asks for."""
    return make(_given(config.split, "rule", ""), obs, config.split, int(_given(config, "seed", 0)))


def _given(settings: Mapping[str, Any] | ConfigDict, name: str, default: Any = None) -> Any:
    value = settings.get(name)
    return default if value is None or (isinstance(value, str) and not value) else value
