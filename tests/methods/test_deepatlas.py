"""DeepAtlas: pairs, what they cost, and that both networks learn."""

import copy

import pytest
import torch

from medseg_kit.methods.deepatlas import (
    DeepAtlasStep,
    correlation_map,
    local_decorrelation,
    partners,
    roughness,
    structures,
    warped,
)
from medseg_kit.networks.deep_atlas import DeepAtlasNetwork
from tests.methods.slice_training import CLASSES, SIZE, make_batch, train, unet

CHANNELS = (4, 8, 8, 8, 8)


def make(**options):
    torch.manual_seed(0)
    return DeepAtlasStep(total_steps=40, **options), DeepAtlasNetwork(unet(), CHANNELS)


def test_partners__of_another_volume_labelled_first_then_the_nearest():
    batch = {
        "labelled": torch.tensor([True, True, False, False]),
        "volume": torch.tensor([0, 1, 2, 0]),
        "position": torch.tensor([0.1, 0.8, 0.3, 0.75]),
    }
    partner, paired = partners(batch)
    assert partner.tolist() == [1, 0, 0, 1]
    assert paired.tolist() == [True] * 4
    partner, paired = partners({**batch, "volume": torch.tensor([0, 0, 2, 0])})
    assert partner[:2].tolist() == [2, 2]  # the only other volume is not labelled
    assert bool(paired.all())
    assert not partners({**batch, "volume": torch.zeros(4, dtype=torch.int64)})[1].any()


def test_structures__ground_truth_where_there_is_some():
    batch, logits = make_batch(2, 2), torch.randn(4, CLASSES, SIZE, SIZE)
    shown = structures(batch, logits)
    assert torch.equal(shown[:2].argmax(1), batch["label"][:2, 0].long())
    torch.testing.assert_close(shown[2:], logits[2:].softmax(1))


def test_warped__samples_at_the_displaced_place():
    maps = torch.rand(2, 3, 6, 5)
    displacement = torch.zeros(2, 2, 6, 5)
    torch.testing.assert_close(warped(maps, displacement), maps)
    displacement[:, 0], displacement[:, 1] = 2, -1
    found = warped(maps, displacement)
    torch.testing.assert_close(found[:, :, :4, 1:], maps[:, :, 2:, :4])


def test_decorrelation__of_an_image_with_itself_a_flat_one_and_another():
    torch.manual_seed(0)
    image, noise = torch.rand(2, 2, 1, 20, 21)
    assert float(local_decorrelation(image, image)) < 0.01
    assert float(local_decorrelation(image, 1 - 0.5 * image)) < 0.01  # contrast does not matter
    assert float(local_decorrelation(image, torch.ones_like(image))) == pytest.approx(1)
    assert 0.9 < float(local_decorrelation(image, noise)) <= 1


def test_decorrelation__equals_the_correlation_of_the_window():
    torch.manual_seed(0)
    first, second = torch.rand(2, 1, 1, 9, 9).double()
    pixels = torch.stack([first.flatten(), second.flatten()])
    found = correlation_map(first, second)[0, 0, 4, 4]
    assert float(found) == pytest.approx(float(torch.corrcoef(pixels)[0, 1] ** 2), rel=1e-2)


@pytest.mark.usefixtures("with_bf16")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_steps__reduced_precision_keeps_the_similarity_in_its_range():
    step, network = make(amp="bf16")
    batch = make_batch()
    batch["image"] = (batch["image"] > 0.25).float()  # flat regions
    history = train(step, network, [batch] * 2)
    assert all(0 <= losses["similarity"] <= 1 for losses in history)


def test_roughness__of_a_constant_and_of_a_ramp():
    still = torch.ones(1, 2, 4, 5)
    assert float(roughness(still)) == 0
    still[:, 0] = 3 * torch.arange(4.0)[:, None]  # steps of 3 in one of two components
    assert float(roughness(still)) == pytest.approx(4.5)


def test_network__starts_near_identity_and_deploys_its_segmenter():
    _, network = make()
    image = make_batch()["image"]
    output = network.train()(image, torch.tensor([1, 0, 0, 1]))
    assert output["displacement"].shape == (4, 2, SIZE, SIZE)
    assert float(output["displacement"].detach().abs().max()) < 0.01
    with torch.no_grad():
        assert torch.equal(network.eval()(image), network.segmenter(image))


def test_steps__both_networks_learn():
    step, network = make()
    before = copy.deepcopy(network.state_dict())
    history = train(step, network, [make_batch(seed=seed) for seed in range(3)])
    assert set(history[0]) == {"supervised", "similarity", "smoothness", "anatomy"}
    assert all(torch.tensor(list(losses.values())).isfinite().all() for losses in history)
    for name in ("segmenter.decoder.head.weight", "registration.decoder.head.weight"):
        assert not torch.equal(before[name], network.state_dict()[name])


def test_registration__finds_a_shift():
    batch = make_batch(2, 0, classes=1)
    rows = torch.arange(SIZE, dtype=torch.float32)
    for index, centre in enumerate((14.0, 17.0)):
        bump = torch.exp(-(((rows - centre) / 4) ** 2))
        batch["image"][index, 0] = bump[:, None] * torch.exp(-(((rows - 16) / 6) ** 2))
    step, network = make(anatomy=0.0, smoothness=0.1)
    optimizer = torch.optim.Adam(network.registration.parameters(), lr=0.01)
    history = train(step, network, [batch] * 30, optimizer=optimizer)
    assert history[-1]["similarity"] < history[0]["similarity"] - 0.05
    with torch.no_grad():
        found = network.train()(batch["image"], torch.tensor([1, 0]))["displacement"]
    inner = (slice(12, 20), slice(12, 20))
    assert float(found[(0, 0, *inner)].mean()) > 1  # rows of the second lie 3 pixels further
    assert float(found[(1, 0, *inner)].mean()) < -1


@pytest.mark.parametrize("batch", [make_batch(classes=1), make_batch(4, 0), make_batch(0, 4)])
def test_edge_batches__finite(batch):
    step, network = make()
    train(step, network, [batch] * 2)
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_one_volume__has_no_pairs():
    step, network = make()
    batch = {**make_batch(), "volume": torch.zeros(4, dtype=torch.int64)}
    unlabelled = {**make_batch(0, 4), "volume": torch.zeros(4, dtype=torch.int64)}
    history = train(step, network, [batch, unlabelled])
    assert set(history[0]) == {"supervised", "no_pairs"}
    assert sum(history[1].values()) == 0
