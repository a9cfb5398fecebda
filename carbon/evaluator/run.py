"""One run of the evaluator: sample prompts by class, answer them at every level, judge each against L0, stop early."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from carbon.band_evidence import JudgedPrompt
from carbon.directives import DirectiveLevel, LevelSet, insert_directive
from carbon.evaluator.endpoints import Answer, Endpoint, EndpointError
from carbon.evaluator.judges import CostCapReachedError, Judge
from carbon.evaluator.retention import KeptPrompt
from carbon.evaluator.sequential import LevelTest, Verdict
from carbon.quality_book import Duel


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """`share`: of L0's quality a level must keep; `alpha`: error of each level's test; `min_prompts`, `max_prompts`:
    judged of a class at each level, whatever the tests say, as far as there are prompts."""

    share: float = 0.95
    alpha: float = 0.1
    min_prompts: int = 30
    max_prompts: int = 200
    max_tokens: int = 1024
    directive_in_field: bool = False


@dataclass(slots=True)
class RunCost:
    """The evaluator's own generations (the judge counts its own). Joules and grams where the endpoint reports them;
    `unreported` answers came without joules, `without_grams` without grams."""

    generations: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    energy_j: float = 0.0
    grams: float = 0.0
    unreported: int = 0
    without_grams: int = 0
    failures: int = 0

    def add(self, answer: Answer) -> None:
        self.generations += 1
        self.prompt_tokens += answer.prompt_tokens
        self.output_tokens += answer.output_tokens
        self.unreported += answer.energy_j is None
        self.without_grams += answer.grams is None
        self.energy_j += answer.energy_j or 0.0
        self.grams += answer.grams or 0.0


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer of the run, for the energy model."""

    key: str
    level: int
    prompt_tokens: int
    output_tokens: int
    energy_j: float | None


@dataclass(slots=True)
class EvaluationResult:
    """`verdicts` by (class, level); `spared`: judged pairs not needed because a test had ended."""

    duels: list[Duel] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)
    judged: list[JudgedPrompt] = field(default_factory=list)
    verdicts: dict[tuple[str, int], Verdict] = field(default_factory=dict)
    cost: RunCost = field(default_factory=RunCost)
    inconsistent: int = 0
    unreadable: int = 0
    spared: int = 0
    ended_by: str = "all tests ended"


async def evaluate(
    prompts: Mapping[str, Sequence[KeptPrompt]],
    levels: LevelSet,
    served: Endpoint,
    judge: Judge,
    plan: EvaluationPlan = EvaluationPlan(),
    order: random.Random | None = None,
) -> EvaluationResult:
    """Judge every level of every class until its test ends, the prompts run out or the judge's cap is reached.

    Classes take turns, so that a cap reached early leaves none of them without judgements.
    """
    result = EvaluationResult()
    shuffle = order or random.Random()
    queues = {name: list(kept)[:] for name, kept in prompts.items()}
    for queue in queues.values():
        shuffle.shuffle(queue)
        del queue[plan.max_prompts :]
    tests = {
        (name, level): LevelTest(0.5 * plan.share, plan.alpha, max(1, len(queue)))
        for name, queue in queues.items()
        for level in range(1, len(levels))
    }
    try:
        while any(queues.values()):
            for name, queue in queues.items():
                open_levels = [n for n in range(1, len(levels)) if _is_open(tests[name, n], plan)]
                if not queue or not open_levels:
                    result.spared += len(queue) * (len(levels) - 1)
                    queue.clear()
                    continue
                result.spared += len(levels) - 1 - len(open_levels)
                await _judge_one(name, queue.pop(), open_levels, levels, served, judge, plan, tests, result)
    except CostCapReachedError as error:
        result.ended_by = str(error)
    result.verdicts = {key: test.verdict() for key, test in tests.items()}
    return result


def _is_open(test: LevelTest, plan: EvaluationPlan) -> bool:
    return test.verdict() is Verdict.OPEN or test.samples < min(plan.min_prompts, test.max_samples)


async def _judge_one(
    name: str,
    kept: KeptPrompt,
    open_levels: Sequence[int],
    levels: LevelSet,
    served: Endpoint,
    judge: Judge,
    plan: EvaluationPlan,
    tests: Mapping[tuple[str, int], LevelTest],
    result: EvaluationResult,
) -> None:
    outcomes: dict[int, int] = {}
    try:
        plain = await _generate(name, 0, kept, levels, served, plan, result)
        for number in open_levels:
            candidate = await _generate(name, number, kept, levels, served, plan, result)
            judgement = await judge.compare(_shown(kept.messages), plain, candidate, kept.known)
            if judgement is None:
                result.unreadable += 1
                continue
            result.inconsistent += not judgement.consistent
            tests[name, number].add(judgement.outcome)
            result.duels.append(Duel(name, number, judgement.outcome))
            outcomes[number] = judgement.outcome
    except EndpointError:
        result.cost.failures += 1
    finally:
        if outcomes:
            result.judged.append(JudgedPrompt(name, last_user_text(kept.messages), outcomes))


async def _generate(
    name: str,
    number: int,
    kept: KeptPrompt,
    levels: LevelSet,
    served: Endpoint,
    plan: EvaluationPlan,
    result: EvaluationResult,
) -> str:
    level: DirectiveLevel = levels.levels[number]
    max_tokens = min(plan.max_tokens, level.max_tokens or plan.max_tokens)
    if plan.directive_in_field:
        # The served model's own server inserts the text; it must get the level by name, or none at all.
        answer = await served.answer(kept.messages, max_tokens=max_tokens, directive=level.id if number else "off")
    else:
        answer = await served.answer(insert_directive(kept.messages, level), max_tokens=max_tokens)
    result.cost.add(answer)
    result.generations.append(Generation(name, number, answer.prompt_tokens, answer.output_tokens, answer.energy_j))
    return answer.text


def _shown(messages: Sequence[Mapping[str, Any]]) -> str:
    """The conversation as the judge reads it."""
    return "\n".join(f"{message.get('role', 'user')}: {_text_of(message)}" for message in messages)


def last_user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The words by which a prompt is classed: those of its last user message."""
    return next((_text_of(message) for message in reversed(messages) if message.get("role") == "user"), "")


def _text_of(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content or () if isinstance(part, Mapping))
