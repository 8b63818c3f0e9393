"""How often verdicts and guarantees are wrong: comparisons of equal models, recall floors and cost ceilings.

    python benchmarks/verdicts.py [--draws 1000] [--output benchmarks/verdicts.csv]

Comparisons: pairs of models that cost the same on average, once exchangeable and once not (B saves 1 often and loses 20
rarely), and of models of which B makes 30% fewer mistakes. Subgroups: five sites of unequal size, equal or not, each
compared with the rest as `evaluate` does. Guarantees: a policy is fitted on a calibration split, with
calibration and guarantee as `evaluate` does. The split is drawn from 60,000 images in groups of six, with replacement,
so that these images are the truth.
Each setting is a row of the output as soon as it is measured; rows that exist are not measured again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from results_table import ResultsTable
from scipy.special import log_softmax
from scipy.stats import binom
from tqdm import tqdm

from udc_model.config import Params
from udc_model.decisions.frequencies import TrainingFrequencies
from udc_model.decisions.policy import Policy, fit_policy
from udc_model.errors import UdcError
from udc_model.evaluation.comparison import cost_test
from udc_model.evaluation.intervals import difference_draws, two_sided_p_value
from udc_model.evaluation.paired_test import holm

COLUMNS = ("question", "setting", "images", "group", "draws", "share", "allowed", "not_proved")
SIZES = (12, 20, 30, 60, 120)  # units of each site
SITES = {  # probabilities of costs 1 and 20 in the third site, and in the others
    "equal, rare mistakes": ((0.02, 0.002), (0.02, 0.002)),
    "equal, frequent mistakes": ((0.1, 0.1), (0.1, 0.1)),
    "equal on average, the third loses rarely": ((0.0, 0.02), (0.4, 0.0)),
    "the third costs three times as much": ((0.1, 0.3), (0.1, 0.1)),
}
CLASSES = ["benign", "melanoma", "carcinoma"]
MATRIX = np.array([[0.0, 1.0, 1.0], [4.0, 0.0, 2.0], [3.0, 2.0, 0.0]])
GUARANTEES: dict[str, dict[str, Any]] = {
    "one class": {"recall_floor": {"class": "melanoma", "floor": 0.88}},
    "a set": {"recall_floor": {"class": ["melanoma", "carcinoma"], "floor": 0.95}},
    "two floors": {"recall_floor": [{"class": ["melanoma", "carcinoma"], "floor": 0.94},
                                    {"class": "melanoma", "floor": 0.82}]},
    "cost ceiling": {"cost_ceiling": {"ceiling": 0.35}},
}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    table = ResultsTable(options.output, COLUMNS)
    for n in (60, 2000):
        for rate in (0.01, 0.20):
            for kind in ("equal, exchangeable", "equal, B loses rarely", "B makes 30% fewer mistakes"):
                verdicts(table, options.draws, n, rate, kind)
    for size in (1, 4):
        for kind in SITES:
            subgroups(table, options.draws, size, kind)
    for size, n in ((1, 900), (6, 1800)):
        for name in GUARANTEES:
            guarantees(table, options.draws, 2 * n if name == "cost ceiling" else n, size, name)
    print(pd.DataFrame(table.rows).to_string(index=False))  # noqa: T201


def verdicts(table: ResultsTable, draws: int, n: int, rate: float, kind: str) -> None:
    """Share of pairs of which one is called cheaper."""
    question, setting = ("cheaper" if "fewer" in kind else "cheaper (wrongly)"), f"{kind}, rate {rate:g}"
    if table.has(question=question, setting=setting, images=n, draws=draws):
        return
    rng, called = np.random.default_rng(n), 0
    for i in tqdm(range(draws), desc=f"{setting}, {n} images", disable=None, leave=False):
        if "loses rarely" in kind:  # A costs 1 with the rate, B 20 with a twentieth of it
            a, b = (rng.random(n) < rate) * 1.0, (rng.random(n) < rate / 20) * 20.0
        else:
            rates = (rate, 0.7 * rate if "fewer" in kind else rate)
            a, b = ((rng.random(n) < each) * rng.choice([1.0, 20.0], n, p=[0.5, 0.5]) for each in rates)
        costs = np.array([[0.0, 1.0, 20.0], [1.0, 0.0, 20.0], [20.0, 20.0, 0.0]])
        cost = cost_test(_table(a), _table(b), costs, seed=i)
        called += cost.p_value is not None and cost.p_value <= 0.05 and cost.difference != 0
    allowed = "" if "fewer" in kind else f"{binom.ppf(0.99, draws, 0.05) / draws:.3f}"
    table.append(question, setting, n, 1, draws, called / draws, allowed, 0)


def subgroups(table: ResultsTable, draws: int, size: int, kind: str) -> None:
    """Share of test splits in which a site is said to differ from the rest; images of a group cost the same."""
    question, setting = f"subgroup differs{'' if 'three' in kind else ' (wrongly)'}", f"{kind}, groups of {size}"
    site, n = np.repeat(np.arange(len(SIZES)), SIZES), sum(SIZES)
    if table.has(question=question, setting=setting, images=n * size, group=size, draws=draws):
        return
    rng, called, probabilities = np.random.default_rng([len(kind), size]), 0, SITES[kind]
    for _ in tqdm(range(draws), desc=setting, disable=None, leave=False):
        p = np.where(site[:, None] == 2, probabilities[0], probabilities[1])  # of costs 1 and 20
        u = rng.random(n)
        paid = size * np.where(u < p[:, 1], 20.0, np.where(u < p.sum(axis=1), 1.0, 0.0))
        sizes, is_in = np.full(n, float(size)), site == np.arange(len(SIZES))[:, None]
        p_values = []
        for here in is_in:
            sums, counts = (paid * here, paid * ~here), (sizes * here, sizes * ~here)
            p_values.append(two_sided_p_value(difference_draws(sums, counts, 0.0, 20.0)))
        called += min(holm(p_values)) <= 0.05
    allowed = "" if "three" in kind else f"{binom.ppf(0.99, draws, 0.05) / draws:.3f}"
    table.append(question, setting, n * size, size, draws, called / draws, allowed, 0)


def _table(paid: NDArray[np.float64]) -> pd.DataFrame:
    decided = np.array(["a", "b", "c"], dtype=object)[np.searchsorted([0.0, 1.0, 20.0], paid)]
    return pd.DataFrame({"path": np.arange(len(paid)).astype(str), "sha256": "", "group": "", "true": "a",
                         "predicted": decided, "cost_paid": paid, "weight": 1.0})  # fmt: skip


def population(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Logits of an overconfident model and classes of 60,000 images.

    The six images of a group share the class and half of what the model sees.
    """
    shares = np.array([0.6, 0.2, 0.2])
    y = rng.choice(3, 10_000, p=shares).repeat(6)
    seen = (rng.normal(size=(10_000, 3)).repeat(6, axis=0) + rng.normal(size=(60_000, 3))) / np.sqrt(2)
    return 2.0 * log_softmax(1.6 * (seen + 1.6 * np.eye(3)[y]) + np.log(shares), axis=1), y


