"""Checks that the suites share: images of every kind, equality of results, progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np
    import torch

KINDS = (
    "path", "text", "RGB", "RGBA", "L", "LA", "I;16", "P", "1", "CMYK",
    "uint8 HWC", "uint8 HW", "uint8 HW4", "uint16 HWC",
    "float CHW", "float 1HW", "float 4HW", "float NCHW", "float16 CHW",
)  # fmt: skip
"""Every kind of image that a verb must accept, by its name for ``make_image``."""

BAD_IMAGES: Mapping[str, Callable[[], Any]] = {
    "float HWC array": lambda: picture(5, 4) / 255.0,
    "float32 HWC array": lambda: (picture(5, 4) / 255.0).astype("float32"),
    "NaN": lambda: picture_tensor(5, 4) * float("nan"),
    "tensor of 0 to 255": lambda: picture_tensor(5, 4) * 255,
    "whole numbers": lambda: (picture_tensor(5, 4) * 255).long(),
    "five dimensions": lambda: picture_tensor(5, 4)[None, None],
    "HWC tensor": lambda: picture_tensor(9, 8).permute(1, 2, 0),
    "no pixels": lambda: picture(5, 4)[:0],
    "missing file": lambda: "no/such/picture.png",
    "nothing": lambda: None,
}


def picture(width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8: a smooth gradient with a little noise, always the same."""
    import numpy as np

    y, x = np.mgrid[0:height, 0:width].astype("float32")
    planes = [0.3 + 0.4 * x / max(width - 1, 1), 0.7 - 0.4 * y / max(height - 1, 1), 0.5 + 0 * x]
    grain = np.random.default_rng(width * 1000 + height).normal(0, 0.03, (height, width, 3))
    return ((np.stack(planes, 2) + grain).clip(0, 1) * 255).round().astype("uint8")


def make_image(kind: str, width: int, height: int, folder: Path | None = None) -> Any:
    """An image of one of ``KINDS``; "path" and "text" need a folder to write to."""
    import numpy as np
    from PIL import Image

    pixels = picture(width, height)
    alpha = np.full((height, width, 1), 255, "uint8")
    alpha[: height // 2] = 128
    if kind in ("path", "text"):
        assert folder is not None
        Image.fromarray(pixels).save(folder / "picture.png")
        return folder / "picture.png" if kind == "path" else str(folder / "picture.png")
    if kind in ("RGB", "L", "P", "1", "CMYK"):
        return Image.fromarray(pixels).convert(kind)
    if kind in ("RGBA", "LA"):
        return Image.fromarray(np.concatenate([pixels, alpha], 2)).convert(kind)
    if kind == "I;16":
        return Image.fromarray(pixels[:, :, 0].astype("uint16") * 257)
    if kind == "uint8 HWC":
        return pixels
    if kind == "uint8 HW":
        return pixels[:, :, 0].copy()
    if kind == "uint8 HW4":
        return np.concatenate([pixels, alpha], 2)
    if kind == "uint16 HWC":
        return pixels.astype("uint16") * 257
    tensor = picture_tensor(width, height)
    if kind == "float 4HW":
        import torch

        return torch.cat([tensor, torch.from_numpy(alpha).permute(2, 0, 1) / 255])
    made = {
        "float CHW": tensor,
        "float 1HW": tensor[:1],
        "float NCHW": tensor.expand(2, -1, -1, -1).clone(),
        "float16 CHW": tensor.half(),
    }
    return made[kind]


def check_image(kind: str, made: Any, width: int, height: int) -> None:
    """Assert that a result is of the kind for an input ``make_image(kind, ...)``."""
    import numpy as np
    import torch
    from PIL import Image

    modes = {"path": "RGB", "text": "RGB", "P": "RGB", "1": "L", "CMYK": "RGB"}
    if kind in ("path", "text", "RGB", "RGBA", "L", "LA", "I;16", "P", "1", "CMYK"):
        assert isinstance(made, Image.Image), f"{type(made).__name__} for a PIL image or path"
        assert made.mode == modes.get(kind, kind)
        assert made.size == (width, height)
    elif kind.startswith("uint"):
        assert isinstance(made, np.ndarray), f"{type(made).__name__} for an array"
        word, _, layout = kind.partition(" ")
        assert made.dtype == word
        channels = {"HW": (), "HWC": (3,), "HW4": (4,)}[layout]
        assert made.shape == (height, width, *channels)
    else:
        assert isinstance(made, torch.Tensor), f"{type(made).__name__} for a tensor"
        word, _, layout = kind.partition(" ")
        assert made.dtype == (torch.float16 if word == "float16" else torch.float32)
        front = {"CHW": (3,), "1HW": (1,), "4HW": (4,), "NCHW": (2, 3)}[layout]
        assert tuple(made.shape) == (*front, height, width)


def check_progress(call: Callable[[Any], Any]) -> None:
    """Assert that ``call(progress)`` reports progress: each phase counts up to its total.

    An exception from the callback must end the work and reach the caller.
    """
    seen: list[tuple[int, int]] = []
    call(lambda done, total: seen.append((done, total)))
    assert seen, "progress was never called"
    previous = (0, seen[0][1])
    for done, total in seen:
        assert 0 <= done <= total, f"{done} of {total}"
        if total != previous[1] or done < previous[0]:  # the next phase of the work
            assert previous[0] == previous[1], f"a phase stopped at {previous[0]} of {previous[1]}"
        previous = (done, total)
    assert previous[0] == previous[1], f"progress stopped at {previous[0]} of {previous[1]}"

    class Stop(Exception):  # noqa: N818
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        call(stop)


def same(expected: Any, found: Any, atol: float = 1e-5) -> None:
    """Assert equality of arrays, tensors, images and containers of them.

    Floats may differ by ``atol`` times the largest value of their array.
    """
    import numpy as np

    expected, found = _plain(expected), _plain(found)
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray)
        assert expected.shape == found.shape, f"{expected.shape}, then {found.shape}"
        if expected.dtype.kind == "f":
            largest = float(np.abs(expected).max(initial=0)) or 1.0
            np.testing.assert_allclose(found, expected, atol=atol * largest, rtol=0)
        else:
            np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, dict):
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            same(value, found[key], atol)
    elif isinstance(expected, list):
        assert len(expected) == len(found)
        for a, b in zip(expected, found, strict=True):
            same(a, b, atol)
    else:
        assert expected == found


def _plain(value: Any) -> Any:
    import numpy as np
    import torch
    from PIL import Image

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, Image.Image):
        return [value.mode, np.asarray(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    return value


def copied(value: Any) -> Any:
    from copy import deepcopy

    return deepcopy(value)


def picture_tensor(width: int, height: int) -> torch.Tensor:
    import torch

    return torch.from_numpy(picture(width, height)).permute(2, 0, 1).float() / 255


def shake(seed: int) -> None:
    """Reseed the global generators: results must not depend on them."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rows(values: Any, which: Sequence[int]) -> Any:
    return [values[i] for i in which] if isinstance(values, list | tuple) else values[list(which)]
