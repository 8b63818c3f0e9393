"""Tables as other programs write them: delimiters, encodings, formats, names of columns, splits, labels."""

import json
import sys

import openpyxl
import pandas as pd
import pytest

from udc_model.config import DataParams
from udc_model.data.sources import open_source
from udc_model.data.sources.tables import read_table
from udc_model.errors import UdcError

ROWS = [(f"images/{name}{k:02d}.png", name) for name in ("ant", "bee") for k in range(12)]


@pytest.fixture
def root(tmp_path, write_images):
    folder = tmp_path / "set"
    write_images(folder, *(path for path, _ in ROWS))
    return folder


def _text(rows=ROWS, header=("image_path", "label"), delimiter=","):
    return "".join(delimiter.join(row) + "\n" for row in [header, *rows])


def _labels(dataset):
    return dict(zip(dataset.manifest["path"], dataset.manifest["label"], strict=True))


def _frame(**columns):
    return pd.DataFrame({"image": [path for path, _ in ROWS], "class": [label for _, label in ROWS]} | columns)


def _write_excel(path):
    book = openpyxl.Workbook()
    for row in [("Image", "Label"), *ROWS]:
        book.active.append(row)
    book.save(path)


def _write_coco(path, **extra):
    content = {
        "images": [{"id": k, "file_name": name} for k, (name, _) in enumerate(ROWS)],
        "annotations": [
            {"image_id": k, "category_id": "ab".index(label[0])} | extra for k, (_, label) in enumerate(ROWS)
        ],
        "categories": [{"id": 0, "name": "ant"}, {"id": 1, "name": "bee"}],
    }
    path.write_text(json.dumps(content))


