"""Public screens by name, fetched from their archives and checked against the archive's own record.

The record (Zenodo or figshare) is asked at download time for the file's address, size and MD5, so no checksum
is frozen here. A download that breaks off is continued later; a file that does not match is removed.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import anndata as ad

from scbig.errors import InputError, some
from scbig.files import atomic

__all__ = ["DATASETS", "PublicDataset", "describe", "fetch", "names", "tidy"]

_TIMEOUT = 60
_CHUNK = 1 << 20
_SCPERTURB = "https://zenodo.org/api/records/13350497"
_SCPERTURB_PAGE = "https://zenodo.org/records/13350497"
_HARMONISED = "Peidli et al. 2024 (scPerturb), doi:10.1038/s41592-023-02144-y"


@dataclass(frozen=True)
class PublicDataset:
    """A screen in a public archive.

    Attributes:
        title: what it is, in a few words.
        record: address of the archive's API record.
        page: address of the archive's page, for a browser.
        file: name of the file in the record.
        citation, licence: to be named by whoever uses it.
        data: the settings ``config.data`` needs to read the file.
        guide: pattern of the guide's name in the condition label, which ``tidy`` removes.
        drop: condition labels of cells without an assigned perturbation, which ``tidy`` removes.
        note: what to know before using it.
    """

    title: str
    record: str
    page: str
    file: str
    citation: str
    licence: str
    data: dict = field(default_factory=dict)
    guide: str = ""
    drop: tuple[str, ...] = ()
    note: str = ""


def _scperturb(title: str, file: str, citation: str, **more) -> PublicDataset:
    return PublicDataset(
        title=title,
        record=_SCPERTURB,
        page=_SCPERTURB_PAGE,
        file=file,
        citation=f"{citation}; {_HARMONISED}",
        licence="CC BY 4.0",
        **more,
    )


DATASETS: dict[str, PublicDataset] = {
    "norman2019": _scperturb(
        "K562, CRISPR activation, 105 genes singly and in 131 pairs",
        "NormanWeissman2019_filtered.h5ad",
        "Norman et al. 2019, doi:10.1126/science.aax4438",
        data={"condition": "perturbation", "separator": "_", "control": ("control",), "batch": "gemgroup"},
    ),
    "adamson2016": _scperturb(
        "K562, CRISPR interference, unfolded protein response",
        "AdamsonWeissman2016_GSM2406681_10X010.h5ad",
        "Adamson et al. 2016, doi:10.1016/j.cell.2016.11.048",
        data={"condition": "perturbation", "control": ("62(mod)", "63(mod)")},
        guide=r"_p[A-Z]+\d+$",
        drop=("*", "nan", "<NA>", "Gal4-4(mod)_pBA582"),
        note="labels name the guide's plasmid and no control; 62(mod) and 63(mod) carry the control guides",
    ),
    "dixit2016": _scperturb(
        "K562, CRISPR knockout of transcription factors",
        "DixitRegev2016.h5ad",
        "Dixit et al. 2016, doi:10.1016/j.cell.2016.11.038",
        data={"condition": "perturbation", "separator": "_", "control": ("control",)},
        drop=("None", "nan", "<NA>"),
        note="many cells carry several guides",
    ),
    "replogle2022_k562": _scperturb(
        "K562, CRISPR interference of essential genes",
        "ReplogleWeissman2022_K562_essential.h5ad",
        "Replogle et al. 2022, doi:10.1016/j.cell.2022.05.013",
        data={"condition": "perturbation", "control": ("control",), "batch": "batch"},
    ),
    "replogle2022_rpe1": _scperturb(
        "RPE1, CRISPR interference of essential genes",
        "ReplogleWeissman2022_rpe1.h5ad",
        "Replogle et al. 2022, doi:10.1016/j.cell.2022.05.013",
        data={"condition": "perturbation", "control": ("control",), "batch": "batch"},
    ),
    "papalexi2021": _scperturb(
        "THP-1, ECCITE-seq, CRISPR knockout of 25 genes",
        "PapalexiSatija2021_eccite_RNA.h5ad",
        "Papalexi et al. 2021, doi:10.1038/s41588-021-00778-2",
        data={"condition": "perturbation", "control": ("control",)},
        guide=r"g\d+$",
        note="labels name the guide (STAT1g2)",
    ),
    "combosciplex": PublicDataset(
        title="A549, drugs singly and in pairs (sci-Plex)",
        record="https://api.figshare.com/v2/articles/25062230",
        page="https://figshare.com/articles/dataset/combosciplex/25062230",
        file="combosciplex.h5ad",
        citation="Lotfollahi et al. 2023 (CPA), doi:10.15252/msb.202211517",
        licence="CC BY 4.0",
        data={
            "condition": "condition",
            "separator": "+",
            "control": ("control",),
            "targets": "none",
            "normalized": True,
        },
        note="X is log-normalised, layers['counts'] holds the counts; file 44229635",
    ),
    "kang2018": PublicDataset(
        title="PBMC of eight donors with and without interferon beta",
        record="https://api.figshare.com/v2/articles/19397624",
        page="https://figshare.com/articles/dataset/19397624",
        file="kang_counts_25k.h5ad",
        citation="Kang et al. 2018, doi:10.1038/nbt.4042",
        licence="CC BY 4.0",
        data={
            "condition": "label",
            "control": ("ctrl",),
            "context": "cell_type",
            "batch": "replicate",
            "targets": "none",
        },
        note="file 34464122",
    ),
}
"""Every public screen by its name here."""


@dataclass(frozen=True)
class _Entry:
    """What the archive's record says of a file; checksum as ``md5:hexadecimal``, empty where not offered."""

    url: str
    size: int
    checksum: str


