"""View-models: pure functions from what the admin API says to what a page shows."""
