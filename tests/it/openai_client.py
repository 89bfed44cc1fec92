"""The openai client against a nunatak server: what a user of it would write. Arguments: base URL, model."""
import math
import sys

from openai import NotFoundError, OpenAI, UnprocessableEntityError

url, model = sys.argv[1:]
client = OpenAI(base_url=url, api_key="none", max_retries=0)
assert [m.id for m in client.models.list()] == [model]

ask = [{"role": "user", "content": "Who built the Fram?"}]
whole = client.chat.completions.create(model=model, messages=ask, temperature=0)
message = whole.choices[0].message
assert message.role == "assistant" and "Archer" in message.content, message
citation = message.annotations[0].url_citation
assert citation.url.startswith("passage:p0#bytes=") and citation.end_index == len(message.content), citation
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens > 0

chunks = list(client.chat.completions.create(model=model, messages=ask, stream=True))
assert "".join(c.choices[0].delta.content or "" for c in chunks) == message.content
assert chunks[-1].choices[0].finish_reason == "stop"

# The client asks for base64 and decodes it.
vectors = client.embeddings.create(model=model, input=["a moulin", "the Fram"]).data
assert [v.index for v in vectors] == [0, 1]
assert abs(math.sqrt(sum(x * x for x in vectors[1].embedding)) - 1) < 1e-3 and len(vectors[1].embedding) == 384

for wrong, error in [({"model": "other"}, NotFoundError), ({"n": 3}, UnprocessableEntityError)]:
    try:
        client.chat.completions.create(**{"model": model, "messages": ask, **wrong})
        raise SystemExit(f"{wrong} was taken")
    except error as refused:
        assert refused.body["message"], refused
print("ok")
