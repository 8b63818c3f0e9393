"""Estimated class frequencies: cost of the decisions, coverage of the interval, and warnings.

    python benchmarks/prior.py [--draws 100]

Images of three classes are drawn from normal distributions, a policy is fitted on a calibration split as `evaluate`
does, and test sets have another frequency of the costly class, 0.15 in training. The last two columns are warnings
about test sets of the right images, and about ones with a shifted feature.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from udc_model.config import CostParams, EvaluateParams
from udc_model.decisions.decision import mean_cost
from udc_model.decisions.frequencies import TrainingFrequencies
from udc_model.decisions.policy import Policy, fit_policy
from udc_model.evaluation.estimated_prior import with_estimated_prior
from udc_model.evaluation.redecision import under_costs_of

CLASSES = ["costly", "first", "second"]
TRAINING = np.array([0.15, 0.5, 0.35])
MEANS = np.array([[0.0, 0.0, 2.2], [2.2, 0.0, 0.0], [0.0, 2.2, 0.0]])
COSTS = CostParams(matrix=[[0.0, 10.0, 10.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
SCALE = 1.7  # of the logits of a network that is too confident
Draw = tuple[NDArray[np.intp], NDArray[np.float64]]


def draw(rng: np.random.Generator, prior: NDArray[np.float64], n: int, shift: float = 0.0) -> Draw:
    """Classes and logits of n images."""
    targets = rng.choice(3, n, p=prior)
    images = MEANS[targets] + rng.standard_normal((n, 3)) + np.array([0.0, shift, shift])
    return targets, SCALE * (images @ MEANS.T - (MEANS**2).sum(axis=1) / 2 + np.log(TRAINING))


def measure(share: float, n: int, calibration_images: int, draws: int) -> str:
    """One row: mean costs with the true, estimated and training's frequencies, coverage, share of warnings."""
    rng = np.random.default_rng(0)
    prior = np.array([share, *(TRAINING[1:] * (1 - share) / TRAINING[1:].sum())])
    costs, covered, warned = np.zeros(3), 0, np.zeros(2)
    for _ in range(draws):
        known, logits = draw(rng, TRAINING, calibration_images)
        policy = fit_policy(EvaluateParams(), COSTS, CLASSES, TrainingFrequencies(TRAINING.tolist()), logits, known)
        table = pd.DataFrame({f"logit_{name}": logits[:, k] for k, name in enumerate(CLASSES)})
        table = table.assign(true=np.array(CLASSES)[known], group="")
        targets, logits = draw(rng, prior, n)
        estimated, text = with_estimated_prior(policy, logits, table)
        low, _, high = text.split("costly")[1].split("\n")[0].split()[2:5]
        covered += float(low) <= share <= float(high)
        exact = under_costs_of(Policy(CLASSES, policy.class_costs, deployment_prior=prior.tolist()), policy, None)
        for i, each in enumerate((exact, estimated, policy)):
            costs[i] += mean_cost(targets, each.apply(logits).decided, policy.outcome_costs) / draws
        other = with_estimated_prior(policy, draw(rng, prior, n, 1.5)[1], table)[1]
        warned += ["warning:" in text, "warning:" in other]
    excess = costs[1] / costs[0] - 1
    cells = (f"{share:>5} {n:>6} {calibration_images:>6}", "  {:.4f} {:.4f} {:.4f}".format(*costs), f"{excess:+.1%}",
             f"{covered}/{draws}", f"{warned[0] / draws:.2f}", f"{warned[1] / draws:.2f}")  # fmt: skip
    return "   ".join(cells)


def main() -> None:
    """Measure all settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100)
    draws = parser.parse_args().draws
    sys.stdout.write(
        "share images calib.   cost: true, estimated, training's; excess; covered; warned: right, shifted\n"
    )
    for share, n, calibration in ((0.03, 1000, 600), (0.75, 1000, 600), (0.03, 300, 200), (0.75, 300, 200)):
        sys.stdout.write(measure(share, n, calibration, draws) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
