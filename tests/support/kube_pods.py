"""Pods as the API server tells them, for tests without one."""

from typing import Any

CONTAINER = "a" * 64


def running_pod(**changes: Any) -> dict[str, Any]:
    """A pod of a ReplicaSet that runs; `changes` go into its spec."""
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    container = {
        "name": "counter",
        "image": "busybox",
        "command": ["count"],
        "volumeMounts": [
            {"name": "settings", "mountPath": "/settings"},
            {"name": "default-token-x7k2p", "mountPath": account, "readOnly": True},
        ],
    }
    spec = {
        "containers": [container],
        "nodeName": "node-1",
        "priority": 0,
        "preemptionPolicy": "PreemptLowerPriority",
        "restartPolicy": "Always",
        "serviceAccount": "default",
        "serviceAccountName": "default",
        "tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
            {"key": "gpu", "operator": "Exists"},
        ],
        "volumes": [
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "default-token-x7k2p", "secret": {"secretName": "default-token-x7k2p"}},
        ],
    }
    return {
        "metadata": {
            "name": "counter-5d9-x",
            "namespace": "default",
            "uid": "6a1c9ad5-3b57-4f0c-9c65-2a3a2a2a2a2a",
            "labels": {"app": "counter", "pod-template-hash": "5d9"},
            "annotations": {"team": "a", "cni.projectcalico.org/podIP": "10.0.0.7/32"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "counter-5d9"}],
        },
        "spec": spec | changes,
        "status": {
            "phase": "Running",
            "containerStatuses": [
                {
                    "name": "counter",
                    "containerID": f"containerd://{CONTAINER}",
                    "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
                }
            ],
        },
    }
