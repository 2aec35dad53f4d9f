"""What the process of an engine does when it is asked: each method of `Trainer` is a request."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

from .engines import ENGINES, IN_PROCESSES, WITH_VARIABLE, InProcesses, matmul_peak
from .floor import measure_parts
from .machine import loaded_openblas
from .processes import KERNELS, Client
from .profiling import profile_steps
from .replay import operations_alone
from .workloads import WORKLOADS

try:
    import resource
except ImportError:  # Windows has no such counters
    resource = None  # type: ignore[assignment]

MINOR_FAULTS, TICKS = 7, slice(11, 13)  # in /proc/PID/stat after the name (man proc_pid_stat)
FEW = 64  # positions whose logits are compared
SETTLE = 0.1  # seconds after a turn in which thread pools go to sleep


def engine_process(name: str, workload: str) -> Client:
    """A `Trainer` in a process of its own."""
    if name == WITH_VARIABLE:
        return Client(name, Trainer, "ours", workload, kernels=KERNELS)
    return Client(name, Trainer, name, workload)


class Trainer:
    """One engine, and the workload that it trains."""

    def __init__(self, engine: str, workload: str) -> None:
        self.engine_name = engine
        self.workload = WORKLOADS[workload]

    def peak(self) -> dict[str, Any]:
        return {"flops": matmul_peak(self.engine_name), "blas": loaded_openblas()}

    def build(self, ids: np.ndarray[Any, Any]) -> dict[str, Any]:
        """Makes the model, and trains it on `ids`; answers what the engines are compared by."""
        kind = InProcesses if self.engine_name == IN_PROCESSES else ENGINES[self.engine_name]
        self.engine = kind(self.workload)
        batches = [self.engine.batch(i) for i in ids]
        logits = self.engine.logits(batches[0][0][:, :FEW])  # few: training is to set the memory
        steps = [self.engine.step(x, y) for x, y in batches[:-1]]
        start = time.perf_counter()
        steps.append(self.engine.step(*batches[-1]))
        return {"logits": logits, "steps": steps, "seconds": time.perf_counter() - start}

    def turn(self, ids: np.ndarray[Any, Any], untimed: int) -> dict[str, Any]:
        """Steps on `ids`, each timed but the first `untimed` ones."""
        batches = [self.engine.batch(i) for i in ids]
        began = time.perf_counter(), processor_seconds()
        seconds, losses = [], []
        for number, (x, y) in enumerate(batches):
            if number == untimed:
                faults, processor = page_faults(), processor_seconds()
            start = time.perf_counter()
            loss, _ = self.engine.step(x, y)
            seconds.append(time.perf_counter() - start)
            losses.append(loss)
        timed = seconds[untimed:]
        faults = (page_faults() - faults) / len(timed)
        processor = (processor_seconds() - processor) / len(timed)
        time.sleep(SETTLE)
        return {
            "seconds": timed,
            "losses": losses[untimed:],
            "faults": faults,
            "processor": processor,
            "began": began,
            "ended": (time.perf_counter(), processor_seconds()),
        }

    def peak_memory(self) -> int:
        """The most bytes of memory that this process has had so far.

        Those of its children are added, with the pages that all of them share.
        """
        with contextlib.suppress(OSError):
            own = [Path(f"/proc/{pid}/status").read_text() for pid in (os.getpid(), *children())]
            return sum(1024 * int(status.split("VmHWM:")[1].split()[0]) for status in own)
        if resource is None:
            return 0
        unit = 1 if platform.system() == "Darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def generate(self, ids: np.ndarray[Any, Any], tokens: int) -> float:
        """Seconds for each token after one window of `ids`."""
        prompt, _ = self.engine.batch(ids[:1])
        self.engine.generate(prompt, 2)
        start = time.perf_counter()
        self.engine.generate(prompt, tokens)
        return (time.perf_counter() - start) / tokens

    def profile(self, ids: np.ndarray[Any, Any]) -> dict[str, Any]:
        return profile_steps(self.engine, [self.engine.batch(i) for i in ids])

    def operations(self, ids: np.ndarray[Any, Any]) -> dict[str, float]:
        """What the operations of a step take, each by itself, by row of the profile."""
        return operations_alone(self.engine, self.engine.batch(ids))

    def parts(self) -> dict[str, Any]:
        """What the parts of a step take by themselves, without a model."""
        return measure_parts(self.workload)


def page_faults() -> int:
    """Pages that the system has handed to this process and its children, or mapped anew."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else 0
    return own + sum(int(numbers[MINOR_FAULTS]) for numbers in statistics_of_children())


def processor_seconds() -> float:
    """Of this process and its children, all threads together."""
    ticks = sum(sum(map(int, numbers[TICKS])) for numbers in statistics_of_children())
    return time.process_time() + (ticks / os.sysconf("SC_CLK_TCK") if ticks else 0.0)


def children() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid]


def statistics_of_children() -> list[list[str]]:
    """What Linux counts of each child, without its number and name."""
    return [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in children()]
