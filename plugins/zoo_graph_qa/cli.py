"""``zoo run graph-qa ask``: questions about a text, answered on the spot."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoo.errors import InputError

from .model import Answer


def ask(model: Any, args: list[str]) -> int:
    """``ask FILE QUESTION...``: what the text says, and where."""
    parser = argparse.ArgumentParser("zoo run graph-qa ask", description=ask.__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("questions", nargs="+", metavar="QUESTION")
    parser.add_argument("--step", type=int, help="the step that you are at, from 1")
    parser.add_argument("--force", action="store_true", help="also what does not look English")
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args(args)
    try:
        text = given.file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {given.file}: {error}.") from error
    asked = [(question, given.step) for question in given.questions]
    found = model.explain_all(asked, text, force=given.force)
    if given.json:
        print(json.dumps([asdict(answer) for answer in found], ensure_ascii=False, indent=1))
        return 0
    for question, answer in zip(given.questions, found, strict=True):
        if len(found) > 1:
            print(question)
        print(_said(answer))
    return 0


def _said(answer: Answer) -> str:
    where = "" if answer.step is None else f", step {answer.step + 1}"
    return f"{' '.join(answer.text.split())}  ({answer.kind}{where}; {answer.score:.0%})"
