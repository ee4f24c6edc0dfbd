"""Which tokens databases take, in the catalog. Concurrency: as `catalog`. What holds for a database goes with it."""

import json

from torpor.catalog.records import Records
from torpor.model.names import DatabaseId
from torpor.model.tokens import TokenRules


class TokenRecords(Records):
    """The rules of all databases that take tokens."""

    def all(self) -> dict[DatabaseId, TokenRules]:
        """The rules by database."""
        return {
            DatabaseId(id): TokenRules(issuer, audience, claim, tuple(json.loads(roles)), url, keys, version)
            for id, issuer, audience, claim, roles, url, keys, version in self._read("token_rules")
        }

    def replace(self, id: DatabaseId, rules: TokenRules | None) -> bool:
        """Make `rules` those of a database; False for one that was removed meanwhile."""
        with self.transaction():
            self._write("clear_token_rules", {"id": id})
            if rules is None:
                return True
            values = {
                "id": id,
                "issuer": rules.issuer,
                "audience": rules.audience,
                "role_claim": rules.role_claim,
                "roles": json.dumps(rules.roles),
                "jwks_url": rules.jwks_url,
                "jwks": rules.jwks,
                "version": rules.version,
            }
            return self._write("add_token_rules", values) > 0
