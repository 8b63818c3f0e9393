"""``udc init``: what it writes and where, what it never overwrites, how a second call completes a first."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from udc_model.cli import main
from udc_model.config import load_params
from udc_model.errors import UdcError
from udc_model.files import Workspace, write_atomically
from udc_model.installed import check_pin, installed
from udc_model.project import commands, creation
from udc_model.project.commands import command_to_use_git
from udc_model.project.templates import project_files

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _without_git_settings(tmp_path_factory, monkeypatch):
    """No user is known to git, and the current folder is an empty one."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", "/")
    folder = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(folder)


@pytest.fixture
def images(shapes_at, tmp_path):
    """A folder of images outside of the project."""
    return shapes_at(tmp_path / "my shapes")


def _git(*arguments):
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _contents(folder=Path()):
    return {path: path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and not {".git", "tmp", "cache"} & set(path.parts)}  # fmt: skip


def test_a_project_in_an_empty_folder(capsys):
    assert main(["init"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"project: {Path.cwd()} (new git and DVC repository)\nrecipe: digits, of ")
    assert output.endswith("\nTrain, and record the result:\n  dvc repro\n")
    assert load_params() == load_params(ROOT / "params.yaml")
    assert Path("params.yaml").read_text() == (ROOT / "params.yaml").read_text()
    files = project_files(Path.cwd().name)
    assert all(Path(name).read_text() == text for name, text in files.items())
    check_pin()
    tracked = _git("ls-files").splitlines()
    assert set(tracked) == {*files, "params.yaml", "udc.json", ".dvc/.gitignore", ".dvcignore", "data/raw/README.md"}
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    assert stages["prepare"]["deps"][0] == "${data.path}"
    assert Path(load_params().data.path).is_dir()  # without it, dvc repro would fail
    assert _git("log", "--format=%an %s") == "udc Make the project (udc init)"
    assert _git("status", "--porcelain") == ""
    before = _contents()
    assert main(["init"]) == 0  # again
    assert _contents() == before
    assert _git("log", "--format=%s").count("\n") == 0


def test_images_outside_are_referred_to(images, capsys):
    assert main(["init", "shapes project", "--images", str(images)]) == 0
    output = capsys.readouterr().out
    root = Path("shapes project")
    params = load_params(root / "params.yaml")
    assert (params.data.source, params.data.path, params.data.image_size) == ("auto", str(images), 24)
    assert (params.train.augment, params.costs.preset) == ("strong", "uniform")
    assert "images: outside of the project, which refers to them; they stay where they are" in output
    assert "recipe: few-images\n  the rarest of 3 classes has 20 image(s)\n" in output
    assert "  cd shapes project\n  dvc repro\n\n`dvc repro` trains all 200 epochs" in output
    assert output.endswith("  cd shapes project\n  udc run --name first -S train.epochs=20\n")
    assert not list(root.rglob("*.png"))
    (root / "params.yaml").write_text((root / "params.yaml").read_text().replace("epochs: 200", "epochs: 3"))
    assert main(["init", "shapes project", "--images", str(images)]) == 0
    assert "params.yaml: uses these images already; it stays as it is" in capsys.readouterr().out
    assert load_params(root / "params.yaml").train.epochs == 3


def test_images_in_the_folder_are_tracked_by_dvc(shapes_at, capsys):
    shapes_at(Path("data/raw/shapes").absolute())
    assert main(["init", "--images", "data/raw/shapes", "--recipe", "microscopy"]) == 0
    output = capsys.readouterr().out
    assert "images: tracked by DVC now\n" in output
    assert "recipe: microscopy\n  as you chose\n" in output
    params = load_params()
    assert (params.data.path, params.train.quarter_turns) == ("data/raw/shapes", True)
    assert {"data/raw/shapes.dvc", "data/raw/.gitignore"} <= set(_git("ls-files").splitlines())
    assert _git("status", "--porcelain") == ""
    assert main(["init", "--images", "data/raw/shapes"]) == 0
    assert "images: tracked already\n" in capsys.readouterr().out


def test_images_that_git_tracks_in_part_are_refused(shapes_at, caplog, capsys):
    shapes_at(Path("data/raw/shapes").absolute())
    Path("data/raw/shapes/README.md").write_text("shapes\n")
    _git("init", "-q")
    _git("add", "data/raw/shapes/README.md")
    before = _contents()
    assert main(["init", "--images", "data/raw/shapes"]) == 1
    assert "--images: git tracks a part of data/raw/shapes, and not data/raw/shapes/bar/" in caplog.text
    assert _contents() == before
    _git("rm", "-rq", "--cached", "data/raw/shapes")  # as the message says
    assert main(["init", "--images", "data/raw/shapes"]) == 0
    assert "images: tracked by DVC now\n" in capsys.readouterr().out


def test_a_link_in_the_folder_is_outside_with_its_target(images, capsys):
    Path("linked").symlink_to(images)
    assert main(["init", "--images", "linked"]) == 0
    assert "images: outside of the project, which refers to them" in capsys.readouterr().out
    assert load_params().data.path == str(images)


def test_errors_of_dvc_have_no_colours(tmp_path):
    from dvc.exceptions import DvcException

    with pytest.raises(UdcError) as error, commands._one_line_errors("dvc add", tmp_path):
        raise DvcException("\x1b[31mcannot\x1b[0m add \x1b[1;36mx\x1b[m")
    assert str(error.value) == f"`dvc add` failed in {tmp_path}: cannot add x"


def test_parameters_of_the_images(shapes_at, caplog, capsys):
    folder = shapes_at(Path("shapes").absolute())
    paths = [path.rename(folder / f"{path.parent.name}-{path.name}") for path in sorted(folder.rglob("*.png"))]
    for name in ("bar", "dot", "stripe"):
        (folder / name).rmdir()
    lines = [f"{path.name},größe {path.name[:3]}" for path in paths]
    (folder / "labels.csv").write_text("\n".join(["path,label", *lines]), encoding="latin-1")
    assert main(["init", "project", "--images", "shapes"]) == 1
    assert "data.encoding" in caplog.text
    assert not Path("project").exists()
    settings = ["-S", "data.encoding=latin-1", "-S", "epochs=3"]
    assert main(["init", "project", "--images", "shapes", *settings]) == 0
    params = load_params(Path("project/params.yaml"))
    assert (params.data.source, params.data.path, params.data.encoding) == ("auto", str(folder), "latin-1")
    assert params.train.epochs == 3
    assert "größe bar" in capsys.readouterr().out
    assert main(["init", "project", "--images", "shapes", *settings[:3], "epochs=4"]) == 0
    assert "it stays as it is; set train.epochs there" in capsys.readouterr().out
    for wrong, message in ((["-S", "epochs=3"], "-S: is for the images; add --images"),
                           (["--images", "shapes", "-S", "data.path=x"], "-S data.path: is that of --images"),
                           (["--images", "shapes", "-S", "data.pth=x"], "data.pth: no such parameter")):  # fmt: skip
        assert main(["init", "other", *wrong]) == 1
        assert message in caplog.text
    assert not Path("other").exists()


def test_a_project_gets_its_images_later(images, capsys):
    assert main(["init"]) == 0
    assert main(["init", "--images", str(images)]) == 0
    params = load_params()
    assert (params.data.path, params.costs.preset, params.model.preset) == (str(images), "uniform", "resnet-mini")
    assert f"git: the files are staged in the repository {Path.cwd()}; commit them" in capsys.readouterr().out
    assert _git("diff", "--cached", "--name-only") == "params.yaml"


def test_existing_files_are_never_overwritten(capsys):
    mine = {"README.md": "mine\n", "Makefile": "all:\n", ".gitignore": "/mine\n", "notes.txt": "notes\n"}
    for name, text in mine.items():
        Path(name).write_text(text)
    assert main(["init"]) == 0
    assert "not written, because they exist: Makefile, README.md\n" in capsys.readouterr().out
    for name, text in mine.items():
        assert Path(name).read_text().startswith(text)
    assert "/mlflow.db\n" in Path(".gitignore").read_text()
    recorded = json.loads(Path("udc.json").read_text())["files"]
    assert {"README.md", "Makefile", ".gitignore"}.isdisjoint(recorded)
    assert not {"README.md", "Makefile", "notes.txt"} & set(_git("ls-files").splitlines())


def test_an_ignore_file_that_is_not_utf8_keeps_its_bytes():
    Path(".gitignore").write_bytes(b"/caf\xe9\r\n")
    assert main(["init"]) == 0
    written = Path(".gitignore").read_bytes()
    assert written.startswith(b"/caf\xe9\r\n\n/data/prepared\n")
    assert main(["init"]) == 0
    assert Path(".gitignore").read_bytes() == written


@pytest.mark.parametrize("names", [["params.yaml"], ["dvc.yaml", "params.yaml"], ["MLproject"]])
def test_files_that_a_project_needs_are_refused_and_nothing_is_written(names, caplog):
    for name in names:
        Path(name).write_text("mine\n")
    assert main(["init"]) == 1
    assert (
        f"{Path.cwd()}: has {', '.join(names)} already, and is no project of udc init; nothing was written"
        in caplog.text
    )
    assert sorted(path.name for path in Path().iterdir()) == names


@pytest.mark.parametrize("name", ["data/prepared/x.png", "resolved/x.yaml", "model/x.py", "training/x", "evaluation/x",
                                  "metrics.json"])  # fmt: skip
def test_a_folder_of_the_user_that_stages_would_delete_is_refused(name, caplog):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine\n")
    assert main(["init"]) == 1
    output = name.rpartition("/")[0] or name
    assert (
        f"{Path.cwd()}: has {output}, which the stages of a project would replace; nothing was written" in caplog.text
    )
    assert [path for path in Path().rglob("*") if path.is_file()] == [Path(name)]


def test_the_outputs_that_are_checked_are_those_of_the_stages():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    written = {name for stage in stages for entry in (*stage.get("outs", ()), *stage.get("metrics", ()))
               for name in ([entry] if isinstance(entry, str) else entry)}  # fmt: skip
    outputs = {path.as_posix() for path in Workspace().outputs}
    assert {name if name in outputs else name.rpartition("/")[0] for name in written} == outputs


def test_a_project_of_another_version_is_refused(caplog):
    Path("udc.json").write_text(json.dumps({"version": "0.1.0", "code": "0" * 16, "files": {}}))
    assert main(["init"]) == 1
    assert "`udc upgrade` moves the project to it" in caplog.text
    assert [path.name for path in Path().iterdir()] == ["udc.json"]


def test_images_are_checked_before_anything_is_written(tmp_path, caplog):
    (tmp_path / "empty").mkdir()
    for path, message in (("missing", "--images: missing does not exist"), (tmp_path / "empty", "")):
        assert main(["init", "--images", str(path)]) == 1
        assert message in caplog.text
    assert main(["init", "--recipe", "photo"]) == 1
    assert "photo: no such recipe" in caplog.text
    assert list(Path().iterdir()) == []


def test_a_project_inside_its_images_is_refused(shapes_at, caplog, monkeypatch):
    images = shapes_at(Path("shapes").absolute())
    monkeypatch.chdir(images)
    assert main(["init", "--images", "."]) == 1
    assert "--images: . contains the project's folder" in caplog.text
    assert sorted(path.name for path in images.iterdir()) == ["bar", "dot", "stripe"]


def test_an_interrupted_call_is_completed_by_the_next(images, monkeypatch, capsys):
    assert main(["init", "whole", "--images", str(images)]) == 0
    n_files = 0

    def count(path, text):
        nonlocal n_files
        n_files += 1
        if n_files > allowed:
            raise KeyboardInterrupt
        write_atomically(path, text)

    for allowed in (1, 8):
        root = Path(f"whole{allowed}")
        n_files = 0
        monkeypatch.setattr(creation, "write_atomically", count)
        assert main(["init", str(root), "--images", str(images)]) == 130
        monkeypatch.setattr(creation, "write_atomically", write_atomically)
        assert not (root / "params.yaml").exists()
        assert main(["init", str(root), "--images", str(images)]) == 0
        expected = {path.relative_to("whole"): text for path, text in _contents(Path("whole")).items()}
        actual = {path.relative_to(root): text for path, text in _contents(root).items()}
        assert set(actual) == set(expected)
        for path, text in expected.items():
            if path.name not in ("udc.json", "README.md", "MLproject"):  # contain the name of the folder
                assert actual[path] == text, path
        assert subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True).stdout == b""
        shutil.rmtree(root)


