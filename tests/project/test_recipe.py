"""Recipes: each is valid and trains; writing one keeps comments and what the user has set."""

import json
import re

import pytest

from udc_model.cli import main
from udc_model.config import Params, load_params, override_params, validate_params
from udc_model.config.reference import parameters, params_yaml
from udc_model.errors import UdcError
from udc_model.project.recipe import apply, find_recipe, followed, read_recipe, recipes

NAMES = ["digits", "few-images", "frozen-features", "microscopy", "photographs", "photographs-pretrained", "small-grey"]


def test_all_recipes_have_a_page_with_their_evidence():
    assert list(recipes()) == sorted(NAMES, key=lambda name: f"{name}.yaml")
    for recipe in recipes().values():
        assert recipe.values
        title, _, rest = recipe.page.partition("\n\n")
        assert title.endswith(".")
        assert re.search(r"^For: ", rest, re.MULTILINE), recipe.name
        assert re.search(r"^Measured: ", rest, re.MULTILINE), recipe.name


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_only_values_that_differ_from_the_defaults(name):
    defaults = {parameter.name: parameter.default for parameter in parameters()}
    for key, value in find_recipe(name).values.items():
        assert defaults[key] != value, key


@pytest.mark.parametrize(("text", "message"), [
    ("train:\n  epocs: 3\n", "train.epocs"),
    ("trian:\n  epochs: 3\n", "trian"),
    ("train:\n  epochs: many\n", "train.epochs"),
])  # fmt: skip
def test_an_unknown_or_invalid_parameter_is_an_error(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"# Title.\n{text}")
    with pytest.raises(UdcError, match=rf"mine\.yaml is not valid:\n +{re.escape(message)}"):
        read_recipe(path)


def test_photographs_has_the_measured_values():
    values = find_recipe("photographs").values
    assert values == {
        "data.image_size": 96, "model.preset": "resnet-small", "train.epochs": 400, "train.learning_rate": 0.003,
        "train.ema_decay": 0.999, "train.augment": "standard", "train.horizontal_flip": True, "train.cutmix": 1.0,
        "evaluate.flip_averaging": True,
    }  # fmt: skip


@pytest.fixture
def params_file(tmp_path, monkeypatch):
    """A file of parameters in the current folder, with a comment and values of its user."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "params.yaml"
    text = params_yaml(validate_params({"data": {"source": "auto", "path": "data/raw/it's: #1"}, "seed": 7}, "test"))
    path.write_text(text.replace("seed: 7\n", "seed: 7  # as in the paper\n# mine\n"))
    return path


def test_writing_keeps_comments_and_values_that_are_not_its(params_file):
    before = params_file.read_text()
    changes = apply(params_file, find_recipe("photographs"), {})
    assert [(change.name, change.old, change.new) for change in changes][:2] == [
        ("data.image_size", 32, 96), ("model.preset", None, "resnet-small")]  # fmt: skip
    after = params_file.read_text()
    comments = [line for line in before.splitlines() if line.lstrip().startswith("#")]
    assert [line for line in after.splitlines() if line.lstrip().startswith("#")] == comments
    assert "seed: 7  # as in the paper" in after
    params = load_params(params_file)
    assert (params.data.path, params.seed, params.train.epochs) == ("data/raw/it's: #1", 7, 400)
    assert len(before.splitlines()) == len(after.splitlines())
    assert apply(params_file, find_recipe("photographs"), {}) == []
    assert params_file.read_text() == after


def test_another_recipe_takes_back_what_the_former_set_and_no_more(params_file):
    apply(params_file, find_recipe("photographs-pretrained"), {})
    text = params_file.read_text().replace("layer_decay: 0.8", "layer_decay: 0.7")
    params_file.write_text(text.replace("momentum: 0.9", "momentum: 0.8"))
    assert followed(load_params(params_file)).name == "photographs-pretrained"
    apply(params_file, find_recipe("photographs"), {"model.resnet.num_channels": 1})
    params = load_params(params_file)
    assert (params.model.weights, params.data.crop_pct, params.train.batch_size) == (None, 1.0, 64)  # the defaults
    assert (params.train.layer_decay, params.train.momentum) == (0.7, 0.8)  # the user's
    assert params.model.architecture.num_channels == 1
    assert followed(load_params(params_file)).name == "photographs"


def test_defaults_follow_no_recipe():
    assert followed(Params()) is None


def test_a_file_that_would_not_be_valid_stays(params_file):
    params_file.write_text(params_file.read_text().replace("model_type: resnet", "model_type: convnext"))
    before = params_file.read_text()
    with pytest.raises(UdcError, match=r"with recipe photographs is not valid:\n.*resnet-small is a resnet"):
        apply(params_file, find_recipe("photographs"), {})
    assert params_file.read_text() == before


def test_the_command_lists_shows_and_writes(params_file, capsys, caplog):
    before = params_file.read_text()
    assert main(["recipe", "--dry-run", "microscopy"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Images without an up and down")
    assert "Measured: nothing." in shown
    assert "params.yaml: would change\n" in shown
    assert "  train.quarter_turns: false -> true\n" in shown
    assert params_file.read_text() == before
    assert main(["recipe", "microscopy"]) == 0
    assert "params.yaml: changed\n" in capsys.readouterr().out
    assert load_params(params_file).train.quarter_turns
    assert main(["recipe", "microscopy"]) == 0
    assert "params.yaml: has these values already\n" in capsys.readouterr().out
    assert main(["recipe"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[2:].split()[0] for line in lines[:-1]] == list(recipes())
    assert [line.split()[1] for line in lines if line.startswith("*")] == ["microscopy", "params.yaml"]
    assert main(["recipe", "photos"]) == 1
    assert "photos: no such recipe" in caplog.text
    params_file.unlink()
    assert main(["recipe", "photographs"]) == 1
    assert "params.yaml: no such file" in caplog.text
    assert main(["recipe"]) == 0
    assert not params_file.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_trains_on_few_small_images(name, shapes_folder, tmp_path, monkeypatch):
    """With one epoch, small images, and for weights a file instead of a download; no recipe changes the evaluation."""
    from udc_model.files import Workspace
    from udc_model.models.factory import build_model
    from udc_model.stages.prepare import prepare
    from udc_model.stages.resolve import resolve
    from udc_model.stages.train import train

    monkeypatch.setenv("UDC_SENDER", "off")
    monkeypatch.chdir(tmp_path)
    path, weights = tmp_path / "params.yaml", tmp_path / "weights"
    settings = {"data.source": "auto", "data.path": str(shapes_folder), "data.image_size": 16, "train.epochs": 1,
                "train.batch_size": 12, "costs.preset": "uniform"}  # fmt: skip
    recipe = find_recipe(name)
    if "model.weights" in recipe.values:
        settings |= {"model.preset": "resnet-mini", "model.weights": str(weights)}
        weights.mkdir()
        build_model(override_params(["model.preset=resnet-mini"]).model, ["x", "y"], 0).save_pretrained(weights)
    apply(path, recipe, settings)
    params, workspace = load_params(path), Workspace(tmp_path)
    train(resolve(params, prepare(params, workspace)).train, workspace)
    recorded = json.loads((workspace.training / "record.json").read_text())["params"]
    for full, value in (recipe.values | settings).items():
        section, _, key = full.rpartition(".")
        if section in ("data", "train", "model"):
            assert recorded[section][key] == value, full
    assert (workspace.model / "model.safetensors").is_file()
