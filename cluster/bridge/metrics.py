"""What the bridge counts, for Prometheus: `GET /metrics` on its state endpoint.

Jobs come from outside, so nothing of theirs becomes a label: pipelines are those of the registry
and models those of the aiModels.json. What is no such thing is counted with an empty one.
"""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.bridge.journal import Journal
from cluster.bridge.record import JobRecord
from cluster.bridge.state import BridgeState
from deployments.registry import PIPELINES

BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
"""From a refusal to the longest job that an orchestrator waits for."""

MODEL = ("pipeline", "model_id")


class Metrics:
    """Counts finished jobs, and reads the rest when it is asked."""

    def __init__(self, *, read: Callable[[], BridgeState], journal: Journal) -> None:
        """Starts from zero, as every bridge does.

        Args:
            read: the state now.
            journal: of unanswered jobs.
        """
        self._registry = registry = CollectorRegistry()
        registry.register(_Now(read, journal))
        self._jobs = Counter(
            "livepeer_ray_jobs",
            "Jobs by what became of them.",
            (*MODEL, "outcome"),
            registry=registry,
        )
        self._undelivered = Counter(
            "livepeer_ray_jobs_undelivered",
            "Jobs whose answer the orchestrator did not take.",
            MODEL,
            registry=registry,
        )
        self._retries = Counter(
            "livepeer_ray_job_retries",
            "How often a job was started again because its replica was lost.",
            MODEL,
            registry=registry,
        )
        self._total_s = self._histogram(
            "livepeer_ray_job_seconds", "From a job's arrival to the acceptance of its answer."
        )
        self._compute_s = self._histogram(
            "livepeer_ray_job_replica_seconds", "In the replica, of jobs that have a result."
        )
        self._waited_s = self._histogram(
            "livepeer_ray_job_waiting_seconds", "For a slot, of jobs that got one."
        )

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, MODEL, buckets=BUCKETS_S, registry=self._registry)

    def finished(self, record: JobRecord) -> None:
        """Counts a job; its model is set only where it is one of ours."""
        pipeline = record.pipeline if record.pipeline in PIPELINES else ""
        model = (pipeline, record.model_id)
        self._jobs.labels(*model, record.kind).inc()
        self._retries.labels(*model).inc(max(0, record.attempts - 1))
        self._undelivered.labels(*model).inc(not record.delivered)
        self._total_s.labels(*model).observe(record.total_s)
        if record.waited_s is not None:
            self._waited_s.labels(*model).observe(record.waited_s)
        if record.replica:
            self._compute_s.labels(*model).observe(record.compute_s)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _Now(Collector):
    """What is known without counting."""

    def __init__(self, read: Callable[[], BridgeState], journal: Journal) -> None:
        self._read = read
        self._journal = journal

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names of the others are not these, and the state need not be there yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Reads it."""
        state = self._read()
        slots = GaugeMetricFamily("livepeer_ray_slots", "Jobs taken at once.", labels=MODEL)
        in_flight = GaugeMetricFamily(
            "livepeer_ray_jobs_in_flight", "Jobs that hold a slot.", labels=MODEL
        )
        for model in state.models:
            key = (model.pipeline, model.model_id)
            slots.add_metric(key, model.slots)
            in_flight.add_metric(key, model.in_flight)
        up = GaugeMetricFamily(
            "livepeer_ray_registration_up",
            "1 while the worker is registered with the orchestrator.",
            labels=("orchestrator", "way"),
        )
        for registration in state.registrations:
            up.add_metric((registration.orchestrator, registration.way), registration.registered)
        journal = self._journal
        return (
            slots,
            in_flight,
            up,
            GaugeMetricFamily(
                "livepeer_ray_journal_jobs",
                "Unanswered jobs in the journal.",
                value=journal.unanswered,
            ),
            GaugeMetricFamily(
                "livepeer_ray_journal_bytes", "Size of the journal.", value=journal.size_bytes
            ),
        )
