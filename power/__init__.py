"""Power devices, telemetry, energy attribution, governors and the crash-safe actuator."""
