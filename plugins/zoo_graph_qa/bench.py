"""The claims of graph-qa: ``zoo bench graph-qa --data PATH``, in three parts.

-O part=parser    the parser against annotations, exhaustive questions, the how-tos, speed (minutes)
-O part=coverage  arms of pairs that cover more or less, for readers that learn and that look up:
                  CookDial's people and the set U, two folds, five seeds (hours)
-O part=language  a general language model as reader and as generator (hours; needs
                  ``--base language=FOLDER``)

``PATH`` holds ``cookdial``, ``risec`` and ``recipes-unlicense``. ``-O work=FOLDER`` keeps each row
as soon as it is measured: an interrupted benchmark goes on where it was. ``--base
sentences=FOLDER`` (all-MiniLM-L6-v2) measures semantic coverage with a sentence encoder beside
TF-IDF. CPU-seconds are those of one thread.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from zoo.errors import InputError, OptionError
from zoo.experiment import one_thread
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Results

from .worlds import Corpora


def bench(request: BenchRequest) -> Results:
    """Run one part; see the module's docstring."""
    part = request.options.get("part", "parser")
    if request.data is None:
        raise InputError("--data: give the folder that holds cookdial, risec, recipes-unlicense.")
    corpora = Corpora(request.data)
    with TemporaryDirectory() as scratch, one_thread():
        work = Path(request.options.get("work") or scratch)
        work.mkdir(parents=True, exist_ok=True)
        if part == "parser":
            from .bench_parser import measure

            return measure(request, corpora, work)
        if part == "coverage":
            from .bench_coverage import measure as coverage

            return coverage(request, corpora, work)
        if part == "language":
            from .bench_language import measure as language

            return language(request, corpora, work)
    raise OptionError(f"part={part}: expected parser, coverage or language.")
