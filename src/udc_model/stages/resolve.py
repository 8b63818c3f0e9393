"""Stage ``resolve``: checks all parameters against the data and writes what each later stage depends on.

DVC runs ``train`` again if ``resolved/train.yaml`` changes and ``evaluate`` if ``resolved/evaluate.yaml`` does. A
parameter without effect on a stage is not in its file, so a changed cost trains again only if the loss or
``train.monitor`` uses the costs.
"""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from udc_model.config import CostParams, EvaluateParams, LossParams, Params, load_params
from udc_model.config.limits import check_sizes, check_timm_channels
from udc_model.config.model import MODEL_TYPES
from udc_model.config.train import WITHOUT_EFFECT
from udc_model.config.yaml12 import as_yaml
from udc_model.data.dataset_file import read_dataset
from udc_model.decisions.actions import action_costs
from udc_model.decisions.calibration import CROSS_VALIDATED
from udc_model.decisions.checks import check_data, group_counts
from udc_model.decisions.matrix import class_prior, cost_matrix
from udc_model.errors import UdcError
from udc_model.files import Workspace, atomic_folder, only_writer
from udc_model.installed import check_pin
from udc_model.program import exit_status
from udc_model.tracking.provenance import absent_from_copies

logger = logging.getLogger("udc_model.stages.resolve")  # __name__ is __main__ if DVC runs the stage

TRAIN, EVALUATE = "train.yaml", "evaluate.yaml"
_SMALL = 10_000  # images of a test split that is checked: a larger one decides something
_DECIDED_LATER = {"unfamiliar": CostParams().unfamiliar}  # of costs: it changes no loss
_OF_EVALUATION = {"costs": set(_DECIDED_LATER), "evaluate": {"precision"}}  # stage evaluate records its own


@dataclass(frozen=True)
class ResolvedParams:
    """The parameters of each later stage; sections and values without effect on the stage have their defaults."""

    train: Params
    evaluate: Params


def resolve(
    params: Params,
    dataset_info: Mapping[str, Any],
    calibration_groups: Sequence[Mapping[str, int]] | None = None,
) -> ResolvedParams:
    """Check the parameters against the prepared data, and reduce them to what each later stage depends on.

    Parameters
    ----------
    dataset_info : contents of ``data/prepared/dataset.json``.
    calibration_groups : images of each class in each group of the calibration split; None if it has no groups.

    Raises
    ------
    UdcError
        A parameter does not fit the classes or the number of images.
    """
    check_timm_channels(params.model)
    check_data(params, dataset_info["classes"], dataset_info["counts"]["calibration"], calibration_groups)
    check_sizes(params.train, dataset_info["counts"]["train"])
    return reduce(params)


def reduce(params: Params) -> ResolvedParams:
    """Reduce parameters to what each later stage depends on."""
    architectures: dict[str, Any] = {name: type(getattr(params.model, name))() for name in MODEL_TYPES}
    architectures[params.model.model_type] = params.model.architecture
    loss = LossParams(name=params.loss.name, **{name: getattr(params.loss, name) for name in params.loss.used})
    sections = {
        "model": params.model.model_copy(update=architectures),
        "loss": loss,
        "costs": params.costs.model_copy(update=_DECIDED_LATER) if params.training_uses_costs else CostParams(),
        "evaluate": params.evaluate if params.training_uses_policy else EvaluateParams(),
    }
    evaluate = Params(costs=params.costs, evaluate=params.evaluate.model_copy())
    return ResolvedParams(params.model_copy(update=sections), evaluate)


def training_params(params: Params) -> dict[str, Any]:
    """The parameters to record with a training run: the architecture in use, and costs and policy if it uses them."""
    model = {key: value for key, value in params.model.model_dump().items() if key not in MODEL_TYPES}
    model[params.model.model_type] = params.model.architecture.model_dump()
    sections = {
        "seed": params.seed,
        "data": params.data.model_dump(),
        "model": model,
        "loss": params.loss.model_dump(),
        "train": params.train.model_dump(),
    }
    if params.training_uses_costs:
        sections["costs"] = params.costs.model_dump(exclude=_OF_EVALUATION["costs"])
    if params.training_uses_policy:
        sections["evaluate"] = params.evaluate.model_dump(exclude=_OF_EVALUATION["evaluate"])
    return sections


def read_dataset_info(workspace: Workspace) -> dict[str, Any]:
    """Contents of ``data/prepared/dataset.json``; :class:`UdcError` if it is missing or damaged."""
    return read_dataset(workspace.prepared)


def read_calibration_groups(workspace: Workspace) -> list[dict[str, int]] | None:
    """Images of each class in each group of the calibration split, from ``manifest.csv``; None if it has no groups."""
    return group_counts(*_labels_and_groups(workspace, "calibration"))


