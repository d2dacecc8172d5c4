"""Readers of raw public layouts: each lists the cases of a folder without opening images.

A new layout is one function ``(root) -> list[RawCase]`` and its line in `READERS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg_kit.data.stacks import DICOM_FOLDER
from medseg_kit.typing import UserError

NIFTI_SUFFIX = ".nii.gz"


@dataclass(frozen=True)
class RawCase:
    """One image and its label in the raw layout.

    Attributes:
        subject: Patient, unique within the data set.
        image: Image file; may be missing, which the checks report.
        label: Label file; may be missing, which the checks report unless it is allowed.
        frame: Name of the time frame for a subject with several images, else None.
    """

    subject: str
    image: Path
    label: Path
    frame: str | None = None

    @property
    def case_id(self) -> str:
        """File stem in the prepared folder."""
        return f"{self.subject}_{self.frame}" if self.frame else self.subject


def find_root(source: Path, folders: Sequence[str]) -> Path:
    """Find the data set's own folder at or below the folder that the user named.

    Args:
        source: Folder given by the user.
        folders: Names that the data set's folder usually has, most specific first.

    Returns:
        The first ``source/<name>`` that exists, else `source`.

    Raises:
        UserError: When `source` is no folder.
    """
    if not source.is_dir():
        raise UserError(f"source folder {source} does not exist")
    return next((source / name for name in folders if (source / name).is_dir()), source)


def read_cases(root: Path, layout: str) -> list[RawCase]:
    """List the cases of a raw data set, sorted by subject.

    Args:
        root: Folder of the raw data set.
        layout: Name of the layout, a key of `READERS`.

    Returns:
        The cases.

    Raises:
        UserError: When the layout is unknown or the folder does not look like it.
    """
    if layout not in READERS:
        raise UserError(f"layout {layout!r} is unknown; known are {', '.join(READERS)}")
    cases = sorted(READERS[layout](root), key=lambda case: case.case_id)
    if not cases:
        raise UserError(f"{root} holds no cases in the {layout!r} layout ({LAYOUT_HELP[layout]})")
    return cases


def read_msd(root: Path) -> list[RawCase]:
    """Medical Segmentation Decathlon: ``dataset.json`` if there is one, else the two folders."""
    listing = root / "dataset.json"
    if not listing.is_file():
        return _pair_folders(root / "imagesTr", root / "labelsTr")
    try:
        pairs = json.loads(listing.read_text(encoding="utf-8"))["training"]
        return [
            RawCase(_stem(root / pair["image"]), root / pair["image"], root / pair["label"])
            for pair in pairs
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{listing} has no valid list training: [{{image, label}}] ({error!r});"
            " repair or remove it (the folders imagesTr and labelsTr are enough)"
        ) from error


def read_btcv(root: Path) -> list[RawCase]:
    """BTCV: ``img/img0001.nii.gz`` with ``label/label0001.nii.gz``; the subject is ``0001``."""
    return _pair_folders(root / "img", root / "label", image_prefix="img", label_prefix="label")


def read_kits(root: Path) -> list[RawCase]:
    """KiTS: ``case_00000/imaging.nii.gz`` with ``segmentation.nii.gz``, else it is unlabelled."""
    return [
        RawCase(label.parent.name, label.parent / f"imaging{NIFTI_SUFFIX}", label)
        for label in root.glob(f"case_*/segmentation{NIFTI_SUFFIX}")
    ]


def read_acdc(root: Path) -> list[RawCase]:
    """ACDC: ``patient001/patient001_frame01.nii.gz`` with ``..._frame01_gt.nii.gz``.

    The frames are called ``ED`` and ``ES``: as ``Info.cfg`` says, else the lower number is ED. The
    4-D series and everything else is left aside.
    """
    return [case for folder in root.glob("patient*") for case in _acdc_frames(folder)]


def _acdc_frames(folder: Path) -> list[RawCase]:
    pattern = re.compile(re.escape(folder.name) + r"_frame(\d+)(_gt)?" + re.escape(NIFTI_SUFFIX))
    matches = (pattern.fullmatch(path.name) for path in sorted(folder.glob("*")))
    names = {int(match[1]): match[1] for match in matches if match}
    if not names:
        return []
    frames = _info_frames(folder / "Info.cfg")
    if frames is None:
        if len(names) != 2:
            raise UserError(
                f"{folder} holds the frames {list(names.values())} and no Info.cfg: which of them"
                " are ED and ES is unknown; add Info.cfg, or leave two frames, ED first"
            )
        frames = dict(zip(("ED", "ES"), sorted(names), strict=True))
    cases = []
    for frame, number in frames.items():
        # A frame that is not there becomes a case as well: the checks name the missing file.
        stem = f"{folder.name}_frame{names.get(number, f'{number:02d}')}"
        image, label = (folder / f"{stem}{end}{NIFTI_SUFFIX}" for end in ("", "_gt"))
        cases.append(RawCase(folder.name, image, label, frame))
    return cases


def _info_frames(path: Path) -> dict[str, int] | None:
    """Read the frame numbers of ED and ES from ACDC's ``KEY: value`` file; None without one."""
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    entries = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    try:
        frames = {frame: int(entries[frame]) for frame in ("ED", "ES")}
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} has no whole numbers ED and ES ({error!r}); repair it") from error
    if frames["ED"] == frames["ES"]:
        raise UserError(f"{path} gives frame {frames['ED']} for both ED and ES; repair it")
    return frames


