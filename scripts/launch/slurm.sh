#!/usr/bin/env bash
# Any of the launchers as a SLURM job, on one machine or several:
#
#   sbatch --nodes 2 --gpus-per-node 8 --time 24:00:00 scripts/launch/slurm.sh \
#     scripts/launch/multi_imagenet256_vavae.sh runs/imagenet256_vavae [flags]
#
# srun starts one process per GPU, without a launcher of processes between, so that the signals of
# SLURM reach the training: it saves and ends.  Five minutes before the time limit the job asks for
# that and queues itself again; when it is preempted, SLURM does both.  The training goes on from its
# last checkpoint each time, and a training that is done ends at once.  Submit it from the
# repository; DRY_RUN=1 prints the command.  A machine with 4 GPUs needs --gpus-per-node 4
# --ntasks-per-node 4, and --cpus-per-task where it has fewer than 12 cores for each.
#SBATCH --job-name=ucgm
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=ucgm-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/../..}"
if [ $# -lt 1 ]; then
  echo "usage: sbatch [--nodes N] scripts/launch/slurm.sh LAUNCHER [its arguments]" >&2
  exit 2
fi

nodes=${SLURM_NNODES:-1}
gpus=${SLURM_GPUS_PER_NODE:-8}
gpus=${gpus##*:} # "h100:8" is 8
MASTER_ADDR=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-}" 2>/dev/null | head -n 1 || true)
export MASTER_ADDR=${MASTER_ADDR:-localhost}
export MASTER_PORT=$((20000 + ${SLURM_JOB_ID:-0} % 20000))
export UCGM_SRUN=1

command=(srun --kill-on-bad-exit=1 --ntasks=$((nodes * gpus)) --ntasks-per-node="$gpus")
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then # srun does not take it from the job since SLURM 22.05
  command+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
fi
command+=(bash "$@")
if [ -n "${DRY_RUN:-}" ]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi

asked=
trap 'asked=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM # to the steps, not to this shell
"${command[@]}" &
child=$!
code=0
wait "$child" || code=$?
if [ -n "$asked" ]; then
  wait "$child" || true # the first wait ended with the signal, not with the training
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
