#!/bin/sh
# Makes sure that wgpu will find an adapter: says nothing where there is one, installs Mesa's software driver on
# Debian and Ubuntu where there is none, and says what to do elsewhere. It never touches an existing driver.
set -eu

say() { echo "adapter: $*" >&2; }

# Metal and Direct3D 12 are part of their systems.
case "$(uname -s)" in
    Linux) ;;
    *) exit 0 ;;
esac

# The Vulkan loader, wherever the dynamic linker looks.
has_loader() {
    for dir in $(echo "${LD_LIBRARY_PATH:-}" | tr ':' ' ') /usr/lib /usr/lib64 /usr/lib/*-linux-gnu* /lib /lib64 \
        /lib/*-linux-gnu* /usr/local/lib /usr/local/lib/*-linux-gnu* /run/opengl-driver/lib; do
        [ -e "$dir/libvulkan.so.1" ] && return 0
    done
    # musl and other layouts have no `ldconfig -p`.
    { ldconfig -p || /sbin/ldconfig -p; } 2>/dev/null | grep -q 'libvulkan\.so\.1'
}

# Driver manifests, in the order in which the loader looks for them.
manifests() {
    echo "${VK_DRIVER_FILES:-${VK_ICD_FILENAMES:-}}" | tr ':' '\n'
    for dir in "${XDG_CONFIG_HOME:-${HOME:-}/.config}" "${XDG_DATA_HOME:-${HOME:-}/.local/share}" /etc /usr/local/etc \
        /usr/local/share /usr/share /run/opengl-driver/share; do
        ls "$dir"/vulkan/icd.d/*.json 2>/dev/null || true
    done
}

# A software driver always gives an adapter; a hardware driver only where there is a device for it.
has_driver() {
    found=$(manifests)
    if echo "$found" | grep -qE 'lvp|lavapipe|swiftshader'; then
        return 0
    fi
    [ -n "$found" ] && ls /dev/dri/renderD* /dev/nvidia0 /dev/dxg >/dev/null 2>&1
}

has_adapter() {
    if command -v vulkaninfo >/dev/null 2>&1; then
        vulkaninfo --summary 2>/dev/null | grep -q deviceName && return 0
    fi
    has_loader && has_driver
}

if has_adapter; then
    exit 0
fi

if ! command -v apt-get >/dev/null 2>&1; then
    say "no Vulkan adapter was found, and this is not Debian or Ubuntu. Install your card's Vulkan driver, or Mesa's software driver:"
    say "  Fedora: sudo dnf install mesa-vulkan-drivers vulkan-loader"
    say "  Arch:   sudo pacman -S vulkan-swrast vulkan-icd-loader"
    say "  Alpine: sudo apk add mesa-vulkan-swrast vulkan-loader"
    exit 1
fi

if [ "$(id -u)" = 0 ]; then
    as_root="env"
elif command -v sudo >/dev/null 2>&1; then
    as_root="sudo env"
else
    say "no Vulkan adapter was found. As root, run: apt-get update && apt-get install mesa-vulkan-drivers libvulkan1"
    exit 1
fi
say "no Vulkan adapter was found; installing Mesa's software driver (mesa-vulkan-drivers, libvulkan1)"
install="install -qy --no-install-recommends mesa-vulkan-drivers libvulkan1"
apt() { $as_root DEBIAN_FRONTEND=noninteractive apt-get "$@" >&2; }

# Debian 12's own Mesa computes at a fifth of the rate of the one in its backports. For this one installation they are added to
# a copy of the list of sources: the machine's own stays as it is.
newer() {
    grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release || return 1
    sources=$(mktemp -d) || return 1
    cp -r /etc/apt/sources.list.d/. "$sources" 2>/dev/null || true
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keyring] http://deb.debian.org/debian bookworm-backports main" >"$sources/danlu.list"
    chmod -R a+rX "$sources"
    result=0
    # shellcheck disable=SC2086
    apt -o "Dir::Etc::sourceparts=$sources" update -q &&
        apt -o "Dir::Etc::sourceparts=$sources" -t bookworm-backports $install || result=1
    rm -rf "$sources"
    return $result
}

# shellcheck disable=SC2086
newer || { apt update -q && apt $install; }
if ! has_adapter; then
    say "the driver is installed, but still no adapter is found: 'cargo run --release -- doctor' says more"
    exit 1
fi
