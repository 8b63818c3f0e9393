"""Stage resolve: what each stage depends on, and parameters that do not fit the data, before training."""

from pathlib import Path

import pytest
import yaml

from udc_model.config import Params, validate_params
from udc_model.config.yaml12 import as_yaml
from udc_model.data.packed import MANIFEST_COLUMNS
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.stages.code import LOGITS, STAGES
from udc_model.stages.prepare import prepare
from udc_model.stages.resolve import (
    check_test_split,
    load_evaluation_params,
    load_training_params,
    main,
    read_calibration_groups,
    reduce,
    resolve,
    training_params,
    write_resolved,
)

ROOT = Path(__file__).parents[2]
INFO = {"classes": ["a", "b"], "counts": {"train": {"a": 30, "b": 30}, "calibration": {"a": 20, "b": 20}}}


def _files(tmp_path, **sections):
    """The texts of the two resolved files."""
    workspace = Workspace(tmp_path)
    write_resolved(resolve(validate_params(sections, "test"), INFO), workspace)
    return {name: (workspace.resolved / f"{name}.yaml").read_text() for name in ("train", "evaluate")}


def _changed(tmp_path, common, **change):
    """The files that a change of parameters changes."""
    before, after = _files(tmp_path, **common), _files(tmp_path, **{**common, **change})
    return [name for name in before if before[name] != after[name]]


@pytest.mark.parametrize(
    ("common", "change", "expected"),
    [
        ({}, {"costs": {"default": 2.0}}, ["evaluate"]),
        ({"loss": {"name": "expected_cost"}}, {"costs": {"default": 2.0}}, ["train", "evaluate"]),
        ({"train": {"monitor": "normalised_cost"}}, {"costs": {"default": 2.0}}, ["train", "evaluate"]),
        ({}, {"evaluate": {"calibration": "vector"}}, ["evaluate"]),
        ({"train": {"monitor": "normalised_cost"}}, {"evaluate": {"calibration": "vector"}}, ["train", "evaluate"]),
        ({}, {"train": {"learning_rate": 0.1}}, ["train"]),
        ({}, {"train": {"checkpoint_minutes": 1.0, "loader_workers": 2}}, []),
        ({}, {"loss": {"focal_gamma": 5.0}}, []),
        ({"loss": {"name": "focal"}}, {"loss": {"name": "focal", "focal_gamma": 5.0}}, ["train"]),
        ({}, {"model": {"convnext": {"patch_size": 2}}}, []),
        ({}, {"model": {"resnet": {"embedding_size": 32}}}, ["train"]),
        ({}, {"data": {"path": "elsewhere"}}, []),
        ({}, {"seed": 1}, ["train"]),
    ],
)
def test_a_change_reaches_the_stages_that_depend_on_it(common, change, expected, tmp_path):
    assert _changed(tmp_path, common, **change) == expected


def test_every_loss_option_is_used_by_some_loss():
    from udc_model.config.loss import LOSS_OPTIONS, LossParams

    used = {option for options in LOSS_OPTIONS.values() for option in options}
    assert used == set(LossParams.model_fields) - {"name"}
    assert set(LOSS_OPTIONS) == set(LossParams.model_fields["name"].annotation.__args__)


def test_stages_read_back_what_was_resolved(tmp_path):
    sections = {
        "seed": 7, "data": {"path": "images"}, "costs": {"refer": 0.3}, "loss": {"name": "cost_weighted"},
        "train": {"loader_workers": 2, "epochs": 3}, "evaluate": {"recall_of": ["b"]},
        "model": {"preset": "resnet-18", "convnext": {"patch_size": 2}},
    }  # fmt: skip
    params = validate_params(sections, "test")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(sections))
    workspace = Workspace(tmp_path)
    write_resolved(resolve(params, INFO), workspace)
    train = load_training_params(workspace, tmp_path / "params.yaml")
    assert train == resolve(params, INFO).train
    assert (train.data, train.train, train.costs) == (params.data, params.train, params.costs)
    assert train.model.architecture == params.model.architecture
    assert train.evaluate == Params().evaluate
    evaluate = load_evaluation_params(workspace)
    assert (evaluate.costs, evaluate.evaluate) == (params.costs, params.evaluate)


def test_values_of_the_evaluation_are_not_recorded_as_those_of_the_training_run():
    """They are decided later, and MLflow refuses to change a parameter of a run."""
    sections = {"loss": {"name": "cost_weighted"}, "train": {"monitor": "normalised_cost"},
                "costs": {"refer": 0.5, "unfamiliar": "refer"}, "evaluate": {"precision": "auto"}}  # fmt: skip
    resolved = reduce(validate_params(sections, "test"))
    training, later = training_params(resolved.train), resolved.evaluate.model_dump(include={"costs", "evaluate"})
    later["evaluate"]["precision"] = "fp32_fused"  # as stage evaluate resolves it
    for section in ("costs", "evaluate"):
        assert training[section].items() <= later[section].items()
        assert len(training[section]) == len(later[section]) - 1


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"model": {"num_labels": 3}},
            r"model\.num_labels: is 3, but the data has 2 classes\nthe .* are: a, b",
        ),
        ({"evaluate": {"recall_of": ["c"]}}, r"evaluate\.recall_of: the data has no class 'c'\nthe classes .* a, b"),
        ({"evaluate": {"recall_floor": {"class": "c"}}}, r"evaluate\.recall_floor\.class: the data has no class 'c'"),
        ({"costs": {"prior": {"a": 0.5, "c": 0.5}}}, r"costs\.prior: the data has no class 'c'"),
        ({"costs": {"order": ["a"]}}, r"costs\.order: the class 'b' is missing"),
        (
            {"evaluate": {"decision": "recall_floor", "recall_floor": {"class": "a"}}},
            r"needs at least 59 of its images in the calibration split, which has 20: 39 more are needed",
        ),
    ],
)
def test_parameters_that_do_not_fit_the_data_are_refused_before_training(sections, message):
    with pytest.raises(UdcError, match=message):
        resolve(validate_params(sections, "test"), INFO)


