"""What is known of perturbations: named embeddings, turned into the arrays that the condition encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import InputError, some
from scbig.files import atomic
from scbig.nn.condition import Bank, Conditions

__all__ = ["IDENTITY", "Group", "Vocabulary", "group_cells"]

IDENTITY = "identity"


class Group(NamedTuple):
    """Cells that one prediction answers for: a condition in a context, at a dose (0 where doses do not apply)."""

    condition: str
    context: str
    dose: float = 0.0


def group_cells(obs: pd.DataFrame) -> tuple[Int[np.ndarray, " cells"], list[Group]]:
    """The group of every cell (−1 for controls) and the groups, sorted."""
    dose = pd.to_numeric(obs["dose"]).fillna(0.0).to_numpy(float) if "dose" in obs else np.zeros(len(obs))
    table = pd.DataFrame(
        {
            "condition": obs["condition"].astype(str).to_numpy(),
            "context": obs["context"].astype(str).to_numpy(),
            "dose": dose,
        }
    )
    number = table.groupby(["condition", "context", "dose"], sort=True).ngroup().to_numpy()
    first = table.iloc[np.unique(number, return_index=True)[1]]
    groups = [Group(*row) for row in first.itertuples(index=False)]
    kept = [place for place, group in enumerate(groups) if group.condition != CONTROL]
    renumber = np.full(len(groups), -1)
    renumber[kept] = np.arange(len(kept))
    return renumber[number], [groups[place] for place in kept]


@dataclass(frozen=True)
class Vocabulary:
    """Embeddings of perturbations from several sources, by name.

    Attributes:
        genes: per source, the names it knows.
        vectors: per source, their vectors ``[names, dims]``, each of length √dims so that entries are of order one.
        alias: per source, other names of perturbations, to the name that it uses.
        contexts: the contexts of the training data, in the order of their numbers.
        trained: the perturbations of the training conditions, in the order of their rows in the bank.
    """

    genes: dict[str, tuple[str, ...]]
    vectors: dict[str, Float[np.ndarray, ...]]
    alias: dict[str, dict[str, str]]
    contexts: tuple[str, ...]
    trained: tuple[str, ...] = ()

    @classmethod
    def build(
        cls,
        embeddings: dict[str, tuple[Sequence[str], Float[np.ndarray, "names dims"]]],
        perturbations: Sequence[str],
        identity: bool,
        alias: dict[str, dict[str, str]],
        contexts: Sequence[str],
    ) -> Vocabulary:
        """From embeddings by source name.

        Args:
            embeddings: per source, names and vectors.
            perturbations: those of the training conditions; each gets a one-hot vector where ``identity`` is set, and a
                row in the bank.
            identity: whether there is such a source. It lets the model tell apart what the others cannot, and is
                masked for perturbations never trained on.
            alias: per source, other names, to the name that it uses.
            contexts: the contexts of the training data.
        """
        genes, vectors = {}, {}
        for name, (names, values) in embeddings.items():
            norm = np.linalg.norm(values, axis=1)
            # A vector of zeros says nothing; it counts as missing.
            kept = norm > 0
            genes[name] = tuple(np.asarray(names, str)[kept].tolist())
            scaled = values[kept] / norm[kept, None] * np.sqrt(values.shape[1])
            vectors[name] = scaled.astype(np.float16).astype(np.float32)
        if identity:
            genes[IDENTITY] = tuple(sorted(set(perturbations)))
            vectors[IDENTITY] = np.eye(len(genes[IDENTITY]), dtype=np.float32)
        if not genes:
            raise InputError(
                "no source tells perturbations apart; name embeddings in --config.priors.condition, "
                "or 'identity' to predict only perturbations that were trained on"
            )
        alias = {source: dict(names) for source, names in alias.items()}
        return cls(genes, vectors, alias, tuple(contexts), tuple(sorted(set(perturbations))))

    @property
    def dims(self) -> dict[str, int]:
        """Dimensions of each source."""
        return {name: values.shape[1] for name, values in self.vectors.items()}

    def place(self, source: str, perturbation: str) -> int | None:
        """The row of a perturbation in a source, under its own or another name; None where it is not known."""
        rows = self._rows[source]
        return rows.get(perturbation, rows.get(self.alias.get(source, {}).get(perturbation, "")))

    @cached_property
    def _rows(self) -> dict[str, dict[str, int]]:
        return {source: {name: row for row, name in enumerate(names)} for source, names in self.genes.items()}

    @cached_property
    def _own(self) -> dict[str | tuple[str, int], int]:
        """Row in the bank by name and by place in a source, since an alias of a trained perturbation is the same."""
        found: dict[str | tuple[str, int], int] = {name: row for row, name in enumerate(self.trained)}
        for source in self._compared:
            for row, name in enumerate(self.trained):
                if (at := self.place(source, name)) is not None:
                    found.setdefault((source, at), row)
        return found

    def _row(self, perturbation: str) -> int:
        places = [(source, self.place(source, perturbation)) for source in self._compared]
        return next((self._own[key] for key in (perturbation, *places) if key in self._own), -1)

    @property
    def _compared(self) -> list[str]:
        return [source for source in sorted(self.genes) if source != IDENTITY]

    def bank(self) -> Bank:
        """The vectors of the training perturbations in every source but their identity, by which none is like another.

        Raises:
            InputError: where there is no such source, or the vocabulary was written before banks were.
        """
        if not self._compared or not self.trained:
            raise InputError(
                "the kernel compares embeddings of the trained perturbations and there are none; name some in "
                "--config.priors.condition and train anew, or --config.condition.kernel=False"
            )
        places = {source: [self.place(source, name) for name in self.trained] for source in self._compared}
        sources, known = {}, {}
        for source, each in places.items():
            known[source] = jnp.asarray([at is not None for at in each])
            rows = self.vectors[source][[0 if at is None else at for at in each]]
            sources[source] = jnp.asarray(np.where(np.asarray(known[source])[:, None], rows, 0.0), jnp.float32)
        return Bank(sources, known)

    def unknown(self, perturbations: Sequence[str]) -> list[str]:
        """Those that no source knows."""
        return [p for p in dict.fromkeys(perturbations) if all(self.place(s, p) is None for s in self.genes)]

    def conditions(self, groups: Sequence[Group]) -> Conditions:
        """The encoder's arrays for the given groups.

        Raises:
            InputError: naming the perturbations that no source knows and the sources, or an unknown context.
        """
        tokens = [genes_of(group.condition) for group in groups]
        missing = self.unknown([p for group in tokens for p in group])
        if missing:
            raise InputError(
                f"no embedding for {some(missing)} in any source ({', '.join(sorted(self.genes))}); "
                f"add a source that has it to --config.priors.condition, or check the spelling"
            )
        strange = sorted({group.context for group in groups} - set(self.contexts))
        if strange:
            raise InputError(f"context {some(strange)} was not trained on; there are {', '.join(self.contexts)}")
        shape = (len(groups), max([1, *map(len, tokens)]))
        present, own = np.zeros(shape, bool), np.full(shape, -1)
        for row, names in enumerate(tokens):
            present[row, : len(names)] = True
            own[row, : len(names)] = [self._row(name) for name in names]
        sources, known = {}, {}
        for source in self.genes:
            sources[source] = np.zeros((*shape, self.vectors[source].shape[1]), np.float32)
            known[source] = np.zeros(shape, bool)
            for row, perturbations in enumerate(tokens):
                for column, p in enumerate(perturbations):
                    found = self.place(source, p)
                    if found is not None:
                        sources[source][row, column] = self.vectors[source][found]
                        known[source][row, column] = True
        dose = np.log1p(np.array([[group.dose] for group in groups], np.float32)) * present
        return Conditions(
            sources={name: jnp.asarray(value) for name, value in sources.items()},
            known={name: jnp.asarray(value) for name, value in known.items()},
            present=jnp.asarray(present),
            dose=jnp.asarray(dose, jnp.float32),
            context=jnp.asarray([self.contexts.index(group.context) for group in groups], jnp.int32),
            own=jnp.asarray(own, jnp.int32),
        )

    def coverage(self, perturbations: Sequence[str]) -> dict[str, list[str]]:
        """Per source, which of the perturbations it lacks."""
        return {s: [p for p in dict.fromkeys(perturbations) if self.place(s, p) is None] for s in self.genes}

    def save(self, path: Path) -> None:
        """Writes everything that sampling needs to know of perturbations, in one compressed file."""
        arrays = {"contexts": np.array(self.contexts, str), "trained": np.array(self.trained, str)}
        for source, names in self.genes.items():
            arrays[f"genes:{source}"] = np.array(names, str)
            pairs = [list(pair) for pair in self.alias.get(source, {}).items()]
            arrays[f"alias:{source}"] = np.array(pairs, str).reshape(-1, 2)
            arrays[f"vectors:{source}"] = self.vectors[source].astype(np.float16)
        with atomic(path) as temporary:
            np.savez_compressed(temporary, **arrays)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Reads what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            sources = [name.removeprefix("genes:") for name in file.files if name.startswith("genes:")]
            return cls(
                genes={source: tuple(file[f"genes:{source}"].tolist()) for source in sources},
                vectors={source: file[f"vectors:{source}"].astype(np.float32) for source in sources},
                alias={source: dict(file[f"alias:{source}"].tolist()) for source in sources},
                contexts=tuple(file["contexts"].tolist()),
                trained=tuple(file["trained"].tolist()) if "trained" in file.files else (),
            )
