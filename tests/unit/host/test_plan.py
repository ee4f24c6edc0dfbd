"""Findings and plans are pure: facts in, words and steps out."""

from dataclasses import replace

import pytest

from torpor.base.host.cgroup_facts import CgroupFacts, CgroupMode
from torpor.base.host.facts import DirectoryFacts, HostFacts, SandboxFacts, Swap, ZramFacts
from torpor.base.host.findings import GIB, Finding, Status, findings, missing_essentials, show_bytes
from torpor.base.host.plan import AddZram, InstallPackages, MakePool, MountPool, SetKernel, State, Step, Wishes, plan

BARE = DirectoryFacts("/data", exists=True, writable=True, free_bytes=40 * GIB, total_bytes=80 * GIB, filesystem="ext4", reflinks=False)
POOL = replace(BARE, path="/data/volumes", exists=False)
HOST = HostFacts(
    distribution="debian",
    distribution_version="12",
    kernel="6.1.0",
    is_root=True,
    memory_bytes=8 * GIB,
    cgroups=CgroupFacts(CgroupMode.V2, True, True, True, True, "/", ("processor", "memory", "processes")),
    swaps=(),
    zram=ZramFacts(True, "/dev/zram0", True),
    data=BARE,
    pool=POOL,
    pool_image_exists=False,
    sandbox=SandboxFacts("/usr/bin/bwrap", True),
    kvm=True,
    max_files=20_000,
    compiler="/usr/bin/gcc",
    has_mkfs_xfs=True,
    kernel_settings={"page-cluster": "3", "swappiness": "60"},
)
DISK_SWAP = Swap("/dev/sda2", GIB, 0, -2)
ZRAM_SWAP = Swap("/dev/zram0", GIB, 0, 100)
NO_WISHES = Wishes()


def steps(facts: HostFacts, wishes: Wishes = NO_WISHES, missing: tuple[str, ...] | None = ()) -> dict[str, Step]:
    return {step.name: step for step in plan(facts, missing, wishes)}


def by_name(facts: HostFacts) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings(facts)}


def test_a_bare_host_gets_everything_in_order() -> None:
    planned = plan(HOST, ("bubblewrap",), NO_WISHES)
    assert [step.action for step in planned] == [
        InstallPackages(("bubblewrap",)),
        MakePool(20 * GIB),
        AddZram(4 * GIB, "/dev/zram0"),
        SetKernel((("page-cluster", "0"), ("swappiness", "100"))),
    ]


def test_a_host_that_has_all_needs_nothing() -> None:
    action = SetKernel((("page-cluster", "0"), ("swappiness", "100")))
    facts = replace(
        HOST,
        swaps=(ZRAM_SWAP,),
        pool=replace(POOL, exists=True, reflinks=True, filesystem="xfs"),
        kernel_settings={"page-cluster": "0", "swappiness": "100"},
        kernel_settings_file=action.file_text,
    )
    assert {step.state for step in plan(facts, (), NO_WISHES)} == {State.DONE}


def test_unknown_distributions_are_told_what_to_install() -> None:
    step = steps(replace(HOST, distribution="arch", distribution_version=""), missing=None)["packages"]
    assert step.state is State.SKIPPED
    assert "arch" in step.text


def test_pool_is_not_put_over_files() -> None:
    step = steps(replace(HOST, pool=replace(POOL, exists=True, empty=False)))["copy-on-write pool"]
    assert step.state is State.FAILED
    assert "cp -a /data/volumes.old/. /data/volumes/" in step.text


@pytest.mark.parametrize(
    ("facts", "wishes", "action"),
    [
        (replace(HOST, pool_image_exists=True), Wishes(), MountPool()),
        (replace(HOST, data=replace(BARE, reflinks=True)), Wishes(), None),
        (HOST, Wishes(pool_size_bytes=GIB), MakePool(GIB)),
        (replace(HOST, kernel="6.7.0"), Wishes(pool_size_bytes=GIB, pool_filesystem="btrfs"), MakePool(GIB, "btrfs")),
        (replace(HOST, kernel="6.6.1"), Wishes(pool_filesystem="btrfs"), None),
        (replace(HOST, data=replace(BARE, free_bytes=900 * GIB)), Wishes(), MakePool(100 * GIB)),
    ],
)
def test_pool(facts: HostFacts, wishes: Wishes, action: object) -> None:
    assert steps(facts, wishes)["copy-on-write pool"].action == action


@pytest.mark.parametrize("size", [1 << 20, 500 * GIB])
def test_impossible_pool_sizes(size: int) -> None:
    step = steps(HOST, Wishes(pool_size_bytes=size))["copy-on-write pool"]
    assert step.state is State.FAILED
    assert "--pool-size" in step.text


