"""Parses YAML events into a tree with lines: no anchors, tags or objects, and no deep nesting.

``yaml.load`` and ``compose`` are never called: they build objects, and the C loader's recursion
crashes the process on a small file of many brackets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MAX_DEPTH = 16


@dataclass
class Node:
    line: int
    value: str | list[Node] | dict[str, Node]
    plain: bool = False  # an unquoted scalar: the only kind that may be a number, a boolean or null

    @property
    def null(self) -> bool:
        return self.plain and self.value in ("", "~", "null")


class MalformedError(Exception):
    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line, self.text = line, text


def tree(text: str, wrong: Callable[[int, str], None]) -> Node:
    """The tree. ``wrong`` is called for mistakes that can be skipped; others raise
    MalformedError."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    root: Node | None = None
    stack: list[Node] = []
    keys: list[Node | None] = []  # for each open node: the mapping key that waits for its value
    try:
        for event in yaml.parse(text, Loader=loader):
            mark = event.start_mark
            line = mark.line + 1 if mark else 1
            if getattr(event, "anchor", None) is not None:  # an alias has one too
                wrong(line, "anchors and aliases are not allowed; write the value out")
            if (tag := getattr(event, "tag", None)) is not None:
                wrong(line, f"tags are not allowed: {tag}")
            if isinstance(event, yaml.ScalarEvent):  # the most frequent first: listing is fast
                node = Node(line, event.value, plain=not event.style)
            elif isinstance(event, yaml.MappingStartEvent):
                node = Node(line, {})
            elif isinstance(event, yaml.SequenceStartEvent):
                node = Node(line, [])
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                stack.pop()
                keys.pop()
                continue
            elif isinstance(event, yaml.AliasEvent):
                node = Node(line, "", plain=True)
            elif isinstance(event, yaml.DocumentStartEvent) and root is not None:
                raise MalformedError(line, "a second document; a registry file has one")
            else:
                continue
            if not stack:
                root = node
            else:
                _attach(stack[-1], keys, node, wrong)
            if not isinstance(node.value, str):
                if len(stack) >= MAX_DEPTH:
                    raise MalformedError(line, f"nested deeper than {MAX_DEPTH} levels")
                stack.append(node)
                keys.append(None)
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        mark = getattr(error, "problem_mark", None)
        offset = getattr(error, "position", 0)  # of a character that YAML does not allow
        line = mark.line + 1 if mark else text.encode("utf-8", "replace")[:offset].count(b"\n") + 1
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        raise MalformedError(line, f"not YAML: {problem}") from None
    if root is None:
        raise MalformedError(1, "the file is empty")
    return root


def _attach(
    parent: Node, keys: list[Node | None], node: Node, wrong: Callable[[int, str], None]
) -> None:
    if isinstance(parent.value, list):
        parent.value.append(node)
        return
    assert isinstance(parent.value, dict)
    key = keys[-1]
    if key is None:
        if not isinstance(node.value, str):
            raise MalformedError(node.line, "a key must be plain text")
        if node.value in parent.value:
            wrong(node.line, f"duplicate key {node.value!r}")
        keys[-1] = node
    else:
        assert isinstance(key.value, str)
        node.line = key.line  # a block's mark is at its first entry
        parent.value.setdefault(key.value, node)
        keys[-1] = None
