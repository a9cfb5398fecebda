"""The policy in force: one reference, replaced whole, and only by a policy that passed.

The controller reads `active` once a tick. A file that is refused, unreadable or gone leaves the last good policy in
force and raises an alarm. Edits name the revision they were made on and a reason; a rollback is an edit to old text.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from serving.policy.checks import DeviceRange
from serving.policy.document import MAX_BYTES
from serving.policy.history import MemoryLog, RevisionLog, RevisionRecord, ShadowEvidence, gate_refusal
from serving.policy.load import LoadedPolicy, parse_policy
from serving.policy.model import Mode, Policy
from serving.policy.problems import PolicyError, Problem


class RevisionConflictError(Exception):
    """The policy changed since the edit was begun; `current` is the revision in force."""

    def __init__(self, current: str) -> None:
        super().__init__(f"the policy has changed meanwhile and is now {current[:12]}; take over its changes and retry")
        self.current = current


class ReadOnlyPolicyError(Exception):
    """The file is managed elsewhere (GitOps): edits belong there."""


@dataclass(frozen=True, slots=True)
class Active:
    """The policy in force. `mode` is what it may do now; `held_back` says why that is less than it asks for. `reason`:
    why it was put in force, in the words of whoever did."""

    policy: Policy
    text: str
    warnings: tuple[Problem, ...]
    activated_at: datetime
    actor: str
    reason: str
    mode: Mode
    held_back: str | None = None

    @property
    def revision(self) -> str:
        return self.policy.revision


@dataclass(frozen=True, slots=True)
class Reload:
    """What a reload did. `error`: why the file was refused, one problem a line."""

    ok: bool
    changed: bool
    revision: str
    error: str | None = None


class PolicyStore:
    """Thread-safe. `preflight`: a last try of a new policy against the live system; it refuses by `ValueError`.

    `evidence`: what was recorded of a policy's body in shadow, for the promotion gate. `managed`: edits are refused.
    Raises `PolicyError` or `OSError` when the first policy cannot be loaded: there is no last good one yet.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: DeviceRange | None = None,
        log: RevisionLog | None = None,
        evidence: Callable[[str], ShadowEvidence | None] | None = None,
        preflight: Callable[[Policy], None] | None = None,
        on_alarm: Callable[[str | None], None] | None = None,
        managed: bool = False,
    ) -> None:
        self.path = path
        self.log: RevisionLog = MemoryLog() if log is None else log
        self.managed = managed
        self.last_success_at = datetime.now(UTC)
        self._device = device
        self._evidence = evidence
        self._preflight = preflight
        self._on_alarm = on_alarm
        self._lock = threading.RLock()
        self._alarms: dict[str, str] = {}
        self._seen = self._read()
        self._active = self._activate(self._parse(self._seen), "start", "loaded at start")

    @property
    def active(self) -> Active:
        return self._active

    @property
    def alarm(self) -> str | None:
        """Why the file is not in force, or what could not be recorded; `None` when all is well."""
        return "\n".join(self._alarms.values()) or None

    @property
    def last_reload_ok(self) -> bool:
        return "reload" not in self._alarms

    def reload(self, actor: str = "file", reason: str = "the file changed") -> Reload:
        """Read the file again; never raises for what stands in it. An unchanged file changes nothing."""
        with self._lock:
            try:
                raw = self._read()
                if raw == self._seen and self.last_reload_ok:
                    return Reload(True, False, self._active.revision)
                loaded = self._parse(raw)
                self._seen = raw
            except OSError as error:
                return self._refused(f"{self.path} cannot be read: {error.strerror}")
            except ValueError as error:
                return self._refused(str(error))
            changed = loaded.policy.revision != self._active.revision or loaded.text != self._active.text
            if changed:
                self._active = self._activate(loaded, actor, reason)
            self._set_alarm("reload", None)
            self.last_success_at = datetime.now(UTC)
            return Reload(True, changed, self._active.revision)

    def edit(self, text: str, *, if_match: str, actor: str, reason: str) -> Active:
        """Check `text`, write it to the file and put it in force.

        Raises `RevisionConflictError`, `ReadOnlyPolicyError`, `PolicyError`, `ValueError` without a reason, and
        `OSError` when the file or the record cannot be written; then nothing has changed.
        """
        if not reason.strip():
            raise ValueError("an edit needs a reason; say why the policy changes")
        with self._lock:
            if self.managed:
                raise ReadOnlyPolicyError(f"{self.path} is managed elsewhere; change it there")
            if if_match != self._active.revision or self._read() != self._seen:
                raise RevisionConflictError(self._active.revision)
            loaded = self._parse(text.encode())
            record = self._record(loaded.policy, loaded.text, actor, reason, datetime.now(UTC))
            self.log.append(record)
            _replace(self.path, text.encode())
            self._seen = text.encode()
            self._active = self._as_active(loaded, actor, record.reason, record.activated_at)
            self._set_alarm("reload", None)
            self.last_success_at = record.activated_at
            return self._active

    def rollback(self, revision: str, *, if_match: str, actor: str, reason: str) -> Active:
        """Put an earlier revision in force again, as an edit. Raises `ValueError` for an unknown one."""
        record = self.log.find(revision)
        if record is None:
            raise ValueError(f"no revision {revision!r} is on record; see the list of revisions")
        return self.edit(record.text, if_match=if_match, actor=actor, reason=f"rollback to {revision}: {reason}")

    def review(self) -> Active:
        """Look at the promotion gate again; call it every minute or so."""
        with self._lock:
            active = self._active
            if active.held_back is not None:
                loaded = LoadedPolicy(active.policy, active.text, active.warnings)
                mode, refusal = self._mode(active.policy)
                if refusal is None:
                    self._active = self._activate(loaded, active.actor, "the promotion gate has opened")
                elif refusal != active.held_back:
                    self._active = self._as_active(loaded, active.actor, active.reason, active.activated_at)
                assert self._active.mode == mode
            return self._active

    def _read(self) -> bytes:
        with self.path.open("rb") as file:
            return file.read(MAX_BYTES + 1)

    def _parse(self, raw: bytes) -> LoadedPolicy:
        loaded = parse_policy(raw, str(self.path), self._device)
        if self._preflight is not None:
            try:
                self._preflight(loaded.policy)
            except ValueError as error:
                raise PolicyError([Problem(str(self.path), 1, 1, "", f"fails on the live system: {error}")]) from error
        return loaded

    def _mode(self, policy: Policy) -> tuple[Mode, str | None]:
        gate = policy.spec.promotion
        if policy.spec.mode != "enforce" or gate is None:
            return policy.spec.mode, None
        evidence = self._evidence(policy.body_revision) if self._evidence is not None else None
        refusal = gate_refusal(gate, evidence)
        return ("enforce" if refusal is None else "shadow"), refusal

    def _as_active(self, loaded: LoadedPolicy, actor: str, reason: str, now: datetime) -> Active:
        mode, refusal = self._mode(loaded.policy)
        return Active(loaded.policy, loaded.text, loaded.warnings, now, actor, reason, mode, refusal)

    def _record(self, policy: Policy, text: str, actor: str, reason: str, now: datetime) -> RevisionRecord:
        return RevisionRecord(
            policy.revision, policy.body_revision, self._mode(policy)[0], text, now, actor, reason.strip()
        )

    def _activate(self, loaded: LoadedPolicy, actor: str, reason: str) -> Active:
        """Put in force, and on record if that is possible: a full disk must not keep a safer policy out."""
        now = datetime.now(UTC)
        try:
            self.log.append(self._record(loaded.policy, loaded.text, actor, reason, now))
            self._set_alarm("record", None)
        except OSError as error:
            self._set_alarm("record", f"revision {loaded.policy.short_revision} is in force but not on record: {error}")
        return self._as_active(loaded, actor, reason, now)

    def _refused(self, error: str) -> Reload:
        self._set_alarm("reload", f"the last good policy stays in force; refused: {error}")
        return Reload(False, False, self._active.revision, error)

    def _set_alarm(self, kind: str, message: str | None) -> None:
        if self._alarms.get(kind) == message:
            return
        if message is None:
            self._alarms.pop(kind, None)
        else:
            self._alarms[kind] = message
        if self._on_alarm is not None:
            self._on_alarm(self.alarm)


def _replace(path: Path, raw: bytes) -> None:
    """Replace a file's content so that a crash leaves the old or the new one whole. Symbolic links are followed."""
    target = path.resolve()
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
