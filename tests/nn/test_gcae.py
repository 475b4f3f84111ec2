import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scbig.modules import Modules
from scbig.nn.attention import Attention, InducedBlock
from scbig.nn.gcae import GCAE, GCAEConfig, ModuleLayout, _AttentionPool, _MultiheadPool

READOUTS = ("mean", "attention", "pma", "concat")
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


@pytest.mark.parametrize("readout", READOUTS)
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


@pytest.mark.parametrize(
    ("kind", "readout"), [("induced", "mean"), ("transformer", "mean"), *(("induced", each) for each in READOUTS[1:])]
)
def test_an_empty_module_is_no_ones_neighbour(kind, readout, cells):
    network = make(encoder=kind, readout=readout)
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


USED = jnp.array([[True, True, False, True]])


@pytest.fixture
def tokens():
    return jnp.asarray(np.random.default_rng(7).normal(size=(3, 4, 8)), jnp.float32)


def test_the_attention_readout_is_an_average_by_the_weights_of_its_query(tokens):
    pool = _AttentionPool(8, rngs=nnx.Rngs(params=0))
    logits = np.asarray(pool.norm(tokens) @ pool.query.kernel[...])[..., 0]
    weights = np.where(np.asarray(USED), np.exp(logits), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(pool(tokens, USED), np.einsum("bk,bkd->bd", weights, tokens), atol=1e-5)
    # A query that knows no difference gives the mean of the tokens that exist.
    pool.query.kernel[...] = jnp.zeros((8, 1))
    mean = np.asarray(tokens)[:, [0, 1, 3]].mean(axis=1)
    np.testing.assert_allclose(pool(tokens, USED), mean, atol=1e-5)


@pytest.mark.parametrize("kind", ["attention", "pma"])
def test_pooled_readouts_know_neither_order_nor_what_is_masked(kind, tokens):
    config = GCAEConfig(width=8, heads=2, readout="pma", seeds=3)
    rngs = nnx.Rngs(params=0)
    pool = _AttentionPool(8, rngs=rngs) if kind == "attention" else _MultiheadPool(config, rngs=rngs)
    before = pool(tokens, USED)
    order = np.array([3, 2, 0, 1])
    np.testing.assert_allclose(pool(tokens[:, order], USED[:, order]), before, atol=1e-5)
    np.testing.assert_array_equal(pool(tokens.at[:, 2].set(1e3), USED), before)
    assert not np.allclose(pool(tokens.at[:, 1].set(1.0), USED), before, atol=1e-3)


def test_pooling_by_multihead_attention_is_a_seed_that_attends(tokens):
    pool = _MultiheadPool(GCAEConfig(width=8, heads=1, readout="pma", seeds=2), rngs=nnx.Rngs(params=0))
    found = pool(tokens, USED).reshape(3, 2, 8)
    norm = pool.norms[1](tokens)
    for number in range(2):
        seed = pool.seeds[...][0, number]
        query = pool.attention.query(pool.norms[0](seed))
        logits = np.asarray(pool.attention.key(norm) @ query) / np.sqrt(8.0)
        weights = np.where(np.asarray(USED), np.exp(logits), 0.0)
        weights /= weights.sum(axis=1, keepdims=True)
        moved = seed[None] + pool.attention.out(jnp.einsum("bk,bkd->bd", weights, pool.attention.value(norm)))
        np.testing.assert_allclose(found[:, number], moved + pool.mlp(pool.norms[2](moved)), atol=1e-4)
    assert not np.allclose(found[:, 0], found[:, 1], atol=1e-2)


def test_readouts_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="no readout called 'median'"):
        make(readout="median")


@pytest.fixture
def soft():
    """Six genes in three modules; gene A is half in module 1, F a quarter in module 0, the others in one alone."""
    return Modules(
        genes=tuple("ABCDEF"),
        module=np.array([0, 0, 1, 1, 2, 2]),
        rank=np.array([0, 1, 1, 0, 0, 1]),
        distance=np.zeros(6),
        extra=np.array([1, 2, 0, 2, 0, 0]),
        weight=np.array([0.5, 1.0, 1.0, 1.0, 1.0, 0.75]),
    )


def test_a_soft_gene_is_at_home_once_and_a_guest_once(soft):
    layout = ModuleLayout.of(soft)
    assert layout.n_genes == 6 and layout.home.shape == (3, 2)
    read = [sorted(layout.index[k][layout.mask[k]]) for k in range(3)]
    assert read == [[0, 1, 2, 4, 5], [0, 2, 3], [1, 3, 4, 5]]
    # Its shares add up to one.
    total = np.zeros(6)
    np.add.at(total, layout.index[layout.mask], layout.weight[layout.mask])
    np.testing.assert_allclose(total, 1.0)
    written = layout.index[:, :2].ravel()[layout.slot_of_gene]
    np.testing.assert_array_equal(written, np.arange(6))
    assert (layout.slot_of_gene // 2).tolist() == soft.module.tolist()
    hard = ModuleLayout.of(Modules(soft.genes, soft.module, soft.rank, soft.distance))
    assert hard.weight is None and hard.guest is None and hard.mask.shape == (3, 2)


def test_the_encoder_reads_a_soft_gene_in_both_modules_by_its_shares(soft):
    """As a network does whose panel holds every guest as a gene of its own, with both scaled beforehand."""
    layout = ModuleLayout.of(soft)
    config = GCAEConfig(width=16, depth=1, heads=4, inducing=3, latent=7)
    network = GCAE(config, layout, rngs=nnx.Rngs(params=0))
    index, guests = layout.index.copy(), np.argwhere(layout.guest)
    for place, (k, slot) in enumerate(guests):
        index[k, slot] = 6 + place
    wide = GCAE(config, ModuleLayout(index, layout.mask), rngs=nnx.Rngs(params=1))
    for name in ("project_in", "bias_in"):
        getattr(wide, name)[...] = getattr(network, name)[...]
    for name in ("encoder_blocks", "readout_norm", "readout"):
        nnx.update(getattr(wide, name), nnx.state(getattr(network, name)))
    x = np.random.default_rng(8).normal(size=(4, 6)).astype(np.float32)
    twice = x[:, layout.index[layout.guest]] * layout.weight[layout.guest]
    scaled = jnp.asarray(np.concatenate([x * soft.weight.astype(np.float32), twice], axis=1))
    np.testing.assert_allclose(network.encode(jnp.asarray(x))[0], wide.encode(scaled)[0], atol=1e-5)


def test_the_decoder_writes_a_soft_gene_from_its_home_alone(soft):
    network = GCAE(
        GCAEConfig(width=16, depth=1, heads=4, inducing=3, latent=7), ModuleLayout.of(soft), rngs=nnx.Rngs(params=0)
    )
    z = jnp.asarray(np.random.default_rng(9).normal(size=(4, 7)), jnp.float32)
    assert network.project_out[...].shape == (3, 16, 2)
    before = network.decode(z)
    network.bias_out[...] = network.bias_out[...].at[0].set(5.0)
    np.testing.assert_allclose(network.decode(z) - before, np.tile([5.0, 5.0, 0, 0, 0, 0], (4, 1)), atol=1e-4)
