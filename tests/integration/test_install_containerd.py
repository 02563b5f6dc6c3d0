"""What the installer writes, read by the containerd of each release line."""

import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kybernate.cli.program import program
from kybernate.embedded.stack import LINES, Stack, find_stack
from node_worker.install import configuration

SAMPLES = Path(__file__).parents[1] / "unit/samples/containerd"
READ_BY = {
    "1.6": ("standard-v1", "kubeadm-v2", "no-last-newline-v2", "gpu-v2", "k3s-v2"),
    "1.7": ("standard-v1", "kubeadm-v2", "no-last-newline-v2", "gpu-v2", "k3s-v2"),
    "2": ("kubeadm-v2", "no-last-newline-v2", "gpu-v2", "standard-v3", "k3s-v2", "k3s-v3"),
}
CASES = [(line, sample) for line in LINES for sample in READ_BY[line]]


class Installed:
    def __init__(self, folder: Path, line: str) -> None:
        self.folder = folder
        self.stack: Stack = find_stack(line)
        self.config = folder / "config.toml"

    def call(self, verb: str, *more: str) -> Result:
        return CliRunner().invoke(
            program,
            [
                *("node", verb, "--no-restart", *more),
                *("--config", str(self.config), "--prefix", str(self.folder / "prefix")),
                *("--containerd-program", str(self.stack.containerd)),
            ],
        )

    def install(self) -> Result:
        return self.call("install", "--runc", str(self.stack.runc))

    def dump(self) -> configuration.Configuration:
        said = subprocess.run(
            [self.stack.containerd, "--config", self.config, "config", "dump"],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return configuration.read(said.stdout)


@pytest.mark.parametrize(("line", "sample"), CASES)
def test_containerd_reads_the_runtimes(folder: Path, line: str, sample: str) -> None:
    node = Installed(folder, line)
    before = (SAMPLES / f"{sample}.toml").read_text().replace("/var/lib/rancher/k3s", str(folder))
    node.config.write_text(before)
    had = node.dump()
    said = node.install()
    assert said.exit_code == 0, said.output
    for name in ("kybernate", "kybernate-gpu"):
        made = node.dump().runtimes[name]
        assert made["runtime_type"] == "io.containerd.runc.v2"
        assert "kybernate.io/*" in made["pod_annotations"]
        assert made["options"]["BinaryName"].startswith(str(folder / "prefix/bin/kybernate-"))
        was = had.base.get("options", {}).get("SystemdCgroup", False)
        assert made["options"].get("SystemdCgroup", False) is was
    assert set(had.runtimes) < set(node.dump().runtimes)
    assert "nothing to change" in node.install().output
    assert node.call("uninstall").exit_code == 0
    assert node.config.read_text() == before
    assert sorted(path.name for path in folder.iterdir()) == ["config.toml"]


def test_a_file_of_our_own_is_added_to_the_rest(folder: Path) -> None:
    node = Installed(folder, "2")
    text = (SAMPLES / "standard-v3.toml").read_text()
    text = text.replace("imports = []", f'imports = ["{folder}/conf.d/*.toml"]')
    node.config.write_text(text)
    (folder / "conf.d").mkdir()
    assert node.install().exit_code == 0
    assert node.config.read_text() == text
    assert (folder / "conf.d/kybernate.toml").exists()
    assert {"runc", "kybernate", "kybernate-gpu"} == set(node.dump().runtimes)
    assert node.dump().runtimes["kybernate"]["options"]["SystemdCgroup"] is True
    assert node.call("uninstall").exit_code == 0
    assert list((folder / "conf.d").iterdir()) == []


@pytest.mark.parametrize("line", ["1.6", "1.7"])
def test_containerd_1_finds_them_in_the_file_that_it_imports_last(folder: Path, line: str) -> None:
    node = Installed(folder, line)
    (folder / "conf.d").mkdir()
    imported = folder / "conf.d/99-nvidia.toml"
    imported.write_text((SAMPLES / "gpu-v2.toml").read_text())
    text = (SAMPLES / "kubeadm-v2.toml").read_text()
    node.config.write_text(f'imports = ["{folder}/conf.d/*.toml"]\n{text}')
    assert node.install().exit_code == 0
    assert {"nvidia", "kybernate", "kybernate-gpu"} <= set(node.dump().runtimes)


def test_what_containerd_would_not_read_is_taken_back(folder: Path) -> None:
    """containerd 2 drops what stands in a file without a version."""
    node = Installed(folder, "2")
    before = (SAMPLES / "standard-v1.toml").read_text()
    node.config.write_text(before)
    said = node.install()
    assert said.exit_code == 4
    assert "containerd would not find the runtimes kybernate, kybernate-gpu" in said.output
    assert "containerd config migrate" in said.output
    assert node.config.read_text() == before
    assert sorted(path.name for path in folder.iterdir()) == ["config.toml"]


def test_what_containerd_does_not_read_now_is_left_alone(folder: Path) -> None:
    node = Installed(folder, "1.7")
    node.config.write_text((SAMPLES / "standard-v3.toml").read_text())
    said = node.install()
    assert said.exit_code == 4
    assert "containerd does not read" in said.output


SYSTEMCTL = """#!/bin/sh
echo "$@" >>{log}
[ "$1" != is-active ] || [ "$3" = containerd ]
"""


def test_containerd_is_restarted_only_for_a_new_configuration(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Installed(folder, "2")
    node.config.write_text((SAMPLES / "standard-v3.toml").read_text())
    log = folder / "calls"
    systemctl = folder / "bin/systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(SYSTEMCTL.format(log=log))
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{systemctl.parent}:{os.environ['PATH']}")
    said = node.call("install", "--restart", "--runc", str(node.stack.runc))
    assert "restarted containerd" in said.output
    calls = ["is-active --quiet containerd", "restart containerd"]
    assert log.read_text().splitlines() == calls
    node.call("install", "--restart", "--runc", str(node.stack.runc))
    assert log.read_text().splitlines() == calls
    assert "restarted containerd" in node.call("uninstall", "--restart").output
