"""What MLflow's pages show of the experiment: its description, the columns of its runs, and the address of both."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from udc_model.tracking.tags import CHANGED, COST_INTERVAL, NOTE

if TYPE_CHECKING:
    from mlflow import MlflowClient

DESCRIPTION = f"""\
Each run is one experiment: a training run and its evaluation, or an evaluation alone if only costs changed. The
description of a run has its result and what was changed.

**Which run to deploy?** Sort by `test/mean_cost`, the mean cost of a decision on the test images; lower is better.

- Compare only runs of equal `costs.digest`: others pay other costs.
- `udc compare A B` tests whether a difference is more than chance. Overlapping intervals (`{COST_INTERVAL}`) do not
  decide that.
- `test/normalised_cost` is the share of what the best constant decision costs: 0 is perfect, 1 is worthless.
- `{CHANGED}` has the parameters that differ from the commit from which the experiment starts.
- All metrics with intervals: artifact `metrics_with_intervals.json`. Tables and plots: `report.html`.
- The chart view (second button above the table) begins with the confusion matrices of the runs, side by side.
"""
# The pages call a selection of columns, with sorting, a shared view; it is a tag of the experiment.
_VIEW = "udc"
_VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
_COST = "metrics.`test/mean_cost`"
_COLUMNS = {  # widths in pixels, in this order; the digest must be in sight, or runs under other costs seem comparable
    "attributes.`Run Name`": 170,
    _COST: 95,
    f"tags.`{COST_INTERVAL}`": 120,
    "params.`costs.digest`": 90,
    f"tags.`{CHANGED}`": 260,
    "metrics.`test/accuracy`": 100,
    "metrics.`test/normalised_cost`": 100,
}


IMAGES = "plots"  # section of the page of charts with the images of the runs, before test/, training/, validation/
_COMPARED = ("confusion_matrix", "confusion_cost")  # images in the whole width of that section


def experiment_tags() -> dict[str, str]:
    """The tags of an experiment that describe it and choose columns and charts of its runs."""
    generated = {"isGenerated": True, "deleted": False}  # as MLflow's page makes them itself
    view: dict[str, Any] = {
        "orderByKey": _COST,
        "orderByAsc": True,
        "selectedColumns": list(_COLUMNS),
        "columnOrder": list(_COLUMNS),
        "columnWidths": _COLUMNS,
        "runListHidden": True,  # beside the charts; otherwise two images do not fit beside each other
        "compareRunSections": [generated | {"uuid": IMAGES, "name": IMAGES, "display": True, "isReordered": False,
                                            "columns": 1, "cardHeight": 420}],
        "compareRunCharts": [generated | {"type": "IMAGE", "uuid": name, "metricSectionId": IMAGES, "step": 0,
                                          "imageKeys": [f"{IMAGES}/{name}"], "showRunParams": False}
                             for name in _COMPARED],
    }  # fmt: skip
    return {NOTE: DESCRIPTION, "mlflow.experimentKind": "custom_model_development", _VIEW_TAG: json.dumps(view)}


def describe_experiment(client: MlflowClient, experiment: str) -> None:
    """Set the tags of an experiment that an earlier version created; a description that a person wrote stays."""
    tags = client.get_experiment(experiment).tags
    for name, value in experiment_tags().items():
        if tags.get(name) != value and (name != NOTE or not tags.get(NOTE)):
            client.set_experiment_tag(experiment, name, value)


def address(server: str, experiment: str) -> str:
    """The address of the runs of an experiment, with the columns above, in the view for model training.

    Parameters
    ----------
    server : address of the tracking server.
    """
    query = f"workflowType=machine_learning&viewStateShareKey={_VIEW}"
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs?{query}"
