# Sourced by the launchers: what starts `ucgm` on this machine, or on this machine as one of several.
#
#   GPUS=8               processes per machine; the GPUs that torch sees when left out
#   NODES=2 NODE_RANK=0  number of machines and which one this is; the same command runs on each
#   MASTER_ADDR=host0    a name of machine 0 that all can reach, and MASTER_PORT (29500)
#   PRECISION=bf16       or no
#   PYTHON=python        with ucgm installed
#   DRY_RUN=1            print the commands instead of running them
#
# Paths are relative to the repository.  Under slurm.sh the processes are there already, and each
# becomes one of them.
set -euo pipefail
PYTHON=${PYTHON:-python}

run() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# become COMMAND ...: the same in place of this shell, so that signals reach it.
become() {
  if [ -n "${DRY_RUN:-}" ]; then
    run "$@"
  else
    exec "$@"
  fi
}

# distributed COMMAND ...: ucgm COMMAND on every GPU of every machine; ends the launcher.
distributed() {
  local nodes=${NODES:-1} precision=${PRECISION:-bf16} gpus=${GPUS:-}
  if [ -n "${UCGM_SRUN:-}" ]; then
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    export ACCELERATE_MIXED_PRECISION=$precision
    become "$PYTHON" -m ucgm "$@"
    return
  fi
  if [ -z "$gpus" ]; then
    gpus=$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')
  fi
  local words=(--num_machines "$nodes" --num_processes $((nodes * gpus)))
  words+=(--mixed_precision "$precision" --dynamo_backend no)
  if [ $((nodes * gpus)) -gt 1 ]; then
    words+=(--multi_gpu)
  fi
  if [ "$nodes" -gt 1 ]; then
    : "${NODE_RANK:?is missing: which machine is this, 0 to NODES - 1?}"
    : "${MASTER_ADDR:?is missing: the name of machine 0}"
    words+=(--machine_rank "$NODE_RANK" --main_process_ip "$MASTER_ADDR")
    words+=(--main_process_port "${MASTER_PORT:-29500}")
  fi
  become "$PYTHON" -m accelerate.commands.launch "${words[@]}" -m ucgm "$@"
}

# once COMMAND ...: ucgm COMMAND in one process, on machine 0 alone.
once() {
  if [ "${NODE_RANK:-0}" = 0 ] && [ "${SLURM_PROCID:-0}" = 0 ]; then
    run "$PYTHON" -m ucgm "$@"
  fi
}

# train_layered FILE RUN_DIR [flags]: FILE over the layers that its header lists.
train_layered() {
  local file=$1 out=$2 layers=() layer
  shift 2
  for layer in $(sed -n 's/^# layers: //p' "$file") "$file"; do
    layers+=(--config "$layer")
  done
  distributed train "${layers[@]}" --run-dir "$out" "$@"
}

# usage: the head of the launcher that was called.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "scripts/launch/$(basename "$0")"
  exit 2
}
