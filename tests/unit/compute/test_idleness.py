"""Whether a compute may freeze: by example, and the promise that no session is stranded."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.compute.idleness import Activity, awake_causes, is_resting
from torpor.model.sleep import AwakeReason

R = AwakeReason

CLIENT = Activity(7, "client backend", "idle", "Client", "ClientRead", "ann", "10.0.0.9", "app", 3.2, "SELECT\n  1", False)
WALSENDER = replace(CLIENT, backend_type="walsender")
WORKER = Activity(8, "", "active", "", "", "", "", "", 0.0, "", False)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param(CLIENT, None, id="idle"),
        pytest.param(replace(CLIENT, state="idle in transaction"), None, id="idle in a transaction"),
        pytest.param(replace(CLIENT, state="idle in transaction (aborted)"), None, id="idle in a failed transaction"),
        pytest.param(replace(CLIENT, wait_event="ClientWrite"), R.STATEMENT, id="its answer is being read"),
        pytest.param(replace(CLIENT, wait_event="", wait_event_type=""), R.STATEMENT, id="idle, on its way to wait"),
        pytest.param(replace(CLIENT, state="active", wait_event="", wait_event_type=""), R.STATEMENT, id="active"),
        pytest.param(replace(CLIENT, state="active"), R.STATEMENT, id="waits for its client within a statement (COPY)"),
        pytest.param(replace(CLIENT, state="active", wait_event_type="IO", wait_event="DataFileRead"), R.STATEMENT, id="reads"),
        pytest.param(replace(CLIENT, state="active", wait_event_type="Timeout", wait_event="PgSleep"), R.STATEMENT, id="sleeps"),
        pytest.param(replace(CLIENT, state="active", wait_event_type="Lock", wait_event="tuple"), R.LOCK_WAIT, id="waits for a lock"),
        pytest.param(replace(CLIENT, state="fastpath function call", wait_event=""), R.STATEMENT, id="fast path"),
        pytest.param(replace(CLIENT, state="", wait_event="", wait_event_type=""), R.LOGIN, id="being opened"),
        pytest.param(replace(CLIENT, state="starting", wait_event=""), R.LOGIN, id="being opened, by its name in newer majors"),
        pytest.param(replace(CLIENT, state="disabled", wait_event=""), R.LOGIN, id="track_activities is off"),
        pytest.param(replace(CLIENT, state="disabled"), R.LOGIN, id="track_activities is off, waiting"),
        pytest.param(replace(CLIENT, backup=True), R.BACKUP, id="backup"),
        pytest.param(WALSENDER, None, id="walsender between commands"),
        pytest.param(replace(WALSENDER, state="active", wait_event="WalSenderMain"), R.REPLICATION, id="walsender streaming"),
        pytest.param(replace(WALSENDER, state="active"), R.REPLICATION, id="walsender streaming, waiting for its client"),
        pytest.param(replace(WALSENDER, backup=True), R.BACKUP, id="base backup"),
    ],
)
def test_one_known_session(row: Activity, reason: AwakeReason | None) -> None:
    assert [cause.reason for cause in awake_causes([row], [7])] == ([reason] if reason else [])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("autovacuum worker", R.VACUUM),
        ("parallel worker", R.STATEMENT),
        ("startup", R.STATEMENT),
        ("walreceiver", R.REPLICATION),
        ("logical replication apply worker", R.REPLICATION),
        ("logical replication parallel worker", R.REPLICATION),
        ("logical replication tablesync worker", R.REPLICATION),
        ("logical replication worker", R.REPLICATION),  # PostgreSQL 16
        ("archiver", None),
        ("walsummarizer", None),
        ("pg_cron launcher", None),
    ],
)
def test_workers(kind: str, reason: AwakeReason | None) -> None:
    causes = awake_causes([replace(WORKER, backend_type=kind)], [])
    assert [cause.reason for cause in causes] == ([reason] if reason else [])


def test_nothing_runs() -> None:
    assert awake_causes([], []) == ()


def test_a_session_that_postgresql_does_not_know_of_yet() -> None:
    assert [cause.reason for cause in awake_causes([CLIENT], [7, 9])] == [R.LOGIN]


def test_a_session_that_has_not_reported_its_pid() -> None:
    assert [cause.reason for cause in awake_causes([CLIENT], [7, None])] == [R.LOGIN]


def test_a_pid_that_belongs_to_something_else() -> None:
    """The backend has ended and a worker got its pid: the session isn't seen."""
    assert [cause.reason for cause in awake_causes([replace(WORKER, backend_type="archiver")], [8])] == [R.LOGIN]