def test_in_a_folder_of_a_git_repository(capsys):
    _git("init", "-q")
    _git("config", "user.name", "Test")
    _git("config", "user.email", "test@example.org")
    Path("other.txt").write_text("x")
    Path("staged.txt").write_text("x")
    _git("add", "other.txt")
    _git("commit", "-qm", "start")
    _git("add", "staged.txt")
    assert main(["init", "models/spiders"]) == 0
    output = capsys.readouterr().out
    assert "(new DVC repository)" in output
    assert f"git: the files are staged in the repository {Path.cwd()}; commit them\n" in output
    assert not Path("models/spiders/.git").exists()
    assert "models/spiders/dvc.yaml" in _git("diff", "--cached", "--name-only").splitlines()
    assert _git("log", "--format=%s") == "start"
    config = subprocess.run(["dvc", "config", "core.no_scm"], cwd="models/spiders", capture_output=True, text=True)
    assert config.stdout.strip() != "true"


def test_a_git_repository_without_a_commit_gets_only_our_files():
    _git("init", "-q")
    Path("secret.txt").write_text("x")
    Path("staged.txt").write_text("x")
    _git("add", "staged.txt")
    assert main(["init"]) == 0
    assert not {"secret.txt", "staged.txt"} & set(_git("ls-tree", "-r", "--name-only", "HEAD").splitlines())
    assert _git("diff", "--cached", "--name-only") == "staged.txt"


