"""Measure speed and memory against plain peers, interleaved, as medians and ratios.

    python scripts/benchmark.py --out benchmark.json                       # all rows, full size
    python scripts/benchmark.py --rows prediction,help --shape 256,256,64 --cases 2 --repeats 1

Each row is one function that returns records. Peer and own code get the same threads, window and
batch; they run in turn, so a busy machine disturbs both. Trust ratios, not seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import benchmark_methods
import benchmark_one_shot
import benchmark_volumes
from benchmark_timing import (
    Arguments,
    Record,
    compare,
    compare_race,
    interleaved,
    race,
    run_process,
    timed,
)


def prediction(arguments: Arguments) -> list[Record]:
    """Batch prediction in full precision and in fast mode, and its peak memory, against MONAI."""
    from benchmark_data import write_bundle, write_cases

    work = Path(arguments.work)
    shape = tuple(int(side) for side in arguments.shape.split(","))
    images = work / f"images_{arguments.shape.replace(',', 'x')}_{arguments.cases}"
    write_cases(images, shape, arguments.cases)
    bundle = write_bundle(work / "bundles" / "benchmark_ct_unet", tiny=arguments.tiny)

    def run(config: str, name: str, *more: str) -> Callable[[], dict[str, float]]:
        def measure() -> dict[str, float]:
            shutil.rmtree(work / name, ignore_errors=True)
            words = [sys.executable, "-m", "monai.bundle", "run", "--config_file"]
            words += [str(bundle / "configs" / config), "--dataset_dir", str(images)]
            words += ["--output_dir", str(work / name), *more]
            return run_process(words, work, arguments.threads)

        return measure

    variants = {
        "stock": run("stock.yaml", "stock"),
        "lean": run("inference.yaml", "lean"),
        "fast": run("inference.yaml", "fast", "--fast", "True"),
    }
    results = interleaved(variants, arguments.repeats)
    seconds, processor, memory = (
        {name: [run[kind] for run in runs] for name, runs in results.items()}
        for kind in ("wall", "processor", "memory")
    )
    work_done = {"cases": arguments.cases, "shape": shape, "unit": "s"}
    changed = differing_voxels(work / "stock", work / "lean")
    return [
        compare(
            "batch prediction, fp32",
            seconds["stock"],
            seconds["lean"],
            5.0,
            differing_voxels=changed,
            **work_done,
        ),
        compare(
            "batch prediction, fast",
            seconds["stock"],
            seconds["fast"],
            8.0,
            dice_to_fp32=dice(work / "lean", work / "fast"),
            **work_done,
        ),
        compare("processor time, fp32", processor["stock"], processor["lean"], 5.0, unit="s"),
        compare("processor time, fast", processor["stock"], processor["fast"], 8.0, unit="s"),
        compare("peak memory, fp32", memory["stock"], memory["lean"], 1 / 0.45, unit="GB"),
        compare("peak memory, fast", memory["stock"], memory["fast"], 1 / 0.45, unit="GB"),
    ]


def read_labels(path: Path) -> Any:
    import nibabel as nib
    import numpy as np

    return np.asarray(nib.load(path).dataobj).astype("uint8")


def differing_voxels(one: Path, other: Path) -> int:
    """Return how many voxels of the label maps in two folders differ."""
    return sum(
        int((read_labels(path) != read_labels(other / path.name)).sum())
        for path in sorted(one.glob("*.nii.gz"))
    )


def dice(one: Path, other: Path) -> Record:
    """Return the mean and the lowest Dice over labels and cases between two folders."""
    scores = []
    for path in sorted(one.glob("*.nii.gz")):
        first, second = read_labels(path), read_labels(other / path.name)
        for value in range(1, int(first.max()) + 1):
            a, b = first == value, second == value
            total = int(a.sum()) + int(b.sum())
            if total:
                scores.append(2 * int((a & b).sum()) / total)
    return {"mean": round(statistics.mean(scores), 5), "lowest": round(min(scores), 5)}


def slices(arguments: Arguments) -> list[Record]:
    """Slice-wise prediction of a 10 x 256 x 256 volume against a loop over its slices."""
    import numpy as np
    import torch
    from scipy.ndimage import zoom

    from medseg_kit.inference.memory import keep_freed_memory, use_channels_last
    from medseg_kit.inference.slices import SliceInferer
    from medseg_kit.networks.unet2d import UNet2D

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    size = 32 if arguments.tiny else 256
    peer_network, network = UNet2D(1, 4).eval(), UNet2D(1, 4).eval()
    network.load_state_dict(peer_network.state_dict())
    volume = np.random.default_rng(0).random((10, size, size), dtype=np.float32)

    def loop() -> Any:
        labels = np.zeros_like(volume)
        for index, picture in enumerate(volume):
            height, width = picture.shape
            resized = zoom(picture, (size / height, size / width), order=0)
            with torch.no_grad():
                answer = peer_network(torch.from_numpy(resized)[None, None])
                label = torch.argmax(torch.softmax(answer, dim=1), dim=1)[0].numpy()
            labels[index] = zoom(label, (height / size, width / size), order=0)
        return labels

    def run(*, fast: bool) -> Any:
        inferer = SliceInferer(slice_axis=0, fast=fast)
        with torch.no_grad():
            return inferer(torch.from_numpy(volume)[None, None], network).argmax(1)[0].numpy()

    expected = loop()
    keep_freed_memory()
    use_channels_last(network)
    variants = {"peer": loop, "own": lambda: run(fast=False), "fast": lambda: run(fast=True)}
    results = race(variants, max(arguments.repeats, 5))
    fast = {"peer": results["peer"], "own": results["fast"]}
    same = [float((expected == run(fast=choice)).mean()) for choice in (False, True)]
    return [
        compare_race("slice-wise prediction, fp32", results, 3.0, equal_labels=same[0]),
        compare_race("slice-wise prediction, fast", fast, 3.0, equal_labels=same[1]),
    ]


def help_text(arguments: Arguments) -> list[Record]:
    """Start-up of `medseg --help` against `import monai`."""
    del arguments
    commands = {
        "peer": [sys.executable, "-c", "import monai"],
        "own": [sys.executable, "-m", "medseg_kit.cli", "--help"],
    }
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: timed(lambda command=command: run_process(command, Path(folder), 1))
            for name, command in commands.items()
        }
        results = interleaved(runs, 5)
    return [compare("medseg --help", results["peer"], results["own"], 4.0, unit="s")]


def federated_round(arguments: Arguments) -> list[Record]:
    """A federated round of four sites in process against the same local steps without one."""
    import benchmark_federation

    peer, own = benchmark_federation.federated_round(arguments)
    return [compare("federated round, 4 sites", peer, own, 1 / 1.1, unit="s")]


def aggregation(arguments: Arguments) -> list[Record]:
    """Averaging 25 M parameters of 10 sites against a loop over a dict, both in float64."""
    import benchmark_federation

    peer, own = benchmark_federation.aggregation(arguments)
    return [compare("aggregation, 25 M parameters, 10 sites", peer, own, 2.0, unit="s")]


ROWS: dict[str, Callable[[Arguments], list[Record]]] = {
    "prediction": prediction,
    "slices": slices,
    "help": help_text,
    "round": federated_round,
    "aggregation": aggregation,
    "cross_teaching": benchmark_methods.cross_teaching,
    "mcsc": benchmark_methods.mcsc,
    "mcsc_v2": benchmark_methods.mcsc_v2,
    "pipeline": benchmark_volumes.pipeline,
    "registration": benchmark_volumes.registration,
    "superpixels": benchmark_one_shot.superpixels,
    "episode": benchmark_one_shot.episode,
    "query": benchmark_one_shot.query,
}


def parse(words: Sequence[str] | None = None) -> Arguments:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--shape", default="512,512,128", help="voxels of a CT volume")
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "medseg_benchmark"))
    parser.add_argument(
        "--tiny", action="store_true", help="smallest sizes: whether rows run, not how fast"
    )
    parser.add_argument("--out", help="JSON file for the records")
    arguments = parser.parse_args(words)
    if arguments.tiny:
        arguments.shape, arguments.cases = "64,64,32", 1
    unknown = set(arguments.rows.split(",")) - set(ROWS)
    if unknown:
        parser.error(f"unknown rows {sorted(unknown)}; choose of {', '.join(ROWS)}")
    return arguments


def main() -> None:
    arguments = parse()
    records = []
    for name in arguments.rows.split(","):
        for record in ROWS[name](arguments):
            records.append(record)
            reached = record["ratio"] >= record["goal"] and record.get("as_good", True)
            mark = "reached" if reached else "missed"
            print(f"{json.dumps(record)}  goal {mark}", flush=True)
    if arguments.out:
        machine = {"processor": platform.processor(), "cores": os.cpu_count()}
        content = {"machine": machine, "threads": arguments.threads, "records": records}
        Path(arguments.out).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