@pytest.mark.parametrize("row", [CLIENT, WALSENDER], ids=["client backend", "walsender"])
def test_a_session_that_nobody_watches_would_be_stranded(row: Activity) -> None:
    causes = awake_causes([row, replace(CLIENT, pid=1)], [1])
    assert [(cause.reason, cause.detail) for cause in causes] == [(R.UNWATCHED, "ann@10.0.0.9 app")]


def test_a_busy_session_that_nobody_watches_is_told_once() -> None:
    assert [cause.reason for cause in awake_causes([replace(CLIENT, state="active")], [])] == [R.STATEMENT]


def test_causes_name_session_time_and_statement() -> None:
    row = replace(CLIENT, state="active", query="SELECT  *\n\tFROM big WHERE " + "x" * 100, running_s=61.4)
    (cause,) = awake_causes([row], [7])
    assert cause.detail == "ann@10.0.0.9 app, 61 s: " + ("SELECT * FROM big WHERE " + "x" * 100)[:80]
    (cause,) = awake_causes([replace(row, wait_event_type="Lock")], [7])
    assert cause.detail.startswith("ann@10.0.0.9 app, 61 s: SELECT")


@pytest.mark.parametrize(
    ("row", "label"),
    [
        (replace(CLIENT, client=""), "ann app"),
        (replace(CLIENT, client="", user="", application=""), "client backend"),
        (replace(CLIENT, application=""), "ann@10.0.0.9"),
    ],
)
def test_labels(row: Activity, label: str) -> None:
    assert row.label == label


def test_all_causes_are_told() -> None:
    rows = [CLIENT, replace(CLIENT, pid=9, state="active"), replace(WORKER, backend_type="autovacuum worker", query="autovacuum: VACUUM t")]
    assert [(cause.reason, cause.detail) for cause in awake_causes(rows, [7, 9])] == [
        (R.STATEMENT, "ann@10.0.0.9 app, 3 s: SELECT 1"),
        (R.VACUUM, "autovacuum: VACUUM t"),
    ]


KINDS = ["client backend", "walsender", "autovacuum worker", "parallel worker", "archiver", "logical replication worker", "x", ""]
STATES = ["idle", "idle in transaction", "idle in transaction (aborted)", "active", "fastpath function call", "disabled", "starting", ""]
PIDS = st.integers(1, 6)
ROWS = st.builds(
    Activity,
    pid=PIDS,
    backend_type=st.sampled_from(KINDS),
    state=st.sampled_from(STATES),
    wait_event_type=st.sampled_from(["Client", "Lock", "IO", ""]),
    wait_event=st.sampled_from(["ClientRead", "ClientWrite", "relation", ""]),
    user=st.just("u"),
    client=st.just("c"),
    application=st.just("a"),
    running_s=st.just(0.0),
    query=st.just("q"),
    backup=st.booleans(),
)


@given(st.lists(ROWS, unique_by=lambda row: row.pid, max_size=6), st.lists(st.none() | PIDS, max_size=6))
@settings(database=None, max_examples=200, deadline=None)
def test_no_session_is_ever_stranded(rows: list[Activity], sessions: list[int | None]) -> None:
    """When it may freeze, every session there is is watched, and PostgreSQL said that it waits for its client outside of a statement."""
    if awake_causes(rows, sessions):
        return
    waiting = {
        row.pid
        for row in rows
        if row.backend_type in ("client backend", "walsender") and row.state.startswith("idle") and row.wait_event == "ClientRead"
    }
    assert None not in sessions
    assert set(sessions) == waiting
    assert waiting == {row.pid for row in rows if row.backend_type in ("client backend", "walsender")}
    assert not any(row.backup for row in rows if row.pid in waiting)


@given(st.sets(PIDS))
@settings(database=None, max_examples=50, deadline=None)
def test_quiet_sessions_never_keep_it_awake(pids: set[int]) -> None:
    assert awake_causes([replace(CLIENT, pid=pid) for pid in pids], list(pids)) == ()


@pytest.mark.parametrize(
    ("row", "rests"),
    [
        pytest.param(CLIENT, True, id="idle"),
        pytest.param(replace(CLIENT, state="idle in transaction"), False, id="in a transaction"),
        pytest.param(replace(CLIENT, state="idle in transaction (aborted)"), False, id="in a failed transaction"),
        pytest.param(replace(CLIENT, state="active", wait_event="PgSleep"), False, id="active"),
        pytest.param(replace(CLIENT, wait_event="ClientWrite"), False, id="its answer is being read"),
        pytest.param(replace(CLIENT, state="starting", wait_event=""), False, id="being opened"),
        pytest.param(replace(CLIENT, backup=True), False, id="backup"),
        pytest.param(WALSENDER, False, id="walsender"),
    ],
)
def test_who_rests_can_be_ended_without_interrupting_anything(row: Activity, rests: bool) -> None:
    assert is_resting(row) is rests
