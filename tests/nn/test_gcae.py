import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scbig.nn.attention import Attention, InducedBlock
from scbig.nn.gcae import GCAE, GCAEConfig, ModuleLayout

SIZES = (6, 5, 5, 0, 5)  # one module is empty, as unbalanced clusterings may have it
GENES = sum(SIZES)


def make_layout(order):
    index, mask, start = (
        np.zeros((len(SIZES), max(SIZES)), np.int32),
        np.zeros((len(SIZES), max(SIZES)), bool),
        0,
    )
    for k, size in enumerate(SIZES):
        index[k, :size], mask[k, :size] = order[start : start + size], True
        start += size
    return ModuleLayout(index, mask)


def make(layout=None, **changes):
    config = GCAEConfig(**{"width": 16, "depth": 2, "heads": 4, "inducing": 3, "latent": 7} | changes)
    rng = np.random.default_rng(0)
    summary = rng.normal(size=(len(SIZES), 9)).astype(np.float32)
    known = np.array([True, True, False, False, True])
    layout = layout or make_layout(rng.permutation(GENES))
    return GCAE(config, layout, summary, known, rngs=nnx.Rngs(params=0))


@pytest.fixture
def cells():
    return jnp.asarray(np.random.default_rng(1).normal(size=(4, GENES)), jnp.float32)


def test_layout_puts_every_gene_in_one_slot():
    layout = make_layout(np.random.default_rng(2).permutation(GENES))
    assert layout.n_genes == GENES
    np.testing.assert_array_equal(layout.index.ravel()[layout.slot_of_gene], np.arange(GENES))


@pytest.mark.parametrize("readout", ["mean", "concat"])
@pytest.mark.parametrize("kind", ["induced", "transformer", "mlp"])
def test_shapes_and_cells_do_not_see_one_another(kind, readout, cells):
    network = make(encoder=kind, decoder=kind, readout=readout)
    z, _ = network.encode(cells)
    x = network.decode(z)
    assert z.shape == (4, 7) and x.shape == (4, GENES)
    alone = network(cells[2:3])
    np.testing.assert_allclose(alone[0], x[2], atol=1e-5)


def test_padded_slots_and_their_weights_are_never_read(cells):
    network = make()
    before = network(cells)
    padded = jnp.asarray(~np.asarray(network.mask[...]))[:, :, None]
    network.project_in[...] = jnp.where(padded, 1e6, network.project_in[...])
    network.project_out[...] = jnp.where(jnp.swapaxes(padded, 1, 2), 1e6, network.project_out[...])
    np.testing.assert_array_equal(network(cells), before)


@pytest.mark.parametrize("kind", ["induced", "transformer"])
def test_an_empty_module_is_no_ones_neighbour(kind, cells):
    network = make(encoder=kind)
    before, _ = network.encode(cells)
    network.bias_in[...] = network.bias_in[...].at[3].set(100.0)
    after, _ = network.encode(cells)
    np.testing.assert_array_equal(after, before)


def test_what_is_not_known_of_a_module_is_not_read(cells):
    network = make()
    before = network(cells)
    network.summary[...] = network.summary[...].at[2].set(50.0)
    np.testing.assert_array_equal(network(cells), before)
    network.summary[...] = network.summary[...].at[0].set(50.0)
    assert not np.allclose(network(cells), before)


def test_gene_order_does_not_matter(cells):
    order = np.random.default_rng(3).permutation(GENES)
    base = make_layout(np.arange(GENES))
    moved = ModuleLayout(np.where(base.mask, order[base.index], 0).astype(np.int32), base.mask)
    shuffled = jnp.zeros_like(cells).at[:, order].set(cells)
    np.testing.assert_allclose(make(moved)(shuffled)[:, order], make(base)(cells), atol=1e-5)


def test_modules_have_their_own_weights_unless_shared():
    assert make().project_in[...].shape[0] == len(SIZES)
    assert make(shared_projection=True).project_in[...].shape[0] == 1


def test_attention_maps_are_distributions_over_the_modules_that_exist(cells):
    _, maps = make().encode(cells)
    assert len(maps) == 2
    assert maps[0]["compress"].shape == (4, 4, 3, len(SIZES))
    assert maps[0]["broadcast"].shape == (4, 4, len(SIZES), 3)
    for each in maps:
        for weights in each.values():
            np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
        assert np.all(np.asarray(each["compress"])[..., 3] == 0)


def test_attention_is_the_textbook_formula():
    layer = Attention(8, 2, rngs=nnx.Rngs(params=1))
    rng = np.random.default_rng(4)
    q, kv = rng.normal(size=(1, 3, 8)).astype(np.float32), rng.normal(size=(1, 5, 8)).astype(np.float32)
    out, weights = layer(jnp.asarray(q), jnp.asarray(kv))
    query, key, value = (
        np.asarray(x @ w.kernel[...]) for x, w in ((q, layer.query), (kv, layer.key), (kv, layer.value))
    )
    pieces = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        logits = query[0, :, part] @ key[0, :, part].T / 2.0
        soft = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(weights[0, head], soft, atol=1e-5)
        pieces.append(soft @ value[0, :, part])
    np.testing.assert_allclose(out[0], layer.out(np.concatenate(pieces, 1)), atol=1e-5)
    with pytest.raises(ValueError, match="does not divide"):
        Attention(10, 4, rngs=nnx.Rngs(params=1))


def test_dropout_needs_a_key_and_repeats_with_it(cells):
    network = make(dropout=0.5)
    np.testing.assert_array_equal(network(cells), network(cells))
    one = network(cells, jax.random.key(0))
    np.testing.assert_array_equal(one, network(cells, jax.random.key(0)))
    assert not np.allclose(one, network(cells, jax.random.key(1)))


def test_induced_block_ignores_the_order_of_tokens():
    block = InducedBlock(16, 4, 3, 2, 0.0, rngs=nnx.Rngs(params=0))
    tokens = jnp.asarray(np.random.default_rng(5).normal(size=(2, 6, 16)), jnp.float32)
    order = np.random.default_rng(6).permutation(6)
    np.testing.assert_allclose(block(tokens[:, order])[0], block(tokens)[0][:, order], atol=1e-5)


def test_only_counts_have_dispersions(cells):
    plain, counts = (nnx.state(make(likelihood=which), nnx.Param) for which in ("gaussian", "negative_binomial"))
    assert set(counts) - set(plain) == {"dispersion"} and counts["dispersion"][...].shape == (GENES,)
    # All else begins alike.
    np.testing.assert_array_equal(make(likelihood="negative_binomial")(cells), make()(cells))
    with pytest.raises(ValueError, match="no likelihood called 'poisson'"):
        make(likelihood="poisson")
