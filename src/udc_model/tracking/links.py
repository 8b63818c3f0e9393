"""Links between DVC experiments and MLflow runs, in both directions.

They are found by content, so they include experiments that DVC restored from its cache without running a stage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from udc_model.errors import UdcError
from udc_model.tracking.journal import JOURNALS
from udc_model.tracking.provenance import git, stages_of
from udc_model.tracking.store import repository_root
from udc_model.tracking.tags import EXPERIMENT_COMMIT, EXPERIMENT_NAME, LINKED, OUTS, read_tag, runs_with_tag

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_REFERENCE = re.compile(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/(?P<name>[^/]+) (?P<commit>[0-9a-f]{40})")


def dvc_experiments() -> dict[str, str]:
    """The commits of the experiments in this repository, by name."""
    listed = git("for-each-ref", "refs/exps", "--format=%(refname) %(objectname)").splitlines()
    matches = [match for line in listed if (match := _REFERENCE.fullmatch(line))]
    return {match["name"]: match["commit"] for match in matches}


def locked_outs(revision: str) -> dict[str, str]:
    """The hashes of the outputs in a revision's ``dvc.lock``, by path; empty if there is none.

    The project may be in a folder of the git repository, and the current folder in a folder of the project.

    Raises
    ------
    UdcError
        The file is damaged.
    """
    lock = git("-C", str(repository_root()), "show", f"{revision}:./dvc.lock")
    return outs_of(stages_of(lock, f"dvc.lock of {revision}"))


def outs_of(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The hashes of the outputs of locked stages, by path."""
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ()) if "md5" in out}


def runs_with_outputs(client: MlflowClient, experiments: list[str], outs: Mapping[str, str]) -> list[Run]:
    """The runs whose outputs have these hashes, the earliest first."""
    names = [f"{OUTS}{name}" for name in ("evaluation", "model") if name in outs]
    if not names:
        return []
    runs = runs_with_tag(client, experiments, names[0], outs[names[0].removeprefix(OUTS)])
    return [run for run in reversed(runs)
            if all(read_tag(run.data.tags, name) == outs[name.removeprefix(OUTS)] for name in names)]  # fmt: skip


def link_experiments(client: MlflowClient, experiments: list[str], root: Path) -> dict[str, str]:
    """Link each new DVC experiment with the run that has its outputs; returns run ids by experiment name.

    Links are stored under ``.udc``, so the next call asks MLflow only about new experiments.

    Parameters
    ----------
    experiments : ids of the MLflow experiments to search.
    """
    path = root / JOURNALS / "linked.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        linked: dict[str, str] = {}
        with suppress(FileNotFoundError, ValueError):  # without the file, or if it is damaged, MLflow is asked again
            linked = json.loads(path.read_text(encoding="utf-8"))
        new = {}
        for name, commit in dvc_experiments().items():
            if f"{name} {commit}" in linked:
                continue
            try:
                outs = locked_outs(commit)
            except UdcError:
                continue  # damaged
            runs = runs_with_outputs(client, experiments, outs)
            if not runs:
                continue  # recorded in another store
            named = [run for run in runs if read_tag(run.data.tags, EXPERIMENT_NAME) == name]
            run = named[-1] if named else runs[0]
            _tag(client, run, name, commit, is_named=bool(named))
            new[f"{name} {commit}"] = run.info.run_id
        if new:
            scratch = path.with_suffix(".partial")
            scratch.write_text(json.dumps(linked | new, indent=1), encoding="utf-8")
            scratch.replace(path)
    return {key.split()[0]: run_id for key, run_id in new.items()}


def _tag(client: MlflowClient, run: Run, name: str, commit: str, *, is_named: bool) -> None:
    """Tag a run with the commit of its experiment, or with the name of another one."""
    if is_named:
        client.set_tag(run.info.run_id, EXPERIMENT_COMMIT, commit)
        return
    linked = (read_tag(run.data.tags, LINKED) or "").split()
    if name not in linked:
        client.set_tag(run.info.run_id, LINKED, " ".join([*linked, name]))
