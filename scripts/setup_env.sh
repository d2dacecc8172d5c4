#!/usr/bin/env bash
# Creates .venv when it is missing and installs the project into it, exactly as constraints.txt says.
# Usage: scripts/setup_env.sh [--dev]      --dev adds the tools and the federated extra that the tests use
# MEDSEG_VENV names another folder than .venv; PYTHON another interpreter (>= 3.10 with venv and pip).
# A torch 2.13.0 that is already in the environment (a CPU build, say) is kept.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usable() { command -v "$1" >/dev/null 2>&1 &&
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.12 python3.11 python3.10 python; do
    if usable "$candidate"; then echo "$candidate"; return; fi
  done
  echo "error: no Python >= 3.10 with venv and pip found; install one, or set PYTHON to it" >&2
  return 1
}

extra=federated; groups=()
case "${1:-}" in
  "") ;;
  --dev) groups=(--group dev) ;;
  *) echo "error: unknown option $1; usage: scripts/setup_env.sh [--dev]" >&2; exit 2 ;;
esac

venv=${MEDSEG_VENV:-.venv}
[ -x "$venv/bin/python" ] || { python=$(find_python); echo "creating $venv with $("$python" --version)"; "$python" -m venv "$venv"; }
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

# one stamp per kind of installation: a second run costs nothing, a changed requirement reinstalls
stamp="$venv/.medseg_kit${groups[0]:+-dev}"
wanted=$(cat pyproject.toml constraints.txt | sha256sum)
for done in "$stamp" "$venv/.medseg_kit-dev"; do
  [ "$(cat "$done" 2>/dev/null)" != "$wanted" ] || exit 0
done

echo "installing into $venv (torch first; some minutes the first time)"
"${pip[@]}" install -qq --upgrade 'pip>=25.1'
"${pip[@]}" install -qq torch==2.13.0
"${pip[@]}" install -qq --constraint constraints.txt --editable ".[$extra]" ${groups[@]+"${groups[@]}"}
"$venv/bin/python" -c 'import torch; assert torch.__version__.startswith("2.13.0"), torch.__version__'
printf '%s\n' "$wanted" >"$stamp"
