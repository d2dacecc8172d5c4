"""Best-registration selection: which labelled volume lends an unlabelled one its label.

CCT-R (thesis, equations 6.9 and 6.10): the one with which the volume's round trip agrees best.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import SimpleITK

from medseg_kit.registration.cases import RegistrationCase
from medseg_kit.registration.resampling import mutual_information, round_trip
from medseg_kit.registration.store import PairStore
from medseg_kit.registration.volumes import read_image
from medseg_kit.typing import UserError

MIN_COVERAGE = 0.2
CHOICES = ("best", "random")


@dataclass(frozen=True)
class Rule:
    """How a volume gets its labelled volume.

    Attributes:
        choice: "best", or "random": any whose label can be warped, drawn by the volume's key (the
            ablation without selection).
        rmse_weight: Weight of the RMSE in the score.
        information_weight: Weight of the mutual information, negative because it is a similarity
            and the smallest score wins.

    Raises:
        UserError: For another ``choice``.
    """

    choice: str = "best"
    rmse_weight: float = 1.0
    information_weight: float = -1.0

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise UserError(f"choice is {self.choice!r}; choose one of {list(CHOICES)}")


BEST = Rule()


@dataclass(frozen=True)
class Score:
    """How well the round trip from a volume over a labelled one agrees with the volume.

    Attributes:
        labelled: Key of the labelled volume.
        score: ``w_rmse * rmse + w_mi * mutual information``, see `Rule`; the smallest wins.
        rmse: Over the voxels that stayed inside both grids, intensities in [0, 1].
        mutual_information: Of those voxels, normalised by their entropy in the volume.
        coverage: Share of those voxels.
    """

    labelled: str
    score: float
    rmse: float
    mutual_information: float
    coverage: float


def score_images(
    target: SimpleITK.Image,
    other: SimpleITK.Image,
    there: SimpleITK.Transform,
    back: SimpleITK.Transform,
    *,
    labelled: str = "",
    rule: Rule = BEST,
) -> Score:
    """Return the score of a round trip.

    Args:
        target: Volume v_j, intensities in [0, 1].
        other: Labelled volume q.
        there: A(q, j).
        back: A(j, q).
        labelled: Key of q.
        rule: Weights of the score.
    """
    returned, inside = round_trip(target, other, there, back)
    image = SimpleITK.GetArrayFromImage(target)
    first, second = image[inside], returned[inside]
    rmse = float(np.sqrt(np.square(first - second).mean())) if len(first) else 1.0
    information = mutual_information(first, second)
    score = rule.rmse_weight * rmse + rule.information_weight * information
    return Score(labelled, score, rmse, information, float(inside.mean()))


def choose(scores: Sequence[Score]) -> Score | None:
    """Return the best score; None where none covers 20 % of the volume. Ties: the smaller RMSE.

    Args:
        scores: One a labelled volume.
    """
    usable = [score for score in scores if score.coverage >= MIN_COVERAGE]
    return min(usable, key=lambda score: (score.score, score.rmse), default=None)


def select(
    store: PairStore,
    target: RegistrationCase,
    candidates: Sequence[RegistrationCase],
    *,
    rule: Rule = BEST,
) -> dict[str, Any]:
    """Return which labelled volume a target takes its label from, and all scores.

    With one labelled volume of the target's frame there is nothing to choose: it is taken if its
    label can be warped at all, and the scores only say how good that is.

    Args:
        store: The registered pairs.
        target: Volume without a usable label.
        candidates: Labelled volumes.
        rule: How one is chosen.

    Returns:
        ``case``, ``chosen`` (key or None), ``reason`` (why none), ``scores``.
    """
    same = [case for case in candidates if case.matches(target)]
    scores = [score for case in same if (score := _score(store, target, case, rule)) is not None]
    chosen: str | None = None
    if len(same) == 1 or rule.choice == "random":
        chosen = _any(target, [case.key for case in same if store.record(target, case) is not None])
    elif best := choose(scores):
        chosen = best.labelled
    reason = None if chosen else _reason(same, scores)
    ranked = sorted(scores, key=lambda score: (score.score, score.rmse))
    return {
        "case": target.key,
        "chosen": chosen,
        "reason": reason,
        "scores": [{k: _rounded(v) for k, v in asdict(score).items()} for score in ranked],
    }


def _score(
    store: PairStore, target: RegistrationCase, labelled: RegistrationCase, rule: Rule
) -> Score | None:
    there, back = store.transform(labelled, target), store.transform(target, labelled)
    if there is None or back is None:
        return None
    image, other = (read_image(case, store.modality) for case in (target, labelled))
    return score_images(image, other, there, back, labelled=labelled.key, rule=rule)


def _any(target: RegistrationCase, keys: Sequence[str]) -> str | None:
    digest = hashlib.sha256(target.key.encode()).digest()
    return keys[int.from_bytes(digest[:8], "big") % len(keys)] if keys else None


def _reason(same: Sequence[RegistrationCase], scores: Sequence[Score]) -> str:
    if not same:
        return "no labelled volume of its frame"
    if not scores:
        return "no registration with a labelled volume succeeded in both directions"
    return f"no round trip covers {MIN_COVERAGE:.0%} of the volume"


def _rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value
