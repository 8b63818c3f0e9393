"""Runs the pipeline of a recorded run again, with the same commit, changes and data, and compares the results."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from udc_model.config import load_params
from udc_model.decisions.familiarity import Familiarity
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.evaluation.metrics import Metrics
from udc_model.evaluation.tables import read_metrics
from udc_model.experiments.names import resolve_run
from udc_model.experiments.stored import Fetch, fetch_policy
from udc_model.files import Workspace, sha256_of
from udc_model.installed import installed, read_pin
from udc_model.tracking import provenance
from udc_model.tracking.journal import SENDER, wait_for_senders
from udc_model.tracking.lookup import artifact, environment, flat_environment
from udc_model.tracking.provenance import dvc_hash
from udc_model.tracking.store import repository_root
from udc_model.tracking.tags import (
    COMMIT,
    DATA,
    DIRTY,
    EVALUATED,
    EXPERIMENT_NAME,
    FOLD,
    MODEL_SHA256,
    TRAINED_BY,
    read_tag,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

SPLITS = ("test", "validation")  # those with metrics
_THREADS = "threads"
_INSTRUCTIONS = "instructions"  # of the processor
_HARDWARE = ("device", "precision", "kernels", _INSTRUCTIONS)


@dataclass
class Reproduction:
    """Result of a reproduction: differences of weights and metrics, and changes since the run that may explain them.

    ``unrecorded`` is what may explain differences too, but was not recorded by the version that made the run.
    """

    run_id: str
    differences: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """Whether all weights and metrics are bitwise equal."""
        return not self.differences

    def to_text(self) -> str:
        """The result, then the differences, then the changes."""
        if self.identical:
            lines = [f"identical: run {self.run_id} is reproduced, all weights and metrics are bitwise equal"]
            return (
                "\n".join([*lines, *(f"  (changed since the run, without effect: {line})" for line in self.changed)])
                + "\n"
            )
        lines = [f"different: run {self.run_id} is not reproduced", *(f"  {line}" for line in self.differences)]
        changes = [*(self.changed or ["nothing that is recorded"]), *self.unrecorded]
        lines += ["changed since the run:", *(f"  {line}" for line in changes)]
        return "\n".join(lines) + "\n"


def reproduce(name: str) -> Reproduction:
    """Run the pipeline of a recorded run again, in a temporary clone, and compare.

    The clone has the run's commit and uncommitted changes. Its raw data come from DVC's cache or a remote, or from the
    repository's working tree if DVC does not track them. All stages are executed, with the recorded number of threads.
    Nothing is written to the repository, its cache or its MLflow store.

    Parameters
    ----------
    name : see :func:`~udc_model.experiments.names.resolve_run`.

    Raises
    ------
    UdcError
        The run is not found, its commit or data do not exist any more, or its pipeline fails.
    """
    with _cloned(resolve_run(name)) as (run, folder):
        logger.info("running the pipeline of run %s again in %s", run.info.run_id, folder)
        recorded = _recorded_metrics(run)
        try:
            last = "train" if recorded is None else "evaluate"
            _dvc(folder, "repro", "--force", "--no-commit", "--quiet", last, threads=environment(run).get(_THREADS))
        finally:
            wait_for_senders(folder)  # of version 0.1.0, which does not know UDC_SENDER; they write into the clone
        return _compare(run, recorded, Workspace(folder))


def check(name: str) -> str:
    """Check that everything a reproduction needs exists, and return a report.

    Raises
    ------
    UdcError
        As `reproduce`; or the images are not those of the run. The message names what is missing or differs.
    """
    with _cloned(resolve_run(name)) as (run, folder):
        about_data = _check_data(run, repository_root(), folder)
        changed = _changes(run, None, environment(run))
    lines = [f"run {run.info.run_id} can be reproduced: commit, changes and data exist", f"  data: {about_data}"]
    return "\n".join([*lines, *(f"  changed since the run: {line}" for line in changed)]) + "\n"


@contextmanager
def _cloned(run: Run) -> Iterator[tuple[Run, Path]]:
    """The run, and a temporary clone with its code, changes and raw data."""
    if fold := run.data.tags.get(FOLD):
        raise UdcError(f"run {run.info.run_id} is fold {fold} of a cross-validation, which no pipeline makes; "
                       "`udc cross-validate` at its commit, with its parameters, runs all folds again")  # fmt: skip
    stage = "evaluate" if f"{COMMIT}.evaluate" in run.data.tags else "train"
    commit = run.data.tags.get(f"{COMMIT}.{stage}")
    if not commit:
        raise UdcError(f"run {run.info.run_id} has no commit; it was not started in a git repository")
    root = repository_root()
    with tempfile.TemporaryDirectory(prefix="udc-reproduce-", ignore_cleanup_errors=True) as scratch:
        clone, top = Path(scratch) / "clone", Path(_git(root, "rev-parse", "--show-toplevel"))
        # --shared: commits of experiments are in no branch, but among the repository's objects
        _git(root, "clone", "--quiet", "--shared", "--no-checkout", str(top), str(clone))
        try:
            _git(clone, "checkout", "--quiet", "--detach", commit)
        except UdcError:
            experiment = read_tag(run.data.tags, EXPERIMENT_NAME)
            command = f"dvc exp pull origin {experiment}" if experiment else f"git fetch origin {commit}"
            raise UdcError(f"commit {commit} of run {run.info.run_id} is not in {root}; fetch it from where it was "
                           f"made: `{command}`") from None  # fmt: skip
        if read_tag(run.data.tags, f"{DIRTY}.{stage}") == "true":
            patch = artifact(run.info.run_id, f"git/{stage}.patch", Path(scratch))
            _git(clone, "apply", "--binary", "--whitespace=nowarn", str(patch))
        folder = clone / root.relative_to(top.resolve())  # a project may be in a folder of a repository
        pin = read_pin(folder)
        if pin is not None and pin.installed != installed():
            raise UdcError(f"run {run.info.run_id} is of {pin.installed}, but {installed()} is installed; run udc "
                           "reproduce where the other one is installed")  # fmt: skip
        _fetch_data(root, folder, run.data.params.get("model.weights"))
        _check_weights(run, root, folder)
        yield run, folder


def _fetch_data(root: Path, folder: Path, weights: str | None) -> None:
    """Put the raw data into the clone: from DVC's cache or remote, else by a link to the repository's working tree.

    Parameters
    ----------
    weights : path of those that training starts from, which DVC may track too.
    """
    cache = _share_cache_and_remotes(root, folder)
    source, raw = _raw_data(folder / "params.yaml")
    if needed := _needed(folder, weights):
        _pull(folder, needed, cache)
    target = folder / raw
    if source == "digits" or _has_files(target):
        return
    if not _has_files(root / raw):
        raise UdcError(f"{raw}: the images of the run are neither in git or DVC at its commit nor in {root / raw}")
    if raw.is_absolute():
        return
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(root / raw)


def _share_cache_and_remotes(root: Path, folder: Path) -> str:
    """Give the clone the user's settings, credentials, cache and remotes; returns the folder of the cache.

    Paths that are relative to a file of the repository's configuration become those that they mean there.
    """
    from dvc.config import merge
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repository, Repo(str(folder)) as clone, clone.config.edit("local") as settings:
            remotes = {name: {"url": remote["url"]} for name, remote in repository.config["remote"].items()}
            cache = str(repository.cache.local_cache_dir)
            merge(settings, repository.config.load_one("local"))
            merge(settings, {"remote": remotes, "cache": {"dir": cache}})
    except DvcException as error:
        raise UdcError(f"the configuration of DVC in {root} cannot be used: {error}") from None
    return cache


def _needed(folder: Path, weights: str | None) -> list[str]:
    """The ``.dvc`` files of the clone with data that a stage reads, or with the weights that training starts from."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(folder)) as repository:
            stages, root = repository.index.stages, Path(repository.root_dir)
            read = [Path(dep.fs_path) for stage in stages if stage.cmd for dep in stage.deps]
            read += [root / weights] if weights else []
            return [Path(stage.path).relative_to(root).as_posix() for stage in stages
                    if not stage.cmd and any(_overlap(Path(out.fs_path), path) for out in stage.outs for path in read)
                    ]  # fmt: skip
    except DvcException as error:
        raise UdcError(f"the pipeline of the run cannot be read: {error}") from None


