"""Journals and their delivery: killed writers, limits of one request, repeated delivery, order, ended stages."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest

import udc_model
from udc_model.errors import UdcError
from udc_model.tracking import delivery
from udc_model.tracking.delivery import Delivery
from udc_model.tracking.journal import (
    RUN_ID_PLACEHOLDER,
    Journal,
    append_killed_end,
    is_written,
    pending_journals,
    read_entries,
    record_warning,
    report_warnings,
    sender_lock,
    wait_for_senders,
)
from udc_model.tracking.provenance import STUDY_KEY
from udc_model.tracking.run import stage_run
from udc_model.tracking.sender import EndedStage, Sender, State, deliver_pending
from udc_model.tracking.store import tracking_uri
from udc_model.tracking.tags import MODEL_SHA256, PARENT, TRAINED_BY

WRITER = """
import sys
from contextlib import suppress
from pathlib import Path
from udc_model.tracking.run import stage_run
with stage_run("train", {"about": "test"}) as run:
    run.log_params({"a": {"b": 1}})
    run.log_metrics({"x": 0.5}, step=1)
    run._wait_for("run_id")
    print(run._messages["run_id"], flush=True)
    sys.stdin.readline()
    if MODE:
        raise ValueError("broken")
"""


@pytest.fixture
def root(tmp_path, monkeypatch, empty_store):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path)
    yield tmp_path
    mlflow.set_tracking_uri(None)


def journal(root, stage="train", **header):
    tags = header.pop("tags", {})
    return Journal.create(root, stage, {"uri": tracking_uri(), "experiment": "e", "outer": None, "tags": tags} | header)


def client_of(root):
    return mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")


def runs_of(root):
    client = client_of(root)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def test_incomplete_last_line_is_ignored_and_removed(root):
    written = journal(root)
    written.append("batch", metrics={"x": 1.0}, step=1)
    path = written.folder / "journal.jsonl"
    with path.open("a") as out:
        out.write('{"kind": "batch", "metr')
    assert [entry["kind"] for entry, _ in read_entries(written.folder)] == ["open", "batch"]
    append_killed_end(written.folder)
    assert [entry["kind"] for entry, _ in read_entries(written.folder)] == ["open", "batch", "end"]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from udc_model.tracking.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal.create(Path(sys.argv[1]), "train", {"tags": {}})
size = (journal.folder / "journal.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, resource.RLIM_INFINITY))
try:
    journal.append("batch", metrics={"a": 1.0}, step=1)
except OSError as error:
    print(type(error).__name__)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.append("end", status="FAILED")
"""


def test_an_entry_that_finds_no_space_leaves_no_part_of_a_line(root):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(root)], capture_output=True, text=True, check=True)
    assert done.stdout == "OSError\n"
    (folder,) = pending_journals(root)
    assert [entry["kind"] for entry, _ in read_entries(folder)] == ["open", "end"]


def test_a_damaged_line_is_reported_and_the_rest_of_the_journal_is_delivered(root, caplog):
    written = journal(root)
    with (written.folder / "journal.jsonl").open("a") as out:
        out.write('{"kind": "batch", "metr')
    written.append("batch", metrics={"x": 1.0}, step=1)  # begins a line of its own
    written.append("end", status="FINISHED")
    written.close()
    assert [entry["kind"] for entry, _ in read_entries(written.folder)] == ["open", "damaged", "batch", "end"]
    assert deliver_pending(root) == (1, {})
    (run,) = runs_of(root)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"x": 1.0})
    report_warnings(root)
    (message,) = caplog.messages
    assert f"is damaged, so run {run.info.run_id} lacks an entry" in message


def test_read_entries_continues_at_a_position(root):
    written = journal(root)
    (_, position), *_ = read_entries(written.folder)
    written.append("batch", tags={"ä": "ü"})
    assert [entry["tags"] for entry, _ in read_entries(written.folder, position)] == [{"ä": "ü"}]


def test_batches_respect_the_limits_of_one_request(root):
    written = journal(root)
    for step in range(5):
        written.append("batch", metrics={f"m{i}": float(i) for i in range(300)}, step=step)
    written.append("batch", params={f"p{i}": "v" for i in range(60)})
    written.append("batch", params={f"q{i}": "v" for i in range(60)})
    written.append("end", status="FINISHED")
    sizes = [[len(e.get("metrics", ())) + len(e.get("params", ())) for e in batch]
             for batch, _ in delivery._batches(written.folder, 0)]  # fmt: skip
    assert sizes == [[0], [300, 300, 300], [300, 300, 60], [60], [0]]


