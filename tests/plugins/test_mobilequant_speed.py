"""Who is timed computes the same network, and the two further parts of the benchmark run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from zoo_mobilequant import bench, bench_speed, contenders
from zoo_mobilequant.model import MobileQuant, MobileQuantized
from zoo_mobilequant.qdq import floats
from zoo_mobilequant.qdq.session import Session
from zoo_mobilequant.simulate import switched

import zoo
from tests.plugins.tiny_lms import tiny_lm
from zoo.hookspecs import BenchRequest
from zoo.registry import catalogue

PROMPT = 16
pytestmark = pytest.mark.filterwarnings(
    "ignore:This CPU saturates", "ignore:No product of 8-bit integers"
)


@pytest.fixture(scope="module")
def network() -> Any:
    return tiny_lm("llama GQA")


@pytest.fixture(scope="module")
def quantized() -> MobileQuantized:
    quantizer: MobileQuant = zoo.load("mobilequant", device="cpu")
    return quantizer.quantize(tiny_lm("llama GQA"), torch.arange(64).view(2, 32), recipe="rtn")


@pytest.mark.parametrize("name", contenders.TORCH)
def test_runtimes_of_torch_give_about_the_same(name: str, network: Any) -> None:
    """An eighth off where inputs have 7 bits in one range; another network is off by 1.4."""
    ids = torch.arange(PROMPT)[None]
    made = contenders.TORCH[name](network)
    with torch.no_grad():
        wanted, found = (n(ids).logits.float() for n in (network, made))
    assert (found - wanted).norm() < 0.2 * wanted.norm()
    plain = [m for m in made.modules() if type(m) is nn.Linear and m.weight.dtype == torch.float32]
    assert bool(plain) == (name == contenders.FLOAT)


def test_a_token_follows_the_same_prompt_each_time(network: Any) -> None:
    lengths = []
    hook = network.register_forward_hook(
        lambda module, args, output: lengths.append(output.past_key_values.get_seq_length())
    )
    contender = contenders.of_torch(network, torch.arange(PROMPT)[None])
    for _ in range(2):
        contender.prompt()
        contender.token()
        contender.token()
    hook.remove()
    assert lengths == [PROMPT, PROMPT + 1, PROMPT + 1] * 2


def test_graphs_in_float32_are_the_network(quantized: MobileQuantized, tmp_path: Path) -> None:
    """Sums in another order: float32 rounding of logits near 1."""
    folder = floats.written(quantized, tmp_path / "f", PROMPT, PROMPT + 1, floats=True)
    session, ids = Session(folder), list(range(PROMPT))
    with torch.no_grad(), switched(quantized.sites.values(), False):
        wanted = quantized.module(torch.tensor([[*ids, 7]])).logits[0]
    for found, logits in ((session.prefill(ids), wanted[-2]), (session.decode(7), wanted[-1])):
        torch.testing.assert_close(torch.from_numpy(found), logits, rtol=0, atol=1e-5)


def test_other_tools_quantize_the_graphs(quantized: MobileQuantized) -> None:
    """Calibrated on zeros they give anything, but they run."""
    with contenders.exported(quantized, PROMPT) as graphs:
        found = graphs(1)
        assert {contenders.EXPORTED, contenders.STATIC, contenders.SIXTEEN[1]} <= set(found)
        for contender in found.values():
            contender.prompt()
            contender.token()


def test_the_part_on_speed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 64}
    monkeypatch.setattr(bench_speed, "WIDE", {**bench_speed.WIDE, **small})
    monkeypatch.setattr(bench_speed, "PROMPT", PROMPT)
    entry = catalogue().entry("mobilequant")
    request = BenchRequest(entry=entry, out=tmp_path, quick=True, options={"part": "speed"})
    found = bench.bench(request)
    assert (found.part, found.pictures) == ("speed", ["profile.png"])
    assert (tmp_path / "profile.png").stat().st_size > 1000
    ours = found.table[contenders.OURS]
    for call in bench_speed.CALLS:
        for threads in bench_speed.THREADS:
            assert ours[bench_speed.column(bench_speed.WIDTH, call, threads)].n == 2
    assert {claim.id for claim in found.claims} == {"layers", "whole", "static", "latency"}
    assert all("VNNI" in claim.statement for claim in found.claims)


def test_shares_of_operators_are_all(quantized: MobileQuantized) -> None:
    contender = contenders.of_torch(quantized.integers(), torch.arange(PROMPT)[None])
    shares = bench_speed.operators(contender, "prompt")
    assert sum(shares.values()) == pytest.approx(100)
    assert len(shares) == bench_speed.SHOWN + 1