def _overlap(path: Path, other: Path) -> bool:
    """Whether they are the same, or one is in the other."""
    return path.is_relative_to(other) or other.is_relative_to(path)


def _check_weights(run: Run, root: Path, folder: Path) -> None:
    """Put the weights that training starts from into the clone, and check that they are those of the run.

    Raises
    ------
    UdcError
        They are missing, or another file; the message has both digests. Runs of old versions are not checked.
    """
    name, sha256 = (run.data.params.get(f"model.{key}", "null") for key in ("weights", "weights_sha256"))
    if "null" in (name, sha256):
        return
    from udc_model.models.pretrained import preprocessor_file, resolve_weights

    for path in (Path(name), preprocessor_file(Path(name))):
        if not path.is_absolute() and (root / path).exists() and not (folder / path).exists():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to((root / path).absolute())
    model = load_params(folder / "params.yaml").model
    try:
        with chdir(folder):
            resolve_weights(model.model_copy(update={"weights": name, "weights_sha256": sha256}))
    except UdcError as error:
        raise UdcError(f"run {run.info.run_id} cannot be reproduced: {error}") from None


def _pull(folder: Path, tracked: list[str], cache: str) -> None:
    """Put the data of ``.dvc`` files into the clone; :class:`UdcError` with hashes and places if some are missing."""
    try:
        _dvc(folder, "pull", "--quiet", *tracked)
    except UdcError as error:
        outs = [
            f"  {(Path(name).parent / out['path']).as_posix()}, DVC hash {out.get('md5', 'unknown')}"
            for name in tracked
            for out in yaml.safe_load((folder / name).read_text(encoding="utf-8")).get("outs", [])
        ]
        reason = str(error).strip().splitlines()[-1]
        heading = f"data of the run is neither in DVC's cache {cache} nor in a remote:"
        advice = f"run `dvc push` where the data is, then `dvc pull` here ({reason})"
        raise UdcError("\n".join([heading, *outs, advice])) from None


