"""Send requests at a steady rate and print how long the answers took.

Run it beside the server: ``python load_test.py --qps 100 --seconds 10 --rows 20``. A request starts
at its time, whether others are still under way or not, and its time counts from then on. So a
server that falls behind shows in the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time

import httpx


async def ask(client: httpx.AsyncClient, start: float, body: bytes) -> tuple[float, bool]:
    """Milliseconds from the planned start to the answer, and whether it was a good one."""
    await asyncio.sleep(max(0.0, start - time.perf_counter()))
    try:
        good = (await client.post("/score", content=body)).status_code == 200
    except httpx.HTTPError:
        good = False
    return 1000 * (time.perf_counter() - start), good


async def run(url: str, qps: float, seconds: float, rows: int) -> dict[str, float]:
    """The figures of one run.

    Args:
        url: of the server.
        qps: requests a second.
        seconds: how long.
        rows: of a request.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as client:
        given = (await client.get("/columns")).json()["rows"]
        draw = random.Random(0)
        bodies = [json.dumps(draw.choices(given, k=rows)).encode() for _ in range(50)]
        await asyncio.gather(*(ask(client, 0.0, body) for body in bodies[:10]))  # warm
        count, begin = max(1, round(qps * seconds)), time.perf_counter() + 0.1
        jobs = (ask(client, begin + i / qps, bodies[i % 50]) for i in range(count))
        answers = await asyncio.gather(*jobs)
        taken = time.perf_counter() - begin
    times = sorted(milliseconds for milliseconds, good in answers if good)
    errors = len(answers) - len(times)

    def percentile(share: float) -> float:
        return times[min(len(times) - 1, int(share * len(times)))] if times else float("nan")

    return {
        "requests": len(answers), "rows": rows, "planned_qps": qps, "reached_qps": count / taken,
        "p50_ms": percentile(0.5), "p99_ms": percentile(0.99), "errors": errors,
    }  # fmt: skip


def main() -> int:
    """Print the figures; the exit code is 1 if a request failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--qps", type=float, default=50.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rows", type=int, default=1, help="rows of a request")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    found = asyncio.run(run(args.url, args.qps, args.seconds, args.rows))
    if args.json:
        print(json.dumps(found))
    else:
        print(
            f"{found['requests']} requests of {args.rows} rows at {args.qps:g} a second (reached "
            f"{found['reached_qps']:.1f}): p50 {found['p50_ms']:.2f} ms, p99 {found['p99_ms']:.2f} "
            f"ms, {found['errors']} errors"
        )
    return 1 if found["errors"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
