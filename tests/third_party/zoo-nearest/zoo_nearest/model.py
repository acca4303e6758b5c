"""The network, and what ``zoo.load("nearest-x2")`` returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from zoo.errors import OptionError
from zoo.hookspecs import BuildRequest
from zoo.images import transform
from zoo.interfaces import SRModel
from zoo.weights import load_module

if TYPE_CHECKING:
    from zoo.interfaces import Images
    from zoo.progress import Progress


class Network(nn.Module):
    """Repeats each pixel, then filters each colour with the same kernel."""

    def __init__(self, factor: int, side: int) -> None:
        super().__init__()
        self.factor = factor
        self.kernel = nn.Parameter(torch.zeros(1, 1, side, side))

    def forward(self, image: Tensor, strength: float) -> Tensor:
        """(3, h, w) -> (3, h * factor, w * factor); strength 0 is plain nearest neighbour."""
        large = image[:, None].repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)
        border = self.kernel.shape[-1] // 2
        padded = nn.functional.pad(large, [border] * 4, mode="replicate")
        smooth = nn.functional.conv2d(padded, self.kernel)
        return large.lerp(smooth, strength)[:, 0]


class Nearest(SRModel):
    """Nearest neighbour with its steps filtered away."""

    module: Network

    def __init__(self, request: BuildRequest) -> None:
        super().__init__(request)
        assert request.folder is not None
        module = load_module(
            lambda: Network(**request.config),
            request.folder,
            device=request.device,
            dtype=request.dtype,
        )
        assert isinstance(module, Network)
        self.module = module

    @property
    def scales(self) -> tuple[int, ...]:
        return (self.module.factor,)

    def upscale(
        self,
        images: Images,
        *,
        scale: int | float | None = None,
        prompt: str | None = None,
        seed: int = 0,
        tile: int | Literal["auto"] | None = "auto",
        progress: Progress = False,
    ) -> Any:
        if scale not in (None, *self.scales):
            raise OptionError(f"scale={scale}: {self.entry.name} enlarges {self.scales[0]}x.")
        if prompt is not None:
            raise OptionError(f"prompt={prompt!r}: {self.entry.name} takes no prompt.")
        kernel = self.module.kernel

        @torch.inference_mode()
        def enlarge(rgb: Tensor) -> Tensor:
            return self.module(rgb.to(kernel), self.options["strength"]).float()

        return transform(images, enlarge, scale=self.scales[0])