@pytest.mark.parametrize(
    ("facts", "wishes", "state"),
    [
        (replace(HOST, swaps=(DISK_SWAP,)), Wishes(), State.SKIPPED),
        (replace(HOST, swaps=(DISK_SWAP,)), Wishes(zram=True), State.CHANGE),
        (replace(HOST, swaps=(ZRAM_SWAP,)), Wishes(zram=True), State.DONE),
        (HOST, Wishes(zram=False), State.SKIPPED),
        (HOST, Wishes(zram_size_bytes=1), State.FAILED),
    ],
)
def test_zram(facts: HostFacts, wishes: Wishes, state: State) -> None:
    assert steps(facts, wishes)["zram swap"].state is state


def test_kernel_settings_wait_for_swap() -> None:
    assert steps(HOST, Wishes(zram=False))["kernel settings"].state is State.SKIPPED
    assert steps(replace(HOST, swaps=(DISK_SWAP,)))["kernel settings"].state is State.CHANGE


def test_a_more_eager_choice_of_the_host_is_kept() -> None:
    facts = replace(HOST, kernel_settings={"page-cluster": "3", "swappiness": "180"})
    assert steps(facts)["kernel settings"].action == SetKernel((("page-cluster", "0"),))


def test_a_complete_host_has_no_lacks() -> None:
    facts = replace(HOST, swaps=(ZRAM_SWAP,), pool=replace(POOL, reflinks=True))
    assert {finding.status for finding in findings(facts)} == {Status.OK}


@pytest.mark.parametrize(
    ("is_root", "sandbox", "level"),
    [
        (True, SandboxFacts("/usr/bin/bwrap", True), "full"),
        (True, SandboxFacts("/usr/bin/bwrap", False, "no", works_as_root=True), "no_user_namespace"),
        (True, SandboxFacts("/usr/bin/bwrap", False, "no"), "own_user"),
        (True, SandboxFacts(), "own_user"),
        (True, SandboxFacts("/usr/bin/bwrap", True, filters=False), "own_user"),
        (False, SandboxFacts("/usr/bin/bwrap", True), "shared_user"),
        (False, SandboxFacts("/usr/bin/bwrap", False, "no"), "none"),
    ],
)
def test_the_sandbox_level_is_said(is_root: bool, sandbox: SandboxFacts, level: str) -> None:
    found = next(finding for finding in findings(replace(HOST, is_root=is_root, sandbox=sandbox)) if finding.name == "sandbox")
    assert f"level {level}" in found.found


BAD = replace(
    HOST,
    is_root=False,
    sandbox=SandboxFacts(),
    kvm=False,
    max_files=1024,
    compiler=None,
    data=replace(BARE, writable=False),
    cgroups=CgroupFacts(),
    zram=ZramFacts(),
)


@pytest.mark.parametrize(
    "facts",
    [
        HOST,
        BAD,
        replace(HOST, swaps=(DISK_SWAP,)),
        replace(HOST, sandbox=SandboxFacts("/usr/bin/bwrap", False, "no")),
        replace(HOST, sandbox=SandboxFacts("/usr/bin/bwrap", False, "no", works_as_root=True)),
        replace(HOST, sandbox=SandboxFacts("/usr/bin/bwrap", True, filters=False)),
        replace(HOST, is_root=False, sandbox=SandboxFacts("/usr/bin/bwrap", False, "no")),
        replace(HOST, pool=replace(POOL, reflinks=None)),
        replace(HOST, pool_image_exists=True),
        replace(HOST, data=replace(BARE, free_bytes=2 * GIB)),
        replace(HOST, data=replace(BARE, free_bytes=GIB // 2)),
        replace(HOST, cgroups=CgroupFacts(CgroupMode.HYBRID)),
        replace(HOST, is_root=False, cgroups=CgroupFacts(CgroupMode.V2)),
        replace(HOST, is_root=False, cgroups=CgroupFacts(CgroupMode.V1)),
        replace(HOST, cgroups=CgroupFacts(CgroupMode.V2, writable=True)),
    ],
)
def test_whatever_isnt_ok_says_what_it_costs_and_what_to_do(facts: HostFacts) -> None:
    for finding in findings(facts):
        if finding.status is not Status.OK:
            assert finding.cost, finding
            assert finding.remedy, finding


def test_only_an_unusable_data_directory_is_essential() -> None:
    assert [finding.name for finding in missing_essentials(findings(BAD))] == ["data directory"]
    assert missing_essentials(findings(HOST)) == ()
    assert by_name(BAD)["swap"].status is Status.WARN


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1536, "2 KiB"), (300 << 20, "300 MiB"), (GIB * 3 // 2, "1.5 GiB"), (2048 * GIB, "2.0 TiB")]
)
def test_show_bytes(count: int, text: str) -> None:
    assert show_bytes(count) == text
