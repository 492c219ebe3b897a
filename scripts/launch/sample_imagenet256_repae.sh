#!/usr/bin/env bash
# REPA-E sampled by UCGM-S alone, 40 steps, nothing trained: FID 1.06 is published.
#
#   scripts/launch/sample_imagenet256_repae.sh CHECKPOINT REFERENCE [flags of `ucgm benchmark`]
#
# CHECKPOINT is the published file of SiT-XL/1 with the E2E-VAE, or a run that `ucgm import` made of
# it; REFERENCE the statistics of ADM, VIRTUAL_imagenet256_labeled.npz.  start.sh lists the
# variables.
cd "$(dirname "$0")/../.."
source scripts/launch/start.sh
if [ $# -lt 2 ] || [ "$1" = --help ]; then usage; fi
model=$1 reference=$2
shift 2
if [ ! -f "$model/config.yaml" ]; then
  file=$model model=runs/imagenet256_repae
  if [ ! -f "$model/config.yaml" ]; then
    once import "$file" --architecture repae --out "$model"
  fi
fi
distributed benchmark "$model" --steps 40 --num-images 50000 --reference "$reference" "$@"
