"""containerd's configuration with our runtimes in it, and as it was again."""

import tomllib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_worker.install import configuration
from node_worker.install.configuration import (
    SECTIONS,
    Configuration,
    Runtime,
    Unusable,
    drop_in,
    drop_in_folder,
    entries,
    read,
    read_without_block,
    with_block,
    without_block,
)
from node_worker.install.distributions import EMPTY_TEMPLATE

SAMPLES = Path(__file__).parent / "samples/containerd"
OURS = [
    Runtime(name="kybernate", binary=PurePosixPath("/opt/kybernate/bin/kybernate-runc")),
    Runtime(name="kybernate-gpu", binary=PurePosixPath("/opt/kybernate/bin/kybernate-gpu-runc")),
]
TABLES = entries(2, OURS, {})
TOML = sorted(SAMPLES.glob("*.toml"))
LINES = st.lists(st.text(max_size=20).filter(lambda line: not line.startswith("# ")), max_size=5)


def extended(text: str) -> str:
    said = read_without_block(text)
    return with_block(text, entries(said.version, OURS, said.base), "version = 2\n")


def runtimes(text: str) -> Mapping[str, Any]:
    return read(text).runtimes


@pytest.mark.parametrize("sample", TOML, ids=lambda path: path.stem)
def test_every_sample_gets_the_runtimes_and_keeps_the_rest(sample: Path) -> None:
    before = sample.read_text()
    after = extended(before)
    assert after.startswith(before)
    assert configuration.changed(before, after) == []
    made = runtimes(after)
    for each in OURS:
        assert made[each.name]["options"]["BinaryName"] == str(each.binary)
        assert made[each.name]["runtime_type"] == "io.containerd.runc.v2"
        assert made[each.name]["pod_annotations"][-1] == "kybernate.io/*"
        assert made[each.name]["container_annotations"] == ["kybernate.io/*"]


@pytest.mark.parametrize("sample", TOML, ids=lambda path: path.stem)
def test_every_sample_is_undone_to_the_byte(sample: Path) -> None:
    before = sample.read_text()
    after = extended(before)
    assert extended(after) == after
    assert without_block(after, "version = 2\n") == before


def test_pods_get_the_cgroup_driver_and_the_annotations_that_they_had() -> None:
    made = runtimes(extended((SAMPLES / "kubeadm-v2.toml").read_text()))["kybernate"]
    assert made["options"]["SystemdCgroup"] is True
    assert made["pod_annotations"] == ["example.org/*", "kybernate.io/*"]


def test_a_file_without_runtimes_can_have_the_one_that_it_had_by_default() -> None:
    text = configuration.default_entry(2, {"snapshotter": "x", "options": {"SystemdCgroup": True}})
    assert runtimes(text.replace("[plugins", "version = 2\n[plugins", 1)) == {
        "runc": {
            "runtime_type": "io.containerd.runc.v2",
            "snapshotter": "x",
            "options": {"SystemdCgroup": True},
        }
    }


def test_without_runc_the_default_runtime_is_what_ours_are_like() -> None:
    made = runtimes(extended((SAMPLES / "gpu-v2.toml").read_text()))["kybernate"]
    assert made["options"] == {
        "SystemdCgroup": True,
        "BinaryName": "/opt/kybernate/bin/kybernate-runc",
    }


def test_a_setting_that_changes_is_seen() -> None:
    assert configuration.changed("[a]\nb = 1\nc = false\nd = ''", "[a]\nb = 2\nc = true") == [
        "a.b",
        "a.c",
    ]
    assert configuration.changed("a = 1", "a = 1\nb = 2") == []


@pytest.mark.parametrize("version", SECTIONS)
def test_each_version_names_the_plugin_in_its_own_way(version: int) -> None:
    value = tomllib.loads(entries(version, OURS, {}))
    assert set(value["plugins"][SECTIONS[version]]["containerd"]["runtimes"]) == {
        "kybernate",
        "kybernate-gpu",
    }


@given(lines=LINES, end=st.sampled_from(["", "\n"]), again=st.sampled_from([TABLES, "[x]\n", ""]))
def test_any_text_is_undone_exactly(lines: list[str], end: str, again: str) -> None:
    text = "\n".join(lines) + end
    once = with_block(text, TABLES, "")
    assert with_block(once, TABLES, "") == once
    assert without_block(once, "") == text
    assert without_block(with_block(once, again, ""), "") == text


@given(after=st.text(max_size=40).map(lambda text: f"{text}\n"))
def test_what_is_added_behind_the_block_stays(after: str) -> None:
    for before in ("a = 1\n", "a = 1"):
        text = with_block(before, TABLES, "") + after
        assert without_block(text, "") == f"a = 1\n{after}"


@pytest.mark.parametrize("skeleton", ["version = 2\n", EMPTY_TEMPLATE])
def test_a_file_that_was_made_is_gone_again_unless_somebody_wrote_into_it(skeleton: str) -> None:
    made = with_block(None, TABLES, skeleton)
    assert made.startswith(skeleton)
    assert with_block(made, TABLES, skeleton) == made
    assert without_block(made, skeleton) is None
    assert without_block(f"{made}x = 1\n", skeleton) == f"{skeleton}x = 1\n"


def test_text_without_a_block_is_left_alone() -> None:
    assert without_block("x = 1", "") == "x = 1"


def test_a_file_of_our_own_is_toml_of_that_version() -> None:
    text = drop_in(3, entries(3, OURS, {}))
    assert read(text).version == 3
    assert set(runtimes(text)) == {"kybernate", "kybernate-gpu"}


@pytest.mark.parametrize(
    ("version", "imports", "folder"),
    [
        (3, ("/etc/containerd/conf.d/*.toml",), "/etc/containerd/conf.d"),
        (3, ("/etc/one.toml", "/etc/b/*.toml"), "/etc/b"),
        (3, ("/etc/*/conf.toml", "relative/*.toml", "/etc/*/x/*.toml"), None),
        (3, (), None),
        (2, ("/etc/containerd/conf.d/*.toml",), None),
    ],
)
def test_a_file_of_our_own_only_where_containerd_adds_it_to_the_rest(
    version: int, imports: tuple[str, ...], folder: str | None
) -> None:
    found = drop_in_folder(Configuration(version=version, imports=imports))
    assert found == (None if folder is None else PurePosixPath(folder))


@pytest.mark.parametrize("text", ["= 1", "version = 4", 'version = "2"', "a = 1\na = 2"])
def test_what_cannot_be_extended_is_said(text: str) -> None:
    with pytest.raises(Unusable, match=r"its version is|no TOML"):
        read(text)
