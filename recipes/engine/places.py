"""Where the trials of a search run: the options that say so, and the workers that they stand for."""

import dataclasses
import math

from recipes.engine import parallel
from recipes.engine import ray as ray_workers
from recipes.engine.tasks import Evaluate
from recipes.engine.workers import SILENCE, LocalWorkers


@dataclasses.dataclass(frozen=True)
class PlaceConfig:
    """Options of where trials run; none of them changes what a trial gives."""

    workers: str = "0"  # 0 runs trials in this process, N in N processes of this machine, ray on a Ray cluster
    trial_cpus: float = 1.0  # cores that Ray gives to a trial
    trial_gpus: float = 0.0  # GPUs that Ray gives to a trial; two or more train it data-parallel
    trials_at_once: int | None = None  # with Ray; none takes what the cluster has room for
    retries: int = 1  # times that a trial is given out again after its worker died
    silence: float = SILENCE  # seconds without a word from a trial after which its worker is given up

    def __post_init__(self):
        if self.workers != "ray" and not self.workers.isdecimal():
            raise ValueError(f"workers is {self.workers!r}; expected a whole number, 0 for this process, or ray")
        if self.retries < 0 or (self.trials_at_once is not None and self.trials_at_once < 1):
            raise ValueError(
                f"retries is {self.retries} and trials_at_once {self.trials_at_once}; "
                "expected a whole number from 0, and one from 1 or none"
            )
        for name, least in {"silence": 0, "trial_cpus": -1, "trial_gpus": -1}.items():
            if not (least < getattr(self, name) < math.inf) or getattr(self, name) < 0:
                expected = "seconds above 0" if name == "silence" else "a number from 0"
                raise ValueError(f"{name} is {getattr(self, name)}; expected {expected}")

    @property
    def elsewhere(self) -> bool:
        """Whether trials run in other processes."""
        return self.workers == "ray" or int(self.workers) > 0

    def crew(self, evaluate: Evaluate) -> parallel.Workers | None:
        """Returns the workers that run `evaluate`, None for this process.

        Raises:
            ImportError: Ray is not installed.
            ConnectionError: the cluster at RAY_ADDRESS does not answer.
        """
        if not self.elsewhere:
            return None
        if self.workers != "ray":
            return LocalWorkers(evaluate, int(self.workers), silence=self.silence)
        return ray_workers.RayWorkers(
            evaluate,
            cpus=self.trial_cpus,
            gpus=self.trial_gpus,
            at_once=self.trials_at_once,
            retries=self.retries,
            silence=self.silence,
        )


FIELDS = tuple(field.name for field in dataclasses.fields(PlaceConfig))
