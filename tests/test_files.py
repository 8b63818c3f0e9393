"""Folders that are replaced at once, one writer at a time, and the exit status of programs."""

import contextlib
import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from udc_model import files
from udc_model.errors import UdcError
from udc_model.files import (
    Workspace,
    atomic_folder,
    check_outputs,
    json_text,
    only_writer,
    running_writer,
    write_atomically,
)

WRITES = """
import sys
from pathlib import Path
from udc_model.files import Workspace, atomic_folder, only_writer, write_atomically
workspace = Workspace(Path(sys.argv[1]))
with only_writer(workspace) if sys.argv[2] == "lock" else atomic_folder(workspace.model) as folder:
    if folder:
        (folder / "weights").write_text("of the other process")
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts a process which writes in ``tmp_path`` until it receives a line."""
    processes = []

    def run(kind):
        process = subprocess.Popen([sys.executable, "-c", WRITES, str(tmp_path), kind], text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["data/prepared/a", "resolved/a", "model/a.py", "training/a", "evaluation/a",
                                  "metrics.json"])  # fmt: skip
def test_contents_of_another_origin_are_no_outputs(name, tmp_path):
    workspace = Workspace(tmp_path)
    check_outputs(workspace)
    for path in workspace.outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path != workspace.metrics:
            path.mkdir()
    check_outputs(workspace)
    for marker in workspace.outputs.values():
        marker.touch()
    workspace.metrics.touch()
    check_outputs(workspace)
    file = tmp_path / name
    output = workspace.metrics if file == workspace.metrics else file.parent
    workspace.outputs[output].unlink()
    file.touch()
    with pytest.raises(UdcError, match=f"^{output}: exists and was not written by a stage"):
        check_outputs(workspace)


def test_a_process_id_that_another_process_has_now_is_no_writer(tmp_path):
    workspace = Workspace(tmp_path)
    with only_writer(workspace):
        assert running_writer(workspace).endswith(f"(process {os.getpid()})")
    holder = tmp_path / ".udc/writer.json"
    holder.write_text(json.dumps({"pid": os.getppid(), "command": "train.py"}))
    assert running_writer(workspace) is None
    (tmp_path / ".udc/writer.lock").unlink(missing_ok=True)
    assert running_writer(workspace) is None


def test_a_second_writer_is_refused_with_the_name_of_the_first(tmp_path, start):
    process = start("lock")
    with (
        pytest.raises(UdcError, match=rf"^-c {tmp_path} lock \(process {process.pid}\) is writing to {tmp_path};"),
        only_writer(Workspace(tmp_path)),
    ):
        pass
    with only_writer(Workspace(tmp_path / "elsewhere")):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with only_writer(Workspace(tmp_path)):
        pass


def test_the_lock_of_a_killed_writer_is_free_when_its_children_have_ended(tmp_path, monkeypatch):
    with only_writer(Workspace(tmp_path)):
        pass
    held = FileLock(tmp_path / ".udc/writer.lock", thread_local=False)
    held.acquire()
    monkeypatch.setattr(files, "running_writer", lambda workspace: held.release())  # they end at this moment
    with only_writer(Workspace(tmp_path)):
        pass
    held.acquire()
    monkeypatch.setattr(files, "running_writer", lambda workspace: None)
    monkeypatch.setattr(files, "_GRACE", 0.01)
    with pytest.raises(UdcError, match="is writing to"), only_writer(Workspace(tmp_path)):
        pass
    held.release()


def test_the_lock_is_free_after_an_error(tmp_path):
    workspace = Workspace(tmp_path)
    for _ in range(2):
        with pytest.raises(RuntimeError), only_writer(workspace):
            raise RuntimeError


def test_a_folder_that_another_process_writes_is_not_removed(tmp_path, start):
    process = start("folder")
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("of this process")
    assert (tmp_path / "model" / "weights").read_text() == "of this process"
    process.communicate("\n")
    assert process.returncode == 0
    assert (tmp_path / "model" / "weights").read_text() == "of the other process"
    assert os.listdir(tmp_path) == ["model"]  # noqa: PTH208


