"""Streamlit's own command line. What every session needs is imported before it listens, not by the first visitor."""

from __future__ import annotations

import gc


def warm() -> None:
    """Libraries and the parts of the dashboard that hold nothing of a session; about a second on a slow core."""
    import httpcore  # noqa: F401
    import PIL.Image  # noqa: F401

    import dashboard.client
    import dashboard.live_series
    import dashboard.views.carbon
    import dashboard.views.charts
    import dashboard.views.health
    import dashboard.views.overview  # noqa: F401

    # What was imported stays: the garbage collector need not look at it again.
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    from streamlit.web.cli import main

    warm()
    main(prog_name="streamlit")
