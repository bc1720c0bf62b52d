"""The files for clusters: the script parses, the manifests fit their schema, and both start commands that exist."""

from __future__ import annotations

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
    """The words are ``train METHOD --SETTING VALUE ...``, all of them known."""
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
    validate = pytest.importorskip("kubernetes_validate").validate
    for manifest in manifests():
        validate(manifest, "1.31", strict=True)
    broken = manifests()[1]
    broken["spec"]["template"]["spec"]["restartPolicies"] = broken["spec"]["template"]["spec"].pop("restartPolicy")
    with pytest.raises(Exception, match="restartPolicies"):
        validate(broken, "1.31", strict=True)
