"""A recorded run once more, from its record alone: the same commit, changes and data, and whether the bits agree."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udc_model.errors import UdcError
from udc_model.files import Workspace, sha256_of
from udc_model.tracking.delivery import EVALUATED, MODEL_SHA256, TRAINED_BY
from udc_model.tracking.lookup import artifact, find_run
from udc_model.tracking.provenance import COMMIT, DIRTY, provenance
from udc_model.tracking.store import repository_root

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

_HARDWARE = ("device", "precision", "kernels", "threads", "udc.host")


@dataclass
class Reproduction:
    """What came out: differences of the outcome, and what changed between then and now and may be why."""

    run_id: str
    differences: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """Whether weights and metrics are the same to the bit."""
        return not self.differences

    def to_text(self) -> str:
        """The verdict, then the differences, then what changed."""
        if self.identical:
            lines = [f"identical: run {self.run_id} was reproduced, weights and metrics equal to the bit"]
            return "\n".join([*lines, *(f"  (changed without effect: {line})" for line in self.changed)]) + "\n"
        lines = [f"different: run {self.run_id} was not reproduced", *(f"  {line}" for line in self.differences)]
        lines += ["changed since then:", *(f"  {line}" for line in self.changed or ["nothing that was recorded"])]
        return "\n".join(lines) + "\n"


def reproduce(name: str) -> Reproduction:
    """Run the pipeline of a recorded run again, in a temporary clone, and compare.

    The clone is of the run's commit with the run's uncommitted changes; its data come from DVC's cache, a remote, or,
    if DVC does not keep them, from where they lie now. Every stage is executed; nothing is written to the repository,
    its cache, or the tracker.

    Parameters
    ----------
    name : any name that :func:`~udc_model.tracking.lookup.find_run` knows.

    Raises
    ------
    UdcError
        The run is not found, or something that it needs is gone.
    """
    with _recovered(find_run(name)) as (run, folder):
        logger.info("running the pipeline of run %s again in %s", run.info.run_id, folder)
        recorded = _recorded_metrics(run)
        _dvc(folder, "repro", "--force", "--no-commit", "--quiet", "train" if recorded is None else "evaluate")
        return _compared(run, recorded, Workspace(folder))


def check(name: str) -> str:
    """Say that everything a reproduction needs is still there; :class:`UdcError` names what is not."""
    with _recovered(find_run(name)) as (run, _):
        changed = _changed(run, None)
    lines = [f"run {run.info.run_id} can be reproduced: commit, changes and data are there"]
    return "\n".join([*lines, *(f"  changed since then: {line}" for line in changed)]) + "\n"


@contextmanager
def _recovered(run: Run) -> Iterator[tuple[Run, Path]]:
    """The run and a temporary clone with its code, changes and raw data."""
    stage = "evaluate" if f"{COMMIT}.evaluate" in run.data.tags else "train"
    commit = run.data.tags.get(f"{COMMIT}.{stage}")
    if not commit:
        raise UdcError(f"run {run.info.run_id} names no commit; it was not started in a git repository")
    root = repository_root()
    with tempfile.TemporaryDirectory(prefix="udc-reproduce-") as scratch:
        folder = Path(scratch) / "clone"
        # --shared: experiments' commits are in no branch, but in the repository's objects
        _git(root, "clone", "--quiet", "--shared", "--no-checkout", str(root), str(folder))
        try:
            _git(folder, "checkout", "--quiet", "--detach", commit)
        except UdcError:
            raise UdcError(f"commit {commit} of run {run.info.run_id} is not in {root}; fetch it first (git fetch, or "
                           "dvc exp pull for an experiment)") from None  # fmt: skip
        if run.data.tags.get(f"{DIRTY}.{stage}") == "true":
            patch = artifact(run.info.run_id, f"git/{stage}.patch", Path(scratch))
            _git(folder, "apply", "--binary", "--whitespace=nowarn", str(patch))
        _fetch_data(root, folder)
        yield run, folder


def _fetch_data(root: Path, folder: Path) -> None:
    """Put the raw data into the clone: from DVC's cache or remote, else as it lies in the repository now."""
    from udc_model.config import load_params

    cache = _dvc(root, "cache", "dir")
    _dvc(folder, "cache", "dir", "--local", cache)
    local = root / ".dvc" / "config.local"  # where a user's remotes and credentials are
    if local.is_file():
        settings = local.read_text(encoding="utf-8") + "\n"
        with (folder / ".dvc" / "config.local").open("a", encoding="utf-8") as out:
            out.write(settings)
    params = load_params(folder / "params.yaml")
    raw = Path(params.data.path)
    tracked = [path for path in folder.rglob("*.dvc") if path.is_file()]
    if tracked:
        _dvc(folder, "pull", "--quiet", *(path.relative_to(folder).as_posix() for path in tracked))
    here = folder / raw
    if params.data.source == "digits" or raw.is_absolute() or _has_files(here):
        return
    if not _has_files(root / raw):
        raise UdcError(f"{raw}: the run's images are neither in DVC nor here any more")
    if here.is_dir():
        shutil.rmtree(here)
    here.parent.mkdir(parents=True, exist_ok=True)
    here.symlink_to(root / raw)


