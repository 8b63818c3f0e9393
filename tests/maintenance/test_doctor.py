"""``udc doctor``: what is a warning or a failure, no secrets, checks that fail or hang hide nothing, and its status."""

import errno
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from email.message import Message

import pytest

from udc_model.cli import main
from udc_model.maintenance import doctor, machine_checks, network_checks, project_checks
from udc_model.maintenance.findings import Check, Finding, Status, run_checks, to_json, to_text, without_secrets, worst
from udc_model.tracking.journal import Journal

OK, NOTE, WARNING, FAILURE = Status.OK, Status.NOTE, Status.WARNING, Status.FAILURE


@pytest.mark.parametrize(("cores", "quota", "omp", "status", "word"), [
    (8, None, None, OK, ""), (8, None, "8", OK, ""), (8, None, "16", WARNING, "OMP_NUM_THREADS=8"),
    (64, 2.0, None, WARNING, "OMP_NUM_THREADS=2"), (8, None, "2", NOTE, "OMP_NUM_THREADS=8"),
    (8, 0.5, None, WARNING, "OMP_NUM_THREADS=1"), (8, None, "four", WARNING, "no number"), (8, None, "8,1", OK, ""),
])  # fmt: skip
def test_threads(cores, quota, omp, status, word):
    (finding,) = machine_checks.threads_findings(cores, quota, omp)
    assert finding.status is status
    assert word in finding.text + finding.advice


TORCH = {"version": "2.14.1+cpu", "cuda": None, "gpus": [], "mps": False, "threads": 2, "memory": None}


@pytest.mark.parametrize(("facts", "has_nvidia", "status"), [
    (TORCH, False, OK), (TORCH, True, WARNING), (TORCH | {"cuda": "13.0"}, True, WARNING),
    (TORCH | {"cuda": "13.0", "gpus": ["H100 (80 GiB)"]}, True, OK),
    (TORCH | {"memory": "needs 9 GiB"}, False, FAILURE), ("Illegal instruction", False, FAILURE),
])  # fmt: skip
def test_torch(facts, has_nvidia, status):
    assert worst(machine_checks.torch_findings(facts, has_nvidia=has_nvidia)) is status


def test_extras_are_those_of_the_package_without_the_ones_of_development(monkeypatch):
    about = Message()
    for extra in ("one", "two", "dev"):
        about["Provides-Extra"] = extra
    for requirement in ("numpy>=2", 'pydantic>=2; extra == "one"', 'udc-model[one]; extra == "two"',
                        'no-such-package[x]>=1; extra == "two"', 'pytest; extra == "dev"'):  # fmt: skip
        about["Requires-Dist"] = requirement
    monkeypatch.setattr(machine_checks, "metadata", lambda name: about)
    finding = machine_checks.libraries()[1]
    assert finding.text == "installed: one; not installed: two"
    assert finding.advice == "to add one: pip install 'udc-model[two]'"


