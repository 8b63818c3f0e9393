"""A repository with experiments as DVC stores them, made without running a pipeline."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from udc_model.data.packed import PackedSplit
from udc_model.decisions.policy import Policy
from udc_model.evaluation.tables import write_predictions

ROOT = Path(__file__).parents[2]
CLASSES = ["bar", "dot", "stripe"]
IMAGES = 40


class ExperimentRepository:
    """A git and DVC repository in the current folder; experiments are commits with their outputs in DVC's cache."""

    def __init__(self, root):
        self.root = root
        self.git("init", "-q")
        for name, value in (("user.name", "Test"), ("user.email", "test@example.org")):
            self.git("config", name, value)
        (root / ".dvc").mkdir()
        shutil.copy(ROOT / ".dvc/config", root / ".dvc/config")
        (root / ".gitignore").write_text("/.dvc/cache\n/.dvc/tmp\n/evaluation\n")
        shutil.copy(ROOT / "dvc.yaml", root / "dvc.yaml")
        self.params = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)

    def git(self, *arguments):
        return subprocess.run(["git", *arguments], cwd=self.root, check=True, capture_output=True, text=True).stdout

    def write(self, wrong, *, mistake=1.0, prefix="", is_cached=True, **changes):
        """Write params.yaml, dvc.lock and metrics.json of a result, and put its tables into the cache.

        Parameters
        ----------
        wrong : number of images that are decided wrong, the first ones.
        mistake : cost of a mistake.
        prefix : of the names of the images.
        changes : values by full name, with ``__`` for the dot.
        """
        params = json.loads(json.dumps(self.params))
        for name, value in changes.items():
            *sections, key = name.split("__")
            section = params
            for each in sections:
                section = section[each]
            section[key] = value
        folder = self.root / "evaluation"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        targets = np.arange(IMAGES) % 3
        logits = 4.0 * np.eye(3, dtype=np.float32)[np.where(np.arange(IMAGES) < wrong, (targets + 1) % 3, targets)]
        split = PackedSplit(np.zeros((IMAGES, 4, 4, 3), np.uint8), targets, [f"{prefix}{i}.png" for i in range(IMAGES)],
                            [""] * IMAGES, ["0"] * IMAGES)  # fmt: skip
        policy = Policy(CLASSES, (mistake * (1 - np.eye(3))).tolist(), training_prior=[1 / 3] * 3)
        for name in ("calibration", "test"):
            write_predictions(folder / name, split, logits, policy)
        (folder / "policy.json").write_text(policy.to_json(), encoding="utf-8")
        digest = self._store(folder) if is_cached else "0" * 32 + ".dir"
        cost = mistake * wrong / IMAGES
        metrics = {"test": {"mean_cost": cost, "mean_cost_low": 0.8 * cost, "mean_cost_high": 1.2 * cost,
                            "normalised_cost": cost, "accuracy": 1 - wrong / IMAGES, "referral_rate": 0.0,
                            "log_loss": 0.5},
                   "validation": {"mean_cost": cost + 0.01, "log_loss": 0.5}}  # fmt: skip
        outs = [{"path": "evaluation", "hash": "md5", "md5": digest}]
        stages = {"resolve": {"cmd": "a", "params": {"params.yaml": params}}, "evaluate": {"cmd": "b", "outs": outs}}
        for name, content in (("dvc.lock", {"schema": "2.0", "stages": stages}), ("params.yaml", params)):
            (self.root / name).write_text(yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False))
        (self.root / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")

    def commit(self, *arguments, **changes):
        self.write(*arguments, **changes)
        self.git("add", "-A")
        self.git("commit", "-qm", "result")
        self.head = self.git("rev-parse", "HEAD").strip()

    def experiment(self, name, *arguments, **changes):
        """Store an experiment that began from the last commit; the folder is that of the commit afterwards."""
        self.write(*arguments, **changes)
        self.git("add", "-A")
        commit = self.git("commit-tree", self.git("write-tree").strip(), "-p", self.head, "-m", name).strip()
        self.git("update-ref", f"refs/exps/{self.head[:2]}/{self.head[2:]}/{name}", commit)
        self.git("reset", "-q", "--hard")

    def _store(self, folder):
        cache = self.root / ".dvc/cache/files/md5"
        entries = []
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            md5 = self._put(cache, path.read_bytes())
            entries.append({"md5": md5, "relpath": path.relative_to(folder).as_posix()})
        return self._put(cache, json.dumps(entries).encode(), ".dir")

    def _put(self, cache, data, suffix=""):
        md5 = hashlib.md5(data).hexdigest()
        path = cache / md5[:2] / (md5[2:] + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return md5 + suffix


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository whose last commit has a result with 8 of 40 images decided wrong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    repository = ExperimentRepository(tmp_path)
    repository.commit(8)
    return repository
