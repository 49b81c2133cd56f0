"""Stopping, waiting, exit codes."""

from __future__ import annotations

import os
import signal
import threading

from runtime.lifecycle import ConfigurationError, Exit, OperatorActionRequired, Stop, Transient, attempts, exit_code


def test_a_signal_asks_to_stop_and_the_handler_goes_away_again() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop().on_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
        assert stop.reason == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_wakes_the_main_thread_while_it_waits() -> None:
    with Stop().on_signals() as stop:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        assert stop.wait(30)
        timer.join()
    assert stop.reason == "SIGINT"


def test_all_waiters_wake_when_somebody_asks() -> None:
    stop = Stop()
    woken: list[bool] = []
    waiters = [threading.Thread(target=lambda: woken.append(stop.wait(10))) for _ in range(3)]
    for waiter in waiters:
        waiter.start()
    stop.set("test")
    for waiter in waiters:
        waiter.join(5)
    assert woken == [True] * 3


def test_the_first_reason_is_kept() -> None:
    stop = Stop()
    stop.set("first")
    stop.set("second")
    assert stop.reason == "first"


def test_waiting_in_vain_says_so() -> None:
    assert not Stop().wait(0.001)


def test_attempts_go_on_until_asked_to_stop() -> None:
    stop = Stop()
    seen = []
    for attempt in attempts(stop, first_s=0.0001, longest_s=0.001):
        seen.append(attempt)
        if attempt == 5:
            stop.set()
    assert seen == [1, 2, 3, 4, 5]


def test_exit_codes_say_what_to_do() -> None:
    assert exit_code(ConfigurationError("x")) is Exit.USAGE
    assert exit_code(OperatorActionRequired("x")) == 3
    assert exit_code(Transient("x")) is exit_code(ValueError()) is Exit.FAILED


def test_an_error_says_what_where_and_what_to_do() -> None:
    assert (
        str(OperatorActionRequired("offset 9 is gone", where="items/0", hint="adopt it"))
        == "offset 9 is gone [items/0]\n  -> adopt it"
    )
