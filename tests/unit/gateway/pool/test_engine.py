"""The pool's engine as scripts: what clients say, what they hear, and which backend has run what."""

import pytest

from tests.support.pooling import House, S, X, b, brief, c, d, e, p, q
from torpor.gateway.pool.values import Limits
from torpor.pgwire.frames import frame
from torpor.pgwire.replies import error_response

GREETING = "R S(server_version=18.0) S(application_name=) S(TimeZone=UTC) K(1) ZI"


def test_greets_when_postgresql_is_known_and_wakes_nothing_later() -> None:
    house = House()
    first = house.join()
    assert first.heard() == b""
    house.settle()
    assert brief(first.heard()) == GREETING
    assert not house.pool.waiting
    for backend in list(house.pool.backends):
        house.kill(backend)
    second = house.join()
    assert brief(second.heard()) == GREETING
    assert not house.opened, "a login alone needs no backend"


def test_many_clients_share_a_backend() -> None:
    house = House(Limits(size=1))
    clients = [house.join() for _ in range(5)]
    house.settle()
    for number, client in enumerate(clients):
        assert client.run(f"select {number}").endswith(f"T D(select {number}) C(SELECT 1) ZI")
    assert len(house.twins) == 1


def test_a_transaction_keeps_its_backend() -> None:
    house = House(Limits(size=2))
    one, two = house.join(), house.join()
    house.settle()
    assert one.run("begin").endswith("C(BEGIN) ZT")
    assert two.run("select 2").endswith("ZI")
    assert one.run("select 1").endswith("ZT")
    assert one.run("commit").endswith("ZI")
    ran = sorted(tuple(twin.ran) for twin in house.twins.values())
    assert ran == [("begin", "select 1", "commit"), ("select 2",)]


def test_waits_for_its_turn() -> None:
    house = House(Limits(size=1))
    clients = [house.join() for _ in range(4)]
    house.settle()
    clients[0].run("begin")
    for number, client in enumerate(clients[1:], 1):
        client.heard()
        client.say(q(f"select {number}"))
        assert not client.link.listens
    house.settle()
    assert [client.heard() for client in clients[1:]] == [b"", b"", b""]
    house.now = 2.0
    clients[0].run("commit")
    clients[0].say(q("select 0"))
    house.settle()
    (twin,) = house.twins.values()
    assert twin.ran == ["begin", "commit", "select 1", "select 2", "select 3", "select 0"]
    assert house.pool.longest_wait_s == 2.0
    assert all(client.link.listens for client in clients)


def test_the_queue_is_bounded_and_says_so() -> None:
    house = House(Limits(size=1, queue=1))
    one = house.join()
    house.settle()
    two, three = house.join(), house.join()
    one.run("begin")
    two.say(q("select 2"))
    three.heard()
    three.say(q("select 3"))
    heard = three.heard()
    assert brief(heard) == "E(53300)"
    assert b"pool_queue" in heard and b"pool_size" in heard and b"shop" in heard
    assert three.link.is_closed
    one.run("commit")
    house.settle()
    assert brief(two.heard()).endswith("D(select 2) C(SELECT 1) ZI")


def test_the_wait_is_bounded_and_says_so() -> None:
    house = House(Limits(size=1, wait_s=5))
    one, two = house.join(), house.join()
    house.settle()
    one.run("begin")
    two.heard()
    two.say(q("select 2"))
    house.now = 4.0
    house.pool.tick()
    assert two.heard() == b""
    assert house.pool.next_tick_s() == 1.0
    house.now = 5.0
    house.pool.tick()
    heard = two.heard()
    assert brief(heard) == "E(53300)" and b"pool_wait_s" in heard and b"pool_size" in heard


def test_one_role_gets_no_more_than_its_share_and_hears_why() -> None:
    house = House(Limits(size=3, role_size=1, wait_s=5))
    one, two, other = house.join(), house.join(), house.join("bob")
    house.settle()
    assert one.run("begin").endswith("ZT") and other.run("begin").endswith("ZT")
    two.heard()
    two.say(q("select 2"))
    house.now = 5.0
    house.pool.tick()
    heard = two.heard()
    assert brief(heard) == "E(53300)" and b"1 for one role (pool_role_size)" in heard and b"torpor set shop" in heard


