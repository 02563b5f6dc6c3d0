"""The spec of an embedded workload, and what of the host a Python in it needs."""

from pathlib import Path
from typing import Any

import msgspec

from kybernate.embedded import oci, rootfs

PLACE = oci.Place(
    id="counter", cgroup="/ours/counter", busybox=Path("/stack/busybox"), criu_config=Path("/conf")
)


def spec(**given: Any) -> dict[str, Any]:
    packed = oci.spec(oci.Workload(args=("true",), **given), PLACE)
    value: dict[str, Any] = msgspec.json.decode(packed.value)
    return value


def namespaces(value: dict[str, Any]) -> set[str]:
    return {namespace["type"] for namespace in value["linux"]["namespaces"]}


def test_a_network_of_its_own_has_its_loopback_brought_up() -> None:
    own, shared = spec(), spec(host_network=True)
    assert "network" in namespaces(own)
    assert own["hooks"]["createRuntime"][0]["path"] == "/stack/busybox"
    assert "network" not in namespaces(shared)
    assert "hooks" not in shared


def test_a_user_namespace_translates_nothing() -> None:
    value = spec(user_namespace=True)
    assert "user" in namespaces(value)
    for mapping in (value["linux"]["uidMappings"], value["linux"]["gidMappings"]):
        assert mapping == [{"containerID": 0, "hostID": 0, "size": 65536}]
    assert "user" not in namespaces(spec(user=oci.User(uid=1000, gid=1000)))


def test_annotations_of_the_workload_win() -> None:
    given = {oci.CRIU_CONFIG_ANNOTATION: "/other", "mine": "too"}
    annotations = spec(annotations=given)["annotations"]
    assert annotations[oci.CRIU_CONFIG_ANNOTATION] == "/other"
    assert annotations["mine"] == "too"
    assert spec()["annotations"][oci.CRIU_CONFIG_ANNOTATION] == "/conf"


def test_binds_are_read_only_unless_they_say_otherwise() -> None:
    binds = (
        oci.Bind(source=Path("/a"), target="/x"),
        oci.Bind(source=Path("/b"), target="/y", writable=True),
    )
    mounts = {mount["destination"]: mount["options"] for mount in spec(binds=binds)["mounts"]}
    assert mounts["/x"] == ["bind", "ro"]
    assert mounts["/y"] == ["bind", "rw"]


def test_mounts_inside_the_systems_folders_are_named() -> None:
    mountinfo = (
        "1 0 0:1 / / rw - overlay overlay rw\n"
        "2 1 0:2 /x /usr/lib/libcuda.so.1 ro - ext4 /dev/vda rw\n"
        "3 1 0:3 / /usr/with\\040space rw - tmpfs tmpfs rw\n"
        "4 1 0:4 / /usrlocal rw - tmpfs tmpfs rw\n"
        "5 1 0:5 / /usr rw - ext4 /dev/vdb rw\n"
    )
    points = rootfs.mount_points(mountinfo)
    assert rootfs.mounted_below([Path("/usr"), Path("/bin")], points) == (
        Path("/usr/lib/libcuda.so.1"),
        Path("/usr/with space"),
    )
