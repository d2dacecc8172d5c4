"""Two-stream batches: labelled first, endless permutations, exact resumption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer

from medseg_kit.data.slices import SliceDataset
from medseg_kit.data.two_stream import TwoStreamLoader, endless_permutations
from medseg_kit.engines.handlers import EpochSeed
from medseg_kit.transforms.slices import SliceAugmentation
from medseg_kit.typing import UserError
from tests.data.slice_cases import write_case


@pytest.fixture
def data(tmp_path: Path) -> SliceDataset:
    cases = [write_case(tmp_path, name, seed=seed) for seed, name in enumerate("abc")]
    return SliceDataset(cases, image_size=8, num_classes=3, labelled=1)


def loader(data: SliceDataset, **changes: Any) -> TwoStreamLoader:
    sizes = {"batch_size": 5, "labelled_batch_size": 2, "steps_per_epoch": 8}
    return TwoStreamLoader(data, **{**sizes, **changes})


def keys(batch: dict[str, Any]) -> list[tuple[int, int]]:
    return list(zip(batch["volume"].tolist(), batch["slice"].tolist(), strict=True))


def test_two_stream__labelled_first(data: SliceDataset) -> None:
    batches = list(loader(data))
    assert len(batches) == len(loader(data)) == 8
    for batch in batches:
        assert batch["labelled"].tolist() == [True, True, False, False, False]
        assert batch["image"].shape == (5, 1, 8, 8)
        assert batch["label"].dtype == torch.uint8
        assert not batch["label"][2:].any()
        assert batch["matrix"].shape == (5, 2, 3)
    # 4 labelled slices twice each in 4 steps, 8 unlabelled ones three times in 8 steps
    labelled = Counter(key for batch in batches[:4] for key in keys(batch)[:2])
    unlabelled = Counter(key for batch in batches for key in keys(batch)[2:])
    assert set(labelled.values()) == {2}
    assert set(unlabelled.values()) == {3}


def test_two_stream__fewer_labelled_slices_than_places(data: SliceDataset) -> None:
    batch = next(iter(loader(data, batch_size=12, labelled_batch_size=10)))
    counts = Counter(keys(batch)[:10])
    assert sum(counts.values()) == 10
    assert set(counts.values()) == {2, 3}


def test_two_stream__a_set_of_one_kind_fills_the_batch(data: SliceDataset) -> None:
    everything = SliceDataset(data.cases, image_size=8, num_classes=3)
    nothing = SliceDataset(data.cases, image_size=8, num_classes=3, labelled=0)
    assert next(iter(loader(everything)))["labelled"].all()
    batch = next(iter(loader(nothing)))
    assert batch["labelled"].shape == (5,)
    assert not batch["labelled"].any()
    with pytest.raises(UserError, match="no slice is labelled"):
        next(iter(loader(nothing, labelled_batch_size=5)))
    site = loader(nothing, labelled_batch_size=5, labels_needed=False)
    assert not next(iter(site))["labelled"].any()


def test_two_stream__says_once_which_losses_are_absent(data: SliceDataset, caplog: Any) -> None:
    everything = SliceDataset(data.cases, image_size=8, num_classes=3)
    batches = loader(everything)
    for _ in range(2):
        next(iter(batches))
    (text,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "no slice is unlabelled" in text
    caplog.clear()
    next(iter(loader(everything, labelled_batch_size=5)))  # supervised training wants no others
    assert "no slice" not in caplog.text


def test_two_stream__supervised_batches(data: SliceDataset) -> None:
    batch = next(iter(loader(data, labelled_batch_size=5)))
    assert batch["labelled"].all()
    assert set(batch["volume"].tolist()) == {0}


def test_two_stream__the_seed_of_the_epoch_decides(data: SliceDataset) -> None:
    augmented = loader(data, augmentation=SliceAugmentation("affine", intensity=0.5))

    def epoch(*, draws: int) -> list[torch.Tensor]:
        torch.manual_seed(3)
        images = []
        for batch in augmented:
            images.append(batch["image"])
            torch.rand(draws)  # what a method draws does not matter
        return images

    for one, other in zip(epoch(draws=0), epoch(draws=7), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "sizes", [{"labelled_batch_size": 6}, {"batch_size": 0}, {"steps_per_epoch": 0}]
)
def test_two_stream__impossible_sizes(data: SliceDataset, sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        loader(data, **sizes)


def test_endless_permutations__every_index_equally_often() -> None:
    stream = endless_permutations(torch.arange(7), 3, torch.Generator().manual_seed(0))
    drawn = torch.cat([next(stream) for _ in range(7)])
    assert torch.equal(drawn.bincount(), torch.full((7,), 3))


def trainer(data: SliceDataset, seen: list[Any], *, epochs: int) -> SupervisedTrainer:
    network = torch.nn.Conv2d(1, 3, 1)
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=loader(data),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=torch.nn.CrossEntropyLoss(),
        iteration_update=lambda engine, batch: seen.append((engine.state.epoch, keys(batch))),
        train_handlers=[EpochSeed(5, "a")],
        decollate=False,
    )


def test_two_stream__resumed_epochs_equal_those_of_one_run(data: SliceDataset) -> None:
    whole: list[Any] = []
    trainer(data, whole, epochs=3).run()
    resumed: list[Any] = []
    engine = trainer(data, resumed, epochs=3)
    engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "epoch", 1))
    engine.run()
    assert len(whole) == 24
    assert resumed == whole[8:]


@pytest.mark.parametrize(("labelled_batch_size", "number"), [(2, 3), (5, 1)])
def test_two_stream__counts_the_volumes_that_it_uses(
    data: SliceDataset, labelled_batch_size: int, number: int
) -> None:
    assert loader(data, labelled_batch_size=labelled_batch_size).num_samples == number