def test_idle_backends_are_closed() -> None:
    house = House(Limits(idle_s=3))
    client = house.join()
    house.settle()
    client.run("select 1")
    house.now = 2.9
    house.pool.tick()
    house.settle()
    assert len(house.twins) == 1
    house.now = 3.0
    house.pool.tick()
    house.settle()
    assert not house.twins and not house.pool.backends
    assert house.pool.next_tick_s() is None
    assert client.run("select 2").endswith("D(select 2) C(SELECT 1) ZI")


def test_roles_and_startup_parameters_have_backends_of_their_own() -> None:
    house = House(Limits(size=2))
    ann, bob = house.join("ann"), house.join("bob")
    house.settle()
    other = house.join("ann", options="-c geqo=off")
    house.settle()
    for client in (ann, bob, other, ann):
        assert client.run("select 1").endswith("ZI")
    assert {backend.group.key.role for backend in house.twins} <= {"ann", "bob"}
    assert len(house.twins) == 2, "the limit holds for all of them together: one that rested had to go"


def test_the_limit_of_a_role() -> None:
    house = House(Limits(size=3, role_size=1))
    ann, other, bob = house.join("ann"), house.join("ann"), house.join("bob")
    house.settle()
    ann.run("begin")
    other.heard()
    other.say(q("select 2"))
    house.settle()
    assert other.heard() == b""
    assert bob.run("select 3").endswith("ZI")
    ann.run("commit")
    house.settle()
    assert brief(other.heard()).endswith("ZI")


# -- what stays with a client, and what is left behind


def test_settings_stay_with_their_client() -> None:
    house = House(Limits(size=1))
    one, two = house.join(name="one"), house.join(name="two")
    house.settle()
    assert one.run("SET timezone = 'CET'") == "S(TimeZone=CET) C(SET) ZI"
    assert two.run("select 2") == "T D(select 2) C(SELECT 1) ZI"
    (backend,) = house.twins
    assert backend.carried == {b"TimeZone": b"UTC", b"application_name": b"two"}
    assert one.run("select 1") == "T D(select 1) C(SELECT 1) ZI"
    assert backend.carried == {b"TimeZone": b"CET", b"application_name": b"one"}
    assert house.pool.discards == 0


@pytest.mark.parametrize("verb", ["set", "temp", "listen", "lock"])
def test_what_is_left_behind_is_discarded_and_the_client_is_told(verb: str) -> None:
    house = House(Limits(size=1))
    one, two = house.join(), house.join()
    house.settle()
    assert one.run(f"{verb} it") == f"C({verb.upper()}) N(01000) ZI"
    assert one.run(f"{verb} it") == f"C({verb.upper()}) ZI", "told once"
    assert two.run("state") == "T D() C(SELECT 1) ZI"
    assert house.pool.discards == 2


def test_what_cannot_be_discarded_ends_the_backend() -> None:
    house = House(Limits(size=1))
    one, two = house.join(), house.join()
    house.settle()
    (before,) = house.twins
    one.run("load it")
    assert two.run("state") == "T D() C(SELECT 1) ZI"
    assert before not in house.twins


def test_a_backend_without_signs_is_cleaned_each_time() -> None:
    house = House(Limits(size=1), signs=False)
    one, two = house.join(), house.join()
    house.settle()
    assert one.run("set it") == "C(SET) ZI"
    assert two.run("state") == "T D() C(SELECT 1) ZI"
    assert house.pool.discards == 2


def test_sequences_are_forgotten_only_between_clients() -> None:
    house = House(Limits(size=1))
    one, two = house.join(), house.join()
    house.settle()
    one.run("next it")
    assert one.run("state") == "T D(next) C(SELECT 1) ZI"
    assert two.run("state") == "T D() C(SELECT 1) ZI"


