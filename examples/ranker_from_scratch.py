"""Train a ranker on a real file, look at its metrics, and score rows with the saved model.

The file is UCI Adult, which ships with the package: 48,842 people, and whether they earn more than
50,000 dollars a year. Needs the extra `train`. Run: python examples/ranker_from_scratch.py
"""

import tempfile
from itertools import islice

from lirank_ext.data import ADULT
from lirank_ext.data.infer import infer
from lirank_ext.training.options import Options
from lirank_ext.training.predict import Predictor
from lirank_ext.training.run import Plan
from lirank_ext.training.session import load_model, open_model

LABEL = "income=>50K"


def main() -> None:
    print("How some columns are read:")
    for column in infer([ADULT], [LABEL]).columns[:6]:
        print(f"  {column.name:16} {column.role:8} {column.why}")

    with tempfile.TemporaryDirectory() as folder:
        # Two epochs with one regularization. Without these settings three regularizations are
        # tried, and the best one is trained until it no longer improves.
        options = Options(
            [str(ADULT)],
            label=[LABEL],
            settings={"training.epochs": 2, "training.tune": "off", "training.fisher_rows": 0},
            output=folder,
        )
        result = Plan.from_options(options).run()
        best = result.report["evaluations"][-1]["tasks"][LABEL]
        print(f"\nAfter two epochs: AUC {best['auc']:.4f}, log-loss {best['log_loss']:.4f}")
        print(f"labels of 1 by predicted ones: {best['observed_to_expected']:.3f}")

        model, _ = load_model(folder)
        print(f"\n{sum(p.numel() for p in model.parameters()):,} parameters")
        used = open_model(folder, [ADULT], labels=False)
        for scores in islice(Predictor(used), 1):
            first = ", ".join(f"{p:.3f}" for p in scores.probabilities[:5, 0])
            print(f"the first five people: {first}")


if __name__ == "__main__":
    main()
