"""Failures as Sentry events: from the text of a traceback to what Sentry shows, and to Sentry."""
