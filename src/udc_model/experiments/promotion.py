"""Promotes a run's model in MLflow's registry: to ``challenger``, and to ``champion`` if a test shows lower costs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from udc_model.errors import UdcError
from udc_model.experiments.names import resolve_run
from udc_model.experiments.results import compare
from udc_model.tracking.tags import EVALUATED, NOTE, PREFIX, read_tag

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
# The description of a registered model.
_MODEL = """\
The alias `champion` is the version to deploy, `challenger` the one promoted last. A version becomes champion only if
a paired test on the same test images shows that it costs less, or by force. The description of a version says which.
"""
COMPARISON, FORCED = f"{PREFIX}comparison", "forced"


@dataclass(frozen=True)
class Promotion:
    """Result of a promotion: the version, whether it is the champion now, and why."""

    name: str
    version: str
    is_champion: bool
    reason: str


def promote(run_name: str, name: str, *, force: bool = False) -> Promotion:
    """Register a run's model as the challenger, and as the champion if it is shown to be better than the present one.

    It is better if `compare_predictions`, on the same images with the same costs, shows at the level of 0.05 that its
    mean cost on the test split is lower. Without a champion, as for the first version, there is no comparison.

    Parameters
    ----------
    run_name : see :func:`~udc_model.experiments.names.resolve_run`.
    name : of the registered model, created if it does not exist.
    force : make it the champion whatever the test shows; the version gets the tag ``forced`` with the reason.

    Raises
    ------
    UdcError
        The run is not found or has no evaluation, or the champion was evaluated on other images or with other costs
        (with ``force`` the error is recorded instead).
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    run = resolve_run(run_name)
    if read_tag(run.data.tags, EVALUATED) != "true" or not run.outputs or not run.outputs.model_outputs:
        raise UdcError(
            f"run {run.info.run_id} has no evaluation and therefore no model to serve; run evaluate (dvc repro)"
        )
    client = mlflow.MlflowClient()
    try:
        version = None
        _create_model(client, name)  # first: a server with passwords refuses questions about a model that is not there
        while True:
            champion = _champion(client, name)
            comparison, reason, is_better = (
                _without_champion(client, run, name) if champion is None else _compare_with(champion, run, force)
            )
            version = version or _registered_version(client, run, name)
            # Somebody else may have promoted a model during the comparison, which takes seconds.
            if _number(_champion(client, name)) == _number(champion):
                break
        client.set_model_version_tag(name, version.version, COMPARISON, json.dumps(comparison))
        client.set_registered_model_alias(name, CHALLENGER, version.version)
        if force and not is_better:
            client.set_model_version_tag(name, version.version, FORCED, reason)
        if force or is_better:
            client.set_registered_model_alias(name, CHAMPION, version.version)
        client.update_model_version(name, version.version, _description(run, reason, force, is_better))
    except MlflowException as error:
        raise UdcError(f"{name}: the model registry reports an error: {error}") from None
    return Promotion(name, version.version, force or is_better, reason)


def _description(run: Run, reason: str, force: bool, is_better: bool) -> str:
    """The description of a version: what became of it and why, the run's own description, and where the run is."""
    role = "Champion" if is_better else "Champion by force" if force else "Challenger"
    page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    paragraphs = [f"**{role}** when it was promoted: {reason}.", run.data.tags.get(NOTE, ""),
                  f"Run [{run.info.run_name}]({page})"]  # fmt: skip
    return "\n\n".join(filter(None, paragraphs))


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def _number(version: ModelVersion | None) -> str | None:
    return None if version is None else str(version.version)


def _without_champion(client: MlflowClient, run: Run, name: str) -> tuple[dict[str, object], str, bool]:
    """As `_compare_with`, for the first version, and if somebody has removed the alias of the champion."""
    runs = {version.run_id for version in client.search_model_versions(f"name = '{name}'")}
    reason = "there is no champion to compare it with" if runs - {run.info.run_id} else "it is the first version"
    return {"champion": None}, reason, True


def _compare_with(champion: ModelVersion, run: Run, force: bool) -> tuple[dict[str, object], str, bool]:
    """The comparison to record, the reason as a sentence, and whether the run's model is shown to cost less."""
    record: dict[str, object] = {"champion": champion.version, "champion_run": champion.run_id, "split": "test"}
    if champion.run_id == run.info.run_id:
        return record, "it is the champion already", True
    if champion.run_id is None:
        raise UdcError(f"the champion, version {champion.version}, has no run in the registry")
    try:
        comparison = compare(champion.run_id, run.info.run_id, "test")
    except UdcError as error:
        if not force:
            raise
        return record | {"error": str(error)}, f"it cannot be compared with the champion: {error}", False
    cost = comparison.differences[0]
    assert cost.low is not None  # a run has a policy, which bounds the difference
    assert cost.high is not None
    assert cost.p_value is not None
    record |= {"images": comparison.images, "champion_mean_cost": cost.a, "mean_cost": cost.b,
               "difference": cost.difference, "low": cost.low, "high": cost.high, "p_value": cost.p_value}  # fmt: skip
    is_better = comparison.cheaper == "B"
    interval = f"{comparison.confidence:.0%} interval {cost.low:+.4f} to {cost.high:+.4f}"
    reason = (f"test mean cost {cost.b:.4f}, champion {cost.a:.4f}, difference {cost.difference:+.4f} "
              f"({interval}, paired test p = {cost.p_value:.4f})")  # fmt: skip
    if comparison.more_images is not None:
        reason += f"; about {comparison.more_images:,} more images would show a difference of this size"
    reason += "".join(f"; {warning}" for warning in comparison.warnings)
    return record, reason, is_better


def _create_model(client: MlflowClient, name: str) -> None:
    """Create the registered model, unless it exists."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=_MODEL)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _registered_version(client: MlflowClient, run: Run, name: str) -> ModelVersion:
    """The version of this run's model, registered now if there is none."""
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.run_id == run.info.run_id:
            return version
    assert run.outputs is not None  # promote() checks it
    model_id = run.outputs.model_outputs[-1].model_id
    return client.create_model_version(name, f"models:/{model_id}", run.info.run_id, model_id=model_id)
