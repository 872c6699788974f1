"""llm on a real engine with a tiny model: many at once, counted, bounded, cancelled, streamed."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.continuous_batching import GPU_CACHE_SHARE, Engine, Sampling, _Mailbox
from deployments.errors import (
    BadRequest,
    InferenceFailed,
    LivepeerRayError,
    ModelBroken,
    ReplicaBroken,
    ReplicaError,
)
from deployments.llm import MAX_CHUNK_CHARS, Detokenizer, LLMReplica
from deployments.model_args import ModelArgs
from deployments.schemas.llm import MAX_CONTENT_CHARS, LLMChunk, LLMRequest, LLMResult

TINY_LLM = "livepeer-ray/tiny-qwen3"
CONTEXT_TOKENS = 2048
PATIENCE_S = 60.0


def args(models_dir: Path, model_id: str = TINY_LLM) -> ModelArgs:
    return ModelArgs(pipeline="llm", model_id=model_id, models_dir=models_dir)


def chat(content: str = "What is a GPU?", **parameters: Any) -> LLMRequest:
    """Returns a request whose answer is the same every time, unless told otherwise."""
    payload = {"messages": [{"role": "user", "content": content}], "temperature": 0, **parameters}
    return LLMRequest.parse(payload)


@pytest.fixture(scope="module")
def replica(tiny_models_dir: Path) -> Iterator[LLMReplica]:
    loaded = LLMReplica(args=args(tiny_models_dir))
    yield loaded
    loaded.close()


async def answer(replica: LLMReplica, request: LLMRequest) -> LLMResult:
    return (await replica.run(request)).result


async def streamed(replica: LLMReplica, request: LLMRequest) -> list[LLMChunk]:
    return [chunk async for chunk in replica.stream(request)]


def generated(replica: LLMReplica, content: str, max_tokens: int) -> list[int]:
    """What transformers' ordinary generate says, greedily: the answer's tokens."""
    encoded = replica._tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    model = replica._engine._manager.model
    output = model.generate(**encoded, do_sample=False, max_new_tokens=max_tokens)
    return list(output[0, encoded["input_ids"].shape[1] :].tolist())


async def idle(replica: LLMReplica) -> None:
    """Waits until the engine holds no request."""
    scheduler = replica._engine._manager.batch_processor.scheduler
    async with asyncio.timeout(30):
        while scheduler.has_pending_requests():
            await asyncio.sleep(0.01)


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
    assert replica._engine.running == 3
    for stream in streams:
        await stream.aclose()
    assert replica._engine.running == 0


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


async def test_an_answer_that_ends_by_itself_stops(
    replica: LLMReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = generated(replica, "stop", 8)
    # The tiny model does not know when to stop, so its fourth token is made the end.
    monkeypatch.setattr(replica._engine._manager.generation_config, "eos_token_id", tokens[3])
    monkeypatch.setattr(replica._engine, "end_tokens", frozenset({tokens[3]}))
    said = tokens[: tokens.index(tokens[3])]
    result = await answer(replica, chat("stop", max_tokens=8))
    assert result.finish_reason == "stop"
    assert result.text == replica._tokenizer.decode(said)
    assert result.usage.completion_tokens == len(said) + 1
    *_, last = await streamed(replica, chat("stop", max_tokens=8))
    assert (last.finish_reason, last.usage) == ("stop", result.usage)


@pytest.mark.parametrize("max_tokens", [1, 2, 70])
async def test_a_stream_says_the_same(replica: LLMReplica, max_tokens: int) -> None:
    request = chat("streams", max_tokens=max_tokens)
    whole = await answer(replica, request)
    chunks = await streamed(replica, request)
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [chunk.finish_reason for chunk in chunks] == [""] * (len(chunks) - 1) + ["length"]
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
    await idle(replica)
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


@pytest.mark.parametrize("text", ["añb 東京 🦙🦙 naïve", "\n\tfour  spaces    end ", "🦙"])
def test_text_never_breaks_inside_a_character(replica: LLMReplica, text: str) -> None:
    tokens = replica._tokenizer(text)["input_ids"]
    assert len(tokens) > len(text) or text.isascii()
    detokenizer = Detokenizer(replica._tokenizer)
    pieces = [
        detokenizer.feed(tokens[:end], last=end == len(tokens)) for end in range(1, len(tokens) + 1)
    ]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_is_never_finished_is_shown_as_such(replica: LLMReplica) -> None:
    tokens = replica._tokenizer("a🦙")["input_ids"][:-1]
    detokenizer = Detokenizer(replica._tokenizer)
    assert detokenizer.feed(tokens[:1], last=False) == "a"
    assert detokenizer.feed(tokens, last=False) == ""
    assert detokenizer.feed(tokens, last=True) == "\ufffd"


async def test_a_reader_that_goes_away_frees_its_slot(replica: LLMReplica) -> None:
    stream = replica.stream(chat(max_tokens=2000))
    await anext(stream)
    await stream.aclose()
    await idle(replica)
    running = asyncio.create_task(replica.run(chat(max_tokens=2000)))
    while not replica._engine.running:
        await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    assert replica._engine.running == 0
    await idle(replica)
    await replica.check_health()


@contextmanager
def hanging(replica: LLMReplica) -> Iterator[threading.Event]:
    """The model's next pass does not end before the context does; the event tells that it began."""
    began, go_on = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        began.set()
        go_on.wait(PATIENCE_S)

    hook = replica._engine._manager.model.register_forward_pre_hook(hang)
    try:
        yield began
    finally:
        hook.remove()
        go_on.set()


