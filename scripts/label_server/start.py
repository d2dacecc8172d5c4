"""Start MONAI Label on 127.0.0.1 with checked copies of the project's bundles.

Run by scripts/label_server.sh inside the environment that it sets up. Training in MONAI Label
writes into the bundle's folder, so the server works on copies below its own folder: the bundles of
the project stay as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import socket
import sys
from pathlib import Path

from check_bundle import BundleError, check_inference, takes_support, training_problems

from medseg_kit.bundle.paths import list_bundles, resolve_bundle
from medseg_kit.typing import UserError

HOST = "127.0.0.1"
COPIED_FROM = "copied-weights.sha256"
PROTOTYPES = "support_prototypes.pt"
IGNORED = shutil.ignore_patterns("models", "__pycache__", ".*")


def main() -> None:
    arguments = parse_arguments()
    try:
        work = arguments.work.expanduser().absolute()
        app = make_app(work)
        studies = make_studies(arguments.studies, work)
        check_port(arguments.port)
        names = add_bundles(arguments.bundles, app)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    command = [sys.executable, "-m", "monailabel.main", "start_server"]
    command += ["--app", str(app), "--studies", studies]
    command += ["--host", HOST, "--port", str(arguments.port)]
    for key, value in {"models": ",".join(names), "zoo_source": "local", "sam2": "false"}.items():
        command += ["--conf", key, value]
    print(
        f"serving {', '.join(names)} on http://{HOST}:{arguments.port} (files: {work})", flush=True
    )
    os.chdir(work)  # MONAI Label reads a .env file of the working directory
    os.execve(sys.executable, command, {**os.environ, "HF_HUB_OFFLINE": "1"})


def parse_arguments() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="*", help="paths or names; all bundles by default")
    parser.add_argument("--studies", help="folder, or address of a local DICOMweb server")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--work", type=Path, default=cache / "medseg_kit" / "label_server")
    return parser.parse_args()


def make_app(work: Path) -> Path:
    """Return the folder of the app: MONAI Label's own `monaibundle`, fresh from its wheel."""
    source = Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle"
    app = work / "monaibundle"
    shutil.copytree(
        source,
        app,
        ignore=shutil.ignore_patterns("logs", "model", "__pycache__"),
        dirs_exist_ok=True,
    )
    (app / "model").mkdir(exist_ok=True)
    return app


def make_studies(studies: str | None, work: Path) -> str:
    """Return the absolute folder of the studies, or the address of a DICOMweb server."""
    if studies is None:
        folder = work / "studies"
        folder.mkdir(parents=True, exist_ok=True)
        print(
            f"no --studies given: using {folder}; put images there while the server runs",
            flush=True,
        )
        return str(folder)
    if studies.startswith(("http://", "https://")):
        return studies
    folder = Path(studies).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"--studies {folder} is not a folder; create it, or give another")
    return str(folder)


def check_port(port: int) -> None:
    """Fail early if the port is taken; MONAI Label would load all models first."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"port {port} cannot be used ({error}); give another: --port N"
            ) from error


def add_bundles(names_or_paths: list[str], app: Path) -> list[str]:
    """Copy every bundle that MONAI Label can load into the app, and return their names.

    Raises:
        UserError: If no bundle is left, or two have the same name.
    """
    bundles = [resolve_bundle(item) for item in names_or_paths] or list(list_bundles().values())
    repeated = {
        bundle.name for bundle in bundles if [b.name for b in bundles].count(bundle.name) > 1
    }
    if repeated:
        raise UserError(f"bundle '{min(repeated)}' is given twice; name it once")
    served = [bundle.name for bundle in bundles if add_bundle(bundle, app / "model" / bundle.name)]
    if not served:
        raise UserError("no bundle can be served; see above for the reasons")
    return served


def add_bundle(bundle: Path, copy: Path) -> bool:
    """Copy a bundle, check the copy, and return whether MONAI Label can load it."""
    if copy.is_dir():
        for item in copy.iterdir():
            if item.name != "models":
                shutil.rmtree(item) if item.is_dir() else item.unlink()
    shutil.copytree(bundle, copy, ignore=IGNORED, dirs_exist_ok=True)
    try:
        copy_weights(bundle / "models", copy / "models")
        copy_prototypes(bundle / "models", copy / "models")
        check_inference(copy)
    except BundleError as error:
        print(f"left out {bundle.name}: {error}", file=sys.stderr, flush=True)
        return False
    for problem in training_problems(copy):
        print(
            f"{bundle.name} serves inference only, training would fail: {problem}", file=sys.stderr
        )
    if takes_support(copy) and not (copy / "models" / PROTOTYPES).is_file():
        print(
            f"{bundle.name} answers no study before it has the prototypes of an annotated scan: "
            f"`medseg support {bundle.name} --image SCAN --label LABEL --out "
            f"{bundle / 'models' / PROTOTYPES}`, then start again",
            file=sys.stderr,
        )
    return True


def copy_prototypes(source: Path, target: Path) -> None:
    """Copy a one-shot bundle's support prototypes; none in the copy if the bundle has none."""
    target.mkdir(exist_ok=True)
    if (source / PROTOTYPES).is_file():
        shutil.copyfile(source / PROTOTYPES, target / PROTOTYPES)
    else:
        (target / PROTOTYPES).unlink(missing_ok=True)


def copy_weights(source: Path, target: Path) -> None:
    """Copy the weights unless the copy was trained further on this server."""
    weights, copied, record = source / "model.pt", target / "model.pt", target / COPIED_FROM
    if not weights.is_file():
        raise BundleError("models/model.pt is missing; train the bundle first (docs/README.md)")
    target.mkdir(exist_ok=True)
    wanted = sha256(weights)
    known = record.read_text(encoding="utf-8") if record.is_file() else None
    if copied.is_file() and sha256(copied) not in (known, wanted):
        if known != wanted:
            print(
                f"{target.parent.name}: keeping the weights trained on this server although the "
                f"bundle has new ones; remove {copied} to take those",
                file=sys.stderr,
            )
        return
    shutil.copyfile(weights, copied)
    record.write_text(wanted, encoding="utf-8")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    main()
