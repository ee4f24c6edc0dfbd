"""Puts the use cases on tokens together as the settings say. Concurrency: none, at start only."""

from torpor.base.clock import Clock
from torpor.base.fetching import Fetcher
from torpor.base.tasks import TaskOwner
from torpor.catalog.catalog import Catalog
from torpor.catalog.tokens import TokenRecords
from torpor.compute.fleet import Fleet
from torpor.control.keysets import KeySets
from torpor.control.tokens import TokenControl
from torpor.model.access import NetworkSet, parse_address
from torpor.model.settings import Settings


def make_tokens(settings: Settings, catalog: Catalog, fleet: Fleet, clock: Clock, tasks: TaskOwner) -> TokenControl:
    """The tokens that databases take. Key sets are fetched when somebody asks for them."""
    private = NetworkSet(settings.key_set_networks)

    def is_allowed(host: str) -> bool:
        address = parse_address(host)
        return address is not None and private.find(address) is not None

    return TokenControl(TokenRecords(catalog.connection), fleet.get, KeySets(Fetcher(is_allowed).fetch, clock, tasks), clock, tasks)
