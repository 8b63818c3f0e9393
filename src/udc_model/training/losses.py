"""Training losses: functions of logits (N, K) and targets (N,), computed in float32, mean over the batch.

Only ``expected_cost`` leads to the decision of least cost by argmax for *any* cost matrix. Cross entropy and focal loss
rank the classes by probability. ``class_balanced``, ``ldam``, ``logit_adjusted`` and ``seesaw`` take class frequencies
into account, but no costs. The others distort the probabilities by the costs. The default is therefore cross entropy,
followed by calibration and the decision of least expected cost (`udc_model.decisions.decision`): it is consistent, and
the costs can change without training again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from udc_model.config import LossParams
from udc_model.training.legacy_losses import legacy_loss


def focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Focal loss ``-(1 - p_y)^gamma log p_y`` of the softmax (Lin et al. 2017, eq. 4); gamma = 0 is cross entropy."""
    log_p = logits.float().log_softmax(dim=1)
    is_target = F.one_hot(targets, logits.shape[1]).bool()
    # log(1 - p_y), from the other classes: exact where p_y rounds to 1
    log_rest = log_p.masked_fill(is_target, -torch.inf).logsumexp(dim=1)
    return -((gamma * log_rest).exp() * log_p[is_target]).mean()


def class_balanced_weights(counts: Tensor, beta: float) -> Tensor:
    """``(1 - beta) / (1 - beta^n)`` for each class, scaled to a sum of K (Cui et al. 2019, equation 2).

    beta = 0 weights all classes equally; beta near 1 weights by inverse frequency.
    """
    weights = (1 - beta) / (1 - beta ** counts.double())
    return (weights / weights.sum() * len(counts)).float()


def ldam_margins(counts: Tensor, max_margin: float) -> Tensor:
    """Margins proportional to ``n^(-1/4)``; that of the rarest class is ``max_margin`` (Cao et al. 2019, eq. 11)."""
    margins = counts.double() ** -0.25
    return (margins / margins.max() * max_margin).float()


def ldam(logits: Tensor, targets: Tensor, margins: Tensor, scale: float, weight: Tensor | None = None) -> Tensor:
    """Cross entropy of ``scale`` times the logits, the target's reduced by its margin (Cao et al. 2019, eq. 13).

    ``weight`` is the paper's deferred re-weighting of the last epochs.
    """
    lowered = logits.float() - F.one_hot(targets, logits.shape[1]) * margins[targets, None]
    return F.cross_entropy(scale * lowered, targets, weight)


def logit_adjusted(logits: Tensor, targets: Tensor, counts: Tensor, tau: float) -> Tensor:
    """Cross entropy of the logits plus ``tau`` times the log class frequency (Menon et al. 2021, eq. 10).

    The logits alone then minimise the balanced error.
    """
    return F.cross_entropy(logits.float() + tau * (counts / counts.sum()).log(), targets)


def expected_cost(logits: Tensor, targets: Tensor, costs: Tensor) -> Tensor:
    """Expected cost ``sum_j C[y, j] softmax(z)_j``, linear in the probabilities.

    Its gradient, ``p_j (C[y, j] - sum_k C[y, k] p_k)``, vanishes wherever the probabilities are near 0 and 1, right or
    wrong: a network that has settled on a class cannot leave it. So start from another loss (`warm_expected_cost`).
    """
    return (costs[targets] * logits.float().softmax(dim=1)).sum(dim=1).mean()


def warm_expected_cost(logits: Tensor, targets: Tensor, costs: Tensor, share: float) -> Tensor:
    """From cross entropy to the expected cost as ``share`` rises from 0 to 1, with costs in units of their mean.

    The unit changes no optimum; it makes the two losses and the learning rate comparable in any currency.
    """
    k = len(costs)
    scaled = costs / costs.abs().sum() * (k * (k - 1))
    return (1 - share) * F.cross_entropy(logits.float(), targets) + share * expected_cost(logits, targets, scaled)


def cost_regularized(logits: Tensor, targets: Tensor, costs: Tensor, weight: float) -> Tensor:
    """Cross entropy plus ``weight`` times the expected cost, the largest cost scaled to 1 (Galdran 2020)."""
    scaled = costs / costs.abs().max()
    return F.cross_entropy(logits.float(), targets) + weight * expected_cost(logits, targets, scaled)


def mean_mistake_costs(costs: Tensor) -> Tensor:
    """Mean cost of each class's mistakes, (K,)."""
    off_diagonal = ~torch.eye(len(costs), dtype=torch.bool, device=costs.device)
    return (costs * off_diagonal).sum(dim=1) / (len(costs) - 1)


def cost_weighted(logits: Tensor, targets: Tensor, costs: Tensor) -> Tensor:
    """Cross entropy with each sample weighted by the mean cost of its class's mistakes.

    Consistent with the cost matrix only if each row is constant off the diagonal (Elkan 2001).
    """
    return F.cross_entropy(logits.float(), targets, weight=mean_mistake_costs(costs))


