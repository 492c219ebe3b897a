#!/usr/bin/env bash
# CIFAR-10 on one GPU, from images to a multi-step and a two-step model, measured:
#
#   bash scripts/gpu/cifar10.sh TRAIN TEST
#
# TRAIN and TEST: zips (or folders) of class folders of the training and the held-out images.
# Seconds of training in MULTI (default 300) and FEW (100); results under $OUT (runs/cifar10).
# FID is in the feature space of a small classifier that is trained on the way, and compares with
# no published number.  $UCGM_WORDS: further words for both trainings, such as --model.size N/4.
set -euo pipefail
[ $# = 2 ] || { sed -n 2,10p "$0"; exit 2; }
train_images=$(realpath "$1") test_images=$(realpath "$2")
cd "$(dirname "$0")/../.."
out=${OUT:-runs/cifar10} start=$SECONDS
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
mkdir -p "$out"

step() { echo; echo "[$((SECONDS - start)) s] \$ $*"; "$@"; }
ucgm() { "$python" -m ucgm "$@"; }
# A training that is told to stop saves a checkpoint, and ends by the signal.
train_for() {
  local seconds=$1 status=0
  shift
  timeout --signal TERM "$seconds" "$python" -m ucgm train "$@" || status=$?
  [ "$status" = 0 ] || [ "$status" = 124 ]
}

step ucgm encode "$train_images" --vae identity --size 32 --num-workers 8 --out "$out/train"
step ucgm encode "$test_images" --vae identity --size 32 --num-workers 8 --out "$out/test"
weights=$out/classifier.safetensors
step "$python" -m scripts.gpu.cifar10_classifier "$out/train" "$out/test" --out "$weights" ${EPOCHS:+--epochs "$EPOCHS"}
features=(--extractor scripts.gpu.cifar10_classifier:build --extractor-weights "$weights")
step ucgm reference "$train_images" "$out/reference_train.npz" --size 32 "${features[@]}"
step ucgm reference "$test_images" "$out/reference_test.npz" --size 32 "${features[@]}"
read -ra words <<<"${UCGM_WORDS:-}"
multi=(--config configs/cifar10/multi_step.yaml --data.path "$out/train" "${words[@]}")
few=(--config configs/cifar10/few_step.yaml --train.init "$out/multi")
step train_for "${MULTI:-300}" "${multi[@]}" --run-dir "$out/multi"
step train_for "${FEW:-100}" "${multi[@]}" "${few[@]}" --run-dir "$out/few"
measure=("${features[@]}" --reference "$out/reference_train.npz" --held-out "$out/reference_test.npz")
measure+=(--num-images "${SAMPLES:-10000}" --precision bf16 --tile 500 --batch-size 2000)
step ucgm benchmark "$out/multi" "${measure[@]}" --steps 2 4 8 16 --out-dir "$out/benchmark_multi"
step ucgm benchmark "$out/few" "${measure[@]}" --steps 1 2 4 --out-dir "$out/benchmark_few"
step ucgm plot "$out/multi" "$out/few" --out "$out/curves.png"
echo "$((SECONDS - start)) s in all"
