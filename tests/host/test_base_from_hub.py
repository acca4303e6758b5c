"""``base="org/x"``: a sharded checkpoint, from the Hub to a model that works on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from tests.conftest import MINIMAL_INIT, Site
from zoo.testing import LoopbackHub

pytestmark = pytest.mark.slow

REGISTRY = """
schema: 1
zoo_api: 1
models:
  rider:
    interface: SRModel
    status: ready
    summary: works on a base
    class: "zoo_rider.model:Model"
    base: {kind: transformers, default: null, needed: [build, load]}
"""
MODEL = """
import torch
from zoo.images import transform
from zoo.interfaces import SRModel
from zoo.weights import load_module


class Model(SRModel):
    scales = (2,)

    def __init__(self, request):
        super().__init__(request)
        self.module = load_module(
            lambda: torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)),
            request.base.folder,
        )

    def state(self):
        return {}  # the base stays where it is; only its name and commit are kept

    def upscale(self, images, *, scale=None, prompt=None, seed=0, tile="auto", progress=False):
        gain = self.module[1].weight[0, 0].detach()
        return transform(
            images, lambda x: x.repeat_interleave(2, 1).repeat_interleave(2, 2) * gain, scale=2
        )
"""
USE = """
import sys, zoo, torch
m = zoo.load("rider", base={base!r})
print(float(m.upscale(torch.ones(3, 1, 1))[0, 0, 0]), m.base.revision)
m.save_pretrained({out!r})
"""
AGAIN = """
import zoo, torch
m = zoo.load({out!r})
print(float(m.upscale(torch.ones(3, 1, 1))[0, 0, 0]), m.base.revision)
"""


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


def checkpoint(gain: float) -> dict[str, bytes]:
    """Two shards and their index, as transformers and diffusers write them; and a pickle."""
    shards = {
        "model-00001-of-00002.safetensors": {"0.weight": torch.eye(2), "0.bias": torch.zeros(2)},
        "model-00002-of-00002.safetensors": {
            "1.weight": torch.full((1, 2), gain),
            "1.bias": torch.zeros(1),
        },
    }
    index = {"weight_map": {key: name for name, tensors in shards.items() for key in tensors}}
    files = {name: save(tensors) for name, tensors in shards.items()}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    return {**files, "config.json": b"{}", "pytorch_model.bin": b"never fetched"}


def test_a_base_is_resolved_once_recorded_and_found_again(
    hub: LoopbackHub, site: Site, tmp_path: Path
) -> None:
    site.plugin("zoo_rider", registry=REGISTRY, init=MINIMAL_INIT, model=MODEL)
    first = hub.add("org/base", checkpoint(0.25))
    out, home = str(tmp_path / "saved"), tmp_path / "home"
    more: dict[str, Any] = {"PYTHONPATH": str(site.path), "HF_HUB_OFFLINE": "0"}

    done = hub.run(USE.format(base="org/base", out=out), home=home, **more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0.25", first]
    assert [r for r in hub.requests if r.path.endswith(".bin")] == []
    assert list(home.rglob("*.bin")) == []

    # The branch moves on; a saved model keeps its commit, even with a new cache.
    hub.add("org/base", checkpoint(0.75))
    kept = hub.run(AGAIN.format(out=out), home=tmp_path / "elsewhere", **more)
    assert kept.returncode == 0, kept.stderr
    assert kept.stdout.split() == ["0.25", first]
    hub.requests.clear()
    warm = hub.run(AGAIN.format(out=out), home=tmp_path / "elsewhere", **more)
    assert warm.stdout.split() == ["0.25", first]
    assert not hub.requests

    pinned = hub.run(
        USE.format(base=f"org/base@{first}", out=out + "2"), home=tmp_path / "third", **more
    )
    assert pinned.stdout.split() == ["0.25", first], pinned.stderr


def test_a_base_of_pickles_is_refused_with_the_way_out(
    hub: LoopbackHub, site: Site, tmp_path: Path
) -> None:
    site.plugin("zoo_rider", registry=REGISTRY, init=MINIMAL_INIT, model=MODEL)
    hub.add("org/old", {"config.json": b"{}", "pytorch_model.bin": b"never fetched"})
    more: dict[str, Any] = {"PYTHONPATH": str(site.path), "HF_HUB_OFFLINE": "0"}
    code = USE.format(base="org/old", out=str(tmp_path / "saved"))
    done = hub.run(code, home=tmp_path / "home", **more)
    assert done.returncode != 0
    assert "pytorch_model.bin" in done.stderr
    assert "safetensors" in done.stderr
    assert [r for r in hub.requests if r.path.endswith(".bin")] == []
