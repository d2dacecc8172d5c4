"""Cross pseudo supervision: two networks of one kind, started apart, teach each other.

Chen et al., CVPR 2021 (https://arxiv.org/abs/2106.01226), as in SSL4MIS.
"""

from __future__ import annotations

from typing import Any

from medseg_kit.methods.cross_teaching import CrossTeachingStep


class CrossPseudoSupervisionStep(CrossTeachingStep):
    """Cross teaching with cross-entropy against the other network's hard labels.

    Args:
        teaching_loss: "cross_entropy", or "dice" (the generic equation of MCSCv2's text).
        **options: Those of `CrossTeachingStep`.
    """

    def __init__(self, *, teaching_loss: str = "cross_entropy", **options: Any) -> None:
        super().__init__(teaching_loss=teaching_loss, **options)
