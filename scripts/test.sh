#!/usr/bin/env bash
# Sets up .venv and runs every check, the quick ones first: style, types, import contract, tests.
# Usage: scripts/test.sh [PYTEST ARGUMENTS]     (none: everything, slow and integration tests included)
# MEDSEG_DATA names the folder of real data; without it a shared/data folder beside the checkout is used
# when there is one, and otherwise the tests that need real data are skipped, counted and named at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
start=$SECONDS
bash scripts/setup_env.sh --dev
PATH="$(cd "${MEDSEG_VENV:-.venv}" && pwd)/bin:$PATH"
export PATH OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" PYTHONUTF8=1

if [ -z "${MEDSEG_DATA:-}" ] && [ -d ../shared/data ]; then
  MEDSEG_DATA=$(cd ../shared/data && pwd)
fi
export MEDSEG_DATA="${MEDSEG_DATA:-}"

step() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - start)); shift; "$@"; }
step "ruff check" ruff check
step "ruff format" ruff format --check
step "mypy" mypy
step "import contract" lint-imports
# the server of the annotation tests lives in an environment of its own; a part of the tests does not need it
if [ $# -eq 0 ]; then step "MONAI Label's environment" bash scripts/label_server.sh --setup-only; fi
printf '\nreal data: %s\n' "${MEDSEG_DATA:-none (MEDSEG_DATA is not set)}"
step "tests" python -m pytest "$@"
printf '\nall checks passed in %d s\n' $((SECONDS - start))