def test_repeated_delivery_stores_everything_once(root):
    written = journal(root, tags={"t": "1"})
    (root / "some").mkdir()
    (root / "some" / "file.txt").write_text("content")
    written.append("batch", params={"p": "1"}, metrics={"x": 0.25, "nan": float("nan")}, step=3)
    written.append("batch", metrics={"x": 0.5}, step=4)
    written.append("artifact", file=written.copy(root / "some"), target="stored")
    written.append("dataset", name="d", digest="abc", source={"s": "t"}, context="training")
    written.append("end", status="FINISHED")
    assert Delivery(written.folder).send()
    (written.folder / "sent.json").unlink()  # as if the server had stored everything and answered nothing
    assert Delivery(written.folder).send()
    (run,) = runs_of(root)
    client = client_of(root)
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "x")] == [(3, 0.25), (4, 0.5)]
    assert len(client.get_metric_history(run.info.run_id, "nan")) == 1
    assert (run.info.status, run.data.params, run.data.tags["t"]) == ("FINISHED", {"p": "1"}, "1")
    assert len(run.inputs.dataset_inputs) == 1
    assert Path(mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="stored/file.txt", tracking_uri=f"sqlite:///{root / 'mlflow.db'}"
    )).read_text() == "content"  # fmt: skip


def test_delivery_of_a_model_can_be_repeated_after_a_failed_upload(root, monkeypatch):
    """The first attempt fails after the model was linked to the run."""
    (root / "bundle").mkdir()
    (root / "bundle" / "weights.bin").write_bytes(b"\0")
    written = journal(root)
    written.append("batch", metrics={"test/mean_cost": 0.5}, step=None)
    bundle = written.copy(root / "bundle")
    written.append("model", bundle=bundle, package=bundle, requirements=["mlflow"])
    written.append("end", status="FINISHED")
    written.close()
    with monkeypatch.context() as failing:
        failing.setattr(mlflow.MlflowClient, "log_model_artifacts", _raise)
        num_delivered, errors = deliver_pending(root)
        assert (num_delivered, list(errors.values())) == (0, ["connection lost"])
    assert deliver_pending(root) == (1, {})
    (run,) = runs_of(root)
    (model,) = client_of(root).search_logged_models([run.info.experiment_id])
    assert (str(model.status), run.info.status) == ("READY", "FINISHED")
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert [(metric.key, metric.value) for metric in model.metrics] == [("test/mean_cost", 0.5)]
    assert mlflow.models.get_model_info(f"models:/{model.model_id}").flavors["python_function"]["loader_module"]


def _raise(*_):
    raise OSError("connection lost")


def test_an_entry_that_mlflow_refuses_is_reported_and_the_rest_is_delivered(root, caplog):
    written = journal(root)
    written.append("batch", params={"p": "1"})
    written.append("artifact", file=written.copy(_text(root, "a.txt")), target="")
    written.append("batch", params={"o": "1", "p": "2", "q": "3"})  # MLflow refuses to change a parameter
    written.append("batch", metrics={"cost": 0.5}, step=3)
    written.append("batch", tags={"t": "4"})
    written.append("end", status="FINISHED")
    written.close()
    assert deliver_pending(root) == (1, {})
    (run,) = runs_of(root)
    assert (run.info.status, run.data.params) == ("FINISHED", {"o": "1", "p": "1", "q": "3"})
    assert (run.data.metrics, run.data.tags["t"]) == ({"cost": 0.5}, "4")
    (refused,) = client_of(root).list_artifacts(run.info.run_id, "refused")
    (item,) = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/{refused.path}")
    assert (item["key"], item["value"]) == ("p", "2")
    assert "Changing param values is not allowed" in item["reason"]
    with caplog.at_level("WARNING"):
        report_warnings(root)
        report_warnings(root)  # each warning once
    assert (
        len([message for message in caplog.messages if f"MLflow refuses part of run {run.info.run_id}" in message]) == 1
    )


