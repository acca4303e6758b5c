"""What the arguments of ``load`` and of the command mean: folders, devices, dtypes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DeviceError, UsageError

if TYPE_CHECKING:
    from .entry import Entry

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def as_folder(text: str | Path) -> Path | None:
    """The folder that an argument names, or None for a name or a Hub id."""
    if isinstance(text, os.PathLike):
        return Path(text)
    if not isinstance(text, str):
        raise UsageError(f"{text!r} is neither a name nor a folder.")
    if text.startswith((".", "~", "/", "\\")) or _DRIVE.match(text):
        return Path(text).expanduser()
    return None


def refuse_bare_folder(text: str, what: str) -> None:
    """Refuse an unknown name that is also a folder here, and say how to write the folder."""
    try:
        there = bool(text) and Path(text).is_dir()
    except OSError:  # too long for a path
        there = False
    if there:
        raise UsageError(
            f"{what}={text!r}: no such name is known, but there is a folder {text!r}. "
            f"Write './{text}' if you mean the folder."
        )


# --- device and dtype -----------------------------------------------------------------------------


def torch_device(device: Any, entry: Entry) -> str:
    """The name of a device of this machine. Raises DeviceError."""
    try:
        import torch
    except ModuleNotFoundError as error:
        from .errors import MissingDependencyError

        extra = f"[{entry.extra}]" if entry.extra else ""
        raise MissingDependencyError(
            f"{entry.name} needs torch, which is not installed. Run: "
            f'pip install "{entry.distribution}{extra}"',
            name="torch",
        ) from error
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
        wanted = torch.device(device)
        if wanted.type == "meta":
            raise RuntimeError("meta holds no data")
    except Exception as error:  # torch raises a different one for each kind of device
        have = ["cpu"]
        have += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        have += ["mps"] if torch.backends.mps.is_available() else []
        raise DeviceError(
            f"device={str(device)!r} is not available. This machine has {', '.join(have)}; "
            '"auto" chooses the best.'
        ) from error
    return str(wanted)


def dtype_name(dtype: Any) -> str:
    """The name of a floating-point torch dtype. Raises DeviceError."""
    if dtype is None:
        return "float32"
    name = str(dtype).removeprefix("torch.")
    if name not in ("float32", "float16", "bfloat16"):
        raise DeviceError(f"dtype={str(dtype)!r}: expected float32, float16 or bfloat16.")
    return name
