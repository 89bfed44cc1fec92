#!/usr/bin/env bash
# Requests that Schemathesis makes up from /openapi.json, against a running server: what the description promises and
# the server does not keep, and the other way round. Run it from the repository's root:
#
#     cargo build --release
#     benches/peers/schemathesis.sh
#
# It makes its own virtual environment under target/, indexes the demo's passages in a temporary folder, serves them on
# a free port (writable, no vectors, no re-ranker, answers of 4 tokens, so that a request is cheap), runs all checks in
# all phases with a fixed seed, and stops the server: half a minute in all. It fails if a check fails, if the server no
# longer answers after that, or if its log has a panic. NUNATAK names another binary than target/release/nunatak;
# NUNATAK_HOME is where the models are, which are fetched once if they are not there. Further options go to `st run`
# and win over those here:
#
#     benches/peers/schemathesis.sh --max-examples 200 --include-path /v1/search
#
# What it does not show: the good replies of /v1/embeddings and /v1/rerank, which want an index with vectors and a
# re-ranker; and routes that the description leaves out. And one thing is let pass: 422 for a body that fits the
# description. A schema cannot say that a filter parses, that a question is more than blanks, that a stream and a
# confidence exclude each other, or that a passage has an id under one of three names. A wrong refusal with 422 is
# therefore not found here.
set -euo pipefail

nunatak=${NUNATAK:-target/release/nunatak}
venv=target/schemathesis-venv
version=4.32.5
corpus=src/cli/demo/passages.jsonl

[[ -f $corpus ]] || { echo "run this from the repository's root" >&2; exit 2; }
[[ -x $nunatak ]] || { echo "there is no $nunatak: cargo build --release" >&2; exit 2; }
nunatak=$(realpath "$nunatak")

if [[ ! -x $venv/bin/st ]] || [[ $("$venv/bin/st" --version) != *"$version"* ]]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$version"
fi
st=$(realpath -s "$venv/bin/st")

# The server is on this machine: no proxy stands between. And it asks for no key.
export no_proxy=127.0.0.1 NO_PROXY=127.0.0.1
unset NUNATAK_API_KEY

work=$(mktemp -d)
server=
finish() {
    if [[ -n $server ]]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap finish EXIT

"$nunatak" index build --no-dense --index "$work/index" --corpus "$corpus" >&2
"$nunatak" serve --json --index "$work/index" --rerank none --listen 127.0.0.1:0 --writable --passages 1 \
    --max-answer 4 >"$work/bound" 2>"$work/log" &
server=$!

url=
for _ in $(seq 600); do
    kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; echo "the server ended" >&2; exit 1; }
    [[ -n $url ]] || url=$(sed -n 's/.*"listening": *"\([^"]*\)".*/http:\/\/\1/p' "$work/bound")
    if [[ -n $url ]] && curl --silent --fail --max-time 5 --output /dev/null "$url/ready"; then
        ready=1
        break
    fi
    sleep 0.5
done
[[ -n ${ready:-} ]] || { cat "$work/log" >&2; echo "the server was not ready in 5 minutes" >&2; exit 1; }

cat >"$work/schemathesis.toml" <<'TOML'
# All that counts as accepted by default, and 422: the head of schemathesis.sh says why.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "422", "429", "5xx"]

# All that counts as refused by default, and 413, with which a question that is too long is refused.
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "428", "429", "5xx"]
TOML

# Bodies as they are made up would hardly ever name the index that is served, or hold a passage with an id, and nearly
# all would be refused. So about every second body does.
cat >"$work/hooks.py" <<'PYTHON'
import schemathesis


def put(record, key, value):
    """Set what is a text already, if its length is even."""
    if isinstance(record.get(key), str) and len(record[key]) % 2 == 0:
        record[key] = value


def objects(body, key):
    """The objects in a list that the body may have."""
    items = body.get(key)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict):
        put(body, "index", "index")
        put(body, "model", "index")
        for message in objects(body, "messages"):
            put(message, "role", "user")
        for number, passage in enumerate(objects(body, "passages")):
            if len(passage) % 2 == 0:
                passage.update(id=f"made-up-{number}", text="An island of ice and rock.")
    return body
PYTHON

failed=0
(
    cd "$work" && SCHEMATHESIS_HOOKS=hooks "$st" --config-file schemathesis.toml run "$url/openapi.json" --checks all \
        --max-examples 60 --seed 1 --request-timeout 60 --continue-on-failure --generation-database none --no-color "$@"
) || failed=$?

question='{"question": "Who discovered Bouvet Island?", "k": 1}'
curl --silent --show-error --fail --max-time 60 --output /dev/null "$url/live"
curl --silent --show-error --fail --max-time 60 --output /dev/null --data "$question" "$url/v1/search"
if grep -F panicked "$work/log" >&2; then
    failed=1
fi
exit "$failed"
