import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scbig.data.public import DATASETS, PublicDataset, describe, fetch, names, tidy
from scbig.errors import InputError


class Archive:
    """A stand-in for Zenodo and figshare; counts what it is asked for."""

    def __init__(self, body: bytes):
        self.body = body
        self.md5 = hashlib.md5(body).hexdigest()
        self.served = body
        self.cut_at = None
        self.ranges = True
        self.status = 200
        self.asked: list[tuple[str, str | None]] = []

    def zenodo(self, base):
        checksum = f"md5:{self.md5}" if self.md5 else ""
        entry = {
            "key": "tiny.h5ad",
            "size": len(self.body),
            "checksum": checksum,
            "links": {"self": f"{base}/file"},
        }
        return {"files": [{"key": "other.h5ad", "links": {"self": ""}}, entry]}

    def figshare(self, base):
        entry = {"id": 1, "name": "tiny.h5ad", "size": len(self.body), "download_url": f"{base}/file"}
        return {"files": [{**entry, "computed_md5": self.md5}]}


@contextmanager
def serving(archive):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            wanted = self.headers.get("Range")
            archive.asked.append((self.path, wanted))
            base = f"http://127.0.0.1:{self.server.server_port}"
            if self.path != "/file":
                self.answer(200, json.dumps(getattr(archive, self.path.strip("/"))(base)).encode())
            elif archive.status != 200:
                self.answer(archive.status, b"gone")
            elif wanted and archive.ranges:
                self.answer(206, archive.served[int(wanted.removeprefix("bytes=").rstrip("-")) :])
            else:
                self.answer(200, archive.served, archive.cut_at)

        def answer(self, status, body, cut=None):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:cut])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def dataset(record):
    return PublicDataset(
        title="a tiny screen",
        record=record,
        page="https://archive.example/tiny",
        file="tiny.h5ad",
        citation="nobody",
        licence="CC0",
        data={"condition": "perturbation"},
        guide=r"g\d+$",
        drop=("*",),
    )


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    path = tmp_path_factory.mktemp("body") / "tiny.h5ad"
    ad.AnnData(np.arange(12.0, dtype=np.float32).reshape(4, 3)).write_h5ad(path)
    return path.read_bytes()


@pytest.fixture
def archive(body):
    return Archive(body)


@pytest.fixture
def site(archive, monkeypatch):
    with serving(archive) as base:
        monkeypatch.setitem(DATASETS, "tiny", dataset(f"{base}/zenodo"))
        yield base


def kept(cache):
    return sorted(p.name for p in cache.rglob("*") if p.is_file())


@pytest.mark.parametrize("kind", ["zenodo", "figshare"])
def test_fetches_verifies_and_then_needs_no_network(archive, site, monkeypatch, tmp_path, kind):
    monkeypatch.setitem(DATASETS, "tiny", dataset(f"{site}/{kind}"))
    path = fetch("tiny", tmp_path)
    assert path == tmp_path / "tiny" / "tiny.h5ad" and path.read_bytes() == archive.body
    assert kept(tmp_path) == ["tiny.h5ad", "tiny.h5ad.json"]
    before = len(archive.asked)
    assert fetch("tiny", tmp_path) == path
    assert len(archive.asked) == before


def test_cache_folder_from_the_environment(site, monkeypatch, tmp_path):
    monkeypatch.setenv("SCBIG_CACHE", str(tmp_path / "elsewhere"))
    assert fetch("tiny") == tmp_path / "elsewhere" / "tiny" / "tiny.h5ad"


def test_damaged_cache_is_fetched_again(archive, site, tmp_path):
    path = fetch("tiny", tmp_path)
    path.write_bytes(b"bit rot")
    assert fetch("tiny", tmp_path).read_bytes() == archive.body


def test_corrupted_download_is_named_and_removed(archive, site, tmp_path):
    archive.served = archive.body[:-1] + b"?"
    with pytest.raises(InputError, match=r"tiny\.h5ad .* does not match the archive's checksum md5:"):
        fetch("tiny", tmp_path)
    assert kept(tmp_path) == []


def test_without_checksum_a_page_instead_of_a_file_is_refused(archive, site, tmp_path):
    archive.md5 = ""
    archive.served = b"<html>are you a robot?</html>".ljust(len(archive.body))
    with pytest.raises(InputError, match="not an HDF5 file"):
        fetch("tiny", tmp_path)
    assert kept(tmp_path) == []


