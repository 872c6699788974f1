"""llm on each engine with a tiny model: many at once, counted, bounded, cancelled, streamed."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from deployments.app import replica_class
from deployments.detokenizer import Detokenizer
from deployments.errors import BadRequest
from deployments.llm import MAX_CHUNK_CHARS, LLMReplica
from deployments.llm_engine import Progress
from tests.deployments.chats import (
    CONTEXT_TOKENS,
    TINY_LLM,
    VLLM_IS_HERE,
    answer,
    args,
    chat,
    generated,
    idle,
    streamed,
    write_llm,
)


# That vLLM is skipped, and why, test_vllm_engine.py says once.
@pytest.fixture(scope="module", params=[None, "vllm"] if VLLM_IS_HERE else [None])
def replica(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LLMReplica]:
    directory = tmp_path_factory.mktemp("models")
    write_llm(directory)
    loaded = replica_class("llm", engine=request.param)(args=args(directory))
    assert isinstance(loaded, LLMReplica)
    yield loaded
    loaded.close()


async def test_many_at_once_say_what_each_would_say_alone(replica: LLMReplica) -> None:
    contents = [f"Question number {number}: {'why? ' * number}" for number in range(8)]
    expected = [generated(replica, content, 12 + i) for i, content in enumerate(contents)]
    results = await asyncio.gather(
        *(answer(replica, chat(content, max_tokens=12 + i)) for i, content in enumerate(contents))
    )
    for tokens, result in zip(expected, results, strict=True):
        assert result.text == replica._tokenizer.decode(tokens, skip_special_tokens=True)
        assert result.usage.completion_tokens == len(tokens)
    assert len({result.text for result in results}) > 1


async def test_requests_share_the_engine(replica: LLMReplica) -> None:
    streams = [replica.stream(chat(max_tokens=400)) for _ in range(3)]
    for stream in streams:
        await anext(stream)
    # All three have begun, so none of them waits for another to end.
    assert len(replica._engine._mailboxes) == 3
    for stream in streams:
        await stream.aclose()
    assert not replica._engine._mailboxes


async def test_the_answers_form_and_its_count(replica: LLMReplica) -> None:
    completed = await replica.run(chat("Hello", max_tokens=5))
    document = completed.result.document(())
    prompt = replica._tokenizer("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert document == {
        "id": completed.result.completion.id,
        "model": TINY_LLM,
        "created": completed.result.completion.created_s,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": completed.result.text},
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": len(prompt["input_ids"]),
            "completion_tokens": 5,
            "total_tokens": len(prompt["input_ids"]) + 5,
        },
    }
    assert completed.replica == "in-process"
    assert completed.compute_s > 0


@pytest.mark.parametrize("max_tokens", [1, 2, 70])
async def test_a_stream_says_the_same(replica: LLMReplica, max_tokens: int) -> None:
    request = chat("streams", max_tokens=max_tokens)
    whole = await answer(replica, request)
    chunks = await streamed(replica, request)
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [chunk.finish_reason for chunk in chunks] == [""] * (len(chunks) - 1) + [
        whole.finish_reason
    ]
    assert chunks[-1].text == ""
    assert chunks[-1].usage == whole.usage
    assert len({chunk.completion for chunk in chunks}) == 1
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert {chunk.replica for chunk in chunks} == {"in-process"}
    document = chunks[0].document()
    assert document["choices"][0]["delta"] == {"role": "assistant", "content": chunks[0].text}
    assert document["usage"]["prompt_tokens"] == whole.usage.prompt_tokens


async def test_tokens_that_come_while_the_reader_waits_come_together(replica: LLMReplica) -> None:
    stream = replica.stream(chat("slowly", max_tokens=60))
    await anext(stream)
    (mailbox,) = replica._engine._mailboxes.values()
    while not (isinstance(mailbox._latest, Progress) and mailbox._latest.finished):
        await asyncio.sleep(0.01)
    rest = [chunk async for chunk in stream]
    assert len(rest) <= 2
    assert rest[-1].usage.completion_tokens == 60


async def test_chunks_are_split_before_their_lines_grow_too_long(
    replica: LLMReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "x" * (2 * MAX_CHUNK_CHARS + 1)
    monkeypatch.setattr(Detokenizer, "feed", lambda *_, last: text if last else "")
    chunks = await streamed(replica, chat(max_tokens=2))
    assert [len(chunk.text) for chunk in chunks] == [MAX_CHUNK_CHARS, MAX_CHUNK_CHARS, 1, 0]


async def test_a_reader_that_goes_away_frees_its_slot(replica: LLMReplica) -> None:
    stream = replica.stream(chat(max_tokens=2000))
    await anext(stream)
    await stream.aclose()
    await idle(replica)
    running = asyncio.create_task(replica.run(chat(max_tokens=2000)))
    while not replica._engine._mailboxes:
        await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    assert not replica._engine._mailboxes
    await idle(replica)
    await replica.check_health()


async def test_cancelling_at_every_moment_harms_nobody(replica: LLMReplica) -> None:
    alone = await answer(replica, chat("steady", max_tokens=60))
    steady = asyncio.create_task(answer(replica, chat("steady", max_tokens=60)))
    for delay in range(12):
        running = asyncio.create_task(replica.run(chat("gone " * 100, max_tokens=300)))
        await asyncio.sleep(delay / 200)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert (await steady).text == alone.text
    await idle(replica)
    await replica.check_health()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"top_k": 100_000}, "top_k: 100000 is more than the"),
        ({"content": "word " * 2_000}, f"messages: .* fit in the context .* {CONTEXT_TOKENS}"),
    ],
)
async def test_what_the_model_cannot_take_is_refused(
    replica: LLMReplica, streaming: bool, parameters: dict[str, Any], why: str
) -> None:
    request = chat(**parameters)
    with pytest.raises(BadRequest, match=why):
        await (streamed(replica, request) if streaming else answer(replica, request))
    assert (await answer(replica, chat(max_tokens=1))).usage.completion_tokens == 1


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 1e-30},
        {"temperature": 2},
        {"temperature": 0.7, "top_p": 0},
        {"temperature": 0.7, "top_p": 1e-30},
        {"temperature": 0.7, "top_k": 0},
        {"temperature": 0.7, "top_k": 1},
        {"temperature": 0.7, "top_k": -1, "top_p": 1},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.5},
    ],
)
async def test_every_sampling_that_is_let_through_works(
    replica: LLMReplica, parameters: dict[str, Any]
) -> None:
    result = await answer(replica, chat(max_tokens=8, **parameters))
    # Of tokens drawn at random the first may be the end.
    assert result.usage.completion_tokens == 8 or result.finish_reason == "stop"
    await replica.check_health()


async def test_sampling_does_what_it_says(replica: LLMReplica) -> None:
    greedy = await answer(replica, chat(max_tokens=20))
    for same in ({"temperature": 1e-9}, {"temperature": 2, "top_k": 1}, {"top_p": 0}):
        assert (await answer(replica, chat(max_tokens=20, **same))).text == greedy.text
    hot = [await answer(replica, chat(max_tokens=20, temperature=2)) for _ in range(2)]
    assert len({greedy.text, *(result.text for result in hot)}) == 3


async def test_an_answer_may_fill_the_context_and_no_more(replica: LLMReplica) -> None:
    content = "word " * 380
    room = CONTEXT_TOKENS - (await answer(replica, chat(content, max_tokens=1))).usage.prompt_tokens
    assert 0 < room < 200
    result = await answer(replica, chat(content, max_tokens=10**9, top_k=1, temperature=1))
    assert result.usage.completion_tokens <= room
    assert result.finish_reason == "length" or result.usage.completion_tokens < room


async def test_a_model_without_a_template_gets_plain_text(
    replica: LLMReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica._tokenizer, "chat_template", None)
    result = await answer(replica, chat("Hello", max_tokens=1))
    expected = replica._tokenizer("user: Hello\nassistant:")["input_ids"]
    assert result.usage.prompt_tokens == len(expected)


async def test_a_template_that_refuses_is_quoted(
    replica: LLMReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{{ raise_exception('System role not supported') }}"
    monkeypatch.setattr(replica._tokenizer, "chat_template", template)
    with pytest.raises(BadRequest, match=r"messages: .* System role not supported"):
        await answer(replica, chat())


async def test_what_would_end_the_engine_is_refused(
    replica: LLMReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some models' tokenizers have tokens that were added without a row for them in the model.
    monkeypatch.setattr(replica._engine, "vocabulary", 50)
    with pytest.raises(BadRequest, match=r"^messages: livepeer-ray/tiny-qwen3 does not know '"):
        await answer(replica, chat("Hello", top_k=-1))
    monkeypatch.undo()
    monkeypatch.setattr(replica._tokenizer, "chat_template", "{{ messages[0].content }}")
    with pytest.raises(BadRequest, match=r"^messages: the chat template .* leaves nothing"):
        await answer(replica, chat(""))
    assert (await answer(replica, chat(max_tokens=1))).usage.completion_tokens == 1
