"""The cluster files: the script parses, the manifests fit their schema, and both start existing commands."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from afzal.config import CONFIGS

EXAMPLES = Path(__file__).parents[2] / "examples"


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text()))


def assert_trains(words: list[str]) -> None:
    """Check that the words are ``train METHOD --SETTING VALUE ...``, with known names."""
    assert words[0] == "train"
    known = {f"--{name.replace('_', '-')}" for name in CONFIGS[words[1]].model_fields}
    assert {word for word in words if word.startswith("--")} <= known


def test_the_slurm_script_parses_and_its_example_is_a_command():
    path = EXAMPLES / "slurm.sh"
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=20)
    (example,) = [line for line in path.read_text().splitlines() if "sbatch examples/slurm.sh" in line]
    assert_trains(["train", *shlex.split(example)[3:]])
    refused = subprocess.run(["bash", str(path), "dpo", "--model", "m"], capture_output=True, text=True, timeout=20)
    assert (refused.returncode, "--out RUN is missing" in refused.stderr) == (2, True)


def job(folder: Path, srun: str, number: int = 7) -> tuple[int, str]:
    """The script's exit code and its SLURM calls, with stand-in commands; ``srun`` is a line of bash for the effect of
    training on ``run.json`` in the folder ``run``, and its exit code."""
    commands = {
        "srun": f'echo "srun $*" >> said\n{srun}',
        "scontrol": 'if [ "$1" = show ]; then echo node-a; echo node-b; else echo "scontrol $*" >> said; fi',
    }
    for name, body in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    (folder / "said").unlink(missing_ok=True)
    (folder / "run").mkdir(exist_ok=True)
    given = {"SLURM_JOB_ID": str(number), "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "node-[a-b]", "RANKS": "1"}
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **given}
    line = ["bash", str(EXAMPLES / "slurm.sh"), "dpo", "--model", "m", "--out", "run"]
    ended = subprocess.run(line, env=environment, cwd=folder, timeout=20, stderr=subprocess.PIPE, text=True)
    assert ended.stderr == ""
    return ended.returncode, (folder / "said").read_text()


def record(status: str, step: int) -> str:
    """A line of bash that writes this to ``run.json``, as a run does."""
    return f"echo '{json.dumps({'status': status, 'step': step})}' > run/run.json; exit {int(status != 'finished')}"


def test_a_job_that_was_stopped_is_queued_again_and_resumes(tmp_path):
    code, said = job(tmp_path, record("stopped", 5))
    assert (code, "--resume" in said) == (0, False)
    assert said.endswith("scontrol requeue 7\n")
    code, said = job(tmp_path, record("stopped", 9))
    assert (code, "--resume" in said) == (0, True)
    assert said.endswith("scontrol requeue 7\n")
    code, said = job(tmp_path, record("finished", 12))
    assert (code, "--resume" in said, "requeue" in said) == (0, True, False)


@pytest.mark.parametrize("srun", ["exit 1", record("failed", 9)])
def test_a_job_that_failed_is_not_queued_again(tmp_path, srun):
    """Neither at its first start nor after a stop, whose record remains if a start fails before training."""
    code, said = job(tmp_path, srun)
    assert (code, "requeue" in said) == (1, False)
    assert job(tmp_path, record("stopped", 5))[0] == 0
    code, said = job(tmp_path, srun)
    assert (code, "--resume" in said, "requeue" in said) == (1, True, False)


def test_jobs_on_one_machine_use_separate_ports(tmp_path):
    ports = {job(tmp_path, "exit 1", number)[1].split("node-a:")[1].split()[0] for number in (7, 8, 123_456)}
    assert ports == {"20007", "20008", "23456"}


def test_the_pods_of_kubernetes_find_the_first_one_and_train():
    service, job = manifests()
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    words = [*container["command"], *container["args"]]
    name = job["metadata"]["name"]
    assert service["metadata"]["name"] == pod["subdomain"] == name
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert (
        words[words.index("--rdzv-endpoint") + 1]
        == f"{name}-0.{pod['subdomain']}:{service['spec']['ports'][0]['port']}"
    )
    assert int(words[words.index("--nnodes") + 1]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(words[words.index("--nproc-per-node") + 1]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert_trains(words[words.index("afzal") + 1 :])


def test_the_manifests_fit_the_schema_of_kubernetes():
    schemas = pytest.importorskip("kubernetes_validate")
    validate = schemas.validate
    for version in ("1.31", schemas.latest_version()):
        for manifest in manifests():
            validate(manifest, version, strict=True)
    broken = manifests()[1]
    broken["spec"]["template"]["spec"]["restartPolicies"] = broken["spec"]["template"]["spec"].pop("restartPolicy")
    with pytest.raises(Exception, match="restartPolicies"):
        validate(broken, "1.31", strict=True)
