"""Lets KerasTuner's chief survive dead workers: others take over their trials, and the chief ends with the last one.

KerasTuner 1.4.8 waits for a dead worker for ever: nobody takes its trial, and the chief counts the worker as present.
"""

import collections
import os
import time
from typing import Any

import keras_tuner
from keras_tuner.engine import trial as trial_module

_IDLE_SILENCE = 60.0  # s; a worker without a trial asks for one all the time
_PAUSE = 0.05  # s before a worker is told that there is nothing to do, because it asks again at once


class LeasingOracle(keras_tuner.Oracle):
    """An oracle that, as KerasTuner's chief, takes trials back from workers that have fallen silent.

    Each call of a worker counts as a sign of life, and so does each `get_trial` or `update_trial` of its trial: if
    trials may take longer than `silence`, call `tuner.oracle.get_trial(trial.trial_id)` from a callback. While trials
    run, workers that ask for more wait, so that one of them can take over. A trial that fails `retries` + 1 workers is
    INVALID. The first result of a trial counts, whichever worker returns it.
    """

    silence = 3600.0  # s; if trials are shorter, set it lower before the search
    retries = 1

    def __init__(self, objective: Any, max_trials: int | None, hyperparameters: Any):
        self._heard: dict[str, float] = {}  # tuner id -> time of its last sign of life
        self._losses: collections.Counter[str] = collections.Counter()  # trial id -> silent workers
        super().__init__(objective, max_trials, hyperparameters, seed=1, max_consecutive_failed_trials=2**31)

    @property
    def tuner_ids(self) -> set[str]:
        """Ids of the live workers. KerasTuner's chief checks every 20 s, and exits when there are none."""
        if is_chief():
            limit = time.monotonic() - min(self.silence, _IDLE_SILENCE)
            silent = {name for name in self._tuner_ids if self._heard.get(name, limit) < limit}
            self._tuner_ids -= silent - self.ongoing_trials.keys()
        return self._tuner_ids

    @tuner_ids.setter
    def tuner_ids(self, names: set[str]) -> None:
        self._tuner_ids = names

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Any:
        """Gives a worker a trial, preferably one taken back from a silent worker; see keras_tuner.Oracle."""
        if not is_chief():
            return super().create_trial(tuner_id)
        self._heard[tuner_id] = time.monotonic()
        self._take_back_trials()
        trial = super().create_trial(tuner_id)
        if trial.status == trial_module.TrialStatus.STOPPED and self.ongoing_trials:
            trial.status = trial_module.TrialStatus.IDLE
            self._tuner_ids.add(tuner_id)
        if trial.status == trial_module.TrialStatus.IDLE:
            time.sleep(_PAUSE)
        return trial

    def get_trial(self, trial_id: str) -> Any:
        """Returns the trial, and counts the call as a sign of life from its worker."""
        self.hear(trial_id)
        return super().get_trial(trial_id)

    def hear(self, trial_id: str) -> None:
        """Records a sign of life from a trial's worker."""
        for tuner_id, trial in list(self.ongoing_trials.items()):
            if trial.trial_id == trial_id:
                self._heard[tuner_id] = time.monotonic()

    def _take_back_trials(self) -> None:
        limit = time.monotonic() - self.silence
        for tuner_id, trial in list(self.ongoing_trials.items()):
            if self._heard.setdefault(tuner_id, time.monotonic()) >= limit:
                continue
            del self.ongoing_trials[tuner_id]
            self._tuner_ids.discard(tuner_id)
            self._losses[trial.trial_id] += 1
            if self._losses[trial.trial_id] > self.retries:
                trial.status = trial_module.TrialStatus.INVALID
                trial.message = f"its worker was silent for {self.silence:,.4g} s, the last time {tuner_id}"
                self.end_trial(trial)
            else:
                trial.metrics = type(trial.metrics)()  # drops those that the silent worker had reported
                self._retry_queue.append(trial.trial_id)


def is_chief() -> bool:
    """Returns whether this process is KerasTuner's chief."""
    return "KERASTUNER_ORACLE_IP" in os.environ and "chief" in os.environ.get("KERASTUNER_TUNER_ID", "")
