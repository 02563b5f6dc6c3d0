"""A Kubernetes cluster of one machine's own processes, for tests and for trying things out.

`scripts/kubernetes.sh` builds its programs. Each node is a process that holds a network and a mount
namespace, in which containerd, the kubelet and Kybernate's worker run.
"""
