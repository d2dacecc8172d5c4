"""Data-parallel training under torchrun: one process a GPU, or gloo processes on the CPU."""

from __future__ import annotations

import os

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from medseg_kit.typing import UserError


class Distributed:
    """The process group of a torchrun launch.

    Raises:
        UserError: When the process was not started by torchrun.
    """

    def __init__(self) -> None:
        if "LOCAL_RANK" not in os.environ:
            raise UserError(
                "multi_gpu_train.yaml runs under torchrun: torchrun --standalone "
                "--nproc_per_node=<GPUs> -m monai.bundle run ..."
            )
        use_cuda = torch.cuda.is_available()
        if not dist.is_initialized():
            dist.init_process_group(backend="nccl" if use_cuda else "gloo")
        local = int(os.environ["LOCAL_RANK"])
        self.device = torch.device(f"cuda:{local}" if use_cuda else "cpu")
        if use_cuda:
            torch.cuda.set_device(self.device)
        if "SLURM_JOB_ID" in os.environ:  # ignite takes the local rank from SLURM, not torchrun
            os.environ["SLURM_LOCALID"] = str(local)
        idist.sync()  # a collective that ignite else starts in handlers which only process 0 has
        self.rank = dist.get_rank()

    def wrap(self, network: nn.Module) -> DistributedDataParallel:
        """Return the network whose gradients are averaged over the processes."""
        return DistributedDataParallel(
            network, device_ids=[self.device] if self.device.type == "cuda" else None
        )

    def close(self) -> None:
        """Leave the process group."""
        dist.destroy_process_group()


class SyncBuffers:
    """Copy the buffers of process 0 to all after each epoch, so that the replicas stay equal.

    Batch norm's running statistics follow each process's own crops; DDP copies them only at
    the next forward.

    Args:
        network: The network itself, not its DDP wrapper.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Run at every ``EPOCH_COMPLETED`` of ``engine``."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Broadcast every buffer from process 0."""
        for buffer in self.network.buffers():
            dist.broadcast(buffer, src=0)
