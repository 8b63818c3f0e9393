"""The five kinds of faults.

Each function yields cases: a name that identifies the case, and a function that runs it and returns what is wrong, or
None.
"""

import errno
import itertools
import json
import math
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import yaml
from bench import COMMANDS, OUTPUTS, Bench, digests, leftovers

Case = tuple[str, Callable[[], str | None]]

_ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)
_SLOW = ("evaluate", "cross-validate")
_OF_STUDY = re.compile(r"cross-validation/#/[^/]*$|-cross-validate-|data/prepared/")
_RUNS = {"train": 1, "evaluate": 1, "cross-validate": 5}  # journals of an undisturbed command
_READERS = ("predict", "decide", "sweep", "compare", "summary", "inspect")


def writes(bench: Bench, rng: random.Random) -> Iterator[Case]:
    """Each place that writes fails once with ENOSPC, EIO or EACCES; of slow commands, each with one of them."""
    for name in COMMANDS:
        for number, place in enumerate(_places(bench, name)):
            errors = _ERRORS[number % 3 :][:1] if name in _SLOW else _ERRORS
            for error in errors:
                case = f"{name}, {errno.errorcode[error]}: {place}"
                yield case, partial(_fail, bench, name, place, error)


def _places(bench, name):
    """The distinct places at which a command writes, without git's own and the copies of the code for MLflow.

    Cross-validation runs the stages in other folders; only its own files are among its places.
    """
    with bench.project(name) as project:
        log = project.parent / "places"
        bench.check(bench.run(project, *COMMANDS[name], fault=[None, 0, str(log)]))
        places = sorted(set(log.read_text().splitlines())) if log.exists() else []
    places = [place for place in places if not {"udc_model", ".git"} & set(re.split("[ /]", place))]
    return [place for place in places if name != "cross-validate" or _OF_STUDY.search(place)]


def _fail(bench, name, place, error):
    with bench.project(name) as project:
        ended = bench.run(project, *COMMANDS[name], fault=[place, error, str(project.parent / "log")])
        if not (project.parent / "log.done").exists():
            return "the place was not reached"
        if ended.status == 1 and not any(part in ended.output for part in (os.strerror(error), "cannot be", "memory")):
            return f"the message does not have the reason:\n{ended.output}"
        return ended.fault() or _check_after(bench, project, name, is_complete=ended.status == 0)


def _check_after(bench, project, name, is_complete=False):
    """What is wrong with the outputs after a disturbed command, or after the same command has run again."""
    stages = [name] if name in OUTPUTS else list(OUTPUTS)
    for stage in stages:
        for output, digest in digests(project, stage).items():
            old = digests(bench.old, stage)[output]
            allowed = {old} if name not in OUTPUTS else {bench.new[stage][output]} | (set() if is_complete else {old})
            if digest not in allowed:
                return f"{output} is {'absent' if digest == 'absent' else 'neither the old nor the new one'}"
    again = bench.run(project, *COMMANDS[name])
    if again.status != 0:
        return f"run again, it {again.fault() or 'fails'}:\n{again.output}"
    if name in OUTPUTS and digests(project, name) != bench.new[name]:
        return "run again, it gives another result than undisturbed"
    if remains := leftovers(project):
        return f"leaves {remains[:3]}"
    return None


def kills(bench: Bench, rng: random.Random) -> Iterator[Case]:
    """SIGKILL of the command and its process group at random moments."""
    for name, seconds in bench.seconds.items():
        for number in range(40 if name in OUTPUTS else 15):
            yield f"{name}, killed {number}", partial(_kill, bench, name, rng.random() * seconds)


def _kill(bench, name, seconds):
    with bench.project(name) as project:
        ended = bench.run(project, *COMMANDS[name], kill_after=seconds)
        if ended.status not in (-9, 0):
            return ended.fault() or f"ended with status {ended.status}"
        return _check_after(bench, project, name, is_complete=ended.status == 0)


def pairs(bench: Bench, rng: random.Random) -> Iterator[Case]:
    """Every ordered pair of commands at once, and 200 random ones of which one begins a little later."""
    for first, second in itertools.product(COMMANDS, repeat=2):
        yield f"{first} and {second}", partial(_run_both, bench, (first, second), 0)
    for number in range(200):
        names = rng.choices(list(COMMANDS), k=2)
        delay = rng.random() * bench.seconds[names[0]]
        yield f"{names[0]} and later {names[1]} {number}", partial(_run_both, bench, names, delay)


