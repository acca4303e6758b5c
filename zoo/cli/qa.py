"""``zoo qa``: texts in, questions and answers out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import PATH, echo_json
from .verbs import Call, verb

if TYPE_CHECKING:
    from ..interfaces import QAGenerator, QASet

FORMATS = (".json", ".jsonl")


@verb("QAGenerator", "generate", "generate questions")
@click.argument("texts", nargs=-1, required=True, type=PATH)
@click.option(
    "-o", "--out", type=PATH, help="SQuAD (.json), or one pair per line (.jsonl); default: print."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same questions.")
def qa(call: Call, texts: tuple[Path, ...], out: Path | None, seed: int) -> None:
    """Make questions and answers about each of the files TEXTS with MODEL.

    SQuAD files have the pairs whose answer is in the text; .jsonl files have all, with their nodes.
    Example: zoo qa graph-qa recipe.txt -o questions.json
    """
    from ..errors import InputError, OutputError
    from ..files import check_target, read_text

    if out is not None:
        if out.suffix.lower() not in FORMATS:
            raise OutputError(f"{out}: expected a name that ends in {' or '.join(FORMATS)}.")
        check_target(out, overwrite=call.force)
    read = [read_text(path) for path in texts]
    for path, text in zip(texts, read, strict=True):
        if not text.strip():
            raise InputError(f"{path} is empty.")
    loaded: QAGenerator = call.load()
    made: list[QASet] = loaded.generate(read, **{"seed": seed, **call.keywords})
    if out is not None:
        _write(out, texts, made)
    if call.as_json:
        records = [
            {"file": str(p), "coverage": s.coverage, "pairs": [asdict(pair) for pair in s.pairs]}
            for p, s in zip(texts, made, strict=True)
        ]
        return echo_json(records)
    for path, about in zip(texts, made, strict=True):
        placed = sum(pair.start is not None for pair in about.pairs)
        click.echo(
            f"{path}: {len(about)} pairs, {placed} with their answer in the text; "
            f"coverage {about.coverage:.0%}"
        )
        if out is None:
            for pair in about.pairs:
                click.echo(f"  {pair.question}\n    {pair.answer}")
    if out is not None:
        click.echo(str(out))


def _write(out: Path, texts: tuple[Path, ...], made: list[QASet]) -> None:
    from ..files import atomic_file

    if out.suffix.lower() == ".json":
        squad = [about.to_squad(path.stem) for path, about in zip(texts, made, strict=True)]
        whole = {"version": "1.1", "data": [article for one in squad for article in one["data"]]}
        text = json.dumps(whole, ensure_ascii=False, indent=1)
    else:
        rows: list[dict[str, Any]] = [
            {"file": str(path), **asdict(pair)}
            for path, about in zip(texts, made, strict=True)
            for pair in about.pairs
        ]
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    with atomic_file(out) as temporary:
        temporary.write_text(text + "\n", "utf-8")
