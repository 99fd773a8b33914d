"""Threads that compute: those that end with their work, and those that compute alone."""

import threading

import pytest
import torch

from zipar.serving.threads import aside, single


def test_work_aside_is_done_in_a_thread_that_has_ended():
    ran = aside(threading.current_thread)
    assert ran is not threading.current_thread()
    assert not ran.is_alive()
    with pytest.raises(ZeroDivisionError):
        aside(lambda: 1 // 0)
    assert not [thread for thread in threading.enumerate() if thread.name == ran.name]


def test_one_thread_computes_alone_and_others_as_before():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with single("painter") as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
            assert pool.submit(threading.current_thread).result().name.startswith("painter")
            assert torch.get_num_threads() == aside(torch.get_num_threads) == 3
    finally:
        torch.set_num_threads(threads)
