"""The conformance suite of ``SRModel``."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from ..errors import InputError, NotReadyError, OptionError, ZooError
from ..images import scaled
from ..interfaces import Estimate, ScaleRange
from .checks import (
    BAD_IMAGES,
    KINDS,
    check_image,
    check_progress,
    copied,
    make_image,
    picture,
    picture_tensor,
    same,
    shake,
)
from .model import ModelSuite


class SRModelSuite(ModelSuite):
    """Tests of kinds and sizes of images, scales, seeds, prompts, tiles and errors."""

    interface = "SRModel"

    @pytest.fixture
    def sample(self) -> Any:
        """One image."""
        return picture_tensor(12, 9)

    def outputs(self, ready: Any, sample: Any) -> Any:
        """The enlarged pixels."""
        return ready.upscale(sample, seed=3)

    def test_scales(self, model: Any) -> None:
        """Scales are integers, the first the default, or a range; each gives its size."""
        scales = model.scales
        if isinstance(scales, ScaleRange):
            assert 0 < scales.min <= scales.default <= scales.max < math.inf
            between = (scales.min + scales.max) / 2
            tried = [scales.default, scales.min, between, scales.max]
        else:
            assert isinstance(scales, tuple)
            assert scales
            assert all(type(s) is int and s >= 1 for s in scales)
            assert len(set(scales)) == len(scales)
            tried = [*scales]
        assert model.default_scale == tried[0]
        for scale in tried:
            assert scale in scales
            made = model.upscale(picture(7, 5), scale=scale)
            assert made.shape == (scaled(5, scale), scaled(7, scale), 3), f"at scale {scale}"
        default = model.default_scale
        assert model.upscale(picture(7, 5)).shape == (scaled(5, default), scaled(7, default), 3)

    @pytest.mark.parametrize("kind", KINDS)
    def test_kind_of_image(self, model: Any, kind: str, tmp_path: Path) -> None:
        """The result is of the same kind, exactly scale times as large; the input is not
        modified."""
        image = make_image(kind, 12, 9, tmp_path)
        kept = copied(image)
        result = model.upscale(image)
        scale = model.default_scale
        check_image(kind, result, scaled(12, scale), scaled(9, scale))
        same(kept, image)

    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (17, 5), (13, 8)])
    def test_size_of_image(self, model: Any, size: tuple[int, int]) -> None:
        """Any sides work, odd ones and a single pixel."""
        width, height = size
        scale = model.default_scale
        made = model.upscale(picture(width, height))
        assert made.shape == (scaled(height, scale), scaled(width, scale), 3)
        made = model.upscale(picture_tensor(width, height))
        assert tuple(made.shape) == (3, scaled(height, scale), scaled(width, scale))

    def test_list(self, model: Any) -> None:
        """Results are in order, each of its own kind; lists of one or no image stay lists."""
        images = [picture(5, 4), make_image("L", 6, 3), picture_tensor(4, 5)]
        made = model.upscale(images)
        assert isinstance(made, list)
        scale = model.default_scale
        assert [type(m) for m in made] == [type(i) for i in images]
        assert made[0].shape == (scaled(4, scale), scaled(5, scale), 3)
        assert made[1].size == (scaled(6, scale), scaled(3, scale))
        assert tuple(made[2].shape) == (3, scaled(5, scale), scaled(4, scale))
        assert isinstance(model.upscale([picture(5, 4)]), list)
        assert model.upscale([]) == []

    def test_looks_like_the_input(self, model: Any) -> None:
        """Each channel keeps its mean: this finds swapped channels and wrong ranges."""
        import numpy as np

        source = np.empty((24, 32, 3), "uint8")
        source[:] = (200, 120, 40)
        source[:12] = (180, 140, 60)
        made = model.upscale(source)
        off = np.abs(made.mean((0, 1)) - source.mean((0, 1))) / 255
        assert off.max() < 0.1, f"means of R, G, B are off by {off.round(3).tolist()}"

    def test_kinds_agree(self, model: Any) -> None:
        """The same pixels give the same result as an array, a PIL image and a tensor."""
        import numpy as np
        from PIL import Image

        pixels = picture(12, 9)
        array = model.upscale(pixels).astype(int)
        pil = np.asarray(model.upscale(Image.fromarray(pixels))).astype(int)
        tensor = model.upscale(picture_tensor(12, 9)).permute(1, 2, 0).numpy() * 255
        assert np.abs(array - pil).max() <= 1
        assert np.abs(array - tensor).max() <= 1.01

    def test_alpha(self, model: Any) -> None:
        """Opaque pixels stay opaque, and invisible ones invisible."""
        import numpy as np

        image = np.concatenate([picture(8, 8), np.full((8, 8, 1), 255, "uint8")], 2)
        assert (model.upscale(image)[:, :, 3] == 255).all()
        image[:, :, 3] = 0
        assert (model.upscale(image)[:, :, 3] == 0).all()

    def test_result_is_plain(self, model: Any) -> None:
        """The result is a tensor in [0, 1] without a graph."""
        made = model.upscale(picture_tensor(6, 5))
        assert not made.requires_grad
        assert made.isfinite().all()
        assert made.min() >= 0
        assert made.max() <= 1

    def test_seed(self, model: Any) -> None:
        """The same seed gives the same pixels, whatever happened in between."""
        image = picture(12, 9)
        for seed in (0, 7):
            shake(seed + 1)
            first = model.upscale(image, seed=seed)
            model.upscale(picture(5, 7), seed=99)
            shake(seed + 2)
            same(first, model.upscale(image, seed=seed))

    def test_tile(self, model: Any) -> None:
        """A single evaluation and tiles of the model's own size give the same size."""
        scale = model.default_scale
        tiles = [None] if model.tile is None else [None, model.tile]
        for tile in tiles:
            assert model.upscale(picture(13, 9), tile=tile).shape == (
                scaled(9, scale),
                scaled(13, scale),
                3,
            )
        if model.tile is not None:
            assert model.tile % model.multiple == 0
            odd = [model.tile + 1] if model.multiple > 1 else []
            for tile in (0, -1, "small", *odd):
                with pytest.raises(ZooError):
                    model.upscale(picture(13, 9), tile=tile)

    @pytest.mark.parametrize("scale", [0, -2, 1000, 1.0001, "2", float("nan"), True])
    def test_wrong_scale_is_refused(self, model: Any, scale: Any) -> None:
        """The message contains the possible scales."""
        if scale in model.scales:
            return
        free = isinstance(model.scales, ScaleRange)
        possible = str(model.scales) if free else f"{model.default_scale:g}"
        with pytest.raises(OptionError, match=re.escape(possible)):
            model.upscale(picture(5, 4), scale=scale)

    def test_prompt(self, model: Any) -> None:
        """A prompt is used or refused, never ignored."""
        image = picture_tensor(12, 9)
        try:
            made = model.upscale(image, prompt="a red house")
        except OptionError:
            return
        plain = model.upscale(image)
        assert made.shape == plain.shape
        assert not made.equal(plain), "a prompt is accepted and changes nothing"

    @pytest.mark.parametrize("case", BAD_IMAGES)
    def test_bad_image_is_refused(self, model: Any, case: str) -> None:
        """An unusable image raises InputError, alone and in a list."""
        with pytest.raises(InputError):
            model.upscale(BAD_IMAGES[case]())
        with pytest.raises(InputError):
            model.upscale([picture(5, 4), BAD_IMAGES[case]()])

    def test_estimate(self, model: Any) -> None:
        """Estimates for a size (height, width) grow with it; or there are none."""
        try:
            small, large = model.estimate((16, 16)), model.estimate((64, 64))
        except NotReadyError:
            return
        for found in (small, large):
            assert isinstance(found, Estimate)
            assert found.evaluations >= 1
            assert min(found.flops, found.memory, found.seconds) >= 0
        assert large.flops > small.flops, f"{small.flops} FLOPs, and {large.flops} for 16 times it"

    def test_check_output(self, model: Any, tmp_path: Path) -> None:
        """The output for ``zoo verify`` is the image enlarged with default options."""
        make_image("path", 9, 6, tmp_path)
        same(
            {"output": model.upscale(picture_tensor(9, 6))},
            model.run_check(tmp_path / "picture.png"),
        )

    def test_progress(self, model: Any) -> None:
        """Progress is reported for one image and for several."""
        check_progress(lambda progress: model.upscale(picture(12, 9), progress=progress))
        check_progress(lambda progress: model.upscale([picture(6, 5)] * 2, progress=progress))
