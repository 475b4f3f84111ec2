import jax.numpy as jnp
import numpy as np
import pytest

from scbig import flow

START = jnp.asarray([[1.0, -2.0], [0.5, 3.0]])


def rotation(z, t):
    """z' = 2 J z (1 + t): the exact solution turns by 3 radians."""
    return 2.0 * (1.0 + t) * jnp.stack([-z[:, 1], z[:, 0]], axis=1)


def exact():
    c, s = np.cos(3.0), np.sin(3.0)
    return np.asarray(START) @ np.array([[c, s], [-s, c]])


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_error_falls_with_the_order_of_the_solver(solver, order):
    errors = [np.abs(flow.integrate(rotation, START, n, solver) - exact()).max() for n in (16, 32)]
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.35, errors


def test_adaptive_reference_agrees():
    np.testing.assert_allclose(flow.integrate_adaptive(rotation, START, 1e-6), exact(), atol=1e-4)
    np.testing.assert_allclose(flow.integrate(rotation, START, 40, "rk4"), exact(), atol=1e-4)
