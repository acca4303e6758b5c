"""CPU time of loading weights with zoo (verified) and with timm (not verified), in one run.

    python tests/benchmarks/load_time.py

The same network, an 86 M-parameter ViT-B/16, from the same safetensors file on the CPU. Ours:
SHA-256 of the file, header against network, meta device, assign. Timm's:
create_model("local-dir:...", pretrained=True). The two take turns; the minimum of five each
counts, and our aim is at most 0.5.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch

from zoo import weights

NAME = "vit_base_patch16_224"
RUNS = 5


def cpu_seconds(work: Callable[[], torch.nn.Module]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network = timm.create_model(NAME)
        file = weights.save_tensors(folder / weights.WEIGHTS, network.state_dict())
        config = {"architecture": NAME, "num_classes": network.num_classes, "pretrained_cfg": {}}  # type: ignore[var-annotated]
        (folder / "config.json").write_text(json.dumps(config))
        size, digest = file.stat().st_size, weights.sha256(file)
        count = sum(p.numel() for p in network.parameters())

        def ours() -> torch.nn.Module:
            weights.verify(file, size, digest)
            return weights.load_module(lambda: timm.create_model(NAME), file)

        def theirs() -> torch.nn.Module:
            return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

        image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            assert torch.equal(ours()(image), theirs()(image))
        times = [(cpu_seconds(ours), cpu_seconds(theirs)) for _ in range(RUNS)]
    mine, other = (min(column) for column in zip(*times, strict=True))
    print(f"{NAME}: {count / 1e6:.0f} M parameters, {size / 1e6:.0f} MB, minimum of {RUNS}")
    print(f"zoo, verified    {mine:6.3f} CPU-s")
    print(f"timm {timm.__version__:<11} {other:6.3f} CPU-s")
    print(f"ratio            {mine / other:6.2f}")


if __name__ == "__main__":
    main()