def test_a_torch_that_ends_its_process_is_a_finding(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = machine_checks.torch_check(None)
    assert (finding.status, "status -4" in finding.text) == (FAILURE, True)


@pytest.mark.parametrize(("total", "available", "limit", "status"), [
    (16e9, 8e9, None, OK), (16e9, 1e9, None, WARNING), (64e9, 60e9, int(1e9), WARNING), (64e9, 60e9, int(9e18), OK),
])  # fmt: skip
def test_memory(total, available, limit, status):
    (finding,) = machine_checks.memory_findings(int(total), int(available), limit)
    assert finding.status is status


def test_git_without_an_identity_names_the_commands():
    (finding,) = machine_checks.git_findings("git version 2", {"user.name": "A"})
    assert finding.status is WARNING
    assert finding.advice == 'git config --global user.email "…"'
    assert machine_checks.git_findings(None, {})[0].status is FAILURE
    (finding,) = machine_checks.git_findings("git version 2", {"user.name": "Ada", "user.email": "ada@lab.example"})
    assert "Ada" not in finding.text
    assert "ada@" not in finding.text


@pytest.mark.parametrize(("lacking", "status"), [
    ([], OK), (["hard links"], WARNING), (["locks", "hard links"], FAILURE),
])  # fmt: skip
def test_file_systems(lacking, status):
    assert project_checks.file_system_findings("ext4", lacking)[0].status is status
    assert project_checks.file_system_findings("nfs4", [])[0].status is NOTE


def test_this_file_system_is_examined_and_left_as_it_was(tmp_path, monkeypatch):
    assert worst(project_checks.file_system(tmp_path)) in (OK, NOTE)
    assert list(tmp_path.iterdir()) == []

    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(project_checks.fcntl, "flock", flock)
    (finding,) = project_checks.file_system(tmp_path)
    assert (finding.status, "without locks" in finding.text) == (FAILURE, True)


def test_locks_that_are_granted_twice_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr(project_checks.fcntl, "flock", lambda *_: None)
    assert "without locks" in project_checks.file_system(tmp_path)[0].text


@pytest.mark.parametrize(("free", "needed", "status"), [(1e11, 0, OK), (1e9, 0, WARNING), (1e11, 2e11, WARNING)])
def test_disk(free, needed, status):
    assert project_checks.disk_findings(int(free), int(needed))[0].status is status


@pytest.mark.parametrize(("skew", "behind", "status"), [
    (None, False, NOTE), (3.0, False, OK), (-3600.0, False, WARNING), (None, True, WARNING),
])  # fmt: skip
def test_clocks(skew, behind, status):
    assert network_checks.clock_findings("2026", skew, is_behind_files=behind)[0].status is status


@pytest.mark.parametrize(("stated", "status", "expected"), [
    (network_checks.version("mlflow"), 200, OK), ("1.30.0", 200, WARNING), (None, 401, WARNING), (None, 404, WARNING),
])  # fmt: skip
def test_tracking_servers(stated, status, expected):
    assert network_checks.server_findings("http://host", stated, status)[0].status is expected


class _Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.headers.get("Authorization") else 401)
        self.end_headers()
        self.wfile.write(b"3.1.0")

    def log_message(self, *_):
        pass


@contextmanager
def served():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_the_tracker_is_asked_with_the_credentials_which_are_not_printed(monkeypatch):
    with served() as address:
        assert network_checks.tracker(address)[0].status is WARNING
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret-7")
        (finding,) = network_checks.tracker(address)
    assert finding.status is OK
    assert "MLflow 3.1.0" in finding.text
    assert "secret-7" not in to_text([finding])
    (finding,) = network_checks.tracker("http://127.0.0.1:9")
    assert (finding.status, "refused" in finding.text) == (WARNING, True)


def test_databases(tmp_path, empty_store):
    assert network_checks.database_findings(tmp_path / "none.db")[0].status is OK
    assert network_checks.database_findings(empty_store)[0].status is OK
    (tmp_path / "damaged.db").write_bytes(b"no database" * 100)
    assert network_checks.database_findings(tmp_path / "damaged.db")[0].status is WARNING
    import sqlite3

    for revision, word in (("ffffffffffff", "later"), ("451aebb31d03", "mlflow db upgrade")):
        copy = shutil.copy(empty_store, tmp_path / f"{word}.db")
        with sqlite3.connect(copy) as connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        (finding,) = network_checks.database_findings(tmp_path / f"{word}.db")
        assert (finding.status, word in finding.text + finding.advice) == (WARNING, True)


@pytest.mark.parametrize("text", [
    "postgresql://ada:pa/ss@word-7@host/db is away", "https://host/a?X-Amz-Signature=word-7&x=1 fails",
    "s3://key:word-7@bucket", "a word-7-in-the-environment here", "http://ada:word-7@host:5000/x",
])  # fmt: skip
def test_secrets_are_in_no_output(text, monkeypatch):
    monkeypatch.setenv("SOME_API_TOKEN", "word-7-in-the-environment")
    (finding,) = run_checks([Check("machine", "a", lambda: [Finding("a", OK, text, text)])])
    assert "word-7" not in to_text([finding]) + to_json([finding])
    assert "ada" not in to_text([finding])


