"""Exported super-resolution graphs: on a device, without torch, with the same pixels."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import zoo_edge_sd_sr
from click.testing import CliRunner
from PIL import Image
from torch import nn
from zoo_edge_sd_sr.model import EdgeSDSR
from zoo_sr.degrade import round8
from zoo_sr.export import MEASURED, _trace, inputs, photograph, report
from zoo_sr.pixels import bicubic_down
from zoo_sr.tiles import noise_field

import zoo
from tests.plugins.test_edge_sd_sr import SMALL, make
from zoo.cli import cli
from zoo.errors import NotReadyError, OptionError
from zoo.metrics import psnr_y

EXAMPLE = Path(zoo_edge_sd_sr.__file__).parent / "examples" / "onnx_upscale.py"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _no_trace():
    """pytest's log handler makes torch write its trace, which takes most of an export's time."""
    trace = logging.getLogger("torch.__trace")
    trace.disabled = True
    yield
    trace.disabled = False


@pytest.fixture(scope="module")
def bundled(tmp_path_factory) -> tuple[EdgeSDSR, Path, Path]:
    """The bundled model, and its graph in float32 and in int8."""
    folder = tmp_path_factory.mktemp("onnx")
    model = zoo.load("edge-sd-sr")
    return model, model.export(folder / "a.onnx"), model.export(folder / "b.onnx", int8=True)


def run(path: Path, fed: dict[str, torch.Tensor]) -> torch.Tensor:
    """(3,H,W): the output of onnxruntime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {k: v.numpy() for k, v in fed.items()})[0][0])


def told(path: Path) -> dict[str, str]:
    return {p.key: p.value for p in onnx.load(path).metadata_props}


@pytest.mark.parametrize("size", [(53, 38), (1, 3)])  # no multiple of 4; smaller than one
def test_the_example_runs_without_torch_and_gives_the_same_pixels(bundled, tmp_path, size):
    model, path, _ = bundled
    for name in ("torch", "zoo", "diffusers"):  # importing one of them here ends the example
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'{__name__} was imported')")
    pixels = (photograph("astronaut", *size).permute(1, 2, 0) * 255).byte().numpy()
    small = Image.fromarray(pixels)
    small.save(tmp_path / "in.png")
    subprocess.run(
        [sys.executable, EXAMPLE, path, tmp_path / "in.png", tmp_path / "out.png"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True,
    )
    with Image.open(tmp_path / "out.png") as image:
        made = np.asarray(image).astype(int)
    ours = np.asarray(model.upscale(small, tile=None)).astype(int)
    assert made.shape == (4 * size[0], 4 * size[1], 3)
    assert np.abs(made - ours).max() <= 1


def test_the_example_is_short_and_in_the_readme():
    lines = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
    assert len(lines) <= 26  # 20 of code, imports and docstring aside
    assert "examples/onnx_upscale.py" in (EXAMPLE.parent.parent / "README.md").read_text()


def test_the_graph_tells_what_a_caller_must_know(bundled):
    model, path, small = bundled
    assert told(path) == {
        "model": "edge-sd-sr",
        "scale": "4",
        "multiple": str(model.multiple),
        "factor": "4",
        "range": "0 1",
        "precision": "float32",
    }
    assert told(small) == {**told(path), "precision": "int8"}


def test_int8_is_small_and_nearly_as_good(bundled):
    _, path, small = bundled
    x_h = photograph(MEASURED, 256, 256)
    x_l = round8(bicubic_down(x_h[None], 4))
    plain, quantized = (psnr_y(run(p, {"image": x_l}), x_h, 4) for p in (path, small))
    assert abs(plain - quantized) < 0.05
    off = 255 * (run(small, {"image": x_l}) - run(path, {"image": x_l})).abs()
    # A graph left in float32 would be 0 off; these weights measured 9.2 at most, 0.7 on average.
    assert 0.1 < off.mean() < 1
    assert off.max() < 12
    assert small.stat().st_size < path.stat().st_size / 3
    assert run(small, {"image": torch.rand(1, 3, 20, 12)}).shape == (3, 80, 48)  # sizes stay free
    # Bytes, not only a small file: the weights of convolutions are int8, one scale a channel.
    graph = onnx.load(small).graph
    held = {t.name: t for t in graph.initializer}
    kinds = [held[i].data_type for n in graph.node for i in n.input[:1] if i in held]
    assert kinds.count(onnx.TensorProto.INT8) > 30


@pytest.mark.parametrize("int8", [False, True])
def test_a_fixed_size_is_fixed(tmp_path, int8):
    model = make(SMALL)
    path = model.export(tmp_path / "m.onnx", size=[8, 12], int8=int8)
    (image,) = onnx.load(path).graph.input
    assert [d.dim_value for d in image.type.tensor_type.shape.dim] == [1, 3, 8, 12]
    square = model.export(tmp_path / "n.onnx", size=8)
    assert run(square, {"image": torch.rand(1, 3, 8, 8)}).shape == (3, 32, 32)


def test_wrong_options_are_named(tmp_path):
    model = make(SMALL)
    for size in (3, 0, -2, True, [4], [4, 6, 8], [4, 5], "64", 4.0, [2.0, 2.0]):
        with pytest.raises(OptionError, match="multiples of 2"):
            model.export(tmp_path / "m.onnx", size=size)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="int8=1: expected true or false"):
        model.export(tmp_path / "m.onnx", int8=1)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="'onnx'"):
        model.export(tmp_path / "m.trt", format="tensorrt")
    model.module.half()
    with pytest.raises(NotReadyError, match="dtype='float32'"):
        model.export(tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


class Normed(nn.Module):
    """Group norms as diffusers' blocks have them: over pixels, and over a row of tokens."""

    scale, factor = 1, 1

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.tokens = nn.GroupNorm(2, 8)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, image: torch.Tensor, noise: None = None) -> torch.Tensor:
        h = self.norm(self.conv(image))
        return self.tokens(h.flatten(2)).reshape(h.shape)[:, :3]


