from typing import NamedTuple

from rich.table import Table

from keras_coda.tables import as_text
from keras_coda.training.observation import LEFT_OUT

SPEEDUPS = {
    "flops": "speedup of the encoder by arithmetic",
    "seconds": "speedup of the backbone on this machine",
}


class Calibration(NamedTuple):
    """What `keras_coda.training.calibrate` chose and fitted.

    As text it is a table, in which the blocks that compute no more than the
    tokens that are always routed are `out`.

    Attributes:
        reduction_factor: list with one number for each block.
        speedup: over the dense model, of `cost`.
        error: that is left, of what is read: the divergence of logits in nats,
            else the squared error relative to the variance.
        blocks: dict from the name of each block to a dict of what was fitted.
        cost: `"flops"`, of the encoder, or `"seconds"`, of the backbone.

    Example:

    >>> calibration = keras_coda.training.Calibration(
    ...     reduction_factor=[1, 4],
    ...     speedup=1.5,
    ...     error=0.01,
    ...     blocks={"layer_0": {}, "layer_1": {"shortcut": 0.9, "router": 0.8}},
    ... )
    >>> print(str(calibration).splitlines()[-1])
    error that is left: 0.01
    """

    reduction_factor: list
    speedup: float
    error: float
    blocks: dict
    cost: str = "flops"

    def __str__(self):
        table = Table(title="Calibrated")
        for name in ("block", "r", "shortcut explains", "router correlates"):
            table.add_column(
                name, justify="left" if name == "block" else "right"
            )
        for (name, values), factor in zip(
            self.blocks.items(), self.reduction_factor
        ):
            fits = (values.get(part) for part in ("shortcut", "router"))
            table.add_row(
                name,
                "out" if factor >= LEFT_OUT else f"{factor:g}",
                *("" if fit is None else f"{fit:.2f}" for fit in fits),
            )
        return as_text(
            table,
            f"{SPEEDUPS[self.cost]}: {self.speedup:.2f}",
            f"error that is left: {self.error:.3g}",
            width=80,
        )
