"""Projects in which commands are disturbed, and the server that runs them."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TIMEOUT = 120.0  # seconds; a command takes one
OUTPUTS = {
    "prepare": ("data/prepared",),
    "resolve": ("resolved",),
    "train": ("model", "training"),
    "evaluate": ("evaluation", "metrics.json"),
}
# A stage's new parameters. Before it runs, its outputs are those of the old ones.
CHANGES = {
    "prepare": ("data", {"split_seed": 1}),
    "resolve": ("costs", {"refer": 0.4}),
    "train": ("train", {"learning_rate": 0.002}),
    "evaluate": ("costs", {"refer": 0.3}),
}
COMMANDS = {
    "prepare": ["prepare"],
    "resolve": ["resolve"],
    "train": ["train"],
    "evaluate": ["evaluate"],
    "predict": ["predict", "--csv", "data/raw/shapes/bar"],
    "decide": ["decide", "-S", "costs.refer=0.3", "--out", "again"],
    "sweep": ["decide", "--sweep", "true=bar,predicted=dot,values=1:3:1", "--out", "sweeps"],
    "compare": ["compare", "evaluation", "evaluation"],
    "summary": ["summary"],
    "inspect": ["inspect", "data/raw/shapes"],
    "params": ["params", "--write"],
    "find-lr": ["find-lr", "--steps", "10", "--out", "rates"],
    "init": ["init", "own", "--images", "data/raw/shapes"],
    "cross-validate": ["cross-validate", "--folds", "2", "--repeats", "1"],
}


@dataclass
class Ended:
    """A command that has ended: exit status (None: not in time), seconds, and what it printed."""

    status: int | None
    seconds: float
    output: str

    def fault(self):
        """What is wrong with the way it ended, or None."""
        if self.status is None:
            return f"did not end in {TIMEOUT:.0f} s"
        if "Traceback (most recent" in self.output:
            return f"printed a traceback:\n{self.output[-1500:]}"
        if self.status not in (0, 1):
            return f"ended with status {self.status}:\n{self.output[-1500:]}"
        if self.status == 1 and "error: " not in self.output:
            return f"failed without a message:\n{self.output[-1500:]}"
        if len(self.output.splitlines()) > 40:
            return f"printed {len(self.output.splitlines())} lines"
        return None


@dataclass
class Bench:
    """A server, and projects to be copied: ``old`` has the results of the old parameters, and for each stage ``new``
    has the digest of its outputs after an undisturbed run with the new ones."""

    folder: Path
    new: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        library = self.folder / "libfault.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "fault.c", "-ldl"], check=True)
        env = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"),
                            "DVC_NO_ANALYTICS": "true", "MLFLOW_DISABLE_TELEMETRY": "true",
                            "UDC_SENDER": "off"}  # fmt: skip
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "DVC_ROOT"):
            env.pop(name, None)
        self.server = subprocess.Popen([sys.executable, HERE / "server.py"], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, env=env, text=True)  # fmt: skip
        self.old = self.folder / "old"
        _create(self.old)
        for stage in OUTPUTS:
            self.check(self.run(self.old, stage))
        for name, arguments in COMMANDS.items():
            with self.project(name) as project:
                ended = self.run(project, *arguments)
                self.check(ended)
                self.seconds[name] = ended.seconds
                if name in OUTPUTS:
                    self.new[name] = digests(project, name)

    @staticmethod
    def check(ended):
        """Fail if an undisturbed command has failed."""
        assert ended.status == 0, ended.output

    def project(self, name):
        """A copy of the old project in which the command ``name`` is to run, with the new parameters of a stage."""
        folder = tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True)
        project = Path(folder.name) / "project"
        shutil.copytree(self.old, project, symlinks=True)
        if name in CHANGES:
            section, values = CHANGES[name]
            params = yaml.safe_load((project / "params.yaml").read_text())
            params[section] |= values
            (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        return _Entered(folder, project)

    def run(self, project, *arguments, **disturbance):
        """Run one command."""
        return self.run_together(project, [arguments], [disturbance])[0]

    def run_together(self, project, commands, disturbances=None):
        """Run commands at the same time; returns an `Ended` for each."""
        disturbances = disturbances or [{}] * len(commands)
        outputs = [project.parent / f"output{k}" for k in range(len(commands))]
        request = {"folder": str(project), "timeout": TIMEOUT, "commands": [
            {"arguments": list(arguments), "output": str(output)} | disturbance
            for arguments, output, disturbance in zip(commands, outputs, disturbances, strict=True)
        ]}  # fmt: skip
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        answers = json.loads(self.server.stdout.readline())
        return [Ended(*answer, output.read_text(errors="replace") if output.exists() else "")
                for answer, output in zip(answers, outputs, strict=True)]  # fmt: skip

    def close(self):
        """End the server."""
        self.server.stdin.close()
        self.server.wait()


@dataclass
class _Entered:
    """A temporary folder whose context is the project in it."""

    folder: tempfile.TemporaryDirectory
    path: Path

    def __enter__(self):
        return self.path

    def __exit__(self, *error):
        self.folder.cleanup()


def digests(project, stage):
    """SHA-256 of each output of a stage; "absent" if there is none."""
    return {name: _digest(project / name) for name in OUTPUTS[stage]}


def leftovers(project):
    """Scratch files and folders of writers that have ended; journals have copies under such names."""
    return [str(path.relative_to(project)) for path in project.rglob("*.partial*")
            if not {".git", "tracking"} & set(path.parts)]  # fmt: skip


def _digest(path):
    if not path.exists():
        return "absent"
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if file.name not in ("report.html", "curves.csv", "record.json"):  # times, commits and run ids
            digest.update(f"{file.relative_to(path)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _create(folder):

    folder.mkdir()
    rng = np.random.default_rng(0)
    for k, name in enumerate(("bar", "dot", "stripe")):
        (folder / "data/raw/shapes" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 60, (24, 24, 3), dtype=np.uint8)
            pixels[4 + 5 * k : 9 + 5 * k, 4:20] += 150
            Image.fromarray(pixels).save(folder / "data/raw/shapes" / name / f"{i:02d}.png")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in {
        "data": {"source": "folder", "path": "data/raw/shapes", "image_size": 16},
        "train": {"epochs": 2, "batch_size": 12}, "costs": {"preset": "uniform"}, "evaluate": {"resamples": 100},
    }.items():  # fmt: skip
        params[section] |= values
    params["model"]["resnet"] |= {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (folder / ".dvc").mkdir()
    (folder / ".gitignore").write_text("/data\n/model\n/training\n/evaluation\n/.udc\n/resolved\n")
    author = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "start"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
