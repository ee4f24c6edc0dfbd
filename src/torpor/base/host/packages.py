"""Which packages of the distribution are needed and which of them are missing.

`missing` asks dpkg's own records (30 ms, no network), so that nothing is asked of apt when all is there.
"""

from torpor.base.host.machine import HostActionFailed, Machine

_COMMON = (
    "bubblewrap",
    "erofs-utils",
    "squashfs-tools",
    "xfsprogs",
    "libseccomp2",
    "libxml2",
    "liblz4-1",
    "libzstd1",
    "libgssapi-krb5-2",
    "tzdata",
    "gcc",
    "libc6-dev",
)
# The 64-bit time transition renamed libssl3 in Ubuntu 24.04 and Debian 13.
_OPENSSL_RENAMED_IN = {"debian": 13.0, "ubuntu": 24.04}
_HINT = "check the network and apt's sources, or install the packages by hand and run `torpor host setup --skip-packages`"


def needed(distribution: str, version: str) -> tuple[str, ...] | None:
    """The package names on this distribution; None where we don't know them."""
    renamed_in = _OPENSSL_RENAMED_IN.get(distribution)
    if renamed_in is None:
        return None
    try:
        renamed = float(version) >= renamed_in
    except ValueError:  # Debian testing has no version
        renamed = True
    return (*_COMMON, "libssl3t64" if renamed else "libssl3")


def missing(machine: Machine, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `names` that aren't installed."""
    # dpkg-query's exit code is 1 as soon as one name is unknown to it; its output is right all the same.
    output = machine.run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *names])
    installed = {line.split()[0] for line in output.out.splitlines() if line.endswith(" installed")}
    return tuple(name for name in names if name not in installed)


def install(machine: Machine, names: tuple[str, ...]) -> str:
    """Install packages. Idempotent; safe to repeat after an interruption. Raises HostActionFailed."""
    if machine.which("apt-get") is None:
        raise HostActionFailed("there is no apt-get on this host", f"install {' '.join(names)} by hand")
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *names]
    # The lists may be old or absent (containers): refresh them only when the first attempt fails.
    if machine.run(command, timeout_s=900).code != 0:
        machine.must_run(["apt-get", "update", "-q"], _HINT, timeout_s=300)
        machine.must_run(command, _HINT, timeout_s=900)
    return f"installed {', '.join(names)}"
