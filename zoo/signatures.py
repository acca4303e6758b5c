"""The keywords of a model's verbs, read from its source: nothing is imported or run."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

_DEPTH = 8  # levels of inheritance that are searched


@dataclass(frozen=True)
class Keyword:
    """A keyword-only parameter, as written in the source."""

    name: str
    annotation: str
    default: str

    def __str__(self) -> str:
        kind = f": {self.annotation}" if self.annotation else ""
        return f"{self.name}{kind}" + (f" = {self.default}" if self.default else "")


def keywords(folder: Path, class_: str, verb: str) -> list[Keyword]:
    """The keywords of a method of ``module:Class``, defined or inherited; [] if it has none.

    ``folder``: of the package that the module belongs to; base classes are searched there and in
    the packages next to it. A class made at run time has none.
    """
    module, _, name = class_.partition(":")
    for _ in range(_DEPTH):
        tree = _parsed(folder.parent, module)
        found = next(
            (n for n in _body(tree) if isinstance(n, ast.ClassDef) and n.name == name), None
        )
        if tree is None or found is None:
            return []
        for node in found.body:
            if isinstance(node, ast.FunctionDef) and node.name == verb:
                return _of(node)
        if not found.bases or not isinstance(found.bases[0], ast.Name):
            return []
        module, name = _origin(tree, module, found.bases[0].id)
    return []


def _body(tree: ast.Module | None) -> list[ast.stmt]:
    return tree.body if tree is not None else []


def _parsed(parent: Path, module: str) -> ast.Module | None:
    """The parsed module; None if it is not in a package of this folder."""
    path = parent.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        try:
            return ast.parse(file.read_text("utf-8"))
        except (OSError, ValueError, SyntaxError, RecursionError):
            continue
    return None


def _origin(tree: ast.Module, module: str, name: str) -> tuple[str, str]:
    """(module, class) that a name in this module refers to: defined or imported there."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    start = module.split(".")[: -node.level] if node.level else []
                    return ".".join([*start, *filter(None, [node.module])]), alias.name
    return module, name


def _of(function: ast.FunctionDef) -> list[Keyword]:
    found = []
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        if argument.arg != "progress":
            annotation = ast.unparse(argument.annotation) if argument.annotation else ""
            shown = ast.unparse(default) if default is not None else ""
            found.append(Keyword(argument.arg, annotation, shown))
    return found