def read_flare(root: Path) -> list[RawCase]:
    """FLARE22: ``images/FLARE22_Tr_0001_0000.nii.gz`` with ``labels/FLARE22_Tr_0001.nii.gz``."""
    return [
        RawCase(
            case.subject,
            case.image.with_name(f"{case.subject}_0000{NIFTI_SUFFIX}"),
            case.label,
        )
        for case in _pair_folders(root / "labels", root / "labels")
    ]


def read_pairs(root: Path) -> list[RawCase]:
    """Any data set as ``images/ID.nii.gz`` with ``labels/ID.nii.gz``."""
    return _pair_folders(root / "images", root / "labels")


def read_chaos_t2(root: Path) -> list[RawCase]:
    """CHAOS MR, T2-SPIR: ``1/T2SPIR/DICOM_anon`` with ``1/T2SPIR/Ground``."""
    return _chaos(root, "T2SPIR", DICOM_FOLDER, "")


def read_chaos_t1_in(root: Path) -> list[RawCase]:
    """CHAOS MR, T1 in phase: ``1/T1DUAL/DICOM_anon/InPhase`` with ``1/T1DUAL/Ground``."""
    return _chaos(root, "T1DUAL", f"{DICOM_FOLDER}/InPhase", "_t1in")


def read_chaos_t1_out(root: Path) -> list[RawCase]:
    """CHAOS MR, T1 out of phase: ``1/T1DUAL/DICOM_anon/OutPhase`` with ``1/T1DUAL/Ground``."""
    return _chaos(root, "T1DUAL", f"{DICOM_FOLDER}/OutPhase", "_t1out")


def _chaos(root: Path, sequence: str, images: str, suffix: str) -> list[RawCase]:
    """List the patients by number, as ``chaos_01`` and so on; one without labels is left out."""
    numbers = sorted(int(path.name) for path in root.glob("*") if path.name.isdigit())
    folders = {number: root / str(number) / sequence for number in numbers}
    return [
        RawCase(f"chaos_{number:02d}{suffix}", folder / images, folder / "Ground")
        for number, folder in folders.items()
        if (folder / "Ground").is_dir()
    ]


READERS: Mapping[str, Callable[[Path], list[RawCase]]] = {
    "msd": read_msd,
    "btcv": read_btcv,
    "kits": read_kits,
    "acdc": read_acdc,
    "flare": read_flare,
    "pairs": read_pairs,
    "chaos_t2": read_chaos_t2,
    "chaos_t1_in": read_chaos_t1_in,
    "chaos_t1_out": read_chaos_t1_out,
}
LAYOUT_HELP: Mapping[str, str] = {
    "msd": "imagesTr/NAME.nii.gz with labelsTr/NAME.nii.gz",
    "btcv": "img/img0001.nii.gz with label/label0001.nii.gz",
    "kits": "case_00000/imaging.nii.gz with case_00000/segmentation.nii.gz",
    "acdc": "patient001/patient001_frame01.nii.gz with patient001/patient001_frame01_gt.nii.gz",
    "flare": "images/FLARE22_Tr_0001_0000.nii.gz with labels/FLARE22_Tr_0001.nii.gz",
    "pairs": "images/ID.nii.gz with labels/ID.nii.gz, one ID a patient",
    "chaos_t2": "1/T2SPIR/DICOM_anon/*.dcm with 1/T2SPIR/Ground/*.png",
    "chaos_t1_in": "1/T1DUAL/DICOM_anon/InPhase/*.dcm with 1/T1DUAL/Ground/*.png",
    "chaos_t1_out": "1/T1DUAL/DICOM_anon/OutPhase/*.dcm with 1/T1DUAL/Ground/*.png",
}


def _pair_folders(
    images: Path, labels: Path, *, image_prefix: str = "", label_prefix: str = ""
) -> list[RawCase]:
    """Pair the files of two folders by name; a file without its partner becomes a case as well."""
    subjects = _subjects(images, image_prefix) | _subjects(labels, label_prefix)
    return [
        RawCase(
            subject,
            images / f"{image_prefix}{subject}{NIFTI_SUFFIX}",
            labels / f"{label_prefix}{subject}{NIFTI_SUFFIX}",
        )
        for subject in subjects
    ]


def _subjects(folder: Path, prefix: str) -> set[str]:
    # MSD archives hold "._NAME" resource forks of the machine that packed them.
    files = (path for path in folder.glob(f"*{NIFTI_SUFFIX}") if not path.name.startswith("."))
    pattern = re.compile(re.escape(prefix) + r"(.+)")
    return {match[1] for path in files if (match := pattern.fullmatch(_stem(path)))}


def _stem(path: Path) -> str:
    return path.name.removesuffix(NIFTI_SUFFIX)