def _check_data(run: Run, root: Path, folder: Path) -> str:
    """Compare DVC's hash of the raw data with the recorded one, and return a line about it.

    Raises
    ------
    UdcError
        The hash differs; the message has both, and where the data is.
    """
    source, raw = _raw_data(folder / "params.yaml")
    if source == "digits":
        return "scikit-learn's digits"
    target = folder / raw
    expected = json.loads(read_tag(run.data.tags, DATA) or "{}").get(raw.as_posix())
    place = f"in {root / raw}" if raw.is_absolute() or target.is_symlink() else "from git or DVC"
    if expected is None:
        return f"{raw}, {place}; its hash was not recorded, so it is not compared"
    current = dvc_hash(target)
    if current != expected:
        raise UdcError(f"{raw}: the images differ from those of run {run.info.run_id}: DVC hash {current} ({place}), "
                       f"was {expected}; restore them, or run the experiment again")  # fmt: skip
    return f"{raw}, {place}, DVC hash {current} as recorded"


def _raw_data(params_file: Path) -> tuple[str, Path]:
    """``data.source`` and ``data.path``. The other parameters are not validated: the run may be of an old version."""
    try:
        data = yaml.safe_load(params_file.read_text(encoding="utf-8"))["data"]
        return str(data["source"]), Path(data["path"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UdcError(f"{params_file}: data.source and data.path cannot be read: {error!r}") from None


def _has_files(folder: Path) -> bool:
    return any(path.is_file() and path.name not in (".gitignore", ".gitkeep") for path in folder.rglob("*"))


def _recorded_metrics(run: Run) -> Metrics | None:
    """All metrics of the run, as ``test/accuracy``; None if it has no evaluation."""
    if read_tag(run.data.tags, EVALUATED) != "true":
        return None
    with tempfile.TemporaryDirectory() as scratch:
        return _all_metrics(lambda file: artifact(run.info.run_id, f"evaluation/{file}", Path(scratch)))


def _all_metrics(fetch: Fetch) -> Metrics:
    """The metrics of all splits, from the tables of an evaluation folder."""
    return {f"{split}/{name}": value
            for split in SPLITS for name, value in read_metrics(fetch(f"{split}/metrics.csv")).items()}  # fmt: skip


def _compare(run: Run, recorded: Metrics | None, workspace: Workspace) -> Reproduction:
    before = environment(run)
    result = Reproduction(run.info.run_id, changed=_changes(run, workspace, before), unrecorded=_unrecorded(before))
    sha256 = sha256_of(workspace.model / "model.safetensors")
    if sha256 != (recorded_sha256 := read_tag(run.data.tags, MODEL_SHA256)):
        result.differences.append(f"weights: sha256 {sha256}, was {recorded_sha256}")
    if recorded is not None:
        metrics = _all_metrics(lambda file: workspace.evaluation / file)
        result.differences += _metric_differences(recorded, metrics)
        familiarity = _recorded_policy(run).familiarity
        result.differences += _familiarity_differences(familiarity, Policy.load(workspace.evaluation).familiarity)
    return result


def _metric_differences(recorded: Metrics, metrics: Metrics) -> Iterator[str]:
    for name in sorted(recorded.keys() | metrics.keys()):
        old, new = recorded.get(name), metrics.get(name)
        if old != new:
            change = "" if old is None or new is None else f" ({new - old:+.3g})"
            yield f"{name}: {new}, was {old}{change}"


def _recorded_policy(run: Run) -> Policy:
    with tempfile.TemporaryDirectory() as scratch:
        return fetch_policy(lambda file: artifact(run.info.run_id, f"evaluation/{file}", Path(scratch)))


def _familiarity_differences(recorded: Familiarity | None, now: Familiarity | None) -> Iterator[str]:
    """Whether the statistics of features, and the distances of calibration images, are bitwise equal."""
    if recorded is None or now is None:  # a run of an earlier version has none
        return
    if recorded.sha256 != now.sha256:
        yield f"familiarity: sha256 of the statistics {now.sha256}, was {recorded.sha256}"
    if recorded.distances != now.distances:
        yield "familiarity: distances of the calibration images differ"


def _changes(run: Run, workspace: Workspace | None, recorded: Mapping[str, str]) -> list[str]:
    """The recorded circumstances that differ today: data, packages, hardware."""
    from udc_model.config import TrainParams
    from udc_model.training.hardware import pick_hardware

    changed = []
    if workspace is not None:
        digest = json.loads((workspace.prepared / "dataset.json").read_text(encoding="utf-8"))["digest"]
        for entry in run.inputs.dataset_inputs[:1] if run.inputs else []:
            if entry.dataset.digest != digest[: len(entry.dataset.digest)]:
                changed.append(f"data: digest {digest}, was {entry.dataset.digest}")
    current = provenance.environment()
    if read_tag(run.data.tags, TRAINED_BY) is not None:  # device and precision are those of the training run
        return changed + _differences(recorded, current["versions"], current["versions"])
    requested = {name: run.data.params[f"train.{name}"] for name in ("device", "precision")
                 if f"train.{name}" in run.data.params}  # fmt: skip
    hardware = pick_hardware(TrainParams.model_validate(requested)).describe()
    # a library may use fewer threads than requested
    if int(recorded.get(_THREADS, 0)) > (cores := os.cpu_count() or 1):
        changed.append(f"threads: {recorded[_THREADS]}, on {cores} cores")
    now = flat_environment(current | {"hardware": hardware})
    return changed + _differences(recorded, now, [*current["versions"], "host", *_HARDWARE])


def _unrecorded(recorded: Mapping[str, str]) -> list[str]:
    """The circumstances on which last bits depend that an earlier version did not record."""
    if recorded.get("device") != "cpu" or _INSTRUCTIONS in recorded:
        return []
    from udc_model.training.hardware import instruction_set

    return [f"{_INSTRUCTIONS}: {instruction_set()}; the run did not record its own, on which last bits depend"]


def _differences(recorded: Mapping[str, str], now: Mapping[str, str], names: Iterable[str]) -> list[str]:
    return [f"{name}: {now.get(name, 'missing')}, was {recorded[name]}" for name in sorted(names)
            if name in recorded and recorded[name] != now.get(name)]  # fmt: skip


def _git(folder: Path, *arguments: str) -> str:
    return _checked(["git", "-C", str(folder), *arguments], folder if folder.is_dir() else Path())


def _dvc(folder: Path, *arguments: str, threads: str | None = None) -> str:
    """Run ``dvc`` in the clone, with this number of threads in each process (default: as in this process)."""
    # A root and a store in the clone; no settings of an experiment that runs this process.
    foreign = ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_RUN_ID", "DVC_STAGE")
    env = {key: value for key, value in os.environ.items() if key not in foreign}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"  # stages run `python`
    # what the run logs is not read, and the clone is temporary
    env |= {"DVC_ROOT": str(folder), "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", SENDER: "off"}
    if threads is not None:
        env["OMP_NUM_THREADS"] = threads
    return _checked([sys.executable, "-m", "dvc", *arguments], folder, env)


def _checked(command: list[str], folder: Path, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        output = (done.stderr or done.stdout).strip()
        raise UdcError(f"{' '.join(command[2:] if command[1] == '-m' else command)} failed in {folder}:\n{output}")
    return done.stdout.strip()
