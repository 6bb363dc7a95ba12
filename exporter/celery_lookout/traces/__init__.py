"""Spans made from events, for fleets whose workers and publishers are not instrumented."""