def test_a_run_that_mlflow_run_opened_and_somebody_deleted_is_replaced(root):
    written = journal(root, outer="0" * 32)
    written.append("batch", params={"p": "1"})
    written.append("end", status="FINISHED")
    written.close()
    assert deliver_pending(root) == (1, {})
    (run,) = runs_of(root)
    assert (run.info.status, run.data.params) == ("FINISHED", {"p": "1"})


def test_a_delivered_journal_that_was_not_deleted_changes_no_status(root):
    written = journal(root)
    written.append("end", status="FINISHED")
    written.close()
    assert Delivery(written.folder).send()  # and then the process was killed
    assert deliver_pending(root) == (1, {})
    (run,) = runs_of(root)
    assert run.info.status == "FINISHED"
    assert not pending_journals(root)


def _text(root, name):
    (root / name).write_text(name)
    return root / name


def test_a_journal_is_delivered_to_the_store_in_its_header(root, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    written = journal(root, uri="http://127.0.0.1:9")
    written.append("end", status="FINISHED")
    written.close()
    with pytest.raises(UdcError):
        Delivery(written.folder).send()
    num_delivered, errors = deliver_pending(root)
    assert (num_delivered, list(errors)) == (0, [written.folder])
    assert "127.0.0.1" in errors[written.folder]


@pytest.mark.slow
def test_deliver_pending_skips_journals_of_running_stages(root):
    written = journal(root)
    assert is_written(written.folder)
    assert deliver_pending(root) == (0, {})
    written.close()
    assert deliver_pending(root) == (1, {})  # the stage ended without an entry `end`
    assert not pending_journals(root)
    (run,) = runs_of(root)
    assert run.info.status == "KILLED"


@pytest.mark.slow
@pytest.mark.parametrize("end", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_gets_the_status_of_its_stage(root, end):
    code = WRITER.replace("MODE", str(end == "FAILED"))
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.DEVNULL, cwd=root, start_new_session=True)  # fmt: skip
    run_id = process.stdout.readline().strip()
    if end == "KILLED":
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    else:
        process.communicate("\n")
    assert wait_for_senders(root)  # the sender runs in its own session
    run = client_of(root).get_run(run_id)
    assert run.info.status == end
    assert (run.data.params, run.data.metrics) == ({"a.b": "1"}, {"x": 0.5})
    artifacts = [a.path for a in client_of(root).list_artifacts(run_id, "error")]
    assert artifacts == (["error/train.txt"] if end == "FAILED" else [])
    assert not pending_journals(root)


@pytest.mark.slow
def test_stages_with_the_same_key_fill_one_run(root):
    for value in (1.0, 2.0):
        with stage_run("tune", {"study": "s"}, "the key") as run:
            run.log_metrics({"x": value}, step=int(value))
        assert wait_for_senders(root)
    (recorded,) = runs_of(root)
    assert [m.value for m in client_of(root).get_metric_history(recorded.info.run_id, "x")] == [1.0, 2.0]
    assert recorded.info.status == "FINISHED"


@pytest.mark.parametrize("is_study_first", [True, False])
def test_parts_are_below_their_study_in_whatever_order_they_are_delivered(root, monkeypatch, is_study_first):
    monkeypatch.setenv("UDC_SENDER", "off")
    with stage_run("cross-validate", {}) as study:
        monkeypatch.setenv(STUDY_KEY, study.key)
        with stage_run("train", {}):
            pass
        monkeypatch.delenv(STUDY_KEY)
    with stage_run("train", {}):
        pass
    journals = pending_journals(root)
    assert [path.name.split("-", 1)[1][:5] for path in journals] == ["cross", "train", "train"]
    for path in journals if is_study_first else reversed(journals):
        Delivery(path).send()
    by_stage = {run.data.tags["mlflow.source.name"]: run for run in runs_of(root)}
    below = [run for run in runs_of(root) if PARENT in run.data.tags]
    assert len(runs_of(root)) == 3
    assert [run.data.tags[PARENT] for run in below] == [by_stage["udc cross-validate"].info.run_id]


@pytest.mark.slow
def test_status_on_error_other_than_failed_logs_no_traceback(root):
    with suppress(UdcError), stage_run("train", {}) as run:
        run.status_on_error = "KILLED"
        raise UdcError("pruned")
    assert wait_for_senders(root)
    (recorded,) = runs_of(root)
    assert recorded.info.status == "KILLED"
    assert not client_of(root).list_artifacts(recorded.info.run_id, "error")


@pytest.mark.slow
def test_the_run_id_is_filled_into_a_text_on_delivery(root):
    with stage_run("train", {}) as run:
        run.log_text(f"<b>{RUN_ID_PLACEHOLDER}</b>\r\n", "notes/report.html", fill_run_id=True)
        run.log_text(RUN_ID_PLACEHOLDER, "plain.txt")
    assert wait_for_senders(root)
    (recorded,) = runs_of(root)
    run_id, uri = recorded.info.run_id, f"sqlite:///{root / 'mlflow.db'}"
    for name, contents in (("notes/report.html", f"<b>{run_id}</b>\r\n"), ("plain.txt", RUN_ID_PLACEHOLDER)):
        path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, tracking_uri=uri)
        assert Path(path).read_bytes().decode() == contents


