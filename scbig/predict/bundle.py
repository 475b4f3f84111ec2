"""A trained model as one file, to sample from without the run that it came from.

The file is a zip archive. ``bundle.json`` names its members with the sha256 of each; unpacked, they are a small run
directory with parameters as named arrays and with control cells in place of the screen. Nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

from scbig.data.source import told_damage
from scbig.data.text import portable
from scbig.errors import InputError, some
from scbig.files import atomic, digest, full, no_space
from scbig.predict.cells import Cells
from scbig.run import Run

__all__ = ["FORMAT", "MANIFEST", "MEMBERS", "pack", "read_cells", "read_manifest", "unpacked", "write_cells"]

FORMAT = 1
"""Raised when older versions could not read, or would misread, what is written."""
MANIFEST = "bundle.json"
MEMBERS = (
    "model_card.md",
    "config.json",
    "modules.csv",
    "gcae/params.npz",
    "gcae/summary.npz",
    "flow/params.npz",
    "flow/conditions.npz",
    "flow/anchor.npz",
    "cells.h5ad",
)
"""Everything a bundle holds beside its manifest."""

_KIND = "scbig model"
_TIME = (1980, 1, 1, 0, 0, 0)  # of all members: the same model gives the same file
_CHUNK = 1 << 22


def write_cells(path: Path, cells: Cells) -> None:
    """Control cells with their latents, genes and normalisation; the genes alone where there are no cells."""
    adata = ad.AnnData(cells.x0, obs=cells.obs, var=cells.var, obsm={"X_latent": cells.z0}, uns={"scbig": cells.about})
    with atomic(path) as temporary, portable():
        adata.write_h5ad(temporary, compression="gzip")


def read_cells(path: Path) -> Cells:
    """What :func:`write_cells` wrote."""
    with told_damage(str(path)):
        adata = ad.read_h5ad(path)
    names = adata.obs_names.to_numpy().astype(object)
    return Cells(
        adata.obs.set_axis(names, axis=0),
        np.asarray(adata.obsm["X_latent"], np.float32),
        sp.csr_matrix(adata.X),
        adata.var,
        dict(adata.uns["scbig"]),
    )


def pack(folder: Path, out: Path, about: Mapping[str, Any]) -> dict[str, int]:
    """Writes the members in a folder to one file, whole or not at all.

    Args:
        folder: holds ``MEMBERS``.
        out: the file; replaced where it exists.
        about: entries of the manifest beside format and members.

    Returns:
        Size of each member, in bytes.
    """
    members, sizes = {}, {}
    for name in MEMBERS:
        sizes[name] = (folder / name).stat().st_size
        members[name] = {"sha256": digest(folder / name), "bytes": sizes[name]}
    manifest = {"format": FORMAT, "kind": _KIND, **about, "members": members}
    with atomic(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(_entry(MANIFEST), json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        for name in MEMBERS:
            with open(folder / name, "rb") as source, archive.open(_entry(name), "w", force_zip64=True) as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
    return sizes


def _entry(name: str) -> zipfile.ZipInfo:
    found = zipfile.ZipInfo(name, _TIME)
    # Arrays are compressed already, or cannot be.
    found.compress_type = zipfile.ZIP_DEFLATED if name.endswith((".csv", ".json", ".md")) else zipfile.ZIP_STORED
    found.external_attr = 0o644 << 16
    return found


def read_manifest(path: Path) -> dict[str, Any]:
    """What a bundle says of itself.

    Raises:
        InputError: where it is absent, damaged, none, or of a format that this version does not read.
    """
    with _opened(path) as archive:
        return _manifest(path, archive)


@contextmanager
def unpacked(path: Path) -> Iterator[Run]:
    """The bundle as a run directory that is gone after the block; every member is checked before it is used.

    Raises:
        InputError: where the file is absent, damaged, changed, incomplete, or of another format.
    """
    with tempfile.TemporaryDirectory(prefix="scbig-") as folder:
        with no_space(folder), _opened(path) as archive:
            members = _manifest(path, archive)["members"]
            for name in MEMBERS:
                _unpack(path, archive, name, members[name], Path(folder, name))
        yield Run(folder)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise InputError(f"no file {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as problem:
        if full(problem):
            raise
        raise InputError(f"{path} is truncated, damaged or no bundle ({problem}); {_AGAIN}") from problem


_AGAIN = "fetch it again, or write it with `scbig export`"


def _manifest(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    if MANIFEST not in archive.namelist():
        with open(path, "rb") as file:
            if MANIFEST.encode() in file.read(64):
                # Cut off behind a member that is an archive itself, whose end looks like that of the whole.
                raise zipfile.BadZipFile("its end is missing")
        raise InputError(f"{path} is no bundle of scBIG (it holds no {MANIFEST}); write one with `scbig export`")
    try:
        found = json.loads(archive.read(MANIFEST))
        version, kind = int(found["format"]), found["kind"]
        members = {str(name): (str(each["sha256"]), int(each["bytes"])) for name, each in found["members"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise InputError(f"{path}: {MANIFEST} is damaged ({problem}); {_AGAIN}") from problem
    if kind != _KIND or version != FORMAT:
        newer = version > FORMAT
        told = "install a newer scBIG" if newer else "export the run anew with this version"
        raise InputError(f"{path} is a bundle of format {version}, and this version reads {FORMAT}: {told}")
    there = set(archive.namelist()) - {MANIFEST}
    missing = [name for name in MEMBERS if name not in there or name not in members]
    if missing:
        raise InputError(f"{path} lacks {some(missing)}; {_AGAIN}")
    more = sorted((there | members.keys()) - set(MEMBERS))
    if more or len(archive.namelist()) != len(MEMBERS) + 1:
        raise InputError(f"{path} holds what no bundle does ({some(more) or 'a member twice'}); {_AGAIN}")
    return found


def _unpack(path: Path, archive: zipfile.ZipFile, name: str, known: Mapping[str, Any], target: Path) -> None:
    total, size = hashlib.sha256(), 0
    target.parent.mkdir(exist_ok=True)
    with archive.open(name) as source, open(target, "wb") as copy:
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            if size > known["bytes"]:
                break
            total.update(chunk)
            copy.write(chunk)
    if size != known["bytes"] or total.hexdigest() != known["sha256"]:
        raise InputError(f"{path}: {name} was changed or damaged after the export (its sha256 differs); {_AGAIN}")