def test_a_reader_sees_a_complete_folder_at_any_time(tmp_path):
    """Also through an open folder: names in it lead to the files of one writer."""
    code = """
import sys
from pathlib import Path
from udc_model.files import atomic_folder
for k in range(400):
    with atomic_folder(Path(sys.argv[1])) as folder:
        for name in ("a", "b"):
            (folder / name).write_text(str(k))
    if k == 0:
        print("ready", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "model")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    n_reads = 0
    while process.poll() is None:
        assert (tmp_path / "model").is_dir()
        n_reads += 1
    assert process.returncode == 0
    assert n_reads > 100


def test_atomic_folder_keeps_the_target_and_removes_scratch_after_an_error(tmp_path):
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    (tmp_path / f".model.{_ended_process()}.partial").mkdir()  # from a process that was killed
    with contextlib.suppress(RuntimeError), atomic_folder(target) as folder:
        (folder / "a").write_text("new")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("is_refused", [False, True])
def test_a_folder_is_replaced_or_kept_where_the_system_cannot_exchange(tmp_path, monkeypatch, is_refused):
    target, rename = tmp_path / "model", Path.rename
    target.mkdir()
    (target / "a").write_text("old")

    def renamed(path, new):
        if is_refused and (path / "a").read_text() == "new":
            raise PermissionError("refused")
        return rename(path, new)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # without renameat2
    monkeypatch.setattr(Path, "rename", renamed)
    expected = pytest.raises(UdcError, match="refused") if is_refused else contextlib.nullcontext()
    with expected, atomic_folder(target) as folder:
        (folder / "a").write_text("new")
    assert (target / "a").read_text() == ("old" if is_refused else "new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_replaced_folder_that_cannot_be_deleted_is_reported_and_deleted_by_the_next_writer(
    tmp_path, monkeypatch, caplog
):
    target = tmp_path / "model"
    for text in ("old", "new", "newest"):
        with monkeypatch.context() as patch:
            if text == "new":
                patch.setattr(files.shutil, "rmtree", _refuse)
            with atomic_folder(target) as folder:
                (folder / "a").write_text(text)
        assert (target / "a").read_text() == text
    (message,) = caplog.messages
    assert message == f"{tmp_path}/.model.{os.getpid()}.partial: cannot be deleted: Permission denied; delete it"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_is_no_target_for_a_folder(tmp_path):
    target = tmp_path / "notes.txt"
    target.write_text("notes")
    entered = []
    message = f"^{target}: is a file, not a folder; name another folder"
    with pytest.raises(UdcError, match=message), atomic_folder(target):
        entered.append(True)
    assert not entered
    assert target.read_text() == "notes"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_errors_of_other_files_are_not_those_of_the_folder(tmp_path):
    image = tmp_path / "images" / "1.png"
    with pytest.raises(FileNotFoundError) as error, atomic_folder(tmp_path / "model"):
        image.read_bytes()
    assert error.value.filename == str(image)
    with pytest.raises(OSError, match="image file is truncated"), atomic_folder(tmp_path / "model"):
        raise OSError("image file is truncated")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arguments", "reason"), [
    ((errno.EACCES, "Permission denied", "SCRATCH"), "cannot be written: Permission denied"),
    ((errno.ENOSPC, "No space left on device", "SCRATCH"), "cannot be written: No space left on device"),
    ((errno.ENOSPC, "No space left on device"), "cannot be completed: no space left on device; free disk space"),
    (("800 requested and 20 written",), "cannot be completed: no space left on device; free disk space"),  # of numpy
])  # fmt: skip
def test_errors_of_the_folder_itself_name_it(arguments, reason, tmp_path):
    target = tmp_path / "model"
    with pytest.raises(UdcError, match=f"^{target}: {reason}"), atomic_folder(target) as folder:
        raise OSError(*(str(folder / "weights") if each == "SCRATCH" else each for each in arguments))
    assert list(tmp_path.iterdir()) == []


def _ended_process():
    """The id of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


def _refuse(path):
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_scratch_files_of_killed_processes_are_removed_by_the_next_writer(tmp_path):
    for pid in (_ended_process(), os.getppid()):
        (tmp_path / f".metrics.json.{pid}.partial").touch()
    (tmp_path / ".metrics.json.name.partial").touch()  # of another program
    write_atomically(tmp_path / "metrics.json", "{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f".metrics.json.{os.getppid()}.partial", ".metrics.json.name.partial", "metrics.json",
    ]  # fmt: skip


def test_rows_of_plain_values_are_on_one_line():
    values = {"name": "é", "empty": [], "none": {}, "rows": [[1, 2.5], [None, True]], "objects": [{"a": [1]}, 3]}
    text = json_text(values)
    assert json.loads(text) == values
    assert text.splitlines() == [
        "{", '  "name": "é",', '  "empty": [],', '  "none": {},', '  "rows": [', "    [1, 2.5],", "    [null, true]",
        "  ],", '  "objects": [', "    {", '      "a": [1]', "    },", "    3", "  ]", "}",
    ]  # fmt: skip
