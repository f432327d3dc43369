"""How collapsed a set of embeddings is: effective rank, uniformity, mean cosine similarity.

Representations collapse when all images are mapped to nearly the same place; a dispersive loss is
meant to prevent that. These numbers say whether it did.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def collapse(features: npt.NDArray[np.floating]) -> dict[str, float]:
    """Return every measure of embeddings [N, D], N at least 2."""
    return {
        "effective_rank": effective_rank(features),
        "uniformity": uniformity(features),
        "mean_cosine": mean_cosine(features),
        "count": float(features.shape[0]),
        "dimensions": float(features.shape[1]),
    }


def effective_rank(features: npt.NDArray[np.floating]) -> float:
    """Return exp of the entropy of the singular values' shares (Roy and Vetterli 2007).

    The rows of ``features`` [N, D] are centred first. 1 means that all variation lies on one line;
    the most is min(N - 1, D). Rows that are all equal have 0.
    """
    rows = _rows(features)
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    total = values.sum()
    if total <= 1e-7 * max(float(np.abs(rows).max()), 1e-30) * len(rows):
        return 0.0
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def uniformity(features: npt.NDArray[np.floating], t: float = 2.0) -> float:
    """Return log mean_{i < j} exp(-t ||z_i - z_j||^2) of the normalised rows (Wang, Isola 2020).

    ``features``: [N, D]. 0 means collapsed to one direction; lower is more evenly spread over the
    sphere.
    """
    above = -2 * t * (1 - _cosines(features))
    largest = above.max()
    return float(largest + np.log(np.mean(np.exp(above - largest))))


def mean_cosine(features: npt.NDArray[np.floating]) -> float:
    """Return the mean cosine similarity of two different rows, in [-1, 1]; 1 is collapsed."""
    return float(_cosines(features).mean())


def project(features: npt.NDArray[np.floating], dimensions: int = 2) -> npt.NDArray[np.float64]:
    """Return the rows on their principal axes [N, dimensions], in units of the features.

    Signs are fixed (the largest weight of each axis is positive), so pictures repeat.
    """
    rows = _rows(features)
    centred = rows - rows.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:dimensions]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    projected: npt.NDArray[np.float64] = centred @ axes.T
    return projected


def _cosines(features: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Cosine similarities of all pairs i < j, flat."""
    rows = unit(features)
    return np.clip(rows @ rows.T, -1, 1)[np.triu_indices(len(rows), 1)]


def unit(features: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return the rows [N, D] scaled to length 1; a row of zeros stays one."""
    rows = _rows(features)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _rows(features: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    rows = np.asarray(features, np.float64)
    if rows.ndim != 2 or len(rows) < 2 or not np.isfinite(rows).all():
        raise ValueError(f"features are {rows.shape}; expected finite [N, D], N at least 2")
    return rows
