#!/usr/bin/env bash
# Install into .venv and run the whole road on the embedded digits: about eight minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh data
.venv/bin/ucgm demo "$@"
