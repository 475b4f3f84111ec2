"""The stream of training cells: each once per epoch, the right values, from any step on, whatever the thread does."""

import threading
from dataclasses import replace
from itertools import islice

import anndata as ad
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbig.data.store import Rows, open_store
from scbig.errors import InputError
from scbig.nn import GCAEConfig, ModuleLayout
from scbig.training import autoencoder, gcae
from scbig.training.feed import (
    Feed,
    Schedule,
    batches_per_call,
    choose_feed,
    densify,
    loader_rate,
    pack,
    resident,
    stored,
)  # fmt: skip

CELLS, GENES = 700, 12


@pytest.fixture(scope="module")
def screen():
    """The first gene of a cell holds its own number, so that a batch says which cells are in it."""
    random = np.random.default_rng(0)
    x = sp.random(CELLS, GENES, 0.3, "lil", np.float32, random_state=random)
    x[:, 0] = np.arange(1, CELLS + 1, dtype=np.float32)
    x[::50, 1:] = 1.0  # some cells are much fuller than others
    return x.tocsr(), random.random(CELLS) < 0.7


def numbers(piece):
    return piece[:, [0]].toarray().ravel().astype(int) - 1


@pytest.mark.parametrize(("buffer", "block"), [(10_000, 512), (64, 16), (1, 30)])
def test_every_training_cell_comes_once_per_epoch_and_no_other_ever(screen, buffer, block):
    x, train = screen
    rows = Rows.of(x).chosen(train)
    schedule = Schedule(rows, 0, buffer, block)
    n, epochs = len(rows), 3
    pieces = schedule.pieces(0, 32)
    seen = np.concatenate([numbers(next(pieces)) for _ in range(-(-epochs * n // 32))])
    wanted = np.flatnonzero(train)
    orders = [seen[e * n : (e + 1) * n] for e in range(epochs)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), wanted)
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], wanted)
    # Neighbours on disk are torn apart: in the file's order nearly all successors would be neighbours.
    assert np.mean(np.abs(np.diff(orders[0])) <= 2) < 0.35


def test_any_step_can_be_begun_at_and_gives_the_same_batches(screen):
    x, train = screen
    rows = Rows.of(x).chosen(train)
    whole = list(islice(Schedule(rows, 0, 64, 16).pieces(0, 20), 60))  # two epochs and more
    for step in (1, 23, 24, 25, 49):
        piece = next(Schedule(rows, 0, 64, 16).pieces(step * 20, 20))
        np.testing.assert_array_equal(piece.toarray(), whole[step].toarray())
    other = next(Schedule(rows, 1, 64, 16).pieces(0, 20))
    assert not np.array_equal(other.toarray(), whole[0].toarray())


def test_going_on_late_reads_one_buffer_and_not_what_came_before(screen):
    x, _ = screen
    rows, read = Rows.of(x), []

    class Counted(Rows):
        def _read(self, start, stop):
            read.append(stop - start)
            return super()._read(start, stop)

    counted = Counted(x.data, x.indices, x.indptr, GENES, "counted")
    piece = next(Schedule(counted, 0, 64, 16).pieces(CELLS * 7 + 500, 10))
    assert sum(read) <= 64 + 64 and max(read) <= 16  # the piece may stand on the border of two buffers
    np.testing.assert_array_equal(
        piece.toarray(), list(islice(Schedule(rows, 0, 64, 16).pieces(CELLS * 7, 10), 51))[50].toarray()
    )


def test_batches_on_the_device_are_the_dense_rows_and_none_overflows(screen):
    x, _ = screen
    rows, batch = Rows.of(x), 25
    width = stored(rows, batch)
    for piece in islice(Schedule(rows, 0, 100, 16).pieces(0, 2 * batch), 30):
        parts = pack(piece, batch, width)
        dense = jax.vmap(lambda v, p: densify(v, p, batch, GENES))(*map(jnp.asarray, parts))
        np.testing.assert_array_equal(np.asarray(dense).reshape(-1, GENES), piece.toarray())
    # The fullest cells together, twice over where two epochs meet, still fit; one more value would be refused.
    fullest = np.argsort(-rows.nnz, kind="stable")[: -(-batch // 2)]
    worst = rows[np.concatenate([fullest, fullest])[:batch]]
    assert worst.nnz <= width
    with pytest.raises(ValueError, match="does not fit"):
        pack(worst, batch, worst.nnz - 1)
    few = rows.chosen(np.arange(3))
    assert stored(few, batch) >= few.nnz.max() * batch
    np.testing.assert_array_equal(resident(rows, 64), x.toarray())


def test_calls_divide_the_chunk_and_stay_small():
    assert batches_per_call(50, 1000) == 50
    assert batches_per_call(50, 200_000) == 10
    assert batches_per_call(7, 10**9) == 1


def test_which_feed(screen):
    assert choose_feed("auto", 1.0, 100_000, 2_000)[0] == "device"
    kind, line = choose_feed("auto", 0.5, 100_000, 2_000)
    assert kind == "stream" and line == "feed stream (0.8 GB of cells, pretrain.device_gb allows 0.5)"
    assert choose_feed("auto", 0.0, 10_000_000, 2_000)[0] == "stream"
    assert choose_feed("device", 0.1, 100_000, 2_000) == ("device", "feed device (as asked)")
    with pytest.raises(InputError, match=r"pretrain\.feed=disk: there are auto, device, stream"):
        choose_feed("disk", 1.0, 1, 1)
    with pytest.raises(InputError, match=r"device_gb=-1 is below 0"):
        choose_feed("auto", -1.0, 1, 1)


def test_an_error_in_the_thread_is_raised_as_it_is_and_the_thread_ends(screen):
    x, _ = screen

    class Breaks(Schedule):
        def pieces(self, position, size):
            found = super().pieces(position, size)
            yield next(found)
            raise InputError("the file went away")

    before = threading.active_count()
    with Feed(Breaks(Rows.of(x), 0), stored(Rows.of(x), 20), 20, 2) as feed:
        feed.start(0)
        next(feed)
        with pytest.raises(InputError, match="^the file went away$"):
            next(feed)
    with Feed(Schedule(Rows.of(x), 0), stored(Rows.of(x), 20), 20, 2) as feed:
        feed.start(3)  # left while its queue is full
        next(feed)
    assert threading.active_count() == before
    assert feed.cells >= 40 and feed.rate > 0


def test_the_loader_has_a_rate(screen):
    assert loader_rate(screen[0], batch=20, calls=2, seconds=0.05) > 0


# --------------------------------------------------------------------------------------- stage 1 on the stream


CONFIG = gcae.PretrainConfig(
    epochs=6, batch=64, learning_rate=3e-3, warmup=2, patience=0, checkpoint_every=1, max_held_out=64, feed="stream"
)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Cells of three programs on disk, with an untrained autoencoder."""
    random = np.random.default_rng(0)
    programs = np.abs(random.normal(size=(3, GENES)))
    x = np.maximum(random.dirichlet(np.ones(3), CELLS) @ programs * 2 - 0.8, 0.0).astype(np.float32)
    path = tmp_path_factory.mktemp("cells") / "prepared.h5ad"
    obs = pd.DataFrame(index=[str(n) for n in range(CELLS)])
    ad.AnnData(sp.csr_matrix(x), obs=obs).write_h5ad(path)
    held = np.arange(CELLS) % 7 == 0
    layout = ModuleLayout(np.arange(GENES, dtype=np.int32).reshape(3, 4), np.ones((3, 4), bool))
    config = GCAEConfig(width=8, depth=1, heads=2, latent=3, encoder="mlp", decoder="mlp", dropout=0.0)
    return path, x, held, autoencoder.new(config, layout, 0)


def pretrained(cells, folder, config=CONFIG, seed=0):
    path, _, held, auto = cells
    with open_store(path) as store:
        return gcae.pretrain(auto, store.X, ~held, held, config, seed, folder / "c", folder)


def test_streaming_learns_what_the_device_learns(cells, tmp_path, capsys):
    _, x, held, _ = cells
    gcae.advance_streamed.clear_cache()
    auto, state = pretrained(cells, tmp_path / "s")
    assert gcae.advance_streamed._cache_size() == 1
    assert "pretrain: feed stream (as asked)" in (said := capsys.readouterr().out)
    assert "pretrain: feed stream, " in said and " cells/s" in said
    there, other = pretrained(cells, tmp_path / "d", replace(CONFIG, feed="device"))
    np.testing.assert_allclose(auto.gene_mean, x[~held].mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(auto.gene_mean, there.gene_mean)
    start = np.var(x[held] - x[~held].mean(axis=0))
    assert float(state.best_score) < 0.7 * start and float(other.best_score) < 0.7 * start
    # The latents of the training cells have mean zero and one global scale of one.
    z = autoencoder.encode_all(auto, x[~held])
    np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(np.sqrt(np.mean(z**2)), 1.0, rtol=1e-4)
    with open_store(cells[0]) as store:
        np.testing.assert_array_equal(autoencoder.encode_all(auto, store.X), autoencoder.encode_all(auto, x))


def test_a_stream_cut_short_and_continued_ends_in_the_same_bits(cells, tmp_path, monkeypatch):
    _, whole = pretrained(cells, tmp_path / "a")
    original, calls = gcae.advance_streamed, []

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(gcae, "advance_streamed", dies)
        with pytest.raises(KeyboardInterrupt):
            pretrained(cells, tmp_path / "b")
    assert threading.active_count() < 50 and not any(t.name == "feed" for t in threading.enumerate())
    _, resumed = pretrained(cells, tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    _, again = pretrained(cells, tmp_path / "b")  # finished: nothing is read any more
    jax.tree.map(np.testing.assert_array_equal, whole, again)
