"""The ledger: what was served, decided and set, at what cost; durable rows, disposable telemetry, two back ends."""