def ended_evaluation(root, model):
    evaluation = journal(root, "evaluate", tags={MODEL_SHA256: model})
    evaluation.append("batch", metrics={"test/mean_cost": 0.5})
    evaluation.append("end", status="FINISHED")
    evaluation.close()
    return evaluation.folder


def ended_training(root, model):
    training = journal(root)
    training.append("batch", tags={MODEL_SHA256: model})
    training.append("end", status="FINISHED")
    training.close()
    return training.folder


def test_an_evaluation_joins_a_training_run_that_is_not_delivered_yet(root):
    """The sender of the evaluation reaches the store first: it delivers the training, then joins its run."""
    ended_training(root, "abc")
    evaluation = ended_evaluation(root, "abc")
    with sender_lock(evaluation):
        assert Sender(evaluation, EndedStage()).run() is State.DONE
    assert not pending_journals(root)
    (run,) = runs_of(root)
    assert run.data.metrics == {"test/mean_cost": 0.5}
    assert TRAINED_BY not in run.data.tags


def test_tests_of_a_lock_do_not_disturb_each_other(root):
    """Many processes may ask at once whether a stage is running."""
    folder = ended_training(root, "abc")
    answers = []

    def ask():
        answers.extend(is_written(folder) for _ in range(300))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(answers)


def test_an_evaluation_waits_for_the_sender_of_its_training_run(root):
    training = ended_training(root, "abc")
    evaluation = ended_evaluation(root, "abc")
    is_locked, release = threading.Event(), threading.Event()

    def hold():
        with sender_lock(training):
            is_locked.set()
            release.wait()

    def deliver():
        with sender_lock(evaluation):
            Sender(evaluation, EndedStage()).run()

    holder, sender = threading.Thread(target=hold), threading.Thread(target=deliver)
    holder.start()
    is_locked.wait()
    sender.start()
    assert wait_for_senders(root, timeout=0.2) is False
    assert len(pending_journals(root)) == 2
    release.set()
    holder.join()
    sender.join()
    assert not pending_journals(root)
    assert len(runs_of(root)) == 1


def test_an_evaluation_is_delivered_if_the_folder_of_its_training_run_disappears(root, monkeypatch):
    """The sender of the training run may delete the folder while the lock's file is created in it."""
    training = ended_training(root, "abc")
    evaluation = ended_evaluation(root, "abc")

    def disappear(*_, **__):
        shutil.rmtree(training)
        raise FileNotFoundError(training / "sender.lock")

    def lock(folder, timeout=-1):
        created = sender_lock(folder, timeout)
        if folder == training:
            monkeypatch.setattr(created, "acquire", disappear)
        return created

    monkeypatch.setattr("udc_model.tracking.sender.sender_lock", lock)
    with sender_lock(evaluation):
        assert Sender(evaluation, EndedStage()).run() is State.DONE
    assert not pending_journals(root)


def test_a_damaged_journal_does_not_block_others(root):
    damaged = ended_training(root, "abc")
    (damaged / "journal.jsonl").write_text("{no JSON\n")
    ended_training(root, "def")
    num_delivered, errors = deliver_pending(root)
    assert (num_delivered, list(errors)) == (1, [damaged])
    assert "damaged" in errors[damaged]


def test_an_empty_journal_is_deleted_and_does_not_block_an_evaluation(root):
    """The disk was full, or the stage was killed, before the first entry."""
    empty = ended_training(root, "abc")
    (empty / "journal.jsonl").write_text('{"kind": "op')
    evaluation = ended_evaluation(root, "abc")
    with sender_lock(evaluation):
        assert Sender(evaluation, EndedStage()).run() is State.DONE
    assert deliver_pending(root) == (0, {})
    assert not empty.exists()


