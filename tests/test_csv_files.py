"""CSV files: each text is read back, and lines end with a line feed."""

import csv
import io

import pandas as pd
import pytest

from udc_model.csv_files import csv_writer
from udc_model.data.corrections import Correction, read_corrections, write_corrections
from udc_model.data.subgroups import write_subgroups
from udc_model.evaluation.tables import _csv_lines, write_csv

TEXTS = ["plain", "a\rb", "\r", "a\nb", "a\r\nb", "a\r\n", "a,b", 'a"b', "", " é\u2028\x85"]


def _read(text):
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


def test_each_text_is_read_back():
    buffer = io.StringIO(newline="")
    rows = [[text, str(k)] for k, text in enumerate(TEXTS)]
    writer = csv_writer(buffer.write)
    writer.writerow(["path", "row"])
    writer.writerows(rows)
    assert _read(buffer.getvalue()) == [["path", "row"], *rows]
    table = pd.read_csv(io.BytesIO(buffer.getvalue().encode()), dtype=str, keep_default_na=False)
    assert table.to_numpy().tolist() == rows


def test_rows_without_line_breaks_are_those_of_csv():
    rows = [[text, 0.1, 3] for text in TEXTS if "\r" not in text]
    ours, theirs = io.StringIO(newline=""), io.StringIO(newline="")
    csv_writer(ours.write).writerows(rows)
    csv.writer(theirs, lineterminator="\n").writerows(rows)
    assert ours.getvalue() == theirs.getvalue()


def test_tables_of_evaluate_are_read_back(tmp_path):
    table = pd.DataFrame({"path": TEXTS, "cost": [k / 3 for k in range(len(TEXTS))]})
    write_csv(table, tmp_path / "t.csv")
    assert pd.read_csv(tmp_path / "t.csv", keep_default_na=False).equals(table)
    plain = table[~table["path"].str.contains("\r")]
    write_csv(plain, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes() == plain.to_csv(index=False, lineterminator="\n").encode()
    assert [_read(line)[0][0] for line in _csv_lines(table)] == TEXTS


@pytest.mark.parametrize("reason", ["first\rsecond", "first\r\nsecond", "first\nsecond"])
def test_a_correction_is_read_back(tmp_path, reason):
    correction = Correction("a.png", "", "drop", "", "A\rB", "", reason)
    write_corrections(tmp_path / "corrections.csv", [correction])
    assert read_corrections(tmp_path / "corrections.csv") == [correction]


def test_paths_of_subgroups_are_read_back(tmp_path):
    write_subgroups(tmp_path, ["site"], [{"path": "a\rb.png", "subgroups": ("x\ry",)}])
    assert _read((tmp_path / "subgroups.csv").read_bytes().decode()) == [["path", "site"], ["a\rb.png", "x\ry"]]
