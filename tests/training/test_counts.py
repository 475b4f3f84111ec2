"""Stage 1 on counts: what was planted is found, at each cell's own depth, from the device and from the stream alike."""

from dataclasses import replace
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

from scbig.data.store import Rows
from scbig.errors import InputError
from scbig.nn import GCAEConfig, ModuleLayout
from scbig.training import autoencoder, gcae
from scbig.training.feed import Feed, Schedule, densify, stored

CELLS, GENES = 1200, 12
THETA = np.tile([0.7, 2.0, 8.0, 2.0], 3)
CONFIG = gcae.PretrainConfig(
    epochs=8, batch=64, learning_rate=2e-2, warmup=5, patience=0, checkpoint_every=100, max_held_out=128, feed="device"
)


@pytest.fixture(scope="module")
def screen():
    """Counts of two kinds of cells, which differ in the rates of eight genes, at depths that span a factor of eight."""
    random = np.random.default_rng(0)
    base, kind = np.exp(random.normal(1.2, 0.5, GENES)), random.random(CELLS) < 0.5
    rates = base[None] * np.exp(np.where(kind[:, None], 1.0, -1.0) * np.r_[np.ones(4), -np.ones(4), np.zeros(4)] * 0.8)
    depth = np.exp(random.uniform(-1.0, 1.0, CELLS)).astype(np.float32)
    counts = random.poisson(random.gamma(THETA, rates / THETA) * depth[:, None])
    return np.log1p(counts / depth[:, None]).astype(np.float32), rates, depth, counts


def new():
    layout = ModuleLayout(np.arange(GENES, dtype=np.int32).reshape(3, 4), np.ones((3, 4), bool))
    config = GCAEConfig(
        width=16, depth=1, heads=2, latent=1, encoder="mlp", decoder="mlp", dropout=0.0, likelihood="negative_binomial"
    )
    return autoencoder.new(config, layout, 0)


def pretrained(x, depth, folder, config=CONFIG):
    held = np.arange(CELLS) % 7 == 0
    return gcae.pretrain(new(), x, ~held, held, config, 0, folder / "c", folder, depth)


@pytest.fixture(scope="module")
def trained(screen, tmp_path_factory):
    return pretrained(screen[0], screen[2], tmp_path_factory.mktemp("device"))


def error_of(auto, x, rates):
    z = autoencoder.encode_all(auto, x)
    found = np.exp(autoencoder._in_batches(autoencoder._log_rates, auto, z, GENES))
    return np.abs(np.log(found / rates)).mean()


def test_planted_rates_and_dispersions_are_found(trained, screen):
    auto, state = trained
    x, rates, depth, counts = screen
    assert error_of(auto, x, rates) < 0.5 * np.abs(np.log(rates.mean(axis=0) / rates)).mean()
    seen = np.arange(CELLS) % 7 != 0
    np.testing.assert_allclose(auto.counts.log_rate, np.log(counts[seen].sum(axis=0) / depth[seen].sum()), atol=1e-4)
    np.testing.assert_allclose(auto.counts.depth, np.median(depth[seen]), rtol=1e-5)
    # Around the common mean, where training begins, genes that differ between kinds seem more dispersed than they are.
    start, end = np.exp(np.asarray(auto.counts.log_dispersion)), np.asarray(auto.inverse_dispersion())
    assert np.abs(np.log(end / THETA)).mean() < 0.35 < np.abs(np.log(start / THETA)).mean()
    assert float(state.best_score) > 0


def test_drawn_cells_vary_and_covary_as_real_ones(trained, screen):
    auto, _ = trained
    x, _, depth, _ = screen
    z = autoencoder.encode_all(auto, x)
    drawn = autoencoder.sample_all(auto, z, depth, [np.random.default_rng(n) for n in range(CELLS)])
    assert 0.85 < drawn.var(axis=0).sum() / x.var(axis=0).sum() < 1.15
    np.testing.assert_allclose((drawn == 0).mean(axis=0), (x == 0).mean(axis=0), atol=0.06)
    real, ours = np.corrcoef(x.T), np.corrcoef(drawn.T)
    assert np.abs(real - ours).mean() < 0.5 * np.abs(real - np.eye(GENES)).mean()
    decoded = autoencoder.decode_all(auto, z)
    assert decoded.var(axis=0).sum() < 0.7 * x.var(axis=0).sum()  # what is decoded is expected, and no draw
    np.testing.assert_allclose(decoded.mean(axis=0), x.mean(axis=0), atol=0.2)


def test_depth_of_other_cells_is_refused(screen, tmp_path):
    with pytest.raises(InputError, match="do not give whole counts"):
        pretrained(screen[0], screen[2][::-1], tmp_path)


def test_the_stream_learns_the_same(screen, trained, tmp_path):
    x, rates, depth, _ = screen
    auto, state = pretrained(x, depth, tmp_path, replace(CONFIG, feed="stream"))
    assert abs(float(state.best_score) - float(trained[1].best_score)) < 0.03
    assert error_of(auto, x, rates) < 0.35


@pytest.mark.parametrize("step", [0, 3, 97])
def test_the_stream_brings_each_cell_with_its_depth(step):
    # Both say which cell it is.
    numbers = np.arange(1.0, CELLS + 1, dtype=np.float32)
    kept, batch, calls = np.random.default_rng(0).random(CELLS) < 0.6, 25, 2
    rows = Rows.of(sp.csr_matrix(numbers[:, None])).chosen(kept)
    with Feed(Schedule(rows, 0, 128, 16), stored(rows, batch), batch, calls, numbers[kept] / 8) as feed:
        feed.start(step)
        whole = Schedule(rows, 0, 128, 16).pieces(0, batch)
        pieces = list(islice(whole, step, step + 20 * calls))
        for number in range(20):
            parts, depth = next(feed)
            cells = jnp.concatenate([densify(*each, batch, 1) for each in zip(*parts, strict=True)])
            np.testing.assert_array_equal(np.ravel(depth) * 8, np.ravel(cells))
            wanted = sp.vstack(pieces[number * calls : (number + 1) * calls]).toarray()
            np.testing.assert_array_equal(np.ravel(cells), wanted.ravel())


def test_an_autoencoder_of_counts_comes_back_from_its_files(trained, screen, tmp_path):
    auto, _ = trained
    autoencoder.save(auto, tmp_path / "params")
    again = autoencoder.load(new(), tmp_path / "params")
    for one, other in zip(jax.tree.leaves(auto), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(5, 1)), jnp.float32)
    np.testing.assert_array_equal(auto.decode(z), again.decode(z))
