"""Talks to a running server through OpenAI's own Python client. Prints a line per check; exit code 1 if one fails.

Usage: openai_client.py http://127.0.0.1:PORT
"""

import sys
import time
import traceback
import urllib.request

import openai

# The demo model copies a device's name and numbers into its answer, so the right answer is known.
TELEMETRY = "edge-cam-07 temp=91C fan=0rpm load=0.42 disk=63% mem=48% uptime=12d"
SECONDS_MAX = 120


def chat(client, model, **options):
    messages = [{"role": "user", "content": TELEMETRY}]
    return client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=80, **options)


def check_models(client, model):
    assert client.models.retrieve(model).id == model


def check_chat(client, model):
    answer = chat(client, model)
    choice = answer.choices[0]
    assert choice.message.role == "assistant", choice
    assert "edge-cam-07" in choice.message.content and "fan" in choice.message.content, choice
    assert choice.finish_reason == "stop", choice
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens, answer.usage


def check_streamed_chat(client, model):
    chunks = list(chat(client, model, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == chat(client, model).choices[0].message.content, text
    assert [c.finish_reason for chunk in chunks for c in chunk.choices][-1] == "stop", chunks[-2:]
    assert chunks[-1].usage.completion_tokens > 1, chunks[-1]
    assert len(chunks) > 3, "the answer came in one piece"


def check_completion(client, model):
    answer = client.completions.create(model=model, prompt="dunlin is", max_tokens=8, temperature=0)
    assert answer.usage.completion_tokens <= 8, answer.usage
    assert answer.choices[0].text, answer


def check_error(client, model):
    try:
        client.chat.completions.create(model=model, messages=[])
    except openai.BadRequestError as error:
        assert error.param and "messages" in error.param, error.body
    else:
        raise AssertionError("a chat without messages was answered")
    try:
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "hi"}])
    except openai.NotFoundError as error:
        assert "no-such-model" in str(error), error
    else:
        raise AssertionError("a model that does not exist answered")


def check_cancelled_stream(client, model):
    # Without an end token the generation goes on for as long as the context allows.
    body = {"ignore_eos": True}
    stream = client.completions.create(model=model, prompt="dunlin", max_tokens=900, stream=True, extra_body=body)
    next(iter(stream))
    assert running(client) == 1, "nothing runs while a stream is read"
    stream.close()
    until = time.monotonic() + SECONDS_MAX
    while running(client) > 0:
        assert time.monotonic() < until, "the generation went on after its reader left"
        time.sleep(0.01)
    total = metric(client, "dunlin_generation_tokens_total")
    assert metric(client, "dunlin_generation_tokens_total") == total, "tokens are generated for nobody"
    check_chat(client, model)


def metric(client, name):
    url = str(client.base_url).removesuffix("/v1/") + "/metrics"
    with urllib.request.urlopen(url, timeout=SECONDS_MAX) as page:
        lines = page.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.split()[:1] == [name])


def running(client):
    return metric(client, "dunlin_requests_running")


def main():
    client = openai.OpenAI(base_url=sys.argv[1].rstrip("/") + "/v1", api_key="none", max_retries=0, timeout=SECONDS_MAX)
    model = client.models.list().data[0].id
    checks = [check_models, check_chat, check_streamed_chat, check_completion, check_error, check_cancelled_stream]
    failed = 0
    for check in checks:
        name = check.__name__.removeprefix("check_")
        try:
            check(client, model)
            print(f"ok {name}", flush=True)
        except Exception:
            failed += 1
            print(f"failed {name}\n{traceback.format_exc()}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
