#!/bin/bash
# All there is to measure on a GPU, from the folder that pack.sh made, without a network:
#
#     FOLDER/run.sh [OUT]
#
# OUT gets the raw results (default: FOLDER/out). CUDA 13 and cuDNN 9 are looked for where the loader looks and in Python's packages.
set -u
cd "$(dirname "$0")"
out=$(realpath -m "${1:-out}")
mkdir -p "$out"
export NUNATAK_HOME=$PWD/home NUNATAK_OFFLINE=1
export ORT_DYLIB_PATH=$(ls "$PWD"/ort/libonnxruntime.so.* | head -1)
packages=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null)
for folder in "$packages"/nvidia/*/lib; do [ -d "$folder" ] && LD_LIBRARY_PATH=$folder:${LD_LIBRARY_PATH:-}; done
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}
# A step that hangs ends by itself; what it printed is kept, and the next one runs.
step() { echo "== $1"; local file=$out/$1.txt; shift; timeout 120 "$@" >"$file" 2>&1; local rc=$?; tail -n "${lines:-12}" "$file" | cut -c1-400; [ $rc = 0 ] || echo "ended with $rc"; }
{ nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader; grep -m1 'model name' /proc/cpuinfo; nproc; } | tee "$out/machine.txt"
corpus=$(ls corpus.jsonl*)
step doctor ./nunatak doctor --device cuda
lines=30 step models ./gpu cuda
step index-cuda ./nunatak index build --index index-cuda --corpus "$corpus" --device cuda -q
for device in cuda cpu; do
    begin=$(date +%s.%N)
    lines=14 step "eval-$device" ./nunatak eval --index index-cuda --questions questions.jsonl --limit "${LIMIT:-60}" --out "$out/eval-$device" --device $device -q
    echo "seconds, loading included: $(python3 -c "import time; print(round(time.time() - $begin, 1))")" | tee -a "$out/eval-$device.txt"
done