def _labels_and_groups(workspace: Workspace, split: str) -> tuple[list[str], list[str]]:
    """Class and group of each image of a split, from ``manifest.csv``."""
    path = workspace.prepared / "manifest.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == split]
        return [row["label"] for row in rows], [row["group"] for row in rows]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UdcError(f"{path}: cannot be read ({error!r}); run prepare again (dvc repro -f prepare)") from None


def check_test_split(params: Params, workspace: Workspace) -> list[str]:
    """Why the test split decides nothing, whatever the model, see `too_few_images`; usually nothing."""
    info = read_dataset_info(workspace)
    if sum(info["counts"]["test"].values()) > _SMALL:
        return []
    from udc_model.data.packed import group_indices  # with pandas and scipy
    from udc_model.decisions.policy import Policy
    from udc_model.evaluation.evidence import too_few_images

    classes = list(info["classes"])
    prior = class_prior(params.costs, classes, [info["counts"]["train"][name] for name in classes])
    policy = Policy(classes, cost_matrix(params.costs, classes).tolist(), refer=params.costs.refer,
                    deployment_prior=None if prior is None else prior.tolist(),
                    actions=action_costs(params.costs, classes))  # fmt: skip
    labels, groups = _labels_and_groups(workspace, "test")
    targets = np.array([classes.index(label) for label in labels], dtype=np.intp)
    weights = policy.weights(targets)
    return too_few_images(
        targets,
        policy.outcome_costs,
        policy.outcomes,
        np.ones(len(targets)) if weights is None else weights,
        group_indices(groups),
        params.evaluate.confidence,
    )


def resolve_workspace(params: Params, workspace: Workspace) -> ResolvedParams:
    """`resolve` with the prepared data and the weights of a workspace, see `with_weights`."""
    info, evaluate = read_dataset_info(workspace), params.evaluate
    needs_groups = evaluate.decision in ("recall_floor", "cost_ceiling") or evaluate.calibration in CROSS_VALIDATED
    return resolve(with_weights(params), info, read_calibration_groups(workspace) if needs_groups else None)


def with_weights(params: Params) -> Params:
    """The parameters with name and SHA-256 of the weights that training starts from; unchanged without weights.

    Raises
    ------
    UdcError
        There are no such weights, or no such network in timm.
    """
    if params.model.weights is None and params.model.model_type != "timm":
        return params
    from udc_model.models.pretrained import resolve_weights  # with torch

    return params.model_copy(update={"model": resolve_weights(params.model)})


def write_resolved(resolved: ResolvedParams, workspace: Workspace) -> None:
    """Write ``resolved/train.yaml`` and ``resolved/evaluate.yaml``."""
    train = resolved.train.model_dump(exclude={"data"})
    for name in WITHOUT_EFFECT:
        del train["train"][name]
    del train["model"]["download"]
    evaluate = resolved.evaluate.model_dump(include={"costs", "evaluate"})
    with only_writer(workspace), atomic_folder(workspace.resolved) as folder:
        for name, values in ((TRAIN, train), (EVALUATE, evaluate)):
            text = as_yaml(values)
            (folder / name).write_text(text, encoding="utf-8")


def load_training_params(workspace: Workspace, params_file: Path = Path("params.yaml")) -> Params:
    """The parameters of stage ``train``: those in ``resolved/train.yaml``, and from ``params.yaml`` those without
    effect on its result (the section ``data``, which is only recorded, how often it writes checkpoints, downloads)."""
    resolved, current = load_params(workspace.resolved / TRAIN), load_params(params_file)
    without_effect = {name: getattr(current.train, name) for name in WITHOUT_EFFECT}
    train = resolved.train.model_copy(update=without_effect)
    model = resolved.model.model_copy(update={"download": current.model.download})
    return resolved.model_copy(update={"data": current.data, "model": model, "train": train})


def load_evaluation_params(workspace: Workspace) -> Params:
    """The parameters of stage ``evaluate``, from ``resolved/evaluate.yaml``."""
    return load_params(workspace.resolved / EVALUATE)


def main() -> None:
    """Run the stage in the current folder."""
    check_pin()
    workspace, params = Workspace(), load_params()
    write_resolved(resolve_workspace(params, workspace), workspace)
    for warning in check_test_split(params, workspace):
        logger.warning("the test split: %s", warning)
    if params.data.source != "digits" and (absent := absent_from_copies(Path(params.data.path))):
        logger.warning("data.path: queued experiments will lack the images: %s", absent)
    if params.model.weights is not None and (absent := absent_from_copies(Path(params.model.weights))):
        logger.warning("model.weights: queued experiments will lack the weights: %s", absent)


if __name__ == "__main__":
    sys.exit(exit_status(main))
