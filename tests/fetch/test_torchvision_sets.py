"""Data sets of torchvision from caches that the tests fill, in the layout of torchvision; nothing is downloaded."""

import bz2
import gzip
import hashlib
import io
import json
import struct
import tarfile
import urllib.request

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from udc_model.errors import UdcError
from udc_model.fetch.torchvision_sets import PICKLED, SETS, cache_folder, fetch_torchvision
from udc_model.files import sha256_of

_FASHION = ["T-shirt_top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
_MNIST = ["0 - zero", "1 - one", "2 - two", "3 - three", "4 - four", "5 - five", "6 - six", "7 - seven", "8 - eight",
          "9 - nine"]  # fmt: skip
_DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A function that returns the empty cache folder of a data set."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def create(name):
        root = cache_folder(name)
        root.mkdir(parents=True)
        return root

    return create


@pytest.fixture
def any_md5(monkeypatch):
    """Accept the files of the tests, which do not have the published MD5."""
    monkeypatch.setattr("torchvision.datasets.utils.check_md5", lambda *args, **kwargs: True)


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _idx(values):
    values = np.asarray(values)
    kind = {"uint8": 8, "int32": 12}[values.dtype.name]
    return (
        struct.pack(f">{values.ndim + 1}I", kind * 256 + values.ndim, *values.shape)
        + values.astype(values.dtype.newbyteorder(">")).tobytes()
    )


def _arrays(rng, count, *shape):
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % 10


def _expected(split, names, labels, pixels):
    return {f"{split}/{names[label]}/{number:05d}.png": image
            for number, (label, image) in enumerate(zip(labels, pixels, strict=True))}  # fmt: skip


def _mnist(root, rng, encoded, name="MNIST", classes=_MNIST):
    expected = {}
    for split, prefix, count in (("train", "train", 12), ("test", "t10k", 10)):
        pixels, labels = _arrays(rng, count, 28, 28)
        _write(root / name / f"raw/{prefix}-images-idx3-ubyte", _idx(pixels))
        _write(root / name / f"raw/{prefix}-labels-idx1-ubyte", _idx(labels.astype(np.uint8)))
        expected |= _expected(split, classes, labels, pixels)
    return expected


def _fashion_mnist(root, rng, encoded):
    return _mnist(root, rng, encoded, "FashionMNIST", _FASHION)


def _qmnist(root, rng, encoded):
    expected = {}
    for split in ("train", "test"):
        pixels, labels = _arrays(rng, 10, 28, 28)
        table = np.zeros((10, 8), dtype=np.int32)
        table[:, 0] = labels
        _write(root / f"QMNIST/raw/qmnist-{split}-images-idx3-ubyte", _idx(pixels))
        _write(root / f"QMNIST/raw/qmnist-{split}-labels-idx2-int", _idx(table))
        expected |= _expected(split, _MNIST, labels, pixels)
    return expected


def _emnist_letters(root, rng, encoded):
    expected = {}
    for split in ("train", "test"):
        pixels, labels = _arrays(rng, 10, 28, 28)
        _write(root / f"EMNIST/raw/emnist-letters-{split}-images-idx3-ubyte", _idx(pixels))
        _write(root / f"EMNIST/raw/emnist-letters-{split}-labels-idx1-ubyte", _idx((labels + 1).astype(np.uint8)))
        expected |= _expected(split, "abcdefghij", labels, pixels)
    return expected


def _usps(root, rng, encoded):
    expected = {}
    for split, file in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        values, labels = np.where(rng.random((10, 256)) < 0.5, -1.0, 1.0), np.arange(10)
        lines = [f"{label + 1} " + " ".join(f"{k + 1}:{v}" for k, v in enumerate(row)) + " \n"
                 for label, row in zip(labels, values, strict=True)]  # fmt: skip
        _write(root / file, bz2.compress("".join(lines).encode()))
        expected |= _expected(split, _DIGITS, labels, ((values + 1) / 2 * 255).astype(np.uint8).reshape(-1, 16, 16))
    return expected


def _semeion(root, rng, encoded):
    values, labels = rng.integers(0, 2, (10, 256)), np.arange(10)
    rows = np.hstack([values, np.eye(10)[labels]])
    _write(root / "semeion.data", "\n".join(" ".join(map(str, row)) for row in rows))
    pixels = (values * 255).astype(np.uint8).reshape(-1, 16, 16)
    return {f"{label}/{label:05d}.png": image for label, image in enumerate(pixels)}


def _svhn(root, rng, encoded):
    from scipy.io import savemat

    expected = {}
    for split in ("train", "test"):
        pixels, labels = _arrays(rng, 10, 32, 32, 3)
        numbers = np.where(labels == 0, 10, labels)  # as published: 10 is the digit 0
        savemat(root / f"{split}_32x32.mat", {"X": pixels.transpose(1, 2, 3, 0), "y": numbers[:, None]})
        expected |= _expected(split, _DIGITS, labels, pixels)
    return expected


def _stl10(root, rng, encoded):
    expected, classes = {}, [f"class {k}" for k in range(10)]
    for split in ("train", "test"):
        pixels, labels = _arrays(rng, 10, 96, 96, 3)
        _write(root / f"stl10_binary/{split}_X.bin", pixels.transpose(0, 3, 2, 1).tobytes())  # columns first
        _write(root / f"stl10_binary/{split}_y.bin", (labels + 1).astype(np.uint8).tobytes())
        expected |= _expected(split, classes, labels, pixels)
    _write(root / "stl10_binary/unlabeled_X.bin", b"")
    _write(root / "stl10_binary/class_names.txt", "\n".join(classes))
    return expected


def _dtd(root, rng, encoded):
    expected = {}
    for seed, (split, file) in enumerate((("train", "train1"), ("validation", "val1"), ("test", "test1"))):
        _write(root / f"dtd/dtd/images/banded/banded_{seed}.jpg", encoded(seed))
        _write(root / f"dtd/dtd/labels/{file}.txt", f"banded/banded_{seed}.jpg\n")
        expected[f"{split}/banded/banded_{seed}.jpg"] = encoded(seed)
    return expected


def _eurosat(root, rng, encoded):
    _write(root / "eurosat/2750/Forest/Forest_1.jpg", encoded(1))
    _write(root / "eurosat/2750/River/River_1.jpg", encoded(2))
    return {"Forest/Forest_1.jpg": encoded(1), "River/River_1.jpg": encoded(2)}


def _country211(root, rng, encoded):
    expected = {}
    for seed, (split, folder) in enumerate((("train", "train"), ("validation", "valid"), ("test", "test"))):
        _write(root / f"country211/{folder}/AD/{seed}.jpg", encoded(seed))
        expected[f"{split}/AD/{seed}.jpg"] = encoded(seed)
    return expected


def _rendered_sst2(root, rng, encoded):
    expected = {}
    for seed, (split, folder) in enumerate((("train", "train"), ("validation", "valid"), ("test", "test"))):
        for label in ("negative", "positive"):
            _write(root / f"rendered-sst2/{folder}/{label}/{seed}.png", encoded(seed, "PNG"))
            expected[f"{split}/{label}/{seed}.png"] = encoded(seed, "PNG")
    return expected


def _fgvc_aircraft(root, rng, encoded):
    data, expected = root / "fgvc-aircraft-2013b/data", {}
    _write(data / "variants.txt", "707-320\nF/A-18\n")
    for seed, (split, name) in enumerate((("train", "train"), ("validation", "val"), ("test", "test"))):
        _write(data / f"images/{seed}.jpg", encoded(seed))
        _write(data / f"images_variant_{name}.txt", f"{seed} F/A-18\n")
        expected[f"{split}/F_A-18/{seed}.jpg"] = encoded(seed)
    return expected


def _flowers102(root, rng, encoded):
    from scipy.io import savemat

    for number in (1, 2, 3):
        _write(root / f"flowers-102/jpg/image_{number:05d}.jpg", encoded(number))
    savemat(root / "flowers-102/imagelabels.mat", {"labels": [77, 1, 77]})
    savemat(root / "flowers-102/setid.mat", {"trnid": [[3, 2]], "valid": [[1, 2]], "tstid": [[1, 3]]})
    return {
        "train/passion flower/image_00003.jpg": encoded(3), "train/pink primrose/image_00002.jpg": encoded(2),
        "validation/passion flower/image_00001.jpg": encoded(1), "validation/pink primrose/image_00002.jpg": encoded(2),
        "test/passion flower/image_00001.jpg": encoded(1), "test/passion flower/image_00003.jpg": encoded(3),
    }  # fmt: skip


def _food101(root, rng, encoded):
    for seed, split in enumerate(("train", "test")):
        _write(root / f"food-101/images/apple_pie/{seed}.jpg", encoded(seed))
        _write(root / f"food-101/meta/{split}.json", json.dumps({"apple_pie": [f"apple_pie/{seed}"]}))
    return {"train/apple_pie/0.jpg": encoded(0), "test/apple_pie/1.jpg": encoded(1)}


def _gtsrb(root, rng, encoded):
    _write(root / "gtsrb/GTSRB/Training/00000/00000_00001.ppm", encoded(0, "PPM"))
    _write(root / "gtsrb/GTSRB/Training/00001/00000_00001.ppm", encoded(1, "PPM"))
    _write(root / "gtsrb/GTSRB/Final_Test/Images/00000.ppm", encoded(2, "PPM"))
    _write(root / "gtsrb/GT-final_test.csv", "Filename;Width;ClassId\n00000.ppm;8;42\n")
    return {"train/00000/00000_00001.ppm": encoded(0, "PPM"), "train/00001/00000_00001.ppm": encoded(1, "PPM"),
            "test/00042/00000.ppm": encoded(2, "PPM")}  # fmt: skip


def _imagenette160(root, rng, encoded):
    for seed, split in enumerate(("train", "val")):
        _write(root / f"imagenette2-160/{split}/n01440764/a.JPEG", encoded(seed))
        _write(root / f"imagenette2-160/{split}/n03000684/b.JPEG", encoded(seed))
    return {f"{split}/{label}/{file}.JPEG": encoded(seed) for seed, split in enumerate(("train", "validation"))
            for label, file in (("tench", "a"), ("chain saw", "b"))}  # fmt: skip


def _oxford_pets(root, rng, encoded):
    for seed, (split, name) in enumerate((("trainval", "great_pyrenees"), ("test", "great_pyrenees"))):
        _write(root / f"oxford-iiit-pet/images/{name}_{seed}.jpg", encoded(seed))
        _write(root / f"oxford-iiit-pet/annotations/{split}.txt", f"{name}_{seed} 1 2 1\n")
    return {"train/Great Pyrenees/great_pyrenees_0.jpg": encoded(0),
            "test/Great Pyrenees/great_pyrenees_1.jpg": encoded(1)}  # fmt: skip


def _sun397(root, rng, encoded):
    _write(root / "SUN397/ClassName.txt", "/a/abbey\n/a/apartment_building/outdoor\n")
    _write(root / "SUN397/a/abbey/sun_a.jpg", encoded(0))
    _write(root / "SUN397/a/apartment_building/outdoor/sun_b.jpg", encoded(1))
    return {"abbey/sun_a.jpg": encoded(0), "apartment_building_outdoor/sun_b.jpg": encoded(1)}


def _caltech256(root, rng, encoded):
    folder = root / "caltech256/256_ObjectCategories"
    _write(folder / "001.ak47/001_0001.jpg", encoded(0))
    _write(folder / "002.american-flag/002_0001.jpg", encoded(1))
    return {"001.ak47/001_0001.jpg": encoded(0), "002.american-flag/002_0001.jpg": encoded(1)}


CACHES = {
    "MNIST": _mnist, "FashionMNIST": _fashion_mnist, "QMNIST": _qmnist, "EMNISTLetters": _emnist_letters,
    "USPS": _usps, "SEMEION": _semeion,
    "SVHN": _svhn, "STL10": _stl10, "DTD": _dtd, "EuroSAT": _eurosat, "Country211": _country211,
    "RenderedSST2": _rendered_sst2, "FGVCAircraft": _fgvc_aircraft, "Flowers102": _flowers102, "Food101": _food101,
    "GTSRB": _gtsrb, "Imagenette160": _imagenette160, "OxfordIIITPet": _oxford_pets, "SUN397": _sun397,
    "Caltech256": _caltech256,
}  # fmt: skip


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.usefixtures("any_md5")
def test_images_classes_and_splits_are_those_of_torchvision(name, cache, tmp_path, rng, encoded, contents):
    expected = CACHES[name](cache(name), rng, encoded)
    folder = tmp_path / "out"
    folder.mkdir()
    record = fetch_torchvision(name, folder)
    written = contents(folder)
    assert sorted(written) == sorted(expected)
    for path, image in expected.items():
        if isinstance(image, bytes):
            assert written[path] == image  # no re-encoding
        else:
            assert (np.asarray(Image.open(folder / path)) == image).all()
    splits = [path.split("/")[0] if path.count("/") == 2 else "all" for path in expected]
    assert record["images"] == {split: splits.count(split) for split in splits}
    assert record["classes"] == sorted({path.split("/")[-2] for path in expected})
    assert record["name"] == f"torchvision:{name}"
    assert record["revision"].startswith("torchvision 0.")


def test_the_other_supported_sets_have_the_layout_of_a_tested_one():
    assert set(SETS) - set(CACHES) == {"EMNISTDigits", "KMNIST", "Imagenette", "Imagenette320"}
    assert SETS["KMNIST"].splits == SETS["MNIST"].splits
    assert all(hasattr(torchvision.datasets, entry.class_name or name) for name, entry in SETS.items())


def test_record_has_the_sha256_of_the_source_files_and_is_reproducible(cache, tmp_path, rng, encoded):
    root = cache("FashionMNIST")
    _fashion_mnist(root, rng, encoded)
    records = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        records.append(fetch_torchvision("FashionMNIST", folder))
    assert records[0] == records[1]
    path = "FashionMNIST/raw/train-images-idx3-ubyte"
    assert records[0]["files"][path] == hashlib.sha256((root / path).read_bytes()).hexdigest()
    assert len(records[0]["files"]) == 4
    assert records[0]["renamed_classes"] == {"T-shirt_top": "T-shirt/top"}


@pytest.mark.parametrize("name", PICKLED)
def test_pickled_sets_are_refused_before_any_file_is_opened(name, tmp_path):
    with pytest.raises(UdcError, match=f"torchvision:{name}: torchvision loads it with pickle") as refused:
        fetch_torchvision(name, tmp_path)
    if PICKLED[name]:
        assert f"use {PICKLED[name]}" in str(refused.value)


def test_older_cache_of_torch_save_is_not_read(cache, tmp_path, rng, encoded, monkeypatch):
    root = cache("MNIST")
    expected = _mnist(root, rng, encoded)
    for file in ("training.pt", "test.pt"):
        _write(root / "MNIST/processed" / file, b"\x80\x04N.")
    monkeypatch.setattr("torch.load", lambda *args, **kwargs: pytest.fail("a pickle was loaded"))
    assert sum(fetch_torchvision("MNIST", tmp_path)["images"].values()) == len(expected)


def test_unknown_name_lists_the_supported_ones(tmp_path):
    with pytest.raises(UdcError, match=r"torchvision:Fashion: not supported; .*EuroSAT, FashionMNIST"):
        fetch_torchvision("Fashion", tmp_path)


@pytest.mark.parametrize(("file", "content", "reason"), [
    ("train-images-idx3-ubyte", lambda old: old[:-100], "shape"),
    ("train-labels-idx1-ubyte", lambda old: _idx(np.zeros(11, np.uint8)), "12 images, but 11 labels"),
    ("train-labels-idx1-ubyte", lambda old: old[:-1] + b"\x0b", "image 11 has the label 11, but there are 10 classes"),
    ("train-images-idx3-ubyte.gz", lambda old: b"half", "does not have the published MD5 8d4fb7e6c68d591d4c3dfef9ec"),
])  # fmt: skip
def test_damaged_files_are_one_line(cache, tmp_path, rng, encoded, file, content, reason):
    root = cache("FashionMNIST")
    _fashion_mnist(root, rng, encoded)
    path = root / "FashionMNIST/raw" / file
    path.write_bytes(content(path.read_bytes() if path.exists() else b""))
    with pytest.raises(UdcError, match=reason) as failed:
        fetch_torchvision("FashionMNIST", tmp_path)
    assert str(failed.value).startswith("torchvision:FashionMNIST: the files in ")
    assert "\n" not in str(failed.value)
    assert "remove this folder and fetch again" in str(failed.value)


needs_safe_archives = pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="downloads need Python 3.11.4")