async def test_an_answer_past_its_deadline_is_stopped(replica: LLMReplica) -> None:
    stream = replica.stream(chat(max_tokens=500), timeout_s=2.0)
    chunks = [await anext(stream)]
    with hanging(replica):
        chunks += [chunk async for chunk in stream]
        with pytest.raises(InferenceFailed, match="stopped after 0 s: its time was over"):
            await replica.run(chat(), timeout_s=0.05)
        with pytest.raises(InferenceFailed, match="stopped after 0 s: its time was over"):
            await anext(replica.stream(chat(), timeout_s=0.05))
    assert chunks[-1].finish_reason == "length"
    assert 0 < chunks[-1].usage.completion_tokens < 500
    await idle(replica)


async def test_an_engine_that_hangs_is_given_up(
    tiny_models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = LLMReplica(args=args(tiny_models_dir))
    with hanging(replica) as began:
        running, waiting = (asyncio.create_task(replica.run(chat())) for _ in range(2))
        await asyncio.to_thread(began.wait, PATIENCE_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await replica.check_health()
        assert not waiting.done()
        monkeypatch.setattr("deployments.llm.STUCK_S", 0.0)
        with pytest.raises(LivepeerRayError, match="the engine is stuck, it should have dropped"):
            await replica.check_health()
        # It can be run again on another replica, at once.
        with pytest.raises(ReplicaBroken, match="the engine is stuck"):
            await waiting
    with pytest.raises(LivepeerRayError, match="the engine is stuck"):
        await replica.check_health()
    replica.close()


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


@pytest.mark.parametrize(
    ("parameters", "parameter"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x" * MAX_CONTENT_CHARS}] * 2}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"stream": "perhaps"}, "stream"),
    ],
)
def test_bad_parameters_are_named(parameters: dict[str, Any], parameter: str) -> None:
    with pytest.raises(BadRequest, match=rf"^{parameter}: "):
        chat(**parameters)


def test_the_defaults_are_the_runners() -> None:
    request = LLMRequest.parse({"messages": [{"role": "user", "content": "hi"}]})
    assert (request.model, request.max_tokens, request.temperature) == ("", 256, 0.7)
    assert (request.top_p, request.top_k, request.stream) == (1.0, -1, False)
    assert not request.wants_stream
    assert "hi" not in repr(request)


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
    assert result.usage.completion_tokens == 8
    await replica.check_health()


async def test_sampling_does_what_it_says(replica: LLMReplica) -> None:
    greedy = await answer(replica, chat(max_tokens=20))
    for same in ({"temperature": 1e-9}, {"temperature": 2, "top_k": 1}, {"top_p": 0}):
        assert (await answer(replica, chat(max_tokens=20, **same))).text == greedy.text
    hot = [await answer(replica, chat(max_tokens=20, temperature=2)) for _ in range(2)]
    assert len({greedy.text, *(result.text for result in hot)}) == 3


def test_greedy_leaves_one_token_even_of_two_with_the_same_score() -> None:
    greedy = Sampling.of(temperature=0, top_k=50, top_p=0.9, vocabulary=100)
    assert (greedy.top_k, greedy.top_p) == (1, 0.0)
    everything = Sampling.of(temperature=1, top_k=-1, top_p=1, vocabulary=100)
    assert (everything.top_k, everything.top_p) == (100, 1.0)


async def test_an_answer_may_fill_the_context_and_no_more(replica: LLMReplica) -> None:
    content = "word " * 380
    room = CONTEXT_TOKENS - (await answer(replica, chat(content, max_tokens=1))).usage.prompt_tokens
    assert 0 < room < 200
    result = await answer(replica, chat(content, max_tokens=10**9, top_k=1, temperature=1))
    assert result.usage.completion_tokens <= room
    assert result.finish_reason == "length" or result.usage.completion_tokens < room


async def test_several_that_fill_the_cache_all_come_to_their_end(replica: LLMReplica) -> None:
    contents = [f"{number} " + "word " * 380 for number in range(12)]
    expected = [generated(replica, content, 5) for content in contents[:2]]
    results = await asyncio.gather(*(answer(replica, chat(c, max_tokens=5)) for c in contents))
    assert [result.usage.completion_tokens for result in results] == [5] * 12
    for tokens, result in zip(expected, results, strict=False):
        assert result.text == replica._tokenizer.decode(tokens, skip_special_tokens=True)


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


async def test_a_router_that_died_leaves_nobody_waiting(
    tiny_models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = LLMReplica(args=args(tiny_models_dir))

    def stumble(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(replica._engine, "_deliver", stumble)
    with pytest.raises(ReplicaBroken, match="KeyError: 'a bug'"):
        await answer(replica, chat(max_tokens=1))
    with pytest.raises(LivepeerRayError, match="the engine has ended"):
        await replica.check_health()
    replica.close()


async def test_an_engine_that_died_fails_its_requests_and_the_health_check(
    tiny_models_dir: Path,
) -> None:
    replica = LLMReplica(args=args(tiny_models_dir))
    await replica.check_health()
    async with aclosing(replica.stream(chat(max_tokens=2000))) as stream:
        await anext(stream)
        # What a request past our checks would do: the library's loop trips over it.
        poison = replica._engine.generate(
            [1, 2],
            max_tokens=4,
            sampling=Sampling(temperature=1.0, top_k=10**6, top_p=1.0),
            stream=False,
        )
        with pytest.raises(ReplicaBroken):
            await anext(poison)
        with pytest.raises(ReplicaBroken):
            [chunk async for chunk in stream]
    async with asyncio.timeout(30):
        while replica._engine.fault is None:
            await asyncio.sleep(0.01)
    with pytest.raises(ReplicaBroken, match="the engine has ended"):
        await replica.run(chat())
    with pytest.raises(LivepeerRayError, match="the engine has ended"):
        await replica.check_health()
    replica.close()


async def test_an_engine_that_breaks_down_is_told_from_a_request_that_failed(
    tiny_models_dir: Path,
) -> None:
    engine = LLMReplica(args=args(tiny_models_dir))._engine
    output = SimpleNamespace(request_id="one", error="why")

    async def failure() -> BaseException:
        mailbox = engine._mailboxes["one"] = _Mailbox()
        engine._deliver(output)
        with pytest.raises(ReplicaError, match="why") as caught:
            await mailbox.take()
        return caught.value

    assert type(await failure()) is InferenceFailed
    engine.close()
    assert type(await failure()) is ReplicaBroken


def test_models_that_share_a_gpu_leave_each_other_memory(
    replica: LLMReplica, tiny_models_dir: Path
) -> None:
    half = LLMReplica(args=args(tiny_models_dir).model_copy(update={"gpu_share": 0.5}))
    # A CPU's cache has a fixed size; what a GPU's would take stands in the library's settings.
    shares = [
        each._engine._manager.continuous_batching_config.max_memory_percent
        for each in (replica, half)
    ]
    assert shares == [GPU_CACHE_SHARE, GPU_CACHE_SHARE / 2]
    half.close()


def test_a_model_that_the_engine_cannot_run_is_broken(
    tiny_models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"models--{TINY_LLM.replace('/', '--')}"
    shutil.copytree(tiny_models_dir / folder, tmp_path / folder, symlinks=True)

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("Invalid group type: mamba")

    monkeypatch.setattr(Engine, "__init__", refuse)
    with pytest.raises(ModelBroken, match=r"continuous batching does not run .* mamba"):
        LLMReplica(args=args(tmp_path))
