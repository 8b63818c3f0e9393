"""Selects the loss by ``loss.name``: maps the name to a function of `losses` and adds class weights and schedule.

A new loss needs its function in `losses`, a case here and its name and parameters in `udc_model.config.loss`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from udc_model.config import LossParams, Params
from udc_model.decisions.frequencies import TrainingFrequencies
from udc_model.training import legacy_losses, losses


def training_frequencies(params: Params, counts: Sequence[int]) -> TrainingFrequencies:
    """The class frequencies of a training run with these numbers of images, at least 1 each.

    The network learns those of the drawn images (``train.sampling_power``), times the weights of the classes in the
    loss if they follow from their frequencies. ``logit_adjusted`` divides them out. Weights that follow from costs are
    meant to stay in the probabilities.
    """
    loss, power = params.loss, params.train.sampling_power
    images = torch.tensor(counts, dtype=torch.float64)
    learned = images**power
    match loss.name:
        case "cross_entropy" if loss.class_weights == "balanced":
            learned = learned / images
        case "class_balanced":
            learned = learned * losses.class_balanced_weights(images.float(), loss.class_balanced_beta).double()
        case "logit_adjusted":
            learned = learned / images**loss.logit_adjusted_tau
        case _ if power == 1:
            return TrainingFrequencies(counts)
    return TrainingFrequencies(counts, (learned / learned.sum()).tolist())


class TrainingLoss:
    """The loss that ``loss.name`` selects, callable as ``loss(logits (N, K), targets (N,))``.

    Parameters
    ----------
    params : the section ``loss``.
    costs : (K, K) cost matrix, rows true; used by cost-sensitive losses only.
    class_counts : number of training images of each class, at least 1; used by losses of class frequencies.
    """

    def __init__(self, params: LossParams, costs: Tensor, class_counts: Sequence[int]) -> None:
        self.params = params
        self.costs = costs.float()
        self.counts = torch.tensor(class_counts, dtype=torch.float32)
        self.seesaw = losses.SeesawLoss(len(class_counts))
        self.cost_weight = 0.0
        self.cost_share = 1.0
        self.reweights = False

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set what depends on the ``epoch`` (from 0) of ``epochs``.

        The weight of the cost term rises linearly to ``cost_lambda`` over ``warmup_epochs``, as does the share of the
        cost in ``expected_cost`` from 0 to 1. ``ldam`` re-weights the classes in the last fifth of the epochs.
        """
        self.cost_share = min(1.0, epoch / self.params.warmup_epochs) if self.params.warmup_epochs else 1.0
        share = min(1.0, (epoch + 1) / (self.params.warmup_epochs + 1))
        self.cost_weight = self.params.cost_lambda * share
        self.reweights = epoch >= 0.8 * epochs

    def start_step(self, targets: Tensor) -> None:
        """Count the targets (N,) of a complete batch, before the loss of the batch or of its parts is computed."""
        if self.params.name == "seesaw":
            self.seesaw.count(targets)

    def class_weights(self) -> Tensor | None:
        """The weight of each class in the mean, (K,); None if all samples have equal weights."""
        match self.params.name:
            case "cross_entropy" if self.params.class_weights == "balanced":
                return self.counts.sum() / (len(self.counts) * self.counts)
            case "class_balanced":
                return losses.class_balanced_weights(self.counts, self.params.class_balanced_beta)
            case "ldam" if self.reweights:
                return losses.class_balanced_weights(self.counts, self.params.class_balanced_beta)
            case "cost_weighted":
                return losses.mean_mistake_costs(self.costs)
        return None

    def share(self, part: Tensor, batch: Tensor) -> float:
        """The weight of the mean loss of a part of a batch in the mean loss of the batch, given the targets of both."""
        weights = self.class_weights()
        if weights is None:
            return len(part) / len(batch)
        weights = weights.double().to(batch.device)
        total = float(weights[batch].sum())
        return float(weights[part].sum()) / total if total else 0.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, a float32 scalar."""
        params, costs, counts = self.params, self.costs.to(logits.device), self.counts.to(logits.device)
        weights = self.class_weights()
        weights = weights if weights is None else weights.to(logits.device)
        match params.name:
            case "cross_entropy":
                return F.cross_entropy(logits.float(), targets, weights, label_smoothing=params.label_smoothing)
            case "focal":
                return losses.focal(logits, targets, params.focal_gamma)
            case "class_balanced":
                return F.cross_entropy(logits.float(), targets, weights)
            case "ldam":
                margins = losses.ldam_margins(counts, params.ldam_max_margin)
                return losses.ldam(logits, targets, margins, params.ldam_scale, weights)
            case "logit_adjusted":
                return losses.logit_adjusted(logits, targets, counts, params.logit_adjusted_tau)
            case "seesaw":
                return self.seesaw(logits, targets)
            case "expected_cost":
                return losses.warm_expected_cost(logits, targets, costs, self.cost_share)
            case "cost_regularized":
                return losses.cost_regularized(logits, targets, costs, self.cost_weight)
            case "cost_weighted":
                return losses.cost_weighted(logits, targets, costs)
            case "legacy_logit_adjustment":
                return legacy_losses.logit_adjustment(logits, targets, costs)
            case "legacy_logit_adjustment_regularized":
                return legacy_losses.logit_adjustment_regularized(logits, targets, costs, self.cost_weight)
            case "legacy_cost_matrix_cross_entropy":
                return legacy_losses.cost_matrix_cross_entropy(logits, targets, costs)
