#!/bin/bash
#SBATCH --job-name=afzal
#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --time=04:00:00
#SBATCH --signal=TERM@120 --requeue --open-mode=append
# One task per machine, each with a rank per GPU, or as many as RANKS says:
#   sbatch examples/slurm.sh dpo --model my-model --data prefs.jsonl --out /shared/runs/dpo --save-every-steps 50
# All machines see the run folder. Two minutes before the time is up the run saves a checkpoint and the job queues again.
set -eu

run=$(sed -n 's/.* --out[ =]\([^ ]*\).*/\1/p' <<< " $* ")
[ -n "$run" ] || { echo "slurm.sh: --out RUN is missing" >&2; exit 2; }
resume=$([ -f "$run/run.json" ] && echo --resume || true)
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # a machine that was down may come back

srun torchrun --nnodes "$SLURM_NTASKS" --nproc-per-node "${RANKS:-${SLURM_GPUS_ON_NODE:-1}}" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:${PORT:-29500}" --max-restarts 3 \
    -m afzal train "$@" $resume && exit 0

grep -q '"status": "stopped"' "$run/run.json" && exec scontrol requeue "$SLURM_JOB_ID"
exit 1
