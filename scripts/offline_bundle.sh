#!/usr/bin/env bash
# Collects wheels and bundles into one folder, from which a machine without network installs everything.
# Usage: scripts/offline_bundle.sh [OUT]      (default: offline/)
# Carry OUT over and run its install.sh there. The wheels fit the same Python version and kind of machine;
# the torch wheel is the one that pip finds here (a CPU build, or the CUDA build with its libraries).
# PYTHON names an interpreter with pip to collect with, instead of .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-offline}
[ -n "${PYTHON:-}" ] || bash scripts/setup_env.sh
python=${PYTHON:-${MEDSEG_VENV:-.venv}/bin/python}
pip=("$python" -m pip --disable-pip-version-check)

[ ! -e "$out/install.sh" ] || { echo "error: $out holds an earlier collection; remove it first" >&2; exit 1; }
mkdir -p "$out/wheels" "$out/bundles"
out=$(cd "$out" && pwd)
echo "collecting wheels into $out/wheels"
"${pip[@]}" download -qq --dest "$out/wheels" pip torch==2.13.0
"${pip[@]}" wheel -qq --no-deps --wheel-dir "$out/wheels" .
project=$(ls "$out"/wheels/medseg_kit-*.whl)
"${pip[@]}" download -qq --dest "$out/wheels" --find-links "$out/wheels" \
  --constraint constraints.txt "$project[federated]" torch==2.13.0
if ls "$out"/wheels/*.tar.gz >/dev/null 2>&1; then     # a source package: build it here, where tools are
  "${pip[@]}" wheel -qq --no-deps --wheel-dir "$out/wheels" "$out"/wheels/*.tar.gz
  rm "$out"/wheels/*.tar.gz
fi

# deployed parts only: no checkpoints of a training, and nothing that derives from the patients of this place
tar -C bundles --exclude='checkpoint*' --exclude='support_prototypes*' --exclude='*.log' -cf - . | tar -C "$out/bundles" -xf -
cp constraints.txt LICENSE README.md "$out/"
"$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' >"$out/python_version"

cat >"$out/install.sh" <<'INSTALL'
#!/usr/bin/env bash
# Installs from this folder alone, without a network. Usage: install.sh TARGET   (a new folder)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${1:?usage: install.sh TARGET}
wanted=$(cat "$here/python_version")
python=${PYTHON:-$(command -v "python$wanted" || command -v python3)}
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$found" = "$wanted" ] || { echo "error: these wheels need Python $wanted, $python is $found; set PYTHON" >&2; exit 1; }
(cd "$here" && sha256sum --quiet --check SHA256SUMS)
mkdir -p "$target"
"$python" -m venv "$target/.venv"
export PIP_CONFIG_FILE=/dev/null                        # no index, whatever this machine is set up for
pip=("$target/.venv/bin/python" -m pip --isolated --disable-pip-version-check install -qq --no-index --find-links "$here/wheels")
"${pip[@]}" --upgrade pip
"${pip[@]}" torch==2.13.0
"${pip[@]}" --constraint "$here/constraints.txt" "medseg-kit[federated]"
cp -R "$here/bundles" "$target/"
echo "installed; run $target/.venv/bin/medseg doctor"
INSTALL
chmod +x "$out/install.sh"
(cd "$out" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum >SHA256SUMS)
echo "$out: $(du -sh "$out" | cut -f1), $(ls "$out/wheels" | wc -l) wheels, $(ls "$out/bundles" | wc -l) bundles"
