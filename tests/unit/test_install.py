"""The installer over the files of each distribution, seen below a folder."""

import shutil
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from click.testing import CliRunner, Result

from kybernate.cli.program import program
from node_worker.install import configuration

SAMPLES = Path(__file__).parent / "samples/containerd"
RANCHER = "var/lib/rancher/{}/agent/etc/containerd"
SNAP = "var/snap/microk8s/current"


class Tree:
    """A node's file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "opt").mkdir()

    def put(self, path: str, sample: str | None = None) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((SAMPLES / sample).read_bytes() if sample else b"")
        return target

    def everything(self) -> dict[str, tuple[int, bytes]]:
        return {
            str(path.relative_to(self.root)): (
                stat.S_IMODE(path.stat().st_mode),
                path.read_bytes() if path.is_file() else b"",
            )
            for path in self.root.rglob("*")
        }

    def call(self, *arguments: str) -> Result:
        return CliRunner().invoke(program, ["node", *arguments, "--root", str(self.root)])

    def runtimes(self, path: str) -> set[str]:
        text = (self.root / path).read_text().replace('{{ template "base" . }}', "")
        return set(configuration.read(text).runtimes)


def standard(tree: Tree) -> str:
    tree.put("etc/containerd/config.toml", "kubeadm-v2.toml").chmod(0o600)
    tree.put("usr/sbin/runc")
    return "etc/containerd/config.toml"


def old(tree: Tree) -> str:
    tree.put("usr/bin/runc")
    tree.put("etc/containerd/config.toml", "standard-v1.toml")
    return "etc/containerd/config.toml"


def with_drop_ins(tree: Tree) -> str:
    tree.put("usr/bin/runc")
    config = tree.put("etc/containerd/config.toml", "standard-v3.toml")
    imports = 'imports = ["/etc/containerd/conf.d/*.toml"]'
    config.write_text(config.read_text().replace("imports = []", imports))
    (tree.root / "etc/containerd/conf.d").mkdir()
    return "etc/containerd/conf.d/kybernate.toml"


def with_last_word(tree: Tree) -> str:
    """containerd 1 takes the whole section from the file that is imported last."""
    tree.put("usr/bin/runc")
    tree.put("etc/containerd/conf.d/99-nvidia.toml", "gpu-v2.toml")
    tree.put("usr/bin/nvidia-container-runtime")
    config = tree.put("etc/containerd/config.toml", "kubeadm-v2.toml")
    config.write_text('imports = ["conf.d/*.toml"]\n' + config.read_text())
    return "etc/containerd/conf.d/99-nvidia.toml"


def microk8s(tree: Tree) -> str:
    tree.put(f"{SNAP}/args/containerd-template.toml", "microk8s-template.toml")
    tree.put(f"{SNAP}/args/containerd.toml", "microk8s-template.toml")
    tree.put("snap/microk8s/current/bin/runc")
    return f"{SNAP}/args/containerd-template.toml"


def k3s(tree: Tree) -> str:
    tree.put(RANCHER.format("k3s") + "/config.toml", "k3s-v2.toml")
    tree.put("var/lib/rancher/k3s/data/current/bin/runc")
    return RANCHER.format("k3s") + "/config.toml.tmpl"


def k3s_with_template(tree: Tree) -> str:
    tree.put(RANCHER.format("k3s") + "/config.toml.tmpl", "k3s-template-v2.tmpl")
    return k3s(tree)


def k3s_with_containerd_2(tree: Tree) -> str:
    tree.put(RANCHER.format("k3s") + "/config.toml", "k3s-v3.toml")
    tree.put("var/lib/rancher/k3s/data/current/bin/runc")
    return RANCHER.format("k3s") + "/config-v3.toml.tmpl"


def k3s_with_drop_ins(tree: Tree) -> str:
    k3s_with_containerd_2(tree)
    (tree.root / RANCHER.format("k3s") / "config-v3.toml.d").mkdir()
    return RANCHER.format("k3s") + "/config-v3.toml.d/kybernate.toml"


def rke2(tree: Tree) -> str:
    tree.put(RANCHER.format("rke2") + "/config.toml", "k3s-v2.toml")
    tree.put("var/lib/rancher/rke2/bin/runc")
    return RANCHER.format("rke2") + "/config.toml.tmpl"


NODES = [
    standard,
    old,
    with_drop_ins,
    with_last_word,
    microk8s,
    k3s,
    k3s_with_template,
    k3s_with_containerd_2,
    k3s_with_drop_ins,
    rke2,
]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.parametrize("lay_out", NODES)
def test_installed_again_and_undone(tree: Tree, lay_out: Callable[[Tree], str]) -> None:
    written = lay_out(tree)
    before = tree.everything()
    shown = tree.call("install", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert tree.everything() == before
    assert "kybernate-gpu.options" in shown.output

    said = tree.call("install")
    assert said.exit_code == 0, said.output
    after = tree.everything()
    assert {"kybernate", "kybernate-gpu"} <= tree.runtimes(written)
    changed = {path for path in before if after[path] != before[path]}
    assert changed <= {written, "opt"}
    assert after["opt/kybernate/bin/kybernate-runc"][0] == 0o755

    again = tree.call("install")
    assert "nothing to change" in again.output
    assert tree.everything() == after

    undone = tree.call("uninstall")
    assert undone.exit_code == 0, undone.output
    assert tree.everything() == before
    assert "nothing to change" in tree.call("uninstall").output


@pytest.mark.parametrize(
    ("lay_out", "runc"),
    [
        (standard, "/usr/sbin/runc"),
        (microk8s, "/snap/microk8s/current/bin/runc"),
        (k3s, "/var/lib/rancher/k3s/data/current/bin/runc"),
        (rke2, "/var/lib/rancher/rke2/bin/runc"),
        (with_last_word, "/usr/bin/runc"),
    ],
)
def test_the_wrapper_is_told_of_the_nodes_runc(
    tree: Tree, lay_out: Callable[[Tree], str], runc: str
) -> None:
    lay_out(tree)
    assert tree.call("install", "--runtime-state", "/run/elsewhere").exit_code == 0
    bin_ = tree.root / "opt/kybernate/bin"
    said = (bin_ / "kybernate-runc.conf").read_text()
    assert f"RUNC='{runc}'\n" in said
    assert "STATE='/run/elsewhere'\n" in said
    assert "CRIU=''\n" in said
    nvidia = lay_out is with_last_word
    gpu = "/usr/bin/nvidia-container-runtime" if nvidia else runc
    assert f"RUNC='{gpu}'\n" in (bin_ / "kybernate-gpu-runc.conf").read_text()


def test_the_sample_of_the_settings_has_what_the_installer_writes(tree: Tree) -> None:
    standard(tree)
    tree.call("install")
    sample = Path(__file__).parents[2] / "deploy/runtime/kybernate-runc.conf"
    written = tree.root / "opt/kybernate/bin/kybernate-runc.conf"
    names = [
        [line.partition("=")[0] for line in path.read_text().splitlines() if line[:1].isupper()]
        for path in (sample, written)
    ]
    assert names[0] == names[1]


def test_criu_is_copied_with_its_libraries_and_removed(tree: Tree, tmp_path: Path) -> None:
    standard(tree)
    criu = tree.root / "elsewhere"
    (criu / "bin").mkdir(parents=True)
    (criu / "lib").mkdir()
    (criu / "bin/criu").write_bytes(b"\x7fELF\0")
    (criu / "lib/libnet.so.1").write_bytes(b"\x7fELF\0lib")
    before = tree.everything()
    assert tree.call("install", "--criu", str(criu)).exit_code == 0
    there = tree.root / "opt/kybernate/criu"
    assert (there / "lib/libnet.so.1").read_bytes() == b"\x7fELF\0lib"
    assert stat.S_IMODE((there / "bin/criu").stat().st_mode) == 0o755
    conf = tree.root / "opt/kybernate/bin/kybernate-runc.conf"
    assert "CRIU='/opt/kybernate/criu/bin'\n" in conf.read_text()
    assert tree.call("uninstall").exit_code == 0
    assert tree.everything() == before


def test_what_others_put_beside_it_stays(tree: Tree) -> None:
    standard(tree)
    tree.call("install")
    tree.put("opt/kybernate/bin/mine")
    tree.call("uninstall")
    left = [path.name for path in (tree.root / "opt/kybernate/bin").iterdir()]
    assert left == ["mine"]


def test_a_newer_wrapper_needs_no_restart(tree: Tree) -> None:
    standard(tree)
    assert "do that" in tree.call("install").output
    (tree.root / "opt/kybernate/bin/kybernate-runc").write_text("old")
    said = tree.call("install")
    assert "kybernate-runc" in said.output
    assert "do that" not in said.output


def test_while_containers_run_by_it_the_wrapper_stays(tree: Tree) -> None:
    standard(tree)
    tree.call("install")
    task = "run/containerd/io.containerd.runtime.v2.task/k8s.io/c1"
    options = tree.put(f"{task}/options.json")
    options.write_text('{"binary_name":"/opt/kybernate/bin/kybernate-runc"}')
    before = tree.everything()
    said = tree.call("uninstall")
    assert said.exit_code == 4
    assert "1 containers run by /opt/kybernate/bin, such as c1" in said.output
    assert tree.everything() == before
    shutil.rmtree(options.parent)
    assert tree.call("uninstall").exit_code == 0


def test_they_are_looked_for_where_this_containerd_keeps_them(tree: Tree) -> None:
    standard(tree)
    config = tree.root / "etc/containerd/config.toml"
    text = config.read_text()
    version, _, rest = text.partition("\n")
    config.write_text(f'{version}\nstate = "/srv/containerd"\n{rest}')
    tree.call("install")
    task = "srv/containerd/io.containerd.runtime.v2.task/k8s.io/c1"
    tree.put(f"{task}/options.json").write_text('{"b":"/opt/kybernate/bin/kybernate-runc"}')
    assert tree.call("uninstall").exit_code == 4


def test_the_one_that_is_named_is_taken(tree: Tree) -> None:
    standard(tree)
    written = k3s(tree)
    assert "containerd of: k3s" in tree.call("install", "--dry-run").output
    said = tree.call("install", "--distribution", "standard")
    assert "containerd of: standard" in said.output
    assert not (tree.root / written).exists()


def test_a_node_without_a_configuration_gets_one_and_loses_it_again(tree: Tree) -> None:
    tree.put("usr/bin/runc")
    (tree.root / "etc/mine").mkdir(parents=True)
    before = tree.everything()
    config = PurePosixPath("/etc/mine/config.toml")
    assert tree.call("install", "--config", str(config)).exit_code == 0
    assert tree.runtimes("etc/mine/config.toml") == {"runc", "kybernate", "kybernate-gpu"}
    assert tree.call("uninstall", "--config", str(config)).exit_code == 0
    assert tree.everything() == before


@pytest.fixture(params=["broken", "somebody's", "binary", "nothing", "off", "no runc"])
def refused(request: pytest.FixtureRequest, tree: Tree) -> tuple[Tree, str]:
    config = tree.root / standard(tree)
    match request.param:
        case "broken":
            config.write_text("= 1\n")
            words = "no TOML"
        case "somebody's":
            config.write_text(config.read_text() + configuration.entries(2, OURS, {}))
            words = "somebody else's entry"
        case "binary":
            config.write_bytes(b"\xff")
            words = "no UTF-8"
        case "nothing":
            config.unlink()
            words = "found no containerd on this node"
        case "off":
            shutil.copy(SAMPLES / "docker.toml", config)
            words = "disables containerd's CRI plugin"
        case _:
            (tree.root / "usr/sbin/runc").unlink()
            words = "found no runc on this node"
    return tree, words


OURS = [configuration.Runtime(name="kybernate", binary=PurePosixPath("/x"))]


def test_what_cannot_be_changed_is_said_and_left_alone(refused: tuple[Tree, str]) -> None:
    tree, words = refused
    before = tree.everything()
    said = tree.call("install")
    assert said.exit_code == 4
    assert words in said.output
    assert tree.everything() == before
