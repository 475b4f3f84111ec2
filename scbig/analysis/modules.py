"""Gene modules: what they are called, whether their genes belong together, and which conditions move them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scbig.analysis import style
from scbig.analysis.chosen import rows_of, thinned
from scbig.analysis.coherence import coherence, correlation
from scbig.analysis.moves import changes
from scbig.analysis.section import Ask, Figure, Section
from scbig.data.conditions import CONTROL
from scbig.modules import Modules
from scbig.rng import generator

if TYPE_CHECKING:
    from scbig.analysis.view import View

__all__ = ["coherence", "enriched", "labels", "measures", "name_modules", "pretty", "report"]

_CELLS = 2_000  # control cells that correlations are taken over
_GENES = 600  # in the picture of them
_CONDITIONS = 70  # in the picture of changes
_TERMS = 2  # of a module in the picture of terms
_LONGEST = 32  # letters of a module's name
_COLLECTIONS = ("hallmark", "reactome", "go")  # the first that knows a module names it; others come after
_PREFIX = re.compile(r"^(HALLMARK|REACTOME|KEGG_MEDICUS|KEGG|WP|PID|BIOCARTA|GOBP|GOMF|GOCC|GO|HP)_")
_IDENTIFIER = re.compile(r"\s*\((R-[A-Z]{3}-\d+|GO:\d+|[A-Z]+:?\d{4,})\)$|^(GO:\d+|R-[A-Z]{3}-\d+)\s+")
# Sets named in capitals lose which letters are capitals; these are written another way than as a plain word.
_WRITTEN = {
    "tnfa": "TNFα", "nfkb": "NF-κB", "tgf": "TGF", "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ",
    "jak": "JAK", "myc": "MYC", "kras": "KRAS", "akt": "AKT", "wnt": "WNT", "mtor": "mTOR", "mtorc1": "mTORC1",
    "dna": "DNA", "rna": "RNA", "mrna": "mRNA", "trna": "tRNA", "rrna": "rRNA", "ncrna": "ncRNA", "uv": "UV",
    "er": "ER", "erk": "ERK", "egfr": "EGFR", "mhc": "MHC", "nadph": "NADPH", "atp": "ATP", "tca": "TCA",
    "signaling": "signalling", "dn": "(down)", "up": "(up)", "g2m": "G2/M", "pi3k": "PI3K", "mapk": "MAPK",
    "hiv": "HIV", "tcr": "TCR", "bcr": "BCR", "gpcr": "GPCR", "ecm": "ECM", "ros": "ROS", "ii": "II", "iii": "III",
}  # fmt: skip


def labels(view: View) -> tuple[str, ...]:
    """The name of every module of a run, in their order; see :func:`name_modules`."""
    return name_modules(view.modules, view.audit)


def name_modules(modules: Modules, audit: dict[str, Any]) -> tuple[str, ...]:
    """Names of modules, with the number that they have in ``modules.csv``, in at most 32 letters.

    A module is named for its best enriched term: of the Hallmark sets, else of Reactome, of GO or of any other collection;
    within it that of the least q, then the one with more genes in the module, then the smaller. Without one it is named
    for its most central genes.

    Args:
        modules: the partition.
        audit: from :func:`scbig.modules.audit`; only ``enrichment`` is looked at, which may be absent.

    Returns:
        Such as ``M7: TNFα signalling via NF-κB`` or ``M7: LYZ, S100A8, …``; no two are equal.
    """
    found = audit.get("enrichment", {})
    order = sorted(found, key=lambda name: (_place(name), name))
    names = []
    for k in range(modules.n_modules):
        head = f"M{k}: "
        best = next((_best(found[name]["top"][k]) for name in order if found[name]["top"][k]), None)
        room = _LONGEST - len(head)
        names.append(head + (_genes(modules.members(k), room) if best is None else _cut(pretty(best), room)))
    return tuple(names)


def pretty(term: str) -> str:
    """The name of a gene set as one would write it: no prefix, identifier or shouting.

    ``HALLMARK_TNFA_SIGNALING_VIA_NFKB`` becomes ``TNFα signalling via NF-κB``; names in ordinary letters stay as they are.
    """
    bare = _IDENTIFIER.sub("", term).strip() or term
    if bare != bare.upper() or "_" not in bare:
        return bare.replace("_", " ")
    words = _PREFIX.sub("", bare).lower().split("_")
    written = [_WRITTEN.get(w, w.upper() if re.search(r"\d", w) else w) for w in words if w]
    text = re.sub(r"\b(TGF|IFN|TNF) ([αβγ])", r"\1\2", " ".join(written))
    text = text.replace("β catenin", "β-catenin")
    return text[:1].upper() + text[1:] if written and written[0] == words[0] else text


def _place(collection: str) -> int:
    lowered = collection.lower()
    return next((i for i, name in enumerate(_COLLECTIONS) if lowered.startswith(name)), len(_COLLECTIONS))


def _best(terms: list[dict[str, Any]]) -> str:
    return min(terms, key=lambda t: (t["q"], -t["overlap"], t["term_genes"], t["term"]))["term"]


def _cut(text: str, most: int) -> str:
    """At most so many letters, cut between words where that leaves the half."""
    if len(text) <= most:
        return text
    short = text[: most - 1]
    if " " in short and short.rindex(" ") >= most // 2 and text[most - 1] != " ":
        short = short[: short.rindex(" ")]
    return short.rstrip(" ,;:-(") + "…"


def _genes(members: tuple[str, ...], most: int) -> str:
    """The first three members that there is room for."""
    for n in (3, 2, 1):
        text = ", ".join(members[:n]) + (", …" if len(members) > n else "")
        if len(text) <= most:
            return text
    return _cut(members[0], most)


def enriched(modules: Modules, audit: dict[str, Any]) -> pd.DataFrame:
    """The enriched terms of every module, a row each: ``fold``, ``p``, ``q`` (over all modules and terms of a collection).

    Args:
        modules: the partition.
        audit: from :func:`scbig.modules.audit`; it lists up to five terms of a module and collection, below q = 0.05.
    """
    names = name_modules(modules, audit)
    rows = [
        {"module": k, "name": names[k], "collection": collection, **term}
        for collection, found in audit.get("enrichment", {}).items()
        for k, terms in enumerate(found["top"])
        for term in terms
    ]
    columns = ["module", "name", "collection", "term", "overlap", "term_genes", "module_genes", "fold", "p", "q"]
    return pd.DataFrame(rows, columns=columns)


def measures(audit: dict[str, Any]) -> pd.DataFrame:
    """What the audit found of the partition as a whole, a row per measure with its ``value`` and ``meaning``."""
    rows = [
        ("genes", audit["n_genes"], "in the panel"),
        ("modules", audit["n_modules"], ""),
        ("smallest module", min(audit["sizes"]), "genes"),
        ("largest module", max(audit["sizes"]), "genes"),
    ]
    for key, among in (("ppi", "all genes"), ("connected", "genes with an interaction")):
        found = audit.get("ppi", {}) if key == "ppi" else audit.get("ppi", {}).get("connected", {})
        if found:
            against = f"labels permuted among {among}"
            rows += [
                (f"interactions, fold ({among})", found["fold"], f"density within modules over that of {against}"),
                (f"interactions, z ({among})", found["z"], f"against {against}"),
                (f"interactions, p ({among})", found["p"], f"share of {against} at least as dense"),
            ]
    for name, found in audit.get("enrichment", {}).items():
        rows.append((f"modules enriched in {name}", found["n_modules_enriched"], f"of {audit['n_modules']}, q < 0.05"))
    if "silhouette" in audit:
        rows.append(("silhouette", audit["silhouette"], "of embeddings, cosine distance; −1 to 1"))
    if "stability" in audit:
        rows.append(("stability", audit["stability"]["ari_mean"], "mean adjusted Rand index between seeds"))
    values = [None if value is None else float(value) for _, value, _ in rows]
    return pd.DataFrame({"measure": [r[0] for r in rows], "value": values, "meaning": [r[2] for r in rows]})


def report(view: View, ask: Ask) -> Section:
    """Names and enrichment of modules, coherence over control cells, and which conditions move them."""
    names, context = labels(view), _largest_context(view)
    rows = thinned(rows_of(view, CONTROL, context), _CELLS, ask.seed, "control cells of the modules")
    x = np.asarray(view.adata.X[rows].todense(), np.float32)
    within = coherence(x, view.modules.module, draws=ask.draws, permutations=ask.permutations, seed=ask.seed)
    within.insert(1, "name", [*names, "all modules"])
    terms = enriched(view.modules, view.audit)
    moved = changes(view.adata.X, view.obs, view.modules, _groups(view, context), names)
    genes = pd.DataFrame({"gene": view.modules.genes, "module": view.modules.module, "rank": view.modules.rank})
    genes["name"] = [names[k] for k in genes["module"]]
    figures = [
        Figure(
            "correlation",
            f"Correlation of genes over {len(rows):,} control cells, genes in the order of modules (left) and of random "
            "modules of the same sizes (right). Lines: borders of modules. Counting noise pulls correlations to zero.",
            lambda: _correlations(x, view.modules, ask.seed),
        ),
        Figure(
            "coherence",
            "Mean correlation of a module's genes with each other less that with other genes, over control cells, with its "
            "95% bootstrap interval over cells; grey: mean ± 2 standard deviations with modules permuted among genes of "
            f"like expression. Filled: q < {ask.alpha:g}.",
            lambda: _coherence(within, ask.alpha),
        ),
    ]
    if len(terms):
        figures.append(Figure(
            "terms", "Enriched terms, −log10 q; the two best of every module in each collection. Empty: not among the five "
            "best of that module, or q ≥ 0.05.", lambda: _terms(terms, names),
        ))  # fmt: skip
    if len(moved):
        figures.append(Figure(
            "conditions",
            "Measured change of module means (log-expression, against controls of the same context and batch), modules and "
            f"conditions in hierarchical order. Pale: not called at q = {ask.alpha:g} over all of them. "
            f"At most {_CONDITIONS} conditions, those with the largest changes.",
            lambda: _moved(moved, names, ask.alpha),
        ))  # fmt: skip
    tables = {"audit": measures(view.audit), "enrichment": terms, "coherence": within, "changes": moved, "genes": genes}
    return Section("Modules", _told(view, within, moved, context, ask), tables, figures)


def _largest_context(view: View) -> str:
    control = view.obs["context"].astype(str)[view.obs["condition"].astype(str) == CONTROL]
    return str(control.value_counts().sort_index().idxmax())


def _groups(view: View, context: str) -> dict[tuple[str, str], np.ndarray]:
    """Rows of the cells of every condition in a context."""
    obs = view.obs.reset_index(drop=True)
    obs = obs[(obs["context"].astype(str) == context) & (obs["condition"].astype(str) != CONTROL)]
    return {(str(name), context): part.index.to_numpy() for name, part in obs.groupby(obs["condition"].astype(str))}


def _told(view: View, within: pd.DataFrame, moved: pd.DataFrame, context: str, ask: Ask) -> str:
    each, every = within.iloc[:-1], within.iloc[-1]
    sizes = sorted({int(view.modules.sizes.min()), int(view.modules.sizes.max())})
    text = (
        f"{view.modules.n_modules} modules of {' to '.join(map(str, sizes))} genes, "
        "numbered as in modules.csv. A module has its name from its best enriched term, or from its most central genes: a "
        f"name is a label, not a finding. Over control cells ({context}), {int((each['q'] < ask.alpha).sum())} of "
        f"{len(each)} modules are more correlated within than modules drawn from genes of like expression (q < "
        f"{ask.alpha:g}); over all modules the mean correlation is {every['within']:.3f} within and "
        f"{every['between']:.3f} between. "
    )
    found = view.audit.get("ppi", {})
    if found.get("fold") is not None:
        text += f"Interactions within modules are {found['fold']:.1f} times as dense as under permuted labels. "
    if len(moved):
        called = moved[moved["q"] < ask.alpha]
        text += (
            f"{called['condition'].nunique()} of {moved['condition'].nunique()} conditions move at least one module "
            f"(q < {ask.alpha:g}, cells taken as independent). "
        )
    return text + "Modules were made from embeddings and interactions, so dense interactions are no independent proof."


def _correlations(x: np.ndarray, modules: Modules, seed: int) -> Any:
    """Correlations in the order of the modules, and of random ones, at the same scale."""
    rng = generator(seed, "picture of correlations")
    varies = x.std(axis=0) > 1e-6
    share = min(1.0, _GENES / max(int(varies.sum()), 1))
    picked = []
    for k in range(modules.n_modules):
        rows = np.flatnonzero((modules.module == k) & varies)
        rows = rng.permutation(rows)[: max(1, round(share * len(rows)))] if len(rows) else rows
        picked.append(rows[np.argsort(modules.rank[rows])])
    order, borders = np.concatenate(picked), np.cumsum([len(p) for p in picked])[:-1]
    figure, axes = style.new(7.2, 3.5, 1, 2)
    table = pd.DataFrame(correlation(x[:, order]))
    values = table.to_numpy()[~np.eye(len(table), dtype=bool)]
    table = table.where(~np.eye(len(table), dtype=bool))
    limit = max(float(np.nanpercentile(np.abs(values), 99)), 0.05)
    shuffled = rng.permutation(len(order))
    for ax, rows, title in ((axes[0], np.arange(len(order)), "modules"), (axes[1], shuffled, "random modules")):
        style.heat(ax, table.iloc[rows, rows], "correlation", limit=limit, borders=borders.tolist(), names=False,
                   bar=ax is axes[1])  # fmt: skip
        ax.set_aspect("equal")
        ax.set_title(title, loc="left")
        ax.set_xlabel(f"{len(order)} genes")
    if modules.n_modules <= 40:
        middle = [float(np.mean(b)) for b in np.split(np.arange(len(order)), borders)]
        axes[0].set_yticks(
            middle, [f"M{k}" for k in range(modules.n_modules)], fontsize=7 if len(middle) <= 25 else 5.5
        )
    return figure


def _coherence(within: pd.DataFrame, alpha: float) -> Any:
    part = within.sort_values("difference", ascending=False, na_position="last")
    figure, ax = style.new(4.6, 0.8 + 0.19 * len(part))
    ax.hlines(np.arange(len(part)), part["expected"] - 2 * part["sd"], part["expected"] + 2 * part["sd"],
              color=style.PALE, linewidth=5, zorder=1)  # fmt: skip
    series = {"modules": (part["difference"], part["low"], part["high"])}
    style.forest(ax, list(part["name"]), series, "correlation within − between",
                 filled={"modules": (part["q"] < alpha).to_numpy()})  # fmt: skip
    # The null may reach further than any estimate.
    low = float((part["expected"] - 2 * part["sd"]).min())
    ax.set_xlim(left=min(ax.get_xlim()[0], low * 1.1 if low < 0 else low))
    return figure


def _terms(terms: pd.DataFrame, names: tuple[str, ...]) -> Any:
    best = terms.groupby(["module", "collection"], sort=True).head(_TERMS)
    best = best.sort_values(["module", "collection", "q"]).drop_duplicates("term")
    wide = terms.drop_duplicates(["module", "term"]).pivot(index="term", columns="module", values="q")
    wide = -np.log10(wide.reindex(index=best["term"], columns=sorted(terms["module"].unique())))
    wide.index = [_cut(pretty(term), 44) for term in wide.index]
    wide.columns = [names[k] for k in wide.columns]
    figure, ax = style.new(min(7.2, 3.6 + 0.17 * wide.shape[1]), 2.1 + 0.15 * wide.shape[0])
    style.heat(ax, wide, "−log10 q", change=False)
    return figure


def _moved(moved: pd.DataFrame, names: tuple[str, ...], alpha: float) -> Any:
    """Changes of modules by condition, both in the order of a tree of changes."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    wide = moved.pivot(index="condition", columns="module", values="change")
    q = moved.pivot(index="condition", columns="module", values="q").loc[wide.index, wide.columns]
    kept = wide.abs().max(axis=1).sort_values(ascending=False).index[:_CONDITIONS]
    wide, q = wide.loc[sorted(kept)], q.loc[sorted(kept)]

    def order(values: np.ndarray) -> np.ndarray:
        return (
            leaves_list(linkage(values, "average", optimal_ordering=True))
            if len(values) > 2
            else np.arange(len(values))
        )

    filled = wide.fillna(0.0).to_numpy()
    wide, q = wide.iloc[order(filled), order(filled.T)], q.iloc[order(filled), order(filled.T)]
    wide.columns = [names[k] for k in wide.columns]
    figure, ax = style.new(min(7.2, 2.6 + 0.2 * wide.shape[1]), 2.6 + 0.13 * wide.shape[0])
    image = style.heat(ax, wide, "change of module mean (log)")
    image.set_alpha(np.where(q.to_numpy() < alpha, 1.0, 0.28))
    return figure
