"""GLUE's metrics as a module of `evaluate`, the library that the original scores with; nothing is downloaded.

A file of its own: importing `evaluate` takes seconds, and the class needs it when it is defined.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from GLUE_tasks.glue_data import SCORES


class GlueMetric(evaluate.Metric):
    """The metrics of SCORES that config_name lists, such as "accuracy,f1"."""

    def _info(self) -> evaluate.MetricInfo:
        kind = datasets.Value("float32" if "pearson" in self.config_name else "int64")
        return evaluate.MetricInfo(
            description="GLUE metrics", citation="Wang et al. 2018", inputs_description="one prediction per example",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )  # fmt: skip

    def _compute(self, predictions: Sequence, references: Sequence) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        return {name: SCORES[name](predictions, references) for name in self.config_name.split(",")}
