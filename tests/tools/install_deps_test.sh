#!/usr/bin/env bash
# install_deps_test.sh INSTALL_DEPS_SH: what tools/install-deps.sh installs, with stand-ins for Debian's programs.
set -euo pipefail
install_deps_sh=$(realpath "$1")
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir "$root/stand-ins"
# All is installed but what MISSING names.
cat > "$root/stand-ins/dpkg-query" << 'STAND_IN'
#!/bin/sh
for package; do :; done
case " $MISSING " in *" $package "*) exit 1 ;; esac
printf 'install ok installed'
STAND_IN
cat > "$root/stand-ins/apt-get" << 'STAND_IN'
#!/bin/sh
[ "$1" = update ] || echo "$*" >> "$ASKED"
STAND_IN
printf '#!/bin/sh\necho 0\n' > "$root/stand-ins/id"
chmod +x "$root"/stand-ins/*
export PATH=$root/stand-ins:$PATH ASKED=$root/asked

cases=0
failures=0
# expect STATUS PACKAGES WHAT MISSING ARGUMENTS...: PACKAGES are installed, and nothing else.
expect() {
  local status=0 wanted=$1 packages=$2 what=$3 asked
  cases=$((cases + 1))
  : > "$ASKED"
  MISSING=$4 bash "$install_deps_sh" "${@:5}" > "$root/log" 2>&1 || status=$?
  asked=$(tr ' ' '\n' < "$ASKED" | sed -e '/^-/d' -e '/^install$/d' | tr '\n' ' ')
  if [ "$status" != "$wanted" ] || [ "${asked% }" != "$packages" ]; then
    echo "$what: status $status, installed: $asked" >&2
    cat "$root/log" >&2
    failures=$((failures + 1))
  fi
}

fuzzing="clang-16 libclang-rt-16-dev"
expect 0 "" "all is there" ""
expect 0 "ninja-build mold" "what is missing" "ninja-build mold"
expect 0 "" "nothing of fuzzing by itself" "$fuzzing"
expect 0 "$fuzzing" "fuzzing by its option" "$fuzzing" --fuzz
expect 0 "" "fuzzing that is there" "" --fuzz
expect 2 "" "an option that there is not" "$fuzzing" --fuz
# The report that tools/test.sh counts cases from, as GoogleTest's programs write it.
if [ -n "${GTEST_OUTPUT:-}" ]; then
  printf '<testsuites tests="%d" failures="%d" errors="0">\n</testsuites>\n' "$cases" "$failures" \
    > "${GTEST_OUTPUT#xml:}tools_install_deps_test.xml"
fi
exit $((failures > 0))
