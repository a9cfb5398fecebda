"""The store: last good kept, alarms, edits, conflicts, rollback, promotion, file watching and SIGHUP."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from serving.policy.history import MemoryLog, ShadowEvidence
from serving.policy.problems import PolicyError
from serving.policy.store import PolicyStore, ReadOnlyPolicyError, RevisionConflictError
from serving.policy.watch import PolicyWatcher, reload_on_sighup


def text_of(mode: str = "observe", clock: int = 1000, gate: str = "") -> str:
    return (
        "apiVersion: gridserve/v1\nkind: Policy\nmetadata: {name: p}\nspec:\n"
        f"  mode: {mode}\n  power: {{clock_mhz: {{max: {clock}}}}}\n{gate}"
    )


GATE = "  slo: {ttft_p99_ms: 1000, tpot_p99_ms: 50}\n  promotion: {min_shadow_h: 2, max_slo_violations: 1}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(text_of())
    return path


def wait_until(holds, limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)


def test_the_first_policy_must_be_good(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        PolicyStore(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text(text_of(mode="go"))
    with pytest.raises(PolicyError):
        PolicyStore(bad)


def test_a_bad_file_keeps_the_last_good_policy_and_raises_an_alarm_until_mended(path):
    alarms = []
    store = PolicyStore(path, on_alarm=alarms.append)
    before = store.active
    path.write_text(text_of(mode="go"))
    done = store.reload()
    assert not done.ok
    assert f"{path}:5:9: spec.mode" in done.error
    assert store.active is before
    assert not store.last_reload_ok
    store.reload()
    path.unlink()
    assert "No such file" in store.reload().error
    path.write_text(text_of())
    assert store.reload().ok
    assert (store.last_reload_ok, store.alarm) == (True, None)
    assert [alarm is not None for alarm in alarms] == [True, True, False]


def test_an_unchanged_file_is_no_new_activation(path):
    store = PolicyStore(path)
    assert not store.reload().changed
    path.write_text(text_of(clock=900))
    assert store.reload().changed
    assert [record.reason for record in store.log.latest()] == ["the file changed", "loaded at start"]


def test_preflight_refuses_like_the_validator(path):
    def refuse(policy):
        if policy.spec.power.clock_mhz.max == 900:
            raise ValueError("the device is gone")

    store = PolicyStore(path, preflight=refuse)
    path.write_text(text_of(clock=900))
    assert "fails on the live system: the device is gone" in store.reload().error


def test_an_edit_writes_the_file_and_is_on_record(path):
    store = PolicyStore(path)
    path.chmod(0o640)
    first = store.active.revision
    store.edit(text_of(clock=900), if_match=first, actor="ann", reason=" cooler ")
    assert path.read_text() == text_of(clock=900)
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(path.parent.iterdir()) == [path]
    record = store.log.latest()[0]
    assert (record.actor, record.reason, record.revision) == ("ann", "cooler", store.active.revision)
    assert not store.reload().changed


def test_an_edit_on_an_old_revision_conflicts(path):
    store = PolicyStore(path)
    first = store.active.revision
    store.edit(text_of(clock=900), if_match=first, actor="ann", reason="cooler")
    with pytest.raises(RevisionConflictError) as caught:
        store.edit(text_of(clock=800), if_match=first, actor="bob", reason="coolest")
    assert caught.value.current == store.active.revision
    path.write_text(text_of(clock=700))
    with pytest.raises(RevisionConflictError):
        store.edit(text_of(clock=800), if_match=store.active.revision, actor="bob", reason="coolest")
    assert path.read_text() == text_of(clock=700)


def test_of_many_edits_on_one_revision_one_wins(path):
    store = PolicyStore(path)
    first = store.active.revision
    won = []

    def edit(clock):
        with contextlib.suppress(RevisionConflictError):
            won.append(store.edit(text_of(clock=clock), if_match=first, actor="x", reason="race").revision)

    threads = [threading.Thread(target=edit, args=(clock,)) for clock in range(500, 510)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [store.active.revision]


def test_edits_that_are_refused_change_nothing(path):
    store = PolicyStore(path)
    first = store.active
    with pytest.raises(ValueError, match="needs a reason"):
        store.edit(text_of(clock=900), if_match=first.revision, actor="ann", reason="  ")
    with pytest.raises(PolicyError):
        store.edit(text_of(mode="go"), if_match=first.revision, actor="ann", reason="x")
    with pytest.raises(ReadOnlyPolicyError):
        PolicyStore(path, managed=True).edit(text_of(), if_match=first.revision, actor="ann", reason="x")
    assert store.active is first
    assert path.read_text() == text_of()


class FullLog(MemoryLog):
    full = False

    def append(self, record):
        if self.full:
            raise OSError(28, "No space left on device")
        super().append(record)


def test_without_a_record_an_edit_is_refused_but_a_changed_file_is_followed(path):
    log = FullLog()
    store = PolicyStore(path, log=log)
    log.full = True
    with pytest.raises(OSError, match="No space"):
        store.edit(text_of(clock=900), if_match=store.active.revision, actor="ann", reason="x")
    assert path.read_text() == text_of()
    path.write_text(text_of(clock=900))
    assert store.reload().changed
    assert "not on record" in store.alarm


def test_rollback_is_an_edit_to_old_text(path):
    store = PolicyStore(path)
    first = store.active.revision
    store.edit(text_of(clock=900), if_match=first, actor="ann", reason="cooler")
    store.rollback(first[:12], if_match=store.active.revision, actor="bob", reason="too slow")
    assert store.active.revision == first
    assert path.read_text() == text_of()
    assert store.log.latest()[0].reason == f"rollback to {first[:12]}: too slow"
    with pytest.raises(ValueError, match="no revision"):
        store.rollback("0" * 12, if_match=first, actor="bob", reason="x")
    with pytest.raises(ValueError, match="hexadecimal"):
        store.rollback("%", if_match=first, actor="bob", reason="x")


def test_enforce_takes_effect_when_shadow_has_shown_enough(path):
    seen = {}
    path.write_text(text_of("shadow", gate=GATE))
    store = PolicyStore(path, evidence=lambda body: seen.get(body))
    body = store.active.policy.body_revision
    assert (store.active.mode, store.active.held_back) == ("shadow", None)
    path.write_text(text_of("enforce", gate=GATE))
    store.reload()
    assert store.active.mode == "shadow"
    assert "no record" in store.active.held_back
    for evidence, mode, words in (
        (ShadowEvidence(1.5, 0), "shadow", "1.5 h in shadow of the 2 h"),
        (ShadowEvidence(2.0, 2), "shadow", "2 SLO violations in shadow, 1 are allowed"),
        (ShadowEvidence(2.0, 1), "enforce", None),
    ):
        seen[body] = evidence
        active = store.review()
        assert active.mode == mode
        assert words is None if active.held_back is None else words in active.held_back
    assert store.log.latest()[0].mode == "enforce"
    path.write_text(text_of("enforce", clock=900, gate=GATE))
    store.reload()
    assert store.active.mode == "shadow", "another body has shown nothing yet"


def test_without_a_gate_enforce_is_enforce(path):
    path.write_text(text_of("enforce"))
    assert PolicyStore(path).active.mode == "enforce"


@pytest.fixture
def watched(path):
    stores = []

    def begin(at: Path) -> PolicyStore:
        store = PolicyStore(at)
        watcher = PolicyWatcher(store)
        watcher.start()
        stores.append(watcher)
        return store

    yield begin
    for watcher in stores:
        watcher.stop()


def test_an_atomic_rename_is_seen(path, watched):
    store = watched(path)
    for clock in (901, 902):
        fresh = path.with_suffix(".new")
        fresh.write_text(text_of(clock=clock))
        os.replace(fresh, path)
        wait_until(lambda clock=clock: store.active.policy.spec.power.clock_mhz.max == clock)


def test_a_kubernetes_swap_of_the_data_link_is_seen(tmp_path, watched):
    def publish(name: str, clock: int) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "policy.yaml").write_text(text_of(clock=clock))
        (tmp_path / "..data_tmp").symlink_to(name)
        os.replace(tmp_path / "..data_tmp", tmp_path / "..data")

    publish("..2026_01", 1001)
    mounted = tmp_path / "mounted.yaml"
    mounted.symlink_to("..data/policy.yaml")
    store = watched(mounted)
    publish("..2026_02", 1002)
    wait_until(lambda: store.active.policy.spec.power.clock_mhz.max == 1002)


def test_a_bad_file_is_seen_too_and_its_repair(path, watched):
    store = watched(path)
    path.write_text("nonsense")
    wait_until(lambda: store.alarm is not None)
    path.write_text(text_of(clock=905))
    wait_until(lambda: store.active.policy.spec.power.clock_mhz.max == 905)
    assert store.alarm is None


def test_sighup_reloads(path):
    store = PolicyStore(path)
    before = signal.getsignal(signal.SIGHUP)
    try:
        reload_on_sighup(store)
        path.write_text(text_of(clock=910))
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: store.active.policy.spec.power.clock_mhz.max == 910)
        assert store.log.latest()[0].actor == "sighup"
    finally:
        signal.signal(signal.SIGHUP, before)
