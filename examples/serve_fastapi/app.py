"""The HTTP side: scores, changed rows, health and metrics. ``serve.py`` starts it.

Settings come from the environment, as every worker is a process of its own: LIRANK_MODELS (the
folder of models), LIRANK_THREADS (of a request, 1 by default), LIRANK_MMAP (0 copies the weights).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import prometheus_client as prometheus
import torch
import updates
from fastapi import Body, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import multiprocess
from served import Busy, Served

from lirank_ext.data.example_rows import example_rows
from lirank_ext.errors import UserError

REQUESTS = prometheus.Counter("lirank_requests", "Requests for scores", ["status"])
ROWS = prometheus.Counter("lirank_rows", "Rows scored")
SECONDS = prometheus.Histogram(
    "lirank_request_seconds",
    "Time from a request to its answer",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1),
)
EVENTS = prometheus.Counter("lirank_events", "Models exchanged, rows changed, failures", ["event"])


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model before the first request, and watch for the next one."""
    torch.set_num_threads(int(os.environ.get("LIRANK_THREADS", "1")))
    root, mmap = Path(os.environ["LIRANK_MODELS"]), os.environ.get("LIRANK_MMAP", "1") != "0"
    app.state.served = Served(root, mmap, count=lambda event: EVENTS.labels(event).inc())
    watching = asyncio.create_task(app.state.served.watch())
    yield
    watching.cancel()
    app.state.served.close()


app = FastAPI(title="LiRank", lifespan=lifespan)


def _served(request: Request) -> Served:
    return request.app.state.served


@app.post("/score")
async def score(request: Request) -> Response:
    """Probabilities of a row (an object of column names and values) or of a list of rows."""
    start = time.perf_counter()
    try:
        answer, status = await _served(request).score(await request.body()), 200
        ROWS.inc(len(answer["probabilities"]))
    except UserError as error:
        answer, status = {"error": str(error)}, 422
    except Busy as error:
        answer, status = {"error": str(error)}, 503
    REQUESTS.labels(str(status)).inc()
    SECONDS.observe(time.perf_counter() - start)
    return JSONResponse(answer, status)


@app.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """Which model this worker serves."""
    return {"status": "ok", "model": _served(request).version.name, "worker": os.getpid()}


@app.get("/columns")
async def columns(request: Request) -> dict[str, Any]:
    """The columns that a row has to have, and two rows that have them."""
    scorer = _served(request).version.scorer
    rows = example_rows(scorer.config.model.schema, 2)
    return {"columns": scorer.columns, "tasks": scorer.tasks, "rows": rows}


@app.get("/tables")
async def tables(request: Request) -> dict[str, Any]:
    """Names and sizes of the tables whose rows can be changed."""
    found = updates.tables_of(_served(request).version.scorer.model)
    return {n: {"rows": len(t.data), "dim": t.dim, "bits": t.bits} for n, t in found.items()}


@app.post("/rows")
async def rows(
    request: Request,
    table: Annotated[str, Body()],
    rows: Annotated[list[int], Body()],
    values: Annotated[list[Any], Body()],
) -> Response:
    """Change rows of a table: one list of values for every row."""
    try:
        name = await _served(request).update(table, *updates.as_tensors(rows, values))
    except UserError as error:
        return JSONResponse({"error": str(error)}, 422)
    return JSONResponse({"update": name})


@app.get("/metrics")
async def metrics() -> Response:
    """Counts and times of all workers, for Prometheus."""
    registry = prometheus.REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = prometheus.CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
    text = prometheus.generate_latest(registry)
    return Response(text, media_type=prometheus.CONTENT_TYPE_LATEST)
