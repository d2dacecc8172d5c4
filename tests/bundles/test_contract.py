"""What every bundle owes the Model Zoo, MONAI Label and this project; found by globbing."""

from __future__ import annotations

import importlib
import shutil

import pytest
import torch
import yaml
from monai.bundle import ReferenceResolver
from monai.bundle.properties import InferProperties, TrainProperties
from monai.bundle.utils import ID_SEP_KEY
from monai.utils import BundlePropertyConfig

from medseg_kit.bundle.config import load_config
from medseg_kit.bundle.rules import iterate_strings
from medseg_kit.bundle.targets import component_parameters
from medseg_kit.bundle.verify import OVERLAYS, overlay_files, verify_bundle
from medseg_kit.typing import UserError
from tests.bundles.conftest import BUNDLES

FAMILY_FILES = ("train.yaml", "inference.yaml", *OVERLAYS)
ENTRY_IDS = {"imports", "initialize", "run", "finalize", "_meta_", "bundle_root"}


def read(root, name):
    return yaml.safe_load((root / "configs" / name).read_text())


def base_of(root, overlay):
    """Return the configuration an overlay lies on, and the two merged."""
    errors = []
    for base in ("train.yaml", "inference.yaml"):
        own, merged = load_config(root, [base]), None
        try:
            merged = load_config(root, [base, overlay])
            merged.parse()
        except (UserError, KeyError, ValueError) as error:
            errors.append(error)
            continue
        return own, merged
    pytest.fail(f"{overlay} composes with neither base: {errors}")


def test_verify__nothing_wrong(bundle):
    wrong = {check: found for check, found in verify_bundle(bundle).items() if found}
    assert wrong == {}


def test_overlays__change_what_exists(bundle):
    """A key a::b must exist in the base or be an argument of the component that it leaves there."""
    for overlay in overlay_files(bundle):
        own, merged = base_of(bundle, overlay)
        for key in read(bundle, overlay):
            parent, _, leaf = str(key).lstrip("+").replace("#", ID_SEP_KEY).rpartition(ID_SEP_KEY)
            if not parent:
                continue
            known = f"{parent}{ID_SEP_KEY}{leaf}" in own
            new_part = "_target_" not in own[parent]  # a plain group takes new components
            assert known or new_part or leaf in component_parameters(merged[parent]), (overlay, key)


@pytest.mark.parametrize(("name", "slices"), [("cardiac_mr", 1312), ("abdomen_ct", 2211)])
def test_cct_r__its_bank_holds_a_fifth_of_the_training_slices(repository, name, slices):
    configuration = read(repository / "bundles" / f"{name}_cct_r", "train.yaml")
    assert configuration["bank_size"] == slices // 5


def test_ids__are_all_used(bundle):
    """A top-level id that nothing refers to is a typo or a left-over."""
    files = ["train.yaml", "inference.yaml", *overlay_files(bundle)]
    contents = [read(bundle, name) for name in files]
    used = set(ENTRY_IDS)
    for content in contents:
        for _, text in iterate_strings(content):
            references = ReferenceResolver.match_refs_pattern(text.replace("#", ID_SEP_KEY))
            used |= {reference.split(ID_SEP_KEY)[0] for reference in references}
    for properties in (TrainProperties, InferProperties):
        used |= {item[BundlePropertyConfig.ID].split(ID_SEP_KEY)[0] for item in properties.values()}
    federation = {"strategy", "num_rounds", "local_epochs", "client_state"}
    for name, content in zip(files, contents, strict=True):
        defined = {str(key).split(ID_SEP_KEY)[0] for key in content}
        assert defined <= used | federation, name


def test_configs__agree_on_labels(bundle):
    training, inference = read(bundle, "train.yaml"), read(bundle, "inference.yaml")
    metadata = load_config(bundle, ["inference.yaml"]).get("_meta_")
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    names = [channels[str(value)] for value in range(len(channels))]
    assert training["organs"] == inference["organs"] == names[1:]


@pytest.mark.parametrize("method", sorted({root.name.split("_", 2)[2] for root in BUNDLES}))
def test_family__shares_its_blocks(method):
    """Only values may differ between the bundles of a method, never a component or a pipeline."""
    first, *others = (root for root in BUNDLES if root.name.split("_", 2)[2] == method)
    for name in FAMILY_FILES:
        reference = _structure(read(first, name))
        for other in others:
            assert _structure(read(other, name)) == reference, f"{name} of {other.name}"


def _structure(config):
    """Return a configuration without plain top-level values, name and number of epochs."""
    blocks = {}
    for key, value in config.items():
        holds_code = any(text[:1] in ("$", "@", "%") for _, text in iterate_strings(value))
        is_block = isinstance(value, dict) or holds_code
        blocks[key] = value if is_block and key != "bundle_root" else None
    if "train" in blocks:
        blocks["train"]["trainer"].pop("max_epochs")
    return blocks


def test_monai_label__can_load_and_train_it(bundle, repository, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(repository / "scripts" / "label_server")
    check_bundle = importlib.import_module("check_bundle")
    root = tmp_path / bundle.name
    shutil.copytree(bundle, root)
    if not (root / "models" / "model.pt").is_file():
        (root / "models").mkdir(exist_ok=True)
        network = load_config(root, ["inference.yaml"]).get_parsed_content("network_def")
        torch.save(network.state_dict(), root / "models" / "model.pt")
    check_bundle.check_inference(root)
    assert check_bundle.training_problems(root) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_deployed_network__exports(bundle):
    """The evaluation path passes torch.export and tracing, and answers with the same numbers."""
    parser = load_config(bundle, ["inference.yaml"])
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").eval()
    inputs = parser["_meta_"]["network_data_format"]["inputs"]["image"]
    shape = [side if isinstance(side, int) else 32 for side in inputs["spatial_shape"]]
    image = torch.rand(1, inputs["num_channels"], *shape)
    with torch.no_grad():
        exported = torch.export.export(network, (image,)).module()
        torch.testing.assert_close(exported(image), network(image))
        traced = torch.jit.trace(network, image)  # what `monai.bundle ckpt_export` does
        two = torch.cat([image, image.flip(-1)])
        torch.testing.assert_close(traced(two), network(two))
