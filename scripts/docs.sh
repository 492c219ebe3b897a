#!/usr/bin/env bash
# Build the site of docs/ into site/, strictly: a warning is an error.  mkdocs.yml has its pages.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh dev
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict "$@"
