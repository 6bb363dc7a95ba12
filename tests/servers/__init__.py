"""
Real servers and workers for the tests: private, on free loopback ports, in their own folders.

Everything can be started, stopped, killed, paused and restarted, and nothing outlives the test run: see ``process.py``.
"""
