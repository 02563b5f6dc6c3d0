"""Memory and files: what a workload holds."""

import ctypes
import fcntl
import hashlib
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from zoo.animal import LIBC, animal, expect, fork


@animal
def shared_memory() -> Iterator[None]:
    """Anonymous memory shared by two processes: each sees what the other writes."""
    memory = mmap.mmap(-1, 1 << 20)
    asked, answered = os.pipe(), os.pipe()

    def double() -> None:
        while os.read(asked[0], 1):
            value = struct.unpack_from("Q", memory)[0]
            struct.pack_into("Q", memory, 8, value * 2)
            os.write(answered[1], b"!")

    fork(double)
    yield
    while True:
        value = int.from_bytes(os.urandom(4), "little")
        struct.pack_into("Q", memory, 0, value)
        os.write(asked[1], b"?")
        os.read(answered[0], 1)
        expect(struct.unpack_from("Q", memory, 8)[0] == value * 2, "the memory is not shared")
        yield


@animal
def sysv_shared_memory() -> Iterator[None]:
    """System V shared memory, attached."""
    LIBC.shmat.restype = ctypes.c_void_p
    identifier = LIBC.shmget(0x4B59, 4096, 0o1600)
    address = LIBC.shmat(identifier, None, 0)
    expect(address not in (None, ctypes.c_void_p(-1).value), "no shared memory")
    ctypes.memmove(address, b"system five", 11)
    yield
    while True:
        expect(ctypes.string_at(address, 11) == b"system five", "its content differs")
        again = LIBC.shmat(LIBC.shmget(0x4B59, 4096, 0o600), None, 0)
        expect(ctypes.string_at(again, 11) == b"system five", "its key is lost")
        yield


@animal
def one_gibibyte() -> Iterator[None]:
    """1 GiB of memory, no two pages alike, with a digest."""
    size = 1 << 20
    block = memoryview(os.urandom(size) * 2)
    memory = mmap.mmap(-1, size << 10, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for place in range(1 << 10):
        memory[place * size : (place + 1) * size] = block[place : place + size]
    digest = ""
    yield
    while True:
        now = hashlib.sha256(memory).hexdigest()
        expect(digest in {"", now}, "the memory differs")
        digest = now
        yield


@animal
def memory_file() -> Iterator[None]:
    descriptor = os.memfd_create("zoo")
    os.write(descriptor, b"memfd" * 100)
    yield
    while True:
        expect(os.pread(descriptor, 500, 0) == b"memfd" * 100, "the content differs")
        yield


@animal
def mapped_files() -> Iterator[None]:
    """A shared mapping that writes through, a private one with changes of its own."""
    path = Path("/var/tmp/mapped")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"a" * 8192)
    with path.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 8192, mmap.MAP_SHARED)
        private = mmap.mmap(file.fileno(), 8192, mmap.MAP_PRIVATE)
    private[:4] = b"mine"
    turn = 0
    yield
    while True:
        turn += 1
        word = f"{turn:08d}".encode()
        shared[4096:4104] = word
        expect(path.read_bytes()[4096:4104] == word, "the mapping does not write through")
        expect(private[:4] == b"mine", "the private change is lost")
        yield


@animal
def deleted_file() -> Iterator[None]:
    """An open file that has no name any more, with its position."""
    path = Path("/var/tmp/deleted")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w+b")
    file.write(b"ghost" * 5000)
    file.seek(12345)
    path.unlink()
    yield
    while True:
        expect(file.tell() == 12345, f"the position is {file.tell()}")
        file.seek(0)
        expect(file.read() == b"ghost" * 5000, "the content differs")
        expect(not path.exists(), "the name is back")
        file.seek(12345)
        yield


@animal
def replaced_file() -> Iterator[None]:
    """A file that was replaced by another of its name while open."""
    first = Path("/var/tmp/replaced")
    first.parent.mkdir(parents=True, exist_ok=True)
    first.write_text("old")
    file = first.open()
    second = Path("/var/tmp/replacement")
    second.write_text("new")
    second.rename(first)
    yield
    while True:
        file.seek(0)
        expect(file.read() == "old", "the open file changed")
        expect(first.read_text() == "new", "the new file is lost")
        yield


