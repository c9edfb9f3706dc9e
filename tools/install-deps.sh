#!/usr/bin/env bash
# Installs what Troupe needs to build and test on Debian 12. Does nothing when all is there. --fuzz adds what
# tools/fuzz.sh alone needs.
set -euo pipefail

packages=(
  # Compiler and build.
  g++ cmake ninja-build ccache mold pkg-config git ca-certificates
  # Libraries.
  libboost1.81-dev libboost-system1.81-dev libboost-json1.81-dev
  capnproto libcapnp-dev librocksdb-dev libfmt-dev libspdlog-dev libssl-dev libxxhash-dev
  libcli11-dev libdnnl-dev liblz4-dev libabsl-dev
  # Tests and benchmarks.
  libgtest-dev libgmock-dev libbenchmark-dev librapidcheck-dev valgrind
  # Where the heads of a cluster agree which of them leads.
  etcd-server
  # Checks; clang-tidy needs clang's own omp.h.
  clang-tidy-16 clang-format-16 libomp-16-dev
  # What the demo uses: curl, and its text (public domain).
  curl bible-kjv bible-kjv-text
)
while [ $# -gt 0 ]; do
  case "$1" in
    --fuzz) packages+=(clang-16 libclang-rt-16-dev) ;; # libFuzzer comes with clang alone.
    *) echo "usage: tools/install-deps.sh [--fuzz]" >&2; exit 2 ;;
  esac
  shift
done

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
  [ "$status" = "install ok installed" ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

root=()
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo > /dev/null; then
    echo "These Debian packages are missing, and installing them needs root: ${missing[*]}" >&2
    exit 1
  fi
  root=(sudo)
fi
echo "Installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive

# Debian's etcd-server comes with a service that listens in plaintext; Troupe starts an etcd of its own, and wants only
# the program. So nothing is started while it is installed, and the service is not at the next boot either.
no_start=/usr/sbin/policy-rc.d
brings_etcd=no
if [[ " ${missing[*]} " == *" etcd-server "* ]]; then
  brings_etcd=yes
  if [ ! -e "$no_start" ]; then
    trap '"${root[@]}" rm -f "$no_start"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$no_start" > /dev/null
    "${root[@]}" chmod 755 "$no_start"
  fi
fi
if ! "${root[@]}" apt-get update -qq ||
   ! "${root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null; then
  echo "Installing failed. Is this Debian 12, and does it reach its package archive? Missing: ${missing[*]}" >&2
  exit 1
fi
if [ $brings_etcd = yes ] && command -v systemctl > /dev/null; then
  "${root[@]}" systemctl disable --now etcd.service > /dev/null 2>&1 || true
fi
