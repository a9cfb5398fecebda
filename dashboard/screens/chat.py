"""Chat: an answer as it streams, with its joules and grams; and the same prompt under three directives."""

from __future__ import annotations

import time

import httpx
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard import chat_stream, session, show
from dashboard.chat_stream import Answer
from dashboard.views import chat as view
from dashboard.views.formats import plain

TICK_S = 0.1
MAX_TOKENS = 1024


def page() -> None:
    show.heading(
        "Chat", "Answers stream with joules and grams: estimated while they grow, the server's figure at the end."
    )
    model = served_model()
    if model is None:
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        mode = st.segmented_control(
            "Directive", ["auto", *view.LEVELS, "side by side"], default="auto", required=True, key="chat-directive"
        )
        limit = st.number_input("Most tokens", 1, MAX_TOKENS, 128, key="chat-tokens", width=140)
    with st.form("chat", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        prompt = st.text_input("Prompt", key="chat-prompt", max_chars=4000, placeholder="Why is the sky blue?")
        sent = st.form_submit_button("Send", type="primary", icon=":material/send:")
    if sent and prompt.strip():
        directives = list(view.LEVELS) if mode == "side by side" else [str(mode)]
        st.session_state["chat-answers"] = converse(model, prompt.strip(), directives, int(limit))
    elif st.session_state.get("chat-answers"):
        draw_all(
            st.session_state["chat-answers"],
            [column.container() for column in columns_for(st.session_state["chat-answers"])],
        )


def served_model() -> str | None:
    settings = session.settings()
    try:
        return chat_stream.model_of(settings.inference_api, settings.api_key)
    except (httpx.HTTPError, ValueError) as error:
        st.error(
            plain(f"The inference API at {settings.inference_api} gives no model: {error}. ")
            + "Name it with `--inference-api`, and set `GRIDSERVE_API_KEY` where it wants a key.",
            icon=":material/cloud_off:",
        )
        return None


def columns_for(answers: list[Answer]) -> list[DeltaGenerator]:
    return st.columns(len(answers), border=True)


def converse(model: str, prompt: str, directives: list[str], limit: int) -> list[Answer]:
    """Stream one answer for each directive at the same time, drawing them as they grow."""
    settings = session.settings()
    answers = [Answer(directive) for directive in directives]
    threads = []
    for answer in answers:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "max_tokens": limit,
            "directive": answer.directive,
        }
        threads.append(chat_stream.run(answer, settings.inference_api, settings.api_key, body))
    places = [column.empty() for column in columns_for(answers)]
    while any(thread.is_alive() for thread in threads):
        draw_all(answers, [place.container() for place in places])
        time.sleep(TICK_S)
    draw_all(answers, [place.container() for place in places])
    return answers


def draw_all(answers: list[Answer], places: list[DeltaGenerator]) -> None:
    rates = view.rates(session.snapshot().state)
    costs = [view.cost(answer, rates) for answer in answers]
    compared = ["", *view.against_first(costs)] if len(answers) > 1 else [""]
    for answer, cost, versus, place in zip(answers, costs, compared, places):
        with place:
            draw(answer, cost, versus if answer.done else "")


def draw(answer: Answer, cost: view.Cost, versus: str) -> None:
    st.markdown(f"**{plain(answer.directive)}** · {view.line(cost)}")
    show.origin(cost.origin)
    # st.text: what a model says is never interpreted, so it can fetch nothing and format nothing.
    st.text(answer.text or "…")
    if answer.error:
        st.error(plain(answer.error), icon=":material/error:")
    if answer.done:
        st.caption(
            plain(f"directive given {view.given(answer)}, {view.timing(answer)}" + (f", {versus}" if versus else ""))
        )


page()
