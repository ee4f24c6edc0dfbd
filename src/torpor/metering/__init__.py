"""What databases use, as numbers: reads the counters that the kernel keeps.

Belongs here: reading counters, and (later) tariff and ledger. Does not belong: the nouns (torpor.model), where totals are kept
(torpor.catalog), how they are shown (torpor.api, torpor.base.telemetry).
"""
