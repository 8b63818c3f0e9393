"""Journals on disk: what a killed writer leaves, what one request takes, and that sending twice stores once."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
from filelock import FileLock

from udc_model.errors import UdcError
from udc_model.tracking import delivery
from udc_model.tracking.delivery import Delivery
from udc_model.tracking.journal import Journal, end_of_killed, entries, is_held, unsent
from udc_model.tracking.run import stage_run
from udc_model.tracking.sender import send_left_over
from udc_model.tracking.store import tracking_uri

WRITER = """
import sys
from contextlib import suppress
from pathlib import Path
from udc_model.tracking.run import stage_run
with stage_run("train", {"about": "test"}) as run:
    run.log_params({"a": {"b": 1}})
    run.log_metrics({"x": 0.5}, step=1)
    print(run.run_id(), flush=True)
    sys.stdin.readline()
    if MODE:
        raise ValueError("broken")
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.chdir(tmp_path)
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


def test_a_torn_line_is_left_out_and_cut_off(root):
    written = journal(root)
    written.append("batch", metrics={"x": 1.0}, step=1)
    path = written.folder / "journal.jsonl"
    with path.open("a") as out:
        out.write('{"kind": "batch", "metr')
    assert [entry["kind"] for entry, _ in entries(written.folder, 0)] == ["open", "batch"]
    end_of_killed(written.folder)
    assert [entry["kind"] for entry, _ in entries(written.folder, 0)] == ["open", "batch", "end"]


def test_reading_goes_on_behind_what_was_read(root):
    written = journal(root)
    (_, position), *_ = entries(written.folder, 0)
    written.append("batch", tags={"ä": "ü"})
    assert [entry["tags"] for entry, _ in entries(written.folder, position)] == [{"ä": "ü"}]


def test_a_batch_is_no_larger_than_one_request(root):
    written = journal(root)
    for step in range(5):
        written.append("batch", metrics={f"m{i}": float(i) for i in range(300)}, step=step)
    written.append("batch", params={f"p{i}": "v" for i in range(60)})
    written.append("batch", params={f"q{i}": "v" for i in range(60)})
    written.append("end", status="FINISHED")
    sizes = [[len(e.get("metrics", ())) + len(e.get("params", ())) for e in batch]
             for batch, _ in delivery._batches(written.folder, 0)]  # fmt: skip
    assert sizes == [[0], [300, 300, 300], [300, 300, 60], [60], [0]]


def test_sending_twice_stores_once(root):
    written = journal(root, tags={"t": "1"})
    (root / "some").mkdir()
    (root / "some" / "file.txt").write_text("content")
    written.append("batch", params={"p": "1"}, metrics={"x": 0.25, "nan": float("nan")}, step=3)
    written.append("batch", metrics={"x": 0.5}, step=4)
    written.append("artifact", file=written.keep(root / "some"), target="kept")
    written.append("dataset", name="d", digest="abc", source={"s": "t"}, context="training")
    written.append("end", status="FINISHED")
    assert Delivery(written.folder).send()
    (written.folder / "sent.json").unlink()  # as if the tracker had stored everything and answered nothing
    assert Delivery(written.folder).send()
    (run,) = runs_of(root)
    client = client_of(root)
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "x")] == [(3, 0.25), (4, 0.5)]
    assert len(client.get_metric_history(run.info.run_id, "nan")) == 1
    assert (run.info.status, run.data.params, run.data.tags["t"]) == ("FINISHED", {"p": "1"}, "1")
    assert len(run.inputs.dataset_inputs) == 1
    assert Path(mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="kept/file.txt", tracking_uri=f"sqlite:///{root / 'mlflow.db'}"
    )).read_text() == "content"  # fmt: skip


def test_what_a_tracker_will_never_take_does_not_hold_up_the_rest(root):
    written = journal(root)
    written.append("batch", params={"p": "1"})
    written.append("artifact", file=written.keep(_text(root, "a.txt")), target="")
    written.append("batch", params={"p": "2"})  # MLflow refuses to change a parameter
    written.append("end", status="FINISHED")
    assert Delivery(written.folder).send()
    (run,) = runs_of(root)
    assert (run.info.status, run.data.params) == ("FINISHED", {"p": "1"})
    refused = client_of(root).list_artifacts(run.info.run_id, "refused")
    assert len(refused) == 1


def _text(root, name):
    (root / name).write_text(name)
    return root / name


def test_a_journal_goes_to_the_tracker_it_was_written_for(root, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    written = journal(root, uri="http://127.0.0.1:9")
    written.append("end", status="FINISHED")
    written.close()
    with pytest.raises(UdcError):
        Delivery(written.folder).send()
    sent, failed = send_left_over(root)
    assert (sent, list(failed)) == (0, [written.folder])
    assert "127.0.0.1" in failed[written.folder]


def test_a_journal_being_written_is_left_alone(root):
    written = journal(root)
    assert is_held(written.folder / "writer.lock")
    assert send_left_over(root) == (0, {})
    written.close()
    assert send_left_over(root) == (1, {})  # its writer is gone without an end
    assert not unsent(root)
    (run,) = runs_of(root)
    assert run.info.status == "KILLED"


@pytest.mark.parametrize("end", ["FINISHED", "FAILED", "KILLED"])
def test_a_stage_ends_its_run_however_it_ends(root, end):
    code = WRITER.replace("MODE", str(end == "FAILED"))
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.DEVNULL, cwd=root, start_new_session=True)  # fmt: skip
    run_id = process.stdout.readline().strip()
    if end == "KILLED":
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for left in unsent(root):  # the sender has a session of its own, and goes on until it has sent the journal
            with suppress(FileNotFoundError), FileLock(left / "sender.lock"):
                pass
    else:
        process.communicate("\n")
    run = client_of(root).get_run(run_id)
    assert run.info.status == end
    assert (run.data.params, run.data.metrics) == ({"a.b": "1"}, {"x": 0.5})
    artifacts = [a.path for a in client_of(root).list_artifacts(run_id, "error")]
    assert artifacts == (["error/train.txt"] if end == "FAILED" else [])
    assert not unsent(root)


def test_all_with_the_same_key_fill_one_run(root):
    for value in (1.0, 2.0):
        with stage_run("tune", {"udc.study": "s"}, "the key") as run:
            run.log_metrics({"x": value}, step=int(value))
    (found,) = runs_of(root)
    assert [m.value for m in client_of(root).get_metric_history(found.info.run_id, "x")] == [1.0, 2.0]
    assert found.info.status == "FINISHED"
