"""A stage's MLflow run, as the stage sees it: a journal on disk, and a process that sends it."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import udc_model
from udc_model.tracking.journal import Journal, milliseconds
from udc_model.tracking.provenance import COMMIT, DIRTY, provenance, uncommitted
from udc_model.tracking.store import experiment_name, repository_root, tracking_uri, without_credentials

logger = logging.getLogger(__name__)

_THUMBNAIL = 256  # longest side of the small copy of an image, pixels
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


class StageRun:
    """What a stage logs. Nothing here waits for the tracker, but :meth:`run_id` and the end of the stage.

    ``new_only`` marks what an evaluation says of the training: it is left out where the run holds the training already.
    """

    def __init__(self, stage: str, tags: Mapping[str, str], key: str | None = None) -> None:
        self.status_on_error = "FAILED"
        self.tags = {**provenance(stage), **tags}
        root = repository_root()
        header = {
            "uri": without_credentials(tracking_uri()),
            "experiment": experiment_name(),
            "outer": os.environ.get("MLFLOW_RUN_ID"),
            "tags": self.tags,
        }
        self._journal = Journal.create(root, stage, header, key)
        package = Path(udc_model.__file__).parent.parent
        # a session of its own: it outlives the stage's process group, to send what a killed stage has left
        self._sender = subprocess.Popen(
            [sys.executable, "-m", "udc_model.tracking.sender", str(self._journal.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, start_new_session=True,
            env=os.environ | {"DVC_ROOT": str(root), "PYTHONPATH": str(package)},
        )  # fmt: skip
        assert self._sender.stdin is not None
        assert self._sender.stdout is not None
        os.set_blocking(self._sender.stdin.fileno(), False)
        self._told: dict[str, str] = {}

    def _append(self, kind: str, **values: Any) -> None:
        self._journal.append(kind, **values)
        assert self._sender.stdin is not None
        # full: the sender has enough to do; broken: it is gone, and `udc sync` sends the journal
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self._sender.stdin.fileno(), b"\n")

    def log_params(self, values: Mapping[str, Any], *, new_only: bool = False) -> None:
        """Log nested parameters under dotted names; lists as JSON."""
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(values).items()}
        params = {
            key: text if len(text) <= _LONGEST_PARAM else f"{len(text)} characters; see params.yaml"
            for key, text in texts.items()
        }
        items = list(params.items())
        for start in range(0, len(items), 100):  # as many as one request of MLflow takes
            self._append("batch", params=dict(items[start : start + 100]), new_only=new_only)

    def log_metrics(
        self, values: Mapping[str, float | None], step: int | None = None, *, new_only: bool = False,
        measured: int | None = None,
    ) -> None:  # fmt: skip
        """Log metrics; those that are None are left out.

        ``measured`` says when (ms since 1970; default: now). A point that is logged again with it is stored once.
        """
        when = {} if measured is None else {"time": measured}
        # MLflow refuses other characters in a name; a class may be called anything
        known = {re.sub(r"[^/\w.\- :]", "_", name): value for name, value in values.items() if value is not None}
        items = list(known.items())
        for start in range(0, len(items), 1000):
            self._append("batch", metrics=dict(items[start : start + 1000]), step=step, new_only=new_only, **when)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._append("batch", tags=dict(tags))

    def log_folder(self, folder: Path, name: str) -> None:
        """Log all files of a folder, as they are now, as artifacts under ``name``."""
        self._append("artifact", file=self._journal.keep(folder), target=name)

    def log_file(self, path: Path, folder: str = "") -> None:
        """Log a file, as it is now, as an artifact under its own name."""
        self._append("artifact", file=self._journal.keep(path), target=folder)

    def log_text(self, text: str, name: str) -> None:
        """Log a text as the artifact ``name``."""
        target = Path(name)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / target.name
            path.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
            self.log_file(path, "" if target.parent == Path() else target.parent.as_posix())

    def log_image(self, image: Path, key: str) -> None:
        """Log a PNG for MLflow's page to show beside the same picture of other runs.

        As ``MlflowClient.log_image`` does, whose file names would be others at a second delivery; and without importing
        mlflow, which is the sender's.
        """
        from PIL import Image

        stem = f"{key.replace('/', '~')}+step+0+timestamp+{milliseconds()}+{uuid.uuid4()}"
        with tempfile.TemporaryDirectory() as scratch, Image.open(image) as opened:
            shutil.copyfile(image, Path(scratch) / f"{stem}.png")
            opened.thumbnail((_THUMBNAIL, _THUMBNAIL))
            opened.save(Path(scratch) / f"{stem}+compressed.webp")
            for path in sorted(Path(scratch).iterdir()):
                self.log_file(path, "images")
        self.set_tags({"mlflow.loggedImages": "True"})

    def log_dataset(
        self, name: str, digest: str, source: Mapping[str, str], context: str, *, new_only: bool = False
    ) -> None:
        """Record a data set, by name and digest, as an input."""
        self._append("dataset", name=name, digest=digest, source=dict(source), context=context, new_only=new_only)

    def log_classifier(self, bundle: Path, package: Path, requirements: Sequence[str]) -> None:
        """Log a folder that ``udc_model.inference.serving`` can load, with the code that loads it, as a model.

        ``requirements`` names the distributions that the model needs, which are pinned to the versions installed here.
        """
        self._append("model", bundle=self._journal.keep(bundle), package=self._journal.keep(package),
                     requirements=[f"{name}=={version(name).split('+')[0]}" for name in requirements])  # fmt: skip

    def run_id(self) -> str | None:
        """The run's id, once the tracker has opened it; None if the tracker cannot be reached."""
        self._listen(None)
        return self._told.get("run_id")

    def _listen(self, timeout: float | None) -> None:
        """Read what the sender says, until it has named the run or its trouble."""
        assert self._sender.stdout is not None
        while not self._told:
            ready, _, _ = select.select([self._sender.stdout], [], [], timeout)
            line = self._sender.stdout.readline() if ready else b""
            if not line:
                return
            self._told |= json.loads(line)

    def end(self, status: str) -> None:
        """Write the end, and wait until everything is sent or cannot be."""
        self._append("end", status=status)
        self._journal.close()
        assert self._sender.stdin is not None
        self._sender.stdin.close()
        assert self._sender.stdout is not None
        for line in self._sender.stdout:
            self._told |= json.loads(line)
        self._sender.stdout.close()
        if self._sender.wait() != 0:
            logger.warning("part of this run is not with the tracker yet; `udc sync` sends it (kept in %s)",
                           self._journal.folder)  # fmt: skip

    def __str__(self) -> str:
        """The run for people: name and id, or where it is kept."""
        if run_id := self._told.get("run_id"):
            return f"{self._told.get('name')} ({run_id})"
        return f"not sent yet, kept in {self._journal.folder}"


@contextmanager
def stage_run(stage: str, tags: Mapping[str, str], key: str | None = None) -> Iterator[StageRun]:
    """The run of a stage: ``train`` opens one, or fills that which ``mlflow run`` opened; ``evaluate`` goes on in it.

    ``evaluate`` opens a new run if no run of this DVC experiment trained the model (``train`` came from DVC's cache),
    or if that run has an evaluation already: a run is never overwritten. A new run names the run that trained. Its
    tags must have :data:`~udc_model.tracking.delivery.MODEL_SHA256`.

    ``key`` names a run that is gone on with later: all with the same key fill the same run.

    The run ends as FINISHED, as FAILED on an error (with the traceback as an artifact), as KILLED on Ctrl-C or SIGTERM.
    """
    run = StageRun(stage, tags, key)
    status = run.status_on_error
    try:
        # evaluate may go on in a run that another state of the code trained
        run.set_tags({f"{tag}.{stage}": run.tags[tag] for tag in (COMMIT, DIRTY) if tag in run.tags})
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