def test_a_damaged_record_of_progress_only_repeats_the_delivery(root):
    training = ended_training(root, "abc")
    Delivery(training).send()
    (training / "sent.json").write_text("")
    evaluation = ended_evaluation(root, "abc")
    with sender_lock(evaluation):
        assert Sender(evaluation, EndedStage()).run() is State.DONE
    assert len(runs_of(root)) == 1


PRINTING = """
import os, sys
from udc_model.tracking import sender
sender._START_DELAY = 0
sender.sync = lambda root: print("View run at: http://tracker") or os.system("echo of another process")
sender.main(sys.argv[1:])
"""


def test_what_mlflow_prints_is_no_message_to_the_stage(root):
    empty = root / "empty"
    empty.mkdir()
    done = subprocess.run([sys.executable, "-c", PRINTING, str(empty)], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)  # fmt: skip
    assert done.stdout == '{"ready": true}\n'
    assert "View run at: http://tracker\nof another process\n" in done.stderr


def test_a_sender_that_prints_does_not_end_the_stage(root, monkeypatch):
    python = root / "python"
    python.write_text('#!/bin/sh\necho a remark\necho 1\necho \'{"ready": true, "run_id": "abc"}\'\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with stage_run("train", {}) as run:
        run._wait_for("run_id")
    assert run._messages == {"ready": True, "run_id": "abc"}


def test_report_warnings_names_the_error_of_an_undelivered_journal(root, caplog):
    folder = ended_training(root, "abc")
    (folder / "sender.log").write_text("http://tracker: no route to host\n")
    record_warning(root, "MLflow refuses part of run 1")
    with caplog.at_level("WARNING"):
        report_warnings(root)
    refusal, pending = caplog.messages
    assert refusal == "MLflow refuses part of run 1"
    assert pending.startswith("1 journal(s) of earlier stages are not delivered to MLflow (http://tracker: no route")


# Runs a stage with the package in a folder that is deleted as soon as the stage has ended.
TEMPORARY = """
import sys
from pathlib import Path
from udc_model.tracking.run import stage_run
bundle, package = Path("bundle"), Path(sys.argv[1]) / "udc_model"
with stage_run("train", {"about": "test"}) as run:
    run.log_params({"a": 1})
    run.log_dataset("d", "abc", {"s": "t"}, "training", {"test": {"a": 1}})
    run.log_folder(bundle, "model")
    run.log_text("text", "notes/a.txt")
    run.log_classifier(bundle, package, ["mlflow"])
"""


@pytest.mark.slow
def test_a_sender_needs_no_file_of_its_stage_after_the_stage_has_ended(root):
    package = root / "temporary" / "udc_model"
    shutil.copytree(Path(udc_model.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    stage_folder = root / "temporary" / "work"
    (stage_folder / "bundle").mkdir(parents=True)
    (stage_folder / "bundle" / "weights.bin").write_bytes(b"\0" * 1000)
    command = [sys.executable, "-c", TEMPORARY, str(package.parent)]
    done = subprocess.run(command, cwd=stage_folder, env=os.environ | {"PYTHONPATH": str(package.parent)},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stderr == ""
    shutil.rmtree(root / "temporary")
    assert wait_for_senders(root)
    assert not pending_journals(root), (pending_journals(root)[0] / "sender.log").read_text()
    (run,) = runs_of(root)
    assert run.info.status == "FINISHED"
    (model,) = client_of(root).search_logged_models([run.info.experiment_id])
    assert str(model.status) == "READY"


def test_output_of_a_stage_is_complete_when_the_stage_ends(root):
    """Whoever reads the stage's output to its end, such as a shell pipe, does not wait for the sender."""
    listener = socket.create_server(("127.0.0.1", 0))  # a tracking server that never answers
    uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
    code = WRITER.replace("MODE", "False").replace('run._wait_for("run_id")', "").replace("run._messages", "")
    subprocess.run([sys.executable, "-c", code], input="\n", cwd=root, env=os.environ | {"MLFLOW_TRACKING_URI": uri},
                   capture_output=True, text=True, check=True)  # fmt: skip
    assert not wait_for_senders(root, timeout=0)
    listener.close()
