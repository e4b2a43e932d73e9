"""Learning rates over the epochs of a training, as the papers have them; plain functions of time, nothing to save."""

import dataclasses
import math
from typing import Literal

Kind = Literal["cosine", "restarts", "exponential"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate at each moment, counted in epochs.

    Attributes:
        kind: "cosine": half a period from `rate` to `last`; "restarts": such periods one after the other, the first
            `period` epochs long, each `factor` times as long as the one before, the same rate through a whole epoch
            (SGDR, as in ENAS' code); "exponential": times `factor` every `period` epochs, smoothly or, with `stairs`,
            at once.
        rate: the highest.
        last: the lowest.
        warmup: epochs in which it grows linearly from 0; then it is what it would be without them. An exponential one
            does not fall before they end (TPU code).
        period, factor: see `kind`.
    """

    kind: Kind = "cosine"
    rate: float = 0.05
    last: float = 0.0
    warmup: float = 0.0
    period: float = 10.0
    factor: float = 2.0
    stairs: bool = True

    def __post_init__(self):
        if self.kind not in ("cosine", "restarts", "exponential"):
            raise ValueError(f"kind is {self.kind!r}; expected cosine, restarts or exponential")
        if self.rate <= 0 or not 0 <= self.last <= self.rate:
            raise ValueError(
                f"rate is {self.rate} and last {self.last}; expected 0 <= last <= rate, and a rate above 0"
            )
        if self.warmup < 0 or self.period <= 0 or self.factor <= 0 or (self.kind == "restarts" and self.factor < 1):
            raise ValueError(
                f"warmup is {self.warmup}, period {self.period} and factor {self.factor}; expected a warmup of 0 or "
                "more, the others above 0, and a factor from 1 for restarts"
            )

    def at_step(self, step: int, steps: int, epochs: int) -> float:
        """Returns the rate of a step, from 0, of a training with `steps` steps an epoch.

        Warm-up starts with the first step's share of it, not with a step of rate 0.
        """
        return self.at(step / steps, epochs, ahead=1 / steps)

    def at(self, time: float, epochs: float, ahead: float = 0.0) -> float:
        """Returns the rate after `time` of `epochs` epochs; warm-up may be `ahead` of that."""
        if time >= self.warmup:
            return self._steady(time, epochs)
        steady = self.rate if self.kind == "exponential" else self._steady(time, epochs)
        return steady * min(1.0, (time + ahead) / self.warmup)

    def _steady(self, time: float, epochs: float) -> float:
        if self.kind == "exponential":
            power = time / self.period
            return max(self.last, self.rate * self.factor ** (math.floor(power) if self.stairs else power))
        share = time / epochs
        if self.kind == "restarts":
            start, period, time = 0.0, self.period, math.floor(time)
            while time >= start + period:
                start, period = start + period, period * self.factor
            share = (time - start) / period
        return self.last + 0.5 * (self.rate - self.last) * (1 + math.cos(math.pi * min(share, 1.0)))