def test_auto_pins_silently_and_lets_go_at_the_end() -> None:
    house = House(Limits(size=1))
    one, two = house.join(auto=True), house.join()
    house.settle()
    assert one.run("select 1").endswith("ZI")
    assert not house.pool.pinned
    assert one.run("temp it") == "C(TEMP) ZI"
    assert one.client.pinned_by == "CREATE TEMPORARY"
    assert two.run("state") == "T D() C(SELECT 1) ZI", "a pinned client takes no place in the pool"
    assert one.run("state") == "T D(temp) C(SELECT 1) ZI"
    one.run("lock it")
    assert one.client.pinned_by == "CREATE TEMPORARY, pg_advisory_lock"
    one.say(X)
    house.settle()
    assert not house.pool.pinned
    assert all(not twin.state for twin in house.twins.values())
    three = house.join()
    assert three.run("state").endswith("T D() C(SELECT 1) ZI")


def test_auto_is_let_go_when_it_discards_all() -> None:
    house = House(Limits(size=1))
    one = house.join(auto=True)
    house.settle()
    one.run("temp it")
    assert one.client.pinned_by
    assert one.run("DISCARD ALL").endswith("C(DISCARD ALL) ZI")
    assert not one.client.pinned_by and one.client.backend is None


def test_auto_is_not_pinned_by_what_stays_with_it() -> None:
    house = House(Limits(size=1))
    one = house.join(auto=True)
    house.settle()
    one.run("SET timezone = 'CET'")
    assert not one.client.pinned_by


# -- prepared statements


def test_a_named_statement_works_in_every_backend() -> None:
    house = House(Limits(size=2))
    one, two = house.join(), house.join()
    house.settle()
    assert brief(one.ask(p("s", "select 1"), d("s"), S)) == "1 t T ZI"
    two.run("begin")  # takes the backend in which it is prepared, or another
    assert brief(one.ask(b("s"), e(), S)) == "2 D(select 1) C(SELECT 1) ZI"
    two.run("commit")
    for client in (two, one, two):
        client.run("begin")
        assert brief(one.ask(b("s"), e(), S)).startswith("2 ") or client is one
        client.run("commit")
    prepared = [list(twin.statements) for twin in house.twins.values()]
    assert prepared == [[b"torpor_1"], [b"torpor_1"]] or sorted(map(len, prepared)) == [0, 1]


def test_two_clients_use_one_name_for_two_statements_and_two_names_for_one() -> None:
    house = House(Limits(size=1))
    one, two = house.join(), house.join()
    house.settle()
    assert brief(one.ask(p("s", "select 1"), S)) == "1 ZI"
    assert brief(two.ask(p("s", "select 2"), p("t", "select 1"), S)) == "1 1 ZI"
    assert brief(one.ask(b("s"), e(), S)) == "2 D(select 1) C(SELECT 1) ZI"
    assert brief(two.ask(b("s"), e(), b("t"), e(), S)) == "2 D(select 2) C(SELECT 1) 2 D(select 1) C(SELECT 1) ZI"
    (twin,) = house.twins.values()
    assert len(twin.statements) == 2
    assert brief(one.ask(b("t"), S)) == "E(26000) ZI"


def test_the_unnamed_statement_survives_a_change_of_backends() -> None:
    house = House(Limits(size=1))
    one, two = house.join(), house.join()
    house.settle()
    assert brief(one.ask(p("", "select 1"), d(""), S)) == "1 t T ZI"
    assert brief(two.ask(p("", "select 2"), b(), e(), S)) == "1 2 D(select 2) C(SELECT 1) ZI"
    assert brief(one.ask(b(), e(), S)) == "2 D(select 1) C(SELECT 1) ZI"
    two.run("select 3")
    assert brief(two.ask(b(), e(), S)) == "E(26000) ZI", "a simple query ends the unnamed statement, as in PostgreSQL"


def test_answers_that_are_the_pools_own_stand_at_their_place() -> None:
    house = House(Limits(size=1))
    one, two = house.join(), house.join()
    house.settle()
    one.ask(p("s", "select 1"), S)
    said = two.ask(p("a", "select 9"), b("a"), e(), p("s", "select 1"), c("a"), b("s"), e(), S)
    assert brief(said) == "1 2 D(select 9) C(SELECT 1) 1 3 2 D(select 1) C(SELECT 1) ZI"


