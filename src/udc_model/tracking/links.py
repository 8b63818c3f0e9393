"""Between DVC experiments and MLflow runs, both ways, also where DVC restored an experiment and no code of ours ran."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from udc_model.tracking.journal import JOURNALS
from udc_model.tracking.provenance import EXPERIMENT_NAME, OUTS, git, stages_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LINKED = "udc.linked_experiments"  # names of experiments with this run's content, separated by blanks
EXPERIMENT_COMMIT = "dvc.exp_commit"
_REFERENCE = re.compile(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/(?P<name>[^/]+) (?P<commit>[0-9a-f]{40})")


@dataclass(frozen=True)
class DvcExperiment:
    """An experiment that DVC keeps: its name, its commit, and the hashes of its outputs by path."""

    name: str
    commit: str
    outs: Mapping[str, str]


def dvc_experiments() -> dict[str, str]:
    """The names of the experiments in this repository, and their commits."""
    listed = git("for-each-ref", "refs/exps", "--format=%(refname) %(objectname)").splitlines()
    found = [match for line in listed if (match := _REFERENCE.fullmatch(line))]
    return {match["name"]: match["commit"] for match in found}


def locked_outs(revision: str) -> dict[str, str]:
    """The hashes of the outputs in a revision's ``dvc.lock``, by path; empty where there is none."""
    return outs_of(stages_of(git("show", f"{revision}:dvc.lock")))


def outs_of(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The hashes of the outputs of locked stages, by path."""
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ()) if "md5" in out}


def same_content(client: MlflowClient, store: list[str], outs: Mapping[str, str]) -> list[Run]:
    """The runs whose outputs have these hashes, the earliest first."""
    wanted = [f"tags.`{OUTS}{name}` = '{outs[name]}'" for name in ("model", "evaluation") if name in outs]
    if not wanted:
        return []
    found = client.search_runs(store, " and ".join(wanted), order_by=["attributes.start_time ASC"])
    return list(found)


def link_experiments(client: MlflowClient, store: list[str], root: Path) -> dict[str, str]:
    """Tell each experiment that has none its run, and the run its experiments; returns run ids by experiment name.

    What was linked is remembered under ``.udc``, so that the next call asks the tracker only about new experiments.
    """
    memory = root / JOURNALS / "linked.json"
    memory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(memory.with_suffix(".lock")):
        known: dict[str, str] = json.loads(memory.read_text(encoding="utf-8")) if memory.is_file() else {}
        present = dvc_experiments()
        new = {}
        for name, commit in present.items():
            if f"{name} {commit}" in known:
                continue
            runs = same_content(client, store, locked_outs(commit))
            if not runs:
                continue  # made before this project recorded hashes, or with another tracker
            own = [run for run in runs if run.data.tags.get(EXPERIMENT_NAME) == name]
            run = own[-1] if own else runs[0]
            _tag(client, run, name, commit, own=bool(own))
            new[f"{name} {commit}"] = run.info.run_id
        if new:
            scratch = memory.with_suffix(".partial")
            scratch.write_text(json.dumps(known | new, indent=1), encoding="utf-8")
            scratch.replace(memory)
    return {key.split()[0]: run_id for key, run_id in new.items()}


def _tag(client: MlflowClient, run: Run, name: str, commit: str, *, own: bool) -> None:
    if own:
        client.set_tag(run.info.run_id, EXPERIMENT_COMMIT, commit)
        return
    linked = run.data.tags.get(LINKED, "").split()
    if name not in linked:
        client.set_tag(run.info.run_id, LINKED, " ".join([*linked, name]))
