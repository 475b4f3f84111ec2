"""Orbax checkpoints of training states and of finished parameters."""

from __future__ import annotations

import math
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from scbig import devices
from scbig.errors import InputError, some
from scbig.files import atomic, no_space

__all__ = ["Checkpoints", "count_params", "export_params", "load_params", "save_params"]

_DRAIN = 1.0  # seconds in which the threads of a failed save come to their end, so that they write nothing later


def _abstract(tree: Any) -> Any:
    if devices.n_processes() > 1:
        return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _alone() -> ocp.options.MultiprocessingOptions:
    """Every process reads by itself, and the first writes by itself: Orbax should wait for none of the others."""
    if devices.n_processes() == 1:
        return ocp.options.MultiprocessingOptions()
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"p{me}")


def _checkpointer() -> ocp.StandardCheckpointer:
    return ocp.StandardCheckpointer(multiprocessing_options=_alone())


class Checkpoints:
    """The checkpoints of one training loop: the newest two whole states, with the loop's own record beside each.

    Of several processes the first writes and all read; what they write does not depend on how many they are.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self._folder = Path(folder).resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        # A step appears under its name only once it is whole, so a killed save is never restored.
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=False,
                enable_async_checkpointing=False,
                multiprocessing_options=_alone(),
            ),
        )

    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Writes the state and a JSON record under the step's number."""
        if not devices.is_first():
            return
        if devices.n_processes() > 1:
            state = jax.tree.map(np.asarray, state)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        with no_space(self._folder):
            try:
                self._manager.save(step, args=args)
            except Exception:
                time.sleep(_DRAIN)
                for part in self._folder.glob("*.orbax-checkpoint-tmp"):
                    shutil.rmtree(part, ignore_errors=True)
                raise

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest state and record, or None where there is no checkpoint yet.

        Raises:
            InputError: where the saved state has other shapes than the configuration asks for.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_abstract(like)), record=ocp.args.JsonRestore())
        try:
            found = self._manager.restore(step, args=args)
        except (ValueError, KeyError) as problem:
            raise InputError(
                f"the checkpoint {self._folder}/{step} does not fit this configuration: "
                f"{str(problem).splitlines()[0]}; rerun the stage with --force"
            ) from problem
        return found["state"], found["record"]

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()


def save_params(folder: Path, params: Any) -> None:
    """Writes finished parameters, whole or not at all."""
    if devices.n_processes() > 1:
        params = jax.tree.map(np.asarray, params)
    with atomic(folder) as temporary, _checkpointer() as checkpointer:
        checkpointer.save(Path(temporary).resolve(), params)


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(tree))


def load_params(folder: Path, like: Any) -> Any:
    """Reads parameters into the given structure: those of a run, or of an unpacked bundle from ``folder`` + ``.npz``.

    Raises:
        InputError: where they are absent or belong to another network.
    """
    folder = Path(folder).resolve()
    if (file := _portable(folder)).is_file():
        return _imported(file, like)
    if not folder.is_dir():
        raise InputError(f"no trained parameters in {folder}; run the stage that writes them first")
    with _checkpointer() as checkpointer:
        try:
            # Orbax finds out while it reads, and what it was still reading then complains on stderr for each array.
            kept, wanted = checkpointer.metadata(folder).item_metadata, _abstract(like)
            if kept is not None and _shapes(kept.tree) != _shapes(wanted):
                raise ValueError("its arrays have other shapes")
            return checkpointer.restore(folder, wanted)
        except (ValueError, KeyError, FileNotFoundError) as problem:
            raise InputError(
                f"the parameters in {folder} do not fit this network or are damaged: {str(problem).splitlines()[0]}"
            ) from problem


def export_params(folder: Path, params: Any) -> None:
    """Writes finished parameters to ``folder`` + ``.npz``: named arrays, which need neither Orbax nor its version.

    Raises:
        TypeError: for a type of number that NumPy does not have.
    """
    named = _named(params)
    strange = [name for name, leaf in named.items() if np.dtype(leaf.dtype).kind not in "biuf"]
    if strange:
        raise TypeError(f"parameters of a type that NumPy does not have: {some(strange)}")
    with atomic(_portable(folder)) as temporary:
        arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in named.items()}
        np.savez(temporary, **arrays)


def count_params(folder: Path) -> int:
    """How many numbers were trained, by the record beside them; nothing is read."""
    with _checkpointer() as checkpointer:
        tree = checkpointer.metadata(Path(folder).resolve()).item_metadata.tree
    # Beside the parameters of the autoencoder stand means and a scale.
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree.get("params", tree)))


def _portable(folder: Path) -> Path:
    return Path(f"{folder}.npz")


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by where they stand; what flax wraps each of them in is left out, since it changes with its versions."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = [key for key in path if not isinstance(key, jax.tree_util.GetAttrKey)]
        found["/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in keys)] = leaf
    return found


def _imported(file: Path, like: Any) -> Any:
    """What :func:`export_params` wrote, checked leaf by leaf."""
    wanted = _named(like)
    try:
        # Opened here, since a damaged archive is not closed by what reads it.
        with open(file, "rb") as raw, np.load(raw, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as problem:
        raise InputError(f"the parameters in {file} are damaged: {str(problem).splitlines()[0]}") from problem

    def looks(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
        return tuple(leaf.shape), np.dtype(leaf.dtype)

    wrong = [f"{name} is absent" for name in wanted if name not in found]
    wrong += [f"{name} has no place" for name in found if name not in wanted]
    wrong += [
        f"{name} is {found[name].dtype}{list(found[name].shape)} and should be {leaf.dtype}{list(leaf.shape)}"
        for name, leaf in wanted.items()
        if name in found and looks(found[name]) != looks(leaf)
    ]
    if wrong:
        raise InputError(f"the parameters in {file} do not fit this network: {some(wrong, 3)}")
    # The order of the names is that of the leaves.
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(found[name]) for name in wanted])
