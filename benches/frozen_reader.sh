#!/usr/bin/env bash
# What re-ranking does to a frozen reader (table 2 of "Standing on the Shoulders of Giant Frozen Language Models" in our
# setting): recall at the reader's input and exact match, without and with the re-ranker, behind every first stage and for
# every reader budget, each pair with its paired test.
#
#     benches/frozen_reader.sh INDEX QUESTIONS N OUT
#
# Asks the first N questions. NUNATAK names the program. Runs that are complete are not made again. It does not show latency:
# passages are warm from the runs before.
set -euo pipefail
index=$1 questions=$2 n=$3 out=$4
nunatak=${NUNATAK:-nunatak}
mkdir -p "$out"
for mode in bm25 dense hybrid; do
    for budget in 2048 1024 512; do
        for rerank in none reranker; do
            run=$out/$mode-$budget-$rerank
            [ -e "$run/report.json" ] || "$nunatak" eval --index "$index" --questions "$questions" --limit "$n" \
                --mode "$mode" --budget "$budget" --rerank "$rerank" --out "$run" --resume > /dev/null
        done
        "$nunatak" eval compare "$out/$mode-$budget-none" "$out/$mode-$budget-reranker" > "$out/$mode-$budget.txt"
        "$nunatak" eval compare "$out/$mode-$budget-none" "$out/$mode-$budget-reranker" --json > "$out/$mode-$budget.json"
    done
done
python3 - "$out" <<'PYTHON'
"""The table, from the comparisons."""
import json
import pathlib
import sys

print("| first stage | budget | recall at the reader | with re-ranker | p | exact match | with re-ranker | p |")
print("| --- | --- | --- | --- | --- | --- | --- | --- |")
for mode in ("bm25", "dense", "hybrid"):
    for budget in (512, 1024, 2048):
        comparison = json.loads(pathlib.Path(sys.argv[1], f"{mode}-{budget}.json").read_text(encoding="utf-8"))
        metrics = {metric["metric"]: metric for metric in comparison["metrics"]}
        recall, exact = metrics["recall_at_reader"], metrics["exact_match"]
        cells = [f"{100 * m['a']:.1f} | {100 * m['b']:.1f} | {m['p']:.3f}" for m in (recall, exact)]
        print(f"| {mode} | {budget:,} | {' | '.join(cells)} |")
PYTHON
