"""Which database a client wants: every form of address, and every contradiction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.door.routing import ServerNames, route
from torpor.model.errors import DatabaseNotFound, InvalidName, LoginForbidden, RoutingConflict, TorporError
from torpor.model.names import check_new_database_name
from torpor.pgwire.startup import StartupMessage


def way(**parameters: str) -> tuple[str, str, str | None]:
    found = route(StartupMessage({"user": "app", **parameters}))
    return found.target, found.inner_database, found.startup.parameters.get("options")


@pytest.mark.parametrize(
    ("database", "target", "inner"),
    [("shop", "shop", "shop"), ("shop.other", "shop", "other"), ("shop.a.b", "shop", "a.b"), ("shop-2.Über", "shop-2", "Über")],
)
def test_by_database_name(database: str, target: str, inner: str) -> None:
    assert way(database=database) == (target, inner, None)


def test_without_a_database_by_the_users_name_as_postgresql_does() -> None:
    assert way() == ("app", "app", None)
    assert way(database="") == ("app", "app", None)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ("endpoint=shop", None),
        ("--cluster=shop", None),
        (" endpoint=shop ", None),
        ("endpoint=shop --cluster=shop", None),
        ("-c geqo=off endpoint=shop", "-c geqo=off"),
        ("--cluster=shop -c search_path=a\\ b -c x=y", "-c search_path=a\\ b -c x=y"),
        ("-c\tgeqo=off\nendpoint=sh\\op", "-c geqo=off"),
        ("endpoint=shop -c search_path=endpoint=other", "-c search_path=endpoint=other"),
        ("endpoint=shop -c endpoint=other", "-c endpoint=other"),
        ("endpoint=shop x\\", "x\\"),
    ],
)
def test_by_options(options: str, left: str | None) -> None:
    assert way(options=options) == ("shop", "shop", left)


@pytest.mark.parametrize(
    ("database", "inner"), [("", "shop"), ("shop", "shop"), ("other", "other"), ("shop.other", "other"), ("shop.a.b", "a.b")]
)
def test_options_and_database_name_that_agree(database: str, inner: str) -> None:
    assert way(options="endpoint=shop", database=database) == ("shop", inner, None)


@pytest.mark.parametrize(
    ("options", "database", "names"),
    [
        ("endpoint=shop", "blog.other", ("shop", "blog.other")),
        ("endpoint=shop --cluster=blog", "shop", ("shop", "blog")),
        ("endpoint=shop endpoint=blog", "", ("shop", "blog")),
        ("endpoint= endpoint=a", "", ("", "a")),
    ],
)
def test_forms_that_name_different_databases_are_refused_with_both_named(options: str, database: str, names: tuple[str, str]) -> None:
    with pytest.raises(RoutingConflict, match=".*".join(f'"{name}"' for name in names)) as caught:
        way(options=options, database=database)
    assert caught.value.hint


def test_other_options_stay_as_they_are() -> None:
    assert way(database="shop", options="-c geqo=off")[2] == "-c geqo=off"
    assert way(database="shop", options="-c endpoint=x") == ("shop", "shop", "-c endpoint=x")


@pytest.mark.parametrize("replication", ["true", "on", "1", "YES"])
def test_physical_replication_without_a_database_needs_options(replication: str) -> None:
    with pytest.raises(RoutingConflict, match="physical replication"):
        way(database="replication", replication=replication)
    assert way(database="replication", replication=replication, options="endpoint=shop")[0] == "shop"
    assert way(database="shop", replication=replication)[0] == "shop"


def test_logical_replication_goes_by_database_name() -> None:
    assert way(database="shop", replication="database") == ("shop", "shop", None)


@pytest.mark.parametrize(
    "name", ["Shop", "postgres", "torpor", "a_b", "-x", "x-", "x" * 64, ".other", "shop.", "sh op", "a\nb", "\udcff", "template1"]
)
def test_names_that_no_database_can_have_are_not_found(name: str) -> None:
    with pytest.raises(DatabaseNotFound) as caught:
        way(database=name)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 100


@pytest.mark.parametrize("options", ["endpoint=", "--cluster=", "endpoint=UP", "endpoint=a.b"])
def test_options_that_name_no_possible_database_are_not_found(options: str) -> None:
    with pytest.raises(DatabaseNotFound):
        way(options=options)


@pytest.mark.parametrize("parameters", [{}, {"user": ""}, {"database": "shop"}])
def test_a_user_has_to_be_named(parameters: dict[str, str]) -> None:
    with pytest.raises(LoginForbidden, match="no PostgreSQL user name"):
        route(StartupMessage(parameters))


def test_the_rest_of_the_startup_message_is_kept_in_order() -> None:
    found = route(StartupMessage({"user": "app", "application_name": "x", "database": "shop.other", "client_encoding": "LATIN1"}, 2))
    assert list(found.startup.parameters.items()) == [
        ("user", "app"),
        ("application_name", "x"),
        ("database", "other"),
        ("client_encoding", "LATIN1"),
    ]
    assert found.startup.minor == 2
    assert found.user == "app"


@given(st.dictionaries(st.sampled_from(["user", "database", "options", "replication"]), st.text(max_size=30)))
def test_whatever_strangers_send_is_routed_or_refused(parameters: dict[str, str]) -> None:
    try:
        found = route(StartupMessage(parameters))
    except TorporError as error:
        assert error.message.isprintable()
    else:
        assert found.startup.parameters["database"]


# -- by the server name of a TLS connection


def way_by_host(by_host: str | None, **parameters: str) -> tuple[str, str]:
    found = route(StartupMessage({"user": "app", **parameters}), by_host)
    return found.target, found.inner_database


@pytest.mark.parametrize(
    ("server_name", "database"),
    [
        ("shop.db.example.com", "shop"),
        ("SHOP.DB.Example.COM", "shop"),
        ("shop.db.example.com.", "shop"),
        ("shop.localhost", "shop"),
        ("db.example.com", None),
        ("localhost", None),
        ("", None),
        ("a.shop.db.example.com", None),  # no certificate for *.db.example.com would fit it
        ("shop.other.com", None),
        (".db.example.com", None),
        ("xdb.example.com", None),
        ("127.0.0.1", None),
    ],
)
def test_names_of_servers(server_name: str, database: str | None) -> None:
    assert ServerNames("db.example.com").database_in(server_name) == database


def test_a_door_without_a_name() -> None:
    names = ServerNames("")
    assert names.database_in("shop.localhost") == "shop"
    assert names.database_in("shop.") is None
    assert ServerNames("127.0.0.1").database_in("shop.127.0.0.1") == "shop"  # no client sends such a name


@pytest.mark.parametrize(
    ("parameters", "inner"),
    [
        ({}, "shop"),
        ({"database": "shop"}, "shop"),
        ({"database": "other"}, "other"),
        ({"database": "shop.other"}, "other"),
        ({"database": "other", "options": "endpoint=shop"}, "other"),
        ({"database": "shop.other", "options": "--cluster=shop"}, "other"),
    ],
)
def test_host_name_and_other_forms_that_agree(parameters: dict[str, str], inner: str) -> None:
    assert way_by_host("shop", **parameters) == ("shop", inner)


@pytest.mark.parametrize(
    ("parameters", "another"),
    [
        ({"database": "blog.other"}, "blog.other"),
        ({"options": "endpoint=blog"}, "blog"),
        ({"options": "--cluster=blog", "database": "shop"}, "blog"),
        ({"options": "endpoint=shop", "database": "blog.x"}, "blog.x"),
    ],
)
def test_host_name_and_other_forms_that_contradict_each_other_are_refused_with_both_named(parameters: dict[str, str], another: str) -> None:
    with pytest.raises(RoutingConflict, match=rf'"shop".*"{another}"'):
        way_by_host("shop", **parameters)


@given(st.text(max_size=300), st.text(max_size=80))
def test_whatever_a_client_calls_us_is_at_most_a_name(server_name: str, database: str) -> None:
    found = ServerNames("db.example.com").database_in(server_name)
    assert found is None or "." not in found
    try:
        way = route(StartupMessage({"user": "app", "database": database}), found)
    except TorporError:
        return
    assert found is None or way.target == found


# -- who wants to be pooled


@pytest.mark.parametrize(
    ("parameters", "by_host", "target", "inner", "mode"),
    [
        ({"database": "shop"}, None, "shop", "shop", None),
        ({"database": "shop@pool"}, None, "shop", "shop", "on"),
        ({"database": "shop@auto"}, None, "shop", "shop", "auto"),
        ({"database": "shop.other@pool"}, None, "shop", "other", "on"),
        ({"database": "shop", "options": "pool=on"}, None, "shop", "shop", "on"),
        ({"database": "shop", "options": "pool=auto endpoint=shop"}, None, "shop", "shop", "auto"),
        ({"database": "shop", "options": "pool=off"}, None, "shop", "shop", "off"),
        ({"database": "shop@pool", "options": "pool=on"}, None, "shop", "shop", "on"),
        ({"database": "other"}, "shop-pooler", "shop", "other", "on"),
        ({"database": "other", "options": "pool=auto"}, "shop-pooler", "shop", "other", "auto"),
        ({"database": "@pool", "options": "endpoint=shop"}, None, "shop", "shop", "on"),
    ],
)
def test_pooled_by_asking(parameters: dict[str, str], by_host: str | None, target: str, inner: str, mode: str | None) -> None:
    found = route(StartupMessage({"user": "app", **parameters}), by_host)
    assert (found.target, found.inner_database, found.pool) == (target, inner, mode)
    assert "options" not in found.startup.parameters


@pytest.mark.parametrize(("database", "mode"), [("shop", "on"), ("shop@pool", "on"), ("shop@auto", "auto")])
def test_pooled_by_the_port(database: str, mode: str) -> None:
    assert route(StartupMessage({"user": "app", "database": database}), None, at_pool_port=True).pool == mode
    with pytest.raises(RoutingConflict, match="pool=off"):
        route(StartupMessage({"user": "app", "database": "shop", "options": "pool=off"}), None, at_pool_port=True)


def test_a_host_name_of_a_pool_never_names_another_database() -> None:
    """A database of such a name can't be made; one that is there already is reached by the database name."""
    with pytest.raises(InvalidName, match='pool of "shop"'):
        check_new_database_name("shop-pooler")
    found = route(StartupMessage({"user": "app", "database": "shop-pooler"}))
    assert (found.target, found.pool) == ("shop-pooler", None)
    assert route(StartupMessage({"user": "app", "database": "x"}), "shop-pooler").target == "shop"


@pytest.mark.parametrize("options", ["-c pool=on", "-c search_path=pool=on"])
def test_a_setting_is_no_wish(options: str) -> None:
    found = route(StartupMessage({"user": "app", "database": "shop", "options": options}))
    assert found.pool is None and found.startup.parameters["options"] == options


@pytest.mark.parametrize(
    ("parameters", "by_host"),
    [
        ({"database": "shop", "options": "pool=maybe"}, None),
        ({"database": "shop@pool", "options": "pool=off"}, None),
        ({"database": "shop@pool", "options": "pool=auto"}, None),
        ({"database": "shop", "options": "pool=off"}, "shop-pooler"),
    ],
)
def test_wishes_that_disagree(parameters: dict[str, str], by_host: str | None) -> None:
    with pytest.raises(RoutingConflict, match="pool="):
        route(StartupMessage({"user": "app", **parameters}), by_host)
