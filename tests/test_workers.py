"""Dask schedulers: one in another process, one that is gone, workers that die."""

import os
import time

import anndata as ad
import numpy as np
import pytest

from scbig import cli, workers
from scbig.errors import InputError


def test_without_a_scheduler_nothing_is_started():
    with workers.scheduler(None), workers.scheduler(""):
        assert workers.current() is None


def test_a_local_cluster_is_opened_once_and_closed():
    with workers.local(threads=2) as client:
        assert workers.current() is client and sum(client.nthreads().values()) == 2
        assert client.submit(os.getpid).result() == os.getpid()
        with workers.local() as again:
            assert again is client
        assert client.status == "running"
        assert list(workers.in_order(client, pow, [(i, 2) for i in range(20)], "now", ahead=3)) == [
            i * i for i in range(20)
        ]
    assert workers.current() is None and client.status == "closed"


def _slow(i):
    time.sleep(0.01 * (5 - i % 5))
    if i == 7:
        raise InputError("seven is wrong")
    return i


def test_results_keep_their_order_and_mistakes_stay_what_they_are():
    found = []
    with workers.local(threads=2) as client, pytest.raises(InputError, match="^seven is wrong$"):
        for each in workers.in_order(client, _slow, ((i,) for i in range(40)), "now"):
            found.append(each)
    assert found == list(range(7))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense"])
def test_a_scheduler_that_is_gone_is_one_line(address, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workers, "_SECONDS", 1)
    code = cli.main(["prepare", "--workdir", str(tmp_path / "w"), "--scheduler", address])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and line.startswith(f"error: no Dask scheduler answers at {address}")
    assert list(tmp_path.iterdir()) == [] and workers.current() is None


def test_dask_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'scbig\[large\]'"), workers.local():
        pass
    assert workers.current() is None


@pytest.mark.slow
def test_a_scheduler_in_another_process(dask_scheduler, tiny_screen, tiny_settings, tmp_path):
    """Preparation there gives what it gives here; a file that workers do not see, and workers that die, are told."""
    from scbig import config, stages

    settings = config.override(tiny_settings(), ["data.backend=memory"])
    stages.execute(tmp_path / "here", settings, ("prepare",))
    with workers.scheduler(dask_scheduler):
        client = workers.current()
        assert client.submit(os.getpid).result() != os.getpid()
        there = config.override(settings, ["data.backend=auto"])
        run = stages.execute(tmp_path / "there", there, ("prepare",))
        with pytest.raises(InputError, match=r"the Dask workers tcp://.* do not see .*nowhere.h5ad"):
            workers.refuse_unseen(client, tmp_path / "nowhere.h5ad")
        assert run.provenance["stages"]["prepare"]["remarks"]["backend"] == "dask"
        with pytest.raises(workers.DeadWorkers, match=r"^Dask workers died in this test \(tcp://.*memory ran out"):
            list(workers.in_order(client, os._exit, [(1,)], "in this test"))
    assert workers.current() is None
    one, two = (ad.read_h5ad(tmp_path / name / "prepared.h5ad") for name in ("here", "there"))
    np.testing.assert_array_equal(one.X.toarray(), two.X.toarray())
    assert one.obs.equals(two.obs) and one.var.equals(two.var)


@pytest.mark.slow
def test_a_scheduler_that_is_lost_on_the_way(dask_process):
    process, address = dask_process()
    calls = ((0.05,) for _ in range(1000))
    with workers.scheduler(address), pytest.raises(InputError, match="the Dask scheduler was lost while waiting"):
        for _ in workers.in_order(workers.current(), time.sleep, calls, "while waiting"):
            process.kill()
