"""The third alignment term: the mean effect under weights that go from uniform to differential."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

from scbig.data.store import Rows
from scbig.losses import mean_effect_loss
from scbig.nn import GCAEConfig, ModuleLayout
from scbig.stages.train import _gene_targets
from scbig.training import autoencoder
from scbig.training.flow import Alignment, FlowConfig, FlowTask, _aligned

LATENT, GENES = 3, 8


@pytest.fixture(scope="module")
def auto():
    layout = ModuleLayout(np.arange(GENES, dtype=np.int32).reshape(2, 4), np.ones((2, 4), bool))
    config = GCAEConfig(width=8, depth=1, heads=2, latent=LATENT, decoder="mlp", encoder="mlp")
    return autoencoder.new(config, layout, 0)


def test_the_term_is_the_scheduled_loss_of_the_mean(auto):
    rng = np.random.default_rng(0)
    cells = jnp.asarray(rng.normal(size=(2, 5, LATENT)), jnp.float32)
    weight = np.abs(rng.normal(size=(3, GENES)))
    weight /= weight.mean(axis=1, keepdims=True)
    none, mean = jnp.zeros((3, 2, 2)), jnp.asarray(rng.normal(size=(3, GENES)), jnp.float32)
    flat = jnp.zeros((2, GENES))
    alignment = Alignment(none, flat, flat, jnp.zeros((1, 2)), None, mean, jnp.asarray(weight, jnp.float32))
    task = FlowTask(None, None, auto, alignment, None, jnp.zeros((GENES, 1)), jnp.zeros(GENES))
    config = FlowConfig(
        steps=100, lambda_corr=0.0, lambda_path=0.0, lambda_gene=3.0, align_every=2, align_conditions=2, align_cells=5
    )
    groups = jnp.asarray([2, 0])
    decoded = np.asarray(auto.decode(cells.reshape(-1, LATENT))).reshape(2, 5, GENES)

    def found(step, config=config):
        value, parts = _aligned(cells, task, config, groups, jnp.zeros((2, 5), int), jnp.asarray(step))
        return float(value), {name: float(part) for name, part in parts.items()}

    for step, share in ((0, 0.0), (100, 1.0)):
        mixed = 1 + share * (weight - 1)
        each = [
            float(mean_effect_loss(jnp.asarray(decoded[i]), mean[g], jnp.asarray(mixed[g], jnp.float32)))
            for i, g in enumerate((2, 0))
        ]
        # In every second step with twice the weight.
        value, parts = found(step)
        assert value == pytest.approx(2 * 3 * np.mean(each), rel=1e-4)
        assert parts["gene"] == pytest.approx(2 * np.mean(each), rel=1e-4)
    assert found(1)[0] == 0.0
    assert "gene" not in found(0, replace(config, lambda_gene=0.0))[1]


def test_targets_are_means_of_reconstructions_and_weights_follow_the_genes_that_move(auto):
    rng = np.random.default_rng(1)
    x = rng.normal(1.0, 0.2, size=(240, GENES))
    x[80:160, 2] += 1.0  # the first group moves gene 2, the second nothing
    table = sp.csr_matrix(x.astype(np.float32))
    rows = Rows.of(table)
    z = rng.normal(size=(240, LATENT)).astype(np.float32)
    members, controls = [np.arange(80, 160), np.arange(160, 240)], np.arange(80)
    mean, weight = _gene_targets(rows, auto, z, members, [controls, controls], np.random.default_rng(0))
    expected = np.stack([autoencoder.decode_all(auto, z[cells]).mean(axis=0) for cells in members])
    np.testing.assert_allclose(mean, expected, atol=1e-5)
    np.testing.assert_allclose(weight.mean(axis=1), 1.0, rtol=1e-5)
    assert weight[0].argmax() == 2 and weight[0, 2] > 6 and weight[1, 2] < 4
