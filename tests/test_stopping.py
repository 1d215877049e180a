"""Asked once, the batch ends first; asked twice, at once; the handlers are put back."""

import os
import signal

import pytest

from tdrs.stopping import stoppable


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_asks_the_second_interrupts(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with stoppable() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.requested
        assert "once more stops at once" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
