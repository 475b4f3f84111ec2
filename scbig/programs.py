"""How JAX's programs are compiled: the precision of their products, and where they are kept between processes."""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scbig.errors import InputError

__all__ = ["exact", "keep_compiled", "multiplies_in_bfloat16", "precision", "resolve_precision"]

_BFLOAT16 = "BF16_BF16_F32"  # operands rounded to bfloat16, sums in float32, results float32
_PRECISIONS = ("auto", "float32", "bfloat16")
_KEPT_SECONDS = 0.5  # programs that compile faster are not worth a file


def multiplies_in_bfloat16() -> bool:
    """Whether this device rounds the operands of a product to bfloat16 when asked to; CPUs go on in float32."""
    # Told from 1 by float32 and by the ten bits that GPUs use by default, not by bfloat16.
    x = np.full((16, 16), 1.0 + 2.0**-9, np.float32)
    try:
        product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=_BFLOAT16))(x, x)
        return bool(np.all(np.asarray(product) == 16.0))
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError):
        return False


def resolve_precision(wanted: str) -> str:
    """``float32`` or ``bfloat16``, from a setting that may also be ``auto``.

    Raises:
        InputError: for another word, or for bfloat16 on a device that does not do it.
    """
    if wanted not in _PRECISIONS:
        raise InputError(f"--config.precision={wanted}: there are {', '.join(_PRECISIONS)}")
    on_cpu = jax.devices()[0].platform == "cpu"
    if wanted == "float32" or (wanted == "auto" and on_cpu):
        return "float32"
    if multiplies_in_bfloat16():
        return "bfloat16"
    if wanted == "bfloat16":
        raise InputError(
            f"--config.precision=bfloat16: this {jax.devices()[0].device_kind} would multiply in float32 all the same; "
            "drop it, or run on a GPU that multiplies in bfloat16"
        )
    return "float32"


@contextmanager
def precision(wanted: str) -> Iterator[str]:
    """Products within the block are of this precision unless they ask for another; yields what ``auto`` came to.

    ``bfloat16`` rounds the operands of products; sums, parameters and activations are float32 as ever.
    """
    found = resolve_precision(wanted)
    on_cpu = jax.devices()[0].platform == "cpu"
    # Unasked, GPUs multiply float32 in fewer bits. On a CPU every choice is the same, so the program stays the same too.
    asked = _BFLOAT16 if found == "bfloat16" else None if on_cpu else "highest"
    with jax.default_matmul_precision(asked) if asked else _nothing():
        yield found


@contextmanager
def exact() -> Iterator[None]:
    """Products within the block are float32 within :func:`precision` too: what decides should not be rounded."""
    with jax.default_matmul_precision("highest") if _option("jax_default_matmul_precision") else _nothing():
        yield


def _option(name: str) -> str | None:
    """What JAX is set to; it makes its options when it is imported, where no checker of types sees them."""
    return getattr(jax.config, name)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


# ------------------------------------------------------------------------------------------- compiled programs


def keep_compiled(folder: str = "") -> str:
    """Has compiled programs kept on disk, so that the next process does not compile them again.

    Args:
        folder: where; empty: the folder in ``JAX_COMPILATION_CACHE_DIR``, else one in the user's cache; ``none``: nowhere.

    Returns:
        A line for the user where they cannot be kept, else the empty string.
    """
    if folder == "none":
        jax.config.update("jax_compilation_cache_dir", None)
        return ""
    if not folder and _option("jax_compilation_cache_dir"):
        return ""
    chosen = Path(folder) if folder else _user_cache() / "scbig" / "compiled"
    chosen = chosen / _machine()
    try:
        chosen.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=chosen):
            pass
    except OSError as problem:
        return (
            f"compiled programs are not kept: {chosen} cannot be written ({problem.strerror}); "
            "name a folder in JAX_COMPILATION_CACHE_DIR"
        )
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _KEPT_SECONDS)
    return ""


def _user_cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    return Path(given) if given else Path(os.path.expanduser("~"), ".cache")


def _machine() -> str:
    """A name for what compiled programs depend on: they may use instructions that another CPU lacks."""
    about = [platform.system(), platform.machine(), jax.__version__]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    about += sorted({line for line in lines if line.split(":")[0].strip() in ("model name", "flags", "Features")})
    return f"jax-{jax.__version__}-{hashlib.sha256(chr(10).join(about).encode()).hexdigest()[:12]}"
