#!/usr/bin/env bash
# Install into .venv and run every check: style, layering, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh data,dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports
.venv/bin/basedpyright
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadfile "$@"
