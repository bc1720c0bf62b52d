#!/bin/bash
#SBATCH --job-name=afzal
#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --time=04:00:00
#SBATCH --signal=TERM@120 --requeue --open-mode=append
# One task per machine, each with one rank per GPU, or with RANKS ranks if that is set:
#   sbatch examples/slurm.sh dpo --model my-model --data prefs.jsonl --out /shared/runs/dpo --save-every-steps 50
# SLURM gives a task one processor by default: add --cpus-per-task, or --exclusive for the entire machine.
# All machines must see the run folder. Two minutes before the time limit the run saves a checkpoint, and the job is requeued.
set -eu

run=$(sed -n 's/.* --out[ =]\([^ ]*\).*/\1/p' <<< " $* ")
[ -n "$run" ] || { echo "slurm.sh: --out RUN is missing" >&2; exit 2; }
before=$(cat "$run/run.json" 2>/dev/null || true)
resume=$([ -n "$before" ] && echo --resume || true)
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=${PORT:-$((20000 + SLURM_JOB_ID % 10000))}  # unique per job: two jobs with the same port on one machine would disrupt each other
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # a machine that was down can rejoin

srun torchrun --nnodes "$SLURM_NTASKS" --nproc-per-node "${RANKS:-${SLURM_GPUS_ON_NODE:-1}}" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:$port" --max-restarts 3 \
    -m afzal train "$@" $resume && exit 0

after=$(cat "$run/run.json" 2>/dev/null || true)
[ "$after" = "$before" ] && exit 1  # it failed before training began, and would fail again
grep -q '"status": "stopped"' <<< "$after" && exec scontrol requeue "$SLURM_JOB_ID"
exit 1
