"""What every Shell must do, whatever the link and the shell behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import CommandFailed, LinkTimeout
from harness.shell import Shell
from tests.pace import slowness


class ShellContract:
    """Inherited by one test class a link; ``shell`` is that class's fixture."""

    #: bytes for the tests of volume: small on a slow line
    volume = 10 << 20
    #: seconds allowed for that volume
    patience = 60.0

    def test_status_and_both_streams_come_back(self, shell: Shell) -> None:
        result = shell.run("echo out; echo err >&2; exit 3")
        assert (result.status, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
        assert result.duration > 0

    def test_failure_is_checked_on_demand(self, shell: Shell) -> None:
        with pytest.raises(CommandFailed, match="exit status 9: why"):
            shell.run("echo why >&2; exit 9").check()

    @pytest.mark.parametrize("text", ["", "x", "no newline", "\n", "\n\n\n", "a\r\nb\r"])
    def test_text_arrives_as_printed(self, shell: Shell, text: str) -> None:
        octal = "".join(f"\\{ord(char):03o}" for char in text)
        assert shell.run(f"printf '{octal}'").stdout == text.encode()

    def test_every_byte_value_survives_in_both_streams(self, shell: Shell) -> None:
        every = bytes(range(256))
        octal = "".join(f"\\{byte:03o}" for byte in every)
        result = shell.run(f"printf '{octal}'; printf '{octal}' >&2")
        assert result.stdout == every
        assert result.stderr == every

    def test_every_byte_value_survives_in_standard_input(self, shell: Shell) -> None:
        every = bytes(range(256))
        assert shell.run("cat", stdin=every).stdout == every
        assert shell.run("cat", stdin=every * 20).stdout == every * 20

    def test_unread_input_is_not_run(self, shell: Shell) -> None:
        assert shell.run("true", stdin=b"echo leaked\n").stdout == b""
        assert shell.run("echo next").stdout == b"next\n"

    def test_nothing_leaks_into_the_next_command(self, shell: Shell) -> None:
        here = shell.run("pwd").stdout
        shell.run("cd /proc; leak=1; umask 777; set -e; set -u; trap 'echo trapped' 0; false")
        result = shell.run('pwd; echo "$-${leak-unset}"; umask')
        assert result.stdout.startswith(here)
        assert b"unset" in result.stdout
        assert b"trapped" not in result.stdout
        assert b"0777" not in result.stdout

    def test_exec_and_exit_do_not_end_the_lane(self, shell: Shell) -> None:
        assert shell.run("exec echo replaced").stdout == b"replaced\n"
        assert shell.run("exit 42").status == 42
        assert shell.run("kill -9 $(exec sh -c 'echo $PPID')").status == 137
        assert shell.run("echo alive").stdout == b"alive\n"

    def test_shell_syntax_is_the_commands_own(self, shell: Shell) -> None:
        command = (
            "for i in 1 2; do\n  echo \"$i 'q' \\\\ `echo b` $((i+1)) # no comment\"\ndone\n# end"
        )
        assert (
            shell.run(command).stdout == b"1 'q' \\ b 2 # no comment\n2 'q' \\ b 3 # no comment\n"
        )
        assert shell.run("if").status == 2 or shell.run("if").status == 1
        assert shell.run("echo one; \techo 'tab\there'").stdout == b"one\ntab\there\n"

    def test_text_beyond_ascii(self, shell: Shell) -> None:
        assert shell.run("echo 'Grüße €'").text == "Grüße €"

    def test_missing_program(self, shell: Shell) -> None:
        result = shell.run("no-such-program-here")
        assert result.status == 127
        assert b"not found" in result.stderr

    def test_volume_on_both_streams(self, shell: Shell) -> None:
        result = shell.run(
            f"dd if=/dev/zero bs=4096 count={self.volume // 4096} 2>/dev/null | tee /dev/stderr",
            timeout=self.patience,
        )
        assert len(result.stdout) == len(result.stderr) == self.volume
        assert not result.stdout.strip(b"\0")

    def test_a_hanging_command_ends_at_its_timeout_and_the_next_one_runs(
        self, shell: Shell
    ) -> None:
        shell.run("true")  # logs in, if nobody has yet: that takes its time
        with pytest.raises(LinkTimeout) as caught:
            shell.run("sleep 61.7", timeout=0.3 * slowness())
        assert "sleep 61.7" in str(caught.value)
        assert shell.name in str(caught.value)
        assert shell.run("echo next").stdout == b"next\n"

    def test_what_timed_out_does_not_stay_behind(self, shell: Shell) -> None:
        shell.run("true")
        with pytest.raises(LinkTimeout):
            shell.run("sleep 61.8 & wait; sleep 61.8", timeout=0.3 * slowness())
        found = shell.run("grep -l '^sleep.61.8' /proc/[0-9]*/cmdline 2>/dev/null")
        assert found.stdout == b""

    def test_isolated_lane(self, shell: Shell) -> None:
        result = shell.run_isolated("cat; echo err >&2; exit 4", stdin=b"in\0put")
        assert (result.status, result.stdout, result.stderr) == (4, b"in\0put", b"err\n")
        with pytest.raises(LinkTimeout):
            shell.run_isolated("sleep 61.9", timeout=1.5 * slowness())
        assert shell.run("echo next").stdout == b"next\n"

    def test_files_both_ways(self, shell: Shell, tmp_path: Path) -> None:
        data = bytes(range(256)) * 33 + b"\r\n"
        target = tmp_path / "it's a file"
        shell.write_file(str(target), data, mode=0o640)
        assert target.read_bytes() == data
        assert target.stat().st_mode & 0o777 == 0o640
        assert shell.read_file(str(target)) == data
        shell.write_file(str(target), b"short")
        assert shell.read_file(str(target)) == b"short"
        shell.write_file(str(target), b"")
        assert shell.read_file(str(target)) == b""

    def test_files_of_the_kernel_have_no_size(self, shell: Shell) -> None:
        assert shell.read_file("/proc/version") == Path("/proc/version").read_bytes()

    def test_file_errors_carry_the_targets_errno(self, shell: Shell, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            shell.read_file(str(tmp_path / "missing"))
        with pytest.raises(IsADirectoryError):
            shell.read_file(str(tmp_path))
        with pytest.raises(FileNotFoundError):
            shell.write_file(str(tmp_path / "missing" / "file"), b"x")

    def test_reconnect_gives_a_working_link(self, shell: Shell) -> None:
        shell.run("true")
        shell.reconnect(deadline=20)
        assert shell.run("echo back").stdout == b"back\n"

    def test_closing_twice_is_harmless(self, shell: Shell) -> None:
        shell.run("true")
        shell.close()
        shell.close()

    def test_no_timeout_goes_below_the_least_of_the_board(self, shell: Shell) -> None:
        shell.least_timeout = 20.0
        try:
            assert shell.run("sleep 1; echo done", timeout=0.2).text == "done"
            assert shell.run_isolated("sleep 1; echo done", timeout=0.2).text == "done"
        finally:
            shell.least_timeout = 0.0
