"""What `serve --profile` sets: what a sweep found best on this machine, else what its cores, or its GPUs, suggest.

A setting that a user gave, in whichever way, is never touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skillserve.errors import ConfigError, ContractError
from skillserve.machine import num_cores, processor
from skillserve.recommendation import (
    RECOMMENDATION_FILE,
    Advice,
    Recommendation,
    Tuning,
    read_recommendation,
)
from skillserve.settings import ServeSettings
from skillserve.settings.serving import Profile
from skillserve_serving.repository import ServedModel

__all__ = ["Tuned", "built_in", "built_in_for_gpus", "tuned"]

_THREADS_OF_AN_INSTANCE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """Settings with a profile worked in, and what an operator should know of it."""

    tuning: Tuning
    told: tuple[str, ...] = ()


def built_in(profile: Profile, cores: int) -> Tuning:
    """Defaults by the number of cores, where nothing was measured.

    For latency one instance has all cores, so that a lone request is computed by all of them. For throughput instances
    of four threads share them: products of short requests are too small to keep more threads busy, and one instance's
    other work fills the gaps of another. Neither waits for company: under load, requests that come while a model
    computes are joined anyway.
    """
    if profile == "latency":
        return Tuning(num_instances=1, num_threads=cores, max_queue_delay_microseconds=0)
    threads = min(cores, _THREADS_OF_AN_INSTANCE)
    return Tuning(num_instances=cores // threads, num_threads=threads, max_queue_delay_microseconds=0)


def built_in_for_gpus() -> Tuning:
    """Defaults where models run on GPUs; not verified on hardware.

    Triton counts instances for each GPU, and each holds the weights again. One has its whole GPU, for which cores say
    nothing, so its threads stay as exported; whether a second one gains more than its memory costs is for a sweep.
    """
    return Tuning(num_instances=1, max_queue_delay_microseconds=0)


def tuned(settings: ServeSettings, models: Sequence[ServedModel], *, gpus: int = 0) -> Tuned:
    """What to serve these models with, on a server that finds so many GPUs.

    Raises ConfigError for a file that is no recommendation, or a recommendation without a profile, and ContractError
    for one of other models or of a machine with another number of cores. One that merely stands in the repository is
    passed over instead, and that is told.
    """
    asked = Tuning.of(settings)
    if settings.profile is None:
        if settings.recommendation is not None:
            raise ConfigError(
                "setting --recommendation",
                got="a recommendation without a profile",
                wanted="the part of it that is to be used",
                fix="Add --profile latency or --profile throughput.",
            )
        return Tuned(tuning=asked)
    path = settings.recommendation or settings.repository / RECOMMENDATION_FILE
    told: list[str] = []
    advice: Advice | None = None
    if settings.recommendation is not None:
        advice, told = _recommended(path, settings.profile, models)
    elif path.exists():
        try:
            advice, told = _recommended(path, settings.profile, models)
        except (ConfigError, ContractError) as error:
            told = [f"WARNING: {path} is passed over: got {error.got}; wanted {error.wanted}. {error.fix}"]
    chosen, reason = (advice.serve, "") if advice else _built_in(settings.profile, models, gpus)
    kept = {name: value for name, value in chosen.changes.items() if name not in settings.model_fields_set}
    if advice is None:
        told.append(
            f"Profile {settings.profile}: {_words(kept)}, {reason}; nothing was measured. "
            "Measure: skillserve bench sweep --repository FOLDER --data DATA --recommend-to FILE"
        )
    else:
        told += [
            f"Profile {settings.profile}: {_words(kept)}, as {path} recommends.",
            f"It was measured with searches that ask so: {advice.asking.flags}",
        ]
    if given := {name: value for name, value in asked.changes.items() if name in chosen.changes}:
        told.append(f"Not taken from the profile, since they were set: {_words(given)}.")
    return Tuned(tuning=asked.model_copy(update=kept), told=tuple(told))


def _built_in(profile: Profile, models: Sequence[ServedModel], gpus: int) -> tuple[Tuning, str]:
    """The defaults, and what they follow from."""
    from skillserve_serving.tuning import runs_on_gpus  # Triton's message is needed for nothing else here

    if gpus and any(runs_on_gpus(model) for model in models):
        return built_in_for_gpus(), f"on each of the GPUs ({gpus}), which is not verified on hardware"
    cores = num_cores()
    return built_in(profile, cores), f"by the number of cores ({cores})"


def _recommended(path: Path, profile: Profile, models: Sequence[ServedModel]) -> tuple[Advice, list[str]]:
    from skillserve_serving.tuning import served_as  # Triton's message is needed for nothing else here

    found = read_recommendation(path)
    part = found.of_models({model.name: served_as(model) for model in models}, path=path)
    told = _other_machine(found, path)
    if profile not in part.profiles:
        raise ConfigError(
            f"recommendation `{path}`",
            got=f"no profile `{profile}` for these models",
            wanted=f"one of {', '.join(part.profiles) or 'none: no point of the sweep could be measured'}",
            fix="Choose another profile, or run the sweep again.",
        )
    return part.profiles[profile], told


def _other_machine(found: Recommendation, path: Path) -> list[str]:
    """Another processor is a warning: the order of settings often carries over. Another number of cores is refused."""
    cores, here = num_cores(), processor()
    if found.machine.num_cores != cores:
        raise ContractError(
            f"recommendation `{path}`",
            got=f"one of a machine with {found.machine.num_cores} cores",
            wanted=f"one for {cores}, since instances and threads are counted in cores",
            fix="Measure here: skillserve bench sweep --recommend-to FILE; or leave --recommendation out.",
        )
    if found.machine.processor != here:
        return [f"WARNING: {path} was measured on {found.machine.processor}, this is {here}: measure again."]
    return []


def _words(settings: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "nothing"
