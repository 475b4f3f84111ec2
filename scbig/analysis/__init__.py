"""What moved, and why one should believe it: modules, programs, mechanisms, interactions, and the next screen."""

from scbig.analysis.section import Ask, Figure, Section
from scbig.analysis.view import View, load

__all__ = ["PARTS", "Ask", "Figure", "Section", "View", "load"]

PARTS = ("modules", "programs", "coactivation", "attention", "interactions", "nearest", "overlap")
"""Parts of ``scbig analyze``, each a module of this package with ``report(view: View, ask: Ask) -> Section``."""
