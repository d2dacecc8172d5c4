"""CCT-R's terms: registered labels, the bank of feature maps, positives from other volumes."""

import pytest
import torch
from torch.nn import functional as F

from medseg_kit.engines.schedules import linear
from medseg_kit.losses.soft_dice import soft_dice
from medseg_kit.methods.branch_pixels import BranchPixels
from medseg_kit.methods.cct_r import RegistrationSupervision, SupervisedContrast
from medseg_kit.methods.cross_teaching import CrossTeachingStep
from medseg_kit.methods.feature_maps import FeatureMaps, canonical_pixels, unaugmented
from medseg_kit.registration.mapping import _apply
from medseg_kit.transforms.slices import SliceAugmentation
from tests.methods.slice_training import (
    CLASSES,
    SIZE,
    IdentityMaps,
    branch_batch,
    make_batch,
    pair,
    train,
    with_registered,
)


class ShiftingMaps(IdentityMaps):
    """A(from, to) moves a point by as many columns as the volumes' numbers differ."""

    def map_points(self, volume_from, volume_to, points):
        shift = torch.as_tensor(volume_to - volume_from).expand(len(points))
        return points + shift[:, None] * torch.tensor([0.0, 1.0, 0.0]), shift != 0


def make(**options):
    contrast = SupervisedContrast(CLASSES, confidence=0.3, **options)
    terms = [RegistrationSupervision(), contrast]
    return CrossTeachingStep(total_steps=10, terms=terms), pair(scales=("quarter",))


def test_bank__first_inserted_leaves_first_and_known_slices_keep_their_age():
    bank = FeatureMaps(2)
    for number, value in ((0, 1.0), (1, 2.0), (0, 3.0), (2, 4.0)):
        bank.put(torch.tensor([5]), torch.tensor([number]), torch.full((1, 3, 2, 2), value))
    assert list(bank.maps) == [(5, 1), (5, 2)]
    again = FeatureMaps(2)
    again.load_state_dict(bank.state_dict())
    assert torch.equal(again.maps[5, 2], bank.maps[5, 2])
    assert FeatureMaps(2).state_dict()["maps"] is None


def test_unaugmented__takes_the_augmentation_back():
    torch.manual_seed(0)
    ramp = torch.linspace(0.2, 0.8, SIZE)
    image = torch.stack([ramp[None].expand(SIZE, -1), ramp[:, None].expand(-1, SIZE)])[:, None]
    label = torch.zeros_like(image, dtype=torch.uint8)
    augment = SliceAugmentation("affine", rotation_deg=15, scaling=0.1, translation=0.05)
    batch = augment({"image": image, "label": label}, generator=torch.Generator().manual_seed(1))
    found = unaugmented(batch["image"], batch["matrix"], (SIZE, SIZE))
    inner = (slice(None), slice(None), slice(8, 24), slice(8, 24))
    torch.testing.assert_close(found[inner], image[inner], atol=0.02, rtol=0)


def test_anchor__its_canonical_pixel():
    matrix = torch.eye(2, 3).repeat(3, 1, 1)
    matrix[:, :, 2] = torch.tensor([1.0, -2.0])
    anchors = torch.tensor([0, 9, 64 + 63])  # 8 x 8 features of 32 x 32 pixels
    found = canonical_pixels(anchors, (8, 8), (32, 32), matrix)
    expected = torch.tensor([[1.5, 1.5], [5.5, 5.5], [29.5, 29.5]]) + torch.tensor([1.0, -2.0])
    torch.testing.assert_close(found, expected)


def enhanced(contrast, centre, anchors):
    """Return the positives of anchors in the 8 x 8 features of slice 0 of volume 0."""
    batch = {
        "image": torch.zeros(1, 1, SIZE, SIZE),
        "matrix": torch.eye(2, 3)[None],
        "volume": torch.tensor([0]),
        "slice": torch.tensor([0]),
    }
    return contrast._enhanced(centre, anchors, (8, 8), batch, 0)


