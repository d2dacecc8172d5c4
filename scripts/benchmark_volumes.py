"""Rows of `benchmark.py` about volumes before training: slices and registration.

The peer of the slices reads and augments one slice after the other, as research scripts do; that of
registration is SimpleITK with its usual settings (Mattes, 200 iterations, three levels).
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_timing import Arguments, Record, compare_race, race
from scipy import ndimage

CARDIAC = ["right ventricle", "myocardium", "left ventricle"]
DATA_VARIABLE = "MEDSEG_DATA"


def pipeline(arguments: Arguments) -> list[Record]:
    """Augmented batches of slices, images a second, against a file and SciPy for each slice."""
    from medseg_kit.data.datalist import load_datalist
    from medseg_kit.data.slices import SliceDataset
    from medseg_kit.data.two_stream import TwoStreamLoader
    from medseg_kit.transforms.slices import SliceAugmentation

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    side, size, batch_size, steps = (32, 32, 4, 2) if arguments.tiny else (232, 256, 24, 8)
    with tempfile.TemporaryDirectory() as work:
        folder = _phantoms(Path(work) / "data", patients=2 if arguments.tiny else 6, side=side)
        dataset = SliceDataset(
            load_datalist(folder, "training", organs=CARDIAC), image_size=size, num_classes=4
        )
        loader = TwoStreamLoader(
            dataset,
            batch_size=batch_size,
            labelled_batch_size=batch_size,
            steps_per_epoch=steps,
            augmentation=SliceAugmentation("rot_flip"),
        )
        files = _slice_files(dataset.cases, Path(work) / "slices")
        random = np.random.default_rng(0)

        def peer() -> None:
            for _ in range(steps):
                chosen = random.choice(files, batch_size)
                pairs = [_read_slice(path, size, random) for path in chosen]
                images, labels = zip(*pairs, strict=True)
                torch.stack(images), torch.stack(labels)

        def own() -> None:
            for _ in loader:
                pass

        results = race({"peer": peer, "own": own}, arguments.repeats)
    count = steps * batch_size
    rates = {
        f"{name}_images_a_second": round(count / statistics.median(run["wall"] for run in runs))
        for name, runs in results.items()
    }
    return [compare_race(f"slice pipeline, batch {batch_size}", results, 5.0, **rates)]


def _phantoms(folder: Path, *, patients: int, side: int) -> Path:
    """Write cardiac phantoms of ten thick slices; return the prepared folder."""
    from medseg_kit.data.phantom_anatomy import CARDIAC as ANATOMY
    from medseg_kit.data.phantoms import site_scanner, write_phantom_dataset

    return write_phantom_dataset(
        folder,
        organs=CARDIAC,
        counts={"training": patients, "validation": 1},
        size=(side, side, 10),
        scanner=site_scanner(0, modality="MR"),
        anatomy=ANATOMY,
    )


def _slice_files(cases: Any, folder: Path) -> list[Path]:
    """Write each slice with its label as one file, intensities in [0, 1]; return the files."""
    import nibabel as nib

    folder.mkdir()
    for number, case in enumerate(cases):
        image, label = (np.asarray(nib.load(case[key]).dataobj) for key in ("image", "label"))
        low, high = image.min(), image.max()
        scaled = ((image - low) / (high - low)).astype(np.float32)
        axis = int(np.argmin(image.shape))
        for index in range(image.shape[axis]):
            part = np.take(scaled, index, axis), np.take(label, index, axis).astype(np.uint8)
            np.savez(folder / f"case{number}_slice{index}.npz", image=part[0], label=part[1])
    return sorted(folder.glob("*.npz"))


def _read_slice(path: Path, size: int, random: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Read, augment and resize one slice: turns and mirroring, or a small rotation, or nothing."""
    with np.load(path) as content:
        image, label = content["image"], content["label"]
    if random.random() > 0.5:
        turns, axis = int(random.integers(4)), int(random.integers(2))
        image = np.flip(np.rot90(image, turns), axis).copy()
        label = np.flip(np.rot90(label, turns), axis).copy()
    elif random.random() > 0.5:
        angle = int(random.integers(-20, 20))
        image = ndimage.rotate(image, angle, order=0, reshape=False)
        label = ndimage.rotate(label, angle, order=0, reshape=False)
    zoom = (size / image.shape[0], size / image.shape[1])
    image, label = ndimage.zoom(image, zoom, order=0), ndimage.zoom(label, zoom, order=0)
    return torch.from_numpy(image)[None], torch.from_numpy(label)


