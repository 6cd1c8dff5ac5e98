"""Start workers that serve ``MODELS/current``: ``python serve.py MODELS --workers 2``."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import uvicorn


def main() -> None:
    """Read the options and run until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", metavar="MODELS", type=Path, help="folder with a link 'current'")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a request")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--copy", action="store_true", help="copy the weights into every worker")
    args = parser.parse_args()
    if not (args.models / "current").exists():
        parser.error(f"{args.models}: there is no link 'current' to the folder of a model")
    with tempfile.TemporaryDirectory() as shared:  # where the workers add up their metrics
        os.environ |= {
            "PROMETHEUS_MULTIPROC_DIR": shared,
            "LIRANK_MODELS": str(args.models.resolve()),
            "LIRANK_THREADS": str(args.threads),
            "LIRANK_MMAP": "0" if args.copy else "1",
        }
        here = str(Path(__file__).parent)
        uvicorn.run("app:app", app_dir=here, port=args.port, workers=args.workers, access_log=False)


if __name__ == "__main__":
    main()
