"""Names for databases whose makers didn't care."""

from torpor.control import names
from torpor.control.names import suggest_name
from torpor.control.provisioning import new_id, new_password
from torpor.model.names import MAX_NAME_LENGTH, check_database_name, is_database_id


def test_every_suggestion_is_a_legal_name() -> None:
    for adjective in names._ADJECTIVES:
        for animal in names._ANIMALS:
            name = f"{adjective}-{animal}-9999"
            assert check_database_name(name) == name
            assert len(name) <= MAX_NAME_LENGTH
    assert len(set(names._ADJECTIVES)) == len(names._ADJECTIVES)
    assert len(set(names._ANIMALS)) == len(names._ANIMALS)


def test_taken_names_are_not_suggested() -> None:
    asked: list[str] = []

    def taken(name: str) -> object:
        asked.append(name)
        return len(asked) < 5 or None

    assert suggest_name(taken) == asked[-1]
    assert len(asked) == 5


def test_suggestions_differ() -> None:
    assert len({suggest_name(lambda name: None) for _ in range(100)}) > 95


def test_ids_and_passwords() -> None:
    ids = [new_id() for _ in range(100)]
    assert all(map(is_database_id, ids))
    assert len(set(ids)) == 100
    password = new_password()
    assert len(password) == 24
    assert password.replace("-", "").replace("_", "").isalnum(), "needs no escaping in a URL"