class SeesawLoss:
    """Seesaw loss for long tails (Wang et al. 2021, equations 4 to 7), with its running class counts.

    ``-log [e^{z_y} / (e^{z_y} + sum_{j != y} S_yj e^{z_j})]`` with ``S = M Q``: ``M_yj = min(1, N_j / N_y)^p`` protects
    rare classes, ``Q_yj = max(1, s_j / s_y)^q`` (s the softmax, held constant) penalises mistakes. It takes class
    frequencies into account, but no costs.
    """

    def __init__(self, num_classes: int, p: float = 0.8, q: float = 2.0) -> None:
        self.p, self.q = p, q
        self.counts = torch.zeros(num_classes)

    def count(self, targets: Tensor) -> None:
        """Add the targets (N,) of a training batch to the counts."""
        self.counts = self.counts.to(targets.device) + torch.bincount(targets, minlength=len(self.counts))

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of logits (N, K)."""
        logits = logits.float()
        counts = self.counts.to(logits.device).clamp(min=1)
        log_mitigation = self.p * (counts[None, :] / counts[targets][:, None]).log().clamp(max=0)
        log_s = logits.detach().log_softmax(dim=1)
        log_compensation = self.q * (log_s - log_s.gather(1, targets[:, None])).clamp(min=0)
        # S_yy = 1, and both logarithms are 0 there.
        return F.cross_entropy(logits + log_mitigation + log_compensation, targets)


class TrainingLoss:
    """The loss that ``loss.name`` selects, callable as ``loss(logits (N, K), targets (N,))``.

    Parameters
    ----------
    params : the section ``loss``.
    costs : (K, K) cost matrix, rows true; used by cost-sensitive losses only.
    class_counts : training images of each class, at least 1; used by losses that depend on class frequencies.
    """

    def __init__(self, params: LossParams, costs: Tensor, class_counts: Sequence[int]) -> None:
        self.params = params
        self.costs = costs.float()
        self.counts = torch.tensor(class_counts, dtype=torch.float32)
        self.seesaw = SeesawLoss(len(class_counts))
        self.cost_weight = 0.0
        self.cost_share = 1.0
        self.reweights = False

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set what changes with the ``epoch`` (from 0) of ``epochs``.

        Over ``warmup_epochs`` the weight of the cost term rises linearly to ``cost_lambda``, and the share of the cost
        in ``expected_cost`` from 0 to 1. ``ldam`` re-weights the classes in the last fifth of the epochs.
        """
        self.cost_share = min(1.0, epoch / self.params.warmup_epochs) if self.params.warmup_epochs else 1.0
        share = min(1.0, (epoch + 1) / (self.params.warmup_epochs + 1))
        self.cost_weight = self.params.cost_lambda * share
        self.reweights = epoch >= 0.8 * epochs

    def start_step(self, targets: Tensor) -> None:
        """Count the targets (N,) of a whole batch, before the loss of the batch or of its parts is computed."""
        if self.params.name == "seesaw":
            self.seesaw.count(targets)

    def class_weights(self) -> Tensor | None:
        """Weight of each class in the mean, (K,); None if all samples have the same weight."""
        match self.params.name:
            case "cross_entropy" if self.params.class_weights == "balanced":
                return self.counts.sum() / (len(self.counts) * self.counts)
            case "class_balanced":
                return class_balanced_weights(self.counts, self.params.class_balanced_beta)
            case "ldam" if self.reweights:
                return class_balanced_weights(self.counts, self.params.class_balanced_beta)
            case "cost_weighted":
                return mean_mistake_costs(self.costs)
        return None

    def share(self, part: Tensor, whole: Tensor) -> float:
        """Weight of the mean loss of a part of a batch in that of the whole batch, from their targets."""
        weights = self.class_weights()
        if weights is None:
            return len(part) / len(whole)
        weights = weights.double().to(whole.device)
        return float(weights[part].sum() / weights[whole].sum())

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, a float32 scalar."""
        params, costs, counts = self.params, self.costs.to(logits.device), self.counts.to(logits.device)
        weights = self.class_weights()
        weights = weights if weights is None else weights.to(logits.device)
        match params.name:
            case "cross_entropy":
                return F.cross_entropy(logits.float(), targets, weights, label_smoothing=params.label_smoothing)
            case "focal":
                return focal(logits, targets, params.focal_gamma)
            case "class_balanced":
                return F.cross_entropy(logits.float(), targets, weights)
            case "ldam":
                margins = ldam_margins(counts, params.ldam_max_margin)
                return ldam(logits, targets, margins, params.ldam_scale, weights)
            case "logit_adjusted":
                return logit_adjusted(logits, targets, counts, params.logit_adjusted_tau)
            case "seesaw":
                return self.seesaw(logits, targets)
            case "expected_cost":
                return warm_expected_cost(logits, targets, costs, self.cost_share)
            case "cost_regularized":
                return cost_regularized(logits, targets, costs, self.cost_weight)
            case "cost_weighted":
                return cost_weighted(logits, targets, costs)
        return legacy_loss(params.name, logits, targets, costs, self.cost_weight)
