"""The MLflow run of a stage, as the stage uses it: a journal on disk, and a process that delivers it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from udc_model.errors import without_credentials
from udc_model.tracking.journal import Journal, report_warnings, sender_is_off, timestamp
from udc_model.tracking.model import LOADER
from udc_model.tracking.provenance import environment, provenance, uncommitted
from udc_model.tracking.sender_process import SenderProcess
from udc_model.tracking.store import experiment_name, repository_root, tracking_uri
from udc_model.tracking.tags import COMMIT, DIRTY

logger = logging.getLogger(__name__)

_THUMBNAIL = 256  # longest side of the small copy of an image, pixels
_MAX_PARAM = 500  # characters; longer values are only in the artifact params.yaml
_READY_TIMEOUT = 30.0  # seconds


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class StageRun:
    """Logs what a stage does; nothing waits for MLflow.

    ``new_only`` marks what an evaluation logs about the training: it is left out if the run has the training already.

    Attributes
    ----------
    key : identifies the run before MLflow has one. Stages with it in the environment variable
        :data:`~udc_model.tracking.provenance.STUDY_KEY` log to runs below this one.
    status_on_error : status of the run if the stage ends with an exception; FAILED also logs the traceback.
    """

    status_on_error = "FAILED"

    def __init__(self, stage: str, tags: Mapping[str, str], key: str | None = None, name: str | None = None) -> None:
        self.tags = {**provenance(stage), **tags}
        self.key = key or uuid.uuid4().hex
        root = repository_root()
        report_warnings(root)
        self._uri = without_credentials(tracking_uri())
        header = {
            "root": str(root),
            "uri": self._uri,
            "experiment": experiment_name(),
            "outer": os.environ.get("MLFLOW_RUN_ID"),
            "tags": self.tags,
            "name": name and f"{name} {self.key[:4]}",
        }
        self._journal = Journal.create(root, stage, header, self.key)
        self._messages: dict[str, Any] = {}
        self._sender = None if sender_is_off() else SenderProcess(self._journal.folder, root)

    def _append(self, kind: str, **values: Any) -> None:
        self._journal.append(kind, **values)
        if self._sender is not None:
            self._sender.notify()
            self._read_messages(0)

    def log_params(self, values: Mapping[str, Any], *, new_only: bool = False) -> None:
        """Log nested parameters under dotted names; lists as JSON."""
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(values).items()}
        params = {
            key: text if len(text) <= _MAX_PARAM else f"{len(text)} characters; see params.yaml"
            for key, text in texts.items()
        }
        items = list(params.items())
        for start in range(0, len(items), 100):  # the limit of one request of MLflow
            self._append("batch", params=dict(items[start : start + 100]), new_only=new_only)

    def log_metrics(
        self, values: Mapping[str, float | None], step: int | None = None, *, new_only: bool = False,
        measured: int | None = None,
    ) -> None:  # fmt: skip
        """Log metrics, without those that are None.

        ``measured`` is the time of measurement in ms since 1970 (default: now). MLflow stores a point once that is
        logged twice with the same time.
        """
        when = {} if measured is None else {"time": measured}
        items = [(name, value) for name, value in values.items() if value is not None]
        for start in range(0, len(items), 1000):
            self._append("batch", metrics=dict(items[start : start + 1000]), step=step, new_only=new_only, **when)

    def set_tags(self, tags: Mapping[str, str], *, fill_run_id: bool = False) -> None:
        """Set tags of the run; ``fill_run_id`` as in :meth:`log_text`."""
        self._append("batch", tags=dict(tags), **({"fill_run_id": True} if fill_run_id else {}))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table as the artifact ``name``, a JSON file that MLflow's page shows beside those of other runs."""
        cells = [[None if cell != cell else cell for cell in row] for row in rows]  # JSON has no NaN
        self.log_text(json.dumps({"columns": list(columns), "data": cells}, ensure_ascii=False), name)
        self.set_tags({"mlflow.loggedArtifacts": json.dumps([{"path": name, "type": "table"}])})

    def log_folder(self, folder: Path, name: str) -> None:
        """Log all files of a folder, in their present state, as artifacts under ``name``."""
        self._append("artifact", file=self._journal.copy(folder), target=name)

    def log_file(self, path: Path, folder: str = "", *, new_only: bool = False) -> None:
        """Log a file, in its present state, as an artifact under its name."""
        self._log_copy(path, folder, **({"new_only": True} if new_only else {}))

    def _log_copy(self, path: Path, folder: str, **options: bool) -> None:
        self._append("artifact", file=self._journal.copy(path), target=folder, **options)

    def log_text(self, text: str, name: str, *, fill_run_id: bool = False) -> None:
        """Log a text as the artifact ``name``.

        With ``fill_run_id`` each :data:`~udc_model.tracking.journal.RUN_ID_PLACEHOLDER` in the text is replaced by the
        id of the run, and each ``EXPERIMENT_ID_PLACEHOLDER`` by that of its experiment, which are not known before the
        text is delivered.
        """
        target = Path(name)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / target.name
            path.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
            options = {"fill_run_id": True} if fill_run_id else {}
            self._log_copy(path, "" if target.parent == Path() else target.parent.as_posix(), **options)

    def log_image(self, image: Path, key: str) -> None:
        """Log a PNG that MLflow's page shows beside the image of the same key in other runs.

        Does what ``MlflowClient.log_image`` does, but without importing mlflow, and a repeated delivery writes the same
        file names.
        """
        from PIL import Image

        stem = f"{key.replace('/', '~')}+step+0+timestamp+{timestamp()}+{uuid.uuid4()}"
        with tempfile.TemporaryDirectory() as scratch, Image.open(image) as opened:
            shutil.copyfile(image, Path(scratch) / f"{stem}.png")
            opened.thumbnail((_THUMBNAIL, _THUMBNAIL))
            opened.save(Path(scratch) / f"{stem}+compressed.webp")
            for path in sorted(Path(scratch).iterdir()):
                self.log_file(path, "images")
        self.set_tags({"mlflow.loggedImages": "True"})

    def log_dataset(
        self, name: str, digest: str, source: Mapping[str, str], context: str, counts: Mapping[str, Mapping[str, int]],
        *, new_only: bool = False,
    ) -> None:  # fmt: skip
        """Log a data set, by name and digest, as an input of the run; ``counts`` are its images by split and class."""
        images = {split: sum(classes.values()) for split, classes in counts.items()}
        profile = {"num_rows": sum(images.values()), "images": images, "classes": len(next(iter(counts.values()), ()))}
        self._append("dataset", name=name, digest=digest, source=dict(source), context=context, profile=profile,
                     new_only=new_only)  # fmt: skip

    def log_classifier(self, bundle: Path, package: Path, requirements: Sequence[str]) -> None:
        """Log a folder that ``udc_model.inference.serving`` can load, with that code, as a model.

        ``requirements`` names the distributions that the model needs. They are pinned to the installed versions.
        """
        self._append("model", bundle=self._journal.copy(bundle), package=self._journal.copy(package), loader=LOADER,
                     requirements=[f"{name}=={version(name).split('+')[0]}" for name in requirements])  # fmt: skip

    def _wait_for(self, *names: str, timeout: float | None = None) -> None:
        """Wait until the sender has sent one of these messages, or has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not any(self._messages.get(name) for name in names):
            remaining = None if deadline is None else deadline - time.monotonic()
            if (remaining is not None and remaining < 0) or not self._read_messages(remaining):
                return

    def _read_messages(self, timeout: float | None) -> bool:
        """Read the sender's messages, waiting at most ``timeout`` seconds for one; returns whether it may send more."""
        if self._sender is None:
            return False
        messages, may_send_more = self._sender.read_messages(timeout)
        for message in messages:
            self._messages |= message
            if message.get("warning"):
                logger.warning("%s", message["warning"])
            if trouble := message.get("trouble"):
                logger.warning("the tracking server %s cannot be reached (%s); entries are stored in %s", self._uri,
                               trouble, self._journal.folder)  # fmt: skip
            elif trouble is not None:
                logger.warning("the tracking server %s can be reached again", self._uri)
        return may_send_more

    def end(self, status: str) -> None:
        """Log the end of the stage. The sender delivers the rest after the stage has ended."""
        self._append("end", status=status)
        self._journal.close()
        self._wait_for("ready", timeout=_READY_TIMEOUT)  # from then on it needs no file of the stage's folder
        if self._sender is None:
            return
        self._sender.release()
        if self._messages.get("trouble") or self._sender.has_failed():
            logger.warning("part of this run is not logged to MLflow yet; `udc sync` logs it (stored in %s)",
                           self._journal.folder)  # fmt: skip

    def __str__(self) -> str:
        """Name and id of the run, if they are known already."""
        if run_id := self._messages.get("run_id"):
            return f"{self._messages.get('name')} ({run_id})"
        return "stored for MLflow (udc sync)" if self._sender is None else "logged in the background (udc ui)"


