"""``zoo qa``: texts in, questions and answers out."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    "-o",
    "--out",
    type=PATH,
    help="SQuAD (.json), one pair per line (.jsonl), or a new folder; default: print.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same questions.")
def qa(call: Call, texts: tuple[Path, ...], out: Path | None, seed: int) -> None:
    """Make questions and answers about each of the files TEXTS with MODEL.

    SQuAD files have the pairs whose answer is in the text; .jsonl files have all, with their nodes.
    A folder gets both, graph.json, and what else the method draws and reports; of several texts
    each has a folder in it. Example: zoo qa graph-qa recipe.txt -o out
    """
    from ..errors import InputError, OutputError
    from ..files import atomic_folder, check_target, read_text

    folder = out is not None and not out.suffix
    if out is not None and not folder:
        if out.suffix.lower() not in FORMATS:
            raise OutputError(
                f"{out}: expected a name that ends in {' or '.join(FORMATS)}, or a folder."
            )
        check_target(out, overwrite=call.force)
    read = [read_text(path) for path in texts]
    for path, text in zip(texts, read, strict=True):
        if not text.strip():
            raise InputError(f"{path} is empty.")
    loaded: QAGenerator = call.load()
    if out is not None and folder:
        with atomic_folder(out) as new:  # refused before the work if it is there already
            made: list[QASet] = loaded.generate(read, **{"seed": seed, **call.keywords})
            names = _names(texts)
            for name, about in zip(names, made, strict=True):
                place = new / name if len(texts) > 1 else new
                place.mkdir(exist_ok=True)
                _fill(place, name, about)
                loaded.illustrate(about, place, title=name)
    else:
        made = loaded.generate(read, **{"seed": seed, **call.keywords})
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


def _names(texts: Sequence[Path]) -> list[str]:
    """A name for each text, none twice: its file's, with a number where that is taken."""
    names: list[str] = []
    for path in texts:
        name, number = path.stem, 2
        while name in names:
            name, number = f"{path.stem}-{number}", number + 1
        names.append(name)
    return names


def _fill(folder: Path, name: str, about: QASet) -> None:
    """``graph.json``, ``qa.jsonl`` and ``squad.json``."""
    graph = json.dumps(about.graph, ensure_ascii=False, indent=1)
    (folder / "graph.json").write_text(graph + "\n", "utf-8")
    (folder / "qa.jsonl").write_text(_lines([asdict(pair) for pair in about.pairs]), "utf-8")
    (folder / "squad.json").write_text(_squad([name], [about]), "utf-8")


def _squad(names: Sequence[str], made: Sequence[QASet]) -> str:
    """One document of SQuAD with an article for each text."""
    squad = [about.to_squad(name) for name, about in zip(names, made, strict=True)]
    articles = [article for one in squad for article in one["data"]]
    whole = {"version": squad[0]["version"], "data": articles}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write(out: Path, texts: tuple[Path, ...], made: list[QASet]) -> None:
    from ..files import atomic_file

    if out.suffix.lower() == ".json":
        text = _squad([path.stem for path in texts], made)
    else:
        text = _lines(
            [
                {"file": str(path), **asdict(pair)}
                for path, about in zip(texts, made, strict=True)
                for pair in about.pairs
            ]
        )
    with atomic_file(out) as temporary:
        temporary.write_text(text, "utf-8")
