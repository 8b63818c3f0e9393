"""Opens a study: its sampler, and what must be equal whenever and wherever its trials run."""

from __future__ import annotations

import hashlib
import json
import uuid
import warnings
from typing import TYPE_CHECKING, Any

from udc_model.errors import UdcError
from udc_model.experiments.tuning_plan import TuningPlan
from udc_model.tracking.provenance import git, uncommitted

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.storages import RDBStorage

KEY = "udc.key"  # attribute of a study: of its run in MLflow
_RANGES, _METRIC, _STATE = "udc.ranges", "udc.metric", "udc.state"


def open_study(plan: TuningPlan, storage: str | RDBStorage) -> Study:
    """The study in a storage, created if it does not exist.

    Raises
    ------
    UdcError
        It exists with other ranges or metrics.
    """
    import optuna

    study = optuna.create_study(
        storage=storage, study_name=plan.study, directions=plan.directions,
        load_if_exists=True, sampler=optuna.samplers.RandomSampler(),
        pruner=optuna.pruners.MedianPruner() if plan.can_prune else optuna.pruners.NopPruner(),
    )  # fmt: skip
    _check_same(study, plan)
    return study


def _check_same(study: Study, plan: TuningPlan) -> None:
    """Store ranges and metrics in a new study; :class:`UdcError` if an existing study has others."""
    ranges, metrics = {r.name: [r.kind, *r.arguments] for r in plan.ranges}, ", ".join(plan.metrics)
    if KEY not in study.user_attrs:
        study.set_user_attr(_RANGES, ranges)
        study.set_user_attr(_METRIC, metrics)
        with warnings.catch_warnings():  # names are experimental
            warnings.simplefilter("ignore")
            study.set_metric_names(list(plan.metrics))
        study.set_user_attr(KEY, uuid.uuid4().hex)
    attributes, directions = study.user_attrs, [each.name.lower() for each in study.directions]
    if attributes[_RANGES] != ranges or attributes[_METRIC] != metrics or directions != plan.directions:
        raise UdcError(f"study {plan.study} exists, with other ranges or other metrics "
                       f"({attributes[_METRIC]}: {', '.join(directions)}; {json.dumps(attributes[_RANGES])}); "
                       "use the same, or another --study")  # fmt: skip


def check_same_state(study: Study) -> None:
    """Store in a new study what its trials start from; :class:`UdcError` if those of this clone would differ."""
    changes = hashlib.sha256(uncommitted().encode(errors="surrogateescape")).hexdigest()
    state = [git("rev-parse", "HEAD"), changes]
    if _STATE not in study.user_attrs:
        study.set_user_attr(_STATE, state)
    if study.user_attrs[_STATE] != state:
        first = study.user_attrs[_STATE][0][:12]
        raise UdcError(f"study {study.study_name}: it started from commit {first}, here is {state[0][:12]}, or the "
                       "uncommitted changes differ; trials of other code or parameters cannot be compared: commit and "
                       f"push all changes, then run `git checkout {first}` in each clone")  # fmt: skip


def new_sampler(plan: TuningPlan, seed: int) -> BaseSampler:
    """The sampler of a plan; :class:`UdcError` if the ranges are not for it."""
    import optuna

    if plan.sampler == "random":
        return optuna.samplers.RandomSampler(seed)
    if plan.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=5)
    searched = [r for r in plan.ranges if r.kind != "value"]
    if continuous := [r.name for r in searched if r.kind != "choice"]:
        raise UdcError(f"{', '.join(continuous)}: a grid needs choice(x,y,…) for every parameter")

    class Grid(optuna.samplers.GridSampler):
        def after_trial(self, *_: Any) -> None:
            """Nothing: at the end of the grid, optuna's would stop a loop ``optimize``, which there is not."""

    return Grid({r.name: list(r.arguments) for r in searched}, seed=0)
