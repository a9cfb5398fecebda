"""What an emulated admin API says: figures that are functions of time, in the server's own bodies."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from serving import admin_schema as api

POLICY = Path(__file__).parents[2] / "policies" / "follow-the-grid.yaml"
CONDITIONS = ("live", "stale_feed", "empty", "no_permission", "simulated")
LEVELS = ("L0", "L1", "L2")
TENANTS = ("research", "website", "![x](http://evil.example/a.png) <b>bold</b>")
CLASSES = ("chat", "code", "summarise")


def wave(t: float, period_s: float, phase: float = 0.0) -> float:
    return math.sin(2 * math.pi * t / period_s + phase)


def noise(t: float, seed: str) -> float:
    """In [-1, 1], the same for the same second."""
    digest = hashlib.sha256(f"{seed} {int(t)}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**31 - 1


def intensity_at(t: float) -> float:
    slot = t // 1800 * 1800
    return 150 + 60 * wave(slot, 86400, 0.5) + 18 * wave(slot, 21600)


def clock_at(t: float) -> float:
    return 1980 - 15 * round(24 * (0.5 + 0.5 * wave(t // 40 * 40, 600)))


@dataclass
class World:
    condition: str = "live"
    gpus: int = 2
    step_s: float = 1.0
    mode: str = "enforce"
    text: str = field(default_factory=lambda: POLICY.read_text("utf-8"))
    revisions: list[api.PolicyRevision] = field(default_factory=list)
    hold: api.Hold | None = None
    audit: list[api.AuditRow] = field(default_factory=list)
    keys: list[api.KeyInfo] = field(default_factory=list)
    started: float = field(default_factory=lambda: time.time() - 7200)

    def __post_init__(self) -> None:
        now = time.time()
        self.revisions = [self._revision(self.text, "enforce", now - 5000, "admin", "first activation")]
        older = self.text.replace("floor_fraction: 0.7", "floor_fraction: 0.8")
        self.revisions.append(self._revision(older, "shadow", now - 90000, "admin", "trial"))
        self.keys = [
            api.KeyInfo("k1", "research", "inference", ["inference"], now - 864000, None, now - 3, 600.0, None, 5000.0),
            api.KeyInfo("k2", "ops", "admin", ["control:write"], now - 864000, now + 864000, now - 30),
        ]
        for index in range(60):
            kind = ("decision", "decision", "actuation")[index % 3]
            at = now - 900 + index * 14
            self.add_audit(kind, "controller", f"governor slo_slack step {index}", at=at, asked=clock_at(at))

    def _revision(self, text: str, mode: str, at: float, actor: str, reason: str) -> api.PolicyRevision:
        body = hashlib.sha256(text.encode()).hexdigest()[:12]
        revision = hashlib.sha256(f"{text}{mode}".encode()).hexdigest()[:12]
        return api.PolicyRevision(revision, body, mode, at, actor, reason, text)

    def add_audit(self, kind: str, actor: str, reason: str, at: float | None = None, asked: object = None) -> None:
        seq = len(self.audit) + 1
        previous = self.audit[-1].hash if self.audit else ""
        digest = hashlib.sha256(f"{previous}{seq}{kind}{reason}".encode()).hexdigest()
        device = "GPU-0" if kind in ("actuation", "restore") else None
        self.audit.append(
            api.AuditRow(
                seq, at or time.time(), kind, actor, self.revisions[0].revision, self.mode, "slo_slack", device,
                asked, asked, "applied" if device else None, 0.012 if device else None,
                {"intensity_g_per_kwh": 171.0, "ttft_p99_s": 0.21}, False, reason, digest,
            )
        )  # fmt: skip

    def method(self) -> str:
        return "simulated" if self.condition == "simulated" else "measured"

    def power(self, t: float) -> float:
        return 420 + 90 * wave(t, 300) + 25 * noise(t, "p") + 0.09 * (clock_at(t) - 1800)

    def devices(self, t: float) -> list[api.DeviceState]:
        allowed = self.condition != "no_permission"
        return [
            api.DeviceState(
                uuid=f"GPU-{gpu}", name="NVIDIA H100 80GB HBM3", method=self.method(),
                source="twin:h100-sxm" if self.condition == "simulated" else "nvml_energy_counter", scope="gpu",
                fresh=True, error=None, power_w=self.power(t + 7 * gpu), energy_j=4e6 + 420 * (t - self.started),
                sm_clock_mhz=clock_at(t), memory_clock_mhz=2619.0, temperature_c=58 + 4 * wave(t, 500),
                utilisation=0.82, power_limit_w=600.0, default_limit_w=700.0, max_limit_w=700.0, clocks_min_mhz=210,
                clocks_max_mhz=1980, clock_reasons=["sw_power_cap"] if gpu else [],
                asked_clock_mhz=int(clock_at(t)) if allowed else None, asked_limit_w=600.0 if allowed else None,
                capabilities=["read", "lock_clocks", "power_limit"] if allowed else ["read"],
                governor_reason="slack 0.31 of the TTFT SLO" if allowed else "observe-only: clock lock not permitted",
                notes=[] if allowed else ["clock lock not permitted: start gridserve-powerd, or run as root"],
            )
            for gpu in range(self.gpus)
        ]  # fmt: skip

    def state(self) -> api.State:
        t = time.time()
        empty = self.condition == "empty"
        up = t - self.started
        totals = api.EnergyTotals(840 * up, 180 * up, 470 * up, 60 * up, 115 * up, 15 * up, 0.0, self.method())
        held = "clock lock not permitted by the driver" if self.condition == "no_permission" else None
        mode = "observe" if held else self.mode
        power = api.PowerState(
            mode, "slo_slack", held is None, True, None, 140.0, "calibrated", self.devices(t), totals,
            {"applied": 24, "refused": 0}, 0, 0, [],
        )  # fmt: skip
        tokens = None if empty else 1180 + 200 * wave(t, 200)
        tail = (0.24 + 0.07 * wave(t, 240), 0.31 + 0.1 * wave(t, 240))
        latency = api.LatencyState(
            60.0, 0 if empty else 212, *((None,) * 5 if empty else (0.12, *tail, 0.021, 0.034)),
            1.0, 0.05, tokens, None if empty else 0.71 + 0.05 * wave(t, 90), None if empty else 0.0352,
        )  # fmt: skip
        revision = self.revisions[0]
        return api.State(
            version="0.1.0", now_unix_s=t, started_unix_s=self.started,
            engine=api.EngineState(
                True, None, "smollm2-135m-instruct", "cuda:0", "bf16", 8192, 64, 2048, 2048,
                0 if empty else 31 + int(9 * wave(t, 60)),
                0 if empty else max(0, int(3 * wave(t, 45))), 0 if empty else 2210, 4096, 2, 0 if empty else 33,
            ),
            latency=latency, power=None if empty else power, intensity=None if empty else self.intensity(t),
            policy=None if empty else api.ActivePolicySummary(
                "follow-the-grid", revision.revision, mode, self.mode, held,
                revision.activated_unix_s, revision.actor, None
            ),
            hold=self.hold, ledger=None if empty else self.ledger(), alarms=self.alarms(t),
            simulated=self.condition == "simulated",
        )  # fmt: skip

    def ledger(self) -> api.LedgerState:
        return api.LedgerState("ledger.db", 3, 81234, 0, 0, 12, 912345, 0, 0.004, None)

    def alarms(self, t: float) -> list[api.Alarm]:
        if self.condition == "stale_feed":
            return [api.Alarm("carbon", "uk_grid: no answer for 2 h (HTTP 503); the last value is used", t - 5400)]
        if self.condition == "no_permission":
            return [api.Alarm("power", "observe-only: clock lock not permitted", t - 7000)]
        return []

    def intensity(self, t: float) -> api.Intensity:
        start = t // 1800 * 1800
        stale = self.condition == "stale_feed"
        if stale:
            start -= 7200
        return api.Intensity(
            "GB", round(intensity_at(start), 1), "stale" if stale else "live", "estimated", "uk_grid", "average",
            "direct",            "consumption", start, start + 1800, t - start - 1800 if stale else 0.0,
            "no answer from uk_grid for 2 h" if stale else None, 1.2,
        )  # fmt: skip

    def carbon(self) -> api.CarbonState:
        t = time.time()
        slot = t // 1800 * 1800
        points = [self._point(slot + 1800 * i, 6 + 1.1 * i) for i in range(96)]
        history = [self._point(slot - 1800 * i, 0.0) for i in range(48, 0, -1)]
        mixes = [
            api.ClassMix("chat", {"L0": 0.42, "L1": 0.38, "L2": 0.2}, 0.27, 0.991, None, "measured", 0.6),
            api.ClassMix("code", {"L0": 1.0}, 0.0, 1.0, "never shortened", "measured", 0.25),
            api.ClassMix("summarise", {"L0": 0.7, "L1": 0.3}, 0.12, 0.994, None, "estimated", 0.15),
        ]
        stale = self.condition == "stale_feed"
        return api.CarbonState(
            self.mode == "enforce", self.intensity(t),
            [api.LevelState("L0", None, None), api.LevelState("L1", "Always answer briefly", None),
             api.LevelState("L2", "Always answer very briefly", None)],
            None if stale else api.ForecastState("seasonal model", slot, 0.113, points),
            api.PlanState(
                "quality_budget", slot, intensity_at(t), self.tier(), 0.196, 0.171, mixes, [], self.planned(slot)
            ),
            history,
        )  # fmt: skip

    def planned(self, slot: float) -> list[api.PlannedHourState]:
        first = slot // 3600 * 3600
        starts = [time.time() - 60, *(first + 3600.0 * hour for hour in range(1, 48))]
        values = [(at, intensity_at(at)) for at in starts]
        return [api.PlannedHourState(at, value, max(0.02, (value - 90) / 400)) for at, value in values]

    def _point(self, start: float, spread: float) -> api.ForecastPoint:
        value = intensity_at(start)
        band = (max(0.0, value - spread), value + spread) if spread else (None, None)
        return api.ForecastPoint(start, start + 1800, round(value, 1), *band)

    def tier(self) -> str:
        return "stale" if self.condition == "stale_feed" else "live"

    def evaluator(self) -> api.EvaluatorState:
        quality = [
            api.QualityEntry(key, level, 240.0 if key != "summarise" else 31.0, mean, mean - half, mean + half)
            for key, half in (("chat", 0.008), ("code", 0.012), ("summarise", 0.04))
            for level, mean in (("L1", 0.992), ("L2", 0.975))
        ]
        now = time.time()
        run = api.EvaluatorRunState(
            started_unix_s=now - 11400, finished_unix_s=now - 10800, reason="a week since the last", judge="self",
            judged=96, verdicts={"chat": "L1 holds", "code": "L0 only"}, ended_by="enough prompts", generations=288,
            joules=5210.0, grams=0.26, judge_calls=192, judge_joules=None, judge_grams=None, judge_cost=0.0,
            failures=0, inconsistent=4, unreadable=1, spared=12,
        )  # fmt: skip
        why = "last judged 3 h ago, drift below threshold"
        return api.EvaluatorState(
            False, why, now - 10800, quality, False, None, {"chat": 210, "code": 64, "summarise": 31}, [run]
        )

    def request(self, index: int) -> api.RequestRecord:
        t = time.time() // 5 * 5 - 4 * index
        tokens = 40 + int(120 * (1 + noise(index, "n")))
        prefill, decode, idle = 3.1 + noise(index, "a"), 0.31 * tokens, 0.04 * tokens
        total, intensity = prefill + decode + idle, intensity_at(t)
        ttft, tpot = 0.12 + 0.05 * noise(index, "t"), 0.021
        return api.RequestRecord(
            request_id=f"req-{100000 - index}", arrived_unix_s=t, finished_unix_s=t + ttft + tokens * tpot,
            tenant=TENANTS[index % 3], model="smollm2-135m-instruct", endpoint="chat", task_class=CLASSES[index % 3],
            directive=LEVELS[index % 3] if index % 3 != 1 else "L0", directive_reason="mix",
            policy_revision=self.revisions[0].revision, policy_mode=self.mode, priority=0, prompt_tokens=180,
            completion_tokens=tokens, cached_tokens=64, choices=1, queue_s=0.4 * ttft, ttft_s=ttft,
            tpot_s=tpot, e2e_s=ttft + tokens * tpot,
            energy_j=total, prefill_j=prefill, decode_j=decode, idle_j=idle, energy_method=self.method(),
            energy_source="nvml_energy_counter", energy_uncertainty_percent=3.0,
            operational_g=total / 3.6e6 * 1.2 * intensity, embodied_g=0.00003, intensity_g_per_kwh=intensity,
            intensity_source="uk_grid", intensity_kind="estimated", intensity_tier="live", zone="GB",
            finish_reason="stop", status=200,
        )  # fmt: skip

    def budgets(self) -> api.BudgetList:
        day = time.time() // 86400 * 86400
        first = api.TenantUsage("research", day, 5210, 2.1e6, 402.0, 3, 0, 500.0, None, 0.8, "brief", "soft", None)
        second = api.TenantUsage("website", day, 991, 3.0e5, 57.0, 0, 0, None, 1e6, 0.8, "refuse", "within", None)
        third = api.TenantUsage(TENANTS[2], day, 12, 4000.0, 0.8, 0, 0, None, None, None, None, None, None)
        return api.BudgetList([first, second, third])
