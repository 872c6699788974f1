"""What every replica shares: one model, loaded and warmed up, that runs one request after another.

A pipeline subclasses `Replica` with five methods. Three kinds of threads share the work:

- Serve's event loop takes requests and answers health checks, so neither waits for the model.
- One model thread loads, warms up and infers. Pipelines are not thread-safe, and some
  compiled ones must run in the thread that warmed them up.
- Two encoder threads turn raw output into files while the model computes the next request.

A request whose caller is gone leaves the queue at once; in the model it stops at the next step,
as does one whose time is over. A model that does not come to a next step is stuck, and the
replica says so when its health is asked, for Serve to replace it.

A pipeline that can may compute several requests at once (`share`, `infer_together`). One of them
never fails because of another: what fails together is computed again, each request alone.
"""

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

from deployments.after_failure import probe_device, without_frames
from deployments.batching import Share, Waiting, WaitingLine
from deployments.errors import (
    InferenceFailed,
    LivepeerRayError,
    OutOfMemory,
    ReplicaBroken,
    ReplicaError,
)
from deployments.hardware import GPU, own_gpus
from deployments.loading import find_snapshot, model_errors, one_line, quiet_libraries
from deployments.model_args import ModelArgs
from deployments.model_files import weight_files
from deployments.read_ahead import read_ahead
from deployments.schemas.base import Completed, Request, Result
from deployments.start_up import StartUp, libraries_are_there, no_garbage_collection
from deployments.time_left import Cancelled, TimeLeft, longest
from deployments.vitals import Vitals, read_vitals

logger = logging.getLogger("ray.serve")

ENCODER_THREADS = 2
"""Enough to encode while the model computes, few enough to leave it the CPU to launch kernels."""

DEADLINE_S = 600.0
"""For a caller that names no deadline."""

STUCK_S = 60.0
"""How long the model may go on after it should have stopped. Its longest step, the decoding of a
large image on a slow device, takes a fraction of this."""

RequestT = TypeVar("RequestT", bound=Request)
RawT = TypeVar("RawT")
ResultT = TypeVar("ResultT", bound=Result)


