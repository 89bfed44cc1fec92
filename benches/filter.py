"""Recall@10 and time of filtered dense search, against comparing with all vectors, over two servers on one index.

    python3 benches/filter.py wikim nunatak nq-dev.jsonl

`wikim` is the index of a corpus whose n-th line got the fields n, hundredth, tenth and half (n modulo 100, 10 and 2).
"""
import json, os, statistics, subprocess, sys, time, urllib.request

index, binary, questions = sys.argv[1:4]
qs = [json.loads(line)["question"] for line in open(questions)][:200]
FILTERS = {"1%": "hundredth=7", "10%": "tenth=3", "50%": "half=1", "100%": None}
WAIT = 600  # seconds for a server to be ready
running = []


def serve(*more):
    """Start a server on a port of its own, which it names itself: no other server is taken for it."""
    words = ["serve", "-q", "--json", "--index", index, "--listen", "127.0.0.1:0"]
    words += ["--mode", "dense", "--rerank", "none", *more]
    own = {name: value for name, value in os.environ.items() if name != "NUNATAK_API_KEY"}
    p = subprocess.Popen([binary, *words], env=own, stdout=subprocess.PIPE, text=True)
    running.append(p)
    said = p.stdout.readline()
    if not said:
        sys.exit(f"the server ended with {p.wait()}")
    url, end = "http://" + json.loads(said)["listening"], time.monotonic() + WAIT
    while time.monotonic() < end:
        if p.poll() is not None:
            sys.exit(f"the server ended with {p.returncode}")
        try:
            urllib.request.urlopen(url + "/ready", timeout=10)
            return url
        except OSError:
            time.sleep(0.3)
    sys.exit(f"the server was not ready in {WAIT} s")


def ask(url, question, only):
    body = {"question": question, "k": 10}
    if only:
        body["filter"] = only
    request = urllib.request.Request(url + "/v1/search", json.dumps(body).encode())
    began = time.perf_counter()
    hits = json.load(urllib.request.urlopen(request))["hits"]
    return {hit["passage_id"] for hit in hits}, 1000 * (time.perf_counter() - began)


try:
    graph, everything = serve(), serve("--exact")
    for name, only in FILTERS.items():
        found = total = 0
        times, exact_times = [], []
        for question in qs:
            got, ms = ask(graph, question, only)
            best, exact_ms = ask(everything, question, only)
            times.append(ms)
            exact_times.append(exact_ms)
            found += len(got & best)
            total += len(best)
        p50, exact_p50 = statistics.median(times), statistics.median(exact_times)
        said = f"recall@10 {found/total:.4f}, p50 {p50:.1f} ms, compared with all {exact_p50:.1f} ms, n {len(qs)}"
        print(f"{name:5} {only}: {said}", flush=True)
finally:
    for p in running:
        p.terminate()
        p.wait()