def test_norms_are_exported_in_four_dimensions():
    """Check 11: in three they fall off a phone's accelerator."""
    net, own = Normed(), nn.GroupNorm.forward
    model = SimpleNamespace(module=net, multiple=4, noise_scale=0.0, device="cpu")
    made = _trace(model, None)
    assert nn.GroupNorm.forward is own
    graph = onnx.shape_inference.infer_shapes(made).graph
    shapes = {v.name: v.type.tensor_type.shape.dim for v in graph.value_info}
    norms = [n for n in graph.node if n.op_type == "InstanceNormalization"]
    assert [len(shapes[n.input[0]]) for n in norms] == [4, 4]
    x = torch.rand(1, 3, 12, 8)
    session = onnxruntime.InferenceSession(made.SerializeToString())
    (y,) = session.run(None, {"image": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(y), net(x).clamp(0, 1))


def test_a_chain_that_starts_at_noise_takes_it_as_an_input(tmp_path, monkeypatch):
    monkeypatch.setattr(EdgeSDSR, "noise_scale", 1.0)
    model = make(SMALL)
    path = model.export(tmp_path / "m.onnx")
    x = torch.rand(1, 3, 10, 6)
    assert torch.equal(inputs(model, x)["noise"][0], noise_field(0, 4, 0, 0, 10, 6))
    made = run(path, inputs(model, x))
    torch.testing.assert_close(made, model.upscale(x[0], tile=None, seed=0), atol=1e-3, rtol=0)
    assert not torch.allclose(made, model.upscale(x[0], tile=None, seed=1), atol=1e-3)
    Image.new("RGB", (5, 7), "red").save(tmp_path / "in.png")
    subprocess.run(
        [sys.executable, EXAMPLE, path, tmp_path / "in.png", tmp_path / "out.png"], check=True
    )
    with Image.open(tmp_path / "out.png") as made_of_file:
        assert made_of_file.size == (20, 28)


def test_the_report_compares_pixels_and_time(bundled):
    model, path, small = bundled
    size, speed = report(model, path, patience=0)
    assert size.startswith(f"{path.stat().st_size / 1e6:.1f} MB")
    assert float(size.split("at most ")[1].split("/255")[0]) < 1  # the same pixels within 1/255
    assert "128x128 to 512x512: onnxruntime" in speed
    assert "ratio" in speed
    # A file that is not this model's shows at once.
    assert float(report(model, small, patience=0)[0].split("at most ")[1].split("/255")[0]) > 1


def test_the_command_exports_and_reports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = make(SMALL).save_pretrained(tmp_path / "saved")
    given = ["-O", "int8=true", "-O", "size=16", "--format", "onnx"]
    done = CliRunner().invoke(cli, ["export", str(saved), *given])
    assert done.exit_code == 0, done.output
    first, size, speed, quality = done.output.splitlines()
    assert first == "edge-sd-sr.onnx"  # without -o: by the model's name, here
    assert told(tmp_path / first)["precision"] == "int8"
    assert "MB" in size
    assert "16x16 to 64x64" in speed
    assert "float32" in quality
