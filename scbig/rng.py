"""Randomness: every draw is a function of one seed, a purpose and a step, so that a resumed run repeats a whole one."""

import zlib

import jax
import numpy as np

__all__ = ["generator", "key"]


def key(seed: int, purpose: str, step: int | jax.Array = 0) -> jax.Array:
    """The typed JAX key of one draw.

    Args:
        seed: the run's seed.
        purpose: what is drawn; different purposes give independent streams.
        step: the training step or any other counter; may be traced.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode())), step)


def generator(seed: int, purpose: str) -> np.random.Generator:
    """The NumPy generator of one purpose, for draws made on the host."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])
