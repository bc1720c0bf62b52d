"""Do these short runs still end with the same weights? For changes that must not change any number.

    python -m benchmarks.same_weights --out before.json
    ... change the code ...
    python -m benchmarks.same_weights --against before.json

SFT, DPO, KTO, a reward model, PPO, rounds and LoRA train for a few updates on a tiny random model, through the command
line alone, so that the script does not depend on how the package is divided. Weights are compared by the SHA-256 of
their names, shapes and values. The same bits need the same machine and versions, so a file of hashes is not committed.
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
    """Make the model and the data, train every run, and hash its weights."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers_runs import model_folder, pair_file

    model_folder(folder / "model")
    pair_file(folder / "pairs.jsonl", 24)
    (folder / "rewards.py").write_text(_REWARD)
    found = {}
    for name, command in RUNS.items():
        _afzal(folder, *command.split(), "--out", f"runs/{name}")
        found[name] = weights_hash(folder / "runs" / name)
        print(f"{name:10} {found[name]}", flush=True)
    return found


def _afzal(folder: Path, *words: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "afzal", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"afzal {' '.join(words)} failed:\n{done.stderr}")


def weights_hash(folder: Path) -> str:
    """SHA-256 of all tensors of a folder by name: type, shape and bytes."""
    import torch
    from safetensors.torch import load_file

    files = sorted(path for path in folder.glob("*.safetensors"))
    if not files:  # rounds keep the models of all rounds below their folder
        files = sorted(folder.glob("rounds/*/run/*.safetensors"))
    digest = hashlib.sha256()
    for path in files:
        for name, tensor in sorted(load_file(path).items()):
            digest.update(f"{path.name} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def main() -> int:
    """Write the hashes, or compare them: the exit code says whether all are the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the hashes here")
    parser.add_argument("--against", type=Path, help="compare with the hashes written there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = hashes(Path(folder))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
    if not asked.against:
        return 0
    before = json.loads(asked.against.read_text())
    other = sorted(name for name in before.keys() | found.keys() if before.get(name) != found.get(name))
    print(f"{len(other)} of {len(before.keys() | found.keys())} runs end otherwise: {', '.join(other) or 'none'}")
    return int(bool(other))


if __name__ == "__main__":
    raise SystemExit(main())
