"""Other names of genes: screens and priors of different years call the same gene differently."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from scbig.errors import InputError
from scbig.priors.tables import read_table

__all__ = ["AliasTable", "Match", "read_aliases"]


@dataclass(frozen=True)
class Match:
    """Genes of a list, found among known names.

    Attributes:
        names: for every gene, the known name it was found under, or None.
        renamed: pairs of a gene and the other name under which it was found.
        ambiguous: genes left out because their other names do not settle which known gene is meant.
    """

    names: tuple[str | None, ...]
    renamed: tuple[tuple[str, str], ...]
    ambiguous: tuple[str, ...]


@dataclass(frozen=True)
class AliasTable:
    """Aliases and the approved symbols they stand for.

    Attributes:
        approved: alias to approved symbol, for aliases that mean one gene only.
        aliases: approved symbol to its aliases, sorted.
        ambiguous: aliases never used, and the symbols the table gives them: several, or the alias is
            itself the approved symbol of another gene.
    """

    approved: dict[str, str]
    aliases: dict[str, tuple[str, ...]]
    ambiguous: dict[str, tuple[str, ...]]

    @classmethod
    def build(cls, pairs: Iterable[tuple[str, str]], symbols: Collection[str] = ()) -> AliasTable:
        """From pairs of alias and approved symbol, and further approved symbols, which may have no alias."""
        meanings: dict[str, set[str]] = defaultdict(set)
        for alias, symbol in pairs:
            if alias != symbol:
                meanings[alias].add(symbol)
        official = set(symbols).union(*meanings.values())
        # An alias that is also an approved symbol means that gene, whatever else it was once used for.
        unclear = [alias for alias, those in meanings.items() if len(those) > 1 or alias in official]
        ambiguous = {alias: tuple(sorted(meanings.pop(alias))) for alias in unclear}
        approved = {alias: next(iter(those)) for alias, those in meanings.items()}
        back: dict[str, list[str]] = defaultdict(list)
        for alias, symbol in approved.items():
            back[symbol].append(alias)
        return cls(approved, {symbol: tuple(sorted(names)) for symbol, names in back.items()}, ambiguous)

    @classmethod
    def empty(cls) -> AliasTable:
        """A table that knows no other names."""
        return cls({}, {}, {})

    def resolve(self, genes: Collection[str], known: Collection[str]) -> list[str | None]:
        """The known name of every gene, or None; see :meth:`match`."""
        return list(self.match(genes, known).names)

    def match(self, genes: Collection[str], known: Collection[str]) -> Match:
        """Finds genes among known names.

        A gene that is known under its own name is found so. Otherwise its approved symbol is tried, then the
        other aliases of that symbol (the known names may be the older ones). A gene is left out as ambiguous
        where its name is an ambiguous alias of a known gene, where several aliases of it are known, or where
        the name it leads to is that of another gene in the list or is reached by several: two genes never
        share one vector.

        Args:
            genes: names to look up.
            known: names that a source has.
        """
        genes, known = list(genes), frozenset(known)
        listed = set(genes)
        found: dict[str, str] = {}
        ambiguous: set[str] = set()
        claims: dict[str, list[str]] = defaultdict(list)
        for gene in dict.fromkeys(genes):
            if gene in known:
                found[gene] = gene
                continue
            names = self._others(gene, known)
            if len(names) == 1 and names[0] not in listed:
                claims[names[0]].append(gene)
            elif names or not known.isdisjoint(self.ambiguous.get(gene, ())):
                ambiguous.add(gene)
        for name, claimants in claims.items():
            if len(claimants) == 1:
                found[claimants[0]] = name
            else:
                ambiguous.update(claimants)
        order = list(dict.fromkeys(genes))
        return Match(
            names=tuple(found.get(gene) for gene in genes),
            renamed=tuple((gene, found[gene]) for gene in order if found.get(gene, gene) != gene),
            ambiguous=tuple(gene for gene in order if gene in ambiguous),
        )

    def mapping(self, known: Collection[str]) -> dict[str, str]:
        """Every name in the table that leads to exactly one known name other than itself, and the latter."""
        known = frozenset(known)
        result = {}
        for gene in [*self.approved, *self.aliases]:
            names = [] if gene in known else self._others(gene, known)
            if len(names) == 1:
                result[gene] = names[0]
        return result

    def _others(self, gene: str, known: frozenset[str]) -> list[str]:
        """Known names that may mean the same gene: its approved symbol alone if known, else all aliases."""
        symbol = self.approved.get(gene, gene)
        if symbol in known:
            return [symbol]
        return [alias for alias in self.aliases.get(symbol, ()) if alias in known and alias != gene]


def read_aliases(path: str | os.PathLike, symbols: Collection[str] = ()) -> AliasTable:
    """Reads a table of aliases: tab- or comma-separated, with columns ``alias`` and ``symbol`` (gz too).

    Args:
        path: the table.
        symbols: approved symbols, where known, so that none of them is taken for an alias of another gene.

    Raises:
        InputError: the file is absent, damaged, lacks a column or holds an empty name.
    """
    table = read_table(path, columns=("alias", "symbol"))
    empty = (table == "").any(axis=1).to_numpy()
    if empty.any():
        raise InputError(f"{path}: line {int(empty.argmax()) + 2} lacks an alias or a symbol; remove or complete it")
    return AliasTable.build(zip(table["alias"], table["symbol"], strict=True), symbols)
