"""Names of conditions: every spelling in circulation brought to ``control``, ``A`` or ``A+B``."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import partial

import numpy as np
import pandas as pd

from scbig.errors import InputError, some

__all__ = ["COLUMNS", "CONTROL", "as_text", "canonical", "find_condition_column", "genes_of", "is_control", "join"]

CONTROL = "control"

COLUMNS = (
    "perturbation",
    "perturbations",
    "perturbation_name",
    "perturbed_gene",
    "condition",
    "target_gene",
    "gene_target",
    "target",
    "gene",
    "sgRNA_target",
    "guide_target",
    "pert",
    "drug",
    "compound",
    "treatment",
    "stimulation",
    "stim",
)
"""Columns of ``obs`` that usually hold the condition."""

# Whole labels only, any case: symbols such as NT5E or NTS are safe because a full match is asked for.
_CONTROL_SPELLING = re.compile(
    r"(ctrl|control)s?[-_ .]?\d*|ctl"
    r"|(sg|pos_?|grna[-_]?)?neg(ative)?[-_ .]?(ctrl|control)s?.*"
    r"|(sg)?non[-_ .]?target(ing|ed)?([-_ .].*|\d*)"
    r"|(sg)?ntc?g?[-_ .]?\d*"
    r"|(sg)?nt[-_ .]?(ctrl|control)s?[-_ .]?\d*"
    r"|(sg)?scrambled?[-_ .]?\d*"
    r"|safe[-_ .]?target(ing)?([-_ .].*|\d*)"
    r"|(un|non[-_ ]?)(treated|perturbed|stimulated)"
    r"|vehicle([-_ ]control)?|dmso|pbs|mock",
    re.IGNORECASE,
)
# A separator inside brackets belongs to the name: "(+)-JQ1" is one drug.
_OUTSIDE_BRACKETS = r"(?![^(\[]*[)\]])"
_PLUS = re.compile(r"\+" + _OUTSIDE_BRACKETS)
# No symbol contains these, so they separate whatever stands around them.
_STRONG = ("+", "|", ";")
# Symbols and names of drugs can contain these, so they separate only parts that are known by themselves.
_WEAK = ("_", ",", "&", "/", ":")
# Read-through genes (RBM14-RBM4) look like pairs of known genes: a hyphen separates only if given.
_HYPHEN = "-"
_MISSING = ("", "nan")


def as_text(values: pd.Series) -> pd.Series:
    """A column as strings, each distinct one held once where the column is categorical: large screens need that."""
    if not isinstance(values.dtype, pd.CategoricalDtype):
        return values.astype(str).fillna("nan")  # which pandas 3 leaves missing
    names = np.append(values.cat.categories.astype(str).to_numpy(dtype=object), "nan")
    return pd.Series(names[values.cat.codes.to_numpy()], index=values.index, name=values.name, dtype=object)


def is_control(label: str) -> bool:
    """Whether a label is one of the usual spellings of an untouched or non-targeting control."""
    return _CONTROL_SPELLING.fullmatch(label.strip()) is not None


def genes_of(condition: str) -> tuple[str, ...]:
    """The perturbations in a condition: ``"A+B"`` gives ``("A", "B")``, ``"control"`` gives ``()``."""
    return () if condition == CONTROL else tuple(_PLUS.split(condition))


def join(genes: Iterable[str]) -> str:
    """The canonical condition: perturbations sorted, each once, joined by ``+``; ``"control"`` for none."""
    return "+".join(sorted(set(genes))) or CONTROL


def find_condition_column(obs: pd.DataFrame) -> str:
    """The one column of ``obs`` that usually holds the condition.

    Args:
        obs: the cells' table.

    Returns:
        The only column that ``COLUMNS`` lists (any case); of several with the same contents, the first.

    Raises:
        InputError: no such column, or several that differ.
    """
    order = {name.lower(): rank for rank, name in enumerate(COLUMNS)}
    found = sorted((c for c in obs.columns if str(c).lower() in order), key=lambda c: order[str(c).lower()])
    if not found:
        raise InputError(
            f"no column of obs looks like the condition; the columns are {some(obs.columns, 20)}: "
            "pass --config.data.condition=COLUMN"
        )
    first = obs[found[0]].astype(str)
    if any(not (obs[other].astype(str) == first).all() for other in found[1:]):
        raise InputError(
            f"several columns of obs could be the condition ({some(found)}): "
            "choose one with --config.data.condition=COLUMN"
        )
    return str(found[0])


def canonical(
    labels: Sequence[str] | pd.Series | pd.Index | np.ndarray,
    separator: str | None = None,
    control: Sequence[str] | str | None = None,
    known: Collection[str] = (),
) -> tuple[pd.Series, dict]:
    """Brings labels to canonical conditions.

    ``+``, ``|`` and ``;`` always separate. ``_`` and the like occur in names too, so such a label is
    split only where every part is a label by itself, a known gene or a spelling of control; a label that is
    itself a known gene is never split. A hyphen separates only when given. A separator that is given splits
    every label that contains it, and no other does.

    Args:
        labels: one label per cell (or per row of any table), of any length n.
        separator: what stands between the parts of a combination; found when None or empty.
        control: labels of control cells, ``*`` and ``?`` as wildcards; the usual spellings when not given.
        known: gene symbols that may stand in a combination, e.g. the genes of the panel.

    Returns:
        The conditions, a categorical series of length n with the index of ``labels``, and a report with
        ``separator`` and ``separator_source`` (``given``, ``found`` or ``none``), ``control_labels``
        (labels read as control), ``n_conditions`` (controls not counted), ``renamed`` (how many labels
        changed) and ``left_whole`` (labels with the separator in them which were not split).

    Raises:
        InputError: missing labels, a label with an empty part, two separators at once, a label of which only
            some parts are known, or a label ``control`` that is not among the given controls.
    """
    series = labels if isinstance(labels, pd.Series) else pd.Series(list(labels), dtype=object)
    codes, unique = pd.factorize(series, use_na_sentinel=True)
    raw = [str(label).strip() for label in unique]
    missing = int((codes < 0).sum()) + sum(int((codes == i).sum()) for i, r in enumerate(raw) if r.lower() in _MISSING)
    if missing:
        raise InputError(f"{missing} of {len(codes)} rows have no condition (empty or NaN): label or drop them first")
    given = [control] if isinstance(control, str) else list(control or [])
    given = [pattern for pattern in given if pattern]
    whole = {label: _given_or_usual(label, given) for label in raw}
    if given and CONTROL in whole and not whole[CONTROL]:
        raise InputError(
            f"the label '{CONTROL}' is not among the controls given ({some(given)}): "
            "add it with --config.data.control=, or rename or drop those cells"
        )
    todo = [label for label in whole if not whole[label]]
    if separator:
        parts, source = {label: _cut(label, separator) for label in todo}, "given"
    else:
        separator, parts = _found(todo, known, given)
        source = "found" if separator else "none"
    names = {label: CONTROL for label in whole if whole[label]}
    for label in todo:
        if any(not part for part in parts[label]):
            raise InputError(
                f"the label '{label}' has an empty part around '{separator}': correct it or pass a separator"
            )
        if len(parts[label]) > 1:
            names[label] = join(p for p in parts[label] if not is_control(p) and not _matches(p, given))
        else:
            names[label] = label
    # A '+' inside a part would read as a combination from here on.
    mixed = [label for label in todo if separator != "+" and any(_PLUS.search(part) for part in parts[label])]
    if mixed:
        raise InputError(
            f"labels contain '+' although the separator is '{separator}': {some(mixed)}: "
            "rename them, or pass --config.data.separator=+"
        )
    final = np.array([names[label] for label in raw], dtype=object)
    categories = sorted(set(final))
    lookup = {name: i for i, name in enumerate(categories)}
    place = np.array([lookup[name] for name in final], dtype=np.int64)
    result = pd.Series(
        pd.Categorical.from_codes(place[codes] if len(codes) else [], categories=pd.Index(categories, dtype=object)),
        index=series.index,
        name="condition",
    )
    report = {
        "separator": separator or "",
        "separator_source": source,
        "control_labels": sorted(label for label in whole if names[label] == CONTROL),
        "n_conditions": len(set(final) - {CONTROL}),
        "renamed": sum(names[label] != label for label in whole),
        "left_whole": sorted(s for s in todo if separator and separator in s and len(parts[s]) == 1),
    }
    return result, report


def _matches(label: str, patterns: Sequence[str]) -> bool:
    return any(label == pattern or fnmatchcase(label, pattern) for pattern in patterns)


def _given_or_usual(label: str, given: Sequence[str]) -> bool:
    return _matches(label, given) if given else is_control(label)


def _cut(label: str, separator: str) -> list[str]:
    return [part.strip() for part in re.split(re.escape(separator) + _OUTSIDE_BRACKETS, label)]


def _told(part: str, single: Collection[str], control: Sequence[str]) -> bool:
    return part in single or is_control(part) or _matches(part, control)


def _found(labels: Sequence[str], known: Collection[str], control: Sequence[str]) -> tuple[str, dict[str, list[str]]]:
    """The separator in use, if any, and the parts of each label."""
    known = set(known)
    strong = [s for s in _STRONG if any(len(_cut(label, s)) > 1 for label in labels)]
    if len(strong) > 1:
        raise InputError(
            f"labels are joined by more than one separator ({' and '.join(repr(s) for s in strong)}): "
            "pass one with --config.data.separator= and rename the rest"
        )
    if strong:
        return strong[0], {label: _cut(label, strong[0]) for label in labels}
    for separator in (*_WEAK, _HYPHEN):
        single = {label for label in labels if separator not in label} | known
        told = partial(_told, single=single, control=control)
        cut = {label: [label] if label in known else _cut(label, separator) for label in labels}
        split = [label for label in labels if len(cut[label]) > 1 and all(told(p) for p in cut[label])]
        split = [] if separator == _HYPHEN else split
        # Half-told labels are a guess once the separator is in use; so is a control beside an unknown name.
        half = partial(_told, single=single if split else (), control=control)
        doubtful = [s for s in labels if len(cut[s]) > 1 and s not in split and any(half(p) for p in cut[s])]
        if doubtful:
            raise InputError(
                f"these labels contain '{separator}', but only some of their parts are known: "
                f"{some(doubtful)}: pass --config.data.separator={separator} to split every label there, "
                "name the controls with --config.data.control=, or rename them"
            )
        if split:
            whole = set(labels) - set(split)
            return separator, {label: [label] if label in whole else cut[label] for label in labels}
    return "", {label: [label] for label in labels}
