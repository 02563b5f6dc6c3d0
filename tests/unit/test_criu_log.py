from pathlib import Path

import pytest

from node_worker.criu_log import LAST_LINES, explain, read_log
from schemas import reasons

UNSUPPORTED_DEVICE = """\
(00.004512) ----------------------------------------
(00.004516) Dumping task (pid: 4711 comm: train)
(00.009120) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.009218) 4711 fdinfo 7: pos: 0x0 flags: 100002/0x1
(00.009301) Error (criu/files-ext.c:94): Can't dump file 7 of that type [20666] (chr 10:229 /dev/fuse)
(00.009333) ----------------------------------------
(00.009340) Error (criu/cr-dump.c:1674): Dump files (pid: 4711) failed with -1
(00.010155) Unlock network
(00.010168) Unfreezing tasks into 1
(00.010333) Error (criu/cr-dump.c:2111): Dumping FAILED.
"""  # noqa: E501

DISK_FULL = """\
(00.113421) page-pipe: Grow pipe 200 -> 400
(00.181223) Error (criu/image.c:845): Can't write img file: No space left on device
(00.181290) Error (criu/cr-dump.c:2111): Dumping FAILED.
"""

MISSING_FILE = """\
(00.055511)      1: `- FD 3 pid 1
(00.055602)      1: Error (criu/files-reg.c:2262): Can't open file data/log on restore: No such file or directory
(00.055690) Error (criu/cr-restore.c:2557): Restoring FAILED.
"""  # noqa: E501


def test_the_first_known_error_is_the_cause_and_the_log_stays_visible() -> None:
    cause = explain(UNSUPPORTED_DEVICE, otherwise=reasons.DUMP_FAILED)

    assert cause.reason == reasons.CANNOT_BE_CHECKPOINTED
    assert "/dev/fuse" in cause.message
    assert cause.advice
    assert cause.lines[-1].endswith("Dumping FAILED.")
    assert "criu: (00.009301) Error" in str(cause)


def test_a_full_disk_is_told_as_one() -> None:
    assert explain(DISK_FULL, otherwise=reasons.DUMP_FAILED).reason == reasons.DISK_FULL


def test_errors_of_a_restored_process_are_read_too() -> None:
    cause = explain(MISSING_FILE, otherwise=reasons.RESTORE_FAILED)

    assert cause.reason == reasons.RESTORE_FAILED
    assert "data/log" in cause.message
    assert "same image" in cause.advice


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("fsnotify: \tCan't dump that handle", reasons.CANNOT_BE_CHECKPOINTED),
        ("inet: Connected TCP socket, consider using --tcp-established option.",
         reasons.OUTSIDE_CONNECTION),
        ("inet: In-flight connection (l) for 2f", reasons.CANNOT_BE_CHECKPOINTED),
        ("inet: Unsupported proto 262 for socket 2f", reasons.CANNOT_BE_CHECKPOINTED),
        ("Some file locks are hold by dumping tasks! You can try --file-locks to dump them.",
         reasons.CANNOT_BE_CHECKPOINTED),
        ("unix: External socket is used. Consider using --ext-unix-sk option.",
         reasons.CANNOT_BE_CHECKPOINTED),
        ("tty: Found slave peer index 3 without correspond master peer",
         reasons.CANNOT_BE_CHECKPOINTED),
        ("sockets: BUG! Unknown socket collected (family 40)", reasons.CANNOT_BE_CHECKPOINTED),
        ("Unable to detach from 23729: No such process", reasons.CANNOT_BE_CHECKPOINTED),
        ("PID 12 has uprobes vma. Consider using --allow-uprobes.",
         reasons.CANNOT_BE_CHECKPOINTED),
        ("Unsupported mapping found 00007f0000000000-00007f0000001000",
         reasons.CANNOT_BE_CHECKPOINTED),
        ("Can't get rlimit 0: Operation not permitted", reasons.CANNOT_BE_CHECKPOINTED),
        ("vdso: Unexpected rt vDSO area bounds", reasons.RUNTIME_FAILED),
        ("mnt: No mapping for 812:/usr/lib/libcuda.so mountpoint",
         reasons.CANNOT_BE_CHECKPOINTED),
        ("File usr/lib/libc.so.6 has bad size 12 (expect 13)", reasons.RESTORE_FAILED),
        ("inet: Can't bind inet socket (id 4): Cannot assign requested address",
         reasons.RESTORE_FAILED),
        ("Can't fork for 17: File exists", reasons.RESTORE_FAILED),
        ("CPU xfeatures has unsupported bits (0x200)", reasons.HOST_MISFIT),
        ("Can't open map_files: Cannot allocate memory", reasons.NOT_ENOUGH_MEMORY),
    ],
)  # fmt: skip
def test_known_errors_have_a_reason_and_advice(error: str, reason: str) -> None:
    cause = explain(f"(00.1) Error (criu/some.c:1): {error}\n", otherwise=reasons.RESTORE_FAILED)

    assert cause.reason == reason
    assert error in cause.message
    assert cause.advice


def test_errors_of_criu_s_parasite_are_read_too() -> None:
    log = """\
pie: 20757: Error (criu/pie/parasite.c:588): send_fds failed (-22)

(00.128758) Error (criu/parasite-syscall.c:280): Can't retrieve FDs from socket
"""
    cause = explain(log, otherwise=reasons.DUMP_FAILED)

    assert cause.reason == reasons.CANNOT_BE_CHECKPOINTED
    assert "send_fds failed" in cause.message


def test_an_unknown_error_is_told_in_criu_s_words() -> None:
    log = "(00.1) fine\n(00.2) Error (criu/x.c:9): Flux overflow\n(00.3) Error (a.c:1): later\n"
    cause = explain(log, otherwise=reasons.DUMP_FAILED)

    assert cause.reason == reasons.DUMP_FAILED
    assert "Flux overflow" in cause.message


def test_words_of_an_error_outside_an_error_line_do_not_count() -> None:
    log = "(00.1) Dumping path /tmp/io_uring\n(00.2) Warn  (criu/x.c:9): No space left on device\n"
    cause = explain(log, otherwise=reasons.DUMP_FAILED)

    assert cause.reason == reasons.DUMP_FAILED
    assert "without naming an error" in cause.message


def test_no_log_is_a_cause_of_its_own(tmp_path: Path) -> None:
    cause = explain(read_log(tmp_path), otherwise=reasons.DUMP_FAILED)

    assert "left no log" in cause.message
    assert cause.lines == ()


def test_only_the_last_lines_are_kept(tmp_path: Path) -> None:
    (tmp_path / "dump.log").write_text("".join(f"(0.1) line {n}\n" for n in range(9999)))
    cause = explain(read_log(tmp_path), otherwise=reasons.DUMP_FAILED)

    assert len(cause.lines) == LAST_LINES
    assert cause.lines[-1] == "(0.1) line 9998"


def test_a_log_of_any_bytes_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "dump.log").write_bytes(b"\xff\xfe Error (a.c:1): \x80odd\n")
    assert explain(read_log(tmp_path), otherwise=reasons.DUMP_FAILED).reason == reasons.DUMP_FAILED


def test_a_connection_that_is_just_being_opened_will_have_been_soon() -> None:
    opening = explain("(00.034) Error (criu/sk-inet.c:188): inet: In-flight connection (l) for 2f",
                      otherwise=reasons.DUMP_FAILED)  # fmt: skip
    other = explain("(00.034) Error (criu/tty.c:1): tty: Found slave peer index 3 without",
                    otherwise=reasons.DUMP_FAILED)  # fmt: skip

    assert opening.passes
    assert not other.passes
