#!/usr/bin/env bash
# The same model in two steps, from its multi-step run: FID 1.42 is published.
#
#   scripts/launch/few_imagenet256_vavae.sh MULTI_STEP_RUN [RUN_DIR] [flags of `ucgm train`]
#
# MULTI_STEP_RUN is of multi_imagenet256_vavae.sh, or of `ucgm import` of the published weights.
# start.sh lists the variables.
cd "$(dirname "$0")/../.."
source scripts/launch/start.sh
if [ $# -lt 1 ] || [ "$1" = --help ]; then usage; fi
teacher=$1 out=runs/imagenet256_vavae_few
shift
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  out=$1
  shift
fi
train_layered configs/few_step/imagenet256_vavae.yaml "$out" --train.init "$teacher" "$@"
