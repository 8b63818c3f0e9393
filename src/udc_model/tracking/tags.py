"""The tags by which code finds and reads runs, and searches with them.

Their prefix is MLflow's own: its pages do not show tags with it, so people see only what is written for them. Versions
up to 0.2.0 used other names; whatever reads or searches tags here accepts both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PREFIX = "mlflow.udc."
COMMIT = "mlflow.source.git.commit"  # of the first stage; with the suffix .train or .evaluate, that of the stage
DIRTY = f"{PREFIX}git_dirty"  # the same suffixes
EXPERIMENT_NAME = f"{PREFIX}experiment"
EXPERIMENT_COMMIT = f"{PREFIX}experiment_commit"
BASELINE = f"{PREFIX}baseline"  # the commit from which a DVC experiment starts
LINKED = f"{PREFIX}linked_experiments"  # names of other experiments with the outputs of this run, separated by blanks
DATA = f"{PREFIX}data"  # JSON: the paths of the raw data, and DVC's hash of each
OUTS = f"{PREFIX}outs."
MODEL_SHA256 = f"{PREFIX}model_sha256"
EVALUATED = f"{PREFIX}evaluated"
TRAINED_BY = f"{PREFIX}trained_by"
JOURNAL = f"{PREFIX}journal"
CLAIMED = f"{PREFIX}evaluation_journal"
STUDY = f"{PREFIX}study"  # the key of the study (tuning, cross-validation) that a run is part of
ATTEMPT = f"{PREFIX}attempt"  # of a trial of a study that several workers share
RETRIED = f"{PREFIX}retried"  # the trial of a study was repeated: this run is of an attempt that counts no more
PARENT = "mlflow.parentRunId"  # MLflow shows a run below this one
FOLD = "fold"  # of a cross-validation, for people too
WARNING = "warning"  # why a training run will probably not succeed, for people
CHANGED, COST_INTERVAL = "changed", "cost interval"  # for people, in the table of runs
NOTE = "mlflow.note.content"  # MLflow shows it as the description

_FORMER = {
    EXPERIMENT_NAME: "dvc.exp_name",
    EXPERIMENT_COMMIT: "dvc.exp_commit",
    BASELINE: "dvc.baseline",
    DATA: "dvc.data",
}
_PAGE = 1000  # runs of one request


def _names(name: str) -> tuple[str, ...]:
    """The present name of a tag and that of versions up to 0.2.0."""
    return (name, _FORMER.get(name, f"udc.{name.removeprefix(PREFIX)}")) if name.startswith(PREFIX) else (name,)


def read_tag(tags: Mapping[str, str], name: str) -> str | None:
    """The value of a tag, under its present name or that of versions up to 0.2.0."""
    return next((tags[each] for each in _names(name) if each in tags), None)


def tags_below(tags: Mapping[str, str], prefix: str) -> dict[str, str]:
    """The tags below a prefix, as :data:`OUTS`, without it."""
    return {tag.removeprefix(each): value for each in _names(prefix) for tag, value in tags.items()
            if tag.startswith(each)}  # fmt: skip


def runs_with_tag(client: MlflowClient, experiments: list[str], name: str, value: str) -> list[Run]:
    """All runs in which a tag has a value, under its present name or that of versions up to 0.2.0; the latest first."""
    runs: dict[str, Run] = {}
    for each in _names(name):
        token = None
        while True:
            page = client.search_runs(experiments, f"tags.`{each}` = '{value}'", max_results=_PAGE, page_token=token)
            runs |= {run.info.run_id: run for run in page}
            if not (token := page.token):
                break
    return sorted(runs.values(), key=lambda run: (run.info.start_time or 0, run.info.run_id), reverse=True)
