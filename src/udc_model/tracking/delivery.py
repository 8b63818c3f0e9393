"""From a journal to the tracker, exactly once.

Everything may be sent twice, for a tracker may fail after it stored and before it answered: metric points carry the
time at which they were measured and are stored once; runs and models carry the journal's key and are looked for first.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from udc_model.errors import UdcError
from udc_model.tracking.journal import Entry, entries
from udc_model.tracking.provenance import EXPERIMENT_NAME
from udc_model.tracking.store import open_store, tracking_uri, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

MODEL_SHA256 = "udc.model_sha256"
EVALUATED = "udc.evaluated"
TRAINED_BY = "udc.trained_by"
JOURNAL = "udc.journal"
CLAIMED = "udc.evaluation_journal"
_METRICS, _OTHERS = 1000, 100  # the most that MLflow takes in one request


@dataclass
class Progress:
    """How far a journal has been sent: the run, whether it was opened for this journal, and the bytes sent."""

    run_id: str | None = None
    name: str = ""
    is_new: bool = True
    position: int = 0

    @classmethod
    def load(cls, folder: Path) -> Progress:
        """What ``sent.json`` says; nothing sent, if there is none."""
        try:
            return cls(**json.loads((folder / "sent.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()

    def save(self, folder: Path) -> None:
        """Write ``sent.json``, whole or not at all."""
        scratch = folder / "sent.json.partial"
        scratch.write_text(json.dumps(asdict(self)), encoding="utf-8")
        scratch.replace(folder / "sent.json")


class Delivery:
    """Sends one journal, whose ``sender.lock`` the caller holds; ``on_open`` is told the run's id and name."""

    def __init__(self, folder: Path, on_open: Callable[[str, str], None] = lambda run_id, name: None) -> None:
        self.folder, self.on_open = folder, on_open
        self.progress = Progress.load(folder)
        self.header = next(entries(folder, 0))[0]
        self._client: MlflowClient | None = None

    def send(self) -> bool:
        """Send what the journal has by now; whether that was all, up to its end.

        Raises
        ------
        UdcError
            The tracker does not answer, or answers that it cannot; what was not sent stays in the journal.
        """
        from mlflow.exceptions import MlflowException
        from requests import RequestException

        ended = False
        try:
            client = self._connected()
            run_id = self._open(client)
            for batch, position in _batches(self.folder, self.progress.position):
                wanted = [entry for entry in batch if self.progress.is_new or not entry.get("new_only")]
                if wanted:
                    self._deliver(client, run_id, wanted)
                self.progress.position = position
                self.progress.save(self.folder)
                ended = batch[-1]["kind"] == "end"
        except (MlflowException, RequestException, OSError) as error:
            raise UdcError(without_credentials(str(error)).splitlines()[0]) from error
        return ended

    def _connected(self) -> MlflowClient:
        if self._client is None:
            import mlflow

            uri = tracking_uri()
            if without_credentials(uri) != self.header["uri"]:  # sent later, from a shell with another address
                uri = self.header["uri"]
            self.experiment = open_store(uri, self.header["experiment"])
            self._client = mlflow.MlflowClient()
        return self._client

    def _open(self, client: MlflowClient) -> str:
        """The run that this journal fills: found, joined, or created now."""
        if self.progress.run_id is None:
            with FileLock(self.folder.parent / "open.lock"):  # two evaluations of one training: one joins it
                run = self._find_or_create(client)
            self.progress.run_id, self.progress.name = run.info.run_id, run.info.run_name or ""
            self.progress.save(self.folder)
            self.on_open(self.progress.run_id, self.progress.name)
        return self.progress.run_id

    def _find_or_create(self, client: MlflowClient) -> Run:
        header = self.header
        outer = header["outer"] and client.get_run(header["outer"])
        experiments = [self.experiment, *([outer.info.experiment_id] if outer else [])]
        tags = dict(header["tags"])
        opened = _search(client, experiments, JOURNAL, header["key"])
        if opened:
            client.update_run(opened[0].info.run_id, status="RUNNING")
            return opened[0]
        if header["stage"] == "evaluate":
            trained = _search(client, experiments, MODEL_SHA256, tags[MODEL_SHA256])
            trained = [run for run in trained if TRAINED_BY not in run.data.tags]
            mine = [run for run in trained if run.data.tags.get(CLAIMED) == header["key"]]
            same = [run for run in trained if CLAIMED not in run.data.tags
                    and run.data.tags.get(EXPERIMENT_NAME) == tags.get(EXPERIMENT_NAME)]  # fmt: skip
            if mine or same:
                run = (mine or same)[0]
                client.set_tag(run.info.run_id, CLAIMED, header["key"])
                client.update_run(run.info.run_id, status="RUNNING")
                self.progress.is_new = False
                return run
            if trained:
                tags[TRAINED_BY] = trained[0].info.run_id
            tags[CLAIMED] = header["key"]
        tags[JOURNAL] = header["key"]
        name = tags.get(EXPERIMENT_NAME)
        if outer and JOURNAL not in outer.data.tags:
            for key, value in (tags | ({"mlflow.runName": name} if name else {})).items():
                client.set_tag(outer.info.run_id, key, value)
            return client.get_run(outer.info.run_id)
        return client.create_run(self.experiment, start_time=header["time"], tags=tags, run_name=name)

    def _deliver(self, client: MlflowClient, run_id: str, batch: list[Entry]) -> None:
        first = batch[0]
        match first["kind"]:
            case "open":
                pass
            case "batch":
                self._log_batch(client, run_id, batch)
            case "artifact":
                path = self.folder / first["file"]
                send = client.log_artifacts if path.is_dir() else client.log_artifact
                send(run_id, str(path), first["target"] or None)
            case "dataset":
                _log_dataset(client, run_id, first)
            case "model":
                self._log_model(client, run_id, first)
            case "end":
                client.set_terminated(run_id, first["status"], end_time=first["time"])
            case kind:
                raise UdcError(f"{self.folder}: an entry of unknown kind, {kind}; was it written by a later version?")

    def _log_batch(self, client: MlflowClient, run_id: str, batch: list[Entry]) -> None:
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        metrics = [Metric(key, value, entry["time"], entry.get("step") or 0)
                   for entry in batch for key, value in entry.get("metrics", {}).items()]  # fmt: skip
        params = [Param(key, value) for entry in batch for key, value in entry.get("params", {}).items()]
        tags = [RunTag(key, value) for entry in batch for key, value in entry.get("tags", {}).items()]
        try:
            client.log_batch(run_id, metrics, params, tags)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            # the tracker will never take it: what else the run holds must not wait for it
            reason = without_credentials(str(error)).splitlines()[0]
            logger.error("error: the tracker refuses part of run %s: %s", run_id, reason)
            client.log_text(run_id, json.dumps(batch, indent=1), f"refused/{batch[0]['time']}.json")

    def _log_model(self, client: MlflowClient, run_id: str, entry: Entry) -> None:
        from udc_model.tracking.model import log_classifier

        run = client.get_run(run_id)
        found = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
        mine = [model for model in found if model.tags.get(JOURNAL) == self.header["key"]]
        if mine and mine[0].status == "READY":
            return
        model = mine[0] if mine else client.create_logged_model(
            run.info.experiment_id, "classifier", run_id, {JOURNAL: self.header["key"]}, run.data.params,
        )  # fmt: skip
        log_classifier(model.model_id, run_id, self.folder / entry["bundle"], self.folder / entry["package"],
                       entry["requirements"])  # fmt: skip


