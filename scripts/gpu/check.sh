#!/usr/bin/env bash
# Check and measure ucgm on one GPU in at most seven minutes:  bash scripts/gpu/check.sh [--dry]
#
# --dry: tiny, on the CPU.  Results: $OUT (default runs/gpu_check) with check.json and check.log.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-runs/gpu_check}
mkdir -p "$out"
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
"$python" scripts/gpu/check.py --out "$out" "$@" 2>&1 | tee "$out/check.log"
