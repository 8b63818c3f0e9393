"""Losses of the older repository, for old configurations only; new ones should use those of `losses`.

Signatures and conventions as in `losses`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from udc_model.training.losses import expected_cost


def logit_adjustment(logits: Tensor, targets: Tensor, costs: Tensor) -> Tensor:
    """Cross entropy with the largest logit of a wrong sample raised by ``C[y, argmax] |largest - target|``.

    Not consistent: a margin of zero is optimal for a wide range of posteriors.
    """
    logits = logits.float()
    largest, predicted = logits.max(dim=1)
    margin = (largest - logits.gather(1, targets[:, None])[:, 0]).abs()
    raised = torch.where(predicted == targets, torch.zeros_like(margin), costs[targets, predicted] * margin)
    return F.cross_entropy(logits + F.one_hot(predicted, logits.shape[1]) * raised[:, None], targets)


def logit_adjustment_regularized(logits: Tensor, targets: Tensor, costs: Tensor, weight: float) -> Tensor:
    """`logit_adjustment` plus ``weight`` times the expected cost, the costs scaled to [0, 1]."""
    scaled = (costs - costs.min()) / (costs.max() - costs.min())
    return logit_adjustment(logits, targets, costs) + weight * expected_cost(logits, targets, scaled)


def cost_matrix_cross_entropy(logits: Tensor, targets: Tensor, costs: Tensor) -> Tensor:
    """Cross entropy of logits scaled by ``C[argmax, y] mean|z| / std(z)``.

    It reads C transposed. If the cost is 0, as for every correct sample, the loss is log K and has no gradient.
    """
    logits = logits.float()
    scale = costs[logits.argmax(dim=1), targets] * logits.abs().mean(dim=1) / logits.std(dim=1)
    return F.cross_entropy(logits * scale[:, None], targets)
