"""Stage ``evaluate`` and unfamiliar images: fitted once, stored with the policy, decided again without the model."""

import json
import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from udc_model.config import override_params
from udc_model.data.packed import PackedDataset
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.evaluation.redecision import StoredEvaluation, decided_by, under_costs_of
from udc_model.evaluation.tables import read_predictions
from udc_model.evaluation.unfamiliar import read_unfamiliar
from udc_model.experiments.reproduction import _familiarity_differences
from udc_model.inference.classifier import TrainedClassifier
from udc_model.inference.feature_statistics import FAMILIARITY_FILE
from udc_model.inference.stored_model import open_stored
from udc_model.stages.evaluate import evaluate
from udc_model.stages.resolve import resolve

pytestmark = pytest.mark.slow


def test_the_stored_model_gives_the_distances_of_the_policy(project):
    workspace, _ = project
    stored = open_stored(workspace)
    splits = {name: PackedDataset.open(workspace.prepared).split(name) for name in ("calibration", "test")}
    distances = {name: stored.load().outputs_of_stored(split.images).distances for name, split in splits.items()}
    assert len(stored.policy.familiarity.distances) == len(splits["calibration"]) == 24
    np.testing.assert_array_equal(stored.policy.familiarity.distances, np.sort(distances["calibration"]))
    table = read_predictions(workspace.evaluation / "test/predictions.csv")
    known = np.sort(distances["calibration"])
    expected = [(1 + int((known >= each).sum())) / 25 for each in distances["test"]]
    assert table["familiarity"].tolist() == expected
    least = pd.read_csv(workspace.evaluation / "test/least_familiar.csv")
    assert least["row"].tolist() == np.argsort(-distances["test"], kind="stable")[:12].tolist()
    assert least["familiarity"].tolist() == [expected[row] for row in least["row"]]


def test_too_few_calibration_images_are_said_to_be_too_few(project, caplog):
    workspace, params = project
    found = read_unfamiliar(workspace.evaluation / "test")
    assert (found.images, found.unfamiliar, found.calibration, found.is_resolved) == (12, 0, 24, False)
    assert sum(found.histogram) == 12
    sentence = ("a familiarity of 0.01 cannot be resolved with 24 calibration images or groups, so none is flagged as "
                "unfamiliar; 99 are needed")  # fmt: skip
    assert found.to_text() == sentence
    caplog.set_level(logging.INFO)
    evaluate(params, workspace)
    assert f"test: {sentence}" in caplog.messages
    report = (workspace.evaluation / "report.html").read_text()
    assert sentence[1:] in report
    assert '"canReferUnfamiliar":false' in report
    assert f"- On unfamiliar images: {sentence}." in (workspace.evaluation / "README.md").read_text()
    with pytest.raises(UdcError, match=r"costs\.unfamiliar: refer needs 99 images in the calibration split"):
        resolve(params.model_copy(update={"costs": params.costs.model_copy(update={"unfamiliar": "refer"})}),
                PackedDataset.open(workspace.prepared).info)  # fmt: skip


def test_the_same_bits_again_and_a_changed_cost_does_not_run_the_model(project, monkeypatch):
    workspace, params = project
    before = {name: (workspace.evaluation / name).read_bytes() for name in ("policy.json", FAMILIARITY_FILE)}
    for path in (workspace.root.parent / ".udc/logits").iterdir():
        path.unlink()
    evaluate(params, workspace)
    assert {name: (workspace.evaluation / name).read_bytes() for name in before} == before
    policy = json.loads(before["policy.json"])
    assert list(policy)[-1] == "familiarity"

    def never(*args, **kwargs):
        raise AssertionError("the model runs")

    monkeypatch.setattr(TrainedClassifier, "of", never)
    other = params.model_copy(update={"costs": params.costs.model_copy(update={"refer": 0.2, "unfamiliar": "refer"})})
    evaluate(other, workspace)
    changed = Policy.load(workspace.evaluation)
    assert (changed.familiarity.distances, changed.refers_unfamiliar) == (policy["familiarity"]["distances"], True)
    assert (workspace.evaluation / FAMILIARITY_FILE).read_bytes() == before[FAMILIARITY_FILE]
    evaluate(params, workspace)
    assert (workspace.evaluation / "policy.json").read_bytes() == before["policy.json"]


def test_udc_decide_refers_by_the_stored_familiarity(project):
    workspace, params = project
    tables = [read_predictions(workspace.evaluation / f"{name}/predictions.csv") for name in ("calibration", "test")]
    policy = Policy.load(workspace.evaluation)
    policy = replace(policy, familiarity=replace(policy.familiarity, level=0.3))
    is_unfamiliar = (tables[1]["familiarity"] <= 0.3).to_numpy()
    assert 0 < is_unfamiliar.sum() < len(is_unfamiliar)
    costs = params.costs.model_copy(update={"unfamiliar": "refer"})
    new, scored = StoredEvaluation(policy, *tables).decide(params.evaluate, costs)
    _, plain = StoredEvaluation(policy, *tables).decide(params.evaluate, params.costs)
    refer = new.outcomes.index("refer")
    assert (scored.decided[is_unfamiliar] == refer).all()
    assert np.array_equal(scored.decided[~is_unfamiliar], plain.decided[~is_unfamiliar])
    assert decided_by(new, tables[1])["predicted"][is_unfamiliar].tolist() == ["refer"] * int(is_unfamiliar.sum())
    assert under_costs_of(new, policy, None).refers_unfamiliar
    assert not under_costs_of(policy, new, None).refers_unfamiliar
    old = replace(policy, familiarity=None)
    assert StoredEvaluation(old, *tables).decide(params.evaluate, params.costs)[0].familiarity is None
    with pytest.raises(UdcError, match=r"refer needs the familiarity of the images, which policy\.json of an earlier"):
        StoredEvaluation(old, *tables).decide(params.evaluate, costs)


def test_what_is_done_with_unfamiliar_images_does_not_train_again():
    info = {"classes": ["a", "b"], "counts": {"train": {"a": 9, "b": 9}, "calibration": {"a": 50, "b": 50}}}
    settings = ["loss.name=expected_cost", "costs.preset=uniform", "costs.refer=0.4", "train.batch_size=8"]
    warn, refer = (
        resolve(override_params([*settings, f"costs.unfamiliar={each}"]), info) for each in ("warn", "refer")
    )
    assert warn.train == refer.train
    assert warn.evaluate != refer.evaluate


def test_reproduction_compares_statistics_and_distances(project):
    now = Policy.load(project[0].evaluation).familiarity
    assert list(_familiarity_differences(now, now)) == []
    assert list(_familiarity_differences(None, now)) == []
    other = replace(now, sha256="0" * 64, distances=[0.0, *now.distances[1:]])
    first, second = _familiarity_differences(other, now)
    assert first == f"familiarity: sha256 of the statistics {now.sha256}, was {'0' * 64}"
    assert second == "familiarity: distances of the calibration images differ"
