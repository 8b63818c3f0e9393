"""Reproduction: reading the parameters of old runs, and the report."""

import pytest

from udc_model.errors import UdcError
from udc_model.experiments.reproduction import Reproduction, _metric_differences, _raw_data


def test_raw_data_ignores_parameters_that_do_not_exist_any_more(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("data: {source: folder, path: data/raw, gone: 1}\nloss: {reads: loss}\n")
    source, folder = _raw_data(path)
    assert (source, str(folder)) == ("folder", "data/raw")


@pytest.mark.parametrize("text", ["", "data: {source: folder}", "data: 1", "data: ["])
def test_raw_data_raises_for_files_without_source_and_path(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UdcError, match=r"data\.source and data\.path cannot be read"):
        _raw_data(path)


def test_metric_differences_lists_changed_and_missing_metrics():
    recorded = {"test": {"accuracy": 0.5, "mean_cost": 1.0}, "validation": {"accuracy": 0.5}}
    metrics = {"test": {"accuracy": 0.75, "mean_cost": 1.0}, "validation": {}}
    assert list(_metric_differences(recorded, metrics)) == [
        "test/accuracy: 0.75, was 0.5 (+0.25)",
        "validation/accuracy: None, was 0.5",
    ]


def test_report_begins_with_the_result():
    assert Reproduction("1").to_text().startswith("identical: run 1 ")
    different = Reproduction("1", ["weights: a, was b"]).to_text()
    assert different.startswith("different: run 1 ")
    assert different.endswith("changed since the run:\n  nothing that is recorded\n")
