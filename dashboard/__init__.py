"""The Streamlit operator dashboard, a pure client of the admin API."""
