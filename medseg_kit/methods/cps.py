"""Cross pseudo supervision: two networks of one kind, started apart, teach each other.

Chen et al., CVPR 2021 (https://arxiv.org/abs/2106.01226), as in SSL4MIS.
"""

from __future__ import annotations

from typing import Any

from medseg_kit.methods.cross_teaching import CrossTeachingStep


class CrossPseudoSupervisionStep(CrossTeachingStep):
    """Cross teaching with cross-entropy against the other network's hard labels.

    Args:
        **options: Those of `SemiSupervisedStep`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(teaching_loss="cross_entropy", **options)
