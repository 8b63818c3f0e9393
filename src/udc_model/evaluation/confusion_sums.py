"""Metrics of confusion matrices, as functions of the few sums over their cells that they need.

A matrix of 300 classes has 90,000 cells, of which a test set uses few. So the sums of resamples are made from the cells
that are used; those of one split from all cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ConfusionSums:
    """Sums over the cells of B confusion matrices (K, D), rows true; columns from K on are actions.

    Parameters
    ----------
    weight, cost : (B,) sum of all cells, and of the cells times their costs.
    true : (K, B) sum of each row.
    true_decided, decided, right : (K, B) sum of each row, of each column and the diagonal, of the images that are
        decided as a class.
    actions : (D - K, B) sum of the column of each action.
    constant_cost : (D, B) cost if all images had the same decision.
    """

    weight: Floats
    cost: Floats
    true: Floats
    true_decided: Floats
    decided: Floats
    right: Floats
    actions: Floats
    constant_cost: Floats

    @classmethod
    def of_cells(cls, cells: Floats, outcome_costs: Floats) -> ConfusionSums:
        """The sums of matrices (K, D, B)."""
        k = len(outcome_costs)
        true, classes = cells.sum(axis=1), cells[:, :k]
        return cls(
            weight=cells.sum(axis=(0, 1)),
            cost=np.einsum("kd,kdb->b", outcome_costs, cells),
            true=true,
            true_decided=classes.sum(axis=1),
            decided=classes.sum(axis=0),
            right=np.einsum("kkb->kb", classes),
            actions=_rows([cells[:, j : j + 1].sum(axis=(0, 1)) for j in range(k, cells.shape[1])], cells.shape[2]),
            constant_cost=np.einsum("kd,kb->db", outcome_costs, true),
        )

    @classmethod
    def of_used_cells(cls, cells: Floats, index: NDArray[np.integer], outcome_costs: Floats) -> ConfusionSums:
        """The sums of matrices of which the cells (U, B) with the given index in the flattened matrix are not 0."""
        k, d = outcome_costs.shape
        row, column = np.divmod(index, d)
        is_decided = column < k

        def by(classes: NDArray[np.integer], is_summed: NDArray[np.bool_]) -> Floats:
            entries = is_summed.astype(float), (np.where(is_summed, classes, 0), np.arange(len(index)))
            return np.asarray(sparse.csr_matrix(entries, shape=(k, len(index))) @ cells)

        true = by(row, np.ones(len(index), dtype=bool))
        return cls(
            weight=cells.sum(axis=0),
            cost=outcome_costs[row, column] @ cells,
            true=true,
            true_decided=by(row, is_decided) if d > k else true,
            decided=by(column, is_decided),
            right=by(row, row == column),
            actions=_rows([cells[column == j].sum(axis=0) for j in range(k, d)], cells.shape[1]),
            constant_cost=outcome_costs.T @ true,
        )


def _rows(rows: list[Floats], width: int) -> Floats:
    """Rows (width,) as one array, which may have none."""
    return np.array(rows).reshape(-1, width)


def agreement_metrics(sums: ConfusionSums) -> dict[str, Floats]:
    """Metrics (B,) of the images that are decided as a class; NaN where none is."""
    true, decided, right = sums.true_decided, sums.decided, sums.right
    total, correct = true.sum(axis=0), right.sum(axis=0)
    by_chance = (true * decided).sum(axis=0)
    f1 = divide(2 * right, true + decided)
    spread = np.sqrt((total**2 - (true**2).sum(axis=0)) * (total**2 - (decided**2).sum(axis=0)))
    is_one_cell = (right == total).any(axis=0)  # one class, always decided right: no agreement beyond chance to measure
    with np.errstate(divide="ignore", invalid="ignore"):
        metrics = {
            "accuracy": correct / total,
            "balanced_accuracy": divide(right, true).sum(axis=0) / (true > 0).sum(axis=0),
            "macro_f1": f1.sum(axis=0) / (true + decided > 0).sum(axis=0),
            "cohen_kappa": np.where(is_one_cell, np.nan, 1 - (total - correct) * total / (total**2 - by_chance)),
            "matthews_correlation": divide(correct * total - by_chance, spread),
        }
    return {name: np.where(total > 0, value, np.nan) for name, value in metrics.items()}


def cost_metrics(sums: ConfusionSums) -> dict[str, Floats]:
    """Mean cost, normalised cost and mean cost of the best constant decision, (B,)."""
    mean_cost = sums.cost / sums.weight
    constant = sums.constant_cost.min(axis=0) / sums.weight
    normalised = np.divide(mean_cost, constant, out=np.full_like(mean_cost, np.nan), where=constant > 0)
    return {"mean_cost": mean_cost, "normalised_cost": normalised, "constant_mean_cost": constant}


def divide(numerator: Floats, denominator: Floats) -> Floats:
    """The ratio, 0 where the denominator is not above 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
