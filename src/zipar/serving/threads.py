"""Which threads compute in parallel on a CPU: the engine's alone.

Each thread in which PyTorch computes has a team of OpenMP threads, for as long as it lives. Those of a team spin while
they wait for their next work, but only where all teams together have no more threads than there are cores; else they
sleep, and are woken for every operator, over which small models take half as long again. So what else computes,
as what loads models, does it in a thread that ends, and the painter's has no team.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread
from typing import TypeVar

import torch

T = TypeVar("T")


def aside(work: Callable[[], T]) -> T:
    """What ``work()`` gives or raises, in a thread that ends with it."""
    found: Future[T] = Future()

    def do() -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    thread = Thread(target=do, daemon=True)  # lest Ctrl-C wait for it
    thread.start()
    result = found.result()
    thread.join()
    return result


def single(name: str) -> ThreadPoolExecutor:
    """A thread, of that name, without a team."""
    pool, threads = ThreadPoolExecutor(1, name), torch.get_num_threads()
    pool.submit(torch.get_num_threads).result()  # or PyTorch would set it when it is first asked
    pool.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(threads)  # of threads to come
    return pool
