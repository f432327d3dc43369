"""TensorRT's callback for progress, which can also cancel a build."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class BuildMonitor(Protocol):
    """Set ``cancelled`` to stop a build at its next step; ``steps`` counts those that were done."""

    cancelled: bool
    steps: int


def monitor(trt: ModuleType, bar: Progress) -> BuildMonitor:
    """Return an IProgressMonitor that draws each phase and can cancel."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self.steps = 0
            self._tasks: dict[str, TaskID] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._tasks[phase_name] = bar.add_task(phase_name, total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.steps += 1
            if phase_name in self._tasks:
                bar.update(self._tasks[phase_name], completed=step + 1)
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            task = self._tasks.pop(phase_name, None)
            if task is not None:
                bar.remove_task(task)

    return Monitor()
