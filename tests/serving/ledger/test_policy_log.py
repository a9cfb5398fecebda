"""The policy store with the ledger behind it: revisions outlive the process, shadow time opens the gate."""

import pytest

from serving.ledger.policy_log import LedgerPolicyLog
from serving.ledger.reader import LedgerReader
from serving.ledger.rows import AuditEntry
from serving.ledger.writer import LedgerWriter
from serving.policy.store import PolicyStore

MINUTE_US = 60_000_000
POLICY = """apiVersion: gridserve/v1
kind: Policy
metadata: {name: p}
spec:
  mode: %s
  slo: {ttft_p99_ms: 1000, tpot_p99_ms: 50}
  promotion: {min_shadow_h: 1, max_slo_violations: 0}
  power: {clock_mhz: {max: %d}}
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY % ("shadow", 900))
    return path


def test_revisions_and_rollback_survive_a_restart(location, quick, path):
    with LedgerWriter(location, quick) as writer:
        reader = LedgerReader(location)
        store = PolicyStore(path, log=LedgerPolicyLog(writer, reader))
        first = store.active.revision
        store.edit(POLICY % ("shadow", 800), if_match=first, actor="ann", reason="cooler")
        reader.close()
    with LedgerWriter(location, quick) as writer:
        reader = LedgerReader(location)
        store = PolicyStore(path, log=LedgerPolicyLog(writer, reader))
        store.rollback(first[:8], if_match=store.active.revision, actor="bob", reason="slow")
        found = [(record.actor, record.reason) for record in store.log.latest()]
        assert found[0] == ("bob", f"rollback to {first[:8]}: slow")
        assert found[2] == ("ann", "cooler")
        assert store.active.revision == first
        with pytest.raises(ValueError, match="not a revision"):
            store.log.find("%%%%%%%%")
        assert store.log.find("0" * 64) is None
        reader.close()


def test_decisions_in_shadow_open_the_gate(location, quick, path, noon_us):
    with LedgerWriter(location, quick) as writer:
        reader = LedgerReader(location)
        log = LedgerPolicyLog(writer, reader)
        path.write_text(POLICY % ("enforce", 900))
        store = PolicyStore(path, log=log, evidence=log.evidence)
        body = store.active.policy.body_revision
        assert store.active.mode == "shadow"

        def decide(minute, **fields):
            given = {"policy_body": body, "policy_mode": "shadow", **fields}
            return writer.submit(AuditEntry(at_us=noon_us + minute * MINUTE_US, kind="decision", actor="c", **given))

        for minute in range(59):
            decide(minute)
        decide(0)
        decide(61, policy_mode="enforce")
        decide(62, policy_body="another").result(20)
        assert "1.0 h in shadow of the 1 h" in store.review().held_back
        decide(59).result(20)
        assert store.review().mode == "enforce"
        decide(60, slo_violated=True).result(20)
        assert log.evidence(body).slo_violations == 1
        reader.close()


def test_a_ledger_that_does_not_answer_is_an_os_error(location, quick, path):
    writer = LedgerWriter(location, quick)
    writer.start()
    reader = LedgerReader(location)
    store = PolicyStore(path, log=LedgerPolicyLog(writer, reader, timeout_s=0.01))
    writer.close()
    with pytest.raises(OSError, match="writer is closed"):
        store.edit(POLICY % ("shadow", 700), if_match=store.active.revision, actor="a", reason="r")
    reader.close()
