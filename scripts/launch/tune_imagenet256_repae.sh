#!/usr/bin/env bash
# REPA-E tuned to two steps in 500 optimizer steps: FID 1.39 is published.
#
#   scripts/launch/tune_imagenet256_repae.sh CHECKPOINT [RUN_DIR] [flags of `ucgm train`]
#
# CHECKPOINT is the published file of SiT-XL/1 with the E2E-VAE, or a run that `ucgm import` made of
# it.  The data: scripts/prepare_imagenet.sh ILSVRC/train data/imagenet256_e2evae \
#   configs/data/imagenet256_e2evae.yaml --normalise STATISTICS, with the file of statistics that
# belongs to the checkpoint.  start.sh lists the variables.
cd "$(dirname "$0")/../.."
source scripts/launch/start.sh
if [ $# -lt 1 ] || [ "$1" = --help ]; then usage; fi
teacher=$1 out=runs/imagenet256_repae_few
shift
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  out=$1
  shift
fi
if [ ! -f "$teacher/config.yaml" ]; then
  file=$teacher teacher=runs/imagenet256_repae
  if [ ! -f "$teacher/config.yaml" ]; then
    once import "$file" --architecture repae --out "$teacher"
  fi
fi
train_layered configs/tune/imagenet256_repae.yaml "$out" --train.init "$teacher" "$@"
