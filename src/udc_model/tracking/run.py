"""One experiment, one MLflow run: ``train`` opens it, ``evaluate`` goes on in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udc_model.tracking.store import open_store

if TYPE_CHECKING:
    from mlflow.entities import Run

MODEL_SHA256 = "udc.model_sha256"
EVALUATED = "udc.evaluated"
EXPERIMENT_NAME = "dvc.exp_name"
TRAINED_BY = "udc.trained_by"
_LONGEST_PARAM = 500  # characters; a longer value is found in the artifact params.yaml


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def log_params(values: Mapping[str, Any]) -> None:
    """Log nested parameters under dotted names; lists as JSON."""
    import mlflow

    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(values).items()}
    mlflow.log_params({
        key: text if len(text) <= _LONGEST_PARAM else f"{len(text)} characters; see params.yaml"
        for key, text in texts.items()
    })  # fmt: skip


@contextmanager
def training_run(tags: Mapping[str, str]) -> Iterator[Run]:
    """Open a new run (or the one that ``mlflow run`` opened for this process) named as the DVC experiment.

    It ends as FINISHED, as FAILED on an error, and as KILLED on Ctrl-C or SIGTERM.
    """
    with _active(None, tags) as run:
        yield run


@contextmanager
def evaluation_run(model_sha256: str, tags: Mapping[str, str]) -> Iterator[tuple[Run, bool]]:
    """Go on in the run that trained this model, or open a new one; gives the run and whether it is new.

    It is new if no run of this DVC experiment trained the model (``train`` came from DVC's cache), or if that run has
    an evaluation already: a run is never overwritten. A new run names the run that trained.
    """
    import mlflow

    experiment_id = open_store()
    found = mlflow.search_runs(
        [experiment_id, *_outer_experiment()],
        filter_string=f"tags.`{MODEL_SHA256}` = '{model_sha256}'",
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )
    trained = [run for run in found if TRAINED_BY not in run.data.tags]
    open_runs = [
        run
        for run in trained
        if EVALUATED not in run.data.tags
        and "evaluate.decision" not in run.data.params  # an evaluation that failed while it was logged
        and run.data.tags.get(EXPERIMENT_NAME) == os.environ.get("DVC_EXP_NAME")
    ]
    if open_runs:
        with _active(open_runs[0].info.run_id, {}) as run:
            yield run, False
    else:
        origin = {TRAINED_BY: trained[0].info.run_id} if trained else {}
        with _active(None, {**tags, **origin, MODEL_SHA256: model_sha256}) as run:
            yield run, True


def _outer_experiment() -> list[str]:
    """The experiment of the run that ``mlflow run`` opened, where that is another than ours."""
    import mlflow

    outer = os.environ.get("MLFLOW_RUN_ID")
    return [mlflow.get_run(outer).info.experiment_id] if outer else []


@contextmanager
def _active(run_id: str | None, tags: Mapping[str, str]) -> Iterator[Run]:
    import mlflow

    experiment_id = open_store()
    outer = os.environ.pop("MLFLOW_RUN_ID", None)
    if outer is not None and run_id is None and EVALUATED not in mlflow.get_run(outer).data.tags:
        run_id = outer
    if run_id is not None:
        run = mlflow.start_run(run_id=run_id)
    else:
        run = mlflow.start_run(experiment_id=experiment_id, run_name=os.environ.get("DVC_EXP_NAME"))
    status = "FAILED"
    try:
        mlflow.set_tags({**provenance(), **tags} if tags else {})
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        mlflow.end_run(status)


def provenance() -> dict[str, str]:
    """Tags that say where a run comes from: commit, DVC experiment, package versions."""
    tags = {f"udc.version.{name}": version(name) for name in ("torch", "torchvision", "dvc", "mlflow", "numpy")}
    if name := os.environ.get("DVC_EXP_NAME"):
        # the run that `mlflow run` opened has a random name so far
        tags |= {EXPERIMENT_NAME: name, "mlflow.runName": name}
    if baseline := os.environ.get("DVC_EXP_BASELINE_REV"):
        tags["dvc.baseline"] = baseline
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit
        tags["udc.git_dirty"] = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    return tags


def identity() -> dict[str, str]:
    """What identifies the active run's origin, for people: commit, DVC experiment, versions."""
    tags = provenance()
    names = {"mlflow.source.git.commit": "commit", "udc.git_dirty": "with uncommitted changes",
             EXPERIMENT_NAME: "DVC experiment", "dvc.baseline": "baseline"}  # fmt: skip
    known = {title: tags[tag] for tag, title in names.items() if tag in tags}
    versions = {
        tag.removeprefix("udc.version."): value for tag, value in tags.items() if tag.startswith("udc.version.")
    }
    return known | {"versions": ", ".join(f"{name} {value}" for name, value in versions.items())}


def _git(*arguments: str) -> str:
    """The output of a git command in the current folder, empty where that is no repository."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def log_metrics(values: Mapping[str, float | None], step: int | None = None) -> None:
    """Log metrics of the active run in one request; those that are None are left out."""
    import mlflow

    # MLflow refuses other characters in a name; a class may be called anything
    known = {re.sub(r"[^/\w.\- :]", "_", name): value for name, value in values.items() if value is not None}
    mlflow.log_metrics(known, step=step)


def log_folder(folder: Path, name: str) -> None:
    """Log all files of a folder as artifacts of the active run, under ``name``."""
    import mlflow

    mlflow.log_artifacts(str(folder), name)


def log_text(text: str, name: str) -> None:
    """Log a text as the artifact ``name`` of the active run."""
    import mlflow

    mlflow.log_text(text, name)


def mark(tag: str, value: str) -> None:
    """Set a tag of the active run."""
    import mlflow

    mlflow.set_tag(tag, value)


def log_dataset(name: str, digest: str, source: Mapping[str, str], context: str) -> None:
    """Record a data set, by name and digest, as an input of the active run."""
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    dataset = MetaDataset(CodeDatasetSource(dict(source)), name=name, digest=digest[:32])  # type: ignore[abstract]
    mlflow.log_input(dataset, context=context)
