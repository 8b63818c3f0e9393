"""Data sets of Hugging Face: columns, configurations, splits and class names; the cache is filled by the tests."""

import pyarrow
import pyarrow.parquet
import pytest

from udc_model.errors import UdcError
from udc_model.fetch.huggingface_sets import fetch_huggingface, split_folders
from udc_model.fetch.parquet_files import files_by_split

IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def test_label_column_is_found_or_asked_for(hub, out, encoded, features, write_parquet):
    snapshot = hub("x/cifar100")
    write_parquet(snapshot / "train.parquet", [encoded(0), encoded(1)],
             features(fine_label=["apple", "bed"], coarse_label=["fruit", "thing"]),
             fine_label=[0, 1], coarse_label=[0, 1], note=["a", "b"])  # fmt: skip
    with pytest.raises(UdcError, match="several columns of labels: fine_label, coarse_label; choose one with --label"):
        fetch_huggingface("x/cifar100", out)
    with pytest.raises(UdcError, match=r"--label: .* has no such column of labels 'fin'; it has fine_label, coarse"):
        fetch_huggingface("x/cifar100", out, label="fin")
    assert fetch_huggingface("x/cifar100", out, label="coarse_label")["classes"] == ["fruit", "thing"]
    assert fetch_huggingface("x/cifar100", out, label="note")["classes"] == ["a", "b"]


def test_columns_without_class_label_are_used_by_name(hub, out, encoded, write_parquet):
    write_parquet(hub("x/y") / "train.parquet", [encoded(0), encoded(1)], label=["cat", "dog"], other=[1, 2])
    assert fetch_huggingface("x/y", out)["classes"] == ["cat", "dog"]
    write_parquet(hub("x/z") / "train.parquet", [encoded(0)], kind=["cat"])
    with pytest.raises(UdcError, match="huggingface:x/z: has no column of labels; name one with --label: kind"):
        fetch_huggingface("x/z", out)


def test_several_image_columns_must_be_chosen(hub, out, encoded):
    images = pyarrow.array([{"bytes": encoded(0), "path": None}, {"bytes": encoded(1), "path": None}], IMAGE)
    table = pyarrow.table({"left": images, "right": images, "label": pyarrow.array(["a", "b"])})
    pyarrow.parquet.write_table(table, hub("x/y") / "train.parquet")
    with pytest.raises(UdcError, match="several columns of images: left, right; choose one with --image"):
        fetch_huggingface("x/y", out)
    assert fetch_huggingface("x/y", out, image="right")["images"] == {"all": 2}


