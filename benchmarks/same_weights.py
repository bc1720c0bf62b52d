"""Check that short runs still end with the same weights, after a change that must not alter any number.

    python -m benchmarks.same_weights --out before.json
    ... change the code ...
    python -m benchmarks.same_weights --against before.json

SFT, DPO, KTO, a reward model, PPO, rounds and LoRA train for a few updates on a tiny random model. Only the command
line is used, so the script does not depend on the package's structure. Weights are compared by the SHA-256 of their
names, shapes and values. Bitwise equality requires the same machine and versions, so hashes are not committed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_REWARD = '''
def letters(prompt, answer):
    """More letters are better, and no digits."""
    return sum(c.isalpha() for c in answer) - sum(c.isdigit() for c in answer)
'''
_COMMON = "--model model --data pairs.jsonl --batch-size 4 --max-steps 4 --lr 1e-3 --max-tokens 64 --device cpu"
_ONLINE = "--reward rewards.py:letters --sample-tokens 6 --iterations 2"
_ROUNDS = (
    "iterate --model model --prompts pairs.jsonl --reward rewards.py:letters --rounds 2 -n 4 --max-new-tokens 6 "
    "--max-tokens 64 --no-require-eos --held-out 4 --held-out-samples 2 --batch-size 4 --lr 1e-3 --max-steps 2 "
    "--eval-fraction 0 --device cpu"
)
RUNS = {
    "sft": f"train sft {_COMMON}",
    "dpo": f"train dpo {_COMMON}",
    "dpo-bf16": f"train dpo {_COMMON} --dtype bf16",
    "dpo-lora": f"train dpo {_COMMON} --lora-rank 4",
    "kto": f"train kto {_COMMON}",
    "simpo": f"train prefer {_COMMON} --objective simpo",
    "reward": f"train reward {_COMMON} --heads 2",
    "ppo": f"train ppo {_COMMON.replace('--max-steps 4 ', '')} {_ONLINE}",
    "iterate": _ROUNDS,
}


def hashes(folder: Path) -> dict[str, str]:
    """Create the model and the data, train every run, and hash its weights."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers_runs import model_folder, pair_file

    model_folder(folder / "model")
    pair_file(folder / "pairs.jsonl", 24)
    (folder / "rewards.py").write_text(_REWARD)
    digests = {}
    for name, command in RUNS.items():
        _afzal(folder, *command.split(), "--out", f"runs/{name}")
        digests[name] = weights_hash(folder / "runs" / name)
        print(f"{name:10} {digests[name]}", flush=True)
    return digests


def _afzal(folder: Path, *words: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "afzal", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"afzal {' '.join(words)} failed:\n{done.stderr}")


def weights_hash(folder: Path) -> str:
    """SHA-256 over all tensors of a folder: name, type, shape and bytes."""
    import torch
    from safetensors.torch import load_file

    files = sorted(path for path in folder.glob("*.safetensors"))
    if not files:  # with rounds, every round's model is in a subfolder
        files = sorted(folder.glob("rounds/*/run/*.safetensors"))
    digest = hashlib.sha256()
    for path in files:
        for name, tensor in sorted(load_file(path).items()):
            digest.update(f"{path.name} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def main() -> int:
    """Write the hashes or compare them; the exit code is 1 if any differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the hashes here")
    parser.add_argument("--against", type=Path, help="compare with the hashes written there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        digests = hashes(Path(folder))
    if options.out:
        options.out.write_text(json.dumps(digests, indent=1) + "\n")
    if not options.against:
        return 0
    before = json.loads(options.against.read_text())
    other = sorted(name for name in before.keys() | digests.keys() if before.get(name) != digests.get(name))
    print(f"{len(other)} of {len(before.keys() | digests.keys())} runs differ: {', '.join(other) or 'none'}")
    return int(bool(other))


if __name__ == "__main__":
    raise SystemExit(main())
