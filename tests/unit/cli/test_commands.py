"""Each command against the twin: what it asks, what it prints where, and how it ends."""

import base64
import json
import os
import stat
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.twin import NOW, Twin, view
from torpor.cli import top as top_module
from torpor.model.errors import ComputeStartFailed
from torpor.model.sleep import Tier

COMMANDS = [
    "serve",
    "create",
    "psql",
    "export",
    "import",
    "diff",
    "url",
    "ls",
    "show",
    "set",
    "sleep",
    "wake",
    "rm",
    "logs",
    "top",
    "demo",
    "job",
    "workspace",
    "key",
    "audit",
    "doctor",
    "host",
    "postgres",
    "version",
]


def test_create_prints_the_url_alone_on_stdout(torpor: Run, running: Twin) -> None:
    result = torpor("create", "shop")
    assert result.code == 0
    assert result.out == "postgresql://owner:s%2Fe%20c%401@127.0.0.1:7432/shop\n"
    assert "torpor psql shop" in result.err
    assert "12.5 ms" in result.err


def test_create_sends_what_was_given(torpor: Run, running: Twin) -> None:
    torpor("create", "--major", "17", "--freeze-after", "2.5", "--stop-after", "never")
    assert running.requests == [("POST", "/v1/databases", {}, {"major": 17, "freeze_after_s": 2.5, "stop_after_s": "never"})]


def test_create_as_json(torpor: Run, running: Twin) -> None:
    result = torpor("create", "shop", "--json")
    assert result.json["credentials"]["password"] == "s/e c@1"
    assert result.err == ""


def test_the_url_is_known_again_on_this_machine(torpor: Run, running: Twin, home: Path) -> None:
    url = torpor("create", "shop").out
    assert torpor("url", "shop").out == url
    file = home / "config" / "torpor" / "passwords.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(json.loads(file.read_text())) == [running.url]
    torpor("rm", "shop", "--force")
    assert json.loads(file.read_text()) == {}


