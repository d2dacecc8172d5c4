import pytest
import torch

from medseg_kit.bundle.config import load_config
from medseg_kit.methods.masked_images import MaskedImageStep, patch_mask
from tests.methods.slice_training import SIZE, make_batch, train

SMALL = {"device": "cpu", "amp": "off", "image_size": SIZE}


class Constant(torch.nn.Module):
    """Answers one number everywhere, and keeps what it was asked."""

    def __init__(self, channels=1):
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(1))
        self.channels = channels

    def forward(self, image):
        self.asked = image
        return self.value.expand(len(image), self.channels, *image.shape[2:])


def test_patch_mask__whole_patches_and_as_many_in_every_image():
    torch.manual_seed(0)
    mask = patch_mask(torch.zeros(5, 2, 32, 48), 0.6, 8)
    assert mask.shape == (5, 1, 32, 48)
    patches = mask[:, 0].unfold(1, 8, 8).unfold(2, 8, 8).flatten(3)
    assert torch.equal(patches.all(-1), patches.any(-1))
    assert patches.any(-1).flatten(1).sum(1).tolist() == [14] * 5  # 0.6 of 24
    assert not torch.equal(mask[0], mask[1])


def test_patch_mask__a_cut_patch_at_the_border_and_never_none():
    assert patch_mask(torch.zeros(1, 1, 10, 10), 0.01, 8).any()


def test_step__mean_difference_in_the_masked_pixels_alone():
    torch.manual_seed(0)
    network, batch = Constant(), make_batch(0, 4)
    history = train(MaskedImageStep(total_steps=1, mask_size=8), network, [batch])
    image = batch["image"]
    mask = network.asked != image
    assert 0.5 < mask.float().mean() < 0.7
    mean = image.mean((2, 3), keepdim=True).expand_as(image)
    torch.testing.assert_close(network.asked[mask], mean[mask])
    assert history[0]["masked"] == pytest.approx(float(image[mask].abs().mean()))


@pytest.mark.parametrize("options", [{"mask_ratio": 0.0}, {"mask_ratio": 1.0}, {"mask_size": 0}])
def test_step__options_out_of_range(options):
    with pytest.raises(ValueError, match="mask_ratio is a share"):
        MaskedImageStep(total_steps=1, **options)


def test_step__a_network_with_classes_is_an_error():
    with pytest.raises(ValueError, match="give it out_channels 1"):
        train(MaskedImageStep(total_steps=1), Constant(channels=4), [make_batch(0, 2)])


def test_overlay__fills_in_and_the_partner_of_cross_teaching_starts_from_it(repository, tmp_path):
    root = repository / "bundles" / "cardiac_mr_semi_supervised"
    torch.manual_seed(0)
    files = ["train.yaml", "methods/masked_images.yaml"]
    parser = load_config(root, files, overrides={**SMALL, "learning_rate": 0.003})
    step, model = (parser.get_parsed_content(key) for key in ("train#step", "model"))
    optimizer = parser.get_parsed_content("optimizer")
    batches = [make_batch(0, 4, seed=seed) for seed in range(4)]
    losses = train(step, model, batches, epochs=5, optimizer=optimizer)
    first, last = ([row["masked"] for row in part] for part in (losses[:4], losses[-4:]))
    assert sum(last) < 0.9 * sum(first)

    weights = model.state_dict()
    torch.save(weights, tmp_path / "model.pt")
    path = {"network_def#second#pretrained_path": str(tmp_path / "model.pt")}
    files = ["train.yaml", "methods/cross_teaching.yaml"]
    network = load_config(root, files, overrides=SMALL | path).get_parsed_content("network_def")
    started = network.second.state_dict()
    assert network.second.pretrained.left_out == ()
    same = [key for key, value in started.items() if torch.equal(value, weights[key])]
    assert set(started) - set(same) == {"head.weight"}
