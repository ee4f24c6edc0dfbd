"""`torpor doctor`: the host's findings and Torpor's own. Needs neither root nor a running Torpor; changes nothing."""

import contextlib
import os
from dataclasses import asdict
from pathlib import Path

import click

from torpor.base.host.facts import probe
from torpor.base.host.findings import Finding, Status, findings, missing_essentials
from torpor.base.host.machine import Machine
from torpor.cli.binaries import places
from torpor.cli.client import Client, find_api
from torpor.cli.errors import CommandError, Exit
from torpor.cli.host import configured_key_file
from torpor.cli.image import open_images
from torpor.cli.invocation import Invocation, with_invocation
from torpor.cli.text import clean
from torpor.compute import binaries
from torpor.compute.sandbox.image.packing import PACKED, Kind, obstacle
from torpor.model.drills import DrillList, DrillResult
from torpor.model.errors import BadSettings, BinariesMissing
from torpor.model.settings import DEFAULT_MAJOR
from torpor.native import LIBRARY, RELAY

_SHOWN_DRILLS = 3
_MARKS = {Status.OK: ("ok", "green"), Status.WARN: ("warn", "yellow"), Status.LACK: ("LACK", "red")}


@click.command()
@with_invocation
@click.pass_context
def doctor(context: click.Context, invocation: Invocation) -> None:
    """What this host has and lacks, what each lack costs, what to do. Fails only when something essential is missing."""
    key_file = None
    with contextlib.suppress(BadSettings):
        key_file = configured_key_file(invocation.data_dir)
    items = (*findings(probe(invocation.data_dir, pool_key_file=key_file)), *own_findings(invocation, LIBRARY))
    missing = missing_essentials(items)
    invocation.emit({"findings": [asdict(item) for item in items], "ok": not missing}, lambda: "\n".join(_lines(items)))
    if missing:
        context.exit(Exit.REFUSED)


def own_findings(invocation: Invocation, library: Path) -> tuple[Finding, ...]:
    """What the host package knows nothing of: PostgreSQL, the C library, the daemon."""
    return (
        _postgres(invocation),
        _image(invocation),
        _library(library),
        _relay(library.with_name(RELAY.name)),
        _daemon(invocation),
        *_drills(invocation),
    )


def _postgres(invocation: Invocation) -> Finding:
    name, (home, bindir) = "PostgreSQL", places(invocation)
    remedy = f"`torpor postgres install {DEFAULT_MAJOR}`, or set pg_bindir to your system's"
    try:
        found = binaries.find(home, bindir)
    except BinariesMissing as error:
        return Finding(name, Status.LACK, error.message, "databases can't be started", error.hint or remedy, essential=True)
    if not found:
        return Finding(name, Status.LACK, f"none in {home}", "databases can't be started", remedy, essential=True)
    return Finding(name, Status.OK, ", ".join(f"{one.version} ({one.bindir})" for _, one in sorted(found.items())))


def _image(invocation: Invocation) -> Finding:
    """Which kind of root image is there, or would be built."""
    name, cost = "root image", "a plain directory of 40 MB for each PostgreSQL major, instead of one file of 26 MB"
    images = open_images(invocation)
    obstacles = [why for kind in PACKED if (why := obstacle(kind, Machine()))]
    remedy = "run `torpor host setup` as root, which installs erofs-utils, then `torpor image build --force`"
    present = [f"{one.version} ({one.kind}, {one.bytes / 1e6:.0f} MB)" for one in images.all() if one not in images.outdated()]
    trees = [one for one in images.all() if one.kind is Kind.TREE and one not in images.outdated()]
    if trees:
        return Finding(name, Status.WARN, f"{', '.join(present)}: {trees[0].why_tree}", cost, remedy)
    if present:
        return Finding(name, Status.OK, f"{', '.join(present)} in {images.home}")
    if obstacle(Kind.EROFS, Machine()):
        return Finding(name, Status.WARN, f"none yet; {obstacles[0]}", cost, remedy)
    return Finding(name, Status.OK, "none yet: `torpor serve` builds it, or `torpor image build`")


def _library(library: Path) -> Finding:
    name = "socket library"
    if os.access(library, os.R_OK):
        return Finding(name, Status.OK, str(library))
    cost = "connections can't be handed over, so their bytes pass through Torpor at less than half the speed"
    return Finding(
        name, Status.WARN, f"{library} isn't built", cost, "install gcc and libc6-dev and run `make setup`, or reinstall the package"
    )


def _relay(relay: Path) -> Finding:
    name = "TLS"
    if os.access(relay, os.X_OK):
        return Finding(name, Status.OK, str(relay))
    cost = "clients can't encrypt, and those on other machines are refused unless tls=off or tls=allow is set"
    return Finding(name, Status.LACK, f"{relay} isn't built", cost, "install libssl-dev and gcc and run `make setup` again")


def _daemon(invocation: Invocation) -> Finding:
    try:
        address = find_api(invocation.given_data_dir, os.environ)
    except CommandError as error:
        return Finding("Torpor", Status.OK, error.message, "", error.hint)
    return Finding("Torpor", Status.OK, f"its API is said to be at {address.url}")


def _drills(invocation: Invocation) -> tuple[Finding, ...]:
    """What restore drills found; nothing where no Torpor can be asked, or it keeps no history."""
    try:
        with contextlib.closing(Client(find_api(invocation.given_data_dir, os.environ))) as client:
            view = client.decode(DrillList, client.get("/v1/drills", result=DrillResult.FAILED.value, limit=_SHOWN_DRILLS))
    except CommandError:
        return ()
    name, counts = "restore drills", f"{view.verified} databases verified, {view.unverified} not yet"
    if not view.failing:
        if view.every_s is None:
            return (
                Finding(name, Status.WARN, f"{counts}; none is begun by itself", "nobody knows what can be restored", "set drill_every_s"),
            )
        return (Finding(name, Status.OK, counts),)
    failed = "; ".join(f"{each.database}: {clean(each.detail, 120)}" for each in view.drills)
    cost = "they can't be restored to some moments, or what comes of it is damaged"
    return (
        Finding(name, Status.LACK, f"{view.failing} FAILED ({failed}), {counts}", cost, "`torpor drills --result failed` says what to do"),
    )


def _lines(items: tuple[Finding, ...]) -> list[str]:
    width = max(len(item.name) for item in items)
    result = []
    for item in items:
        mark, color = _MARKS[item.status]
        result.append(f"{click.style(mark.ljust(4), fg=color)}  {item.name.ljust(width)}  {item.found}")
        indent = " " * (width + 8)
        if item.cost:
            result.append(f"{indent}cost: {item.cost}")
        if item.remedy:
            result.append(f"{indent}do:   {item.remedy}")
    lacking = sum(item.status is Status.LACK for item in items)
    warned = sum(item.status is Status.WARN for item in items)
    if lacking or warned:
        result += ["", f"{lacking} lacking, {warned} could be better"]
    return [*result] if lacking or warned else [*result, "", "nothing is missing"]
