# Shared by the scripts beside it; sourced, not run.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Kernel, image and other costly builds are kept here, by the hash of their recipe.
cache_dir=${XDG_CACHE_HOME:-$HOME/.cache}/romulus

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

need_rust() {
    command -v cargo >/dev/null || die "cargo is missing; install Rust 1.88 or later (https://rustup.rs)"
    local found
    found=$(rustc --version | sed -E 's/^rustc ([0-9]+)\.([0-9]+).*/\1 \2/')
    set -- $found
    [ "$1" -gt 1 ] || [ "$2" -ge 88 ] || die "Rust $1.$2 is too old; 1.88 or later is needed"
}
