#!/usr/bin/env bash
# Makes what travels to a GPU machine without a network, on a CPU machine with nvcc (some minutes):
#
#   .dev/            wheels that the GPU machine's image lacks, small enough to carry; bitsandbytes with one library of its many
#   lorahub_edge/    the two extensions for CPython 3.12
#   bench/lease.sh   a shorter path to bench/gpu/lease.sh
#
# PYTHON312 names a Python 3.12; CUDAARCHS the GPU (90-real: H100 and H200); BITSANDBYTES_CUDA the library that is kept.
# What lies in .dev already is not fetched again: remove it when constraints.txt has changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p .dev

"${PYTHON312:-python3.12}" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12) and "PYTHON312 must name a Python 3.12")'
"${PYTHON312:-python3.12}" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/python" -m pip --quiet --disable-pip-version-check)

# Evaluations and `adapt` need these; torch, transformers and what they bring are the image's.
missing=()
for package in bitsandbytes cma datasets dill directsearch lorahub multiprocess nevergrad; do
  compgen -G ".dev/$package-*.whl" >/dev/null || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  "${pip[@]}" download --no-deps --only-binary :all: --constraint constraints.txt --dest "$scratch/wheels" "${missing[@]}"
  for wheel in "$scratch"/wheels/*.whl; do
    "$scratch/venv/bin/python" bench/gpu/carry.py "$wheel" .dev --library "libbitsandbytes_cuda${BITSANDBYTES_CUDA:-130}.so"
  done
fi

"${pip[@]}" install --constraint constraints.txt cmake ninja pybind11 scikit-build-core
CUDAARCHS=${CUDAARCHS:-90-real} LORAHUB_EDGE_CUDA=ON \
  "${pip[@]}" wheel --no-build-isolation --no-deps --wheel-dir "$scratch/built" .
"$scratch/venv/bin/python" bench/gpu/carry.py "$scratch"/built/lorahub_edge-*.whl .dev --extensions lorahub_edge
printf 'exec bash "$(dirname "${BASH_SOURCE[0]}")/gpu/lease.sh" "$@"\n' >bench/lease.sh
ls -l lorahub_edge/*cpython-312*.so .dev
