"""How quick: the part ``speed`` of the benchmark.

``zoo bench mobilequant -O part=speed --base language=FOLDER``. Two networks, the given one and one
as wide as TinyLlama with three layers and random weights, take a prompt of 256 tokens and one token
after it, on one and on two threads, in every runtime of ``contenders.py``; then their linear layers
alone. Runtimes take turns. What counts is CPU time, of all threads together, so that other work on
the machine does little harm. Seconds belong to a machine; the claims are about ratios.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig

from zoo.experiment import Bars, Book, draw, load, take_turns
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Data, Results
from zoo.progress import track

from .contenders import FLOAT, OURS, SIXTEEN, STATIC, TORCH, Contender, exported, of_torch
from .kernels import Product, Weight, has_vnni, plan
from .original import opened
from .quantizers import Grid, WeightFormat

PROMPT, ROUNDS, TOKENS = 256, 7, 3
"""Tokens of the prompt; rounds, and single tokens in a round, of which the quickest counts."""
THREADS = (1, 2)
WIDE: Mapping[str, Any] = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32,
    "num_key_value_heads": 4, "num_hidden_layers": 3, "vocab_size": 32000,
}  # fmt: skip
"""TinyLlama's sizes, but for the number of layers, which are all alike."""
WIDTH = "TinyLlama's width"
CALLS = ("prompt", "token")
PICTURE, SHOWN = "profile.png", 8
"""Where the time goes; so many operators by name."""


def bench(request: BenchRequest) -> Results:
    """Time every contender; see the module's docstring."""
    book, rounds = Book(lambda column: True), 2 if request.quick else ROUNDS
    networks, panels = measured(request), list[Bars]()
    with track(len(networks) * (1 + len(THREADS)), request.progress, "bench") as advance:
        for name, network in networks.items():
            enter(book, f"{name}, linear layers", 1, layers(network), rounds)
            advance()
            ids = torch.arange(PROMPT)[None] % network.config.vocab_size
            model = quantized(request, network)
            ours = of_torch(model.integers(), ids)
            with exported(model, PROMPT) as graphs:
                for threads in THREADS:
                    runtimes = {n: of_torch(make(network), ids) for n, make in TORCH.items()}
                    enter(book, name, threads, {**runtimes, OURS: ours, **graphs(threads)}, rounds)
                    advance()
            for call in CALLS:
                panels.append(Bars({OURS: operators(ours, call)}, "CPU time, %", f"{name}: {call}"))
    draw(request.out / PICTURE, *panels)
    claim(book, [*networks])
    data = [Data(name, "no text", f"{PROMPT} tokens") for name in networks]
    return book.results(data=data, pictures=[PICTURE], part="speed")


def measured(request: BenchRequest) -> dict[str, Any]:
    """Name -> network in float32."""
    found: dict[str, Any] = {}
    base = request.bases.get("language")
    if base is not None and base.folder is not None:
        found[base.folder.name] = opened(base.folder).network
    config = LlamaConfig(**{**WIDE, **({"num_hidden_layers": 1} if request.quick else {})})
    found[WIDTH] = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return {name: network.eval().requires_grad_(False) for name, network in found.items()}


def quantized(request: BenchRequest, network: Any) -> Any:
    """A copy, quantized. Time does not depend on how well it was calibrated."""
    rows = torch.arange(64).view(2, 32)
    return load(request).quantize(copy.deepcopy(network), rows, recipe="rtn")


@torch.no_grad()
def layers(network: Any) -> dict[str, Contender]:
    """The linear layers one after the other, the head on one row: in floats, and on codes."""
    chosen, head = plan(), network.get_output_embeddings()
    linears = [m for m in network.modules() if isinstance(m, nn.Linear) and m is not head]
    read = Grid(torch.tensor(0.02), torch.tensor(128.0), 0, 255)
    products: dict[nn.Linear, tuple[Product, Product]] = {}
    for linear in [*linears, head]:
        grid = WeightFormat(8).grid(linear.weight)
        steps = grid.step.flatten().contiguous()
        codes = grid.codes(linear.weight).to(torch.int8)
        run = chosen.run(Weight(codes, steps, linear.bias, read))
        products[linear] = chosen.prefill(run), chosen.decode(run)
    widths = {linear.in_features for linear in products}
    rows = {(m, k): torch.randn(m, k) for m in (1, PROMPT) for k in widths}

    @torch.no_grad()
    def floats(count: int) -> None:
        for linear in products:
            m = 1 if linear is head else count
            functional.linear(rows[m, linear.in_features], linear.weight, linear.bias)

    @torch.no_grad()
    def integers(count: int) -> None:
        for linear, (prefill, decode) in products.items():
            m = 1 if linear is head else count
            (decode if m == 1 else prefill)(rows[m, linear.in_features])

    return {
        name: Contender(partial(run, PROMPT), partial(run, 1))
        for name, run in ((FLOAT, floats), (OURS, integers))
    }


def column(subject: str, call: str, threads: int) -> str:
    """The name of a column."""
    return f"{subject}, {call}, {threads} thread{'s' * (threads > 1)}: CPU-ms"


def enter(
    book: Book, subject: str, threads: int, runtimes: Mapping[str, Contender], rounds: int
) -> None:
    """Time the prompt, then the token, of all in turns."""
    for call in CALLS:
        runs: dict[str, Callable[[], object]] = {n: getattr(c, call) for n, c in runtimes.items()}
        best = TOKENS if call == "token" else 1
        spent = take_turns(runs, rounds=rounds, best_of=best, threads=threads)
        for name, seconds in spent.items():
            for i, value in enumerate(seconds):
                book.add(name, column(subject, call, threads), 1000 * value, i)


def operators(contender: Contender, call: str) -> dict[str, float]:
    """Operator -> its share of the CPU time in %, the longest first."""
    run: Callable[[], object] = getattr(contender, call)
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(TOKENS):
            run()
    spent = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    whole, names = sum(spent.values()), sorted(spent, key=lambda name: -spent[name])
    found = {name.split("::")[-1]: 100 * spent[name] / whole for name in names[:SHOWN]}
    return {**found, "other": 100 - sum(found.values())}


# --- claims ---------------------------------------------------------------------------------------


def claim(book: Book, subjects: Sequence[str]) -> None:
    """The targets, which were set for CPUs that add products in 16 bits (AVX2 without VNNI); on
    others they are easier.
    """
    cpu = torch.backends.cpu.get_cpu_capability()
    vnni = "with" if has_vnni() else "without"
    where = f"on a CPU with {cpu}, {vnni} VNNI"

    def faster(
        identity: str, statement: str, rival: str | Sequence[str], most: float, of: Sequence[str]
    ) -> None:
        made = [
            book.times(OURS, rival, column(subject, call, 1), at_most=most)
            for subject in of
            for call in CALLS
        ]
        book.claim(identity, f"{statement}, {where}.", *made)

    alone = [f"{subject}, linear layers" for subject in subjects]
    ours = "On integers the network takes"
    faster("layers", "Linear layers take at most 1 / 1.9 of float32", FLOAT, 1 / 1.9, alone)
    faster("whole", f"{ours} at most two thirds of float32", FLOAT, 2 / 3, subjects)
    faster("static", f"{ours} at most as long as onnxruntime's static int8", STATIC, 1, subjects)
    latency = "the quickest runtime with 16-bit activations or floats and narrower weights"
    faster("latency", f"{ours} at most four fifths of {latency}", SIXTEEN, 0.8, subjects)