class Replica(ABC, Generic[RequestT, RawT, ResultT]):
    """One model on one device. Serve constructs it and calls `run` and `check_health`.

    Args:
        args: the model and its flags.

    Raises:
        ModelError: the model is missing, broken or too large; the message is for the operator.
    """

    def __init__(self, *, args: ModelArgs) -> None:
        self.start_up = StartUp()
        self.args = args
        self.replica_id = _replica_id()
        self._device_fault: str | None = None
        self._inferring: Sequence[TimeLeft] = ()
        self._line = WaitingLine[RequestT, RawT]()
        self._model_executor = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._encoders = ThreadPoolExecutor(ENCODER_THREADS, thread_name_prefix="encode")
        self._model_thread = self._model_executor.submit(threading.current_thread).result()
        self._model_executor.submit(self._start).result()

    def find(self) -> Path:
        """Returns the directory that holds the model's files.

        Raises:
            ModelNotFound: with the command that downloads them.
        """
        return find_snapshot(self.args.model_id, self.args.models_dir)

    def weights(self, snapshot: Path) -> Sequence[Path]:
        """Returns the files to read before `load` asks for them."""
        return weight_files(snapshot)

    @abstractmethod
    def load(self, snapshot: Path) -> None:
        """Loads the model from the directory that holds its files, in the model thread.

        Whatever this raises is reported as a `ModelError`. Says `imported` when it has its
        libraries, and marks `weights` in `start_up` when they are read.
        """

    def imported(self) -> None:
        """To be called by `load` between the imports and the model."""
        self.start_up.mark("imports")
        libraries_are_there()

    @abstractmethod
    def warm_up_request(self) -> RequestT:
        """Returns a small real request that the model runs before it is offered to anyone."""

    @abstractmethod
    def infer(self, request: RequestT, raise_if_cancelled: Callable[[], None]) -> RawT:
        """Computes, in the model thread.

        Args:
            request: what to compute.
            raise_if_cancelled: to be called between the steps of a long computation.

        Raises:
            BadRequest: nobody could serve this request.
        """

    def share(self, request: RequestT) -> Share | None:  # noqa: ARG002 (for those that override it)
        """Returns on which terms a request may be computed with others; None: it never is."""
        return None

    def infer_together(
        self, requests: Sequence[RequestT], raise_if_cancelled: Callable[[], None]
    ) -> Sequence[RawT]:
        """Computes requests of one `Share.kind` at once, in the model thread.

        Args:
            requests: at least one.
            raise_if_cancelled: as for `infer`; raises when none of them is waited for.
        """
        return [self.infer(request, raise_if_cancelled) for request in requests]

    @abstractmethod
    def encode(self, request: RequestT, raw: RawT) -> ResultT:
        """Turns what `infer` returned into the result, in an encoder thread."""

    @abstractmethod
    def describe(self, request: RequestT) -> str:
        """Returns the size of a request in words, for logs and for out-of-memory answers."""

    def warm_up(self, request: RequestT) -> None:
        """Runs a request once, so that the first one of a caller finds all things made."""
        self.encode(request, self.infer(request, lambda: None))

    async def run(self, request: RequestT, *, timeout_s: float = DEADLINE_S) -> Completed[ResultT]:
        """Runs one request; others wait for the model in the order of their arrival.

        Args:
            request: what to compute.
            timeout_s: from now to the result. The work stops then even if the caller that should
                cancel it has died.

        Raises:
            BadRequest: nobody could serve this request.
            InferenceFailed: the model raised or the time was over, with the reason in one line.
            ReplicaBroken: the GPU is out of reach since an earlier request.
        """
        left = TimeLeft(timeout_s=timeout_s)
        waiting = Waiting[RequestT, RawT](request=request, left=left)
        self._line.join(waiting)
        # One look at the line for each request: a look may serve several, and a later one none.
        self._model_executor.submit(self._serve_next)
        try:
            # Cancelling the wrapping future cancels one that still waits.
            started_s, raw = await asyncio.wrap_future(waiting.done)
            result = await asyncio.wrap_future(self._encoders.submit(self._encode, request, raw))
        except Cancelled:
            raise InferenceFailed(f"stopped after {timeout_s:.0f} s: its time was over") from None
        finally:
            left.end()
            # An error refers to this frame; if this led back to it, both would wait for the
            # garbage collector, and the request's files with them.
            del waiting
        return Completed(
            result=result, replica=self.replica_id, compute_s=time.perf_counter() - started_s
        )

    async def check_health(self) -> None:
        """Raises when this replica can serve no more; Serve then replaces it.

        Never touches the device: a call from this thread could disturb the model's.
        """
        if not self._model_thread.is_alive():
            raise LivepeerRayError(f"{self.args.model_id}: the model thread has ended")
        if self._device_fault is not None:
            raise LivepeerRayError(f"{self.args.model_id}: {self._device_fault}")
        inferring = self._inferring
        if inferring and (left_s := longest(inferring)) < -STUCK_S:
            raise LivepeerRayError(
                f"{self.args.model_id}: the model is stuck, it should have stopped "
                f"{-left_s:.0f} s ago"
            )

    async def gpus(self) -> list[GPU]:
        """Tells the GPUs that this replica has, as they are now."""
        return await asyncio.to_thread(own_gpus)

    async def vitals(self) -> Vitals:
        """Returns how this replica started and what it takes; waits for a running request."""
        return await asyncio.wrap_future(
            self._model_executor.submit(read_vitals, self.start_up.seconds)
        )

    def close(self) -> None:
        """Ends the threads; requests that wait are dropped. A process that exits needs no close."""
        self._line.close()
        self._model_executor.shutdown(cancel_futures=True)
        self._encoders.shutdown(cancel_futures=True)

    def _start(self) -> None:
        """Loads and warms up, in the model thread."""
        args = self.args
        # Before the imports, so that a missing model is reported within a second.
        snapshot = self.find()
        self.start_up.mark("find")
        read_ahead(lambda: self.weights(snapshot))
        with no_garbage_collection():
            quiet_libraries()
            with model_errors(args.model_id, snapshot):
                self.load(snapshot)
                self.start_up.mark("device")
                request = self.warm_up_request()
                self.warm_up(request)
        self.start_up.mark("warm-up")
        logger.info(
            "%s is ready after %s, warmed up with %s",
            args.model_id,
            self.start_up,
            self.describe(request),
        )

    def _serve_next(self) -> None:
        """Computes the request that came first and those that share with it."""
        group = self._line.leave(self._terms)
        if len(group) > 1 and self._serve_together(group):
            return
        for waiting in group:
            self._serve_alone(waiting)

    def _terms(self, request: RequestT) -> Share | None:
        """Returns `share`; alone where that fails, as on a GPU that is lost: then that is told."""
        try:
            return self.share(request)
        except Exception:
            logger.exception("not known whether it shares: %s", self.describe(request))
            return None

    def _serve_together(self, group: Sequence[Waiting[RequestT, RawT]]) -> bool:
        """Returns whether it went well: otherwise none of them is answered yet."""
        began = time.perf_counter()
        try:
            raws = self._attempt(group)
        except Exception as error:  # noqa: BLE001 (whatever it is, alone it concerns one of them)
            logger.warning("%d requests together: %s; now each alone", len(group), one_line(error))
            return False
        for waiting, raw in zip(group, raws, strict=True):
            waiting.done.set_result((began, raw))
        return True

    def _serve_alone(self, waiting: Waiting[RequestT, RawT]) -> None:
        began = time.perf_counter()
        try:
            try:
                (raw,) = self._attempt([waiting])
            except OutOfMemory:
                logger.warning("again, with the memory that was kept for other sizes freed")
                (raw,) = self._attempt([waiting])
        except Cancelled as error:
            logger.info("stopped what nobody waits for: %s", self.describe(waiting.request))
            waiting.done.set_exception(without_frames(error))
        except Exception as error:  # noqa: BLE001 (whatever it is, the caller must hear of it)
            waiting.done.set_exception(without_frames(error))
        else:
            waiting.done.set_result((began, raw))

    def _attempt(self, group: Sequence[Waiting[RequestT, RawT]]) -> Sequence[RawT]:
        """Infers once, and leaves no tensor behind when that fails."""
        import torch

        requests = [waiting.request for waiting in group]
        lefts = [waiting.left for waiting in group]

        def raise_if_cancelled() -> None:
            if longest(lefts) <= 0:
                raise Cancelled

        if self._device_fault is not None:
            raise ReplicaBroken(self._device_fault)
        failure: ReplicaError
        size = " and ".join(self.describe(request) for request in requests)
        self._inferring = lefts
        try:
            raise_if_cancelled()
            if len(requests) > 1:
                return self.infer_together(requests, raise_if_cancelled)
            return [self.infer(requests[0], raise_if_cancelled)]
        except (Cancelled, ReplicaError):
            raise
        except torch.OutOfMemoryError as error:
            logger.error("out of memory at %s: %s", size, one_line(error))  # noqa: TRY400 (a kept traceback would keep the tensors)
            failure = OutOfMemory(f"out of GPU memory at {size}; ask for less of it")
        except Exception as error:
            logger.exception("inference failed at %s", size)
            failure = InferenceFailed(one_line(error))
            self._device_fault = probe_device()
        finally:
            self._inferring = ()
        # Only out here: in the handlers the traceback's frames still hold the tensors.
        if self._device_fault is None:
            torch.cuda.empty_cache()
        raise failure

    def _encode(self, request: RequestT, raw: RawT) -> ResultT:
        try:
            return self.encode(request, raw)
        except Exception as error:
            logger.exception("encoding failed at %s", self.describe(request))
            raise InferenceFailed(one_line(error)) from None


def _replica_id() -> str:
    """Returns Serve's id of this replica, `in-process` outside Serve."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return str(serve.get_replica_context().replica_id.unique_id)
    except RayServeException:
        return "in-process"