def test_a_python_that_cannot_extract_safely_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    with pytest.raises(UdcError, match=r"a download needs Python 3\.11\.4 or newer"):
        fetch_torchvision("FashionMNIST", tmp_path)


@needs_safe_archives
def test_offline_without_a_cache_names_what_to_copy_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(urllib.request, "urlopen", _refuse)
    with pytest.raises(UdcError) as failed:
        fetch_torchvision("FashionMNIST", tmp_path)
    message = str(failed.value)
    assert message.startswith(f"torchvision:FashionMNIST: not in {tmp_path}/torch/datasets/FashionMNIST, and cannot be "
                              "downloaded (")  # fmt: skip
    assert "no network" in message
    assert message.endswith("run `udc fetch torchvision:FashionMNIST` on a machine with network access and copy that "
                            "folder from there")  # fmt: skip
    assert list((tmp_path / "torch/datasets").iterdir()) == []


def _refuse(*args, **kwargs):
    raise urllib.error.URLError("no network")


@needs_safe_archives
def test_a_download_is_checked_by_md5_and_kept_in_the_cache(tmp_path, rng, encoded, monkeypatch, server):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder, address = server
    expected = _fashion_mnist(tmp_path / "built", rng, encoded)
    resources = []
    for path in sorted((tmp_path / "built/FashionMNIST/raw").iterdir()):
        content = gzip.compress(path.read_bytes())
        (folder / f"{path.name}.gz").write_bytes(content)
        resources.append((f"{path.name}.gz", hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [f"{address}/"])
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)
    (tmp_path / "a").mkdir()
    record = fetch_torchvision("FashionMNIST", tmp_path / "a")
    assert sum(record["images"].values()) == len(expected)
    assert record["files"][f"FashionMNIST/raw/{resources[0][0]}"] == sha256_of(folder / resources[0][0])
    for path in folder.iterdir():
        path.unlink()
    (tmp_path / "b").mkdir()
    assert fetch_torchvision("FashionMNIST", tmp_path / "b") == record  # from the cache


