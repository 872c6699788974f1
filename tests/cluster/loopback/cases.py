"""Each pipeline once: what a caller gives, what the worker gets, and what it answers."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.loopback.pipelines import CAPABILITIES, PIPELINES
from tests.cluster.loopback.wire import MODEL, MP4, PNG, WAV, Caller, Reply, file_part, images

FILE = bytes(range(256)) * 3 + b"\r\n--"
NUMBERS = {name: number for number, name in CAPABILITIES.items()}
MESSAGES = [{"role": "user", "content": "hello"}]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
COMPLETION = {
    "id": "chat-1",
    "model": MODEL,
    "created": 1_700_000_000,
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}
    ],
    "usage": USAGE,
}
TRANSCRIPT = {"text": "a b", "chunks": [{"timestamp": [0, 1.5], "text": "a b"}]}
PNG_PART = file_part("00000001.png", PNG)
MP4_PART = file_part("00000001.mp4", MP4, "video/mp4")
WAV_PART = file_part("00000001.wav", WAV, "audio/wav")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One pipeline: what a caller gives, what the worker gets, and what it answers."""

    pipeline: str
    fields: Sequence[tuple[str, str]] = ()
    body: Any = None
    """In place of a form."""
    sent: str
    """The request as the worker gets it."""
    document: dict[str, Any]
    files: tuple[bytes, ...] = ()
    data: bytes = b""
    """What the file of the answer holds."""


CASES = [
    Case(
        pipeline="image-to-image",
        fields=[
            ("prompt", "a <b>"),
            ("strength", "0.80"),
            ("guidance_scale", "2"),
            ("image_guidance_scale", "1.5e0"),
            ("loras", '{"a/b": 1.0}'),
            ("negative_prompt", ""),
            ("num_images_per_prompt", "0"),
            ("num_inference_steps", "20"),
            ("safety_check", "f"),
            ("seed", "-5"),
            ("surprise", "1"),
        ],
        sent='{"guidance_scale":2,"image":null,"image_guidance_scale":1.5,'
        r'"loras":"{\"a/b\": 1.0}","model_id":"acme/painter","negative_prompt":"",'
        r'"num_images_per_prompt":1,"num_inference_steps":20,"prompt":"a \u003cb\u003e",'
        '"safety_check":false,"seed":-5,"strength":0.8}',
        document=images("00000001.png"),
        files=(PNG_PART,),
        data=PNG,
    ),
    Case(
        pipeline="image-to-video",
        fields=[
            ("width", "1024"),
            ("height", "576"),
            ("fps", "8"),
            ("motion_bucket_id", "127"),
            ("noise_aug_strength", "0.02"),
            ("num_inference_steps", "25"),
            ("safety_check", "true"),
            ("seed", "1"),
            ("seed", "2"),
        ],
        sent='{"fps":8,"height":576,"image":null,"model_id":"acme/painter",'
        '"motion_bucket_id":127,"noise_aug_strength":0.02,"num_inference_steps":25,'
        '"safety_check":true,"seed":1,"width":1024}',
        document=images("00000001.mp4"),
        files=(MP4_PART,),
        data=MP4,
    ),
    Case(
        pipeline="upscale",
        sent='{"image":null,"model_id":"acme/painter","prompt":""}',
        document=images("00000001.png"),
        files=(PNG_PART,),
        data=PNG,
    ),
    Case(
        pipeline="audio-to-text",
        fields=[("return_timestamps", "word"), ("metadata", '{"duration":"12"}')],
        sent=r'{"audio":null,"metadata":"{\"duration\":\"12\"}","model_id":"acme/painter",'
        '"return_timestamps":"word"}',
        document=TRANSCRIPT,
    ),
    Case(
        pipeline="segment-anything-2",
        fields=[
            ("point_coords", "[[1,2]]"),
            ("point_labels", "[1]"),
            ("box", "[0,0,1,1]"),
            ("mask_input", "[[0]]"),
            ("multimask_output", "True"),
            ("return_logits", "1"),
            ("normalize_coords", "FALSE"),
        ],
        sent='{"box":"[0,0,1,1]","image":null,"mask_input":"[[0]]","model_id":"acme/painter",'
        '"multimask_output":true,"normalize_coords":false,"point_coords":"[[1,2]]",'
        '"point_labels":"[1]","return_logits":true}',
        document={"masks": "[[[1]]]", "scores": "[0.5]", "logits": "[[[0.1]]]"},
    ),
    Case(
        pipeline="image-to-text",
        fields=[("prompt", "what is it?")],
        sent='{"image":null,"model_id":"acme/painter","prompt":"what is it?"}',
        document={"text": "a cat"},
    ),
    Case(
        pipeline="llm",
        body={
            "messages": [{"role": "user", "content": "a & b", "name": "x"}, {"content": None}],
            "temperature": 0.7,
            "top_p": 1,
            "top_k": -1,
        },
        sent=r'{"max_tokens":256,"messages":[{"content":"a \u0026 b","role":"user"},'
        '{"content":"","role":""}],"model":"acme/painter","stream":false,"temperature":0.7,'
        '"top_k":-1,"top_p":1}',
        document=COMPLETION,
    ),
    Case(
        pipeline="text-to-speech",
        body={"text": "", "description": "a calm voice"},
        sent='{"description":"a calm voice","model_id":"acme/painter","text":""}',
        document={"audio": {"url": "00000001.wav"}},
        files=(WAV_PART,),
        data=WAV,
    ),
]
BY_NAME = {case.pipeline: case for case in CASES}


def start(caller: Caller, case: Case) -> asyncio.Task[Reply]:
    """Posts a case's request in the background."""
    if case.body is not None:
        return asyncio.create_task(caller.generate(case.body, pipeline=case.pipeline))
    field = PIPELINES[case.pipeline].file
    return asyncio.create_task(caller.upload(case.pipeline, FILE, case.fields, field=field))
