"""The integer reference: parts against floats, and the whole against simulation and runtime."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo_mobilequant.reference
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from zoo_mobilequant.evaluate import perplexity, text_windows
from zoo_mobilequant.kernels import Floats, Plan
from zoo_mobilequant.original import texts_of
from zoo_mobilequant.quantizers import Grid
from zoo_mobilequant.reference import LOGIT, UNIT, Codes, Factor, Norm, Reference, product
from zoo_mobilequant.runtime import integers

import zoo
from tests.plugins.tiny_lms import tiny_lm, tokens
from zoo.bases import resolve
from zoo.errors import InputError


def grid(step: float, zero: float, bits: int) -> Grid:
    return Grid(torch.tensor(step), torch.tensor(zero), 0, 2**bits - 1)


@pytest.mark.parametrize("real", [1e-7, 3.3e-4, 0.5, 1.0, 7.9, 16384.0, 1e6])
def test_a_factor_multiplies_to_the_nearest(real: float) -> None:
    x = torch.randint(-(2**31), 2**31, (1000,), generator=torch.Generator().manual_seed(0))
    x = x // int(max(real, 1))
    found = Factor(real)(x)
    assert found.dtype == torch.long
    assert float((found - x.double() * real).abs().max()) <= 0.5 + 2**-29 * 2**31 * min(real, 1)


def test_codes_are_those_of_the_grid() -> None:
    given = grid(0.031, 117.0, 8)
    x = torch.randint(-300_000, 300_000, (1000,), generator=torch.Generator().manual_seed(0))
    found = Codes(given, 2.5e-5)(x) + 117
    assert float((found - given.codes(x * 2.5e-5)).abs().max()) <= 1  # a tie, by a float's rounding
    assert float((found != given.codes(x * 2.5e-5)).float().mean()) < 5e-3
    assert int(found.min()) == 0
    assert int(found.max()) == 255


@pytest.mark.parametrize("size", [0.01, 1.0, 300.0])
def test_a_norm_is_the_norm(size: float) -> None:
    """To a step of 16 bits: of values that are large, small, or massive in places."""
    chance = torch.Generator().manual_seed(0)
    norm = LlamaRMSNorm(192, eps=1e-5)
    norm.weight.data.normal_(1, 0.3, generator=chance)
    x = size * torch.randn(16, 192, generator=chance)
    x[0, 5] = 40 * size
    read, given = grid(90 * size / 65535, 30000.0, 16), grid(40 / 65535, 32768.0, 16)
    whole = (x / UNIT).round().long()
    with torch.no_grad():
        wanted = norm(read(whole * UNIT))
    found = Norm(norm, read, given)(whole) * given.step
    assert float((found - wanted).abs().max() / given.step) < 1


def test_a_linear_layer_is_that_of_floats() -> None:
    """To 1e-6 of the largest, before it becomes codes: its sums are exact."""
    chance = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 128, (5, 1536), generator=chance)
    codes = torch.randint(-127, 128, (40, 1536), generator=chance)
    steps = torch.rand(40, generator=chance).double() / 1000
    wanted = (x.double() * 0.03) @ (codes.double() * steps[:, None]).T
    found = Factor(steps * 0.03 / 2.0**-20)(product(x, codes)) * 2.0**-20
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-6
    with pytest.raises(AssertionError):  # more than 32 bits
        product(x.new_full((1, 4096), 2**13), x.new_full((1, 4096), 127))


class Whole:
    """What perplexity asks of a model."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def __call__(self, ids: Tensor) -> Any:
        logits = (self.reference(ids[0]).double() * LOGIT).float()[None]
        return type("Output", (), {"logits": logits})()


def test_whole_numbers_are_all_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """tiny-lm from token ids to logits. The reference, the simulation and the runtime have the same
    likeliest token at 98 % of positions and the same perplexity to .3 %: each rounds what lies
    between two codes in its own way, and such a code moves thousands of sums behind it.

    No float is made on the way: every tensor that an operator gives is looked at.
    """
    model = zoo.load("mobilequant", device="cpu").quantize("tiny-lm", recipe="smoothquant-all-grid")
    monkeypatch.setattr("zoo_mobilequant.runtime.plan", lambda: Plan(Floats, Floats))
    whole = Whole(Reference(model))
    runtime = integers(model.module, model.grids, model.recipe)
    folder = resolve("tiny-lm").folder
    assert folder is not None
    text = "\n\n".join((texts_of(folder) or [])[:8])
    rows = text_windows(model.tokenizer, text)
    with OnlyIntegers() as seen:
        whole.reference(rows[-1][:8])
    assert seen.count > 500
    with torch.no_grad():
        likeliest = [
            torch.cat([each(row[None]).logits[0].argmax(-1) for row in rows])
            for each in (whole, model, runtime)
        ]
    for other in likeliest[1:]:
        assert float((likeliest[0] == other).float().mean()) >= 0.98
    found = [perplexity(m, model.tokenizer, text)["perplexity"] for m in (whole, model, runtime)]
    for value in found[1:]:
        assert value == pytest.approx(found[0], rel=3e-3)


class OnlyIntegers(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails where an operator gives floats."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, Tensor):
                self.count += 1
                assert not tensor.is_floating_point(), function
        return found


def test_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows changes nothing before it."""
    model = zoo.load("mobilequant", device="cpu").quantize(tiny_lm(), tokens(8), recipe="rtn")
    reference, ids = Reference(model), tokens(1, 20)[0]
    assert torch.equal(reference(ids)[:12], reference(ids[:12]))


@pytest.mark.parametrize("kind", ["llama GQA", "llama MHA", "llama tied"])
def test_other_shapes(kind: str) -> None:
    """Heads in groups or not, one table or two: near the simulation on random networks."""
    model = zoo.load("mobilequant", device="cpu").quantize(
        tiny_lm(kind), tokens(8), recipe="smoothquant-all-grid"
    )
    with torch.no_grad():
        simulated = model(tokens(1)).logits[0]
    found = Reference(model)(tokens(1)[0]) * LOGIT
    assert float((found - simulated).abs().median() / simulated.abs().max()) < 0.02


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("qwen2", {}), ("llama biases", {}), ("llama GQA", {"scheme": "w8a16"}),
     ("llama GQA", {"table": False}), ("llama GQA", {"prefix_tokens": 1}),
     ("llama GQA", {"weights": "paper"})],
)  # fmt: skip
def test_what_it_does_not_have_is_refused(kind: str, changes: dict[str, Any]) -> None:
    quantizer = zoo.load("mobilequant", device="cpu")
    model = quantizer.quantize(tiny_lm(kind), tokens(8), recipe="rtn", **changes)
    with pytest.raises(InputError, match="Llamas without biases"):
        zoo_mobilequant.reference.Reference(model)
