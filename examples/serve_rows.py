"""Score rows that a program has in hand, by a float model and by its int8 copy.

A ranker is trained on 6,000 rows of UCI Adult, which ships with the package, and quantized. Then it
scores dictionaries as a request would bring them. `examples/serve_fastapi` puts the same behind
HTTP, and `examples/serve_cpp` does it without Python.
Needs the extra `train`. Run: python examples/serve_rows.py
"""

import tempfile
import time
from pathlib import Path

from pyarrow import parquet

from lirank_ext.conversion.quantize import quantize
from lirank_ext.data import ADULT
from lirank_ext.training.options import Options
from lirank_ext.training.run import Plan
from lirank_ext.training.serving import RowScorer
from lirank_ext.training.session import load_model, save_model

LABEL = "income=>50K"


def train(folder: Path) -> Path:
    """The folder of a float model, trained for two epochs."""
    rows = folder / "rows.parquet"
    parquet.write_table(parquet.read_table(ADULT).slice(0, 6_000), rows)
    settings = {"training.epochs": 2, "training.tune": "off", "training.fisher_rows": 0}
    output = folder / "model"
    options = Options([str(rows)], label=[LABEL], settings=settings, output=str(output))
    Plan.from_options(options).run()
    return output


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = train(Path(name))
        model, config = load_model(folder)
        report = quantize(model, bits=8)
        small = Path(name) / "model-int8"
        small.mkdir()
        save_model(small, model, config)
        print(f"tables: {report.bytes_before:,} bytes, as int8 {report.bytes_after:,}")

        # What a request brings: a value for each column, None where it is missing.
        requests = parquet.read_table(ADULT).slice(6_000, 256).to_pylist()
        scorer, quantized = RowScorer(folder), RowScorer(small)
        rows = [{column: row[column] for column in scorer.columns} for row in requests]
        print("one row:", {k: rows[0][k] for k in scorer.columns[:4]}, "...")
        print(f"its probability: {scorer.score(rows[:1]).item():.4f}")

        together, alone = scorer.score(rows), [scorer.score([row]) for row in rows[:16]]
        assert all(abs(a - b) < 1e-5 for a, b in zip(alone, together, strict=False))
        change = (quantized.score(rows) - together).abs().max().item()
        print(f"largest change of a probability by int8 tables: {change:.5f}")
        for size in (1, 64):
            times = []
            for _ in range(50):
                start = time.perf_counter()
                quantized.score(rows[:size])
                times.append(time.perf_counter() - start)
            print(f"{size:3} rows, from dictionaries to scores: {sorted(times)[25] * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
