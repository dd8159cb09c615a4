# Shared by the scripts beside it; sourced, not run.

set -euo pipefail
caller_dir=$PWD # who calls may stand elsewhere, and paths on a command line are those of whoever calls
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Kernel, image and other costly builds are kept here, by the hash of their recipe.
cache_dir=${XDG_CACHE_HOME:-$HOME/.cache}/romulus

from_caller() { case $1 in /*) echo "$1" ;; *) echo "$caller_dir/$1" ;; esac; }

# shares FOLDER...: the options by which a lab's hosts see these too, a word a line; they see the current folder anyway.
shares() {
    local folder
    for folder in "$@"; do
        folder=$(realpath -m "$folder")
        case $folder/ in "$(pwd -P)"/*) ;; *) printf '%s\n' --share "$folder" ;; esac
    done
}

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# need_packages PACKAGE...: installs Debian packages that are missing; names them when not root.
need_packages() {
    local missing=() package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" = "install ok installed" ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "these packages (by their Debian names) are missing: ${missing[*]}"
    [ "$(id -u)" = 0 ] || die "these packages are missing; as root: apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    mkdir -p "$cache_dir"
    exec 8>"$cache_dir/packages.lock" # several scripts may run at once
    flock 8
    refresh_package_lists
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -q --no-install-recommends "${missing[@]}" >&2
    exec 8>&-
}

# Brings the package lists up to date once a run.
refresh_package_lists() {
    [ -z "${package_lists_fresh:-}" ] || return 0
    if [ "$(id -u)" = 0 ]; then apt-get update -q >&2; fi
    package_lists_fresh=1
}

# The Rust that Cargo.toml asks for; that of Debian 12 is older.
need_rust() {
    local wanted found how
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    how="curl --proto '=https' -sSf https://sh.rustup.rs | sh -s -- -y, then: . ~/.cargo/env"
    for found in cargo rustc; do
        command -v $found >/dev/null || die "$found is missing; Rust $wanted or later is needed: $how"
    done
    found=$(rustc --version | cut -d ' ' -f 2)
    printf '%s\n' "$wanted" "$found" | sort -VC || die "Rust $found is too old, $wanted or later is needed: rustup update, or without rustup: $how"
}
