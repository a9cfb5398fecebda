"""Joules and grams of an answer: estimated while it grows, the server's own figure when it is done."""

from __future__ import annotations

from dataclasses import dataclass

from dashboard.chat_stream import Answer
from dashboard.schema_state import State
from dashboard.views.formats import UNKNOWN, count, grams, number, plain, seconds
from dashboard.views.origin import DataState, Origin, missing, of_method

LEVELS = ("L0", "L1", "L2")
J_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Rates:
    """What one output token costs now, over all requests; null where unknown."""

    joules_per_token: float | None
    grams_per_joule: float | None


@dataclass(frozen=True)
class Cost:
    energy_j: float | None
    co2e_g: float | None
    tokens: int
    origin: Origin


def rates(state: State | None) -> Rates:
    if state is None:
        return Rates(None, None)
    grid = state.intensity
    per_joule = None if grid is None or grid.g_per_kwh is None else grid.g_per_kwh * grid.pue / J_PER_KWH
    return Rates(state.latency.joules_per_token, per_joule)


def cost(answer: Answer, now: Rates) -> Cost:
    tokens = answer.completion_tokens or answer.pieces
    if answer.energy is not None:
        energy = answer.energy
        if energy.energy_joules is None:
            return Cost(
                None, energy.grams_co2e, tokens, missing(energy.source or "server", energy.unknown or "unknown")
            )
        origin = of_method(energy.method, f"{energy.method}, {energy.source}", None)
        return Cost(energy.energy_joules, energy.grams_co2e, tokens, origin)
    if now.joules_per_token is None:
        return Cost(None, None, tokens, missing("estimate", "joules per token are not known now"))
    joules = tokens * now.joules_per_token
    co2e = None if now.grams_per_joule is None else joules * now.grams_per_joule
    return Cost(joules, co2e, tokens, Origin(DataState.ESTIMATED, "tokens × current J/token"))


def line(made: Cost) -> str:
    return (
        f"**{plain(number(made.energy_j, 'J'))}** · **{plain(grams(made.co2e_g))}** CO2e · {count(made.tokens)} tokens"
    )


def timing(answer: Answer) -> str:
    return f"first token {seconds(answer.first_token_s)}, total {seconds(answer.ended_s)}"


def given(answer: Answer) -> str:
    """The directive the server says it gave, and why."""
    if answer.energy is None or answer.energy.directive is None:
        return UNKNOWN
    reason = f" ({answer.energy.directive_reason})" if answer.energy.directive_reason else ""
    return answer.energy.directive + reason


def against_first(costs: list[Cost]) -> list[str]:
    """Of each after the first: joules against the first's, its counterfactual."""
    base = costs[0].energy_j if costs else None
    made = []
    for each in costs[1:]:
        if not base or each.energy_j is None:
            made.append("not comparable: joules unknown")
        else:
            change = each.energy_j / base - 1
            made.append(f"{change:+.0%} joules against the L0 answer to the same prompt")
    return made