def _has_files(folder: Path) -> bool:
    return any(path.is_file() and path.name not in (".gitignore", ".gitkeep") for path in folder.rglob("*"))


def _recorded_metrics(run: Run) -> dict[str, Any] | None:
    """``metrics.json`` of the run; None if it has no evaluation."""
    if run.data.tags.get(EVALUATED) != "true":
        return None
    with tempfile.TemporaryDirectory() as scratch:
        path = artifact(run.info.run_id, "metrics.json", Path(scratch))
        return dict(json.loads(path.read_text(encoding="utf-8")))


def _compared(run: Run, recorded: Mapping[str, Any] | None, workspace: Workspace) -> Reproduction:
    found = Reproduction(run.info.run_id, changed=_changed(run, workspace))
    sha256 = sha256_of(workspace.model / "model.safetensors")
    if sha256 != run.data.tags.get(MODEL_SHA256):
        found.differences.append(f"weights: sha256 {sha256}, was {run.data.tags.get(MODEL_SHA256)}")
    if recorded is not None:
        now = json.loads(workspace.metrics.read_text(encoding="utf-8"))
        found.differences += list(_metric_differences(recorded, now))
    return found


def _metric_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for split in sorted(then.keys() | now.keys()):
        one, other = then.get(split, {}), now.get(split, {})
        for name in sorted(one.keys() | other.keys()):
            a, b = one.get(name), other.get(name)
            if a != b:
                by = f" ({b - a:+.3g})" if isinstance(a, int | float) and isinstance(b, int | float) else ""
                yield f"{split}/{name}: {b}, was {a}{by}"


def _changed(run: Run, workspace: Workspace | None) -> list[str]:
    """What is known to be other than when the run was made: data, packages, hardware."""
    from udc_model.config import TrainParams
    from udc_model.training.hardware import pick_hardware

    tags = run.data.tags
    changed = []
    if workspace is not None:
        digest = json.loads((workspace.prepared / "dataset.json").read_text(encoding="utf-8"))["digest"]
        for entry in run.inputs.dataset_inputs[:1] if run.inputs else []:
            if entry.dataset.digest != digest[: len(entry.dataset.digest)]:
                changed.append(f"data: digest {digest}, was {entry.dataset.digest}")
    now = provenance("reproduce")
    if TRAINED_BY in tags:  # device and precision are those of the run that trained
        return changed + _differing(tags, now, [name for name in tags if name.startswith("udc.version.")])
    hardware = pick_hardware(TrainParams.model_validate(_train_params(run))).describe()
    names = [name for name in tags if name.startswith("udc.version.")]
    return changed + _differing(tags, now | hardware, [*names, *_HARDWARE])


def _train_params(run: Run) -> dict[str, str]:
    known = run.data.params
    return {name: known[f"train.{name}"] for name in ("device", "precision") if f"train.{name}" in known}


def _differing(then: Mapping[str, str], now: Mapping[str, str], names: list[str]) -> list[str]:
    return [f"{name.removeprefix('udc.version.').removeprefix('udc.')}: {now.get(name, 'missing')}, was {then[name]}"
            for name in sorted(names) if name in then and then[name] != now.get(name)]  # fmt: skip


def _git(folder: Path, *arguments: str) -> None:
    _checked(["git", "-C", str(folder), *arguments], folder if folder.is_dir() else Path())


def _dvc(folder: Path, *arguments: str) -> str:
    # its own root, so a throw-away store, and none of the settings of an experiment that may be around
    foreign = ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_RUN_ID", "DVC_STAGE")
    env = {key: value for key, value in os.environ.items() if key not in foreign}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"  # where the stages find python
    env |= {"DVC_ROOT": str(folder), "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    return _checked([sys.executable, "-m", "dvc", *arguments], folder, env)


def _checked(command: list[str], folder: Path, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        told = (done.stderr or done.stdout).strip()
        raise UdcError(f"{' '.join(command[2:] if command[1] == '-m' else command)} failed in {folder}:\n{told}")
    return done.stdout.strip()
