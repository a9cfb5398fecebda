"""Published measurements, one CSV each; read with `power.published`."""
