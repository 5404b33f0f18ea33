#!/usr/bin/env bash
# Everything that needs a GPU, in one go and in about ten minutes: build, test, sanitize, measure.
#
#   bench/gpu.sh [FOLDER]        results and logs go there; default: build/gpu
#
# PYTHON (default python3) needs torch with CUDA, pytest, hypothesis, typer, rich and the build's tools (cmake, ninja,
# pybind11, scikit-build-core); the package is installed into it, editable. nvcc must be on the PATH. CUDAARCHS names
# the architectures to build for; by default the machine's own, since all of them take some minutes on few cores.
# Evaluations need nevergrad, bitsandbytes and 6 GB of disk in TMPDIR; those of lorahub, what it imports.
#
# FOLDER gets steps.jsonl (each step: exit code and seconds), ops-gpu.jsonl and adapt-gpu.jsonl (append them to those in
# bench/results), doctor.json and one log per step. Exit code 1 if a step failed; later steps run all the same, but not
# without a GPU or a build.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(mkdir -p "${1:-build/gpu}" && cd "${1:-build/gpu}" && pwd)
python=${PYTHON:-python3}
tests="tests/kernels/test_cuda.py tests/kernels/test_cuda_twins.py tests/kernels/test_cuda_inject.py"
graphs="tests/adaptation/test_graphs.py -k cuda_records"
failed=0

# step NAME SECONDS COMMAND...: runs it with a limit, keeps its output, notes how it went.
step() {
  local name=$1 limit=$2 started code seconds
  shift 2
  started=$(date +%s)
  timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  seconds=$(($(date +%s) - started))
  printf '{"step": "%s", "exit_code": %d, "seconds": %d, "limit_s": %d}\n' \
    "$name" "$code" "$seconds" "$limit" >>"$out/steps.jsonl"
  printf '== %s: exit code %d after %d s\n' "$name" "$code" "$seconds"
  tail -n "${TAIL:-4}" "$out/$name.log"
  [ "$code" -eq 0 ] || failed=1
  return "$code"
}

# The tests that matter under a sanitizer, which slows each launch down: odd sizes, misaligned arrays, several launches.
# torch's own cache of memory would hide reads behind the end of an array.
sanitized() {
  local tool=$1
  shift
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 \
    "$python" -m pytest -q -x --noconftest -p no:cacheprovider -W default $tests -k "$*"
}

run_doctor() {
  "$python" -m lorahub_edge.cli doctor && "$python" -m lorahub_edge.cli doctor --json >"$out/doctor.json"
}

if [ -z "${CUDAARCHS:-}" ]; then
  CUDAARCHS=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sed -n 1p | tr -d '. ')-real
fi
export CUDAARCHS LORAHUB_EDGE_CUDA=ON python out tests
export -f sanitized run_doctor
: >"$out/steps.jsonl"

step gpu 40 "$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())' || exit 1
step build 150 "$python" -m pip install --quiet --no-build-isolation --no-deps --editable . || exit 1
TAIL=12 step doctor 30 bash -c run_doctor
TAIL=8 step test 120 "$python" -m pytest -q -rs --noconftest -W default $tests tests/cli/test_doctor.py
TAIL=20 step graphs 60 "$python" -m pytest -q -rs --noconftest -W default $graphs
if command -v compute-sanitizer >/dev/null; then
  step memcheck 80 bash -c 'sanitized memcheck "33-33 or misaligned or stack or launch_takes or beside"'
  step racecheck 60 bash -c 'sanitized racecheck "33-257 or misaligned or stack or (groups and 65)"'
else
  echo "== no compute-sanitizer on the PATH: memory and races are not checked"
  failed=1
fi
TAIL=80 step bench 110 "$python" -m bench.ops_gpu --out "$out/ops-gpu.jsonl"
contenders="ours bitsandbytes"
if "$python" -c 'import lorahub.algorithm' >/dev/null 2>&1; then
  contenders+=" lorahub"
else
  echo "== lorahub cannot be imported: ours is measured without it"
  failed=1
fi
work=$(mktemp -d)
TAIL=20 step adapt 240 "$python" -m bench.adapt "$work" --device cuda --parts evaluation --shapes large --rounds 1 \
  --contenders $contenders --out "$out/adapt-gpu.jsonl"
rm -rf "$work"
exit "$failed"