def _run_both(bench, names, delay):
    with bench.project(names[0]) as project:
        both = bench.run_together(project, [COMMANDS[name] for name in names], [{}, {"delay": delay}])
        for name, ended in zip(names, both, strict=True):
            if fault := ended.fault():
                return f"{name} {fault}"
            is_refused = ended.status == 1 and "is writing to" in ended.output and "process" in ended.output
            is_outdated = "dvc repro" in ended.output and any(other in OUTPUTS for other in names if other != name)
            if ended.status and not is_refused and not is_outdated:  # an earlier stage has run before it
                return f"{name} fails: {ended.output}"
            if ended.status and name in _READERS:
                return f"{name}, which only reads, is refused: {ended.output}"
        if all(ended.status for ended in both):
            return "both are refused"
        finished = sum(_RUNS.get(name, 0) for name, ended in zip(names, both, strict=True) if not ended.status)
        ends = [json.loads(line)["status"] for journal in (project / ".udc/tracking").glob("*/journal.jsonl")
                if journal.parent.name not in _journals(bench.old)
                for line in journal.read_text().splitlines() if json.loads(line)["kind"] == "end"]  # fmt: skip
        if ends != ["FINISHED"] * finished:
            return f"{finished} run(s) finished, but they ended with {ends}"
        for name in OUTPUTS:
            for output, digest in digests(project, name).items():
                if digest == "absent":
                    return f"{output} is absent"
        for name in names:
            again = bench.run(project, *COMMANDS[name])
            # of two stages, the first may have to run before the second can: the message says so
            if again.status and (again.fault() or "dvc repro" not in again.output):
                return f"{name}, run again, fails: {again.output}"
        if names[0] in OUTPUTS and names[1] not in OUTPUTS and digests(project, names[0]) != bench.new[names[0]]:
            return f"{names[0]} gives another result than undisturbed"
        if remains := leftovers(project):
            return f"leaves {remains[:3]}"
        return None


def _journals(project):
    return {folder.name for folder in (project / ".udc/tracking").glob("*")}


# Files that commands read, and the commands. An exact file is one in which no damage may pass unnoticed.
_READ = {
    "params.yaml": ("prepare", "resolve", "train"),
    "data/raw/shapes/bar/00.png": ("prepare", "predict"),
    "data/prepared/dataset.json": ("resolve", "train", "evaluate"),
    "data/prepared/manifest.csv": ("train", "evaluate"),
    "data/prepared/train.npy": ("train",),
    "data/prepared/validation.npy": ("train",),
    "resolved/evaluate.yaml": ("resolve",),
    "model/config.json": ("predict", "evaluate"),
    "model/preprocessor_config.json": ("predict",),
    "model/model.safetensors": ("predict", "evaluate"),
    "training/record.json": ("evaluate", "summary"),
    "training/curves.csv": ("evaluate",),
    "training/margins.safetensors": ("evaluate",),
    "evaluation/policy.json": ("predict", "decide"),
    "evaluation/test/predictions.csv": ("decide", "compare"),
    "evaluation/calibration/predictions.csv": ("decide",),
    "metrics.json": ("summary", "evaluate"),
    ".udc/writer.json": ("prepare",),
    ".udc/logits/*": ("evaluate",),
    ".udc/figures/*": ("evaluate",),
    ".udc/tracking/*/journal.jsonl": ("summary", "train"),
}
_EXACT = ("data/prepared/train.npy", "data/prepared/validation.npy", "model/model.safetensors")


def damage(bench: Bench, rng: random.Random) -> Iterator[Case]:
    """Each file that a command reads is damaged in each way."""
    for pattern, names in _READ.items():
        for name, (kind, change) in itertools.product(names, _DAMAGES.items()):
            case = f"{name}, {pattern}, {kind}"
            yield case, partial(_damage, bench, name, pattern, change, random.Random(rng.random()))


def _remove(path, rng):
    path.unlink()


def _empty(path, rng):
    path.write_bytes(b"")


def _cut(path, rng):
    os.truncate(path, rng.randrange(1, max(2, path.stat().st_size)))


def _flip(path, rng):
    contents = bytearray(path.read_bytes())
    contents[rng.randrange(len(contents))] ^= 1 << rng.randrange(8)
    path.write_bytes(contents)


def _to_folder(path, rng):
    path.unlink()
    path.mkdir()


def _to_dangling_link(path, rng):
    path.unlink()
    path.symlink_to("nowhere")


def _enlarge(path, rng):
    os.truncate(path, 2**30)


def _make_unreadable(path, rng):
    """Nothing to do here: `_damage` lets opening the file fail, because the tests may run as root."""


_DAMAGES = {
    "missing": _remove, "empty": _empty, "cut": _cut, "a bit flipped": _flip, "a folder": _to_folder,
    "a dangling link": _to_dangling_link, "unreadable": _make_unreadable, "1 GB": _enlarge,
}  # fmt: skip


