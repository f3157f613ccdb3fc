import re
import threading
from collections.abc import Callable

import pytest

from ostler.control.console import HISTORY_BYTES, LAG_BYTES, TRIM_BYTES, SerialConsole
from ostler.errors import GuestError, WaitTimeout


@pytest.fixture
def console() -> SerialConsole:
    return SerialConsole()


def answering(console: SerialConsole, answer: Callable[[str], bytes]) -> None:
    """Play a shell: echo what is typed and print `answer` to it."""

    def on_input() -> None:
        typed = console.receive(1 << 16)
        if typed:
            console.transmit(typed.replace(b"\n", b"\r\n"))
            console.transmit(answer(typed.decode()))

    console.connect(on_input)


def shell(status: int, output: bytes) -> Callable[[str], bytes]:
    """What a shell prints for `SerialConsole.run`."""

    def answer(typed: str) -> bytes:
        mark = re.search("<[0-9a-f]+", typed)
        assert mark is not None
        begin, end = f"{mark[0]}:begin>\r\n".encode(), f"{mark[0]}:end:{status}>\r\n".encode()
        return begin + output + end

    return answer


def test_console_wait_for_returns_up_to_the_match(console: SerialConsole) -> None:
    console.transmit(b"Debian login: x")
    assert console.wait_for("login:") == "Debian login:"
    assert console.wait_for("x") == " x"


def test_console_wait_for_plain_text_is_no_expression(console: SerialConsole) -> None:
    console.transmit(b"axb a.b")
    assert console.wait_for("a.b") == "axb a.b"


def test_console_wait_for_takes_an_expression(console: SerialConsole) -> None:
    console.transmit(b"up 12 s")
    assert console.wait_for(re.compile(r"\d+")) == "up 12"


def test_console_wait_for_sees_what_comes_later(console: SerialConsole) -> None:
    printer = threading.Timer(0.01, console.transmit, [b"ready"])
    printer.start()
    assert console.wait_for("ready", timeout=5) == "ready"
    printer.join()


def test_console_wait_for_too_long_shows_the_last_words(console: SerialConsole) -> None:
    console.transmit(b"stuck here")
    with pytest.raises(WaitTimeout, match=r"did not print 'login:' .*'stuck here'"):
        console.wait_for("login:", timeout=0)


def test_console_wait_for_guest_that_ends_says_how(console: SerialConsole) -> None:
    console.transmit(b"bye")
    console.end("the guest has ended (power-off)")
    assert console.wait_for("bye") == "bye"
    with pytest.raises(GuestError, match=r"\(power-off\), before it printed 'login:'"):
        console.wait_for("login:")


def test_console_run_returns_the_output_alone(console: SerialConsole) -> None:
    answering(console, shell(0, b"one\r\ntwo\r\n"))
    assert console.run("ls") == "one\ntwo\n"


def test_console_run_with_bad_status_raises(console: SerialConsole) -> None:
    answering(console, shell(127, b"not found\r\n"))
    with pytest.raises(GuestError, match="'foo' ended with status 127: 'not found"):
        console.run("foo")
    assert console.run("foo", check=False) == "not found\n"


def test_console_run_whose_end_a_message_of_the_kernel_follows_returns(
    console: SerialConsole,
) -> None:
    def answer(typed: str) -> bytes:
        return shell(3, b"out\r\n")(typed).removesuffix(b"\r\n") + b"[    5.1] eth0: up\r\n\r\n"

    answering(console, answer)
    assert console.run("ls", check=False) == "out\n"
    with pytest.raises(GuestError, match="ended with status 3: 'out"):
        console.run("ls")


def test_console_run_that_takes_too_long_names_the_command(console: SerialConsole) -> None:
    console.transmit(b"login: ")
    with pytest.raises(WaitTimeout) as stuck:
        console.run("ls", timeout=0)
    assert str(stuck.value) == (
        "the guest did not start 'ls' within 0 s; its last words: 'login: '"
    )

    def begin(typed: str) -> bytes:
        return f"{typed.split()[2][1:10]}:begin>\r\nworking\r\n".encode()

    answering(console, begin)
    with pytest.raises(WaitTimeout, match=r"did not finish 'make' within .*'\\r\\nworking"):
        console.run("make", timeout=0)


def test_console_history_keeps_the_end(console: SerialConsole) -> None:
    console.transmit(b"start")
    console.transmit(b"x" * (HISTORY_BYTES + TRIM_BYTES))
    console.transmit(b"end")
    assert len(console.history) <= HISTORY_BYTES + TRIM_BYTES
    assert console.history.endswith("xend")
    assert console.position() == HISTORY_BYTES + TRIM_BYTES + 8


def test_console_guest_waits_for_who_copies(console: SerialConsole) -> None:
    console.connect(lambda: None)
    console.copied(0)
    guest = threading.Thread(target=console.transmit, args=[bytes(LAG_BYTES + 1)])
    guest.start()
    guest.join(0.02)
    assert guest.is_alive()
    console.copied(1)
    guest.join()


def test_console_disconnected_guest_waits_for_nobody(console: SerialConsole) -> None:
    console.copied(0)
    console.transmit(bytes(2 * LAG_BYTES))
    assert console.position() == 2 * LAG_BYTES


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        (b"Kernel panic - not syncing: Attempted to kill init!\r\n", "Attempted to kill init!"),
        (b"all is well\r\n", None),
    ],
)
def test_console_finds_a_panic(console: SerialConsole, printed: bytes, reason: str | None) -> None:
    console.transmit(b"Kernel panic - not syncing: in the boot before\r\n")
    since = console.position()
    console.transmit(printed)
    assert console.find_panic(since) == reason
