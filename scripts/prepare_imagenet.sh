#!/usr/bin/env bash
# From the images of ImageNet (or any class folders, zip, or hub:OWNER/NAME) to a checked data set.
#
#   scripts/prepare_imagenet.sh ILSVRC/train data/imagenet256_sdvae configs/data/imagenet256_sdvae.yaml
#
# One process per GPU, or NPROC processes.  Run it again after an interruption: it goes on.  More
# flags of `ucgm encode` may follow, such as --vae FOLDER for an autoencoder that is on this disk.
# It ends with `ucgm data`, which reads every shard and writes OUT.description/grid.png: look at it.
set -euo pipefail

if [ $# -lt 3 ]; then
  sed -n '2,8p' "$0" | sed 's/^# \{0,1\}//'
  exit 2
fi
source=$1 out=$2 config=$3
shift 3
python=${PYTHON:-python}
if [ -z "${NPROC:-}" ]; then
  NPROC=$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')
fi
launch=("$python" -m ucgm)
if [ "$NPROC" -gt 1 ]; then
  launch=("$python" -m torch.distributed.run --standalone --nproc_per_node "$NPROC" -m ucgm)
fi

"${launch[@]}" encode "$source" --config "$config" --out "$out" "$@"
"$python" -m ucgm data "$out"