def _damage(bench, name, pattern, change, rng):
    with bench.project(name) as project:
        path = next(iter(sorted(project.glob(pattern))))
        change(path, rng)
        place = f"read {path.relative_to(project)}" if change is _make_unreadable else ""
        fault = {"fault": [place, errno.EACCES, str(project.parent / "log")]} if place else {}
        ended = bench.run(project, *COMMANDS[name], **fault)
        if fault := ended.fault():
            return fault
        if ended.status == 1 and path.name not in ended.output and path.parent.name not in ended.output:
            return f"the message does not name the file:\n{ended.output}"
        if ended.status == 0 and pattern in _EXACT and change is not _make_unreadable:
            return "the damage was not noticed"
        return None


# Values that a slip of the hand, or a stranger, may write.
_VALUES = (None, True, "", "x", "1e400", -1, 0, 1, 0.5, -0.5, 1e-300, 1e300, 10**6, 10**12, 10**40, math.nan, math.inf,
           [], [0], [-1], ["bar"], ["nobody"], [[1]], [10**9], {}, {"a": 1}, {"bar": {"dot": -5}}, "../x", "bar",
           "\u202e")  # fmt: skip
_JSON = {
    "model/config.json": "predict", "model/preprocessor_config.json": "predict", "evaluation/policy.json": "decide",
    "data/prepared/dataset.json": "evaluate", "training/record.json": "evaluate", "metrics.json": "summary",
}  # fmt: skip


def generated(bench: Bench, rng: random.Random) -> Iterator[Case]:
    """Values of params.yaml, cost tables, and values of JSON files are replaced by improbable ones."""
    for number in range(300):
        yield f"params.yaml {number}", partial(_change_params, bench, random.Random(rng.random()))
    for number in range(150):
        yield f"costs {number}", partial(_change_costs, bench, random.Random(rng.random()))
    for (file, name), number in itertools.product(_JSON.items(), range(60)):
        case = f"{name}, {file} {number}"
        yield case, partial(_change_json, bench, file, name, random.Random(rng.random()))


def _change_params(bench, rng):
    with bench.project("summary") as project:
        params = yaml.safe_load((project / "params.yaml").read_text())
        changed = [_change_leaf(params, rng) for _ in range(rng.choice((1, 1, 1, 2)))]
        (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        for name in ("resolve", "prepare"):
            ended = bench.run(project, *COMMANDS[name])
            if fault := ended.fault():
                return f"{name}, {changed}: {fault}"
            if ended.status and not any(key in ended.output for key, _ in changed):
                return f"{name}, {changed}: the message does not name the parameter:\n{ended.output}"
        return None


def _change_costs(bench, rng):
    classes = ("bar", "dot", "stripe")
    values = (0, 1, 2.5, 20, 1e-9, 1e9, -1, 1e12, math.nan, "x")
    mistakes = {a: {b: rng.choice(values) for b in classes if rng.random() < 0.7} for a in classes}
    with bench.project("summary") as project:
        params = yaml.safe_load((project / "params.yaml").read_text())
        params["costs"] |= {"preset": None, "table": mistakes, "refer": rng.choice((None, 0.3, -1, 1e9))}
        (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        ended = bench.run(project, *COMMANDS["decide"])
        if fault := ended.fault():
            return f"{mistakes}: {fault}"
        return f"{mistakes}: {ended.output}" if ended.status and "costs" not in ended.output else None


def _change_json(bench, file, name, rng):
    with bench.project("summary") as project:
        contents = json.loads((project / file).read_text())
        changed = _change_leaf(contents, rng)
        (project / file).write_text(json.dumps(contents))
        shutil.rmtree(project / ".udc/logits")
        ended = bench.run(project, *COMMANDS[name])
        if fault := ended.fault():
            return f"{changed}: {fault}"
        named = (Path(file).name, changed[0], "run train again")
        if ended.status and not any(name in ended.output for name in named):
            return f"{changed}: the message names neither file nor field:\n{ended.output}"
        return None


def _change_leaf(tree, rng):
    """Replace a random value in nested dictionaries and lists; returns its key and the new value."""
    key = "value"
    while True:
        step = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        key = step if isinstance(step, str) else key
        if not isinstance(tree[step], dict | list) or not tree[step] or rng.random() < 0.1:
            tree[step] = rng.choice(_VALUES)
            return key, tree[step]
        tree = tree[step]


KINDS = {"writes": writes, "kills": kills, "pairs": pairs, "damage": damage, "generated": generated}
