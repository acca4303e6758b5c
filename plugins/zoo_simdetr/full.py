"""The paper's size: transformers' Deformable DETR and RT-DETR behind the verbs of ``detector.py``.

The stages of ``course.py`` run on these networks unchanged: each is a trunk without class layers,
and class layers that are replaced between pseudo-classes and real ones. The loss is the network's
own (paper). The base is a checkpoint of such a detector, or a timm backbone, around which the
transformer starts at random, as in the paper.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from zoo.errors import NotReadyError, UsageError, WeightsError
from zoo.hookspecs import BuildRequest, TrainRequest
from zoo.training import Run, read_saved
from zoo.weights import load_module, load_tensors

from .learning import Fit
from .model import SimDETR
from .outputs import Seen, Target

BIAS = -4.595
"""Starting logit of every class: a probability of 0.01, as in Deformable DETR."""
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
"""Of most backbones; a base's own files win."""
PAPER: Mapping[str, Mapping[str, Any]] = {
    "deformable_detr": {"with_box_refine": True, "auxiliary_loss": True, "class_cost": 2},
    "rt_detr": {},
}
"""What differs from transformers' defaults around a timm backbone."""


class FullClasses(nn.Module):
    """All parameters that belong to classes, as ``detector.Classes`` has them."""

    def __init__(self, count: int, width: int, layers: int, *, dense: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, count) for _ in range(layers))
        self.dense = nn.Linear(width, count) if dense else None
        self.embedding = nn.Embedding(count + 1, width, padding_idx=count) if dense else None
        for linear in self.linears():
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.constant_(linear.bias, BIAS)

    @property
    def count(self) -> int:
        """Number of classes."""
        return self.linears()[0].out_features

    def linears(self) -> list[nn.Linear]:
        """The classifiers, the dense head's first if there is one."""
        found = [cast(nn.Linear, layer) for layer in self.layers]
        return found if self.dense is None else [self.dense, *found]


