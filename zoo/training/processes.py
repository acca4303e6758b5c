"""The processes that train one network: a single one, or those of ``accelerate launch``.

Each process computes its share of a step's micro-batches; the gradients are then summed, so that
all take the same step and have the same weights. Only the first process writes. The network has no
wrapper: gradients are shared whatever the loss of a stage calls.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DeviceError

BUCKET = 2**25
"""How many numbers are sent at once."""
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}
"""The values of ``accelerate launch --mixed_precision``."""


class Processes:
    """``index`` of ``count`` processes, and the device of this one.

    ``device``: the caller's choice; each process gets its own of several GPUs. Raises DeviceError
    if accelerate is configured to split the network itself.
    """

    def __init__(self, device: str) -> None:
        self.index, self.count = 0, 1
        self.device = torch.device(device)
        if "LOCAL_RANK" not in os.environ:  # not started by accelerate (or torchrun)
            return
        for way in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
            if os.environ.get(f"ACCELERATE_USE_{way}", "false").lower() == "true":
                raise DeviceError(
                    f"Training runs the whole network in each process, not with {way}: "
                    "run `accelerate config` again, or launch with --multi_gpu."
                )
        # torch.distributed.nn must be imported before the group is made: its functions keep, as a
        # default argument, the group that exists when it is imported. Were that ours, the threads
        # of the group would live until the interpreter is gone, and could abort the process.
        from accelerate import PartialState
        from torch.distributed import nn  # noqa: F401

        state = PartialState(cpu=self.device.type == "cpu")
        self.index, self.count, self.device = state.process_index, state.num_processes, state.device
        atexit.register(state.destroy_process_group)

    @property
    def first(self) -> bool:
        """Does this process write files and show progress?"""
        return self.index == 0

    def share(self, parts: int) -> range:
        """The indices of this process's micro-batches in a step."""
        return range(self.index, parts, self.count)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        self._exchange(tensors, _sum)

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by that of the first process."""
        self._exchange(tensors, _broadcast)

    def total(self, value: float) -> float:
        """The sum of a number over the processes."""
        if self.count == 1:
            return value
        tensor = torch.tensor([value], device=self.device)
        self.add([tensor])
        return float(tensor)

    def any(self, flag: bool) -> bool:
        """Is the flag set in any process?"""
        return self.total(float(flag)) > 0 if self.count > 1 else flag

    def wait(self) -> None:
        """Wait until all processes arrive here."""
        self.any(False)

    @torch.no_grad()
    def _exchange(self, tensors: Sequence[Tensor], exchange: Callable[[Tensor], Tensor]) -> None:
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            flat = exchange(torch.cat([tensor.reshape(-1) for tensor in bucket]))
            pieces = flat.split([tensor.numel() for tensor in bucket])
            for tensor, piece in zip(bucket, pieces, strict=True):
                tensor.copy_(piece.reshape(tensor.shape))


def _sum(flat: Tensor) -> Tensor:
    from accelerate.utils import reduce

    made: Tensor = reduce(flat, "sum")
    return made


def _broadcast(flat: Tensor) -> Tensor:
    from accelerate.utils import broadcast

    made: Tensor = broadcast(flat)
    return made


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def precision_of(wanted: str, device: torch.device) -> str:
    """float32, bfloat16 or float16.

    For "auto": the choice of ``accelerate launch``, else bfloat16 where it is faster: on GPUs, and
    on CPUs with AMX tiles.
    """
    if wanted != "auto":
        return wanted
    if told := PRECISIONS.get(os.environ.get("ACCELERATE_MIXED_PRECISION", "")):
        return told
    if device.type == "cpu":
        # get_capabilities is newer than torch 2.6
        known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return "bfloat16" if known.get("amx_bf16", False) else "float32"
    return "bfloat16" if device.type == "cuda" else "float32"
