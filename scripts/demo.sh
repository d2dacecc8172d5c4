#!/usr/bin/env bash
# Sets up .venv and runs the main job: a federation of sites that each label one organ, its rivals, and a page.
# Usage: scripts/demo.sh [--out DIR] [--data phantoms|hippocampus] [--seed N]
#   phantoms (default): four sites of synthetic patients. hippocampus: the real Task04 volumes in the folder
#   that MEDSEG_DATA names. Minutes on two cores, no GPU; results in out/demo unless --out names another folder.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup_env.sh"
venv=${MEDSEG_VENV:-.venv}
case "$venv" in /*) ;; *) venv=$root/$venv ;; esac

for argument in "$@"; do
  case "$argument" in --out | --out=* | -o) exec "$venv/bin/medseg" demo "$@" ;; esac
done
exec "$venv/bin/medseg" demo --out "$root/out/demo" "$@"
