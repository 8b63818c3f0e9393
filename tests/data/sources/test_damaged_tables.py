"""Damaged tables: an error that names the file, or a valid result; never a traceback, a hang or much memory."""

import resource
import signal

import numpy as np
import openpyxl
import pandas as pd

from udc_model.config import DataParams
from udc_model.data.sources import open_source
from udc_model.errors import UdcError

SECONDS, BYTES = 5, 2**30


def _tables(folder):
    rows = [(f"{k}.png", "ab"[k % 2], "train" if k % 3 else "test", f"g{k}") for k in range(20)]
    frame = pd.DataFrame(rows, columns=["image_path", "label", "split", "group"])
    frame.to_csv(folder / "a.csv", index=False)
    frame.to_csv(folder / "b.csv", index=False, sep=";", encoding="utf-16")
    frame.to_csv(folder / "c.tsv", index=False, sep="\t", quoting=1)
    frame.to_parquet(folder / "d.parquet")
    frame.to_json(folder / "e.jsonl", orient="records", lines=True)
    frame.to_json(folder / "f.json", orient="records")
    book = openpyxl.Workbook()
    for row in [list(frame.columns), *rows]:
        book.active.append(row)
    book.save(folder / "g.xlsx")
    return sorted(folder.iterdir())


def _damaged(content, others, rng):
    """The bytes with one kind of damage: bytes replaced, cut, a part of another file, a part repeated or removed."""
    data = bytearray(content)
    a, b = sorted(rng.integers(0, len(data) + 1, 2))
    match rng.integers(5):
        case 0:
            for k in rng.integers(0, len(data), rng.integers(1, 12)):
                data[k] = rng.integers(256)
        case 1:
            del data[a:]
        case 2:
            other = others[rng.integers(len(others))]
            data[a:b] = other[a:b]
        case 3:
            data[a:a] = data[a:b] * int(rng.integers(1, 20))
        case 4:
            del data[a:b]
    return bytes(data)


def test_damaged_tables(tmp_path):
    n = 500
    rng = np.random.default_rng(0)
    originals = _tables(tmp_path)
    contents = [path.read_bytes() for path in originals]
    outcomes = {"read": 0, "refused": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def too_slow(signum, frame):
        raise AssertionError(f"more than {SECONDS} s")

    handler = signal.signal(signal.SIGALRM, too_slow)
    try:
        for k in range(n):
            path = originals[k % len(originals)]
            path.write_bytes(_damaged(contents[k % len(originals)], contents, rng))
            params = DataParams(source="csv", path=str(tmp_path), csv_files=[path.name])
            signal.alarm(SECONDS)
            try:
                open_source(params, tmp_path / "unpacked")
                message = ""
            except UdcError as error:
                message = str(error)
            finally:
                signal.alarm(0)
            outcomes["refused" if message else "read"] += 1
            assert not message or str(tmp_path) in message or path.name in message
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert min(outcomes.values()) > n / 20, outcomes
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES
