"""The training step: a method states its losses, the base class does the rest.

A `TrainStep` is passed to MONAI's `SupervisedTrainer` as ``iteration_update``.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys

from medseg_kit.engines.precision import AMP_DTYPES, autocast
from medseg_kit.engines.schedules import Schedule, constant
from medseg_kit.typing import UserError

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer

    from medseg_kit.typing import StateDict

logger = logging.getLogger(__name__)

Losses = dict[str, torch.Tensor]
LossTerm = Callable[["SupervisedTrainer", dict[str, Any]], Losses]


class TimedTerm:
    """Base of a loss term that depends on the time; the step tells it, so it keeps no count.

    Attributes:
        global_step: Steps done before this one, over all rounds of a federation.
        total_steps: Steps planned in all.
    """

    global_step = 0
    total_steps = 1

    def on_step_start(self, global_step: int, total_steps: int) -> None:
        """Take the time over from the training step."""
        self.global_step = global_step
        self.total_steps = total_steps


class TrainStep(ABC):
    """One optimisation step; owns device, zero_grad, autocast, scaler, backward and clipping.

    Args:
        total_steps: Steps planned in all: epochs x steps an epoch, or rounds x local steps in a
            federation. Ramps and schedules run over them.
        lr_schedule: Factor on every parameter group's own learning rate.
        group_schedules: Schedules of single parameter groups in place of ``lr_schedule``, by the
            group's ``name``.
        terms: Further loss terms, e.g. FedProx's proximal term. They see the batch after `losses`,
            with what a method leaves in it. A term may have ``on_round_start(global_state)``,
            ``on_step_start`` (see `TimedTerm`), and ``state_dict`` and ``load_state_dict`` for what
            its next call depends on.
        amp: "off", "bf16" or "fp16" (autocast on the trainer's device, float32 where that has no
            fast instructions for it; keep the trainer's own ``amp: false``, which would build a new
            scaler at every run).
        clip_norm: Largest norm of the gradient; not clipped if None. A step whose gradient is not
            finite is left out with a warning either way.

    Raises:
        ValueError: For an unknown ``amp`` or a ``total_steps`` below 1.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        lr_schedule: Schedule | None = None,
        group_schedules: Mapping[str, Schedule] | None = None,
        terms: Sequence[LossTerm] = (),
        amp: str = "off",
        clip_norm: float | None = None,
    ) -> None:
        if amp not in AMP_DTYPES:
            raise ValueError(f"amp must be one of {sorted(AMP_DTYPES)}, got {amp!r}")
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        self.total_steps = total_steps
        self.global_step = 0
        self.lr_schedule = constant() if lr_schedule is None else lr_schedule
        self.group_schedules = dict(group_schedules or {})
        self.terms = list(terms)
        self.amp = amp
        self.clip_norm = clip_norm
        self.loss_names: set[str] = set()  # what was minimised since the start of the round
        self._scaler = torch.amp.GradScaler(enabled=amp == "fp16" and torch.cuda.is_available())

    @abstractmethod
    def losses(
        self, engine: SupervisedTrainer, batch: dict[str, Any]
    ) -> tuple[torch.Tensor | dict[str, torch.Tensor], Losses]:
        """Return the prediction and the named losses of a batch; their sum is minimised.

        Forwards go through ``engine.network(...)`` itself, never through ``.module``, so that
        gradients are synchronised across processes.
        """

    def step_size(self, batch: dict[str, Any]) -> float:
        """Return a factor on the learning rates of the step that a batch leads to; 1 by default."""
        del batch
        return 1.0

    def after_step(self, engine: SupervisedTrainer) -> None:
        """Update what follows the weights, e.g. an EMA teacher; nothing by default."""
        return

    def on_round_start(self, global_state: StateDict) -> None:
        """Receive the global weights of a federated round; passed on to the terms."""
        self.loss_names = set()
        for term in self.terms:
            start = getattr(term, "on_round_start", None)
            if start is not None:
                start(global_state)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on beside network and optimiser."""
        return {
            "method": type(self).__name__,
            "global_step": self.global_step,
            "scaler": self._scaler.state_dict(),
            "terms": [getattr(term, "state_dict", dict)() for term in self.terms],
            "term_names": self._term_names(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            UserError: If the state is that of another method, or of a step with other terms.
        """
        own = type(self).__name__
        check_resumed("method", state.get("method", own), own)  # none in older checkpoints
        contents = state.get("terms", [{} for _ in self.terms])  # none before terms had a state
        check_resumed("number of loss terms", len(contents), len(self.terms))
        names = self._term_names()
        check_resumed("loss terms", state.get("term_names", names), names)
        self.global_step = int(state["global_step"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        for term, content in zip(self.terms, contents, strict=True):
            getattr(term, "load_state_dict", _keep)(content)

    def _term_names(self) -> list[str]:
        return [getattr(term, "__name__", type(term).__name__) for term in self.terms]

    def __call__(self, engine: SupervisedTrainer, batchdata: dict[str, Any]) -> dict[str, Any]:
        """Run one step on ``batchdata`` and return ``image, label, pred, loss, losses``.

        Raises:
            FloatingPointError: If a loss is not finite; no weight has changed then.
        """
        batch = to_device(batchdata, engine.state.device, non_blocking=engine.non_blocking)
        engine.network.train()
        self._set_learning_rate(engine.optimizer, self.step_size(batch))
        engine.optimizer.zero_grad(set_to_none=True)
        with autocast(engine.state.device, self.amp):
            pred, losses = self.losses(engine, batch)
            for term in self.terms:
                start = getattr(term, "on_step_start", None)
                if start is not None:
                    start(self.global_step, self.total_steps)
                losses = {**losses, **term(engine, batch)}
        self.loss_names |= losses.keys()
        loss = torch.stack([value.float() for value in losses.values()]).sum()
        self._optimise(engine, loss, losses)
        self.global_step += 1
        self.after_step(engine)
        engine.state.output = {
            CommonKeys.IMAGE: batch[CommonKeys.IMAGE],
            CommonKeys.LABEL: batch.get(CommonKeys.LABEL),
            CommonKeys.PRED: pred,
            CommonKeys.LOSS: loss.detach(),
            "losses": {name: value.detach() for name, value in losses.items()},
        }
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output  # type: ignore[no-any-return]  # ignite's State is untyped

    def _optimise(self, engine: SupervisedTrainer, loss: torch.Tensor, losses: Losses) -> None:
        if not bool(torch.isfinite(loss)):
            parts = {name: float(value.detach()) for name, value in losses.items()}
            raise FloatingPointError(f"the loss of step {self.global_step} is not finite: {parts}")
        self._scaler.scale(loss).backward()
        if not self._usable_gradient(engine):
            logger.warning("step %d is left out: its gradient is not finite", self.global_step)
            return
        self._scaler.step(engine.optimizer)
        self._scaler.update()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)

    def _usable_gradient(self, engine: SupervisedTrainer) -> bool:
        """Clip the gradient where asked; return whether the optimiser may have it."""
        if self.clip_norm is not None:
            self._scaler.unscale_(engine.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(engine.network.parameters(), self.clip_norm)
        if self._scaler.is_enabled():
            return True  # the scaler looks for infinities itself and lowers its scale
        if self.clip_norm is None:
            gradients = [p.grad for p in engine.network.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        return bool(torch.isfinite(norm))

    def _set_learning_rate(self, optimizer: torch.optim.Optimizer, step_size: float) -> None:
        names = [group.get("name", "") for group in optimizer.param_groups]
        unknown = sorted(set(self.group_schedules) - set(names))
        if unknown:
            raise ValueError(
                f"group_schedules name {unknown}; the optimiser's parameter groups are {names}"
            )
        for name, group in zip(names, optimizer.param_groups, strict=True):
            schedule = self.group_schedules.get(name, self.lr_schedule)
            factor = schedule(self.global_step, self.total_steps)
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor * step_size


def check_resumed(what: str, stored: Any, configured: Any) -> None:
    """Compare what a checkpoint was written with and what is configured now.

    Args:
        what: What the two values are, in words.
        stored: Of the checkpoint.
        configured: Of the component that loads it.

    Raises:
        UserError: If they differ.
    """
    if stored != configured:
        raise UserError(
            f"the checkpoint's {what}: {stored}; that of this configuration: {configured}. Resume"
            " with the configuration that wrote the checkpoint"
        )


def _keep(_: Any) -> None:
    """Load nothing into a term without state."""


def to_device(
    batchdata: dict[str, Any], device: torch.device, *, non_blocking: bool = False
) -> dict[str, Any]:
    """Return the batch with its tensors on ``device``, plain tensors instead of MetaTensors."""
    return {
        key: _plain(value).to(device, non_blocking=non_blocking)
        if isinstance(value, torch.Tensor)
        else value
        for key, value in batchdata.items()
    }


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def annotated_classes(batch: dict[str, Any], num_classes: int) -> torch.Tensor:
    """Return which classes each case annotates, ``(B, 1 + K)``; all where the batch is silent.

    Args:
        batch: A batch with ``image`` ``(B, ...)`` and optionally ``annotated``, as the datalist
            gives it.
        num_classes: ``1 + K``.
    """
    image = batch[CommonKeys.IMAGE]
    if "annotated" not in batch:
        return torch.ones(len(image), num_classes, dtype=torch.bool, device=image.device)
    known = batch["annotated"]
    if not isinstance(known, torch.Tensor):
        known = torch.stack(list(known), dim=1)  # collated from lists: one (B,) a class
    known = known.to(image.device, torch.bool)
    if known.shape != (len(image), num_classes):
        raise ValueError(
            f"annotated has shape {tuple(known.shape)}, expected {(len(image), num_classes)}: "
            "one flag for the background and each organ of every case"
        )
    return known
