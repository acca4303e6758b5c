"""The runtimes that people have for a language model on a CPU, side by side with ours.

Each gives the last row of logits for the same prompt, keeps its keys and values, and goes on by one
token. Networks have random weights or real ones: time does not depend on them.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from zoo.experiment import take_turns

from .kernels import has_vnni

FLOAT, OURS = "torch, float32", "mobilequant, integers"
STATIC = "onnxruntime, static int8"
EXPORTED, OPENVINO = "mobilequant's export in onnxruntime", "OpenVINO, static int8"
SIXTEEN = ("torch, int8 weights, bfloat16", "onnxruntime, 4-bit weights, float32")
"""Those whose activations have 16 bits or more."""


@dataclass(frozen=True)
class Contender:
    """What is timed of a runtime."""

    prompt: Callable[[], object]
    token: Callable[[], object]
    """One token after the prompt, which has been run before."""


def of_torch(network: Any, ids: Tensor) -> Contender:
    """A network of transformers, in whatever torch computes with."""
    caches: list[Any] = []

    @torch.no_grad()
    def prompt() -> None:
        found = network(ids, use_cache=True, logits_to_keep=1)
        caches[:] = [found.past_key_values]

    @torch.no_grad()
    def token() -> None:
        network(ids[:, :1], past_key_values=caches[0], use_cache=True)
        caches[0].crop(-1)

    return Contender(prompt, token)


def compared(model: Any, prompt: int = 256, repeats: int = 5) -> dict[str, tuple[float, float]]:
    """CPU-seconds, on one thread, of a prompt of so many tokens (with the last row of the head) and
    of one token after it: ``floats``, the network of transformers as it comes, in float32 with
    random weights, and ``integers``, a ``MobileQuantized`` on integers. They take turns; the
    quickest of ``repeats`` counts.
    """
    config = model.module.config.__class__(**model.module.config.to_dict())
    config._attn_implementation = "sdpa"
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    networks = {"floats": plain.eval().requires_grad_(False), "integers": model.integers()}
    ids = torch.arange(prompt)[None] % config.vocab_size
    runs = {name: of_torch(network, ids) for name, network in networks.items()}
    prompts = take_turns({name: run.prompt for name, run in runs.items()}, rounds=repeats)
    tokens = take_turns({name: run.token for name, run in runs.items()}, rounds=repeats)
    return {name: (min(prompts[name]), min(tokens[name])) for name in runs}


def bfloat16(network: nn.Module) -> nn.Module:
    """A copy in bfloat16."""
    return copy.deepcopy(network).to(torch.bfloat16)


def dynamic(network: nn.Module) -> nn.Module:
    """torch's dynamic int8: weights of 8 bits, each input quantized to 8 bits by its own range."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to move to another package
        made: nn.Module = torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(network), {nn.Linear}, dtype=torch.qint8
        )
    return made


class WeightOnly(nn.Module):
    """A linear layer with weights of 8 bits and activations in bfloat16, as torch computes it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        steps = linear.weight.abs().amax(1) / 127
        self.codes = (linear.weight / steps[:, None]).round().to(torch.int8)
        self.steps = steps.to(torch.bfloat16)
        self.bias = None if linear.bias is None else linear.bias.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch._weight_int8pack_mm(x.flatten(0, -2), self.codes, self.steps)
        found = rows.view(*x.shape[:-1], -1)
        return found if self.bias is None else found + self.bias


def weight_only(network: nn.Module) -> nn.Module:
    """torch's int8 weights with bfloat16 activations."""
    made = copy.deepcopy(network)
    for path, module in [*made.named_modules()]:
        if isinstance(module, nn.Linear):
            made.set_submodule(path, WeightOnly(module))
    return made.to(torch.bfloat16)


TORCH: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    FLOAT: lambda network: network,
    "torch, bfloat16": bfloat16,
    "torch, dynamic int8": dynamic,
    SIXTEEN[0]: weight_only,
}
"""Name -> what it makes of a network in float32."""


# --- ONNX -----------------------------------------------------------------------------------------


def of_onnx(folder: Path, threads: int, exact: bool) -> Contender:
    """Two graphs in onnxruntime."""
    from .qdq.session import Session

    session = Session(folder, threads=threads, exact=exact)
    ids = [i % session.told["vocabulary"] for i in range(session.told["length"])]

    def token() -> None:
        session.position = len(ids)
        session.decode(ids[0])

    return Contender(lambda: session.prefill(ids), token)


def of_openvino(folder: Path, threads: int) -> Contender:
    """Two graphs in OpenVINO, on zeros. Raises ModuleNotFoundError where it is not installed."""
    import numpy as np
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    runs = []
    for name in ("prefill", "decode"):
        made = openvino.Core().compile_model(str(folder / f"{name}.onnx"), "CPU", settings)
        fed = {i.any_name: np.zeros([*i.shape], i.element_type.to_dtype()) for i in made.inputs}
        request = made.create_infer_request()
        runs.append(lambda request=request, fed=fed: request.infer(fed))
    return Contender(*runs)


@contextmanager
def exported(model: Any, prompt: int) -> Iterator[Callable[[int], dict[str, Contender]]]:
    """Those that run ONNX graphs of a quantized model, or of what it was made from: a function of
    the number of threads. OpenVINO is among them where it is installed.
    """
    from .qdq import floats

    with TemporaryDirectory() as scratch, _quiet():
        here = Path(scratch)
        plain = floats.written(model, here / "float32", prompt, prompt + 1, floats=True)
        folders = {
            EXPORTED: floats.written(model, here / "ours", prompt, prompt + 1, floats=False),
            "onnxruntime, float32": plain,
            STATIC: floats.static(plain, here / "static", has_vnni()),
            SIXTEEN[1]: floats.four_bits(plain, here / "four"),
        }

        def made(threads: int) -> dict[str, Contender]:
            found = {n: of_onnx(f, threads, exact=n == EXPORTED) for n, f in folders.items()}
            with suppress(ModuleNotFoundError):  # then the table has no such row
                found[OPENVINO] = of_openvino(folders[STATIC], threads)
            return found

        yield made


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice of onnxruntime's quantization."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
