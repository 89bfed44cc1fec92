"""Recall@10 and time of filtered dense search, against comparing with all vectors, over two servers on one index.

    python3 benches/filter.py wikim nunatak nq-dev.jsonl

`wikim` is the index of a corpus whose n-th line got the fields n, hundredth, tenth and half (n modulo 100, 10 and 2).
"""
import json, subprocess, sys, time, urllib.request
index, binary, questions = sys.argv[1:4]
qs=[json.loads(l)["question"] for l in open(questions)][:200]
FILTERS={"1%":"hundredth=7","10%":"tenth=3","50%":"half=1","100%":None}
def serve(port, *more):
    p=subprocess.Popen([binary,"serve","-q","--index",index,"--listen",f"127.0.0.1:{port}","--mode","dense","--rerank","none",*more],stdout=subprocess.DEVNULL,stderr=subprocess.DEVNULL)
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready"); return p
        except Exception: time.sleep(0.3)
def ask(port,q,f):
    body={"question":q,"k":10}
    if f: body["filter"]=f
    r=urllib.request.Request(f"http://127.0.0.1:{port}/v1/search",json.dumps(body).encode())
    t=time.time(); h=json.load(urllib.request.urlopen(r))["hits"]; return [x["passage_id"] for x in h],1000*(time.time()-t)
a=serve(7011); b=serve(7012,"--exact")
for name,f in FILTERS.items():
    found=total=0; ta=[];tb=[]
    for q in qs:
        x,t1=ask(7011,q,f); y,t2=ask(7012,q,f); ta.append(t1); tb.append(t2)
        found+=len(set(x)&set(y)); total+=len(y)
    ta.sort(); tb.sort()
    print(f"{name:5} {f}: recall@10 {found/total:.4f}, p50 {ta[100]:.1f} ms, compared with all {tb[100]:.1f} ms, n {len(qs)}",flush=True)
a.terminate(); b.terminate()
