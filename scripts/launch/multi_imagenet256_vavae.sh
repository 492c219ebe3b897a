#!/usr/bin/env bash
# TiT-XL/1 on the VA-VAE latents of ImageNet 256, multi-step: FID 1.21 in 30 steps is published.
#
#   scripts/launch/multi_imagenet256_vavae.sh [RUN_DIR] [flags of `ucgm train`]
#   NODES=2 NODE_RANK=0 MASTER_ADDR=host0 scripts/launch/multi_imagenet256_vavae.sh
#   sbatch --nodes 2 scripts/launch/slurm.sh scripts/launch/multi_imagenet256_vavae.sh
#
# The data first: scripts/prepare_imagenet.sh ILSVRC/train data/imagenet256_vavae \
#   configs/data/imagenet256_vavae.yaml.  The batch of 1,024 is shared by all GPUs; where it does not
# fit, add --train.accumulation 2 (or 4), --model.init_args.gradient_checkpointing true or
# --train.sharding fsdp2.
# start.sh lists the variables.
cd "$(dirname "$0")/../.."
source scripts/launch/start.sh
if [ "${1:-}" = --help ]; then usage; fi
out=runs/imagenet256_vavae
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  out=$1
  shift
fi
train_layered configs/multi_step/imagenet256_vavae.yaml "$out" "$@"