@contextmanager
def stage_run(
    stage: str, tags: Mapping[str, str], key: str | None = None, name: str | None = None,
    hardware: Mapping[str, str] | None = None,
) -> Iterator[StageRun]:  # fmt: skip
    """The run of a stage.

    ``train`` creates a run, or fills the run that ``mlflow run`` opened. ``evaluate`` joins the run that trained the
    model, and creates a new run with the tag ``udc.trained_by`` if that run has an evaluation already, or is of another
    DVC experiment (``train`` came from DVC's cache): no run is overwritten.

    The run ends with status FINISHED; KILLED after Ctrl-C or SIGTERM; :attr:`StageRun.status_on_error` after any other
    exception.

    Parameters
    ----------
    tags : of the run; an evaluation needs :data:`~udc_model.tracking.tags.MODEL_SHA256`.
    key : of a run that several processes fill, one after the other (a resumed training run).
    name : of a new run outside of a DVC experiment, whose name it has otherwise; four characters of the key follow.
    hardware : on which the model is trained, for the artifact ``environment/STAGE.json``.
    """
    run = StageRun(stage, tags, key, name)
    status = "FAILED"
    try:
        # evaluate may join a run that another state of the code trained
        run.set_tags({f"{tag}.{stage}": run.tags[tag] for tag in (COMMIT, DIRTY) if tag in run.tags})
        recorded = environment() | {"hardware": dict(hardware or {})}
        run.log_text(json.dumps(recorded, indent=2, ensure_ascii=False) + "\n", f"environment/{stage}.json")
        if patch := uncommitted():
            run.log_text(patch, f"git/{stage}.patch")
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except Exception:
        status = run.status_on_error
        if status == "FAILED":
            run.log_text(without_credentials(traceback.format_exc()), f"error/{stage}.txt")
        raise
    finally:
        run.end(status)
