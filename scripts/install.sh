#!/usr/bin/env bash
# Make .venv beside pyproject.toml and install ucgm with the extras named in $1.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "ucgm needs Python 3.11 or newer; set PYTHON to one" >&2; exit 2; }
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --editable ".[$1]"
