"""Trace formats: one module for each source, one registry, one streaming reader (`traces.reader`)."""
