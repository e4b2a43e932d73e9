"""The searches as KerasTuner oracles: for any `keras_tuner.Tuner`, and fastest with `recipes.engine.tuner.Tuner`.

oracle = recipes.oracles.AgingEvolution("val_accuracy", max_trials=200, hyperparameters=space, seed=0)
keras_tuner.Tuner(oracle=oracle, hypermodel=build_model, directory="runs").search(...)
"""

from recipes.oracles.base import RandomSearch, SearchOracle
from recipes.oracles.baselines import BayesianSearch, LocalSearch
from recipes.oracles.controller import ControllerOracle
from recipes.oracles.evolution import NSGA2, AgingEvolution
from recipes.oracles.halving import SuccessiveHalving
from recipes.oracles.predictors import Fitting
from recipes.oracles.progressive import ProgressiveOracle

__all__ = [
    "NSGA2",
    "AgingEvolution",
    "BayesianSearch",
    "ControllerOracle",
    "Fitting",
    "LocalSearch",
    "ProgressiveOracle",
    "RandomSearch",
    "SearchOracle",
    "SuccessiveHalving",
]
