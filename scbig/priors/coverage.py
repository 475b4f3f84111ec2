"""What an alignment of prior knowledge to a gene list found, and what it did not."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from scbig.errors import some

__all__ = ["Coverage"]


@dataclass(frozen=True)
class Coverage:
    """How much of a gene list, and of the perturbed genes, a source knows.

    Attributes:
        source: name of the source.
        n_genes: length of the gene list.
        n_found: how many of its genes the source knows.
        n_targets: number of perturbed genes asked for; they need not be in the gene list.
        n_targets_found: how many of these the source knows.
        missing: genes of the list that the source does not know, in the list's order.
        missing_targets: perturbed genes that it does not know.
        renamed: pairs of a gene and the other name under which it was found.
        ambiguous: missing genes whose other names point to more than one gene, or to a name that another gene
            of the list has a claim to, so that none was used.
    """

    source: str
    n_genes: int
    n_found: int
    n_targets: int
    n_targets_found: int
    missing: tuple[str, ...]
    missing_targets: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...] = ()
    ambiguous: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        source: str,
        found: dict[str, bool],
        targets: dict[str, bool],
        renamed: Collection[tuple[str, str]] = (),
        ambiguous: Collection[str] = (),
    ) -> Coverage:
        """Counts up what was found.

        Args:
            source: name of the source.
            found: every gene of the list, and whether the source knows it.
            targets: every perturbed gene, and whether the source knows it.
            renamed: pairs of a gene and the other name under which it was found.
            ambiguous: genes with more than one reading.
        """
        missing = tuple(gene for gene, known in found.items() if not known)
        missing_targets = tuple(gene for gene, known in targets.items() if not known)
        return cls(
            source=source,
            n_genes=len(found),
            n_found=len(found) - len(missing),
            n_targets=len(targets),
            n_targets_found=len(targets) - len(missing_targets),
            missing=missing,
            missing_targets=missing_targets,
            renamed=tuple(renamed),
            ambiguous=tuple(ambiguous),
        )

    def line(self) -> str:
        """One line for the screen; perturbed genes that are missing are named."""
        share = self.n_found / max(self.n_genes, 1)
        text = f"{self.source}: {self.n_found:,} of {self.n_genes:,} genes ({share:.0%})"
        if self.n_targets:
            text += f", {self.n_targets_found:,} of {self.n_targets:,} perturbed"
        if self.renamed:
            text += f", {len(self.renamed):,} through an alias"
        if self.ambiguous:
            text += f", {len(self.ambiguous):,} ambiguous and left out"
        if self.missing_targets:
            text += f"; perturbed but missing: {some(self.missing_targets)}"
        return text

    def to_dict(self) -> dict:
        """The same as plain lists, strings and numbers, ready for JSON."""
        return {
            "source": self.source,
            "n_genes": self.n_genes,
            "n_found": self.n_found,
            "n_targets": self.n_targets,
            "n_targets_found": self.n_targets_found,
            "missing": list(self.missing),
            "missing_targets": list(self.missing_targets),
            "renamed": [list(pair) for pair in self.renamed],
            "ambiguous": list(self.ambiguous),
        }
