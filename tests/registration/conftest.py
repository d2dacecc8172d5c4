"""Small synthetic volumes, and prepared data sets of them."""

import json

import numpy as np
import pytest
import SimpleITK

SIZE, SPACING = (48, 40, 12), (1.5, 1.5, 5.0)
SHIFTS = {"a": (0, 0, 0), "b": (2, 1, 0), "c": (-2, 2, 0), "d": (3, -2, 0)}


def ellipsoid(shift=(0.0, 0.0, 0.0), scale=1.0, *, size=SIZE):
    """Return an image in [0, 1] and a label with two structures; shift in voxels (x, y, z)."""
    x, y, z = np.meshgrid(*(np.arange(side, dtype=float) for side in size), indexing="ij")

    def inside(centre, radii):
        parts = zip((x, y, z), centre, shift, radii, strict=True)
        return sum(((p - c - s) / (r * scale)) ** 2 for p, c, s, r in parts) < 1

    outer, inner = inside((24, 20, 6), (12, 9, 4)), inside((27, 21, 6), (5, 4, 3))
    image = 0.2 + 0.5 * outer + 0.3 * inner + 0.002 * x
    label = outer.astype(np.uint8) + inner
    return to_image(np.clip(image, 0, 1).astype(np.float32)), to_image(label)


def to_image(array, spacing=SPACING):
    image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0).copy())
    image.SetSpacing(spacing)
    return image


def overlap(first, second):
    """Return the Dice of everything that is not background."""
    one, other = (SimpleITK.GetArrayFromImage(image) > 0 for image in (first, second))
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.fixture
def make_dataset(tmp_path):
    """Return a function that writes a data set: four training patients, one test patient."""

    def make(name="data", *, frames=("",), test=("e",), **header):
        folder = tmp_path / name
        sections = {"training": [], "validation": [], "test": []}
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True)
        shifts = SHIFTS | dict.fromkeys(test, (1, -2, 0))
        for subject, shift in shifts.items():
            for at, frame in enumerate(frames):
                stem = f"{subject}_{frame}" if frame else subject
                image, label = ellipsoid(shift, 1 - 0.2 * at)
                lost = header.get("spacing") == "lost"
                for kind, volume in (("images", image), ("labels", label)):
                    volume.SetSpacing((1.0, 1.0, 1.0) if lost else SPACING)
                    SimpleITK.WriteImage(volume, str(folder / kind / f"{stem}.nii.gz"))
                case = {"image": f"images/{stem}.nii.gz", "label": f"labels/{stem}.nii.gz"}
                case |= {"subject": subject} | ({"frame": frame} if frame else {})
                sections["test" if subject in test else "training"].append(case)
        content = {
            "schema": 1,
            "name": "phantoms",
            "modality": "MR",
            "intensity": "arbitrary",
            "spacing": "valid",
            "labels": {"0": "background", "1": "outer", "2": "inner"},
            "annotated": ["outer", "inner"],
            "sha256": {},
            **sections,
            **header,
        }
        (folder / "datalist.json").write_text(json.dumps(content))
        return folder

    return make


@pytest.fixture
def dataset(make_dataset):
    """Return a data set of four training patients with one frame and a test patient, in MR."""
    return make_dataset()
