"""Training questions that a run of `train reranker` did not see: neither trained on nor held out for its measure.

    python3 heldout.py runs/reranker/mined.jsonl nq.jsonl 300 squad10.jsonl 200 > heldout.jsonl
"""
import hashlib, json, random, sys

with open(sys.argv[1], encoding="utf-8") as lines:
    next(lines)
    seen = {(m["set"], m["id"]) for m in map(json.loads, lines)}
random.seed(0)
for path, count in zip(sys.argv[2::2], map(int, sys.argv[3::2])):
    data = open(path, "rb").read()
    name = hashlib.sha256(data).hexdigest()[:16]
    questions = [json.loads(line) for line in data.splitlines()]
    unseen = [q for q in questions if (name, q["id"]) not in seen]
    print(f"{len(unseen)} of {len(questions)} in {path} not seen", file=sys.stderr)
    for question in random.sample(unseen, min(count, len(unseen))):
        print(json.dumps(question))
