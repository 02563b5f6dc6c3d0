#!/bin/bash
# The whole cycle on a Kubernetes cluster: a pod counts, is checkpointed, is deleted; a new pod from
# the same image, with the annotation kybernate.io/restore-from, counts on. Ends with 0 if all of that
# held, else with the reason.
#
#   examples/cycle.sh                       with the KUBECONFIG and the kubectl of your shell
#
# Needs Kybernate in the cluster (docs/kubernetes.md) and an image with a shell:
#   IMAGE=busybox NAMESPACE=default NODE= KYBERNATE=kybernate-ctl examples/cycle.sh
set -euo pipefail

image=${IMAGE:-busybox}
namespace=${NAMESPACE:-default}
node=${NODE:-}
program=${KYBERNATE:-kybernate-ctl}
first=cycle-$$
second=$first-resumed
resource=
code=1

step() { printf '\n== %s\n' "$*"; }
fail() { printf 'cycle: %s\n' "$*" >&2; exit 1; }
kube() { kubectl --namespace "$namespace" "$@"; }

clean_up() {
    trap - EXIT
    step "clean up"
    kube delete pod "$first" "$second" --ignore-not-found || code=1
    [[ -z $resource ]] || kube delete kybernatecheckpoint "$resource" --ignore-not-found || code=1  # and its files
    ((code)) || printf '\ncycle: OK, counter %s -> %s\n' "$before" "$after"
    exit "$code"
}

# pod NAME [CHECKPOINT]: a pod that counts in its memory, from the checkpoint where one is named.
pod() {
    cat <<END
apiVersion: v1
kind: Pod
metadata:
  name: $1
  labels: {kybernate.io/example: cycle}
  annotations: {${2:+kybernate.io/restore-from: "$2"}}
spec:
  ${2:+runtimeClassName: kybernate}
  ${node:+nodeName: $node}
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
    - name: counter
      image: $image
      command: [sh, -c, 'i=0; while :; do i=\$((i + 1)); echo "Loop \$i: \$TOKEN"; sleep 0.5; done']
      env: [{name: TOKEN, value: ${2:+not-}$first}]
END
}

# counted POD: the last number that it has said.
counted() { kube logs "$1" --tail 1 | sed -n 's/^Loop \([0-9]*\):.*/\1/p'; }

# counts_past POD NUMBER: waits until it has.
counts_past() {
    local number deadline=$((SECONDS + 60))
    while ((SECONDS < deadline)); do
        number=$(counted "$1")
        ((${number:-0} > $2)) && return
        sleep 0.5
    done
    fail "pod $1 has counted to '$number' after a minute, not past $2"
}

for each in kubectl "$program"; do
    [[ -n $(command -v "$each") ]] || fail "$each is not in PATH"
done
kubectl get runtimeclass kybernate >/dev/null || fail "install Kybernate first: docs/kubernetes.md"
trap clean_up EXIT

step "a pod counts"
pod "$first" | kube create -f -
kube wait --for=condition=Ready "pod/$first" --timeout=120s
counts_past "$first" 5
kube logs "$first" --tail 2
home=$(kube get pod "$first" -o 'jsonpath={.spec.nodeName}')

step "$program checkpoint --pod $first"
before=$(counted "$first")
said=$("$program" checkpoint --pod "$first" --namespace "$namespace") ||
    fail "$program says $?; see above"
printf '%s\n' "$said"
checkpoint=${said%% *} resource=${said##* }

step "the pod is gone"  # it is deleted once its state is durable
kube delete pod "$first" --ignore-not-found

step "a new pod from the image, with the annotation kybernate.io/restore-from: $checkpoint"
node=$home  # where the checkpoint lies
pod "$second" "$checkpoint" | kube create -f -
kube wait --for=condition=Ready "pod/$second" --timeout=120s || {
    kube describe pod "$second" | tail -n 5
    fail "the new pod does not run; its events are above"
}
counts_past "$second" "$before"
begin=$(kube logs "$second" | sed -n '1s/^Loop \([0-9]*\):.*/\1/p')
after=$(counted "$second")

step "kubectl logs and kubectl exec"
kube logs "$second" --tail 2
((begin > before)) || fail "it does not go on behind $before, it began with $begin"
kube logs "$second" --tail 1 | grep -q ": $first\$" || fail "it is not the old process: its token is another"
[[ $(kube exec "$second" -- cat /etc/hostname) == "$second" ]] || fail "kubectl exec does not reach the new pod"
kube get pod "$second" -o wide
code=0
