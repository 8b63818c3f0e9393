"""Delivers the entries of a journal to MLflow, each exactly once.

A request may be repeated, because a tracking server can fail after it stored and before it answered. Metric points
carry the time at which they were measured, so MLflow stores them once. Runs and models carry the journal's key and are
searched for before they are created.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from udc_model.errors import UdcError, without_credentials
from udc_model.tracking.journal import DAMAGED, EXPERIMENT_ID_PLACEHOLDER, RUN_ID_PLACEHOLDER, Entry, read_entries
from udc_model.tracking.model import LOADER_0_1, log_classifier
from udc_model.tracking.store import default_uri, open_store, reason_of, run_if_any, tracking_uri
from udc_model.tracking.tags import (
    CLAIMED,
    EXPERIMENT_NAME,
    JOURNAL,
    MODEL_SHA256,
    PARENT,
    STUDY,
    TRAINED_BY,
    read_tag,
    runs_with_tag,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run, RunTag

logger = logging.getLogger(__name__)

STUDIES = ("tune", "cross-validate")  # stages whose runs have those of their parts below them
_MAX_METRICS, _MAX_OTHERS = 1000, 100  # limits of one request of MLflow


@dataclass
class Progress:
    """How much of a journal is delivered: its run, whether the run was created for this journal, bytes delivered."""

    run_id: str | None = None
    name: str = ""
    is_new: bool = True
    position: int = 0

    @classmethod
    def load(cls, folder: Path) -> Progress:
        """Read ``sent.json``; nothing is delivered if the file is missing or damaged: a delivery may be repeated."""
        try:
            return cls(**json.loads((folder / "sent.json").read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return cls()

    def save(self, folder: Path) -> None:
        """Write ``sent.json`` atomically."""
        scratch = folder / "sent.json.partial"
        scratch.write_text(json.dumps(asdict(self)), encoding="utf-8")
        scratch.replace(folder / "sent.json")


def is_delivered(folder: Path) -> bool:
    """Whether MLflow has all of a journal that its stage ended; false if the journal is damaged or has vanished."""
    try:
        last, position = list(read_entries(folder))[-1]
        is_complete = position == (folder / "journal.jsonl").stat().st_size  # no incomplete line
        return is_complete and last["kind"] == "end" and Progress.load(folder).position == position
    except (OSError, ValueError, TypeError, LookupError):
        return False


def store_of(folder: Path, header: Entry) -> str:
    """The address, without credentials, of the store that a journal is for.

    If that is the project's own store, it is the one of the project in which the journal is now: a project that was
    copied or moved must not write to the former folder.
    """
    uri, root = str(header["uri"]), folder.parents[2]
    is_own = uri == default_uri(Path(header.get("root", root)))
    return default_uri(root) if is_own else uri


class Delivery:
    """Delivers one journal, whose ``sender.lock`` the caller holds.

    Parameters
    ----------
    on_refusal : called with a message if MLflow refuses an entry for ever.

    Raises
    ------
    FileNotFoundError
        The journal does not exist any more.
    """

    def __init__(self, folder: Path, on_refusal: Callable[[str], None] = logger.error) -> None:
        self.folder, self.on_refusal = folder, on_refusal
        self.header = next(read_entries(folder))[0]
        self.progress = Progress.load(folder)
        self._client: MlflowClient | None = None

    def connect(self) -> str:
        """Open the store, and find or create the run that this journal fills; returns the run's id.

        Raises
        ------
        UdcError
            The tracking server cannot be reached or fails.
        """
        with _tracker_errors():
            client = self._open_store()
            if self.progress.run_id is None:
                with FileLock(self.folder.parent / "open.lock"):  # of two evaluations of a model, one joins its run
                    run = self._find_or_create(client)
                self._put_below_study(client, run)
                self.progress.run_id, self.progress.name = run.info.run_id, run.info.run_name or ""
                self.progress.save(self.folder)
            return self.progress.run_id

    def send(self) -> bool:
        """Deliver all entries written so far; returns whether the entry ``end`` was among them.

        Raises
        ------
        UdcError
            As :meth:`connect`. Entries that are not delivered remain pending.
        """
        is_ended = False
        run_id = self.connect()
        with _tracker_errors():
            client = self._open_store()
            for batch, position in _batches(self.folder, self.progress.position):
                entries = [entry for entry in batch if self.progress.is_new or not entry.get("new_only")]
                if entries:
                    self._deliver(client, run_id, entries)
                self.progress.position = position
                self.progress.save(self.folder)
                is_ended = batch[-1]["kind"] == "end"
        return is_ended

    def _open_store(self) -> MlflowClient:
        if self._client is None:
            import mlflow

            uri, store = tracking_uri(), store_of(self.folder, self.header)
            if without_credentials(uri) != store:  # this process runs with another MLFLOW_TRACKING_URI
                uri = store
            self.experiment = open_store(uri, self.header["experiment"])
            self._client = mlflow.MlflowClient()
        return self._client

    def _find_or_create(self, client: MlflowClient) -> Run:
        """The run with this journal's key; else for an evaluation the run of the training, unless another evaluation or
        another DVC experiment has it; else the run that ``mlflow run`` opened; else a new one."""
        header, tags = self.header, dict(self.header["tags"])
        outer = self._outer_run(client)
        experiments = [self.experiment, *([outer.info.experiment_id] if outer else [])]
        experiment = read_tag(tags, EXPERIMENT_NAME)
        if runs := runs_with_tag(client, experiments, JOURNAL, header["key"]):
            client.update_run(runs[0].info.run_id, status="RUNNING")
            return runs[0]
        if header["stage"] == "evaluate":
            model = read_tag(tags, MODEL_SHA256) or ""
            trainings = [run for run in runs_with_tag(client, experiments, MODEL_SHA256, model)
                         if read_tag(run.data.tags, TRAINED_BY) is None]  # fmt: skip
            claimed = [run for run in trainings if read_tag(run.data.tags, CLAIMED) == header["key"]]
            unclaimed = [run for run in trainings if read_tag(run.data.tags, CLAIMED) is None
                         and read_tag(run.data.tags, EXPERIMENT_NAME) == experiment]  # fmt: skip
            if joined := (claimed or unclaimed)[:1]:
                client.set_tag(joined[0].info.run_id, CLAIMED, header["key"])
                client.update_run(joined[0].info.run_id, status="RUNNING")
                self.progress.is_new = False
                return joined[0]
            if trainings:
                tags[TRAINED_BY] = trainings[0].info.run_id
            tags[CLAIMED] = header["key"]
        tags[JOURNAL] = header["key"]
        name = experiment or header.get("name")
        if outer and read_tag(outer.data.tags, JOURNAL) is None:
            for key, value in (tags | ({"mlflow.runName": name} if name else {})).items():
                client.set_tag(outer.info.run_id, key, value)
            return client.get_run(outer.info.run_id)
        return client.create_run(self.experiment, start_time=header["time"], tags=tags, run_name=name)

    def _outer_run(self, client: MlflowClient) -> Run | None:
        """The run that ``mlflow run`` opened; None if there is none, or it does not exist any more."""
        if not (run_id := self.header["outer"]):
            return None
        if (run := run_if_any(client, run_id)) is None:
            self.on_refusal(f"MLFLOW_RUN_ID: {store_of(self.folder, self.header)} has no run {run_id}; the results are "
                            "in a run of their own")  # fmt: skip
        return run

    def _put_below_study(self, client: MlflowClient, run: Run) -> None:
        """Put the run of a part below the run of its study; if that does not exist yet, the study's end does it."""
        if key := self.header["tags"].get(STUDY):
            for study in runs_with_tag(client, [self.experiment], JOURNAL, key):
                client.set_tag(run.info.run_id, PARENT, study.info.run_id)

    def _deliver(self, client: MlflowClient, run_id: str, batch: list[Entry]) -> None:
        first = batch[0]
        match first["kind"]:
            case "open":
                pass
            case "batch":
                self._log_batch(client, run_id, batch)
            case "artifact":
                self._log_artifact(client, run_id, first)
            case "dataset":
                _log_dataset(client, run_id, first)
            case "model":
                self._log_model(client, run_id, first)
            case "end":
                if self.header["stage"] in STUDIES:
                    for part in runs_with_tag(client, [self.experiment], STUDY, self.header["key"]):
                        client.set_tag(part.info.run_id, PARENT, run_id)
                client.set_terminated(run_id, first["status"], end_time=first["time"])
            case kind if kind == DAMAGED:
                line = f"{self.folder / 'journal.jsonl'}: the line at byte {self.progress.position}"
                self.on_refusal(f"{line} is damaged, so run {run_id} lacks an entry; repeat the stage if you need it")
            case kind:
                raise UdcError(f"{self.folder}: unknown kind of entry: {kind}; update this project, a later version "
                               "wrote the journal")  # fmt: skip

    def _log_batch(self, client: MlflowClient, run_id: str, batch: list[Entry]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        items: list[Metric | Param | RunTag] = []
        for entry in batch:
            when, step = entry["time"], entry.get("step") or 0
            items += [Metric(key, value, when, step) for key, value in entry.get("metrics", {}).items()]
            items += [Param(key, value) for key, value in entry.get("params", {}).items()]
            items += [RunTag(key, _filled(client, run_id, value) if entry.get("fill_run_id") else value)
                      for key, value in entry.get("tags", {}).items()]  # fmt: skip
        # no retry can help with these, and the rest of the run must not wait for them
        if refused := list(_log_items(client, run_id, items)):
            reasons = "; ".join(dict.fromkeys(reason for _, reason in refused))
            self.on_refusal(f"MLflow refuses part of run {run_id} (stored as artifact refused/): {reasons}")
            text = json.dumps([dict(item) | {"reason": reason} for item, reason in refused], indent=1)
            client.log_text(run_id, text, f"refused/{batch[0]['time']}.json")

    def _log_artifact(self, client: MlflowClient, run_id: str, entry: Entry) -> None:
        path, target = self.folder / entry["file"], entry["target"] or None
        if path.is_dir():
            client.log_artifacts(run_id, str(path), target)
        elif entry.get("fill_run_id"):
            with tempfile.TemporaryDirectory() as scratch:
                filled = Path(scratch) / path.name
                text = path.read_bytes().decode(errors="surrogateescape")
                filled.write_bytes(_filled(client, run_id, text).encode(errors="surrogateescape"))
                client.log_artifact(run_id, str(filled), target)
        else:
            client.log_artifact(run_id, str(path), target)

    def _log_model(self, client: MlflowClient, run_id: str, entry: Entry) -> None:
        run = client.get_run(run_id)
        models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
        created = [model for model in models if read_tag(model.tags, JOURNAL) == self.header["key"]]
        if created and created[0].status == "READY":
            return
        model = created[0] if created else client.create_logged_model(
            run.info.experiment_id, "classifier", run_id, {JOURNAL: self.header["key"]}, run.data.params,
        )  # fmt: skip
        log_classifier(client, model.model_id, run_id, self.folder / entry["bundle"], self.folder / entry["package"],
                       entry["requirements"], entry.get("loader", LOADER_0_1))  # fmt: skip


@contextmanager
def _tracker_errors() -> Iterator[None]:
    """Turn all exceptions of a tracking server that fails or cannot be reached into :class:`UdcError`."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, RequestException, OSError) as error:
        raise UdcError(reason_of(error)) from error


def _batches(folder: Path, position: int) -> Iterator[tuple[list[Entry], int]]:
    """The entries from ``position`` on, each list with the position after it.

    Successive parameters, metrics and tags are in one list, up to the limits of one request.
    """
    batch: list[Entry] = []
    sizes = dict.fromkeys(("metrics", "params", "tags"), 0)
    end = position
    for entry, entry_end in read_entries(folder, position):
        added = {key: len(entry.get(key, ())) for key in sizes} if entry["kind"] == "batch" else {}
        is_full = any(
            sizes[key] + count > (_MAX_METRICS if key == "metrics" else _MAX_OTHERS) for key, count in added.items()
        )
        is_alike = not batch or batch[0].get("new_only") == entry.get("new_only")
        if batch and (entry["kind"] != "batch" or is_full or not is_alike):
            yield batch, end
            batch, sizes = [], dict.fromkeys(sizes, 0)
        end = entry_end
        if entry["kind"] != "batch":
            yield [entry], end
            continue
        batch.append(entry)
        sizes = {key: count + added[key] for key, count in sizes.items()}
    if batch:
        yield batch, end


def _filled(client: MlflowClient, run_id: str, text: str) -> str:
    """A text with the ids of the run and of its experiment in place of the placeholders."""
    experiment = client.get_run(run_id).info.experiment_id
    return text.replace(RUN_ID_PLACEHOLDER, run_id).replace(EXPERIMENT_ID_PLACEHOLDER, experiment)


def _log_items(
    client: MlflowClient, run_id: str, items: Sequence[Metric | Param | RunTag]
) -> Iterator[tuple[Metric | Param | RunTag, str]]:
    """Log metrics, parameters and tags; yields those that MLflow refuses, as a changed parameter, with its reason.

    It refuses a complete request because of one of them, so the halves of a refused request are logged separately.
    """
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException

    try:
        client.log_batch(
            run_id,
            [item for item in items if isinstance(item, Metric)],
            [item for item in items if isinstance(item, Param)],
            [item for item in items if isinstance(item, RunTag)],
        )
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        if len(items) <= 1:  # none: the run itself is refused
            yield from ((item, reason_of(error)) for item in items)
            return
        middle = len(items) // 2
        yield from _log_items(client, run_id, items[:middle])
        yield from _log_items(client, run_id, items[middle:])


def _log_dataset(client: MlflowClient, run_id: str, entry: Entry) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    # source_type and source as mlflow.data.code_dataset_source.CodeDatasetSource writes them
    profile = json.dumps(entry["profile"]) if "profile" in entry else None  # journals of versions up to 0.2.0 have none
    dataset = Dataset(entry["name"], entry["digest"][:32], "code", json.dumps({"tags": entry["source"]}),
                      profile=profile)  # fmt: skip
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", entry["context"])])])
