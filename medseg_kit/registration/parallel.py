"""One function over many items: here, on the cores of this machine, or on a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import SimpleITK
from joblib import Parallel, delayed, parallel_config

from medseg_kit.typing import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
CONNECT_S = 20


def run_parallel(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    jobs: int = 1,
    scheduler: str | None = None,
) -> Iterator[Result]:
    """Yield the function's result of each item, in their order, as they come.

    Args:
        function: At the top of a module, so that other processes find it. Uses one thread there.
        items: What to work on.
        jobs: Processes on this machine; -1 for one a core.
        scheduler: Address of a Dask scheduler whose workers do it instead; they need this package
            and the same paths.

    Raises:
        UserError: If Dask is not installed or does not answer, or for 0 jobs.
    """
    if jobs == 0:
        raise UserError("jobs is 0; give a number of processes, or -1 for one a core")
    with _backend(jobs, scheduler):
        tasks = (delayed(_single_threaded)(function, item) for item in items)
        yield from Parallel(return_as="generator")(tasks)


def _single_threaded(function: Callable[[Any], Any], item: Any) -> Any:
    # pairs run side by side: threads inside one would only wait for each other
    before = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        return function(item)
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


@contextmanager
def _backend(jobs: int, scheduler: str | None) -> Iterator[None]:
    with ExitStack() as stack:
        if scheduler is None:
            backend = "sequential" if jobs == 1 else "loky"
            stack.enter_context(parallel_config(backend=backend, n_jobs=jobs))
        else:
            stack.enter_context(_client(scheduler))
            stack.enter_context(parallel_config(backend="dask", n_jobs=-1))
        yield


def _client(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError(
            "--scheduler needs Dask: pip install -c constraints.txt 'medseg-kit[registration]'"
        ) from error
    try:
        return Client(scheduler, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Dask scheduler answers at {scheduler} ({error}); start one with `dask scheduler`"
            " and give its address, for example tcp://10.0.0.5:8786"
        ) from error
