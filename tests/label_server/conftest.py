"""A real MONAI Label server with copies of the bundles and studies of many orientations."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name that its documentation uses
import torch
import yaml
from monai.bundle import ConfigParser
from scipy.ndimage import gaussian_filter

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "scripts" / "label_server.sh"
BUNDLES = (
    "hippocampus_mr_segviz",
    "abdomen_ct_segviz",
    "cardiac_mr_mcsc",  # deploys one of the networks that it trains
    "cardiac_mr_cct_r",  # answers with the mean of two
    "abdomen_ct_semi_supervised",  # slices of a fixed orientation
)
BROKEN = "broken_ct_net"
# Small and quick, so that the whole test fits into four minutes on two cores.
SHRUNK = {
    "roi_size": [32, 32, 32],
    "image_size": 32,
    "patches": {"full": 8, "eighth": 2},
    "batch_size": 1,
    "labelled_batch_size": 1,
    "steps_per_epoch": 2,
}
PATIENCE_S = 600  # nothing here takes long on an idle machine; a loaded one gets its time
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass
class Server:
    """A running server, its studies and the folders of its bundles."""

    url: str
    studies: Path
    work: Path
    log: Path
    bundles: dict[str, Path]

    def get(self, path):
        """Return the JSON that GET answers; None for 404 (no such task yet)."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=PATIENCE_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def post(self, path, *, form=None, content=None):
        """Return the body that POST answers to a form or to JSON."""
        if form is not None:
            body, kind = urllib.parse.urlencode(form), "application/x-www-form-urlencoded"
        else:
            body, kind = json.dumps(content), "application/json"
        request = urllib.request.Request(
            f"{self.url}{path}", data=body.encode(), headers={"content-type": kind}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.read()

    def run_task(self, path, status_path, parameters):
        """Start a background task, wait for its end and fail with its last lines."""
        self.post(path, content=parameters)
        task = {"status": "SUBMITTED"}
        end = time.monotonic() + PATIENCE_S
        while task["status"] in ("SUBMITTED", "RUNNING") and time.monotonic() < end:
            time.sleep(0.5)
            task = self.get(status_path)
        assert task["status"] == "DONE", "\n".join(task.get("details", []))

    def infer(self, model, image, target):
        """Write the label map that the server returns for a study to ``target``."""
        options = {"device": "cpu", "result_dtype": "uint8"}
        query = urllib.parse.urlencode({"image": image, "output": "image"})
        answer = self.post(f"/infer/{model}?{query}", form={"params": json.dumps(options)})
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(answer)
        return target


def label_python():
    venv = Path(os.environ.get("MEDSEG_LABEL_VENV") or REPOSITORY / ".venv-label")
    return venv if (venv / "medseg-complete").is_file() else None


@pytest.fixture(scope="session", params=BUNDLES)
def bundle_name(request):
    return request.param


@pytest.fixture(scope="session")
def label_venv():
    venv = label_python()
    if venv is None:
        pytest.skip(
            "MONAI Label server: no environment; run scripts/label_server.sh --setup-only "
            "or set MEDSEG_LABEL_VENV"
        )
    return venv


@pytest.fixture(scope="session")
def bundle_copies(tmp_path_factory):
    """Small copies of the bundles, with temporary weights."""
    folder = tmp_path_factory.mktemp("bundles")
    return {name: copy_bundle(REPOSITORY / "bundles" / name, folder / name) for name in BUNDLES}


def copy_bundle(source, target):
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("checkpoint*.pt"))
    for name in ("inference.yaml", "train.yaml"):
        path = target / "configs" / name
        content = yaml.safe_load(path.read_text())
        content.update({key: value for key, value in SHRUNK.items() if key in content})
        path.write_text(yaml.safe_dump(content, sort_keys=False))
    (target / "models").mkdir(exist_ok=True)
    torch.save(balanced_state(target), target / "models" / "model.pt")
    return target


def balanced_state(bundle):
    """Random half-precision weights with which every organ wins somewhere in any image.

    Trained weights would find nothing in synthetic noise, and empty results compare equal.
    """
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.yaml")
    parser["bundle_root"], parser["device"] = str(bundle), "cpu"
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").eval()
    slices = parser.get("image_size") is not None
    noise = gaussian_filter(np.random.default_rng(0).standard_normal((32, 32, 32)), 2)
    image = torch.as_tensor(noise / noise.std(), dtype=torch.float32)[None, None]
    image = image[..., 16] if slices else image
    with torch.no_grad():
        logits = network(image)[0]
        medians = logits.flatten(1).median(1).values
        if slices:
            biases = last_biases(network, len(medians))  # of a pair, one may have none
            students = len(network.answering()) if hasattr(network, "answering") else 1
            for bias in biases:
                bias -= medians * students / len(biases)
        else:
            for head, median in zip(network.heads.values(), medians[1:], strict=True):
                last_biases(head, 2)[-1][1] -= median
    return {name: value.half() for name, value in network.state_dict().items()}


