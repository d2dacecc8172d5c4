"""Batches of toy slices, small networks, and a trainer over them."""

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer
from torch import nn

from medseg_kit.engines.semi_supervised import make_branches
from medseg_kit.networks.dual import DualNetwork
from medseg_kit.networks.projectors import Projected, projectors_between
from medseg_kit.networks.swin_unet import SwinUNet2D
from medseg_kit.networks.unet2d import UNet2D
from medseg_kit.networks.unet_cct import UNetCCT

CLASSES, SIZE = 3, 32
CHANNELS = (4, 8, 8, 8, 8)


def unet(seed=0):
    torch.manual_seed(seed)
    return UNet2D(1, CLASSES, channels=CHANNELS)


def unet_cct():
    torch.manual_seed(0)
    return UNetCCT(1, CLASSES, channels=CHANNELS)


def swin():
    torch.manual_seed(1)
    return SwinUNet2D(
        1, CLASSES, image_size=SIZE, window_size=4, embed_dim=12, num_heads=(1, 1, 2, 2)
    )


def pair(*, second=None, scales=None):
    first, other = unet(0), swin() if second is None else second
    projectors = None
    if scales is not None:
        projectors = projectors_between(first, other, scales, 16, 8)
    return DualNetwork(first, other, projectors=projectors)


class IdentityMaps:
    """All volumes lie on each other; voxels are (row, column, slice)."""

    def __init__(self, reachable=tuple(range(4))):
        self.has = torch.zeros(4, 4, dtype=torch.bool)
        self.has[:, list(reachable)] = True

    def map_points(self, volume_from, volume_to, points):
        return points, torch.ones(len(points), dtype=torch.bool)

    def pixels_to_voxels(self, volume, slices, pixels, *, size):
        return torch.stack([pixels[:, 1], pixels[:, 0], slices.float()], dim=1)

    def voxels_to_pixels(self, volume, voxels, *, size):
        return voxels[:, 2].round().long(), voxels[:, [1, 0]]


def pixelwise():
    """Return a network that sees one pixel at a time."""
    return nn.Conv2d(1, CLASSES, 1)


def make_batch(labelled=2, unlabelled=2, *, seed=0, classes=CLASSES):
    """Return squares of each class on noise; labelled images first."""
    generator = torch.Generator().manual_seed(seed)
    total = labelled + unlabelled
    image = 0.2 * torch.rand(total, 1, SIZE, SIZE, generator=generator)
    label = torch.zeros(total, 1, SIZE, SIZE, dtype=torch.uint8)
    for index in range(total):
        for value in range(1, classes):
            top, left = torch.randint(0, SIZE - 10, (2,), generator=generator)
            place = (index, 0, slice(top, top + 10), slice(left, left + 10))
            image[place] = value / classes
            label[place] = value
    flags = torch.arange(total) < labelled
    return {
        "image": image,
        "label": label * flags[:, None, None, None],
        "labelled": flags,
        "volume": torch.arange(total),
        "slice": torch.zeros(total, dtype=torch.int64),
        "position": torch.full((total,), 0.5),
        "matrix": torch.eye(2, 3).repeat(total, 1, 1),
    }


def with_registered(batch):
    return {
        **batch,
        "registered_label": torch.ones_like(batch["label"]),
        "has_registered": torch.tensor([True, True, True, False]),
    }


def branch_batch(labelled=1, unlabelled=1, *, size=4, scales=("full",), seed=0):
    """Return a batch with two branches of random logits and features, which teach each other."""
    generator = torch.Generator().manual_seed(seed)
    total = labelled + unlabelled

    def random(channels):
        return torch.randn(total, channels, size, size, generator=generator)

    def projected():
        return Projected(random(5).requires_grad_(), nn.Identity())

    batch = {
        "image": random(1),
        "label": torch.randint(0, CLASSES, (total, 1, size, size), generator=generator),
        "labelled": torch.arange(total) < labelled,
        "volume": torch.arange(total),
        "slice": torch.zeros(total, dtype=torch.int64),
        "matrix": torch.eye(2, 3).repeat(total, 1, 1),
    }
    features = {scale: (projected(), projected()) for scale in scales}
    make_branches(
        batch, {"logits": (2 * random(CLASSES), 2 * random(CLASSES)), "projected": features}
    )
    return batch


def train(step, network, batches, *, epochs=1, learning_rate=0.01, optimizer=None, handlers=()):
    """Run a trainer over the batches; return the losses of each step.

    ``handlers``: pairs of event and function for the trainer.
    """
    history = []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=batches,
        network=network,
        optimizer=optimizer or torch.optim.SGD(network.parameters(), lr=learning_rate),
        loss_function=nn.Identity(),
        inferer=SimpleInferer(),
        iteration_update=step,
        decollate=False,
    )

    @trainer.on(Events.ITERATION_COMPLETED)
    def _(engine):
        history.append(
            {name: float(value) for name, value in engine.state.output["losses"].items()}
        )

    for event, handler in handlers:
        trainer.add_event_handler(event, handler)
    trainer.run()
    return history
