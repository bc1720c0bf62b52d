"""SIGINT and SIGTERM become a request; handlers are restored."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from afzal.train.signals import EXIT_CODES, stop_on_signals


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM")])
def test_first_signal_only_asks(number, name):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert stop.requested is None
        signal.raise_signal(number)
        assert stop.requested == name
    assert signal.getsignal(number) == before
    assert EXIT_CODES[name] == 128 + number


def test_second_interrupt_raises_at_once():
    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_repeated_sigterm_keeps_saving_and_the_first_name_stays():
    with stop_on_signals() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert stop.requested == "SIGTERM"


def test_handlers_come_back_after_an_error():
    def mine(*_):
        pass

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(RuntimeError), stop_on_signals():
            raise RuntimeError
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_away_from_the_main_thread_it_does_nothing():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def body():
        with stop_on_signals() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


def test_a_sleeping_process_leaves_with_the_shells_code():
    """A real SIGTERM from outside, a loop that polls, exit code 143."""
    script = (
        "import sys, time\n"
        "from afzal.train.signals import EXIT_CODES, stop_on_signals\n"
        "with stop_on_signals() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while not stop.requested:\n"
        "        time.sleep(0.01)\n"
        "sys.exit(EXIT_CODES[stop.requested])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(timeout=60) == 143


def test_a_closed_terminal_asks_as_the_others_do():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.requested == "SIGHUP"
        assert EXIT_CODES["SIGHUP"] == 129
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_under_nohup_a_closed_terminal_changes_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.requested is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
