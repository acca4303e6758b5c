"""Peak memory and CPU time of mobilequant on a model of 1.1 B parameters, with random weights.

    python tests/benchmarks/quantize_1b.py [--steps 1]

The network has TinyLlama-1.1B's sizes. Each recipe runs in a process of its own, on 4 windows of
256 tokens; its peak resident memory counts, and our limit is 12 GiB. Time grows with windows and
steps, memory does not: learning keeps the activations of one layer at a time. About 30 minutes, and
5 GB of temporary disk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
}  # fmt: skip
LIMIT = 12 * 2**30


def make(folder: Path) -> None:
    """A folder of transformers, 16-bit."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    LlamaForCausalLM(LlamaConfig(**SIZES, dtype="float16")).save_pretrained(folder)


def quantize(folder: Path, scheme: str, options: dict[str, Any], found: Any) -> None:
    import zoo

    ids = torch.randint(3, 32000, (4, 256), generator=torch.Generator().manual_seed(0))
    started = time.process_time()
    quantizer = zoo.load("mobilequant", device="cpu")
    made = quantizer.quantize(folder, ids, scheme=scheme, progress=True, **options)
    made.save_pretrained(folder.with_name("quantized"), overwrite=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found.put((peak, time.process_time() - started))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1)
    steps = parser.parse_args().steps
    spawn = multiprocessing.get_context("spawn")  # a process that has computed nothing yet
    plans: list[tuple[str, dict[str, Any]]] = [
        ("w8a8", {"recipe": "smoothquant-all-grid"}),
        ("w8a8", {"steps": steps, "alpha": 0.5}),
        ("w4a8", {"steps": steps, "alpha": 0.5}),
        ("w8a8", {"recipe": "layerwise", "steps": steps}),
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "lm"
        maker = spawn.Process(target=make, args=(folder,))
        maker.start()
        maker.join()
        for scheme, options in plans:
            found = spawn.Queue()
            process = spawn.Process(target=quantize, args=(folder, scheme, options, found))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{scheme} {options}: exit code {process.exitcode}")
            peak, seconds = found.get()
            verdict = "within" if peak <= LIMIT else "BEYOND"
            used = f"{peak / 2**30:.1f} GiB ({verdict} 12), {seconds:.0f} CPU-s"
            print(f"{scheme} {options}: {used}", flush=True)


if __name__ == "__main__":
    main()
