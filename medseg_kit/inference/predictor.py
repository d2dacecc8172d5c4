"""Batch prediction: one model load, any number of cases, each on its own.

A reader thread prepares the next case and a writer thread finishes the last one while the network
runs, so at most `prefetch` + 2 cases are in memory, however many there are.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose
from torch import nn
from tqdm import tqdm

from medseg_kit.files import write_json
from medseg_kit.inference.cases import Case, find_cases
from medseg_kit.inference.device import select_device, share
from medseg_kit.inference.fingerprint import fingerprint, network_fingerprint
from medseg_kit.inference.job import Job, findings_of
from medseg_kit.inference.memory import keep_freed_memory, use_channels_last
from medseg_kit.inference.options import PredictOptions
from medseg_kit.inference.reading import Volume, digest_of, read_label, read_volume
from medseg_kit.inference.records import Outputs
from medseg_kit.inference.routes import Answer, choose_route
from medseg_kit.inference.weights import load_weights
from medseg_kit.inference.writing import write_labels, write_probabilities
from medseg_kit.typing import PathLike, UserError

logger = logging.getLogger(__name__)

_NAMED_FAILURES = 5


class Predictor:
    """Segments every image of an input and writes label maps on the images' own grids.

    For each case ``<name>.nii.gz`` and ``<name>.json`` (status, seconds by stage, volumes in ml,
    confidence, flags, warnings, hashes) are written, and ``summary.json`` for all. A case whose
    input, weights and options are unchanged is skipped. A case that cannot be read or segmented
    costs only itself.

    Args:
        network: Deployed network: in evaluation mode one tensor ``(B, 1 + K, ...)`` of logits.
        inferer: ``(volumes, network) -> logits``, such as `VolumeInferer` or `SliceInferer`. If it
            has a method ``prepare(network)``, that is called once, with the weights loaded; if its
            ``needs_label`` is true it gets the ground truth of a datalist as ``label``; its list
            ``warnings`` after a call goes into the case's record.
        preprocessing: From ``{"image": path}`` to the network's input.
        postprocessing: From ``pred`` logits to a label map on the image's grid.
        input: Folder, image, datalist or glob, see `find_cases`.
        output_dir: Where results are written.
        options: Everything else.
    """

    def __init__(
        self,
        network: nn.Module,
        inferer: Callable[..., torch.Tensor],
        preprocessing: Compose,
        postprocessing: Compose,
        *,
        input: PathLike,
        output_dir: PathLike,
        options: PredictOptions | None = None,
    ) -> None:
        self.network = network
        self.inferer = inferer
        self.input = input
        self.outputs = Outputs(Path(output_dir))
        self.options = options or PredictOptions()
        self.route = choose_route(preprocessing, postprocessing)
        self._settings = fingerprint(
            {
                "inferer": inferer,
                "preprocessing": preprocessing,
                "postprocessing": postprocessing,
                "organs": self.options.organs,
                "save_probabilities": self.options.save_probabilities,
            }
        )

    def run(self) -> dict[str, Any]:
        """Predict and return the summary; the entry point of `inference.yaml`.

        Raises:
            SystemExit: With one line instead of a stack trace, if anything the user can mend is
                wrong or a case failed: the process ends with code 1.
        """
        try:
            return self.predict()
        except UserError as error:
            raise SystemExit(f"error: {error}") from error

    def predict(self) -> dict[str, Any]:
        """Predict and return the summary that was written.

        Raises:
            UserError: If input, options or weights are wrong, or, after all others are done, if
                cases failed; names them.
        """
        start = time.perf_counter()
        cases = find_cases(self.input, section=self.options.section, exclude=self.outputs.folder)
        self.outputs.check_distinct(cases)
        parts, part = share(self.options.num_parts, self.options.part_id)
        mine = cases[part::parts]
        device = self._prepare_network()
        self.outputs.check_writable()  # makes the folder, so only for weights that fit
        hashes = {"weights": network_fingerprint(self.network), "options": self._settings}
        logger.info("%d of %d cases on %s", len(mine), len(cases), device)
        counts = {"done": 0, "skipped": 0, "failed": 0}
        failures: list[str] = []
        for job in self._process(mine, device, hashes):
            state = "failed" if job.error else "skipped" if job.is_finished else "done"
            counts[state] += 1
            if job.error:
                failures.append(f"{job.case.name} ({job.error})")
        seconds = round(time.perf_counter() - start, 3)
        summary = self.outputs.write_summary(cases, {**counts, "seconds": seconds})
        logger.info("%s in %.1f s", counts, seconds)
        if failures:
            named = "; ".join(failures[:_NAMED_FAILURES])
            more = "; ..." if len(failures) > _NAMED_FAILURES else ""
            raise UserError(
                f"{len(failures)} of {len(mine)} cases failed: {named}{more}. "
                + ("The others are done; r" if len(failures) < len(mine) else "R")
                + f"un again when these are mended. Details: {self.outputs.folder}/<case>.json"
            )
        return summary

    def _prepare_network(self) -> torch.device:
        device = select_device(self.options.device)
        if self.options.checkpoint is not None:
            load_weights(self.network, self.options.checkpoint)
        self.network.eval().to(device)
        prepare = getattr(self.inferer, "prepare", None)
        if prepare is not None:  # what an inferer needs of the network and its weights
            prepare(self.network)
        if device.type == "cpu":
            keep_freed_memory()
            use_channels_last(self.network)
        return device

    def _process(
        self, cases: Sequence[Case], device: torch.device, hashes: dict[str, str]
    ) -> Iterator[Job]:
        """Yield the jobs as they end, in order; the progress bar counts them."""
        waiting = deque(cases)
        reading: deque[Future[Job]] = deque()
        writing: deque[Future[Job]] = deque()
        with _workers(device) as (reader, writer), self._progress_bar(len(cases)) as bar:
            while waiting or reading:
                while waiting and len(reading) < self.options.prefetch:
                    reading.append(reader.submit(self._read, Job(waiting.popleft()), hashes))
                job = reading.popleft().result()
                if waiting:
                    reading.append(reader.submit(self._read, Job(waiting.popleft()), hashes))
                self._infer(job, device)
                if writing:
                    yield writing.popleft().result()
                    bar.update()
                writing.append(writer.submit(self._write, job, device))
                del job
            for future in writing:
                yield future.result()
                bar.update()

    def _read(self, job: Job, hashes: dict[str, str]) -> Job:
        with job.stage("read"):
            digest = digest_of(job.case.files)
            job.hashes = {"input": digest, **hashes}
            finished = self.outputs.is_finished(
                job.case, job.hashes, save_probabilities=self.options.save_probabilities
            )
            job.is_finished = finished and not self.options.overwrite
            if job.is_finished:
                return job
            job.volume = read_volume(job.case, digest)
        if job.volume is not None:
            with job.stage("prepare"):
                job.image, job.state = self.route.prepare(job.case, job.volume)
                if not torch.isfinite(job.image).all():
                    raise UserError("preprocessing made voxels that are NaN or infinite")
                if getattr(self.inferer, "needs_label", False):
                    job.label = read_label(job.case, job.image)
        return job

    def _infer(self, job: Job, device: torch.device) -> None:
        if job.image is None or job.error:
            return
        with job.stage("network"), torch.no_grad():
            extra = {} if job.label is None else {"label": job.label[None].to(device)}
            logits = self.inferer(job.image[None].to(device), self.network, **extra)
            job.logits = torch.as_tensor(logits[0]).as_subclass(torch.Tensor)
            job.warnings = list(getattr(self.inferer, "warnings", ()))

    def _write(self, job: Job, device: torch.device) -> Job:
        if job.is_finished:
            return job
        prediction = None
        if job.logits is not None and job.volume is not None and not job.error:
            with job.stage("finish"):
                prediction = self._write_results(job, job.volume, Answer.of(job.logits))
        if job.error and not job.hashes and self.outputs.is_done(job.case):
            # nothing is known about the input now, for example a share that is away: what it gave
            # before stays
            job.release()
            return job
        if job.error:
            prediction = None
            self.outputs.discard(job.case)
        record = job.record(prediction=prediction, route=self.route.name, device=device)
        write_json(self.outputs.record(job.case), record)
        job.release()
        return job

    def _write_results(self, job: Job, volume: Volume, answer: Answer) -> Path:
        labels = self.route.finish(answer, job.state)
        if labels.shape != volume.array.shape:
            raise ValueError(
                f"the label map has shape {labels.shape}, the image {volume.array.shape}; "
                "postprocessing needs an Invertd for every spatial step of preprocessing"
            )
        names = self.options.label_names(len(answer.logits))
        job.findings = findings_of(
            labels, answer, volume, names, spacing_lost=job.case.spacing_lost
        )
        job.findings["warnings"] += job.warnings
        if self.options.save_probabilities:
            write_probabilities(
                self.outputs.probabilities(job.case),
                self.route.probabilities(answer, job.state),
                volume,
                count=len(answer.logits),
            )
        path = self.outputs.labels(job.case)
        write_labels(path, labels, volume)
        return path

    def _progress_bar(self, total: int) -> Any:
        hidden = not self.options.progress or os.environ.get("RANK", "0") != "0"
        return tqdm(total=total, unit="case", desc="predict", disable=hidden)


@contextmanager
def _workers(device: torch.device) -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor]]:
    """Return one reader and one writer thread, which on the CPU leave the cores to the network.

    What they have not begun is dropped when the block is left by an error or an interrupt.
    """

    def limit_threads() -> None:
        if device.type == "cpu":
            torch.set_num_threads(1)

    reader = ThreadPoolExecutor(1, "reader", initializer=limit_threads)
    writer = ThreadPoolExecutor(1, "writer", initializer=limit_threads)
    try:
        yield reader, writer
    finally:
        reader.shutdown(cancel_futures=True)
        writer.shutdown()
