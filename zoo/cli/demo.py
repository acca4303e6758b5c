"""``zoo demo``: a small photograph, enlarged by bicubic and by a model, next to the truth."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import PATH, device_option, force_option

if TYPE_CHECKING:
    from PIL import Image

SMALL = 128  # the photograph is shrunk to this many pixels a side


@click.command()
@click.option("--model", default="edge-sd-sr", show_default=True, help="Any SRModel.")
@click.option(
    "-o", "--out", type=PATH, default=Path("demo.png"), show_default=True, help="Image to write."
)
@device_option
@force_option
def demo(model: str, out: Path, device: str, force: bool) -> None:
    """Upscale a photograph and write a comparison: small, bicubic, model, truth.

    The photograph is scikit-image's "astronaut" (NASA, public domain), shrunk so that the truth is
    known.
    """
    from PIL import Image

    from .. import images, metrics
    from ..api import load
    from ..errors import MissingDependencyError

    try:
        from skimage import data
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            'the demo needs scikit-image. Run: pip install "edgezoo[bench]"', name="skimage"
        ) from error

    images.check_output(out, overwrite=force)
    started = time.perf_counter()
    loaded = load(model, device=device)
    loading = time.perf_counter() - started
    scale = loaded.default_scale
    bicubic = Image.Resampling.BICUBIC
    side = images.scaled(SMALL, scale)
    truth = Image.fromarray(data.astronaut()).resize((side, side), bicubic)
    small = truth.resize((SMALL, SMALL), bicubic)
    started = time.perf_counter()
    ours = loaded.upscale(small)
    seconds = time.perf_counter() - started
    plain = small.resize(truth.size, bicubic)

    parameters = loaded.entry.params
    size = f"{parameters / 1e6:.1f} M parameters" if parameters else "size unknown"
    click.echo(f"model     {model}: {size}, on {loaded.device}; weights from: {loaded.source}")
    click.echo(
        f"photo     {small.width} x {small.height} -> {ours.width} x {ours.height} pixels in "
        f"{seconds:.2f} s (loading took {loading:.2f} s)"
    )
    captions = ["small"]
    for name, image in (("bicubic", plain), (model, ours)):
        a, b = images.to_tensor(image), images.to_tensor(truth)
        psnr, haarpsi = metrics.psnr_y(a, b, round(scale)), metrics.haarpsi(a, b, scale)
        scores = f"PSNR-Y {psnr:.2f} dB, HaarPSI {haarpsi:.3f}"
        click.echo(f"{name:{max(9, len(model))}} {scores}")
        captions.append(f"{name}: {scores}")
    images.save(
        _side_by_side([small, plain, ours, truth], [*captions, "truth"]), out, overwrite=force
    )
    click.echo(f"picture   {out}")


def _side_by_side(panels: list[Image.Image], captions: list[str]) -> Image.Image:
    """Panels in a row at their own sizes, bottom-aligned, each with its caption above."""
    from PIL import Image, ImageDraw, ImageFont

    gap, text = 12, 26
    font = ImageFont.load_default(size=15)
    height = max(p.height for p in panels) + text + 2 * gap
    width = sum(p.width for p in panels) + gap * (len(panels) + 1)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    x = gap
    for panel, caption in zip(panels, captions, strict=True):
        top = height - gap - panel.height
        canvas.paste(panel, (x, top))
        draw.text((x, top - text + 4), caption, fill="black", font=font)
        x += panel.width + gap
    return canvas