@animal
def tmpfs() -> Iterator[None]:
    """Files on a tmpfs of the container, one of them open."""
    folder = Path("/dev/shm")
    (folder / "kept").write_bytes(b"tmpfs" * 1000)
    (folder / "kept").chmod(0o640)
    (folder / "link").symlink_to("kept")
    file = (folder / "open").open("w+b")
    file.write(b"open")
    file.flush()
    yield
    while True:
        expect((folder / "kept").read_bytes() == b"tmpfs" * 1000, "the content differs")
        expect(stat.S_IMODE((folder / "kept").stat().st_mode) == 0o640, "the mode differs")
        expect((folder / "link").readlink() == Path("kept"), "the link differs")
        file.seek(0)
        expect(file.read() == b"open", "the open file differs")
        yield


@animal
def root_filesystem() -> Iterator[None]:
    """Created, changed, deleted, linked, owned, moded, sparse, attributed."""
    home = Path("/srv/zoo")
    home.mkdir(parents=True)
    (home / "file").write_text("content")
    (home / "hard").hardlink_to(home / "file")
    (home / "soft").symlink_to("../elsewhere")
    (home / "owned").touch()
    os.chown(home / "owned", 1234, 5678)
    (home / "owned").chmod(0o4711)
    with (home / "sparse").open("wb") as sparse:
        sparse.seek(64 << 20)
        sparse.write(b"end")
    os.mkfifo(home / "fifo")
    os.utime(home / "file", ns=(1_000_000_007, 2_000_000_009))
    os.setxattr(home / "file", "user.zoo", b"attribute")
    Path("/etc/hosts").unlink()
    with Path("/etc/passwd").open("a") as passwd:
        passwd.write("zoo:x:1234:5678::/:/bin/sh\n")
    yield
    while True:
        expect((home / "file").read_text() == "content", "the file differs")
        expect((home / "hard").samefile(home / "file"), "the hard link is a copy")
        expect((home / "soft").readlink() == Path("../elsewhere"), "the link differs")
        owned = (home / "owned").stat()
        expect((owned.st_uid, owned.st_gid) == (1234, 5678), "the owner differs")
        expect(stat.S_IMODE(owned.st_mode) == 0o4711, "the mode differs")
        sparse_stat = (home / "sparse").stat()
        expect(sparse_stat.st_size == (64 << 20) + 3, "the sparse file's size differs")
        expect(sparse_stat.st_blocks * 512 < 1 << 20, "the sparse file is full")
        expect(stat.S_ISFIFO((home / "fifo").stat().st_mode), "the fifo is gone")
        expect((home / "file").stat().st_mtime_ns == 2_000_000_009, "the time differs")
        expect(os.getxattr(home / "file", "user.zoo") == b"attribute", "the attribute is lost")
        expect(not Path("/etc/hosts").exists(), "the deleted file is back")
        expect("zoo:x:1234" in Path("/etc/passwd").read_text(), "the changed file is as of old")
        yield


@animal
def file_locks() -> Iterator[None]:
    """A flock and a POSIX lock that keep others out."""
    path = Path("/var/tmp/locked")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"0" * 100)
    held = path.open("r+b")
    fcntl.flock(held, fcntl.LOCK_EX)
    ranged = os.open("/var/tmp/ranged", os.O_RDWR | os.O_CREAT)
    fcntl.lockf(ranged, fcntl.LOCK_EX, 10, 5)
    yield
    while True:
        expect(_locked_for_another_file(path), "the flock is lost")
        expect(_locked_for_a_child(Path("/var/tmp/ranged")), "the POSIX lock is lost")
        yield


def _locked_for_another_file(path: Path) -> bool:
    with path.open("r+b") as other:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _locked_for_a_child(path: Path) -> bool:
    pid = os.fork()
    if not pid:
        try:
            with path.open("r+b") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