def test_a_password_made_elsewhere_is_explained_and_can_be_reset(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    result = torpor("url", "shop")
    assert result.code == 1
    assert result.out == ""
    assert "`torpor url shop --reset-password`" in result.err
    reset = torpor("url", "shop", "--reset-password").out
    assert reset.startswith("postgresql://owner:")
    assert torpor("url", "shop").out == reset
    assert torpor("url", "shop", "--json").json == {"url": reset.strip(), "role": "owner", "password": "s/e c@1"}


def test_urls_for_prismas_accelerate_url(torpor: Run, running: Twin, home: Path) -> None:
    url = torpor("create", "shop").out.strip()
    refused = torpor("url", "shop", "--accelerate")
    assert (refused.code, "doesn't serve SQL over HTTP" in refused.err) == (1, True)
    announcement = home / "data" / "api.json"
    for address, host in (("http://127.0.0.1:5480", "127.0.0.1:5480"), ("http://0.0.0.0:5480", f"{urlsplit(url).hostname}:5480")):
        announcement.write_text(json.dumps({**json.loads(announcement.read_text()), "http": address}))
        shown = torpor("url", "shop", "--accelerate").out.strip()
        assert shown.startswith(f"prisma+postgres://{host}/?api_key=")
        key = shown.partition("api_key=")[2]
        assert base64.urlsafe_b64decode(key + "=" * (-len(key) % 4)).decode() == url
    assert torpor("url", "shop", "--accelerate", "--tls").code == 1


def test_urls_with_what_encryption_needs(torpor: Run, running: Twin, home: Path) -> None:
    url = torpor("create", "shop").out.strip()
    refused = torpor("url", "shop", "--tls")
    assert (refused.code, "doesn't speak TLS" in refused.err) == (1, True)
    announcement = home / "data" / "api.json"
    announcement.write_text(json.dumps({**json.loads(announcement.read_text()), "tls_authority": "/data/tls/ca.crt"}))
    assert torpor("tls", "ca").out == "/data/tls/ca.crt\n"
    assert torpor("tls", "ca", "--json").json == {"sslrootcert": "/data/tls/ca.crt"}
    assert torpor("url", "shop", "--tls").out.strip() == f"{url}?sslmode=verify-full&sslrootcert=/data/tls/ca.crt"
    reset = torpor("url", "shop", "--tls", "--reset-password").out
    assert reset.endswith("?sslmode=verify-full&sslrootcert=/data/tls/ca.crt\n")


def test_a_password_that_cant_be_kept_is_a_warning(torpor: Run, running: Twin, home: Path) -> None:
    (home / "config").write_text("a file where a directory should be")
    result = torpor("create", "shop")
    assert result.code == 0
    assert result.out.startswith("postgresql://")
    assert "note it now" in result.err


def test_ls(torpor: Run, running: Twin) -> None:
    assert "torpor create" in torpor("ls").err
    running.add(view("b", Tier.STOPPED), view("a", Tier.FROZEN))
    lines = torpor("ls").out.splitlines()
    assert lines[0].split() == ["NAME", "TIER", "SINCE", "CONNS", "MEMORY", "LAST-WAKE"]
    assert [line.split()[:2] for line in lines[1:]] == [["a", "frozen"], ["b", "stopped"]]
    assert torpor("ls", "--tier", "stopped").out.count("\n") == 2
    assert torpor("ls", "--search", "zz").out == ""


def test_ls_reads_all_pages(torpor: Run, running: Twin) -> None:
    running.add(*(view(f"n{number:04d}", Tier.PAGED, number) for number in range(1203)))
    result = torpor("ls", "--json").json
    assert [one["name"] for one in result["databases"]] == sorted(running.databases)
    assert len(running.requests) == 3


def test_show(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    out = torpor("show", "shop").out
    for part in (
        "PostgreSQL 18",
        "awake for",
        "statement: pid 42: select [2Jpg_sleep(60)",
        "by traffic (10.0.0.7 as app), from frozen in 4.2 ms",
        "thaw",
        "━",
        "freeze after 5 s, page after 30 s, stop after 1 h",
        "in swap      3.0 MB",
        "wakes: 7 in all, the newest 10:",
    ):
        assert part in out, out
    assert "\x1b" not in out
    assert torpor("show", "shop", "--json").json["database"]["name"] == "shop"


def test_set(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    assert "freeze after 9 s (own), page after never (own)" in torpor("set", "shop", "--freeze-after", "9", "--page-after", "never").out
    assert "freeze after 5 s, page after never (own)" in torpor("set", "shop", "--freeze-after", "default").out
    assert running.requests[-1][3] == {"freeze_after_s": None}
    assert torpor("set", "shop").code == 2
    assert "; it is removed in 2 h" in torpor("set", "shop", "--ttl", "121m").out
    assert torpor("set", "shop", "--ttl", "never").out.endswith("; it stays\n")
    assert "12h" in torpor("set", "shop", "--ttl", "soon").err
    assert "never or default" in torpor("set", "shop", "--stop-after", "soon").err
    assert "; pool auto (own), 7 connections (own), 1000 may wait" in torpor("set", "shop", "--pool", "auto", "--pool-size", "7").out
    assert (
        "; pool auto (own), 20 connections, 3 for one role (own), 0 may wait (own)"
        in torpor("set", "shop", "--pool-size", "default", "--pool-role-size", "3", "--pool-queue", "0").out
    )
    assert "pool         auto (own), 20 connections, 3 for one role (own), 0 may wait (own)" in torpor("show", "shop").out
    assert "is not a number or default" in torpor("set", "shop", "--pool-queue", "many").err


def test_sleep_and_wake(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    busy = torpor("sleep", "shop")
    assert (busy.code, busy.err) == (1, "torpor: shop is busy; use force\n")
    assert torpor("sleep", "shop", "--tier", "paged", "--force").out == "shop is paged\n"
    assert torpor("wake", "shop").out.startswith("shop is awake, from frozen in 4.2 ms\n  thaw")
    assert torpor("wake", "shop").out == "shop was awake already\n"
    assert torpor("wake", "shop", "--json").json == {"wake": None}


def test_rm(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    refused = torpor("rm", "shop", "--json")
    assert refused.code == 1
    assert refused.error == {
        "kind": "database_in_use",
        "message": "shop has 2 open connections",
        "hint": "close them or use force",
        "sqlstate": "55006",
        "exit_code": 1,
    }
    assert torpor("rm", "shop", "--force").out == "shop is removed\n"
    assert torpor("rm", "shop").code == 1


def test_logs(torpor: Run, running: Twin) -> None:
    running.add(view("shop"))
    assert torpor("logs", "shop", "-n", "5").out == "first line\nsecond € line\n"
    assert running.requests[-1][2] == {"lines": "5"}
    torpor("logs", "shop", "-f")
    assert running.requests[-1][2] == {"lines": "200", "follow": "true"}
    assert json.loads(torpor("logs", "shop", "--json").out.splitlines()[0]) == {"line": "first line"}


def test_psql_gets_a_ticket_and_takes_over(torpor: Run, running: Twin, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running.add(view("shop"))
    (home / "bin").mkdir()
    program = home / "bin" / "psql"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("TORPOR_POSTGRES_HOME", str(home / "nothing"))
    monkeypatch.setenv("PATH", str(home / "bin"))
    monkeypatch.setenv("PGHOSTADDR", "192.0.2.1")
    seen: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr("os.execve", lambda path, argv, environment: seen.append((path, argv, environment)))
    assert torpor("psql", "shop", "--", "-c", "select 1").code == 0
    assert torpor("psql", "shop", "-Atc", "select 1", "--csv").code == 0
    (path, argv, environment), (_, other, _) = seen
    assert path == str(program)
    assert argv == ["psql", "postgresql://owner@127.0.0.1:7432/shop", "-c", "select 1"]
    assert other[2:] == ["-Atc", "select 1", "--csv"]
    assert environment["PGPASSWORD"] == "s/e c@1"
    assert "PGHOSTADDR" not in environment
    assert torpor("psql", "--json", "shop").json["password"] == "s/e c@3"


def test_psql_without_psql(torpor: Run, running: Twin, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running.add(view("shop"))
    monkeypatch.setenv("TORPOR_POSTGRES_HOME", str(home / "nothing"))
    monkeypatch.setenv("PATH", str(home))
    result = torpor("psql", "shop")
    assert result.code == 1
    assert "torpor postgres install 18" in result.err


def test_top_asks_for_awake_ones_first_and_no_more_than_fit(torpor: Run, running: Twin) -> None:
    running.add(*(view(f"p{number}", Tier.PAGED, number) for number in range(300)), view("busy", Tier.AWAKE, 999))
    lines = torpor("top").out.splitlines()
    assert "301 databases: 1 awake, 0 frozen, 300 paged, 0 stopped" in lines[1]
    assert lines[4].split()[:2] == ["busy", "awake"]
    assert len(lines) == 4 + 200
    assert [query for _, path, query, _ in running.requests if path == "/v1/databases"] == [
        {"tier": "awake", "limit": "200"},
        {"tier": "paged", "limit": "199"},
    ]


def test_top_as_json(torpor: Run, running: Twin) -> None:
    running.add(view("busy"))
    value = torpor("top", "--once", "--json").json
    assert value["host"]["databases"] == 1
    assert value["databases"][0]["cpu_percent"] is None


def test_cpu_share_between_two_samples() -> None:
    from dataclasses import replace

    first = view("a")
    host = Twin()._host()
    before = top_module.Sample(NOW, host, (first,), {})
    later = [replace(first, cpu_ms=first.cpu_ms + 500), view("new", number=5)]
    assert top_module.cpu_percent(before, later, NOW + 2) == {first.id: 25.0}
    assert top_module.cpu_percent(before, [replace(first, cpu_ms=1)], NOW + 2) == {first.id: 0}
    assert top_module.cpu_percent(before, later, NOW) == {}


def test_the_live_table_can_be_drawn() -> None:
    from rich.console import Console

    sample = top_module.Sample(NOW, Twin()._host(), (view("a"), view("b", Tier.STOPPED, 3)), {view("a").id: 12.0})
    console = Console(width=160, file=open(os.devnull, "w"), record=True)  # noqa: SIM115 - closed below
    console.print(top_module._render(sample, "lost"))
    shown = console.export_text()
    console.file.close()
    assert "12.0" in shown
    assert "lost" in shown
    assert "\x1b" not in shown


def test_version(torpor: Run) -> None:
    assert torpor("version").out.startswith("torpor ")
    assert set(torpor("version", "--json").json) == {"torpor", "python", "kernel"}


def test_a_fault_of_torpors_is_told(torpor: Run, running: Twin) -> None:
    def broken(method: str, path: str) -> None:
        raise ComputeStartFailed("PostgreSQL did not start: no room", "look at the log")

    running.hook = broken
    result = torpor("wake", "shop")
    assert (result.code, result.err) == (1, "torpor: PostgreSQL did not start: no room; look at the log\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(torpor: Run, command: str) -> None:
    result = torpor(command, "--help")
    assert result.code == 0
    commands = {
        "host": ["setup", "undo"],
        "postgres": ["install", "ls"],
        "workspace": ["create", "ls", "show", "rm"],
        "key": ["create", "ls", "revoke"],
        "job": ["ls", "show", "wait", "cancel"],
    }.get(command)
    for one in [[command]] if commands is None else [[command, sub] for sub in commands]:
        assert "--json" in torpor(*one, "--help").out


def test_help_lists_all_commands(torpor: Run) -> None:
    out = torpor("--help").out
    assert all(f"\n  {command} " in out for command in COMMANDS)


def test_no_arguments_is_help(torpor: Run) -> None:
    assert "Commands:" in torpor().out


def test_serve_has_every_setting_as_a_flag(torpor: Run) -> None:
    from torpor.model.settings import effects

    out = torpor("serve", "--help").out
    assert all(f"--{name.replace('_', '-')} " in out for name in effects())


def test_serve_refuses_bad_settings_with_their_exit_code(torpor: Run) -> None:
    result = torpor("serve", "--door-port", "70000", "--json")
    assert result.code == 16
    assert result.error["kind"] == "bad_settings"
    assert "--door-port" in result.error["message"]
