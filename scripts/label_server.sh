#!/usr/bin/env bash
# Start MONAI Label with the project's bundles on 127.0.0.1; see usage below.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/label_server.sh [BUNDLE...] [--studies DIR] [--port 8000] [--work DIR] [--setup-only]

Sets up MONAI Label 0.8.5 in an environment of its own (once, about 2 minutes and 2.5 GB) and serves
the bundles on http://127.0.0.1:PORT for inference, training and batch inference. The network is used
for the set-up only.

  BUNDLE        path or name of a bundle; all in bundles/ by default
  --studies     folder of images (NIfTI, NRRD) or the address of a DICOMweb server on this machine;
                an empty folder inside --work by default
  --port        default 8000 (the viewer page needs 8000)
  --work        folder of the server: copies of the bundles and what training there makes of their
                weights; default ~/.cache/medseg_kit/label_server
  --setup-only  set up the environment, start nothing

environment variables:
  MEDSEG_LABEL_VENV  where the environment lies (default .venv-label in the repository)
  PYTHON             the Python to build it with (default python3; 3.10 to 3.13)

example:
  scripts/label_server.sh hippocampus_mr_segviz --studies ~/studies
TEXT
}

fail() {
    echo "error: $*" >&2
    exit 1
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
helpers="$root/scripts/label_server"
venv="${MEDSEG_LABEL_VENV:-$root/.venv-label}"
python="${PYTHON:-python3}"
studies="" port=8000 work="" setup_only=0
bundles=()

need_value() { [[ $# -ge 2 && -n "$2" ]] || fail "$1 needs a value; see --help"; }

while [[ $# -gt 0 ]]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --setup-only) setup_only=1 && shift ;;
        --studies) need_value "$@" && studies="$2" && shift 2 ;;
        --port) need_value "$@" && port="$2" && shift 2 ;;
        --work) need_value "$@" && work="$2" && shift 2 ;;
        -*) fail "unknown option $1; see scripts/label_server.sh --help" ;;
        *) bundles+=("$1") && shift ;;
    esac
done

# A complete environment carries the fingerprint of everything it was made from.
fingerprint() {
    cat "$helpers"/requirements*.txt "$helpers"/torchvision_standin/torchvision/*.py | cksum | tr ' ' '-'
}

is_complete() {
    [[ -x "$venv/bin/python" && "$(cat "$venv/medseg-complete" 2>/dev/null)" == "$(fingerprint)" ]]
}

pip_install() { "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check "$@"; }

# A CPU build of torch has no torchvision of its own, and MONAI Label imports only two functions.
install_torchvision() {
    local has_cuda="import sys, torch; sys.exit(torch.version.cuda is None)"
    if "$venv/bin/python" -c "$has_cuda"; then
        pip_install --no-deps torchvision==0.28.0 || true
        "$venv/bin/python" -c "import torchvision" 2>/dev/null && return
        echo "torchvision 0.28.0 does not import beside this torch: using the stand-in" >&2
        "$venv/bin/python" -m pip uninstall --quiet --yes torchvision || true
    fi
    local site
    site="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    rm -rf "$site/torchvision"
    cp -R "$helpers/torchvision_standin/torchvision" "$site/torchvision"
}

set_up() {
    command -v "$python" >/dev/null || fail "$python not found; install Python 3.10 to 3.13, or name one: PYTHON=/path/to/python3"
    "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
        fail "$("$python" --version 2>&1) cannot run the server; name a Python 3.10 to 3.13: PYTHON=/path/to/python3"
    if [[ -e "$venv" && ! -e "$venv/pyvenv.cfg" && -n "$(ls -A "$venv")" ]]; then
        fail "$venv is not a virtual environment; set MEDSEG_LABEL_VENV to another folder"
    fi
    echo "setting up the label server in $venv (about 2 minutes, 2.5 GB) ..."
    "$python" -m venv --clear "$venv" ||
        fail "cannot create $venv; install Python's venv module (Debian: apt install python3-venv)"
    pip_install -c "$helpers/requirements.txt" torch==2.13.0 &&
        pip_install -r "$helpers/requirements.txt" &&
        pip_install --no-deps -r "$helpers/requirements-no-deps.txt" ||
        fail "installing failed (see above); without network, point pip at a folder of wheels (PIP_NO_INDEX=1 PIP_FIND_LINKS=DIR) and run again"
    install_torchvision
    (cd / && "$venv/bin/python" -c "import monailabel.main, monailabel.transform.post") ||
        fail "MONAI Label does not import in $venv (see above); remove that folder and run again"
    fingerprint >"$venv/medseg-complete"
}

is_complete || set_up
if [[ $setup_only == 1 ]]; then
    echo "label server environment: $venv"
    exit 0
fi

# The code of this checkout serves, whichever checkout made the environment.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$venv/bin/python" "$helpers/start.py" ${bundles[@]+"${bundles[@]}"} --port "$port" \
    ${studies:+--studies "$studies"} ${work:+--work "$work"}