def test_file_not_in_the_record(archive, site, monkeypatch, tmp_path):
    monkeypatch.setattr(archive, "zenodo", lambda base: {"files": [{"key": "other.h5ad"}]})
    with pytest.raises(InputError, match=r"has no file tiny\.h5ad \(it has other\.h5ad\)"):
        fetch("tiny", tmp_path)
    assert kept(tmp_path) == []


@pytest.mark.parametrize("status", [404, 202])
def test_file_not_given_by_the_archive(archive, site, tmp_path, status):
    archive.status = status
    with pytest.raises(InputError, match=rf"{status}.*download it from https://archive\.example/tiny"):
        fetch("tiny", tmp_path)
    assert kept(tmp_path) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_interrupted_transfer_is_continued(archive, site, tmp_path, ranges):
    archive.cut_at = 100
    archive.ranges = ranges
    with pytest.raises(InputError, match=f"broke off after 100 of {len(archive.body)} bytes: run again"):
        fetch("tiny", tmp_path)
    assert kept(tmp_path) == ["tiny.h5ad.part"]
    archive.cut_at = None
    assert fetch("tiny", tmp_path).read_bytes() == archive.body
    assert archive.asked[-1] == ("/file", "bytes=100-")
    assert kept(tmp_path) == ["tiny.h5ad", "tiny.h5ad.json"]


def test_offline_says_what_to_fetch_and_where_to_put_it(archive, monkeypatch, tmp_path):
    with serving(archive) as base:
        pass
    monkeypatch.setitem(DATASETS, "tiny", dataset(f"{base}/zenodo"))
    place = tmp_path / "tiny" / "tiny.h5ad"
    with pytest.raises(InputError) as refusal:
        fetch("tiny", tmp_path)
    assert "https://archive.example/tiny" in str(refusal.value) and str(place) in str(refusal.value)
    assert "\n" not in str(refusal.value) and kept(tmp_path) == []
    # Done as told, the file is taken.
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(archive.body)
    assert fetch("tiny", tmp_path) == place


def test_wrong_file_put_there_by_hand_is_left_and_named(site, tmp_path):
    place = tmp_path / "tiny" / "tiny.h5ad"
    place.parent.mkdir()
    place.write_bytes(b"something else")
    with pytest.raises(InputError, match="put there by hand"):
        fetch("tiny", tmp_path)
    assert place.read_bytes() == b"something else"


def test_unknown_name_lists_the_known():
    for act in (fetch, describe):
        with pytest.raises(InputError, match=r"'norman': .*norman2019"):
            act("norman")


def test_table_is_complete():
    assert {
        "norman2019",
        "adamson2016",
        "dixit2016",
        "replogle2022_k562",
        "replogle2022_rpe1",
        "combosciplex",
        "papalexi2021",
        "kang2018",
    } <= set(names())
    for name in names():
        entry = DATASETS[name]
        assert entry.record.startswith("https://") and entry.file.endswith(".h5ad")
        assert entry.data["condition"] and entry.data["control"] and entry.licence
        assert entry.file in describe(name) and "\n" not in describe(name)


def test_tidy_brings_guides_to_genes(monkeypatch):
    monkeypatch.setitem(DATASETS, "tiny", dataset(""))
    obs = pd.DataFrame({"perturbation": ["STAT1g2", "STAT1g1", "control", "*", None]}, index=list("abcde"))
    before = ad.AnnData(np.eye(5, dtype=np.float32), obs=obs)
    after = tidy("tiny", before)
    assert after.obs["perturbation"].tolist() == ["STAT1", "STAT1", "control"]
    assert before.n_obs == 5
    with pytest.raises(InputError, match=r"'perturbation'.*absent"):
        tidy("tiny", ad.AnnData(np.eye(2, dtype=np.float32)))


@pytest.mark.parametrize(
    ("name", "label", "gene"),
    [
        ("adamson2016", "OST4_pDS353", "OST4"),
        ("adamson2016", "62(mod)_pBA581", "62(mod)"),
        ("papalexi2021", "IFNGR1g3", "IFNGR1"),
        ("norman2019", "CEBPA_KLF1", "CEBPA_KLF1"),
    ],
)
def test_tidy_knows_the_archives_labels(name, label, gene):
    adata = ad.AnnData(np.ones((1, 1), np.float32), obs=pd.DataFrame({"perturbation": [label]}, index=["a"]))
    assert tidy(name, adata).obs["perturbation"].tolist() == [gene]
