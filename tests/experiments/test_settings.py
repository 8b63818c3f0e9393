"""Parameters for DVC are checked on a copy of params.yaml, as DVC reads them."""

import subprocess

import pytest

from udc_model.errors import UdcError
from udc_model.experiments.search_range import SearchRange
from udc_model.experiments.settings import check_settings
from udc_model.experiments.tuning import tune
from udc_model.experiments.tuning_plan import TuningPlan

TEXT = "train: {epochs: 2, learning_rate: 0.1}\nevaluate: {recall_of: []}\ncosts: {entries: [], prior: null}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(TEXT)
    return tmp_path


@pytest.mark.parametrize(
    ("written", "name"),
    [("3", "3"), ("01", "01"), ("0x10", "0x10"), ("2024-01-01", "2024-01-01"), ("no", "no"), ("'1.10'", "1.10"),
     ("'true'", "true"), ("a/b", "a/b")],
)  # fmt: skip
def test_class_names_arrive_as_dvc_writes_them(folder, written, name):
    params = check_settings(
        [f"evaluate.recall_of=[{written}]", f"costs.entries=[{{actual: {written}, predicted: b, cost: 5}}]"]
    )
    assert params.evaluate.recall_of == [name]
    assert params.costs.entries[0].true == name
    assert (folder / "params.yaml").read_text() == TEXT


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluate.recall_of=[1.10]", r"evaluate\.recall_of\.0: 1\.10 is not read .*'1\.10'$"),
        (
            "evaluate.recall_of=[true]",
            r"^params\.yaml is not valid:\n .*recall_of\.0: true is not read .*'true'",
        ),
        ("evaluate.recall_of=[null]", r"evaluate\.recall_of\.0: null is not read as a text; .* in quotes: 'null'"),
        ("costs.prior={1.0: 0.5, b: 0.5}", r"the key 1\.0 is not read as a text; put it in quotes: '1\.0'"),
        ("costs.prior={3: 0.5, b: 0.5}", r"the key 3 is not read as a text; put it in quotes: '3'"),
        ("train.epochs=0", r"^params\.yaml is not valid:\n  train\.epochs: got 0; allowed: integer above 0$"),
        ("train.eposch=1", r"^train\.eposch: DVC cannot set it in params\.yaml, which may have no such parameter"),
        ("train.epochs=1,2", r"^train\.epochs=1,2: has several values; `udc run --queue -S train\.epochs=1,2` "),
        (
            "costs.prior.a=0.5",
            r"^costs\.prior\.a: DVC cannot set it .*or \+costs\.prior\.a=… to add one$",
        ),
        ("train.epochs", r"^train\.epochs: is not name=value in the form that DVC reads; "),
        ("evaluate.recall_of=[é]", r"recall_of=\[é\]: is not name=value in the form .* needs quotes"),
        ("evaluate.recall_of=[a", r"recall_of=\[a: is not name=value in the form "),
    ],
)
def test_bad_settings_are_one_message_and_change_nothing(folder, setting, message):
    with pytest.raises(UdcError, match=message):
        check_settings([setting])
    assert (folder / "params.yaml").read_text() == TEXT


def test_actions_as_dvc_sets_them(folder):
    (folder / "params.yaml").write_text("costs: {actions: null}\n")
    assert check_settings(["costs.actions={retest: {3: 1, 8: 2}}"]).costs.actions == {"retest": {"3": 1, "8": 2}}
    assert check_settings(["+costs.actions.retest=1"]).costs.actions == {"retest": 1}
    (folder / "params.yaml").write_text("costs:\n  actions:\n    retest:\n      a: 1\n      b: 2\n")
    assert check_settings(["costs.actions.retest.a=5"]).costs.actions == {"retest": {"a": 5, "b": 2}}
    with pytest.raises(
        UdcError, match=r"^params\.yaml is not valid:\n  costs\.actions\.retest\.a: got 'x'; allowed: number"
    ):
        check_settings(["costs.actions.retest.a=x"])


def test_settings_that_only_dvc_can_read(folder):
    with (folder / "params.yaml").open("a") as out:
        out.write("model: {weights: imagenet, preset: resnet-18, weights_exclude: []}\n")
    assert check_settings(["model.weights_exclude=[*.stages.3.*]"]).model.weights_exclude == ["*.stages.3.*"]
    with pytest.raises(UdcError, match=r"train\.epochs: got 0"):  # not that * begins an alias
        check_settings(["model.weights_exclude=[*.stages.3.*]", "train.epochs=0"])
    (folder / "params.yaml").write_text("train: [")
    with pytest.raises(UdcError, match=r"^params\.yaml: not valid YAML"):
        check_settings(["train.epochs=1"])


@pytest.mark.parametrize("setting", ["train.epochs=int(0,3)", "train.learning_rate=uniform(-1,1)",
                                     "train.optimizer=choice(sgd,adma)", "evaluate.recall_of=[1.0]"])  # fmt: skip
def test_tune_checks_all_ranges_before_the_first_trial(folder, setting):
    name = setting.partition("=")[0]
    ranges = [SearchRange.parse("train.momentum=uniform(0,0.5)"), SearchRange.parse(setting)]
    (folder / "params.yaml").write_text("train: {epochs: 2, learning_rate: 0.1, momentum: 0.1, optimizer: sgd}\n"
                                        "evaluate: {recall_of: []}\n")  # fmt: skip
    with pytest.raises(UdcError, match=f"params.yaml is not valid:\n  {name}"):
        tune(TuningPlan("s", ranges, 3))
    assert not (folder / ".udc").exists()


def test_tune_needs_data_that_its_trials_can_have(folder):
    subprocess.run(["git", "init", "-q"], check=True)
    (folder / "images").mkdir()
    (folder / "images/a.png").touch()
    (folder / "params.yaml").write_text("data: {source: folder, path: images}\ntrain: {epochs: 1}\n")
    with pytest.raises(UdcError, match=r"^data\.path: trials .* lack the images: .* run `dvc add images`$"):
        tune(TuningPlan("s", [SearchRange.parse("train.epochs=int(1,2)")], 3))