def _batches(folder: Path, position: int) -> Iterator[tuple[list[Entry], int]]:
    """The entries from ``position`` on; parameters, metrics and tags together, as many as one request takes."""
    batch: list[Entry] = []
    size = dict.fromkeys(("metrics", "params", "tags"), 0)
    done = position
    for entry, behind in entries(folder, position):
        added = {key: len(entry.get(key, ())) for key in size} if entry["kind"] == "batch" else {}
        full = any(size[key] + count > (_METRICS if key == "metrics" else _OTHERS) for key, count in added.items())
        alike = not batch or batch[0].get("new_only") == entry.get("new_only")
        if batch and (entry["kind"] != "batch" or full or not alike):
            yield batch, done
            batch, size = [], dict.fromkeys(size, 0)
        done = behind
        if entry["kind"] != "batch":
            yield [entry], done
            continue
        batch.append(entry)
        size = {key: count + added[key] for key, count in size.items()}
    if batch:
        yield batch, done


def _search(client: MlflowClient, experiments: list[str], tag: str, value: str) -> list[Run]:
    return list(client.search_runs(experiments, f"tags.`{tag}` = '{value}'", order_by=["attributes.start_time DESC"]))


def _log_dataset(client: MlflowClient, run_id: str, entry: Entry) -> None:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    dataset = MetaDataset(CodeDatasetSource(entry["source"]), name=entry["name"],  # type: ignore[abstract]
                          digest=entry["digest"][:32])  # fmt: skip
    context = [InputTag("mlflow.data.context", entry["context"])]
    client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), context)])