FORMATS = {
    "semicolon.csv": lambda path: path.write_text(_text(delimiter=";")),
    "tab.tsv": lambda path: path.write_text(_text(delimiter="\t")),
    "tab.csv": lambda path: path.write_text(_text(delimiter="\t")),
    "windows.csv": lambda path: path.write_bytes(_text().replace("\n", "\r\n").encode()),
    "mac.csv": lambda path: path.write_bytes(_text().replace("\n", "\r").encode()),
    "mark.csv": lambda path: path.write_text(_text(), encoding="utf-8-sig"),
    "utf16.csv": lambda path: path.write_text(_text(delimiter="\t"), encoding="utf-16"),
    "quoted.csv": lambda path: path.write_text('"image_path","label"\n' + "".join(f'"{p}","{c}"\n' for p, c in ROWS)),
    "sep.csv": lambda path: path.write_text("\r\nsep=;\r\n" + _text(delimiter=";"), encoding="utf-8-sig"),
    "pipe.csv": lambda path: path.write_text('"sep=|"\n' + _text(delimiter="|")),
    "backslash.csv": lambda path: path.write_text(_text([(p.replace("/", "\\"), c) for p, c in ROWS])),
    "table.parquet": lambda path: _frame().to_parquet(path),
    "table.jsonl": lambda path: _frame().to_json(path, orient="records", lines=True),
    "table.json": lambda path: _frame().to_json(path, orient="records"),
    "coco.json": _write_coco,
    "table.xlsx": _write_excel,
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_read(root, name, prepared):
    FORMATS[name](root / name)
    assert _labels(prepared(root)) == dict(ROWS)


@pytest.mark.parametrize("column", ["filename", "file", "path", "Image", "image id", "id", "File-Name"])
@pytest.mark.parametrize("target", ["class", "target", "Category"])
def test_usual_columns_and_names_without_folder_or_suffix(root, column, target, prepared, inspected):
    rows = [(path.removeprefix("images/").removesuffix(".png"), label) for path, label in ROWS]
    (root / "train.csv").write_text(_text(rows, (column, target)))
    text = inspected(root)[1]
    assert f"table train.csv (image: {column}; class: {target})" in text
    if target == "class":
        assert _labels(prepared(root)) == dict(ROWS)


def test_named_columns_and_a_pattern(root, prepared):
    rows = [(path[7:-4], label, "no") for path, label in ROWS]
    (root / "t.csv").write_text(_text(rows, ("slide", "finding", "label")))
    dataset = prepared(root, path_column="slide", label_column="finding", path_pattern="images/{}.png")
    assert _labels(dataset) == dict(ROWS)
    with pytest.raises(UdcError, match=r"data.label_column: .*t\.csv has no column 'findin'; its columns are slide"):
        prepared(root, source="csv", csv_files=["t.csv"], path_column="slide", label_column="findin")


def test_one_hot_columns(root, prepared):
    rows = [(path, "1.0" if label == "ant" else "0.0", "True" if label == "bee" else "0", "37") for path, label in ROWS]
    (root / "t.csv").write_text(_text(rows, ("image", "MEL", "NV", "age")))
    assert _labels(prepared(root)) == {path: {"ant": "MEL", "bee": "NV"}[label] for path, label in ROWS}
    rows[3] = (*rows[3][:1], "1", "1", "20")
    (root / "t.csv").write_text(_text(rows, ("image", "MEL", "NV", "age")))
    with pytest.raises(UdcError, match=r"t\.csv:5: has a 1 for several classes \(MEL, NV\)"):
        prepared(root)


def test_columns_of_zeros_and_ones_that_are_no_classes_are_excluded_by_data_classes(root, prepared):
    rows = [(path, "1" if label == "ant" else "0", "1" if label == "bee" else "0", "1") for path, label in ROWS]
    (root / "t.csv").write_text(_text(rows, ("image", "MEL", "NV", "male")))
    with pytest.raises(UdcError, match="has a 1 for several classes"):
        prepared(root)
    assert prepared(root, classes=["MEL", "NV"]).classes == ["MEL", "NV"]


@pytest.mark.parametrize(
    ("encoding", "label"),
    [("latin-1", "Käfer"), ("cp1252", "„Käfer“"), ("utf-16", "Käfer"), ("shift_jis", "カブトムシ")],
)
def test_other_encodings_are_named(root, encoding, label, prepared):
    rows = [(path, label if name == "ant" else name) for path, name in ROWS]
    (root / "t.csv").write_text(_text(rows), encoding=encoding)
    if encoding != "utf-16":
        with pytest.raises(
            UdcError, match=r"t\.csv: is not UTF-8 text; name its encoding in data\.encoding, as latin-1"
        ):
            prepared(root)
    assert prepared(root, encoding=encoding).classes == sorted(["bee", label])
    with pytest.raises(UdcError, match=r"data\.encoding: 'latin-99' is no encoding"):
        prepared(root, encoding="latin-99")


def test_split_names_of_other_programs(root, prepared):
    names = ["training", "Val", "testing", "train", "dev", "calibration"]
    rows = [(*row, names[k % 6]) for k, row in enumerate(ROWS)]
    (root / "t.csv").write_text(_text(rows, ("file", "label", "Subset")))
    dataset = prepared(root)
    assert {name: len(dataset.split(name)) for name in ("train", "validation", "calibration", "test")} == {
        "train": 8, "validation": 8, "calibration": 4, "test": 4,
    }  # fmt: skip
    rows[0] = (*rows[0][:2], "holdout")
    (root / "t.csv").write_text(_text(rows, ("file", "label", "split")))
    with pytest.raises(
        UdcError, match=r"t\.csv:2: the split 'holdout' is unknown; .*train \(training, trainval\); validation \(val, v"
    ):
        prepared(root)


def test_a_column_split_of_folds_comes_with_advice(root, prepared):
    (root / "t.csv").write_text(_text([(*row, str(k % 5)) for k, row in enumerate(ROWS)], ("file", "label", "Split")))
    with pytest.raises(UdcError, match=r"if the column Split of t\.csv is no split, .* rename the column\)") as error:
        prepared(root)
    assert str(error.value).count("rename the column") == 1
    (root / "t.csv").write_text(_text([*((*row, "train") for row in ROWS), ("", "ant", "test")], ("f", "c", "split")))
    with pytest.raises(UdcError, match="has no image") as error:
        prepared(root, path_column="f", label_column="c")
    assert "rename the column" not in str(error.value)


def test_missing_splits_of_a_table_are_carved_from_train(root, prepared):
    rows = [(*row, "test" if k % 4 == 0 else "train") for k, row in enumerate(ROWS)]
    (root / "t.csv").write_text(_text(rows, ("file", "label", "split")))
    dataset = prepared(root)
    assert set(dataset.split("test").paths) == {path for path, _, split in rows if split == "test"}
    assert min(len(dataset.split(name)) for name in ("validation", "calibration")) > 0
    assert dataset.info["notes"] == [
        "the data has no split validation and calibration: carved from train, by data.splits"
    ]


def test_tables_named_after_splits(root, prepared):
    (root / "train_labels.csv").write_text(_text([row for k, row in enumerate(ROWS) if k % 3]))
    (root / "test_labels.csv").write_text(_text([row for k, row in enumerate(ROWS) if not k % 3]))
    dataset = prepared(root)
    assert set(dataset.split("test").paths) == {path for k, (path, _) in enumerate(ROWS) if not k % 3}
    (root / "more.csv").write_text(_text())
    with pytest.raises(
        UdcError, match=r"has several tables of labels \(more\.csv, test_labels\.csv, train_labels\.csv\)"
    ):
        prepared(root)


def test_a_table_without_labels_is_not_used(root, prepared):
    (root / "train.csv").write_text(_text())
    (root / "test.csv").write_text("image\nx.png\n")
    (root / "prices.csv").write_text("a,b\n1,2\n")
    dataset = prepared(root)
    assert _labels(dataset) == dict(ROWS)
    assert any("test.csv: has no column of classes" in note for note in dataset.info["notes"])


def test_a_composed_path_finds_a_decomposed_file(root, write_images, prepared):
    write_images(root, "images/cafe\u0301.png")
    (root / "t.csv").write_text(_text([*ROWS, ("images/caf\u00e9.png", "ant")]))
    assert _labels(prepared(root))["images/cafe\u0301.png"] == "ant"


@pytest.mark.parametrize(
    ("labels", "names"),
    [(("1", "1.0"), "'1', '1.0'"), (("Ant", "ant "), "'Ant', 'ant'"), (("black widow", "Black_Widow"),
      "'Black_Widow', 'black widow'"), (("01", "1"), "'01', '1'")],
)  # fmt: skip
def test_similar_labels_are_named_and_can_be_merged(root, labels, names, inspected, prepared):
    rows = [(path, label if label == "bee" else labels[k % 2]) for k, (path, label) in enumerate(ROWS)]
    (root / "t.csv").write_text(_text(rows))
    status, text = inspected(root)
    assert status == 0
    assert f"these labels may be one class: {names}; if so, set data.merge_labels: {{" in text
    first = sorted(label.strip() for label in labels)
    assert prepared(root, merge_labels={first[0]: first[1]}).classes == sorted([first[1], "bee"])


def test_merging_a_label_that_does_not_occur_is_an_error(root, prepared):
    (root / "t.csv").write_text(_text())
    with pytest.raises(UdcError, match=r"data\.merge_labels: the data has no label Ant; its labels are ant, bee"):
        prepared(root, merge_labels={"Ant": "ant"})


def test_whole_numbers_that_pandas_wrote_as_floats_are_the_same_class(root, prepared):
    frame = pd.DataFrame({"image": [path for path, _ in ROWS], "label": [float(name == "ant") for _, name in ROWS]})
    frame.to_parquet(root / "t.parquet")
    assert prepared(root).classes == ["0", "1"]


def test_images_that_no_row_names_are_counted(root, write_images, prepared):
    (root / "t.csv").write_text(_text(ROWS[:-1]))
    write_images(root, "images/extra.png")
    assert prepared(root).info["left_out"] == {"not listed in the table": 2}


def _grouped(root, column, **data):
    rows = [(*row, str(k // 3)) for k, row in enumerate(ROWS)]
    (root / "t.csv").write_text(_text(rows, ("image", "label", column)))
    source = open_source(DataParams(source="auto", path=str(root), **data), root / "unpacked")
    return source, {record.path: record.group for record in source.records}


def test_a_column_of_groups_is_named_by_data_group(root):
    expected = {path: str(k // 3) for k, (path, _) in enumerate(ROWS)}
    assert _grouped(root, "patient_id", group="patient_id")[1] == expected
    with pytest.raises(
        UdcError, match=r"data\.group: 'patient' must be a column .*t\.csv are image, label, patient_id"
    ):
        _grouped(root, "patient_id", group="patient")


@pytest.mark.parametrize("column", ["group", "Group", "GROUP"])
def test_a_column_group_is_found_in_any_letters(root, column):
    source, groups = _grouped(root, column)
    assert groups == {path: str(k // 3) for k, (path, _) in enumerate(ROWS)}
    assert f"group: {column})" in source.layout


def test_a_column_group_in_other_letters_with_another_role_is_no_column_of_groups(root):
    assert set(_grouped(root, "Group", label_column="Group")[1].values()) == {None}
    assert set(_grouped(root, "Group", subgroups=["Group"])[1].values()) == {None}


def test_a_column_that_numbers_patients_is_named_until_data_group_is_set(root):
    note = "the column Patient ID of t.csv has 8 values for 24 images; set data.group: Patient ID so that"
    assert any(each.startswith(note) for each in _grouped(root, "Patient ID")[0].notes)
    assert not _grouped(root, "Patient ID", group="Patient ID")[0].notes
    assert not _grouped(root, "diagnosis")[0].notes


BAD = {
    "empty": (b"", r"t\.csv: is empty"),
    "only a header": (b"image,label\n", r"has 0 class\(es\)"),
    "two columns of one name": (b"image,label,label\na,b,c\n", "has several columns called label"),
    "too many cells": (b"image,label\nimages/ant00.png,ant,x\n", "line 2 has 3 cells, the first line 2"),
    "open quote": (b'image,label\n"images/ant00.png,ant\n', "cannot be read as a table"),
    "zero bytes": (b"image,label\nimages/ant00.png,a\0t\n", "is not UTF-8 text"),
    "no label": (b"image,label\nimages/ant00.png,\n", r"t\.csv:2: has no class"),
    "no image": (b"image,label\n,ant\n", r"t\.csv:2: has no image"),
    "outside": (b"image,label\n../a.png,ant\n/etc/passwd,bee\nC:\\x.png,bee\n", r"t\.csv:2: leaves the data folder"),
    "twice": (b"image,label\nimages/ant00.png,ant\nimages/ant00.png,bee\n", "is already listed in .*t.csv:2"),
    "missing": (b"image,label\nimages/Ant00.png,ant\nx.png,bee\n",
                r"images/Ant00\.png: no such file \(did you mean images/ant00\.png\?\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_an_error_that_names_the_line(root, case, prepared):
    content, message = BAD[case]
    (root / "t.csv").write_bytes(content)
    with pytest.raises(UdcError, match=message):
        prepared(root, source="csv", csv_files=["t.csv"])


def test_ambiguous_names_are_an_error(root, write_images, prepared):
    write_images(root, "more/ant00.png")
    (root / "t.csv").write_text(_text([("ant00", "ant"), ("bee00", "bee")]))
    with pytest.raises(UdcError, match=r"ant00 is the name of 2 files \(images/ant00\.png, more/ant00\.png\)"):
        prepared(root)


def test_a_missing_extra_is_one_line(root, prepared, monkeypatch):
    _write_excel(root / "t.xlsx")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UdcError, match=r"t\.xlsx: openpyxl is not installed; pip install 'udc-model\[excel\]'"):
        prepared(root, source="csv", csv_files=["t.xlsx"])


def test_boxes_are_refused_with_a_sentence(root, prepared):
    _write_coco(root / "t.json", bbox=[0, 0, 4, 4])
    with pytest.raises(UdcError, match="has boxes or outlines of objects; this project decides whole images"):
        prepared(root)


def test_addresses_and_tables_as_path(root, prepared):
    with pytest.raises(UdcError, match=r"huggingface:beans is an address or the name of a data set; .*udc fetch"):
        prepared("huggingface:beans")
    (root / "t.csv").write_text(_text())
    with pytest.raises(UdcError, match=r"t\.csv is a table; set data.path to the folder of the images"):
        prepared(root / "t.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "utf-16-le"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json"])
def test_a_byte_order_mark_is_no_part_of_a_named_encoding(tmp_path, name, encoding):
    row = json.dumps({"image": "a.png", "label": "é"}, ensure_ascii=False)
    text = {"t.csv": "image,label\r\na.png,é\r\n", "t.jsonl": row, "t.json": f"[{row}]"}[name]
    (tmp_path / name).write_bytes(f"\ufeff{text}".encode(encoding))
    table = read_table(tmp_path / name, encoding)
    assert table.columns == ["image", "label"]
    assert [tuple(cells) for _, cells in table.rows] == [("a.png", "é")]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_string_in_json_lines_may_have_any_unicode_line_end(tmp_path, end):
    names = [f"a{character}b.png" for character in "\u2028\u2029\u0085"]
    lines = [json.dumps({"image": name, "label": "x"}, ensure_ascii=False) for name in names]
    (tmp_path / "t.jsonl").write_bytes((end.join([*lines, "", lines[0]]) + end).encode())
    rows = [(number, cells[0]) for number, cells in read_table(tmp_path / "t.jsonl").rows]
    assert rows == [*enumerate(names, 1), (5, names[0])]
