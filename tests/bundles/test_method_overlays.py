"""Every method overlay of the 2-D bundles trains, and inference takes the weights it leaves."""

from __future__ import annotations

import pytest
import torch

from medseg_kit.bundle.config import load_config
from tests.bundles.conftest import BUNDLES
from tests.methods.slice_training import make_batch, train

SIZE = 32
SMALL = {
    "device": "cpu",
    "amp": "off",
    "patches": {"full": 8, "eighth": 2},
    "bank_size": 64,
    "train::contrast::maps": None,  # registration maps are those of a data set
}
LARGER = {"swin_unetr.yaml": 64}  # its instance norm wants more than one pixel at the bottom
NEED_EINOPS = ("swin_unetr.yaml", "unetr.yaml")
# what is given to inference.yaml; an overlay of a family that is not here changes training alone
INFERENCE = {
    "csunet": {
        name: name
        for name in ("attention_unet.yaml", "r50_unet.yaml", "swin_unetr.yaml", "unetr.yaml")
    },
    "mcsc": {"deploy_transformer.yaml": "transformer_inference.yaml"},
    "mcsc_v2": {
        "mean_teacher.yaml": "unet_inference.yaml",
        "cps.yaml": "unet_inference.yaml",
        "two_transformers.yaml": "transformer_inference.yaml",
    },
    "cct_r": {"uamt.yaml": "unet_inference.yaml", "cps.yaml": "unet_inference.yaml"},
}


STRONG = "strong_augmentation.yaml"


def family(root):
    return root.name.split("_", 2)[2]


# what both twins of a family have is the same (below)
FAMILIES = {family(root): root for root in BUNDLES if "cardiac_mr" in root.name}
OVERLAYS = [
    (name, path.name)
    for name, root in FAMILIES.items()
    for path in sorted((root / "configs" / "methods").glob("*.yaml"))
    if "published" not in path.name
    and not path.name.endswith("_inference.yaml")
    and path.name != "masked_images.yaml"  # pre-training, see tests/methods/test_masked_images.py
]


def configuration(root, *files, size):
    parser = load_config(root, files)
    known = {key: value for key, value in SMALL.items() if key in parser}
    return load_config(root, files, overrides={**known, "image_size": size})


def enlarged(batch, size):
    """Return the batch with its images repeated to a larger size."""
    tiles = (1, 1, size // SIZE, size // SIZE)
    return {**batch, **{key: batch[key].repeat(tiles) for key in ("image", "label")}}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("name", "overlay"), OVERLAYS)
def test_overlay__learns_and_its_weights_are_deployed(name, overlay):
    if overlay in NEED_EINOPS:
        pytest.importorskip("einops", reason="the extra `networks`")
    root, size = FAMILIES[name], LARGER.get(overlay, SIZE)
    torch.manual_seed(0)
    parser = configuration(root, "train.yaml", f"methods/{overlay}", size=size)
    step, model = (parser.get_parsed_content(key) for key in ("train#step", "model"))
    optimizer = parser.get_parsed_content("optimizer")
    before = [value.clone() for value in model.parameters()]
    batches = [enlarged(make_batch(2, 2, seed=seed, classes=4), size) for seed in range(2)]
    history = train(step, model, batches, optimizer=optimizer)
    assert all(torch.tensor(list(losses.values())).isfinite().all() for losses in history)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    deployed = parser.get_parsed_content("deployed").state_dict()
    own = INFERENCE.get(name, {}).get(overlay)
    overlays = [] if own is None else [f"methods/{own}"]
    network = configuration(root, "inference.yaml", *overlays, size=size).get_parsed_content(
        "network_def"
    )
    network.load_state_dict(deployed)
    with torch.no_grad():
        assert network.eval()(batches[0]["image"]).shape == (4, 4, size, size)


@pytest.mark.parametrize(
    ("name", "overlay"), [item for item in OVERLAYS if item[0] in ("mcsc", "mcsc_v2", "cct_r")]
)
def test_overlay__goes_after_the_published_profile(name, overlay):
    files = ["train.yaml", "methods/published.yaml", f"methods/{overlay}"]
    parser = configuration(FAMILIES[name], *files, size=SIZE)
    if overlay == "csunet_student.yaml":
        assert parser["transformer"]["_target_"].endswith("CSUNet")
    parser["transformer"] = None  # the step and its terms are built, not the networks
    assert parser.get_parsed_content("train#step").total_steps == 40_000


@pytest.mark.parametrize(
    ("name", "overlay"),
    [(name, None) for name in INFERENCE]
    + [(name, overlay) for name in ("mcsc", "mcsc_v2", "cct_r") for overlay in INFERENCE[name]],
)
def test_published__weights_fit_the_published_inference(name, overlay):
    training, inference = ["train.yaml", "methods/published.yaml"], ["inference.yaml"]
    if overlay is not None:
        training.append(f"methods/{overlay}")
        inference.append(f"methods/{INFERENCE[name][overlay]}")
    inference.append("methods/published_inference.yaml")
    with torch.device("meta"):
        trained, deployed = (
            load_config(FAMILIES[name], files, overrides={"device": "meta"})
            for files in (training, inference)
        )
        networks = (
            trained.get_parsed_content("deployed"),
            deployed.get_parsed_content("network_def"),
        )
    shapes = [
        {key: value.shape for key, value in network.state_dict().items()} for network in networks
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("root", "overlay"),
    [
        (root, path.name)
        for root in BUNDLES
        for path in sorted((root / "configs" / "methods").glob("published*.yaml"))
        if "inference" not in path.name and path.name != "published_cross_teaching.yaml"
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_published__computes_in_float32_and_does_not_clip(root, overlay):
    parser = load_config(root, ["train.yaml", f"methods/{overlay}"])
    assert (parser["amp"], parser.get("clip_norm")) == ("off", None)


@pytest.mark.parametrize(
    "name", [root.name for root in BUNDLES if family(root) == "semi_supervised"]
)
def test_deepatlas__keeps_slices_upright_under_every_profile(name):
    """A slice is registered with another of its batch."""
    root = next(root for root in BUNDLES if root.name == name)
    files = ["train.yaml", "methods/deepatlas.yaml", "methods/published_semi_supervised.yaml"]
    assert load_config(root, files)["train::augmentation::rule"] == "rotate"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_family__overlays_that_both_twins_have_are_the_same(name):
    first, second = (
        {
            path.name: _without_comments(path)
            for path in (root / "configs" / "methods").glob("*.yaml")
            if "published" not in path.name and path.name != STRONG  # left and right organs
        }
        for root in BUNDLES
        if family(root) == name and root.name.split("_")[0] in ("cardiac", "abdomen")
    )
    common = first.keys() & second.keys()
    assert [first[key] for key in common] == [second[key] for key in common]


@pytest.mark.parametrize("name", [f"abdomen_ct_{name}" for name in sorted(FAMILIES)])
def test_strong_augmentation__does_not_mirror_left_and_right_organs(name):
    root = next(root for root in BUNDLES if root.name == name)
    parser = load_config(root, ["train.yaml", f"methods/{STRONG}"])
    augmentation = parser.get_parsed_content("train#augmentation")
    assert (augmentation.rule, augmentation.mirroring) == ("affine", False)


def _without_comments(path):
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]
