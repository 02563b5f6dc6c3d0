"""The CRIU that a shim's runc would run is asked, wherever the worker itself looks for programs."""

from pathlib import Path

import pytest

from node_worker.containerd.options import runc_options
from node_worker.containerd.port import Container, Packed
from node_worker.criu_program import takes_limits_from_proc

SHIM = 42


def criu(folder: Path, *, knows: bool) -> Path:
    folder.mkdir()
    (folder / "criu").write_text(
        f'#!/bin/sh\n[ "$*" = "check --feature limits_from_proc" ] && exit {int(not knows)}\n'
    )
    (folder / "criu").chmod(0o755)
    return folder


def shim(proc: Path, path: Path) -> None:
    (proc / f"{SHIM}").mkdir(parents=True)
    (proc / f"{SHIM}/root").symlink_to("/")
    (proc / f"{SHIM}/environ").write_bytes(b"HOME=/root\0PATH=%s\0" % bytes(path))


def container(runc: Path | None = None) -> Container:
    options = runc_options(root=Path("/run/runc"), binary_name=str(runc or ""))
    return Container(id="c1", spec=Packed(type_url="", value=b"{}"), runtime_options=options)


@pytest.mark.parametrize("knows", [True, False])
def test_the_one_in_the_path_of_the_shim(tmp_path: Path, *, knows: bool) -> None:
    proc = tmp_path / "proc"
    shim(proc, criu(tmp_path / "bin", knows=knows))

    assert takes_limits_from_proc(SHIM, container(), proc=proc) is knows
    assert takes_limits_from_proc(SHIM, container(Path("/usr/sbin/runc")), proc=proc) is knows


def test_the_one_that_the_wrapper_puts_first(tmp_path: Path) -> None:
    proc, wrapper = tmp_path / "proc", tmp_path / "kybernate-runc"
    shim(proc, criu(tmp_path / "bin", knows=False))
    ours = criu(tmp_path / "ours", knows=True)

    wrapper.with_suffix(".conf").write_text(f"RUNC='/usr/sbin/runc'\nCRIU='{ours}'\nTIMEOUT=100\n")
    assert takes_limits_from_proc(SHIM, container(wrapper), proc=proc)
    wrapper.with_suffix(".conf").write_text("CRIU=''\n")
    assert not takes_limits_from_proc(SHIM, container(wrapper), proc=proc)


def test_one_that_cannot_be_asked_will_tell_by_itself(tmp_path: Path) -> None:
    assert takes_limits_from_proc(SHIM, container(), proc=tmp_path), "the shim has gone"
    shim(tmp_path, tmp_path / "nowhere")
    assert takes_limits_from_proc(SHIM, container(), proc=tmp_path), "there is no CRIU"
