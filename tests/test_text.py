"""Text from outside on terminals, in logs and in reports: control codes, logins, markup."""

from __future__ import annotations

import io
import logging
import os
import sys

import pytest

from medisseg.errors import UserError, command
from medisseg.text import SafeFormatter, console, plain, safe, without_password

SECRET = "5ecret"
ADDRESSES = [
    (f"rtsp://admin:{SECRET}@10.0.0.5:554/live", "rtsp://10.0.0.5:554/live"),
    (f"rtps://admin:{SECRET}@10.0.0.5/live", "rtps://10.0.0.5/live"),
    (f"rtsp://admin:P#{SECRET}@10.0.0.5/live", "rtsp://10.0.0.5/live"),
    (f"rtsp://admin:P/{SECRET}@10.0.0.5/live", "rtsp://10.0.0.5/live"),
    (f"rtsp://admin:P?{SECRET}@10.0.0.5/live", "rtsp://10.0.0.5/live"),
    (f"rtsp://admin:P@{SECRET}@10.0.0.5/live", "rtsp://10.0.0.5/live"),
    (f"rtsp://admin:P[{SECRET}@10.0.0.5/live", "rtsp://10.0.0.5/live"),
    (f"rtsp://10.0.0.5/live?user=a_password={SECRET}_", "rtsp://10.0.0.5/live"),
    (f"rtsp://10.0.0.5/user=a_password={SECRET}_/1", "rtsp://10.0.0.5/***/1"),
    (f"rtsp://10.0.0.5/live;password={SECRET}", "rtsp://10.0.0.5/live"),
    (f"rtsp://10.0.0.5/live#{SECRET}", "rtsp://10.0.0.5/live"),
    (f"rtsp://admin:my {SECRET}@10.0.0.5/live", "rtsp://10.0.0.5/live"),
    (f"RTSP:/admin:{SECRET}@10.0.0.5/live", "RTSP:/10.0.0.5/live"),
    (f"rtsp:admin:{SECRET}@10.0.0.5/live", "rtsp:10.0.0.5/live"),
    (f"rtsp://10.0.0.5/user%3Da_password%3d{SECRET}_/1", "rtsp://10.0.0.5/***/1"),
    (f"rtsp://10.0.0.5/admin:{SECRET}/1", "rtsp://10.0.0.5/***/1"),
    (f"http://10.0.0.5/token/{SECRET}/1", "http://10.0.0.5/token/***/1"),
    (f"admin:{SECRET}@10.0.0.5/live", "***@10.0.0.5/live"),
    (f"//admin:{SECRET}@10.0.0.5/live", "//***@10.0.0.5/live"),
    ("rtsp://[fe80::1]:554/live", "rtsp://[fe80::1]:554/live"),
    ("exam.mp4", "exam.mp4"),
]


@pytest.mark.parametrize(("address", "shown"), ADDRESSES)
def test_no_login_is_left_in_an_address(address: str, shown: str) -> None:
    assert without_password(address) == shown
    assert safe(f"lost: {address} (timed out)") == f"lost: {shown} (timed out)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nerror: forged", r"a\nerror: forged"),
        ("a\x1b[2J\x1b]0;title\x07", r"a\x1b[2J\x1b]0;title\x07"),
        ("a\rb\x9bb", r"a\rb\x9bb"),
        ("cod\u202egpj.exe", r"cod\u202egpj.exe"),
        ("bad \udcff byte", r"bad \udcff byte"),
        ("Ünïcode, 内視鏡", "Ünïcode, 内視鏡"),
    ],
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_an_error_is_one_safe_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: object) -> int:
        raise UserError(f"x\n\x1b[31m: rtsp://a:{SECRET}@host/1 cannot be read")

    with pytest.raises(SystemExit) as end:
        command(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: x\\n\\x1b[31m: rtsp://host/1 cannot be read\n"


def test_a_log_is_safe_and_its_tracebacks_are_whole() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        found = sys.exc_info()
    record = logging.LogRecord(
        "deploy", logging.ERROR, "", 1, "%s: lost", ("rtsp://a:b@h/1\x1b",), found
    )
    shown = SafeFormatter("%(message)s").format(record).splitlines()
    assert shown[0] == "rtsp://h/1\\x1b: lost" and shown[-1] == "ValueError: broken"


def test_names_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.table import Table

    terminal = console(width=200)
    terminal.file = io.StringIO()
    table = Table("[bold]name[/bold]", title="inj/a[/b].mp4")
    table.add_row("inj/a[/b].mp4\x1b[2J")
    terminal.print(table)
    terminal.print("inj/a[/b].mp4")
    shown = terminal.file.getvalue()
    assert shown.count("a[/b].mp4") == 3 and "[bold]name[/bold]" in shown
    assert "\x1b" not in shown


def test_a_name_that_is_too_long_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def opens(_: object) -> None:
        os.stat("x" * 3000)

    with pytest.raises(SystemExit) as ended:
        command(opens)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: xxx")
