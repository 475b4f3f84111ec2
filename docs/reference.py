"""Pages of the site that are made from the code: the commands, the library, the notebooks, and files of the top folder."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import json
import os
import pkgutil
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import scbig

__all__ = ["follow_links", "no_substitutions", "plain_signature", "skip_field", "write"]

HERE = Path(__file__).parent
ROOT = HERE.parent
MADE = HERE / "generated"
# Files of the top folder that have a page here; README is the first page.
COPIED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# Packages whose modules hold public functions of their own, beside what the package itself gives out.
OPEN = {"scbig.analysis": None, "scbig.data": ("public", "splits", "simulate_effects")}
# What users of the library call; the order of the page. Anything else follows by name.
FIRST = ("data", "priors", "modules", "baselines", "predict", "evaluation", "analysis", "config", "run")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def write() -> None:
    """Writes the generated pages into ``docs/generated``; what has not changed is not touched, so that builds stay quick."""
    pages = {MADE / name: (ROOT / top).read_text(encoding="utf-8") for top, name in COPIED.items()}
    pages[MADE / "commands.md"] = _commands()
    modules = _modules()
    pages[MADE / "api" / "index.rst"] = _contents(modules)
    pages |= {MADE / "api" / f"{module.__name__}.rst": _page(module) for module in modules}
    for path, text in pages.items():
        _update(path, text)
    for old in set((MADE / "api").glob("*.rst")) - set(pages):
        old.unlink()
    _notebooks(MADE / "notebooks")


def _update(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


# Links ----------------------------------------------------------------------------------------------------------------


def follow_links(app: Any, docname: str, source: list[str]) -> None:
    """Makes links of the repository lead to the same thing on the site.

    Pages are written so that their links work where the code is. On the site some of these files lie elsewhere: README
    is the first page, CONTRIBUTING and CHANGELOG are pages, notebooks are below this folder, and other files of the
    repository are there to be downloaded.
    """
    path = Path(app.env.doc2path(docname))
    if path.suffix != ".md":
        return
    where = ROOT if path.name in COPIED.values() and path.parent == MADE else path.parent
    source[0] = _rewrite(source[0], where, path.parent)


def _rewrite(text: str, written_in: Path, shown_in: Path) -> str:
    """Text whose relative links, true in ``written_in``, are true in ``shown_in`` on the site."""

    def target(match: re.Match) -> str:
        picture, words, link = match.groups()
        link, _, anchor = link.partition("#")
        there = Path(os.path.normpath(written_in / link))
        if not link or ":" in link or not there.is_relative_to(ROOT):
            return match[0]
        name = there.relative_to(ROOT).as_posix()
        if name == "README.md":
            there = HERE / "index.md"
        elif name in COPIED:
            there = MADE / COPIED[name]
        elif name.startswith("notebooks/"):
            there = MADE / name
        elif there.is_dir():
            return words
        told = os.path.relpath(there, shown_in)
        if not (picture or there.is_relative_to(HERE)):
            return f"{{download}}`{words.replace('`', '')} <{told}>`"
        return f"{picture}[{words}]({told}{'#' if anchor else ''}{anchor})"

    parts = re.split(r"(^```.*?^```[^\n]*$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else LINK.sub(target, part) for part in parts)


# Notebooks ------------------------------------------------------------------------------------------------------------


def _notebooks(folder: Path) -> None:
    """Copies the notebooks with their outputs, and writes the page that lists them."""
    found = sorted((ROOT / "notebooks").glob("*.ipynb"))
    lines = ["# Notebooks", ""]
    lines += ["Each runs from top to bottom on a simulated screen, in minutes, without a GPU.", ""]
    lines += ["```{toctree}", ":maxdepth: 1", "", *(path.stem for path in found), "```", ""]
    _update(folder / "index.md", "\n".join(lines) if found else "# Notebooks\n\nNone in this version.\n")
    for path in found:
        book = json.loads(path.read_text(encoding="utf-8"))
        for cell in book["cells"]:
            if cell["cell_type"] == "markdown":
                text = "".join(cell["source"])
                cell["source"] = _rewrite(text, path.parent, folder)
        _update(folder / path.name, json.dumps(book, indent=1, ensure_ascii=False))
    for other in folder.iterdir():
        if other.name != "index.md" and other.name not in {path.name for path in found}:
            shutil.rmtree(other) if other.is_dir() else other.unlink()


# Commands -------------------------------------------------------------------------------------------------------------


def _commands() -> str:
    """What every command says with ``--help``."""
    from scbig import cli

    os.environ["COLUMNS"] = "96"
    parser = cli._parser()
    choices = next(action for action in parser._actions if action.dest == "command")
    told = {action.dest: action.help for action in choices._choices_actions}
    lines = ["# Commands", "", "What each command prints with `--help`. `scbig COMMAND --help` is the same.", ""]
    lines += ["| command | |", "|---|---|"]
    lines += [f"| [`scbig {name}`](#scbig-{name}) | {told[name]} |" for name in choices.choices]
    lines += [
        "",
        "Exit codes: 0; 2 for a mistake in input or settings, told in one line; 130 when interrupted. A traceback is a",
        "defect of the package: please report it.",
        "",
    ]
    for name, command in choices.choices.items():
        lines += [f"## scbig {name}", "", "```text", command.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


# The library ----------------------------------------------------------------------------------------------------------


def _modules() -> list[ModuleType]:
    """Packages and modules directly below scbig that say what is public, the most used first."""
    names = [found.name for found in pkgutil.iter_modules(scbig.__path__) if found.name not in ("cli", "commands")]
    modules = [importlib.import_module(f"scbig.{name}") for name in names]
    order = {f"scbig.{name}": i for i, name in enumerate(FIRST)}
    return sorted((m for m in modules if _public(m)), key=lambda m: (order.get(m.__name__, len(order)), m.__name__))


def _public(module: ModuleType) -> list[str]:
    return [name for name in getattr(module, "__all__", ()) if not name.startswith("_")]


def _summary(module: ModuleType) -> str:
    return (inspect.getdoc(module) or "").split("\n\n")[0].replace("\n", " ")


def _contents(modules: list[ModuleType]) -> str:
    lines = ["Library", "=======", ""]
    lines += ["What ``import scbig`` gives to a script or a notebook: one page per part, made from the docstrings.", ""]
    lines += [
        'Annotations name array types with the shapes they hold: ``Float[np.ndarray, "cells genes"]`` is an array of'
    ]
    lines += [
        "floating-point numbers with one row per cell and one column per gene. Axes of one name within a signature have"
    ]
    lines += ["one length.", "", ".. list-table::", "   :widths: 25 75", ""]
    for module in modules:
        lines += [f"   * - :doc:`{module.__name__}`", f"     - {_summary(module)}"]
    lines += ["", ".. toctree::", "   :hidden:", ""]
    return "\n".join([*lines, *(f"   {module.__name__}" for module in modules), ""])


def _page(module: ModuleType) -> str:
    """The page of one part, with those modules of it that have functions of their own."""
    title = module.__name__
    lines = [title, "=" * len(title), "", f".. automodule:: {title}", "   :no-members:", ""]
    lines += _entries(module, _public(module), "-")
    if title in OPEN:
        taken = {id(getattr(module, name)) for name in _public(module)}
        for found in pkgutil.iter_modules(module.__path__):
            if OPEN[title] is not None and found.name not in OPEN[title]:
                continue
            part = importlib.import_module(f"{title}.{found.name}")
            names = [name for name in _public(part) if id(getattr(part, name)) not in taken]
            if not names or found.name.startswith("_"):
                continue
            heading = part.__name__
            lines += [heading, "-" * len(heading), "", f".. automodule:: {heading}", "   :no-members:", ""]
            lines += _entries(part, names, "~")
    return "\n".join(lines)


def _entries(module: ModuleType, names: list[str], underline: str) -> list[str]:
    """A table of the names, and what each is: functions, classes, constants."""
    kinds: dict[str, list[str]] = {"Functions": [], "Classes": [], "Constants": []}
    for name in sorted(names, key=str.lower):
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            continue
        alias = hasattr(value, "__origin__")  # such as a name for dict[str, int]
        plain = inspect.isclass(value) and not alias
        kinds["Classes" if plain else "Functions" if callable(value) and not alias else "Constants"].append(name)
    lines: list[str] = []
    listed = [*kinds["Functions"], *kinds["Classes"]]
    if len(listed) > 1:
        lines += [f".. currentmodule:: {module.__name__}", "", ".. autosummary::", "   :nosignatures:", ""]
        lines += [*(f"   {name}" for name in listed), ""]
    for kind, members in kinds.items():
        if not members:
            continue
        lines += [kind, underline * len(kind), ""]
        for name in members:
            if kind == "Constants":
                lines += _constant(module, name)
                continue
            directive = {"Functions": "autofunction", "Classes": "autoclass"}[kind]
            lines += [f".. {directive}:: {module.__name__}.{name}"]
            lines += ["   :members:", ""] if kind == "Classes" else [""]
    return lines


def _constant(module: ModuleType, name: str) -> list[str]:
    """A constant with the text below it in the source, and what it holds where that is a list of names."""
    value = getattr(module, name)
    lines = [f".. py:data:: {module.__name__}.{name}", ""]
    lines += [f"   {line}" for line in _text_below(module, name).splitlines()] + [""]
    if isinstance(value, dict | tuple | list) and value and all(isinstance(each, str) for each in value):
        lines += [
            "   " + ("Keys: " if isinstance(value, dict) else "") + ", ".join(f"``{each}``" for each in value),
            "",
        ]
    return lines


def _text_below(module: ModuleType, name: str) -> str:
    """The string after the assignment of ``name``, in the module that assigns it."""
    parts = [module.__name__]
    parts += [f"{module.__name__}.{each.name}" for each in pkgutil.iter_modules(getattr(module, "__path__", ()))]
    for part in parts:
        body = ast.parse(inspect.getsource(importlib.import_module(part))).body
        for node, after in itertools.pairwise([*body, ast.Pass()]):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                    return inspect.cleandoc(str(after.value.value))
                break
    return ""


def plain_signature(app: Any, what: str, name: str, value: Any, options: Any, signature: Any, returned: Any) -> Any:
    """Signatures with annotations as they stand in the source, so that shapes stay legible.

    Evaluated, ``Float[np.ndarray, "cells genes"]`` becomes a generated class whose printed name is long and wrong.
    """
    if what not in ("function", "method", "class"):
        return None
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return None
    parameters = list(found.parameters.values())
    if what == "method" and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    if what == "class":
        # Flax adds these two to every network.
        parameters = [each for each in parameters if each.name not in ("parent", "name") or not _is_network(value)]
    result = found.return_annotation
    told = None if what == "class" or result is inspect.Signature.empty else _text(result)
    return f"({', '.join(_arguments(parameters))})", told


def _arguments(parameters: list[inspect.Parameter]) -> list[str]:
    """The parameters as they are written, with the markers of positional and keyword-only ones."""
    written, marked = [], False
    for each, after in zip(parameters, [*parameters, None][1:], strict=True):
        stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        if each.kind is each.KEYWORD_ONLY and not marked:
            written.append("*")
        marked |= each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        annotation = "" if each.annotation is each.empty else f": {_text(each.annotation)}"
        default = (
            ""
            if each.default is each.empty
            else f" = {_default(each.default)}"
            if annotation
            else f"={_default(each.default)}"
        )
        written.append(f"{stars}{each.name}{annotation}{default}")
        if each.kind is each.POSITIONAL_ONLY and (after is None or after.kind is not each.POSITIONAL_ONLY):
            written.append("/")
    return written


def _text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _default(value: Any) -> str:
    """A default in few words; objects that print their address, or at length, are left to the source."""
    told = repr(value)
    return "..." if " at 0x" in told or len(told) > 60 else told


def _is_network(value: Any) -> bool:
    return any(base.__module__.startswith("flax.") for base in value.__mro__)


def no_substitutions(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Bars in docstrings are those of formulas; reStructuredText would look for a substitution of that name."""
    for i, line in enumerate(lines):
        parts = re.split(r"(``.*?``)", line)
        lines[i] = "".join(part if part.startswith("``") else re.sub(r"(?<!\\)\|", r"\\|", part) for part in parts)


def skip_field(app: Any, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out fields that their class describes under "Attributes", and what libraries add to classes."""
    if what == "class" and (
        type(value).__name__ in ("_tuplegetter", "member_descriptor") or name in ("scope", "replace")
    ):
        return True
    return None
