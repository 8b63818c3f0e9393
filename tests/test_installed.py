"""What the installed package is: version, digest of the code, what pip installs it from; and the pin of a project."""

import json
import re
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from udc_model import installed as module
from udc_model.errors import UdcError
from udc_model.installed import Installed, _direct_requirement, check_pin, installed, read_pin, requirement

ROOT = Path(__file__).parents[1]


def test_version_and_code_of_a_source_tree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert installed().version == project["version"]
    assert re.fullmatch("[0-9a-f]{16}", installed().code)
    assert requirement() == f"udc-model @ {ROOT.as_uri()}"


def _package(tmp_path, monkeypatch, **files):
    """Let the package be one in a folder with these files; returns its version without what is cached."""
    package = tmp_path / "site-packages/udc_model"
    package.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (package / name.replace("_", ".")).write_text(text)
    monkeypatch.setattr(module.udc_model, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(module, "_version", lambda: "1.0")
    return module.installed.__wrapped__()


def test_digest_depends_on_code_only(tmp_path, monkeypatch):
    first = _package(tmp_path, monkeypatch, a_py="x = 1\n", b_c="int x;\n")
    assert _package(tmp_path, monkeypatch, a_txt="text", a_pyc="compiled") == first
    assert _package(tmp_path, monkeypatch, b_c="int y;\n").code != first.code
    assert _package(tmp_path, monkeypatch, b_c="int x;\n") == first
    assert _package(tmp_path, monkeypatch, c_py="").code != first.code


@pytest.mark.parametrize(("origin", "expected"), [
    ({"url": "file:///tmp/w/udc_model-0.2.0-py3-none-any.whl", "archive_info": {}},
     "file:///tmp/w/udc_model-0.2.0-py3-none-any.whl"),
    ({"url": "https://user:secret@example.org/udc_model-0.2.0.whl", "archive_info": {"hash": "sha256=1"}},
     "https://example.org/udc_model-0.2.0.whl"),
    ({"url": "https://token@example.org/w.whl?signature=secret#secret", "archive_info": {}},
     "https://example.org/w.whl"),
    ({"url": "https://u:p@example.org/r.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}, "subdirectory": "lib"}, "git+https://example.org/r.git@abc#subdirectory=lib"),
    ({"url": "ssh://git:secret@example.org/r.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
     "git+ssh://git@example.org/r.git@abc"),
    ({"url": "file:///home/a'b $x/udc", "dir_info": {"editable": True}}, "file:///home/a%27b%20%24x/udc"),
])  # fmt: skip
def test_requirement_has_no_secret(origin, expected):
    assert _direct_requirement(origin) == f"udc-model @ {expected}"


def test_requirement_of_an_index(monkeypatch):
    class Release:
        def read_text(self, name):
            return None

    monkeypatch.setattr(module, "_source_tree", lambda: None)
    monkeypatch.setattr(module, "distribution", lambda name: Release())
    monkeypatch.setattr(module, "version", lambda name: "0.2.0")
    assert requirement() == "udc-model==0.2.0"

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "distribution", missing)
    assert requirement() == "udc-model==0.2.0"


def test_a_pin_of_another_version_or_other_code_is_an_error(tmp_path):
    assert read_pin(tmp_path) is None
    check_pin(tmp_path)
    now = installed()
    for version, code in (("0.1.0", now.code), (now.version, "0" * 16)):
        (tmp_path / "udc.json").write_text(json.dumps({"version": version, "code": code, "files": {}}))
        assert read_pin(tmp_path).installed == Installed(version, code)
        with pytest.raises(UdcError, match=rf"^udc\.json: this project uses udc-model {version} \(code {code}\), but "):
            check_pin(tmp_path)
    (tmp_path / "udc.json").write_text(json.dumps({"version": now.version, "code": now.code}))
    check_pin(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1, "code": "x"}', '{"version": "1"}'])
def test_a_damaged_pin_is_one_line(tmp_path, text):
    (tmp_path / "udc.json").write_text(text)
    with pytest.raises(UdcError, match=r"udc\.json: .*git checkout udc\.json") as error:
        check_pin(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stage", ["prepare", "resolve", "train", "evaluate"])
def test_stages_refuse_another_version_before_they_change_anything(tmp_path, monkeypatch, stage):
    from importlib import import_module

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [stage])
    Path("udc.json").write_text(json.dumps({"version": "0.1.0", "code": "0" * 16}))
    with pytest.raises(UdcError, match=r"^udc\.json: this project uses udc-model 0\.1\.0"):
        import_module(f"udc_model.stages.{stage}").main()
    assert [path.name for path in tmp_path.iterdir()] == ["udc.json"]
