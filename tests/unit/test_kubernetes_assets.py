"""Which programs the test cluster uses."""

from pathlib import Path

import pytest

from kybernate.embedded.kubernetes.assets import (
    CNI_PLUGINS,
    PROGRAMS,
    KubernetesMissing,
    find_assets,
)

KNOWS_PORT = "#!/bin/sh\necho '      --port int   serve here'\n"


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KYBERNATE_KUBERNETES", str(tmp_path / "built"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    _make(tmp_path / "built/bin", PROGRAMS)
    _make(tmp_path / "built/cni", CNI_PLUGINS)
    return tmp_path / "built"


def test_the_built_programs_are_found_and_known(built: Path) -> None:
    assets = find_assets()

    assert assets.program("kubelet") == built / "bin/kubelet"
    assert assets.cni == built / "cni"
    assert assets.dated("kubelet", "--gone=1") == ("--gone=1",)


def test_given_programs_come_first_and_are_asked_what_they_know(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(tmp_path / "given", PROGRAMS)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "given"))

    assets = find_assets()

    assert assets.program("kubelet") == tmp_path / "given/kubelet"
    assert assets.dated("kube-scheduler", "--port=0") == ("--port=0",)
    assert assets.dated("kube-scheduler", "--gone=1") == ()


def test_what_is_missing_is_named(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "given"
    _make(given, ("etcd", "kube-apiserver", "kubectl"))
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(given))

    with pytest.raises(KubernetesMissing, match="kube-controller-manager, kube-scheduler, kubelet"):
        find_assets()


def _make(folder: Path, names: tuple[str, ...]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(KNOWS_PORT)
        (folder / name).chmod(0o755)
