"""Starts a DVC experiment: checks its parameters first, and prints what differs from the last commit."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from udc_model.config import Params, validate_params
from udc_model.decisions.checks import check_data
from udc_model.errors import UdcError
from udc_model.experiments.settings import combinations, read_with_settings
from udc_model.experiments.values import changes, flat_values, value_text
from udc_model.files import Workspace, read_json
from udc_model.installed import check_pin
from udc_model.tracking.provenance import git, locked_stages

logger = logging.getLogger(__name__)

PARAMS = Path("params.yaml")
_RESULTS = ("dvc.lock", "metrics.json")  # written by the pipeline: no changes of the user
_SHOWN = 5  # names of files in a message


def start_experiment(settings: Sequence[str], arguments: Sequence[str], *, is_queued: bool = False) -> None:
    """Check the parameters, print what differs from the last commit, and run ``dvc exp run``.

    DVC writes parameters into params.yaml and removes outputs before a stage can refuse them; here nothing has changed
    if a parameter is refused. The process becomes that of DVC, except under ``mlflow run``, whose run is completed.

    Parameters
    ----------
    settings : ``full.name=value`` each, in the grammar of DVC's ``-S``.
    arguments : other arguments of ``dvc exp run``.
    is_queued : whether a setting may have several values, with one experiment for each combination.

    Raises
    ------
    UdcError
        A parameter is not valid or does not fit the prepared data, or the experiment fails.
    """
    dvc = shutil.which("dvc")
    if dvc is None:
        raise UdcError("the dvc command is not on the PATH; activate the environment (. .venv/bin/activate)")
    check_pin()
    experiments = []
    for combination in combinations(settings) if is_queued else [list(settings)]:
        params, values = read_with_settings(combination, PARAMS)
        _check_against_data(params)
        experiments.append(values)
    _report_changes(experiments)
    command = [dvc, "exp", "run", *(part for setting in settings for part in ("-S", setting)), *arguments]
    outer = os.environ.get("MLFLOW_RUN_ID")  # under `mlflow run`, which ends the run when this process ends
    if outer is None:
        _become(command)
    else:
        _run_within(outer, command)


def _become(command: list[str]) -> NoReturn:
    """Replace this process, so that a signal reaches DVC, which ends its stages."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)


def _run_within(run_id: str, command: Sequence[str]) -> None:
    """Run the command for an MLflow run that another process has opened and will end."""
    from udc_model.tracking.journal import wait_for_senders
    from udc_model.tracking.lookup import tag_restored
    from udc_model.tracking.store import repository_root

    done = subprocess.run(command, check=False)
    wait_for_senders(repository_root())
    if done.returncode:
        raise UdcError(f"dvc exp run failed with status {done.returncode}")
    tag_restored(run_id)


def _check_against_data(params: Params) -> None:
    """Check class names, floors and counts against the prepared data, if it is that of the parameters."""
    dataset = Workspace().prepared / "dataset.json"
    locked = locked_stages(Path("dvc.lock")).get("prepare", {}).get("params", {}).get(PARAMS.name, {})
    try:
        is_prepared = dataset.is_file() and validate_params({"data": locked["data"]}, "dvc.lock").data == params.data
    except (KeyError, UdcError):
        is_prepared = False  # never, or by another version
    if not is_prepared:
        return  # stage prepare runs first
    info = read_json(dataset, "run `dvc repro --force prepare`")
    try:
        check_data(params, info["classes"], info["counts"]["calibration"])
    except UdcError:
        if _is_up_to_date("prepare"):
            raise


def _is_up_to_date(stage: str) -> bool:
    """Whether nothing that a stage depends on has changed, as the images of ``prepare``."""
    command = [sys.executable, "-m", "dvc", "status", "--json", stage]
    status = subprocess.run(command, capture_output=True, text=True, check=False)
    return status.returncode == 0 and not json.loads(status.stdout or "{}")


def _report_changes(experiments: Sequence[Mapping[str, Any]]) -> None:
    """Print each parameter of the experiments that differs from the last commit, and other changed files."""
    commit, text = git("rev-parse", "--short", "HEAD"), git("show", f"HEAD:./{PARAMS}")
    if not commit or not text:
        return
    committed, present = flat_values(text), flat_values(PARAMS.read_text(encoding="utf-8"))
    lines, is_inherited = [], False
    for name in dict.fromkeys(name for values in experiments for name in changes(committed, values)):
        new = list(dict.fromkeys(value_text(values.get(name)) for values in experiments))
        was_set_before = new == [value_text(present.get(name))]
        is_inherited |= was_set_before
        lines.append(f"  {name}: {value_text(committed.get(name))} -> {', '.join(new)}"
                     + (f" (in {PARAMS} already)" if was_set_before else ""))  # fmt: skip
    if is_inherited:
        lines.append(f"`git checkout {PARAMS}` restores those of the last commit")
    if lines:
        logger.info("parameters that differ from the last commit (%s):\n%s", commit, "\n".join(lines))
    else:
        logger.info("no parameter differs from the last commit (%s)", commit)
    ignored = (str(PARAMS), *_RESULTS)
    files = [name for name in git("diff", "--name-only", "--relative", "HEAD").splitlines() if name not in ignored]
    if files:
        more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
        logger.info("files that differ from the last commit: %s%s", ", ".join(files[:_SHOWN]), more)
