"""``zoo publish`` end to end, with the real client against the loopback Hub."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.conftest import MINIMAL_INIT, Site
from zoo import bench
from zoo.interfaces import Metric, Results
from zoo.testing import LoopbackHub

pytestmark = pytest.mark.slow

MODEL = """
import torch
from PIL import Image
from zoo.images import transform
from zoo.interfaces import SRModel
from zoo.weights import load_module


class Gain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.empty(1))


class Model(SRModel):
    scales = (2,)

    def __init__(self, request):
        super().__init__(request)
        self.module = load_module(Gain, request.folder / "model.safetensors")

    def upscale(self, images, *, scale=None, prompt=None, seed=0, tile="auto", progress=False):
        def double(rgb):
            big = rgb.repeat_interleave(2, 1).repeat_interleave(2, 2)
            return big * self.module.gain.detach()

        return transform(images, double, scale=2)
"""
REGISTRY = """\
# This comment stays.
schema: 1
zoo_api: 1
models:
  gain:   # and so does this one
    interface: SRModel
    status: ready
    method: gain
    summary: a gain
    license: {{code: MIT, weights: CC0-1.0}}
    class: "zoo_gain.model:Model"
    files:
      - {{path: model.safetensors, size: 1, sha256: "{old}"}}   # both are written anew
    hub: {{repo: nobody/nothing, revision: null}}
    card:
      data: [{{name: nothing, license: CC0-1.0}}]