def test_configurations_must_be_chosen_unless_one_is_the_default(hub, out, encoded, write_parquet):
    snapshot = hub("x/y")
    for config in ("small", "large"):
        for split in ("train", "test"):
            write_parquet(snapshot / f"{config}/{split}/0000.parquet", [encoded(0)], label=[config])
    with pytest.raises(UdcError, match="has the configurations large, small; choose one with --config"):
        fetch_huggingface("x/y", out)
    with pytest.raises(UdcError, match="--config: huggingface:x/y has no configuration 'huge'; it has large, small"):
        fetch_huggingface("x/y", out, config="huge")
    assert fetch_huggingface("x/y", out, config="small")["classes"] == ["small"]
    (snapshot / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files: small/**\n- config_name: large\n  default: true\n"
        "  data_files:\n    train: large/train/*\n    test: [large/test/*]\n---\n"
    )
    assert fetch_huggingface("x/y", out)["classes"] == ["large"]


def test_a_script_is_refused(hub, out):
    snapshot = hub("x/y")
    (snapshot / "y.py").write_text("raise SystemExit('executed')")
    (snapshot / "data.zip").write_bytes(b"")
    with pytest.raises(UdcError, match=r"has no Parquet files .is loaded by a script, which is never run.; .*try "
                                       "huggingface:x/y@refs/convert/parquet"):  # fmt: skip
        fetch_huggingface("x/y", out)


def test_rows_without_a_label_are_left_out_counted_and_reported(hub, out, encoded, caplog, features, write_parquet):
    snapshot = hub("x/y")
    write_parquet(snapshot / "train.parquet", [encoded(0), encoded(1), encoded(2)], features(label=["a", "b"]),
             label=[0, -1, 1])  # fmt: skip
    write_parquet(
        snapshot / "test.parquet", [encoded(3)], features(label=["a", "b"]), label=pyarrow.array([None], "int64")
    )
    record = fetch_huggingface("x/y", out)
    assert record["images"] == {"all": 2}  # only one split has labels, so the data is not split yet
    assert record["without_label"] == {"train": 1, "test": 1}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.jpg")} == {"a/000000.jpg", "b/000002.jpg"}
    assert "huggingface:x/y: images without a label are left out: test 1, train 1" in caplog.text


def test_other_splits_are_left_out_with_a_warning(hub, out, encoded, caplog, write_parquet):
    snapshot = hub("x/y")
    (snapshot / "README.md").write_text(
        "---\nconfigs:\n- config_name: a\n  data_files:\n  - {split: train, path: a.parquet}\n"
        "  - {split: extra, path: b.parquet}\n  - {split: dev, path: c.parquet}\n---\n"
    )
    for seed, file in enumerate("abc"):
        write_parquet(snapshot / f"{file}.parquet", [encoded(seed)], label=["cat"])
    assert fetch_huggingface("x/y", out)["images"] == {"train": 1, "validation": 1}
    assert "the splits extra are left out" in caplog.text


@pytest.mark.parametrize(("names", "message"), [
    (["a/b", "a:b"], "the classes 'a/b' and 'a:b' would both be the folder 'a_b'"),
    (["cat", "Cat"], "the classes 'cat' and 'Cat' would both be the folder 'Cat'"),
    (["..", "b"], "the name '..' cannot be the name of a file or folder"),
    (["x" * 101, "b"], "has more than 100 characters"),
])  # fmt: skip
def test_class_names_that_cannot_be_folders_are_refused(hub, out, encoded, names, message, features, write_parquet):
    write_parquet(hub("x/y") / "train.parquet", [encoded(0), encoded(1)], features(label=names), label=[0, 1])
    with pytest.raises(UdcError) as refused:
        fetch_huggingface("x/y", out)
    assert message in str(refused.value)


def test_names_from_the_source_never_leave_the_folder(hub, out, encoded, tmp_path, features, write_parquet):
    names = ["../../evil", "/etc/x", ".hidden", "a\0b", "C:\\windows"]
    write_parquet(
        hub("x/y") / "train.parquet", [encoded(k) for k in range(5)], features(label=names), label=list(range(5))
    )
    before = {path for path in tmp_path.rglob("*") if out not in path.parents}
    record = fetch_huggingface("x/y", out)
    assert record["classes"] == ["C__windows", "__.._evil", "_etc_x", "_hidden", "a_b"]
    assert {path for path in tmp_path.rglob("*") if out not in path.parents} == before
    assert len(list(out.rglob("0*.jpg"))) == 5


@pytest.mark.parametrize(("problem", "message"), [
    ("truncated", "a Parquet file in .* is damaged or incomplete"),
    ("wrong hash", "is damaged or incomplete .its SHA-256 is .*; remove .* and fetch it again"),
    ("missing shard", "split train: 1 of 2 files data/train-… are there; fetch again with network access"),
    ("broken link", "missing in the cache of Hugging Face; fetch again with network access"),
    ("label too large", "the column labels has the label 7, but 3 class names"),
    ("no bytes", "the image of row 0 is not in the file; it cannot be fetched"),
    ("bad card", "README.md: its YAML header cannot be read"),
])  # fmt: skip
def test_a_half_downloaded_or_damaged_set_is_one_line(hub, out, encoded, problem, message, write_parquet, beans):
    snapshot = hub()
    beans(snapshot)
    path = snapshot / "data/train-00000-of-00001.parquet"
    match problem:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-200])
        case "wrong hash":
            blob = snapshot.parents[1] / "blobs" / ("0" * 64)
            blob.parent.mkdir()
            path.rename(blob)
            path.symlink_to(blob)
        case "missing shard":
            path.rename(path.with_name("train-00000-of-00002.parquet"))
        case "broken link":
            path.unlink()
            path.symlink_to(snapshot / "nowhere")
        case "label too large":
            write_parquet(path, [encoded(0)], labels=[7])
        case "no bytes":
            write_parquet(path, [None], labels=[0])
        case "bad card":
            (snapshot / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(UdcError, match=message) as failed:
        fetch_huggingface("beans", out)
    assert "\n" not in str(failed.value)


def test_a_large_row_group_and_a_full_disk_are_refused_before_reading(hub, out, monkeypatch, beans):
    beans(hub())
    monkeypatch.setattr("udc_model.fetch.huggingface_sets._MAX_ROW_GROUP", 1000)
    with pytest.raises(UdcError, match=r"a row group has [\d,]+ bytes; at most 1,000 are read"):
        fetch_huggingface("beans", out)
    monkeypatch.undo()


def test_other_formats_keep_their_suffix(hub, out, encoded, write_parquet):
    images = [encoded(0, form) for form in ("PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")] + [b"\0\0\0 ftypheic", b"text"]
    write_parquet(hub("x/y") / "train.parquet", images, label=["a"] * len(images))
    fetch_huggingface("x/y", out)
    suffixes = [path.suffix for path in sorted((out / "a").iterdir())]
    assert suffixes == [".png", ".webp", ".bmp", ".gif", ".tif", ".ppm", ".jpg", ".jpg"]  # the last: from the path


def test_names_of_splits_are_those_of_folders():
    folders = {"trainval": "train", "dev": "validation", "calib": "calibration", "test": "test"}
    assert split_folders(list(folders), "set") == folders
    files = {split: [f"data/{split}-00000-of-00001.parquet"] for split in folders}
    assert files_by_split([file for (file,) in files.values()], {}, None, "set") == files
