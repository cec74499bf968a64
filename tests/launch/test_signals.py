import signal
import threading

import pytest

from megatron_reason.errors import StoppedError
from megatron_reason.launch.signals import STOP_SIGNALS, interruptible


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_becomes_an_error_that_asks_for_a_restart(number):
    before = [signal.getsignal(n) for n in STOP_SIGNALS]
    with pytest.raises(StoppedError) as caught, interruptible("stage 'x'"):
        signal.raise_signal(number)
    assert caught.value.exit_code == 75
    assert caught.value.where == "stage 'x'"
    assert signal.Signals(number).name in caught.value.what
    assert [signal.getsignal(n) for n in STOP_SIGNALS] == before


def test_other_threads_leave_signals_alone():
    ran: list[bool] = []

    def work() -> None:
        with interruptible("x"):
            ran.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [True]
