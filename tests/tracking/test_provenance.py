"""What copies of the repository lack: data that neither git nor DVC tracks."""

import os
import subprocess
from pathlib import Path

import pytest

from udc_model.errors import UdcError
from udc_model.tracking.provenance import absent_from_copies, locked_stages, provenance, uncommitted


def _git(*arguments):
    subprocess.run(["git", "-c", "user.name=T", "-c", "user.email=t@example.org", *arguments], check=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The current folder: a repository with data/raw/README.md, and untracked images in data/raw/x."""
    monkeypatch.chdir(tmp_path)
    Path("data/raw/x/a").mkdir(parents=True)
    Path("data/raw/README.md").touch()
    Path("data/raw/x/a/1.png").touch()
    _git("init", "-q")
    _git("add", "data/raw/README.md")
    _git("commit", "-qm", "start")
    return tmp_path


@pytest.mark.parametrize(("ignored", "tracked", "path", "command"), [
    ("", (), "data/raw/x", "dvc add data/raw/x"),
    ("", (), "data/raw", "dvc add data/raw/x"),
    ("", ("data/raw/x",), "data/raw/x", None),  # in git
    ("/x\n", ("data/raw/x.dvc", "data/raw/.gitignore"), "data/raw/x", None),  # after dvc add, by autostage
    ("/x\n", ("data/raw/x.dvc", "data/raw/.gitignore"), "data/raw/x/a", None),
    ("/x\n", ("data/raw/x.dvc", "data/raw/.gitignore"), "data/raw", None),
    ("/x\n", (), "data/raw/x", "git add data/raw/x.dvc"),  # dvc add without git add
    ("/x\n", ("data/raw/.gitignore",), "data/raw", "git add data/raw/x.dvc"),
    ("", (), "data/raw/README.md", None),
    ("", (), "/tmp", None),
    ("", (), "data/raw/missing", None),
])  # fmt: skip
def test_absent_data(repository, ignored, tracked, path, command):
    if ignored:
        Path("data/raw/.gitignore").write_text(ignored)
        Path("data/raw/x.dvc").touch()
    if tracked:
        _git("add", *tracked)
    message = absent_from_copies(Path(path))
    if command is None:
        assert message is None
    else:
        assert message == f"git's index has neither data/raw/x nor a .dvc file of it; run `{command}`"


def test_hidden_files_and_folders_without_a_repository(repository, monkeypatch, tmp_path_factory):
    _git("add", "data/raw/x")
    Path("data/raw/x/.DS_Store").touch()
    assert absent_from_copies(Path("data/raw/x")) is None
    Path("data/raw/x/é b.png").touch()
    assert absent_from_copies(Path("data/raw/x")).startswith("git's index has neither data/raw/x/é b.png nor")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    Path("images").mkdir()
    assert absent_from_copies(Path("images")) is None


def test_the_patch_has_new_files_of_the_index_but_no_other_new_files(repository):
    assert uncommitted() == ""
    Path("data/raw/x.dvc").write_text("outs: 1\n")
    Path("secret.txt").write_text("secret\n")
    _git("add", "data/raw/x.dvc")
    Path("data/raw/x.dvc").write_text("outs: 2\n")
    patch = uncommitted()
    assert "+outs: 2" in patch
    assert "secret" not in patch
    assert subprocess.run(["git", "diff", "--cached", "--stat"], capture_output=True, text=True).stdout.count("|") == 1


def _read_without_settings(*arguments):
    """The output of a git command without settings of user and system."""
    env = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(["git", *arguments], capture_output=True, check=True, env=env).stdout.decode()


@pytest.mark.parametrize("setting", [
    "noprefix=true", "mnemonicPrefix=true", "srcPrefix=x/", "external=false", "notes.textconv=sort", "renames=false",
    "context=0", "relative=true", "submodule=log", "orderFile=order", "algorithm=patience", "interHunkContext=9",
    "notes.command=false",
])  # fmt: skip
def test_the_patch_does_not_depend_on_the_settings_of_git(repository, setting):
    Path("src").mkdir()
    Path("src/a.notes").write_text("".join(f"{number}\n" for number in range(40, 0, -1)))
    Path("src/b.bin").write_bytes(bytes(range(256)))
    Path("src/first.txt").write_text("moved\n" * 20)
    Path(".gitattributes").write_text("*.notes diff=notes\n")
    Path("order").write_text("*.bin\n")
    _git("add", "src", ".gitattributes")
    _git("commit", "-qm", "files")
    Path("src/a.notes").write_text(Path("src/a.notes").read_text().replace("30\n", "x\n").replace("16\n", ""))
    Path("src/b.bin").write_bytes(bytes(range(255, -1, -1)))
    Path("src/first.txt").rename("src/second.txt")
    _git("add", "--all", "src")
    expected = _read_without_settings("diff", "--cached", "--binary", "--no-color", "HEAD")
    name, _, value = setting.partition("=")
    _git("config", f"diff.{name}", value)
    patch = uncommitted()
    assert patch == expected
    _git("stash", "-q")
    subprocess.run(["git", "apply", "--index", "--binary"], input=patch.encode(), check=True)
    assert Path("src/second.txt").is_file()
    assert "x\n" in Path("src/a.notes").read_text()


@pytest.mark.parametrize(("text", "message"), [
    ("stages:\n  a:\n<<<<<<< HEAD\n    cmd: x\n=======\n    cmd: y\n>>>>>>> b\n",
     "dvc.lock: has a merge conflict in line 3; resolve it, then run `dvc repro`"),
    ("stages: [", "dvc.lock: is damaged (while parsing"), ("stages: [1]", "dvc.lock: is damaged ("),
    ("stages: {a: 1}", "dvc.lock: is damaged (a stage is no mapping)"), ("1", "dvc.lock: is damaged ("),
    ("a: 2020-99-99", "dvc.lock: is damaged (month must be"), ("\0", "dvc.lock: is damaged ("),
])  # fmt: skip
def test_a_damaged_lock_is_one_line(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dvc.lock").write_text(text)
    with pytest.raises(UdcError) as error:
        provenance("train")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert locked_stages(Path("missing.lock")) == {}