def test_the_home_folder_is_not_named(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert without_secrets("/home/ada/project and\n/home/adam") == "~/project and /home/adam"


def test_a_check_that_fails_or_hangs_hides_no_other():
    released = threading.Event()

    def fail():
        raise SystemExit("broken https://ada:word-7@host library")

    def hang():
        released.wait()
        return [Finding("hangs", OK, "")]

    checks = [Check("machine", "fails", fail), Check("machine", "hangs", hang, 0.05),
              Check("project", "works", lambda: [Finding("works", OK, "fine")])]  # fmt: skip
    started = time.monotonic()
    findings = run_checks(checks)
    assert time.monotonic() - started < 10
    released.set()
    assert [(each.part, each.check, each.status) for each in findings] == [
        ("machine", "fails", WARNING), ("machine", "hangs", WARNING), ("project", "works", OK),
    ]  # fmt: skip
    assert "SystemExit: broken https://host" in findings[0].text


def test_each_finding_is_one_line():
    findings = run_checks([Check("machine", "a", lambda: [Finding("a", FAILURE, "two\nlines", "do\nthis")])])
    assert to_text(findings) == "machine\n  failure  a  two lines; do this\n"
    assert json.loads(to_json(findings)) == {
        "format": 1, "status": "failure",
        "findings": [{"check": "a", "status": "failure", "text": "two lines", "advice": "do this", "part": "machine"}],
    }  # fmt: skip


@pytest.fixture
def _machine_is_known(monkeypatch):
    monkeypatch.setattr(doctor.machine, "torch_check", lambda project: [Finding("torch", OK, "2")])


@pytest.mark.usefixtures("_machine_is_known")
def test_outside_of_a_project_the_machine_is_examined(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--offline"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("machine\n")
    assert "project\n" not in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_machine_is_known")
def test_in_a_broken_project_all_checks_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[broken")
    (tmp_path / "params.yaml").write_text("train: {epochs: many}\n")
    (tmp_path / "udc.json").write_text("{")
    (tmp_path / "mlflow.db").write_bytes(b"x" * 2000)
    Journal.create(tmp_path, "train", {"uri": ""}).close()
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--offline", "--json"])
    assert ended.value.code == 1
    content = json.loads(capsys.readouterr().out)
    statuses = {each["check"]: each["status"] for each in content["findings"]}
    assert content["status"] == "failure"
    assert statuses["dvc repository"] == "failure"
    assert {name: statuses[name] for name in ("project", "stages", "parameters", "tracker", "journals", "dvc remote")} \
        == {"project": "failure", "stages": "failure", "parameters": "failure", "tracker": "warning",
            "journals": "warning", "dvc remote": "warning"}  # fmt: skip
    assert statuses["file system"] in ("ok", "note")


def _dvc_repository(project):
    (finding,) = project_checks.dvc_repository(project.root)
    return finding


def test_a_dvc_repository_without_its_configuration(project):
    (project.root / ".dvc/config").unlink()
    found = _dvc_repository(project)
    assert (found.status, found.advice) == (FAILURE, "git checkout .dvc, or udc init")


def test_a_file_of_dvc_with_a_merge_conflict(project):
    assert _dvc_repository(project).status is OK
    pointer = project.root / "data.dvc"
    pointer.write_text("<<<<<<< HEAD\n" + pointer.read_text())
    found = _dvc_repository(project)
    assert (found.status, "data.dvc" in found.text) == (FAILURE, True)


def test_a_dvc_repository_that_does_not_use_git(project):
    (project.root / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    found = _dvc_repository(project)
    assert (found.status, found.advice) == (FAILURE, "dvc config --unset core.no_scm")


def test_remotes(project):
    assert network_checks.remote(project.root)[0].status is NOTE
    project.dvc("remote", "add", "-q", "-d", "disk", str(project.root.parent / "remote"))
    (project.root.parent / "remote").mkdir()
    assert network_checks.remote(project.root)[0].status is OK
    project.dvc("remote", "modify", "-q", "disk", "url", str(project.root.parent / "no/such/folder"))
    assert network_checks.remote(project.root)[0].status is WARNING


def test_the_command_is_a_process_of_its_own(tmp_path):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "udc_model.cli", "doctor", "--offline", "--json"], cwd=tmp_path,
                          env=env, capture_output=True, text=True, check=True)  # fmt: skip
    checks = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert checks["torch"]["status"] in ("ok", "warning")
    assert checks["kernels"]["text"]
    assert done.stderr == ""
