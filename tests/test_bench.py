"""``scbig bench``: figures of this machine from the code that trains and samples."""

import json
import shutil

import pytest

from scbig import stages
from scbig.errors import InputError
from scbig.run import Run
from scbig.stages import bench
from scbig.stages.common import load_prepared
from scbig.training import flow, gcae

SMALL = bench.Sizes(cells=1_000, genes=60, conditions=7)
KEYS = (
    "flow_step_over_network_floor", "train_cells_per_s", "sample_cells_per_s", "loader_cells_per_s", "peak_rss_gb",
    "flow_step_ms", "network_floor_ms", "gcae_step_ms", "pretrain_cells_per_s",
)  # fmt: skip


def sound(report):
    assert all(report[key] > 0 for key in KEYS)
    ratio = report["flow_step_ms"] / report["network_floor_ms"]
    assert report["flow_step_over_network_floor"] == pytest.approx(ratio)
    minutes = report["estimate_minutes"]
    assert minutes["all"] == pytest.approx(sum(minutes[name] for name in ("pretrain", "train", "sample")))


@pytest.fixture(scope="module")
def report(tiny_settings):
    programs = (gcae.advance, flow.advance, bench._network_only)
    for each in programs:
        each.clear_cache()
    found = bench.bench(tiny_settings(), SMALL, seconds=0.2)
    # With and without alignment; a program compiled again would have been timed.
    assert [each._cache_size() for each in programs] == [1, 2, 1]
    return found


def test_every_figure_is_there(report, tiny_settings):
    sound(report)
    c = tiny_settings()
    step = report["flow_step_ms"] * (1 + report["alignment_overhead"]) / 1e3
    assert report["train_cells_per_s"] == pytest.approx(min(c.flow.conditions, 7) * c.flow.cells / step)
    assert report["pretrain_cells_per_s"] == pytest.approx(c.pretrain.batch / report["gcae_step_ms"] * 1e3)
    assert report["estimate_minutes"]["train"] == pytest.approx(c.flow.steps * step / 60)
    assert json.loads(json.dumps(report)) == report


def test_the_table_names_what_was_measured(report, capsys):
    bench.show(report)
    out = capsys.readouterr().out
    assert "step over network" in out and "1,000 cells × 60 genes, 7 conditions" in out and "min" in out


def test_a_prepared_run_gives_its_own_size(tiny_run, tiny_settings, tmp_path):
    for file in ("prepared.h5ad", "split.csv", "config.json", "provenance.json"):
        shutil.copy(tiny_run / file, tmp_path / file)
    found = bench.bench(tiny_settings(), bench.Sizes(), Run(tmp_path), quick=True, seconds=0.2)
    sound(found)
    assert (found["sizes"]["cells"], found["sizes"]["genes"], found["sizes"]["conditions"]) == (800, 60, 16)
    assert 0 < found["sizes"]["train_cells"] < 800 and found["alignment_overhead"] is None


def test_training_cells_of_a_split_by_cells_are_counted(tiny_settings, tmp_path):
    settings = tiny_settings()
    settings.split.rule = "cells"
    run = stages.execute(tmp_path / "run", settings, ("prepare",))
    _, split, part = load_prepared(run)
    assert "cell" in split.key
    with bench._screen(settings, bench.Sizes(), run) as (rows, sizes):
        assert sizes.train_cells == int((part == "train").sum()) and sizes.cells == len(rows)


def test_a_run_that_is_not_prepared_is_refused(tiny_settings, tmp_path):
    with pytest.raises(InputError, match="stage prepare has not been run"):
        bench.bench(tiny_settings(), bench.Sizes(), Run(tmp_path))


@pytest.mark.parametrize("sizes", [{"cells": 10}, {"genes": 0}, {"conditions": 0}, {"cells": 1000, "conditions": 600}])
def test_sizes_that_nothing_can_be_measured_on_are_refused(sizes):
    with pytest.raises(InputError, match=f"--{list(sizes)[-1]} "):
        bench.Sizes(**sizes)


@pytest.mark.slow
def test_the_command_prints_json_and_nothing_else(shell, tiny_run):
    done = shell("bench", "--workdir", tiny_run, "--quick", "--json")
    assert done.returncode == 0, done.stderr
    sound(json.loads(done.stdout))
    assert "device: cpu" in done.stderr
    told = shell("bench", "--workdir", tiny_run, "--genes", "99")
    assert told.returncode == 2 and told.stderr.startswith("error: --genes does not go with --workdir")
