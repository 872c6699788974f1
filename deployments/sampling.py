"""Top-k and top-p of a whole batch with one sort, or none: for transformers' continuous batching.

The library (5.23) sorts the vocabulary twice in every pass, whatever the requests ask for. One
sort tells both; and where no CUDA graph stands in for what is written here, the vocabulary is
ordered only as far as the largest top-k needs, and not at all for requests that draw from all
of it.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingTopKLogitsWarper,
    ContinuousBatchingTopPLogitsWarper,
)

NO_BOUND = sys.maxsize


def sort_once(processors: list[Any]) -> None:
    """Replaces the library's processors for top-k and top-p, one after the other, by ours."""
    for place, processor in enumerate(processors):
        if isinstance(processor, ContinuousBatchingTopKLogitsWarper):
            top_k = TopK(processor)
            top_p = TopKAndTopP(processors[place + 1], top_k=top_k)
            processors[place : place + 2] = top_k, top_p
            return
    raise ValueError("there is no top-k among the processors")


class TopK(ContinuousBatchingTopKLogitsWarper):  # type: ignore[misc] # transformers is untyped
    """Takes the requests' values, and leaves the scores to `TopKAndTopP`."""

    largest = NO_BOUND
    """Of this pass. None in one that only reads prompts: nobody wants its scores."""
    values: torch.Tensor

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> torch.Tensor:
        """Returns each request's top-k; int32 of shape [requests]."""
        values: torch.Tensor = super().prepare_tensor_args(requests_with_new_token)
        self.largest = max(values.tolist(), default=NO_BOUND)
        return values

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Returns the scores as they are."""
        self.values = tensor_arg
        return scores


class TopKAndTopP(ContinuousBatchingTopPLogitsWarper):  # type: ignore[misc] # as above
    """Both, one after the other: of tokens with the same score as the k-th, no more than k."""

    smallest = 1.0
    """Of this pass."""

    def __init__(self, replaced: Any, *, top_k: TopK) -> None:
        """Takes over from the library's top-p.

        Args:
            replaced: that one.
            top_k: who comes before.
        """
        super().__init__(replaced)
        self._top_k = top_k

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> torch.Tensor:
        """Returns each request's top-p; float32 seen as int32, of shape [requests]."""
        values: torch.Tensor = super().prepare_tensor_args(requests_with_new_token)
        self.smallest = min(values.view(torch.float32).tolist(), default=1.0)
        return values

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Returns the scores, minus infinity for what is not to be drawn.

        Args:
            scores: [tokens, vocabulary].
            tensor_arg: as `prepare_tensor_args` made it, of as many tokens or more.
        """
        tokens, vocabulary = scores.shape
        count = vocabulary
        # What a graph replays has to be right for any request.
        if scores.device.type == "cpu":
            count = min(self._top_k.largest, vocabulary)
            if count == vocabulary and self.smallest >= 1:
                return scores
        top_k = self._top_k.values[:tokens].unsqueeze(-1)
        top_p = tensor_arg[:tokens].view(torch.float32).unsqueeze(-1)
        ordered, order = (
            torch.sort(scores, dim=-1, descending=True)
            if count == vocabulary
            else torch.topk(scores, count, dim=-1)
        )
        beyond = torch.arange(count, device=scores.device) >= top_k
        probabilities = ordered.masked_fill(beyond, -torch.inf).softmax(dim=-1)
        # Of a token and all that are less likely.
        together = probabilities.flip(-1).cumsum(dim=-1).flip(-1)
        dropped = beyond | (together <= 1 - top_p)
        dropped[:, : self.min_tokens_to_keep] = False
        return scores.masked_fill(
            torch.ones_like(scores, dtype=torch.bool).scatter(-1, order, dropped),
            self.filter_value,
        )