def test_an_existing_dvc_repository_keeps_its_configuration(capsys):
    _git("init", "-q")
    subprocess.run(["dvc", "init", "-q"], check=True)
    subprocess.run(["dvc", "remote", "add", "-d", "store", "/tmp/store"], check=True)
    config = Path(".dvc/config").read_text()
    assert main(["init"]) == 0
    assert "not written, because they exist: .dvc/config\n" in capsys.readouterr().out
    assert Path(".dvc/config").read_text() == config


def test_a_cache_without_a_configuration_stays():
    """The state after a checkout of a branch from before the project: git removes the configuration, not the cache."""
    assert main(["init"]) == 0
    _git("checkout", "-q", "--orphan", "older")
    _git("rm", "-rqf", ".")
    cached = Path(".dvc/cache/files/md5/ab/cd")
    cached.parent.mkdir(parents=True)
    cached.write_text("images")
    assert not Path(".dvc/config").exists()
    assert main(["init"]) == 0
    assert cached.read_text() == "images"
    assert {".dvc/config", ".dvc/.gitignore", ".dvcignore"} <= set(_git("ls-files").splitlines())
    assert ".dvc/cache" not in _git("ls-files", "--others", "--exclude-standard")
    assert Path(".dvc/config").read_text() == project_files(Path.cwd().name)[".dvc/config"]


