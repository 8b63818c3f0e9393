"""Names and descriptions of runs: what was changed, the result with its interval, and values that are not measured."""

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from udc_model.config import EvaluateParams, Params, override_params
from udc_model.config.yaml12 import as_yaml
from udc_model.decisions.policy import Policy
from udc_model.stages.resolve import reduce, training_params
from udc_model.stages.run_note import (
    Changes,
    changes_since_baseline,
    digests,
    evaluation_note,
    interval,
    recorded_params,
    run_name,
    training_note,
)

DATA = {"name": "digits", "digest": "0123456789abcdef"}


def _git(*arguments):
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def baseline(tmp_path, monkeypatch):
    """The commit of a project in a folder of a repository, with parameters and a result."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    _git("init", "-q", "..")
    Path("params.yaml").write_text(as_yaml(Params().model_dump()))
    Path("metrics.json").write_text(json.dumps({"test": {"mean_cost": 0.5}}))
    _git("add", ".")
    _git("commit", "-qm", "first `result`")
    return _git("rev-parse", "HEAD")


def _recorded(*overrides):
    resolved = reduce(override_params(overrides))
    return recorded_params(training_params(resolved.train), resolved.evaluate.costs, resolved.evaluate.evaluate)


def test_changed_parameters_are_named_with_both_values_and_the_cost_of_the_baseline(baseline):
    changes = changes_since_baseline(_recorded("train.epochs=3", "seed=7"), baseline)
    assert changes.params == {"seed": (42, 7), "train.epochs": (Params().train.epochs, 3)}
    assert changes.tags() == {"changed": "seed=7, train.epochs=3"}
    text = changes.to_markdown()
    assert text.startswith(f"**Changed** from `{baseline[:7]} (first 'result')`: `seed` 42 → **7**, `train.epochs` ")
    assert text.endswith("There the test cost is 0.5000 an image, under the same costs.")


def test_what_resolve_finds_is_no_change(baseline):
    """The name of the weights that auto chooses, and the SHA-256 of the file."""
    weights = "model.weights=facebook/convnext-tiny-224"
    chosen = ("model.model_type=convnext", "model.preset=convnext-tiny", weights, f"model.weights_sha256={'a' * 64}")
    changes = changes_since_baseline(_recorded(*chosen), baseline)
    assert changes.params["model.weights"] == (None, "facebook/convnext-tiny-224")
    assert "model.weights_sha256" not in changes.params
    automatic = {"model": {"model_type": "convnext", "preset": "convnext-tiny", "weights": "auto"}}
    Path("params.yaml").write_text(as_yaml(automatic))
    _git("commit", "-qam", "auto")
    assert changes_since_baseline(_recorded(*chosen), "HEAD").params == {}
    assert changes_since_baseline(_recorded(*chosen[:2]), "HEAD").params == {"model.weights": ("auto", None)}


def test_costs_that_differ_are_not_compared(baseline):
    changes = changes_since_baseline(_recorded("costs.refer=0.2"), baseline)
    assert changes.params == {"costs.refer": (None, 0.2)}
    assert changes.mean_cost is None
    assert "under the same costs" not in changes.to_markdown()


@pytest.mark.parametrize(("setting", "value"), [
    ("costs.actions={retest: {a: 1, b: 2}, discard: 5}", '{"retest": {"a": 1.0, "b": 2.0}, "discard": 5.0}'),
    ("costs.prior={a: 0.5}", '{"a": 0.5}'),
])  # fmt: skip
def test_a_mapping_by_class_name_is_one_change_of_the_costs(baseline, setting, value):
    changes = changes_since_baseline(_recorded(setting), baseline)
    assert changes.params == {setting.partition("=")[0]: (None, value)}
    assert changes.mean_cost is None
    assert f"`{setting.partition('=')[0]}` null → **{value[:30]}" in changes.to_markdown()


def test_an_architecture_is_one_change_and_code_is_named(baseline):
    Path("train.py").write_text("1\n")
    _git("add", "train.py")
    changes = changes_since_baseline(_recorded("model.model_type=convnext"), baseline)
    assert changes.params == {"model.model_type": ("resnet", "convnext")}
    assert "code or data in 1 file (`train.py`)" in changes.to_markdown()


def test_without_changes_or_without_a_commit(baseline, tmp_path, monkeypatch):
    changes = changes_since_baseline(_recorded(), baseline)
    assert changes.tags() == {}
    assert changes.to_markdown() == f"**Asked:** the parameters of commit `{baseline[:7]} (first 'result')`, unchanged."
    assert changes_since_baseline(_recorded(), "") == Changes()
    assert "no commit to compare with" in training_note(Changes(), DATA)


@pytest.mark.parametrize("text", ["gone: 1", "- 1", "a: ["])
def test_a_baseline_with_parameters_of_another_version_is_not_compared(baseline, text):
    Path("params.yaml").write_text(text)
    _git("commit", "-qam", "other")
    changes = changes_since_baseline(_recorded(), "HEAD")
    assert changes.params is None
    assert "cannot be compared" in changes.to_markdown()


@pytest.mark.parametrize(("overrides", "name"), [
    (["model.resnet.embedding_size=32", "model.resnet.hidden_sizes=[32,64,128]", "model.resnet.depths=[1,1,1]",
      "model.resnet.layer_type=basic", "train.learning_rate=0.003"], "resnet-mini lr=0.003"),
    (["model.preset=resnet-50", "train.learning_rate=0.1"], "resnet-50 lr=0.1"),
    (["model.resnet.embedding_size=33", "train.learning_rate=1e-05"], "resnet lr=1e-05"),
])  # fmt: skip
def test_a_name_has_architecture_and_learning_rate(overrides, name):
    assert run_name(training_params(override_params(overrides))) == name


def _policy(**changes):
    return Policy(**{"classes": ["a", "b"], "class_costs": [[0, 1], [5, 0]]} | changes)


def test_digests_differ_exactly_if_costs_or_decisions_do():
    evaluate = EvaluateParams()
    first = digests(_policy(), evaluate)
    assert digests(_policy(), evaluate) == first
    for changes in ({"refer": 0.2}, {"class_costs": [[0, 1], [6, 0]]}, {"deployment_prior": [0.5, 0.5]}):
        other = digests(_policy(**changes), evaluate)
        assert other["costs"] != first["costs"]
        assert other["policy"] == first["policy"]
    argmax = digests(_policy(), evaluate.model_copy(update={"decision": "argmax"}))
    assert (argmax["costs"], argmax["policy"] == first["policy"]) == (first["costs"], False)
    assert digests(_policy(), evaluate.model_copy(update={"resamples": 100})) == first


def test_the_description_begins_with_cost_interval_and_best_constant_decision(tmp_path):
    (tmp_path / "test").mkdir()
    decisions = {"decision": ["min_expected_cost", "argmax", "always a"], "mean_cost": [0.25, 0.5, 2.5]}
    pd.DataFrame(decisions).to_csv(tmp_path / "test/baselines.csv", index=False)
    pairs = {"true": ["null", "b`"], "decided": ["b`", "refer"], "images": [1, 3], "cost": [9, 1], "share": [0.9, 0.1]}
    pd.DataFrame(pairs).to_csv(tmp_path / "test/cost_by_pair.csv", index=False)
    metrics = {"mean_cost": 0.25, "normalised_cost": 0.1, "accuracy": None}
    intervals = {"mean_cost": (0.125, 0.5), "normalised_cost": (float("nan"), float("nan"))}
    note = evaluation_note(tmp_path, metrics, intervals, 0.95, Changes(), DATA, "abcd1234")
    result, _, costliest, links = note.split("\n\n")
    assert result == (
        "**Test cost 0.2500 an image** (95% interval 0.1250 to 0.5000); `always a`, the best constant decision, costs "
        "2.5000. Ratio 0.1000 (no interval)."
    )
    assert costliest == ("**Costliest decisions:** `null` as `b'`: 1 image, 90% of the cost; `b'` referred: 3 images, "
                         "10% of the cost.")  # fmt: skip
    assert "[report](#/experiments/{{experiment_id}}/runs/{{run_id}}/artifacts/report.html)" in links
    assert "01234567 · costs `abcd1234`" in links
    assert interval({}, "mean_cost") == "no interval"
