import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scbig.nn.condition import ConditionEncoderConfig, Encoded
from scbig.nn.velocity import FlowNet, FlowNetConfig, VelocityField, time_features


def make(moving=True, **changes):
    field = VelocityField(FlowNetConfig(**{"latent": 4, "width": 16} | changes), 6, rngs=nnx.Rngs(params=0))
    if moving:
        field.leave.kernel[...] = jax.random.normal(jax.random.key(1), (16, 4))
        field.leave.bias[...] = jnp.arange(4.0)
    return field


def draw(c=3, n=5, tokens=2):
    rng = np.random.default_rng(0)
    present = np.arange(tokens)[None] < np.arange(1, c + 1)[:, None]
    return (
        jnp.asarray(rng.normal(size=(c, n, 4)), jnp.float32),
        jnp.asarray(rng.random((c, n)), jnp.float32),
        Encoded(
            jnp.asarray(rng.normal(size=(c, tokens, 6)) * present[..., None], jnp.float32),
            jnp.asarray(present),
            jnp.asarray(rng.normal(size=(c, 6)), jnp.float32),
        ),
    )


def some(condition, index):
    return jax.tree.map(lambda leaf: leaf[index], condition)


def test_it_starts_at_rest_and_control_stays_there():
    z, t, condition = draw()
    assert np.all(np.asarray(make(moving=False)(z, t, condition)) == 0)
    nothing = condition._replace(present=jnp.zeros_like(condition.present))
    assert np.all(np.asarray(make()(z, t, nothing)) == 0)


def test_a_condition_moves_only_its_own_cells_and_cells_move_alone():
    field, (z, t, condition) = make(), draw()
    whole = field(z, t, condition)
    one = slice(1, 2)
    np.testing.assert_allclose(field(z[one, 2:3], t[one, 2:3], some(condition, one))[0, 0], whole[1, 2], atol=1e-5)
    assert not np.allclose(field(z, t, some(condition, slice(None, None, -1))), whole)
    assert not np.allclose(field(z, 1 - t, condition), whole)


def test_a_pair_shifts_by_the_sum_of_its_singles_until_an_interaction_is_learned():
    field, (_, _, condition) = make(), draw(c=2)
    field.alone.kernel[...] = jax.random.normal(jax.random.key(3), (6, 4))
    pair = some(condition, slice(1, 2))
    singles = [Encoded(pair.tokens[:, [k]], pair.present[:, [k]], pair.pooled) for k in range(2)]
    total = field.shift(singles[0]) + field.shift(singles[1])
    np.testing.assert_allclose(field.shift(pair), total, atol=1e-5)
    assert float(jnp.abs(total).min()) > 0
    field.together.bias[...] = jnp.ones(4)
    np.testing.assert_allclose(field.shift(pair), total + 1.0, atol=1e-5)
    np.testing.assert_allclose(field.shift(singles[0]) + field.shift(singles[1]), total, atol=1e-5)
    assert not hasattr(make(interaction=False), "together")


def test_the_shift_moves_the_frame_and_the_flow_leaves_it_alone():
    """The residual sees cells where they would be without the shift, and its loss does not change the shift."""
    field, (z, t, condition) = make(), draw()
    before = field(z, t, condition)
    field.alone.kernel[...] = jax.random.normal(jax.random.key(3), (6, 4))
    shift = field.shift(condition)[:, None]
    np.testing.assert_allclose(field(z + t[..., None] * shift, t, condition) - shift, before, atol=1e-4)
    graph, params = nnx.split(field)
    gradient = jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(z, t, condition) ** 2))(params)
    assert np.all(np.asarray(gradient["alone"]["kernel"][...]) == 0)
    assert np.any(np.asarray(gradient["enter"]["kernel"][...]) != 0)


def test_one_time_for_all_cells_is_the_same_as_that_time_for_each():
    field, (z, _, condition) = make(), draw()
    np.testing.assert_allclose(
        field(z, jnp.full((3, 1), 0.3), condition), field(z, jnp.full((3, 5), 0.3), condition), atol=1e-6
    )


def test_cells_share_times_in_turn():
    field, (z, t, condition) = make(), draw(n=6)
    np.testing.assert_allclose(
        field(z, t[:, :2], condition), field(z, jnp.tile(t[:, :2], (1, 3)), condition), atol=1e-6
    )
    assert not np.allclose(field(z, t[:, :2], condition), field(z, jnp.repeat(t[:, :2], 3, axis=1), condition))


def test_time_features_are_bounded_and_distinct():
    features = time_features(jnp.linspace(0, 1, 50), 16)
    assert features.shape == (50, 32) and float(jnp.abs(features).max()) <= 1.0
    distances = jnp.linalg.norm(features[:, None] - features[None], axis=-1) + 10 * jnp.eye(50)
    assert float(distances.min()) > 0.05


def test_guidance_is_linear_in_its_scale_and_one_is_none():
    network = FlowNet(
        FlowNetConfig(latent=4, width=16), ConditionEncoderConfig(width=6), {"a": 3}, rngs=nnx.Rngs(params=0)
    )
    network.velocity.leave.kernel[...] = jax.random.normal(jax.random.key(1), (16, 4))
    network.encoder.null[...] = jnp.ones(6)
    z, t, condition = draw()
    at = {scale: network.guided(z, t, condition, scale) for scale in (0.0, 1.0, 3.0)}
    np.testing.assert_allclose(at[1.0], network.velocity(z, t, condition), atol=1e-6)
    np.testing.assert_allclose(at[3.0], at[0.0] + 3 * (at[1.0] - at[0.0]), atol=1e-4)
    assert not np.allclose(at[0.0], at[1.0])
