"""Training of the super-resolution models on tiny networks: errors, interruptions, reports."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zoo_edge_sd_sr
import zoo_edge_sd_sr.train as edge
import zoo_yonos_sr
from PIL import Image
from zoo_edge_sd_sr.model import build_network
from zoo_sr.pixels import bicubic_down
from zoo_sr.training import photos as pictures
from zoo_sr.training import recipe as sr
from zoo_yonos_sr.train import recipe

import zoo
from zoo.errors import DeviceError, InputError, OptionError, WeightsError
from zoo.hookspecs import TrainRequest

SIBLING = Path(zoo_edge_sd_sr.__file__).parent / "weights" / "edge-sd-sr"
SMALL = {
    "latent": 4,
    "tile": 16,
    "unet": {"widths": [8, 12]},
    "decoder": {"widths": [12, 8]},
}
OPTIONS = {
    "batch": 2,
    "crop": 64,
    "texture": 0.2,
    "degradation": "light",
    "degraded": 0.3,
    "precision": "float32",
}
YONOS = {**OPTIONS, "autoencoder": True, "scale": "4"}
EDGE = {**OPTIONS, "distill": False}


def small(name: str, config: dict):
    entry = zoo.info(name)
    return replace(entry, config={**entry.config, **SMALL, **config})


ENTRIES = {
    "yonos-sr": (zoo_yonos_sr, small("yonos-sr", {"encoder": {"widths": [8, 12]}}), YONOS),
    "edge-sd-sr": (
        zoo_edge_sd_sr,
        small(
            "edge-sd-sr",
            {
                "stride": 2,
                "lr_encoder": {"kind": "native", "width": 8},
                "hr_encoder": {"widths": [8, 12]},
            },
        ),
        EDGE,
    ),
}


def asked(name, photos, out, options=None, **changes) -> TrainRequest:
    _, entry, own = ENTRIES[name]
    return TrainRequest(
        entry, out, **{"data": photos, "steps": 2, "options": own | (options or {}), **changes}
    )


def train(name, photos, out, **changes) -> Path:
    return ENTRIES[name][0].zoo_train(asked(name, photos, out, **changes))


def report(out: Path) -> dict:
    return json.loads((out / "train.json").read_text())


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    from skimage.data import astronaut

    folder = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(["mine", "casa-mila"]):
        Image.fromarray(astronaut()[i * 128 : i * 128 + 264, 100:364]).save(folder / f"{name}.png")
    return folder


yonos, sibling = partial(train, "yonos-sr"), partial(train, "edge-sd-sr")


# --- stages that cannot follow earlier ones -------------------------------------------------------


def test_a_kept_autoencoder_has_to_come_from_somewhere(photos, tmp_path):
    with pytest.raises(OptionError, match=r"autoencoder=false keeps .* add --init"):
        yonos(photos, tmp_path / "out", options={"autoencoder": False})


def test_a_link_of_the_chain_needs_the_one_before(photos, tmp_path):
    chain = tmp_path / "chain"
    yonos(photos, chain)
    for stage, needed in (("x4", 2), ("decoder", 8)):
        scale = {"x4": "4", "decoder": "8"}[stage]
        with pytest.raises(OptionError, match=rf"for x{needed}; that of --init is for x4"):
            yonos(
                photos,
                tmp_path / stage,
                stage=stage,
                init=chain / "model",
                options={"scale": scale},
            )
    yonos(photos, tmp_path / "x8", stage="x8", init=chain / "model", options={"scale": "8"})
    assert report(tmp_path / "x8")["done"] == ["x8"]


def test_a_saved_sibling_gives_its_autoencoder_and_no_unet(photos, tmp_path):
    """A folder with a ``zoo.json`` of the other method, not only its bundle."""
    first = sibling(photos, tmp_path / "sibling")
    keep = {"init": first, "options": {"autoencoder": False}}
    job = recipe(asked("yonos-sr", photos, tmp_path / "a", **keep))
    theirs = zoo.weights.load_tensors(first / "model.safetensors")
    own = job.net.state_dict()
    assert torch.equal(own["hr_encoder.conv_in.weight"], theirs["hr_encoder.conv_in.weight"])
    for stage in ("x4", "decoder"):
        with pytest.raises(OptionError, match="that of --init is not trained"):
            yonos(photos, tmp_path / "b", stage=stage, **keep)
    assert yonos(photos, tmp_path / "c", **keep).is_dir()


def test_a_model_of_another_kind_is_refused(photos, tmp_path):
    other = yonos(photos, tmp_path / "yonos")
    with pytest.raises(WeightsError, match=r"do not fit edge-sd-sr, such as"):
        sibling(photos, tmp_path / "a", init=other)
    with pytest.raises(WeightsError, match=r"do not fit yonos-sr, such as"):
        yonos(photos, tmp_path / "b", init=SIBLING)  # of another width


def test_distilling_needs_a_teacher(photos, tmp_path):
    start = sibling(photos, tmp_path / "start")
    with pytest.raises(OptionError, match="distill=true needs the teacher"):
        sibling(photos, tmp_path / "out", stage="unet", init=start, options={"distill": True})
    out = tmp_path / "steps"
    for stage in ("autoencoder", "lr_encoder", "teacher", "unet"):
        resume = stage != "autoencoder"
        sibling(photos, out, stage=stage, resume=resume, options={"distill": True})
    assert report(out)["done"] == ["autoencoder", "lr_encoder", "teacher", "unet"]


# --- what a long run meets ------------------------------------------------------------------------


def test_a_resumed_run_needs_no_init_and_remembers_it(photos, tmp_path):
    before = yonos(photos, tmp_path / "a", stage="autoencoder")
    out = tmp_path / "b"
    yonos(photos, out, stage="x2", init=before)
    assert (out / "curve.png").is_file()
    yonos(photos, out, resume=True, stage="x4")
    assert [run["done"] for run in report(out)["before"]] == [["autoencoder"]]
    assert report(out)["done"] == ["x2", "x4"]


def test_resume_names_the_option_that_differs(photos, tmp_path):
    yonos(photos, tmp_path, stage="autoencoder")
    with pytest.raises(OptionError, match=r"with -O texture=0\.2, not 0\.5: resume"):
        yonos(photos, tmp_path, resume=True, options={"texture": 0.5})


def test_how_a_step_is_computed_may_change(photos, tmp_path):
    """Out of memory in the second stage: the first one is not lost."""
    yonos(photos, tmp_path, stage="autoencoder", options={"micro": 2})
    changes = {"micro": 1, "checkpointing": True}
    yonos(photos, tmp_path, stage="x2", resume=True, options=changes)
    assert report(tmp_path)["done"] == ["autoencoder", "x2"]


def test_the_teacher_is_gone_when_its_student_has_learnt(photos, tmp_path):
    job = recipe(asked("yonos-sr", photos, tmp_path))
    job.fit_chain()
    assert report(tmp_path)["done"][-1] == "decoder"
    assert not job.run.keeps("teacher")
    assert not any(k.startswith("teacher:") for k in _names(tmp_path / "checkpoint.safetensors"))


def _names(path: Path) -> set[str]:
    return set(zoo.weights.load_tensors(path))


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"batch": 4, "micro": 0, "checkpointing": False}, "-O micro=2 and -O checkpointing=true"),
        ({"batch": 4, "micro": 1, "checkpointing": True}, "a smaller -O batch or -O crop"),
    ],
)
def test_too_little_memory_says_which_option_needs_less(
    photos, tmp_path, monkeypatch, options, hint
):
    def full(self, draw, crop=None):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sr.Recipe, "batch", full)
    with pytest.raises(DeviceError, match=rf"at once \(crop=64\)\. Try {hint}\."):
        yonos(photos, tmp_path, options=options)


def test_a_loss_that_is_no_number_stops_before_the_checkpoint(photos, tmp_path, monkeypatch):
    real = sr.Recipe.batch

    def broken(self, draw, crop=None):
        batch = real(self, draw, crop)
        batch.x_h.fill_(float("nan"))
        return batch

    monkeypatch.setattr(sr.Recipe, "batch", broken)
    with pytest.raises(InputError, match=r"loss of stage 'autoencoder' is nan .*-O precision"):
        yonos(photos, tmp_path)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_the_learning_rate_of_a_recipe_can_be_changed(photos, tmp_path):
    for lr, expected in ((0.0, 8e-4), (1e-5, 1e-5)):
        job = recipe(asked("yonos-sr", photos, tmp_path, options={"lr": lr}))
        assert job.run.stages["x2"].lr == expected


# --- many photographs -----------------------------------------------------------------------------


def test_validation_looks_at_a_few_crops_at_once(photos, tmp_path, monkeypatch):
    job = recipe(asked("yonos-sr", photos, tmp_path))
    job.photos.held_out = {str(i): job.photos.held_out["casa-mila"] for i in range(5)}
    monkeypatch.setattr(sr, "AT_ONCE", 2)
    seen: list[tuple[int, int]] = []

    def picture(x_h, x_l):
        seen.append((len(x_h), len(x_l)))
        return x_h

    job.validate("exact", picture)
    assert seen == [(2, 2), (2, 2), (1, 1)]
    assert job.run.validated["exact"]["psnr_y"] > 90  # each crop is compared with itself


def test_not_all_of_a_large_set_is_held_out(tmp_path, monkeypatch):
    for i in range(40):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i:02}.png")
    assert sorted(pictures.Photos(tmp_path).held_out) == ["09", "19", "29", "39"]
    monkeypatch.setattr(pictures, "HELD", 2)
    found = pictures.Photos(tmp_path)
    assert sorted(found.held_out) == ["09", "19"]
    assert len(found.train) == 2 * 38


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["z_t", "concatenation"])
def test_the_variance_learns_by_z_t_alone(path, monkeypatch):
    """Without the KL term, which always has a gradient for the variance."""
    monkeypatch.setattr(edge, "KL_WEIGHT", 0.0)
    torch.manual_seed(0)
    network: Any = build_network(ENTRIES["edge-sd-sr"][1].config).requires_grad_(False)
    for p in network.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.1)
    network.lr_encoder.requires_grad_(True)
    denoise = network.denoise
    if path == "z_t":
        network.denoise = lambda z_t, mu, t: denoise(z_t, mu.detach(), t)
    else:
        network.denoise = lambda z_t, mu, t: denoise(z_t.detach(), mu, t)
    generator = torch.Generator().manual_seed(0)
    x_h = 2 * torch.rand(2, 3, 64, 64, generator=generator) - 1
    job: Any = SimpleNamespace(net=network, autocast=lambda: torch.autocast("cpu", enabled=False))
    edge.unet_loss(job, sr.Batch(x_h, bicubic_down(x_h, 4), None, generator)).backward()
    mean, variance = network.lr_encoder.conv_out.weight.grad.abs().sum((1, 2, 3)).split(4)
    assert (mean > 0).all()
    assert (variance > 0).all() if path == "z_t" else not variance.any()
