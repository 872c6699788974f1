"""Top-k and top-p with one sort or none: what they leave is what the library's own leave."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingTopKLogitsWarper,
    ContinuousBatchingTopPLogitsWarper,
)

from deployments.sampling import sort_once

VOCABULARY = 500
ALL = VOCABULARY

Asked = tuple[int, float]
"""top_k and top_p of a request."""


def theirs() -> list[Any]:
    return [
        ContinuousBatchingTopKLogitsWarper(TopKLogitsWarper(50)),
        ContinuousBatchingTopPLogitsWarper(TopPLogitsWarper(0.9)),
    ]


def ours() -> list[Any]:
    processors = theirs()
    sort_once(processors)
    return processors


class Ordered(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch has no types here
    """Notes how many values of each row are put in order."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        name = func.overloadpacket.__name__
        if name in ("sort", "topk"):
            self.counts.append(args[0].shape[-1] if name == "sort" else args[1])
        return func(*args, **(kwargs or {}))


def applied(processors: list[Any], asked: list[Asked], scores: torch.Tensor) -> torch.Tensor:
    """What is left of the scores, as the engine has the processors called."""
    requests: Any = [
        SimpleNamespace(
            state=SimpleNamespace(logit_processor_kwargs={"top_k": top_k, "top_p": top_p})
        )
        for top_k, top_p in asked
    ]
    arguments = [processor.prepare_tensor_args(requests) for processor in processors]
    for processor, argument in zip(processors, arguments, strict=True):
        # The engine's tensor has room for more.
        scores = processor(scores, torch.nn.functional.pad(argument, (0, 3)))
    return scores


@pytest.mark.parametrize(
    ("asked", "ordered"),
    [
        ([(ALL, 1.0)] * 4, []),
        ([(ALL, 1.0), (ALL, 0.9), (7, 1.0), (1, 0.0)], [VOCABULARY]),
        ([(50, 0.9), (7, 1.0), (1, 0.0), (50, 0.1)], [50]),
        ([(1, 0.0)] * 4, [1]),
    ],
)
def test_it_leaves_what_the_library_leaves(asked: list[Asked], ordered: list[int]) -> None:
    scores = torch.randn(len(asked), VOCABULARY, generator=torch.Generator().manual_seed(1)) * 4
    with Ordered() as noted:
        left = applied(ours(), asked, scores.clone())
    assert noted.counts == ordered
    assert torch.equal(left, applied(theirs(), asked, scores.clone()))


def test_of_two_with_the_same_score_greedy_leaves_one() -> None:
    scores = torch.zeros(1, VOCABULARY)
    scores[0, [3, 8]] = 5.0
    (left,) = applied(ours(), [(1, 0.0)], scores).isfinite()
    assert left.sum() == 1
    assert left[3] or left[8]


def test_a_pass_that_draws_nothing_has_scores_all_the_same() -> None:
    processors = ours()
    applied(processors, [(1, 0.0)], torch.zeros(1, VOCABULARY))
    assert applied(processors, [], torch.zeros(1, VOCABULARY)).isfinite().any()


def test_a_library_without_them_is_noticed() -> None:
    with pytest.raises(ValueError, match="no top-k"):
        sort_once([])