def last_biases(module, size):
    """Return the biases of ``size`` outputs."""
    named = module.named_parameters()
    return [value for name, value in named if name.endswith("bias") and value.shape == (size,)]


def rotation(axis, degrees):
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    first, second = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    matrix[[first, first, second, second], [first, second, first, second]] = (
        cosine,
        -sine,
        sine,
        cosine,
    )
    return matrix


def make_affine(spacing, axes=((1, 0, 0), (0, 1, 0), (0, 0, 1)), turn=None):
    """Voxel to world, RAS+: ``axes`` are the directions of the voxel axes."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ np.array(axes).T @ np.diag(spacing)
    affine[:3, 3] = (-20.5, 11.25, 37.0)
    return affine


STUDIES = {
    "ras": ((26, 24, 22), make_affine((1.0, 1.0, 1.0))),
    "lps": ((25, 27, 21), make_affine((1.2, 1.2, 2.0), ((-1, 0, 0), (0, -1, 0), (0, 0, 1)))),
    "sagittal": ((20, 26, 23), make_affine((1.5, 0.9, 1.1), ((0, -1, 0), (0, 0, -1), (1, 0, 0)))),
    "oblique": (
        (24, 22, 19),
        make_affine((0.9, 1.1, 2.5), turn=rotation(0, 25) @ rotation(2, -35)),
    ),
    "anisotropic": ((40, 38, 9), make_affine((0.7, 0.7, 4.0), ((-1, 0, 0), (0, 1, 0), (0, 0, -1)))),
}


@pytest.fixture(scope="session")
def studies(tmp_path_factory):
    """A folder of studies, and reference label maps under ``labels/final`` for training."""
    folder = tmp_path_factory.mktemp("studies")
    generator = np.random.default_rng(7)
    for name, (shape, affine) in STUDIES.items():
        image = nib.Nifti1Image(make_image(shape, generator), affine)
        image.set_data_dtype(np.int16)
        nib.save(image, folder / f"{name}.nii.gz")
        write_reference(folder / "labels" / "final" / f"{name}.nii.gz", shape, affine)
    image = sitk.ReadImage(folder / "oblique.nii.gz")
    sitk.WriteImage(image, folder / "nrrd_study.nrrd")
    return folder


def write_reference(path, shape, affine):
    """Two boxes of label 1 and 2: enough for every bundle to train on."""
    label = np.zeros(shape, np.uint8)
    middle = shape[0] // 2
    label[3:middle, 4:-4, 3:-3] = 1
    label[middle:-3, 4:-4, 3:-3] = 2
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(label, affine), path)


def make_image(shape, generator):
    """Smooth structures from -200 to 300, inside the window of a CT bundle."""
    noise = gaussian_filter(generator.standard_normal(shape), 2)
    return np.round(50 + noise / np.abs(noise).max() * 250).astype(np.int16)


@pytest.fixture(scope="session")
def server(label_venv, bundle_copies, studies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    served = folder / "studies"
    shutil.copytree(studies, served)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    work, log = folder / "work", folder / "server.log"
    broken = make_broken_bundle(folder / BROKEN, next(iter(bundle_copies.values())))
    command = [str(SCRIPT), str(broken), *map(str, bundle_copies.values())]
    command += ["--studies", str(served)]
    command += ["--port", str(port), "--work", str(work)]
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            env=ENVIRONMENT,
            stdout=stream,
            stderr=stream,
            cwd=folder,
            start_new_session=True,
        )
    bundles = {name: work / "monaibundle" / "model" / name for name in BUNDLES}
    running = Server(f"http://127.0.0.1:{port}", served, work, log, bundles)
    try:
        wait_for(running, process)
        yield running
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def make_broken_bundle(target, source):
    """A bundle that would stop MONAI Label's server: its network cannot be imported."""
    shutil.copytree(source, target)
    path = target / "configs" / "inference.yaml"
    content = yaml.safe_load(path.read_text())
    content["network_def"] = {"_target_": "no_such_package.Network"}
    path.write_text(yaml.safe_dump(content))
    return target


def wait_for(server, process):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            if server.get("/info/"):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server did not start:\n{server.log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def predict(studies, tmp_path_factory):
    """A function that runs ``medseg predict`` on all studies and returns the label map of each."""

    def run(bundle):
        output = tmp_path_factory.mktemp("predictions")
        command = [sys.executable, "-m", "medseg_kit.cli", "predict", str(bundle)]
        command += ["-i", str(studies), "-o", str(output), "--device", "cpu"]
        done = subprocess.run(
            command, env=ENVIRONMENT, capture_output=True, encoding="utf-8", check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return {path.name: find_prediction(output, path.name) for path in list_studies(studies)}

    return run


def list_studies(folder):
    return sorted(path for path in folder.iterdir() if path.name.endswith((".nii.gz", ".nrrd")))


def find_prediction(folder, file_name):
    stem = file_name.split(".")[0]
    found = [path for path in folder.rglob(f"{stem}*") if path.name.endswith((".nii.gz", ".nrrd"))]
    assert len(found) == 1, f"{stem}: {found} in {folder}"
    return found[0]
