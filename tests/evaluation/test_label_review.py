"""Review of suspicious labels: questions, answers, what is written, and damaged tables."""

import io

import numpy as np
import pytest

from udc_model.cli import main
from udc_model.data.corrections import Correction, read_corrections, write_corrections
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.evaluation.label_quality import LABEL_QUALITY
from udc_model.evaluation.label_review import read_suspects
from udc_model.files import Workspace

HEADER = "path,sha256,label,suggested_label,score,expected_cost,split,is_suspicious\n"
ROWS = [("train/a.png", "cat", "big dog", 0.01, 0.5, True), ("train/b.png", "cat", "fox", 0.02, 2.0, True),
        ("c\x1b[31m.png", "fox", "cat", 0.03, 1.0, True), ("d.png", "fox", "cat", 0.4, 9.0, False)]  # fmt: skip


def _line(k, row):
    path, label, suggested, score, cost, is_suspicious = row
    return f"{path},{k:064x},{label},{suggested},{score},{cost},train,{is_suspicious}\n"


@pytest.fixture
def review(tmp_path, monkeypatch, capsys):
    """A function that answers the questions of ``udc labels review``; the status, output and corrections."""
    workspace = Workspace(tmp_path)
    workspace.evaluation.mkdir()
    policy = Policy(["big dog", "cat", "fox"], (1 - np.eye(3)).tolist())
    (workspace.evaluation / "policy.json").write_text(policy.to_json())
    (workspace.evaluation / LABEL_QUALITY).write_text(HEADER + "".join(_line(k, row) for k, row in enumerate(ROWS)))
    write_corrections(workspace.corrections, [])

    def answer(text, *options):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        status = main(["labels", "review", "--root", str(tmp_path), "--author", "Ada", *options])
        output = capsys.readouterr()
        return status, output.out + output.err, read_corrections(workspace.corrections)

    answer.workspace = workspace
    return answer


def test_each_key_writes_its_correction(review):
    status, output, corrections = review("r\nk\nd\n", "--reason", "looked at it")
    assert status == 0
    assert [(each.path, each.action, each.value) for each in corrections] == [
        ("train/b.png", "relabel", "fox"), ("c\x1b[31m.png", "keep", ""), ("train/a.png", "drop", "")]  # fmt: skip
    assert corrections[0].sha256 == f"{1:064x}"
    assert {(each.author, each.reason) for each in corrections} == {("Ada", "looked at it")}
    assert all(len(each.date) == 10 for each in corrections)
    assert output.startswith(
        "[1 of 3] train/b.png (train)\n  labelled cat, more likely fox; probability of the label 0.02, expected cost 2"
    )
    assert "\x1b" not in output
    assert output.endswith(f"1 relabelled, 1 dropped, 1 confirmed; {review.workspace.corrections} has the corrections, "
                           "and dvc repro applies them\n")  # fmt: skip


def test_end_of_input_and_q_keep_what_was_answered(review):
    assert [each.path for each in review("r\n")[2]] == ["train/b.png"]
    status, output, corrections = review("s\nr big dog\nq\n")  # the first one is not asked again
    assert status == 0
    assert output.startswith("[1 of 2] c")
    assert [(each.path, each.value) for each in corrections] == [("train/b.png", "fox"), ("train/a.png", "big dog")]


def test_wrong_answers_are_asked_again(review):
    _, output, corrections = review("x\nr wolf\nd now\nr cat\nq\n")
    assert "  answer r, d, k, s or q\n" in output
    assert "  wolf is no class; the classes are big dog, cat, fox\n" in output
    assert [(each.path, each.value) for each in corrections] == [("train/b.png", "cat")]


def test_all_labels_of_the_table_can_be_reviewed(review):
    assert "[1 of 4] d.png" in review("q\n", "--all")[1]


def test_corrections_of_others_and_groups_remain(review):
    first = [Correction("train/b.png", "", "group", "g"), Correction("train/a.png", "", "keep")]
    write_corrections(review.workspace.corrections, first)
    _, output, corrections = review("d\ns\n")
    assert "[1 of 2] train/b.png" in output
    assert corrections[:2] == first
    assert (corrections[2].path, corrections[2].action) == ("train/b.png", "drop")
    write_corrections(review.workspace.corrections, [Correction(row[0], "", "keep") for row in ROWS])
    assert review("")[1] == "no suspicious label is left to review\n"


def test_images_corrected_by_their_pixels_are_not_asked_again(review):
    write_corrections(review.workspace.corrections, [Correction("", f"{1:064x}", "keep"),
                                                     Correction("", f"{0:064x}", "group", "g")])  # fmt: skip
    output = review("q\n")[1]
    assert output.startswith("[1 of 2] c")


def test_invalid_corrections_are_an_error_before_the_first_question(review):
    review.workspace.corrections.write_text("x\n")
    monkeypatched = main(["labels", "review", "--root", str(review.workspace.root)])
    assert monkeypatched == 1
    assert review.workspace.corrections.read_text() == "x\n"


@pytest.mark.parametrize(
    "text",
    ["path\na\n", HEADER + "a,b\n", HEADER + f"a,{0:064x},x,y,nan,1,train,True\n",
     HEADER + f"a,{0:064x},x,y,0.1,1,train,yes\n", HEADER + '"a\n'],
)  # fmt: skip
def test_damaged_table_is_an_error_that_names_it(text, tmp_path):
    (tmp_path / LABEL_QUALITY).write_text(text)
    with pytest.raises(UdcError, match=r"label_quality.csv: is damaged") as error:
        read_suspects(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_table_is_an_error_that_says_what_to_run(tmp_path):
    with pytest.raises(UdcError, match=r"label_quality.csv: no such file; run evaluate first"):
        read_suspects(tmp_path)
