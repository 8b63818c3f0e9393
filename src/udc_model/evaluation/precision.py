"""The precision in which stage ``evaluate`` runs the model, and what it changes compared with float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udc_model.config import Params
from udc_model.data.packed import PackedSplit
from udc_model.decisions.policy import Policy
from udc_model.evaluation.metrics import Metrics

REFERENCE = "fp32"  # name of the logits in float32 among those of the splits
_COMPARED = 500  # images at most: in float32 they can take three times as long


def resolve_precision(params: Params, record: Mapping[str, Any]) -> Params:
    """Replace ``evaluate.precision: auto``: bf16 if the model was trained in it, which chose its weights, else
    fp32_fused.

    Parameters
    ----------
    record : contents of ``training/record.json``.
    """
    evaluate = params.evaluate
    if evaluate.precision != "auto":
        return params
    precision = "bf16" if record["hardware"].get("precision") == "bf16" else "fp32_fused"
    return params.model_copy(update={"evaluate": evaluate.model_copy(update={"precision": precision})})


def compared_rows(split: PackedSplit) -> NDArray[np.intp]:
    """The images of a split, at most 500 and evenly spaced, that are computed in float32 too."""
    n = len(split)
    return np.unique(np.linspace(0, n - 1, min(n, _COMPARED)).round().astype(np.intp))


@dataclass(frozen=True)
class PrecisionCheck:
    """Decisions in the precision of the evaluation, compared with those in float32.

    Parameters
    ----------
    num_images : images that were compared.
    num_different : images that are decided otherwise.
    cost_difference : mean cost per image minus that of the decisions in float32.
    """

    num_images: int
    num_different: int
    cost_difference: float

    @classmethod
    def of(
        cls,
        policy: Policy,
        logits: NDArray[np.floating],
        reference: NDArray[np.floating],
        targets: NDArray[np.integer],
    ) -> PrecisionCheck:
        """Compare the decisions by two sets of logits (N, K) of images with these classes (N,)."""
        decided, exact = policy.apply(logits).decided, policy.apply(reference).decided
        costs = policy.outcome_costs
        difference = (costs[targets, decided] - costs[targets, exact]).mean() if len(targets) else 0.0
        return cls(len(targets), int((decided != exact).sum()), float(difference))

    def to_text(self, precision: str) -> str:
        """One sentence."""
        if not self.num_different:
            return f"precision {precision}: all {self.num_images:,} calibration images are decided as in fp32"
        return (f"precision {precision}: {self.num_different:,} of {self.num_images:,} calibration images are decided "
                f"otherwise than in fp32, which changes their mean cost by {self.cost_difference:+.4f}")  # fmt: skip

    def metrics(self) -> Metrics:
        """The metrics of the run."""
        return {"precision/share_of_decisions_changed": self.num_different / max(1, self.num_images),
                "precision/mean_cost_change": self.cost_difference}  # fmt: skip