def names() -> list[str]:
    """Names that ``fetch`` knows, sorted."""
    return sorted(DATASETS)


def describe(name: str) -> str:
    """One line on a data set: what it is, its archive, its licence and what to know.

    Raises:
        InputError: no data set has this name.
    """
    dataset = _known(name)
    note = f"; {dataset.note}" if dataset.note else ""
    where = f"{dataset.file}, {dataset.page}, {dataset.licence}"
    return f"{name}: {dataset.title} ({where}){note}. Cite {dataset.citation}"


def fetch(name: str, cache: str | os.PathLike | None = None) -> Path:
    """The path of a public screen, downloaded on first use and verified.

    Args:
        name: one of ``names()``.
        cache: folder that keeps downloads; by default ``$SCBIG_CACHE`` or the user's cache folder.

    Returns:
        Path of the file as the archive has it (``tidy`` brings its labels to genes).

    Raises:
        InputError: unknown name; archive out of reach; file not in the record; transfer broken off (what came
            is kept and continued next time); contents other than the record's checksum (nothing is kept).
    """
    import pooch

    dataset = _known(name)
    folder = Path(cache or os.environ.get("SCBIG_CACHE") or pooch.os_cache("scbig")) / name
    path = folder / dataset.file
    receipt = folder / f"{dataset.file}.json"
    if path.is_file() and receipt.is_file() and _agrees(path, json.loads(receipt.read_text())["checksum"]):
        return path
    try:
        entry = _ask(dataset, path)
    except _OutOfReach as problem:
        # A file put there by hand, as the message asks, is taken without the archive's word.
        if path.is_file() and not receipt.is_file() and _is_hdf5(path):
            return path
        raise InputError(_by_hand(dataset, path, str(problem))) from None
    if path.is_file() and not receipt.is_file() and not _agrees(path, entry.checksum):
        raise InputError(f"{path} was put there by hand and is not the archive's {dataset.file}: remove it")
    if not path.is_file() or not _agrees(path, entry.checksum):
        _download(dataset, entry, path)
    with atomic(receipt) as temporary:
        temporary.write_text(json.dumps({"checksum": entry.checksum, "size": entry.size, "url": entry.url}))
    return path


def tidy(name: str, adata: ad.AnnData) -> ad.AnnData:
    """Brings the condition labels of a fetched screen to genes: guide names off, unassigned cells dropped.

    Args:
        name: which data set ``adata`` was read from.
        adata: the file's contents; left as they are.

    Raises:
        InputError: no data set has this name, or the condition column is absent.
    """
    dataset = _known(name)
    column = dataset.data["condition"]
    if column not in adata.obs:
        raise InputError(f"{name}: obs[{column!r}] is absent; it has {some(adata.obs.columns)}")
    labels = adata.obs[column].astype("object")
    kept = (labels.notna() & ~labels.astype(str).isin(dataset.drop)).to_numpy()
    adata = adata[kept].copy()
    labels = labels[kept].astype(str)
    if dataset.guide:
        renamed = {label: re.sub(dataset.guide, "", label) for label in labels.unique()}
        labels = labels.map(renamed)
    adata.obs[column] = labels.astype("category")
    return adata