def test_an_error_in_a_pipeline_undoes_what_was_left_out() -> None:
    house = House(Limits(size=1))
    one = house.join()
    house.settle()
    assert brief(one.ask(p("a", "bad"), p("b", "select 2"), b("b"), e(), c("b"), S)) == "E(42601) ZI"
    assert brief(one.ask(b("b"), S)) == "E(26000) ZI"
    assert brief(one.ask(p("b", "select 2"), b("b"), e(), S)) == "1 2 D(select 2) C(SELECT 1) ZI"
    said = one.ask(p("x", "fail"), b("x"), e(), S, p("y", "select 3"), b("y"), e(), S)
    assert brief(said) == "1 2 E(XX000) ZI 1 2 D(select 3) C(SELECT 1) ZI"


def test_discard_all_and_deallocate_of_a_client() -> None:
    house = House(Limits(size=1))
    one, two = house.join(), house.join()
    house.settle()
    one.ask(p("s", "select 1"), S)
    two.ask(p("s", "select 1"), S)
    one.run("DISCARD ALL")
    assert brief(one.ask(b("s"), S)) == "E(26000) ZI"
    assert brief(two.ask(b("s"), e(), S)) == "2 D(select 1) C(SELECT 1) ZI"
    assert two.run('DEALLOCATE "s"') == "C(DEALLOCATE) ZI"
    assert brief(two.ask(b("s"), S)) == "E(26000) ZI"


def test_a_stale_plan_is_prepared_anew() -> None:
    house = House(Limits(size=1))
    one = house.join()
    house.settle()
    one.ask(p("s", "select 1"), S)
    (backend,) = house.twins
    one.say(b("s"), e(), S)
    house.twins[backend].hear(backend.link.take())  # type: ignore[attr-defined]
    backend.received(frame(b"2") + error_response("0A000", "cached plan must not change result type", severity="ERROR") + frame(b"Z", b"I"))
    house.settle()
    assert not backend.statements and house.pool.discards == 1
    assert brief(one.ask(b("s"), e(), S)).endswith("2 D(select 1) C(SELECT 1) ZI")


# -- faults


def test_a_backend_that_dies_takes_only_its_client_along() -> None:
    house = House(Limits(size=2))
    one, two = house.join(), house.join()
    house.settle()
    one.run("begin")
    backend = one.client.backend
    assert backend is not None
    house.kill(backend)
    heard = one.heard()
    assert brief(heard) == "E(57P02)" and b"nothing is repeated" in heard
    assert one.link.is_closed
    assert two.run("select 1").endswith("ZI")


@pytest.mark.parametrize("how", ["pinned", "in a transaction", "idle", "waiting"])
def test_no_place_is_lost_when_postgresql_dies(how: str) -> None:
    house = House(Limits(size=1))
    for _ in range(3):
        one, two = house.join(auto=True), house.join()
        house.settle()
        if how == "pinned":
            one.run("temp it")
        elif how != "idle":
            one.run("begin")
        if how == "waiting":
            two.say(q("select 2"))
        for backend in list(house.twins):
            house.kill(backend)
        house.settle()
        three = house.join()
        assert three.run("select 3").endswith("D(select 3) C(SELECT 1) ZI")
        assert three.client.group.backends == len(house.pool.backends) == 1
        assert three.client.group.opening == 0
        for client in list(house.pool.clients):
            client.left()


def test_what_postgresql_says_at_the_end_is_enough() -> None:
    house = House(Limits(size=1))
    one = house.join()
    house.settle()
    one.run("begin")
    backend = one.client.backend
    assert backend is not None
    backend.received(error_response("57P01", "terminating connection due to administrator command"))
    house.kill(backend)
    assert brief(one.heard()) == "E(57P01)"


