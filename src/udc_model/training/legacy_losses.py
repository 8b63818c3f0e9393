"""Losses of the original repository, for old configurations only. None of them is consistent with the cost matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def legacy_loss(name: str, logits: Tensor, targets: Tensor, costs: Tensor, weight: float) -> Tensor:
    """The legacy loss of a name; ``weight`` is that of the cost term.

    Raises
    ------
    ValueError
        No loss has that name.
    """
    match name:
        case "legacy_logit_adjustment":
            return legacy_logit_adjustment(logits, targets, costs)
        case "legacy_logit_adjustment_regularized":
            return legacy_logit_adjustment_regularized(logits, targets, costs, weight)
        case "legacy_cost_matrix_cross_entropy":
            return legacy_cost_matrix_cross_entropy(logits, targets, costs)
    raise ValueError(f"no loss is called {name!r}")


def legacy_logit_adjustment(logits: Tensor, targets: Tensor, costs: Tensor) -> Tensor:
    """Cross entropy after raising a wrong sample's largest logit by ``C[y, argmax] |largest - target|``.

    Not consistent: a margin of zero is optimal for a wide range of posteriors.
    """
    logits = logits.float()
    largest, predicted = logits.max(dim=1)
    margin = (largest - logits.gather(1, targets[:, None])[:, 0]).abs()
    raised = torch.where(predicted == targets, torch.zeros_like(margin), costs[targets, predicted] * margin)
    return F.cross_entropy(logits + F.one_hot(predicted, logits.shape[1]) * raised[:, None], targets)


def legacy_logit_adjustment_regularized(logits: Tensor, targets: Tensor, costs: Tensor, weight: float) -> Tensor:
    """`legacy_logit_adjustment` plus ``weight`` times the expected cost under C scaled to [0, 1]."""
    scaled = (costs - costs.min()) / (costs.max() - costs.min())
    cost = (scaled[targets] * logits.float().softmax(dim=1)).sum(dim=1).mean()
    return legacy_logit_adjustment(logits, targets, costs) + weight * cost


def legacy_cost_matrix_cross_entropy(logits: Tensor, targets: Tensor, costs: Tensor) -> Tensor:
    """Cross entropy of logits scaled by ``C[argmax, y] mean|z| / std(z)``.

    It uses C transposed. At a cost of 0, that is for each correct sample, the loss is log K and has no gradient.
    """
    logits = logits.float()
    scale = costs[logits.argmax(dim=1), targets] * logits.abs().mean(dim=1) / logits.std(dim=1)
    return F.cross_entropy(logits * scale[:, None], targets)
