"""Sampled cells written chunk by chunk: the same as in memory, in bounded memory, and whole or not at all."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr

from scbig import predict
from scbig.errors import InputError
from scbig.predict import output, tiles


@pytest.fixture(scope="module")
def predictor(tiny_run):
    """Of a run without an anchor; ``test_anchored.py`` writes one that has one."""
    return replace(predict.load(tiny_run), anchor=None)


@pytest.fixture(scope="module")
def names(predictor):
    return [*predictor.vocabulary.genes["identity"][:3], "control"]


def read(path):
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


def same(one, other):
    pd.testing.assert_frame_equal(one.obs, other.obs)
    pd.testing.assert_frame_equal(one.var, other.var)
    np.testing.assert_array_equal(one.X, other.X)
    np.testing.assert_array_equal(one.obsm["X_latent"], other.obsm["X_latent"])
    assert set(one.varm) == set(other.varm) and one.uns["scbig"] == other.uns["scbig"]
    for name in one.varm:
        pd.testing.assert_frame_equal(one.varm[name], other.varm[name])


@pytest.fixture
def small_buffers(monkeypatch):
    """Several chunks and shards even of few cells; names in parts."""
    monkeypatch.setattr(output, "_BUFFER", 60 * 60 * 4)
    monkeypatch.setattr(output, "_STORED", 20 * 60 * 4)
    monkeypatch.setattr(output, "_NAMES", 64)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_file_holds_what_memory_would(predictor, names, tmp_path, small_buffers, suffix):
    path = tmp_path / f"cells{suffix}"
    assert predictor.write(path, names, 47, seed=2) == 4 * 47
    same(read(path), predictor.sample(names, 47, seed=2))
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_an_ensemble_writes_what_it_samples(predictor, names, tmp_path, small_buffers, suffix):
    other = replace(predictor, z0=predictor.z0 + 0.1, name="other")
    both, path = predict.Ensemble((predictor, other, predictor)), tmp_path / f"cells{suffix}"
    assert both.write(path, names, 38) == 4 * 38
    written = read(path)
    same(written, both.sample(names, 38))
    assert written.obs_names.is_unique and set(written.varm) == {"spread", "seed_spread"}
    assert all(name.endswith(f"-r{run[-1]}") for name, run in zip(written.obs_names, written.obs["run"], strict=True))


def test_the_file_can_stay_on_disk(predictor, names, tmp_path):
    path = tmp_path / "cells.h5ad"
    predictor.write(path, names, 30)
    backed = ad.read_h5ad(path, backed="r")
    np.testing.assert_array_equal(backed[40:50].X, predictor.sample(names, 30).X[40:50])
    backed.file.close()
    with h5py.File(path) as file:
        assert file["X"].dtype == np.float32 and file["X"].compression == "lzf"


def test_zarr_is_format_3_in_shards(predictor, names, tmp_path, small_buffers):
    predictor.write(tmp_path / "cells.zarr", names, 47)
    root = zarr.open_group(str(tmp_path / "cells.zarr"), mode="r")
    assert root.metadata.zarr_format == 3 and root["X"].chunks == (20, 60) and root["X"].shards == (60, 60)
    assert len(list((tmp_path / "cells.zarr" / "X" / "c").rglob("0"))) >= -(-4 * 47 // 60)


def test_rows_are_kept_a_buffer_at_a_time(predictor, names, tmp_path, small_buffers, monkeypatch):
    held, tile = [], []
    monkeypatch.setattr(
        output._Rows, "flush", lambda self, old=output._Rows.flush: held.append(self._filled) or old(self)
    )
    fetch = tiles._fetch
    monkeypatch.setattr(tiles, "_fetch", lambda *args: tile.append(fetch(*args)) or tile[-1])
    predictor.write(tmp_path / "cells.h5ad", names, 1000)
    assert max(held) <= 60 and sum(held) == 2 * 4000
    assert max(len(chunk.x) for chunk in tile) <= 512


def test_another_ending_is_refused(predictor, names, tmp_path):
    with pytest.raises(InputError, match=r"cells.csv must end in .h5ad or .zarr"):
        predictor.write(tmp_path / "cells.csv", names, 5)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_what_fails_midway_leaves_what_was_there(predictor, names, tmp_path, monkeypatch, suffix):
    path, count = tmp_path / f"cells{suffix}", []
    predictor.write(path, names, 10)
    before = read(path).X
    fetch = tiles._fetch

    def stops(*args):
        count.append(1)
        if len(count) > 1:
            raise OSError(28, "No space left on device")
        return fetch(*args)

    monkeypatch.setattr(tiles, "_fetch", stops)
    with pytest.raises(InputError, match="no space is left while writing"):
        predictor.write(path, names, 600)
    assert os.listdir(tmp_path) == [path.name]
    np.testing.assert_array_equal(read(path).X, before)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="this system has no limit on the size of files")
def test_a_full_disk_leaves_nothing(tiny_run, names, shell_environment, tmp_path):
    code = textwrap.dedent(f"""
        import resource, signal, sys
        from scbig import cli
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        sys.exit(cli.main(["sample", "--workdir", {str(tiny_run)!r}, "--conditions", {",".join(names)!r},
                           "--n-cells", "2000", "--out", {str(tmp_path / "cells.h5ad")!r}]))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=shell_environment)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the file may not be so large while writing") and not os.listdir(tmp_path)


@pytest.mark.parametrize("sizes", [(5, 1, 9), (1,), (2, 2)])
def test_moments_by_parts_are_those_of_the_whole(sizes):
    rng = np.random.default_rng(0)
    parts = [rng.normal(5.0, 0.3, (n, 7)).astype(np.float32) for n in sizes]
    moments = output.Moments(2, 7)
    for part in parts:
        moments.add(1, part)
    moments.add(1, parts[0][:0])
    whole = np.concatenate(parts)
    np.testing.assert_allclose(moments.mean[1], whole.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(moments.spread(), [np.zeros(7), whole.std(axis=0)], atol=1e-5)