def test_a_client_that_leaves_in_a_transaction_leaves_nothing() -> None:
    house = House(Limits(size=1))
    one, two = house.join(), house.join()
    house.settle()
    one.run("begin")
    before = one.client.backend
    one.client.left()
    house.settle()
    assert before not in house.twins
    assert two.run("select 1").endswith("ZI")
    assert not house.canceled


def test_what_runs_for_nobody_is_cancelled() -> None:
    house = House(Limits(size=1))
    one = house.join()
    house.settle()
    one.say(q("select 1"))
    backend = one.client.backend
    one.client.left()
    assert house.canceled == [backend]


def test_a_client_that_waits_can_leave() -> None:
    house = House(Limits(size=1))
    one, two, three = house.join(), house.join(), house.join()
    house.settle()
    one.run("begin")
    two.say(q("select 2"))
    three.say(q("select 3"))
    two.client.left()
    one.run("commit")
    house.settle()
    assert brief(three.heard()).endswith("ZI")


def test_nobody_gets_a_backend_before_its_cancel_was_heard() -> None:
    house = House(Limits(size=1))
    one, two = house.join(), house.join()
    house.settle()
    one.heard()
    one.say(q("select 1"))
    backend = one.client.backend
    assert backend is not None
    house.pool.cancel(one.client)
    house.settle()
    assert brief(one.heard()).endswith("ZI"), "it was too late"
    two.heard()
    two.say(q("select 2"))
    house.settle()
    assert two.heard() == b""
    house.pool.cancel_done(backend)
    house.settle()
    assert brief(two.heard()).endswith("D(select 2) C(SELECT 1) ZI")


def test_a_cancel_of_one_who_runs_nothing_hits_nobody() -> None:
    house = House(Limits(size=1))
    one, two = house.join(), house.join()
    house.settle()
    two.run("begin")
    house.pool.cancel(one.client)
    assert not house.canceled


def test_no_backend_can_be_had() -> None:
    house = House()
    one = house.join()
    house.pool.open_failed(house.opened.popleft(), error_response("57P03", "it doesn't start"))
    assert brief(one.heard()) == "E(57P03)"
    assert one.link.is_closed


def test_rows_of_a_copy_that_failed_are_dropped() -> None:
    house = House(Limits(size=1))
    one = house.join()
    house.settle()
    one.heard()
    one.say(frame(b"d", b"1\n"), frame(b"c"), q("select 1"))
    house.settle()
    assert brief(one.heard()) == "T D(select 1) C(SELECT 1) ZI"


def test_copy_in_by_the_extended_protocol() -> None:
    house = House(Limits(size=1))
    one = house.join()
    house.settle()
    one.heard()
    one.say(p("", "copy"), b(), e(), S)
    (backend,) = house.twins
    link = backend.link
    link.take()  # type: ignore[attr-defined]
    backend.received(frame(b"1") + frame(b"2") + frame(b"G", b"\0\0\0"))
    one.say(frame(b"d", b"1\n"), frame(b"c"))
    backend.received(frame(b"C", b"COPY 1\0"))
    assert one.client.backend is backend
    one.say(S)
    backend.received(frame(b"Z", b"I"))
    assert one.client.backend is None
    assert brief(one.heard()) == "1 2 G C(COPY 1) ZI"


def test_sync_alone_needs_nobody() -> None:
    house = House()
    one = house.join()
    house.settle()
    one.heard()
    one.say(S)
    assert brief(one.heard()) == "ZI"
    assert one.client.backend is None


def test_what_is_no_protocol_is_refused() -> None:
    house = House()
    one = house.join()
    house.settle()
    one.heard()
    one.say(frame(b"?", b""))
    assert brief(one.heard()) == "E(08P01)"
    assert one.link.is_closed


def test_all_are_told_at_the_end_those_in_a_transaction_after_it() -> None:
    house = House()
    one, two = house.join(), house.join()
    house.settle()
    one.run("begin")
    two.heard()
    house.pool.finish(error_response("57P01", "over"))
    assert brief(two.heard()) == "E(57P01)" and two.link.is_closed
    assert one.run("select 1").endswith("ZT")
    assert one.run("commit") == "C(COMMIT) ZI E(57P01)"