def test_floors_of_groups_are_checked_with_the_groups_of_the_manifest(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.prepared.mkdir(parents=True)
    info = INFO | {"counts": INFO["counts"] | {"calibration": {"a": 60, "b": 60}}}
    rows = [f"calibration,{i},{i}.png,{'ab'[i % 2]},g{i // 6},8,8,0" for i in range(120)]
    other = "train,0,x.png,a,g0,8,8,0"
    (workspace.prepared / "manifest.csv").write_text("\n".join([",".join(MANIFEST_COLUMNS), *rows, other]) + "\n")
    groups = read_calibration_groups(workspace)
    assert groups == [{"a": 3, "b": 3}] * 20
    params = validate_params({"evaluate": {"decision": "recall_floor", "recall_floor": {"class": "a"}}}, "test")
    resolve(params, info)  # 60 images would do
    with pytest.raises(UdcError, match=r"at least 71 groups with its images in the calibration split, which has 20"):
        resolve(params, info, groups)


@pytest.mark.parametrize(("counts", "calibration", "message"), [
    ({"a": 0, "b": 0}, "temperature", "temperature needs images, but the calibration split is empty"),
    ({"a": 5, "b": 1}, "auto", "needs two images of each class in the calibration split"),
    ({"a": 5, "b": 1}, "dirichlet", "needs two images of each class in the calibration split"),
])  # fmt: skip
def test_a_calibration_split_that_is_too_small_is_refused_before_training(counts, calibration, message):
    info = {"classes": ["a", "b"], "counts": {"calibration": counts}}
    with pytest.raises(UdcError, match=message):
        resolve(validate_params({"evaluate": {"calibration": calibration}}, "test"), info)


def test_dvc_yaml_lists_the_code_of_each_stage():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, code in STAGES.items():
        listed = {dep for dep in stages[name]["deps"] if dep.startswith("src/")}
        assert listed == {f"src/udc_model/{path}" for path in code}, name
    for path in {path for code in (*STAGES.values(), LOGITS) for path in code}:
        assert (ROOT / "src/udc_model" / path).exists(), path


def test_prepare_depends_on_the_parameters_that_it_reads(tmp_path):
    """The channels of the model besides its own section; any other parameter of the model must not run it again."""
    params = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["prepare"]["params"]
    # files of earlier versions have no block timm, whose channels must be those of the others
    assert set(params) == {"seed", "data", "model.resnet.num_channels", "model.convnext.num_channels"}
    grey = validate_params({"model": {"model_type": "timm", "timm": {"num_channels": 1}}}, "test")
    for stage in (lambda: prepare(grey, Workspace(tmp_path)), lambda: resolve(grey, INFO)):
        with pytest.raises(UdcError, match=r"^model\.timm\.num_channels: must .*, got resnet 3, convnext 3, timm 1$"):
            stage()


def test_a_test_split_that_decides_nothing_is_named_before_training(tmp_path, shapes_folder, monkeypatch, caplog):
    """Three images of each class. Deciding all as bar costs 1 on six: an unseen bar at a cost of 20 outweighs them in
    (1 + 1/20) ** -6 = 0.75 of the draws, at a cost of 1 in 2 ** -6 = 0.016."""
    sections = {
        "data": {"source": "folder", "path": str(shapes_folder), "image_size": 16},
        "costs": {"preset": "uniform"},
    }
    params = validate_params(sections, "test")
    prepare(params, Workspace(tmp_path))
    assert check_test_split(params, Workspace(tmp_path)) == []
    action = validate_params(sections | {"costs": {"preset": "uniform", "actions": {"retest": 0.01}}}, "test")
    (warning,) = check_test_split(action, Workspace(tmp_path))
    assert "cost less than always retest" in warning  # (1 + 0.01/0.99) ** -9 = 0.91
    costly = [{"actual": "bar", "predicted": name, "cost": 20} for name in ("dot", "stripe")]
    params = validate_params(sections | {"costs": {"preset": "uniform", "entries": costly}}, "test")
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(as_yaml(params.model_dump()))
    main()
    assert "the test split: 9 images decide nothing: even without a mistake, no model would be shown" in caplog.text
    assert "to cost less than always bar (95% interval); udc cross-validate uses all images" in caplog.text
