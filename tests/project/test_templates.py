"""The templates of projects: the repository's own files are made from them, and the package contains them."""

import tomllib
from pathlib import Path

import pytest
import yaml

from udc_model.config import load_params
from udc_model.config.reference import params_yaml
from udc_model.project.recipe import find_recipe, with_values
from udc_model.project.templates import project_files, repository_files, with_lines

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "src/udc_model/project"


def test_files_of_the_repository_are_those_of_the_templates():
    files = repository_files()
    assert set(files) == {
        "dvc.yaml",
        "MLproject",
        "python_env.yaml",
        ".dvc/config",
        "data/raw/README.md",
        "data/corrections.csv",
    }
    for name, text in files.items():
        assert (ROOT / name).read_text() == text, f"{name} differs from src/udc_model/project/templates"
    for name in ("plots.html", "plots/reliability.json"):
        assert (ROOT / ".dvc" / name).read_bytes() == (PROJECT / "templates/dvc" / name).read_bytes()


def test_parameters_of_the_demo_are_the_recipe_digits():
    from udc_model.config import Params

    text = (ROOT / "params.yaml").read_text()
    assert with_values(params_yaml(Params()), find_recipe("digits").values) == text
    assert params_yaml(load_params(ROOT / "params.yaml")) == text


def test_the_repository_ignores_what_a_project_ignores():
    ignored = (ROOT / ".gitignore").read_text()
    assert with_lines(ignored, project_files("x")[".gitignore"]) == ignored


def test_stages_of_a_project_depend_on_the_version_instead_of_the_code():
    ours, theirs = (yaml.safe_load(files["dvc.yaml"]) for files in (repository_files(), project_files("x")))
    assert ours["plots"] == theirs["plots"]
    for name, stage in theirs["stages"].items():
        own = ours["stages"][name]
        assert stage["cmd"] == own["cmd"].removeprefix("PYTHONPATH=src ")
        assert stage["params"] == [*own.get("params", []), {"udc.json": ["version", "code"]}]
        assert stage["deps"] == [dep for dep in own["deps"] if not dep.startswith("src/")]
        assert {key: stage[key] for key in ("outs", "metrics") if key in stage} == {
            key: own[key] for key in ("outs", "metrics") if key in own}  # fmt: skip


def test_files_of_a_project_are_valid_and_name_what_is_installed(monkeypatch):
    where = "udc-model @ git+https://example.org/r.git@abc#subdirectory=lib"
    monkeypatch.setattr("udc_model.project.templates.requirement", lambda: where)
    files = project_files("My spiders: 2")
    assert yaml.safe_load(files["MLproject"])["name"] == "My-spiders-2"
    assert yaml.safe_load(files["python_env.yaml"])["dependencies"] == [where]
    job = yaml.safe_load(files[".github/workflows/udc.yml"])["jobs"]["check"]
    assert job["steps"][2]["run"] == f"python -m pip install '{where}'"
    assert "UDC ?= udc-model @ git+https://example.org/r.git@abc\\#subdirectory=lib\n" in files["Makefile"]
    assert files["README.md"].startswith("# My-spiders-2\n")
    targets = [line.partition(":")[0] for line in files["Makefile"].splitlines() if ": ## " in line]
    assert targets == ["help", "setup", "train", "ui", "clean"]
    assert not any("src/udc_model" in text or "{{" in text or "{%" in text
                   for name, text in files.items() if name != ".dvc/plots.html")  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), [("é", "é"), ("..", "project"), ("a'b\n#", "a-b"), ("0x1F", "0x1F")])
def test_names_of_folders_become_names_of_projects(name, expected):
    assert yaml.safe_load(project_files(name)["MLproject"])["name"] == expected


def test_the_wheel_has_the_templates_and_recipes():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["udc_model"]
    for folder in ("templates", "recipes"):
        files = [path for path in (PROJECT / folder).rglob("*") if path.is_file()]
        included = {path for pattern in patterns for path in (ROOT / "src/udc_model").glob(pattern) if path.is_file()}
        assert files
        assert set(files) <= included


@pytest.mark.parametrize(("text", "expected"), [
    ("", "/a\n/b\n"),
    ("/x\n", "/x\n\n/a\n/b\n"),
    ("/b\n/x", "/b\n/x\n\n/a\n"),
    ("/a\n\n/b", "/a\n\n/b"),
])  # fmt: skip
def test_missing_lines_are_appended(text, expected):
    assert with_lines(text, "# comment\n/a\n\n/b\n") == expected