def test_a_dvc_repository_that_does_not_use_git_is_refused(caplog):
    _git("init", "-q")
    subprocess.run(["dvc", "init", "-q", "--no-scm"], check=True)
    before = _contents()
    assert main(["init"]) == 1
    assert "core.no_scm, and experiments need git; nothing was written. Run `dvc config --unset core.no_scm`" \
        in caplog.text  # fmt: skip
    assert _contents() == before
    Path(".dvc/config").write_text("")
    Path(".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    assert command_to_use_git(Path()) == "dvc config --local --unset core.no_scm"


def test_a_repository_that_git_refuses_gets_no_other_in_it(monkeypatch, caplog):
    _git("init", "-q")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("LANGUAGE", "de")
    assert main(["init", "project"]) == 1
    assert "detected dubious ownership in repository" in caplog.text
    assert "safe.directory" in caplog.text
    assert [path.name for path in Path().iterdir()] == [".git"]


def test_errors_of_git_are_one_line(monkeypatch, caplog):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["init"]) == 1
    assert "error: the git command is not on the PATH; install it" in caplog.text


def test_nothing_heavy_is_imported(images):
    import sys

    code = "import sys; from udc_model.cli import main; main(sys.argv[1:]); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, "init", "--images", str(images)], capture_output=True, text=True,
                          check=True)  # fmt: skip
    loaded = done.stdout.rsplit("\n[", 1)[1]
    for name in ("torch", "mlflow", "sklearn", "matplotlib", "pandas"):
        assert f"'{name}'" not in loaded
    assert str(installed().version) in Path("udc.json").read_text()
