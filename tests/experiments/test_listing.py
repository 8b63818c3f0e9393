"""`udc experiments`: what differs, what it costs, and what is shown; and `dvc exp show` beside it."""

import csv
import io
import re
import subprocess
import sys

import pytest

from udc_model.cli import main
from udc_model.errors import UdcError
from udc_model.experiments.listing import list_experiments
from udc_model.experiments.overview import WIDTH, to_text

SHOW = ("--only-changed", "--drop", r".*/|Created|model$|training|(test|validation).(?!mean_cost$)")


def _by_name(listing):
    return {each.name.split()[0]: each for each in listing.experiments}


def test_costs_are_sorted_and_compared_with_the_last_commit(repository):
    repository.experiment("worse", 20, train__epochs=1)
    repository.experiment("better", 1, train__epochs=30)
    repository.experiment("similar", 7, train__learning_rate=0.002)
    listing = list_experiments()
    assert [each.name.split()[0] for each in listing.experiments] == ["better", "similar", "HEAD", "worse"]
    assert listing.differing == ["train.epochs", "train.learning_rate"]
    rows = _by_name(listing)
    assert rows["HEAD"].is_workspace
    assert rows["better"].difference == pytest.approx(-7 / 40)
    assert [rows[name].verdict for name in ("better", "similar", "worse")] == ["shown", "not shown", "costlier, shown"]
    # 7 images differ, all in favour of better: 2 of 2**7 sign changes are as extreme; the second smallest of three
    assert 2 * 2 / 2**7 <= rows["better"].p_value < 0.05  # the larger one of sign flips and interval, by Holm
    text = to_text(listing)
    assert text.startswith("better has the lowest mean cost on test: 0.0250 an image, HEAD ")
    assert "That it costs less than HEAD " in text
    assert "is shown (paired test, p = " in text
    better = next(line for line in text.splitlines() if line.startswith("better  "))
    assert better.split()[:6] == ["better", "30", "0.003", "0.0250", "0.0200", "to"]


def test_other_costs_images_and_missing_tables_are_not_compared(repository):
    repository.experiment("doubled", 4, mistake=2.0, costs__default=2.0)
    repository.experiment("others", 2, prefix="new_", seed=3)
    repository.experiment("gone", 1, is_cached=False, seed=4)
    repository.experiment("gone-doubled", 1, is_cached=False, costs__default=2.0)
    listing = list_experiments()
    assert [each.name.split()[0] for each in listing.experiments] == [
        "gone", "others", "HEAD", "gone-doubled", "doubled"]  # fmt: skip
    rows = _by_name(listing)
    assert {name: rows[name].verdict for name in rows} == {
        "gone": "not in the cache", "others": "other images", "HEAD": "", "gone-doubled": "other costs",
        "doubled": "other costs"}  # fmt: skip
    text = to_text(listing)
    assert "0.2000 *  0.1600 to 0.2400" in text
    assert "`udc compare HEAD gone-doubled --costs HEAD`" in text
    assert "`dvc exp pull origin gone`" in text
    assert "Whether it costs less is not tested: not in the cache." in text


def test_experiments_that_cannot_be_compared_are_not_called_more_expensive(repository):
    repository.experiment("doubled", 4, mistake=2.0, costs__default=2.0)
    assert re.match(r"No experiment can be compared with HEAD \w+: other costs\.", to_text(list_experiments()))


def test_named_experiments_are_compared_with_the_first(repository):
    repository.experiment("a", 2, seed=1)
    repository.experiment("b", 30, seed=2)
    listing = list_experiments(["b", "HEAD", "a"])
    assert listing.first.name == "b"
    assert {each.name: each.verdict for each in listing.experiments} == {"a": "shown", "HEAD": "shown", "b": ""}
    with pytest.raises(UdcError, match=r"^nothing: is no DVC experiment and no git revision"):
        list_experiments(["nothing"])


def test_experiments_of_other_commits_and_a_changed_workspace(repository):
    repository.experiment("old", 2, seed=1)
    repository.commit(6, seed=5)
    repository.experiment("new", 3, seed=2)
    repository.write(5, seed=9)
    assert set(_by_name(list_experiments())) == {"HEAD", "new", "workspace"}
    assert set(_by_name(list_experiments(of_all_commits=True))) == {"HEAD", "new", "old", "workspace"}


