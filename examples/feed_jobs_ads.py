"""The paper's three models from YAML, trained on the same rows with two tasks.

A YAML file of examples/configs changes some values of a preset; every other value is the preset's.
The rows are 6,000 of UCI Adult, which ships with the package; the tasks are whether a person
earns more than 50,000 dollars a year, and works at least 45 hours a week.
Needs the extra `train`. Run: python examples/feed_jobs_ads.py
"""

import tempfile
from pathlib import Path

from pyarrow import parquet

from lirank_ext.data import ADULT
from lirank_ext.training.options import Options
from lirank_ext.training.run import Plan
from lirank_ext.training.session import load_model

CONFIGS = Path(__file__).parent / "configs"
LABELS = ["income=>50K", "hours-per-week>=45"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.parquet"
        parquet.write_table(parquet.read_table(ADULT).slice(0, 6_000), rows)
        for name in ("feed", "jobs", "ads"):
            output = Path(folder) / name
            config = str(CONFIGS / f"{name}.yaml")
            options = Options(
                [str(rows)], label=LABELS, preset=name, config=config, output=str(output)
            )
            report = Plan.from_options(options).run().report
            model, _ = load_model(output)
            print(f"\n{name}: {sum(p.numel() for p in model.parameters()):,} parameters")
            print("  blocks:", ", ".join(blocks(model)))
            for task, figures in report["evaluations"][-1]["tasks"].items():
                print(f"  {task:20} AUC {figures['auc']:.4f}, log-loss {figures['log_loss']:.4f}")


def blocks(model) -> list[str]:
    """The kinds of modules of this package in a model, each once."""
    ours = (m for m in model.modules() if type(m).__module__.startswith("lirank_ext.nn"))
    return sorted({type(m).__name__ for m in ours})


if __name__ == "__main__":
    main()
