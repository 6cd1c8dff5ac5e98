#!/usr/bin/env bash
# Everything a machine with a GPU has to show, in eight minutes: benchmarks/gpu.sh [FOLDER]
# Builds, captures graphs, verifies every op on CUDA, runs the sanitizers, measures beside floors.
# Logs and figures, eight files at most, go to FOLDER (default: gpu-results). The last line says
# what to do next. PYTHON names the interpreter; else .venv's, or python3 where that sees no GPU.
# Nothing is installed: where the package is not, links in a folder of its own stand in for it.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-gpu-results}")
started=$SECONDS
limit=${GPU_SH_SECONDS:-470}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export scratch

say() { echo "gpu.sh: $*"; }
stop() { say "$*" >&2; exit 2; }
sees_gpu() { "$1" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; }

for python in ${PYTHON:-.venv/bin/python python3}; do
  command -v "$python" > /dev/null && sees_gpu "$python" && break
  python=
done
[ -n "$python" ] || stop "no CUDA device seen by PyTorch: run this on a machine with a GPU and a CUDA build of PyTorch, or set PYTHON."
export python

# lirank_ext.kernels and .benchmarks lie beside the package: an editable install maps them.
if ! "$python" -c 'import lirank_ext.kernels, lirank_ext.benchmarks' 2> /dev/null; then
  mkdir -p "$scratch/site/lirank_ext"
  for name in lirank_ext/* kernels benchmarks; do
    ln -s "$PWD/$name" "$scratch/site/lirank_ext/$(basename "$name")"
  done
  export PYTHONPATH="$scratch/site${PYTHONPATH:+:$PYTHONPATH}"
  export PYTHONSAFEPATH=1 # or -m would find ./lirank_ext first, which is not the whole package
fi

mkdir -p "$folder"
failed=()

# step SECONDS NAME COMMAND...: within its own limit and that of the whole.
step() {
  local most=$1 name=$2 left=$((limit - (SECONDS - started)))
  shift 2
  if ((left < 10)); then
    say "$name: left out, the eight minutes are over"
    failed+=("$name (not run)")
    return 1
  fi
  ((most < left)) || most=$left
  if timeout -k 5 "$most" "$@" > "$folder/$name.log" 2>&1; then
    say "$name: passed ($((SECONDS - started)) s)"
  else
    say "$name: FAILED, see $folder/$name.log"
    failed+=("$name")
    return 1
  fi
}

build() {
  FORCE_CUDA=1 "$python" setup.py build_ext --inplace || return
  # Links to what has just been built, where links stand in for the package.
  if [ -d "$scratch/site" ]; then ln -sf "$PWD"/lirank_ext/*.so "$scratch/site/lirank_ext/"; fi
  "$python" -m lirank_ext info
}

# Compiling Triton kernels is most of it, so ops go side by side; a table for each.
verify() {
  "$python" -c 'from lirank_ext.verify import public_ops; print(*public_ops(), sep="\n")' \
    | xargs -P "$(nproc)" -I OP sh -c \
      '"$python" -m lirank_ext verify --device cuda --op OP > "$scratch/OP.txt" 2>&1; rc=$?
       cat "$scratch/OP.txt"; exit $rc'
}

sanitize() { compute-sanitizer --tool "$1" --error-exitcode 1 "$python" tests/test_cuda_graph.py; }
export -f build verify sanitize

if command -v nvcc > /dev/null; then
  step 200 build bash -c build
else
  say "no nvcc on PATH: Triton kernels and the references serve, unless the library was brought along"
  "$python" -m lirank_ext info > "$folder/build.log" 2>&1
fi
step 70 graph "$python" -m pytest -q tests/test_cuda_graph.py tests/test_triton_net.py -k "not interpreted"
step 130 verify bash -c verify
# Half of what is left goes to the figures; what has begun ends, for which half a minute is kept.
left=$(((limit - (SECONDS - started)) / 2))
step $((left + 30)) bench "$python" -m lirank_ext.benchmarks.gpu_run \
  --seconds $((left > 15 ? left : 15)) --json "$folder/bench.json"
sed -n '/of floor/,$p' "$folder/bench.log" 2> /dev/null
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    step 90 "$tool" bash -c "sanitize $tool"
  done
else
  failed+=("sanitizers (no compute-sanitizer on PATH)")
fi

if ((${#failed[@]})); then
  say "next: mend ${failed[*]} (logs in $folder), then run this again."
  exit 1
fi
say "next: compare $folder/bench.json with the targets; 'python -m lirank_ext bench --device cuda --peers' takes longer and adds torch.compile and the peers."
