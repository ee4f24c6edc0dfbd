"""Access lists in the catalog. Concurrency: as `catalog`. Those of a database or workspace go when it goes."""

from torpor.catalog.records import Records
from torpor.model.access import AccessList, ListScope, ScopeKey, access_list


class AccessRecords(Records):
    """The lists of all scopes."""

    def lists(self) -> dict[ScopeKey, AccessList]:
        """Every list that isn't empty."""
        found: dict[ScopeKey, dict[str, list[str]]] = {}
        for scope, id, verdict, network in self._read("access"):
            found.setdefault((ListScope(scope), id), {"allow": [], "deny": []})[verdict].append(network)
        return {key: access_list(kept["allow"], kept["deny"]) for key, kept in found.items()}

    def replace(self, key: ScopeKey, lists: AccessList) -> None:
        """Make `lists` those of a scope, whole or not at all. 10,000 entries take some 20 ms."""
        scope, id = key[0].value, key[1]
        with self.transaction():
            self._write("clear_access", {"scope": scope, "id": id})
            for verdict, networks in (("allow", lists.allow), ("deny", lists.deny)):
                for network in networks:
                    self._write("add_access", (scope, id, verdict, network))
