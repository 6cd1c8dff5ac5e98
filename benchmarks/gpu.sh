#!/usr/bin/env bash
# Everything a machine with a GPU has to show, in eight minutes: benchmarks/gpu.sh [FOLDER]
# Builds, verifies every op on CUDA, runs the sanitizers, captures graphs, measures.
# JSON and logs go to FOLDER (default: gpu-results). The last line says what to do next.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-gpu-results}")
python=${PYTHON:-.venv/bin/python}
started=$SECONDS
limit=470

say() { echo "gpu.sh: $*"; }
stop() { say "$*" >&2; exit 2; }

command -v "$python" > /dev/null || stop "no $python: run 'make build' first, or set PYTHON."
"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2> /dev/null \
  || stop "PyTorch sees no CUDA device here: run this on a machine with a GPU and a CUDA build of PyTorch."
command -v nvcc > /dev/null || stop "no nvcc on PATH: install the CUDA toolkit of PyTorch's CUDA version."

mkdir -p "$folder"
failed=()

# step SECONDS NAME COMMAND...: within its own limit and that of the whole.
step() {
  local most=$1 name=$2 left=$((limit - (SECONDS - started)))
  shift 2
  if ((left < 10)); then
    say "$name: left out, the eight minutes are over"
    failed+=("$name (not run)")
    return
  fi
  ((most < left)) || most=$left
  if timeout "$most" "$@" > "$folder/$name.log" 2>&1; then
    say "$name: passed ($((SECONDS - started)) s)"
  else
    say "$name: FAILED, see $folder/$name.log"
    failed+=("$name")
  fi
}

step 200 build env FORCE_CUDA=1 "$python" setup.py build_ext --inplace
step 90 verify "$python" -m lirank_ext verify --device cuda --json "$folder/verify.json"
step 60 graph "$python" -m pytest -q tests/test_cuda_graph.py
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    step 60 "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$python" tests/test_cuda_graph.py
  done
else
  failed+=("sanitizers (no compute-sanitizer on PATH)")
fi
step 150 bench "$python" -m lirank_ext bench --device cuda --quick --json "$folder/bench.json"

if ((${#failed[@]})); then
  say "next: mend ${failed[*]} (logs in $folder), then run this again."
  exit 1
fi
say "next: compare $folder/bench.json with the targets and run 'python -m lirank_ext bench --device cuda --peers'."
