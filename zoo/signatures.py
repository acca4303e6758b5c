"""What a model's verbs take, read from the source of its class: nothing is imported or run."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

_DEPTH = 8  # classes from a model's own to the last one that is looked at


@dataclass(frozen=True)
class Keyword:
    """A keyword-only parameter, as its source has it."""

    name: str
    annotation: str
    default: str

    def __str__(self) -> str:
        kind = f": {self.annotation}" if self.annotation else ""
        return f"{self.name}{kind}" + (f" = {self.default}" if self.default else "")


def keywords(folder: Path, class_: str, verb: str) -> list[Keyword]:
    """The keywords of ``module:Class``'s method, its own or inherited; none where it has none.

    ``folder``: of the package that the module belongs to; a base class is looked for there and in
    the packages beside it. What cannot be read so (a class made at run time) has none.
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
    """The module's source; None where it is none of the packages in a folder."""
    path = parent.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        try:
            return ast.parse(file.read_text("utf-8"))
        except (OSError, ValueError, SyntaxError, RecursionError):
            continue
    return None


def _origin(tree: ast.Module, module: str, name: str) -> tuple[str, str]:
    """(module, class) that a name of this module stands for: its own, or one that it imports."""
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