class FullTrunk(nn.Module):
    """A detector of transformers without its class layers."""

    def __init__(self, config: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.net = _empty(config)
        self.kind = str(config["model_type"])
        self.mean, self.std = list(mean), list(std)
        self.shape = self.detach()

    def detach(self) -> tuple[int, int, bool]:
        """Take the class layers out; returns (width, layers, is there a dense head?)."""
        net = self.net
        if self.kind == "rt_detr":
            layers = net.model.decoder.class_embed
            found = (layers[0].in_features, len(layers), True)
            del net.model.decoder.class_embed, net.model.enc_score_head
            del net.model.denoising_class_embed
        else:
            found = (net.class_embed[0].in_features, len(net.class_embed), False)
            del net.class_embed
        return found

    def attach(self, classes: FullClasses) -> None:
        """Use these class layers; they stay out of the trunk's own parameters."""
        if self.kind == "rt_detr":
            _lend(self.net.model.decoder, "class_embed", classes.layers)
            _lend(self.net.model, "enc_score_head", classes.dense)
            _lend(self.net.model, "denoising_class_embed", classes.embedding)
        else:
            _lend(self.net, "class_embed", classes.layers)
        self.net.config.num_labels = classes.count

    def normal(self, images: Tensor) -> Tensor:
        """(N,3,H,W) in [0,1] to the values that the backbone was trained on."""
        mean, std = (images.new_tensor(x)[:, None, None] for x in (self.mean, self.std))
        return (images - mean) / std

    def features(self, images: Tensor) -> list[Tensor]:
        """(N,3,H,W) in [0,1] to the backbone's maps of strides 8, 16 and 32."""
        mask = torch.ones(len(images), *images.shape[2:], dtype=torch.long, device=images.device)
        encoder = self.net.model.backbone
        encoder = getattr(encoder, "conv_encoder", encoder)
        return [one for one, _ in encoder(self.normal(images), mask)][-3:]

    def parts(self) -> tuple[nn.Module, nn.Module]:
        """(backbone, the rest) that are trained."""
        rest = nn.Module()
        for name, module in self.net.model.named_children():
            if name != "backbone":
                rest.add_module(name, module)
        for name, module in self.net.named_children():
            if name != "model":
                rest.add_module(f"head_{name}", module)
        for name, parameter in self.net.model.named_parameters(recurse=False):
            rest.register_parameter(name, parameter)
        return self.net.model.backbone, rest

    def recompute_buffers(self, device: str | torch.device) -> None:
        """Buffers that are not in the file: those of a network that was made with values."""
        made = dict(_empty(self.net.config.to_dict()).named_buffers())
        for name, buffer in [*self.net.named_buffers()]:
            if buffer.is_meta:
                place, _, field = name.rpartition(".")
                setattr(self.net.get_submodule(place), field, made[name].to(device))


class FullNetwork(nn.Module):
    """Trunk and classes: images to boxes."""

    def __init__(
        self, classes: int, config: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.trunk = FullTrunk(config, mean, std)
        self.classes = self.fresh(classes)
        self.queries = int(config["num_queries"])

    def fresh(self, count: int) -> FullClasses:
        """New class layers."""
        width, layers, dense = self.trunk.shape
        return FullClasses(count, width, layers, dense=dense)

    def forward(self, images: Tensor) -> Seen:
        """(N,3,H,W) in [0,1], sides multiples of 32."""
        self.trunk.attach(self.classes)
        found = self.trunk.net(pixel_values=self.trunk.normal(images))
        nothing = (
            found.logits[:, :0],
            found.pred_boxes[:, :0],
        )  # not every detector has a dense head
        return Seen(*nothing, (found.logits,), (found.pred_boxes,))

    def loss(self, images: Tensor, targets: Sequence[Target], generator: torch.Generator) -> Tensor:
        """The network's own loss; the loop has seeded torch for its noise."""
        self.trunk.attach(self.classes)
        labels = [{"class_labels": t.labels, "boxes": t.boxes} for t in targets]
        self.trunk.net.train()  # denoising queries and dropout
        try:
            made: Tensor = self.trunk.net(
                pixel_values=self.trunk.normal(images), labels=labels
            ).loss
        finally:
            self.trunk.net.eval()
        return made


def _lend(owner: nn.Module, name: str, module: nn.Module | None) -> None:
    """Let ``owner`` use a module that is not registered in it."""
    owner.__dict__[name] = module


def _empty(config: Mapping[str, Any]) -> Any:
    """A detector of this configuration, at random."""
    import transformers

    kinds: Mapping[str, tuple[Any, Any]] = {
        "deformable_detr": (
            transformers.DeformableDetrConfig,
            transformers.DeformableDetrForObjectDetection,
        ),
        "rt_detr": (transformers.RTDetrConfig, transformers.RTDetrForObjectDetection),
    }
    settings, network = kinds[config["model_type"]]
    return network(settings.from_dict(dict(config)))


# --- bases ----------------------------------------------------------------------------------------


def read_base(folder: Path, detector: str) -> tuple[dict[str, Any], FullNetwork]:
    """(configuration, network with one class) of a checkpoint of transformers, or around a timm
    backbone.

    ``detector``: ``deformable-detr`` or ``rt-detr``, for a backbone. Raises WeightsError.
    """
    file = folder / "config.json"
    try:
        told = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read: {error}.") from None
    kind = told.get("model_type") if isinstance(told, dict) else None
    if kind in PAPER:
        return _checkpoint(folder, told)
    if isinstance(told, dict) and isinstance(told.get("architecture"), str):
        return _around(folder, told, detector.replace("-", "_"))
    raise WeightsError(
        f"{file} describes {kind or 'no model that is known'!r}: expected a Deformable DETR or "
        "RT-DETR of transformers, or a backbone of timm."
    )


def start_full(request: TrainRequest, run: Run[Fit]) -> tuple[Any, dict[str, Any]]:
    """The detector on the request's base, or what ``--init`` names; and its configuration."""
    if request.init is not None:
        config, tensors = read_saved(request.init)
        count = len(config.get("rows") or config["names"])
        network = FullNetwork(count, config["network"], config["mean"], config["std"])
        network.load_state_dict(tensors)
        return network, {k: config[k] for k in ("network", "mean", "std", "base")}
    if request.base is None or request.base.folder is None:
        raise UsageError(
            f"{request.entry.name} starts from a detector of transformers or a backbone of timm: "
            "give --base ORG/REPO (or a folder), or --init with an earlier result."
        )
    folder, detector = request.base.folder, request.options["detector"]
    with torch.random.fork_rng([]):
        torch.manual_seed(run.draw("trunk", 1).generator.initial_seed())
        config, network = read_base(folder, detector)
    kept = {"id": request.base.id, "revision": request.base.revision}
    return network, {**config, "base": kept}


def _told(network: FullNetwork) -> dict[str, Any]:
    """What makes the same network again, for a saved folder."""
    trunk = network.trunk
    return {"network": trunk.net.config.to_dict(), "mean": trunk.mean, "std": trunk.std}


def _checkpoint(folder: Path, told: Mapping[str, Any]) -> tuple[dict[str, Any], FullNetwork]:
    """The trunk of a trained detector; its class layers stay behind."""
    import transformers

    classes: Mapping[str, Any] = {
        "deformable_detr": transformers.DeformableDetrForObjectDetection,
        "rt_detr": transformers.RTDetrForObjectDetection,
    }
    try:
        net, report = classes[told["model_type"]].from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{folder} cannot be loaded by transformers: {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise WeightsError(f"{folder} lacks {missing[0]} ({len(missing)} missing).")
    config = net.config.to_dict() | {"auxiliary_loss": True}
    look = folder / "preprocessor_config.json"
    shown = json.loads(look.read_text("utf-8")) if look.is_file() else {}
    plain = not shown.get("do_normalize", told["model_type"] == "deformable_detr")
    mean = [0.0] * 3 if plain else shown.get("image_mean", IMAGENET["mean"])
    std = [1.0] * 3 if plain else shown.get("image_std", IMAGENET["std"])
    network = FullNetwork(1, config, mean, std)
    mine = network.trunk.net.state_dict()
    network.trunk.net.load_state_dict({k: v for k, v in net.state_dict().items() if k in mine})
    return _told(network), network


def around(architecture: str, kind: str, **settings: Any) -> FullNetwork:
    """A random detector of ``kind`` (a key of ``PAPER``) on a random backbone of timm.

    ``settings``: of transformers' configuration, in place of the paper's.
    """
    import transformers

    settings_of: Any = transformers.TimmBackboneConfig
    backbone = settings_of(
        backbone=architecture, use_pretrained_backbone=False, out_indices=[2, 3, 4]
    )
    more = {**PAPER[kind], **settings}
    if kind == "rt_detr":
        import timm

        body: Any = timm.create_model(architecture, features_only=True, out_indices=(2, 3, 4))
        more = {"encoder_in_channels": body.feature_info.channels(), **more}
        config: Any = transformers.RTDetrConfig(backbone_config=backbone, **more)
    else:
        config = transformers.DeformableDetrConfig(backbone_config=backbone, **more)
    return FullNetwork(1, config.to_dict(), IMAGENET["mean"], IMAGENET["std"])


def _around(folder: Path, told: Mapping[str, Any], kind: str) -> tuple[dict[str, Any], FullNetwork]:
    """A random transformer around a trained backbone of timm."""
    network = around(told["architecture"], kind)
    given = told.get("pretrained_cfg", {})
    network.trunk.mean = list(given.get("mean", IMAGENET["mean"]))
    network.trunk.std = list(given.get("std", IMAGENET["std"]))
    encoder = network.trunk.net.model.backbone
    inner = getattr(encoder, "conv_encoder", encoder).model
    inner = getattr(inner, "_backbone", inner)
    tensors = load_tensors(folder / "model.safetensors")
    mine = inner.state_dict()
    wanted = {k for k in mine if not k.endswith("num_batches_tracked")}
    if missing := sorted(wanted - tensors.keys()):
        raise WeightsError(
            f"{folder} is not {told['architecture']} of timm: it has no {missing[0]}."
        )
    inner.load_state_dict({k: tensors[k] for k in wanted}, strict=False)
    return _told(network), network


# --- the model ------------------------------------------------------------------------------------

STAGES: Mapping[str, Fit] = {
    "pretrain": Fit(188_000, 2e-4, 32, ema=0.9999, warm_up=1000, clip=0.1, size=640),
    "selftrain": Fit(188_000, 2e-4, 32, ema=0.9999, warm_up=1000, clip=0.1, size=640),
    "finetune": Fit(185_000, 2e-4, 32, ema=0.9999, warm_up=1000, clip=0.1, size=800),
}
"""Deformable DETR's rates (the paper's schedule could not be read): 25 epochs of COCO's images
without labels in each of the first two stages, then 50 epochs with labels."""


class SimDETRFull(SimDETR):
    """``SimDETR`` on a detector of transformers: the same verbs, but for ``export``."""

    recipe: ClassVar[Mapping[str, Fit]] = STAGES

    @classmethod
    def build(cls, request: BuildRequest) -> Self:
        """From a saved folder."""
        entry, config = request.entry, request.config
        if request.folder is None:
            raise NotReadyError(
                f"{entry.name} has no trained weights: zoo train {entry.name} --base ORG/REPO "
                f"--data FOLDER -o OUT, then zoo.load('OUT/model')."
            )
        rows = config.get("rows") or range(len(config["names"]))
        network = load_module(
            lambda: FullNetwork(len(rows), config["network"], config["mean"], config["std"]),
            request.folder,
            device=request.device,
            dtype=request.dtype,
        )
        return cls(request, cast(Any, network))

    def _take(self, network: Any) -> None:
        """Use this network."""
        self.network = network.eval().requires_grad_(False)
        self.module = self.network

    def state(self) -> Mapping[str, Tensor]:
        """As they are: a checkpoint to go on from."""
        return self.network.state_dict()

    def export(self, path: str | Path, format: str = "onnx", **options: Any) -> Path:
        """Not offered: transformers exports its own classes."""
        raise NotReadyError(
            f"{self.entry.name} is not exported; its network is a "
            f"{type(self.network.trunk.net).__name__} of transformers: use optimum."
        )
