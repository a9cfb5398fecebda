"""Parameter sets of the twin, one JSON file each; read with `power.profile`."""
