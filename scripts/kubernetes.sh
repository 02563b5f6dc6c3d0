#!/bin/bash
# Builds a Kubernetes control plane and node for tests, once, into a folder of its own:
# $KYBERNATE_KUBERNETES, else ${XDG_CACHE_HOME:-$HOME/.cache}/kybernate/kubernetes:
#
#   bin/         kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kubectl   built here
#                etcd                                                                   as in Debian 12
#   cni/         bridge, host-local, loopback, …                                        as in Debian 12
#   .recipe      hash of this script; written last, so a folder that has it is complete
#
# The source is Debian 12's package (Kubernetes 1.20.2, everything vendored), the compiler Debian 12's
# Go 1.19, unpacked into the work folder. The cloud providers' code is left out: it is a good part of
# all, and the kubelet would look for each cloud at its start. Takes about five minutes on two cores. With
# KUBEBUILDER_ASSETS set, nothing is built: that folder's programs are used instead.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
place=${KYBERNATE_KUBERNETES:-${XDG_CACHE_HOME:-$HOME/.cache}/kybernate/kubernetes}
recipe=$(cat "$here/kubernetes.sh" "$here/private-apt.sh" | sha256sum)
programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl)

say() { printf 'kubernetes: %s\n' "$*"; }
fail() { printf 'kubernetes: %s\n' "$*" >&2; exit 1; }
ready() { [[ -n ${KUBEBUILDER_ASSETS:-} || (-f $place/.recipe && $(<"$place/.recipe") == "$recipe") ]]; }

fetch() {
    say "fetching the source, Go, etcd and CNI plugins"
    configure_apt deb bookworm deb-src bookworm
    private_apt update
    cd "$work/packages"
    private_apt download golang-1.19-go/bookworm golang-1.19-src/bookworm
    private_apt download etcd-server/bookworm containernetworking-plugins/bookworm
    private_apt download golang-github-modern-go-reflect2-dev/bookworm
    private_apt source --tar-only --download-only kubernetes/bookworm
    local package
    for package in "$work"/packages/*.deb; do dpkg-deb --extract "$package" "$work/unpacked"; done
    mkdir -p "$tree"
    tar -xf "$work"/packages/kubernetes_*.orig.tar.* -C "$tree" --strip-components=1
    # The vendored one is older than Go 1.18 and ends the API server at the first custom resource.
    rm -r "$tree/vendor/github.com/modern-go/reflect2"
    cp -r "$work/unpacked/usr/share/gocode/src/github.com/modern-go/reflect2" \
        "$tree/vendor/github.com/modern-go/"
    # It waits five seconds for a Docker that is not there.
    sed -i 's/^const rootDirRetries = 5$/const rootDirRetries = 0/' \
        "$tree/vendor/github.com/google/cadvisor/container/docker/factory.go"
}

# Packages whose types the API server describes, as the generator wants them named.
described() {
    {
        cd "$tree"
        grep -rl --include=doc.go '+k8s:openapi-gen=' staging/src pkg
        printf 'staging/src/k8s.io/apimachinery/pkg/%s/doc.go\n' \
            apis/meta/v1 runtime version api/resource util/intstr
    } | grep -v -e _examples -e /sample- -e /example | xargs -n 1 dirname |
        sed 's#^staging/src#k8s.io/kubernetes/vendor#; s#^pkg#k8s.io/kubernetes/pkg#' | sort -u | paste -sd,
}

build() {
    export GOROOT=$work/unpacked/usr/lib/go-1.19 GOPATH=$work/go GOCACHE=$work/gocache
    export GO111MODULE=off CGO_ENABLED=0 GOFLAGS= PATH=$work/unpacked/usr/lib/go-1.19/bin:$PATH
    cd "$tree"
    say "describing the API's types"
    go run ./vendor/k8s.io/kube-openapi/cmd/openapi-gen --input-dirs "$(described)" \
        --go-header-file hack/boilerplate/boilerplate.generatego.txt --output-base "$GOPATH/src" \
        --output-package k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
        --report-filename "$work/violations" >"$work/openapi.log" 2>&1 ||
        { cat "$work/openapi.log" >&2; fail "the API's description could not be generated"; }
    say "building ${programs[*]}"
    go build -tags providerless -ldflags '-s -w -X k8s.io/kubernetes/vendor/k8s.io/component-base/version.gitVersion=v1.20.2' \
        -o "$work/made/bin/" "${programs[@]/#/./cmd/}"
}

ready && exit 0
[[ $(uname -s) == Linux && -n $(command -v apt-get) ]] ||
    fail "needs Debian 12; elsewhere name a folder of these programs in KUBEBUILDER_ASSETS"
mkdir -p "$(dirname "$place")"
exec 9>"$place.lock"
flock 9
ready && exit 0

work=$(mktemp -d "$place.XXXXXX")
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
tree=$work/go/src/k8s.io/kubernetes
mkdir -p "$work"/{packages,unpacked,made/bin}
. "$here/private-apt.sh"
fetch
build
mkdir "$work/made/cni"
cp "$work/unpacked/usr/bin/etcd" "$work/made/bin/"
cp "$work"/unpacked/usr/lib/cni/* "$work/made/cni/"
"$work/made/bin/kubelet" --version >/dev/null
printf '%s\n' "$recipe" >"$work/made/.recipe"
rm -rf "$place"
mv "$work/made" "$place"
say "ready in $place"