@needs_safe_archives
def test_a_download_of_other_bytes_is_refused_and_leaves_nothing(tmp_path, monkeypatch, server):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder, address = server
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [f"{address}/"])
    for file, _ in torchvision.datasets.FashionMNIST.resources:
        (folder / file).write_bytes(b"half of a file")
    with pytest.raises(UdcError, match="File not found or corrupted"):
        fetch_torchvision("FashionMNIST", tmp_path)
    assert list((tmp_path / "torch/datasets").iterdir()) == []


@needs_safe_archives
def test_no_member_of_a_downloaded_archive_leaves_the_cache(tmp_path, monkeypatch, server):
    """FGVCAircraft is published without a hash, so nothing else protects from its archive."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder, address = server
    with tarfile.open(folder / "aircraft.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("../../../outside.txt")
        archive.addfile(member, io.BytesIO())
    monkeypatch.setattr(torchvision.datasets.FGVCAircraft, "_URL", f"{address}/aircraft.tar.gz")
    with pytest.raises(UdcError, match=r"outside.txt.* would be extracted to"):
        fetch_torchvision("FGVCAircraft", tmp_path)
    assert not list(tmp_path.rglob("outside.txt"))
    assert not hasattr(tarfile.TarFile, "extraction_filter") or tarfile.TarFile.extraction_filter is None


def test_a_full_disk_is_noticed_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10_000_000_000}))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: pytest.fail("downloads"))
    with pytest.raises(UdcError, match=r"torchvision:Food101: needs 15.0 GB, but .* has 10.0 GB free"):
        fetch_torchvision("Food101", tmp_path)
