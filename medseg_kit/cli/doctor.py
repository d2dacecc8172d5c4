"""``medseg doctor``: what is installed, what the machine has, and which bundles would run."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata, util
from pathlib import Path

from medseg_kit import __version__

REQUIRED = ("torch", "monai", "pytorch-ignite", "numpy", "nibabel", "SimpleITK", "itk-elastix")
OPTIONAL = {
    "nvflare": ("NVIDIA FLARE", "pip install 'medseg-kit[federated]'"),
    "monailabel": ("MONAI Label", "scripts/label_server.sh sets up its own environment"),
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def doctor() -> int:
    """Show versions, GPU, memory, optional parts, and whether each bundle would run.

    Example:
        medseg doctor

    Returns:
        0 when every required package is there and every bundle found would run, or says that it
        ships no weights; else 1.
    """
    lines, complete = _packages()
    print("\n".join([f"medseg_kit {__version__} on Python {platform.python_version()}", *lines]))
    if not complete:
        return 1
    print("\n".join([*_machine(), *_optional_parts()]))
    return 0 if _bundles() else 1


def _packages() -> tuple[list[str], bool]:
    versions = {name: _version(name) for name in REQUIRED}
    hint = "missing: pip install -c constraints.txt -e ."
    lines = [f"  {name:<16} {version or hint}" for name, version in versions.items()]
    return lines, all(versions.values())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> list[str]:
    import psutil
    import torch

    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(Path.cwd())
    lines = [
        "Machine",
        f"  processor        {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads",
        f"  memory           {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free",
        f"  disk here        {disk.free / 2**30:.1f} GiB free",
    ]
    if not torch.cuda.is_available():
        build = torch.version.cuda or "none"
        return [*lines, f"  GPU              none usable (CUDA of this torch: {build})"]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        lines.append(
            f"  GPU {index}            {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB"
        )
    return lines


def _optional_parts() -> list[str]:
    lines = ["Optional parts"]
    for module, (title, hint) in OPTIONAL.items():
        found = util.find_spec(module) is not None
        state = metadata.version(module) if found else f"not installed ({hint})"
        lines.append(f"  {title:<16} {state}")
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    lines.append(f"  {'Chromium':<16} {browser or 'not installed (only the page tests use it)'}")
    data = os.environ.get("MEDSEG_DATA")
    lines.append(f"  {'real data':<16} {data or 'MEDSEG_DATA is not set'}")
    return lines


def _bundles() -> bool:
    """Print one line a bundle; return whether all of them would run."""
    from medseg_kit.bundle.paths import BUNDLES_VARIABLE, bundle_folders, list_bundles
    from medseg_kit.bundle.verify import awaits_training, readiness

    bundles = list_bundles()
    searched = ", ".join(str(folder) for folder in bundle_folders())
    print(f"Bundles in {searched or 'no folder'}")
    if not bundles:
        print(f"  none: set {BUNDLES_VARIABLE} to the folder that holds them")
    runs = True
    for name, root in bundles.items():
        problem = readiness(root)
        if problem is not None and awaits_training(root):
            print(f"  {name:<28} ships no weights: train it first, see its docs/README.md")
            continue
        state = "runs" if problem is None else problem.replace(f"{root}{os.sep}", "")
        print(f"  {name:<28} {state}")
        runs = runs and problem is None
    return runs
