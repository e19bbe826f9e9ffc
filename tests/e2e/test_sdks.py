"""The real client libraries, used as their documentation says."""

import asyncio
import json
import shutil
import subprocess
from decimal import Decimal

import anthropic
import openai
import pytest
from conftest import ROOT, TARGET
from provider import (
    SPEECH, WORDS, Cut, Gate, Reset, Stall, anthropic_error, chat_answer, chat_events, event, fails, message_events, openai_error,
    response_events, stream, whole,
)  # fmt: skip

TEXT = "".join(WORDS)
MESSAGES = [{"role": "user", "content": "What is a weir?"}]


@pytest.fixture
def client(one):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{one.weir.port}/v1", api_key=one.weir.default_key["key"], max_retries=0, timeout=30)


@pytest.fixture
def claude(one):
    return anthropic.Anthropic(base_url=f"http://127.0.0.1:{one.weir.port}", api_key=one.weir.default_key["key"], max_retries=0, timeout=30)


# ---------------------------------------------------------------------------------------------------------- OpenAI, Python


def test_chat_whole(client):
    raw = client.chat.completions.with_raw_response.create(model="m", messages=MESSAGES)
    answer = raw.parse()
    assert answer.choices[0].message.content == TEXT
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (11, 7)
    assert raw.headers["x-provider-used"] == "openai"
    assert Decimal(raw.headers["x-cost-incurred"]) == Decimal("0.000025")


def test_chat_stream_without_usage(client):
    chunks = list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert all(chunk.choices for chunk in chunks), "the event of usage alone is not for this client"
    assert all(chunk.usage is None for chunk in chunks)


def test_chat_stream_with_usage(client):
    chunks = list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 18


def test_chat_stream_helper(client):
    with client.chat.completions.stream(model="m", messages=MESSAGES) as events:
        for _ in events:
            pass
        assert events.get_final_completion().choices[0].message.content == TEXT


def test_chat_async(one):
    async def run():
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{one.weir.port}/v1", api_key=one.weir.default_key["key"], max_retries=0) as client:

            async def ask():
                answer = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

            return await asyncio.gather(*(ask() for _ in range(20)))

    assert asyncio.run(run()) == [TEXT] * 20