def test_old_results_with_34_numbers_are_listed(repository):
    (repository.root / "metrics.json").write_text('{"test": {"accuracy": 0.8, "mean_cost": 0.25, "macro_f1": null}}')
    repository.git("commit", "-qam", "old")
    repository.experiment("new", 1, seed=1)
    line = next(line for line in to_text(list_experiments()).splitlines() if line.startswith("HEAD "))
    assert line.split()[3:] == ["0.2500", "-", "-", "0.8000", "the", "first"]


@pytest.mark.slow
def test_twenty_experiments_fit_160_columns_here_and_in_dvc(repository, capsys):
    rates = [round(0.0005 * (k + 1), 4) for k in range(19)]
    for k, rate in enumerate(rates):
        repository.experiment(f"rate-{k}", k % 7 + 1, train__learning_rate=rate, train__epochs=k % 3 + 1)
    assert main(["experiments"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert all(any(line.startswith(f"rate-{k} ") and f" {rate} " in line for line in lines)
               for k, rate in enumerate(rates))  # fmt: skip
    shown = subprocess.run([sys.executable, "-m", "dvc", "exp", "show", "--no-pager", *SHOW], check=True, text=True,
                           capture_output=True, env={"COLUMNS": "160", "PATH": "/usr/bin:/bin"}).stdout  # fmt: skip
    rows = shown.splitlines()
    assert max(map(len, rows)) <= 160
    assert "…" not in shown
    header = next(row for row in rows if "Experiment" in row).split()
    assert header == ["Experiment", "test.mean_cost", "validation.mean_cost", "train.epochs", "train.learning_rate"]
    assert all(any(f"[rate-{k}]" in row and f" {rate:g} " in f"{row} " for row in rows) for k, rate in enumerate(rates))


def test_many_parameters_become_one_column_of_changes(repository, tmp_path, capsys):
    long = {"train__augment": "strong", "train__optimizer": "sgd", "train__momentum": 0.95, "train__schedule": "step",
            "train__mixup": 0.2, "train__cutmix": 0.3, "train__weight_decay": 0.2, "model__model_type": "convnext",
            "loss__name": "focal", "evaluate__calibration": "none", "train__ema_decay": 0.999}  # fmt: skip
    for k, (name, value) in enumerate(long.items()):
        repository.experiment(f"one-{k}", k + 1, **{name: value})
    repository.experiment("all", 7, **long)
    assert main(["experiments"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= WIDTH
    assert any(line.startswith("one-0 ") and "train.augment=strong " in line for line in text.splitlines())
    assert any(line.startswith("all ") and "…" in line for line in text.splitlines())

    assert main(["experiments", "--csv"]) == 0
    rows = {row["experiment"].split()[0]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert rows["all"]["train.momentum"] == "0.95"
    assert rows["HEAD"]["train.ema_decay"] == "null"
    assert rows["one-3"]["test/mean_cost"] == "0.1"
    assert (rows["HEAD"]["is_first"], rows["all"]["has_other_costs"]) == ("True", "False")

    assert main(["experiments", "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "train.augment=strong" in page
    assert page.count("<svg") == 13
    assert not any(word in page for word in ("http", "<script", "<link", "url("))


@pytest.mark.parametrize(("file", "text", "message"), [
    ("dvc.lock", "stages:\n<<<<<<< a\n", "dvc.lock: has a merge conflict in line 2; resolve it"),
    ("metrics.json", "{", "workspace: its dvc.lock or metrics.json is damaged; `git checkout dvc.lock "),
    ("metrics.json", "[1]", "workspace: its dvc.lock or metrics.json is damaged; `git checkout dvc.lock "),
])  # fmt: skip
def test_damaged_files_of_a_result_are_named(repository, file, text, message):
    (repository.root / file).write_text(text)
    with pytest.raises(UdcError, match=f"^{message}"):
        list_experiments()


def test_nothing_to_list_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UdcError, match="no git commit"):
        list_experiments()
