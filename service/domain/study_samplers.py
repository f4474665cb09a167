"""Optuna's samplers as data, without importing Optuna: class, chosen arguments, version.

The API stores this with a study; `service.studies.optuna_study` builds the samplers from it.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from grafting_core.specs.studies.study import Sampler, SamplerKind

CLASSES: Mapping[SamplerKind, str] = {
    "tpe": "TPESampler",
    "nsga2": "NSGAIISampler",
    "gp": "GPSampler",
    "random": "RandomSampler",
    "milp": "RandomSampler",
}
"""Sampler -> class in `optuna.samplers`."""
ARGUMENTS: Mapping[SamplerKind, Mapping[str, Any]] = {
    "tpe": {
        "n_startup_trials": 10,
        "n_ei_candidates": 24,
        "multivariate": True,
        "group": True,
        "constant_liar": True,
    },
    "nsga2": {"population_size": 20, "crossover_prob": 0.9, "swapping_prob": 0.5, "mutation_prob": None},
    "gp": {"n_startup_trials": 10, "deterministic_objective": True},
    "random": {},
    "milp": {},
}
"""All arguments are set explicitly, so that other defaults of a new version change nothing."""


def sampler_record(sampler: Sampler) -> dict[str, object]:
    """Return the stored record of a study's sampler: its class, its arguments and Optuna's version."""
    return {
        "class": CLASSES[sampler.kind],
        "arguments": dict(ARGUMENTS[sampler.kind]),
        "seed": sampler.seed,
        "optuna": version("optuna"),
    }
