"""``python -m zoo_graph_qa.lexicon.make FOLDER``: write ``words.txt.gz`` again.

FOLDER: of the unpacked wheel of lemminflect 0.2.3 (MIT), whose table of lemmas is the source:
``pip download --no-deps lemminflect==0.2.3``.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

TABLE = "lemminflect/resources/lemma_lu.csv.gz"
LETTER = {"noun": "n", "adj": "a", "adv": "r"}


def rows(table: str) -> list[str]:
    """A line for each word: the word, what it can be (see ``zoo_graph_qa.words``), its lemma."""
    found: dict[str, dict[str, str]] = {}
    for line in table.splitlines():
        word, kind, lemmas = line.split(",")[:3]
        if not word.isalpha() or not word.islower():
            continue
        lemma = lemmas.split("/")[0]
        if kind == "verb":
            kinds = {"v" if lemma == word else "V": lemma}
        else:
            kinds = {LETTER[kind]: lemma} if kind in LETTER else {}
        found.setdefault(word, {}).update(kinds)
    lines = []
    for word, kinds in sorted(found.items()):
        lemma = next((kinds[k] for k in "nvVar" if k in kinds), word)
        lines.append(f"{word} {''.join(sorted(kinds)) or '-'} {'' if lemma == word else lemma}")
    return [line.rstrip() for line in lines]


def main(folder: Path) -> None:
    table = gzip.decompress((folder / TABLE).read_bytes()).decode()
    data = gzip.compress("\n".join(rows(table)).encode(), 9, mtime=0)
    (Path(__file__).parent / "words.txt.gz").write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
