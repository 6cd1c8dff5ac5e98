#!/usr/bin/env bash
# Everything a machine with a GPU has to show, in five minutes: benchmarks/gpu.sh [FOLDER] [OPTIONS]
# Checks and times every op, verifies, runs the sanitizers (lirank_ext/benchmarks/gpu/drive.py).
# Logs and figures, eight files, go to FOLDER (default: gpu-results). PYTHON names the
# interpreter; else .venv's, or python3 where that sees no GPU. Nothing is installed: where the
# package is not, links in a folder of its own stand in for it. A folder that `make gpu-kit` made
# (GPU_KIT, default .kit) spares all compiling where its versions fit; else the library is built.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-gpu-results}")
shift || true
kit=$(realpath -m "${GPU_KIT:-.kit}")
started=$SECONDS
limit=${GPU_SH_SECONDS:-290}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

say() { echo "gpu.sh: $*"; }
stop() { say "$*" >&2; exit 2; }
sees_gpu() { "$1" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; }

for python in ${PYTHON:-.venv/bin/python python3}; do
  command -v "$python" > /dev/null && sees_gpu "$python" && break
  python=
done
[ -n "$python" ] || stop "no CUDA device seen by PyTorch: run this on a machine with a GPU and a CUDA build of PyTorch, or set PYTHON."

# lirank_ext.kernels and .benchmarks lie beside the package, and the libraries may come from a kit.
mkdir -p "$scratch/site/lirank_ext" "$folder"
for name in lirank_ext/* kernels benchmarks; do
  case $name in *.so) ;; *) ln -sfn "$PWD/$name" "$scratch/site/lirank_ext/$(basename "$name")" ;; esac
done
ln -sfn "$PWD/tests" "$scratch/site/tests"
fits() {
  [ -f "$kit/kit.json" ] && "$python" - "$kit/kit.json" << 'END'
import json, os, sys
import torch, triton
here = {"python": f"{sys.version_info.major}.{sys.version_info.minor}", "triton": triton.__version__}
here |= {"torch": torch.__version__.split("+")[0], "machine": os.uname().machine}
wanted = json.load(open(sys.argv[1]))
if wanted != here:
    print(f"gpu.sh: the kit is for {wanted}, here is {here}")
sys.exit(wanted != here)
END
}
if fits; then
  ln -sf "$kit"/*.so "$scratch/site/lirank_ext/"
  cp -r "$kit/triton" "$scratch/triton" 2> /dev/null && export TRITON_CACHE_DIR="$scratch/triton"
  export TRITON_DISABLE_LINE_INFO=1 # as the kit's cache was made
  [ -d "$kit/fbgemm" ] && extra=":$kit/fbgemm"
  say "the libraries come from $kit"
else
  command -v nvcc > /dev/null || stop "no kit that fits, and no nvcc on PATH to build the CUDA library"
  FORCE_CUDA=1 "$python" setup.py build_ext --inplace > "$folder/build.log" 2>&1 \
    || stop "the build failed, see $folder/build.log"
  ln -sf "$PWD"/lirank_ext/*.so "$scratch/site/lirank_ext/"
  say "built in $((SECONDS - started)) s"
fi
export PYTHONPATH="$scratch/site${extra:-}${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 # or -m would find ./lirank_ext first
"$python" -m lirank_ext.benchmarks.gpu.drive --out "$folder" \
  --seconds $((limit - (SECONDS - started))) "$@"
