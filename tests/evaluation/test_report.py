"""The report: contents, no external resources, and escaped names."""

import re

import numpy as np
import pytest

from udc_model.config import EvaluateParams, Params
from udc_model.data.packed import PackedSplit
from udc_model.decisions.policy import Policy
from udc_model.evaluation.report import render_report
from udc_model.evaluation.tables import write_split
from udc_model.stages.train import training_params

NAMES = ["<script>alert(1)</script>", "b & c", "plain"]


def _evaluation(folder, rng, classes, **options):
    folder.mkdir()
    n = len(classes)
    policy = Policy(classes, (1 - np.eye(n)).tolist(), **options)
    (folder / "policy.json").write_text(policy.to_json())
    labels = np.repeat(np.arange(n), 4)
    split = PackedSplit(np.zeros((4 * n, 8, 8, 3), np.uint8), labels, [f"<i>{i}.png" for i in range(4 * n)],
                        [""] * 4 * n, [""] * 4 * n)  # fmt: skip
    logits = (rng.normal(0, 1, (4 * n, n)) + 2 * np.eye(n)[labels]).astype(np.float32)
    for name in ("test", "validation"):
        write_split(folder / name, split, logits, policy, EvaluateParams(resamples=100), [], name == "test")
    return folder


def _render(folder, classes):
    record = {"params": training_params(Params()), "data": {"name": "<b>data", "digest": "d"}, "best_epoch": 1,
              "final_metrics": {"epochs": 2}, "hardware": {"device": "cpu"}}  # fmt: skip
    counts = {name: dict.fromkeys(classes, 4) for name in ("train", "validation", "calibration", "test")}
    return render_report(folder, record, counts, ["costs: odd <cost>"], 0.95, {"commit": "abc123"},
                         ["3 copies <left> out"])  # fmt: skip


@pytest.fixture
def page(tmp_path, rng):
    return _render(_evaluation(tmp_path / "evaluation", rng, NAMES, refer=0.5), NAMES)


def test_names_are_escaped(page):
    assert "<script" not in page
    assert "<i>" not in page
    assert "<b>data" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "odd &lt;cost&gt;" in page
    assert "Data: 3 copies &lt;left&gt; out" in page


def test_page_has_no_external_resources(page):
    assert not re.search(r"https?:|<link|@import|url\(|src=\"(?!data:)", page)


def test_page_has_configuration_results_and_reproduction(page):
    for text in ("cost of referral 0.5", "always refer", "mean cost", "95% interval", "git checkout abc123"):
        assert text in page


def test_page_lists_the_costliest_cells_if_there_are_many_classes(tmp_path, rng):
    classes = [f"class {k}" for k in range(20)]
    page = _render(_evaluation(tmp_path / "evaluation", rng, classes), classes)
    assert "true \\ decided" not in page
    assert "<th>decided</th>" in page
