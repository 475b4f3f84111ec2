"""Text in AnnData files: what pandas 3 and anndata 0.13 write is read here, and what is written here is read by all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anndata as ad
import numpy as np
import pandas as pd

__all__ = ["plain_text", "portable"]


@contextmanager
def portable() -> Iterator[None]:
    """Within the block AnnData writes text as arrays of strings, which versions before 0.11 read too.

    From pandas 3 on it would write groups of strings and a mask.
    """
    with ad.settings.override(allow_write_nullable_strings=False):
        yield


def plain_text(table: pd.DataFrame) -> pd.DataFrame:
    """A copy whose nullable text, in columns, categories and names of rows, is text that can be written again.

    Files of anndata 0.13 hold nullable text, which anndata 0.12 reads but refuses to write.
    """
    out = table.copy()
    for name, column in table.items():
        if isinstance(column.dtype, pd.CategoricalDtype):
            if _is_nullable(column.cat.categories):
                out[name] = column.cat.rename_categories(column.cat.categories.astype(object))
        elif _is_nullable(column):
            out[name] = column.astype(object).where(column.notna(), np.nan)
    if _is_nullable(table.index):
        out.index = table.index.astype(object)
    return out


def _is_nullable(values: pd.Series | pd.Index) -> bool:
    # Not the text of pandas 3, whose missing value is NaN.
    return isinstance(values.dtype, pd.StringDtype) and values.dtype.na_value is pd.NA
