#!/bin/bash
# Gather in a folder what run.sh needs on a machine with a GPU and no network:
#
#     benches/gpu/pack.sh FOLDER CORPUS QUESTIONS
#
# Needs `nunatak setup --device cuda` before. CORPUS is what gets indexed there, QUESTIONS (with `answers`) what gets asked.
set -euo pipefail
folder=${1:?a folder} corpus=${2:?a corpus} questions=${3:?questions}
home=${NUNATAK_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/nunatak}
runtime=$(ls -d "$home"/runtime/onnxruntime-gpu-* | tail -1)
mkdir -p "$folder/home/sources" "$folder/ort"
target=$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')
cargo build --release --locked
cp "$target/release/nunatak" "$folder/nunatak"
bench=$(cargo bench --locked --no-run --bench gpu --message-format json | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "gpu":
        print(message["executable"])')
cp "$bench" "$folder/gpu"
strip "$folder/nunatak" "$folder/gpu"
cp -r "$home"/sources/. "$folder/home/sources/"
cp "$runtime"/libonnxruntime* "$folder/ort/"
case $corpus in *.zst) cp "$corpus" "$folder/corpus.jsonl.zst" ;; *) cp "$corpus" "$folder/corpus.jsonl" ;; esac
cp "$questions" "$folder/questions.jsonl"
cp "$(dirname "$0")/run.sh" "$folder/"
du -sh "$folder"