class _OutOfReach(Exception):
    """The archive could not be asked."""


def _known(name: str) -> PublicDataset:
    if name not in DATASETS:
        raise InputError(f"no public data set is called {name!r}: choose one of {some(names())}")
    return DATASETS[name]


def _by_hand(dataset: PublicDataset, path: Path, problem: str) -> str:
    return f"{dataset.file} cannot be fetched ({problem}): download it from {dataset.page} and put it at {path}"


def _ask(dataset: PublicDataset, path: Path) -> _Entry:
    """Reads the archive's record; Zenodo and figshare name the same things differently."""
    try:
        with urllib.request.urlopen(_request(dataset.record), timeout=_TIMEOUT) as response:
            record = json.loads(response.read())
    except (OSError, ValueError) as error:
        raise _OutOfReach(f"{dataset.record}: {getattr(error, 'reason', error)}") from None
    files = record.get("files", [])
    for file in files:
        if file.get("key", file.get("name")) != dataset.file:
            continue
        if "key" in file:
            return _Entry(file["links"]["self"], int(file.get("size", 0)), file.get("checksum", ""))
        md5 = file.get("computed_md5") or file.get("supplied_md5") or ""
        return _Entry(file["download_url"], int(file.get("size", 0)), f"md5:{md5}" if md5 else "")
    there = some(file.get("key", file.get("name")) for file in files)
    raise InputError(f"{dataset.record} has no file {dataset.file} (it has {there}): look at {dataset.page}")


def _request(url: str, start: int = 0) -> urllib.request.Request:
    headers = {"User-Agent": "scbig"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return urllib.request.Request(url, headers=headers)


def _download(dataset: PublicDataset, entry: _Entry, path: Path) -> None:
    """Puts the file at ``path`` if it is whole and matches the record; otherwise ``path`` does not exist."""
    import pooch

    part = path.with_name(path.name + ".part")
    path.unlink(missing_ok=True)

    def continued(url: str, output: str, _: object) -> None:
        _transfer(dataset, entry, url, part, path)
        os.replace(part, output)

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        pooch.retrieve(
            entry.url,
            known_hash=entry.checksum or None,
            fname=path.name,
            path=path.parent,
            downloader=continued,
        )
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{dataset.file} from {entry.url} does not match the archive's checksum {entry.checksum} and was "
            "removed: try again"
        ) from None
    if path.suffix == ".h5ad" and not _is_hdf5(path):
        path.unlink()
        raise InputError(_by_hand(dataset, path, f"{entry.url} gave something that is not an HDF5 file"))


def _transfer(dataset: PublicDataset, entry: _Entry, url: str, part: Path, path: Path) -> None:
    """Appends to ``part`` what it lacks; raises with what came kept if the connection breaks."""
    start = part.stat().st_size if part.is_file() else 0
    if entry.size and start > entry.size:
        part.unlink()
        start = 0
    if not entry.size or start < entry.size:
        try:
            with urllib.request.urlopen(_request(url, start), timeout=_TIMEOUT) as response:
                # figshare answers scripts with an empty 202 when it wants to see a browser.
                if response.status not in (200, 206):
                    raise InputError(_by_hand(dataset, path, f"{url}: {response.status} {response.reason}"))
                # A server that cannot continue sends everything again (200 instead of 206).
                with open(part, "ab" if response.status == 206 else "wb") as handle:
                    while chunk := response.read(_CHUNK):
                        handle.write(chunk)
        except urllib.error.HTTPError as error:
            raise InputError(_by_hand(dataset, path, f"{url}: {error.code} {error.reason}")) from None
        except (OSError, http.client.HTTPException) as error:
            raise InputError(_by_hand(dataset, path, f"{url}: {getattr(error, 'reason', error)}")) from None
    got = part.stat().st_size
    if entry.size and got < entry.size:
        raise InputError(
            f"{dataset.file}: the transfer from {url} broke off after {got} of {entry.size} bytes: "
            "run again to continue it"
        )


def _agrees(path: Path, checksum: str) -> bool:
    """Whether a file has this checksum (always, where the archive offers none)."""
    import pooch

    if not checksum:
        return True
    algorithm, _, digest = checksum.partition(":")
    return pooch.file_hash(str(path), alg=algorithm) == digest


def _is_hdf5(path: Path) -> bool:
    import h5py

    return bool(h5py.is_hdf5(path))
