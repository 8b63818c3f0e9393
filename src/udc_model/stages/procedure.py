"""Stages ``train`` and ``evaluate`` as one procedure on prepared data, for cross-validation."""

from __future__ import annotations

from typing import Any

from udc_model.config import Params
from udc_model.config.train import WITHOUT_EFFECT
from udc_model.files import Workspace
from udc_model.stages.code import STAGES, code_digests
from udc_model.stages.evaluate import evaluate
from udc_model.stages.resolve import reduce, resolve_workspace, with_weights
from udc_model.stages.train import train

_CODE = ("data/folds.py", "data/splits.py", *STAGES["train"], *STAGES["evaluate"])


def train_and_evaluate(params: Params, workspace: Workspace) -> None:
    """Train on the prepared data of a workspace, unless that was done already, and evaluate.

    Raises
    ------
    UdcError
        As the stages.
    """
    resolved = resolve_workspace(params, workspace)
    if not (workspace.model.is_dir() and workspace.training.is_dir()):
        train(resolved.train, workspace, resolved.evaluate.costs)
    evaluate(resolved.evaluate, workspace)


def procedure_inputs(params: Params) -> dict[str, Any]:
    """Everything besides the data that the result of `train_and_evaluate` depends on, as JSON values."""
    resolved = reduce(with_weights(params))
    return {
        "train": resolved.train.model_dump(exclude={"data": True, "model": {"download"}, "train": set(WITHOUT_EFFECT)}),
        "splits": params.data.model_dump(include={"splits", "split_seed"}),
        "evaluate": resolved.evaluate.model_dump(include={"costs", "evaluate"}),
        "code": code_digests(_CODE),
    }
