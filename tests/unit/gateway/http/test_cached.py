"""The cache over HTTP: words out of headers, headers out of notices."""

import pytest

from torpor.gateway.http.cached import Status, Words, has_own_words, in_words_of_client, is_tag, pooled, read_words, words_of
from torpor.gateway.http.credentials import Target
from torpor.gateway.http.failures import Failure

WORDS = Words("ttl=60 status")


@pytest.mark.parametrize(
    ("control", "tags", "expected"),
    [
        ("", "", None),
        ("no-cache", "users", None),
        ("max-age=0", "", None),
        ("max-age=60, no-store", "", None),
        ("max-age=60", "", "ttl=60 status"),
        ("Max-Age = 60,stale-while-revalidate=300", "users, home,users,", "ttl=60 swr=300 tags=users,home status"),
        ("stale-while-revalidate=300", "", "ttl=1 swr=300 status"),
        ("max-age=999999999", "", "ttl=31536000 status"),
        ("max-age=60", "a force", ""),
        ("max-age=60", "a*/ DROP TABLE users --", ""),
        ("max-age=60", ",".join(f"t{n}" for n in range(17)), ""),
        ("max-age=60", "é", ""),
    ],
)
def test_words(control: str, tags: str, expected: str | None) -> None:
    found = read_words(control, tags)
    assert found == (None if expected is None else Words(expected) if expected else Words("", "bad words"))


def test_words_stand_in_front() -> None:
    assert WORDS.in_front_of("SELECT 1") == "/* ttl=60 status */ SELECT 1"
    assert Words("").in_front_of("SELECT 1") == "SELECT 1"


@pytest.mark.parametrize(
    ("text", "expected"), [("a", True), ("a b", False), ("a,b", False), ("", False), (7, False), ("*/", False), ("x" * 65, False)]
)
def test_tags(text: object, expected: bool) -> None:
    assert is_tag(text) is expected


@pytest.mark.parametrize(
    ("target", "options"),
    [
        (Target("u", "p", "shop", "h"), "pool=auto"),
        (Target("u", "p", "shop", "h", "-c a=b"), "-c a=b pool=auto"),
        (Target("u", "p", "shop", "h", "pool=off"), "pool=off"),
        (Target("u", "p", "shop@pool", "h"), ""),
        (Target("u", "p", "shop@auto", "h"), ""),
        (Target("u", "p", "shop", "shop-pooler.db.example.com"), ""),
    ],
)
def test_by_way_of_the_pool(target: Target, options: str) -> None:
    assert pooled(target).options == options


def notice(message: str, detail: str = "", code: str = "00000") -> dict[str, str]:
    return {"M": message, "C": code, "D": detail}


@pytest.mark.parametrize(
    ("notices", "headers", "is_served"),
    [
        ([("hit", "age=5.5s ttl=60s swr=300s")], {"cache-status": "Torpor; hit; ttl=54", "torpor-cache": "hit", "age": "5"}, True),
        (
            [("stale", "age=70s ttl=60s swr=300s")],
            {"cache-status": "Torpor; hit; ttl=-10; detail=stale", "torpor-cache": "stale", "age": "70"},
            True,
        ),
        ([("miss", "")], {"cache-status": "Torpor; fwd=miss", "torpor-cache": "miss"}, False),
        (
            [("bypass (volatile now)", "")],
            {"cache-status": 'Torpor; fwd=bypass; detail="volatile now"', "torpor-cache": "bypass (volatile now)"},
            False,
        ),
        (
            [('bypass (volatile x"\r\ny)', "")],
            {"cache-status": 'Torpor; fwd=bypass; detail="volatile x\'??y"', "torpor-cache": "bypass (volatile x'??y)"},
            False,
        ),
        ([("hit", "age=1s ttl=60s"), ("miss", "")], {"cache-status": "Torpor; fwd=miss", "torpor-cache": "miss"}, False),
        (
            [],
            {"cache-status": 'Torpor; fwd=bypass; detail="no answer of the cache"', "torpor-cache": "bypass (no answer of the cache)"},
            False,
        ),
    ],
)
def test_status(notices: list[tuple[str, str]], headers: dict[str, str], is_served: bool) -> None:
    status = Status()
    for message, detail in notices or [("", "")]:
        status.expect(WORDS)
        status.hear(notice(f"cache: {message}", detail))
    status.settle()
    assert status.headers() == headers
    assert status.is_served is is_served


def test_other_notices_say_nothing() -> None:
    status = Status()
    status.hear(notice("cache: hit"))  # which nobody asked for
    status.settle()
    assert status.headers() == {}
    status.expect()
    for said in (notice("cache: hit", code="01000"), notice("relation exists, skipping"), notice("cache: perhaps")):
        status.hear(said)
    status.settle()
    assert status.text == "bypass (no answer of the cache)"
    status = Status()
    status.expect(WORDS)
    status.hear(notice("cache: hit"))  # by a function of the tenant, before the pool's own
    status.hear(notice("cache: miss"))
    status.settle()
    assert (status.text, status.is_served) == ("miss", False)
    status.expect(Words("", "bad words"))
    assert status.text == "bypass (bad words)"


def test_words_of_the_client_itself() -> None:
    direct, pool = Target("u", "p", "shop", "h"), Target("u", "p", "shop@auto", "h")
    asks = "/* ttl=60 status */ SELECT 1"
    assert has_own_words(asks, pool)
    assert not has_own_words(asks, direct)
    assert not has_own_words(asks, Target("u", "p", "shop", "h", "pool=off"))
    assert not has_own_words("/* ttl=60 */ SELECT 1", pool)
    assert not has_own_words("SELECT 1 /* ttl=60 status */", pool)
    for past in (Target("u", "p", "shop", "h", "pool=off"), Target("", "a.b.c", "shop@auto", "h", by_token=True)):
        assert words_of({"cache-control": "max-age=60"}, past) == Words("", "not pooled")
        assert pooled(past) == past
        assert not has_own_words(asks, past)


def test_errors_tell_the_clients_own_position() -> None:
    with pytest.raises(Failure) as caught, in_words_of_client(WORDS):
        raise Failure({"M": "no", "P": "25"})
    assert caught.value.fields["P"] == str(25 - len("/* ttl=60 status */ "))
    with pytest.raises(Failure) as caught, in_words_of_client(None):
        raise Failure({"M": "no", "P": "25"})
    assert caught.value.fields["P"] == "25"
