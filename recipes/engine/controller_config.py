"""The options of the searches whose trials an LSTM controller draws, NASNet's and MnasNet's."""

import dataclasses
from typing import Any, Literal

from recipes.engine.children import ChildConfig
from recipes.oracles import ControllerOracle, RandomSearch, SearchOracle


@dataclasses.dataclass(frozen=True)
class ControllerConfig(ChildConfig):
    """Options of the controller; each is a flag."""

    algorithm: Literal["ppo", "reinforce", "random"] = "ppo"  # random is the papers' baseline
    hidden: int = 100  # units of the controller
    controller_rate: float = 0.0035  # the controller's learning rate
    controller_batch: int = 4  # networks between two updates of the controller
    entropy: float = 0.00001  # weight of the controller's entropy
    baseline: float = 0.95  # what stays of the moving average of scores at each score

    def __post_init__(self):
        super().__post_init__()
        for name in ("hidden", "controller_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number from 1")

    def oracle(self, arguments: dict[str, Any]) -> SearchOracle:
        """Returns the oracle of `algorithm`; `arguments` are those of every oracle."""
        if self.algorithm == "random":
            return RandomSearch(**arguments)
        return ControllerOracle(
            **arguments,
            algorithm=self.algorithm,
            hidden=self.hidden,
            learning_rate=self.controller_rate,
            batch=self.controller_batch,
            entropy=self.entropy,
            baseline=self.baseline,
        )