"""
LOAD = """
import sys, zoo, torch
m = zoo.load("gain")
x = m.upscale(torch.full((3, 2, 2), 0.5))
print(m.source, float(x[0, 0, 0]))
"""


@pytest.fixture
def project(site: Site) -> Path:
    """A third-party project with weights that its registry does not list yet; its package
    folder."""
    folder = site.plugin(
        "zoo_gain", registry=REGISTRY.format(old="0" * 64), init=MINIMAL_INIT, model=MODEL
    )
    (site.path / "pyproject.toml").write_text("[project]\nname = 'zoo-gain'\n", "utf-8")
    page = site.path / "hub_cards" / "gain"
    page.mkdir(parents=True)
    (page / "about.md").write_text(
        "## What it is not good for\n\n- Everything but brightness.\n", "utf-8"
    )
    (folder / "weights" / "gain").mkdir(parents=True)
    save_file({"gain": torch.tensor([0.5])}, folder / "weights" / "gain" / "model.safetensors")
    return folder


@pytest.fixture
def hub() -> LoopbackHub:  # type: ignore[misc]
    with LoopbackHub() as hub:
        yield hub


def zoo(hub: LoopbackHub, site: Site, *args: str) -> subprocess.CompletedProcess[str]:
    env = hub.environment(site.path / "home", HF_TOKEN="hf_loopback")
    env.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, "-c", "from zoo.cli import main; main()", *args],
        capture_output=True,
        text=True,
        cwd=site.path,
        env={**env, "PYTHONPATH": str(site.path)},
        timeout=120,
    )


def test_publish_then_load_elsewhere(hub: LoopbackHub, site: Site, project: Path) -> None:
    card = zoo(hub, site, "card", "gain")
    assert card.returncode == 0, card.stderr

    (project / "weights" / "gain" / "notes.txt").write_text("private", "utf-8")
    (site.path / "hub_cards" / "gain" / "draft.md").write_text("private", "utf-8")
    dry = zoo(hub, site, "publish", "gain", "--to", "them/gain", "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    listed = json.loads(dry.stdout)
    assert set(listed) == {"model.safetensors", "zoo.json", "README.md"}
    assert not hub.requests  # a dry run asks nothing of the network

    done = zoo(hub, site, "publish", "gain", "--to", "them/gain", "--json")
    assert done.returncode == 0, done.stderr
    commit = json.loads(done.stdout)["revision"]
    assert commit == hub.head("them/gain")
    weights = (project / "weights" / "gain" / "model.safetensors").read_bytes()
    there = hub.files("them/gain")
    # Hub repositories start with a .gitattributes; the rest is exactly the listing.
    assert set(there) - {".gitattributes"} == set(listed)
    assert there["model.safetensors"] == weights

    digest = hashlib.sha256(weights).hexdigest()
    expected = (
        REGISTRY.format(old=digest)
        .replace("size: 1,", f"size: {len(weights)},")
        .replace("repo: nobody/nothing, revision: null", f'repo: "them/gain", revision: "{commit}"')
    )
    assert (project / "registry.yaml").read_text("utf-8") == expected

    # Another process, an empty cache, another folder, no bundle: exactly these bytes.
    shutil.rmtree(project / "weights")
    home = site.path / "elsewhere"
    found = hub.run(LOAD, home=home, PYTHONPATH=str(site.path), HF_HUB_OFFLINE="0")
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["hub", "0.25"]
    (cached,) = home.rglob("model.safetensors")
    assert cached.read_bytes() == weights
    hub.requests.clear()
    again = hub.run(LOAD, home=home, PYTHONPATH=str(site.path), HF_HUB_OFFLINE="0")
    assert again.stdout.split() == ["cache", "0.25"]
    assert not hub.requests

    # The published repository also is a saved folder: its own zoo.json is enough.
    by_id = LOAD.replace('zoo.load("gain")', 'zoo.load("gain", weights="them/gain")')
    # (Another program that shares the cache has left a pickle in it, which is ignored.)
    (cached.parent / "pytorch_model.bin").write_bytes(b"never opened")
    direct = hub.run(by_id, home=home, PYTHONPATH=str(site.path), HF_HUB_OFFLINE="0")
    assert direct.stdout.split()[1] == "0.25", direct.stderr


def test_what_is_refused_leaves_everything_as_it_was(
    hub: LoopbackHub, site: Site, project: Path
) -> None:
    before = (project / "registry.yaml").read_text("utf-8")
    no_card = zoo(hub, site, "publish", "gain", "--to", "them/gain")
    assert no_card.returncode == 1
    assert "zoo card gain" in no_card.stderr
    assert zoo(hub, site, "card", "gain").returncode == 0
    page = site.path / "hub_cards" / "gain" / "README.md"
    page.write_text(page.read_text("utf-8") + "\nTODO\n", "utf-8")
    stale = zoo(hub, site, "publish", "gain", "--to", "them/gain")
    assert "stale" in stale.stderr
    assert "placeholder" in stale.stderr
    assert zoo(hub, site, "card", "gain").returncode == 0

    old = {"model.safetensors": "cd" * 32}
    record = bench.record("gain", Results(table={"gain": {"PSNR": Metric(1.0)}}), "c", 1.0, old)
    bench.write({**record, "code": "1" * 40}, page.parent)
    assert zoo(hub, site, "card", "gain").returncode == 0
    # even where the registry still has the weights that were measured: others would be uploaded
    measured = before.replace("0" * 64, "cd" * 32)
    (project / "registry.yaml").write_text(measured, "utf-8")
    other = zoo(hub, site, "publish", "gain", "--to", "them/gain")
    assert other.returncode != 0
    assert "other weights" in other.stderr
    (page.parent / bench.FILE).unlink()
    (project / "registry.yaml").write_text(before, "utf-8")
    assert zoo(hub, site, "card", "gain").returncode == 0

    pinless = before.replace("    hub: {repo: nobody/nothing, revision: null}\n", "")
    (project / "registry.yaml").write_text(pinless, "utf-8")
    nowhere = zoo(hub, site, "publish", "gain", "--to", "them/gain")
    assert nowhere.returncode == 2
    assert "has no place for hub.repo, hub.revision" in nowhere.stderr
    (project / "registry.yaml").write_text(before, "utf-8")

    assert zoo(hub, site, "publish", "gain", "--to", "not a repo").returncode == 2
    assert not hub.requests  # all of these are found before the Hub is asked

    hub.fault("status", on="*commit*", code=500)
    failed = zoo(hub, site, "publish", "gain", "--to", "them/gain")
    assert failed.returncode == 1
    assert "was not published" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert (project / "registry.yaml").read_text("utf-8") == before


def test_a_saved_folder_is_published_without_touching_a_registry(
    hub: LoopbackHub, site: Site, project: Path
) -> None:
    assert zoo(hub, site, "card", "gain").returncode == 0
    assert zoo(hub, site, "publish", "gain", "--to", "them/gain").returncode == 0
    before = (project / "registry.yaml").read_text("utf-8")
    save = 'import zoo; zoo.load("gain").save_pretrained("mine")'
    run = subprocess.run(
        [sys.executable, "-c", save],
        cwd=site.path,
        env={**os.environ, "PYTHONPATH": str(site.path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    (site.path / "mine" / "notes.txt").write_text("private", "utf-8")
    done = zoo(hub, site, "publish", "./mine", "--to", "me/mine", "--json")
    assert done.returncode == 0, done.stderr
    there = hub.files("me/mine")
    assert set(there) - {".gitattributes"} == {
        "model.safetensors",
        "zoo.json",
        "README.md",
    }  # notes.txt is not listed in zoo.json, so it stays here
    assert (project / "registry.yaml").read_text("utf-8") == before

    # It claims nothing of the catalogue's origin, licence, training or picture.
    card = hub.files("me/mine")["README.md"].decode()
    for claim in ("trained by", "variant", "License", "license:", "Training", "Independent", "!["):
        assert claim not in card, claim
    assert "saved by its user" in card
    assert "no licence or no training data" in done.stderr
    told = zoo(hub, site, "publish", "./mine", "--to", "me/told", "--license", "mit",
               "--trained-on", "my holiday photos (my own)")  # fmt: skip
    assert (told.returncode, told.stderr) == (0, "")
    said = hub.files("me/told")["README.md"].decode()
    assert "license: mit" in said
    assert "- my holiday photos (my own)" in said
    wrong = zoo(hub, site, "publish", "./mine", "--to", "me/x", "--license", "nonsense")
    assert wrong.returncode == 2
    assert "expected a Hub identifier" in wrong.stderr
    wrong = zoo(hub, site, "publish", "gain", "--to", "me/x", "--license", "mit")
    assert wrong.returncode == 2
    assert "are for a saved folder" in wrong.stderr

    # The card's own snippet, as run by a user with the plugin and an empty cache; the command.
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    assert 'zoo.load("me/mine")' in snippet
    Image.new("RGB", (4, 4), (200, 100, 0)).save(site.path / "small.png")
    start = f"import os; os.chdir({str(site.path)!r})\n"
    more: dict[str, Any] = {"PYTHONPATH": str(site.path), "HF_HUB_OFFLINE": "0"}
    used = hub.run(start + snippet, home=site.path / "fresh", **more)
    assert used.returncode == 0, used.stderr
    with Image.open(site.path / "large.png") as large:
        assert large.size == (8, 8)
    pinned = f"me/mine@{hub.head('me/mine')}"
    for words in (["upscale", pinned, "small.png", "-o", "b.png"], ["info", "me/mine"]):
        command = zoo(hub, site, *words)
        assert command.returncode == 0, command.stderr
    hub.add("org/other", {"config.json": b"{}", "model.safetensors": there["model.safetensors"]})
    other = zoo(hub, site, "upscale", "org/other", "small.png", "-o", "c.png")
    assert other.returncode == 2
    assert "has no zoo.json" in other.stderr
