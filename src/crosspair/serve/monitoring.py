"""Prometheus metrics: requests and their latency by route, batches, the queue, the gallery's size."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
METHODS = {"GET", "POST", "HEAD"}


class Monitor:
    """Counts for one service; several in a process don't mix."""

    def __init__(self, images: int, waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter(
            "crosspair_requests", "Requests answered.", ("method", "route", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "crosspair_request_seconds", "Time to answer.", ("route",), buckets=SECONDS, registry=self._registry
        )
        self._batch_size = Histogram(
            "crosspair_batch_size", "Queries in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self._registry
        )
        self._batch_seconds = Histogram(
            "crosspair_batch_seconds", "Time to answer a batch.", buckets=SECONDS, registry=self._registry
        )
        Gauge("crosspair_gallery_images", "Images in the gallery.", registry=self._registry).set(images)
        gauge = Gauge("crosspair_waiting_queries", "Queries that wait for a batch.", registry=self._registry)
        gauge.set_function(waiting)

    def batch(self, queries: int, seconds: float) -> None:
        """Note a batch that was answered."""
        self._batch_size.observe(queries)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class Monitoring:
    """ASGI middleware that tells a Monitor of each request."""

    def __init__(self, app: ASGIApp, *, monitor: Monitor) -> None:
        self.app = app
        self.monitor = monitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        status = "none"  # the client was gone, or the application failed

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, send_and_see)
        finally:
            # The route's pattern, not the path: a stranger must not be able to make new series.
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.monitor.requests.labels(method, route, status).inc()
            self.monitor.seconds.labels(route).observe(time.perf_counter() - start)
