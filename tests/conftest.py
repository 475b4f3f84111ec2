"""Fixtures shared by all tests."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real screens and priors, or a skip that says what is missing."""
    folder = Path(os.environ.get("SCBIG_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real screens are not here: {folder}/data is absent (set SCBIG_SHARED)")
    return folder
