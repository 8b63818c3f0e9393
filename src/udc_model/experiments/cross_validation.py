"""Cross-validation of the whole procedure: each fold is trained, calibrated and evaluated anew; a killed one resumes.

A fold has a workspace of its own below ``.udc/cross-validation``, so the outputs of the checkout are not touched, and
an MLflow run below that of the cross-validation.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udc_model.config import Params
from udc_model.config.limits import check_sizes
from udc_model.data.folds import Fold, ImagePool, seed_of
from udc_model.data.packed import PackedDataset
from udc_model.data.preflight import check_space
from udc_model.decisions.checks import check_data, group_counts
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.evaluation.cross_validation import CrossValidation, FoldDecisions, cross_validation
from udc_model.evaluation.tables import read_predictions
from udc_model.files import Workspace, atomic_file, atomic_folder, make_folder, only_writer, read_json, write_atomically
from udc_model.tracking.provenance import STUDY_KEY, STUDY_PART
from udc_model.tracking.run import StageRun, stage_run
from udc_model.tracking.store import repository_root

logger = logging.getLogger(__name__)

STUDIES = Path(".udc") / "cross-validation"
MOST = 1000  # folds or repeats
_STUDY, _IMAGES = "study.json", "images.bin"
_ADVICE = "delete the folder, and run the command again"


@dataclass(frozen=True)
class Procedure:
    """What is repeated on each fold.

    Attributes
    ----------
    run : trains and evaluates in a workspace with prepared data; resumes what was interrupted.
    inputs : JSON values that determine its result besides the data, as parameters and code.
    """

    run: Callable[[Params, Workspace], None]
    inputs: Mapping[str, Any]


def cross_validate(params: Params, workspace: Workspace, folds: int, repeats: int, procedure: Procedure) -> str:
    """Run the folds that have not finished, and return a table of all folds with the cost of the procedure.

    Parameters
    ----------
    params : their seed and ``data.splits`` determine the folds.
    workspace : its prepared images are used; nothing in it is changed.

    Raises
    ------
    UdcError
        The data is not prepared, a number is out of range, a class has too few images, a parameter does not fit a fold,
        or another process is writing to the workspace.
    """
    for name, value, least in (("--folds", folds, 2), ("--repeats", repeats, 1)):
        if not least <= value <= MOST:
            raise UdcError(f"{name}: must be from {least} to {MOST:,}, not {value}")
    with only_writer(workspace):
        pool = ImagePool.of(PackedDataset.open(workspace.prepared))
        seed = params.seed if params.data.split_seed is None else params.data.split_seed
        planned = pool.folds(folds, repeats, params.data.splits, seed)
        _check(params, pool, planned)
        _report_pool(pool, folds, repeats)
        study = Study.open(pool, {"folds": folds, **procedure.inputs})
        pending = [fold for fold in planned if not study.is_finished(fold)]
        if not pending and study.is_logged(repeats):
            return study.result(planned, params).to_text()
        with stage_run("cross-validate", {"mlflow.runName": f"cross-validation {study.key[:4]}"}, study.key) as run:
            run.log_params({"cross_validation": {"folds": folds, "repeats": repeats, "images": len(pool.rows)}})
            for fold in pending:
                study.run(fold, params, procedure)
                _report_fold(study, fold, len(planned), params)
            result = study.result(planned, params)
            _log(run, result)
        study.finish(repeats)
    return result.to_text()


def _check(params: Params, pool: ImagePool, folds: Sequence[Fold]) -> None:
    """Check the parameters against each fold, before the first training run."""
    labels, classes = pool.labels, pool.dataset.classes
    for fold in folds:
        counts = fold.counts(labels, classes)
        rows = pool.rows[fold.splits == 2]  # of the calibration split
        try:
            check_data(params, classes, counts["calibration"], group_counts(list(rows["label"]), list(rows["group"])))
            check_sizes(params.train, counts["train"])
        except UdcError as error:
            raise UdcError(f"fold {fold.number} of repeat {fold.repeat}: {error}") from None


def _report_pool(pool: ImagePool, folds: int, repeats: int) -> None:
    kept = (f"; the {pool.kept_out:,} images of the test split that the data prescribes are in no fold"
            if pool.kept_out else "")  # fmt: skip
    logger.info("cross-validating %s images in %d folds, %d time(s)%s", f"{len(pool.rows):,}", folds, repeats, kept)


def _report_fold(study: Study, fold: Fold, number: int, params: Params) -> None:
    decisions = study.decisions(fold)
    costs = Policy.load(study.workspace(fold).evaluation).outcome_costs
    paid = costs[decisions.true, decisions.decided]
    logger.info("repeat %d, fold %d: mean cost %.4f on %d images (%d folds in all)", fold.repeat, fold.number,
                float((paid * decisions.weights).sum() / decisions.weights.sum()), len(paid), number)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """The folds of one procedure on one data set, on disk.

    Attributes
    ----------
    folder : of the workspaces of the folds; its name is a digest of all that determines their results.
    key : of the MLflow run.
    """

    folder: Path
    key: str
    pool: ImagePool

    @classmethod
    def open(cls, pool: ImagePool, inputs: Mapping[str, Any]) -> Study:
        """The study with these inputs, created if there is none; :class:`UdcError` if it cannot be written."""
        everything = json.dumps({"data": pool.dataset.info["digest"], **inputs}, sort_keys=True)
        folder = make_folder(repository_root() / STUDIES / hashlib.sha256(everything.encode()).hexdigest()[:16])
        if not (folder / _STUDY).exists():
            write_atomically(folder / _STUDY, json.dumps({"key": uuid.uuid4().hex, "logged": 0}) + "\n")
        return cls(folder, str(read_json(folder / _STUDY, _ADVICE).get("key")), pool)

    def workspace(self, fold: Fold) -> Workspace:
        """Where a fold is trained and evaluated."""
        return Workspace(self.folder / fold.name)

    def is_finished(self, fold: Fold) -> bool:
        """Whether a fold is evaluated: ``evaluate`` writes its metrics last."""
        return self.workspace(fold).metrics.is_file()

    def is_logged(self, repeats: int) -> bool:
        """Whether the result of this number of repeats is in MLflow."""
        return read_json(self.folder / _STUDY, _ADVICE).get("logged") == repeats

    def run(self, fold: Fold, params: Params, procedure: Procedure) -> None:
        """Prepare, train and evaluate a fold; only its evaluation remains on disk, the rest is in its MLflow run."""
        workspace = self.workspace(fold)
        if not workspace.prepared.is_dir():
            images = self.folder / _IMAGES
            if not images.is_file():
                check_space(self.folder, len(self.pool.rows), self.pool.dataset.preprocessing)
                with atomic_file(images) as scratch:
                    self.pool.write_images(scratch)
            with atomic_folder(workspace.prepared) as folder:
                self.pool.write(fold, folder, images)
        of_fold = params.model_copy(update={"seed": seed_of(params.seed, fold.repeat, fold.number)})
        with _part_of(self.key, f"{fold.number} of repeat {fold.repeat}"), _quiet_stages():
            procedure.run(of_fold, workspace)
        for path in (workspace.prepared, workspace.model, workspace.training):
            shutil.rmtree(path, ignore_errors=True)

    def decisions(self, fold: Fold) -> FoldDecisions:
        """The decisions on the test split of a finished fold."""
        import pandas as pd

        evaluation = self.workspace(fold).evaluation
        policy = Policy.load(evaluation)
        table = read_predictions(evaluation / "test/predictions.csv", with_logits=False)
        unit_of = dict(zip(self.pool.rows["path"], self.pool.units, strict=True))
        outcome_of = {name: k for k, name in enumerate(policy.outcomes)}
        metrics = pd.read_csv(evaluation / "test/metrics.csv").set_index("metric")
        low, high = (float(metrics[end]["normalised_cost"]) for end in ("low", "high"))
        return FoldDecisions(
            fold.repeat, fold.number, len(self.pool.rows) - len(table),
            table["path"].map(unit_of).to_numpy(), table["true"].map(outcome_of).to_numpy(),
            table["predicted"].map(outcome_of).to_numpy(), table["weight"].to_numpy(dtype=float),
            True if high < 1 else False if low > 1 else None,
        )  # fmt: skip

    def result(self, folds: Sequence[Fold], params: Params) -> CrossValidation:
        """The result of finished folds."""
        policy = Policy.load(self.workspace(folds[0]).evaluation)
        decisions = [self.decisions(fold) for fold in folds]
        return cross_validation(decisions, policy.outcome_costs, policy.outcomes, params.evaluate.confidence)

    def finish(self, repeats: int) -> None:
        """Store that the result is logged, and delete the images."""
        write_atomically(self.folder / _STUDY, json.dumps({"key": self.key, "logged": repeats}) + "\n")
        (self.folder / _IMAGES).unlink(missing_ok=True)


@contextmanager
def _part_of(key: str, part: str) -> Iterator[None]:
    """Stages in the block log to runs below the run with this key, as ``udc tune``'s trials do."""
    values = {STUDY_PART: part, STUDY_KEY: key}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _quiet_stages() -> Iterator[None]:
    """The stages in the block log errors only; one line about each fold follows."""
    stages = logging.getLogger("udc_model.stages")
    level = stages.level
    stages.setLevel(logging.ERROR)
    try:
        yield
    finally:
        stages.setLevel(level)


def _log(run: StageRun, result: CrossValidation) -> None:
    run.log_text(result.to_text(), "cross_validation.txt")
    run.log_text(result.table.to_csv(index=False), "folds.csv")
    for name, estimate in (("cost", result.cost), ("difference", result.difference)):
        values = {"": estimate.value, "_low": estimate.low, "_high": estimate.high}
        run.log_metrics({f"cross_validation/{name}{end}": value for end, value in values.items()})