def registration(arguments: Arguments) -> list[Record]:
    """Affine registration of cardiac pairs and the Dice of the warped labels; one thread.

    Real end-diastolic volumes of ACDC where MEDSEG_DATA points at them, else phantoms.
    """
    import SimpleITK

    from medseg_kit.registration.quality import align_centres, organ_dice
    from medseg_kit.registration.resampling import warp_label
    from medseg_kit.registration.settings import make_settings, register_images
    from medseg_kit.registration.volumes import read_image, read_label
    from medseg_kit.typing import UserError

    threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    with tempfile.TemporaryDirectory() as work:
        cases, source = _registration_cases(Path(work), tiny=arguments.tiny)
        images = [read_image(case, "MR") for case in cases]
        labels = [read_label(case) for case in cases]
    pairs = [(0, 1)] if arguments.tiny else [(0, 1), (2, 3), (1, 2)]
    found: dict[str, list[Any]] = {}

    def register(method: str) -> list[Any]:
        settings = make_settings(method, modality="MR")
        found[method] = [attempt(fixed, moving, settings) for fixed, moving in pairs]
        return found[method]

    def attempt(fixed: int, moving: int, settings: Any) -> Any:
        try:
            return register_images(images[fixed], images[moving], settings)[0]
        except UserError:  # not a fit: its time counts, and no label is warped
            return None

    def dice(transforms: list[Any]) -> float:
        scores = [
            None
            if transform is None
            else organ_dice(labels[fixed], warp_label(labels[moving], images[fixed], transform))
            for (fixed, moving), transform in zip(pairs, transforms, strict=True)
        ]
        return round(statistics.mean(score or 0.0 for score in scores), 3)

    own = {"affine": lambda: register("affine"), "rigid_affine": lambda: register("rigid_affine")}
    results = race({"peer": lambda: register("plain"), **own}, 1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    centres = [align_centres(images[fixed], images[moving]) for fixed, moving in pairs]
    peer, without = dice(found["plain"]), dice(centres)
    records = []
    for method in own:
        score = dice(found[method])
        row = f"{method} registration of {len(pairs)} pairs of {source}"
        measured = {"peer": results["peer"], "own": results[method]}
        scores = {"dice_peer": peer, "dice_own": score, "dice_without": without}
        as_good = score > max(peer, without)
        records.append(compare_race(row, measured, 10.0, **scores, as_good=as_good))
    return records


def _registration_cases(work: Path, *, tiny: bool) -> tuple[list[Any], str]:
    from medseg_kit.registration.cases import IN_PLANE_MM, THICK_MM, RegistrationCase

    root = Path(os.environ.get(DATA_VARIABLE, "")) / "acdc"
    spacing = None
    if os.environ.get(DATA_VARIABLE) and root.is_dir() and not tiny:
        spacing, source = (IN_PLANE_MM, IN_PLANE_MM, THICK_MM), "ACDC"
        labels = [next(iter(sorted(f.glob("*_gt.nii*")))) for f in sorted(root.iterdir())[:4]]
        pairs = [(Path(str(label).replace("_gt", "")), label) for label in labels]
    else:
        folder, source = _phantoms(work / "data", patients=4, side=32 if tiny else 160), "phantoms"
        pairs = list(
            zip(
                sorted(folder.glob("images*/*.nii.gz")),
                sorted(folder.glob("labels*/*.nii.gz")),
                strict=True,
            )
        )
    cases = [
        RegistrationCase(
            key=image.name,
            image=image,
            label=label,
            frame="",
            subject=image.name,
            labelled=True,
            section="training",
            spacing=spacing,
            source=(image.name, image),
        )
        for image, label in pairs
    ]
    return cases, source
