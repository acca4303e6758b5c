"""The method's own command: ``zoo run fam-diffusion generate PROMPT -o OUT``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .model import FAMDiffusion

SPACE = 8
"""Pixels between the images of a comparison."""


def generate(model: FAMDiffusion, args: list[str]) -> int:
    """``generate PROMPT -o OUT``: an image beyond the training size."""

    @click.command(name="generate")
    @click.argument("prompt")
    @click.option(
        "-o", "--out", type=click.Path(path_type=Path), required=True, help="Image to write."
    )
    @click.option("--height", type=click.IntRange(1), help="Pixels (default: twice the native).")
    @click.option("--width", type=click.IntRange(1), help="Pixels (default: twice the native).")
    @click.option("--steps", type=click.IntRange(1, 1000), default=50, show_default=True)
    @click.option("--guidance", type=click.FloatRange(0, 100), help="Weight of the prompt.")
    @click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
    @click.option("--compare", is_flag=True, help="Native, direct and FAM side by side.")
    @click.option("--save-native", type=click.Path(path_type=Path), help="The native image too.")
    @click.option("--estimate", is_flag=True, help="Say time and memory first.")
    @click.option("--force", is_flag=True, help="Replace what is already there.")
    @click.option("--no-progress", is_flag=True, help="No progress bar.")
    def command(
        prompt: str,
        out: Path,
        height: int | None,
        width: int | None,
        steps: int,
        guidance: float | None,
        seed: int,
        compare: bool,
        save_native: Path | None,
        estimate: bool,
        force: bool,
        no_progress: bool,
    ) -> None:
        """Generate an image of PROMPT that is larger than what the model was trained on."""
        from zoo import images

        for path in filter(None, (out, save_native)):
            images.check_output(path, overwrite=force)
        trained = model.pipe.unet.config.sample_size * model.pipe.vae_scale_factor
        size = height or 2 * trained, width or 2 * trained
        if estimate:
            cost = model.estimate_generate(size, steps=steps)
            click.echo(
                f"{size[0]} x {size[1]}: about {cost.seconds:.0f} s, "
                f"{cost.flops / 1e12:.2f} TFLOP, {cost.memory / 1e9:.2f} GB beyond the weights"
            )
        call: dict[str, Any] = {
            "height": size[0],
            "width": size[1],
            "steps": steps,
            "guidance": guidance,
            "seed": seed,
            "progress": not no_progress,
        }
        made = model.generate(prompt, **call)
        if save_native is not None:
            images.save(made.native, save_native, overwrite=force)
        if compare:
            panels = [made.native, model.direct(prompt, **call), made.image]
            images.save(side_by_side(panels), out, overwrite=force)
            click.echo(f"{out}: native (enlarged), direct, {model.entry.name}")
        else:
            images.save(made.image, out, overwrite=force)
            click.echo(f"{out}: {size[0]} x {size[1]}, native {' x '.join(_text(made.report))}")

    return int(command.main(args, prog_name="generate", standalone_mode=False) or 0)


def _text(report: Any) -> list[str]:
    return [str(side) for side in report["native"]]


def side_by_side(panels: list[Any]) -> Any:
    """PIL images in a row, all at the size of the last one; pixels stay visible."""
    from PIL import Image

    width, height = panels[-1].size
    sheet = Image.new("RGB", (len(panels) * (width + SPACE) - SPACE, height), "white")
    for i, panel in enumerate(panels):
        large = panel.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(large, (i * (width + SPACE), 0))
    return sheet
