"""Whether a training run is worth its time: compares it with predictions that do not look at the image."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from udc_model.config import CostParams, Params
from udc_model.decisions.actions import action_costs
from udc_model.decisions.decision import normalised_cost
from udc_model.decisions.frequencies import TrainingFrequencies
from udc_model.decisions.matrix import class_prior, cost_matrix
from udc_model.decisions.policy import Policy
from udc_model.training.session import EpochRecord, TrainingSession

# Losses that are a (weighted) mean over samples of a function of the probability of the true class.
_OF_PROBABILITIES = ("cross_entropy", "focal", "class_balanced", "cost_weighted")
_FEWEST_EPOCHS = 3
_MOST_IMAGES = 5_000  # whose cost is displayed: more would only take longer
_TEMPERATURES = tuple(2.0**power for power in range(1, 10))
_LOW_RATE, _HIGH_RATE = 1e-5, 1e-2  # learning rates of adamw; ten times these of sgd


class DisplayedCost:
    """The normalised cost of the decisions of least expected cost on validation logits; it changes no result.

    A network can be right more often than not and still too sure of itself. If its decisions cost more than the best
    constant one, the cost is that under the temperature with which they cost least.

    Parameters
    ----------
    costs : the costs of the decisions, which a training run without cost-sensitive loss does not use.
    training : class frequencies of training.
    """

    def __init__(self, costs: CostParams, classes: list[str], training: TrainingFrequencies) -> None:
        prior = class_prior(costs, classes, training.images)
        self._policy = Policy(
            classes,
            cost_matrix(costs, classes).tolist(),
            refer=costs.refer,
            deployment_prior=None if prior is None else prior.tolist(),
            actions=action_costs(costs, classes),
            training_prior=training.training_prior,
            learned_prior=training.learned_prior,
        )

    def __call__(self, logits: NDArray[np.float32], labels: NDArray[np.integer]) -> float | None:
        """The cost for logits (N, K) and their labels (N,), of 5,000 images at most, evenly spread.

        None if a constant decision costs nothing, or if a logit is not finite.
        """
        if not np.isfinite(logits).all():
            return None
        every = -(-len(logits) // _MOST_IMAGES)
        logits, labels = logits[::every], labels[::every]
        cost = self._of(logits, labels)
        if cost is None or cost <= 1:
            return cost
        return min(cost, *(self._of(logits / temperature, labels) or 0.0 for temperature in _TEMPERATURES))

    def _of(self, logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float | None:
        policy = self._policy
        decided = policy.apply(logits).decided
        return normalised_cost(labels, decided, policy.outcome_costs, policy.weights(labels))


def constant_loss(session: TrainingSession) -> float | None:
    """The training loss of a network that predicts the class frequencies, whatever the image.

    For cross entropy it is the entropy of the training labels. Frequencies and mean are those of the loss, with its
    class weights and with ``train.sampling_power``. MixUp and CutMix do not change it: their loss is linear in the
    targets. None for a loss of which class frequencies are not the best constant prediction.
    """
    loss_fn, params = session.loss_fn, session.params
    if loss_fn.params.name not in _OF_PROBABILITIES:
        return None
    counts = torch.bincount(torch.from_numpy(session.train_split.labels), minlength=session.model.config.num_labels)
    present = counts > 0
    shares = torch.where(present, counts.double() ** params.train.sampling_power, 0.0)
    weights = loss_fn.class_weights()
    if weights is not None:
        shares = shares * weights.double()
    shares = shares / shares.sum()
    logits = shares.clamp(min=1e-12).log().float()
    losses = [float(loss_fn(logits[None], torch.tensor([k]))) if present[k] else 0.0 for k in range(len(counts))]
    return float((shares * torch.tensor(losses, dtype=torch.float64)).sum())


def check_epoch(params: Params) -> int:
    """The epoch (from 1) after which `hopeless` is asked: a third of all, at least the third."""
    return max(_FEWEST_EPOCHS, -(-params.train.epochs // 3))


def hopeless(session: TrainingSession, record: EpochRecord, least_cost: float | None) -> str | None:
    """Why a training run will probably not succeed, with the two likeliest causes; None if nothing speaks for it.

    Parameters
    ----------
    record : of the epoch `check_epoch`.
    least_cost : least normalised cost on the validation split of the epochs so far; None if it is not known.
    """
    loss, constant = record.metrics["train_loss"], constant_loss(session)
    if constant is not None and loss >= constant:
        return (f"after epoch {record.epoch} the training loss, {loss:.4f}, is no better than that of the class "
                f"frequencies, {constant:.4f}: {_causes(session.params, has_learned=False)}")  # fmt: skip
    if least_cost is not None and least_cost > 1:
        return (f"after epoch {record.epoch} the decisions on the validation split still cost {least_cost:.2f} times "
                f"as much as the best constant decision: {_causes(session.params, has_learned=True)}")  # fmt: skip
    return None


def _causes(params: Params, *, has_learned: bool) -> str:
    """The two likeliest causes that fit the parameters."""
    train = params.train
    scale = 1 if train.optimizer == "adamw" else 10
    causes = []
    if train.learning_rate > scale * _HIGH_RATE:
        causes.append(f"train.learning_rate, {train.learning_rate:g}, is too high")
    if train.learning_rate < scale * _LOW_RATE:
        causes.append(f"train.learning_rate, {train.learning_rate:g}, is too low")
    if train.num_frozen_stages and params.model.weights is None:
        causes.append("train.num_frozen_stages freezes random weights")
    elif train.num_frozen_stages == "all":
        causes.append("train.num_frozen_stages: all trains the head only, on features that do not separate the classes")
    if has_learned:
        causes += ["the labels of the validation images do not fit those of training", "the training images are "
                   "learned by heart (more images or train.augment)"]  # fmt: skip
    causes.append("the labels do not belong to the images (look at training/augmented.png)")
    causes.append("train.learning_rate does not fit (udc find-lr)")
    return "either " + ", or ".join(causes[:2])
