"""The questions of a file without those of another, by id: to train on what is not kept for measuring.

    python3 without.py nq.jsonl heldout.jsonl > nq-fit.jsonl
"""
import json, sys

out = {json.loads(line)["id"] for line in open(sys.argv[2], encoding="utf-8")}
for line in open(sys.argv[1], encoding="utf-8"):
    if json.loads(line)["id"] not in out:
        sys.stdout.write(line)
