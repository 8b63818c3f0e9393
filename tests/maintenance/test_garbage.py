"""``udc gc``: what is named, in use, pending or resumable stays; the rest goes, and a second call finds nothing."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file

from udc_model.errors import UdcError
from udc_model.files import Workspace, only_writer
from udc_model.maintenance import dvc_cache, local_files
from udc_model.maintenance.deleted_runs import deleted_runs
from udc_model.maintenance.garbage import collect, examine, project_root, to_text
from udc_model.maintenance.holdings import Use
from udc_model.maintenance.local_files import holdings
from udc_model.maintenance.named_objects import named_by_runs
from udc_model.tracking.journal import JOURNALS, Journal
from udc_model.tracking.tags import DATA, EXPERIMENT_COMMIT, JOURNAL, OUTS, TRAINED_BY

NAMED = ("history", "committed", "experiment", "queued", "stashed", "of a run")
UNUSED, NEEDED, RECOMPUTED = Use.UNUSED, Use.NEEDED, Use.RECOMPUTED


def delete(found, *uses):
    """Delete the holdings of these uses, as the command does."""
    for holding in found:
        if holding.use in (uses or (UNUSED,)):
            holding.delete()


def local(project, finished=()):
    return holdings(project.root, lambda keys: {key for key in keys if key in finished})


def hash_of(project, text):
    """The hash of data/ with this text, as dvc.lock and runs have it."""
    path = project.listing(text)
    return path.parent.name + path.name


def contents(root):
    return {path: path.lstat().st_mtime_ns for path in root.rglob("*") if path.is_file() and ".git" not in path.parts}


def test_only_the_object_that_nothing_names_goes_and_the_experiment_can_be_applied(project):
    run_id = project.run({DATA: json.dumps({"data": hash_of(project, "of a run")})})
    before = {path for path in contents(project.root) if "cache" in path.parts}
    text = to_text(examine(project.root))
    assert "2  " in next(line for line in text.splitlines() if "can go" in line)
    assert before == {path for path in contents(project.root) if "cache" in path.parts}
    collection = collect(project.root, with_caches=False)
    assert collection.errors == []
    assert [(each.what, each.count) for each in collection.deleted] == [("objects in DVC's cache", 2)]
    assert not project.has("unnamed")
    assert [text for text in NAMED if not project.has(text)] == []
    assert collect(project.root, with_caches=True).deleted == []
    project.dvc("exp", "apply", "-q", "three")
    assert (project.root / "data/file").read_text() == "experiment"
    project.client.delete_run(run_id)  # it can be restored, so its data stays until `mlflow gc`
    assert project.has("of a run")
    assert hash_of(project, "of a run") in named_by_runs(project.root)
    assert hash_of(project, "of a run") not in named_by_runs(project.root, {run_id})


def test_a_journal_names_objects_before_the_tracker_knows_them(project):
    project.journal(tags={f"{OUTS}model": hash_of(project, "unnamed")})
    assert hash_of(project, "unnamed") in named_by_runs(project.root)
    damaged = project.journal()
    with (damaged / "journal.jsonl").open("a") as out:
        out.write("{\n")
    with pytest.raises(UdcError, match="is damaged"):
        named_by_runs(project.root)
    (damaged / "journal.jsonl").write_text("{\n")
    with pytest.raises(UdcError, match="is damaged"):
        named_by_runs(project.root)


def test_nothing_of_dvc_goes_if_a_named_listing_is_missing(project):
    project.listing("history").unlink()
    with pytest.raises(UdcError, match="dvc fetch --all-commits"):
        dvc_cache.holdings(project.root, [])
    assert project.has("unnamed")


def test_a_cache_that_other_projects_may_use_stays(project, tmp_path):
    shutil.move(project.root / ".dvc/cache", tmp_path / "shared")
    project.dvc("cache", "dir", str(tmp_path / "shared"))
    (holding,) = dvc_cache.holdings(project.root, [])
    assert (holding.use, holding.delete) == (NEEDED, None)


def test_a_running_stage_or_experiment_is_not_disturbed(project):
    hold = f"import sys; from pathlib import Path; from udc_model.files import *\nwith only_writer(Workspace(Path({str(project.root)!r}))):\n print(flush=True); sys.stdin.read()"  # noqa: E501
    for code, folder in ((hold, project.root.parent), ("import sys; print(flush=True); sys.stdin.read()",
                                                       project.root / ".dvc/tmp/exps/copy")):  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE)  # fmt: skip
        process.stdout.readline()
        try:
            with pytest.raises(UdcError, match=rf"process {process.pid}\)"):
                collect(project.root, with_caches=True)
        finally:
            process.communicate(b"")
        assert project.has("unnamed")
    journal = Journal.create(project.root, "train", {"uri": "", "tags": {}})  # of a stage in a copy of the project
    with pytest.raises(UdcError, match=journal.folder.name):
        collect(project.root, with_caches=True)


def test_dvc_is_asked_again_whether_it_runs_at_the_moment_of_deletion(project, monkeypatch):
    found = dvc_cache.holdings(project.root, [])
    monkeypatch.setattr(dvc_cache, "running_processes", lambda root: ["dvc repro (process 1)"])
    with pytest.raises(UdcError, match="dvc repro"):
        delete(found)
    assert project.has("unnamed")


def test_journals(project):
    delivered, pending = project.journal(position=-1), project.journal(position=0)
    not_ended, unknown = project.journal(is_ended=False, position=-1), project.journal()
    incomplete = project.journal(position=-1)
    with (incomplete / "journal.jsonl").open("a") as out:
        out.write('{"kind": "batch"')  # of a writer that was killed
    remainder, young = project.journal(), project.journal()
    for folder in (remainder, young):
        (folder / "journal.jsonl").unlink()
    remainder = remainder.rename(remainder.with_name(f"1000{remainder.name[4:]}"))  # decades ago
    written = Journal.create(project.root, "train", {"uri": ""})
    locked = project.journal(position=-1)
    with FileLock(locked / "sender.lock"):
        delete(local(project))
    assert [folder.exists() for folder in (delivered, remainder)] == [False, False]
    kept = (pending, not_ended, unknown, incomplete, young, written.folder, locked)
    assert [folder for folder in kept if not folder.exists()] == []
    delete(local(project))
    assert not locked.exists()


def checkpoint(project, key):
    folder = project.root / ".udc/checkpoints" / key
    folder.mkdir(parents=True)
    metadata = {"progress": "{}", "inputs": "{}", "run_key": key, "format": "2"}
    save_file({"w": torch.zeros(3)}, folder / f"000001-000000000-{'0' * 64}.safetensors", metadata)
    return folder


def test_checkpoints_go_only_once_the_model_is_stored(project):
    folders = {key: checkpoint(project, key) for key in ("finished", "interrupted", "locked")}
    empty = project.age(checkpoint(project, "empty"))
    for path in empty.iterdir():
        path.unlink()
    project.age(empty)
    partial = folders["interrupted"] / "writing.safetensors.partial"
    partial.touch()
    project.age(partial)
    damaged = checkpoint(project, "damaged")
    next(damaged.iterdir()).write_bytes(b"\xff" * 20)
    with FileLock(f"{folders['locked']}.lock"):
        delete(local(project, finished={"finished", "locked"}))
    assert [folder.exists() for folder in (folders["finished"], empty, partial)] == [False] * 3
    assert [folder.exists() for folder in (folders["interrupted"], folders["locked"], damaged)] == [True] * 3
    assert list(folders["interrupted"].glob("*.safetensors"))


def test_a_run_that_ended_before_dvc_stored_its_model_still_needs_its_checkpoint(project):
    from udc_model.maintenance.garbage import _finished

    outs = {f"{OUTS}model": hash_of(project, "unnamed")}  # a folder without model.safetensors
    run_id = project.run({JOURNAL: "key"} | outs, artifact=False)
    project.client.set_terminated(run_id)
    assert _finished(project.root, {"key": project.root}) == set()
    file = project.root / "model"
    file.mkdir()
    (file / "model.safetensors").write_bytes(b"weights")
    project.dvc("add", "-q", "model")
    stored = project.run({JOURNAL: "stored", f"{OUTS}model": _hash_in(file.with_suffix(".dvc"))}, artifact=False)
    assert _finished(project.root, {"key": project.root, "stored": project.root}) == set()  # running
    project.client.set_terminated(stored)
    assert _finished(project.root, {"key": project.root, "stored": project.root}) == {"stored"}


def _hash_in(file):
    return next(line.split()[-1] for line in file.read_text().splitlines() if "md5:" in line)


@pytest.mark.parametrize("name", ["logits", "figures", "features", "explanations"])
def test_caches_go_only_if_it_is_said(project, name):
    entry = project.root / f".udc/{name}/a.npz"
    entry.parent.mkdir(parents=True)
    entry.write_bytes(b"x" * 100)
    kept = project.root / ".udc/studies/lr/study.db"
    kept.parent.mkdir(parents=True)
    kept.touch()
    delete(local(project))
    assert entry.exists()
    delete(local(project), UNUSED, RECOMPUTED)
    assert (entry.exists(), kept.exists()) == (False, True)


def test_scratch_of_killed_processes(project):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (project.root / "scratch").mkdir()
    names = {"dead": f".model.{ended.pid}.partial", "alive": f".model.{os.getppid()}.partial",
             "young": f".training.{ended.pid}.partial", "foreign": ".of-somebody.partial"}  # fmt: skip
    folders = {kind: project.root / name for kind, name in names.items()}
    for folder in folders.values():
        folder.mkdir()
    for kind in ("dead", "alive", "foreign"):
        project.age(folders[kind])
    locked = project.root / f".evaluation.{ended.pid}.partial"
    locked.mkdir()
    project.age(locked)
    descriptor = os.open(locked, os.O_RDONLY)  # as a process of another machine holds it
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    delete(local(project))
    os.close(descriptor)
    assert [kind for kind, folder in folders.items() if not folder.exists()] == ["dead"]
    assert locked.exists()


def test_folds_that_are_evaluated_need_no_images(project):
    study = project.root / ".udc/cross-validation/key"
    for fold, is_evaluated in (("1", True), ("2", False)):
        for name in ("data", "model", "evaluation"):
            (study / fold / name).mkdir(parents=True)
        if is_evaluated:
            (study / fold / "metrics.json").touch()
    (study / "images.bin").write_bytes(b"x")
    (study / "study.json").write_text('{"key": "k", "logged": 0}')
    delete(local(project))
    assert sorted(path.name for path in (study / "1").iterdir()) == ["evaluation", "metrics.json"]
    assert len(list((study / "2").iterdir())) == 3
    assert (study / "images.bin").exists()  # of folds that are not evaluated
    (study / "study.json").write_text('{"key": "k", "logged": 1}')
    delete(local(project))
    assert not (study / "images.bin").exists()


def test_links_to_other_folders_are_not_followed(project, tmp_path):
    outside = tmp_path / "outside"
    (outside / "entry").mkdir(parents=True)
    (outside / f".x.{2**22 - 3}.partial").touch()
    for name in ("logits", "checkpoints", "tracking", "cross-validation"):
        (project.root / ".udc").mkdir(exist_ok=True)
        (project.root / ".udc" / name).symlink_to(outside)
    delete(local(project), UNUSED, RECOMPUTED)
    assert len(list(outside.iterdir())) == 2


def test_deleted_runs_that_something_names_stay(project):
    client = project.client
    gone, registered, trained, linked, elsewhere = (project.run() for _ in range(5))
    journal_run = project.run()
    project.run({TRAINED_BY: trained})
    folder = project.journal(position=3)
    sent = json.loads((folder / "sent.json").read_text()) | {"run_id": journal_run}
    (folder / "sent.json").write_text(json.dumps(sent))
    client.create_registered_model("m")
    client.create_model_version("m", str(project.root / f"mlartifacts/udc-model/{registered}/artifacts"), registered)
    experiment = project.git("for-each-ref", "refs/exps", "--format=%(objectname) %(refname)")
    commit = next(line.split()[0] for line in experiment.splitlines() if line.endswith("/three"))
    client.set_tag(linked, EXPERIMENT_COMMIT, commit)
    outside = project.root.parent / "outside" / elsewhere / "artifacts"
    outside.mkdir(parents=True)
    import sqlite3

    with sqlite3.connect(project.root / "mlflow.db") as connection:
        connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (outside.as_uri(), elsewhere))
    for run_id in (gone, registered, trained, linked, elsewhere, journal_run):
        client.delete_run(run_id)
    found = deleted_runs(project.root)
    assert [run.identifier for run in found.unused] == [gone]
    reasons = {run.identifier: run.reason for run in found.runs}
    assert "registered model m, version 1" in reasons[registered]
    assert "run " in reasons[trained]
    assert "experiment three" in reasons[linked]
    assert "not in mlartifacts" in reasons[elsewhere]
    assert "udc sync" in reasons[journal_run]


def test_deleted_runs_go_with_their_models_also_after_a_kill(project):
    client = project.client
    kept, first, second = (project.run() for _ in range(3))
    experiment = client.get_run(first).info.experiment_id
    models = {run: client.create_logged_model(experiment, "classifier", run) for run in (kept, first, second)}
    for model in models.values():
        (project.root / f"mlartifacts/udc-model/models/{model.model_id}/artifacts").mkdir(parents=True)
    for run in (first, second):
        client.delete_run(run)
    client.delete_logged_model(models[first].model_id)  # killed after this, and after the artifacts of a run
    shutil.rmtree(project.artifacts(second)[0].parent)
    (holding,) = deleted_runs(project.root).holdings()
    assert (holding.count, holding.use) == (2, UNUSED)
    holding.delete()
    assert [run.info.run_id for run in client.search_runs([experiment], run_view_type=3)] == [kept]
    assert project.artifacts(kept)
    assert not project.artifacts(first)
    remaining = [path.name for path in (project.root / "mlartifacts/udc-model/models").iterdir()
                 if (path / "artifacts").exists()]  # fmt: skip
    assert remaining == [models[kept].model_id]
    assert deleted_runs(project.root).holdings() == []


def test_mlflow_gc_is_not_called_if_it_would_delete_what_must_stay(project):
    client = project.client
    run_id = project.run(name="other")
    project.run({TRAINED_BY: run_id})
    client.delete_experiment(client.get_run(run_id).info.experiment_id)
    gone = project.run()
    client.delete_run(gone)
    found = deleted_runs(project.root)
    assert found.unused == []
    assert "mlflow experiments restore" in found.obstacle
    assert {holding.use for holding in found.holdings()} == {NEEDED}


def test_another_store_is_not_touched(project, monkeypatch):
    run_id = project.run()
    project.client.delete_run(run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project.root.parent / 'team.db'}")
    assert deleted_runs(project.root).holdings() == []


def test_without_the_tracker_it_is_not_known_what_dvc_may_delete(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    text = to_text(examine(project.root))
    assert "can go" not in text
    collection = collect(project.root, with_caches=False)
    assert "127.0.0.1:9" in collection.errors[0]
    assert project.has("unnamed")


def test_the_places_are_those_of_what_writes_them():
    from udc_model.experiments import cross_validation, tuning
    from udc_model.stages import evaluate
    from udc_model.training import checkpoints, features

    assert local_files._CHECKPOINTS == checkpoints.CHECKPOINTS
    assert local_files._CROSS_VALIDATION == cross_validation.STUDIES
    assert features.CACHE == local_files.UDC / "features"
    assert tuning.STUDIES == local_files.UDC / "studies"
    assert str(local_files.UDC) == evaluate.CACHE  # with logits and figures below


def test_all_folders_of_the_documentation_are_known():
    documented = set(
        re.findall(r"`\.udc/([a-z-]+)/`", (Path(__file__).parents[2] / "docs/reference/files.md").read_text())
    )
    listed = {*local_files._CACHES, *local_files._KEPT, "checkpoints", "cross-validation", JOURNALS.name}
    assert documented - listed == set()


def test_outside_of_a_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UdcError, match="is no project"):
        project_root()


def test_the_lock_is_held_while_it_deletes(project, monkeypatch):
    seen = []
    monkeypatch.setattr(dvc_cache, "running_processes", lambda root: seen.append(_is_free(project)) or [])
    collect(project.root, with_caches=False)
    assert seen == [False]


def _is_free(project):
    code = f"from pathlib import Path; from udc_model.files import *\nwith only_writer(Workspace(Path({str(project.root)!r}))): pass"  # noqa: E501
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_command_deletes_and_releases_the_lock(project):
    command = [sys.executable, "-m", "udc_model.cli", "gc", "--delete"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].startswith("deleted: ")
    assert not project.has("unnamed")
    with only_writer(Workspace(project.root)):
        pass