def guarantees(table: ResultsTable, draws: int, n: int, size: int, name: str) -> None:
    """Share of the fitted policies that violate what they guarantee."""
    if table.has(question="guarantee violated", setting=name, images=n, group=size, draws=draws):
        return
    decision = "cost_ceiling" if name == "cost ceiling" else "recall_floor"
    costs = {"matrix": MATRIX.tolist(), "preset": "uniform"} | ({"refer": 0.5} if decision == "cost_ceiling" else {})
    evaluate = GUARANTEES[name] | {"decision": decision}
    params = Params.model_validate({"costs": costs, "evaluate": evaluate})
    (logits, y), rng = population(np.random.default_rng(0)), np.random.default_rng(n)
    violated = not_proved = 0
    for _ in tqdm(range(draws), desc=f"{name}, groups of {size}", disable=None, leave=False):
        drawn = (rng.integers(0, len(y) // size, n // size)[:, None] * size + np.arange(size)).ravel()
        groups = None if size == 1 else np.arange(n) // size
        try:
            policy = fit_policy(
                params.evaluate, params.costs, CLASSES, TrainingFrequencies([6, 2, 2]), logits[drawn], y[drawn], groups
            )
        except UdcError:
            not_proved += 1
            continue
        violated += is_violated(policy, logits, y)
    allowed = f"{binom.ppf(0.99, draws, 0.05) / draws:.3f}"
    table.append("guarantee violated", name, n, size, draws, violated / draws, allowed, not_proved)


def is_violated(policy: Policy, logits: NDArray[np.float64], y: NDArray[np.intp]) -> bool:
    """Whether a recall or the mean cost is on the wrong side."""
    decided = policy.apply(logits).decided
    if policy.cost_ceiling is not None:
        return bool(policy.outcome_costs[y, decided].mean() > policy.cost_ceiling["ceiling"])
    stated = policy.recall_floor or []
    for floor in [stated] if isinstance(stated, dict) else stated:
        names = [floor["class"]] if isinstance(floor["class"], str) else floor["class"]
        classes = [CLASSES.index(each) for each in names]
        if np.isin(decided[np.isin(y, classes)], classes).mean() < floor["floor"]:
            return True
    return False


if __name__ == "__main__":
    main()
