"""Hard limits on networks, checked before anything is trained: the cheapest to find out comes first."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

import zoo
from zoo.deploy import planner, tflite


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that a network may have or need; None does not limit.

    Attributes:
        params: values of all variables.
        macs: multiply-accumulates an image.
        sram: bytes of arena that the int8 file takes under TFLM.
        flash: bytes of the int8 file.
        latency: ms of one image.
    """

    params: int | None = None
    macs: int | None = None
    sram: int | None = None
    flash: int | None = None
    latency: float | None = None

    def any(self) -> bool:
        """Returns whether there is one at all."""
        return any(value is not None for value in dataclasses.astuple(self))

    def exceeded(self, model: keras.Model, latency: Callable[[], float]) -> str | None:
        """Returns which limit `model` exceeds and by what, or None; `latency` is asked last, and only if need be.

        Memory is predicted from the graph first. That leaves out what TFLM keeps for good and the file its names, so a
        network that is too large by it is too large; one that is not is converted, and planned as TFLM places it.
        """
        cost = zoo.cost.of(model)
        reason = (
            _over("params", cost.params, self.params)
            or _over("macs", cost.macs, self.macs)
            or _over("bytes of SRAM, predicted", cost.peak_memory, self.sram)
            or _over("bytes of flash, predicted", cost.flash, self.flash)
        )
        if reason:
            return reason
        if self.sram is not None or self.flash is not None:
            noise = np.random.default_rng(0).uniform(0, 1, (1, *model.input_shape[1:])).astype(np.float32)
            plan = planner.plan(tflite.convert(model, quantize="int8", calibration=noise))
            reason = _over("bytes of SRAM", plan.arena, self.sram) or _over("bytes of flash", plan.flash, self.flash)
            if reason:
                return reason
        if self.latency is not None and (milliseconds := latency()) > self.latency:
            return f"{milliseconds:.4g} ms, more than {self.latency:.4g}"
        return None


def _over(name: str, value: int, most: int | None) -> str | None:
    return f"{value:,} {name}, more than {most:,}" if most is not None and value > most else None
