"""Tests of the spacing transform that tolerates string items."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from monai.transforms import Spacingd as MonaiSpacingd

from medseg_kit.transforms.spacing import Spacingd


def make_volume(spacing=(1.0, 1.0, 2.5), shape=(9, 7, 5)):
    values = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(1, *shape)
    affine = np.diag([*spacing, 1.0])
    meta = {"filename_or_obj": "case.nii.gz"}
    return MetaTensor(values, affine=torch.as_tensor(affine), meta=meta)


def make_data():
    return {
        "image_path": "folder/case.nii.gz",
        "image": make_volume(),
        "image_count": 3,
        "label": make_volume(),
        "label_source": "reader",
        "model": "x",
    }


def make_transform(cls=Spacingd, **options):
    return cls(["image", "label"], pixdim=(2.0, 2.0, 2.0), mode=("bilinear", "nearest"), **options)


def test_stock_spacingd__still_fails_on_strings():
    # When this starts to pass, the subclass has had its day.
    with pytest.raises(AttributeError, match="update"):
        make_transform(MonaiSpacingd)(make_data())


def test_spacingd__keeps_string_items_and_order():
    data = make_data()
    out = make_transform()(data)
    assert list(out) == list(data)
    untouched = set(data) - {"image", "label"}
    assert {key: out[key] for key in untouched} == {key: data[key] for key in untouched}
    assert tuple(out["image"].pixdim.tolist()) == (2.0, 2.0, 2.0)


def test_spacingd__equals_stock_without_strings():
    volumes = {"image": make_volume(), "label": make_volume()}
    ours, stock = make_transform()(volumes), make_transform(MonaiSpacingd)(volumes)
    for key in volumes:
        torch.testing.assert_close(ours[key], stock[key], rtol=0, atol=0)
        torch.testing.assert_close(ours[key].affine, stock[key].affine, rtol=0, atol=0)


def test_spacingd__metadata_dictionaries_are_updated_as_upstream():
    data = {"image": make_volume(), "image_meta_dict": {}, "image_path": "case.nii.gz"}
    out = Spacingd("image", pixdim=2.0)(data)
    assert out["image_meta_dict"]["filename_or_obj"] == "case.nii.gz"


def test_spacingd__does_not_change_its_input():
    data = make_data()
    before = data["image"].clone()
    make_transform()(data)
    torch.testing.assert_close(data["image"], before, rtol=0, atol=0)


def test_spacingd__invertd_restores_shape_and_affine():
    preprocessing = Compose([Spacingd("image", pixdim=(1.5, 2.0, 1.0))])
    data = {"image": make_volume(), "image_path": "case.nii.gz"}
    out = preprocessing(data)
    out["pred"] = MetaTensor(out["image"].clone())
    out = Invertd("pred", transform=preprocessing, orig_keys="image")(out)
    assert out["pred"].shape == data["image"].shape
    torch.testing.assert_close(out["pred"].affine, data["image"].affine, rtol=0, atol=0)


def test_spacingd__lazy_call_defers_resampling():
    out = make_transform()(make_data(), lazy=True)
    assert out["image"].shape == (1, 9, 7, 5)
    assert len(out["image"].pending_operations) == 1


def test_spacingd__missing_key_raises():
    with pytest.raises(KeyError, match="label"):
        make_transform()({"image": make_volume(), "image_path": "case.nii.gz"})
