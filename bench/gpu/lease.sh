#!/usr/bin/env bash
# What a GPU that is lent for a quarter of an hour is asked, most telling first. Nothing is built, installed or fetched:
# bench/gpu/prepare.sh laid what is needed. Each step writes its result to $OUT before the next begins.
#
#   bench/gpu/lease.sh first     does it work: facts, kernels, whole runs, graphs, the ops' times, one large evaluation
#   bench/gpu/lease.sh second    what it costs: `adapt` on the large shape, graphs off, lorahub, counters, memcheck
#
# $OUT (default /tmp/out) gets steps.jsonl, logs.txt, ops-gpu.jsonl and adapt-gpu.jsonl; $WORK (/tmp/work) is scratch.
# PYTHON (python3) has torch, transformers and pytest.
set -uo pipefail
part=${1:-}
case $part in first | second) ;; *) echo "usage: bench/gpu/lease.sh first|second" >&2 && exit 2 ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${OUT:-/tmp/out} work=${WORK:-/tmp/work} python=${PYTHON:-python3}
mkdir -p "$out" "$work/site"
export PYTHONPATH=$PWD:$work/site PYTHONUNBUFFERED=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false LORAHUB_EDGE_CACHE=$work/cache
for wheel in .dev/*.whl; do [ -e "$wheel" ] && "$python" -m zipfile -e "$wheel" "$work/site"; done
failed=0

# step NAME SECONDS COMMAND...: runs it with a limit, shows the end of what it says, notes how it went.
step() {
  local name=$1 limit=$2 began=$EPOCHREALTIME code
  shift 2
  echo "===== $name"
  timeout --kill-after=5 "$limit" "$@" 2>&1 | tee "$work/$name.log" | tail -n "${TAIL:-12}" | cut -c1-1500
  code=${PIPESTATUS[0]}
  printf '{"step": "%s", "exit_code": %d, "seconds": %.1f, "limit_s": %d}\n' "$name" "$code" \
    "$(awk "BEGIN{print $EPOCHREALTIME - $began}")" "$limit" | tee -a "$out/steps.jsonl"
  { echo "===== $name ($code)" && cat "$work/$name.log"; } >>"$out/logs.txt"
  [ "$code" -eq 0 ] || failed=1
}

tests=(tests/kernels/test_cuda.py tests/kernels/test_cuda_twins.py tests/kernels/test_cuda_inject.py
  tests/kernels/test_cuda_linear.py)
pytest=("$python" -m pytest -q -rs --noconftest -W default -p no:cacheprovider --maxfail=25 --tb=short)
bench=("$python" -m)
make_model=("${bench[@]}" bench.gpu.model "$work")
adapt=("${bench[@]}" bench.adapt "$work" --device cuda --parts evaluation --shapes large --rounds 1 --threads 8)

first() {
  "${make_model[@]}" >"$work/model.log" 2>&1 & # on the CPU's cores, while the GPU is tested
  TAIL=30 step facts 60 bash -c 'nvidia-smi --query-gpu=name,driver_version,memory.used --format=csv,noheader
    "$0" -c "import torch, transformers, numpy; print(torch.__version__, transformers.__version__, numpy.__version__)"
    "$0" -m lorahub_edge.cli doctor' "$python"
  TAIL=25 step kernels 100 "${pytest[@]}" "${tests[@]}"
  TAIL=20 step e2e 80 "$python" bench/gpu/e2e.py
  TAIL=15 step graphs 40 "${pytest[@]}" tests/adaptation/test_graphs.py -k cuda_records
  TAIL=80 step ops 80 "${bench[@]}" bench.ops_gpu --out "$out/ops-gpu.jsonl"
  wait && cat "$work/model.log"
  TAIL=15 step large 110 "${adapt[@]}" --contenders ours bitsandbytes --out "$out/adapt-gpu.jsonl"
}

second() {
  step model 110 "${make_model[@]}"
  step adapt 90 "$python" -m lorahub_edge.cli adapt --base "$work/large" \
    --modules "$work/large-20-modules-rank-16" --examples "$work/task-80-6.jsonl" \
    --budget 40 --no-null-control --device cuda --out "$work/run" --overwrite
  cp "$work/run/manifest.json" "$out/"
  step large-off 60 env LORAHUB_EDGE_CUDA_GRAPHS=off "${adapt[@]}" --contenders ours --out "$out/adapt-gpu-off.jsonl"
  step large-torch 60 env LORAHUB_EDGE_INT8_PRODUCT=torch "${adapt[@]}" --contenders ours --out "$out/adapt-gpu-torch.jsonl"
  step large-fused 60 env LORAHUB_EDGE_INT8_PRODUCT=fused "${adapt[@]}" --contenders ours --out "$out/adapt-gpu-fused.jsonl"
  step lorahub 50 "${adapt[@]}" --contenders lorahub --out "$out/adapt-gpu.jsonl"
  TAIL=40 step counters 60 ncu --clock-control none -c 40 \
    -k 'regex:compose_kernel|inject.*kernel|epilogue_kernel|linear_kernel|quantize_kernel' \
    --metrics "gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,$(
      echo sm__{warps_active.avg.pct_of_peak_sustained_active,throughput.avg.pct_of_peak_sustained_elapsed} | tr ' ' ,)" \
    "${bench[@]}" bench.ops_gpu --ops compose_factors --out "$work/counted.jsonl"
  step memcheck 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \
    --print-limit 20 "${pytest[@]}" -x "${tests[@]}" -k "33-33 or misaligned or beside"
}

"$part"
exit "$failed"
