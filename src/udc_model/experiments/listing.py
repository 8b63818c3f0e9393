"""Experiments side by side: what git and DVC's cache have of each, and whether its cost is below that of the first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from udc_model.decisions.policy import POLICY_FILE, Policy, all_outcome_costs
from udc_model.errors import UdcError
from udc_model.evaluation.comparison import cost_test
from udc_model.evaluation.paired_test import holm
from udc_model.evaluation.tables import read_predictions
from udc_model.experiments.results import cost_difference
from udc_model.experiments.stored import DvcCache
from udc_model.experiments.values import flat, flat_values
from udc_model.tracking.links import dvc_experiments, outs_of
from udc_model.tracking.lookup import commit_of
from udc_model.tracking.provenance import git, stages_of

LEVEL = 0.05  # of all paired tests of a table together, by Holm's method
COST = "test/mean_cost"
WORKSPACE = "workspace"
OTHER_COSTS, OTHER_IMAGES, NOT_CACHED = "other costs", "other images", "not in the cache"  # why there is no test


@dataclass
class Experiment:
    """One row of the table.

    Parameters
    ----------
    name : of the DVC experiment or git revision, or ``workspace``.
    commit : empty for the workspace.
    params : values by full name, with which the result was made.
    metrics : numbers of ``metrics.json``, as ``test/mean_cost``.
    outs : DVC's hashes of the outputs by path.
    is_workspace : whether its outputs are those in the folder.
    is_cached : whether its predictions are in DVC's cache.
    has_other_costs : whether it was decided under other costs than the first, so that their costs do not compare.
    difference, p_value : mean cost minus that of the first, and the p-value of the paired test by Holm's method.
    untested : why there is no test.
    """

    name: str
    commit: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    outs: Mapping[str, str]
    is_workspace: bool = False
    is_cached: bool = False
    has_other_costs: bool = False
    difference: float | None = None
    p_value: float | None = None
    untested: str = ""

    @property
    def cost(self) -> float | None:
        """Mean cost on the test split."""
        return self.metrics.get(COST)

    @property
    def verdict(self) -> str:
        """Whether it is shown to cost less than the first."""
        if self.p_value is None or self.difference is None:
            return self.untested
        if self.p_value >= LEVEL:
            return "not shown"
        return "shown" if self.difference < 0 else "costlier, shown"


@dataclass
class Listing:
    """Experiments, those of the costs of the first before the others, each sorted by cost; and the first."""

    experiments: list[Experiment]
    first: Experiment
    differing: list[str] = field(default_factory=list)  # full names of the parameters that differ


def list_experiments(names: Sequence[str] = (), *, of_all_commits: bool = False) -> Listing:
    """Read experiments and compare their costs with that of the first.

    Parameters
    ----------
    names : DVC experiments, git revisions or ``workspace``; the first is the one that the others are compared with.
        None: the last commit, the experiments that began from it, and the workspace if it has another result.
    of_all_commits : without names, the experiments of all commits.

    Raises
    ------
    UdcError
        A name is unknown, or nothing has a result.
    """
    experiments = [_named(name) for name in names] if names else _default_experiments(of_all_commits)
    experiments = [each for each in experiments if each.metrics]
    if not experiments:
        raise UdcError("no experiment has a result; run `udc run`, and commit its result to compare others with it")
    first, *others = experiments
    _compare_with(first, others)

    def place(each: Experiment) -> tuple[bool, bool, float, bool]:
        return each.has_other_costs, each.cost is None, each.cost or 0.0, each is not first

    known = list(dict.fromkeys(name for each in experiments for name in each.params))
    differing = [name for name in known if any(each.params.get(name) != first.params.get(name) for each in others)]
    return Listing(sorted(experiments, key=place), first, differing)


def _default_experiments(of_all_commits: bool) -> list[Experiment]:
    commit = git("rev-parse", "HEAD")
    if not commit:
        raise UdcError("the folder has no git commit; experiments begin from one: `git add . && git commit`")
    experiments = [_at_commit(f"HEAD {commit[:7]}", commit)]
    below = f"refs/exps/{commit[:2]}/{commit[2:]}"  # where DVC stores the experiments of a commit
    listed = git("for-each-ref", below, "--sort=creatordate", "--format=%(refname:lstrip=4) %(objectname)")
    named = dict(line.split() for line in listed.splitlines())
    all_named = named | dvc_experiments() if of_all_commits else named
    experiments += [_at_commit(name, its_commit) for name, its_commit in all_named.items()]
    workspace = _workspace()
    for each in experiments:
        if workspace.outs and each.outs == workspace.outs:
            each.is_workspace = True
            return experiments
    return [*experiments, workspace]


def _named(name: str) -> Experiment:
    if name == WORKSPACE:
        return _workspace()
    commit = commit_of(name)
    if not commit:
        raise UdcError(f"{name}: is no DVC experiment and no git revision; `udc experiments` lists those of the last "
                       "commit")  # fmt: skip
    return _at_commit(name, commit)


def _at_commit(name: str, commit: str) -> Experiment:
    lock, metrics, params = (git("show", f"{commit}:./{file}") for file in ("dvc.lock", "metrics.json", "params.yaml"))
    return _experiment(name, commit, lock, metrics, params)


def _workspace() -> Experiment:
    files = (Path("dvc.lock"), Path("metrics.json"), Path("params.yaml"))
    texts = [path.read_text(encoding="utf-8") if path.is_file() else "" for path in files]
    return _experiment(WORKSPACE, "", *texts)


def _experiment(name: str, commit: str, lock: str, metrics: str, params: str) -> Experiment:
    stages = stages_of(lock, f"dvc.lock of {name}" if commit else "dvc.lock")
    try:
        locked = stages.get("resolve", {}).get("params", {}).get("params.yaml")  # all, as of the result
        values = flat(locked) if locked else flat_values(params)
        numbers = {f"{split}/{key}": value for split, of_split in json.loads(metrics or "{}").items()
                   for key, value in of_split.items() if isinstance(value, int | float)}  # fmt: skip
        return Experiment(name, commit, values, numbers, outs_of(stages))
    except (ValueError, AttributeError, KeyError, TypeError, yaml.YAMLError):
        advice = "`git checkout dvc.lock metrics.json` restores those of the last commit"
        raise UdcError(f"{name}: its dvc.lock or metrics.json is damaged; {advice}") from None


def _compare_with(first: Experiment, others: Sequence[Experiment]) -> None:
    """Fill in costs that differ, differences and p-values of the others."""
    cache = DvcCache()
    policy, predictions = _policy(cache, first), _predictions(cache, first)
    first.is_cached = predictions is not None
    for each in others:
        its_policy = _policy(cache, each)
        if policy is None or its_policy is None:
            each.has_other_costs = _costs_of(each) != _costs_of(first)
        else:
            each.has_other_costs = cost_difference(policy, its_policy) is not None
        if each.has_other_costs:
            each.untested = OTHER_COSTS
        elif predictions is None or (table := _predictions(cache, each)) is None:
            each.untested = NOT_CACHED
        else:
            try:
                costs = all_outcome_costs([known for known in (policy, its_policy) if known is not None])
                test = cost_test(predictions, table, costs, 1 - LEVEL, comparisons=len(others))
                each.difference, each.p_value = test.difference, test.p_value
            except UdcError:
                each.untested = OTHER_IMAGES
    tested = [each for each in others if each.p_value is not None]
    for each, p in zip(tested, holm([each.p_value for each in tested if each.p_value is not None]), strict=True):
        each.p_value = p


def _costs_of(experiment: Experiment) -> dict[str, Any]:
    return {name: value for name, value in experiment.params.items() if name.startswith("costs.")}


def _policy(cache: DvcCache, experiment: Experiment) -> Policy | None:
    path = cache.file(experiment.outs, "evaluation", POLICY_FILE)
    return Policy.load(path) if path else None


def _predictions(cache: DvcCache, experiment: Experiment) -> pd.DataFrame | None:
    path = cache.file(experiment.outs, "evaluation", "test/predictions.csv")
    return read_predictions(path, with_logits=False) if path else None
