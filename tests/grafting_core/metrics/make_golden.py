"""Three feature sets and what independent tools say of them.

`python -m tests.grafting_core.metrics.make_golden` writes both:
`fid` by scipy's matrix root and by torchmetrics, the others by torch-fidelity; run it only to replace all.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from tests.support.torch_fidelity import imported_torch_fidelity

GOLDEN = Path(__file__).parent / "golden"
COUNTS = {"reference": 320, "near": 300, "far": 90}
DIMS, CLASSES = 96, 10


def rows_of(name: str) -> np.ndarray:
    """float32 [N, 96], positive and correlated as features are."""
    rng = np.random.default_rng(list(COUNTS).index(name))
    mixing = np.random.default_rng(9).normal(size=(DIMS, DIMS)) / 10
    shift = {"reference": 0.0, "near": 0.05, "far": 0.4}[name]
    return np.abs(rng.normal(size=(COUNTS[name], DIMS)) @ mixing + shift).astype(np.float32)


class Identity(nn.Module):
    """What torchmetrics takes for a feature network."""

    num_features = DIMS

    def forward(self, rows: Tensor) -> Tensor:
        return rows


def expected(samples: np.ndarray, reference: np.ndarray, modules: Any) -> dict[str, float]:
    """By tools that are not ours."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    ones, others = samples.astype(np.float64), reference.astype(np.float64)
    metric = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    metric.update(torch.from_numpy(others), real=True)
    metric.update(torch.from_numpy(ones), real=False)
    covariances = [np.cov(rows, rowvar=False) for rows in (ones, others)]
    shift = ones.mean(axis=0) - others.mean(axis=0)
    root = np.trace(sqrtm(covariances[0] @ covariances[1])).real
    tensors = torch.from_numpy(ones), torch.from_numpy(others)
    precision, recall = modules("metric_prc").calculate_precision_recall_full(*tensors, 3)
    kid = modules("metric_kid").kid_features_to_metric(
        *tensors, kid_subsets=9, kid_subset_size=60, verbose=False
    )
    score = modules("metric_isc").isc_features_to_metric(8 * tensors[0][:, :CLASSES])
    return {
        "fid by scipy": float(shift @ shift + sum(map(np.trace, covariances)) - 2 * root),
        "fid by torchmetrics": metric.compute().item(),
        "precision": precision,
        "recall": recall,
        "kid": kid["kernel_inception_distance_mean"],
        "inception score": score["inception_score_mean"],
    }


def main() -> None:
    """Write both files."""
    sets = {name: rows_of(name) for name in COUNTS}
    with imported_torch_fidelity() as modules:
        values = {name: expected(sets[name], sets["reference"], modules) for name in ("near", "far")}
    np.savez_compressed(GOLDEN / "features.npz", **sets)
    (GOLDEN / "values.json").write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
