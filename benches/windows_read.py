"""How many windows a run of `nunatak eval` read, and how many of its predictions are those of another run over the same questions.

    python3 benches/windows_read.py runs/first [runs/other]
"""

import json
import sys
from pathlib import Path


def predictions(folder):
    with open(Path(folder) / "predictions.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    run = [p for p in predictions(sys.argv[1]) if p["trace"]["packed"]]
    read = [len(p["trace"]["said"]) for p in run]
    offered = [max(packed["window"] for packed in p["trace"]["packed"]) for p in run]
    first_only = sum(count == 1 for count in read) / len(run)
    print(
        f"{sum(read) / len(run):.2f} of {sum(offered) / len(run):.2f} windows, "
        f"the first only for {100 * first_only:.1f}%; n {len(run)}"
    )
    if len(sys.argv) == 3:
        other = {p["id"]: p["prediction"] for p in predictions(sys.argv[2])}
        both = [p for p in run if p["id"] in other]
        print(f"{sum(p['prediction'] == other[p['id']] for p in both)} of {len(both)} predictions the same")


if __name__ == "__main__":
    main()