def test_positives__identical_volumes_give_the_banked_feature_of_the_same_pixel():
    contrast = SupervisedContrast(CLASSES, maps=IdentityMaps(), bank_size=9, share=1.0)
    stored = F.normalize(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    contrast.banks[0].put(torch.tensor([1]), torch.tensor([0]), stored)
    anchors = torch.tensor([0, 10, 63])
    centre = F.normalize(torch.ones(3, 4), dim=1)
    found = enhanced(contrast, centre, anchors)
    expected = stored[0].flatten(1)[:, anchors].t()
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_positives__mean_of_the_volumes_then_mixed_and_not_scaled_in_between():
    """a_p = w1 a_p^l + w2 a_p^r of equations 6.12 and 6.13, of unit length only at the end."""
    contrast = SupervisedContrast(CLASSES, maps=IdentityMaps(), bank_size=9, share=0.5)
    stored = F.normalize(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    contrast.banks[0].put(torch.tensor([1, 2]), torch.tensor([0, 0]), stored)
    anchors = torch.tensor([0, 10, 63])
    centre = 0.3 * torch.ones(3, 4)
    found = enhanced(contrast, centre, anchors)
    expected = 0.5 * centre + 0.5 * stored.mean(0).flatten(1)[:, anchors].t()
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("volume", [1, 0])
def test_positives__without_another_volume_they_are_the_class_centre(volume):
    """Nothing in the bank, or only the anchors' own volume: |J| = 0."""
    contrast = SupervisedContrast(CLASSES, maps=IdentityMaps(), bank_size=9)
    if volume == 0:
        contrast.banks[0].put(torch.tensor([0]), torch.tensor([0]), torch.randn(1, 4, 8, 8))
    centre = F.normalize(torch.ones(3, 4), dim=1)
    found = enhanced(contrast, centre, torch.tensor([0, 1, 2]))
    assert torch.equal(found, centre)


def supervised_by_hand(branch, label, registered):
    """Return equations 6.3 to 6.5 with h = 0.5; half of a positive is in ``registered``."""
    features = BranchPixels([branch], "full").all()
    classes = torch.cat([label, branch.teaching[1:].argmax(1)]).flatten()
    sure = branch.teaching.amax(1).flatten() > 0.5
    losses = []
    for value in range(CLASSES):
        chosen = (classes == value) & sure
        anchors = features[chosen]
        positives = anchors.mean(0).expand_as(anchors)
        if registered is not None:
            positives = 0.5 * positives + 0.5 * registered[chosen]
        up = ((anchors * F.normalize(positives, dim=1)).sum(1) / 0.1).exp()
        z = (anchors @ features[classes != value].t() / 0.1).exp().sum(1)
        losses.append(-(up / (up + z)).log().mean())
    return torch.stack(losses).mean()


def test_contrast__of_two_branches_written_out():
    batch = branch_batch(size=6)
    losses = [supervised_by_hand(each, batch["label"][:1, 0], None) for each in batch["branches"]]
    term = SupervisedContrast(CLASSES, scale="full", weight=0.5, factor=3.0)
    torch.testing.assert_close(term(None, batch)["contrast"], 1.5 * sum(losses) / 2)


def test_contrast__with_positives_of_other_volumes_written_out():
    """Volumes 0 and 1 look into 2 and 3, of which each branch has its own features."""
    batch = branch_batch(size=6)
    batch["matrix"][:, 0, 2] = 1.0  # augmentation has moved the slices by a column
    term = SupervisedContrast(CLASSES, scale="full", factor=1.0, maps=ShiftingMaps(), bank_size=4)
    generator, losses = torch.Generator().manual_seed(1), []
    for bank, branch in zip(term.banks, batch["branches"], strict=True):
        stored = F.normalize(torch.randn(2, 5, 6, 6, generator=generator), dim=1)
        bank.put(torch.tensor([2, 3]), torch.tensor([0, 0]), stored)
        columns = torch.arange(6) + 1
        registered = [
            sum(stored[other - 2][..., (columns + other - volume).clamp(max=5)] for other in (2, 3))
            for volume in (0, 1)
        ]
        registered = torch.stack(registered).movedim(1, -1).flatten(0, 2) / 2
        losses.append(supervised_by_hand(branch, batch["label"][:1, 0], registered))
    found = term(None, batch)["contrast"]
    torch.testing.assert_close(found, 1e-3 * sum(losses) / 2, atol=0, rtol=2e-3)


def test_bank__keeps_each_branchs_maps_as_before_augmentation():
    batch = branch_batch(size=6)
    batch["matrix"][:, 0, 2] = 1.0
    term = SupervisedContrast(CLASSES, scale="full", maps=IdentityMaps(), bank_size=4)
    term(None, batch)
    for bank, branch in zip(term.banks, batch["branches"], strict=True):
        for volume, features in enumerate(branch.projected["full"].maps().detach()):
            stored = bank.maps[volume, 0].float()
            torch.testing.assert_close(stored[..., 1:], features[..., :-1], atol=1e-3, rtol=0)
            assert stored[..., 0].abs().max() < 1e-3


def test_ten_steps__all_terms_finite_and_the_bank_fills():
    step, network = make(maps=IdentityMaps(), bank_size=6)
    batches = [with_registered(make_batch(seed=seed)) for seed in range(10)]
    history = train(step, network, batches)
    assert all({"registration", "contrast"} <= set(losses) for losses in history)
    assert all(torch.tensor(list(losses.values())).isfinite().all() for losses in history)
    assert [len(bank) for bank in step.terms[1].banks] == [4, 4]  # slice 0 of four volumes


def test_positives__volumes_are_drawn_from_those_with_a_registration():
    maps = IdentityMaps(reachable=[3])
    contrast = SupervisedContrast(CLASSES, maps=maps, bank_size=9, share=1.0, num_volumes=1)
    stored = F.normalize(torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    contrast.banks[0].put(torch.tensor([1, 2, 3]), torch.tensor([0, 0, 0]), stored)
    anchors = torch.tensor([0, 10, 63])
    found = enhanced(contrast, torch.zeros(3, 4), anchors)
    torch.testing.assert_close(found, stored[2].flatten(1)[:, anchors].t(), atol=2e-3, rtol=0)


def test_places__are_exact_under_autocast():
    """Half precision would move points by more than a pixel."""
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randint(0, 2 * 56 * 56, (50,), generator=generator)
    matrix = torch.eye(2, 3).repeat(50, 1, 1) + 0.1 * torch.randn(50, 2, 3, generator=generator)
    points, maps = 200 * torch.rand(50, 3, generator=generator), torch.randn(1, 2, 8, 8)
    volume_matrix = torch.eye(3, 4).repeat(50, 1, 1) + 0.1

    def places():
        return (
            canonical_pixels(anchors, (56, 56), (224, 224), matrix),
            unaugmented(maps, matrix[:1], (224, 224)),
            _apply(volume_matrix, points),
        )

    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = places()
    for one, other in zip(places(), low, strict=True):
        assert torch.equal(one, other)


def test_centres__of_all_pixels_or_of_all_others():
    flat = F.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    of_class, anchors = torch.tensor([0, 2, 3]), torch.tensor([3, 0])
    found = SupervisedContrast(CLASSES)._centres(flat, of_class, anchors)
    assert torch.equal(found, flat[of_class].mean(0).expand(2, -1))
    found = SupervisedContrast(CLASSES, exclude_self=True)._centres(flat, of_class, anchors)
    others = torch.stack([flat[0] + flat[2], flat[2] + flat[3]])
    torch.testing.assert_close(found, others / 2)


def test_batch__without_a_confident_pixel():
    step, network = make(maps=IdentityMaps(), bank_size=6)
    step.terms[1].confidence = 1.0
    before = [value.clone() for value in network.projectors.parameters()]
    history = train(step, network, [make_batch()])
    assert history[0]["contrast"] == 0
    after = network.projectors.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_registered_labels__absent_or_of_labelled_images_only():
    step, network = make()
    history = train(step, network, [make_batch(), with_registered(make_batch(4, 0))])
    assert all("registration" not in losses for losses in history)


def test_registered_labels__dice_and_cross_entropy_of_both_branches():
    batch = branch_batch(1, 2)
    label = torch.randint(0, CLASSES, (3, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    batch |= {"registered_label": label, "has_registered": torch.tensor([True, False, True])}
    total = 0.0
    for branch in batch["branches"]:
        logits, target = branch.logits[2:], label[2:, 0]
        total += F.cross_entropy(logits, target) + soft_dice(logits.softmax(1), target)
    found = RegistrationSupervision(0.5)(None, batch)["registration"]
    torch.testing.assert_close(found, 0.5 * total)


def test_registered_labels__weight_follows_its_schedule():
    term = RegistrationSupervision(schedule=linear(1.0, 0.0))
    step, network = CrossTeachingStep(total_steps=2, terms=[term]), pair()
    history = train(step, network, [with_registered(make_batch())] * 3, learning_rate=0.0)
    assert history[1]["registration"] < history[0]["registration"]
    assert history[2]["registration"] == 0


@pytest.mark.parametrize("batch", [make_batch(classes=1), make_batch(4, 0), make_batch(0, 4)])
def test_edge_batches__finite(batch):
    step, network = make(maps=IdentityMaps(), bank_size=3)
    train(step, network, [batch] * 2)
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_terms__under_cps_too():
    from medseg_kit.methods.cps import CrossPseudoSupervisionStep
    from tests.methods.slice_training import unet

    contrast = SupervisedContrast(CLASSES, confidence=0.3)
    step = CrossPseudoSupervisionStep(total_steps=2, terms=[RegistrationSupervision(), contrast])
    network = pair(second=unet(3), scales=("quarter",))
    history = train(step, network, [with_registered(make_batch())])
    assert {"registration", "contrast"} <= set(history[0])


def test_feature_maps__a_place_that_augmentation_moved_out_is_not_there():
    bank = FeatureMaps(4)
    maps = torch.ones(1, 3, 4, 4)
    maps[..., :2] = 0.0  # `unaugmented` leaves zeros where nothing was seen
    bank.put(torch.tensor([5]), torch.tensor([2]), maps)
    pixels = torch.tensor([[0.0, 1.0], [3.0, 1.0], [3.0, 1.0]])
    features, there = bank.sample(5, torch.tensor([2, 2, 7]), pixels, (4, 4))
    assert there.tolist() == [False, True, False]  # not seen, seen, no such slice
    assert features[1].tolist() == [1.0, 1.0, 1.0]