def test_tool_calls(one, client):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
    one.openai.queue(whole(chat_answer(text=None, tool_calls=[call])))
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]
    answer = client.chat.completions.create(model="m", messages=MESSAGES, tools=tools)
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"city":"Paris"}'
    assert one.openai.last.json["tools"] == tools

    def chunk(delta, reason=None):
        return event({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    steps = [chunk({"role": "assistant", "tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}]})]
    steps += [chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in ('{"ci', 'ty":"', 'Paris"}')]
    one.openai.queue(stream([*steps, chunk({}, "tool_calls"), event("[DONE]")], split=9))
    deltas = client.chat.completions.create(model="m", messages=MESSAGES, tools=tools, stream=True)
    assert "".join(call.function.arguments for part in deltas for call in part.choices[0].delta.tool_calls or []) == '{"city":"Paris"}'


def test_completions(client):
    assert client.completions.create(model="m", prompt="x").choices[0].text == TEXT
    parts = client.completions.create(model="m", prompt="x", stream=True)
    assert "".join(part.choices[0].text for part in parts) == TEXT


def test_responses(client):
    answer = client.responses.create(model="m", input="What is a weir?")
    assert (answer.output_text, answer.usage.output_tokens) == (TEXT, 7)
    events = list(client.responses.create(model="m", input="What is a weir?", stream=True))
    assert "".join(one_event.delta for one_event in events if one_event.type == "response.output_text.delta") == TEXT
    assert events[-1].type == "response.completed" and events[-1].response.usage.output_tokens == 7


def test_embeddings(client):
    assert client.embeddings.create(model="m", input="x", encoding_format="float").data[0].embedding == [0.25, -0.5, 1e-9]
    assert client.embeddings.create(model="m", input="x").data[0].embedding == [0.25, -0.5]


def test_moderations(client):
    assert client.moderations.create(model="m", input="x").results[0].flagged is False


def test_images(client):
    assert client.images.generate(model="m", prompt="a weir").data[0].b64_json == "aGVsbG8="


def test_speech(client):
    assert client.audio.speech.create(model="m", voice="alloy", input="A weir.").content == SPEECH
    with client.audio.speech.with_streaming_response.create(model="m", voice="alloy", input="A weir.") as answer:
        assert b"".join(answer.iter_bytes()) == SPEECH


def test_transcriptions_and_translations(one, client):
    audio = ("weir.mp3", SPEECH, "audio/mpeg")
    assert client.audio.transcriptions.create(model="m", file=audio).text == TEXT
    assert SPEECH in one.openai.last.body and b"up-model" in one.openai.last.body
    assert client.audio.translations.create(model="m", file=audio).text == TEXT


def test_models(client):
    assert {model.id for model in client.models.list()} == {"m", "c"}
    assert client.models.retrieve("m").id == "m"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


@pytest.mark.parametrize("breaks", [Reset(), Cut(), None], ids=["reset", "cut", "no end"])
def test_the_library_raises_on_death_in_mid_stream(one, client, breaks):
    one.openai.queue(stream([*chat_events()[:6], *([breaks] if breaks else [])]))
    text = ""
    with pytest.raises(openai.APIError) as raised:
        for chunk in client.chat.completions.create(model="m", messages=MESSAGES, stream=True):
            text += chunk.choices[0].delta.content or ""
    assert text == "".join(WORDS[:5])
    assert "openai" in str(raised.value)


def test_the_library_raises_on_death_in_mid_response(one, client):
    one.openai.queue(stream([*response_events()[:6], Reset()]))
    with pytest.raises(openai.APIError):
        list(client.responses.create(model="m", input="x", stream=True))


@pytest.mark.parametrize("build,expected", [
    (lambda one: dict(api_key="wk_" + "A" * 43), openai.AuthenticationError),
    (lambda one: dict(model="no-such-model-at-all"), openai.NotFoundError),
    (lambda one: dict(model="c"), openai.BadRequestError),
    (lambda one: one.openai.queue(fails(500)) and {}, openai.InternalServerError),
    (lambda one: one.openai.queue(fails(400, openai_error("Bad parameter.", "invalid_request_error"))) and {}, openai.BadRequestError),
])  # fmt: skip
def test_refusals_are_the_librarys_own_errors(one, client, build, expected):
    options = build(one)
    asked = client.with_options(api_key=options["api_key"]) if "api_key" in options else client
    with pytest.raises(expected) as raised:
        asked.chat.completions.create(model=options.get("model", "m"), messages=MESSAGES)
    assert raised.value.body["message"]
    assert raised.value.request_id


def test_the_librarys_retry_finds_the_answer(one):
    """429 with Retry-After is waited for by the library itself."""
    key = one.weir.key(rpm=60)
    patient = openai.OpenAI(base_url=f"http://127.0.0.1:{one.weir.port}/v1", api_key=key["key"], max_retries=3, timeout=30)
    for _ in range(3):
        assert patient.chat.completions.create(model="m", messages=MESSAGES).choices


def test_closing_the_stream_cancels_upstream(one, client):
    one.openai.queue(stream([*chat_events()[:6], Stall()]))
    answer = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    next(iter(answer))
    answer.close()
    assert one.openai.last.aborted.wait(5)


# -------------------------------------------------------------------------------------------------------- Anthropic, Python


def test_messages_whole(one, claude):
    answer = claude.messages.create(model="c", max_tokens=100, messages=MESSAGES)
    assert (answer.content[0].text, answer.usage.output_tokens) == (TEXT, 7)
    assert one.anthropic.last.json["model"] == "up-claude"


def test_messages_stream(one, claude):
    one.anthropic.queue(stream(message_events(), split=13))
    with claude.messages.stream(model="c", max_tokens=100, messages=MESSAGES) as events:
        assert "".join(events.text_stream) == TEXT
        assert events.get_final_message().usage.output_tokens == 7


def test_messages_by_bearer_token(one):
    claude = anthropic.Anthropic(base_url=f"http://127.0.0.1:{one.weir.port}", auth_token=one.weir.default_key["key"], max_retries=0)
    assert claude.messages.create(model="c", max_tokens=100, messages=MESSAGES).content[0].text == TEXT


def test_count_tokens(claude):
    assert claude.messages.count_tokens(model="c", messages=MESSAGES).input_tokens == 11


@pytest.mark.parametrize("breaks", [Reset(), Cut(), None], ids=["reset", "cut", "no end"])
def test_anthropics_library_raises_on_death_in_mid_stream(one, claude, breaks):
    one.anthropic.queue(stream([*message_events()[:6], *([breaks] if breaks else [])]))
    with pytest.raises(anthropic.APIStatusError):
        with claude.messages.stream(model="c", max_tokens=100, messages=MESSAGES) as events:
            for _ in events:
                pass


@pytest.mark.parametrize("build,expected", [
    (lambda one: dict(api_key="wk_" + "A" * 43), anthropic.AuthenticationError),
    (lambda one: dict(model="no-such-model-at-all"), anthropic.NotFoundError),
    (lambda one: dict(model="m"), anthropic.BadRequestError),
    (lambda one: one.anthropic.queue(fails(529, anthropic_error("Overloaded", "overloaded_error"))) and {}, anthropic.InternalServerError),
])  # fmt: skip
def test_refusals_are_anthropics_own_errors(one, claude, build, expected):
    options = build(one)
    asked = claude.with_options(api_key=options["api_key"]) if "api_key" in options else claude
    with pytest.raises(expected) as raised:
        asked.messages.create(model=options.get("model", "c"), max_tokens=10, messages=MESSAGES)
    assert raised.value.body["error"]["message"]


# ------------------------------------------------------------------------------------------------------------ OpenAI, Node


def node(one, *words) -> dict:
    """Runs node/sdk.mjs and returns what it printed."""
    folder = TARGET / "e2e-node"
    assert (folder / "node_modules" / "openai").is_dir(), "tests/run installs the client: npm ci in the target folder's e2e-node"
    script = folder / f"sdk-{one.weir.port}.mjs"
    shutil.copy(ROOT / "tests" / "e2e" / "node" / "sdk.mjs", script)
    try:
        words = ["node", str(script), f"http://127.0.0.1:{one.weir.port}/v1", one.weir.default_key["key"], *words]
        done = subprocess.run(words, capture_output=True, text=True, timeout=90)
    finally:
        script.unlink()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_node_everything(one):
    got = node(one, "everything")
    assert got == {
        "chat": TEXT, "stream": TEXT, "streamUsageEvents": 0, "usage": 18, "completion": TEXT, "completionStream": TEXT, "response": TEXT, "responseStream": TEXT,
        "embedding": [0.25, -0.5], "image": "aGVsbG8=", "speech": len(SPEECH), "transcription": TEXT, "models": ["c", "m"], "moderation": False,
    }  # fmt: skip


def test_node_raises_on_death_in_mid_stream(one):
    one.openai.queue(stream([*chat_events()[:6], Reset()]))
    got = node(one, "death")
    assert got["text"] == "".join(WORDS[:5])
    assert got["error"] == "APIError" and "openai" in got["message"]


def test_node_errors(one):
    got = node(one, "errors")
    assert got == {"unknownModel": 404, "badKey": 401}


def test_node_abort_cancels_upstream(one):
    one.openai.queue(stream([*chat_events()[:6], Stall()]))
    assert node(one, "abort") == {"aborted": True}
    assert one.openai.last.aborted.wait(5)


def test_gates_hold_nothing_back_from_the_library(one, client):
    """The library hands a word to its user while the provider is still silent about the next."""
    gate, steps = Gate(), chat_events()
    one.openai.queue(stream([*steps[:3], gate, *steps[3:]]))
    chunks = iter(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
    first = [next(chunks).choices[0].delta.content for _ in range(3)]
    assert first == ["", "A ", "weir "]
    gate.open()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "".join(WORDS[2:])
