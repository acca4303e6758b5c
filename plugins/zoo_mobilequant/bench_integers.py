"""What the integers give: the part ``integers`` of the benchmark.

``zoo bench mobilequant -O part=integers --data PATH --base language=FOLDER -O work=FOLDER``. The
language model is quantized as ``zoo quantize`` does it, with one draw of calibration text, and
saved. Then it computes as a simulation, on the integers of this CPU, and on integers whose products
are exact on any CPU; each is compared with the original and with the simulation. Where the network
is so deep that it passes on what falls between two codes, even the simulation does not agree with
itself: the row whose input differs by a millionth says by how much.
"""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from zoo.experiment import Book, load
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Data, Results
from zoo.progress import track

from .learn import last_hidden
from .limits import above, below
from .measured import CALIBRATION, TESTS, TEXT
from .method import compare
from .original import opened, tokenizer_of
from .passages import LENGTH, Words, wikitext

STEPS, NOISE = 150, 1e-6
SIMULATED, ON_INTEGERS, EXACT = "simulation", "integers of this CPU", "integers, exact products"
NOISY = "simulation, input changed by a millionth"
SIZE, RATIO = "size, ratio to float32", "perplexity, ratio to float"
TO_SIMULATION = "perplexity, ratio to simulation"
SAME, SAME_AS_SIMULATION = "same likeliest token, %", "same likeliest token as simulation, %"


def bench(request: BenchRequest, folder: Path, data: Path) -> Results:
    """Quantize, save, and compare; see the module's docstring."""
    book = Book(lambda column: column not in (SAME, SAME_AS_SIMULATION))
    with track(6, request.progress, "bench") as advance, TemporaryDirectory() as scratch:
        work = Path(request.options.get("work") or scratch)
        original = opened(folder).network
        longest = int(original.config.max_position_embeddings)
        words = Words(tokenizer_of(folder), min(LENGTH, longest))
        lessons = words.ids(wikitext(data, "valid"))
        rows = words.drawn(lessons, 12 if request.quick else CALIBRATION, request.seed)
        tests = words.windows(wikitext(data, "test"), 2 if request.quick else TESTS)
        models = {
            scheme: load(request).quantize(
                str(folder), rows, seed=request.seed, scheme=scheme, recipe=recipe,
                steps=steps, checkpoint=work / f"integers-{scheme}",
            )
            for scheme, recipe, steps in (
                ("w8a8", "mobilequant", 5 if request.quick else STEPS),
                ("w4a8", "rtn", 0),
            )
        }  # fmt: skip
        advance()
        floats = sum(p.numel() for p in original.parameters()) * 4
        for scheme, model in models.items():
            model.save_pretrained(Path(scratch) / scheme)
            saved = (Path(scratch) / scheme / "model.safetensors").stat().st_size
            book.add(f"{scheme}, saved", SIZE, saved / floats, request.seed)
        advance()
        model, head = models["w8a8"], original.get_output_embeddings()
        with torch.no_grad():
            wanted = [last_hidden(original, row)[1] for row in tests]
            simulated = [last_hidden(model.module, row)[1] for row in tests]
        runs = {
            SIMULATED: lambda: model.module,
            NOISY: lambda: noisy(model.module),
            ON_INTEGERS: lambda: model.integers(),
            EXACT: lambda: model.integers(exact=True),
        }
        for name, make in runs.items():
            network = make()
            enter(book, name, compare(network, tests, wanted, head), request.seed)
            if name != SIMULATED:
                found = compare(network, tests, simulated, model.module.get_output_embeddings())
                ratio = found["perplexity"] / found["perplexity_original"]
                book.add(name, TO_SIMULATION, ratio, request.seed)
                book.add(name, SAME_AS_SIMULATION, 100 * found["agreement"], request.seed)
            advance()
    if not request.quick:
        claim(book)
    used = [Data("WikiText-2", "CC BY-SA 3.0", f"{len(tests) * (LENGTH - 1):,} tokens")]
    return book.results(data=used, seeds=[request.seed], part="integers")


def enter(book: Book, row: str, found: dict[str, float], seed: int) -> None:
    """A network beside the original."""
    book.add(row, TEXT, found["kl"], seed)
    book.add(row, SAME, 100 * found["agreement"], seed)
    book.add(row, RATIO, found["perplexity"] / found["perplexity_original"], seed)


def noisy(network: Any) -> Any:
    """A copy that reads tokens a millionth off."""
    made, chance = copy.deepcopy(network), torch.Generator().manual_seed(0)

    def disturb(module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
        return embedded * (1 + NOISE * torch.randn(embedded.shape, generator=chance))

    made.get_input_embeddings().register_forward_hook(disturb)
    return made


def claim(book: Book) -> None:
    """The limits, counted on one draw of calibration text."""
    book.claim(
        "size",
        "W8A8: the saved weights, a tied table counted once as in the network, take at most .27 of "
        "float32.",
        below("w8a8, saved", SIZE, 0.27),
    )
    for identity, row, what in (
        ("exact-products", EXACT, "Exact products of integers"),
        ("this-cpu", ON_INTEGERS, "The integers of this CPU"),
    ):
        book.claim(
            identity,
            f"{what} give the simulation's perplexity to .1 %, and its likeliest token at 99 % of "
            "the positions.",
            above(row, SAME_AS_SIMULATION, 99),
            above(row, TO_SIMULATION, 0.999),
            below(row, TO_SIMULATION, 1.001),
        )
