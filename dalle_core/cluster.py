"""Ray, which spreads drawings over processes, GPUs and machines: connecting to it, and what a process asks of it.

Ray is optional (`requirements-ray.txt`): only this, `workers` and `studio.replicas` import it. The latter two are imported
after `connect`, which must come before Ray's own import.
"""

import importlib.util
import os
from pathlib import Path

from dalle_core.catalogue import CATALOGUE
from dalle_core.errors import InputError, ModelError

QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}  # no statistics are sent
# Read when Ray is imported: its address becomes 127.0.0.1, as it does by itself on macOS and Windows, where Linux's would
# listen on all interfaces. And a busy machine may take long to start a process.
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_register_timeout_seconds": "300"}
# A Ray of this machine's own. Pictures are small, so a small object store does, where Ray would take a third of the memory.
LOCAL = {"address": "local", "include_dashboard": False, "object_store_memory": 128 * 2**20, "log_to_driver": False}


def connect(**options) -> None:
    """Connects this process to the cluster that RAY_ADDRESS names or, without one, to a Ray of its own that ends with it and
    listens on 127.0.0.1 only (options: more of `ray.init`). Does nothing where it is connected already. Called on the main
    thread: on Linux a Ray of its own would end with any other.

    Raises InputError when Ray is not installed, or its cluster does not answer.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("Ray is not installed: pip install -r requirements-ray.txt, or this package with its extra “ray”.")
    address = os.environ.get("RAY_ADDRESS")
    os.environ.update(QUIET if address else QUIET | ALONE)
    import ray

    if ray.is_initialized():
        return
    # Workers that a cluster starts do not know this process's PYTHONPATH. A Ray of its own inherits it.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    there = {"address": address, "log_to_driver": False, "runtime_env": {"env_vars": {"PYTHONPATH": path}}}
    try:
        ray.init(**(there if address else LOCAL | options), logging_level="ERROR")
    except Exception as error:  # a plain one where it waited half a minute for itself, as on a very busy machine
        place = f"The cluster {address} of RAY_ADDRESS" if address else "Ray"
        raise InputError(f"{place} cannot be used: {_last_line(error)}.") from error


def share(processes: int, device: str | None) -> dict[str, float]:
    """What each of so many processes with a model asks of Ray: num_cpus, its part of the cores, and num_gpus, 1 on CUDA.
    device: as of `catalogue.load`; None: CUDA where the cluster has GPUs.

    Raises InputError where there are too few GPUs, and for a GPU with a number: Ray gives each process one.
    """
    import ray

    if device and device.startswith("cuda:"):
        raise InputError(f"Ray chooses each process's GPU: use cuda in the place of {device}.")
    found = int(ray.cluster_resources().get("GPU", 0))
    gpus = int(device == "cuda" or (device is None and found > 0))
    if gpus and processes > found:
        raise InputError(f"{processes} processes need {processes} GPUs, and Ray has {found}: use fewer, or the device cpu.")
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    for count in range(max(cores, default=0), 0, -1):
        if sum(machine // count for machine in cores) >= processes:
            return {"num_cpus": count, "num_gpus": gpus}
    return {"num_cpus": max(sum(cores), 1) / processes, "num_gpus": gpus}  # more processes than cores


def use_share(share: dict) -> None:
    """In a process: computes with as many threads as it has cores, so that several do not get in each other's way."""
    import torch

    torch.set_num_threads(max(1, int(share["num_cpus"])))


def everywhere(loading: dict) -> dict:
    """The arguments of `catalogue.load` for other processes, whose working directory may be another."""
    words = {*CATALOGUE, "none", loading["device"]}  # that a folder may be called, too
    texts = {key: value for key, value in loading.items() if isinstance(value, str) and value not in words}
    return loading | {key: os.path.abspath(value) for key, value in texts.items() if os.path.isdir(value)}


def sentence(error: BaseException) -> InputError | ModelError:
    """What a process raised, as a sentence for the person: its own one, or that it failed."""
    from ray.exceptions import RayActorError

    causes = [error]
    while isinstance(cause := getattr(causes[-1], "cause", None) or causes[-1].__cause__, BaseException):
        causes.append(cause)
    for cause in causes:
        if type(cause) in (InputError, ModelError):  # and not the class that Ray makes of it, whose text is a traceback
            return cause
    if any(isinstance(cause, RayActorError) for cause in causes):
        return ModelError("A process that draws was killed again and again. If its machine is out of memory, use fewer.")
    return ModelError(f"A process that draws failed: {_last_line(error)}. Ray's logs say more.")


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300].rstrip(".")
